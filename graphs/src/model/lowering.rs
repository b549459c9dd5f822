//! What differs between the graphs of one model.

use crate::onnx::LowCasts;
use crate::ops::ElementType;
use crate::package::{CustomNodes, Fallback, Products, Target};

/// How a graph is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lowering {
    /// The RAT+ operators.
    pub custom: CustomNodes,
    /// Linear layers.
    pub products: Products,
    /// Roundings to f16 and bf16.
    pub casts: LowCasts,
    /// Whether block-wise integers come as f32 matrices, each under the name of its blocks.
    pub widened_blocks: bool,
}

impl Lowering {
    /// Of a package's file.
    pub fn of(target: Target, fallback: Fallback) -> Self {
        Self {
            custom: target.custom_nodes(fallback),
            products: target.products(fallback),
            casts: LowCasts::Cast,
            widened_blocks: false,
        }
    }

    /// Of the reference: everything is f32.
    pub fn reference(custom: CustomNodes, casts: LowCasts) -> Self {
        Self {
            custom,
            products: Products::Floats,
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
