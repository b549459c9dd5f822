//! From an ONNX model to the bytes of a plan.

use crate::shim::{Bytes, RawNetwork};
use crate::{Library, NvinferError, Tensor};
use std::ops::Deref;
use std::path::Path;

/// A model, and how it is read.
#[derive(Clone, Copy, Debug)]
pub struct NetworkSource<'a> {
    /// The ONNX model without its weights.
    pub model: &'a [u8],
    /// A file name in the folder that external weights lie in.
    pub path: &'a Path,
    /// A library of plugins that stand for the model's functions, and whose outputs may share
    /// memory with inputs. Not for TensorRT for RTX.
    pub plugins: Option<&'a Path>,
    /// What [`Network::timing_cache`] returned on this GPU before; may be empty.
    pub timing_cache: &'a [u8],
    /// TensorRT for RTX: GPUs to build for; none leaves it to the library.
    pub compute_capabilities: &'a [(u32, u32)],
}

/// A parsed model, ready to be built. Types are the model's own.
pub struct Network {
    raw: RawNetwork,
    library: Library,
}

/// Bytes that TensorRT made.
pub struct Serialized(Bytes);

impl Deref for Serialized {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl Network {
    /// Parses a model of static shapes.
    ///
    /// # Errors
    /// The parser's words, with the nodes they are about; no parser; no builder here.
    pub fn parse(library: &Library, source: &NetworkSource<'_>) -> Result<Self, NvinferError> {
        library.can_build()?;
        let raw = RawNetwork::new(library, source)
            .map_err(|message| library.failed("parsing the model", message))?;
        Ok(Self {
            raw,
            library: library.clone(),
        })
    }

    /// Inputs, then outputs.
    pub fn tensors(&self) -> Vec<Tensor> {
        self.raw.tensors()
    }

    /// Compute capabilities that the configuration names; none where it is left to TensorRT.
    pub fn compute_capabilities(&self) -> Vec<(u32, u32)> {
        self.raw.compute_capabilities()
    }

    /// Builds the plan.
    ///
    /// # Errors
    /// TensorRT's words.
    pub fn build(&mut self) -> Result<Serialized, NvinferError> {
        let built = self.raw.build();
        built
            .map(Serialized)
            .map_err(|message| self.library.failed("building the plan", message))
    }

    /// What was measured while building; `None` for TensorRT for RTX, which measures nothing.
    ///
    /// # Errors
    /// TensorRT's words.
    pub fn timing_cache(&mut self) -> Result<Option<Serialized>, NvinferError> {
        let cache = self.raw.timing_cache();
        cache
            .map(|bytes| bytes.map(Serialized))
            .map_err(|message| self.library.failed("reading the timing cache", message))
    }
}
