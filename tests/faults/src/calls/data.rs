//! Calls on open files, and those that open and close them.

use super::fail;
use crate::plan::{Kind, Verdict, on_file, on_path_at};
use crate::trace;
use libc::{c_char, c_int, c_uint, c_void, iovec, mode_t, off64_t, size_t, ssize_t};
use std::ffi::CStr;

fn opening(flags: c_int) -> Kind {
    match flags & libc::O_CREAT {
        0 => Kind::Other,
        _ => Kind::Grows,
    }
}

/// libc's `open`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { openat(libc::AT_FDCWD, path, flags, mode) }
}

/// libc's `open64`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { openat(libc::AT_FDCWD, path, flags, mode) }
}

/// libc's `openat64`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat64(
    folder: c_int,
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { openat(folder, path, flags, mode) }
}

/// libc's `openat`; the mode is read where it was not given, as libc may not, and not used then.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat(
    folder: c_int,
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> c_int {
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(path) };
    unless_fails!(on_path_at("open", opening(flags), folder, name));
    // SAFETY: the caller's promise.
    let file = unsafe { libc::syscall(libc::SYS_openat, folder, path, flags, mode) as c_int };
    if file >= 0 {
        trace::opened(folder, name, flags);
    }
    file
}

/// libc's `read`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn read(file: c_int, bytes: *mut c_void, count: size_t) -> ssize_t {
    let Some(count) = transfer("read", Kind::Read, file, count) else {
        return -1;
    };
    // SAFETY: the caller's promise; no more than it asked for.
    unsafe { libc::syscall(libc::SYS_read, file, bytes, count) as ssize_t }
}

/// libc's `pread64`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pread64(
    file: c_int,
    bytes: *mut c_void,
    count: size_t,
    offset: off64_t,
) -> ssize_t {
    let Some(count) = transfer("pread", Kind::Read, file, count) else {
        return -1;
    };
    // SAFETY: the caller's promise; no more than it asked for.
    unsafe { libc::syscall(libc::SYS_pread64, file, bytes, count, offset) as ssize_t }
}

/// libc's `write`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(file: c_int, bytes: *const c_void, count: size_t) -> ssize_t {
    let Some(count) = transfer("write", Kind::Write, file, count) else {
        return -1;
    };
    // SAFETY: the caller's promise; no more than it gave.
    let written = unsafe { libc::syscall(libc::SYS_write, file, bytes, count) as ssize_t };
    if let Ok(written) = usize::try_from(written) {
        // SAFETY: the caller's promise.
        let bytes = unsafe { std::slice::from_raw_parts(bytes.cast(), written) };
        trace::written(file, None, bytes);
    }
    written
}

/// libc's `pwrite64`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(
    file: c_int,
    bytes: *const c_void,
    count: size_t,
    offset: off64_t,
) -> ssize_t {
    let Some(count) = transfer("pwrite", Kind::Write, file, count) else {
        return -1;
    };
    // SAFETY: the caller's promise; no more than it gave.
    let written =
        unsafe { libc::syscall(libc::SYS_pwrite64, file, bytes, count, offset) as ssize_t };
    if let Ok(written) = usize::try_from(written) {
        // SAFETY: the caller's promise.
        let bytes = unsafe { std::slice::from_raw_parts(bytes.cast(), written) };
        trace::written(file, Some(offset), bytes);
    }
    written
}

/// libc's `writev`; where it is to be short, the first piece alone is written.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(file: c_int, pieces: *const iovec, count: c_int) -> ssize_t {
    let Some(count) = transfer("writev", Kind::Write, file, count.max(0) as size_t) else {
        return -1;
    };
    // SAFETY: the caller's promise; no more than it gave.
    let written = unsafe { libc::syscall(libc::SYS_writev, file, pieces, count) as ssize_t };
    if let Ok(written) = usize::try_from(written)
        && count > 0
    {
        // SAFETY: the caller's promise.
        let pieces = unsafe { std::slice::from_raw_parts(pieces, count) };
        let piece = |piece: &iovec| {
            // SAFETY: the caller's promise.
            unsafe { std::slice::from_raw_parts(piece.iov_base.cast::<u8>(), piece.iov_len) }
        };
        let pieces = pieces.iter().filter(|piece| piece.iov_len > 0).map(piece);
        let mut bytes: Vec<u8> = pieces.flatten().copied().collect();
        bytes.truncate(written);
        trace::written(file, None, &bytes);
    }
    written
}

/// How much a call may transfer; `None` where it fails.
fn transfer(name: &str, kind: Kind, file: c_int, count: size_t) -> Option<size_t> {
    match on_file(name, kind, file) {
        Verdict::Go => Some(count),
        Verdict::Half => Some(count.div_ceil(2)),
        Verdict::Fail(error) => {
            fail(error);
            None
        }
    }
}

/// libc's `fsync`.
#[unsafe(no_mangle)]
pub extern "C" fn fsync(file: c_int) -> c_int {
    unless_fails!(on_file("fsync", Kind::Other, file));
    // SAFETY: takes a number alone.
    let result = unsafe { libc::syscall(libc::SYS_fsync, file) as c_int };
    if result == 0 {
        trace::of_file("fsync", file, &[]);
    }
    result
}

/// libc's `fdatasync`.
#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(file: c_int) -> c_int {
    unless_fails!(on_file("fdatasync", Kind::Other, file));
    // SAFETY: takes a number alone.
    let result = unsafe { libc::syscall(libc::SYS_fdatasync, file) as c_int };
    if result == 0 {
        trace::of_file("fdatasync", file, &[]);
    }
    result
}

/// libc's `ftruncate64`.
#[unsafe(no_mangle)]
pub extern "C" fn ftruncate64(file: c_int, size: off64_t) -> c_int {
    unless_fails!(on_file("ftruncate", Kind::Grows, file));
    // SAFETY: takes numbers alone.
    let result = unsafe { libc::syscall(libc::SYS_ftruncate, file, size) as c_int };
    if result == 0 {
        trace::of_file("truncate", file, &[size]);
    }
    result
}

/// libc's `fallocate64`.
#[unsafe(no_mangle)]
pub extern "C" fn fallocate64(file: c_int, mode: c_int, offset: off64_t, size: off64_t) -> c_int {
    unless_fails!(on_file("fallocate", Kind::Grows, file));
    // SAFETY: takes numbers alone.
    let result = unsafe { libc::syscall(libc::SYS_fallocate, file, mode, offset, size) as c_int };
    if result == 0 {
        trace::of_file("fallocate", file, &[i64::from(mode), offset, size]);
    }
    result
}

/// libc's `copy_file_range`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn copy_file_range(
    from: c_int,
    from_offset: *mut off64_t,
    to: c_int,
    to_offset: *mut off64_t,
    count: size_t,
    flags: c_uint,
) -> ssize_t {
    unless_fails!(on_file("copy_file_range", Kind::Grows, to), -1);
    // SAFETY: the caller's promise.
    let copied = unsafe {
        let call = libc::SYS_copy_file_range;
        libc::syscall(call, from, from_offset, to, to_offset, count, flags) as ssize_t
    };
    if copied > 0 {
        trace::of_file("copy_file_range", to, &[copied as i64]);
    }
    copied
}

/// libc's `flock`.
#[unsafe(no_mangle)]
pub extern "C" fn flock(file: c_int, operation: c_int) -> c_int {
    unless_fails!(on_file("flock", Kind::Other, file));
    // SAFETY: takes numbers alone.
    unsafe { libc::syscall(libc::SYS_flock, file, operation) as c_int }
}

/// libc's `close`; as the kernel, it closes the file even where it fails.
#[unsafe(no_mangle)]
pub extern "C" fn close(file: c_int) -> c_int {
    let verdict = on_file("close", Kind::Other, file);
    // SAFETY: the caller's promise about the file.
    let closed = unsafe { libc::syscall(libc::SYS_close, file) as c_int };
    unless_fails!(verdict);
    closed
}
