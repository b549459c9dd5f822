//! Tells whoever asks which nodes the kernels of this library run.

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

/// Has `watcher` hear of the runs of this thread; none hears of them without one.
pub fn watch(watcher: Option<Watcher>, context: *mut c_void) {
    WATCHER.set(watcher.map(|watcher| (watcher, context)));
}

/// What a watcher hears of a node.
pub struct Told {
    node: CString,
    op_type: &'static CStr,
    provider: &'static CStr,
}

impl Told {
    /// Of a node that ORT made.
    pub fn new(node: &str, op_type: &'static CStr, provider: Provider) -> Self {
        Self {
            // It came as a C string.
            node: CString::new(node).unwrap_or_default(),
            op_type,
            provider: provider.name(),
        }
    }

    /// The node has run, on this thread.
    pub fn ran(&self) {
        if let Some((watcher, context)) = WATCHER.get() {
            let (node, op) = (self.node.as_ptr(), self.op_type.as_ptr());
            // SAFETY: the promise of whoever gave the watcher; the strings outlive the call.
            unsafe { watcher(context, node, op, self.provider.as_ptr()) };
        }
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
    fn runs_of_this_thread_are_told_while_they_are_watched() {
        let told = Told::new("a", c"Scan", Provider::Cpu);
        let mut heard: Vec<String> = Vec::new();
        told.ran();
        watch(Some(push), (&raw mut heard).cast());
        told.ran();
        std::thread::scope(|scope| scope.spawn(|| told.ran()).join()).unwrap();
        watch(None, std::ptr::null_mut());
        told.ran();
        assert_eq!(heard, ["a", "Scan", "CPUExecutionProvider"]);
    }
}
