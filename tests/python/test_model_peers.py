"""benches/cpu/model_peers.py on a tiny model: ours is measured, peers that are not installed are counted, and the page
keeps what the kernels' suite wrote."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec

import pytest
from conftest import ROOT

CPU = ROOT / "benches" / "cpu"
ROWS = ["ours, int8 rows, int8", "ours, int8 rows, int4"]
OURS = ["ours bf16", "ours int8", "ours int4", "ours bf16 x 2", "ours int4 x 2", *ROWS]
sys.path.append(str(CPU))


@pytest.fixture(scope="module")
def peers(ort_library, ratplus_bin, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")

    def run(*words, program=ratplus_bin):
        command = [sys.executable, CPU / "model_peers.py", "--size", "tiny", "--models", run.models]
        command += ["--library", ort_library, "--program", program, *words]
        return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)

    run.models = folder / "models"
    return run


@pytest.fixture(scope="module")
def measured(peers, tmp_path_factory):
    """A run of one round, its results and its page, which had another part before."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "docs").mkdir()
    (folder / "docs" / "cpu.md").write_text("# Kernels\n\nas they were\n\n## A whole model\n\nan older run\n")
    done = peers("--rounds", 1, "--json", folder / "model.json", "--docs", folder / "docs")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_ours_is_measured_and_what_is_missing_is_counted(peers, measured):
    folder, output = measured
    document = json.loads((folder / "model.json").read_text())
    steps = {step["contender"]: step for step in document["steps"]}
    absent = [name for name in ("llama_cpp", "torch", "openvino") if find_spec(name) is None]
    assert set(OURS) <= set(steps) and len(absent) > 0
    for name in OURS:
        step = steps[name]
        assert all(rate > 0 for rate in step["decode"].values())
        assert set(step["decode"]) == ({"32", "512"} if name == "ours bf16" else {"32"})
        assert step["resident_bytes"] > step["weights_bytes"] + step["state_bytes"]
        assert 0 < step["read_bytes"] <= step["weights_bytes"]
        for field in ("prompt", "first_token"):
            assert (step.get(field, 0) > 0) == (step["batch"] == 1)
    assert steps["ours int4"]["weights_bytes"] < steps["ours int8"]["weights_bytes"] < steps["ours bf16"]["weights_bytes"]
    # Packages of the same weights have one file of them.
    weights = [peers.models / f"tiny-{name}" / "weights.bin" for name in ("ours-bf16", "ours-bf16-x-2")]
    assert weights[0].samefile(weights[1])
    reasons = {x["contender"]: x["reason"] for x in document["skipped"]}
    assert reasons["llama.cpp int4"] == "not installed: llama_cpp, gguf"
    assert output.splitlines()[-1] == f"{len(steps)} steps measured, {len(reasons)} skipped"
    assert all(f"skipped: {name}: {reason}" in output for name, reason in reasons.items())


def test_the_page_has_the_results_in_place_of_older_ones(measured):
    folder, _ = measured
    page = (folder / "docs" / "cpu.md").read_text()
    assert page.startswith("# Kernels\n\nas they were\n\n## A whole model\n") and "an older run" not in page
    assert page.count("not installed: llama_cpp, gguf") >= 3
    assert "| command to first token, bf16 | at most 2 s | **" in page
    for text in (page, (folder / "model.json").read_text()):
        assert str(ROOT) not in text and str(folder) not in text
    assert ElementTree.parse(folder / "docs" / "model_peers.svg").getroot().tag.endswith("svg")


def test_ratios_are_those_of_the_steps(measured, tmp_path):
    """With steps of llama.cpp added: twice as slow in decoding, twice as long to the first token."""
    folder, _ = measured
    document = json.loads((folder / "model.json").read_text())
    ours = next(step for step in document["steps"] if step["contender"] == "ours bf16")
    decode = {context: rate / 2 for context, rate in ours["decode"].items()}
    theirs = ours | {"contender": "llama.cpp bf16", "program": "llama.cpp", "decode": decode}
    document["steps"].append(theirs | {"first_token": 2 * ours["first_token"], "prompt": ours["prompt"] * 4})
    rows = next(step for step in document["steps"] if step["contender"] == ROWS[0])
    theirs = {"contender": "llama.cpp int8", "program": "llama.cpp", "decode": {"32": rows["decode"]["32"] / 3}}
    document["steps"].append(rows | theirs)
    (tmp_path / "model.json").write_text(json.dumps(document))
    command = [sys.executable, CPU / "model_report.py", tmp_path / "model.json", "-o", tmp_path]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "cpu.md").read_text()
    assert "| decode after 32, bf16: over llama.cpp | 1.3 | **2.00** |" in page
    assert "| decode after 512, bf16: over llama.cpp with its dense cache | 3 | **2.00** |" in page
    assert "| prompt of 32, bf16: over llama.cpp | 1.5 | **0.25** |" in page
    assert "| decode after 32, int8, int8 rows: over llama.cpp | 1.3 | **3.00** |" in page
    assert [line.split("|")[6].strip() for line in page.splitlines() if line.startswith("| first token, s | bf16")] == ["2.00"]


def test_a_run_continues_where_one_ended(peers, measured, tmp_path):
    folder, _ = measured
    results = tmp_path / "model.json"
    document = json.loads((folder / "model.json").read_text())
    document["steps"] = [step for step in document["steps"] if step["contender"] != "ours bf16"]
    results.write_text(json.dumps(document))
    done = peers("--rounds", 1, "--json", results, "--continue")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("1: ours")][0].startswith("1: ours bf16 ")
    assert done.stdout.count("\n1: ours") + done.stdout.startswith("1: ours") == 1
    document["threads"] = 64
    results.write_text(json.dumps(document))
    done = peers("--json", results, "--continue")
    assert done.returncode == 1 and "--continue expects `threads` 2, found 64" in done.stderr


def test_what_is_over_the_budget_is_said(peers, tmp_path):
    done = peers("--seconds", 0, "--json", tmp_path / "model.json")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "model.json").read_text())
    assert not document["steps"]
    assert {"contender": "ours bf16", "reason": "round 1 does not end within --seconds 0"} in document["skipped"]


def test_ours_failing_fails_the_run(peers, tmp_path):
    program = tmp_path / "ratplus"
    program.write_text('#!/bin/sh\necho "error: nothing is measured" >&2\nexit 2\n')
    program.chmod(0o755)
    # Older than the packages, which are then as they should be.
    os.utime(program, (0, 0))
    done = peers("--rounds", 1, "--json", tmp_path / "model.json", program=program)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1: ours bf16" in done.stdout and "nothing is measured" in done.stdout
