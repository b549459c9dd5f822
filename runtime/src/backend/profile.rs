//! Profiles that ONNX Runtime writes.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What ran, in order.
pub(super) struct Profile(Vec<Event>);

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    cat: String,
    #[serde(default)]
    name: String,
    /// Microseconds.
    #[serde(default)]
    dur: u64,
    #[serde(default)]
    args: Arguments,
}

#[derive(Default, Deserialize)]
pub(super) struct Arguments {
    #[serde(default)]
    pub op_name: String,
    #[serde(default)]
    pub provider: String,
}

/// One run of a node.
pub(super) struct NodeRun<'a> {
    pub node: &'a str,
    pub args: &'a Arguments,
    micros: u64,
}

/// What the nodes of one operator took in an engine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OperatorTime {
    /// Name of the operator.
    pub op_type: String,
    /// Its nodes.
    pub nodes: usize,
    /// Milliseconds of a run of the engine, all its nodes together.
    pub ms: f64,
    /// Of what all nodes took.
    pub share: f64,
}

impl Profile {
    pub fn read(profile: &[u8]) -> Result<Self, String> {
        let events = serde_json::from_slice(profile);
        events.map(Self).map_err(|error| error.to_string())
    }

    pub fn runs(&self) -> impl Iterator<Item = NodeRun<'_>> {
        let nodes = self.0.iter().filter(|event| event.cat == "Node");
        nodes.filter_map(|event| {
            Some(NodeRun {
                node: event.name.strip_suffix("_kernel_time")?,
                args: &event.args,
                micros: event.dur,
            })
        })
    }

    /// What each operator took, the most first. The first `skipped` runs of every node do not
    /// count.
    pub fn operators(&self, skipped: usize) -> Vec<OperatorTime> {
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        let mut found: BTreeMap<&str, (BTreeSet<&str>, u64)> = BTreeMap::new();
        for run in self.runs() {
            let times = seen.entry(run.node).or_default();
            *times += 1;
            if *times > skipped {
                let (nodes, micros) = found.entry(&run.args.op_name).or_default();
                nodes.insert(run.node);
                *micros += run.micros;
            }
        }
        let runs = seen
            .values()
            .max()
            .map_or(1, |&most| most - skipped.min(most - 1));
        let total: u64 = found.values().map(|(_, micros)| micros).sum();
        let mut operators: Vec<_> = found
            .into_iter()
            .map(|(op_type, (nodes, micros))| OperatorTime {
                op_type: op_type.into(),
                nodes: nodes.len(),
                ms: micros as f64 / 1e3 / runs as f64,
                share: micros as f64 / total.max(1) as f64,
            })
            .collect();
        operators.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        operators
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_add_up_without_the_first_runs() {
        let event = |name: &str, op: &str, dur: u64| {
            serde_json::json!({"cat": "Node", "name": format!("{name}_kernel_time"), "dur": dur,
                "args": {"op_name": op, "provider": "CPU"}})
        };
        let events = [
            event("a", "MatMul", 9000),
            event("b", "MatMul", 9000),
            event("c", "Scan", 9000),
            serde_json::json!({"cat": "Session", "name": "a_kernel_time", "dur": 5}),
            event("a", "MatMul", 100),
            event("b", "MatMul", 200),
            event("c", "Scan", 100),
            event("a", "MatMul", 300),
            event("b", "MatMul", 200),
            event("c", "Scan", 100),
        ];
        let profile = Profile::read(&serde_json::to_vec(&events).unwrap()).unwrap();
        let found = profile.operators(1);
        let names: Vec<_> = found
            .iter()
            .map(|op| (op.op_type.as_str(), op.nodes))
            .collect();
        assert_eq!(names, [("MatMul", 2), ("Scan", 1)]);
        assert!((found[0].ms - 0.4).abs() < 1e-9 && (found[0].share - 0.8).abs() < 1e-9);
        assert!((found[1].ms - 0.1).abs() < 1e-9 && (found[1].share - 0.2).abs() < 1e-9);
        assert!(Profile::read(b"{").is_err());
    }
}
