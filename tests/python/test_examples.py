"""examples/: the custom hosts are built and run as they stand, and say what docs/by-hand.md's listing says without the
library of kernels."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest
from conftest import ROOT, golden_case

EXAMPLES = ROOT / "examples"
CASE = "kjv_d16w64i4"
COUNT = 24


@pytest.fixture(scope="module")
def package(export):
    """Of two slots, so that one idles."""
    return export(case=CASE, dtype="f32", logits="last", batch=2, prefill_lengths=(8, 64), max_seq_len=160)


@pytest.fixture(scope="module")
def prompt():
    """Two chunks of 64, the second one padded."""
    return [int(token) for token in golden_case(CASE).golden()["tokens"][0, :90]]


@pytest.fixture(scope="module")
def expected(package, prompt):
    """By function bodies, from the page's listing."""
    page = (ROOT / "docs" / "by-hand.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    defined: dict = {}
    exec(compile(code, "docs/by-hand.md", "exec"), defined)
    return defined["greedy"](defined["Model"](package), prompt, COUNT)


def run(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commas(tokens):
    return ",".join(map(str, tokens))


def test_the_host_in_python(package, ort_library, prompt, expected):
    said = run(sys.executable, EXAMPLES / "custom_host.py", package, ort_library, commas(prompt), COUNT)
    assert [int(word) for word in said.split()] == expected


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """custom_host.cpp, compiled against ONNX Runtime's headers and the wheel's library."""
    headers = ROOT / "target" / "ort-headers"
    if not (headers / "onnxruntime_cxx_api.h").is_file():
        pytest.skip(f"ONNX Runtime's headers are not in {headers.relative_to(ROOT)} (cargo xtask test)")
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    folder = tmp_path_factory.mktemp("host")
    (library,) = (Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*")
    # What the linker and the loader look for.
    (folder / "libonnxruntime.so.1").symlink_to(library)
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-isystem", headers]
    source = [EXAMPLES / "custom_host.cpp", folder / "libonnxruntime.so.1", "-Wl,-rpath,$ORIGIN"]
    run(compiler, *flags, *source, "-o", folder / "custom_host")
    return folder / "custom_host"


def test_the_host_in_cpp(host, package, ort_library, prompt, expected):
    engines = [package / f"{name}.onnx" for name in ("prefill_64", "decode", "prefill_8")]
    said = run(host, ort_library, commas(prompt), COUNT, *engines)
    assert [int(word) for word in said.split()] == expected


def test_the_host_in_cpp_tells_what_fails(host, package, tmp_path):
    done = subprocess.run([host, tmp_path / "none.so", "1", "1", package / "decode.onnx"], capture_output=True, text=True)
    assert done.returncode == 2 and "none.so" in done.stderr
