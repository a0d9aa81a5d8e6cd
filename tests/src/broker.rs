//! A real broker on loopback: mosquitto.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Timeout for a broker to start listening, and to save its store.
const START_MAX: Duration = Duration::from_secs(20);

/// A mosquitto process that only this test uses; killed when dropped.
#[derive(Debug)]
pub struct Broker {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Broker {
    /// Starts a broker without authentication or persistence.
    ///
    /// # Panics
    /// When mosquitto is not installed or does not listen.
    pub fn start() -> Broker {
        Broker::with("persistence false\n")
    }

    /// Starts a broker with additional lines of configuration.
    ///
    /// # Panics
    /// As [`Broker::start`].
    pub fn with(lines: &str) -> Broker {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let address = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port");
        let text = format!(
            "listener {} 127.0.0.1\nallow_anonymous true\n{lines}",
            address.port()
        );
        std::fs::write(folder.path().join("mosquitto.conf"), text)
            .expect("the configuration file can be written");
        let child = spawn(folder.path());
        let mut broker = Broker {
            child,
            address,
            folder,
        };
        broker.wait_listening();
        broker
    }

    /// `mqtt://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    /// The port it listens on, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Kills it without a shutdown, as a power cut would.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub fn kill(&mut self) {
        self.child.kill().expect("mosquitto can be killed");
        self.child.wait().expect("mosquitto has ended");
    }

    /// Starts it again on the same port, after [`Broker::kill`].
    ///
    /// # Panics
    /// As [`Broker::start`].
    pub fn restart(&mut self) {
        self.child = spawn(self.folder.path());
        self.wait_listening();
    }

    /// Waits until its store on disk contains `text`, such as a client id.
    ///
    /// # Panics
    /// On timeout: persistence is off, or the broker saves too seldom.
    pub fn wait_saved(&self, text: &str) {
        let store = self.folder.path().join("mosquitto.db");
        let started = Instant::now();
        while !std::fs::read(&store).is_ok_and(|bytes| {
            bytes
                .windows(text.len())
                .any(|window| window == text.as_bytes())
        }) {
            assert!(
                started.elapsed() < START_MAX,
                "mosquitto has not saved {text:?} within {START_MAX:?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn wait_listening(&mut self) {
        let started = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            assert!(
                self.child
                    .try_wait()
                    .expect("the state of the process")
                    .is_none(),
                "mosquitto ended before it listened"
            );
            assert!(
                started.elapsed() < START_MAX,
                "mosquitto does not listen on {} after {START_MAX:?}",
                self.address
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn spawn(folder: &Path) -> Child {
    // Debian installs it in a folder that is only on root's PATH.
    let installed = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"]
        .into_iter()
        .find(|path| Path::new(path).is_file());
    Command::new(installed.unwrap_or("mosquitto"))
        .arg("-c")
        .arg("mosquitto.conf")
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("mosquitto is installed; tests/run.sh installs it")
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Both calls fail only if it has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
