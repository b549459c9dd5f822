"""The custom-op library in processes of its own: other versions of onnxruntime, panics, memory,
fork. Needs, where a test skips: `pip install --target target/ort-1.NN onnxruntime==1.NN.x`."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT, times
from operators.dilated_attention import DilatedAttention, Pattern
from operators.recurrence_scan import RecurrenceScan
from plugin_driver import lengths_of
from plugin_models import DTYPES, ModelOptions, build_model

CHILD = Path(__file__).with_name("plugin_child.py")
NODES = {
    "decode": DilatedAttention(2, 1, 16, 40, [Pattern(4, 2, 1), Pattern(-1, 6, 2), Pattern(1, 0, 0)]),
    "prefill": DilatedAttention(2, 7, 16, 40, [Pattern(4, 2, 1), Pattern(-1, 6, 2), Pattern(1, 0, 0)]),
    "scan": RecurrenceScan(2, 7, 48),
}


def start(library, *arguments, packages=None, environment=None):
    """Runs plugin_child.py."""
    path = {"PYTHONPATH": str(packages)} if packages else {}
    command = [sys.executable, CHILD, library, *arguments]
    environment = os.environ | path | (environment or {})
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=times(600), env=environment)


def child(library, *arguments, packages=None, environment=None):
    """Runs plugin_child.py; its JSON and its standard error."""
    done = start(library, *arguments, packages=packages, environment=environment)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr}"
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def write_case(directory, name, node, t, options=None):
    """A model with f32 on its outside, so that every version can feed it."""
    rng = np.random.default_rng(17)
    inputs = {n: rng.standard_normal(shape) for n, (d, shape) in node.inputs(t).items() if d != "i64"}
    inputs = {n: array.astype(np.float32) for n, array in (inputs | node.tables()).items()}
    inputs |= lengths_of(node, [0, 19], [node.seq_len, 1])
    options = options or ModelOptions(casts=t != "f32")
    directory.joinpath(f"{name}.onnx").write_bytes(build_model(node, t, options))
    np.savez(directory / f"{name}.npz", **inputs)


def write_cases(directory):
    directory.mkdir()
    for name, node in NODES.items():
        for t in DTYPES:
            write_case(directory, f"{name}_{t}", node, t)
    return directory


def write_thread_cases(directory):
    """Four small models: both operators, three types, patterns of every kind."""
    directory.mkdir()
    patterns = [Pattern(4, 2, 1), Pattern(-1, 3, 2), Pattern(1, 0, 0)]
    write_case(directory, "decode", DilatedAttention(2, 1, 8, 24, patterns), "f32")
    write_case(directory, "prefill", DilatedAttention(2, 5, 8, 24, patterns[:2]), "bf16")
    write_case(directory, "scan", RecurrenceScan(2, 5, 24), "f16")
    write_case(directory, "step", RecurrenceScan(2, 1, 24), "f32")
    return directory


def write_cache_cases(directory):
    """The attention with caches of another type than the activations."""
    directory.mkdir()
    for t in DTYPES:
        for c in DTYPES.keys() - {t}:
            node = replace(NODES["prefill"], cache=c)
            write_case(directory, f"{t}_{c}", node, t, ModelOptions(casts=True))
    return directory


def results(directory):
    return {path.name: dict(np.load(path)) for path in sorted(directory.glob("*.out.npz"))}


def other_version(version):
    """Where `version` of onnxruntime is, or a skip."""
    packages = Path(os.environ.get("RATPLUS_ORT_WHEELS", ROOT / "target")) / f"ort-{version}"
    if not (packages / "onnxruntime").is_dir():
        pytest.skip(f"onnxruntime {version} is not in {packages.name}: pip install --target there")
    return packages


SESSIONS = """
import sys, onnxruntime as ort
for model in sys.argv[2:]:
    options = ort.SessionOptions()
    options.register_custom_ops_library(sys.argv[1])
    ort.InferenceSession(model, options, ["CPUExecutionProvider"])
"""


@pytest.mark.parametrize("loaded", [False, True], ids=["alone", "beside another device's provider"])
def test_nodes_on_the_cpu_beside_another_device_are_told_once(ort_library, tmp_path, loaded):
    models = sorted(write_thread_cases(tmp_path / "cases").glob("*.onnx"))
    # Any library of that name is a provider's, as the loader tells it.
    provider = shutil.copy(ort_library, tmp_path / "libonnxruntime_providers_cuda.so")
    command = [sys.executable, "-c", SESSIONS, ort_library, *models]
    environment = os.environ | ({"LD_PRELOAD": str(provider)} if loaded else {})
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=times(60))
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "runs on the CPU" in line]
    assert len(told) == (1 if loaded else 0), done.stderr
    for line in told:
        assert provider.name in line and "CudaPluginExecutionProvider" in line and "ai.ratplus" in line


@pytest.fixture(scope="module")
def newest(ort_library, tmp_path_factory):
    """What the installed onnxruntime computes."""
    directory = write_cases(tmp_path_factory.mktemp("newest") / "cases")
    found, _ = child(ort_library, "run", directory)
    assert len(found["ran"]) == 9, found
    return results(directory)


def assert_same_bytes(library, newest, directory, version):
    write_cases(directory)
    found, _ = child(library, "run", directory, packages=other_version(version))
    assert found["onnxruntime"].startswith(version + ".") and len(found.get("ran", [])) == 9, found
    for case, outputs in results(directory).items():
        assert outputs.keys() == newest[case].keys()
        for name, array in outputs.items():
            assert array.tobytes() == newest[case][name].tobytes(), f"{case}: {name}"


@pytest.mark.parametrize("version", ["1.17", "1.20", "1.24", "1.32"])
def test_older_runtimes_compute_the_same_bytes(ort_library, newest, tmp_path, version):
    assert_same_bytes(ort_library, newest, tmp_path / "cases", version)


@pytest.mark.parametrize("version", ["1.17", "1.20", "1.24", "1.32"])
def test_older_runtimes_choose_by_the_type_of_the_cache(ort_library, tmp_path, version):
    packages = other_version(version)
    newest, older = (write_cache_cases(tmp_path / name) for name in ("newest", "older"))
    for found, _ in (child(ort_library, "run", newest), child(ort_library, "run", older, packages=packages)):
        assert len(found["ran"]) == 6, found
    newest, older = results(newest), results(older)
    for case, outputs in newest.items():
        for name, array in outputs.items():
            assert array.tobytes() == older[case][name].tobytes(), f"{case}: {name}"
    # Every pair of types rounds in a way of its own.
    assert len({b"".join(outputs[name].tobytes() for name in sorted(outputs)) for outputs in newest.values()}) == 6


@pytest.mark.parametrize("version", ["1.20", "1.24", "1.32"])
def test_older_runtimes_run_the_operators_for_cuda(emulated_library, tmp_path, version):
    newest = write_cases(tmp_path / "newest")
    child(emulated_library, "run", newest)
    assert_same_bytes(emulated_library, results(newest), tmp_path / "cases", version)


def test_operators_for_cuda_need_1_18(emulated_library, tmp_path):
    write_case(tmp_path, "scan", NODES["scan"], "f32")
    found, _ = child(emulated_library, "run", tmp_path, packages=other_version("1.17"))
    assert "RecurrenceScan" in found.get("error", ""), found


def test_the_cpu_loads_nothing_of_cuda(ort_library, emulated_library, tmp_path):
    write_case(tmp_path, "scan", NODES["scan"], "f32")
    for library, loaded in [(ort_library, []), (emulated_library, ["libcuda.so.1"])]:
        found, _ = child(library, "run", tmp_path)
        assert found["ran"] == ["scan"]
        # The emulator goes by two names.
        assert [name for name in found["cuda"] if name != "libcuda.so"] == loaded


@pytest.mark.parametrize("version", ["1.17", "1.20", "1.24", "1.32"])
def test_older_runtimes_report_wrong_shapes(ort_library, tmp_path, version):
    packages = other_version(version)
    shapes = {"past_key": (2, 3, 16)}
    write_case(tmp_path, "wrong", NODES["decode"], "f32", ModelOptions(shapes=shapes))
    found, _ = child(ort_library, "run", tmp_path, packages=packages)
    assert "past_value: expected R = 3 as on earlier inputs" in found.get("error", ""), found


def test_a_runtime_too_old_is_refused_with_both_versions(ort_library, tmp_path):
    packages = other_version("1.16")
    write_case(tmp_path, "scan", NODES["scan"], "f32")
    found, _ = child(ort_library, "run", tmp_path, packages=packages)
    error = found.get("error", "")
    assert "this ONNX Runtime is 1.16" in error and "needs 1.17 or later" in error, found


PLACES = ["create", "compute", "task", "infer", "destroy"]


def test_a_panic_in_any_callback_is_an_error_in_an_older_runtime(fault_library, tmp_path):
    """test_operators.py has it in the newest."""
    packages, node = other_version("1.17"), NODES["prefill"]
    for place in PLACES:
        write_case(tmp_path, f"fault_{place}", node, "f32", ModelOptions(attributes={"ratplus_fault": place}))
    write_case(tmp_path, "good", node, "f32")
    found, stderr = child(fault_library, "faults", tmp_path, packages=packages)
    for place in PLACES:
        assert f"injected fault in {place}" in stderr
        # ORT drops what inference returns, and destruction returns nothing.
        if place not in ("infer", "destroy"):
            assert f"panic: injected fault in {place}" in found["messages"][f"fault_{place}"]
    assert found["good"] is True


def test_the_release_library_has_no_faults(ort_library, tmp_path):
    write_case(tmp_path, "calm", NODES["scan"], "f32", ModelOptions(attributes={"ratplus_fault": "compute"}))
    found, _ = child(ort_library, "run", tmp_path)
    assert found.get("ran") == ["calm"], found


def test_loading_and_unloading_costs_no_memory(operators, tmp_path):
    write_case(tmp_path, "case", NODES["prefill"], "f32")
    case = (tmp_path / "case.onnx", tmp_path / "case.npz")
    found, _ = child(operators.library, "cycles", *case, times(1000))
    assert found["growth_kib"] < found["cycles"], f"1 KiB a cycle or more: {found}"


def test_threads_may_end_after_the_library_was_unloaded(operators, tmp_path):
    write_case(tmp_path, "case", NODES["prefill"], "f32")
    found, _ = child(operators.library, "thread_exit", tmp_path / "case.onnx", tmp_path / "case.npz", 20)
    assert found["ended"] == 80, found


def test_threads_share_sessions(ort_library, tmp_path):
    found, _ = child(ort_library, "threads", write_thread_cases(tmp_path / "cases"), 8, times(20_000))
    assert (found["runs"], found["wrong"], found["sessions"]) == (times(160_000), 0, 4), found
    # Jobs of two threads have other results, so that mixing them up shows.
    assert found["distinct"] == 12, found


def test_runs_for_cuda_cost_no_memory(emulated_library, tmp_path):
    write_case(tmp_path, "case", NODES["prefill"], "f32")
    found, _ = child(emulated_library, "soak", tmp_path / "case.onnx", tmp_path / "case.npz", 2_000)
    assert found["growth_kib"] <= 1024, found


@pytest.mark.parametrize("version", [None, "1.17"])
def test_runs_cost_no_memory(ort_library, tmp_path, version):
    packages = other_version(version) if version else None
    write_case(tmp_path, "case", NODES["prefill"], "f32")
    found, _ = child(ort_library, "soak", tmp_path / "case.onnx", tmp_path / "case.npz", 50_000, packages=packages)
    assert found["growth_kib"] <= 1024, found


def test_a_forked_child_can_use_the_library(ort_library, tmp_path):
    write_case(tmp_path, "case", NODES["prefill"], "f32")
    found, _ = child(ort_library, "fork", tmp_path / "case.onnx", tmp_path / "case.npz")
    assert found["child"] == 0, found
