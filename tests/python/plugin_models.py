"""One-node ONNX models of the two operators, and what they must compute: the definition in f64,
over the full history with the literal mask."""

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper

DOMAIN = "ai.ratplus"
PLUGIN = {"plugin_namespace": DOMAIN, "plugin_version": "1"}
# Name -> (numpy type, ONNX type).
DTYPES = {
    "f32": (np.dtype(np.float32), TensorProto.FLOAT),
    "f16": (np.dtype(np.float16), TensorProto.FLOAT16),
    "bf16": (np.dtype(ml_dtypes.bfloat16), TensorProto.BFLOAT16),
}
ONNX_TYPES = {numpy: onnx for numpy, onnx in DTYPES.values()} | {np.dtype(np.int64): TensorProto.INT64}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


@dataclass(frozen=True)
class Pattern:
    dilation: int
    window: int
    initial: int

    def visible(self, i, j):
        dilated = self.dilation > 0 and (j + 1) % self.dilation == 0
        return j <= i and (dilated or i - j <= self.window or j < self.initial)

    def rows(self, max_seq_len):
        return self.initial + self.window + (max_seq_len // self.dilation if self.dilation > 0 else 0)


def random_pattern(rng):
    dilation = int(rng.choice([-1, 1, 2, 3, 5, 8]))
    return Pattern(dilation, int(rng.integers(0, 9)), int(rng.integers(0, 6)))


@dataclass
class Scan:
    """Shapes of a RecurrenceScan node."""

    batch: int
    seq_len: int
    channels: int
    op = "RecurrenceScan"

    def attributes(self):
        return {}

    def inputs(self, t):
        chunk, state = (self.batch, self.seq_len, self.channels), (self.batch, self.channels)
        return {
            "key": (t, chunk), "value": (t, chunk), "gate": (t, chunk),
            "state_key": ("f32", state), "state_value": ("f32", state),
            "past_length": ("i64", (self.batch,)), "seq_length": ("i64", (self.batch,)),
        }  # fmt: skip

    def outputs(self, t):
        chunk, state = (self.batch, self.seq_len, self.channels), (self.batch, self.channels)
        return {
            "gated_key": (t, chunk), "gated_value": (t, chunk),
            "new_state_key": ("f32", state), "new_state_value": ("f32", state),
        }  # fmt: skip

    states = {"state_key": "new_state_key", "state_value": "new_state_value"}
    chunks = ("key", "value", "gate")
    results = ("gated_key", "gated_value")


@dataclass
class Attention:
    """Shapes and attributes of a DilatedAttention node."""

    batch: int
    seq_len: int
    head_dim: int
    max_seq_len: int
    patterns: list
    uniform: bool = False  # write one value per list where the patterns agree
    cache: str = ""  # type of the cache, where it is another than that of the activations
    op = "DilatedAttention"

    @property
    def heads(self):
        return len(self.patterns)

    @property
    def scale(self):
        return float(np.float32(1 / np.sqrt(self.head_dim)))

    def attributes(self):
        patterns = self.patterns[:1] if self.uniform else self.patterns
        return {
            "num_heads": self.heads,
            "dilation": [p.dilation for p in patterns],
            "local_window": [p.window for p in patterns],
            "initial": [p.initial for p in patterns],
            "scale": self.scale,
        }

    def inputs(self, t):
        chunk = (self.batch, self.seq_len, self.heads * self.head_dim)
        cache = (self.batch, self.rows(), self.head_dim)
        table = (self.max_seq_len, self.head_dim // 2)
        return {
            "query": (t, chunk), "key": (t, chunk), "value": (t, chunk),
            "past_key": (self.cache or t, cache), "past_value": (self.cache or t, cache),
            "past_length": ("i64", (self.batch,)), "seq_length": ("i64", (self.batch,)),
            "cos": ("f32", table), "sin": ("f32", table),
        }  # fmt: skip

    def outputs(self, t):
        chunk = (self.batch, self.seq_len, self.heads * self.head_dim)
        cache = (self.batch, self.rows(), self.head_dim)
        c = self.cache or t
        return {"output": (t, chunk), "present_key": (c, cache), "present_value": (c, cache)}

    def rows(self):
        return sum(p.rows(self.max_seq_len) for p in self.patterns)

    def tables(self):
        half = self.head_dim // 2
        angles = np.arange(self.max_seq_len)[:, None] * 10000.0 ** (-np.arange(half) / half)
        return {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}

    states = {"past_key": "present_key", "past_value": "present_value"}
    chunks = ("query", "key", "value")
    results = ("output",)


def numpy_type(name):
    return np.dtype(np.int64) if name == "i64" else DTYPES[name][0]


def onnx_type(name):
    return TensorProto.INT64 if name == "i64" else DTYPES[name][1]


@dataclass
class ModelOptions:
    """What differs from the plain model of a node."""

    attributes: dict = field(default_factory=dict)  # replaced; None removes one
    shapes: dict = field(default_factory=dict)  # of inputs, replaced
    casts: bool = False  # f32 outside, Cast nodes around the operator
    functions: list = field(default_factory=list)


def build_model(node, t="f32", options=None):
    """The bytes of a model of one node."""
    options = options or ModelOptions()
    attributes = PLUGIN | node.attributes() | options.attributes
    attributes = {name: value for name, value in attributes.items() if value is not None}
    inputs, outputs = node.inputs(t), node.outputs(t)
    inputs |= {name: (inputs[name][0], shape) for name, shape in options.shapes.items()}
    nodes, names, made = [], [], []
    cast = {name: options.casts and dtype in (t, "f16", "bf16") for name, (dtype, _) in (inputs | outputs).items()}
    outer = {name: "f32" if cast[name] else dtype for name, (dtype, _) in (inputs | outputs).items()}
    for name, (dtype, _) in inputs.items():
        inner = name
        if cast[name]:
            inner = f"{name}_cast"
            nodes.append(helper.make_node("Cast", [name], [inner], to=onnx_type(dtype)))
        names.append(inner)
    tail = []
    for name, (dtype, _) in outputs.items():
        inner = name
        if cast[name]:
            inner = f"{name}_cast"
            tail.append(helper.make_node("Cast", [inner], [name], to=TensorProto.FLOAT))
        made.append(inner)
    nodes.append(helper.make_node(node.op, names, made, name="the_node", domain=DOMAIN, **attributes))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes + tail,
        "one_node",
        [info(name, onnx_type(outer[name]), shape) for name, (_, shape) in inputs.items()],
        [info(name, onnx_type(outer[name]), None if options.shapes else shape) for name, (_, shape) in outputs.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=options.functions)
    return model.SerializeToString()


def scan_reference(key, value, gate):
    """Gated keys and values of one sequence, [T, N] in f64."""
    g = sigmoid(gate)
    state_key, state_value = np.zeros(key.shape[1]), np.zeros(key.shape[1])
    gated = np.empty_like(key), np.empty_like(value)
    for t in range(len(key)):
        state_key = g[t] * state_key + (1 - g[t]) * key[t]
        state_value = g[t] * state_value + (1 - g[t]) * value[t]
        gated[0][t], gated[1][t] = state_key, state_value
    return gated


def rotate(x, cos, sin):
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def attention_reference(node, query, key, value, round_key=lambda key: key, round_operand=lambda x: x):
    """Outputs of one sequence, [T, H*dh] in f64. `round_key` is applied to rotated keys,
    `round_operand` to what matrix products take besides: rotated queries and weights."""
    length = len(query)
    tables = node.tables()
    cos, sin = (tables[name][:length].astype(np.float64) for name in ("cos", "sin"))
    output = np.empty_like(query)
    for head, pattern in enumerate(node.patterns):
        span = slice(head * node.head_dim, (head + 1) * node.head_dim)
        q, k = rotate(query[:, span], cos, sin), round_key(rotate(key[:, span], cos, sin))
        mask = np.array([[pattern.visible(i, j) for j in range(length)] for i in range(length)])
        scores = np.where(mask, node.scale * (round_operand(q) @ k.T), -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        output[:, span] = round_operand(weights / weights.sum(axis=1, keepdims=True)) @ value[:, span]
    return output
