"""`ratplus build` with the real TensorRT for RTX, which builds plans on machines without a GPU."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from blake3 import blake3
from golden_maker import make
from conftest import ROOT, Export, golden_case, run_export, sealed

BACKEND = "tensorrt-rtx"
SMALL = {"case": "d16_w20_i4", "prefill_lengths": (7,), "logits": "last"}


@pytest.fixture(scope="session")
def rtx_folder() -> Path:
    """The folder with the libraries of TensorRT for RTX."""
    default = ROOT / "target" / "tensorrt" / "rtx-1.7" / "tensorrt_rtx_libs"
    folder = Path(os.environ.get("RATPLUS_TENSORRT_RTX", default))
    if not (folder / "libtensorrt_rtx.so.1").is_file():
        pytest.skip(f"TensorRT for RTX is not installed in {folder}; `cargo xtask test` installs it")
    return folder


@pytest.fixture
def ratplus(ratplus_bin, rtx_folder):
    """Runs `ratplus` with TensorRT for RTX."""

    def run(*arguments, folder=rtx_folder, code=0) -> subprocess.CompletedProcess:
        command = [str(word) for word in (ratplus_bin, *arguments)]
        environment = os.environ | {"RATPLUS_TENSORRT_RTX": str(folder)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == code, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        if code == 2:
            assert done.stdout == "" and done.stderr.count("error: ") == 1, done.stderr
        return done

    return run


@pytest.fixture
def build(ratplus):
    """Builds the plans of a package; returns the report."""

    def run(package: Path) -> dict:
        return json.loads(ratplus("build", package, "--backend", BACKEND, "--json").stdout)

    return run


@pytest.fixture
def package(export, tmp_path):
    """A copy of an exported package."""

    def copy(**flags) -> Path:
        return Path(shutil.copytree(export(**(SMALL | flags)), tmp_path / "package"))

    return copy


def listing(package: Path) -> dict:
    """Every file with its content's checksum."""
    files = (path for path in sorted(package.rglob("*")) if path.is_file())
    return {str(path.relative_to(package)): blake3(path.read_bytes()).hexdigest() for path in files}


def manifest(package: Path) -> dict:
    return json.loads((package / "manifest.json").read_text())


def check_plans(package: Path, report: dict):
    """The files are those that the manifest and the report name, and nothing else is there."""
    written = manifest(package)
    plans = written["plans"][BACKEND]
    assert plans["weights_blake3"] == written["files"]["weights.bin"]["blake3"]
    assert plans["library"] == report["library"]
    assert plans["compute_capabilities"] == ["8.0", "8.6", "8.9", "12.0+"]
    found = {path.name for path in (package / "plans" / BACKEND).iterdir()}
    assert found == {plan["file"] for plan in plans["plans"]}
    assert [p.name for p in (package / "plans").iterdir()] == [BACKEND]
    for engine, plan, built in zip(written["engines"], plans["plans"], report["plans"], strict=True):
        path = package / "plans" / BACKEND / plan["file"]
        assert plan["engines"] == built["engines"] == [engine["name"]]
        assert built["engine"] == engine["files"]["cuda"]
        assert plan["onnx_blake3"] == written["files"][engine["files"]["cuda"]]["blake3"]
        assert plan["bytes"] == path.stat().st_size == built["bytes"]
        assert plan["blake3"] == blake3(path.read_bytes()).hexdigest()
        assert built["file"] == f"plans/{BACKEND}/{plan['file']}"


@pytest.mark.parametrize("fallback", ["function", "inline"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_every_lowering_and_type_builds(package, build, dtype, fallback):
    directory = package(dtype=dtype, fallback=fallback)
    before = listing(directory)
    report = build(directory)
    check_plans(directory, report)
    nodes = {"function": "function body", "inline": "none: standard operators only"}
    assert report["custom_nodes"] == nodes[fallback]
    kept = {name: sum for name, sum in listing(directory).items() if name in before}
    assert kept.keys() == before.keys()
    assert [name for name in kept if kept[name] != before[name]] == ["manifest.json"]


@pytest.mark.parametrize("fallback", ["function", "inline"])
@pytest.mark.parametrize("case", ["gqa_head_hybrid", "topk_dilated", "topk_mean"])
def test_grouped_heads_and_chosen_blocks_build(package, build, case, fallback):
    directory = package(case=case, dtype="bf16", fallback=fallback)
    check_plans(directory, build(directory))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_integers_stay_integers_in_a_plan(export, build, tmp_path, dtype):
    sizes, weights = {}, 0
    for integers in ("none", "int8", "int4"):
        more = ("--quantize", integers, "--block-size", "128") if integers != "none" else ()
        flags = {"case": "kjv_d16w64i4", "max_seq_len": 256, "prefill_lengths": (16,), "fallback": "inline"}
        directory = shutil.copytree(export(dtype=dtype, more=more, **flags), tmp_path / integers)
        report = build(directory)
        check_plans(directory, report)
        sizes[integers] = report["plans"][0]["bytes"]
        graph = onnx.load(directory / "decode.cuda.onnx", load_external_data=False).graph
        weights = sum(math.prod(t.dims) for t in graph.initializer if t.name.endswith(".integers"))
    print(dtype, weights, sizes)
    assert sizes["int8"] < sizes["none"]
    # Four bits are no eight: a plan may hold constants and kernels besides.
    assert sizes["int8"] - sizes["int4"] > 0.95 * weights / 2


@pytest.mark.parametrize("activation", ["fastgelu", "silu", "relu", "relusquared"])
def test_other_functions_of_a_model_build(ratplus, build, tmp_path, activation):
    pattern = {"dilation": 4, "local_window": 3, "initial": 2}
    config = {
        "model_type": "ratplus", "vocab_size": 31, "d_model": 32, "num_layers": 1, "d_head": 8, "d_ffn": 48,
        "rope_base": 10000.0, "norm_eps": 1e-6, "recurrence": True, "activation": activation, "rope": False,
        "tie_embedding": True, "patterns": [pattern],
    }  # fmt: skip
    make(tmp_path, config, seed=1, batch=1, length=20)
    package = tmp_path / "package"
    flags = ("--dtype", "bf16", "--max-seq-len", 20, "--prefill-lengths", 8)
    ratplus("export", tmp_path / "model.safetensors", "-o", package, "--config", tmp_path / "config.json", *flags)
    check_plans(package, build(package))


def test_a_real_model_builds_and_runs_elsewhere_as_before(package, build, ratplus):
    directory = package(case="kjv_d16w64i4", dtype="bf16", max_seq_len=1024, prefill_lengths=(16,))
    check_plans(directory, build(directory))
    done = ratplus("generate", directory, "--prompt", "In the beginning", "-n", 4)
    assert done.stdout.startswith("In the beginning")


def test_patterns_per_head_build_in_batches(package, build):
    directory = package(case="head_hybrid", batch=2, logits="all")
    check_plans(directory, build(directory))


def test_compute_capabilities_can_be_chosen(package, ratplus):
    directory = package(dtype="f16")
    build = ("build", directory, "--backend", BACKEND, "--compute-capability")
    before = listing(directory)
    done = ratplus(*build, "9.0", code=2)
    assert "it builds nothing for compute capability 9.0" in done.stderr
    assert listing(directory) == before
    ratplus(*build, "8.6,12.0")
    assert manifest(directory)["plans"][BACKEND]["compute_capabilities"] == ["8.6", "12.0"]


def test_plans_keep_their_weights(package, ratplus):
    directory = package()
    before = listing(directory)
    done = ratplus("build", directory, "--backend", BACKEND, "--strip-weights", code=2)
    assert "--strip-weights is for tensorrt only" in done.stderr
    assert listing(directory) == before


def test_a_second_build_and_a_new_export_replace_plans(package, build, ratplus_bin):
    directory = package()
    (directory / "plans" / BACKEND).mkdir(parents=True)
    # What a build that was killed leaves behind.
    leftover = directory / "plans" / BACKEND / ".building-4194305"
    leftover.mkdir()
    (leftover / "decode-0123456789abcdef.plan").write_text("half")
    (directory / "plans" / BACKEND / "decode-0123456789abcdef.plan").write_text("whole")
    check_plans(directory, build(directory))
    check_plans(directory, build(directory))
    run_export(ratplus_bin, Export(**(SMALL | {"dtype": "f16"})), directory)
    assert not (directory / "plans").exists() and "plans" not in manifest(directory)
    check_plans(directory, build(directory))


def test_files_of_others_survive_a_new_export(package, build, ratplus):
    directory = package()
    build(directory)
    (directory / "plans" / "notes.txt").write_text("mine")
    before = listing(directory)
    case = golden_case(SMALL["case"])
    config = case.directory / "config.json"
    done = ratplus("export", case.checkpoint, "-o", directory, "--config", config, code=2)
    assert "plans/notes.txt" in done.stderr
    assert listing(directory) == before


def test_a_killed_build_leaves_the_package(package, build, ratplus_bin, rtx_folder):
    directory = package(dtype="f16")
    before = listing(directory)
    command = [ratplus_bin, "build", directory, "--backend", BACKEND]
    environment = os.environ | {"RATPLUS_TENSORRT_RTX": str(rtx_folder)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        # The first plan is written: the second is being built.
        deadline = time.monotonic() + 120
        while process.poll() is None and not any(directory.rglob("decode-*.plan")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert process.poll() is None, "the build ended before it could be killed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert {name: sum for name, sum in listing(directory).items() if "/" not in name} == before
    check_plans(directory, build(directory))


def test_what_cannot_be_built_is_refused_up_front(package, ratplus, tmp_path, rtx_folder):
    directory = package(fallback="none")
    before = listing(directory)
    done = ratplus("build", directory, "--backend", BACKEND, code=2)
    assert "--fallback function" in done.stderr and "no plugins" in done.stderr
    done = ratplus("build", directory, "--backend", "tensorrt", code=2, folder=rtx_folder)
    assert "RATPLUS_TENSORRT" in done.stderr
    shutil.rmtree(directory)
    directory = package()
    done = ratplus("build", directory, "--backend", BACKEND, code=2, folder=tmp_path / "none")
    assert "none: no libtensorrt_rtx.so.1" in done.stderr and "pip install" in done.stderr
    # The engine's library without the parser's.
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "libtensorrt_rtx.so.1").symlink_to(rtx_folder / "libtensorrt_rtx.so.1")
    done = ratplus("build", directory, "--backend", BACKEND, code=2, folder=alone)
    assert "libtensorrt_onnxparser_rtx.so.1" in done.stderr
    (alone / "libtensorrt_rtx.so.1").unlink()
    (alone / "libtensorrt_rtx.so.1").write_text("not a library")
    done = ratplus("build", directory, "--backend", BACKEND, code=2, folder=alone)
    assert "libtensorrt_rtx.so.1" in done.stderr and "pip install" in done.stderr
    assert listing(directory).keys() == before.keys()
    # A package of links, as in a model hub's cache, is not ours to change.
    hub = tmp_path / "hub"
    hub.mkdir()
    for path in directory.iterdir():
        (hub / path.name).symlink_to(path)
    before = listing(directory)
    done = ratplus("build", hub, "--backend", BACKEND, code=2)
    assert "cp -rL" in done.stderr
    assert listing(directory) == before


def reseal(package: Path, file: str, content: bytes):
    """Replaces a file of the package and its line of the manifest."""
    text = (package / "manifest.json").read_text()
    old = manifest(package)["files"][file]
    (package / file).write_bytes(content)
    line = '"{}": {{\n      "bytes": {},\n      "blake3": "{}"'
    new = line.format(file, len(content), blake3(content).hexdigest())
    assert text.count(line.format(file, old["bytes"], old["blake3"])) == 1
    text = text.replace(line.format(file, old["bytes"], old["blake3"]), new)
    (package / "manifest.json").write_text(sealed(text))


def renamed_operator(package: Path, file: str) -> bytes:
    """The engine with an operator that no TensorRT has."""
    model = onnx.load(package / file, load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "Erf")
    node.op_type = "StringNormalizer"
    return model.SerializeToString()


def test_a_refused_engine_is_told_in_the_parsers_words(package, build, ratplus):
    directory = package(dtype="f16")
    build(directory)
    reseal(directory, "prefill_7.cuda.onnx", renamed_operator(directory, "prefill_7.cuda.onnx"))
    before = listing(directory)
    done = ratplus("build", directory, "--backend", BACKEND, code=2)
    assert "prefill_7.cuda.onnx: TensorRT for RTX" in done.stderr
    assert "(StringNormalizer)" in done.stderr and "node `" in done.stderr
    assert listing(directory) == before


@pytest.fixture
def no_gpu(ratplus):
    findings = json.loads(ratplus("doctor", "--json").stdout)
    found = {finding["name"]: finding["found"] for finding in findings}
    assert found["TensorRT-RTX"] and found["TensorRT code"]
    if found["CUDA driver"]:
        pytest.skip("this machine has a GPU: nothing to refuse")


def test_running_without_a_gpu_is_one_error(package, build, ratplus, no_gpu):
    directory = package(case="kjv_d16w64i4", prefill_lengths=(8,), max_seq_len=64)
    generate = ("generate", directory, "--backend", BACKEND, "--prompt", "And")
    done = ratplus(*generate, code=2)
    assert "NVIDIA's driver" in done.stderr and "it has no plans for tensorrt-rtx; run `ratplus build" in done.stderr
    assert "` with --backend tensorrt-rtx" in done.stderr
    build(directory)
    done = ratplus(*generate, code=2)
    assert "NVIDIA's driver" in done.stderr and "plans" not in done.stderr
    (plan,) = directory.glob("plans/*/decode-*.plan")
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged, word in ((bytes(content), "BLAKE3"), (bytes(content[:-1]), "bytes")):
        plan.write_bytes(damaged)
        for command in (generate, ("verify", directory, "--backend", BACKEND, "--tokens", 8)):
            done = ratplus(*command, code=2)
            assert f"plans/{BACKEND}/{plan.name}: expected" in done.stderr and word in done.stderr
            assert "again" in done.stderr
    reseal(directory, "decode.cuda.onnx", renamed_operator(directory, "decode.cuda.onnx"))
    done = ratplus(*generate, code=2)
    assert "plan of decode.cuda.onnx: built from a file with BLAKE3" in done.stderr


@pytest.mark.parametrize("dtype, logits", [("f32", "last"), ("bf16", "last"), ("f16", "all")])
def test_a_real_builder_takes_the_graph_of_open_sizes(export, harnesses, rtx_folder, tmp_path, dtype, logits):
    """The graph for TensorRT with a profile an engine, something that TensorRT has in the plugins' places."""
    package = Path(shutil.copytree(export(**(SMALL | {"dtype": dtype, "logits": logits, "batch": 2})), tmp_path / "p"))
    file = package / "model.tensorrt.onnx"
    model = onnx.load(file, load_external_data=False)
    nodes, states = list(model.graph.node), {"RecurrenceScan": (0, 1, 3, 4), "DilatedAttention": (0, 3, 4)}
    del model.graph.node[:]
    for node in nodes:
        if node.domain != "trt.plugins":
            model.graph.node.append(node)
            continue
        for given, made in zip(states[node.op_type], node.output):
            model.graph.node.append(onnx.helper.make_node("Identity", [node.input[given]], [made]))
    del model.opset_import[1:]
    file.write_bytes(model.SerializeToString())
    engines = manifest(package)["engines"]
    assert [(engine["batch"], engine["seq_len"]) for engine in engines] == [(1, 1), (2, 1), (1, 7)]
    rows = [[len(t["shape"]), *t["shape"], *[0] * (8 - len(t["shape"]))] for e in engines for t in e["inputs"]]
    script = f"""
import ctypes, sys
import numpy as np
sizes = np.array({rows}, np.int64)
build = ctypes.CDLL(sys.argv[1]).parse_model
build.restype = ctypes.c_int64
words = [word.encode() for word in sys.argv[2:]]
print("plan", build(words[0], words[1], None, words[2], sizes.ctypes.data_as(ctypes.c_void_p), {len(engines)}))
"""
    parser = rtx_folder / "libtensorrt_onnxparser_rtx.so.1"
    command = [sys.executable, "-c", script, harnesses("tensorrt-rtx-1.7"), rtx_folder / "libtensorrt_rtx.so.1", parser, file]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split("plan ")[-1]) > 1000, done.stderr[-3000:]
