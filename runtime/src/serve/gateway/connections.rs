//! The gateway's connections: their number is limited, silent ones are closed, and none outlives
//! the gateway.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};
use tracing::{debug, warn};

use crate::metrics::Counter;

/// Connections at one time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 512;
/// A connection whose next request head has not arrived whole by then is closed.
const HEAD_TIME_MAX: Duration = Duration::from_secs(15);
/// A connection whose client has read nothing for so long is closed.
const WRITE_TIME_MAX: Duration = Duration::from_secs(30);
/// Wait before accepting again after the system refused a connection.
const ACCEPT_WAIT: Duration = Duration::from_secs(1);

/// Serves `routes` until `shutdown` resolves; open replies then have `drain` to end. No connection
/// is left when it returns. `cut` counts the connections closed because the client did not read.
///
/// # Errors
/// When `listener` does not listen.
pub(super) async fn serve(
    listener: TcpListener,
    routes: Router,
    shutdown: impl Future<Output = ()>,
    drain: Duration,
    cut: &Counter,
) -> io::Result<()> {
    // Accept connections, up to the limit, until the shutdown.
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = accept(&listener), if connections.len() < CONNECTIONS_MAX => {
                let stream = TimedStream { stream: accepted?, stalled: None, cut: cut.clone() };
                connections.spawn(serve_connection(stream, routes.clone(), stopping.clone()));
            }
        }
    }
    // New clients are refused at once, instead of waiting for a reply that never comes.
    drop(listener);
    // There is no receiver when there is no connection.
    let _ = stop.send(true);
    // Connections that have not ended by then are aborted.
    let _ = timeout(drain, async {
        while connections.join_next().await.is_some() {}
    })
    .await;
    connections.shutdown().await;
    Ok(())
}

/// The next connection. After a temporary error, such as too many open files, it tries again.
async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Pieces of an answer are small and must not wait for each other. Without the
                // option they only arrive later.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => match error.kind() {
                // The client left before it was accepted.
                io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset => {}
                io::ErrorKind::InvalidInput => return Err(error),
                _ => {
                    warn!(
                        "the gateway cannot accept a connection: {error}; trying again in {ACCEPT_WAIT:?}"
                    );
                    sleep(ACCEPT_WAIT).await;
                }
            },
        }
    }
}

/// Serves one connection, request after request, until either side ends it.
async fn serve_connection(
    stream: TimedStream,
    routes: Router,
    mut stopping: watch::Receiver<bool>,
) {
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX);
    let mut connection =
        pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes)));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = until(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!("a connection ended: {error}");
    }
}

async fn until(stopping: &mut watch::Receiver<bool>) {
    // A dropped sender means that serving is over, too.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// A connection with a write timeout: it fails when its client reads nothing for
/// [`WRITE_TIME_MAX`].
struct TimedStream {
    stream: TcpStream,
    /// Runs while a write is pending.
    stalled: Option<Pin<Box<Sleep>>>,
    cut: Counter,
}

impl TimedStream {
    /// The result of a write, or the timeout.
    fn with_timeout(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(WRITE_TIME_MAX)));
        stalled.as_mut().poll(context).map(|()| {
            self.stalled = None;
            self.cut.count();
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the client read nothing for {WRITE_TIME_MAX:?}"),
            ))
        })
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.with_timeout(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.with_timeout(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::SocketAddr;

    use axum::body::{Body, Bytes};
    use axum::routing::get;
    use futures_util::{StreamExt, stream};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::{mpsc, oneshot};
    use tokio::task::JoinHandle;
    use tokio::time::Instant;

    use super::*;

    const DRAIN: Duration = Duration::from_secs(2);
    const LONG: Duration = Duration::from_secs(600);

    /// A running server: `/` replies `hello`, `/endless` never ends.
    struct Served {
        address: SocketAddr,
        stop: oneshot::Sender<()>,
        task: JoinHandle<io::Result<()>>,
        /// Receives when an endless reply is dropped.
        given_up: mpsc::Receiver<()>,
        cut: Counter,
    }

    struct GivenUp(mpsc::Sender<()>);

    impl Drop for GivenUp {
        fn drop(&mut self) {
            let _ = self.0.try_send(());
        }
    }

    async fn served() -> Served {
        let (ended, given_up) = mpsc::channel(8);
        let endless = move || async move {
            let reply = GivenUp(ended);
            let bytes = stream::repeat(Bytes::from(vec![b'x'; 64 << 10]));
            Body::from_stream(bytes.map(move |bytes| {
                let _ = &reply;
                Ok::<_, io::Error>(bytes)
            }))
        };
        let routes = Router::new()
            .route("/", get(async || "hello"))
            .route("/endless", get(endless));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, cut) = (listener.local_addr().unwrap(), Counter::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let counted = cut.clone();
        let task = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            serve(listener, routes, stopped, DRAIN, &counted).await
        });
        Served {
            address,
            stop,
            task,
            given_up,
            cut,
        }
    }

    async fn connect(address: SocketAddr, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    const HELLO: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    const ENDLESS: &str = "GET /endless HTTP/1.1\r\nhost: x\r\n\r\n";

    /// Reads until the connection is closed; returns what was read, and the time since `since`.
    async fn closed(mut stream: TcpStream, since: Instant) -> (String, Duration) {
        let mut reply = String::new();
        timeout(LONG, stream.read_to_string(&mut reply))
            .await
            .expect("it is closed")
            .unwrap();
        (reply, since.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_closed() {
        let served = served().await;
        let since = Instant::now();
        for (request, reply) in [("", ""), ("GET / HTTP/1.1\r\nhos", ""), (HELLO, "hello")] {
            let (got, after) = closed(connect(served.address, request).await, since).await;
            assert!(got.ends_with(reply), "{request:?}: {got}");
            assert!(
                after >= HEAD_TIME_MAX && after < 4 * HEAD_TIME_MAX,
                "{request:?}: {after:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_over_the_limit_waits_for_another_to_end() {
        let served = served().await;
        let since = Instant::now();
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            silent.push(connect(served.address, "").await);
        }
        let mut next = connect(served.address, HELLO).await;
        let mut reply = [0; 12];
        timeout(LONG, next.read_exact(&mut reply))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&reply, b"HTTP/1.1 200");
        assert!(since.elapsed() >= HEAD_TIME_MAX, "{:?}", since.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_cut_off() {
        let mut served = served().await;
        let since = Instant::now();
        let _unread = connect(served.address, ENDLESS).await;
        timeout(LONG, served.given_up.recv())
            .await
            .expect("its reply is given up");
        assert!(since.elapsed() >= WRITE_TIME_MAX);
        assert_eq!(served.cut.total(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn no_connection_outlives_the_gateway() {
        let mut served = served().await;
        let idle = connect(served.address, HELLO).await;
        let mut unread = connect(served.address, ENDLESS).await;
        unread.read_exact(&mut [0; 12]).await.unwrap();
        let since = Instant::now();
        served.stop.send(()).unwrap();
        let (reply, after) = closed(idle, since).await;
        assert!(
            reply.ends_with("hello") && after < DRAIN,
            "{after:?}: {reply}"
        );
        timeout(LONG, served.task)
            .await
            .expect("it ends")
            .unwrap()
            .unwrap();
        assert!(
            since.elapsed() >= DRAIN && since.elapsed() < WRITE_TIME_MAX,
            "{:?}",
            since.elapsed()
        );
        served
            .given_up
            .try_recv()
            .expect("the reply has ended with it");
        assert!(TcpStream::connect(served.address).await.is_err());
    }
}
