"""DilatedAttention: the definition in f64, over the full history with the literal mask; the cache's rows."""

from dataclasses import dataclass

import numpy as np

from operators import EXACT, Node


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

    def rows_of(self, position):
        """Rows that a token is written to, counted from the head's first."""
        if position < self.initial:
            return [position]
        rows = [self.initial + position % self.window] if self.window else []
        if self.dilation > 0 and (position + 1) % self.dilation == 0:
            rows.append(self.initial + self.window + (position + 1) // self.dilation - 1)
        return rows


def random_pattern(rng):
    dilation = int(rng.choice([-1, 1, 2, 3, 5, 8]))
    return Pattern(dilation, int(rng.integers(0, 9)), int(rng.integers(0, 6)))


def rotate(x, cos, sin):
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def attention(node, query, key, value, rounding=EXACT):
    """Outputs of one sequence, [T, H*dh] in f64. Stored are rotated keys and values; products take
    besides rotated queries and weights."""
    length = len(query)
    tables = node.tables()
    cos, sin = (tables[name][:length].astype(np.float64) for name in ("cos", "sin"))
    value = rounding.cache(value)
    output = np.empty_like(query)
    for head in range(node.heads):
        kv_head = head // node.group
        pattern = node.patterns[kv_head]
        span, kv_span = (slice(index * node.head_dim, (index + 1) * node.head_dim) for index in (head, kv_head))
        q, k = rotate(query[:, span], cos, sin), rounding.cache(rotate(key[:, kv_span], cos, sin))
        mask = np.array([[pattern.visible(i, j) for j in range(length)] for i in range(length)])
        scores = np.where(mask, node.scale * (rounding.operand(q) @ k.T), -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        output[:, span] = rounding.operand(weights / weights.sum(axis=1, keepdims=True)) @ value[:, kv_span]
    return output


@dataclass
class DilatedAttention(Node):
    batch: int
    seq_len: int
    head_dim: int
    max_seq_len: int
    patterns: list  # of key-value heads
    uniform: bool = False  # write one value per list where the patterns agree
    cache: str = ""
    group: int = 1  # query heads a key-value head
    states_are_exact = True
    bad_attributes = (
        ({"dilation": [1, 2]}, ["dilation: expected one value or one per head (3), found 2"]),
        ({"num_heads": 0}, ["num_heads: expected 1 to 65536, found 0"]),
        ({"num_heads": 2**30}, ["num_heads: expected 1 to 65536, found 1073741824"]),
        ({"dilation": [4, 0, 4]}, ["head 1: attribute dilation is 0, expected -1 (none) or 1 or more"]),
        ({"local_window": [-1]}, ["head 0: attribute local_window is -1", "head 2: attribute local_window is -1"]),
        ({"num_kv_heads": 2}, ["num_kv_heads: expected a divisor of num_heads 3, found 2"]),
        ({"num_kv_heads": 0}, ["num_kv_heads: expected a divisor of num_heads 3, found 0"]),
        ({"scale": float("nan")}, ["scale: expected a finite number, found NaN"]),
    )
    bad_shapes = (
        ({"past_key": (2, 23, 8), "past_value": (2, 23, 8)}, ["R: the patterns keep 24 rows for sequences of 20, found 23"]),
        ({"cos": (20, 3), "sin": (20, 3)}, ["cos, sin: expected dh/2 = 4, found 3"]),
        (
            {"past_key": (2, 23, 8), "seq_length": (5,), "cos": (20, 3)},
            [
                "past_value: expected R = 23 as on earlier inputs, found 24",
                "seq_length: expected B = 2 as on earlier inputs, found 5",
                "cos, sin: expected dh/2 = 4, found 3",
                "R: the patterns keep 24 rows for sequences of 20, found 23",
            ],
        ),
    )

    @classmethod
    def random(cls, rng):
        patterns = [random_pattern(rng) for _ in range(int(rng.integers(1, 5)))]
        return cls(3, 1, int(rng.choice([2, 6, 16, 64])), 50, patterns, group=int(rng.choice([1, 1, 2, 3])))

    @classmethod
    def example(cls):
        return cls(2, 5, 8, 20, [Pattern(4, 2, 1)] * 3)

    @property
    def heads(self):
        return len(self.patterns) * self.group

    @property
    def scale(self):
        return float(np.float32(1 / np.sqrt(self.head_dim)))

    @property
    def product(self):
        return self.head_dim

    def dims(self):
        return {
            "B": self.batch, "L": self.seq_len, "N": self.heads * self.head_dim,
            "Nkv": len(self.patterns) * self.head_dim, "R": self.rows(), "dh": self.head_dim, "M": self.max_seq_len, "dh/2": self.head_dim // 2,
        }  # fmt: skip

    def attributes(self):
        patterns = self.patterns[:1] if self.uniform else self.patterns
        grouped = {"num_kv_heads": len(self.patterns)} if self.group > 1 else {}
        return {
            "num_heads": self.heads,
            **grouped,
            "dilation": [p.dilation for p in patterns],
            "local_window": [p.window for p in patterns],
            "initial": [p.initial for p in patterns],
            "scale": self.scale,
        }

    def rows(self):
        return sum(p.rows(self.max_seq_len) for p in self.patterns)

    def tables(self, t="f32"):
        half = self.head_dim // 2
        angles = np.arange(self.max_seq_len)[:, None] * 10000.0 ** (-np.arange(half) / half)
        return {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}

    def model(self, tokens, rounding=EXACT):
        return {"output": attention(self, tokens["query"], tokens["key"], tokens["value"], rounding)}

    def memory(self, tokens):
        length, dim, first = len(tokens["key"]), self.head_dim, 0
        cos, sin = (self.tables()[name][:length].astype(np.float64) for name in ("cos", "sin"))
        keys, values = np.full((2, self.rows(), dim), np.nan)
        for head, pattern in enumerate(self.patterns):
            span = slice(head * dim, (head + 1) * dim)
            key, value = rotate(tokens["key"][:, span], cos, sin), tokens["value"][:, span]
            for position in range(length):
                for row in pattern.rows_of(position):
                    keys[first + row], values[first + row] = key[position], value[position]
            first += pattern.rows(self.max_seq_len)
        # Rotation rounds in f32.
        return {"past_key": (keys, 1e-6), "past_value": (values, 0)}
