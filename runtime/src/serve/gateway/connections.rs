//! The gateway's connections: how many there are, how long a silent one is kept, and that none
//! outlives the gateway.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// Connections at one time; the next ones wait to be accepted.
const CONNECTIONS_MAX: usize = 512;
/// A connection whose next request has not come by then, head and all, is closed.
const HEAD_TIME_MAX: Duration = Duration::from_secs(15);
/// A client that has taken nothing of what it is sent for so long is cut off.
const WRITE_TIME_MAX: Duration = Duration::from_secs(30);
/// Until the next try when the system gives no connection.
const ACCEPT_WAIT: Duration = Duration::from_secs(1);

/// Serves `routes` until `shutdown` resolves; replies under way then have `drain` to end. No
/// connection is left when it returns. `cut` counts the clients that were cut off.
///
/// # Errors
/// When `listener` does not listen.
pub(super) async fn serve(
    listener: TcpListener,
    routes: Router,
    shutdown: impl Future<Output = ()>,
    drain: Duration,
    cut: &Arc<AtomicU64>,
) -> io::Result<()> {
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = accept(&listener), if connections.len() < CONNECTIONS_MAX => {
                let stream = Patient { stream: accepted?, stalled: None, cut: Arc::clone(cut) };
                connections.spawn(converse(stream, routes.clone(), stopping.clone()));
            }
        }
    }
    // Whoever comes now is better told at once that nobody listens.
    drop(listener);
    // The receivers are the connections, if there are any.
    let _ = stop.send(true);
    // What has not ended by then is ended.
    let _ = timeout(drain, async {
        while connections.join_next().await.is_some() {}
    })
    .await;
    connections.shutdown().await;
    Ok(())
}

/// The next connection. What passes is waited out: too many open files, for one.
async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Pieces of an answer are small, and must not wait for each other; without it they
                // only come later.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => match error.kind() {
                // The client left before it was its turn.
                io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset => {}
                io::ErrorKind::InvalidInput => return Err(error),
                _ => {
                    warn!(
                        "the gateway gets no connection: {error}; trying again in {ACCEPT_WAIT:?}"
                    );
                    sleep(ACCEPT_WAIT).await;
                }
            },
        }
    }
}

/// One connection: request after request, until either side ends it.
async fn converse(stream: Patient, routes: Router, mut stopping: watch::Receiver<bool>) {
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
    // A sender that is gone means that serving is over, too.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// A connection that fails when its client takes nothing for [`WRITE_TIME_MAX`].
struct Patient {
    stream: TcpStream,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
    cut: Arc<AtomicU64>,
}

impl Patient {
    /// The outcome of a write, or the end of our patience.
    fn within(
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
            self.cut.fetch_add(1, Ordering::Relaxed);
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the client took nothing for {WRITE_TIME_MAX:?}"),
            ))
        })
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.within(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.within(context, written)
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

    /// Connections being served: `/` says hello, `/endless` never ends.
    struct Served {
        address: SocketAddr,
        stop: oneshot::Sender<()>,
        task: JoinHandle<io::Result<()>>,
        /// Yields when an endless reply was given up.
        given_up: mpsc::Receiver<()>,
        cut: Arc<AtomicU64>,
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
        let (address, cut) = (listener.local_addr().unwrap(), Arc::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let counted = Arc::clone(&cut);
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

    /// Reads until the connection is closed, and tells when that was.
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
    async fn one_connection_too_many_waits_for_another_to_end() {
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
    async fn a_client_that_takes_nothing_is_cut_off() {
        let mut served = served().await;
        let since = Instant::now();
        let _unread = connect(served.address, ENDLESS).await;
        timeout(LONG, served.given_up.recv())
            .await
            .expect("its reply is given up");
        assert!(since.elapsed() >= WRITE_TIME_MAX);
        assert_eq!(served.cut.load(Ordering::Relaxed), 1);
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
