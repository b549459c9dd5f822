//! Messages for callers in C.

use std::ffi::c_char;

/// Returns the length of `message` in bytes, 0 where there is none, and writes as much of it as
/// `capacity` has room for, ended by a null byte.
///
/// # Safety
/// `text` points to `capacity` writable bytes; it may be null where `capacity` is 0, which loses
/// the message.
pub unsafe fn write_message(message: Option<&str>, text: *mut c_char, capacity: usize) -> usize {
    let Some(message) = message else { return 0 };
    if let Some(room) = capacity.checked_sub(1) {
        let written = message.floor_char_boundary(room);
        // SAFETY: the caller's contract; at most `capacity` bytes are written.
        unsafe {
            text.cast::<u8>()
                .copy_from_nonoverlapping(message.as_ptr(), written);
            text.add(written).write(0);
        }
    }
    message.len()
}
