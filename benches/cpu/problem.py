"""Problems: shapes, inputs, and the literal model's results, whole or for sampled queries."""

from dataclasses import dataclass

import numpy as np

from operators.dilated_attention import DilatedAttention, attention, rotate
from operators.recurrence_scan import RecurrenceScan, recurrence
from plugin_models import numpy_type

BLOCK = 1 << 20
ALIGNMENT = 64


@dataclass(frozen=True)
class Shape:
    """One problem, batch 1. `seq_len` counts tokens; for `decode` those of the sequence with the new one."""

    part: str
    heads: int
    head_dim: int
    seq_len: int
    patterns: tuple = ()  # one, or one a head; none for the scan
    dtype: str = "f32"

    @property
    def width(self):
        return self.heads * self.head_dim

    @property
    def pattern(self):
        """The one pattern of all heads; None for a hybrid or the scan."""
        return self.patterns[0] if len(self.patterns) == 1 else None

    @property
    def element_bytes(self):
        return numpy_type(self.dtype).itemsize

    def head_patterns(self):
        return list(self.patterns) * (self.heads // len(self.patterns))

    def scan_node(self, seq_len):
        return RecurrenceScan(1, seq_len, self.width, self.seq_len)

    def attention_node(self, seq_len):
        uniform = len(self.patterns) == 1
        return DilatedAttention(1, seq_len, self.head_dim, self.seq_len, self.head_patterns(), uniform)

    def pairs(self):
        """Visible query-key pairs of all heads; of the last query alone for `decode`."""
        queries = np.arange(self.seq_len - 1 if self.part == "decode" else 0, self.seq_len)
        return sum(int(visible_count(pattern, queries).sum()) for pattern in self.head_patterns())

    def flops(self):
        """Useful arithmetic: both products of every visible pair."""
        return 4 * self.head_dim * self.pairs() if self.patterns else 0

    def least_bytes(self):
        """What has to move: the scan's five tensors, the rows that a decode step sees; else 0."""
        if self.part == "scan":
            return 5 * self.seq_len * self.width * self.element_bytes
        return 2 * self.pairs() * self.head_dim * self.element_bytes if self.part == "decode" else 0

    def row(self):
        """What a row of results is told apart by."""
        patterns = [[p.dilation, p.window, p.initial] for p in self.patterns]
        return {
            "part": self.part, "heads": self.heads, "head_dim": self.head_dim, "seq_len": self.seq_len,
            "patterns": patterns, "dtype": self.dtype,
        }  # fmt: skip

    def __str__(self):
        patterns = " ".join(f"D={p.dilation} W={p.window} I={p.initial}" for p in self.patterns)
        return f"{self.part} T={self.seq_len} {self.heads}x{self.head_dim} {self.dtype} {patterns}".rstrip()


def visible_count(pattern, queries):
    """How many keys each query sees, itself included."""
    start = np.maximum(queries - pattern.window, 0)
    initial = np.minimum(pattern.initial, start)
    dilated = start // pattern.dilation - initial // pattern.dilation if pattern.dilation > 0 else 0
    return initial + dilated + (queries + 1 - start)


def visible_keys(pattern, query):
    """Positions of the keys that a query sees, ascending."""
    keys = np.arange(query + 1)
    seen = (query - keys <= pattern.window) | (keys < pattern.initial)
    if pattern.dilation > 0:
        seen |= (keys + 1) % pattern.dilation == 0
    return keys[seen]


def aligned(shape, dtype):
    """An array that begins where ONNX Runtime's and PyTorch's allocators would begin it."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(count + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count].view(dtype).reshape(shape)


def filled(rng, shape, dtype):
    """Normal values; a large array repeats a block of them."""
    array = aligned(shape, dtype)
    flat = array.reshape(-1)
    block = rng.standard_normal(min(BLOCK, flat.size), np.float32).astype(dtype)
    for start in range(0, flat.size, BLOCK):
        flat[start : start + BLOCK] = block[: flat.size - start]
    return array


class Inputs:
    """Token-major tensors `[T, H*dh]` of a problem in its dtype; `history` says whether a decode step needs a
    cache that was really written, or any finite rows do."""

    def __init__(self, shape, seed=1, history=False):
        rng = np.random.default_rng(seed)
        tokens = shape.seq_len if shape.part != "decode" or history else 1
        make = lambda: filled(rng, (tokens, shape.width), numpy_type(shape.dtype))  # noqa: E731
        self.shape, self.history, self.rng = shape, history, rng
        self.query = make() if shape.part != "scan" else None
        self.key, self.value = make(), make()
        self.gate = make() if shape.part != "attention" else None
        self._rotated = None

    @staticmethod
    def bytes_needed(shape):
        """Memory that they take."""
        tokens = 1 if shape.part == "decode" else shape.seq_len
        return (3 if shape.part in ("scan", "attention") else 4) * tokens * shape.width * shape.element_bytes

    def exact(self, span=slice(None)):
        """Query, key, value and gate in f64, some columns of them; None for what the problem lacks."""
        tensors = (self.query, self.key, self.value, self.gate)
        return [x if x is None else x[:, span].astype(np.float64) for x in tensors]

    def rotated(self):
        """Query and key `[T, H*dh]` f32 after rotary embedding, for those that do not rotate."""
        if self._rotated is None:
            shape = self.shape
            tables = shape.attention_node(shape.seq_len).tables()
            split = lambda x: x.astype(np.float32).reshape(shape.seq_len, shape.heads, shape.head_dim)  # noqa: E731
            cos, sin = tables["cos"][:, None], tables["sin"][:, None]
            self._rotated = [rotate(split(x), cos, sin).reshape(x.shape) for x in (self.query, self.key)]
        return self._rotated


def exact(shape, inputs):
    """The literal model's results in f64: `[T, H*dh]` each; of the last token for `decode`."""
    query, key, value, gate = inputs.exact()
    if shape.part != "attention":
        key, value = recurrence(key, value, gate)
    if shape.part == "scan":
        return [key, value]
    output = attention(shape.attention_node(shape.seq_len), query, key, value)
    return [output[-1:] if shape.part == "decode" else output]


def sampled(shape, inputs, positions):
    """The literal model's results at some positions for the first and the last head, in f64:
    `(columns, rows)` pairs, rows `[positions, dh]`."""
    results = []
    for head in sorted({0, shape.heads - 1}):
        span = slice(head * shape.head_dim, (head + 1) * shape.head_dim)
        query, key, value, gate = inputs.exact(span)
        if shape.part != "attention":
            key, value = recurrence(key, value, gate)
        if shape.part == "scan":
            results.append((span, [key[positions], value[positions]]))
            continue
        tables = shape.attention_node(shape.seq_len).tables()
        cos, sin = (tables[name].astype(np.float64) for name in ("cos", "sin"))
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        rows = []
        for position in positions:
            keys = visible_keys(shape.head_patterns()[head], position)
            scores = key[keys] @ query[position] / np.sqrt(shape.head_dim)
            weights = np.exp(scores - scores.max())
            rows.append(weights @ value[keys] / weights.sum())
        results.append((span, [np.array(rows)]))
    return results


def relative_error(found, wanted):
    """Largest difference over the largest value wanted; infinite where a value is not finite."""
    worst = 0.0
    for got, want in zip(found, wanted, strict=True):
        got = np.asarray(got).astype(np.float64)
        if got.shape != want.shape or not np.isfinite(got).all():
            return float("inf")
        worst = max(worst, float(np.abs(got - want).max() / np.abs(want).max()))
    return worst

