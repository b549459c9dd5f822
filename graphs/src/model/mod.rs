//! The chunk graph of a whole model, for any static sequence length.
//!
//! Activations are rows `[B * L, width]` except around the two operators. In f16 and bf16
//! packages weights and activations are rounded to that type after every linear layer, norm,
//! gate, activation and residual sum, while the arithmetic between roundings is f32: ONNX
//! Runtime's CPU provider has no bf16 arithmetic.

mod activation;
mod native;
mod taps;
mod weights;

pub use native::native_products;
pub use taps::{EMBEDDED, FINAL_NORM, Tap, taps};
pub use weights::{ROTARY_TABLES, StoredTensor, WEIGHT_ALIGNMENT, Weight, rotary_row, storage};

use crate::manifest::{
    self, CustomNodes, Fallback, INPUT_IDS, LOGITS, LogitsMode, PAST_LENGTH, PackageShape,
    SEQ_LENGTH, StateKind, Target,
};
use crate::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeWriter, OperatorSetIdProto, TensorProto,
    ValueInfoProto,
};
use crate::ops::body::{self, BodyShape};
use crate::ops::{
    Axis, DOMAIN_VERSION, Definition, DilatedAttention, ElementType, Op, Operator, RecurrenceScan,
    TensorType, dilated_attention, recurrence_scan,
};
use crate::precision::{
    MATMUL_NBITS, MICROSOFT_DOMAIN, MICROSOFT_VERSION, Precision, Stored, node_attributes,
};
use crate::spec::ModelSpec;

/// Everything that determines one ONNX file.
#[derive(Clone, Debug)]
pub struct GraphOptions<'a> {
    /// Sizes and normalized patterns.
    pub spec: &'a ModelSpec,
    /// Batch, longest sequence, type, logits.
    pub shape: PackageShape,
    /// `L`.
    pub seq_len: usize,
    /// What is stored otherwise than in the package's type.
    pub precision: &'a Precision,
    /// What it is built for.
    pub target: Target,
    /// How custom nodes are written.
    pub fallback: Fallback,
    /// Opset of the default domain.
    pub opset: i64,
    /// ONNX IR version.
    pub ir_version: i64,
}

/// Builds one ONNX file; its initializers refer to [`manifest::WEIGHTS_FILE`] as [`storage`]
/// lays it out.
pub fn build(options: &GraphOptions<'_>) -> ModelProto {
    let GraphOptions {
        spec,
        shape,
        seq_len,
        opset,
        ..
    } = *options;
    let mut builder = Builder {
        w: NodeWriter::new(""),
        options,
        value_info: Vec::new(),
        local: shape.dtype,
    };
    builder.write();
    let (inputs, outputs) = shape.tensors(spec, seq_len);
    // Graph outputs declare themselves.
    let is_output = |info: &ValueInfoProto| outputs.iter().any(|output| output.name == info.name);
    builder.value_info.retain(|info| !is_output(info));
    let infos = |list: &[manifest::TensorInfo]| {
        list.iter()
            .map(|info| ValueInfoProto::new(&info.name, &info.tensor))
            .collect()
    };
    let initializer = storage(spec, &shape, options.precision)
        .0
        .iter()
        .map(|stored| {
            TensorProto::external(
                &stored.name,
                &stored.tensor,
                manifest::WEIGHTS_FILE,
                stored.offset,
            )
        })
        .collect();
    let graph = GraphProto {
        name: "ratplus".into(),
        node: builder.w.finish(),
        initializer,
        input: infos(&inputs),
        output: infos(&outputs),
        value_info: builder.value_info,
    };
    let mut opset_import = vec![OperatorSetIdProto {
        domain: String::new(),
        version: opset,
    }];
    let nodes = options.target.custom_nodes(options.fallback);
    opset_import.extend(nodes.domain().map(|domain| OperatorSetIdProto {
        domain: domain.into(),
        version: DOMAIN_VERSION,
    }));
    if options.precision.quantization.is_some() {
        opset_import.push(OperatorSetIdProto {
            domain: MICROSOFT_DOMAIN.into(),
            version: MICROSOFT_VERSION,
        });
    }
    let functions = if nodes == CustomNodes::WithFunctions {
        let used = |op: &Op| spec.recurrence || *op != Op::RecurrenceScan;
        let body = body_shape(options);
        Op::ALL
            .into_iter()
            .filter(used)
            .map(|op| body::function(op, &body, opset))
            .collect()
    } else {
        Vec::new()
    };
    let mut model = ModelProto {
        ir_version: options.ir_version,
        producer_name: "ratplus".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph),
        opset_import,
        functions,
    };
    if options.target.has_native_products() {
        native_products(&mut model);
    }
    model
}

fn body_shape(options: &GraphOptions<'_>) -> BodyShape {
    let GraphOptions {
        spec,
        shape,
        seq_len,
        ..
    } = *options;
    BodyShape {
        dtype: shape.dtype,
        cache_dtype: shape.cache_dtype,
        batch: shape.batch,
        seq_len,
        num_heads: spec.num_heads(),
        head_dim: spec.d_head,
        max_seq_len: shape.max_seq_len,
    }
}

struct Builder<'a> {
    w: NodeWriter,
    options: &'a GraphOptions<'a>,
    value_info: Vec<ValueInfoProto>,
    /// Type of weights and of values between linear layers where nodes are being written.
    local: ElementType,
}

const F32: ElementType = ElementType::F32;

impl Builder<'_> {
    fn write(&mut self) {
        let GraphOptions {
            spec,
            shape,
            seq_len,
            ..
        } = *self.options;
        let rows = [shape.batch * seq_len, spec.d_model];
        self.w.set_prefix("embedding.");
        let embedded = self.w.gather(&Weight::Embedding.name(), INPUT_IDS, 0);
        let target = self.w.ints(&rows.map(|size| size as i64));
        self.w.push(
            "",
            "Reshape",
            &[&embedded, &target],
            &[EMBEDDED],
            Vec::new(),
        );
        let mut stream = EMBEDDED.to_owned();
        for layer in 0..spec.num_layers {
            stream = self.sequence_layer(layer, &stream);
            stream = self.feed_forward(layer, &stream);
        }
        self.w.set_prefix("head.");
        let last = match shape.logits {
            LogitsMode::All => stream,
            LogitsMode::Last => self.last_tokens(&stream),
        };
        self.enter(Weight::LmHead);
        let hidden = self.norm(Weight::FinalNorm, &last, Some(FINAL_NORM));
        match shape.logits {
            LogitsMode::Last => self.linear(&hidden, Weight::LmHead, Some(LOGITS)),
            LogitsMode::All => {
                let logits = self.linear(&hidden, Weight::LmHead, None);
                let target = [shape.batch, seq_len, spec.vocab_size].map(|size| size as i64);
                let target = self.w.ints(&target);
                self.w
                    .push("", "Reshape", &[&logits, &target], &[LOGITS], Vec::new());
                String::new()
            }
        };
    }

    /// `T`: the type of the residual stream and of what operators take and give.
    fn dtype(&self) -> ElementType {
        self.options.shape.dtype
    }

    /// The nodes to come belong to `weight`'s layer, or to the head.
    fn enter(&mut self, weight: Weight) {
        let kept = self.options.precision.keep_f32.keeps(weight);
        self.local = if kept { F32 } else { self.dtype() };
    }

    /// A value of the layer's type to f32.
    fn widen(&mut self, value: &str) -> String {
        self.w.convert(value, self.local, F32)
    }

    /// A value of `T` to f32.
    fn widen_shared(&mut self, value: &str) -> String {
        let dtype = self.dtype();
        self.w.convert(value, dtype, F32)
    }

    /// From f32 to the layer's type.
    fn round(&mut self, value: &str) -> String {
        self.w.convert(value, F32, self.local)
    }

    /// From f32 to `dtype`, under `name`.
    fn round_as(&mut self, dtype: ElementType, value: &str, name: &str) -> String {
        if dtype == F32 {
            // Give the producer's output the name.
            self.w.rename_last_output(value, name);
        } else {
            let to = AttributeProto::int("to", dtype.onnx().into());
            self.w.push("", "Cast", &[value], &[name], vec![to]);
        }
        name.into()
    }

    /// A node with one output, under `name` where one is given.
    fn node(
        &mut self,
        (domain, op_type): (&str, &str),
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
        name: Option<&str>,
    ) -> String {
        let output = match name {
            Some(name) => name.to_owned(),
            None => self.w.fresh(&op_type.to_lowercase()),
        };
        self.w.push(domain, op_type, inputs, &[&output], attributes);
        output
    }

    /// A linear layer, `rows x weight^T`, from the layer's type to f32.
    fn linear(&mut self, rows: &str, weight: Weight, name: Option<&str>) -> String {
        let GraphOptions {
            spec,
            shape,
            precision,
            ..
        } = *self.options;
        let rows = self.widen(rows);
        let weight = precision.place(weight, spec, shape.dtype);
        let stored = precision.stored(weight, shape.dtype);
        let (Stored::Blocks(quantization), &[outputs, inputs]) = (stored, &*weight.shape(spec))
        else {
            let weight = self.widen(&weight.name());
            let transposed = vec![AttributeProto::int("transB", 1)];
            return self.node(("", "Gemm"), &[&rows, &weight], transposed, name);
        };
        let planes = quantization.planes();
        let mut parts = Vec::new();
        for plane in planes {
            let constants = plane.tensors(quantization, &weight.name(), [outputs, inputs]);
            let mut operands = vec![rows.as_str()];
            operands.extend(constants.iter().map(|(name, _)| name.as_str()));
            let attributes = node_attributes(quantization, [outputs, inputs]);
            let name = name.filter(|_| planes.len() == 1);
            let op = (MICROSOFT_DOMAIN, MATMUL_NBITS);
            parts.push(self.node(op, &operands, attributes, name));
        }
        match &parts[..] {
            [high, low] => self.node(("", "Add"), &[high, low], Vec::new(), name),
            parts => parts.concat(),
        }
    }

    /// From `T` to the layer's type.
    fn norm(&mut self, weight: Weight, rows: &str, name: Option<&str>) -> String {
        let weight = self.widen(&weight.name());
        let rows = self.widen_shared(rows);
        let w = &mut self.w;
        let two = w.float(2.0);
        let squares = w.call("Pow", &[&rows, &two]);
        let axis = w.ints(&[1]);
        let mean = w.call("ReduceMean", &[&squares, &axis]);
        let epsilon = w.float(self.options.spec.norm_eps as f32);
        let mean = w.call("Add", &[&mean, &epsilon]);
        let root = w.call("Sqrt", &[&mean]);
        let scaled = w.call("Div", &[&rows, &root]);
        let scaled = w.call("Mul", &[&scaled, &weight]);
        match name {
            Some(name) => self.round_as(self.local, &scaled, name),
            None => self.round(&scaled),
        }
    }

    /// The residual stream and a change in f32, to `T`.
    fn add(&mut self, stream: &str, change: &str, name: &str) -> String {
        let stream = self.widen_shared(stream);
        let sum = self.w.call("Add", &[&stream, change]);
        self.round_as(self.dtype(), &sum, name)
    }

    fn sequence_layer(&mut self, layer: usize, stream: &str) -> String {
        let GraphOptions {
            spec,
            shape,
            seq_len,
            ..
        } = *self.options;
        let d = spec.d_model;
        let chunk = [shape.batch, seq_len, d];
        self.w.set_prefix(&format!("layers.{layer}.seq."));
        self.enter(Weight::InProj(layer));
        let rows = self.norm(Weight::InputNorm(layer), stream, None);
        let projected = self.linear(&rows, Weight::InProj(layer), None);
        let projected = self.round(&projected);
        let mut parts = self.w.split(&projected, 1, &vec![d; spec.in_proj_blocks()]);
        // All but the output gate go to the operators.
        for part in &mut parts[1..] {
            *part = self.w.convert(part, self.local, shape.dtype);
        }
        let query = self.w.reshape(&parts[1], &chunk);
        let (gated_key, gated_value) = (Tap::GatedKey.name(layer), Tap::GatedValue.name(layer));
        if spec.recurrence {
            let [key, value, gate] = [2, 3, 4].map(|part| self.w.reshape(&parts[part], &chunk));
            let inputs = recurrence_scan::Inputs {
                key: &*key,
                value: &value,
                gate: &gate,
                state_key: &StateKind::RecurrentKey.past_name(layer),
                state_value: &StateKind::RecurrentValue.past_name(layer),
                past_length: PAST_LENGTH,
                seq_length: SEQ_LENGTH,
            };
            let outputs = recurrence_scan::Outputs {
                gated_key: &*gated_key,
                gated_value: &gated_value,
                new_state_key: &StateKind::RecurrentKey.present_name(layer),
                new_state_value: &StateKind::RecurrentValue.present_name(layer),
            };
            self.custom(&RecurrenceScan, layer, inputs, outputs);
        } else {
            let target = self.w.ints(&chunk.map(|size| size as i64));
            for (part, name) in [(2, &gated_key), (3, &gated_value)] {
                self.w
                    .push("", "Reshape", &[&parts[part], &target], &[name], Vec::new());
            }
        }
        let operator = DilatedAttention {
            patterns: spec.layer_patterns(layer),
            scale: (1.0 / (spec.d_head as f64).sqrt()) as f32,
        };
        let attention = Tap::Attention.name(layer);
        let inputs = dilated_attention::Inputs {
            query: &*query,
            key: &gated_key,
            value: &gated_value,
            past_key: &StateKind::Key.past_name(layer),
            past_value: &StateKind::Value.past_name(layer),
            past_length: PAST_LENGTH,
            seq_length: SEQ_LENGTH,
            cos: ROTARY_TABLES[0],
            sin: ROTARY_TABLES[1],
        };
        let outputs = dilated_attention::Outputs {
            output: &*attention,
            present_key: &StateKind::Key.present_name(layer),
            present_value: &StateKind::Value.present_name(layer),
        };
        self.custom(&operator, layer, inputs, outputs);
        let attended = self.w.reshape(&attention, &[shape.batch * seq_len, d]);
        let attended = self.widen_shared(&attended);
        let gate = self.widen(&parts[0]);
        let gate = self.w.call("Sigmoid", &[&gate]);
        let gated = self.w.call("Mul", &[&attended, &gate]);
        let gated = self.round(&gated);
        let projected = self.linear(&gated, Weight::OutProj(layer), None);
        self.add(stream, &projected, &Tap::Mixed.name(layer))
    }

    fn feed_forward(&mut self, layer: usize, stream: &str) -> String {
        self.w.set_prefix(&format!("layers.{layer}.ffn."));
        self.enter(Weight::Fc1(layer));
        let rows = self.norm(Weight::FfnNorm(layer), stream, None);
        let wide = self.linear(&rows, Weight::Fc1(layer), None);
        let wide = self.round(&wide);
        let wide = self.widen(&wide);
        let active = activation::write(&mut self.w, self.options.spec.activation, &wide);
        let active = self.round(&active);
        let narrow = self.linear(&active, Weight::Fc2(layer), None);
        self.add(stream, &narrow, &Tap::Hidden.name(layer))
    }

    /// `[B * L, d]` to `[B, d]`: the last token of each sequence, the first row of an idle slot.
    fn last_tokens(&mut self, stream: &str) -> String {
        let GraphOptions { shape, seq_len, .. } = *self.options;
        let w = &mut self.w;
        let (one, longest) = (w.ints(&[1]), w.ints(&[seq_len as i64]));
        // Of a slot whose lengths do not fit, any row of its own: all are NaN in function bodies.
        let last = w.call("Max", &[SEQ_LENGTH, &one]);
        let last = w.call("Min", &[&last, &longest]);
        let last = w.call("Sub", &[&last, &one]);
        let first: Vec<_> = (0..shape.batch)
            .map(|slot| (slot * seq_len) as i64)
            .collect();
        let first = w.ints(&first);
        let index = w.call("Add", &[&last, &first]);
        w.gather(stream, &index, 0)
    }

    fn custom<'n, O: Definition + Into<Operator>>(
        &mut self,
        operator: &O,
        layer: usize,
        inputs: O::Inputs<&'n str>,
        outputs: O::Outputs<&'n str>,
    ) {
        let nodes = self.options.target.custom_nodes(self.options.fallback);
        let name = format!("layers.{layer}.{}", O::OP);
        let Some(domain) = nodes.domain() else {
            let (shape, prefix) = (body_shape(self.options), format!("{name}."));
            self.w
                .extend(body::inline(operator, &shape, &prefix, inputs, outputs));
            return;
        };
        let node = body::node(operator, name, domain, inputs, outputs);
        if nodes == CustomNodes::Plugins {
            self.declare(O::OP, layer, &node.output);
        }
        self.w.push_node(node);
    }

    /// The types of a node's outputs, where the runtime knows no rule for them.
    fn declare(&mut self, op: Op, layer: usize, outputs: &[String]) {
        let GraphOptions {
            spec,
            shape,
            seq_len,
            ..
        } = *self.options;
        for (name, port) in outputs.iter().zip(op.outputs()) {
            let sizes = port.axes.iter().map(|axis| match axis {
                Axis::Batch => shape.batch,
                Axis::SeqLen => seq_len,
                Axis::Channels => spec.d_model,
                Axis::Rows => spec.cache_layout(layer, shape.max_seq_len).rows(),
                Axis::HeadDim => spec.d_head,
                Axis::MaxSeqLen => shape.max_seq_len,
                Axis::HalfHeadDim => spec.d_head / 2,
            });
            let dtype = port.dtype.resolve(shape.dtype, shape.cache_dtype);
            let tensor = TensorType::new(dtype, sizes.collect::<Vec<_>>());
            self.value_info.push(ValueInfoProto::new(name, &tensor));
        }
    }
}

/// Adds intermediate tensors to a model's outputs, in memory.
pub fn add_outputs(model: &mut ModelProto, outputs: &[(String, TensorType)]) {
    if let Some(graph) = &mut model.graph {
        for (name, tensor) in outputs {
            if !graph.output.iter().any(|output| output.name == *name) {
                graph.output.push(ValueInfoProto::new(name, tensor));
            }
        }
    }
}
