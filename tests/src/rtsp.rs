//! A real RTSP server on loopback that can disconnect and stall: GStreamer's, in its own process.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A server with one stream, `/cam`: 320 x 240 pixels, 10 frames a second. Killed when dropped.
#[derive(Debug)]
pub struct RtspServer {
    child: Child,
    port: u16,
    login: Vec<String>,
}

impl RtspServer {
    /// Starts a server without authentication.
    ///
    /// # Panics
    /// When GStreamer's server is not installed.
    pub fn start() -> RtspServer {
        RtspServer::with(Vec::new())
    }

    /// Starts a server that requires a user name and a password.
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

    /// Kills it, which closes its connections.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub fn vanish(&mut self) {
        self.child.kill().expect("the server can be killed");
        self.child.wait().expect("the server has ended");
    }

    /// Starts it again on the same port, after [`RtspServer::vanish`].
    ///
    /// # Panics
    /// As [`RtspServer::start`], or when the port is in use.
    pub fn come_back(&mut self) {
        (self.child, _) = listening(self.port, &self.login);
    }

    /// Suspends it: connections stay open, but no data arrives.
    ///
    /// # Panics
    /// When the signal cannot be sent.
    pub fn stall(&self) {
        self.signal("-STOP");
    }

    /// Ends [`RtspServer::stall`].
    ///
    /// # Panics
    /// When the signal cannot be sent.
    pub fn go_on(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(sent.success(), "{signal} could not be sent");
    }
}

/// A server on `port`, or on any if that is 0, and its port.
fn listening(port: u16, login: &[String]) -> (Child, u16) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/rtsp_server.py");
    // Debian's Python: its GStreamer bindings are installed for no other.
    let mut command = Command::new("/usr/bin/python3");
    command
        .arg(script)
        .arg(port.to_string())
        .args(login)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("/usr/bin/python3 is installed");
    let (mut line, mut log) = (String::new(), String::new());
    BufReader::new(child.stdout.take().expect("piped"))
        .read_line(&mut line)
        .expect("the port is printed as UTF-8");
    if line.is_empty() {
        child
            .stderr
            .take()
            .expect("piped")
            .read_to_string(&mut log)
            .expect("its log is UTF-8");
    }
    let port = line.trim().parse().unwrap_or_else(|_| {
        panic!("the RTSP server did not start; tests/run.sh lists its packages: {log}")
    });
    (child, port)
}

impl Drop for RtspServer {
    fn drop(&mut self) {
        // Both calls fail only if it has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
