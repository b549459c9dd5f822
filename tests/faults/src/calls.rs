//! libc's calls on files, each counted before it goes to the kernel or to libc.

use crate::plan::{Kind, Verdict, no_exchange, on_file, on_path, on_path_at};
use libc::{DIR, c_char, c_int, c_uint, c_void, dirent64, iovec, mode_t, off64_t, size_t, ssize_t};
use std::ffi::CStr;

type Stat = libc::stat64;

fn fail(error: c_int) -> c_int {
    // SAFETY: libc's own variable of this thread.
    unsafe { *libc::__errno_location() = error };
    -1
}

/// A function of libc itself, behind this library's of the same name.
macro_rules! next {
    ($name:literal as $type:ty) => {{
        // SAFETY: the name ends with a zero.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, concat!($name, "\0").as_ptr().cast()) };
        // SAFETY: libc declares the function so; every libc has it.
        unsafe { std::mem::transmute::<*mut c_void, $type>(found) }
    }};
}

/// Returns where the call has to fail.
macro_rules! unless_fails {
    ($verdict:expr) => {
        if let Verdict::Fail(error) = $verdict {
            return fail(error);
        }
    };
    ($verdict:expr, $value:expr) => {
        if let Verdict::Fail(error) = $verdict {
            fail(error);
            return $value;
        }
    };
}

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
    unsafe { libc::syscall(libc::SYS_openat, folder, path, flags, mode) as c_int }
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
    unsafe { libc::syscall(libc::SYS_write, file, bytes, count) as ssize_t }
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
    unsafe { libc::syscall(libc::SYS_writev, file, pieces, count) as ssize_t }
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
    unsafe { libc::syscall(libc::SYS_fsync, file) as c_int }
}

/// libc's `fdatasync`.
#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(file: c_int) -> c_int {
    unless_fails!(on_file("fdatasync", Kind::Other, file));
    // SAFETY: takes a number alone.
    unsafe { libc::syscall(libc::SYS_fdatasync, file) as c_int }
}

/// libc's `ftruncate64`.
#[unsafe(no_mangle)]
pub extern "C" fn ftruncate64(file: c_int, size: off64_t) -> c_int {
    unless_fails!(on_file("ftruncate", Kind::Grows, file));
    // SAFETY: takes numbers alone.
    unsafe { libc::syscall(libc::SYS_ftruncate, file, size) as c_int }
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

/// libc's `mkdir`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the caller's promise.
    unless_fails!(on_path("mkdir", Kind::Grows, unsafe {
        CStr::from_ptr(path)
    }));
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_mkdirat, libc::AT_FDCWD, path, mode) as c_int }
}

/// libc's `unlink`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { unlinkat(libc::AT_FDCWD, path, 0) }
}

/// libc's `rmdir`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rmdir(path: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { unlinkat(libc::AT_FDCWD, path, libc::AT_REMOVEDIR) }
}

/// libc's `unlinkat`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlinkat(folder: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(path) };
    unless_fails!(on_path_at("unlink", Kind::Other, folder, name));
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_unlinkat, folder, path, flags) as c_int }
}

/// libc's `rename`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { renaming("rename", libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0) }
}

/// libc's `renameat2`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn renameat2(
    from_folder: c_int,
    from: *const c_char,
    to_folder: c_int,
    to: *const c_char,
    flags: c_uint,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { renaming("renameat2", from_folder, from, to_folder, to, flags) }
}

/// # Safety
/// As libc's `renameat2`.
unsafe fn renaming(
    name: &str,
    from_folder: c_int,
    from: *const c_char,
    to_folder: c_int,
    to: *const c_char,
    flags: c_uint,
) -> c_int {
    // SAFETY: the caller's promise.
    let path = unsafe { CStr::from_ptr(to) };
    unless_fails!(on_path_at(name, Kind::Grows, to_folder, path));
    if flags != 0 && no_exchange() {
        return fail(libc::EINVAL);
    }
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_renameat2, from_folder, from, to_folder, to, flags) as c_int }
}

/// libc's `statx`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statx(
    folder: c_int,
    path: *const c_char,
    flags: c_int,
    mask: c_uint,
    found: *mut libc::statx,
) -> c_int {
    // With no path std asks whether there is such a call.
    if !path.is_null() {
        // SAFETY: the caller's promise.
        let name = unsafe { CStr::from_ptr(path) };
        unless_fails!(on_path_at("stat", Kind::Other, folder, name));
    }
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_statx, folder, path, flags, mask, found) as c_int }
}

/// libc's `stat64`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stat64(path: *const c_char, found: *mut Stat) -> c_int {
    // SAFETY: the caller's promise.
    unless_fails!(on_path("stat", Kind::Other, unsafe {
        CStr::from_ptr(path)
    }));
    let next = next!("stat64" as unsafe extern "C" fn(*const c_char, *mut Stat) -> c_int);
    // SAFETY: the caller's promise.
    unsafe { next(path, found) }
}

/// libc's `lstat64`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstat64(path: *const c_char, found: *mut Stat) -> c_int {
    // SAFETY: the caller's promise.
    unless_fails!(on_path("lstat", Kind::Other, unsafe {
        CStr::from_ptr(path)
    }));
    let next = next!("lstat64" as unsafe extern "C" fn(*const c_char, *mut Stat) -> c_int);
    // SAFETY: the caller's promise.
    unsafe { next(path, found) }
}

/// libc's `fstat64`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fstat64(file: c_int, found: *mut Stat) -> c_int {
    unless_fails!(on_file("fstat", Kind::Other, file));
    let next = next!("fstat64" as unsafe extern "C" fn(c_int, *mut Stat) -> c_int);
    // SAFETY: the caller's promise.
    unsafe { next(file, found) }
}

/// libc's `statvfs64`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statvfs64(path: *const c_char, found: *mut libc::statvfs64) -> c_int {
    // SAFETY: the caller's promise.
    unless_fails!(on_path("statvfs", Kind::Other, unsafe {
        CStr::from_ptr(path)
    }));
    let next =
        next!("statvfs64" as unsafe extern "C" fn(*const c_char, *mut libc::statvfs64) -> c_int);
    // SAFETY: the caller's promise.
    unsafe { next(path, found) }
}

/// libc's `opendir`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opendir(path: *const c_char) -> *mut DIR {
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(path) };
    unless_fails!(on_path("opendir", Kind::Other, name), std::ptr::null_mut());
    let next = next!("opendir" as unsafe extern "C" fn(*const c_char) -> *mut DIR);
    // SAFETY: the caller's promise.
    unsafe { next(path) }
}

/// libc's `readdir64`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn readdir64(dir: *mut DIR) -> *mut dirent64 {
    // SAFETY: the caller's promise.
    let file = unsafe { libc::dirfd(dir) };
    unless_fails!(on_file("readdir", Kind::Other, file), std::ptr::null_mut());
    let next = next!("readdir64" as unsafe extern "C" fn(*mut DIR) -> *mut dirent64);
    // SAFETY: the caller's promise.
    unsafe { next(dir) }
}

/// libc's `closedir`, which only kills: nothing is lost with a folder that was read, and std takes
/// an error of it for a mistake of the program.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn closedir(dir: *mut DIR) -> c_int {
    // SAFETY: the caller's promise.
    let file = unsafe { libc::dirfd(dir) };
    on_file("closedir", Kind::Silent, file);
    let next = next!("closedir" as unsafe extern "C" fn(*mut DIR) -> c_int);
    // SAFETY: the caller's promise.
    unsafe { next(dir) }
}

/// libc's `realpath`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realpath(path: *const c_char, buffer: *mut c_char) -> *mut c_char {
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(path) };
    unless_fails!(on_path("realpath", Kind::Other, name), std::ptr::null_mut());
    let next = next!("realpath" as unsafe extern "C" fn(*const c_char, *mut c_char) -> *mut c_char);
    // SAFETY: the caller's promise.
    unsafe { next(path, buffer) }
}
