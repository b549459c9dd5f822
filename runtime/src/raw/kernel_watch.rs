//! Which nodes of a session the library of RAT+ operators has kernels for.

use super::dylib;
use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::ptr::null_mut;

type Watcher = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char, *const c_char);
type WatchKernels = unsafe extern "C" fn(Option<Watcher>, *mut c_void);

/// A node that a kernel of the library runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeKernel {
    pub node: String,
    pub op_type: String,
    pub provider: String,
}

/// The library's function that reports kernels as they are made.
#[derive(Clone, Copy)]
pub(crate) struct KernelWatch(WatchKernels);

impl KernelWatch {
    /// The function of `library`, which a session has loaded.
    pub fn of(library: &Path) -> Result<Self, String> {
        let library = dylib::open(library)?;
        // SAFETY: the function has had this signature since there is one of its name, and the
        // library is never unloaded.
        let watch = unsafe { library.get("RatplusWatchNodes") }.map_err(|_| {
            "it exports no RatplusWatchNodes, which says what its kernels run: it is no \
             library of RAT+ operators, or an older one"
        })?;
        Ok(Self(*watch))
    }

    /// The nodes whose kernels were made on this thread during `body`, in order.
    pub fn during<T>(self, body: impl FnOnce() -> T) -> (T, Vec<NodeKernel>) {
        struct Ends(WatchKernels);
        impl Drop for Ends {
            fn drop(&mut self) {
                // SAFETY: null is none.
                unsafe { (self.0)(None, null_mut()) };
            }
        }
        let mut made: Vec<NodeKernel> = Vec::new();
        let result = {
            let _ends = Ends(self.0);
            // SAFETY: `made` outlives the watching, which ends before it is used again, also where
            // `body` unwinds; the watcher takes a pointer to such a list.
            unsafe { (self.0)(Some(push), (&raw mut made).cast()) };
            body()
        };
        (result, made)
    }
}

/// # Safety
/// `made` is a list that nobody else uses now, the others are C strings.
unsafe extern "C" fn push(
    made: *mut c_void,
    node: *const c_char,
    op_type: *const c_char,
    provider: *const c_char,
) {
    // SAFETY: the caller's contract.
    let (made, [node, op_type, provider]) = unsafe {
        let text = |text| CStr::from_ptr(text).to_string_lossy().into_owned();
        let texts = [node, op_type, provider].map(text);
        (&mut *made.cast::<Vec<NodeKernel>>(), texts)
    };
    made.push(NodeKernel {
        node,
        op_type,
        provider,
    });
}
