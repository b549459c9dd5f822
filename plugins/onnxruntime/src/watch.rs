//! Tells whoever asks which nodes of a session this library has kernels for.

use crate::descriptor::Provider;
use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_void};

/// Gets what it was asked for with, and name, operator and execution provider of a node, which
/// live as long as the call.
pub type Watcher = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char, *const c_char);

thread_local! {
    // Without a destructor, which a thread might run after the library has gone.
    static WATCHER: Cell<Option<(Watcher, *mut c_void)>> = const { Cell::new(None) };
}

/// Has `watcher` hear of the kernels that are made on this thread; none hears of them without one.
pub fn watch(watcher: Option<Watcher>, context: *mut c_void) {
    WATCHER.set(watcher.map(|watcher| (watcher, context)));
}

/// The node has a kernel, which was made on this thread.
pub fn made(node: &str, op_type: &CStr, provider: Provider) {
    if let Some((watcher, context)) = WATCHER.get() {
        // It came as a C string.
        let node = CString::new(node).unwrap_or_default();
        let provider = provider.name();
        // SAFETY: the promise of whoever gave the watcher; the strings outlive the call.
        unsafe { watcher(context, node.as_ptr(), op_type.as_ptr(), provider.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn push(
        context: *mut c_void,
        node: *const c_char,
        op_type: *const c_char,
        provider: *const c_char,
    ) {
        // SAFETY: as the tests below watch.
        let told = unsafe { &mut *context.cast::<Vec<String>>() };
        for text in [node, op_type, provider] {
            // SAFETY: three strings that live as long as the call.
            told.push(
                unsafe { CStr::from_ptr(text) }
                    .to_string_lossy()
                    .into_owned(),
            );
        }
    }

    #[test]
    fn kernels_made_on_this_thread_are_told_while_they_are_watched() {
        let made = || made("a", c"Scan", Provider::Cpu);
        let mut heard: Vec<String> = Vec::new();
        made();
        watch(Some(push), (&raw mut heard).cast());
        made();
        std::thread::scope(|scope| scope.spawn(made).join()).unwrap();
        watch(None, std::ptr::null_mut());
        made();
        assert_eq!(heard, ["a", "Scan", "CPUExecutionProvider"]);
    }
}
