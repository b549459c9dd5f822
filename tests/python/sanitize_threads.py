"""The custom-op library built with ThreadSanitizer, in Python. `cargo xtask sanitize --thread` builds it
and runs this file, which the other tests leave out: it is named by RATPLUS_SANITIZED_LIBRARY, and the
sanitizer's runtime by RATPLUS_SANITIZER.

Python and ORT are not instrumented. What they do with memory and locks is left out, else their threads
would seem to race where they meet by atomics alone, and Python's global lock would put all runs in an
order that another caller need not have. What ORT promises the library says itself (`Order` in fault.rs)."""

import os
import sys
import sysconfig
from pathlib import Path

import pytest
from plugin_models import ModelOptions
from test_ort_plugin_process import NODES, child, start, write_case, write_thread_cases

LIBRARY, RUNTIME = os.environ["RATPLUS_SANITIZED_LIBRARY"], os.environ["RATPLUS_SANITIZER"]
SHARED = sysconfig.get_config_var("Py_ENABLE_SHARED")
PYTHON = sysconfig.get_config_var("INSTSONAME") if SHARED else Path(sys.executable).resolve()
# Whose calls are left out; never the library's own.
FOREIGN = [
    PYTHON, "onnxruntime_pybind11_state", "_multiarray_umath",
    "libstdc++.so", "libc.so", "ld-linux",
]  # fmt: skip
# The sanitizer sees no access wider than 16 bytes: all of these kernels, some of the machine's own.
ALL_SEEN = {"RATPLUS_ISA": "portable"}


@pytest.fixture
def environment(tmp_path):
    foreign = tmp_path / "foreign.txt"
    foreign.write_text("".join(f"called_from_lib:{name}\n" for name in FOREIGN))
    options = f"suppressions={foreign}:exitcode=23:halt_on_error=1"
    return {"LD_PRELOAD": RUNTIME, "TSAN_OPTIONS": options, "RATPLUS_NO_ARENA": "1"}


def caught(environment, *arguments):
    """The report of a race, which ends the process."""
    done = start(LIBRARY, *arguments, environment=environment | ALL_SEEN)
    assert done.returncode == 23, f"exit {done.returncode}: {done.stdout}{done.stderr}"
    assert "WARNING: ThreadSanitizer: data race" in done.stderr and os.path.basename(LIBRARY) in done.stderr
    return done.stderr


@pytest.mark.parametrize("node", NODES)
def test_a_planted_race_of_runs_is_caught(tmp_path, environment, node):
    (tmp_path / "race").mkdir()
    write_case(tmp_path / "race", "race", NODES[node], "f32", ModelOptions(attributes={"ratplus_fault": "race"}))
    report = caught(environment, "threads", tmp_path / "race", 8, 20_000)
    # Both accesses.
    assert report.count(" race plugins/onnxruntime/src/fault.rs") == 2, report


@pytest.mark.parametrize("node", NODES)
def test_a_planted_race_of_one_runs_tasks_is_caught(tmp_path, environment, node):
    options = ModelOptions(attributes={"ratplus_fault": "race_in_task"})
    write_case(tmp_path, "race", NODES[node], "f32", options)
    report = caught(environment, "soak", tmp_path / "race.onnx", tmp_path / "race.npz", 200_000)
    assert report.count(" race plugins/onnxruntime/src/fault.rs") == 2, report


@pytest.mark.parametrize("node", NODES)
def test_runs_into_one_output_are_caught_in_the_kernels(tmp_path, environment, node):
    write_case(tmp_path, "case", NODES[node], "f32")
    report = caught(environment, "one_output", tmp_path / "case.onnx", tmp_path / "case.npz", 8, 20_000)
    writing, previous = report.split("  Previous ")[:2]
    assert " kernels/src/" in writing and " kernels/src/" in previous, report


def test_only_instructions_of_this_machine_are_chosen(tmp_path):
    write_case(tmp_path, "case", NODES["scan"], "f32")
    found, _ = child(LIBRARY, "run", tmp_path, environment={"LD_PRELOAD": RUNTIME, "RATPLUS_ISA": "none"})
    assert 'RATPLUS_ISA: this machine has no "none"' in found.get("error", ""), found


@pytest.mark.parametrize("isa", [ALL_SEEN, {}], ids=["portable", "the_machines_own"])
def test_threads_are_clean(tmp_path, environment, isa):
    cases = write_thread_cases(tmp_path / "cases")
    found, stderr = child(LIBRARY, "threads", cases, 8, 20_000, environment=environment | isa)
    assert "ThreadSanitizer" not in stderr, stderr
    assert (found["runs"], found["wrong"], found["sessions"]) == (160_000, 0, 4), found
