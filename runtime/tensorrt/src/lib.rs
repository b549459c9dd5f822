//! TensorRT and TensorRT for RTX, loaded at run time.
//!
//! TensorRT's interface is C++, and its tables of functions differ between releases. A small shim
//! is compiled once for every release whose headers the build finds ([`flavours`]); which one fits
//! is decided by the version of the library that is loaded ([`Library::open`]). With no headers
//! the crate builds all the same and says so when a library is asked for.

mod error;
mod library;
mod logger;
mod search;
mod settings;
#[allow(unsafe_code)]
mod shim;
mod tensor;

pub use error::NvinferError;
pub use library::Library;
pub use search::{Folder, RTX_VARIABLE, VARIABLE};
pub use settings::{BuildSettings, HardwareCompatibility};
pub use shim::{
    Context, ContextOptions, Engine, Network, NetworkSource, PlanSource, Refit, Runtime, Serialized,
};
pub use tensor::{ElementKind, InputShape, Tensor};

use std::fmt;

/// One of the two products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Product {
    /// TensorRT, which builds plans on the GPU that runs them.
    TensorRt,
    /// TensorRT for RTX, which builds plans anywhere and compiles them on the GPU.
    Rtx,
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TensorRt => "TensorRT",
            Self::Rtx => "TensorRT for RTX",
        })
    }
}

/// A release that the shim was compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flavour {
    /// The product.
    pub product: Product,
    /// Major and minor version of the headers.
    pub version: (u32, u32),
}

impl Flavour {
    /// Whether this code can drive a library of that version. TensorRT keeps the order of its
    /// functions within a major version and adds at the end; TensorRT for RTX promises nothing.
    pub fn fits(&self, product: Product, (major, minor): (u32, u32)) -> bool {
        let (own_major, own_minor) = self.version;
        self.product == product
            && own_major == major
            && match product {
                Product::TensorRt => minor >= own_minor,
                Product::Rtx => minor == own_minor,
            }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.version;
        write!(f, "{} {major}.{minor}", self.product)
    }
}

/// What this build can drive, in order of product and version.
pub fn flavours() -> Vec<Flavour> {
    shim::tables().map(|table| table.flavour()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flavour_fits_its_own_kind_of_library() {
        let flavour = |product, version| Flavour { product, version };
        let full = flavour(Product::TensorRt, (11, 4));
        assert!(full.fits(Product::TensorRt, (11, 4)));
        assert!(full.fits(Product::TensorRt, (11, 9)));
        assert!(!full.fits(Product::TensorRt, (11, 3)));
        assert!(!full.fits(Product::TensorRt, (10, 15)));
        assert!(!full.fits(Product::Rtx, (11, 4)));
        let rtx = flavour(Product::Rtx, (1, 7));
        assert!(rtx.fits(Product::Rtx, (1, 7)));
        assert!(!rtx.fits(Product::Rtx, (1, 8)));
        assert_eq!(rtx.to_string(), "TensorRT for RTX 1.7");
    }
}
