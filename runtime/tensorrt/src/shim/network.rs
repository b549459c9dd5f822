//! From an ONNX model to the bytes of a plan.

use super::{NetworkRequest, Raw, RawBytes, Table, Text, call, tensors};
use crate::{Library, NvinferError, Tensor};
use std::ffi::CString;
use std::ops::Deref;
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
    /// What [`Network::timing_cache`] returned on this GPU before; may be empty.
    pub timing_cache: &'a [u8],
    /// TensorRT for RTX: GPUs to build for; none leaves it to the library.
    pub compute_capabilities: &'a [(u32, u32)],
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
    /// Parses a model of static shapes.
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
        let request = NetworkRequest {
            model: source.model.as_ptr(),
            model_size: source.model.len(),
            path: path.as_ptr(),
            plugin_library: plugins.as_ref().map_or(null(), |path| path.as_ptr()),
            timing_cache: source.timing_cache.as_ptr(),
            timing_cache_size: source.timing_cache.len(),
            capabilities: capabilities.as_ptr(),
            capability_count: i32::try_from(capabilities.len()).unwrap_or(i32::MAX),
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
        // SAFETY: the network is live and the bytes valid for the write.
        self.serialized("building the plan", |table, bytes, text| unsafe {
            (table.network_build)(self.raw, bytes, text)
        })
    }

    /// What was measured while building; `None` for TensorRT for RTX, which measures nothing.
    ///
    /// # Errors
    /// TensorRT's words.
    pub fn timing_cache(&mut self) -> Result<Option<Serialized>, NvinferError> {
        // SAFETY: the network is live and the bytes valid for the write.
        let cache = self.serialized("reading the timing cache", |table, bytes, text| unsafe {
            (table.network_timing_cache)(self.raw, bytes, text)
        })?;
        Ok((!cache.raw.owner.is_null()).then_some(cache))
    }

    fn serialized(
        &self,
        what: &str,
        write: impl FnOnce(&Table, *mut RawBytes, Text) -> i32,
    ) -> Result<Serialized, NvinferError> {
        let table = self.table();
        let mut bytes = Serialized {
            raw: RawBytes::EMPTY,
            table,
        };
        let written = call(|text| write(table, &raw mut bytes.raw, text));
        written.map_err(|message| self.library.failed(what, &message))?;
        Ok(bytes)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // SAFETY: the network is freed once.
        unsafe { (self.table().network_free)(self.raw) }
    }
}

/// Bytes that TensorRT made.
pub struct Serialized {
    raw: RawBytes,
    table: &'static Table,
}

impl Deref for Serialized {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if self.raw.data.is_null() {
            return &[];
        }
        // SAFETY: TensorRT's memory holds as many bytes and nobody writes to it.
        unsafe { std::slice::from_raw_parts(self.raw.data, self.raw.size) }
    }
}

impl Drop for Serialized {
    fn drop(&mut self) {
        if !self.raw.owner.is_null() {
            // SAFETY: the memory is freed once.
            unsafe { (self.table.bytes_free)(self.raw.owner) }
        }
    }
}
