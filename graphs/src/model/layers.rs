//! The layers of the model. Where batch and length are open, those of the sizes stand for any.

use super::builder::{Builder, Matrix, Value};
use super::lowering::Lowering;
use super::reference::rounding_attributes;
use super::{EMBEDDED, FINAL_NORM, ROTARY_TABLES, Tap, Weight};
use crate::onnx::{LowCasts, NodeProto, ValueInfoProto};
use crate::ops::body::{self, BodyShape};
use crate::ops::{
    Axis, BlockTopKAttention, Definition, DilatedAttention, ElementType, Linear, Op, Operator,
    Port, Ports, RecurrenceScan, TensorType, block_top_k_attention, dilated_attention, linear,
    recurrence_scan,
};
use crate::package::{
    CustomNodes, INPUT_IDS, LOGITS, LogitsMode, PAST_LENGTH, PackageShape, Products, SEQ_LENGTH,
    StateKind,
};
use crate::precision::{Activations, IntegerLayout, Precision, Stored};
use crate::spec::{Activation, ModelSpec};

const F32: ElementType = ElementType::F32;

/// What determines a graph beside how it is written.
#[derive(Clone, Copy, Debug)]
pub struct Sizes<'a> {
    /// Sizes and normalized patterns.
    pub spec: &'a ModelSpec,
    /// Batch, longest sequence, types, logits.
    pub shape: PackageShape,
    /// `L`.
    pub seq_len: usize,
    /// What is stored otherwise than in the package's type.
    pub precision: &'a Precision,
}

impl Sizes<'_> {
    /// The sizes of the operators' bodies.
    pub(super) fn body(&self) -> BodyShape {
        let Self { spec, shape, .. } = *self;
        BodyShape {
            dtype: shape.dtype,
            cache_dtype: shape.cache_dtype,
            batch: shape.batch,
            seq_len: self.seq_len,
            num_heads: spec.num_heads(),
            num_kv_heads: spec.kv_heads(),
            head_dim: spec.d_head,
            max_seq_len: shape.max_seq_len,
            quantization: self.precision.quantization,
        }
    }
}

/// The nodes of the whole model, and the types of values that they declare.
pub(super) fn write(
    sizes: &Sizes<'_>,
    lowering: Lowering,
) -> (Vec<NodeProto>, Vec<ValueInfoProto>) {
    let mut model = Model {
        b: Builder::new(lowering),
        sizes: *sizes,
        local: sizes.shape.dtype,
        lengths: Value::new(
            SEQ_LENGTH,
            TensorType::new(ElementType::I64, [sizes.shape.batch]),
        ),
    };
    model.write();
    model.b.finish()
}

struct Model<'a> {
    b: Builder,
    sizes: Sizes<'a>,
    /// Type of weights and of values between linear layers where nodes are being written.
    local: ElementType,
    /// `seq_length` of the chunk that nodes are being written for.
    lengths: Value,
}

/// What is part of a [`Linear`] beside its product.
#[derive(Default)]
struct Around {
    norm: Option<Weight>,
    gate: Option<Value>,
    residual: Option<Value>,
    activation: Option<Activation>,
}

impl Model<'_> {
    fn write(&mut self) {
        let Sizes { spec, shape, .. } = self.sizes;
        let (batch, seq_len) = (shape.batch, self.sizes.seq_len);
        self.b.set_prefix("embedding.");
        let ids = TensorType::new(ElementType::I64, [batch, seq_len]);
        let ids = Value::new(INPUT_IDS, ids);
        let embedding = self.weight(Weight::Embedding);
        let embedded = self.b.gather(&embedding, &ids);
        let mut stream = self
            .b
            .reshape(&embedded, &self.activations(spec.d_model), Some(EMBEDDED));
        for layer in 0..spec.num_layers {
            stream = self.sequence_layer(layer, &stream);
            stream = self.feed_forward(layer, &stream);
        }
        self.b.set_prefix("head.");
        let last = match shape.logits {
            LogitsMode::All => stream,
            LogitsMode::Last => {
                let lengths = self.lengths.clone();
                let last = self.b.last_tokens(&stream, &lengths);
                if self.b.lowering().products.keeps_batch() {
                    self.lengths = self.b.at_most_one(&lengths);
                }
                last
            }
        };
        self.enter(Weight::LmHead);
        let hidden = self.norm(Weight::FinalNorm, &last);
        let hidden = self.b.convert_as(&hidden, self.local, FINAL_NORM);
        let logits = match self.b.lowering().products {
            // Logits are not rounded.
            Products::Operator => {
                let hidden = self.b.convert(&hidden, F32);
                self.product(&hidden, Weight::LmHead, Around::default())
            }
            _ => {
                let logits = self.linear(&hidden, Weight::LmHead);
                self.b.convert(&logits, F32)
            }
        };
        let all = [batch, seq_len, spec.vocab_size];
        let shape: &[usize] = match shape.logits {
            LogitsMode::Last => &[batch, spec.vocab_size],
            LogitsMode::All => &all,
        };
        self.b.reshape(&logits, shape, Some(LOGITS));
    }

    /// The shape of activations of this width.
    fn activations(&self, width: usize) -> Vec<usize> {
        let (batch, seq_len) = (self.sizes.shape.batch, self.sizes.seq_len);
        match self.b.lowering().products.keeps_batch() {
            true => vec![batch, seq_len, width],
            false => vec![batch * seq_len, width],
        }
    }

    /// `T`: the type of the residual stream and of what operators take and give.
    fn dtype(&self) -> ElementType {
        self.sizes.shape.dtype
    }

    /// The nodes to come belong to `weight`'s layer, or to the head.
    fn enter(&mut self, weight: Weight) {
        let kept = self.sizes.precision.keep_f32.keeps(weight);
        self.local = if kept { F32 } else { self.dtype() };
    }

    fn stored(&self, weight: Weight) -> Stored {
        self.sizes.precision.stored(weight, self.dtype())
    }

    /// A weight that is no integers.
    fn weight(&self, weight: Weight) -> Value {
        let dtype = match self.stored(weight) {
            Stored::As(dtype) => dtype,
            Stored::Blocks(_) => F32,
        };
        let tensor = TensorType::new(dtype, weight.shape(self.sizes.spec));
        Value::new(weight.name(), tensor)
    }

    /// The matrix of a linear layer, as it is stored.
    fn matrix(&mut self, weight: Weight) -> Matrix {
        let spec = self.sizes.spec;
        let weight = self.sizes.precision.place(weight, spec, self.dtype());
        match (self.stored(weight), &*weight.shape(spec)) {
            (Stored::Blocks(quantization), &[outputs, inputs]) => {
                let sizes = [outputs, inputs];
                let lowering = self.b.lowering();
                let dequantized = quantization.layout == IntegerLayout::Dequantized;
                if dequantized && !lowering.widened_blocks {
                    let native = lowering.products == Products::Native;
                    let local = if native { self.local } else { F32 };
                    let tensors = self.sizes.precision.tensors(weight, spec, self.dtype());
                    let mut constants = tensors
                        .into_iter()
                        .map(|(name, tensor)| Value::new(name, tensor));
                    if let (Some(integers), Some(scales)) = (constants.next(), constants.next()) {
                        let size = quantization.block_size;
                        return Matrix::Stored(self.b.dequantize(&integers, &scales, size, local));
                    }
                }
                let tensors = quantization.tensors(&weight.name(), sizes).into_iter();
                Matrix::Blocks {
                    quantization,
                    sizes,
                    constants: tensors.map(|(name, _)| name).collect(),
                }
            }
            _ => Matrix::Stored(self.weight(weight)),
        }
    }

    /// A linear layer, in f32 or in the layer's type.
    fn linear(&mut self, rows: &Value, weight: Weight) -> Value {
        // Those that the function is written for.
        let of_function = match self.stored(weight) {
            Stored::As(dtype) => {
                dtype == self.dtype() && self.sizes.precision.quantization.is_none()
            }
            Stored::Blocks(_) => true,
        };
        // The head's chunk is not as long, and its logits are not rounded.
        let of_function = of_function && weight != Weight::LmHead && rows.dtype == self.dtype();
        if self.b.lowering().products == Products::Plain && of_function {
            return self.product(rows, weight, Around::default());
        }
        let matrix = self.matrix(weight);
        let rounds = match self.b.lowering().products {
            Products::Native => false,
            _ => self.b.lowering().casts != LowCasts::None,
        };
        match self.stored(weight) {
            Stored::Blocks(of) if rounds && of.activations == Activations::Int8 => {
                let rows = self.b.rounded_to_bytes(rows, of.block_size);
                self.b.linear(&rows, &matrix)
            }
            _ => self.b.linear(rows, &matrix),
        }
    }

    /// A linear layer as [`Linear`], in the rows' type.
    fn product(&mut self, rows: &Value, weight: Weight, around: Around) -> Value {
        let spec = self.sizes.spec;
        let (out_features, in_features) = match weight.shape(spec)[..] {
            [outputs, inputs] => (outputs, inputs),
            _ => unreachable!("the matrix of a linear layer"),
        };
        let place = self.sizes.precision.place(weight, spec, self.dtype());
        let mut constants = self.sizes.precision.tensors(place, spec, self.dtype());
        let operator = Linear {
            in_features,
            out_features,
            weight: self.stored(place).into(),
            activations: self.stored(place).activations(),
            activation: around.activation,
            epsilon: around.norm.map(|_| spec.norm_eps as f32),
        };
        let output = self.b.fresh("linear");
        let name = |value: Option<Value>| value.map_or_else(String::new, |value| value.name);
        let norm = around.norm.map(|norm| {
            let norm = self.weight(norm);
            self.b.convert(&norm, rows.dtype)
        });
        let mut constants = constants.drain(..).map(|(name, _)| name);
        let given = linear::Inputs {
            input: rows.name.clone(),
            weight: constants.next().unwrap_or_default(),
            seq_length: self.lengths.name.clone(),
            scales: constants.next().unwrap_or_default(),
            zero_points: constants.next().unwrap_or_default(),
            norm: name(norm),
            gate: name(around.gate),
            residual: name(around.residual),
        };
        // Nothing stands for an input at the end alone.
        let mut list = given.into_list();
        let last = list.iter().rposition(|name| !name.is_empty());
        let ports = Op::Linear.inputs();
        for (at, name) in list.iter_mut().enumerate() {
            if name.is_empty() && Some(at) < last {
                let dtype = ports[at].dtype.resolve(rows.dtype, rows.dtype);
                *name = self.b.none(dtype.unwrap_or(rows.dtype));
            }
        }
        let inputs = linear::Inputs::from_list(list.iter().map(String::as_str));
        let outputs = linear::Outputs { output: &*output };
        if let (Some(inputs), Some(domain)) = (inputs, self.b.lowering().custom.domain()) {
            let node = body::node(&operator, output.clone(), domain, inputs, outputs);
            self.b.extend(vec![node]);
        }
        let tensor = TensorType::new(rows.dtype, rows.with_width(out_features));
        let value = Value::new(output, tensor);
        // For tools that have no rule for it.
        self.b.declare(&value, 0);
        value
    }

    /// A norm and the linear layer after it, in the layer's type; an activation's between roundings.
    fn normed_linear(
        &mut self,
        stream: &Value,
        [norm, weight]: [Weight; 2],
        activation: Option<Activation>,
    ) -> Value {
        if self.b.lowering().products == Products::Operator {
            let rows = self.b.convert(stream, self.local);
            let around = Around {
                norm: Some(norm),
                activation,
                ..Around::default()
            };
            return self.product(&rows, weight, around);
        }
        let rows = self.norm(norm, stream);
        let rows = self.b.convert(&rows, self.local);
        let wide = self.linear(&rows, weight);
        let wide = self.b.convert(&wide, self.local);
        match activation {
            None => wide,
            Some(activation) => {
                let active = self.b.activation(activation, &wide);
                self.b.convert(&active, self.local)
            }
        }
    }

    /// A linear layer and the sum of its result and the residual stream, rounded once.
    fn residual_linear(
        &mut self,
        rows: &Value,
        gate: Option<&Value>,
        weight: Weight,
        stream: &Value,
        name: &str,
    ) -> Value {
        let dtype = self.dtype();
        if self.b.lowering().products == Products::Operator {
            let around = Around {
                gate: gate.cloned(),
                residual: Some(self.b.convert(stream, self.local)),
                ..Around::default()
            };
            let rows = self.b.convert(rows, self.local);
            let sum = self.product(&rows, weight, around);
            return self.b.convert_as(&sum, dtype, name);
        }
        let gated = gate.map(|gate| {
            let attended = self.b.convert(rows, F32);
            let gate = self.b.convert(gate, F32);
            let gate = self.b.elementwise("Sigmoid", &[&gate]);
            let gated = self.b.elementwise("Mul", &[&attended, &gate]);
            self.b.convert(&gated, self.local)
        });
        let change = self.linear(gated.as_ref().unwrap_or(rows), weight);
        let change = self.b.convert(&change, F32);
        let stream = self.b.convert(stream, F32);
        let sum = self.b.elementwise("Add", &[&stream, &change]);
        self.b.convert_as(&sum, dtype, name)
    }

    /// In f32.
    fn norm(&mut self, weight: Weight, rows: &Value) -> Value {
        let weight = self.weight(weight);
        let epsilon = self.sizes.spec.norm_eps as f32;
        self.b.rms_norm(rows, &weight, epsilon)
    }

    fn sequence_layer(&mut self, layer: usize, stream: &Value) -> Value {
        let Sizes { spec, shape, .. } = self.sizes;
        let d = spec.d_model;
        let chunk = |width| [shape.batch, self.sizes.seq_len, width];
        let (queries, keys) = (chunk(d), chunk(spec.d_kv()));
        self.b.set_prefix(&format!("layers.{layer}.seq."));
        self.enter(Weight::InProj(layer));
        let weights = [Weight::InputNorm(layer), Weight::InProj(layer)];
        let projected = self.normed_linear(stream, weights, None);
        let mut parts = self.b.split(&projected, &spec.in_proj_widths());
        // All but the output gate go to the operators.
        for part in &mut parts[1..] {
            *part = self.b.convert(part, shape.dtype);
        }
        let name = Tap::Query.name(layer);
        let query = self.b.reshape(&parts[1], &queries, Some(&name));
        let (gated_key, gated_value) = (Tap::GatedKey.name(layer), Tap::GatedValue.name(layer));
        let [gated_key, gated_value] = if spec.recurrence {
            let [key, value, gate] =
                [2, 3, 4].map(|part| self.b.reshape(&parts[part], &keys, None));
            let inputs = recurrence_scan::Inputs {
                key: &*key.name,
                value: &value.name,
                gate: &gate.name,
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
            let scan = RecurrenceScan {
                max_seq_len: Some(self.sizes.shape.max_seq_len),
            };
            let made = self.custom(&scan, layer, inputs, outputs);
            [made.gated_key, made.gated_value]
        } else {
            [(2, gated_key), (3, gated_value)]
                .map(|(part, name)| self.b.reshape(&parts[part], &keys, Some(&name)))
        };
        let attention = self.attention(layer, [&query, &gated_key, &gated_value]);
        let attended = self.b.reshape(&attention, &self.activations(d), None);
        let (weight, name) = (Weight::OutProj(layer), Tap::Mixed.name(layer));
        self.residual_linear(&attended, Some(&parts[0]), weight, stream, &name)
    }

    /// The operator that the layer's patterns ask for: its result.
    fn attention(&mut self, layer: usize, [query, key, value]: [&Value; 3]) -> Value {
        let spec = self.sizes.spec;
        let scale = (1.0 / (spec.d_head as f64).sqrt()) as f32;
        let past = |kind: StateKind| kind.past_name(layer);
        let present = |kind: StateKind| kind.present_name(layer);
        let (past_key, past_value) = (past(StateKind::Key), past(StateKind::Value));
        let (present_key, present_value) = (present(StateKind::Key), present(StateKind::Value));
        let output = Tap::Attention.name(layer);
        let [cos, sin] = ROTARY_TABLES;
        match spec.block_top_k(layer) {
            Some(blocks) => {
                let operator = BlockTopKAttention {
                    num_heads: spec.num_heads(),
                    num_kv_heads: spec.kv_heads(),
                    blocks,
                    scale,
                };
                let inputs = block_top_k_attention::Inputs {
                    query: &*query.name,
                    key: &key.name,
                    value: &value.name,
                    past_key: &past_key,
                    past_value: &past_value,
                    past_block: &past(StateKind::Block),
                    past_length: PAST_LENGTH,
                    seq_length: SEQ_LENGTH,
                    cos,
                    sin,
                };
                let outputs = block_top_k_attention::Outputs {
                    output: &*output,
                    present_key: &present_key,
                    present_value: &present_value,
                    present_block: &present(StateKind::Block),
                };
                self.custom(&operator, layer, inputs, outputs).output
            }
            None => {
                let operator = DilatedAttention {
                    num_heads: spec.num_heads(),
                    patterns: spec.kept_patterns(layer),
                    scale,
                };
                let inputs = dilated_attention::Inputs {
                    query: &*query.name,
                    key: &key.name,
                    value: &value.name,
                    past_key: &past_key,
                    past_value: &past_value,
                    past_length: PAST_LENGTH,
                    seq_length: SEQ_LENGTH,
                    cos,
                    sin,
                };
                let outputs = dilated_attention::Outputs {
                    output: &*output,
                    present_key: &present_key,
                    present_value: &present_value,
                };
                self.custom(&operator, layer, inputs, outputs).output
            }
        }
    }

    fn feed_forward(&mut self, layer: usize, stream: &Value) -> Value {
        self.b.set_prefix(&format!("layers.{layer}.ffn."));
        self.enter(Weight::Fc1(layer));
        let weights = [Weight::FfnNorm(layer), Weight::Fc1(layer)];
        let active = self.normed_linear(stream, weights, Some(self.sizes.spec.activation));
        let name = Tap::Hidden.name(layer);
        self.residual_linear(&active, None, Weight::Fc2(layer), stream, &name)
    }

    /// A RAT+ operator: what it makes.
    fn custom<'n, O: Definition + Into<Operator>>(
        &mut self,
        operator: &O,
        layer: usize,
        inputs: O::Inputs<&'n str>,
        outputs: O::Outputs<&'n str>,
    ) -> O::Outputs<Value>
    where
        O::Outputs<&'n str>: Copy,
    {
        let lowering = self.b.lowering();
        let shape = self.sizes.shape;
        let name = format!("layers.{layer}.{}", O::OP);
        let nodes = match lowering.custom.domain() {
            None => {
                let (body, prefix) = (self.sizes.body(), format!("{name}."));
                body::inline(operator, &body, lowering.casts, &prefix, inputs, outputs)
            }
            Some(domain) => {
                let mut node = body::node(operator, name, domain, inputs, outputs);
                if lowering.casts == LowCasts::Round {
                    let types = [shape.dtype, shape.cache_dtype];
                    node.attribute.extend(rounding_attributes(O::OP, types));
                }
                vec![node]
            }
        };
        self.b.extend(nodes);
        let mut names = outputs.into_list().into_iter();
        Ports::from_ports(|port| {
            let name = names.next().unwrap_or_default();
            let value = Value::new(name, self.port(O::OP, layer, port));
            if lowering.custom == CustomNodes::Plugins {
                let open = |axis: &&Axis| matches!(axis, Axis::Batch | Axis::SeqLen);
                self.b
                    .declare(&value, port.axes.iter().take_while(open).count());
            }
            value
        })
    }

    /// Type of an operator's port in a layer.
    fn port(&self, op: Op, layer: usize, port: &Port) -> TensorType {
        let Sizes { spec, shape, .. } = self.sizes;
        let sizes = port.axes.iter().map(|axis| match axis {
            Axis::Batch => shape.batch,
            Axis::SeqLen => self.sizes.seq_len,
            // The scan's are those of keys and values.
            Axis::Channels if op == Op::RecurrenceScan => spec.d_kv(),
            Axis::Channels => spec.d_model,
            Axis::KvChannels => spec.d_kv(),
            Axis::Rows => spec.cache_layout(layer, shape.max_seq_len).rows(),
            Axis::BlockRows => spec.summary_rows(layer, shape.max_seq_len),
            Axis::HeadDim => spec.d_head,
            Axis::MaxSeqLen => shape.max_seq_len,
            Axis::HalfHeadDim => spec.d_head / 2,
            // Of no operator that is declared here.
            Axis::InFeatures
            | Axis::OutFeatures
            | Axis::Stored
            | Axis::Scales
            | Axis::ZeroPoints => 0,
        });
        let dtype = port.dtype.resolve(shape.dtype, shape.cache_dtype);
        let dtype = dtype.unwrap_or(shape.dtype);
        TensorType::new(dtype, sizes.collect::<Vec<_>>())
    }
}
