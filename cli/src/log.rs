//! What libraries tell of their work, for who asks.

use crate::args::LogFormat;
use std::io;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::prelude::*;

/// Levels of what is shown on standard error: `debug`, or `ratplus_runtime=trace,ratplus_tools=info`.
const VARIABLE: &str = "RATPLUS_LOG";

/// Has spans and events be shown where [`VARIABLE`] asks for them.
///
/// # Errors
/// It holds something else.
pub fn install() -> Result<(), String> {
    match asked()? {
        Some(levels) => show(levels, LogFormat::Text),
        None => Ok(()),
    }
}

/// The same for a server, of which a line a request is shown where nothing else is asked for.
///
/// # Errors
/// The variable holds no levels.
pub fn install_for_serving(format: LogFormat) -> Result<(), String> {
    let usual = Targets::new().with_default(LevelFilter::INFO);
    show(asked()?.unwrap_or(usual), format)
}

fn asked() -> Result<Option<Targets>, String> {
    let Some(levels) = std::env::var_os(VARIABLE).filter(|levels| !levels.is_empty()) else {
        return Ok(None);
    };
    let levels = levels.to_string_lossy();
    let refused = |why: &str| {
        format!(
            "{VARIABLE}: expected a level (off, error, warn, info, debug, trace) or levels of crates such as \
             ratplus_runtime=debug, found `{levels}`{why}"
        )
    };
    // A word alone would be taken for the name of a crate, of which everything is shown.
    let mut words = levels.split(',').filter(|part| !part.contains('='));
    if words.any(|word| word.parse::<LevelFilter>().is_err()) {
        return Err(refused(""));
    }
    let parsed = levels.parse::<Targets>();
    parsed
        .map(Some)
        .map_err(|error| refused(&format!(": {error}")))
}

fn show(levels: Targets, format: LogFormat) -> Result<(), String> {
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(false);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let shown = tracing_subscriber::registry().with(lines.with_filter(levels));
    shown
        .try_init()
        .map_err(|error| format!("{VARIABLE}: {error}"))
}
