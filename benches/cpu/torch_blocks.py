"""Contenders in PyTorch that attend to chosen blocks, f32: FlexAttention under the mask of the choice, and SDPA on
gathered blocks. Heads come first here: `[H, T, dh]`."""

import time

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ort_contenders import Prepared, caches
from problem import filled
from torch_contenders import by_head, only_f32, tokens, written

# Bytes of keys that are gathered at once, about.
GATHERED = 32 << 20


def summaries(key, blocks):
    """Of the whole blocks of rotated keys: the parts, `[H, blocks, dh]` each."""
    whole = key.shape[1] // blocks.size
    split = key[:, : whole * blocks.size].view(len(key), whole, blocks.size, -1)
    return [split.amin(2), split.amax(2)] if blocks.score == "bounds" else [split.sum(2)]


def choose(query, parts, blocks, first):
    """Blocks that queries from position `first` on choose besides their own, `[H, T, chosen]`, and whether there
    is such a block."""
    scores = query.clamp(max=0) @ parts[0].mT if blocks.score == "bounds" else query @ parts[0].mT
    if blocks.score == "bounds":
        scores += query.clamp(min=0) @ parts[1].mT
    own = torch.arange(first, first + query.shape[1]) // blocks.size
    scores.masked_fill_(torch.arange(scores.shape[-1]) >= own[:, None], -torch.inf)
    scores, index = scores.topk(min(blocks.top_k - 1, scores.shape[-1]), sorted=False)
    return index, scores > -torch.inf


def gather_at_once(shape):
    """Queries whose blocks are gathered together."""
    blocks = shape.blocks
    return max(1, GATHERED // (4 * shape.heads * blocks.top_k * blocks.size * shape.head_dim))


def by_block(x, blocks):
    """Rows `[H, T, dh]` as `[H * blocks, size * dh]`, zeros behind the last."""
    x = F.pad(x, (0, 0, 0, -x.shape[1] % blocks.size))
    return x.reshape(-1, blocks.size * x.shape[-1])


def attend_gathered(query, keys, values, index, there, shape, first):
    """SDPA of queries from position `first` on over their chosen blocks and their own; keys and values `by_block`."""
    heads, count, dim = query.shape
    size = shape.blocks.size
    position = torch.arange(first, first + count)
    own = (position // size).expand(heads, -1)[..., None]
    start = torch.arange(heads)[:, None, None] * (len(keys) // heads)
    picked = (torch.cat([index, own], -1) + start).view(-1)
    shown = (position % size)[:, None] >= torch.arange(size)
    shown = torch.cat([there.repeat_interleave(size, -1), shown.expand(heads, -1, -1)], -1)
    rows = lambda x: x.index_select(0, picked).view(heads * count, 1, -1, dim)  # noqa: E731
    mask = shown.view(heads * count, 1, 1, -1)
    return F.scaled_dot_product_attention(query.reshape(-1, 1, 1, dim), rows(keys), rows(values), mask).view(query.shape)


class Gathered:
    """Scores, the greatest of them, their blocks gathered for every query, and SDPA. Of a decode step the summaries
    are there."""

    group = "torch"
    name = "SDPA on gathered blocks"
    compiled = False
    slow_to_compile = False

    def refuses(self, shape):
        return refuses(shape, ("attention", "decode"))

    def bytes_needed(self, shape):
        if shape.part == "decode":
            return 4 * 4 * shape.seq_len * shape.width
        return score_bytes(shape) + 8 * 4 * shape.seq_len * shape.width + 8 * GATHERED

    def cost(self, shape):
        if shape.part == "decode":
            return 40 * shape.least_bytes() * caches(shape)
        return 10 * shape.flops()

    def prepare(self, shape, inputs):
        return self.step(shape, inputs) if shape.part == "decode" else self.prompt(shape, inputs)

    def prompt(self, shape, inputs):
        query, key, value = rotated_heads(shape, inputs)
        output, together = torch.empty_like(query), gather_at_once(shape)

        def run():
            index, there = choose(query, summaries(key, shape.blocks), shape.blocks, 0)
            keys, values = by_block(key, shape.blocks), by_block(value, shape.blocks)
            for first in range(0, shape.seq_len, together):
                part = slice(first, first + together)
                output[:, part] = attend_gathered(
                    query[:, part], keys, values, index[:, part], there[:, part], shape, first
                )

        return Prepared(run, lambda: [joined(output)], f"{together} queries of all heads at once")

    def step(self, shape, inputs):
        last, blocks = shape.seq_len - 1, shape.blocks
        if inputs.history:
            query, key, value = (x[0] for x in written(shape, inputs))
            sets = [summaries(key, blocks)]
            keys, values = by_block(key, blocks), by_block(value, blocks)
        else:
            make = lambda *dims: torch.from_numpy(filled(inputs.rng, dims, "f4"))  # noqa: E731
            whole, rows = last // blocks.size, -(-shape.seq_len // blocks.size)
            keys, values = (make(shape.heads * rows, blocks.size * shape.head_dim) for _ in range(2))
            parts = lambda: [make(shape.heads, whole, shape.head_dim) for _ in range(blocks.parts)]  # noqa: E731
            sets = [parts() for _ in range(caches(shape))]
            query = by_head(*tokens(inputs, "query"), shape)[0]
        held = [None]

        def run():
            for parts in sets:
                index, there = choose(query, parts, blocks, last)
                held[0] = attend_gathered(query, keys, values, index, there, shape, last)

        detail = f"{len(sets)} choices in one cache" if len(sets) > 1 else "one cache"
        return Prepared(run, lambda: [joined(held[0])], detail, len(sets))


class Flex:
    """Compiled FlexAttention under the mask of the choice; choice and mask are made before, or by every call."""

    group = "torch"
    compiled = True
    slow_to_compile = True

    def __init__(self, name, counted):
        self.name, self.counted = name, counted

    def refuses(self, shape):
        return refuses(shape, ("attention",))

    def bytes_needed(self, shape):
        return 2 * score_bytes(shape) + 10 * 4 * shape.seq_len * shape.width

    def cost(self, shape):
        return 2 * shape.width * shape.seq_len**2

    def prepare(self, shape, inputs):
        torch._dynamo.reset()
        query, key, value = rotated_heads(shape, inputs)
        attend, held = torch.compile(flex_attention, dynamic=False), []
        batch = [x[None] for x in (query, key, value)]

        def make():
            index, there = choose(query, summaries(key, shape.blocks), shape.blocks, 0)
            return block_mask(index, there, shape)

        make()
        begin = time.perf_counter()
        mask = make()
        made = f"choice and mask take {1e3 * (time.perf_counter() - begin):.4g} ms"

        def run():
            held[:] = attend(*batch, block_mask=make() if self.counted else mask)

        return Prepared(run, lambda: [joined(held[0])], "" if self.counted else made)


def block_mask(index, there, shape):
    """FlexAttention's mask of a choice: blocks of queries as long as those of keys, which see what one of them does."""
    size, heads = shape.blocks.size, shape.heads
    blocks = -(-shape.seq_len // size)
    seen = torch.zeros(heads, blocks * size, blocks, dtype=torch.bool)
    # What is not there may name a block that another one names too.
    seen[:, : shape.seq_len].scatter_reduce_(-1, index, there, "amax")
    seen |= (torch.arange(blocks * size) // size)[:, None] == torch.arange(blocks)
    some = seen.view(heads, blocks, size, blocks).any(2)
    numbers = some.argsort(dim=-1, descending=True, stable=True)

    def shown(_batch, head, query, key):
        return (key <= query) & seen[head, query, key // size]

    counts, numbers = some.sum(-1)[None].int(), numbers[None].int()
    lengths = (shape.seq_len, shape.seq_len)
    return BlockMask.from_kv_blocks(counts, numbers, BLOCK_SIZE=(size, size), mask_mod=shown, seq_lengths=lengths)


def refuses(shape, parts):
    if shape.blocks is None or shape.part not in parts or shape.group > 1:
        return "blocks that heads of their own choose"
    return only_f32(shape)


def score_bytes(shape):
    """Of all scores and what they are sorted into."""
    return 4 * 4 * shape.heads * shape.seq_len * (shape.seq_len // shape.blocks.size + shape.blocks.top_k)


def rotated_heads(shape, inputs):
    """Query, key and value."""
    query, key = (by_head(torch.from_numpy(x), shape)[0].contiguous() for x in inputs.rotated())
    (value,) = tokens(inputs, "value")
    return query, key, by_head(value, shape)[0].contiguous()


def joined(x):
    """`[H, T, dh]` as an array `[T, H*dh]`."""
    return x.reshape(-1, *x.shape[-2:]).transpose(0, 1).reshape(x.shape[-2], -1).numpy()


def contenders():
    """All of this file."""
    before, each = (f"Flex, choice and mask made {when}" for when in ("before", "each time"))
    return [Flex(before, False), Flex(each, True), Gathered()]
