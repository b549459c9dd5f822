"""Problems: shapes, inputs, and the literal model's results, whole or for sampled queries."""

from dataclasses import dataclass

import numpy as np

import choices
from operators.block_top_k_attention import BlockTopKAttention
from operators.dilated_attention import DilatedAttention, rotate
from operators.recurrence_scan import RecurrenceScan, recurrence
from plugin_models import numpy_type

BLOCK = 1 << 20
ALIGNMENT = 64


@dataclass(frozen=True)
class Shape:
    """One problem, batch 1. `seq_len` counts tokens; for `decode` those of the sequence with the new one. The
    recurrence is of as many heads as keys and values have."""

    part: str
    heads: int
    head_dim: int
    seq_len: int
    patterns: tuple = ()  # one, or one a key-value head; none for the scan and where blocks are chosen
    dtype: str = "f32"
    group: int = 1  # query heads a key-value head
    blocks: choices.Blocks | None = None  # what every query head chooses for itself

    @property
    def width(self):
        return self.heads * self.head_dim

    @property
    def kv_heads(self):
        return self.heads // self.group

    @property
    def kv_width(self):
        return self.kv_heads * self.head_dim

    @property
    def pattern(self):
        """The one pattern of all heads; None for a hybrid, for chosen blocks and for the scan."""
        return self.patterns[0] if len(self.patterns) == 1 else None

    @property
    def numpy_type(self):
        return numpy_type(self.dtype)

    @property
    def element_bytes(self):
        return self.numpy_type.itemsize

    def head_patterns(self):
        """Of the key-value heads."""
        return list(self.patterns) * (self.kv_heads // len(self.patterns))

    def scan_node(self, seq_len):
        return RecurrenceScan(1, seq_len, self.kv_width, self.seq_len)

    def attention_node(self, seq_len):
        sizes = (1, seq_len, self.head_dim, self.seq_len)
        if self.blocks:
            blocks = (self.blocks.size, self.blocks.top_k, self.blocks.score)
            return BlockTopKAttention(*sizes, self.kv_heads, *blocks, group=self.group)
        return DilatedAttention(*sizes, self.head_patterns(), len(self.patterns) == 1, group=self.group)

    def operators(self):
        """Names of those that the part is made of."""
        scan = [] if self.part == "attention" else [self.scan_node(1).op]
        return scan + ([] if self.part == "scan" else [self.attention_node(1).op])

    def cache_rows(self):
        """Rows of keys that are kept, of all heads."""
        return self.kv_heads * self.seq_len if self.blocks else self.attention_node(1).rows()

    def pairs(self):
        """Visible query-key pairs of all query heads; of the last query alone for `decode`."""
        queries = np.arange(self.seq_len - 1 if self.part == "decode" else 0, self.seq_len)
        if self.blocks:
            return self.heads * int(self.blocks.visible_count(queries).sum())
        return self.group * sum(int(visible_count(pattern, queries).sum()) for pattern in self.head_patterns())

    def flops(self):
        """Useful arithmetic: both products of every visible pair."""
        return 0 if self.part == "scan" else 4 * self.head_dim * self.pairs()

    def least_bytes(self):
        """What has to move: the scan's five tensors, the rows and summaries that a decode step sees; else 0."""
        if self.part == "scan":
            return 5 * self.seq_len * self.width * self.element_bytes
        if self.part != "decode":
            return 0
        if self.blocks:
            rows = 2 * self.pairs() * self.head_dim * self.element_bytes
            return rows + 4 * self.kv_heads * self.blocks.scored_rows(self.seq_len - 1) * self.head_dim
        return 2 * (self.pairs() // self.group) * self.head_dim * self.element_bytes

    def row(self):
        """What a row of results is told apart by."""
        patterns = [[p.dilation, p.window, p.initial] for p in self.patterns]
        blocks = self.blocks and [self.blocks.size, self.blocks.top_k, self.blocks.score]
        return {
            "part": self.part, "heads": self.heads, "head_dim": self.head_dim, "seq_len": self.seq_len,
            "patterns": patterns, "dtype": self.dtype, "kv_heads": self.kv_heads, "blocks": blocks,
        }  # fmt: skip

    def __str__(self):
        seen = " ".join(f"D={p.dilation} W={p.window} I={p.initial}" for p in self.patterns)
        heads = f"{self.heads}/{self.kv_heads}" if self.group > 1 else f"{self.heads}"
        return f"{self.part} T={self.seq_len} {heads}x{self.head_dim} {self.dtype} {self.blocks or seen}".rstrip()


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
    """Token-major tensors `[T, H*dh]` of a problem in its dtype, of keys, values and gates as many heads as those
    have; `history` says whether a decode step needs a cache that was really written, or any finite rows do. Where
    blocks are chosen, the queries that are compared are those whose choice no rounding changes."""

    def __init__(self, shape, seed=1, history=False):
        rng = np.random.default_rng(seed)
        tokens = shape.seq_len if shape.part != "decode" or history else 1
        make = lambda width: filled(rng, (tokens, width), shape.numpy_type)  # noqa: E731
        self.shape, self.history, self.rng = shape, history, rng
        self.query = make(shape.width) if shape.part != "scan" else None
        self.key, self.value = make(shape.kv_width), make(shape.kv_width)
        self.gate = make(shape.kv_width) if shape.part != "attention" else None
        self._rotated = None
        if shape.blocks and tokens == shape.seq_len:
            self.choose_clearly()

    @staticmethod
    def bytes_needed(shape):
        """Memory that they take."""
        tokens = 1 if shape.part == "decode" else shape.seq_len
        gate = 0 if shape.part == "attention" else shape.kv_width
        query = 0 if shape.part == "scan" else shape.width
        return (query + 2 * shape.kv_width + gate) * tokens * shape.element_bytes

    def exact(self):
        """Query, key, value and gate in f64; None for what the problem lacks."""
        tensors = (self.query, self.key, self.value, self.gate)
        return [x if x is None else x.astype(np.float64) for x in tensors]

    def exact_head(self, head):
        """Of one query head: its queries, the keys and values after the recurrence, where there is one, in f64;
        queries and keys after rotary embedding, where there is an attention."""
        shape = self.shape
        span, kv_span = head_span(shape, head), head_span(shape, head // shape.group)
        cut = lambda x, span: x if x is None else x[:, span].astype(np.float64)  # noqa: E731
        query, gate = cut(self.query, span), cut(self.gate, kv_span)
        key, value = cut(self.key, kv_span), cut(self.value, kv_span)
        if gate is not None:
            key, value = recurrence(key, value, gate)
        if query is not None:
            cos, sin = self.tables()
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        return query, key, value

    def tables(self):
        """Cosines and sines in f64."""
        tables = self.shape.attention_node(self.shape.seq_len).tables()
        return [tables[name].astype(np.float64) for name in ("cos", "sin")]

    def choose_clearly(self):
        """Draws the queries that are compared again: all of those whose inputs are a check's, else sampled ones."""
        shape, (cos, sin) = self.shape, self.tables()
        positions = range(shape.seq_len) if self.history else sampled_positions(shape)
        for head in range(shape.heads) if self.history else sampled_heads(shape):
            _, key, _ = self.exact_head(head)
            summaries, span = shape.blocks.summaries(key), head_span(shape, head)
            for position in positions:
                turn = lambda x: rotate(x.astype(np.float64), cos[position], sin[position])  # noqa: E731, B023
                query = choices.clear_query(self.rng, shape, summaries, position, turn)
                if query is not None:
                    self.query[position, span] = query

    def rotated(self):
        """Query and key `[T, H*dh]` f32 after rotary embedding, for those that do not rotate."""
        if self._rotated is None:
            cos, sin = (table.astype(np.float32)[:, None] for table in self.tables())
            split = lambda x: x.astype(np.float32).reshape(self.shape.seq_len, -1, self.shape.head_dim)  # noqa: E731
            self._rotated = [rotate(split(x), cos, sin).reshape(x.shape) for x in (self.query, self.key)]
        return self._rotated


def exact(shape, inputs):
    """The literal model's results in f64: `[T, H*dh]` each; of the last token for `decode`."""
    query, key, value, gate = inputs.exact()
    if shape.part != "attention":
        key, value = recurrence(key, value, gate)
    if shape.part == "scan":
        return [key, value]
    output = shape.attention_node(shape.seq_len).model({"query": query, "key": key, "value": value})["output"]
    return [output[-1:] if shape.part == "decode" else output]


def head_span(shape, head):
    """The columns of a head."""
    return slice(head * shape.head_dim, (head + 1) * shape.head_dim)


def sampled_positions(shape):
    """Queries that a prompt's results are compared at."""
    return np.unique(np.linspace(0, shape.seq_len - 1, 16).astype(int))


def sampled_heads(shape):
    """Query heads that a prompt's results are compared at."""
    return sorted({0, shape.heads - 1})


def sampled(shape, inputs):
    """The literal model's results at the sampled positions and heads, in f64: `(columns, rows)` pairs, rows
    `[positions, dh]`."""
    results, positions = [], sampled_positions(shape)
    for head in sampled_heads(shape):
        query, key, value = inputs.exact_head(head)
        span = head_span(shape, head)
        if shape.part == "scan":
            results.append((span, [key[positions], value[positions]]))
            continue
        summaries = shape.blocks and shape.blocks.summaries(key)
        rows = []
        for position in positions:
            if shape.blocks:
                keys = shape.blocks.visible_keys(summaries, query[position], position)
            else:
                keys = visible_keys(shape.head_patterns()[head // shape.group], position)
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

