//! Faults on demand, for tests of the guards and of sanitizers: node attribute `ratplus_fault`.

use crate::api::{Api, Tensor};
use ort_sys::OrtKernelInfo;
use ratplus_graphs::ops::ElementType;

/// Where a node is to panic: `create`, `compute`, `task` (on ORT's threads), `launched` (on a GPU,
/// its work is under way), `destroy` or `infer`. Or `overread`: it reads on behind its first input.
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

    /// Reads one byte behind a tensor if that is the wish.
    ///
    /// # Safety
    /// None is possible; that a sanitizer ends the process here is what it is for.
    pub unsafe fn overread(&self, tensor: &Tensor) {
        if self.0 == "overread" {
            let count: i64 = tensor.shape.dims().iter().product();
            let element = ElementType::from_onnx(tensor.shape.element).map_or(0, ElementType::size);
            let end = tensor
                .data
                .cast::<u8>()
                .wrapping_add(count as usize * element);
            // SAFETY: not safe; see above.
            std::hint::black_box(unsafe { end.read_volatile() });
        }
    }
}
