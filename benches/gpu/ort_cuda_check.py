#!/usr/bin/env python3
"""Decodes with one package under onnxruntime-gpu in three ways and compares them bit for bit:

  double     past and present in two buffers, swapped after every step; kernels launched one by one
  in-place   past and present in one buffer; kernels launched one by one
  graph      past and present in one buffer; one CUDA graph, recorded once and replayed

Logits of every step and all states at the end have to be the same bits. Steps feed random tokens,
leave out a slot now and then, and start sequences over when they are full. Lengths that do not fit
have to be reported by node and slot, and to change nothing.

    pip install "onnxruntime-gpu[cuda,cudnn]" numpy
    ratplus export CHECKPOINT -o PACKAGE --dtype bf16 --batch 4
    ort_cuda_check.py PACKAGE --library libratplus_ort.so

Needs a package with custom nodes (`--fallback function` or `none`). Without a GPU,
`--provider cpu` runs the same checks on the CPU's kernels, but for the graph.

Exit 0: all checks held. Exit 1: one did not. Exit 2: bad input or environment.
"""

import argparse
import ctypes
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np

# Name in the manifest: (bytes of an element, TensorProto.DataType).
ELEMENTS = {"f32": (4, 1), "f16": (2, 10), "bf16": (2, 16), "i64": (8, 7)}
# What states hold at the start: NaN in every float type, since no kernel may let it through.
GARBAGE = 0xFF


class Bad(Exception):
    """Bad input or environment."""


class Host:
    """Memory of the CPU provider."""

    name, index = "cpu", 0

    def write(self, address, data):
        ctypes.memmove(address, data.ctypes.data, data.nbytes)

    def read(self, address, data):
        ctypes.memmove(data.ctypes.data, address, data.nbytes)

    def wait(self):
        pass


class Gpu:
    """Memory of a GPU, through the driver. ONNX Runtime has made its context current."""

    name = "cuda"

    def __init__(self, index):
        self.index = index
        try:
            self.driver = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise Bad(f"no CUDA driver: {error}; install NVIDIA's driver, or run with --provider cpu")

    def call(self, name, *arguments):
        code = getattr(self.driver, name)(*arguments)
        if code != 0:
            raise Bad(f"{name} failed with CUDA error {code}")

    def write(self, address, data):
        self.call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.nbytes))
        # A copy from memory that is not pinned returns early, and ORT's stream does not wait for it.
        self.wait()

    def read(self, address, data):
        self.call("cuMemcpyDtoH_v2", ctypes.c_void_p(data.ctypes.data), ctypes.c_uint64(address), ctypes.c_size_t(data.nbytes))

    def wait(self):
        self.call("cuCtxSynchronize")


class Tensor:
    """A tensor where the engine runs."""

    def __init__(self, ort, place, info):
        self.place = place
        size, element = ELEMENTS[info["dtype"]]
        shape = info["shape"]
        self.value = ort.OrtValue.ortvalue_from_shape_and_type(shape, element, place.name, place.index)
        self.bytes = size * int(np.prod(shape))

    def write(self, data):
        assert data.nbytes == self.bytes and data.flags.c_contiguous
        self.place.write(self.value.data_ptr(), data)

    def read(self, dtype=np.uint8):
        data = np.empty(self.bytes // np.dtype(dtype).itemsize, dtype)
        self.place.read(self.value.data_ptr(), data)
        return data

    def fill(self, byte):
        self.write(np.full(self.bytes, byte, np.uint8))


class Decoder:
    """The decode engine of a package, bound once to fixed buffers."""

    def __init__(self, ort, options, manifest, place, mode):
        self.mode, self.place, self.batch = mode, place, manifest["batch"]
        (engine,) = [engine for engine in manifest["engines"] if (engine["batch"], engine["seq_len"]) == (self.batch, 1)]
        tensor = lambda info: Tensor(ort, place, info)  # noqa: E731
        inputs = {info["name"]: info for info in engine["inputs"]}
        self.session = self.open(ort, options, options.package / engine["files"]["portable" if place.name == "cpu" else "cuda"])
        self.steps = {name: tensor(inputs[name]) for name in ("input_ids", "past_length", "seq_length")}
        (logits,) = [info for info in engine["outputs"] if info["name"] == "logits"]
        self.logits = tensor(logits)
        self.sides = [{}, {}]
        for name, info in inputs.items():
            if name.startswith("past_key_values."):
                first = tensor(info)
                self.sides[0][name] = first
                self.sides[1][name] = tensor(info) if mode == "double" else first
        self.bindings = [self.bind(*self.sides), self.bind(*reversed(self.sides))]
        self.side = 0

    def open(self, ort, options, path):
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        settings.register_custom_ops_library(str(options.library))
        if self.place.name == "cpu":
            return ort.InferenceSession(str(path), settings, ["CPUExecutionProvider"])
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        provider = {
            "device_id": self.place.index,
            "enable_cuda_graph": int(self.mode == "graph"),
            "use_tf32": 0,
            "arena_extend_strategy": "kSameAsRequested",
        }
        return ort.InferenceSession(str(path), settings, [("CUDAExecutionProvider", provider)])

    def bind(self, past, present):
        binding = self.session.io_binding()
        for name, value in self.steps.items():
            binding.bind_ortvalue_input(name, value.value)
        for name, value in past.items():
            binding.bind_ortvalue_input(name, value.value)
            output = name.replace("past_key_values.", "present.")
            binding.bind_ortvalue_output(output, present[name].value)
        binding.bind_ortvalue_output("logits", self.logits.value)
        return binding

    def start(self):
        """Fresh states. The first run records the graph by running the model more than once, so
        every slot is idle in it."""
        for side in self.sides:
            for state in side.values():
                state.fill(GARBAGE)
        zeros = np.zeros(self.batch, np.int64)
        self.step(zeros, zeros, zeros)

    def step(self, tokens, past, counts):
        """Runs one token of every slot that is not idle; the logits' bits."""
        for name, data in (("input_ids", tokens), ("past_length", past), ("seq_length", counts)):
            self.steps[name].write(data)
        self.session.run_with_iobinding(self.bindings[self.side])
        self.side = 1 - self.side
        self.place.wait()
        return self.logits.read(np.uint32)

    def states(self):
        """The bytes of every state."""
        return {name: state.read() for name, state in self.sides[self.side].items()}


class Errors:
    """The operator library's own report."""

    def __init__(self, library):
        self.take_function = ctypes.CDLL(str(library)).RatplusTakeDeviceError
        self.take_function.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
        self.take_function.restype = ctypes.c_size_t

    def take(self):
        text = ctypes.create_string_buffer(2048)
        return text.value.decode() if self.take_function(text, len(text)) else ""


def schedule(manifest, count, seed):
    """Tokens, past lengths and counts of every step."""
    batch, longest = manifest["batch"], manifest["max_seq_len"]
    random = np.random.default_rng(seed)
    past = np.zeros(batch, np.int64)
    for _ in range(count):
        past[past >= longest] = 0
        counts = (random.random(batch) > 0.05).astype(np.int64)
        tokens = random.integers(0, manifest["model"]["vocab_size"], batch, np.int64)
        yield tokens, past.copy(), counts
        past += counts


def live_logits(logits, counts):
    """The bits of the slots that ran: those of idle ones mean nothing."""
    return logits.reshape(len(counts), -1)[counts > 0]


def run(decoder, errors, manifest, options):
    """Every step's logits and the states at the end; tokens a second."""
    decoder.start()
    initial = decoder.states()
    for name, state in initial.items():
        if (state != GARBAGE).any():
            yield f"{decoder.mode}: {name} changed in a run of idle slots"
    seen, tokens = [], 0
    begin = time.perf_counter()
    for step in schedule(manifest, options.steps, options.seed):
        logits = decoder.step(*step)
        seen.append(live_logits(logits, step[2]))
        tokens += int(step[2].sum())
        message = errors.take()
        if message:
            yield f"{decoder.mode}: {message}"
    seconds = time.perf_counter() - begin
    for step, logits in enumerate(seen):
        if not np.isfinite(logits.view(np.float32)).all():
            yield f"{decoder.mode}: step {step}: logits that are no numbers"
            break
    decoder.result = {"logits": seen, "states": decoder.states(), "rate": tokens / seconds}


def check_lengths(decoder, errors, manifest):
    """Lengths that do not fit: told with node and slot, and the slot as it was."""
    slot = manifest["batch"] - 1
    zeros = np.zeros(manifest["batch"], np.int64)
    past = zeros.copy()
    past[slot] = manifest["max_seq_len"]
    counts = zeros.copy()
    counts[slot] = 1
    before = decoder.states()
    decoder.step(zeros, past, counts)
    message = errors.take()
    while errors.take():
        pass
    if f"slot {slot}" not in message or "node " not in message:
        yield f"{decoder.mode}: lengths that do not fit: expected a report of node and slot, found {message!r}"
    for name, state in decoder.states().items():
        if (state != before[name]).any():
            yield f"{decoder.mode}: lengths that do not fit changed {name}"


def compare(reference, other):
    """Where two ways of decoding differ."""
    pairs = zip(reference.result["logits"], other.result["logits"])
    different = [step for step, (a, b) in enumerate(pairs) if a.tobytes() != b.tobytes()]
    if different:
        yield (
            f"{other.mode}: logits differ from {reference.mode}'s in {len(different)} steps, "
            f"first in step {different[0]}"
        )
    for name, state in reference.result["states"].items():
        found = other.result["states"][name]
        if (state != found).any():
            count = int((state != found).sum())
            yield f"{other.mode}: {name} differs from {reference.mode}'s in {count} of {state.size} bytes"


def import_onnxruntime(options):
    """onnxruntime, with the CUDA libraries of its Python packages where those are."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise Bad(f"onnxruntime does not import: {error}; pip install onnxruntime-gpu")
    if options.provider == "cpu":
        return ort
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise Bad(
            f"onnxruntime {ort.__version__} has no CUDAExecutionProvider; pip uninstall onnxruntime, "
            'then pip install "onnxruntime-gpu[cuda,cudnn]"; or run with --provider cpu'
        )
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    return ort


def read_manifest(options):
    path = options.package / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Bad(f"{path}: {error}; expected a package that `ratplus export` wrote")
    if manifest["fallback"] == "inline":
        raise Bad(f"{options.package}: no custom nodes; export with --fallback function")
    if not options.library.is_file():
        raise Bad(f"{options.library}: no such file; cargo build --release -p ratplus-onnxruntime")
    return manifest


def check(options):
    """Runs everything; a report."""
    manifest = read_manifest(options)
    ort = import_onnxruntime(options)
    place = Host() if options.provider == "cpu" else Gpu(options.device)
    errors = Errors(options.library)
    modes = ["double", "in-place", "graph"]
    report = {
        "onnxruntime": ort.__version__,
        "python": platform.python_version(),
        "provider": options.provider,
        "dtype": manifest["dtype"],
        "batch": manifest["batch"],
        "steps": options.steps,
        "tokens_per_second": {},
        "skipped": [],
        "problems": [],
    }
    if options.provider == "cpu":
        modes.remove("graph")
        report["skipped"].append("graph: the CPU provider records none")
    print(
        f"{options.package}: {manifest['dtype']}, batch {manifest['batch']}, {options.steps} steps on "
        f"{options.provider}, onnxruntime {ort.__version__}",
        file=sys.stderr,
    )
    reference = None
    for mode in modes:
        try:
            decoder = Decoder(ort, options, manifest, place, mode)
        except Bad:
            raise
        except Exception as error:
            raise Bad(f"{mode}: the session was not made: {error}")
        problems = list(run(decoder, errors, manifest, options))
        if reference is None:
            reference = decoder
        else:
            problems += compare(reference, decoder)
        problems += check_lengths(decoder, errors, manifest)
        report["problems"] += problems
        rate = report["tokens_per_second"][mode] = round(decoder.result["rate"], 1)
        print(f"{mode:9} {rate:10.1f} tokens/s  {'FAILED' if problems else 'ok'}", file=sys.stderr)
        if decoder is not reference:
            del decoder.session
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="directory that `ratplus export` wrote")
    parser.add_argument("--library", type=Path, default=Path("target/release/libratplus_ort.so"))
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--device", type=int, default=0, help="number of the GPU")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the report on standard output")
    options = parser.parse_args()
    try:
        report = check(options)
    except Bad as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for skip in report["skipped"]:
        print(f"skipped   {skip}", file=sys.stderr)
    for problem in report["problems"]:
        print(f"FAILED    {problem}", file=sys.stderr)
    if not report["problems"]:
        print("same bits in every step and state", file=sys.stderr)
    if options.json:
        print(json.dumps(report, indent=2))
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
