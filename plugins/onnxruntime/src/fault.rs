//! Panics on demand, for tests of the guards: node attribute `ratplus_fault`.

use crate::api::Api;
use ort_sys::OrtKernelInfo;

/// Where a node is to panic: `create`, `compute`, `task` (on ORT's threads), `launched` (on a GPU,
/// its work is under way), `destroy` or `infer`.
pub struct Fault(String);

impl Fault {
    /// The node's wish.
    ///
    /// # Safety
    /// `info` is live.
    pub unsafe fn read(api: Api, info: *const OrtKernelInfo) -> Self {
        // SAFETY: the caller's contract.
        Self(unsafe { api.attribute_string(info, c"ratplus_fault") }.unwrap_or_default())
    }

    /// A wish from elsewhere.
    pub fn named(place: String) -> Self {
        Self(place)
    }

    /// Panics if this is the place.
    pub fn trip(&self, place: &str) {
        if self.0 == place {
            panic!("injected fault in {place}");
        }
    }
}
