//! What runs a package, shared by the models over it.

use crate::config::{Config, Settings};
use crate::error::Fault;
use ratplus_runtime::Manifest;
use ratplus_runtime::backend::Session;
use ratplus_runtime::package::Package;
use ratplus_runtime::scheduler;
use ratplus_server::Model;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// A package that runs.
///
/// One serves all instances of a model, and every model over the same package with the same settings: its slots are
/// what runs at once, and more instances would only hold the weights and the states again.
pub struct Engine {
    manifest: Manifest,
    settings: Settings,
    pub model: Model,
    pub turns: Arc<Turns>,
}

/// Engines that run.
#[derive(Default)]
pub struct Engines(Mutex<Vec<Weak<Engine>>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engines {
    /// The engine of a package: one that runs, or a new one. Others wait meanwhile.
    pub fn open(&self, config: &Config) -> Result<Arc<Engine>, Fault> {
        let mut engines = lock(&self.0);
        engines.retain(|engine| engine.strong_count() > 0);
        let package = Package::open(&config.package).map_err(Fault::invalid)?;
        let same = |engine: &Arc<Engine>| {
            engine.manifest == *package.manifest() && engine.settings == config.engine
        };
        if let Some(engine) = engines.iter().filter_map(Weak::upgrade).find(same) {
            tracing::info!(package = %config.package.display(), "runs in an engine that is there");
            return Ok(engine);
        }
        let engine = Arc::new(Engine::open(&package, &config.engine)?);
        engines.push(Arc::downgrade(&engine));
        Ok(engine)
    }
}

impl Engine {
    fn open(package: &Package, settings: &Settings) -> Result<Self, Fault> {
        let lengths = package.manifest().lengths_up_to(settings.prefill_chunk);
        let lengths = lengths
            .map_err(|error| Fault::invalid(format!("parameter `prefill_chunk`: {error}")))?;
        let mut builder = Session::builder(package)
            .threads(settings.threads)
            .engines(lengths)
            .up_front();
        builder.ort.library.clone_from(&settings.onnxruntime);
        builder.ort.operators.clone_from(&settings.custom_ops);
        builder.cuda.device = settings.device;
        builder.cuda.without_graph = settings.no_cuda_graph;
        let session = builder.open(settings.backend).map_err(Fault::invalid)?;
        for engine in session.implementations() {
            tracing::info!("{}: {engine}", settings.backend);
        }
        // One more than there are slots: a slot that becomes free is taken in the next step. Others wait in the
        // server's own queue, by its policy.
        let most = package.manifest().shape().batch + 1;
        let mut options = scheduler::Options::default();
        options.max_queued_requests = most;
        options.max_queued_tokens = usize::MAX;
        options.decode_steps_per_chunk = settings.decode_steps_per_chunk;
        options.prefix_cache_bytes = settings.prefix_cache_bytes;
        Ok(Self {
            manifest: package.manifest().clone(),
            settings: settings.clone(),
            model: Model::start(package, session, options).map_err(Fault::internal)?,
            turns: Arc::new(Turns {
                left: Mutex::new(most),
                freed: Condvar::new(),
            }),
        })
    }
}

/// Requests that an engine may have at once.
pub struct Turns {
    left: Mutex<usize>,
    freed: Condvar,
}

/// One of them; the next has it when this is dropped.
pub struct Turn(Arc<Turns>);

/// How soon a request that waits for its turn is seen to be cancelled.
const GLANCE: Duration = Duration::from_millis(10);

impl Turns {
    /// Waits for a turn; none where the request is `over` before.
    pub fn wait(self: &Arc<Self>, over: impl Fn() -> bool) -> Option<Turn> {
        let mut left = lock(&self.left);
        while *left == 0 {
            if over() {
                return None;
            }
            let waited = self.freed.wait_timeout(left, GLANCE);
            left = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *left -= 1;
        Some(Turn(self.clone()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *lock(&self.0.left) += 1;
        self.0.freed.notify_one();
    }
}
