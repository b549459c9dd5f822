//! Memory that Rust and an engine both see.

use super::device::{CudaError, Device, DeviceMemory, OwnedStream, PinnedMemory};
use memmap2::Mmap;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;

/// Alignment of every buffer: a cache line, and the widest vector.
const ALIGNMENT: usize = 64;

/// Maps a whole file for reading.
///
/// The file has to stay as it is while the map lives: another process that truncates it makes
/// reads fault. Packages are replaced by rename, which leaves mapped files alone.
pub(crate) fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only, and the package's contract is that its files are never
    // changed in place.
    unsafe { Mmap::map(file) }
}

/// Plain numbers a buffer can be read as.
pub(crate) trait Plain: Copy {}
impl Plain for f32 {}
impl Plain for i64 {}
impl Plain for u16 {}

/// One zero-filled allocation on the host.
pub(super) struct HostMemory {
    data: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is owned like a `Vec<u8>`.
unsafe impl Send for HostMemory {}
// SAFETY: `&HostMemory` gives no access to the bytes outside this module's `Memory`, which
// follows the borrow rules.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    fn layout(bytes: usize) -> Layout {
        // An empty tensor still has an address of its own.
        let size = bytes.max(1).next_multiple_of(ALIGNMENT);
        Layout::from_size_align(size, ALIGNMENT).unwrap_or(Layout::new::<u8>())
    }

    fn new(bytes: usize) -> Self {
        let layout = Self::layout(bytes);
        // SAFETY: the layout's size is at least 1.
        let data = unsafe { alloc_zeroed(layout) };
        match NonNull::new(data) {
            Some(data) if layout.size() >= bytes => Self { data, bytes },
            _ => handle_alloc_error(layout),
        }
    }

    /// `count` bytes from `offset` on.
    fn bytes(&self, offset: usize, count: usize) -> *mut u8 {
        let end = offset.checked_add(count);
        assert!(
            end.is_some_and(|end| end <= self.bytes),
            "bytes lie in their buffer"
        );
        // SAFETY: in bounds.
        unsafe { self.data.as_ptr().add(offset) }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with the same layout.
        unsafe { dealloc(self.data.as_ptr(), Self::layout(self.bytes)) }
    }
}

/// Who needs to see a buffer of an engine on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visible {
    /// The engine alone.
    ToEngine,
    /// The host as well: it has a copy.
    ToBoth,
    /// The engine writes a part, of so many bytes; the host has all parts.
    InParts(usize),
}

/// One allocation.
pub(super) enum Buffer {
    /// Host and engine see the same memory.
    Host(HostMemory),
    /// The engine's memory, and the host's copy where there is one.
    Device(DeviceMemory, Option<PinnedMemory>),
}

impl Buffer {
    /// What the engine is given.
    pub fn address(&self) -> *mut u8 {
        match self {
            Self::Host(memory) => memory.data.as_ptr(),
            Self::Device(memory, _) => std::ptr::without_provenance_mut(memory.address() as usize),
        }
    }

    pub fn bytes(&self) -> usize {
        match self {
            Self::Host(memory) => memory.bytes,
            Self::Device(memory, _) => memory.bytes(),
        }
    }

    fn bytes_on_host(&self) -> usize {
        match self {
            Self::Device(_, Some(copy)) => copy.bytes(),
            _ => self.bytes(),
        }
    }

    /// The first byte that the host may look at.
    fn on_host(&self) -> *mut u8 {
        match self {
            Self::Host(memory) => memory.data.as_ptr(),
            Self::Device(_, Some(copy)) => copy.as_ptr(),
            Self::Device(_, None) => unreachable!("the host asks for what only the engine sees"),
        }
    }
}

/// A set of buffers that values may be bound to. Engines write to them only inside
/// [`OrtSession::run`](super::OrtSession::run), which borrows the set mutably.
pub(crate) struct Memory {
    buffers: Arc<[Buffer]>,
    /// Number of the GPU that has them, and the stream of all work on them.
    gpu: Option<(i32, Arc<OwnedStream>)>,
}

impl Memory {
    /// Zero-filled buffers of these sizes in bytes.
    pub fn new(sizes: impl IntoIterator<Item = usize>) -> Self {
        let buffer = |bytes| Buffer::Host(HostMemory::new(bytes));
        Self {
            buffers: sizes.into_iter().map(buffer).collect(),
            gpu: None,
        }
    }

    /// Buffers of these sizes in bytes on GPU number `ordinal`, which is `device`; engines run on `stream`.
    pub fn on_device(
        device: &'static Device,
        ordinal: i32,
        stream: &Arc<OwnedStream>,
        sizes: impl IntoIterator<Item = (usize, Visible)>,
    ) -> Result<Self, CudaError> {
        let buffer = |(bytes, visible)| {
            let copy = (visible != Visible::ToEngine).then(|| device.allocate_pinned(bytes));
            let own = match visible {
                Visible::InParts(part) => part,
                _ => bytes,
            };
            Ok(Buffer::Device(device.allocate(own)?, copy.transpose()?))
        };
        let buffers = sizes.into_iter().map(buffer);
        Ok(Self {
            buffers: buffers.collect::<Result<_, CudaError>>()?,
            gpu: Some((ordinal, stream.clone())),
        })
    }

    /// Gives every page of host memory a place of its own: until it is written, a page of zeros is
    /// the system's, which all share and every cache holds.
    pub fn make_resident(&mut self) {
        const PAGE: usize = 4096;
        for buffer in self.buffers.iter() {
            if let Buffer::Host(memory) = buffer {
                for at in (0..memory.bytes).step_by(PAGE) {
                    // SAFETY: in bounds; `&mut self` is the only access to the bytes.
                    unsafe {
                        let byte = memory.data.as_ptr().add(at);
                        byte.write_volatile(byte.read_volatile());
                    }
                }
            }
        }
    }

    pub(super) fn shared(&self) -> &Arc<[Buffer]> {
        &self.buffers
    }

    pub(super) fn device(&self) -> Option<i32> {
        self.gpu.as_ref().map(|&(ordinal, _)| ordinal)
    }

    fn stream(&self) -> &OwnedStream {
        match &self.gpu {
            Some((_, stream)) => stream,
            None => unreachable!("memory of a GPU has its stream"),
        }
    }

    /// Waits for all that is enqueued.
    pub fn wait(&mut self) -> Result<(), CudaError> {
        self.gpu
            .as_ref()
            .map_or(Ok(()), |(_, stream)| stream.synchronize())
    }

    /// Gives the engine's next run what the host has written to a buffer, which it has to leave alone until
    /// [`wait`](Self::wait) is over.
    pub fn upload(&mut self, index: usize) -> Result<(), CudaError> {
        match &self.buffers[index] {
            Buffer::Device(memory, Some(copy)) => {
                // SAFETY: both live as long as the stream's work, and the host waits before it writes again.
                unsafe { memory.upload_in(self.stream(), 0, copy.as_ptr(), copy.bytes()) }
            }
            _ => Ok(()),
        }
    }

    /// Gives the host, from `offset` of its copy on, what the engine has written from `own` of its buffer
    /// on, once [`wait`](Self::wait) is over.
    pub fn download(
        &mut self,
        index: usize,
        own: usize,
        offset: usize,
        count: usize,
    ) -> Result<(), CudaError> {
        let Buffer::Device(memory, Some(copy)) = &self.buffers[index] else {
            return Ok(());
        };
        let end = offset.checked_add(count);
        assert!(
            end.is_some_and(|end| end <= copy.bytes()),
            "bytes lie in the copy"
        );
        // SAFETY: in bounds; both live as long as the stream's work, and the host waits before it looks.
        unsafe { memory.download_in(self.stream(), own, copy.as_ptr().add(offset), count) }
    }

    /// Copies bytes from `offset` of buffer `index` on, wherever it lies. No run is under way.
    pub fn read(&self, index: usize, offset: usize, to: &mut [u8]) -> Result<(), CudaError> {
        match &self.buffers[index] {
            Buffer::Device(memory, _) => {
                let stream = self.stream();
                // SAFETY: `to` is borrowed until the wait is over.
                unsafe { memory.download_in(stream, offset, to.as_mut_ptr(), to.len())? };
                stream.synchronize()
            }
            Buffer::Host(memory) => {
                let from = memory.bytes(offset, to.len());
                // SAFETY: in bounds, initialized; writes need `&mut self`, and `to` is elsewhere.
                unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
                Ok(())
            }
        }
    }

    /// Copies bytes to `offset` of buffer `index`, wherever it lies. No run is under way.
    pub fn write(&mut self, index: usize, offset: usize, from: &[u8]) -> Result<(), CudaError> {
        match &self.buffers[index] {
            Buffer::Device(memory, _) => {
                let stream = self.stream();
                // SAFETY: `from` is borrowed until the wait is over.
                unsafe { memory.upload_in(stream, offset, from.as_ptr(), from.len())? };
                stream.synchronize()
            }
            Buffer::Host(memory) => {
                let to = memory.bytes(offset, from.len());
                // SAFETY: in bounds; `&mut self` is the only access to the bytes, and `from` is
                // elsewhere.
                unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
                Ok(())
            }
        }
    }

    /// Copies `count` bytes between places (buffer, offset) in two buffers of one kind. No run is under
    /// way.
    pub fn copy(
        &mut self,
        from: (usize, usize),
        to: (usize, usize),
        count: usize,
    ) -> Result<(), CudaError> {
        match (&self.buffers[from.0], &self.buffers[to.0]) {
            (Buffer::Device(source, _), Buffer::Device(target, _)) => {
                // SAFETY: two allocations, which live as long as the stream's work.
                unsafe { target.copy_in(self.stream(), to.1, source, from.1, count) }
            }
            (Buffer::Host(source), Buffer::Host(target)) => {
                let (source, target) = (source.bytes(from.1, count), target.bytes(to.1, count));
                // SAFETY: in bounds; `&mut self` is the only access to the bytes, which may overlap.
                unsafe { std::ptr::copy(source, target, count) };
                Ok(())
            }
            _ => unreachable!("buffers of one set of states are of one kind"),
        }
    }

    /// `count` numbers from byte `offset` of buffer `index` on.
    fn numbers<T: Plain>(&self, index: usize, offset: usize, count: usize) -> *mut T {
        let buffer = &self.buffers[index];
        let end = count
            .checked_mul(size_of::<T>())
            .and_then(|bytes| bytes.checked_add(offset));
        assert!(
            end.is_some_and(|end| end <= buffer.bytes_on_host())
                && offset.is_multiple_of(ALIGNMENT),
            "numbers lie in their buffer, aligned"
        );
        // SAFETY: in bounds.
        unsafe { buffer.on_host().add(offset) }.cast()
    }

    /// `count` numbers from byte `offset` of buffer `index` on, as the host has them.
    pub fn slice<T: Plain>(&self, index: usize, offset: usize, count: usize) -> &[T] {
        let start = self.numbers(index, offset, count);
        // SAFETY: in bounds, aligned, initialized (zeros, or numbers), any bits are a `Plain`;
        // writes need `&mut self`.
        unsafe { std::slice::from_raw_parts(start, count) }
    }

    /// The same, to write.
    pub fn slice_mut<T: Plain>(&mut self, index: usize, offset: usize, count: usize) -> &mut [T] {
        let start = self.numbers(index, offset, count);
        // SAFETY: in bounds, aligned, initialized, any bits are a `Plain`; `&mut self` is the only access
        // to the bytes, because values that share the allocation use them only while a run borrows
        // `self` mutably.
        unsafe { std::slice::from_raw_parts_mut(start, count) }
    }
}
