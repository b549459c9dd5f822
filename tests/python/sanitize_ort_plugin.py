"""The custom-op library built with AddressSanitizer, in Python. `cargo xtask sanitize` builds it and
runs this file, which the other tests leave out: it is named by
RATPLUS_SANITIZED_LIBRARY, and the sanitizer's runtime by RATPLUS_SANITIZER."""

import os
from dataclasses import replace

import pytest
from plugin_models import DTYPES, ModelOptions
from test_ort_plugin_process import NODES, PLACES, child, start, write_case, write_cases, write_thread_cases

LIBRARY, RUNTIME = os.environ["RATPLUS_SANITIZED_LIBRARY"], os.environ["RATPLUS_SANITIZER"]
# Python and ORT keep memory to their end. Panics unwind past frames that are checked no more.
OPTIONS = "detect_leaks=0:abort_on_error=0:exitcode=23:halt_on_error=1"
ENVIRONMENT = {"LD_PRELOAD": RUNTIME, "ASAN_OPTIONS": OPTIONS, "RATPLUS_NO_ARENA": "1", "PYTHONMALLOC": "malloc"}


def clean(*arguments):
    found, stderr = child(LIBRARY, *arguments, environment=ENVIRONMENT)
    assert "AddressSanitizer" not in stderr, stderr
    assert "error" not in found, found
    return found


@pytest.mark.parametrize("node", NODES)
def test_a_planted_overread_is_caught(tmp_path, node):
    write_case(tmp_path, "over", NODES[node], "f32", ModelOptions(attributes={"ratplus_fault": "overread"}))
    done = start(LIBRARY, "run", tmp_path, environment=ENVIRONMENT)
    assert done.returncode == 23, done.stderr
    assert "ERROR: AddressSanitizer" in done.stderr and os.path.basename(LIBRARY) in done.stderr


def test_every_case_is_clean(tmp_path):
    assert len(clean("run", write_cases(tmp_path / "cases"))["ran"]) == 9


def test_caches_of_another_type_are_clean(tmp_path):
    for t in DTYPES:
        for c in DTYPES.keys() - {t}:
            write_case(tmp_path, f"{t}_{c}", replace(NODES["prefill"], cache=c), t, ModelOptions(casts=True))
    assert len(clean("run", tmp_path)["ran"]) == 6


def test_threads_are_clean(tmp_path):
    found = clean("threads", write_thread_cases(tmp_path / "cases"), 8, 20_000)
    assert (found["runs"], found["wrong"], found["sessions"]) == (160_000, 0, 4), found


def test_panics_are_clean(tmp_path):
    for place in PLACES:
        write_case(tmp_path, f"fault_{place}", NODES["prefill"], "f32", ModelOptions(attributes={"ratplus_fault": place}))
    write_case(tmp_path, "good", NODES["prefill"], "f32")
    assert clean("faults", tmp_path)["good"] is True


def test_cycles_and_exits_are_clean(tmp_path):
    write_case(tmp_path, "case", NODES["prefill"], "f32")
    clean("cycles", tmp_path / "case.onnx", tmp_path / "case.npz", 50)
    clean("thread_exit", tmp_path / "case.onnx", tmp_path / "case.npz", 20)
