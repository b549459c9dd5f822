//! `DilatedAttention` on a GPU.

mod method;
mod split;

pub use method::{AttentionMethod, AttentionShape};

use super::limits::{check_alignment, fit_i32, grid_axis, kernel_name};
use super::operator::LaunchBlock;
use super::params::{Lengths, twin};
use super::workspace::Workspace;
use super::{CudaError, CudaKernel, CudaPlan, Device, DevicePtr, Function, KernelParams, Stream};
use method::{AttentionBlock, kernel, most_rows};
use ratplus_graphs::cache::{CacheLayout, HeadCache};
use ratplus_graphs::ops::dilated_attention::{Inputs, Outputs};
use ratplus_graphs::ops::{Axis, DilatedAttention, Inferred};
use split::{MAX_SPLITS, decode_splits};

twin! {
    patterns_are_the_kernels:
    #[derive(Default)]
    HeadPattern {
        dilation: i32,
        window: i32,
        initial: i32,
        row_offset: i32,
    }
}

/// Key-value heads of one launch.
const MAX_LAUNCH_HEADS: usize = 64;

twin! {
    params_are_the_kernels:
    AttentionParams {
        lengths: Lengths,
        query: DevicePtr,
        key: DevicePtr,
        value: DevicePtr,
        cache_key: DevicePtr,
        cache_value: DevicePtr,
        cos: DevicePtr,
        sin: DevicePtr,
        output: DevicePtr,
        rotated: DevicePtr,
        partial: DevicePtr,
        arrived: DevicePtr,
        rows: i64,
        scale: f32,
        batch: i32,
        num_heads: i32,
        head_dim: i32,
        first_head: i32,
        launch_heads: i32,
        splits: i32,
        group: i32,
        heads: [HeadPattern; MAX_LAUNCH_HEADS],
    }
}

// SAFETY: the twin of `ratplus::AttentionParams`, tested.
unsafe impl KernelParams for AttentionParams {}

const UPDATE_THREADS: u32 = 128;
/// Rows that a block of the update kernels has.
const UPDATE_ROWS: usize = 16;
/// Query heads of a key-value head that are counted.
const MAX_GROUP: usize = 255;
/// Positions are counted in 32 bits, with room for sums.
const MAX_POSITIONS: usize = 1 << 30;

/// An attention of one shape on one device.
#[derive(Debug)]
pub struct AttentionPlan {
    device: &'static Device,
    shape: AttentionShape,
    method: AttentionMethod,
    block: AttentionBlock,
    kernels: Kernels,
    /// Bytes of one side of the cache.
    cache_bytes: usize,
    /// Heads that are launched together; one after the other on the stream.
    slices: Vec<Slice>,
}

#[derive(Debug)]
struct Kernels {
    main: Function,
    /// Not for [`AttentionMethod::Decode`].
    update: Option<[Function; 2]>,
}

/// Consecutive key-value heads, and everything of their launches but the addresses.
#[derive(Debug)]
struct Slice {
    params: AttentionParams,
    /// Blocks along x of the kernels that keep rows before, and ring rows after the attention.
    keep_blocks: u32,
    ring_blocks: u32,
}

impl AttentionPlan {
    /// A plan with the [method of choice](AttentionShape::method). Loads the kernels: not allowed
    /// while a stream is captured.
    ///
    /// # Errors
    /// No kernels for this device, or a size that the kernels do not take.
    pub fn new(
        device: &'static Device,
        shape: AttentionShape,
        layout: &CacheLayout,
    ) -> Result<Self, CudaError> {
        Self::with_method(device, shape, layout, shape.method(layout))
    }

    /// A plan with another method, for comparisons.
    ///
    /// # Errors
    /// As [`new`](Self::new), and a method that does not take the shape.
    pub fn with_method(
        device: &'static Device,
        shape: AttentionShape,
        layout: &CacheLayout,
        method: AttentionMethod,
    ) -> Result<Self, CudaError> {
        let unsupported = |what: &str, expected: &str, found: String| CudaError::Unsupported {
            what: what.into(),
            expected: expected.into(),
            found,
        };
        let fits = match method {
            AttentionMethod::Any => true,
            AttentionMethod::Decode => shape.method(layout) == method,
            // A unit that the device cannot run says so itself.
            _ => shape.has_tiles(),
        };
        if !fits {
            let found = format!("{method:?} for {shape:?}");
            return Err(unsupported("method", "one that takes the shape", found));
        }
        let AttentionShape {
            element,
            batch,
            seq_len,
            head_dim,
            ..
        } = shape;
        if head_dim > 512 || !head_dim.is_multiple_of(2) {
            let found = head_dim.to_string();
            return Err(unsupported("head_dim", "an even number up to 512", found));
        }
        if shape.group > MAX_GROUP {
            let found = shape.group.to_string();
            let expected = format!("at most {MAX_GROUP}");
            return Err(unsupported(
                "query heads a key-value head",
                &expected,
                found,
            ));
        }
        if layout.max_seq_len() > MAX_POSITIONS {
            let found = layout.max_seq_len().to_string();
            return Err(unsupported("max_seq_len", "at most 2^30", found));
        }
        let name = kernel(method, element, head_dim);
        let update = match method {
            AttentionMethod::Decode => None,
            _ => Some([
                device.function(kernel_name!(element, "dilated_attention_update_keep_"))?,
                device.function(kernel_name!(element, "dilated_attention_update_ring_"))?,
            ]),
        };
        grid_axis("batch", batch)?;
        fit_i32("rows of the cache", layout.rows())?;
        let lengths = Lengths {
            error: device.error_flag().device_address(),
            seq_len: fit_i32("seq_len", seq_len)?,
            max_seq_len: layout.max_seq_len() as i64,
            ..Lengths::default()
        };
        let multiprocessors = device.limits().multiprocessors as usize;
        let splits = match method {
            AttentionMethod::Decode => {
                let heads = batch * shape.group * layout.heads().len();
                decode_splits(multiprocessors, heads, most_rows(layout))
            }
            _ => 1,
        };
        let kv_heads = layout.heads().len();
        let num_heads = fit_i32("num_heads", shape.group * kv_heads)?;
        let launched = shape.group * kv_heads.min(MAX_LAUNCH_HEADS);
        grid_axis("query heads of a launch", launched)?;
        let slices = layout.heads().chunks(MAX_LAUNCH_HEADS).enumerate();
        let slices = slices.map(|(index, heads)| Slice {
            params: AttentionParams {
                lengths,
                query: 0,
                key: 0,
                value: 0,
                cache_key: 0,
                cache_value: 0,
                cos: 0,
                sin: 0,
                output: 0,
                rotated: 0,
                partial: 0,
                arrived: 0,
                rows: layout.rows() as i64,
                // With a scale of 0 every visible key has the same weight, as with one so small
                // that no product of it is more than rounding.
                scale: if shape.scale == 0.0 {
                    f32::MIN_POSITIVE
                } else {
                    shape.scale
                },
                batch: batch as i32,
                num_heads,
                head_dim: head_dim as i32,
                first_head: (index * MAX_LAUNCH_HEADS) as i32,
                launch_heads: heads.len() as i32,
                splits: splits as i32,
                group: shape.group as i32,
                heads: head_patterns(heads),
            },
            keep_blocks: blocks(heads, |head| kept_tokens(head, seq_len)),
            ring_blocks: blocks(heads, |head| {
                seq_len.min(head.pattern.local_window as usize)
            }),
        });
        Ok(Self {
            device,
            shape,
            method,
            block: AttentionBlock::new(method, head_dim),
            kernels: Kernels {
                main: device.function(name)?,
                update,
            },
            cache_bytes: batch * layout.rows() * head_dim * element.size(),
            slices: slices.collect(),
        })
    }

    /// How it is computed.
    pub fn method(&self) -> AttentionMethod {
        self.method
    }

    /// Blocks that share the rows of one head; 1 but for decoding.
    pub fn splits(&self) -> usize {
        self.slices
            .first()
            .map_or(1, |slice| slice.params.splits as usize)
    }

    /// Parts of the workspace of a slice: rotated keys, partial results, arrivals.
    fn carve(&self, slice: &Slice, start: DevicePtr) -> ([DevicePtr; 3], Workspace) {
        let mut workspace = Workspace::at(start);
        let AttentionShape {
            element,
            batch,
            seq_len,
            head_dim,
            ..
        } = self.shape;
        let heads = batch * slice.params.launch_heads as usize;
        let query_heads = heads * self.shape.group;
        let splits = slice.params.splits as usize;
        let rotated = match slice.ring_blocks {
            0 => 0,
            _ if self.method == AttentionMethod::Decode => 0,
            _ => workspace.take(heads * seq_len * head_dim * element.size()),
        };
        let partial = match splits {
            1 => 0,
            _ => workspace.take(query_heads * splits * (head_dim + 2) * size_of::<f32>()),
        };
        let counted =
            self.method == AttentionMethod::Decode && (splits > 1 || self.shape.group > 1);
        let arrived = match counted {
            true => workspace.take((query_heads + heads) * size_of::<u64>()),
            false => 0,
        };
        ([rotated, partial, arrived], workspace)
    }

    /// # Safety
    /// The addresses in `params` are valid, as for [`launch`](Self::launch).
    unsafe fn launch_slice(
        &self,
        slice: &Slice,
        params: &AttentionParams,
        stream: Stream,
    ) -> Result<(), CudaError> {
        let AttentionShape { batch, seq_len, .. } = self.shape;
        let kv_heads = params.launch_heads as u32;
        let launch = |kernel: &Function, [x, y]: [u32; 2], block: u32, shared_bytes: usize| {
            let shared_bytes = shared_bytes as u32;
            // SAFETY: the caller's contract; the grid covers the shape.
            unsafe {
                self.device.launch(
                    *kernel,
                    [x, y, batch as u32],
                    block,
                    shared_bytes,
                    params,
                    stream,
                )
            }
        };
        let [keep, ring] = match &self.kernels.update {
            None => [None; 2],
            Some([keep, ring]) => [Some(keep), Some(ring)],
        };
        if let Some(keep) = keep.filter(|_| slice.keep_blocks > 0) {
            launch(keep, [slice.keep_blocks, kv_heads], UPDATE_THREADS, 0)?;
        }
        let AttentionBlock {
            queries,
            threads,
            shared_bytes,
        } = self.block;
        let blocks = match self.method {
            AttentionMethod::Decode => params.splits as u32,
            _ => seq_len.div_ceil(queries) as u32,
        };
        let blocks = [blocks, kv_heads * params.group as u32];
        launch(&self.kernels.main, blocks, threads, shared_bytes)?;
        if let Some(ring) = ring.filter(|_| slice.ring_blocks > 0) {
            launch(ring, [slice.ring_blocks, kv_heads], UPDATE_THREADS, 0)?;
        }
        Ok(())
    }
}

impl CudaPlan for AttentionPlan {
    type Op = DilatedAttention;

    fn workspace_bytes(&self) -> usize {
        let sizes = self
            .slices
            .iter()
            .map(|slice| self.carve(slice, 0).1.measured());
        sizes.max().unwrap_or(0)
    }

    unsafe fn launch(
        &self,
        inputs: &Inputs<DevicePtr>,
        outputs: &Outputs<DevicePtr>,
        workspace: DevicePtr,
        node: u32,
        stream: Stream,
    ) -> Result<(), CudaError> {
        check_alignment(&[
            ("query", inputs.query),
            ("key", inputs.key),
            ("value", inputs.value),
            ("past_key", inputs.past_key),
            ("past_value", inputs.past_value),
            ("cos", inputs.cos),
            ("sin", inputs.sin),
            ("output", outputs.output),
            ("present_key", outputs.present_key),
            ("present_value", outputs.present_value),
        ])?;
        for (past, present) in [
            (inputs.past_key, outputs.present_key),
            (inputs.past_value, outputs.present_value),
        ] {
            if past != present && self.cache_bytes > 0 {
                // SAFETY: the caller's contract: two buffers of the cache's size.
                unsafe {
                    self.device
                        .copy_device_async(present, past, self.cache_bytes, stream)?;
                }
            }
        }
        for slice in &self.slices {
            let ([rotated, partial, arrived], _) = self.carve(slice, workspace);
            let params = AttentionParams {
                lengths: Lengths {
                    past_length: inputs.past_length,
                    seq_length: inputs.seq_length,
                    node,
                    ..slice.params.lengths
                },
                query: inputs.query,
                key: inputs.key,
                value: inputs.value,
                cache_key: outputs.present_key,
                cache_value: outputs.present_value,
                cos: inputs.cos,
                sin: inputs.sin,
                output: outputs.output,
                rotated,
                partial,
                arrived,
                ..slice.params
            };
            // SAFETY: the caller's contract.
            unsafe { self.launch_slice(slice, &params, stream)? };
        }
        Ok(())
    }
}

impl CudaKernel for DilatedAttention {
    type Plan = AttentionPlan;

    fn plan(&self, device: &'static Device, node: &Inferred) -> Result<AttentionPlan, CudaError> {
        let shape = AttentionShape {
            element: node.element,
            batch: node.dims[Axis::Batch],
            seq_len: node.dims[Axis::SeqLen],
            group: self.num_heads / self.num_kv_heads(),
            head_dim: node.dims[Axis::HeadDim],
            scale: self.scale,
        };
        let layout = self.cache_layout(node.dims[Axis::MaxSeqLen]);
        AttentionPlan::new(device, shape, &layout)
    }

    fn launch_blocks() -> Vec<LaunchBlock> {
        method::launch_blocks()
    }
}

fn head_patterns(heads: &[HeadCache]) -> [HeadPattern; MAX_LAUNCH_HEADS] {
    let mut patterns = [HeadPattern::default(); MAX_LAUNCH_HEADS];
    for (to, head) in patterns.iter_mut().zip(heads) {
        // The cache's rows, which are more than each of these, fit.
        *to = HeadPattern {
            dilation: head
                .pattern
                .dilation
                .map_or(0, |dilation| dilation.get() as i32),
            window: head.pattern.local_window as i32,
            initial: head.pattern.initial as i32,
            row_offset: head.offset as i32,
        };
    }
    patterns
}

/// Most tokens of a chunk whose keys are rotated ahead of the attention.
fn kept_tokens(head: &HeadCache, seq_len: usize) -> usize {
    let pattern = head.pattern;
    if pattern.local_window > 0 {
        return seq_len;
    }
    let dilated = pattern
        .dilation
        .map_or(0, |dilation| seq_len.div_ceil(dilation.get() as usize));
    seq_len.min(pattern.initial as usize + dilated)
}

/// Blocks of the update kernels for the head with the most rows.
fn blocks(heads: &[HeadCache], rows: impl Fn(&HeadCache) -> usize) -> u32 {
    let most = heads.iter().map(rows).max().unwrap_or(0);
    most.div_ceil(UPDATE_ROWS) as u32
}

const _: () = assert!(MAX_SPLITS <= 65535, "splits are blocks along x");

#[cfg(test)]
mod tests {
    use super::super::constants::constant;
    use super::split::SHARE_ROWS;
    use super::*;

    #[test]
    fn sizes_are_those_of_the_kernels() {
        let decode = include_str!("../../../cuda/attention_decode.cuh");
        assert_eq!(SHARE_ROWS, constant(decode, "SHARE_ROWS"));
        let rows = include_str!("../../../cuda/rows.cuh");
        let lanes = constant(rows, "ROW_LANES");
        assert_eq!(UPDATE_ROWS * lanes, UPDATE_THREADS as usize);
        let params = include_str!("../../../cuda/dilated_attention.h");
        assert_eq!(MAX_LAUNCH_HEADS, constant(params, "MAX_LAUNCH_HEADS"));
    }
}
