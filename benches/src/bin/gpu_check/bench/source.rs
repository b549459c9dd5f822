//! Random values for tensors of gigabytes, which the host knows element by element.

use super::ELEMENT;
use crate::element::{encode, random};
use crate::failure::Failure;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use ratplus_kernels::cuda::{Device, DevicePtr, Stream};

/// A block of random values that tensors repeat, each from a place of its own.
pub struct Source {
    values: Vec<f32>,
    bytes: Vec<u8>,
}

impl Source {
    /// Values of magnitude up to 2.
    pub fn new(tiny: bool) -> Self {
        // Longer than a few rows of any tensor and no multiple of a row: repeats do not line up
        // with heads or tokens.
        let count = if tiny { 10_007 } else { (1 << 23) - 9 };
        let mut rng = ChaCha8Rng::seed_from_u64(20_260_218);
        let values = random(ELEMENT, &mut rng, count, 2.0);
        let bytes = encode(ELEMENT, &values);
        Self { values, bytes }
    }

    fn start(&self, salt: usize) -> usize {
        salt * 1_299_709 % self.values.len()
    }

    /// Element `index` of the tensor with that salt.
    pub fn value(&self, salt: usize, index: usize) -> f32 {
        self.values[(self.start(salt) + index) % self.values.len()]
    }

    /// Fills a tensor of `bytes` bytes. The stream has done it when this returns.
    pub fn fill(
        &self,
        device: &Device,
        to: DevicePtr,
        bytes: usize,
        salt: usize,
        stream: Stream,
    ) -> Result<(), Failure> {
        let start = self.start(salt) * ELEMENT.size();
        let block = [&self.bytes[start..], &self.bytes[..start]].concat();
        tile(device, to, bytes, &block, stream)
    }
}

/// Fills `bytes` bytes with repeats of a block: one upload, then copies on the device. The stream
/// has done it when this returns.
pub fn tile(
    device: &Device,
    to: DevicePtr,
    bytes: usize,
    block: &[u8],
    stream: Stream,
) -> Result<(), Failure> {
    let mut filled = block.len().min(bytes);
    // SAFETY: the caller allocated the tensor; source and target of a copy do not overlap, and the
    // block lives until the stream is waited for.
    unsafe {
        device.upload_async(to, block.as_ptr(), filled, stream)?;
        while filled < bytes {
            let more = filled.min(bytes - filled);
            device.copy_device_async(to + filled as DevicePtr, to, more, stream)?;
            filled += more;
        }
        device.synchronize_stream(stream)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_differ_and_values_are_random() {
        let source = Source::new(true);
        let rows = |salt| (0..100).map(|i| source.value(salt, i)).collect::<Vec<_>>();
        assert_ne!(rows(1), rows(2));
        let mean: f32 = rows(1).iter().sum::<f32>() / 100.0;
        assert!(mean.abs() < 0.5, "{mean}");
        assert_eq!(source.value(3, 5), source.value(3, 5 + 10_007));
    }
}
