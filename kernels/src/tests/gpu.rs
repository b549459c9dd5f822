//! The CUDA kernels on the emulator, from the same tensors in host memory as the CPU kernels.

use super::Real;
use crate::cuda::{
    AttentionMethod, AttentionPlan, AttentionShape, CudaPlan, Device, DeviceMemory, DevicePtr,
    ScanMethod, ScanPlan, ScanShape, Stream,
};
use crate::{AttentionParams, ScanParams};
use half::{bf16, f16};
use ratplus_cuda_emulator::Order;
use ratplus_graphs::ops::{ElementType, dilated_attention, recurrence_scan};
use std::any::TypeId;
use std::slice;
use std::sync::RwLock;

/// In which order threads and blocks take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Schedule {
    Forward,
    Reverse,
    /// From this seed, with this many blocks at once.
    Random(u64, u32),
}

impl Schedule {
    pub(crate) const ALL: [Self; 3] = [Self::Forward, Self::Reverse, Self::Random(2, 4)];

    pub(crate) fn set(self) {
        let (order, blocks) = match self {
            Self::Forward => (Order::Forward, 1),
            Self::Reverse => (Order::Reverse, 2),
            Self::Random(seed, blocks) => (Order::Random(seed), blocks),
        };
        ratplus_cuda_emulator::load()
            .unwrap()
            .configure(order, blocks);
    }
}

/// The emulated device, current on this thread.
pub(crate) fn device() -> &'static Device {
    ratplus_cuda_emulator::load().unwrap();
    Device::open(0).unwrap()
}

/// Held by a test from the launch that reports an error until it has taken it: the flag is the
/// device's, which all tests share.
pub(crate) static FLAG: RwLock<()> = RwLock::new(());

/// No launch reported an error but those of a test that holds [`FLAG`].
pub(crate) fn assert_no_error(device: &Device) {
    let _others = FLAG.read();
    assert_eq!(device.error_flag().take(), None);
}

pub(crate) fn element<T: Real>() -> ElementType {
    let types = [
        (TypeId::of::<f16>(), ElementType::F16),
        (TypeId::of::<bf16>(), ElementType::BF16),
    ];
    let own = TypeId::of::<T>();
    let found = types.into_iter().find(|(id, _)| *id == own);
    found.map_or(ElementType::F32, |(_, element)| element)
}

/// Tensors of one call on the device.
pub(crate) struct Buffers {
    device: &'static Device,
    held: Vec<DeviceMemory>,
}

impl Buffers {
    pub(crate) fn new(device: &'static Device) -> Self {
        let held = Vec::new();
        Self { device, held }
    }

    pub(crate) fn bytes(&mut self, bytes: usize) -> DevicePtr {
        // No tensor, no memory: kernels must not need the address.
        if bytes == 0 {
            return 0;
        }
        self.held.push(self.device.allocate(bytes).unwrap());
        self.held.last().unwrap().address()
    }

    /// A copy of `count` elements.
    ///
    /// # Safety
    /// `from` is valid for reading them.
    pub(crate) unsafe fn copy<T: Copy>(&mut self, from: *const T, count: usize) -> DevicePtr {
        let address = self.bytes(count * size_of::<T>());
        if address != 0 {
            // SAFETY: the caller's contract; plain data.
            let bytes = unsafe { slice::from_raw_parts(from.cast::<u8>(), count * size_of::<T>()) };
            self.held.last_mut().unwrap().upload(bytes).unwrap();
        }
        address
    }

    /// Overwrites what is at an address of these.
    pub(crate) fn write<T: Copy>(&self, address: DevicePtr, values: &[T]) {
        // SAFETY: plain data.
        let bytes =
            unsafe { slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        self.memory(address).upload(bytes).unwrap();
    }

    fn memory(&self, address: DevicePtr) -> &DeviceMemory {
        let found = self.held.iter().find(|held| held.address() == address);
        found.unwrap()
    }

    /// Copies `count` elements back.
    ///
    /// # Safety
    /// `to` is valid for writing them.
    pub(crate) unsafe fn back<T: Copy>(&self, address: DevicePtr, to: *mut T, count: usize) {
        if count == 0 {
            return;
        }
        // SAFETY: the caller's contract; plain data.
        let bytes = unsafe { slice::from_raw_parts_mut(to.cast::<u8>(), count * size_of::<T>()) };
        self.memory(address).download(bytes).unwrap();
    }
}

/// # Safety
/// As [`crate::dilated_attention`].
pub(crate) unsafe fn attention<T: Real>(
    params: &AttentionParams<T>,
    method: Option<AttentionMethod>,
    schedule: Schedule,
) {
    let device = device();
    schedule.set();
    let shape = AttentionShape {
        element: element::<T>(),
        batch: params.batch,
        seq_len: params.seq_len,
        group: params.num_heads / params.layout.heads().len(),
        head_dim: params.head_dim,
        scale: params.scale,
    };
    let method = method.unwrap_or(shape.method(params.layout));
    let plan = AttentionPlan::with_method(device, shape, params.layout, method).unwrap();
    let tokens = params.batch * params.seq_len * params.head_dim;
    let (queries, chunk) = (
        tokens * params.num_heads,
        tokens * params.layout.heads().len(),
    );
    let cache = params.batch * params.layout.rows() * params.head_dim;
    let table = params.layout.max_seq_len() * params.head_dim / 2;
    let mut buffers = Buffers::new(device);
    // SAFETY: the caller's contract.
    unsafe {
        let past_key = buffers.copy(params.past_key, cache);
        let past_value = buffers.copy(params.past_value, cache);
        let aliased = std::ptr::eq(params.past_key, params.present_key);
        let inputs = dilated_attention::Inputs {
            query: buffers.copy(params.query, queries),
            key: buffers.copy(params.key, chunk),
            value: buffers.copy(params.value, chunk),
            past_key,
            past_value,
            past_length: buffers.copy(params.past_length, params.batch),
            seq_length: buffers.copy(params.seq_length, params.batch),
            cos: buffers.copy(params.cos, table),
            sin: buffers.copy(params.sin, table),
        };
        let outputs = dilated_attention::Outputs {
            output: buffers.copy(params.output, queries),
            present_key: if aliased {
                past_key
            } else {
                buffers.copy(params.present_key, cache)
            },
            present_value: if aliased {
                past_value
            } else {
                buffers.copy(params.present_value, cache)
            },
        };
        let workspace = buffers.bytes(plan.workspace_bytes());
        plan.launch(
            &inputs,
            &outputs,
            workspace,
            7,
            Stream(std::ptr::null_mut()),
        )
        .unwrap();
        buffers.back(outputs.output, params.output, queries);
        buffers.back(outputs.present_key, params.present_key, cache);
        buffers.back(outputs.present_value, params.present_value, cache);
    }
    assert_no_error(device);
}

/// # Safety
/// As [`crate::recurrence_scan`].
pub(crate) unsafe fn scan<T: Real>(
    params: &ScanParams<T>,
    method: Option<ScanMethod>,
    schedule: Schedule,
) {
    let device = device();
    schedule.set();
    let shape = ScanShape {
        element: element::<T>(),
        batch: params.batch,
        seq_len: params.seq_len,
        channels: params.channels,
    };
    let plan = ScanPlan::with_method(device, shape, method.unwrap_or(shape.method())).unwrap();
    let chunk = params.batch * params.seq_len * params.channels;
    let state = params.batch * params.channels;
    let mut buffers = Buffers::new(device);
    // SAFETY: the caller's contract.
    unsafe {
        let state_key = buffers.copy(params.state_key, state);
        let state_value = buffers.copy(params.state_value, state);
        let aliased = std::ptr::eq(params.state_key, params.new_state_key);
        let inputs = recurrence_scan::Inputs {
            key: buffers.copy(params.key, chunk),
            value: buffers.copy(params.value, chunk),
            gate: buffers.copy(params.gate, chunk),
            state_key,
            state_value,
            past_length: buffers.copy(params.past_length, params.batch),
            seq_length: buffers.copy(params.seq_length, params.batch),
        };
        let outputs = recurrence_scan::Outputs {
            gated_key: buffers.copy(params.gated_key, chunk),
            gated_value: buffers.copy(params.gated_value, chunk),
            new_state_key: if aliased {
                state_key
            } else {
                buffers.copy(params.new_state_key, state)
            },
            new_state_value: if aliased {
                state_value
            } else {
                buffers.copy(params.new_state_value, state)
            },
        };
        let workspace = buffers.bytes(plan.workspace_bytes());
        plan.launch(
            &inputs,
            &outputs,
            workspace,
            7,
            Stream(std::ptr::null_mut()),
        )
        .unwrap();
        buffers.back(outputs.gated_key, params.gated_key, chunk);
        buffers.back(outputs.gated_value, params.gated_value, chunk);
        buffers.back(outputs.new_state_key, params.new_state_key, state);
        buffers.back(outputs.new_state_value, params.new_state_value, state);
    }
    assert_no_error(device);
}
