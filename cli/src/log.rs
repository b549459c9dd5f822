//! What libraries tell of their work, for who asks.

use std::io;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::prelude::*;

/// Levels of what is shown on standard error: `debug`, or `ratplus_runtime=trace,ratplus_tools=info`.
const VARIABLE: &str = "RATPLUS_LOG";

/// Has spans and events be shown where [`VARIABLE`] asks for them.
///
/// # Errors
/// It holds no levels.
pub fn install() -> Result<(), String> {
    let Some(levels) = std::env::var_os(VARIABLE).filter(|levels| !levels.is_empty()) else {
        return Ok(());
    };
    let levels = levels.to_string_lossy();
    let levels: Targets = levels.parse().map_err(|error| {
        format!(
            "{VARIABLE}: expected a level (error, warn, info, debug, trace) or levels of crates such as \
             ratplus_runtime=debug, found `{levels}`: {error}"
        )
    })?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(false);
    let shown = tracing_subscriber::registry().with(lines.with_filter(levels));
    shown
        .try_init()
        .map_err(|error| format!("{VARIABLE}: {error}"))
}
