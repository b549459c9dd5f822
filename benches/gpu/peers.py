#!/usr/bin/env python3
"""What PyTorch reaches on the same device and the same shapes, and the device's own limits.

The peers: the official composition (RecurrenceScan as a compiled `associative_scan` in f32 and a
compiled FlexAttention, whose block mask is built in every forward), SDPA dense and causal, SDPA
over the dilated keys, and a decode step as SDPA over the compact cache. Each is first compared
with a literal model at a small shape. What does not fit or fails is recorded as that.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from torch_parts import gated_scan, rotate, visible

INITIAL = 4
GEMM = 8192


class Bench:
    """Rows so far, and where they are written."""

    def __init__(self, options):
        self.device = options.device
        self.small = options.small
        self.path = options.json
        self.deadline = time.monotonic() + options.seconds
        self.document = {"torch": torch.__version__, "limits": {}, "peers": []}
        self.cuda = options.device == "cuda"

    def save(self):
        """Keeps what there is."""
        if self.path:
            self.path.write_text(json.dumps(self.document, indent=1) + "\n")

    def time(self, work):
        """Median, least and most milliseconds."""
        work()
        if self.cuda:
            work()
            self.cold_runs(work, 1)
            count = 200 / max(self.cold_runs(work, 1)[0], 1e-3)
            times = self.cold_runs(work, int(min(max(count, 3), 100)))
        else:
            times = []
            for _ in range(3):
                start = time.perf_counter()
                work()
                times.append((time.perf_counter() - start) * 1e3)
        return statistics.median(times), min(times), max(times)

    def cold_runs(self, work, count):
        """Milliseconds of each run, with the second-level cache filled with other memory before it. That is only
        read, so that nothing is left to be written back."""
        words = torch.cuda.get_device_properties(0).L2_cache_size // 2
        other = torch.zeros(words, device=self.device, dtype=torch.int32)
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for start, end in marks:
            other.max()
            start.record()
            work()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in marks]

    def row(self, peer, shape, prepare):
        """Times what `prepare` returns, or records why not."""
        row = {"peer": peer, **shape}
        if time.monotonic() > self.deadline:
            row["failed"] = "not run: out of time"
        else:
            try:
                median, least, most = self.time(prepare())
                row |= {"median_ms": median, "least_ms": least, "most_ms": most}
            except torch.OutOfMemoryError:
                row["failed"] = "out of memory"
            except Exception as error:  # noqa: BLE001 - a peer's failure is a result
                words = str(error).strip().splitlines()
                row["failed"] = f"{type(error).__name__}: {words[0] if words else ''}"[:300]
        if self.cuda:
            torch.cuda.empty_cache()
        self.document["peers"].append(row)
        self.save()
        found = f"{row['median_ms']:.4f} ms" if "median_ms" in row else row["failed"]
        print(f"{peer:28} {shape['batch']} x {shape['seq_len']} {shape['pattern']} {found}", flush=True)


def rope_tables(length, head_dim, device):
    """Cosines and sines `[length, head_dim / 2]`, in the operators' element type."""
    frequency = 10000 ** (-torch.arange(head_dim // 2, dtype=torch.float64) / (head_dim // 2))
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return angle.cos().to(torch.bfloat16).to(device), angle.sin().to(torch.bfloat16).to(device)


def scan_function(device):
    """Gated keys and values from keys, values and gates, in f32 and then in the keys' type."""
    mode = "pointwise" if device == "cuda" else "generic"

    def scan(key, value, gate):
        both = torch.cat([key, value], dim=-1).float()
        state = gated_scan(gate.repeat(1, 1, 1, 2), both, dim=2, mode=mode)
        return state.to(key.dtype).chunk(2, dim=-1)

    return scan


class Compiled:
    """The compiled parts; made anew for every shape, so that each is specialised for it."""

    def __init__(self, device):
        torch._dynamo.reset()
        self.scan = torch.compile(scan_function(device), dynamic=False)
        self.flex = torch.compile(flex_attention, dynamic=False)
        self.mask = torch.compile(create_block_mask, dynamic=False) if device == "cuda" else create_block_mask
        self.rotate = torch.compile(rotate, dynamic=False)


def tensors(device, batch, heads, seq_len, head_dim, gate=True):
    """Query, key, value in bf16, and the gate in f32 after its sigmoid."""
    make = lambda: torch.randn(batch, heads, seq_len, head_dim, device=device, dtype=torch.bfloat16)  # noqa: E731
    query, key, value = make(), make(), make()
    return query, key, value, (torch.sigmoid(make().float()) if gate else None)


def literal(query, key, value, gate, pattern, cos, sin):
    """The operators in f64, token by token and with the whole mask."""
    query, key, value, cos, sin = (x.double() for x in (query, key, value, cos, sin))
    if gate is not None:
        gate = gate.double()
        states = []
        state = [torch.zeros_like(key[:, :, 0]), torch.zeros_like(value[:, :, 0])]
        for token in range(key.shape[2]):
            keep = gate[:, :, token]
            state = [keep * h + (1 - keep) * x[:, :, token] for h, x in zip(state, (key, value))]
            states.append(state)
        key, value = (torch.stack([s[i] for s in states], dim=2) for i in range(2))
    query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    position = torch.arange(query.shape[2], device=query.device)
    mask = visible(pattern)(0, 0, position[:, None], position[None, :])
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1) @ value


def composition(parts, query, key, value, gate, pattern, cos, sin, mask=None):
    """The official operator's steps, with a mask that was built before or is built now."""
    key, value = parts.scan(key, value, gate)
    query, key = parts.rotate(query, cos, sin), parts.rotate(key, cos, sin)
    if mask is None:
        mask = build_mask(parts, pattern, query.shape[2], query.device)
    return parts.flex(query, key, value, block_mask=mask)


def build_mask(parts, pattern, seq_len, device):
    """The block mask of a pattern."""
    return parts.mask(visible(pattern), None, None, seq_len, seq_len, device=device)


def on_slots(query, key, value, dilation):
    """SDPA over the dilated keys alone: queries of one residue see a causal triangle of them.

    Not the operator: no initial tokens, no window, and a query that is no slot also sees the slot
    after it. It has the operator's useful arithmetic, by a dense kernel.
    """
    batch, heads, seq_len, dim = query.shape
    slots = seq_len // dilation
    key, value = (x[:, :, dilation - 1 :: dilation].unsqueeze(1) for x in (key, value))
    key, value = (x.expand(batch, dilation, heads, slots, dim).reshape(-1, heads, slots, dim) for x in (key, value))
    query = query.view(batch, heads, slots, dilation, dim).permute(0, 3, 1, 2, 4).reshape(-1, heads, slots, dim)
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def prove(bench):
    """The peers compute what they are said to compute."""
    torch.manual_seed(1)
    parts = Compiled(bench.device)
    for pattern in [(1, 0, 0), (4, 3, 2), (16, 0, 4)]:
        inputs = tensors(bench.device, 1, 2, 256, 64)
        cos, sin = rope_tables(256, 64, bench.device)
        want = literal(*inputs, pattern, cos, sin)
        got = composition(parts, *inputs, pattern, cos, sin).double()
        error = ((got - want).norm() / want.norm()).item()
        if not error < 2e-2:
            raise SystemExit(f"error: the composition is off by {error:.3g} of the literal model at {pattern}")
        print(f"composition {pattern}: {error:.2e} of the literal model")
    query, key, value, _ = tensors(bench.device, 1, 2, 256, 64, gate=False)
    got = on_slots(query, key, value, 4).view(1, 4, 2, 64, 64)[:, 3]
    slots = key[:, :, 3::4].double(), value[:, :, 3::4].double()
    want = F.scaled_dot_product_attention(query[:, :, 3::4].double(), *slots, is_causal=True)
    error = ((got.double() - want).norm() / want.norm()).item()
    if not error < 2e-2:
        raise SystemExit(f"error: SDPA over the slots is off by {error:.3g}")
    state = decode_state(bench, 2, 2, 64, 64, (4, 0, INITIAL))
    got = decode_step(rotate, *state).double()
    want = decode_literal(*state)
    error = ((got - want).norm() / want.norm()).item()
    if not error < 2e-2:
        raise SystemExit(f"error: the decode step is off by {error:.3g} of the literal model")


def limits(bench):
    """A large matrix product and a large copy."""
    size = 256 if bench.small else GEMM
    a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    median, _, _ = bench.time(lambda: a @ b)
    bytes_moved = 1 << (20 if bench.small else 32)
    source = torch.randint(-128, 127, (bytes_moved,), device=bench.device, dtype=torch.int8)
    target = torch.empty_like(source)
    copy, _, _ = bench.time(lambda: target.copy_(source))
    bench.document["limits"] = {
        "gemm_tflops": 2 * size**3 / median / 1e9,
        "peer_copy_tb_s": 2 * bytes_moved / copy / 1e9,
    }
    bench.save()
    print(bench.document["limits"], flush=True)


def shape_of(batch, seq_len, heads, head_dim, pattern):
    """What a row is told apart by."""
    return {
        "batch": batch,
        "seq_len": seq_len,
        "heads": heads,
        "head_dim": head_dim,
        "pattern": None if pattern is None else list(pattern),
    }


def scans(bench):
    """The recurrence alone."""
    tokens, heads, dim = (256, 2, 64) if bench.small else (1 << 18, 16, 128)
    lengths = [128, 256] if bench.small else [1 << power for power in range(12, 19)]
    for seq_len in lengths:
        batch = tokens // seq_len

        def prepare(batch=batch, seq_len=seq_len):
            _, key, value, gate = tensors(bench.device, batch, heads, seq_len, dim)
            scan = Compiled(bench.device).scan
            return lambda: scan(key, value, gate)

        bench.row("associative_scan", shape_of(batch, seq_len, heads, dim, None), prepare)


def prefill(bench):
    """Whole prompts; the shapes that say most first, as compiling takes most of the time."""
    tokens, heads, dim = (256, 2, 64) if bench.small else (1 << 18, 16, 128)
    lengths = [128, 256] if bench.small else [1 << power for power in (14, 18, 12, 16, 13, 15, 17)]
    dilations = [1, 4] if bench.small else [1, 16, 64, 4, 2]
    for seq_len in lengths:
        batch = tokens // seq_len
        dense(bench, shape_of(batch, seq_len, heads, dim, (1, 0, 0)))
    for dilation in dilations[1:]:
        for seq_len in lengths:
            slots(bench, shape_of(tokens // seq_len, seq_len, heads, dim, (dilation, 0, 0)), dilation)
    for window in [0, 256]:
        for seq_len in lengths:
            for dilation in dilations:
                if dilation == 1 and window > 0:
                    continue
                pattern = (1, 0, 0) if dilation == 1 else (dilation, window, INITIAL)
                official(bench, shape_of(tokens // seq_len, seq_len, heads, dim, pattern), pattern)


def dense(bench, shape):
    """Causal SDPA."""

    def prepare():
        query, key, value, _ = tensors(bench.device, *sizes(shape), gate=False)
        return lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True)

    bench.row("sdpa, dense", shape, prepare)


def slots(bench, shape, dilation):
    """SDPA over the dilated keys alone."""

    def prepare():
        query, key, value, _ = tensors(bench.device, *sizes(shape), gate=False)
        return lambda: on_slots(query, key, value, dilation)

    bench.row("sdpa, slots only", shape, prepare)


def sizes(shape):
    """In the order of a tensor's axes."""
    return shape["batch"], shape["heads"], shape["seq_len"], shape["head_dim"]


def official(bench, shape, pattern):
    """The composition, its attention alone, and its mask alone."""
    seq_len, dim = shape["seq_len"], shape["head_dim"]
    held = {}

    def parts():
        if "parts" not in held:
            held["parts"] = Compiled(bench.device)
            held["inputs"] = tensors(bench.device, *sizes(shape))
            held["tables"] = rope_tables(seq_len, dim, bench.device)
        return held["parts"], held["inputs"], held["tables"]

    def mask():
        compiled, inputs, _ = parts()
        return lambda: build_mask(compiled, pattern, seq_len, inputs[0].device)

    def attention():
        compiled, (query, key, value, _), _ = parts()
        built = build_mask(compiled, pattern, seq_len, query.device)
        return lambda: compiled.flex(query, key, value, block_mask=built)

    def whole():
        compiled, inputs, tables = parts()
        return lambda: composition(compiled, *inputs, pattern, *tables)

    bench.row("flex, mask alone", shape, mask)
    bench.row("flex, attention alone", shape, attention)
    bench.row("scan + mask + flex", shape, whole)
    held.clear()


def decode_state(bench, batch, heads, seq_len, dim, pattern):
    """A token's inputs, its state, and the compact cache with room for the token itself."""
    dilation, window, initial = pattern
    rows = initial + window + (seq_len - 1) // dilation - min(initial, seq_len - 1) // dilation
    make = lambda *shape: torch.randn(*shape, device=bench.device, dtype=torch.bfloat16)  # noqa: E731
    token = [make(batch, heads, 1, dim) for _ in range(4)]
    state = [make(batch, heads, 1, dim).float() for _ in range(2)]
    cache = [make(batch, heads, rows + 1, dim) for _ in range(2)]
    cos, sin = rope_tables(seq_len, dim, bench.device)
    return token, state, cache, cos[-1:], sin[-1:]


def gated_token(token, state):
    """Query, gated key, gated value."""
    query, key, value, logit = token
    keep = torch.sigmoid(logit.float())
    key, value = (keep * h + (1 - keep) * x.float() for h, x in zip(state, (key, value)))
    return query, key.to(query.dtype), value.to(query.dtype)


def decode_step(turn, token, state, cache, cos, sin):
    """One step: gate, rotate, write the token's row, attend to every row."""
    query, key, value = gated_token(token, state)
    query, key = turn(query, cos, sin), turn(key, cos, sin)
    cache[0][:, :, -1:] = key
    cache[1][:, :, -1:] = value
    return F.scaled_dot_product_attention(query, cache[0], cache[1])


def decode_literal(token, state, cache, cos, sin):
    """The same in f64."""
    query, key, value = (x.double() for x in gated_token(token, state))
    cos, sin = cos.double(), sin.double()
    query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    keys = torch.cat([cache[0][:, :, :-1].double(), key], dim=2)
    values = torch.cat([cache[1][:, :, :-1].double(), value], dim=2)
    scores = query @ keys.transpose(-1, -2) / query.shape[-1] ** 0.5
    return torch.softmax(scores, dim=-1) @ values


def decode(bench):
    """One token a sequence: SDPA over the rows alone, and the compiled step."""
    batch, heads, dim = (2, 2, 64) if bench.small else (128, 16, 128)
    lengths = [64, 300] if bench.small else [1 << power for power in range(12, 19)]
    for dilation in [1, 4, 16, 64]:
        pattern = (1, 0, 0) if dilation == 1 else (dilation, 0, INITIAL)
        for seq_len in lengths:
            shape = shape_of(batch, seq_len, heads, dim, pattern)

            def attention(seq_len=seq_len, pattern=pattern):
                (query, *_), _, cache, _, _ = decode_state(bench, batch, heads, seq_len, dim, pattern)
                return lambda: F.scaled_dot_product_attention(query, *cache)

            def step(seq_len=seq_len, pattern=pattern):
                state = decode_state(bench, batch, heads, seq_len, dim, pattern)
                torch._dynamo.reset()
                compiled = torch.compile(decode_step, dynamic=False)
                return lambda: compiled(rotate, *state)

            bench.row("decode, sdpa alone", shape, attention)
            bench.row("decode, compiled step", shape, step)


def goals(bench):
    """Two rows that say most: dense causal attention, and the composition at a long prompt."""
    tokens, heads, dim = (256, 2, 64) if bench.small else (1 << 18, 16, 128)
    medium, long, dilation = (128, 256, 4) if bench.small else (1 << 14, 1 << 18, 16)
    dense(bench, shape_of(tokens // medium, medium, heads, dim, (1, 0, 0)))
    pattern = (dilation, 0, INITIAL)
    official(bench, shape_of(tokens // long, long, heads, dim, pattern), pattern)


PARTS = {"limits": limits, "scan": scans, "decode": decode, "prefill": prefill, "goals": goals}


def main(arguments):
    """Runs the chosen parts; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="limits,scan,decode,prefill", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, help="where rows go, as each is done")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="shapes that a CPU can do")
    parser.add_argument("--seconds", type=float, default=270, help="after these, no further row starts")
    options = parser.parse_args(arguments)
    wanted = options.only.split(",")
    for name in wanted:
        if name not in PARTS:
            parser.error(f"--only: expected some of {', '.join(PARTS)}; found `{name}`")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no CUDA device; use --device cpu --small to try the script", file=sys.stderr)
        return 2
    torch._dynamo.config.recompile_limit = 256
    bench = Bench(options)
    if wanted != ["limits"]:
        prove(bench)
    for name in wanted:
        PARTS[name](bench)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
