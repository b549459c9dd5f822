//! The kernels' parameter structs, field by field those of `kernels/cuda/params.h`, where they are
//! described. A test compares sizes and offsets.

use super::{DevicePtr, KernelParams};

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Lengths {
    pub past_length: DevicePtr,
    pub seq_length: DevicePtr,
    pub error: DevicePtr,
    pub node: u32,
    pub seq_len: i32,
    pub max_seq_len: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ScanParams {
    pub lengths: Lengths,
    pub key: DevicePtr,
    pub value: DevicePtr,
    pub gate: DevicePtr,
    pub state_key: DevicePtr,
    pub state_value: DevicePtr,
    pub gated_key: DevicePtr,
    pub gated_value: DevicePtr,
    pub new_state_key: DevicePtr,
    pub new_state_value: DevicePtr,
    pub summary: DevicePtr,
    pub carry: DevicePtr,
    pub flags: DevicePtr,
    pub batch: i32,
    pub channels: i32,
    pub tiles: i32,
    pub groups: i32,
}

// SAFETY: the twin of `ratplus::ScanParams`.
unsafe impl KernelParams for ScanParams {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadPattern {
    pub dilation: i32,
    pub window: i32,
    pub initial: i32,
    pub row_offset: i32,
}

/// Heads of one launch.
pub const MAX_LAUNCH_HEADS: usize = 64;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AttentionParams {
    pub lengths: Lengths,
    pub query: DevicePtr,
    pub key: DevicePtr,
    pub value: DevicePtr,
    pub cache_key: DevicePtr,
    pub cache_value: DevicePtr,
    pub cos: DevicePtr,
    pub sin: DevicePtr,
    pub output: DevicePtr,
    pub rotated: DevicePtr,
    pub partial: DevicePtr,
    pub arrived: DevicePtr,
    pub rows: i64,
    pub scale: f32,
    pub batch: i32,
    pub num_heads: i32,
    pub head_dim: i32,
    pub first_head: i32,
    pub launch_heads: i32,
    pub splits: i32,
    pub reserved: i32,
    pub heads: [HeadPattern; MAX_LAUNCH_HEADS],
}

// SAFETY: the twin of `ratplus::AttentionParams`.
unsafe impl KernelParams for AttentionParams {}
