//! The demo's other processes: a broker and a pool worker, both this program again.
//!
//! Each reads its standard input until it ends, so none outlives the demo even when the demo is killed.

use std::ffi::OsStr;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::net::TcpStream;

/// A process that ends with the demo.
#[derive(Debug)]
pub(crate) struct Sidecar {
    child: Child,
    role: &'static str,
}

impl Sidecar {
    /// Starts this program again as `role`.
    pub(crate) fn start<A: AsRef<OsStr>>(role: &'static str, arguments: impl IntoIterator<Item = A>) -> anyhow::Result<Sidecar> {
        let program = std::env::current_exe().context("finding this program")?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Its log would tear the live view; what matters of it is seen in the answers.
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting the demo's {role}"))?;
        Ok(Sidecar { child, role })
    }

    /// Fails when the process has already ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait() {
            Ok(Some(status)) => anyhow::bail!("the demo's {} ended at once: {status}", self.role),
            Ok(None) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("watching the demo's {}", self.role)),
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        // Either may fail only because the process has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// 1883 on loopback when it is free, else a port that is.
pub(crate) fn free_port() -> anyhow::Result<SocketAddr> {
    let preferred = SocketAddr::from(([127, 0, 0, 1], 1883));
    let listener =
        TcpListener::bind(preferred).or_else(|_| TcpListener::bind("127.0.0.1:0")).context("finding a free port on 127.0.0.1")?;
    listener.local_addr().context("reading the free port")
}

/// Waits until something accepts connections at `address`, while `sidecar` is alive.
pub(crate) async fn wait_listening(address: SocketAddr, sidecar: &mut Sidecar, limit: Duration) -> anyhow::Result<()> {
    let started = Instant::now();
    while TcpStream::connect(address).await.is_err() {
        sidecar.check()?;
        anyhow::ensure!(started.elapsed() < limit, "nothing listens on {address} after {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
