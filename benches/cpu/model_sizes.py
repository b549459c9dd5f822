"""What is measured of a whole model: its sizes, lengths, and those of a dense model with as many weights."""

import json
from dataclasses import dataclass

PATTERN = {"dilation": 16, "local_window": 256, "initial": 4}


@dataclass(frozen=True)
class Size:
    """A RAT+ model, and what is asked of it."""

    name: str
    vocab_size: int
    d_model: int
    num_layers: int
    d_head: int
    d_ffn: int
    prompt: int
    contexts: tuple
    new_tokens: int
    # Slots that decode together.
    batch: int = 8

    @property
    def heads(self):
        return self.d_model // self.d_head

    @property
    def dense_ffn(self):
        """The width of two feed-forward matrices that makes a dense layer as large as ours: one of ours has the
        output gate's and the recurrence gate's matrix besides query, key, value and output."""
        return self.d_ffn + self.d_model

    @property
    def weights(self):
        """Weights that a token is multiplied by, of either model, with the head."""
        layer = 4 * self.d_model + 2 * self.dense_ffn
        return self.d_model * (self.num_layers * layer + self.vocab_size)

    def contexts_of(self, bits):
        """What decoding is measured after: the cache is of one type, whatever the weights'."""
        return self.contexts if bits == "bf16" else self.contexts[:1]

    @property
    def longest(self):
        """Tokens of the longest sequence."""
        return max(self.contexts) + self.new_tokens

    def config(self):
        """What `ratplus export --config` reads."""
        sizes = {name: getattr(self, name) for name in ("vocab_size", "d_model", "num_layers", "d_head", "d_ffn")}
        return json.dumps(sizes | {"tie_embedding": True, "patterns": [PATTERN] * self.num_layers})


SIZES = {
    size.name: size
    for size in (
        Size("1.5b", 32000, 2048, 24, 128, 8192, prompt=512, contexts=(512, 16384), new_tokens=32),
        Size("tiny", 2048, 128, 2, 64, 512, prompt=32, contexts=(32, 512), new_tokens=8, batch=2),
    )
}
