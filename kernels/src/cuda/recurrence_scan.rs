//! `RecurrenceScan` on a GPU.

use super::limits::{check_alignment, fit_i32, grid_axis, kernel_name};
use super::operator::LaunchBlock;
use super::params::{Lengths, twin};
use super::workspace::Workspace;
use super::{CudaError, CudaKernel, CudaPlan, Device, DevicePtr, Function, KernelParams, Stream};
use ratplus_graphs::ops::recurrence_scan::{Inputs, Outputs};
use ratplus_graphs::ops::{Axis, ElementType, Inferred, RecurrenceScan};

twin! {
    params_are_the_kernels:
    #[derive(Default)]
    ScanParams {
        lengths: Lengths,
        key: DevicePtr,
        value: DevicePtr,
        gate: DevicePtr,
        state_key: DevicePtr,
        state_value: DevicePtr,
        gated_key: DevicePtr,
        gated_value: DevicePtr,
        new_state_key: DevicePtr,
        new_state_value: DevicePtr,
        summary: DevicePtr,
        carry: DevicePtr,
        flags: DevicePtr,
        batch: i32,
        channels: i32,
        tiles: i32,
        groups: i32,
    }
}

// SAFETY: the twin of `ratplus::ScanParams`, tested.
unsafe impl KernelParams for ScanParams {}

/// Sizes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanShape {
    /// `T`: f32, f16 or bf16.
    pub element: ElementType,
    /// `B`.
    pub batch: usize,
    /// `L`.
    pub seq_len: usize,
    /// `N`.
    pub channels: usize,
}

/// How a scan is computed; kernels/cuda/recurrence_scan.cu describes the three. Results differ
/// between methods by rounding, and are the same bits for every run of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanMethod {
    /// A thread carries its channels through time.
    Serial,
    /// Reduce tiles, carry through the tiles, replay: inputs are read twice.
    ThreeLaunches,
    /// One launch, inputs are read once.
    SinglePass,
}

/// Tokens up to which a serial scan is chosen: a few round trips to memory, where the tiled ones
/// pay for their launches and waits.
const SERIAL_TOKENS: usize = 64;
/// Tokens of a tile.
const TILE_TOKENS: usize = 128;
/// Tiles of a group.
const GROUP_TILES: usize = 8;
/// Threads that share a tile's channels.
const TILE_CHANNEL_THREADS: usize = 8;
/// Warps of a tile.
const TILE_WARPS: usize = 8;
const TILE_THREADS: u32 = 256;
const SERIAL_THREADS: u32 = 128;

impl ScanShape {
    /// Channels that one thread loads at once: sixteen bytes.
    fn lane_channels(&self) -> usize {
        16 / self.element.size()
    }

    /// Whether rows are made of whole 16-byte lanes, as all kernels but one need.
    fn has_lanes(&self) -> bool {
        self.channels.is_multiple_of(self.lane_channels())
    }

    /// The method of choice.
    pub fn method(&self) -> ScanMethod {
        if self.seq_len <= SERIAL_TOKENS || !self.has_lanes() {
            ScanMethod::Serial
        } else {
            ScanMethod::SinglePass
        }
    }
}

/// A scan of one shape on one device.
#[derive(Debug)]
pub struct ScanPlan {
    device: &'static Device,
    shape: ScanShape,
    kernels: Kernels,
    /// Everything but the addresses.
    params: ScanParams,
    tiling: Tiling,
}

#[derive(Debug)]
enum Kernels {
    Serial(Function),
    ThreeLaunches {
        summary: Function,
        carry: Function,
        replay: Function,
    },
    SinglePass(Function),
}

/// How the tokens and channels of one slot are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tiling {
    tiles: usize,
    groups: usize,
    /// Tiles next to one another across channels.
    blocks: usize,
    shared_bytes: u32,
}

impl Tiling {
    fn new(shape: &ScanShape, method: ScanMethod) -> Self {
        let span = TILE_CHANNEL_THREADS * shape.lane_channels();
        let tiles = shape.seq_len.div_ceil(TILE_TOKENS);
        Self {
            tiles,
            groups: match method {
                ScanMethod::SinglePass => tiles.div_ceil(GROUP_TILES),
                _ => tiles,
            },
            blocks: shape.channels.div_ceil(span),
            shared_bytes: (TILE_WARPS * 3 * span * size_of::<f32>()) as u32,
        }
    }

    /// Words that are zero at the start of a single pass.
    fn flags(&self, batch: usize) -> usize {
        1 + batch * self.blocks * (self.groups + self.tiles)
    }
}

impl ScanPlan {
    /// A plan with the [method of choice](ScanShape::method). Loads the kernels: not allowed while
    /// a stream is captured.
    ///
    /// # Errors
    /// No kernels for this device, or a size that the kernels cannot count.
    pub fn new(device: &'static Device, shape: ScanShape) -> Result<Self, CudaError> {
        Self::with_method(device, shape, shape.method())
    }

    /// A plan with another method, for comparisons.
    ///
    /// # Errors
    /// As [`new`](Self::new), and a tiled method where rows are not whole lanes of 16 bytes.
    pub fn with_method(
        device: &'static Device,
        shape: ScanShape,
        method: ScanMethod,
    ) -> Result<Self, CudaError> {
        if method != ScanMethod::Serial && !shape.has_lanes() {
            return Err(CudaError::Unsupported {
                what: "channels of a tiled scan".into(),
                expected: format!("a multiple of {}", shape.lane_channels()),
                found: shape.channels.to_string(),
            });
        }
        let element = shape.element;
        let tiling = Tiling::new(&shape, method);
        let kernels = match method {
            ScanMethod::Serial if shape.has_lanes() => {
                Kernels::Serial(device.function(kernel_name!(element, "recurrence_scan_serial_"))?)
            }
            ScanMethod::Serial => {
                Kernels::Serial(device.function(kernel_name!(element, "recurrence_scan_any_"))?)
            }
            ScanMethod::ThreeLaunches => Kernels::ThreeLaunches {
                summary: device.function(kernel_name!(element, "recurrence_scan_summary_"))?,
                carry: device.function("ratplus_recurrence_scan_carry")?,
                replay: device.function(kernel_name!(element, "recurrence_scan_replay_"))?,
            },
            ScanMethod::SinglePass => Kernels::SinglePass(
                device.function(kernel_name!(element, "recurrence_scan_single_pass_"))?,
            ),
        };
        grid_axis("batch", shape.batch)?;
        if method == ScanMethod::ThreeLaunches {
            grid_axis("tiles of 128 tokens", tiling.tiles)?;
        }
        fit_i32(
            "blocks of the scan",
            shape.batch * tiling.blocks * tiling.tiles,
        )?;
        fit_i32(
            "lanes of the scan",
            shape.batch.saturating_mul(shape.channels),
        )?;
        let params = ScanParams {
            lengths: Lengths {
                error: device.error_flag().device_address(),
                seq_len: fit_i32("seq_len", shape.seq_len)?,
                max_seq_len: i64::MAX,
                ..Lengths::default()
            },
            batch: fit_i32("batch", shape.batch)?,
            channels: fit_i32("channels", shape.channels)?,
            tiles: fit_i32("tiles", tiling.tiles)?,
            groups: fit_i32("groups", tiling.groups)?,
            ..ScanParams::default()
        };
        Ok(Self {
            device,
            shape,
            kernels,
            params,
            tiling,
        })
    }

    /// How it is computed.
    pub fn method(&self) -> ScanMethod {
        match self.kernels {
            Kernels::Serial(_) => ScanMethod::Serial,
            Kernels::ThreeLaunches { .. } => ScanMethod::ThreeLaunches,
            Kernels::SinglePass(_) => ScanMethod::SinglePass,
        }
    }

    /// Parts of the workspace: summaries, carried states, flags.
    fn carve(&self, start: DevicePtr) -> ([DevicePtr; 3], Workspace) {
        let mut workspace = Workspace::at(start);
        let ScanShape {
            batch, channels, ..
        } = self.shape;
        let Tiling { tiles, groups, .. } = self.tiling;
        let float = size_of::<f32>();
        let parts = match self.kernels {
            Kernels::Serial(_) => [0; 3],
            _ => [
                workspace.take(batch * tiles * 3 * channels * float),
                workspace.take(batch * groups * 2 * channels * float),
                match self.kernels {
                    Kernels::SinglePass(_) => {
                        workspace.take(self.tiling.flags(batch) * size_of::<u32>())
                    }
                    _ => 0,
                },
            ],
        };
        (parts, workspace)
    }
}

impl CudaPlan for ScanPlan {
    type Op = RecurrenceScan;

    fn workspace_bytes(&self) -> usize {
        self.carve(0).1.measured()
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
            ("key", inputs.key),
            ("value", inputs.value),
            ("gate", inputs.gate),
            ("state_key", inputs.state_key),
            ("state_value", inputs.state_value),
            ("gated_key", outputs.gated_key),
            ("gated_value", outputs.gated_value),
            ("new_state_key", outputs.new_state_key),
            ("new_state_value", outputs.new_state_value),
        ])?;
        let ([summary, carry, flags], _) = self.carve(workspace);
        let params = ScanParams {
            lengths: Lengths {
                past_length: inputs.past_length,
                seq_length: inputs.seq_length,
                node,
                ..self.params.lengths
            },
            key: inputs.key,
            value: inputs.value,
            gate: inputs.gate,
            state_key: inputs.state_key,
            state_value: inputs.state_value,
            gated_key: outputs.gated_key,
            gated_value: outputs.gated_value,
            new_state_key: outputs.new_state_key,
            new_state_value: outputs.new_state_value,
            summary,
            carry,
            flags,
            ..self.params
        };
        let ScanShape {
            batch, channels, ..
        } = self.shape;
        let Tiling {
            tiles,
            blocks,
            shared_bytes,
            ..
        } = self.tiling;
        let tiled = [blocks as u32, tiles as u32, batch as u32];
        // SAFETY: the caller's contract; grids cover the shape that the parameters describe.
        unsafe {
            match &self.kernels {
                Kernels::Serial(serial) => {
                    let width = if self.shape.has_lanes() {
                        self.shape.lane_channels()
                    } else {
                        1
                    };
                    let threads = batch * channels / width;
                    let grid = [threads.div_ceil(SERIAL_THREADS as usize) as u32, 1, 1];
                    self.device
                        .launch(*serial, grid, SERIAL_THREADS, 0, &params, stream)
                }
                Kernels::ThreeLaunches {
                    summary,
                    carry,
                    replay,
                } => {
                    let launch = |kernel: &Function, grid, block, shared_bytes| {
                        self.device
                            .launch(*kernel, grid, block, shared_bytes, &params, stream)
                    };
                    let threads = channels.div_ceil(SERIAL_THREADS as usize) as u32;
                    launch(summary, tiled, TILE_THREADS, shared_bytes)?;
                    launch(carry, [threads, batch as u32, 1], SERIAL_THREADS, 0)?;
                    launch(replay, tiled, TILE_THREADS, shared_bytes)
                }
                Kernels::SinglePass(kernel) => {
                    let bytes = self.tiling.flags(batch) * size_of::<u32>();
                    self.device.memset_zero_async(flags, bytes, stream)?;
                    let grid = [(batch * blocks * tiles) as u32, 1, 1];
                    self.device
                        .launch(*kernel, grid, TILE_THREADS, shared_bytes, &params, stream)
                }
            }
        }
    }
}

impl CudaKernel for RecurrenceScan {
    type Plan = ScanPlan;

    fn plan(&self, device: &'static Device, node: &Inferred) -> Result<ScanPlan, CudaError> {
        let shape = ScanShape {
            element: node.element,
            batch: node.dims[Axis::Batch],
            seq_len: node.dims[Axis::SeqLen],
            channels: node.dims[Axis::Channels],
        };
        let mut plan = ScanPlan::new(device, shape)?;
        if let Some(tokens) = node.dims.get(Axis::MaxSeqLen) {
            plan.params.lengths.max_seq_len = fit_i32("max_seq_len", tokens)?.into();
        }
        Ok(plan)
    }

    /// Of the tiled kernels.
    fn launch_blocks() -> Vec<LaunchBlock> {
        let elements = ElementType::ACTIVATIONS.into_iter();
        let blocks = elements.flat_map(|element| {
            let shape = ScanShape {
                element,
                batch: 1,
                seq_len: 1,
                channels: 1,
            };
            let shared_bytes = Tiling::new(&shape, ScanMethod::SinglePass).shared_bytes as usize;
            [
                kernel_name!(element, "recurrence_scan_summary_"),
                kernel_name!(element, "recurrence_scan_replay_"),
                kernel_name!(element, "recurrence_scan_single_pass_"),
            ]
            .map(|kernel| LaunchBlock {
                kernel,
                threads: TILE_THREADS,
                shared_bytes,
            })
        });
        blocks.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::constants::constant;
    use super::*;

    #[test]
    fn methods_follow_the_shape() {
        let shape = |element, seq_len, channels| ScanShape {
            element,
            batch: 2,
            seq_len,
            channels,
        };
        let bf16 = ElementType::BF16;
        assert_eq!(shape(bf16, 1, 2048).method(), ScanMethod::Serial);
        assert_eq!(shape(bf16, 64, 2048).method(), ScanMethod::Serial);
        assert_eq!(shape(bf16, 65, 2048).method(), ScanMethod::SinglePass);
        assert_eq!(shape(bf16, 4096, 2044).method(), ScanMethod::Serial);
        assert_eq!(
            shape(ElementType::F32, 4096, 2044).method(),
            ScanMethod::SinglePass
        );
    }

    #[test]
    fn tiles_cover_the_shape() {
        let shape = ScanShape {
            element: ElementType::BF16,
            batch: 3,
            seq_len: 1025,
            channels: 72,
        };
        let tiling = Tiling::new(&shape, ScanMethod::SinglePass);
        assert_eq!((tiling.tiles, tiling.groups, tiling.blocks), (9, 2, 2));
        assert_eq!(tiling.flags(3), 1 + 3 * 2 * (2 + 9));
        assert_eq!(Tiling::new(&shape, ScanMethod::ThreeLaunches).groups, 9);
    }

    #[test]
    fn sizes_are_those_of_the_kernels() {
        let scan = include_str!("../../cuda/recurrence_scan.cu");
        assert_eq!(GROUP_TILES, constant(scan, "GROUP_TILES"));
        let tile = |name| constant(include_str!("../../cuda/scan_tile.cuh"), name);
        assert_eq!(TILE_CHANNEL_THREADS, tile("CHANNEL_THREADS"));
        let threads = tile("TIME_THREADS") * TILE_CHANNEL_THREADS;
        assert_eq!(TILE_THREADS as usize, threads);
        assert_eq!(TILE_WARPS, threads / 32);
        let tokens = tile("THREAD_TOKENS") * tile("TIME_THREADS");
        assert_eq!(TILE_TOKENS, tokens);
    }
}
