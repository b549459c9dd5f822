//! Errors that kernels find on a GPU while they run, told with the names of their nodes.

use super::{Device, DeviceError};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Nodes by the numbers that kernels know them by, and the devices they run on.
struct Registry {
    devices: Vec<&'static Device>,
    nodes: Vec<String>,
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
pub fn register_node(device: &'static Device, name: String) -> NodeNumber {
    let mut registry = registry();
    if !registry
        .devices
        .iter()
        .any(|known| std::ptr::eq(*known, device))
    {
        registry.devices.push(device);
    }
    registry.number(name)
}

impl Registry {
    fn number(&mut self, name: String) -> NodeNumber {
        if self.free.len() > KEPT
            && let Some(number) = self.free.pop_front()
        {
            self.nodes[number as usize] = name;
            return NodeNumber(number);
        }
        self.nodes.push(name);
        NodeNumber(self.nodes.len() as u32 - 1)
    }

    fn describe(&self, error: DeviceError) -> String {
        let DeviceError { node, slot } = error;
        let name = self.nodes.get(node as usize);
        let name = name.map_or_else(|| format!("node {node}"), String::clone);
        format!(
            "{name}: slot {slot}: past_length and seq_length do not fit: seq_length must be 0 to the \
             chunk's length, and past_length 0 or more with their sum at most max_seq_len; the slot \
             counted as idle, and its state and cache stayed as they were"
        )
    }
}

/// An error that a kernel has left on any device with a [registered](register_node) node, once.
/// Loads nothing.
pub fn take_device_error() -> Option<String> {
    let registry = registry();
    let mut flags = registry.devices.iter().map(|device| device.error_flag());
    let error = flags.find_map(|flag| flag.take())?;
    Some(registry.describe(error))
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
        let first = registry.number("node \"a\"".into());
        let second = registry.number("node \"b\"".into());
        assert_eq!((first.get(), second.get()), (0, 1));
        let told = |registry: &Registry, node| registry.describe(DeviceError { node, slot: 3 });
        assert!(told(&registry, 0).starts_with("node \"a\": slot 3: past_length"));
        assert!(told(&registry, 1).starts_with("node \"b\": slot 3"));
        assert!(told(&registry, 7).starts_with("node 7: slot 3"));
        // Not dropped: the numbers belong to this registry.
        registry.free.push_back(first.get());
        std::mem::forget((first, second));
        std::mem::forget(registry.number("node \"c\"".into()));
        assert!(told(&registry, 0).starts_with("node \"a\""));
        registry.free.extend(std::iter::repeat_n(2, KEPT));
        let reused = registry.number("node \"d\"".into());
        assert_eq!(reused.get(), 0);
        assert!(told(&registry, 0).starts_with("node \"d\""));
        std::mem::forget(reused);
    }

    #[test]
    fn without_a_device_there_is_no_error() {
        assert_eq!(take_device_error(), None);
    }
}
