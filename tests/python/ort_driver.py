"""Drives an exported package with stock onnxruntime and numpy: what a user without this project's
runtime would write from manifest.json alone."""

import ctypes
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto

# Element type in TensorProto's numbers, and a NaN of it as an integer: numpy has no bfloat16.
NAN_BITS = {
    "f32": (TensorProto.FLOAT, np.uint32(0x7FC0_0000)),
    "f16": (TensorProto.FLOAT16, np.uint16(0x7E00)),
    "bf16": (TensorProto.BFLOAT16, np.uint16(0x7FC0)),
}


def not_a_number(shape, dtype: str) -> ort.OrtValue:
    """A tensor of NaN."""
    onnx_type, bits = NAN_BITS[dtype]
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.full(shape, bits), onnx_type)


def to_bytes(value: ort.OrtValue) -> np.ndarray:
    """A copy of a tensor's memory, `[B, bytes]`."""
    memory = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(memory, np.uint8).reshape(value.shape()[0], -1)


class Package:
    """One ONNX Runtime session per engine of a package, and the state of its sequences.

    States start as NaN: a sequence that starts over must not see what its slot held.
    """

    def __init__(
        self,
        directory: Path,
        library: Path | None = None,
        profile: Path | None = None,
        threads: int = 2,
        target: str = "portable",
    ):
        self.target = target
        self.directory = Path(directory)
        self.manifest = json.loads((self.directory / "manifest.json").read_text())
        self.engines = {engine["seq_len"]: engine for engine in self.manifest["engines"]}
        self._library = library
        self._threads = threads
        self._profile = profile
        self._sessions: dict = {}
        self.batch = self.manifest["batch"]
        decode = self.engines[1]
        self._state_inputs = [t for t in decode["inputs"] if t["name"].startswith("past_key_values.")]
        self._state_outputs = [t["name"] for t in decode["outputs"] if t["name"].startswith("present.")]
        assert len(self._state_inputs) == len(self._state_outputs) > 0
        for past, present in zip(self._state_inputs, self._state_outputs):
            assert past["name"].removeprefix("past_key_values.") == present.removeprefix("present.")
        self.reset()

    def reset(self) -> None:
        """Starts every sequence over, with garbage in every state."""
        self.past_length = np.zeros(self.batch, np.int64)
        self.states = {
            tensor["name"]: not_a_number(tensor["shape"], tensor["dtype"])
            for tensor in self._state_inputs
        }

    def session(self, seq_len: int) -> ort.InferenceSession:
        """The session of one engine, made at first use."""
        if seq_len not in self._sessions:
            options = ort.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = self._threads
            # Tests run beside one another: threads that wait leave their processor to others.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            if self._library is not None:
                options.register_custom_ops_library(str(self._library))
            if self._profile is not None:
                options.enable_profiling = True
                options.profile_file_prefix = str(self._profile / f"engine_{seq_len}")
            path = self.directory / self.engines[seq_len]["files"][self.target]
            self._sessions[seq_len] = ort.InferenceSession(path, options, ["CPUExecutionProvider"])
        return self._sessions[seq_len]

    def _inputs(self, seq_len: int, tokens: np.ndarray, counts) -> dict:
        """The three inputs that are no state; `counts[b]` tokens of sequence b, from its position."""
        counts = np.asarray(counts, np.int64)
        input_ids = np.zeros((self.batch, seq_len), np.int64)
        for slot, count in enumerate(counts):
            start = self.past_length[slot]
            input_ids[slot, :count] = tokens[slot, start : start + count]
        return {"input_ids": input_ids, "past_length": self.past_length.copy(), "seq_length": counts}

    def step(self, seq_len: int, tokens: np.ndarray, counts) -> np.ndarray:
        """One run with separate past and present buffers; returns the logits."""
        inputs = self._inputs(seq_len, tokens, counts)
        feeds = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in inputs.items()}
        names = ["logits", *self._state_outputs]
        logits, *states = self.session(seq_len).run_with_ort_values(names, feeds | self.states)
        self.states = dict(zip(self.states, states))
        self.past_length = self.past_length + inputs["seq_length"]
        return logits.numpy()

    def step_in_place(self, seq_len: int, tokens: np.ndarray, counts) -> np.ndarray:
        """One run where past and present are one tensor; returns the logits."""
        inputs = self._inputs(seq_len, tokens, counts)
        session = self.session(seq_len)
        binding = session.io_binding()
        for name, value in inputs.items():
            binding.bind_cpu_input(name, value)
        for (past, value), present in zip(self.states.items(), self._state_outputs):
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        (shape,) = [t["shape"] for t in self.engines[seq_len]["outputs"] if t["name"] == "logits"]
        logits = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32)
        binding.bind_ortvalue_output("logits", logits)
        session.run_with_iobinding(binding)
        self.past_length = self.past_length + inputs["seq_length"]
        return logits.numpy().copy()

    def run(self, tokens: np.ndarray, plan, step=None) -> np.ndarray:
        """All logits `[B, T, V]` of sequences fed by a plan of (engine, counts); needs an engine
        that returns every position. Positions a plan leaves out stay NaN."""
        step = step or self.step
        vocabulary = self.manifest["model"]["vocab_size"]
        logits = np.full((*tokens.shape, vocabulary), np.nan, np.float32)
        for seq_len, counts in plan:
            counts = np.broadcast_to(counts, self.batch)
            start = self.past_length.copy()
            chunk = step(seq_len, tokens, counts)
            assert chunk.shape == (self.batch, seq_len, vocabulary)
            assert chunk.dtype == np.float32
            assert np.isfinite(chunk).all(), "padding and idle slots have finite outputs"
            for slot, count in enumerate(counts):
                logits[slot, start[slot] : start[slot] + count] = chunk[slot, :count]
        return logits

    def executed_ops(self) -> dict:
        """Ends profiling; how often each operator ran, per engine: `{seq_len: {op_type: count}}`."""
        result: dict = {}
        for seq_len, session in self._sessions.items():
            counts = result.setdefault(seq_len, {})
            for event in json.loads(Path(session.end_profiling()).read_text()):
                op = event.get("args", {}).get("op_name")
                if event.get("cat") == "Node" and op and event["name"].endswith("_kernel_time"):
                    counts[op] = counts.get(op, 0) + 1
        return result


def chunked(length: int, engines=(64, 7, 1)) -> list:
    """A plan that takes the longest engine that fits, then the next."""
    plan, left = [], length
    for engine in engines:
        plan += [(engine, engine)] * (left // engine)
        left %= engine
    assert left == 0
    return plan


def padded(length: int, engine: int) -> list:
    """A plan of one engine, the last chunk padded."""
    full, rest = divmod(length, engine)
    return [(engine, engine)] * full + ([(engine, rest)] if rest else [])
