//! A real RTSP server on loopback that can vanish and stall: GStreamer's, in a process of its own.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A server with one stream, `/cam`: 320 x 240, 10 frames a second. Killed when dropped.
#[derive(Debug)]
pub struct RtspServer {
    child: Child,
    port: u16,
    login: Vec<String>,
}

impl RtspServer {
    /// Starts a server that anybody may watch.
    ///
    /// # Panics
    /// When GStreamer's server is not installed.
    pub fn start() -> RtspServer {
        RtspServer::with(Vec::new())
    }

    /// Starts a server that wants to know a user and a password.
    ///
    /// # Panics
    /// As [`RtspServer::start`].
    pub fn with_password(user: &str, password: &str) -> RtspServer {
        RtspServer::with(vec![user.to_owned(), password.to_owned()])
    }

    fn with(login: Vec<String>) -> RtspServer {
        let (child, port) = listening(0, &login);
        RtspServer { child, port, login }
    }

    /// The stream's URL, with `user` in front of the host: `""`, or `"name:password@"`.
    pub fn url(&self, user: &str) -> String {
        format!("rtsp://{user}127.0.0.1:{}/cam", self.port)
    }

    /// Ends it at once: connections are closed.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub fn vanish(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it has ended");
    }

    /// Starts it again on the same port, after [`RtspServer::vanish`].
    ///
    /// # Panics
    /// As [`RtspServer::start`], or when the port is another's by now.
    pub fn come_back(&mut self) {
        (self.child, _) = listening(self.port, &self.login);
    }

    /// Freezes it: connections stay open, and nothing comes any more.
    ///
    /// # Panics
    /// When it cannot be told.
    pub fn stall(&self) {
        self.tell("-STOP");
    }

    /// Ends [`RtspServer::stall`].
    ///
    /// # Panics
    /// When it cannot be told.
    pub fn go_on(&self) {
        self.tell("-CONT");
    }

    fn tell(&self, signal: &str) {
        let told = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(told.success(), "it could not be told");
    }
}

/// A server on `port`, or on any if that is 0, and its port.
fn listening(port: u16, login: &[String]) -> (Child, u16) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/rtsp_server.py");
    // Debian's own Python: its GStreamer bindings belong to no other.
    let mut command = Command::new("/usr/bin/python3");
    command
        .arg(script)
        .arg(port.to_string())
        .args(login)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("/usr/bin/python3 is installed");
    let (mut line, mut said) = (String::new(), String::new());
    BufReader::new(child.stdout.take().expect("piped"))
        .read_line(&mut line)
        .expect("a port is UTF-8");
    if line.is_empty() {
        child
            .stderr
            .take()
            .expect("piped")
            .read_to_string(&mut said)
            .expect("its log is UTF-8");
    }
    let port = line
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("no RTSP server; tests/run.sh names its packages: {said}"));
    (child, port)
}

impl Drop for RtspServer {
    fn drop(&mut self) {
        // Either may fail only because it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
