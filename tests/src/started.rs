//! A running program of the workspace.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

/// A program that has reported that it is ready; killed when dropped.
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
    /// When it ends without one; the message contains its stderr.
    pub fn egret<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Started {
        Started::egret_with(args, &[])
    }

    /// As [`Started::egret`], with additional environment variables.
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
            .expect("the first line is UTF-8");
        let mut log = String::new();
        if line.is_empty() {
            child
                .stderr
                .take()
                .expect("piped")
                .read_to_string(&mut log)
                .expect("its log is UTF-8");
        }
        assert!(!line.is_empty(), "egret ended before it was ready: {log}");
        Started {
            child,
            line: line.trim_end().to_owned(),
        }
    }

    /// The URL at the end of its first line.
    ///
    /// # Panics
    /// When there is none.
    pub fn url(&self) -> String {
        self.line
            .split_whitespace()
            .last()
            .filter(|word| word.starts_with("http"))
            .expect("the first line ends with a URL")
            .to_owned()
    }

    /// Kills it without a shutdown, as a power cut would.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub fn kill(&mut self) {
        self.child.kill().expect("egret can be killed");
        self.child.wait().expect("egret has ended");
    }

    /// Sends it SIGTERM and returns its exit code.
    ///
    /// # Panics
    /// When the signal cannot be sent, or ends the process.
    pub fn stop(&mut self) -> i32 {
        let sent = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(sent.success(), "SIGTERM could not be sent");
        self.child
            .wait()
            .expect("egret has ended")
            .code()
            .expect("egret exited with a code")
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Both calls fail only if it has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
