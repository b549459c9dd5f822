//! `gpu_check info`.

use crate::failure::Failure;
use ratplus_graphs::cache::CacheLayout;
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::pattern::Pattern;
use ratplus_kernels::cuda::{
    AttentionMethod, AttentionPlan, AttentionShape, Device, ScanPlan, ScanShape, toolkit,
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
        (8, AttentionMethod::Hopper),
        (8, AttentionMethod::Any),
    ] {
        let shape = AttentionShape {
            element: ElementType::BF16,
            batch: 1,
            seq_len,
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
    Ok(())
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
