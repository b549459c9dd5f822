//! Which call is acted on, and how.

use std::borrow::Cow;
use std::ffi::{CStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What happens at the chosen call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The process dies before the call.
    Kill,
    /// The call fails with that number and does nothing.
    Fail(i32),
    /// As [`Action::Fail`], and so does every later call that needs room; a write is half done first.
    Full,
    /// As [`Action::Fail`] with `EIO`, and so does every later call.
    Dead,
    /// A read or write does half of it.
    Short,
}

/// What a call does to the file system.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Needs room, where the disk is full.
    Grows,
    /// A write, which needs room and can be short.
    Write,
    /// A read, which can be short.
    Read,
    /// None of these.
    Other,
    /// Cannot fail, where a program would not look.
    Silent,
}

/// What a call has to do.
pub enum Verdict {
    /// Nothing special.
    Go,
    /// Fail with that number.
    Fail(i32),
    /// Do half.
    Half,
}

struct Plan {
    root: Vec<u8>,
    log: Option<i32>,
    trace: Option<i32>,
    at: usize,
    action: Option<Action>,
    no_exchange: bool,
    lower: Option<Vec<u8>>,
}

static CALLS: AtomicUsize = AtomicUsize::new(0);
static REPLACED: AtomicBool = AtomicBool::new(false);

fn plan() -> Option<&'static Plan> {
    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
    PLAN.get_or_init(|| {
        let root = std::env::var_os("RATPLUS_FAULT_ROOT")?.into_vec();
        let text = std::env::var("RATPLUS_FAULT").unwrap_or_default();
        let (at, action) = match text.split_once(':') {
            None => (0, None),
            Some((at, action)) => (at.parse().ok()?, Some(parse(action)?)),
        };
        let log = |name| std::env::var_os(name).map(|path| open_log(&path));
        Some(Plan {
            root,
            log: log("RATPLUS_FAULT_LOG"),
            trace: log("RATPLUS_FAULT_TRACE"),
            at,
            action,
            no_exchange: std::env::var_os("RATPLUS_FAULT_NO_EXCHANGE").is_some(),
            lower: std::env::var_os("RATPLUS_FAULT_LOWER").map(OsString::into_vec),
        })
    })
    .as_ref()
}

fn parse(action: &str) -> Option<Action> {
    Some(match action {
        "kill" => Action::Kill,
        "enospc" => Action::Fail(libc::ENOSPC),
        "eio" => Action::Fail(libc::EIO),
        "eintr" => Action::Fail(libc::EINTR),
        "full" => Action::Full,
        "dead" => Action::Dead,
        "short" => Action::Short,
        _ => return None,
    })
}

fn open_log(path: &OsString) -> i32 {
    let mut path = path.as_bytes().to_vec();
    path.push(0);
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_CLOEXEC;
    // SAFETY: the path ends with a zero; straight to the kernel, past this library's own `open`.
    let file = unsafe {
        libc::syscall(
            libc::SYS_openat,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            0o644,
        )
    };
    file as i32
}

/// Whether the file system is to have no swap of two names.
pub fn no_exchange() -> bool {
    plan().is_some_and(|plan| plan.no_exchange)
}

/// Whether that is a folder of a lower layer, which no rename moves.
pub fn is_lower(folder: i32, path: &CStr) -> bool {
    let Some(lower) = plan().and_then(|plan| plan.lower.as_ref()) else {
        return false;
    };
    let mut buffer = [0; 4096];
    let same = *name_at(folder, path, &mut buffer) == **lower;
    same && !REPLACED.load(Ordering::SeqCst)
}

/// What is at the path of the lower folder is of the upper layer from now on.
pub fn replace_lower() {
    REPLACED.store(true, Ordering::SeqCst);
}

/// Where calls are recorded in full.
pub fn trace() -> Option<i32> {
    plan().and_then(|plan| plan.trace)
}

/// Whether calls on that path count.
pub fn is_below(path: &[u8]) -> bool {
    let below = plan().and_then(|plan| path.strip_prefix(plan.root.as_slice()));
    below.is_some_and(|below| below.is_empty() || below.starts_with(b"/"))
}

/// Counts a call on `path`; the call may not return.
pub fn on_path(name: &str, kind: Kind, path: &CStr) -> Verdict {
    on(name, kind, path.to_bytes())
}

/// Counts a call on an open file; the call may not return.
pub fn on_file(name: &str, kind: Kind, file: i32) -> Verdict {
    if plan().is_none() {
        return Verdict::Go;
    }
    let mut buffer = [0; 4096];
    on(name, kind, name_of(file, &mut buffer))
}

/// Counts a call on `path` relative to an open folder; the call may not return.
pub fn on_path_at(name: &str, kind: Kind, folder: i32, path: &CStr) -> Verdict {
    if plan().is_none() {
        return Verdict::Go;
    }
    let mut buffer = [0; 4096];
    on(name, kind, &name_at(folder, path, &mut buffer))
}

/// `path` with that of the open folder it is relative to before it.
pub fn name_at<'a>(folder: i32, path: &'a CStr, buffer: &mut [u8; 4096]) -> Cow<'a, [u8]> {
    let path = path.to_bytes();
    if folder == libc::AT_FDCWD || path.starts_with(b"/") {
        return path.into();
    }
    let mut whole = name_of(folder, buffer).to_vec();
    if !path.is_empty() {
        whole.push(b'/');
        whole.extend(path);
    }
    whole.into()
}

/// The path of an open file, as of now.
pub fn name_of(file: i32, buffer: &mut [u8; 4096]) -> &[u8] {
    let link = format!("/proc/self/fd/{file}\0");
    // SAFETY: the path ends with a zero, and the kernel writes at most the buffer's length.
    let length = unsafe {
        libc::syscall(
            libc::SYS_readlink,
            link.as_ptr(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    &buffer[..usize::try_from(length).unwrap_or(0)]
}

fn on(name: &str, kind: Kind, path: &[u8]) -> Verdict {
    let Some(plan) = plan() else {
        return Verdict::Go;
    };
    if !is_below(path) {
        return Verdict::Go;
    }
    let call = CALLS.fetch_add(1, Ordering::SeqCst) + 1;
    if let Some(log) = plan.log {
        let mut line = format!("{call} {name} ").into_bytes();
        line.extend(path);
        line.push(b'\n');
        // SAFETY: the line is as long as said; straight to the kernel.
        unsafe { libc::syscall(libc::SYS_write, log, line.as_ptr(), line.len()) };
    }
    match plan.action {
        Some(action) if call == plan.at => now(action, kind),
        Some(action) if call > plan.at => after(action, kind),
        _ => Verdict::Go,
    }
}

fn now(action: Action, kind: Kind) -> Verdict {
    match action {
        Action::Kill => loop {
            // SAFETY: ends this process, which is what it is for.
            unsafe { libc::syscall(libc::SYS_kill, libc::getpid(), libc::SIGKILL) };
        },
        Action::Short | Action::Full if kind == Kind::Write => Verdict::Half,
        Action::Short if kind == Kind::Read => Verdict::Half,
        _ if kind == Kind::Silent => Verdict::Go,
        Action::Fail(error) => Verdict::Fail(error),
        Action::Dead => Verdict::Fail(libc::EIO),
        Action::Full if kind == Kind::Grows => Verdict::Fail(libc::ENOSPC),
        Action::Short | Action::Full => Verdict::Go,
    }
}

fn after(action: Action, kind: Kind) -> Verdict {
    match action {
        _ if kind == Kind::Silent => Verdict::Go,
        Action::Dead => Verdict::Fail(libc::EIO),
        Action::Full if matches!(kind, Kind::Grows | Kind::Write) => Verdict::Fail(libc::ENOSPC),
        _ => Verdict::Go,
    }
}
