"""Who decodes a whole model: what each needs on disk, how it is measured, and why it may be missing here."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import model_llama
from model_sizes import PATTERN

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TOKENIZER = ROOT / "tests" / "golden" / "kjv_d16w64i4" / "tokenizer.json"
# Tokens: as many as model_llama.py's first prompt.
PROMPT = "In the beginning God"
BITS = ("bf16", "int8", "int4")


@dataclass(frozen=True)
class Setting:
    """What all contenders share."""

    size: object
    threads: int
    program: Path
    library: Path
    # Of models and packages.
    folder: Path


def run(command, **more):
    """Standard output of a command; its last words where it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **more)
    if done.returncode != 0:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        raise RuntimeError(f"{Path(command[0]).name}: exit {done.returncode}: {' '.join(lines[-3:])[:300]}")
    return done.stdout


def up_to_date(path, key, sources=()):
    """Whether `path` was made for `key`, after the files that it is made by."""
    stamp = path.with_name(path.name + ".stamp")
    try:
        made = stamp.stat().st_mtime
        fresh = all(made > source.stat().st_mtime for source in sources)
        return path.exists() and fresh and stamp.read_text() == key
    except OSError:
        return False


def stamp(path, key):
    path.with_name(path.name + ".stamp").write_text(key)


class Package:
    """A package of random weights; its class has a setting, `package` and the flags of `ratplus export`."""

    def key(self):
        flags = [str(flag).replace(str(ROOT), ".") for flag in self.flags()]
        return json.dumps([self.setting.size.config(), *flags])

    def fresh(self):
        return up_to_date(self.package, self.key(), [self.setting.program])

    def clear(self):
        """Removes one of other flags or an older program, whose place on the disk is needed."""
        if not self.fresh():
            shutil.rmtree(self.package, ignore_errors=True)

    def prepare(self):
        if not self.fresh():
            export(self.setting, self.package, self.flags())
            stamp(self.package, self.key())


class Ours(Package):
    """A package of ours, measured by `ratplus bench` and `ratplus generate`."""

    program, needs, once, activations = "ours", (), False, "float"

    def __init__(self, setting, bits, batch=1):
        self.setting, self.bits, self.batch = setting, bits, batch
        self.name = f"{self.program} {bits}" + (f" x {batch}" if batch > 1 else "")
        self.package = setting.folder / f"{setting.size.name}-{self.name.replace(',', '').replace(' ', '-')}"

    def flags(self):
        size = self.setting.size
        flags = ["--dtype", "bf16", "--prefill-lengths", size.prompt, "--max-seq-len", size.longest, "--batch", self.batch]
        if self.batch == 1 and size.vocab_size >= 2048:
            flags += ["--tokenizer", TOKENIZER]
        return flags + ([] if self.bits == "bf16" else ["--quantize", self.bits, "--activations", self.activations])

    def measure(self):
        size, threads = self.setting.size, self.setting.threads
        contexts = size.contexts_of(self.bits) if self.batch == 1 else size.contexts[:1]
        # A prompt of every slot would take longest of all.
        prompt = size.prompt if self.batch == 1 else size.prompt // 8
        with tempfile.TemporaryDirectory(dir=self.setting.folder) as folder:
            results = Path(folder) / "bench.json"
            command = [self.setting.program, "bench", self.package, "--threads", threads, "--repeat", 1, "--json", results]
            command += ["--prompt", prompt, "--context", ",".join(map(str, contexts)), "-n", size.new_tokens]
            run(command, env=environment(self.setting))
            report = json.loads(results.read_text())[0]
        rates = {(row["decode"], row["context"]): row["tokens_per_second"]["p50"] for row in report["measured"]}
        found = {"decode": {context: rates[True, context] for context in contexts}}
        found |= {"weights_bytes": report["weights_bytes"], "state_bytes": report["state_bytes"]}
        found["resident_bytes"] = report["peak_resident_bytes"]
        # The embedding is a table of its own where the head is integers; a token reads a row of it.
        table = 0 if self.bits == "bf16" else 2 * size.vocab_size * size.d_model
        found["read_bytes"] = report["weights_bytes"] - table
        if self.batch == 1:
            found["prompt"] = rates[False, 0]
            generate = [self.setting.program, "generate", self.package, "--prompt", PROMPT, "-n", 1, "--threads", threads]
            begin = time.perf_counter()
            run(generate, env=environment(self.setting))
            found["first_token"] = time.perf_counter() - begin
        return found


class OursInt8Rows(Ours):
    """Rows are rounded to eight bits before they are multiplied with integers, as llama.cpp does."""

    program, activations = "ours, int8 rows,", "int8"


def environment(setting):
    """That `ratplus` finds its libraries in."""
    made = dict(os.environ, RATPLUS_ORT_LIBRARY=str(setting.library))
    if "ORT_DYLIB_PATH" not in made:
        for folder in importlib.util.find_spec("onnxruntime").submodule_search_locations:
            made |= {"ORT_DYLIB_PATH": str(path) for path in Path(folder).glob("capi/libonnxruntime.so.*")}
    return made


def export(setting, package, flags):
    """Writes a package; weights that another has as well are its file."""
    config = setting.folder / f"{setting.size.name}.json"
    config.write_text(setting.size.config())
    run([setting.program, "export", "--no-check", "--synthetic", "config", "--config", config, *flags, "-o", package])
    checksum = lambda folder: json.loads((folder / "manifest.json").read_text())["files"]["weights.bin"]  # noqa: E731
    for other in sorted(setting.folder.iterdir()):
        same = other != package and (other / "manifest.json").is_file() and checksum(other) == checksum(package)
        if same:
            os.remove(package / "weights.bin")
            os.link(other / "weights.bin", package / "weights.bin")
            break


class Worker:
    """A peer that is measured by a program of benches/cpu in a process of its own."""

    # `once`: measured more than once only where time is left.
    batch, once = 1, False

    def __init__(self, setting, bits):
        self.setting, self.bits, self.name = setting, bits, f"{self.program} {bits}"

    def clear(self):
        """Nothing of it grows old with `ratplus`."""

    def prepare(self):
        """PyTorch makes its weights as it starts."""

    def more(self):
        return []

    def work(self, *more):
        contexts = ",".join(map(str, self.setting.size.contexts_of(self.bits)))
        words = ["--size", self.setting.size.name, "--threads", self.setting.threads, "--contexts", contexts]
        words += [*self.more(), *more]
        return json.loads(run([sys.executable, HERE / self.script, *words]))

    def measure(self):
        found = self.work()
        found["decode"] = {int(context): rate for context, rate in found["decode"].items()}
        found["weights_bytes"] = found["read_bytes"] = 2 * self.setting.size.weights
        return found


class Gguf:
    """A model of llama.cpp's; its class has a setting and bits."""

    @property
    def model(self):
        return self.setting.folder / f"{self.setting.size.name}-{self.bits}.gguf"

    def prepare(self):
        key = json.dumps([repr(self.setting.size), model_llama.TYPES[self.bits], "with words"])
        if not up_to_date(self.model, key):
            model_llama.write(self.setting.size, self.bits, self.model)
            stamp(self.model, key)


class LlamaCpp(Gguf, Worker):
    program, needs, script = "llama.cpp", ("llama_cpp", "gguf"), "model_llama.py"

    def more(self):
        return ["--model", self.model]

    def measure(self):
        found = super().measure() | self.work("--first-token")
        found["weights_bytes"] = found["read_bytes"] = self.model.stat().st_size
        return found


class PyTorch(Worker):
    program, needs, script, once = "PyTorch", ("torch",), "model_torch.py", True


class OpenVino(Package, Worker):
    program, needs, script, once = "OpenVINO", ("openvino",), "model_openvino.py", True

    def __init__(self, setting, bits):
        super().__init__(setting, bits)
        self.package = setting.folder / f"{setting.size.name}-inline-{bits}"

    def flags(self):
        size = self.setting.size
        flags = ["--dtype", self.bits, "--prefill-lengths", size.prompt, "--max-seq-len", size.longest]
        return [*flags, "--fallback", "inline"]

    def more(self):
        return ["--package", self.package]


def missing(contender):
    """Why a contender cannot be measured here, or None."""
    absent = [name for name in contender.needs if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def contenders(setting):
    """In the order of a round: ours and llama.cpp's of a kind in turn."""
    made = []
    for bits in BITS:
        made += [Ours(setting, bits), LlamaCpp(setting, bits)]
        made += [] if bits == "bf16" else [OursInt8Rows(setting, bits)]
    made += [Ours(setting, bits, setting.size.batch) for bits in ("bf16", "int4")]
    return [*made, PyTorch(setting, "bf16"), OpenVino(setting, "bf16")]


def words():
    """The pattern of ours, in words."""
    return f"D={PATTERN['dilation']} W={PATTERN['local_window']} I={PATTERN['initial']}"
