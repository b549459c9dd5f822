//! Memory that Rust and an engine both see.

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

/// One zero-filled allocation.
pub(super) struct Buffer {
    data: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a buffer owns its bytes like a `Vec<u8>`.
unsafe impl Send for Buffer {}
// SAFETY: `&Buffer` gives no access to the bytes outside this module's `Memory`, which follows
// the borrow rules.
unsafe impl Sync for Buffer {}

impl Buffer {
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

    pub(super) fn address(&self) -> *mut u8 {
        self.data.as_ptr()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with the same layout.
        unsafe { dealloc(self.data.as_ptr(), Self::layout(self.bytes)) }
    }
}

/// A set of buffers that values may be bound to. Engines write to them only inside
/// [`OrtSession::run`](super::OrtSession::run), which borrows the set mutably.
pub(crate) struct Memory {
    buffers: Arc<[Buffer]>,
}

impl Memory {
    /// Zero-filled buffers of these sizes in bytes.
    pub fn new(sizes: impl IntoIterator<Item = usize>) -> Self {
        Self {
            buffers: sizes.into_iter().map(Buffer::new).collect(),
        }
    }

    pub(super) fn shared(&self) -> &Arc<[Buffer]> {
        &self.buffers
    }

    /// The first `count` numbers of buffer `index`.
    pub fn slice<T: Plain>(&self, index: usize, count: usize) -> &[T] {
        let buffer = &self.buffers[index];
        assert!(
            count * size_of::<T>() <= buffer.bytes,
            "a buffer is read within its bounds"
        );
        // SAFETY: in bounds, aligned to 64, initialized (zeros, or numbers), any bits are a
        // `Plain`; writes need `&mut self`.
        unsafe { std::slice::from_raw_parts(buffer.address().cast::<T>(), count) }
    }

    /// The first `count` numbers of buffer `index`, to write.
    pub fn slice_mut<T: Plain>(&mut self, index: usize, count: usize) -> &mut [T] {
        let buffer = &self.buffers[index];
        assert!(
            count * size_of::<T>() <= buffer.bytes,
            "a buffer is written within its bounds"
        );
        // SAFETY: as in `slice`; `&mut self` is the only access to the bytes, because values that
        // share the allocation use them only while a run borrows `self` mutably.
        unsafe { std::slice::from_raw_parts_mut(buffer.address().cast::<T>(), count) }
    }
}
