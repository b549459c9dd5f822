//! What the library of RAT+ operators knows of the nodes that its kernels ran.

use super::dylib;
use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::ptr::null_mut;

type Watcher = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char, *const c_char);
type WatchKernels = unsafe extern "C" fn(Option<Watcher>, *mut c_void);

/// A node that a kernel of the library has run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelRun {
    pub node: String,
    pub op_type: String,
    pub provider: String,
}

/// The library's function that reports runs.
#[derive(Clone, Copy)]
pub(crate) struct KernelWatch(WatchKernels);

impl KernelWatch {
    /// The function of `library`, which a session has loaded.
    pub fn of(library: &Path) -> Result<Self, String> {
        let library = dylib::open(library)?;
        // SAFETY: the function has had this signature since there is one of its name, and the
        // library is never unloaded.
        let watch = unsafe { library.get("RatplusWatchKernels") }.map_err(|_| {
            "it exports no RatplusWatchKernels, which says what its kernels ran: it is no \
             library of RAT+ operators, or an older one"
        })?;
        Ok(Self(*watch))
    }

    /// What kernels ran on this thread during `body`, in order.
    pub fn during<T>(self, body: impl FnOnce() -> T) -> (T, Vec<KernelRun>) {
        struct Ends(WatchKernels);
        impl Drop for Ends {
            fn drop(&mut self) {
                // SAFETY: null is none.
                unsafe { (self.0)(None, null_mut()) };
            }
        }
        let mut runs: Vec<KernelRun> = Vec::new();
        let result = {
            let _ends = Ends(self.0);
            // SAFETY: `runs` outlives the watching, which ends before it is used again, also where
            // `body` unwinds; the watcher takes a pointer to such a list.
            unsafe { (self.0)(Some(push), (&raw mut runs).cast()) };
            body()
        };
        (result, runs)
    }
}

/// # Safety
/// `runs` is a list that nobody else uses now, the others are C strings.
unsafe extern "C" fn push(
    runs: *mut c_void,
    node: *const c_char,
    op_type: *const c_char,
    provider: *const c_char,
) {
    // SAFETY: the caller's contract.
    let (runs, [node, op_type, provider]) = unsafe {
        let text = |text| CStr::from_ptr(text).to_string_lossy().into_owned();
        let texts = [node, op_type, provider].map(text);
        (&mut *runs.cast::<Vec<KernelRun>>(), texts)
    };
    runs.push(KernelRun {
        node,
        op_type,
        provider,
    });
}
