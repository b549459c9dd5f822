//! Values over memory of our own, which `ort` makes of its own memory only.

use super::device::DeviceMemory;
use super::memory::{Buffer, Memory};
use memmap2::Mmap;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::value::DynValue;
use ort::{AsPointer, ortsys};
use ort_sys::ONNXTensorElementDataType;
use ratplus_graphs::model::StoredTensor;
use ratplus_graphs::ops::{ElementType, TensorType};
use std::any::Any;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

/// Whether what is for a GPU runs on the CPU, in the emulator: for tests only.
pub(crate) const EMULATED: bool = cfg!(feature = "cuda-emulation");

fn element(dtype: ElementType) -> ONNXTensorElementDataType {
    match dtype {
        ElementType::F32 => ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        ElementType::F16 => ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        ElementType::BF16 => ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        ElementType::I64 => ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        ElementType::U8 => ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        ElementType::I8 => ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        ElementType::I4 => ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4,
    }
}

/// The host's memory, or that of the GPU with this number.
fn place(device: Option<i32>) -> ort::Result<MemoryInfo<'static>> {
    let (device, ordinal) = match device {
        Some(ordinal) if !EMULATED => (AllocationDevice::CUDA, ordinal),
        _ => (AllocationDevice::CPU, 0),
    };
    MemoryInfo::new(device, ordinal, AllocatorType::Device, MemoryType::Default)
}

/// A tensor at byte `offset` of `bytes` bytes at `start`, which have to outlive every use of it. To
/// `ort` it owns its memory: views of another's are copied where they are bound.
fn tensor_over(
    place: &MemoryInfo<'_>,
    (start, bytes): (*mut u8, usize),
    offset: usize,
    tensor: &TensorType,
) -> ort::Result<DynValue> {
    let end = offset.checked_add(tensor.bytes());
    if end.is_none_or(|end| end > bytes) {
        let message = format!("{tensor} at {offset} does not fit in {bytes} bytes");
        return Err(ort::Error::new(message));
    }
    let shape: Vec<_> = tensor.shape.iter().map(|&size| size as i64).collect();
    let mut value = null_mut();
    // SAFETY: the tensor lies in the memory; shape and description are copied.
    ortsys![unsafe CreateTensorWithDataAsOrtValue(
        place.ptr(),
        start.wrapping_add(offset).cast(),
        tensor.bytes(),
        shape.as_ptr(),
        shape.len(),
        element(tensor.dtype),
        &mut value,
    )?];
    let value = NonNull::new(value).ok_or_else(|| ort::Error::new("no value was made"))?;
    // SAFETY: a live tensor of our own; its memory belongs to no allocator.
    Ok(unsafe { DynValue::from_ptr(value, Some(&Allocator::default())) })
}

/// A tensor in buffers that it keeps alive.
pub(crate) struct Value {
    pub(super) value: DynValue,
    pub(super) buffers: Arc<[Buffer]>,
}

impl Value {
    /// A tensor at byte `offset` of buffer `index`.
    pub fn new(
        memory: &Memory,
        index: usize,
        offset: usize,
        tensor: &TensorType,
    ) -> ort::Result<Self> {
        let buffers = memory.shared().clone();
        let bytes = (buffers[index].address(), buffers[index].bytes());
        let value = tensor_over(&place(memory.device())?, bytes, offset, tensor)?;
        Ok(Self { value, buffers })
    }
}

/// Tensors in constant memory that they keep alive.
pub(crate) struct Weights {
    pub(super) tensors: Vec<(String, Arc<DynValue>)>,
    _memory: Box<dyn Any + Send + Sync>,
}

impl Weights {
    /// `tensors` as they lie in a file.
    pub fn of_map(map: &Arc<Mmap>, tensors: &[StoredTensor]) -> ort::Result<Self> {
        // The runtime only reads initializers; the map is read-only and would fault otherwise.
        let bytes = (map.as_ptr().cast_mut(), map.len());
        Self::over(None, bytes, tensors, map.clone())
    }

    /// `tensors` as they lie in memory of GPU number `ordinal`.
    pub fn of_device(
        memory: DeviceMemory,
        ordinal: i32,
        tensors: &[StoredTensor],
    ) -> ort::Result<Self> {
        let start = std::ptr::without_provenance_mut(memory.address() as usize);
        let bytes = (start, memory.bytes());
        Self::over(Some(ordinal), bytes, tensors, memory)
    }

    fn over(
        device: Option<i32>,
        bytes: (*mut u8, usize),
        tensors: &[StoredTensor],
        memory: impl Any + Send + Sync,
    ) -> ort::Result<Self> {
        let place = place(device)?;
        let tensor = |stored: &StoredTensor| {
            let value = tensor_over(&place, bytes, stored.offset as usize, &stored.tensor)?;
            Ok((stored.name.clone(), Arc::new(value)))
        };
        Ok(Self {
            tensors: tensors.iter().map(tensor).collect::<ort::Result<_>>()?,
            _memory: Box::new(memory),
        })
    }
}
