//! A package, and servers of it.

use ratplus_exporter::checkpoint::{Checkpoint, ReadOptions};
use ratplus_exporter::package::{self, CheckpointWeights, PackageOptions};
use ratplus_exporter::resolve::{ResolveOptions, resolve};
use ratplus_graphs::package::LogitsMode;
use ratplus_runtime::backend::{BackendKind, Session};
use ratplus_runtime::package::Package;
use ratplus_runtime::scheduler;
use ratplus_server::{Model, ModelError, Options, serve};
use ratplus_tests::golden_case;
use ratplus_tests::http::{self, eventually, get};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

pub const SLOTS: usize = 2;
pub const MAX_SEQ_LEN: usize = 4096;
pub const TEMPLATE: &str = "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}\
    {% if add_generation_prompt %}<assistant>{% endif %}{% if fail %}{{ raise_exception('no more') }}{% endif %}";

/// The package, exported once.
pub fn exported() -> PathBuf {
    static DIR: OnceLock<TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        export(
            &dir.path().join("kjv"),
            Some(TEMPLATE.into()),
            LogitsMode::All,
        );
        dir
    });
    dir.path().join("kjv")
}

pub fn export(target: &Path, chat_template: Option<String>, logits: LogitsMode) {
    let case = golden_case("kjv_d16w64i4");
    let checkpoint = Checkpoint::open(case.checkpoint()).unwrap();
    let from = ResolveOptions {
        config_file: Some(case.file("config.json")),
        ..ResolveOptions::default()
    };
    let resolved = resolve(&checkpoint, &from).unwrap();
    let mut options = PackageOptions::new(resolved.spec, MAX_SEQ_LEN);
    options.prefill_lengths = vec![16, 64];
    options.shape.batch = SLOTS;
    options.shape.logits = logits;
    options.tokenizer = Some(case.file("tokenizer.json"));
    options.chat_template = chat_template;
    let mut weights =
        CheckpointWeights::new(&checkpoint, &resolved.sources, ReadOptions::default());
    package::write(target, &options, &mut weights, &mut |_| ()).unwrap();
}

/// A server; it is drained when this is dropped.
pub struct Server {
    pub address: SocketAddr,
    shutdown: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), ModelError>>>,
}

/// A server of the package once it is ready.
pub fn start(options: Options, scheduling: scheduler::Options) -> Server {
    let dir = exported();
    let server = start_with(options, move || load(&dir, scheduling));
    server.wait_until("ready");
    server
}

pub fn load(dir: &Path, scheduling: scheduler::Options) -> Result<Model, ModelError> {
    let package = Package::open(dir).unwrap();
    let session = Session::builder(&package)
        .up_front()
        .open(BackendKind::Tract);
    Model::start(&package, session.unwrap(), scheduling)
}

/// A server that loads in that way.
pub fn start_with(
    options: Options,
    load: impl FnOnce() -> Result<Model, ModelError> + Send + 'static,
) -> Server {
    let (shutdown, down) = oneshot::channel::<()>();
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            let shutdown = async { drop(down.await) };
            serve(listener, options, load, shutdown).await
        })
    });
    Server {
        address: told.recv().unwrap(),
        shutdown: Some(shutdown),
        thread: Some(thread),
    }
}

impl Server {
    pub fn wait_until(&self, state: &str) {
        eventually(state, || {
            get(self.address, "/ready").json()["status"] == state
        });
    }

    pub fn slots(&self) -> Value {
        get(self.address, "/slots").json()
    }

    /// Slots that are in use, and requests that wait.
    pub fn busy(&self) -> (usize, u64) {
        http::busy(self.address)
    }

    /// A number of /metrics, by its name and what its labels have.
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        let text = get(self.address, "/metrics").body;
        let mut lines = text.lines();
        let line = lines.find(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('{'))
                && line.contains(label)
        });
        let line = line.unwrap_or_else(|| panic!("{name} {label}: {text}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    /// Begins to end.
    pub fn shut_down(&mut self) {
        drop(self.shutdown.take());
    }

    /// What serving ends with.
    pub fn ended(mut self) -> Result<(), ModelError> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shut_down();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap().unwrap();
            }
        }
    }
}

/// Options of a server that ends soon.
pub fn options() -> Options {
    let mut options = Options::new("kjv");
    options.drain = Duration::from_millis(100);
    options
}
