//! Listens, loads, serves, drains.

use crate::app::{App, Options};
use crate::connection;
use crate::model::{Model, ModelError};
use crate::routes::router;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::timeout;

/// Connections beside those that work for a request: probes, and clients that wait for their next one.
const SPARE_CONNECTIONS: usize = 256;
/// How long clients have to take the last of their answers.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Serves on `listener` until `shutdown`, then finishes what runs or cuts it off, as `options` say. `load` runs on a
/// thread of its own; until it is done, requests are told so.
///
/// # Errors
/// What `load` fails with.
pub async fn serve(
    listener: TcpListener,
    options: Options,
    load: impl FnOnce() -> Result<Model, ModelError> + Send + 'static,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ModelError> {
    let (drain, idle) = (options.drain, options.idle);
    let most = options.max_concurrent_requests + SPARE_CONNECTIONS;
    let app = App::new(options);
    let router = router(app.clone());
    let (close, closing) = watch::channel(false);
    let connections = Arc::new(Semaphore::new(most));
    let accepting = async {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Too many files are open, mostly; a connection may close.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(permit) = connections.clone().try_acquire_owned() else {
                tracing::warn!(most, "closed a connection: there are too many");
                continue;
            };
            // Tokens are small and shall not wait for one another.
            let _ = stream.set_nodelay(true);
            let (router, closing) = (router.clone(), closing.clone());
            tokio::spawn(async move {
                connection::serve(stream, router, idle, closing).await;
                drop(permit);
            });
        }
    };
    let loading = {
        let (done, loaded) = oneshot::channel();
        std::thread::Builder::new()
            .name("load".into())
            .spawn(move || drop(done.send(load())))?;
        let app = app.clone();
        async move {
            let gone = |_| Err(ModelError::Other("loading the package panicked".into()));
            app.loaded(loaded.await.unwrap_or_else(gone)?);
            tracing::info!("ready");
            Ok::<(), ModelError>(())
        }
    };
    let mut accepting = pin!(accepting);
    let mut shutdown = pin!(shutdown);
    tokio::select! {
        () = &mut accepting => {}
        () = &mut shutdown => {}
        failed = async {
            match loading.await {
                Err(error) => error,
                Ok(()) => std::future::pending().await,
            }
        } => return Err(failed),
    }
    tracing::info!(seconds = drain.as_secs_f64(), "draining");
    app.drain();
    let ending = async {
        let _ = timeout(drain, app.idle()).await;
        // Saves prefixes, too.
        let stopping = app.clone();
        let _ = tokio::task::spawn_blocking(move || stopping.stop()).await;
        let _ = timeout(LAST_WORDS, app.idle()).await;
    };
    // Probes are still answered.
    tokio::select! {
        () = &mut accepting => {}
        () = ending => {}
    }
    let _ = close.send(true);
    let _ = timeout(LAST_WORDS, connections.acquire_many(most as u32)).await;
    tracing::info!("ended");
    Ok(())
}
