//! Parts of one workspace.

use super::DevicePtr;

/// Alignment of every part.
const ALIGNMENT: usize = 256;

/// Hands out the parts of a workspace that starts at an address; from address 0 on it measures.
pub(super) struct Workspace {
    next: DevicePtr,
}

impl Workspace {
    pub fn at(start: DevicePtr) -> Self {
        Self { next: start }
    }

    /// The next `bytes` bytes.
    pub fn take(&mut self, bytes: usize) -> DevicePtr {
        let part = self.next;
        self.next += bytes.next_multiple_of(ALIGNMENT) as DevicePtr;
        part
    }

    /// Bytes handed out, for one that starts at 0.
    pub fn measured(&self) -> usize {
        self.next as usize
    }
}
