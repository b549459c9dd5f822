//! From an ONNX model to the bytes of a plan.

use super::{
    NetworkRequest, Raw, RawInputs, RawSettings, RawView, Serialized, Table, call, tensors,
};
use crate::{BuildSettings, HardwareCompatibility, InputShape, Library, NvinferError, Tensor};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{null, null_mut};

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
    /// What [`Network::timing_cache`] returned before; those of other GPUs and releases do nothing.
    pub timing_caches: &'a [&'a [u8]],
    /// TensorRT for RTX: GPUs to build for; none leaves it to the library.
    pub compute_capabilities: &'a [(u32, u32)],
    /// Optimization profiles: for each the shapes of every open input, which it has and no others.
    /// None where all are static.
    pub profiles: &'a [Vec<InputShape>],
    /// Whether [`Engine::inspect`](super::Engine::inspect) will tell of every layer in detail.
    pub detailed: bool,
    /// What else decides how the plan is built.
    pub settings: &'a BuildSettings,
}

/// A parsed model, ready to be built. Types are the model's own.
pub struct Network {
    raw: Raw,
    library: Library,
}

pub(super) fn c_path(path: &Path) -> Result<CString, String> {
    let text = CString::new(path.as_os_str().as_bytes());
    text.map_err(|_| format!("`{}` holds a NUL byte", path.display()))
}

impl Network {
    /// Parses a model.
    ///
    /// # Errors
    /// The parser's words, with the nodes they are about; no parser; no builder here.
    pub fn parse(library: &Library, source: &NetworkSource<'_>) -> Result<Self, NvinferError> {
        library.can_build()?;
        let failed = |message: String| library.failed("parsing the model", &message);
        let path = c_path(source.path).map_err(failed)?;
        let plugins = source.plugins.map(c_path).transpose().map_err(failed)?;
        let logger = library.loaded.logger().map_err(failed)?;
        let capabilities = source.compute_capabilities.iter();
        let capabilities: Vec<_> = capabilities
            .map(|&(major, minor)| i32::try_from(10 * major + minor).unwrap_or(i32::MAX))
            .collect();
        let inputs = RawInputs::new(&source.profiles.concat());
        let count = |list: usize| i32::try_from(list).unwrap_or(i32::MAX);
        let settings = source.settings;
        let caches = source.timing_caches.iter().filter(|of| !of.is_empty());
        let caches: Vec<_> = caches
            .map(|cache| RawView {
                data: cache.as_ptr(),
                size: cache.len(),
            })
            .collect();
        let request = NetworkRequest {
            model: source.model.as_ptr(),
            model_size: source.model.len(),
            path: path.as_ptr(),
            plugin_library: plugins.as_ref().map_or(null(), |path| path.as_ptr()),
            timing_caches: caches.as_ptr(),
            timing_cache_count: count(caches.len()),
            capabilities: capabilities.as_ptr(),
            capability_count: count(capabilities.len()),
            inputs: inputs.tensors.as_ptr(),
            input_count: count(source.profiles.first().map_or(0, Vec::len)),
            profile_count: count(source.profiles.len()),
            settings: RawSettings {
                workspace_bytes: settings.workspace.unwrap_or(0),
                optimization_level: settings.optimization_level.map_or(-1, i32::from),
                version_compatible: settings.version_compatible.into(),
                hardware_compatibility: match settings.hardware_compatibility {
                    None => 0,
                    Some(HardwareCompatibility::AmperePlus) => 1,
                    Some(HardwareCompatibility::SameComputeCapability) => 2,
                },
                detailed: source.detailed.into(),
                strip_weights: settings.strip_weights.into(),
            },
        };
        let mut raw = null_mut();
        // SAFETY: the symbols are the loaded library's, which is of the table's release; all
        // pointers are valid for the call, and the logger for the process.
        let made = call(|text| unsafe {
            (library.table.network_new)(
                &raw const library.loaded.symbols,
                logger.raw,
                &raw const request,
                &raw mut raw,
                text,
            )
        });
        made.map_err(failed)?;
        Ok(Self {
            raw,
            library: library.clone(),
        })
    }

    fn table(&self) -> &'static Table {
        self.library.table
    }

    /// Inputs, then outputs.
    pub fn tensors(&self) -> Vec<Tensor> {
        // SAFETY: the network is live.
        let count = unsafe { (self.table().network_tensor_count)(self.raw) };
        tensors(count, |index, tensor| {
            // SAFETY: the network is live, the index below its count, the tensor valid for the write.
            unsafe { (self.table().network_tensor)(self.raw, index, tensor) }
        })
    }

    /// Compute capabilities that the configuration names; none where it is left to TensorRT.
    pub fn compute_capabilities(&self) -> Vec<(u32, u32)> {
        let mut room = [0i32; 64];
        // SAFETY: the network is live and there is room for as many numbers.
        let count = unsafe {
            (self.table().network_capabilities)(self.raw, room.as_mut_ptr(), room.len() as i32)
        };
        let count = usize::try_from(count).unwrap_or(0).min(room.len());
        let numbers = room[..count].iter().copied();
        let numbers = numbers.filter_map(|number| u32::try_from(number).ok());
        numbers.map(|number| (number / 10, number % 10)).collect()
    }

    /// Builds the plan.
    ///
    /// # Errors
    /// TensorRT's words.
    pub fn build(&mut self) -> Result<Serialized, NvinferError> {
        let table = self.table();
        // SAFETY: the network is live and the bytes valid for the write.
        let write = |bytes, text| unsafe { (table.network_build)(self.raw, bytes, text) };
        let plan = Serialized::of(table, write);
        plan.map_err(|message| self.library.failed("building the plan", &message))
    }

    /// What was measured while building; `None` for TensorRT for RTX, which measures nothing.
    ///
    /// # Errors
    /// TensorRT's words.
    pub fn timing_cache(&mut self) -> Result<Option<Serialized>, NvinferError> {
        let table = self.table();
        // SAFETY: the network is live and the bytes valid for the write.
        let write = |bytes, text| unsafe { (table.network_timing_cache)(self.raw, bytes, text) };
        let cache = Serialized::of(table, write);
        let failed = |message: String| self.library.failed("reading the timing cache", &message);
        let cache = cache.map_err(failed)?;
        Ok((!cache.raw.owner.is_null()).then_some(cache))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // SAFETY: the network is freed once.
        unsafe { (self.table().network_free)(self.raw) }
    }
}
