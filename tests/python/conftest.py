"""What the Python tests share: the program under test, golden cases, exported packages.

`cargo xtask test` sets RATPLUS_BIN and RATPLUS_ORT_LIBRARY; without them the release build's files
are used.
"""

import os
import re
import shutil
import signal
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from blake3 import blake3
import trt_driver
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
LOWERINGS = ["function", "inline", "none"]


@dataclass(frozen=True)
class Release:
    """One of TensorRT: its library with a registry of plugins, its headers, its version."""

    library: str
    headers: str
    version: int


TENSORRT = {
    "lean-11.4": Release("tensorrt_lean_libs/libnvinfer_lean.so.11", "tensorrt-11.4", 110400),
    "lean-10.16": Release("tensorrt_lean_libs/libnvinfer_lean.so.10", "tensorrt-rtx-1.3", 101601),
    "rtx-1.7": Release("tensorrt_rtx_libs/libtensorrt_rtx.so.1", "tensorrt-rtx-1.7", 10701),
}


def built(variable: str, default: str) -> Path:
    path = Path(os.environ.get(variable, ROOT / "target" / "release" / default))
    if not path.is_file():
        pytest.fail(f"{variable}: {path} is not a file; run `cargo xtask test`", pytrace=False)
    return path


def times(count: int) -> int:
    """`count` as often as RATPLUS_TIMES says, once without it: how many times CI's work long tests do."""
    return count * int(os.environ.get("RATPLUS_TIMES", "1"))


@pytest.fixture(scope="session")
def ratplus_bin() -> Path:
    """The `ratplus` program."""
    return built("RATPLUS_BIN", "ratplus")


@pytest.fixture(scope="session")
def ratplus(ratplus_bin):
    """Runs the program with words; what it did, which ended with `code`."""

    def run(*words, code=0):
        done = subprocess.run([ratplus_bin, *map(str, words)], capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def ort_library() -> Path:
    """The custom-op library."""
    return built("RATPLUS_ORT_LIBRARY", "libratplus_ort.so")


@dataclass(frozen=True)
class Served:
    """A server that is ready."""

    address: str
    process: subprocess.Popen


@contextmanager
def serving(program: Path, package: Path, *words):
    """`ratplus serve` of a package, once it is ready; it has to end well, unless the test has killed it."""
    command = [program, "serve", package, "--port", 0, *words]
    process = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True)
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if "ready" in line:
                break
        address = re.search(r"^listening on (http://\S+)$", "".join(lines), re.MULTILINE)
        assert address and process.poll() is None, "".join(lines)
        # Nothing that it logs may keep it waiting.
        threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True).start()
        yield Served(address[1], process)
    finally:
        killed = process.poll() == -signal.SIGKILL
        process.terminate()
        assert process.wait(60) == 0 or killed, "".join(lines)


CHAT_TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}<assistant>"


@pytest.fixture(scope="session")
def kjv_chat(ratplus, tmp_path_factory):
    """A package to serve, of the King James model: four slots of 512 tokens, all logits, a chat template."""
    folder, case = tmp_path_factory.mktemp("chat"), golden_case("kjv_d16w64i4").directory
    (folder / "chat.jinja").write_text(CHAT_TEMPLATE)
    files = ["--config", case / "config.json", "--tokenizer", case / "tokenizer.json"]
    files += ["--chat-template", folder / "chat.jinja"]
    sizes = "--max-seq-len 512 --prefill-lengths 16,64 --batch 4 --logits all".split()
    ratplus("export", case / "model.pth", "-o", folder / "kjv", *files, *sizes)
    return folder / "kjv"


def tensorrt_headers() -> dict:
    """The folder of each release of TensorRT's headers that `cargo xtask setup` has installed, by
    its name."""
    folder = ROOT / "target" / "tensorrt" / "headers"
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()} if folder.is_dir() else {}


def flavour(variable: str, name: str, features: str, package="ratplus-onnxruntime", file="libratplus_ort.so") -> Path:
    """A plugin library with features that only tests use: the one that `variable` names, or built
    here."""
    if variable in os.environ:
        return built(variable, "")
    if shutil.which("cargo") is None:
        pytest.skip(f"cargo is not installed, and {variable} names no library built with {features}")
    # A folder of their own: the release's would be left with this library. No code for GPUs:
    # nothing runs it.
    folder = ROOT / "target" / "flavours"
    command = ["cargo", "build", "--release", "-p", package, "--features", features]
    command += ["--target-dir", str(folder)]
    environment = os.environ | {"RATPLUS_NVCC": "none"}
    # They are looked for in the target directory.
    environment["RATPLUS_TENSORRT_INCLUDE"] = os.pathsep.join(map(str, tensorrt_headers().values())) or "none"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}\nexit {done.returncode}\n{done.stderr}", pytrace=False)
    library = folder / f"{name}.so"
    # Other processes of these tests may be making it too.
    temporary = library.with_suffix(f".{os.getpid()}")
    shutil.copyfile(folder / "release" / file, temporary)
    return temporary.replace(library)


@pytest.fixture(scope="session")
def emulated_library() -> Path:
    """The custom-op library whose CUDA operators stand for the CPU provider, on the emulator."""
    return flavour("RATPLUS_ORT_EMULATED_LIBRARY", "emulated", "cuda-emulation,fault-injection")


@pytest.fixture(scope="session")
def trt_library() -> Path:
    """The TensorRT plugin library."""
    if not tensorrt_headers():
        pytest.skip("TensorRT's headers are not installed: the library has no plugins (cargo xtask setup)")
    return built("RATPLUS_TRT_LIBRARY", "libratplus_trt.so")


@pytest.fixture(scope="session")
def emulated_trt_library() -> Path:
    """The TensorRT plugin library on the emulator."""
    if not tensorrt_headers():
        pytest.skip("TensorRT's headers are not installed: the library has no plugins (cargo xtask setup)")
    features = "cuda-emulation,fault-injection"
    return flavour("RATPLUS_TRT_EMULATED_LIBRARY", "emulated_trt", features, "ratplus-tensorrt", "libratplus_trt.so")


@dataclass(frozen=True)
class Operators:
    """A custom-op library, and whether its operators are those for CUDA."""

    library: Path
    cuda: bool


@pytest.fixture(scope="session", params=["cpu", "cuda-emulated"])
def operators(request) -> Operators:
    """Both kinds of operators, run by the CPU provider."""
    cuda = request.param != "cpu"
    return Operators(request.getfixturevalue("emulated_library" if cuda else "ort_library"), cuda)


@pytest.fixture(scope="session")
def fault_library() -> Path:
    """The custom-op library built to panic on demand."""
    # With the kernels of the other libraries that are built here.
    return flavour("RATPLUS_ORT_FAULT_LIBRARY", "fault", "fault-injection,ratplus-kernels/emulation")


def tensorrt_library(name: str) -> Path:
    """A library of TensorRT's that `cargo xtask test` installs, or a skip."""
    path = ROOT / "target" / "tensorrt" / name / TENSORRT[name].library
    if not path.is_file():
        pytest.skip(f"TensorRT {name} is not installed (cargo xtask test installs it where it can)")
    return path


@pytest.fixture(scope="session")
def harnesses(tmp_path_factory):
    """What plays TensorRT, compiled with the headers of this name."""
    made: dict = {}

    def get(name: str) -> Path:
        if name not in tensorrt_headers():
            pytest.skip(f"TensorRT's headers {name} are not installed (cargo xtask setup)")
        if name not in made:
            output = tmp_path_factory.mktemp("harness") / f"{name}.so"
            made[name] = trt_driver.compile_harness(tensorrt_headers()[name], output)
        return made[name]

    return get


@pytest.fixture(scope="session")
def harness(harnesses):
    """With a real host's log: of TensorRT for RTX, which takes a logger without a GPU."""
    harness = trt_driver.Harness(harnesses(TENSORRT["rtx-1.7"].headers))
    harness.open(tensorrt_library("rtx-1.7"))
    return harness


@pytest.fixture(scope="session")
def creators(harness, emulated_trt_library):
    """The creators of the library on the emulator, by name."""
    return harness.creators_of(emulated_trt_library)


def constant(name: str) -> float:
    """A tolerance from its one definition."""
    source = (ROOT / "graphs" / "src" / "tolerance.rs").read_text()
    return float(re.search(rf"const {name}: f64 = ([0-9.e+-]+);", source)[1])


@pytest.fixture(scope="session")
def f32_tolerance() -> float:
    """Largest difference of logits relative to the largest logit."""
    return constant("F32_LOGIT")


@dataclass(frozen=True)
class Case:
    """A folder of tests/golden."""

    directory: Path

    @property
    def checkpoint(self) -> Path:
        """The model's weights."""
        (found,) = [p for p in self.directory.iterdir() if p.name in ("model.pth", "model.safetensors")]
        return found

    def golden(self) -> dict:
        """Tensors of golden.safetensors."""
        return load_file(self.directory / "golden.safetensors")


def golden_case(name: str) -> Case:
    """The golden case of this name."""
    return Case(GOLDEN / name)


def sealed(text: str) -> str:
    """A manifest with the checksum of its content."""
    open_text = re.sub(r'"blake3": "[0-9a-f]*"\n}\n$', '"blake3": ""\n}\n', text)
    checksum = blake3(open_text.encode()).hexdigest()
    return open_text.removesuffix('"blake3": ""\n}\n') + f'"blake3": "{checksum}"\n}}\n'


CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


@dataclass(frozen=True)
class Export:
    """Flags of one `ratplus export`."""

    case: str
    fallback: str = "function"
    dtype: str = "f32"
    batch: int = 1
    prefill_lengths: tuple = (7, 64)
    max_seq_len: int = 160
    logits: str = "all"
    more: tuple = ()


def run_export(program: Path, flags: Export, directory: Path) -> Path:
    """Runs `ratplus export` into a new directory."""
    case = golden_case(flags.case)
    command = [
        program, "export", case.checkpoint, "-o", directory,
        "--config", case.directory / "config.json",
        "--fallback", flags.fallback,
        "--dtype", flags.dtype,
        "--batch", flags.batch,
        "--prefill-lengths", ",".join(map(str, flags.prefill_lengths)),
        "--max-seq-len", flags.max_seq_len,
        "--logits", flags.logits,
        "--no-check",
        *flags.more,
    ]  # fmt: skip
    tokenizer = case.directory / "tokenizer.json"
    if tokenizer.exists():
        command += ["--tokenizer", tokenizer]
    command = [str(word) for word in command]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if result.returncode != 0:
        pytest.fail(f"{' '.join(command)}\nexit {result.returncode}\n{result.stderr}", pytrace=False)
    return directory


@pytest.fixture(scope="session")
def export(ratplus_bin, tmp_path_factory):
    """Exports with these flags, once per session; returns the package's directory."""
    packages: dict = {}

    def run(**flags) -> Path:
        key = Export(**flags)
        if key not in packages:
            name = f"{key.case}-{key.fallback}-{key.dtype}"
            packages[key] = run_export(ratplus_bin, key, tmp_path_factory.mktemp(name) / "package")
        return packages[key]

    return run


@pytest.fixture(scope="session")
def export_case(export):
    """Exports a golden case so that its whole token sequence fits."""

    def run(case: str, **flags) -> Path:
        batch, length = golden_case(case).golden()["tokens"].shape
        return export(case=case, **({"batch": batch, "max_seq_len": length + 10} | flags))

    return run
