//! The demo's other processes: a broker and a pool worker, both this program again.
//!
//! Each reads its standard input until it ends, so none outlives the demo even when the demo is
//! killed.

use std::ffi::OsStr;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// A process that ends with the demo.
#[derive(Debug)]
pub(crate) struct Sidecar {
    child: Child,
    role: &'static str,
}

impl Sidecar {
    /// Starts this program again as `role`.
    pub(crate) fn start<A: AsRef<OsStr>>(
        role: &'static str,
        arguments: impl IntoIterator<Item = A>,
    ) -> anyhow::Result<Sidecar> {
        let program = std::env::current_exe().context("finding this program")?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Its log would break up the live view.
            .stderr(Stdio::null())
            // Ctrl-C in a terminal reaches the demo alone, which needs both processes until it has
            // drained.
            .process_group(0)
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
        // Either fails only when the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// 1883 on loopback when it is free, else a port that is.
pub(crate) fn free_port() -> anyhow::Result<SocketAddr> {
    let listener = usual_port()
        .or_else(|_| TcpListener::bind("127.0.0.1:0"))
        .context("finding a free port on 127.0.0.1")?;
    listener.local_addr().context("reading the free port")
}

/// 1883, for this demo alone: two that start at once would both find it free, and the second one
/// would use the broker of the first. So a demo also binds the same port on another loopback
/// address, until its process ends.
fn usual_port() -> io::Result<TcpListener> {
    static CLAIM: OnceLock<TcpListener> = OnceLock::new();
    let claim = TcpListener::bind("127.0.18.83:1883")?;
    let listener = TcpListener::bind("127.0.0.1:1883")?;
    CLAIM.set(claim).map_err(|_| io::ErrorKind::AddrInUse)?;
    Ok(listener)
}

/// Waits until something accepts connections at `address`, while `sidecar` is alive.
pub(crate) async fn wait_listening(
    address: SocketAddr,
    sidecar: &mut Sidecar,
    limit: Duration,
) -> anyhow::Result<()> {
    let listening = async {
        while TcpStream::connect(address).await.is_err() {
            sidecar.check()?;
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    };
    let listening = timeout(limit, listening).await;
    listening.unwrap_or_else(|_| anyhow::bail!("nothing listens on {address} after {limit:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_demos_do_not_share_the_usual_port() {
        let ports = [(); 2].map(|()| {
            free_port()
                .map(|address| address.port())
                .unwrap_or_default()
        });
        assert!(ports != [1883; 2] && !ports.contains(&0), "{ports:?}");
    }
}
