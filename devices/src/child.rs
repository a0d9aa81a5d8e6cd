//! A child process that is always reaped, and the end of what it writes to stderr.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{self, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Bytes of stderr that are kept: its end.
const STDERR_MAX: usize = 2 << 10;

/// Time a child has to exit by itself after it closed its stdout.
const EXIT_GRACE: Duration = Duration::from_secs(2);

/// The system has no wait for a child with a timeout, so its status is polled this often.
const EXIT_POLL: Duration = Duration::from_millis(5);

/// A running program, killed and reaped when dropped.
pub(crate) struct Child {
    process: process::Child,
    /// Reads stderr while the child runs, so that it never blocks on a full pipe.
    stderr_reader: Option<JoinHandle<String>>,
    stderr: String,
}

impl Child {
    /// Starts `program`; its stdout is the caller's to read.
    ///
    /// # Errors
    /// When there is no such program, or it does not start.
    pub(crate) fn start(program: &str, arguments: &[OsString]) -> io::Result<(Self, ChildStdout)> {
        let mut process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C at a terminal is for the agent, which then ends its children itself.
            .process_group(0)
            .spawn()?;
        let (Some(stdout), Some(stderr)) = (process.stdout.take(), process.stderr.take()) else {
            unreachable!("both are piped");
        };
        let stderr_reader = thread::spawn(move || tail(stderr));
        Ok((
            Self {
                process,
                stderr_reader: Some(stderr_reader),
                stderr: String::new(),
            },
            stdout,
        ))
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Its exit status, once its stdout has ended; a child that does not exit within
    /// [`EXIT_GRACE`] is killed.
    ///
    /// # Errors
    /// When the system does not know the status.
    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        let started = Instant::now();
        while self.process.try_wait()?.is_none() && started.elapsed() < EXIT_GRACE {
            thread::sleep(EXIT_POLL);
        }
        self.kill();
        self.process.wait()
    }

    /// The end of what it wrote to stderr, once it has exited: one line of 2 KiB at most, without
    /// user and password of URLs.
    pub(crate) fn stderr(&self) -> &str {
        &self.stderr
    }

    /// Kills it if it still runs, and reaps it.
    pub(crate) fn kill(&mut self) {
        // Either fails only when it has been reaped before.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(reader) = self.stderr_reader.take() {
            self.stderr = reader.join().unwrap_or_default();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last lines of `stderr`, as one line without passwords or control characters.
fn tail(mut stderr: impl Read) -> String {
    let mut kept = Vec::new();
    let mut is_cut = false;
    let mut buffer = [0; 1024];
    loop {
        match stderr.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => kept.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
        if kept.len() > STDERR_MAX {
            kept.drain(..kept.len() - STDERR_MAX);
            is_cut = true;
        }
    }
    let text = String::from_utf8_lossy(&kept);
    // A line without its beginning may hold a password that is no longer recognized as one.
    let whole_lines = if is_cut {
        text.split_once('\n').map_or("", |(_, rest)| rest)
    } else {
        &text
    };
    let lines: Vec<_> = whole_lines
        .lines()
        .map(|line| firmware_config::redact(line.trim()))
        .filter(|line| !line.is_empty())
        .collect();
    lines.join("; ").replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stderr_is_one_line_without_passwords() {
        let written = "[rtsp @ 0x1] method DESCRIBE failed: 401\n\n rtsp://me:secret@192.0.2.7/: \x1b[31mUnauthorized\n";
        assert_eq!(
            tail(written.as_bytes()),
            "[rtsp @ 0x1] method DESCRIBE failed: 401; rtsp://***@192.0.2.7/:  [31mUnauthorized"
        );
        assert_eq!(tail(&b""[..]), "");
    }

    #[test]
    fn of_a_long_stderr_the_last_whole_lines_are_kept() {
        let written = "rtsp://me:secret@192.0.2.7/: corrupt frame\n".repeat(1000);
        let kept = tail(written.as_bytes());
        assert!(kept.len() <= STDERR_MAX, "{}", kept.len());
        assert!(!kept.contains("secret"), "{kept}");
        assert!(
            kept.starts_with("rtsp://***@192.0.2.7/: corrupt frame; rtsp"),
            "{kept}"
        );
        assert_eq!(
            tail("secret".repeat(1000).as_bytes()),
            "",
            "one line without its beginning"
        );
    }
}
