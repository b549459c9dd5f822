"""Blocks that queries choose: how many keys they show, the choice itself in f64, and queries that choose clearly."""

from dataclasses import dataclass

import numpy as np

# Queries that are drawn at once, and how often, until the choice of one is clear.
DRAWN, TURNS = 16, 64
# How far the last chosen block leads the next one, in standard deviations of a query's scores: rounding keys and
# queries to bf16 moves a score by a sixth of it, about.
MARGIN = 0.1


@dataclass(frozen=True)
class Blocks:
    """Of `size` keys; a query sees `top_k` of them, its own counted, with the greatest scores of the kind `score`
    (`bounds` or `mean`)."""

    size: int
    top_k: int
    score: str

    @property
    def parts(self):
        """Rows of a summary."""
        return {"bounds": 2, "mean": 1}[self.score]

    def chosen(self, queries):
        """How many blocks before its own each query sees."""
        return np.minimum(self.top_k - 1, queries // self.size)

    def visible_count(self, queries):
        """How many keys each query sees, itself included."""
        return self.chosen(queries) * self.size + queries % self.size + 1

    def scored_rows(self, query):
        """Rows of summaries that a query of one head is multiplied by."""
        return self.parts * (query // self.size)

    def summaries(self, key):
        """Of whole blocks of one head's rotated keys `[T, dh]`: `[parts, blocks, dh]`."""
        whole = len(key) // self.size
        split = key[: whole * self.size].reshape(whole, self.size, -1)
        return np.stack([split.min(1), split.max(1)] if self.score == "bounds" else [split.sum(1)])

    def scores(self, summaries, queries, own):
        """Of the blocks before `own` for each of the rotated queries `[n, dh]`: `[n, own]`."""
        if self.score == "mean":
            return queries @ summaries[0, :own].T
        least, greatest = summaries[:, :own]
        return np.minimum(queries, 0) @ least.T + np.maximum(queries, 0) @ greatest.T

    def visible_keys(self, summaries, query, position):
        """Positions of the keys that one rotated query sees, block by block."""
        own = position // self.size
        scores = self.scores(summaries, query[None], own)[0]
        best = np.argsort(-scores, kind="stable")[: self.top_k - 1]
        whole = best[:, None] * self.size + np.arange(self.size)
        return np.concatenate([whole.ravel(), np.arange(own * self.size, position + 1)])

    def __str__(self):
        return f"S={self.size} K={self.top_k} {self.score}"


def clear_query(rng, shape, summaries, position, turn):
    """A query of one head in the problem's dtype whose choice no rounding changes; None where there is none to
    make. `turn` rotates queries of the position, into f64."""
    blocks, own = shape.blocks, position // shape.blocks.size
    best = blocks.top_k - 1
    if best == 0 or own <= best:
        return None
    for _ in range(TURNS):
        drawn = rng.standard_normal((DRAWN, shape.head_dim), np.float32).astype(shape.numpy_type)
        scores = blocks.scores(summaries, turn(drawn), own)
        ordered = np.partition(scores, (own - best - 1, own - best), axis=1)
        leads = (ordered[:, own - best] - ordered[:, own - best - 1]) / scores.std(axis=1)
        if leads.max() >= MARGIN:
            return drawn[leads.argmax()]
    raise ValueError(f"{shape}: of {DRAWN * TURNS} queries at {position} none leads by {MARGIN}")
