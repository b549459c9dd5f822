//! Which code runs each custom node of a session.

use super::ort::cuda;
use super::profile::{Arguments, Profile};
use super::{BackendError, BackendKind};
use crate::package::EngineGraph;
use crate::raw::NodeKernel;
use ratplus_graphs::onnx::ModelProto;
use ratplus_graphs::ops::DOMAIN;
use std::collections::BTreeSet;
use std::fmt;

/// What ran a custom node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
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
    /// What of the run could not be looked at, and why.
    pub unseen: Option<String>,
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
        f.write_str(&lines.join(", "))?;
        match &self.unseen {
            Some(unseen) => write!(f, "; {unseen}"),
            None => Ok(()),
        }
    }
}

/// Name and operator of each custom node.
fn custom_nodes(model: &ModelProto) -> impl Iterator<Item = (&str, &str)> {
    let nodes = model.graph.iter().flat_map(|graph| &graph.node);
    nodes
        .filter(|node| node.domain == DOMAIN)
        .map(|node| (node.name.as_str(), node.op_type.as_str()))
}

/// The custom nodes of an engine.
pub(super) struct EngineNodes {
    pub file: String,
    pub seq_len: usize,
    /// Name and operator.
    nodes: Vec<(String, String)>,
}

impl EngineNodes {
    pub fn of(graph: &EngineGraph<'_>) -> Self {
        let (file, seq_len) = (graph.file.into(), graph.engine.seq_len);
        let nodes = custom_nodes(&graph.model);
        Self {
            file,
            seq_len,
            nodes: nodes.map(|(node, op)| (node.into(), op.into())).collect(),
        }
    }
}

impl EngineImplementations {
    pub(super) fn uniform(engine: EngineNodes, implementation: &Implementation) -> Self {
        let nodes = engine.nodes.into_iter();
        let nodes = nodes.map(|(node, op_type)| NodeImplementation {
            node,
            op_type,
            implementation: implementation.clone(),
        });
        Self {
            nodes: nodes.collect(),
            file: engine.file,
            seq_len: engine.seq_len,
            unseen: None,
        }
    }

    /// Of an engine whose session has `kernels` of the RAT+ operator library. The function body runs
    /// the other nodes: ONNX Runtime has no operators of the domain,
    /// and one without a kernel and without a function is no model to it. `profile` is that of the
    /// run on a GPU, or why there is none.
    pub(super) fn of_session(
        kind: BackendKind,
        engine: &EngineNodes,
        kernels: &[NodeKernel],
        profile: Option<Result<Profile, String>>,
    ) -> Result<Self, BackendError> {
        let (mut nodes, mut problems) = (Vec::new(), Vec::new());
        for (node, op_type) in &engine.nodes {
            let kernel = kernels
                .iter()
                .find(|run| run.node == *node && run.op_type == *op_type);
            let implementation = kernel.map_or(Implementation::FunctionBody, |run| {
                let provider = run.provider.clone();
                Implementation::Kernel { provider }
            });
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
                node: node.clone(),
                op_type: op_type.clone(),
                implementation,
            });
        }
        let unseen = match profile {
            None => None,
            Some(Ok(profile)) => {
                let runs: Vec<_> = profile.runs().map(|run| (run.node, run.args)).collect();
                problems.extend(elsewhere(&runs, engine));
                None
            }
            Some(Err(reason)) => Some(format!("where standard nodes ran was not seen: {reason}")),
        };
        if problems.is_empty() {
            Ok(Self {
                file: engine.file.clone(),
                seq_len: engine.seq_len,
                nodes,
                unseen,
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
fn elsewhere(runs: &[(&str, &Arguments)], engine: &EngineNodes) -> Vec<String> {
    let found: BTreeSet<_> = runs
        .iter()
        .filter(|(_, args)| args.provider != cuda::PROVIDER || args.op_name.starts_with("Memcpy"))
        .filter(|(name, _)| !engine.nodes.iter().any(|(node, _)| node == name))
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

#[cfg(test)]
mod tests {
    use super::*;
    use ratplus_graphs::onnx::{GraphProto, NodeProto};
    use ratplus_graphs::package::Engine;

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
        let engine = Engine {
            name: "decode".into(),
            batch: 1,
            seq_len: 1,
            files: Default::default(),
            inputs: vec![],
            outputs: vec![],
        };
        (engine, model)
    }

    fn nodes((engine, model): &(Engine, ModelProto)) -> EngineNodes {
        EngineNodes::of(&EngineGraph {
            engine,
            file: "decode.onnx",
            model: model.clone(),
        })
    }

    fn ran(node: &str, op_type: &str, provider: &str) -> NodeKernel {
        let [node, op_type, provider] = [node, op_type, provider].map(str::to_owned);
        NodeKernel {
            node,
            op_type,
            provider,
        }
    }

    fn read(
        kind: BackendKind,
        kernels: &[NodeKernel],
        profile: Option<Result<Profile, String>>,
    ) -> Result<Vec<Implementation>, String> {
        EngineImplementations::of_session(kind, &nodes(&engine()), kernels, profile)
            .map(|found| {
                let nodes = found.nodes.into_iter();
                nodes.map(|node| node.implementation).collect()
            })
            .map_err(|error| error.to_string())
    }

    fn kernel(provider: &str) -> Implementation {
        let provider = provider.into();
        Implementation::Kernel { provider }
    }

    #[test]
    fn what_ran_is_what_the_kernels_say_and_the_function_body_otherwise() {
        let kernels = [ran("a", "Scan", "CPU"), ran("b", "Scan", "CPU")];
        let found = read(BackendKind::OrtCpu, &kernels, None).unwrap();
        assert_eq!(found, [kernel("CPU"), kernel("CPU")]);
        let body = Implementation::FunctionBody;
        let found = read(BackendKind::OrtFallback, &[], None).unwrap();
        assert_eq!(found, [body.clone(), body]);
    }

    #[test]
    fn another_implementation_is_an_error() {
        let error = read(BackendKind::OrtCpu, &[], None).unwrap_err();
        assert!(error.contains("`a`") && error.contains("`b`"), "{error}");
        assert!(error.contains("function body ran"), "{error}");
        // One of two nodes is not enough, and neither is another node or another operator.
        for other in [ran("c", "Scan", "CPU"), ran("b", "Other", "CPU")] {
            let error = read(BackendKind::OrtCpu, &[ran("a", "Scan", "CPU"), other], None);
            let error = error.unwrap_err();
            assert!(!error.contains("`a`") && error.contains("`b`"), "{error}");
        }
        let kernels = [ran("a", "Scan", "CPU")];
        let error = read(BackendKind::OrtFallback, &kernels, None).unwrap_err();
        assert!(error.contains("kernel (CPU) ran"), "{error}");
    }

    #[test]
    fn everything_of_ort_cuda_runs_on_the_gpu() {
        let gpu = cuda::PROVIDER;
        let kernels = [ran("a", "Scan", gpu), ran("b", "Scan", gpu)];
        let read = |kernels: &[NodeKernel], events: &[(&str, &str)]| {
            let event = |(name, op): &(&str, &str)| {
                let (provider, op) = op.split_once(':').unwrap_or((gpu, op));
                serde_json::json!({"cat": "Node", "name": format!("{name}_kernel_time"),
                    "args": {"op_name": op, "provider": provider}})
            };
            let events: Vec<_> = events.iter().map(event).collect();
            let profile = Profile::read(&serde_json::to_vec(&events).unwrap());
            read(BackendKind::OrtCuda, kernels, Some(profile))
        };
        let events = [("a", "Scan"), ("b", "Scan"), ("other", "Gemm")];
        assert_eq!(read(&kernels, &events).unwrap(), [kernel(gpu), kernel(gpu)]);
        let error = read(&[ran("a", "Scan", "Other"), kernels[1].clone()], &events);
        let error = error.unwrap_err();
        assert!(
            error.contains("`a`") && error.contains("kernel (Other) ran"),
            "{error}"
        );
        assert!(!error.contains("standard nodes"), "{error}");
        for (name, op) in [("rows", "Other:Gather"), ("to_host", "MemcpyToHost")] {
            let error = read(&kernels, &[events[0], events[1], (name, op)]).unwrap_err();
            let expected =
                format!("1 standard nodes: expected {gpu}, but elsewhere ran `{name}` (");
            assert!(error.contains(&expected), "{error}");
        }
        let names: Vec<_> = (0..12).map(|node| format!("node{node}")).collect();
        let elsewhere = names.iter().map(|name| (name.as_str(), "Other:Cast"));
        let error = read(&kernels, &elsewhere.collect::<Vec<_>>()).unwrap_err();
        assert!(error.contains("12 standard nodes"), "{error}");
        assert_eq!(error.matches("(Cast, Other)").count(), 8, "{error}");
        // The function's nodes are no CUDA kernel.
        assert!(read(&[], &events).unwrap_err().contains("a CUDA kernel"));
    }

    #[test]
    fn a_run_that_was_not_profiled_says_so() {
        let engine = engine();
        let kernels = ["a", "b"].map(|node| ran(node, "Scan", cuda::PROVIDER));
        let profile = Some(Err("no folder".into()));
        let found = EngineImplementations::of_session(
            BackendKind::OrtCuda,
            &nodes(&engine),
            &kernels,
            profile,
        );
        let expected = format!(
            "decode.onnx: 2 x Scan: kernel ({}); where standard nodes ran was not seen: no folder",
            cuda::PROVIDER
        );
        assert_eq!(found.unwrap().to_string(), expected);
    }
}
