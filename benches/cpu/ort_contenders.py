"""Contenders in ONNX Runtime: our kernels, the function bodies of the same model, and the dense attention that
ONNX Runtime brings."""

import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

import models
from plugin_driver import bind
from problem import aligned, filled, numpy_type

GARBAGE = 1.0


@dataclass
class Prepared:
    """Work to time: `run()` does it `count` times, `result()` is what it computed (after a run)."""

    run: object
    result: object
    detail: str = ""
    count: int = 1
    keep: list = field(default_factory=list)


def caches(shape):
    """How many caches a decode step goes through, so that none stays in a cache of the CPU: together they are as
    large as one of dense attention. Where blocks are chosen, how many choices it makes in one cache, each by
    summaries of its own."""
    dense = shape.kv_heads * shape.seq_len
    if shape.blocks:
        read = 2 * dense * shape.head_dim * shape.element_bytes // shape.least_bytes()
    else:
        read = dense // shape.cache_rows()
    return max(1, min(64, read))


def make_session(model, threads, library=None, profile=None):
    """A CPU session of a model's bytes."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(str(library))
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return ort.InferenceSession(model, options, ["CPUExecutionProvider"])


def executed(session):
    """Ends profiling; the operators that ran."""
    path = Path(session.end_profiling())
    events = json.loads(path.read_text())
    path.unlink()
    nodes = [event["args"] for event in events if event.get("cat") == "Node"]
    return {node["op_name"] for node in nodes if "op_name" in node}


class Operators:
    """The model of the operators: with the library our kernels run, without it their bodies."""

    compiled = False

    def __init__(self, name, library, bodies, threads):
        self.group = "ours" if library else "body"
        self.name, self.library, self.bodies, self.threads = name, library, bodies, threads

    def refuses(self, shape):
        """Why a shape is not for this contender; None where it is."""
        if self.library is None and self.bodies is None:
            return "no `ratplus` program (--program) to export the bodies with"
        if self.library is None and shape.dtype != "f32":
            return "only f32 is measured"
        return None

    def bytes_needed(self, shape):
        """Memory at once besides the inputs, about."""
        if shape.part == "decode":
            dense = 2 * shape.seq_len * shape.kv_width * shape.element_bytes
            sets = 2 * dense if shape.blocks else dense
            return sets if self.library else 6 * dense
        tokens = shape.seq_len * shape.width * shape.element_bytes
        if self.library or shape.part == "scan":
            return (7 if self.library else 40) * tokens
        cached = shape.cache_rows() // shape.kv_heads
        return 4 * 4 * shape.heads * shape.seq_len * (shape.seq_len + cached)

    def cost(self, shape):
        """Arithmetic that it really does, for estimates."""
        if shape.part in ("scan", "decode"):
            return 20 * shape.least_bytes() * (caches(shape) if shape.part == "decode" else 1)
        scan = 30 * shape.seq_len * shape.width if shape.part == "chain" else 0
        if self.library:
            return shape.flops() * (4 if shape.blocks else 1) + scan
        cached = shape.cache_rows() // shape.kv_heads
        return 4 * shape.width * shape.seq_len * (shape.seq_len + cached) + 20 * scan

    def functions(self, shape, seq_len):
        return self.bodies.of(shape, seq_len) if self.bodies and shape.dtype == "f32" else []

    def session(self, shape, seq_len, profile=None):
        model = models.operator_model(shape, seq_len, self.functions(shape, seq_len))
        return make_session(model, self.threads, self.library, profile)

    def prepare(self, shape, inputs):
        """A session and its bindings, states and cache in place."""
        if shape.part == "decode":
            return self.prepare_decode(shape, inputs)
        session = self.session(shape, shape.seq_len)
        feeds, outputs = self.arrays(shape, shape.seq_len, vars(inputs), past=0)
        binding = bind(session, feeds, outputs)
        names = ("gated_key", "gated_value") if shape.part == "scan" else ("output",)
        return Prepared(
            run=lambda: session.run_with_iobinding(binding),
            result=lambda: [outputs[name][0] for name in names],
            keep=[feeds, outputs],
        )

    def prepare_decode(self, shape, inputs):
        """One token onto a full cache, over several caches in turn where no history is asked for; where blocks are
        chosen, by several sets of summaries in turn over one."""
        session = self.session(shape, 1)
        last = {name: getattr(inputs, name)[-1:] for name in ("query", "key", "value", "gate")}
        # A body writes a whole new cache at every step: none stays near.
        count = 1 if inputs.history or shape.blocks and not self.library else caches(shape)
        bindings, keep, states, shared = [], [], None, {}
        for _ in range(count):
            feeds, outputs = self.arrays(shape, 1, last, past=shape.seq_len - 1, rng=inputs.rng, shared=shared)
            if shape.blocks:
                shared = {name: feeds[name] for name in ("past_key", "past_value")}
            if states is None and inputs.history:
                states = self.history(shape, inputs)
                for name, array in states.items():
                    feeds[name][...] = array
            bindings.append(bind(session, feeds, outputs))
            keep.append((feeds, outputs))

        def run():
            for binding in bindings:
                session.run_with_iobinding(binding)

        what = "choices in one cache" if shape.blocks else "caches in turn"
        detail = f"{count} {what}" if count > 1 else "one cache"
        return Prepared(run, lambda: [keep[0][1]["output"][0]], detail, count, keep)

    def history(self, shape, inputs):
        """States and cache after all tokens but the last, as one chunk of the chain leaves them."""
        length = shape.seq_len - 1
        chunk = {name: getattr(inputs, name)[:-1] for name in ("query", "key", "value", "gate")}
        session = self.session(replace(shape, part="chain"), length)
        feeds, outputs = self.arrays(shape, length, chunk, past=0)
        session.run_with_iobinding(bind(session, feeds, outputs))
        nodes = (shape.scan_node(length), shape.attention_node(length))
        return {old: outputs[new] for node in nodes for old, new in node.states.items()}

    def arrays(self, shape, seq_len, tokens, past, rng=None, shared=()):
        """Inputs and outputs by name, some inputs given; our kernels' `present_*` and new states are their inputs'
        memory."""
        nodes = [] if shape.part == "attention" else [shape.scan_node(seq_len)]
        nodes += [] if shape.part == "scan" else [shape.attention_node(seq_len)]
        specs, results = {}, {}
        for node in nodes:
            specs |= node.inputs(shape.dtype)
            results |= node.outputs(shape.dtype)
        if len(nodes) == 2:
            results = {name: spec for name, spec in results.items() if not name.startswith("gated_")}
        counts = {"past_length": past, "seq_length": seq_len}
        feeds = {}
        for name, (dtype, dims) in specs.items():
            if name in shared:
                feeds[name] = shared[name]
            elif name in tokens and name in ("query", "key", "value", "gate"):
                feeds[name] = np.ascontiguousarray(tokens[name])[None]
            elif name in counts:
                feeds[name] = np.array([counts[name]], np.int64)
            elif name in ("cos", "sin"):
                feeds[name] = nodes[-1].tables()[name]
            elif rng is not None and name.startswith("past_"):
                feeds[name] = filled(rng, dims, numpy_type(dtype))
            else:
                feeds[name] = aligned(dims, numpy_type(dtype))
                feeds[name].fill(GARBAGE)
        outputs = {name: aligned(dims, numpy_type(dtype)) for name, (dtype, dims) in results.items()}
        # A body's nodes may read the past after the present has been written: it has buffers of its own.
        for node in nodes if self.library else []:
            outputs |= {new: feeds[old] for old, new in node.states.items()}
        return feeds, outputs

    def ran(self, shape, inputs):
        """The operators that a run executes, from ONNX Runtime's profile."""
        with tempfile.TemporaryDirectory() as folder:
            session = self.session(shape, shape.seq_len, Path(folder) / "profile")
            feeds, outputs = self.arrays(shape, shape.seq_len, vars(inputs), past=0)
            session.run_with_iobinding(bind(session, feeds, outputs))
            return executed(session)


class Dense:
    """ONNX Runtime's own causal attention, f32, on rotated queries and keys."""

    group = "ort"
    compiled = False
    library = None

    def __init__(self, name, build, threads, groups):
        self.name, self.build, self.threads, self.groups = name, build, threads, groups

    def refuses(self, shape):
        if shape.part != "attention" or shape.pattern is None or shape.pattern.dilation != 1:
            return "dense attention alone"
        if shape.group > 1 and not self.groups:
            return "a key-value head a query head alone"
        return "only f32 is measured" if shape.dtype != "f32" else None

    def bytes_needed(self, shape):
        return 4 * shape.heads * shape.seq_len**2 * 3 // 2

    def cost(self, shape):
        return 4 * shape.width * shape.seq_len**2

    def prepare(self, shape, inputs):
        session = make_session(self.build(shape), self.threads)
        query, key = inputs.rotated()
        feeds = {"query": query[None], "key": key[None], "value": inputs.value[None]}
        output = aligned((1, shape.seq_len, shape.width), np.float32)
        arrays = {"output": output}
        if "seqlens_k" in {value.name for value in session.get_inputs()}:
            cache = (1, shape.kv_heads, shape.seq_len, shape.head_dim)
            arrays |= {name: aligned(cache, np.float32) for name in ("present_key", "present_value")}
            feeds |= {"seqlens_k": np.array([shape.seq_len - 1], np.int32)}
            feeds |= {"total_sequence_length": np.array([shape.seq_len], np.int32)}
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in arrays.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return Prepared(lambda: session.run_with_iobinding(binding), lambda: [output[0]], keep=[feeds, arrays])


def contenders(library, bodies, threads):
    """All of this file; ours first."""
    return [
        Operators("ours", library, bodies, threads),
        Operators("function body", None, bodies, threads),
        Dense("ORT MultiHeadAttention", models.multi_head_attention, threads, groups=False),
        Dense("ORT GroupQueryAttention", models.group_query_attention, threads, groups=True),
    ]
