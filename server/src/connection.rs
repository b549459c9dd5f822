//! One connection, and how long it may keep the server waiting.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};

/// Headers of a request, and the bytes that they and its first line may have.
const MAX_HEADERS: usize = 64;
const MAX_HEADER_BYTES: usize = 64 << 10;

/// Serves requests until the client goes, keeps the server waiting, or `closing` is true; then after the answer
/// that is being written.
pub(crate) async fn serve<T: AsyncRead + AsyncWrite + Unpin>(
    stream: T,
    router: Router,
    patience: Duration,
    mut closing: watch::Receiver<bool>,
) {
    let stream = TokioIo::new(Patient {
        stream,
        patience,
        stalled: None,
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BYTES);
    let mut connection = pin!(builder.serve_connection(stream, TowerToHyperService::new(router)));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = async { drop(closing.wait_for(|&closing| closing).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // A client that went away, was too slow or spoke no HTTP.
        tracing::debug!(%error, "connection");
    }
}

/// A stream whose other end has to take what it is sent within some time.
struct Patient<T> {
    stream: T,
    patience: Duration,
    /// Since nothing more is taken.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<T: Unpin> Patient<T> {
    /// What `written` is, or an end to waiting.
    fn bounded<R>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Patient<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Patient<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bounded(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.bounded(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.bounded(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.bounded(context, shut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::mpsc::channel;
    use std::thread::JoinHandle;
    use std::time::Instant;
    use tokio::net::TcpListener;

    const PATIENCE: Duration = Duration::from_millis(500);
    /// Of an answer; far more than systems keep of what is on its way.
    const LENGTH: usize = 64 << 20;

    /// A client that has asked for a large answer, what ends the connection once that is whole, and a thread that
    /// ends with it.
    fn asked(more: &str) -> (TcpStream, watch::Sender<bool>, JoinHandle<()>) {
        let (close, closing) = watch::channel(false);
        let (tell, told) = channel();
        let serving = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build().unwrap().block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                let (stream, _) = listener.accept().await.unwrap();
                let router = Router::new().route("/", get(|| async { "x".repeat(LENGTH) }));
                serve(stream, router, PATIENCE, closing).await;
            });
        });
        let mut client = TcpStream::connect(told.recv().unwrap()).unwrap();
        let head = format!("GET / HTTP/1.1\r\nhost: a\r\n{more}\r\n");
        client.write_all(head.as_bytes()).unwrap();
        (client, close, serving)
    }

    #[test]
    fn a_client_that_takes_nothing_is_left() {
        let begun = Instant::now();
        let (mut client, _close, serving) = asked("");
        serving.join().unwrap();
        assert!(begun.elapsed() >= PATIENCE);
        let mut found = Vec::new();
        let _ = client.read_to_end(&mut found);
        assert!(found.len() < LENGTH, "{}", found.len());
    }

    #[test]
    fn a_client_that_takes_its_answer_slowly_gets_all_of_it() {
        let begun = Instant::now();
        let (mut client, _close, serving) = asked("connection: close\r\n");
        // Longer in all than nothing may be taken for.
        let mut part = vec![0; LENGTH / 16];
        for _ in 0..15 {
            client.read_exact(&mut part).unwrap();
            std::thread::sleep(PATIENCE / 10);
        }
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        assert!(15 * part.len() + rest.len() > LENGTH && begun.elapsed() > PATIENCE);
        serving.join().unwrap();
    }

    #[test]
    fn an_answer_is_written_to_its_end_before_a_connection_closes() {
        let (mut client, close, serving) = asked("");
        let mut part = [0; 12];
        client.read_exact(&mut part).unwrap();
        close.send(true).unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        assert!(rest.len() > LENGTH);
        serving.join().unwrap();
    }

    #[test]
    fn a_client_that_asks_nothing_more_is_left() {
        let (mut client, _close, serving) = asked("");
        let mut found = Vec::new();
        client.read_to_end(&mut found).unwrap();
        assert!(found.len() > LENGTH);
        serving.join().unwrap();
    }
}
