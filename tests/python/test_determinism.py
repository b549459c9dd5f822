"""The same input gives the same bytes."""

import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import LOWERINGS, ROOT, Export, run_export


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("fallback", LOWERINGS)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_exports_are_byte_identical(ratplus_bin, tmp_path, fallback, dtype):
    flags = Export(case="kjv_hybrid", fallback=fallback, dtype=dtype)
    first = contents(run_export(ratplus_bin, flags, tmp_path / "first"))
    second = contents(run_export(ratplus_bin, flags, tmp_path / "second"))
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_the_default_type_of_the_cache_changes_no_byte(ratplus_bin, tmp_path):
    flags = Export(case="kjv_hybrid", dtype="bf16")
    named = replace(flags, more=("--cache-dtype", "bf16"))
    first = contents(run_export(ratplus_bin, flags, tmp_path / "first"))
    assert first == contents(run_export(ratplus_bin, named, tmp_path / "second"))


def test_export_leaves_nothing_beside_the_package(ratplus_bin, tmp_path):
    run_export(ratplus_bin, Export(case="dense"), tmp_path / "package")
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


# Runs every engine of a package: 20 times over for each number of threads, from states that hold what
# the run before left; prints a hash of all logits and states for each.
CHILD = """
import hashlib, sys
from pathlib import Path
import numpy as np
import ort_driver
directory, library = sys.argv[1:]
for threads in (1, 2, 4):
    package = ort_driver.Package(directory, Path(library) if library else None, threads=threads)
    tokens = np.random.default_rng(1).integers(0, package.manifest["model"]["vocab_size"], (package.batch, 150))
    for run in range(20):
        package.past_length[:] = 0
        digest = hashlib.sha256()
        for engine, counts in [(64, [64, 9]), (7, [3, 7]), (1, [1, 1]), (1, [0, 1])]:
            digest.update(package.step(engine, tokens, counts).tobytes())
        for value in package.states.values():
            digest.update(ort_driver.to_bytes(value).tobytes())
        print(threads, run, digest.hexdigest())
"""


@pytest.mark.parametrize("dtype, operators", [("f32", "kernels"), ("bf16", "kernels"), ("f32", "functions")])
def test_threads_repetitions_and_processes_change_no_bit(export, ort_library, dtype, operators):
    """Threads {1, 2, 4} x 20 runs x 2 processes: 120 hashes, one value."""
    package = export(case="head_hybrid", dtype=dtype, batch=2, prefill_lengths=(7, 64), max_seq_len=160)
    words = [sys.executable, "-c", CHILD, package, ort_library if operators == "kernels" else ""]
    # Both at once: they take each other's processors.
    children = [
        subprocess.Popen([str(word) for word in words], cwd=ROOT / "tests" / "python", stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [child.communicate(timeout=300)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    hashes = [line.split()[2] for output in outputs for line in output.splitlines()]
    print(f"{len(hashes)} runs, {len(set(hashes))} hash")
    assert len(hashes) == 120 and len(set(hashes)) == 1
