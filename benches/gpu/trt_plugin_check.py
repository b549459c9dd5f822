#!/usr/bin/env python3
"""Runs the TensorRT plugins on a GPU as an execution context would, and compares them with the
definition in f64; then times them.

Every case takes a plugin from fields to `enqueue` (tests/python/trt_driver.py) and feeds sequences
of several lengths in chunks and token by token: unwritten memory holds NaN, past and present are one
buffer and then two, and the results have to be the same bits and within the tolerance. One case is
captured into a CUDA graph and replayed.

    trt_plugin_check.py HARNESS LIBRARY [--json FILE]

HARNESS is trt_harness.cpp, compiled; `cargo xtask gpu-bundle` makes it. Needs numpy and NVIDIA's
driver. `--tiny` keeps to shapes that the emulator can do, in place of the driver, with a library
built with `cuda-emulation`.

Exit 0: all checks held. Exit 1: one did not. Exit 2: bad input or environment.
"""

import argparse
import ctypes
import json
import statistics
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parents[1] / "tests" / "python")]

from trt_driver import BUILD, RUNTIME, Harness, Plugin, parsed_fields, pointer, words  # noqa: E402

# F32_LOGIT and NAIVE_ROUNDING_FACTOR of graphs/src/tolerance.rs, which a test compares.
F32_TOLERANCE = 2e-4
NAIVE_FACTOR = 2.0


class Bad(Exception):
    """Bad input or environment."""


def to_bits(values, t):
    """f64 or f32 values in the bits of a type, rounded to nearest even."""
    values = np.asarray(values, np.float32)
    if t == "f32":
        return values
    if t == "f16":
        return values.astype(np.float16)
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bits(bits, t):
    """The same back, in f64."""
    if t == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return bits.astype(np.float64)


SIZES = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16, "i64": np.int64}
NAN_BITS = {"f32": np.float32("nan"), "f16": np.float16("nan"), "bf16": 0x7FC0, "i64": -(2**40)}


class Gpu:
    """Device memory, a stream and events, through the driver."""

    def __init__(self, ordinal):
        try:
            self.driver = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise Bad(f"no CUDA driver: {error}; install NVIDIA's driver")
        self.call("cuInit", 0)
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), ordinal)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.call("cuStreamCreate", ctypes.byref(stream), 1)
        self.stream = stream

    def call(self, name, *arguments):
        code = getattr(self.driver, name)(*arguments)
        if code != 0:
            raise Bad(f"{name} failed with CUDA error {code}")

    def zeros(self, count):
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(count, 1)))
        self.call("cuMemsetD8Async", address, ctypes.c_ubyte(0), ctypes.c_size_t(max(count, 1)), self.stream)
        self.wait()
        return address.value, address

    def allocate(self, array):
        address, handle = self.zeros(array.nbytes)
        self.write(handle, array)
        return address, handle

    def write(self, handle, array):
        array = np.ascontiguousarray(array)
        self.call("cuMemcpyHtoD_v2", handle, pointer(array), ctypes.c_size_t(array.nbytes))
        # A copy from memory that is not pinned may return early.
        self.wait()

    def read(self, handle, array):
        self.wait()
        self.call("cuMemcpyDtoH_v2", pointer(array), handle, ctypes.c_size_t(array.nbytes))

    def wait(self):
        self.call("cuCtxSynchronize")

    def time(self, work, count, flushed):
        """Milliseconds of one launch: the median of `count`, each between two events, after as many
        bytes were read as push the tensors out of the cache."""
        events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in events:
            self.call("cuEventCreate", ctypes.byref(event), 0)
        part = min(flushed, 1 << 20)
        flush, sink = self.zeros(flushed)[1], self.zeros(part)[1]
        taken = []
        for _ in range(count + 3):
            # What is written is a part as large as one copy: the rest stays clean.
            for at in range(0, flushed - part + 1, part):
                source = ctypes.c_uint64(flush.value + at)
                self.call("cuMemcpyDtoDAsync_v2", sink, source, ctypes.c_size_t(part), self.stream)
            self.call("cuEventRecord", events[0], self.stream)
            work()
            self.call("cuEventRecord", events[1], self.stream)
            self.wait()
            milliseconds = ctypes.c_float()
            self.call("cuEventElapsedTime", ctypes.byref(milliseconds), *events)
            taken.append(milliseconds.value)
        self.call("cuMemFree_v2", flush)
        self.call("cuMemFree_v2", sink)
        kept = taken[3:]
        return statistics.median(kept), min(kept), max(kept)

    def record(self, work):
        """A CUDA graph of `work`, as something that replays it."""
        graph, made = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuStreamBeginCapture_v2", self.stream, 2)
        work()
        self.call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        self.call("cuGraphInstantiateWithFlags", ctypes.byref(made), graph, ctypes.c_uint64(0))
        return lambda: self.call("cuGraphLaunch", made, self.stream)


class Scan:
    """RecurrenceScan: shapes and the definition."""

    op, states = "RecurrenceScan", {"state_key": "new_state_key", "state_value": "new_state_value"}
    chunks, results = ("key", "value", "gate"), ("gated_key", "gated_value")

    def __init__(self, batch, seq_len, channels):
        self.batch, self.seq_len, self.channels = batch, seq_len, channels

    def with_length(self, seq_len):
        return Scan(self.batch, seq_len, self.channels)

    def attributes(self):
        return {}

    def inputs(self, t):
        chunk, state = (self.batch, self.seq_len, self.channels), (self.batch, self.channels)
        lengths = [("past_length", "i64", (self.batch,)), ("seq_length", "i64", (self.batch,))]
        return [*((name, t, chunk) for name in self.chunks), *((name, "f32", state) for name in self.states), *lengths]

    def outputs(self, t):
        chunk, state = (self.batch, self.seq_len, self.channels), (self.batch, self.channels)
        return [*((name, t, chunk) for name in self.results), *((name, "f32", state) for name in self.states.values())]

    def constants(self):
        return {}

    def define(self, key, value, gate, round_to):
        g = 1 / (1 + np.exp(-gate))
        gated = np.empty_like(key), np.empty_like(value)
        state = np.zeros(key.shape[1]), np.zeros(key.shape[1])
        for i in range(len(key)):
            state = g[i] * state[0] + (1 - g[i]) * key[i], g[i] * state[1] + (1 - g[i]) * value[i]
            gated[0][i], gated[1][i] = state
        return gated


class Attention:
    """DilatedAttention: shapes and the definition."""

    op, states = "DilatedAttention", {"past_key": "present_key", "past_value": "present_value"}
    chunks, results = ("query", "key", "value"), ("output",)

    def __init__(self, batch, seq_len, head_dim, max_seq_len, patterns):
        self.batch, self.seq_len, self.head_dim, self.max_seq_len = batch, seq_len, head_dim, max_seq_len
        self.patterns = patterns

    def with_length(self, seq_len):
        return Attention(self.batch, seq_len, self.head_dim, self.max_seq_len, self.patterns)

    def attributes(self):
        dilation, window, initial = ([pattern[i] for pattern in self.patterns] for i in range(3))
        scale = float(np.float32(1 / np.sqrt(self.head_dim)))
        heads = len(self.patterns)
        return {"num_heads": heads, "dilation": dilation, "local_window": window, "initial": initial, "scale": scale}

    def rows(self):
        kept = lambda d, w, i: i + w + (self.max_seq_len // d if d > 0 else 0)  # noqa: E731
        return sum(kept(*pattern) for pattern in self.patterns)

    def inputs(self, t):
        chunk = (self.batch, self.seq_len, len(self.patterns) * self.head_dim)
        cache, table = (self.batch, self.rows(), self.head_dim), (self.max_seq_len, self.head_dim // 2)
        lengths = [("past_length", "i64", (self.batch,)), ("seq_length", "i64", (self.batch,))]
        caches = [(name, t, cache) for name in self.states]
        return [*((name, t, chunk) for name in self.chunks), *caches, *lengths, ("cos", "f32", table), ("sin", "f32", table)]

    def outputs(self, t):
        chunk = (self.batch, self.seq_len, len(self.patterns) * self.head_dim)
        cache = (self.batch, self.rows(), self.head_dim)
        return [("output", t, chunk), *((name, t, cache) for name in self.states.values())]

    def constants(self):
        half = self.head_dim // 2
        angles = np.arange(self.max_seq_len)[:, None] * 10000.0 ** (-np.arange(half) / half)
        return {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}

    def define(self, query, key, value, round_to):
        length, output = len(query), np.empty_like(query)
        tables = self.constants()
        cos, sin = (tables[name][:length].astype(np.float64) for name in ("cos", "sin"))

        def rotate(x):
            low, high = np.split(x, 2, axis=-1)
            return round_to(np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1))

        i, j = np.arange(length)[:, None], np.arange(length)[None, :]
        for head, (dilation, window, initial) in enumerate(self.patterns):
            span = slice(head * self.head_dim, (head + 1) * self.head_dim)
            visible = (i - j <= window) | (j < initial)
            if dilation > 0:
                visible |= (j + 1) % dilation == 0
            scores = rotate(query[:, span]) @ rotate(key[:, span]).T / np.sqrt(self.head_dim)
            scores = np.where(visible & (j <= i), scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            output[:, span] = round_to(weights / weights.sum(axis=1, keepdims=True)) @ value[:, span]
        return (output,)


class Engine:
    """A plugin in an execution context, for one length; its tensors in device memory."""

    def __init__(self, place, harness, creator, node, t, shared):
        self.place, self.lib, self.node, self.harness = place, harness.lib, node, harness
        self.inputs, self.outputs = node.inputs(t), node.outputs(t)
        tensors = [spec[1:] for spec in (*self.inputs, *self.outputs)]
        split = len(self.inputs)
        built = Plugin.create(harness, creator, parsed_fields(node.attributes()), "check", BUILD)
        bytes_needed = built.call("workspace_size", tensors[:split], tensors[split:])
        loaded = Plugin.create(harness, creator, built.stored_fields(), "check", RUNTIME)
        self.plugin = loaded.attach()
        if self.plugin.call("shape_change", tensors[:split], tensors[split:]) != 0:
            raise Bad(f"{node.op}: not prepared (the reason is above)")
        built.destroy()
        loaded.destroy()
        self.flat, self.workspace = words(tensors), place.zeros(bytes_needed)
        self.memory = dict(shared)
        for name, dtype, shape in (*self.inputs, *self.outputs):
            if name not in self.memory:
                self.memory[name] = place.allocate(np.full(shape, NAN_BITS[dtype], SIZES[dtype]))

    def write(self, name, array):
        self.place.write(self.memory[name][1], array)

    def read(self, name, dtype, shape):
        array = np.empty(shape, SIZES[dtype])
        self.place.read(self.memory[name][1], array)
        return array

    def enqueue(self, swap=None):
        """Runs it; `swap` takes past for present and the reverse."""
        memory = self.memory if swap is None else self.memory | swap
        address = lambda name: memory[name][0]  # noqa: E731
        sources = (ctypes.c_void_p * len(self.inputs))(*(address(name) for name, *_ in self.inputs))
        targets = (ctypes.c_void_p * len(self.outputs))(*(address(name) for name, *_ in self.outputs))
        code = self.lib.enqueue(
            self.plugin.address, pointer(self.flat), len(self.inputs), len(self.outputs), sources, targets,
            ctypes.c_void_p(self.workspace[0]), self.place.stream,
        )  # fmt: skip
        if code != 0:
            raise AssertionError(f"enqueue returned {code} (the reason is above)")


def replay(place, harness, creator, node, t, sequences, plan, in_place):
    """Feeds the sequences; results by name and slot, and the states' bytes."""
    shared = {}
    for name, dtype, shape in node.inputs(t):
        if name in node.states:
            garbage = np.full(shape, NAN_BITS[dtype], SIZES[dtype])
            shared[name] = place.allocate(garbage)
            shared[node.states[name]] = shared[name] if in_place else place.allocate(garbage)
    engines = {length: Engine(place, harness, creator, node.with_length(length), t, shared) for length, _ in plan}
    past = np.zeros(node.batch, np.int64)
    collected = {name: [[] for _ in range(node.batch)] for name in node.results}
    flipped = False
    for length, counts in plan:
        engine = engines[length]
        for name in node.chunks:
            chunk = np.ones((node.batch, length, sequences[name][0].shape[1]), np.float32)
            for slot, count in enumerate(counts):
                chunk[slot, :count] = sequences[name][slot][past[slot] : past[slot] + count]
            engine.write(name, to_bits(chunk, t))
        for name, array in (node.constants() | {"past_length": past, "seq_length": np.array(counts, np.int64)}).items():
            engine.write(name, array)
        swap = {}
        if flipped:
            for old, new in node.states.items():
                swap |= {old: shared[new], new: shared[old]}
        engine.enqueue(swap)
        flipped = not in_place and not flipped
        for name, dtype, shape in engine.outputs:
            if name in collected:
                found = engine.read(name, dtype, shape)
                if not np.isfinite(from_bits(found, t)).all():
                    raise AssertionError(f"{node.op} {t}: {name} is not finite")
                for slot, count in enumerate(counts):
                    collected[name][slot].append(found[slot, :count].copy())
        past += counts
    results = {name: [np.concatenate(parts) for parts in slots] for name, slots in collected.items()}
    return results


def compare(node, t, sequences, results):
    """The largest error of the tolerance, over slots and results."""
    worst = 0.0
    round_to = lambda x: from_bits(to_bits(x, t), t)  # noqa: E731
    for slot in range(node.batch):
        inputs = [from_bits(to_bits(sequences[name][slot], t), t) for name in node.chunks]
        exact = node.define(*inputs, round_to=lambda x: x)
        naive = node.define(*inputs, round_to=round_to)
        for name, wanted, rounded in zip(node.results, exact, naive):
            error = np.abs(from_bits(results[name][slot], t) - wanted).max()
            limit = F32_TOLERANCE * np.abs(wanted).max()
            if t != "f32":
                limit = NAIVE_FACTOR * np.abs(round_to(rounded) - wanted).max()
            if error > 0:
                worst = max(worst, error / limit if limit > 0 else np.inf)
    return worst


def cases(tiny):
    """Nodes whose lengths are to be replaced, chunk lengths, tokens of each slot."""
    patterns = [(16, 0, 4), (4, 8, 1), (1, 0, 0), (-1, 6, 3)]
    yield Scan(3, 1, 40), [1, 5, 16], [50, 1, 23]
    yield Attention(3, 1, 64, 60, patterns), [1, 5, 16], [50, 1, 23]
    yield Attention(2, 1, 128, 60, patterns[:2]), [1, 16], [50, 33]
    if not tiny:
        yield Scan(2, 1, 2048), [1, 64, 512], [700, 513]
        yield Attention(2, 1, 128, 1100, patterns), [1, 64, 512], [1050, 513]


def plan_for(rng, lengths, totals):
    """Ragged chunks with idle slots that feed every slot its tokens."""
    left, plan = np.array(totals), []
    while left.any():
        length = int(rng.choice(lengths))
        counts = np.minimum(left, rng.integers(0, length + 1, len(left)))
        # Few single tokens: the long sequences are for the chunks.
        if counts.any() and (length > 1 or len(plan) < 40):
            plan.append((length, counts.tolist()))
            left = left - counts
    return plan


def check(place, harness, creators, tiny, report):
    """Every case, in place and not."""
    rng = np.random.default_rng(report["seed"])
    for node, lengths, totals in cases(tiny):
        for t in ("f32", "f16", "bf16"):
            width = node.inputs(t)[0][2][2]
            sequences = {name: [2 * rng.standard_normal((total, width)) for total in totals] for name in node.chunks}
            plan = plan_for(rng, lengths, totals)
            creator = creators[node.op]
            runs = [replay(place, harness, creator, node, t, sequences, plan, in_place) for in_place in (True, False)]
            same = all(
                a.tobytes() == b.tobytes() for name in node.results for a, b in zip(runs[0][name], runs[1][name])
            )
            worst = compare(node, t, sequences, runs[0])
            good = bool(same and worst <= 1)
            line = {"op": node.op, "dtype": t, "width": width, "steps": len(plan), "of_tolerance": round(float(worst), 4)}
            report["cases"].append(line | {"in_place_same_bits": same, "ok": good})
            print(f"{'ok   ' if good else 'WRONG'} {node.op} {t} {width}: {worst:.3f} of the tolerance, same bits {same}")


def time_all(place, harness, creators, tiny, report):
    """Decode and prefill at the shapes of benches/gpu, and decode replayed from a graph, which has to
    compute the same bits."""
    count, flush = (2, 1 << 10) if tiny else (30, 256 << 20)
    timed = [
        ("decode", Attention(2, 1, 64, 64, [(4, 0, 4)] * 2), 63, 1),
        ("prefill", Scan(2, 16, 64), 0, 16),
    ]
    timed = timed if tiny else [
        ("decode", Attention(128, 1, 128, 4096, [(16, 0, 4)] * 16), 4095, 1),
        ("decode", Attention(8, 1, 128, 16384, [(1, 0, 0)] * 16), 16383, 1),
        ("prefill", Attention(1, 4096, 128, 4096, [(16, 0, 4)] * 16), 0, 4096),
        ("decode", Scan(128, 1, 2048), 4095, 1),
        ("prefill", Scan(1, 65536, 2048), 0, 65536),
    ]
    for what, node, past, tokens in timed:
        engine = Engine(place, harness, creators[node.op], node, "bf16", {})
        for name, dtype, shape in engine.inputs:
            if dtype != "i64":
                fill = np.full(shape, 0.5 if name not in ("cos", "sin") else 1.0, np.float32)
                engine.write(name, fill if dtype == "f32" else to_bits(fill, "bf16"))
        engine.write("past_length", np.full(node.batch, past, np.int64))
        engine.write("seq_length", np.full(node.batch, tokens, np.int64))
        median, low, high = place.time(engine.enqueue, count, flush)
        row = {"what": what, "op": node.op, "shape": " x ".join(map(str, engine.inputs[0][2]))}
        row |= {"median_ms": median, "min_ms": low, "max_ms": high}
        if what == "decode":
            name, dtype, shape = engine.outputs[0]
            eager = engine.read(name, dtype, shape)
            engine.write(name, np.full(shape, NAN_BITS[dtype], SIZES[dtype]))
            row["graph_median_ms"] = place.time(place.record(engine.enqueue), count, flush)[0]
            row["ok"] = engine.read(name, dtype, shape).tobytes() == eager.tobytes()
        report["times"].append(row)
        shape = engine.inputs[0][2]
        print(f"{what} {node.op} {shape}: {median:.4f} ms ({low:.4f} to {high:.4f}), graph {row.get('graph_median_ms')}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("harness", type=Path)
    parser.add_argument("library", type=Path)
    parser.add_argument("--tiny", action="store_true", help="shapes that the emulator can do")
    parser.add_argument("--device", type=int, default=0, help="number of the GPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the report there")
    options = parser.parse_args()
    report = {"seed": options.seed, "cases": [], "times": []}
    try:
        for path in (options.harness, options.library):
            if not path.is_file():
                raise Bad(f"{path}: no such file; `cargo xtask gpu-bundle` makes it")
        place = Gpu(options.device)
        harness = Harness(options.harness.resolve())
        creators = harness.creators_of(options.library.resolve())
        check(place, harness, creators, options.tiny, report)
        time_all(place, harness, creators, options.tiny, report)
    except Bad as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(row.get("ok", True) for row in [*report["cases"], *report["times"]]) else 1


if __name__ == "__main__":
    sys.exit(main())
