"""benches/cpu: what needs no PyTorch. Our kernels, the function bodies and ONNX Runtime's attention against the
literal model, and the page made of it."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from conftest import ROOT

CPU = ROOT / "benches" / "cpu"
# A contender whose results are off by a little.
SPOILT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import peers, ort_contenders
prepare = ort_contenders.Dense.prepare
def off(self, shape, inputs):
    made = prepare(self, shape, inputs)
    right = made.result
    made.result = lambda: [x + 0.001 * (self.name == "ORT MultiHeadAttention") for x in right()]
    return made
ort_contenders.Dense.prepare = off
sys.exit(peers.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def peers(ort_library, ratplus_bin):
    def run(*words, script=(CPU / "peers.py",)):
        command = [sys.executable, *script, "--suite", "tiny", "--library", ort_library, "--program", ratplus_bin, *words]
        return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture(scope="module")
def measured(peers, tmp_path_factory):
    """A small run's results file and its documents."""
    folder = tmp_path_factory.mktemp("peers")
    done = peers("--contenders", "ours,body,ort", "--json", folder / "results.json", "--docs", folder / "docs")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def document(measured):
    return json.loads((measured / "results.json").read_text())


def test_everyone_is_the_literal_model_and_is_timed(document):
    checks, rows = document["checks"], document["rows"]
    assert all(check["error"] <= check["limit"] for check in checks)
    kernels = {check["contender"]: check["kernels"] for check in checks if "kernels" in check}
    assert kernels == {"ours": ["DilatedAttention", "RecurrenceScan"], "function body": []}
    for part in ("scan", "attention", "decode", "chain"):
        for name, dtypes in [("ours", {"f32", "bf16"}), ("function body", {"f32"})]:
            found = [check for check in checks if check["contender"] == name and check["part"] == part]
            assert {check["dtype"] for check in found} == dtypes
            assert part == "scan" or any(len(check["patterns"]) == 2 for check in found)
            timed = [row for row in rows if row["contender"] == name and row["part"] == part]
            assert timed and all(row["runs"] >= 5 for row in timed)
            assert all(0 < row["least_ms"] <= row["median_ms"] <= row["most_ms"] for row in timed)
    assert {row["contender"] for row in rows if row["group"] == "ort"} == {
        "ORT MultiHeadAttention", "ORT GroupQueryAttention",
    }  # fmt: skip
    assert document["left_out"] == ["torch"]
    assert all(document["limits"][when]["read"]["rate"] > 0 for when in ("start", "end"))


def test_the_page_holds_every_row_and_nothing_of_this_machine(measured, document):
    page = (measured / "docs" / "cpu.md").read_text()
    assert page.count("| function body |") == 1 + sum(row["contender"] == "function body" for row in document["rows"])
    for text in (page, json.dumps(document)):
        assert str(ROOT) not in text and str(measured) not in text
    pictures = sorted((measured / "docs").glob("*.svg"))
    assert [path.name for path in pictures] == ["cpu_peers.svg", "cpu_time.svg"]
    for path in pictures:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
        assert f"]({path.name})" in page


def test_ratios_of_the_page_are_those_of_the_rows(document, tmp_path):
    """A run whose rows are those that the must suite is asked for."""
    shape = {"part": "chain", "seq_len": 4096, "heads": 16, "head_dim": 128, "patterns": [[16, 0, 4]], "dtype": "f32"}
    scan = shape | {"part": "scan", "seq_len": 65536, "patterns": []}
    times = {"least_ms": 1, "most_ms": 9, "runs": 5}
    document["limits"] = {"start": {"copy": {"rate": 2e9, "way": "x"}}, "end": {"copy": {"rate": 4e9, "way": "x"}}}
    document["rows"] = [
        {"contender": "ours", "group": "ours", "flops": 1, "bytes": 0, "median_ms": 2, **shape, **times},
        {"contender": "function body", "group": "body", "flops": 1, "bytes": 0, "median_ms": 8, **shape, **times},
        {"contender": "SDPA, boolean mask", "group": "torch", "flops": 1, "bytes": 0, "reason": "too large", **shape},
        {"contender": "ours", "group": "ours", "flops": 0, "bytes": 10**9, "median_ms": 500, **scan, **times},
    ]
    results = tmp_path / "results.json"
    results.write_text(json.dumps(document))
    done = subprocess.run([sys.executable, CPU / "report.py", results, "-o", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "cpu.md").read_text().splitlines()
    found = lambda *words: [line for line in lines if all(word in line for word in words)]  # noqa: E731
    assert "**4.00** (8 over 2 ms; function body)" in found("chain, T=4096", "function body in ONNX")[0]
    assert "too large" in found("chain, T=4096", "under the mask")[0]
    assert "**0.50** (2 of 4 G/s, 500 ms)" in found("scan, T=65536: of copy bandwidth")[0]
    assert "not in this run" in found("decode, T=65536: D=1 over D=16")[0]


def test_a_wrong_contender_is_not_timed_and_fails_the_run(peers, tmp_path):
    results = tmp_path / "results.json"
    done = peers("--contenders", "ort", "--json", results, script=("-c", SPOILT, CPU))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "WRONG: ORT MultiHeadAttention" in done.stdout
    rows = json.loads(results.read_text())["rows"]
    assert {(row["contender"], "median_ms" in row, row.get("reason")) for row in rows} == {
        ("ORT MultiHeadAttention", False, "wrong: see the checks"), ("ORT GroupQueryAttention", True, None),
    }  # fmt: skip


def test_what_is_over_the_budget_is_said(peers, tmp_path):
    results = tmp_path / "results.json"
    done = peers("--contenders", "ort", "--seconds", 1, "--json", results)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["reason"] for row in json.loads(results.read_text())["rows"]} == {"not run: --seconds 1 are over"}


def test_bad_input_is_refused_in_one_message(peers, tmp_path):
    for words, part in [
        (["--contenders", "ours,jax"], "--contenders: expected some of ours, body, ort, torch; found `jax`"),
        (["--library", tmp_path / "none.so"], "none.so: no such file"),
        (["--threads", "0"], "--threads: expected 1 or more, found 0"),
    ]:
        done = peers(*words)
        assert done.returncode == 2 and part in done.stderr, done.stderr
    bad = tmp_path / "results.json"
    bad.write_text("{}")
    done = subprocess.run([sys.executable, CPU / "report.py", bad, "-o", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and "expected what peers.py --json writes" in done.stderr
