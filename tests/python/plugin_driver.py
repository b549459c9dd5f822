"""Runs one-node models through stock onnxruntime with the custom-op library."""

import numpy as np
import onnxruntime as ort

from plugin_models import ONNX_TYPES, numpy_type


def make_session(library, model, threads=1, **config):
    """A CPU session with the library registered, where one is given."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    for key, value in config.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model, options, ["CPUExecutionProvider"])


def garbage(dtype, shape):
    """What an unwritten buffer may hold at worst."""
    return np.full(shape, np.nan if dtype != "i64" else -(2**40), numpy_type(dtype))


def lengths_of(node, past, seq):
    """The inputs of these lengths."""
    lengths = {"past_length": np.array(past, np.int64), "seq_length": np.array(seq, np.int64)}
    return {name: lengths[name] for name in node.lengths}


def random_inputs(rng, node, t, past, seq):
    """Of one run, states filled with numbers."""
    inputs = {}
    for name, (dtype, shape) in node.inputs(t).items():
        if dtype != "i64":
            inputs[name] = rng.standard_normal(shape).astype(numpy_type(dtype))
    return inputs | node.tables(t) | lengths_of(node, past, seq)


def garbage_outputs(node, t):
    return {name: garbage(*spec) for name, spec in node.outputs(t).items()}


def bind(session, inputs, outputs):
    """Binds numpy arrays of any dtype as they lie in memory."""
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_input(name, "cpu", 0, ONNX_TYPES[array.dtype], array.shape, array.ctypes.data)
    for name, array in outputs.items():
        binding.bind_output(name, "cpu", 0, ONNX_TYPES[array.dtype], array.shape, array.ctypes.data)
    return binding


def run_bound(session, inputs, outputs):
    """Runs a session of onnxruntime, or anything with a `run_arrays`, on numpy arrays in place."""
    if hasattr(session, "run_arrays"):
        session.run_arrays(inputs, outputs)
    else:
        session.run_with_iobinding(bind(session, inputs, outputs))


class Replay:
    """Feeds whole sequences of their own lengths through a node in chunks.

    `sessions` maps chunk lengths to sessions of models that differ in nothing else. States begin with
    `fill`, which nothing may read.
    """

    def __init__(self, nodes, t, sessions, in_place, fill=np.nan, finite=True):
        self.nodes, self.t, self.sessions, self.in_place, self.finite = nodes, t, sessions, in_place, finite
        node = next(iter(nodes.values()))
        types = node.inputs(t)
        with np.errstate(over="ignore"):
            self.state = {name: np.full(types[name][1], fill).astype(numpy_type(types[name][0])) for name in node.states}
        self.batch, self.states = node.batch, node.states
        self.past = np.zeros(self.batch, np.int64)

    def step(self, seq_len, counts, chunks):
        """Runs one chunk: `chunks[name][b]` are the tokens of slot b, `counts[b]` of them."""
        node = self.nodes[seq_len]
        inputs = {name: garbage(*node.inputs(self.t)[name]) for name in node.chunks}
        for name, array in inputs.items():
            for slot, tokens in enumerate(chunks[name]):
                array[slot, : counts[slot]] = tokens
                array[slot, counts[slot] :] = 1  # padding is finite, as a padded graph's is
        inputs |= self.state | node.tables(self.t) | lengths_of(node, self.past, counts)
        outputs = {name: garbage(*spec) for name, spec in node.outputs(self.t).items()}
        if self.in_place:
            outputs |= {new: inputs[old] for old, new in self.states.items()}
        run_bound(self.sessions[seq_len], inputs, outputs)
        self.state = {old: outputs[new] for old, new in self.states.items()}
        self.past = self.past + np.array(counts)
        return {name: outputs[name] for name in node.results}

    def feed(self, sequences, plan):
        """Feeds `sequences[name][b]` as `plan`, a list of (seq_len, counts), says; the results'
        valid rows, per name and slot."""
        slots = range(self.batch)
        results = {}
        for seq_len, counts in plan:
            ends = [int(self.past[b]) + counts[b] for b in slots]
            chunks = {
                name: [tokens[b][int(self.past[b]) : ends[b]] for b in slots] for name, tokens in sequences.items()
            }
            for name, array in self.step(seq_len, counts, chunks).items():
                finite = np.isfinite(array.astype(np.float64)).all()
                assert finite or not self.finite, f"{name}: padding or output not finite"
                rows = results.setdefault(name, [[] for _ in slots])
                for b in slots:
                    rows[b].append(array[b, : counts[b]].copy())
        return {name: [np.concatenate(rows[b]) for b in slots] for name, rows in results.items()}


def random_plan(rng, seq_lens, lengths):
    """Chunks that feed every slot its length: ragged, with idle slots, in any order of sizes."""
    left, plan = list(lengths), []
    while any(left):
        seq_len = int(rng.choice(seq_lens))
        counts = [min(rest, int(rng.integers(0, seq_len + 1))) for rest in left]
        if any(counts):
            plan.append((seq_len, counts))
            left = [rest - count for rest, count in zip(left, counts)]
    return plan
