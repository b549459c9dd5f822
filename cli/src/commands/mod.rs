//! One file per command.

pub mod bench;
#[cfg(feature = "tensorrt")]
pub mod build;
mod capacity;
pub mod check;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod generate;
pub mod inspect;
mod prompts;
pub mod serve;
pub mod shell;
mod spot_check;
pub mod triton;
pub mod verify;

use crate::args::LibraryArgs;
use crate::output::{Failure, OrInput};
use crate::streams::errln;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ratplus_graphs::package::SpecialTokens;
use ratplus_runtime::backend::{BackendKind, Session, SessionBuilder};
use ratplus_runtime::package::Package;
use ratplus_runtime::text::Tokenizer;
use std::io::{IsTerminal, Read};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// Says what runs, on a terminal only.
fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if std::io::stderr().is_terminal() {
        bar.enable_steady_tick(Duration::from_millis(100));
    }
    bar
}

/// What `open` gives; on a terminal, what is being done where it takes longer than a glance.
fn while_opening<T>(dir: &Path, open: impl FnOnce() -> T) -> T {
    const GLANCE: Duration = Duration::from_millis(500);
    let bar = ProgressBar::hidden().with_message(format!("{}: opening", dir.display()));
    let (opened, wait) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let slow = wait.recv_timeout(GLANCE) == Err(RecvTimeoutError::Timeout);
            if slow && std::io::stderr().is_terminal() {
                bar.set_draw_target(ProgressDrawTarget::stderr());
                bar.set_style(ProgressStyle::default_spinner());
                bar.enable_steady_tick(Duration::from_millis(100));
                let _ = wait.recv();
                bar.finish_and_clear();
            }
        });
        let result = open();
        drop(opened);
        result
    })
}

/// The name of the package's folder, whatever led to it.
fn folder_name(dir: &Path) -> String {
    let real = dir.canonicalize().unwrap_or_else(|_| dir.into());
    let name = real.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The backends of these names.
fn backends(names: &[String]) -> Result<Vec<BackendKind>, Failure> {
    names.iter().map(|name| name.parse().or_input()).collect()
}

/// How sessions of `package` are opened: libraries and threads from flags.
fn session_builder<'a>(package: &'a Package, libraries: &LibraryArgs) -> SessionBuilder<'a> {
    let mut builder = Session::builder(package).threads(libraries.threads);
    builder.ort.library = libraries.onnxruntime.clone();
    builder.ort.operators = libraries.custom_ops.clone();
    builder.cuda.without_graph = libraries.no_cuda_graph;
    builder
}

/// The tokenizer of the package in `dir`, and the special tokens that it adds to a text: those the
/// package was exported with, or as a flag has it. Says so where there are any.
fn tokenizer(
    package: &Package,
    dir: &Path,
    flag: Option<SpecialTokens>,
) -> Result<(Tokenizer, SpecialTokens), Failure> {
    let Some(json) = package.tokenizer_json() else {
        return Err(Failure::input(format!(
            "{}: the package has no tokenizer; export it with --tokenizer tokenizer.json",
            dir.display()
        )));
    };
    let tokenizer = Tokenizer::from_json(json)
        .map_err(|error| Failure::input(format!("{}: {error}", dir.display())))?;
    let recorded = package.manifest().special_tokens;
    let special_tokens = flag.unwrap_or(recorded);
    if special_tokens == SpecialTokens::Tokenizer {
        let added = tokenizer.special_tokens().or_input()?;
        match names(&tokenizer, &added) {
            Some(names) => errln!(
                "note: {}: the tokenizer adds {names} to every text; --special-tokens none leaves that out",
                dir.display()
            ),
            None => errln!(
                "note: {}: the tokenizer adds no special tokens",
                dir.display()
            ),
        }
    }
    Ok((tokenizer, special_tokens))
}

/// The names of tokens; none where there are none.
fn names(tokenizer: &Tokenizer, tokens: &[u32]) -> Option<String> {
    let names: Vec<_> = tokens.iter().map(|&token| tokenizer.name(token)).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Longest text that is read: its tokens would need a hundred times the memory.
const MAX_TEXT_BYTES: u64 = 1 << 30;

/// Reads what `flag` names, `-` being standard input, as UTF-8.
fn read_text(flag: &str, path: &Path) -> Result<String, Failure> {
    let named = |error: &dyn std::fmt::Display| {
        Failure::input(format!("{flag} {}: {error}", path.display()))
    };
    let mut bytes = Vec::new();
    let read = match path == Path::new("-") {
        true => std::io::stdin()
            .lock()
            .take(MAX_TEXT_BYTES + 1)
            .read_to_end(&mut bytes),
        false => std::fs::File::open(path)
            .and_then(|file| file.take(MAX_TEXT_BYTES + 1).read_to_end(&mut bytes)),
    };
    let count = read.map_err(|error| named(&error))?;
    if count as u64 > MAX_TEXT_BYTES {
        return Err(named(&format!(
            "expected at most {MAX_TEXT_BYTES} bytes, found more"
        )));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        named(&format!(
            "expected UTF-8, found something else at byte {at}"
        ))
    })
}
