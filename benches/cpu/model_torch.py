#!/usr/bin/env python3
"""PyTorch on a dense model with as many weights as ours, eager, in bf16: measured in a process of its own."""

import argparse
import sys

import torch
from torch.nn import functional

from model_sizes import SIZES
from model_worker import answer, arguments, contexts, decoding, prompting, resident

EPSILON = 1e-6


class Dense:
    """A decoder of the architecture that model_llama.py writes, with random weights and a cache."""

    def __init__(self, size, longest):
        self.size = size
        d, ffn = size.d_model, size.dense_ffn
        noise = torch.randn(1 << 20, dtype=torch.float32).to(torch.bfloat16)

        def matrix(outputs, inputs):
            repeats = -(-outputs * inputs // noise.numel())
            return noise.repeat(repeats)[: outputs * inputs].view(outputs, inputs).mul_(inputs**-0.5)

        self.embedding = matrix(size.vocab_size, d)
        self.norm = torch.ones(d, dtype=torch.bfloat16)
        shapes = [(3 * d, d), (d, d), (ffn, d), (d, ffn)]
        self.layers = [[matrix(*shape) for shape in shapes] for _ in range(size.num_layers)]
        cache = (size.num_layers, 2, 1, size.heads, longest, size.d_head)
        self.cache = torch.zeros(cache, dtype=torch.bfloat16)
        angles = torch.outer(torch.arange(longest), 10000.0 ** -torch.linspace(0, 1, size.d_head // 2 + 1)[:-1])
        self.cos, self.sin = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)

    def rotate(self, x, past):
        cos, sin = self.cos[past : past + x.shape[2]], self.sin[past : past + x.shape[2]]
        low, high = x.chunk(2, -1)
        return torch.cat((low * cos - high * sin, low * sin + high * cos), -1)

    def run(self, ids, past):
        """Logits of the last of the tokens that follow `past` others."""
        size, count = self.size, len(ids)
        x = functional.embedding(torch.as_tensor(ids)[None].long(), self.embedding)
        for layer, (qkv, out, up, down) in enumerate(self.layers):
            h = functional.linear(functional.rms_norm(x, (size.d_model,), self.norm, EPSILON), qkv)
            q, k, v = h.view(1, count, 3, size.heads, size.d_head).permute(2, 0, 3, 1, 4)
            keys, values = self.cache[layer]
            keys[:, :, past : past + count] = self.rotate(k, past)
            values[:, :, past : past + count] = v
            seen = (keys[:, :, : past + count], values[:, :, : past + count])
            a = functional.scaled_dot_product_attention(self.rotate(q, past), *seen, is_causal=count > 1)
            x = x + functional.linear(a.transpose(1, 2).reshape(1, count, size.d_model), out)
            h = functional.linear(functional.rms_norm(x, (size.d_model,), self.norm, EPSILON), up)
            x = x + functional.linear(functional.relu(h).square(), down)
        return functional.linear(functional.rms_norm(x[:, -1], (size.d_model,), self.norm, EPSILON), self.embedding)


@torch.inference_mode()
def measure(size, wanted):
    before = resident("VmRSS")
    model = Dense(size, size.longest)
    found = {"prompt": prompting(size, lambda ids: model.run(ids, 0)), "decode": {}}
    # The whole cache is touched by what comes after.
    short = model.cache.numel() * 2 * (size.prompt + size.new_tokens) // size.longest
    found |= {"state_bytes": short, "resident_bytes": resident("VmHWM") - before}
    for context in wanted:
        found["decode"][context] = decoding(size, context, lambda position, token: model.run([token], position))
    return found


def main(words):
    parser = arguments(argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    answer(measure(SIZES[options.size], contexts(options)))


if __name__ == "__main__":
    main(sys.argv[1:])
