//! Errors that kernels find on a GPU while they run, told with the names of their nodes.

use super::{Device, DeviceError};
use ratplus_graphs::ops::{Axis, Op};
use std::collections::VecDeque;
use std::ffi::c_char;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Nodes by the numbers that kernels know them by, and the devices they run on.
struct Registry {
    devices: Vec<&'static Device>,
    nodes: Vec<(Op, String)>,
    /// Numbers of nodes that are gone, the longest gone first: an error may come after its node.
    free: VecDeque<u32>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    devices: Vec::new(),
    nodes: Vec::new(),
    free: VecDeque::new(),
});

/// Nodes that are gone and still have their names.
const KEPT: usize = 256;

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number that is one node's until dropped.
#[derive(Debug, PartialEq, Eq)]
pub struct NodeNumber(u32);

impl NodeNumber {
    /// The number.
    pub fn get(&self) -> u32 {
        self.0
    }
}

impl Drop for NodeNumber {
    fn drop(&mut self) {
        registry().free.push_back(self.0);
    }
}

/// A number for a node on `device`, where [`take_device_error`] looks from now on.
pub fn register_node(device: &'static Device, op: Op, name: String) -> NodeNumber {
    let mut registry = registry();
    if !registry
        .devices
        .iter()
        .any(|known| std::ptr::eq(*known, device))
    {
        registry.devices.push(device);
    }
    registry.number(op, name)
}

impl Registry {
    fn number(&mut self, op: Op, name: String) -> NodeNumber {
        if self.free.len() > KEPT
            && let Some(number) = self.free.pop_front()
        {
            self.nodes[number as usize] = (op, name);
            return NodeNumber(number);
        }
        self.nodes.push((op, name));
        NodeNumber(self.nodes.len() as u32 - 1)
    }

    fn describe(&self, error: DeviceError) -> String {
        let DeviceError { node, slot } = error;
        let (name, bound) = match self.nodes.get(node as usize) {
            Some((op, name)) if op.schema().has(Axis::MaxSeqLen) => {
                (name.clone(), " with their sum at most max_seq_len")
            }
            Some((_, name)) => (name.clone(), ""),
            None => (format!("node {node}"), ""),
        };
        format!(
            "{name}: slot {slot}: past_length and seq_length do not fit: seq_length must be 0 to \
             the chunk's length, and past_length 0 or more{bound}; the slot counted as idle, and \
             its state and cache stayed as they were"
        )
    }
}

/// What happened, with the name that the node was [registered](register_node) by.
pub fn describe_device_error(error: DeviceError) -> String {
    registry().describe(error)
}

/// An error that a kernel has left on any device with a [registered](register_node) node, once.
/// Loads nothing.
pub fn take_device_error() -> Option<String> {
    let registry = registry();
    let mut flags = registry.devices.iter().map(|device| device.error_flag());
    let error = flags.find_map(|flag| flag.take())?;
    Some(registry.describe(error))
}

/// [`take_device_error`] for callers in C: 0 where there is none, otherwise the length of the
/// message in bytes, of which as much is written as `capacity` has room for, ended by a null byte.
///
/// # Safety
/// `text` points to `capacity` writable bytes; it may be null where `capacity` is 0, which loses
/// the message.
pub unsafe fn take_device_error_into(text: *mut c_char, capacity: usize) -> usize {
    let Some(message) = take_device_error() else {
        return 0;
    };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_keeps_its_name_for_a_while_after_its_node() {
        let mut registry = Registry {
            devices: Vec::new(),
            nodes: Vec::new(),
            free: VecDeque::new(),
        };
        let first = registry.number(Op::RecurrenceScan, "node \"a\"".into());
        let second = registry.number(Op::DilatedAttention, "node \"b\"".into());
        assert_eq!((first.get(), second.get()), (0, 1));
        let told = |registry: &Registry, node| registry.describe(DeviceError { node, slot: 3 });
        assert!(told(&registry, 0).starts_with("node \"a\": slot 3: past_length"));
        assert!(!told(&registry, 0).contains("max_seq_len"));
        assert!(told(&registry, 1).contains("max_seq_len"));
        assert!(told(&registry, 7).starts_with("node 7: slot 3"));
        // Not dropped: the numbers belong to this registry.
        registry.free.push_back(first.get());
        std::mem::forget((first, second));
        std::mem::forget(registry.number(Op::RecurrenceScan, "node \"c\"".into()));
        assert!(told(&registry, 0).starts_with("node \"a\""));
        registry.free.extend(std::iter::repeat_n(2, KEPT));
        let reused = registry.number(Op::RecurrenceScan, "node \"d\"".into());
        assert_eq!(reused.get(), 0);
        assert!(told(&registry, 0).starts_with("node \"d\""));
        std::mem::forget(reused);
    }

    #[test]
    fn without_a_device_there_is_no_error() {
        assert_eq!(take_device_error(), None);
    }
}
