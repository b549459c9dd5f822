//! What differs between the graphs of one model.

use crate::onnx::LowCasts;
use crate::ops::ElementType;
use crate::package::{CustomNodes, Fallback, Target};

/// How a graph is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lowering {
    /// The RAT+ operators.
    pub custom: CustomNodes,
    /// Whether a linear layer whose rows and weight have one type multiplies in it, summing in f32
    /// and rounding once, and not in f32.
    pub native_products: bool,
    /// Roundings to f16 and bf16.
    pub casts: LowCasts,
    /// Whether block-wise integers come as f32 matrices, each under the name of its plane's blocks.
    pub widened_blocks: bool,
}

impl Lowering {
    /// Of a package's file.
    pub fn of(target: Target, fallback: Fallback) -> Self {
        Self {
            custom: target.custom_nodes(fallback),
            native_products: target.has_native_products(),
            casts: LowCasts::Cast,
            widened_blocks: false,
        }
    }

    /// Of the reference: everything is f32.
    pub fn reference(custom: CustomNodes, casts: LowCasts) -> Self {
        Self {
            custom,
            native_products: false,
            casts,
            widened_blocks: true,
        }
    }

    /// Whether batch and length are open: [`Target::has_open_sizes`].
    pub fn has_open_sizes(self) -> bool {
        self.custom == CustomNodes::Plugins
    }

    /// Whether a conversion is a node: where all values are f32, only what rounds is.
    pub fn is_written(self, from: ElementType, to: ElementType) -> bool {
        from != to
            && match self.casts {
                LowCasts::Cast => true,
                LowCasts::Round => to != ElementType::F32,
                LowCasts::None => false,
            }
    }
}
