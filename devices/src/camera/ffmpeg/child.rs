//! A child process that is always reaped, and whose last words are kept.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{self, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Bytes of stderr that are kept: its end.
const STDERR_MAX: usize = 2 << 10;

/// Time a child has to exit by itself after it closed its stdout.
const EXIT_MAX: Duration = Duration::from_secs(2);

/// Its status cannot be waited for with a limit, so it is looked at this often.
const EXIT_LOOK: Duration = Duration::from_millis(5);

/// A running program, killed and reaped when dropped.
pub struct Child {
    process: process::Child,
    /// Collects stderr while the child lives, so that it never waits for us to read it.
    listener: Option<JoinHandle<String>>,
    said: String,
}

impl Child {
    /// Starts `program`; its stdout is the caller's to read.
    ///
    /// # Errors
    /// When there is no such program, or it does not start.
    pub fn start(program: &str, arguments: &[OsString]) -> io::Result<(Self, ChildStdout)> {
        let mut process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C at a terminal is for the agent, which then ends its children itself.
            .process_group(0)
            .spawn()?;
        let (Some(stdout), Some(stderr)) = (process.stdout.take(), process.stderr.take()) else {
            unreachable!("both were asked for");
        };
        let listener = thread::spawn(move || tail(stderr));
        Ok((
            Self {
                process,
                listener: Some(listener),
                said: String::new(),
            },
            stdout,
        ))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// How it ended, once its stdout has; one that does not exit is killed.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn end(&mut self) -> io::Result<ExitStatus> {
        let begun = Instant::now();
        while self.process.try_wait()?.is_none() && begun.elapsed() < EXIT_MAX {
            thread::sleep(EXIT_LOOK);
        }
        self.kill();
        self.process.wait()
    }

    /// The end of what it wrote to stderr, once it has ended: one line, 2 KiB at most, without user
    /// and password of URLs.
    pub fn said(&self) -> &str {
        &self.said
    }

    /// Kills it if it still runs, and reaps it.
    pub fn kill(&mut self) {
        // Either fails only when it has been reaped before.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(listener) = self.listener.take() {
            self.said = listener.join().unwrap_or_default();
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
    let mut cut = false;
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
            cut = true;
        }
    }
    let text = String::from_utf8_lossy(&kept);
    // A line that lost its beginning may have lost what shows that the rest of it is a password.
    let whole_lines = if cut {
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
    fn last_words_are_one_line_without_passwords() {
        let said = "[rtsp @ 0x1] method DESCRIBE failed: 401\n\n rtsp://me:secret@192.0.2.7/: \x1b[31mUnauthorized\n";
        assert_eq!(
            tail(said.as_bytes()),
            "[rtsp @ 0x1] method DESCRIBE failed: 401; rtsp://***@192.0.2.7/:  [31mUnauthorized"
        );
        assert_eq!(tail(&b""[..]), "");
    }

    #[test]
    fn of_much_the_end_is_kept_in_whole_lines() {
        let said = "rtsp://me:secret@192.0.2.7/: corrupt frame\n".repeat(1000);
        let kept = tail(said.as_bytes());
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
