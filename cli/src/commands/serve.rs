//! `ratplus serve`: a package behind HTTP.

use crate::args::ServeArgs;
use crate::output::{Failure, OrInput, Outcome};
use crate::streams::errln;
use ratplus_runtime::backend::BackendKind;
use ratplus_runtime::package::Package;
use ratplus_runtime::scheduler;
use ratplus_server::{ApiKeys, Model, ModelError, Options};
use ratplus_tools::verify::Implementations;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Threads that read and write sockets: a core's worth of the engine's time is the most they take.
const SOCKET_THREADS: usize = 2;

/// Serves until it is told to end.
pub fn run(args: ServeArgs) -> Outcome {
    let backend: BackendKind = args.engine.backend.parse().or_input()?;
    let options = options(&args)?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(SOCKET_THREADS)
        .enable_all()
        .build();
    let runtime = runtime.or_input()?;
    let served = runtime.block_on(serve(args, backend, options));
    // A package that is still loading is not waited for.
    runtime.shutdown_background();
    served
}

async fn serve(args: ServeArgs, backend: BackendKind, options: Options) -> Outcome {
    let (mut terminated, mut interrupted) = (
        signal(SignalKind::terminate()).or_input()?,
        signal(SignalKind::interrupt()).or_input()?,
    );
    let place = (args.host.as_str(), args.port);
    let listener = TcpListener::bind(place).await.map_err(|error| {
        let (host, port) = place;
        Failure::input(format!(
            "--host {host} --port {port}: cannot listen: {error}"
        ))
    })?;
    let address = listener.local_addr().or_input()?;
    errln!("listening on http://{address}");
    let mut told = async move || {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
    };
    let (shut_down, shutdown) = oneshot::channel::<()>();
    let twice = async {
        told().await;
        drop(shut_down);
        told().await;
    };
    let load = move || load(&args, backend);
    let shutdown = async { drop(shutdown.await) };
    tokio::select! {
        served = ratplus_server::serve(listener, options, load, shutdown) => served.or_input(),
        () = twice => {
            errln!("told twice to end: ending at once");
            end_at_once()
        }
    }
}

/// Ends the process with 1 and waits for nothing: neither for a step, nor for what libraries do at an exit.
#[allow(unsafe_code)]
fn end_at_once() -> ! {
    // SAFETY: it takes a number, and nothing of this process runs after it.
    unsafe { libc::_exit(1) }
}

fn load(args: &ServeArgs, backend: BackendKind) -> Result<Model, ModelError> {
    let other = |error: &dyn std::fmt::Display| ModelError::Other(error.to_string());
    let package = Package::open(&args.dir).map_err(|error| other(&error))?;
    let lengths = package.manifest().lengths_up_to(args.prefill_chunk);
    let lengths = lengths.map_err(|error| other(&format!("--prefill-chunk: {error}")))?;
    let session = super::session_builder(&package, &args.engine.libraries)
        .engines(lengths)
        .up_front()
        .open(backend);
    let session = session.map_err(|error| other(&error))?;
    for engines in Implementations::of(backend, &session).engines {
        errln!("{backend}: {engines}");
    }
    let mut options = scheduler::Options::default();
    options.max_queued_requests = args.max_queued_requests;
    options.max_queued_tokens = args.max_queued_tokens;
    options.prefix_cache_bytes = args.prefix_cache;
    options
        .prefix_cache_file
        .clone_from(&args.prefix_cache_file);
    options.decode_steps_per_chunk = args.decode_steps_per_chunk;
    Model::start(&package, session, options)
}

fn options(args: &ServeArgs) -> Result<Options, Failure> {
    let name = match &args.model_name {
        Some(name) => name.clone(),
        None => super::folder_name(&args.dir),
    };
    let mut options = Options::new(name);
    if let Some(path) = &args.api_key_file {
        let lines = super::read_text("--api-key-file", path)?;
        options.api_keys = ApiKeys::parse(&lines).map_err(|error| {
            Failure::input(format!("--api-key-file {}: {error}", path.display()))
        })?;
    }
    options.max_body_bytes = usize::try_from(args.max_body_bytes).unwrap_or(usize::MAX);
    options.max_prompt_tokens = args.max_prompt_tokens;
    options.max_concurrent_requests = args.max_concurrent_requests as usize;
    options.request_timeout = args.request_timeout.map(Duration::from_secs);
    options.idle = Duration::from_secs(args.idle_seconds);
    options.drain = Duration::from_secs(args.drain_seconds);
    options.log_prompts = args.log_prompts;
    Ok(options)
}
