//! Tensors on the device.

use crate::failure::Failure;
use ratplus_kernels::cuda::{Device, DeviceMemory, DevicePtr};

/// Every byte of what nothing has written: NaN in every element type.
pub const POISON: u8 = 0xff;

/// Memory of one call or layer, by address.
pub struct Buffers {
    device: &'static Device,
    held: Vec<DeviceMemory>,
}

impl Buffers {
    /// None yet.
    pub fn new(device: &'static Device) -> Self {
        let held = Vec::new();
        Self { device, held }
    }

    /// Memory whose content does not matter. No bytes have no address: kernels must not need it.
    pub fn unwritten(&mut self, bytes: usize) -> Result<DevicePtr, Failure> {
        if bytes == 0 {
            return Ok(0);
        }
        let memory = self.device.allocate(bytes)?;
        let address = memory.address();
        self.held.push(memory);
        Ok(address)
    }

    /// NaN.
    pub fn poisoned(&mut self, bytes: usize) -> Result<DevicePtr, Failure> {
        self.upload(&vec![POISON; bytes])
    }

    /// A copy.
    pub fn upload(&mut self, bytes: &[u8]) -> Result<DevicePtr, Failure> {
        let address = self.unwritten(bytes.len())?;
        self.write(address, bytes)?;
        Ok(address)
    }

    /// A copy of i64s.
    pub fn upload_i64(&mut self, values: &[i64]) -> Result<DevicePtr, Failure> {
        self.upload(&i64_bytes(values))
    }

    /// Overwrites what is at an address of these. Every stream sees it afterwards.
    pub fn write(&self, address: DevicePtr, bytes: &[u8]) -> Result<(), Failure> {
        if !bytes.is_empty() {
            self.memory(address)?.upload(bytes)?;
            // The copy from pageable memory may return before the device has it all.
            self.device.synchronize()?;
        }
        Ok(())
    }

    /// What is at an address of these; all work is done first.
    pub fn read(&self, address: DevicePtr, bytes: usize) -> Result<Vec<u8>, Failure> {
        let mut to = vec![0; bytes];
        if bytes > 0 {
            self.device.synchronize()?;
            self.memory(address)?.download(&mut to)?;
        }
        Ok(to)
    }

    fn memory(&self, address: DevicePtr) -> Result<&DeviceMemory, Failure> {
        let found = self.held.iter().find(|held| held.address() == address);
        found.ok_or_else(|| Failure::wrong(format!("no buffer at {address:#x}")))
    }
}

/// As the device has them.
pub fn i64_bytes(values: &[i64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect()
}
