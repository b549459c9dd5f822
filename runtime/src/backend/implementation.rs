//! Which code ran each custom node, as seen in a profile of a real run.

use super::ort::cuda;
use super::profile::{Arguments, Profile};
use super::{BackendError, BackendKind};
use ratplus_graphs::manifest::Engine;
use ratplus_graphs::onnx::ModelProto;
use ratplus_graphs::ops::DOMAIN;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What ran a custom node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Implementation {
    /// A kernel of the RAT+ operator library, on this execution provider.
    Kernel {
        /// Such as `CPUExecutionProvider`.
        provider: String,
    },
    /// A plugin of the RAT+ plugin library.
    Plugin,
    /// The model-local function of standard operators.
    FunctionBody,
    /// The plain loops that the reference registers with tract.
    Reference,
}

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel { provider } => write!(f, "kernel ({provider})"),
            Self::Plugin => f.write_str("plugin"),
            Self::FunctionBody => f.write_str("function body"),
            Self::Reference => f.write_str("reference"),
        }
    }
}

/// One custom node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeImplementation {
    /// Name of the node.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// What ran it.
    pub implementation: Implementation,
}

/// Every custom node of one engine; none in an `inline` package, which is standard operators only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineImplementations {
    /// The engine's file.
    pub file: String,
    /// Its static length.
    pub seq_len: usize,
    /// In graph order.
    pub nodes: Vec<NodeImplementation>,
}

impl fmt::Display for EngineImplementations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file)?;
        if self.nodes.is_empty() {
            return f.write_str("standard operators only");
        }
        // One line per engine: operator and implementation, with how many nodes.
        let mut groups: Vec<(&str, &Implementation, usize)> = Vec::new();
        for node in &self.nodes {
            let same = |group: &&mut (&str, &Implementation, usize)| {
                group.0 == node.op_type && *group.1 == node.implementation
            };
            match groups.iter_mut().find(same) {
                Some(group) => group.2 += 1,
                None => groups.push((&node.op_type, &node.implementation, 1)),
            }
        }
        let lines: Vec<_> = groups
            .iter()
            .map(|(op, by, count)| format!("{count} x {op}: {by}"))
            .collect();
        f.write_str(&lines.join(", "))
    }
}

/// Name and operator of each custom node.
fn custom_nodes(model: &ModelProto) -> impl Iterator<Item = (&str, &str)> {
    let nodes = model.graph.iter().flat_map(|graph| &graph.node);
    nodes
        .filter(|node| node.domain == DOMAIN)
        .map(|node| (node.name.as_str(), node.op_type.as_str()))
}

impl EngineImplementations {
    pub(super) fn uniform(
        engine: &Engine,
        model: &ModelProto,
        implementation: &Implementation,
    ) -> Self {
        let nodes = custom_nodes(model).map(|(node, op_type)| NodeImplementation {
            node: node.into(),
            op_type: op_type.into(),
            implementation: implementation.clone(),
        });
        Self {
            file: engine.file.clone(),
            seq_len: engine.seq_len,
            nodes: nodes.collect(),
        }
    }

    /// Reads a profile of ONNX Runtime. A kernel ran a node where the profile has the node's own
    /// name with its operator. Inlining names nodes after the function, not after the node it
    /// replaces: the function ran the nodes without a kernel where it was inlined as often as
    /// there are such nodes.
    pub(super) fn from_profile(
        kind: BackendKind,
        engine: &Engine,
        model: &ModelProto,
        profile: &[u8],
    ) -> Result<Self, BackendError> {
        let profile = Profile::read(&engine.file, profile)?;
        let runs: Vec<_> = profile.runs().map(|run| (run.node, run.args)).collect();
        let (mut nodes, mut problems) = (Vec::new(), Vec::new());
        for (node, op_type) in custom_nodes(model) {
            let kernel = runs
                .iter()
                .find(|(name, args)| *name == node && args.op_name == op_type)
                .map(|(_, args)| Implementation::Kernel {
                    provider: args.provider.clone(),
                });
            let body = || {
                let names = runs.iter().map(|(name, _)| *name);
                let nodes = custom_nodes(model).filter(|(node, op)| {
                    *op == op_type && !runs.iter().any(|(name, _)| name == node)
                });
                (inlined(names, op_type) >= nodes.count()).then_some(Implementation::FunctionBody)
            };
            let Some(implementation) = kernel.or_else(body) else {
                problems.push(format!(
                    "node `{node}` ({op_type}): the profile of a run shows neither a kernel nor the \
                     function's nodes"
                ));
                continue;
            };
            let wanted = match (kind, &implementation) {
                (BackendKind::OrtCuda, Implementation::Kernel { provider }) => {
                    provider == cuda::PROVIDER
                }
                (BackendKind::OrtCpu, Implementation::Kernel { .. }) => true,
                (BackendKind::OrtCpu | BackendKind::OrtCuda, _) => false,
                (_, implementation) => *implementation == Implementation::FunctionBody,
            };
            if !wanted {
                problems.push(format!(
                    "node `{node}` ({op_type}): expected {}, but the {implementation} ran",
                    match kind {
                        BackendKind::OrtCpu => "a kernel of the RAT+ operator library",
                        BackendKind::OrtCuda =>
                            "a CUDA kernel of the RAT+ operator library (ONNX Runtime 1.18 or later)",
                        _ => "the function body",
                    }
                ));
            }
            nodes.push(NodeImplementation {
                node: node.into(),
                op_type: op_type.into(),
                implementation,
            });
        }
        if kind == BackendKind::OrtCuda {
            problems.extend(elsewhere(&runs, model));
        }
        if problems.is_empty() {
            Ok(Self {
                file: engine.file.clone(),
                seq_len: engine.seq_len,
                nodes,
            })
        } else {
            Err(BackendError::Implementation {
                backend: kind,
                file: engine.file.clone(),
                problems,
            })
        }
    }
}

/// Standard nodes that did not run on the GPU, and copies to or from it that ONNX Runtime put in
/// between: the fallback to the CPU is turned off, so there are none.
fn elsewhere(runs: &[(&str, &Arguments)], model: &ModelProto) -> Vec<String> {
    let found: BTreeSet<_> = runs
        .iter()
        .filter(|(_, args)| args.provider != cuda::PROVIDER || args.op_name.starts_with("Memcpy"))
        .filter(|(name, _)| !custom_nodes(model).any(|(node, _)| node == *name))
        .map(|(name, args)| format!("`{name}` ({}, {})", args.op_name, args.provider))
        .collect();
    if found.is_empty() {
        return Vec::new();
    }
    let shown: Vec<_> = found.iter().take(8).map(String::as_str).collect();
    vec![format!(
        "{} standard nodes: expected {}, but elsewhere ran {}{}",
        found.len(),
        cuda::PROVIDER,
        shown.join(", "),
        if found.len() > shown.len() {
            ", ..."
        } else {
            ""
        }
    )]
}

/// How often the function of `op_type` was inlined: the nodes of one instance share a number, and
/// the first has none, so the largest number of nodes that differ in nothing else is the count.
fn inlined<'a>(names: impl Iterator<Item = &'a str>, op_type: &str) -> usize {
    let prefix = format!("_inlfunc_{op_type}_");
    let mut instances: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for name in names {
        let Some(inner) = name.strip_prefix(&prefix) else {
            continue;
        };
        let numbered = inner
            .strip_prefix("token_")
            .and_then(|rest| rest.split_once('_'));
        let (instance, inner) = match numbered {
            Some((number, rest)) if number.parse::<u64>().is_ok() => (number, rest),
            _ => ("", inner),
        };
        instances.entry(inner).or_default().insert(instance);
    }
    instances.values().map(BTreeSet::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratplus_graphs::onnx::{GraphProto, NodeProto};

    fn engine() -> (Engine, ModelProto) {
        let node = |name: &str| NodeProto {
            name: name.into(),
            op_type: "Scan".into(),
            domain: DOMAIN.into(),
            ..NodeProto::default()
        };
        let graph = GraphProto {
            node: vec![node("a"), node("b")],
            ..GraphProto::default()
        };
        let model = ModelProto {
            graph: Some(graph),
            ..ModelProto::default()
        };
        let file = "decode.onnx".into();
        (
            Engine {
                file,
                seq_len: 1,
                inputs: vec![],
                outputs: vec![],
            },
            model,
        )
    }

    fn read(kind: BackendKind, events: &[(&str, &str)]) -> Result<Vec<Implementation>, String> {
        read_on("CPU", kind, events)
    }

    /// Events whose nodes ran on `provider`, or on the one before a colon.
    fn read_on(
        provider: &str,
        kind: BackendKind,
        events: &[(&str, &str)],
    ) -> Result<Vec<Implementation>, String> {
        let (engine, model) = engine();
        let event = |(name, op): &(&str, &str)| {
            let (provider, op) = op.split_once(':').unwrap_or((provider, op));
            serde_json::json!({"cat": "Node", "name": format!("{name}_kernel_time"), "ts": 1,
                "args": {"op_name": op, "provider": provider, "node_index": "3"}})
        };
        let other = serde_json::json!({"cat": "Session", "name": "a_kernel_time", "args": {}});
        let events: Vec<_> = events.iter().map(event).chain([other]).collect();
        let profile = serde_json::to_vec(&events).unwrap();
        EngineImplementations::from_profile(kind, &engine, &model, &profile)
            .map(|found| {
                found
                    .nodes
                    .into_iter()
                    .map(|node| node.implementation)
                    .collect()
            })
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_ran_is_read_from_the_profile() {
        let kernel = Implementation::Kernel {
            provider: "CPU".into(),
        };
        let kernels = [("a", "Scan"), ("b", "Scan"), ("other", "Gemm")];
        assert_eq!(
            read(BackendKind::OrtCpu, &kernels).unwrap(),
            [kernel.clone(), kernel]
        );
        let bodies = [
            ("_inlfunc_Scan_mul_1", "Mul"),
            ("_inlfunc_Scan_token_7_mul_1", "Mul"),
            ("_inlfunc_Scan_add_2", "Add"),
        ];
        let body = Implementation::FunctionBody;
        assert_eq!(
            read(BackendKind::OrtFallback, &bodies).unwrap(),
            [body.clone(), body]
        );
    }

    #[test]
    fn everything_of_ort_cuda_runs_on_the_gpu() {
        let gpu = cuda::PROVIDER;
        let read = |events: &[_]| read_on(gpu, BackendKind::OrtCuda, events);
        let kernels = [("a", "Scan"), ("b", "Scan"), ("other", "Gemm")];
        let kernel = Implementation::Kernel {
            provider: gpu.into(),
        };
        assert_eq!(read(&kernels).unwrap(), [kernel.clone(), kernel]);
        let error = read(&[("a", "Other:Scan"), ("b", "Scan")]).unwrap_err();
        assert!(
            error.contains("`a`") && error.contains("kernel (Other) ran"),
            "{error}"
        );
        assert!(!error.contains("standard nodes"), "{error}");
        for (name, op) in [("rows", "Other:Gather"), ("to_host", "MemcpyToHost")] {
            let error = read(&[kernels[0], kernels[1], (name, op)]).unwrap_err();
            let expected =
                format!("1 standard nodes: expected {gpu}, but elsewhere ran `{name}` (");
            assert!(error.contains(&expected), "{error}");
        }
        let names: Vec<_> = (0..12).map(|node| format!("node{node}")).collect();
        let mut events = vec![kernels[0], kernels[1]];
        events.extend(names.iter().map(|name| (name.as_str(), "Other:Cast")));
        let error = read(&events).unwrap_err();
        assert!(error.contains("12 standard nodes"), "{error}");
        assert_eq!(error.matches("(Cast, Other)").count(), 8, "{error}");
        // The function's nodes are no CUDA kernel.
        let error = read(&[
            ("_inlfunc_Scan_mul_1", "Mul"),
            ("_inlfunc_Scan_token_7_mul_1", "Mul"),
        ]);
        assert!(error.unwrap_err().contains("a CUDA kernel"));
    }

    #[test]
    fn another_implementation_is_an_error() {
        let bodies = [
            ("_inlfunc_Scan_mul_1", "Mul"),
            ("_inlfunc_Scan_token_7_mul_1", "Mul"),
        ];
        let error = read(BackendKind::OrtCpu, &bodies).unwrap_err();
        assert!(error.contains("`a`") && error.contains("`b`"), "{error}");
        assert!(error.contains("function body ran"), "{error}");
        // One of two nodes is not enough, and neither is nothing.
        assert!(read(BackendKind::OrtCpu, &[("a", "Scan"), bodies[0]]).is_err());
        assert!(read(BackendKind::OrtFallback, &bodies[..1]).is_err());
        assert!(read(BackendKind::OrtFallback, &[("a", "Scan"), ("b", "Scan")]).is_err());
        let error = read(BackendKind::OrtFallback, &[("x_a", "Mul")]).unwrap_err();
        assert!(error.contains("neither a kernel nor"), "{error}");
    }
}
