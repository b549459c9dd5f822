//! Calls that changed something or synced it, with all that it takes to do them again.

use crate::plan::{is_below, name_at, name_of, trace};
use std::ffi::CStr;

/// A record: the thread, the call and its arguments on a line, with tabs between; then `bytes`
/// (what was written), and the end of a line after them.
fn record(call: &str, arguments: &[&[u8]], bytes: Option<&[u8]>) {
    let Some(file) = trace() else {
        return;
    };
    // SAFETY: takes nothing.
    let thread = unsafe { libc::syscall(libc::SYS_gettid) };
    let mut line = format!("{thread}\t{call}").into_bytes();
    for argument in arguments {
        if argument.iter().any(|byte| b"\t\n".contains(byte)) {
            give_up();
        }
        line.push(b'\t');
        line.extend(*argument);
    }
    line.push(b'\n');
    if let Some(bytes) = bytes {
        line.extend(bytes);
        line.push(b'\n');
    }
    // SAFETY: the record is as long as said; straight to the kernel, and in one piece.
    let written = unsafe { libc::syscall(libc::SYS_write, file, line.as_ptr(), line.len()) };
    if usize::try_from(written) != Ok(line.len()) {
        give_up();
    }
}

/// A trace with something missing is worse than none.
fn give_up() -> ! {
    std::process::abort()
}

/// A call that named `path` in an open folder, and numbers that belong to it.
pub fn at_path(call: &str, folder: i32, path: &CStr, numbers: &[i64]) {
    if trace().is_none() {
        return;
    }
    let mut buffer = [0; 4096];
    let path = name_at(folder, path, &mut buffer);
    of_path(call, &path, numbers, None);
}

/// A call that opened `path` in an open folder, where it may have made or emptied a file.
pub fn opened(folder: i32, path: &CStr, flags: i32) {
    if flags & libc::O_TMPFILE == libc::O_TMPFILE {
        return at_path("open without a name", folder, path, &[]);
    }
    let given = |flag| i64::from(flags & flag != 0);
    let (makes, empties) = (given(libc::O_CREAT), given(libc::O_TRUNC));
    if makes + empties > 0 {
        at_path("open", folder, path, &[makes, empties]);
    }
}

/// A call on an open file, and numbers that belong to it.
pub fn of_file(call: &str, file: i32, numbers: &[i64]) {
    if trace().is_none() {
        return;
    }
    let mut buffer = [0; 4096];
    of_path(call, name_of(file, &mut buffer), numbers, None);
}

/// Bytes that an open file has from `offset` on, or before its position.
pub fn written(file: i32, offset: Option<i64>, bytes: &[u8]) {
    if trace().is_none() {
        return;
    }
    let offset = offset.unwrap_or_else(|| {
        // SAFETY: takes numbers alone.
        let position = unsafe { libc::lseek64(file, 0, libc::SEEK_CUR) };
        position - bytes.len() as i64
    });
    let mut buffer = [0; 4096];
    let numbers = [offset, bytes.len() as i64];
    of_path("write", name_of(file, &mut buffer), &numbers, Some(bytes));
}

/// A renaming, where one of the names is below the root.
pub fn renamed(from: (i32, &CStr), to: (i32, &CStr), flags: u32) {
    if trace().is_none() {
        return;
    }
    let (mut of_from, mut of_to) = ([0; 4096], [0; 4096]);
    let from = name_at(from.0, from.1, &mut of_from);
    let to = name_at(to.0, to.1, &mut of_to);
    let call = match flags {
        // Where it succeeded, there was nothing to replace.
        0 | libc::RENAME_NOREPLACE => "rename",
        libc::RENAME_EXCHANGE => "exchange",
        _ => "rename of another kind",
    };
    if is_below(&from) || is_below(&to) {
        record(call, &[&from, &to], None);
    }
}

fn of_path(call: &str, path: &[u8], numbers: &[i64], bytes: Option<&[u8]>) {
    if !is_below(path) {
        return;
    }
    let mut texts = vec![path.to_vec()];
    texts.extend(numbers.iter().map(|number| number.to_string().into_bytes()));
    let arguments: Vec<&[u8]> = texts.iter().map(Vec::as_slice).collect();
    record(call, &arguments, bytes);
}
