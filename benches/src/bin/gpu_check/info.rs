//! `gpu_check info`.

use crate::failure::Failure;
use ratplus_graphs::cache::CacheLayout;
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::pattern::Pattern;
use ratplus_kernels::cuda::{
    AttentionMethod, AttentionPlan, AttentionShape, CudaError, Device, ScanPlan, ScanShape,
    launch_blocks, toolkit,
};

/// Prints what this program carries.
pub fn embedded() {
    match toolkit() {
        Some(toolkit) => println!(
            "embedded: code of nvcc {} for {:?}",
            toolkit.version, toolkit.architectures
        ),
        None => println!("embedded: none; NVRTC has to compile"),
    }
}

/// Prints what is here, and loads every unit once.
pub fn run(device: &'static Device) -> Result<(), Failure> {
    println!("{}", line(device)?);
    let scan = ScanShape {
        element: ElementType::BF16,
        batch: 1,
        seq_len: 1,
        channels: 64,
    };
    ScanPlan::new(device, scan)?;
    let layout = CacheLayout::new(&[Pattern::DENSE], 8);
    for (seq_len, method) in [
        (1, AttentionMethod::Decode),
        (8, AttentionMethod::Tiles),
        (8, AttentionMethod::SmallTiles),
        (8, AttentionMethod::Hopper),
        (8, AttentionMethod::SmallHopper),
        (8, AttentionMethod::Any),
    ] {
        let shape = AttentionShape {
            element: ElementType::BF16,
            batch: 1,
            seq_len,
            group: 1,
            head_dim: 64,
            scale: 1.0,
        };
        if let Err(error) = AttentionPlan::with_method(device, shape, &layout, method) {
            println!("{method:?}: not here: {error}");
        }
    }
    for line in device.log() {
        println!("{line}");
    }
    occupancy(device)
}

/// Blocks that a multiprocessor of compute capability 9.0 has to hold, by the kernels' names.
const RESIDENT: [(&str, u32); 7] = [
    ("dilated_attention_decode_bf16_128", 6),
    ("dilated_attention_hopper_bf16_128", 1),
    ("dilated_attention_hopper_short_bf16_128", 2),
    ("dilated_attention_prefill_bf16_128", 1),
    ("dilated_attention_prefill_bf16_64", 2),
    ("dilated_attention_prefill_short_bf16_128", 2),
    ("recurrence_scan_single_pass_bf16", 2),
];

/// Prints what the driver says of blocks; an error where they are fewer than the kernels count on.
fn occupancy(device: &'static Device) -> Result<(), Failure> {
    let mut few = Vec::new();
    for (kernel, expected) in RESIDENT {
        let name = format!("ratplus_{kernel}");
        let blocks = launch_blocks();
        let block = blocks.iter().find(|block| block.kernel == name);
        let block = block.ok_or_else(|| Failure::wrong(format!("{name}: no such kernel")))?;
        let found = match device.resident_blocks(block) {
            Err(CudaError::WrongArchitecture { .. }) => continue,
            found => found?,
        };
        println!("{name}: {found} blocks a multiprocessor");
        if device.limits().compute_capability == (9, 0) && found < expected {
            few.push(format!("{name}: expected {expected} blocks, found {found}"));
        }
    }
    match few.is_empty() {
        true => Ok(()),
        false => Err(Failure::Wrong(few.join("; "))),
    }
}

/// The device in one line.
pub fn line(device: &Device) -> Result<String, Failure> {
    let limits = device.limits();
    let (major, minor) = limits.compute_capability;
    Ok(format!(
        "{}: compute capability {major}.{minor}, {} multiprocessors, {:.1} GB of memory, {} MB of \
         L2; driver for CUDA {}",
        limits.name,
        limits.multiprocessors,
        limits.total_memory as f64 / 1e9,
        limits.l2_bytes >> 20,
        Device::driver_version()?
    ))
}
