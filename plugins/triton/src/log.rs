//! What libraries say becomes lines of the server's log.

use crate::ffi;
use crate::text::c_string;
use std::fmt::{Debug, Write};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

/// Has this library's events written to the server's log, from now on.
pub fn install() {
    // Loaded again after its models were: it is there.
    let _ = tracing::subscriber::set_global_default(ServerLog);
}

/// Writes this project's events to the server's log.
pub struct ServerLog;

/// Whether an event is of this project's crates: their names, and that of this library.
fn is_ours(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    target.starts_with("ratplus") || target.starts_with(env!("CARGO_CRATE_NAME"))
}

fn level(level: &Level) -> ffi::LogLevel {
    match *level {
        Level::ERROR => ffi::LOG_ERROR,
        Level::WARN => ffi::LOG_WARN,
        Level::INFO => ffi::LOG_INFO,
        Level::DEBUG | Level::TRACE => ffi::LOG_VERBOSE,
    }
}

impl Subscriber for ServerLog {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match is_ours(metadata) {
            // The server's levels are set anew while it runs.
            true => Interest::sometimes(),
            false => Interest::never(),
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // SAFETY: the server's own switch, of no memory of ours.
        is_ours(metadata) && unsafe { ffi::TRITONSERVER_LogIsEnabled(level(metadata.level())) }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        // Spans are not told: all are one.
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::from("ratplus:"));
        event.record(&mut line);
        let metadata = event.metadata();
        let file = c_string(metadata.file().unwrap_or("ratplus"));
        let number = metadata.line().and_then(|line| line.try_into().ok());
        let message = c_string(&line.0);
        // SAFETY: both texts live as long as the call. An error here has nowhere to go.
        unsafe {
            let status = ffi::TRITONSERVER_LogMessage(
                level(metadata.level()),
                file.as_ptr(),
                number.unwrap_or(0),
                message.as_ptr(),
            );
            if !status.is_null() {
                ffi::TRITONSERVER_ErrorDelete(status);
            }
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The fields of an event, its message first.
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
