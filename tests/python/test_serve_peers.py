"""benches/cpu/serve_peers.py on a tiny model: ours is measured, llama.cpp's server counted as missing, and the page keeps
what was written by hand."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from conftest import ROOT

CPU = ROOT / "benches" / "cpu"
OURS = ["ours int4", "ours bf16", "ours, int8 rows, int4"]
SCENARIOS = {"together", "prefix", "stall", "long"}


@pytest.fixture(scope="module")
def peers(ort_library, ratplus_bin, tmp_path_factory):
    models = tmp_path_factory.mktemp("models")

    def run(*words):
        command = [sys.executable, CPU / "serve_peers.py", "--size", "tiny", "--models", models]
        command += ["--library", ort_library, "--program", ratplus_bin, *words]
        return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="module")
def measured(peers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    (folder / "docs").mkdir()
    (folder / "docs" / "serving.md").write_text("# Serving\n\nby hand\n\n## Beside llama.cpp's server\n\nan older run\n")
    done = peers("--rounds", 1, "--json", folder / "serve.json", "--docs", folder / "docs")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_ours_is_measured_and_what_is_missing_is_counted(measured):
    folder, output = measured
    document = json.loads((folder / "serve.json").read_text())
    steps = {(step["contender"], step["scenario"]): step for step in document["steps"]}
    assert set(steps) == {(name, "together") for name in OURS} | {("ours int4", name) for name in SCENARIOS} | {(OURS[2], "long")}
    assert not any("reason" in step for step in document["steps"]), output
    for name in OURS:
        assert steps[name, "together"]["tokens_per_second"] > 0
    prefix = steps["ours int4", "prefix"]
    # All but the first came from the cache up to the end of the last whole chunk, and sooner.
    assert prefix["cached"] == [512, 512] and prefix["hit"] < prefix["cold"]
    stall = steps["ours int4", "stall"]
    assert 0 < stall["p50"] <= stall["p99"] <= stall["most"] and stall["chunk"] > 0
    long = steps["ours int4", "long"]
    assert long["cached"] == [512, 512] and long["decode"] > 0 and long["whole"] > 0
    assert {skip["contender"] for skip in document["skipped"]} == {"llama.cpp int4", "llama.cpp bf16"}
    assert output.splitlines()[-1] == f"{len(steps)} steps measured, 2 skipped"


def test_the_page_has_the_results_in_place_of_older_ones(measured):
    folder, _ = measured
    page = (folder / "docs" / "serving.md").read_text()
    assert page.startswith("# Serving\n\nby hand\n\n## Beside llama.cpp's server\n") and "an older run" not in page
    assert "its server is not built" in page
    for text in (page, (folder / "serve.json").read_text()):
        assert str(ROOT) not in text and str(folder) not in text
    assert ElementTree.parse(folder / "docs" / "serve_peers.svg").getroot().tag.endswith("svg")


def test_ratios_are_those_of_the_steps(measured, tmp_path):
    """With a llama.cpp that is half as fast, and takes twice as long."""
    folder, _ = measured
    document = json.loads((folder / "serve.json").read_text())
    for step in list(document["steps"]):
        if step["contender"] == "ours int4":
            theirs = {name: step[name] / 2 for name in ("tokens_per_second", "decode", "whole") if name in step}
            theirs |= {name: step[name] * 2 for name in ("cold", "hit", "p99") if name in step}
            document["steps"].append(step | theirs | {"contender": "llama.cpp int4", "program": "llama.cpp"})
    (tmp_path / "serve.json").write_text(json.dumps(document))
    command = [sys.executable, CPU / "serve_report.py", tmp_path / "serve.json", "-o", tmp_path]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "serving.md").read_text()
    assert "| 2 clients, 8 tokens after 32, int4: over llama.cpp | 1.3 | **2.00** |" in page
    assert "| 2 clients after 512, int4: decoding over llama.cpp | 3 | **2.00** |" in page
    for line in page.splitlines():
        if line.startswith(("| prompt of 512, cold, s | int4", "| the same on a hit, s | int4")):
            assert line.split("|")[-2].strip() == "2.00", line


def test_what_is_over_the_budget_is_said(peers, tmp_path):
    done = peers("--seconds", 0, "--json", tmp_path / "serve.json")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "serve.json").read_text())
    assert not document["steps"]
    assert {"contender": "together, ours int4", "reason": "round 1 does not end within --seconds 0"} in document["skipped"]
