"""Drives an exported package with stock onnxruntime and numpy: what a user without this project's
runtime would write from manifest.json alone."""

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


def not_a_number(shape, dtype: str) -> np.ndarray:
    """NaN in every element, as the bits of its type."""
    return np.full(shape, NAN_BITS[dtype][1])


def to_bytes(state: np.ndarray) -> np.ndarray:
    """A copy of a state's memory, `[B, bytes]`."""
    return state.view(np.uint8).reshape(state.shape[0], -1).copy()


class Package:
    """ONNX Runtime sessions for a package, and the state of its sequences.

    Chunks of a length run in the engine that takes all slots, else slot by slot, idle slots too.
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
        self.batch = self.manifest["batch"]
        # By length the engine for most slots: in manifest order those for one come first.
        self.engines = {engine["seq_len"]: engine for engine in self.manifest["engines"]}
        self._library = library
        self._threads = threads
        self._profile = profile
        self._sessions: dict = {}
        decode = self.engines[1]
        assert decode["batch"] == self.batch
        self._state_inputs = [t for t in decode["inputs"] if t["name"].startswith("past_key_values.")]
        self._state_outputs = [t["name"] for t in decode["outputs"] if t["name"].startswith("present.")]
        assert len(self._state_inputs) == len(self._state_outputs) > 0
        for past, present in zip(self._state_inputs, self._state_outputs):
            assert past["name"].removeprefix("past_key_values.") == present.removeprefix("present.")
        self.reset()

    def reset(self) -> None:
        """Starts every sequence over, with garbage in every state."""
        self.past_length = np.zeros(self.batch, np.int64)
        self._types = {tensor["name"]: NAN_BITS[tensor["dtype"]][0] for tensor in self._state_inputs}
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

    def _slots(self, seq_len: int):
        """The slots of each run of a step."""
        together = self.engines[seq_len]["batch"]
        return (slice(first, first + together) for first in range(0, self.batch, together))

    def once(self, seq_len: int, input_ids, past_length, seq_length, in_place: bool = False) -> tuple:
        """Logits and states of one step from the states, which stay unless past and present are one buffer."""
        given = {"input_ids": input_ids, "past_length": past_length, "seq_length": seq_length}
        given = {name: np.asarray(value, np.int64) for name, value in given.items()}
        session, logits = self.session(seq_len), []
        present = self.states if in_place else {name: np.empty_like(value) for name, value in self.states.items()}
        for slots in self._slots(seq_len):
            binding = session.io_binding()
            for name, value in given.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(value[slots]))
            for past, output in zip(self.states, self._state_outputs):
                make = ort.OrtValue.ortvalue_from_numpy_with_onnx_type
                binding.bind_ortvalue_input(past, make(self.states[past][slots], self._types[past]))
                binding.bind_ortvalue_output(output, make(present[past][slots], self._types[past]))
            binding.bind_output("logits", "cpu")
            session.run_with_iobinding(binding)
            logits.append(binding.get_outputs()[-1].numpy())
        return np.concatenate(logits), present

    def step(self, seq_len: int, tokens: np.ndarray, counts, in_place: bool = False) -> np.ndarray:
        """`counts[b]` tokens of sequence b, from its position; returns the logits."""
        counts = np.asarray(counts, np.int64)
        input_ids = np.zeros((self.batch, seq_len), np.int64)
        for slot, (start, count) in enumerate(zip(self.past_length, counts)):
            input_ids[slot, :count] = tokens[slot, start : start + count]
        logits, self.states = self.once(seq_len, input_ids, self.past_length, counts, in_place)
        self.past_length = self.past_length + counts
        return logits

    def step_in_place(self, seq_len: int, tokens: np.ndarray, counts) -> np.ndarray:
        """A step where past and present are one buffer."""
        return self.step(seq_len, tokens, counts, in_place=True)

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
