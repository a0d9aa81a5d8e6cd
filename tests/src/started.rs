//! A program of the workspace, started and ready.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

/// A program that said it is ready; killed when dropped.
#[derive(Debug)]
pub struct Started {
    child: Child,
    /// The first line it printed.
    pub line: String,
}

impl Started {
    /// Starts `egret` with `args` and waits for its first line on stdout.
    ///
    /// # Panics
    /// When it ends without one; its stderr is told.
    pub fn egret<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Started {
        Started::egret_with(args, &[])
    }

    /// As [`Started::egret`], with more variables in its environment.
    ///
    /// # Panics
    /// As [`Started::egret`].
    pub fn egret_with<A: AsRef<OsStr>>(
        args: impl IntoIterator<Item = A>,
        variables: &[(&str, &OsStr)],
    ) -> Started {
        let mut command = Command::new(crate::program("egret"));
        command
            .args(args)
            .env("RUST_LOG", "warn")
            .envs(variables.iter().copied());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("egret starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("a line is UTF-8");
        let mut said = String::new();
        if line.is_empty() {
            child
                .stderr
                .take()
                .expect("piped")
                .read_to_string(&mut said)
                .expect("its log is UTF-8");
        }
        assert!(!line.is_empty(), "egret ended before it was ready: {said}");
        Started {
            child,
            line: line.trim_end().to_owned(),
        }
    }

    /// The URL at the end of its line.
    ///
    /// # Panics
    /// When there is none.
    pub fn url(&self) -> String {
        self.line
            .split_whitespace()
            .last()
            .filter(|word| word.starts_with("http"))
            .expect("a line that ends with a URL")
            .to_owned()
    }

    /// Ends it at once, as a power cut would.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it has ended");
    }

    /// Asks it to stop (SIGTERM) and returns its exit code.
    ///
    /// # Panics
    /// When it cannot be told, or is ended by a signal.
    pub fn stop(&mut self) -> i32 {
        let told = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(told.success(), "it could not be told");
        self.child
            .wait()
            .expect("it has ended")
            .code()
            .expect("it ended by itself")
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Either may fail only because it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
