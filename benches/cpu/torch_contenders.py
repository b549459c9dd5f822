"""Contenders in PyTorch, f32, from token-major inputs `[T, H*dh]` as projections leave them."""

import copy
import functools
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from ort_contenders import Prepared, caches
from problem import Inputs, filled, visible_keys

sys.path.append(str(Path(__file__).resolve().parents[1] / "gpu"))
from torch_parts import gated_scan, rotate, visible  # noqa: E402

SCAN_BLOCK = 32


# The recurrence: gated keys and values [T, N] of keys, values and gate logits.


def scan_loop(key, value, gate):
    """Token by token: a `lerp` each for key and value, written in place."""
    gate, outputs = torch.sigmoid(gate), (torch.empty_like(key), torch.empty_like(value))
    for x, output in zip((key, value), outputs):
        state = torch.zeros_like(x[0])
        for now, keep, to in zip(x.unbind(), gate.unbind(), output.unbind()):
            state = torch.lerp(now, state, keep, out=to)
    return outputs


def scan_associative(key, value, gate):
    """PyTorch's `associative_scan`, as the released code composes it."""
    gate = torch.sigmoid(gate)
    state = gated_scan(torch.cat([gate, gate], -1), torch.cat([key, value], -1), dim=0, mode="generic")
    return state.chunk(2, dim=-1)


def scan_blocked(key, value, gate):
    """Blocks of tokens side by side, an unrolled loop within them, then the carry from block to block."""
    length, blocks = key.shape[0], -(-key.shape[0] // SCAN_BLOCK)
    split = lambda x: F.pad(x, (0, 0, 0, blocks * SCAN_BLOCK - length)).view(blocks, SCAN_BLOCK, -1)  # noqa: E731
    gate = split(torch.sigmoid(gate))
    gate, inputs = torch.cat([gate, gate], -1), torch.cat([split(key), split(value)], -1)
    state, factor = (1 - gate[:, 0]) * inputs[:, 0], gate[:, 0]
    states, factors = [state], [factor]
    for token in range(1, SCAN_BLOCK):
        keep = gate[:, token]
        state, factor = keep * state + (1 - keep) * inputs[:, token], factor * keep
        states.append(state)
        factors.append(factor)
    return torch.stack(states, 1), torch.stack(factors, 1)


def carry_blocks(states, factors, length):
    """The second half of `scan_blocked`: `[blocks, block, 2N]` to gated keys and values."""
    carries, carry = [], torch.zeros_like(states[0, 0])
    for last, factor in zip(states[:, -1].unbind(), factors[:, -1].unbind()):
        carries.append(carry)
        carry = torch.addcmul(last, factor, carry)
    done = torch.addcmul(states, factors, torch.stack(carries)[:, None])
    return done.view(-1, done.shape[-1])[:length].chunk(2, dim=-1)


def scan_operator(key, value, gate):
    """PyTorch's `scan`, a loop in the compiled graph."""
    from torch._higher_order_ops.scan import scan

    def step(state, now):
        state = tuple(torch.lerp(x, h, now[2]) for x, h in zip(now, state))
        return state, tuple(h.clone() for h in state)

    start = (torch.zeros_like(key[0]), torch.zeros_like(value[0]))
    return scan(step, start, (key, value, torch.sigmoid(gate)), dim=0)[1]


def compiled_blocked():
    inner = torch.compile(scan_blocked, dynamic=False)
    return lambda key, value, gate: carry_blocks(*inner(key, value, gate), key.shape[0])


SCANS = {
    "eager loop": lambda: scan_loop,
    "compiled blocks": compiled_blocked,
    "compiled associative_scan": lambda: torch.compile(scan_associative, dynamic=False),
    "compiled scan operator": lambda: torch.compile(scan_operator, dynamic=False),
}


# Attention: outputs [1, H, T, dh] of rotated queries, keys and values of that shape.


def build_mask(pattern, length):
    """FlexAttention's block mask, by the compiled function."""
    make = torch.compile(create_block_mask, dynamic=False)
    return lambda: make(visible(pattern), None, None, length, length, device="cpu")


class Flex:
    """Compiled FlexAttention; the block mask is made before, or by every call."""

    groups = True

    def __init__(self, counted):
        self.counted = counted

    def make(self, shape):
        attend = functools.partial(torch.compile(flex_attention, dynamic=False), enable_gqa=shape.group > 1)
        mask = build_mask(triple(shape), shape.seq_len)
        if self.counted:
            return lambda query, key, value: attend(query, key, value, block_mask=mask())
        built = mask()
        return lambda query, key, value: attend(query, key, value, block_mask=built)

    def bytes_needed(self, shape):
        return 10 * 4 * shape.seq_len * shape.width + shape.seq_len**2

    def cost(self, shape):
        # Blocks of 128 keys hold a dilated one each, for all but the longest dilations.
        return 2 * shape.width * shape.seq_len**2


class Masked:
    """Dense SDPA under the pattern's boolean mask, which is made before."""

    groups = False

    def make(self, shape):
        position = torch.arange(shape.seq_len)
        mask = visible(triple(shape))(0, 0, position[:, None], position[None])
        return lambda query, key, value: F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    def bytes_needed(self, shape):
        return 12 * shape.seq_len**2 + 10 * 4 * shape.seq_len * shape.width

    def cost(self, shape):
        return 4 * shape.width * shape.seq_len**2


class Causal:
    """Dense causal SDPA."""

    groups = True

    def make(self, shape):
        return functools.partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=shape.group > 1)

    def bytes_needed(self, shape):
        return 10 * 4 * shape.seq_len * shape.width

    def cost(self, shape):
        return 2 * shape.width * shape.seq_len**2


class Blocks:
    """SDPA over gathered keys, a block of queries at a time: the keys near the block under a small mask, and of
    those before them the visible ones alone, which all the block's queries see."""

    groups = False

    def __init__(self, block):
        self.block = block

    def make(self, shape):
        pattern, length = shape.pattern, shape.seq_len
        far_keys = torch.from_numpy(visible_keys(pattern_without_window(pattern), length - 1)[:-1].copy())
        mask_of, plan, shared = visible(triple(shape)), [], {}
        for start in range(0, length, self.block):
            end, low = min(start + self.block, length), max(0, start - pattern.window)
            count = int((far_keys < low).sum())
            # Blocks at the same place among the dilated keys, past the initial ones, have the same mask.
            alike = (start - low, end - start, low % pattern.dilation) if low >= pattern.initial else start
            near = torch.arange(low, end)
            seen = mask_of(0, 0, torch.arange(start, end)[:, None], near[None])
            bias = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
            plan.append((start, end, low, count, shared.setdefault(alike, bias)))
        most = plan[-1][3]
        biases = {id(bias): F.pad(bias, (0, most)) for *_, bias in plan}
        plan = [(*rest, biases[id(bias)][:, : bias.shape[1] + rest[3]]) for *rest, bias in plan]

        def attend(query, key, value):
            output = torch.empty_like(query)
            far_key, far_value = key[:, :, far_keys], value[:, :, far_keys]
            for start, end, low, count, bias in plan:
                keys = torch.cat([key[:, :, low:end], far_key[:, :, :count]], dim=2)
                values = torch.cat([value[:, :, low:end], far_value[:, :, :count]], dim=2)
                part = query[:, :, start:end]
                output[:, :, start:end] = F.scaled_dot_product_attention(part, keys, values, attn_mask=bias)
            return output

        return attend

    def bytes_needed(self, shape):
        pattern = shape.pattern
        keys = shape.seq_len // pattern.dilation + pattern.window + self.block
        return 10 * 4 * shape.seq_len * shape.width + 8 * self.block * keys * min(pattern.dilation + 2, 16)

    def cost(self, shape):
        return shape.flops() + 4 * shape.width * shape.seq_len * self.block


class Residues:
    """SDPA over the dilated keys: queries of one residue of the dilation see a causal triangle of them, moved on
    by one; the query's own key and the other initial ones are merged in by their log-sum-exp. W = 0, I > 0."""

    groups = False

    def make(self, shape):
        dilation, initial, length = shape.pattern.dilation, shape.pattern.initial, shape.seq_len
        blocks = -(-length // dilation)
        # The triangle's first column is key 0, so the first initial key is no extra.
        extra = [key for key in range(1, min(initial, length)) if (key + 1) % dilation != 0]
        position = torch.arange(length)
        closed = torch.cat([position[:, None] == 0, position[:, None] <= torch.tensor(extra, dtype=torch.long)], dim=1)
        bias = torch.zeros(closed.shape).masked_fill_(closed, -torch.inf)
        scale = shape.head_dim**-0.5
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

        def merge(query, key, value, output, weight):
            few_keys, few_values = key[:, :, extra], value[:, :, extra]
            own = (query * key).sum(-1, keepdim=True)
            scores = torch.cat([own, query @ few_keys.transpose(-1, -2)], dim=-1) * scale + bias
            total = torch.logaddexp(weight, torch.logsumexp(scores, dim=-1))[..., None]
            share = torch.exp(scores - total)
            few = share[..., :1] * value + share[..., 1:] @ few_values
            return output * torch.exp(weight[..., None] - total) + few

        compiled = torch.compile(merge, dynamic=False)

        def columns(x):
            slots = x[:, :, dilation - 1 :: dilation][:, :, : blocks - 1]
            x = torch.cat([x[:, :, :1], slots], dim=2)
            return x.expand(dilation, -1, -1, -1)

        def run(query, key, value):
            heads, dim = query.shape[1], query.shape[3]
            groups = F.pad(query, (0, 0, 0, blocks * dilation - length)).view(heads, blocks, dilation, dim)
            output, weight = attend(groups.permute(2, 0, 1, 3), columns(key), columns(value), 0.0, True)
            output = output.permute(1, 2, 0, 3).reshape(1, heads, -1, dim)[:, :, :length]
            weight = weight.permute(1, 2, 0).reshape(1, heads, -1)[:, :, :length]
            return compiled(query, key, value, output, weight)

        return run

    def bytes_needed(self, shape):
        return 14 * 4 * shape.seq_len * shape.width

    def cost(self, shape):
        return 2 * shape.flops()


def pattern_without_window(pattern):
    return type(pattern)(pattern.dilation, 0, pattern.initial)


def triple(shape):
    return shape.pattern.dilation, shape.pattern.window, shape.pattern.initial


ATTENTIONS = {
    "Flex, mask made before": (Flex(False), True),
    "Flex, mask made each time": (Flex(True), True),
    "SDPA on gathered keys by residue": (Residues(), True),
    "SDPA on gathered keys, blocks of 64": (Blocks(64), False),
    "SDPA on gathered keys, blocks of 256": (Blocks(256), False),
    "SDPA, boolean mask": (Masked(), False),
    "SDPA, causal": (Causal(), False),
}


class Scan:
    """One way to compute the recurrence."""

    group = "torch"
    slow_to_compile = False

    def __init__(self, name):
        self.name, self.compiled = name, name.startswith("compiled")

    def refuses(self, shape):
        return "the recurrence alone" if shape.part != "scan" else only_f32(shape)

    def bytes_needed(self, shape):
        return 20 * 4 * shape.seq_len * shape.width

    def cost(self, shape):
        return 100 * shape.seq_len * shape.width

    def prepare(self, shape, inputs):
        torch._dynamo.reset()
        scan, tensors = SCANS[self.name](), tokens(inputs, "key", "value", "gate")
        held = []
        return Prepared(lambda: held.__setitem__(slice(None), scan(*tensors)), lambda: [x.numpy() for x in held])


class Attention:
    """One way to compute the attention: alone on rotated queries and keys, or as a chain after the recurrence
    (the fastest way measured) and rotary embedding."""

    group = "torch"

    def __init__(self, name, best_scan):
        self.name, self.best_scan = name, best_scan
        self.way, self.compiled = ATTENTIONS[name]
        self.slow_to_compile = isinstance(self.way, Flex)

    def refuses(self, shape):
        if shape.part not in ("attention", "chain") or shape.pattern is None or shape.pattern.dilation < 1:
            return "prompts of one pattern, D > 0"
        if shape.group > 1 and not self.way.groups:
            return "a key-value head a query head alone"
        if isinstance(self.way, Causal) and shape.pattern.dilation != 1:
            return "D = 1 alone"
        if isinstance(self.way, Residues):
            _, window, initial = triple(shape)
            if window or not initial or shape.pattern.dilation == 1 or shape.pattern.dilation > shape.seq_len:
                return "D > 1, W = 0 and I > 0 alone"
        return only_f32(shape)

    def bytes_needed(self, shape):
        return self.way.bytes_needed(shape)

    def cost(self, shape):
        return self.way.cost(shape) + (100 * shape.seq_len * shape.width if shape.part == "chain" else 0)

    def prepare(self, shape, inputs):
        torch._dynamo.reset()
        attend, held = self.way.make(shape), []
        if shape.part == "attention":
            query, key = (by_head(torch.from_numpy(x), shape).contiguous() for x in inputs.rotated())
            (value,) = tokens(inputs, "value")
            value = by_head(value, shape).contiguous()

            def run():
                held[:] = [attend(query, key, value)]

            detail = ""
        else:
            name = self.best_scan(shape.seq_len)
            scan, turn = SCANS[name](), torch.compile(rotate, dynamic=False)
            query, key, value, gate = tokens(inputs, "query", "key", "value", "gate")
            tables = shape.attention_node(shape.seq_len).tables()
            cos, sin = (torch.from_numpy(tables[x]) for x in ("cos", "sin"))

            def run():
                gated_key, gated_value = (by_head(x, shape) for x in scan(key, value, gate))
                held[:] = [attend(turn(by_head(query, shape), cos, sin), turn(gated_key, cos, sin), gated_value)]

            detail = f"recurrence: {name}"
        return Prepared(run, lambda: [held[0][0].transpose(0, 1).reshape(shape.seq_len, -1).numpy()], detail)


class Decode:
    """SDPA of one query over the rows that it sees; neither recurrence, rotary embedding nor cache update."""

    group = "torch"
    name = "SDPA on the visible rows"
    compiled = False
    slow_to_compile = False

    def refuses(self, shape):
        if shape.part != "decode" or shape.pattern is None:
            return "decode steps of one pattern alone"
        return only_f32(shape)

    def attend(self, shape):
        return functools.partial(F.scaled_dot_product_attention, enable_gqa=shape.group > 1)

    def bytes_needed(self, shape):
        return 2 * 4 * shape.seq_len * shape.kv_width

    def cost(self, shape):
        return 20 * shape.least_bytes() * caches(shape)

    def prepare(self, shape, inputs):
        if inputs.history:
            query, states = self.written(shape, inputs)
        else:
            rows = shape.pairs() // shape.heads
            dims = (1, shape.kv_heads, rows, shape.head_dim)
            make = lambda: torch.from_numpy(filled(inputs.rng, dims, np.float32))  # noqa: E731
            states = [(make(), make()) for _ in range(caches(shape))]
            query = by_head(*tokens(inputs, "query"), shape)
        attend, held = self.attend(shape), [None]

        def run():
            for key, value in states:
                held[0] = attend(query, key, value)

        detail = f"{len(states)} caches in turn" if len(states) > 1 else "one cache"
        return Prepared(run, lambda: [held[0].reshape(1, -1).numpy()], detail, len(states))

    def written(self, shape, inputs):
        """The last query, and the rows that it sees of a written history."""
        query, key, value = written(shape, inputs)
        seen = torch.from_numpy(visible_keys(shape.pattern, shape.seq_len - 1))
        return query, [(key[:, :, seen], value[:, :, seen])]


class FlexDecode(Decode):
    """The same by compiled FlexAttention, of grouped heads."""

    name = "Flex on the visible rows"
    compiled = True
    slow_to_compile = True

    def refuses(self, shape):
        return super().refuses(shape) or (None if shape.group > 1 else "grouped heads alone")

    def attend(self, shape):
        torch._dynamo.reset()
        return functools.partial(torch.compile(flex_attention, dynamic=False), enable_gqa=True)


def written(shape, inputs):
    """The last query, keys and values of a written history, by head, rotated."""
    key, value = scan_loop(*tokens(inputs, "key", "value", "gate"))
    gated = copy.copy(inputs)
    gated.key, gated._rotated = key.numpy(), None
    query, key = (by_head(torch.from_numpy(x), shape) for x in gated.rotated())
    return query[:, :, -1:], key, by_head(value, shape)


def tokens(inputs, *names):
    return [torch.from_numpy(getattr(inputs, name)) for name in names]


def by_head(x, shape):
    """`[T, H*dh]` as `[1, H, T, dh]`, the same memory."""
    return x.view(len(x), -1, shape.head_dim).transpose(0, 1)[None]


def only_f32(shape):
    return "only f32 is measured" if shape.dtype != "f32" else None


def contenders(best_scan, threads):
    """All of this file; `best_scan(seq_len)` names the recurrence that chains use."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    torch._dynamo.config.recompile_limit = 256
    scans = [Scan(name) for name in SCANS]
    attentions = [Attention(name, best_scan) for name in ATTENTIONS]
    return scans + attentions + [Decode(), FlexDecode()]
