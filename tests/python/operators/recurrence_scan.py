"""RecurrenceScan: the definition in f64."""

from dataclasses import dataclass

import numpy as np

from operators import EXACT, Node


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def recurrence(key, value, gate):
    """Gated keys and values of one sequence, [T, N] in f64."""
    g = sigmoid(gate)
    state_key, state_value = np.zeros(key.shape[1]), np.zeros(key.shape[1])
    gated = np.empty_like(key), np.empty_like(value)
    for t in range(len(key)):
        state_key = g[t] * state_key + (1 - g[t]) * key[t]
        state_value = g[t] * state_value + (1 - g[t]) * value[t]
        gated[0][t], gated[1][t] = state_key, state_value
    return gated


@dataclass
class RecurrenceScan(Node):
    batch: int
    seq_len: int
    channels: int
    max_seq_len: int = 50

    bad_attributes = (
        ({"max_seq_len": 0}, ["attribute max_seq_len: expected 1 or more, found 0"]),
        ({"max_seq_len": -7}, ["attribute max_seq_len: expected 1 or more, found -7"]),
    )

    @classmethod
    def random(cls, rng):
        return cls(3, 1, int(rng.choice([1, 7, 48, 300])))

    @classmethod
    def example(cls):
        return cls(2, 5, 24)

    def dims(self):
        return {"B": self.batch, "L": self.seq_len, "N": self.channels}

    def attributes(self):
        return {"max_seq_len": self.max_seq_len}

    def model(self, tokens, rounding=EXACT):
        return dict(zip(("gated_key", "gated_value"), recurrence(tokens["key"], tokens["value"], tokens["gate"])))

    def memory(self, tokens):
        gated = self.model(tokens)
        return {"state_key": (gated["gated_key"][-1], None), "state_value": (gated["gated_value"][-1], None)}
