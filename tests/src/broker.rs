//! A real broker on loopback: mosquitto.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a broker may take to listen.
const START_MAX: Duration = Duration::from_secs(20);

/// A mosquitto of this test alone; killed when dropped.
#[derive(Debug)]
pub struct Broker {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Broker {
    /// Starts a broker that takes anybody and keeps nothing over its end.
    ///
    /// # Panics
    /// When mosquitto is not installed or does not listen.
    pub fn start() -> Broker {
        Broker::with("persistence false\n")
    }

    /// Starts a broker with more lines of configuration.
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
            .expect("its configuration can be written");
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

    /// Where it listens on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Ends it at once, as a power cut would.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it has ended");
    }

    /// Starts it again on the same port, after [`Broker::kill`].
    ///
    /// # Panics
    /// As [`Broker::start`].
    pub fn restart(&mut self) {
        self.child = spawn(self.folder.path());
        self.wait_listening();
    }

    /// Waits until its store on disk holds `text`, such as a client's id.
    ///
    /// # Panics
    /// When that takes too long: persistence is off, or it saves too seldom.
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
                "mosquitto does not save {text:?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn wait_listening(&mut self) {
        let started = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            assert!(
                self.child.try_wait().expect("its state").is_none(),
                "mosquitto ended at once"
            );
            assert!(
                started.elapsed() < START_MAX,
                "mosquitto does not listen on {}",
                self.address
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn spawn(folder: &Path) -> Child {
    // Debian keeps it where only root's PATH looks.
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
        // Either may fail only because it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
