"""benches/gpu/ort_cuda_check.py, which is for machines with a GPU, in its run without one."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPT = ROOT / "benches" / "gpu" / "ort_cuda_check.py"


def check(*arguments):
    command = [sys.executable, SCRIPT, *arguments, "--json"]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def package(export):
    return export(case="d16_w20_i4", batch=3, max_seq_len=40, prefill_lengths=(7,), dtype="bf16", logits="last")


@pytest.mark.parametrize("steps", [100])
def test_decoding_in_place_and_beside_is_the_same(operators, package, steps):
    done = check(package, "--provider", "cpu", "--library", operators.library, "--steps", steps)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["problems"] == [] and report["steps"] == steps
    assert sorted(report["tokens_per_second"]) == ["double", "in-place"]
    assert report["skipped"] == ["graph: the CPU provider records none"]


def test_what_differs_is_found(ort_library, package, tmp_path):
    """A script whose second decoder feeds other tokens."""
    text = SCRIPT.read_text()
    spoilt = text.replace("decoder.step(*step)", "decoder.step(step[0] * (decoder.mode == 'double'), *step[1:])")
    assert spoilt != text
    script = tmp_path / "spoilt.py"
    script.write_text(spoilt)
    command = [sys.executable, script, package, "--provider", "cpu", "--library", ort_library, "--steps", "20", "--json"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    problems = json.loads(done.stdout)["problems"]
    assert any("logits differ from double's in 20 steps, first in step 0" in problem for problem in problems)
    assert any("past_key_values.0.key differs" in problem for problem in problems)


def test_what_is_missing_is_said(ort_library, package, tmp_path):
    for arguments, expected in [
        ((package, "--library", tmp_path / "none.so", "--provider", "cpu"), "none.so: no such file"),
        ((tmp_path, "--library", ort_library, "--provider", "cpu"), "manifest.json"),
        ((package, "--library", ort_library), "onnxruntime-gpu"),
    ]:
        done = check(*arguments)
        assert done.returncode == 2 and expected in done.stderr, done.stderr
