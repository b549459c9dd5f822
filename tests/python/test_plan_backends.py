"""The backends that run engine plans, on the emulated GPU with a stand-in for TensorRT.

The stand-in has TensorRT's real interfaces, from its headers, and a made-up model: a state that
tokens and positions drive, and logits that point at it.
"""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, sealed
from nvinfer_double import compile_double
from safetensors.numpy import save_file

HEADERS = ROOT / "target" / "tensorrt" / "headers"
BATCH, LENGTH, DTYPES = 2, 40, {"f32": 0, "f16": 1, "bf16": 2, "i64": 3}


class Kind:
    """A backend and its stand-in."""

    def __init__(self, backend: str, headers: str, library: str, variable: str, in_place: bool):
        self.backend, self.library, self.variable = backend, library, variable
        self.headers, self.in_place = HEADERS / headers, in_place

    def version(self) -> str:
        text = (self.headers / "NvInferVersion.h").read_text()
        parts = ("TRT_MAJOR_", "TRT_MINOR_", "TRT_PATCH_", "TRT_BUILD_")
        lines = [line.split() for line in text.splitlines() if line.startswith("#define TRT_")]
        return ".".join(next(words[2] for words in lines if words[1].startswith(part)) for part in parts)


KINDS = [
    Kind("tensorrt-rtx", "tensorrt-rtx-1.7", "libtensorrt_rtx.so.1", "RATPLUS_TENSORRT_RTX", False),
    Kind("tensorrt", "tensorrt-11.4", "libnvinfer.so.11", "RATPLUS_TENSORRT", True),
]


@pytest.fixture(scope="session")
def emulator() -> Path:
    """The folder with the emulator under the driver's name."""
    found = (ROOT / "target" / "release" / "build").glob("ratplus-cuda-emulator-*/out/libcuda.so.1")
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        pytest.skip("the CUDA emulator is not built; `cargo xtask test` builds it")
    return newest.parent


@pytest.fixture(scope="session", params=KINDS, ids=lambda kind: kind.backend)
def kind(request, tmp_path_factory) -> Kind:
    kind = request.param
    if not (kind.headers / "NvInfer.h").is_file():
        pytest.skip(f"{kind.headers} is not there; `cargo xtask setup` installs it")
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    kind.folder = tmp_path_factory.mktemp(kind.backend) / "lib"
    compile_double(kind.headers, kind.folder / kind.library, kind.in_place)
    return kind


def add_plans(package: Path, kind: Kind, library=None, targets=("8.0+",), first_word="double"):
    """Puts plans of the stand-in into a package."""
    text = (package / "manifest.json").read_text()
    manifest = json.loads(text)
    folder = package / "plans" / kind.backend
    folder.mkdir(parents=True)
    plans = []
    for engine in manifest["engines"]:
        lines = [first_word]
        for side, tensors in (("input", engine["inputs"]), ("output", engine["outputs"])):
            for tensor in tensors:
                shape = tensor["shape"]
                words = (side, tensor["name"], DTYPES[tensor["dtype"]], len(shape), *shape)
                lines.append(" ".join(map(str, words)))
        content = "\n".join(lines).encode()
        checksum = hashlib.sha256(content).hexdigest()
        name = f"{engine['name']}-{checksum[:16]}.plan"
        (folder / name).write_bytes(content)
        target = "tensorrt" if kind.in_place and "tensorrt" in engine["files"] else "cuda"
        onnx = manifest["files"][engine["files"][target]]["sha256"]
        plan = {"engine": engine["name"], "file": name, "bytes": len(content), "sha256": checksum, "onnx_sha256": onnx}
        plans.append(plan)
    record = {
        "library": library or kind.version(),
        "tool": "test",
        "compute_capabilities": list(targets),
        "weights_sha256": manifest["files"]["weights.bin"]["sha256"],
        "plans": plans,
    }
    lines = json.dumps({"plans": {kind.backend: record}}, indent=2).splitlines()[1:-1]
    head, seal = text.rsplit(',\n  "sha256"', 1)
    text = head + ",\n" + "\n".join(lines) + ',\n  "sha256"' + seal
    (package / "manifest.json").write_text(sealed(text))


@pytest.fixture
def package(export, tmp_path):
    def copy(**flags) -> Path:
        flags = {"case": "d16_w20_i4", "batch": BATCH, "max_seq_len": 64, "prefill_lengths": (7,)} | flags
        return Path(shutil.copytree(export(**flags), tmp_path / "package"))

    return copy


@pytest.fixture
def ratplus(ratplus_bin, kind, emulator):
    """Runs `ratplus` on the emulated GPU with the stand-in."""

    def run(*arguments, code=0) -> subprocess.CompletedProcess:
        command = [str(word) for word in (ratplus_bin, *arguments)]
        environment = os.environ | {
            kind.variable: str(kind.folder),
            "RATPLUS_TRT_LIBRARY": str(kind.folder / kind.library),
            "LD_LIBRARY_PATH": str(emulator),
        }
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        assert done.returncode == code, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    return run


def golden(path: Path, vocabulary: int, tokens, wrong=False) -> Path:
    """What the made-up model returns for `tokens`, as a golden file."""
    logits = np.zeros((*tokens.shape, vocabulary), np.float32)
    for sequence, row in enumerate(tokens):
        state = 0
        for position, token in enumerate(row):
            state = (31 * state + int(token) + 7 * position) % 1009
            logits[sequence, position, state % vocabulary] = 1 + state
    if wrong:
        logits[1, LENGTH // 2] += 1
    positions = np.arange(tokens.shape[1], dtype=np.int64)
    # Plans return no such tensor: it is said not to be compared.
    tap = np.zeros((*tokens.shape, 64), np.float32)
    save_file({"tokens": tokens, "positions": positions, "logits": logits, "last_hidden": tap}, path)
    return path


def random_tokens(vocabulary: int):
    tokens = np.random.default_rng(1).integers(14, vocabulary, (3, LENGTH))
    return tokens.astype(np.int64)


def vocabulary(package: Path) -> int:
    return json.loads((package / "manifest.json").read_text())["model"]["vocab_size"]


def verify(kind: Kind, package: Path, golden_file: Path) -> tuple:
    # The emulator cannot record what the stand-in computes.
    return ("verify", package, "--backend", kind.backend, "--golden", golden_file, "--json", "--no-cuda-graph")


def test_every_route_carries_the_state(kind, package, ratplus, tmp_path):
    directory = package()
    add_plans(directory, kind)
    words = vocabulary(directory)
    tokens = random_tokens(words)
    done = ratplus(*verify(kind, directory, golden(tmp_path / "golden.safetensors", words, tokens)))
    report = json.loads(done.stdout)
    (tap,) = (row for row in report["rows"] if row["tensor"] != "logits")
    assert tap["tensor"] == "last_hidden" and tap["rows"] == 0
    rows = {row["route"]: row for row in report["rows"] if row["tensor"] == "logits"}
    assert len(rows) >= 3 and all(row["max_error"] == 0 for row in rows.values()), rows
    assert all(row["rows"] == tokens.size for row in rows.values())
    (found,) = report["implementations"]
    text = json.dumps(found)
    assert ("plugin" if kind.in_place else "function body") in text, text
    wrong = golden(tmp_path / "wrong.safetensors", words, tokens, wrong=True)
    done = ratplus(*verify(kind, directory, wrong)[:-2], "--no-cuda-graph", code=1)
    assert "plans have no intermediate outputs" in done.stdout
    assert "not compared 1 intermediate tensors of engine plans" in done.stdout


def test_a_failed_run_is_told_in_tensorrts_words(kind, package, ratplus, tmp_path):
    directory = package()
    add_plans(directory, kind)
    words = vocabulary(directory)
    tokens = random_tokens(words)
    tokens[0, 9] = 13
    done = ratplus(*verify(kind, directory, golden(tmp_path / "golden.safetensors", words, tokens)), code=2)
    assert "enqueueV3 failed" in done.stderr and "a planted failure" in done.stderr


def test_plans_that_do_not_fit_the_machine_are_refused(kind, package, ratplus):
    def refused(*parts, **record):
        directory = package()
        add_plans(directory, kind, **record)
        done = ratplus("verify", directory, "--backend", kind.backend, "--tokens", 8, code=2)
        assert "again" in done.stderr or "not a plan" in done.stderr
        for part in parts:
            assert part in done.stderr, done.stderr
        shutil.rmtree(directory)

    refused("version 0.1 of its library", kind.version(), library="0.1")
    refused("built for compute capability 7.5, found a GPU of", targets=["7.5"])
    if kind.backend == "tensorrt-rtx":
        refused("it is not for this GPU's compute capability", first_word="unfit")
    else:
        refused("not a plan of the double", first_word="strange")


def test_doctor_finds_everything(kind, ratplus):
    findings = json.loads(ratplus("doctor", "--json").stdout)
    found = {finding["name"]: finding for finding in findings}
    name = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}[kind.backend]
    assert found[name]["found"] and kind.version() in found[name]["detail"]
    assert "runs plans only" in found[name]["detail"]
    assert found["CUDA driver"]["found"] and found["RAT+ plugins"]["found"]


@pytest.mark.parametrize("release", ["11.4", "10.16"])
def test_real_libraries_are_told_by_their_version(ratplus_bin, tmp_path, release):
    major = release.split(".")[0]
    lean = ROOT / "target" / "tensorrt" / f"lean-{release}" / "tensorrt_lean_libs" / f"libnvinfer_lean.so.{major}"
    if not lean.is_file() or not (KINDS[1].headers / "NvInfer.h").is_file():
        pytest.skip(f"TensorRT's lean runtime {release} or its headers are not installed; `cargo xtask test` does")
    # It has the runtime's functions of the whole library.
    (tmp_path / f"libnvinfer.so.{major}").symlink_to(lean)
    environment = os.environ | {"RATPLUS_TENSORRT": str(tmp_path)}
    command = [str(ratplus_bin), "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    finding = next(found for found in json.loads(done.stdout) if found["name"] == "TensorRT")
    if release == "11.4":
        assert finding["found"] and "driven as TensorRT 11.4" in finding["detail"], finding
    else:
        # No code for 10: both are named.
        assert not finding["found"], finding
        assert "TensorRT 11.4" in finding["detail"] and "found TensorRT 10.16" in finding["detail"], finding


def test_decode_is_recorded_unless_told_otherwise(kind, package, ratplus):
    directory = package(case="kjv_d16w64i4", batch=1)
    add_plans(directory, kind)
    generate = ("generate", directory, "--backend", kind.backend, "--prompt", "In the beginning", "-n", 8)
    plain = ratplus(*generate, "--no-cuda-graph").stdout
    recorded = ratplus(*generate).stdout
    # The graph of the stand-in is empty: replayed, it leaves the logits as they are.
    assert (recorded == plain) == (kind.backend == "tensorrt-rtx")
