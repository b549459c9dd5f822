//! Calls that name a path, and those on folders.

use super::fail;
use crate::plan::{
    Kind, Verdict, is_lower, no_exchange, on_file, on_path, on_path_at, replace_lower,
};
use crate::trace;
use libc::{DIR, c_char, c_int, c_uint, dirent64, mode_t};
use std::ffi::CStr;

type Stat = libc::stat64;

/// libc's `mkdir`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { mkdirat(libc::AT_FDCWD, path, mode) }
}

/// libc's `mkdirat`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdirat(folder: c_int, path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(path) };
    unless_fails!(on_path_at("mkdir", Kind::Grows, folder, name));
    // SAFETY: the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_mkdirat, folder, path, mode) as c_int };
    if result == 0 {
        trace::at_path("mkdir", folder, name, &[]);
    }
    result
}

/// libc's `symlink`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn symlink(content: *const c_char, path: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(path) };
    unless_fails!(on_path("symlink", Kind::Grows, name));
    // SAFETY: the caller's promise.
    let result =
        unsafe { libc::syscall(libc::SYS_symlinkat, content, libc::AT_FDCWD, path) as c_int };
    if result == 0 {
        trace::at_path("symlink", libc::AT_FDCWD, name, &[]);
    }
    result
}

/// libc's `linkat`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn linkat(
    from_folder: c_int,
    from: *const c_char,
    to_folder: c_int,
    to: *const c_char,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(to) };
    unless_fails!(on_path_at("link", Kind::Grows, to_folder, name));
    // SAFETY: the caller's promise.
    let result = unsafe {
        libc::syscall(libc::SYS_linkat, from_folder, from, to_folder, to, flags) as c_int
    };
    if result == 0 {
        trace::at_path("link", to_folder, name, &[]);
    }
    result
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
    let result = unsafe { libc::syscall(libc::SYS_unlinkat, folder, path, flags) as c_int };
    if result == 0 {
        let call = match flags & libc::AT_REMOVEDIR {
            0 => "unlink",
            _ => "rmdir",
        };
        trace::at_path(call, folder, name, &[]);
    }
    result
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
    let (old, new) = unsafe { (CStr::from_ptr(from), CStr::from_ptr(to)) };
    unless_fails!(on_path_at(name, Kind::Grows, to_folder, new));
    if flags != 0 && no_exchange() {
        return fail(libc::EINVAL);
    }
    let exchange = flags & libc::RENAME_EXCHANGE != 0;
    if is_lower(from_folder, old) || exchange && is_lower(to_folder, new) {
        return fail(libc::EXDEV);
    }
    let replaces = is_lower(to_folder, new);
    // SAFETY: the caller's promise.
    let result = unsafe {
        libc::syscall(libc::SYS_renameat2, from_folder, from, to_folder, to, flags) as c_int
    };
    if result == 0 {
        if replaces {
            replace_lower();
        }
        trace::renamed((from_folder, old), (to_folder, new), flags);
    }
    result
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
