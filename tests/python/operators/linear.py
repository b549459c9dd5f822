"""Linear: a product, and what may surround it, in f64."""

import math
from dataclasses import dataclass, replace

import numpy as np
from operators import EXACT, Node
from plugin_models import DTYPES, numpy_type

EPSILON = 1e-6
ERF = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


ACTIVATIONS = {
    "gelu": lambda x: x * (1 + ERF(x / np.sqrt(2))) / 2,
    "fastgelu": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x * sigmoid(x),
    "relu": lambda x: np.maximum(x, 0),
    "relusquared": lambda x: np.maximum(x, 0) ** 2,
}


def rounded_to_bytes(rows, block_size):
    """Blocks of rows in steps of a 127th of their largest magnitude, in f32."""
    padding = -rows.shape[-1] % block_size
    blocks = np.pad(rows, ((0, 0), (0, padding))).reshape(len(rows), -1, block_size).astype(np.float32)
    steps = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    integers = np.round(blocks / np.where(steps == 0, np.float32(1), steps))
    return (integers.astype(np.float64) * steps).reshape(len(rows), -1)[:, : rows.shape[-1]]


@dataclass
class Linear(Node):
    batch: int
    seq_len: int
    in_features: int
    out_features: int
    weight_type: str
    block_size: int = None
    symmetric: bool = True
    around: str = ""  # norm, gate
    residual: bool = False
    activation: str = None
    activations: str = None  # int8
    max_seq_len: int = 50
    seed: int = 0

    product = 32
    has_body = False
    bad_attributes = (
        ({"in_features": 0}, ["attribute in_features: expected 1 to ", "found 0"]),
        ({"out_features": -3}, ["attribute out_features: expected 1 to ", "found -3"]),
        ({"weight_type": "f64"}, ["attribute weight_type: expected f32, f16, bf16, int8 or int4, found \"f64\""]),
        ({"block_size": 24}, ["attribute block_size: expected one of [16, 32, 64, 128, 256], found 24"]),
        ({"weight_type": "bf16"}, ["attribute block_size: expected none beside floats, found 32"]),
        ({"activations": "int4"}, ["attribute activations: expected float or int8, found \"int4\""]),
        ({"weight_type": "f16", "block_size": None, "activations": "int8"}, ["attribute activations: expected float beside a matrix of f16"]),
        ({"activation": "tanh"}, ["attribute activation: expected one of gelu, ", "found \"tanh\""]),
        ({"activation": "gelu"}, ["residual: expected none beside an activation, found a tensor"]),
        ({"epsilon": 2.0}, ["attribute epsilon: expected 0 to 1, found 2"]),
        ({"epsilon": None}, ["norm: expected none without the attribute epsilon, found a tensor"]),
        ({"weight_type": "f32", "block_size": None}, ["scales: expected none beside a matrix of f32, found a tensor"]),
    )

    @classmethod
    def random(cls, rng):
        weight_type = rng.choice([*DTYPES, "int8", "int4"])
        activation = rng.choice([None, *ACTIVATIONS])
        around = str(rng.choice(["", "norm", "gate"]))
        # A rounding to T that goes the other way may take one to bytes with it.
        rounded = "int" in weight_type and not around and rng.integers(2)
        return cls(
            3, 1, int(rng.choice([1, 24, 96, 1100])), int(rng.choice([1, 7, 70])), str(weight_type),
            block_size=int(rng.choice([16, 32, 128])) if "int" in weight_type else None,
            symmetric=bool(rng.integers(2)), around=around, activations="int8" if rounded else None,
            activation=activation, residual=activation is None and bool(rng.integers(2)),
            seed=int(rng.integers(1000)),
        )  # fmt: skip

    @classmethod
    def example(cls):
        return cls(2, 5, 72, 9, "int4", block_size=32, symmetric=False, around="norm", residual=True)

    @property
    def bits(self):
        return {"int8": 8, "int4": 4}.get(self.weight_type, 0)

    @property
    def blocks(self):
        return -(-self.in_features // self.block_size) if self.bits else 0

    def dims(self):
        row = self.blocks * self.block_size * self.bits // 8 if self.bits else self.in_features
        points = -(-self.blocks * self.bits // 8) if self.bits and not self.symmetric else 0
        return {
            "B": self.batch, "L": self.seq_len, "in_features": self.in_features, "out_features": self.out_features,
            "stored": row, "scales": self.out_features * self.blocks, "zero_points": self.out_features * points,
        }  # fmt: skip

    def attributes(self):
        return {
            "in_features": self.in_features, "out_features": self.out_features, "weight_type": self.weight_type,
            "block_size": self.block_size, "activations": self.activations, "activation": self.activation,
            "epsilon": EPSILON if self.around == "norm" else None,
        }  # fmt: skip

    def carried(self):
        return self if self.bits else replace(self, weight_type="f32")

    def has(self, name):
        known = {"scales": self.bits, "zero_points": self.bits and not self.symmetric, "residual": self.residual}
        return bool(known.get(name, name not in ("norm", "gate") or self.around == name))

    def ports(self):
        return [port for port in self.schema()["inputs"] if self.has(port["name"])]

    def inputs(self, t):
        made = {}
        for name, (dtype, shape) in super().inputs(t).items():
            dtype = ("u8" if self.bits else self.weight_type) if dtype == "W" else dtype
            made[name] = (dtype, shape if self.has(name) else (0,))
        return made

    def _random(self):
        return np.random.default_rng(self.seed)

    def _stored(self):
        """The constants, and the matrix."""
        rng, rows, size = self._random(), self.out_features, 2 / np.sqrt(self.in_features)
        if not self.bits:
            weight = (size * rng.standard_normal((rows, self.in_features))).astype(numpy_type(self.weight_type))
            return {"weight": weight}, weight.astype(np.float64)
        integers = rng.integers(0, 1 << self.bits, (rows, self.blocks, self.block_size))
        scales = (size * rng.uniform(0.2, 1, (rows, self.blocks)) / (1 << self.bits - 1)).astype(np.float32)
        points = rng.integers(0, 1 << self.bits, (rows, self.blocks))
        middle = np.full_like(points, 1 << (self.bits - 1))
        zeros = middle if self.symmetric else points
        matrix = (scales.astype(np.float64)[..., None] * (integers - zeros[..., None])).reshape(rows, -1)

        def packed(values):
            values = values.astype(np.uint8)
            if self.bits == 8:
                return values
            values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, values.shape[-1] % 2)])
            return values[..., ::2] | values[..., 1::2] << 4

        constants = {"weight": packed(integers).reshape(rows, -1), "scales": scales.reshape(-1)}
        if not self.symmetric:
            constants["zero_points"] = packed(points).reshape(-1)
        return constants, matrix[:, : self.in_features]

    def _norm(self, t="f32"):
        return np.random.default_rng(self.seed + 1).uniform(0.5, 1.5, self.in_features).astype(numpy_type(t))

    def tables(self, t="f32"):
        constants, _ = self._stored()
        if self.around == "norm":
            # Values that every type has.
            constants["norm"] = self._norm("bf16").astype(numpy_type(t))
        absent = {name: (dtype, shape) for name, (dtype, shape) in self.inputs(t).items() if not self.has(name)}
        return constants | {name: np.zeros(shape, numpy_type(dtype)) for name, (dtype, shape) in absent.items()}

    @property
    def lengths(self):
        return ["seq_length"]

    def model(self, tokens, rounding=EXACT):
        x = tokens["input"]
        to_type = rounding.cache
        if self.around == "norm":
            x = to_type(x / np.sqrt((x**2).mean(axis=1, keepdims=True) + EPSILON) * self._norm("bf16").astype(np.float64))
        if self.around == "gate":
            x = to_type(x * sigmoid(tokens["gate"]))
        if self.activations == "int8":
            x = rounded_to_bytes(x, self.block_size)
        y = x @ self._stored()[1].T
        if self.residual:
            y = y + tokens["residual"]
        if self.activation:
            y = ACTIVATIONS[self.activation](to_type(y))
        return {"output": y}
