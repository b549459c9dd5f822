//! A network of the shim's, and bytes that TensorRT made.

use super::{NetworkRequest, Raw, RawBytes, Table, call, tensors};
use crate::builder::NetworkSource;
use crate::{Library, Tensor};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{null, null_mut};

/// Freed when dropped.
pub(crate) struct RawNetwork {
    raw: Raw,
    library: Library,
}

pub(super) fn c_path(path: &Path) -> Result<CString, String> {
    let text = CString::new(path.as_os_str().as_bytes());
    text.map_err(|_| format!("`{}` holds a NUL byte", path.display()))
}

impl RawNetwork {
    pub fn new(library: &Library, source: &NetworkSource<'_>) -> Result<Self, String> {
        let path = c_path(source.path)?;
        let plugins = source.plugins.map(c_path).transpose()?;
        let logger = library.loaded.logger()?;
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
        made.map_err(|message| logger.explain(message))?;
        Ok(Self {
            raw,
            library: library.clone(),
        })
    }

    fn table(&self) -> &'static Table {
        self.library.table
    }

    pub fn tensors(&self) -> Vec<Tensor> {
        // SAFETY: the network is live.
        let count = unsafe { (self.table().network_tensor_count)(self.raw) };
        tensors(count, |index, tensor| {
            // SAFETY: the network is live, the index below its count, the tensor valid for the write.
            unsafe { (self.table().network_tensor)(self.raw, index, tensor) }
        })
    }

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

    pub fn build(&mut self) -> Result<Bytes, String> {
        let mut raw = RawBytes::EMPTY;
        // SAFETY: the network is live and the bytes valid for the write.
        let built =
            call(|text| unsafe { (self.table().network_build)(self.raw, &raw mut raw, text) });
        let bytes = Bytes {
            raw,
            table: self.table(),
        };
        built.map_err(|message| match self.library.loaded.logger() {
            Ok(logger) => logger.explain(message),
            Err(_) => message,
        })?;
        Ok(bytes)
    }

    pub fn timing_cache(&mut self) -> Result<Option<Bytes>, String> {
        let mut raw = RawBytes::EMPTY;
        // SAFETY: the network is live; what is written are bytes of TensorRT's, which `Bytes` frees.
        call(|text| unsafe { (self.table().network_timing_cache)(self.raw, &raw mut raw, text) })?;
        let bytes = Bytes {
            raw,
            table: self.table(),
        };
        Ok((!bytes.raw.owner.is_null()).then_some(bytes))
    }
}

impl Drop for RawNetwork {
    fn drop(&mut self) {
        // SAFETY: the network is freed once.
        unsafe { (self.table().network_free)(self.raw) }
    }
}

/// Freed when dropped.
pub(crate) struct Bytes {
    raw: RawBytes,
    table: &'static Table,
}

impl Bytes {
    pub fn as_slice(&self) -> &[u8] {
        if self.raw.data.is_null() {
            return &[];
        }
        // SAFETY: TensorRT's memory holds as many bytes and nobody writes to it.
        unsafe { std::slice::from_raw_parts(self.raw.data, self.raw.size) }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if !self.raw.owner.is_null() {
            // SAFETY: the memory is freed once.
            unsafe { (self.table.bytes_free)(self.raw.owner) }
        }
    }
}
