"""BlockTopKAttention: the definition in f64, over the full history with the literal mask; the cache's rows and summaries."""

from dataclasses import dataclass

import numpy as np

from operators import EXACT, Node
from operators.dilated_attention import Pattern, rotate
from plugin_models import numpy_type


@dataclass
class BlockTopKAttention(Node):
    """Queries, keys and tables are small whole numbers, quarters and quarter turns: every score of a block is exact in
    any type, so that a choice can be compared, and ties are many."""

    batch: int
    seq_len: int
    head_dim: int
    max_seq_len: int
    kv_heads: int
    size: int
    top_k: int
    score: str
    beside: Pattern = Pattern(-1, 0, 0)
    cache: str = ""
    group: int = 1  # query heads a key-value head
    turns: int = 0
    states_are_exact = True
    bad_attributes = (
        ({"score": "max"}, ["attribute score: expected `bounds` or `mean`, found `max`"]),
        ({"block_size": 0}, ["attribute block_size is 0, expected 1 or more and less than 2^31"]),
        ({"top_k": 0, "block_size": -5}, ["attribute block_size is -5", "attribute top_k is 0"]),
        ({"dilation": 0}, ["attribute dilation is 0, expected -1 (none) or 1 or more"]),
        ({"local_window": -1}, ["attribute local_window is -1"]),
        ({"num_heads": 0}, ["num_heads: expected 1 to 65536, found 0"]),
        ({"num_kv_heads": 2}, ["num_kv_heads: expected a divisor of num_heads 3, found 2"]),
        ({"scale": float("nan")}, ["scale: expected a finite number, found NaN"]),
    )
    bad_shapes = (
        (
            {"past_key": (2, 59, 8), "past_value": (2, 59, 8)},
            ["R: expected 60 rows of keys of 3 heads for sequences of 20, found 59"],
        ),
        ({"past_block": (2, 15, 8)}, ["Rb: expected 30 rows of summaries of 3 heads for sequences of 20, found 15"]),
        ({"cos": (20, 3), "sin": (20, 3)}, ["cos, sin: expected dh/2 = 4, found 3"]),
    )

    @classmethod
    def random(cls, rng):
        beside = Pattern(int(rng.choice([-1, -1, 3, 8])), int(rng.choice([0, 0, 5])), int(rng.choice([0, 0, 3])))
        return cls(
            3, 1, int(rng.choice([2, 6, 16, 64])), 50, int(rng.integers(1, 4)),
            size=int(rng.choice([1, 3, 4, 8, 16, 60])), top_k=int(rng.choice([1, 2, 3, 7, 100])), score=str(rng.choice(["bounds", "mean"])),
            beside=beside, group=int(rng.choice([1, 1, 2, 5])), turns=int(rng.integers(1 << 30)),
        )  # fmt: skip

    @classmethod
    def example(cls):
        return cls(2, 5, 8, 20, 3, 4, 2, "bounds")

    @property
    def heads(self):
        return self.kv_heads * self.group

    @property
    def scale(self):
        return float(np.float32(1 / np.sqrt(self.head_dim)))

    @property
    def blocks(self):
        return -(-self.max_seq_len // self.size)

    @property
    def parts(self):
        return {"bounds": 2, "mean": 1}[self.score]

    def dims(self):
        return {
            "B": self.batch, "L": self.seq_len, "N": self.heads * self.head_dim, "Nkv": self.kv_heads * self.head_dim,
            "R": self.kv_heads * self.max_seq_len, "Rb": self.kv_heads * self.blocks * self.parts,
            "dh": self.head_dim, "M": self.max_seq_len, "dh/2": self.head_dim // 2,
        }  # fmt: skip

    def attributes(self):
        grouped = {"num_kv_heads": self.kv_heads} if self.group > 1 else {}
        return {
            "num_heads": self.heads,
            **grouped,
            "dilation": self.beside.dilation,
            "local_window": self.beside.window,
            "initial": self.beside.initial,
            "block_size": self.size,
            "top_k": self.top_k,
            "score": self.score,
            "scale": self.scale,
        }

    def tables(self, t="f32"):
        turns = np.random.default_rng(self.turns).integers(4, size=(self.max_seq_len, self.head_dim // 2))
        cos, sin = np.array([1, 0, -1, 0], np.float32), np.array([0, 1, 0, -1], np.float32)
        return {"cos": cos[turns], "sin": sin[turns]}

    def tokens(self, rng, t, length):
        found = super().tokens(rng, t, length)
        for name in ("query", "key"):
            found[name] = (rng.integers(-8, 9, found[name].shape) / 4).astype(numpy_type(t))
        return found

    def seen(self, query, key, beside):
        """Which keys each query of a head sees, both rotated, where `beside` is what the pattern shows."""
        length = len(query)
        block = np.arange(length) // self.size
        scores = np.full((length, block[-1] + 1), -np.inf)
        for b in range(block[-1]):
            keys, later = key[block == b], block > b
            if self.score == "bounds":
                products = np.maximum(query[later] * keys.max(axis=0), query[later] * keys.min(axis=0))
                scores[later, b] = products.sum(axis=1)
            else:
                scores[later, b] = query[later] @ keys.sum(axis=0)
        ranked = np.argsort(-scores, axis=1, kind="stable")[:, : self.top_k - 1]
        chosen = np.zeros(scores.shape, bool)
        np.put_along_axis(chosen, ranked, True, axis=1)
        chosen |= np.arange(block[-1] + 1) == block[:, None]
        return np.tri(length, dtype=bool) & (chosen[:, block] | beside)

    def model(self, tokens, rounding=EXACT):
        query, key, value = tokens["query"], tokens["key"], rounding.cache(tokens["value"])
        cos, sin = (self.tables()[name][: len(query)].astype(np.float64) for name in ("cos", "sin"))
        output, length = np.empty_like(query), len(query)
        beside = np.array([[self.beside.visible(i, j) for j in range(length)] for i in range(length)])
        for head in range(self.heads):
            kv_head = head // self.group
            span, kv_span = (slice(index * self.head_dim, (index + 1) * self.head_dim) for index in (head, kv_head))
            q, k = rotate(query[:, span], cos, sin), rotate(key[:, kv_span], cos, sin)
            scores = np.where(self.seen(q, k, beside), self.scale * (q @ k.T), -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            output[:, span] = rounding.operand(weights / weights.sum(axis=1, keepdims=True)) @ value[:, kv_span]
        return {"output": output}

    def memory(self, tokens):
        length, dim = len(tokens["key"]), self.head_dim
        cos, sin = (self.tables()[name][:length].astype(np.float64) for name in ("cos", "sin"))
        keys, values = np.full((2, self.kv_heads * self.max_seq_len, dim), np.nan)
        summaries = np.full((self.kv_heads, self.blocks, self.parts, dim), np.nan)
        for head in range(self.kv_heads):
            span, first = slice(head * dim, (head + 1) * dim), head * self.max_seq_len
            key = rotate(tokens["key"][:, span], cos, sin)
            keys[first : first + length], values[first : first + length] = key, tokens["value"][:, span]
            for b in range(-(-length // self.size)):
                own = key[b * self.size : (b + 1) * self.size]
                summaries[head, b] = [own.min(axis=0), own.max(axis=0)] if self.score == "bounds" else [own.sum(axis=0)]
        # Zeros may have either sign.
        return {"past_key": (keys, 1e-6), "past_value": (values, 0), "past_block": (summaries.reshape(-1, dim), 1e-6)}
