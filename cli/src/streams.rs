//! Standard output and standard error. What cannot be written to standard output is remembered:
//! a command goes on, and [`finish`] tells.

use crate::output::Failure;
use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;

/// The first error of standard output; nothing is written to it from then on.
static FAILED: OnceLock<io::Error> = OnceLock::new();

/// Prints on standard output, as `print!` does.
macro_rules! out {
    ($($text:tt)*) => { $crate::streams::print(format_args!($($text)*)) };
}

/// Prints a line on standard output, as `println!` does.
macro_rules! outln {
    () => { $crate::streams::print(format_args!("\n")) };
    ($($text:tt)*) => { $crate::streams::print(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints a line on standard error, as `eprintln!` does; there is no place to tell where it cannot.
macro_rules! errln {
    ($($text:tt)*) => { $crate::streams::tell(format_args!("{}\n", format_args!($($text)*))) };
}

pub(crate) use {errln, out, outln};

/// Writes to standard output, where that still takes something.
pub fn print(text: Arguments<'_>) {
    if is_open() {
        keep(io::stdout().lock().write_fmt(text));
    }
}

/// Has what was printed be seen, in the middle of a line as well.
pub fn flush() {
    if is_open() {
        keep(io::stdout().lock().flush());
    }
}

/// Remembers how writing to standard output ended.
pub fn keep(written: io::Result<()>) {
    if let Err(error) = written {
        // Another thread may have been first.
        let _ = FAILED.set(error);
    }
}

/// Whether standard output still takes something: false where a disk is full, and where the
/// reader of a pipe has seen enough.
pub fn is_open() -> bool {
    FAILED.get().is_none()
}

/// Writes to standard error.
pub fn tell(text: Arguments<'_>) {
    let _ = io::stderr().lock().write_fmt(text);
}

/// Ends standard output.
///
/// # Errors
/// Some of it could not be written. A closed pipe is none: whoever read it has seen enough.
pub fn finish() -> Result<(), Failure> {
    flush();
    match FAILED.get() {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::input(format!(
            "cannot write standard output: {error}"
        ))),
        _ => Ok(()),
    }
}
