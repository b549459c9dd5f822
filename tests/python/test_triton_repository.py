"""The model repositories that `ratplus triton` writes, for our backend and for Triton's own."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from conftest import ROOT, golden_case
from test_plan_backends import KINDS, add_plans
from triton_server import GREEDY, Client, Server, backends, package, repository, server, tritonserver

__all__ = ["backends", "package", "repository", "server"]


@pytest.fixture(scope="module")
def parsed():
    """Reads a model's configuration by Triton's own protobuf messages."""
    with Client("none") as client:
        yield lambda model: client.ask(parse=str(model / "config.pbtxt"))


def test_configurations_are_what_triton_reads(repository, parsed):
    for name, decoupled in [("kjv", True), ("kjv_unary", False)]:
        config = parsed(repository / name)
        assert (config["name"], config["backend"]) == (name, "ratplus")
        assert config["model_transaction_policy"].get("decoupled", False) is decoupled
        assert all(tensor["optional"] for tensor in config["input"])


def test_parameters_of_the_engine_are_written(ratplus, package, parsed, tmp_path):
    def parameters(*words):
        ratplus("triton", package, "-o", tmp_path, "--model-name", f"m{len(list(tmp_path.iterdir()))}", *words)
        newest = max(tmp_path.iterdir(), key=lambda model: (model.stat().st_ctime_ns, not model.name.endswith("unary")))
        written = parsed(newest)["parameters"]
        return {name: value["string_value"] for name, value in written.items() if name != "package"}

    as_it_is = {"backend": "ort-cpu", "decode_steps_per_chunk": "1", "prefix_cache_bytes": "1000000000"}
    assert parameters() == as_it_is
    words = ["--threads", 3, "--prefix-cache", "64MiB", "--prefill-chunk", 16, "--decode-steps-per-chunk", 2]
    more = {"threads": "3", "prefix_cache_bytes": str(64 << 20), "prefill_chunk": "16", "decode_steps_per_chunk": "2"}
    assert parameters(*words) == as_it_is | more
    more = {"backend": "ort-cuda", "no_cuda_graph": "true"}
    assert parameters("--backend", "ort-cuda", "--no-cuda-graph") == as_it_is | more


def test_a_configuration_of_the_stock_backend_is_its_graphs(ratplus, package, ort_library, parsed, tmp_path):
    # The graph's own tensors, every state with its successor.
    manifest = json.loads((package / "manifest.json").read_text())
    for backend, length in [("ort-cpu", 1), ("ort-fallback", 64)]:
        words = ["--triton-backend", "onnxruntime", "--backend", backend, "--length", length]
        ratplus("triton", package, "-o", tmp_path, "--model-name", backend, *words)
        config = parsed(tmp_path / backend)
        model = onnx.load(tmp_path / backend / "1" / config["default_model_filename"], load_external_data=False)
        sizes = {
            value.name: [str(size.dim_value) for size in value.type.tensor_type.shape.dim]
            for value in [*model.graph.input, *model.graph.output]
        }
        states = config["sequence_batching"]["state"]
        declared = {tensor["name"]: tensor["dims"] for tensor in config["input"] + config["output"]}
        for state in states:
            declared[state["input_name"]] = declared[state["output_name"]] = state["dims"]
            assert state["output_name"] == state["input_name"].replace("past_key_values", "present")
        assert declared == sizes
        # Triton pairs them by this order.
        assert len(states) == 4 * manifest["model"]["num_layers"]
        pasts, presents = ([state[key] for state in states] for key in ("input_name", "output_name"))
        assert [name.replace("past_key_values", "present") for name in sorted(pasts)] == sorted(presents)
        library = config.get("model_operations", {}).get("op_library_filename", [])
        assert library == [str(ort_library)] * (backend == "ort-cpu")
        onnx.load(tmp_path / backend / "1" / config["default_model_filename"])


def test_a_configuration_of_the_stock_backend_is_its_plans(ratplus, export, parsed, tmp_path):
    package = tmp_path / "package"
    shutil.copytree(export(case="kjv_d16w64i4", batch=1, prefill_lengths=(16,), max_seq_len=64), package)
    (kind,) = (kind for kind in KINDS if kind.backend == "tensorrt")
    add_plans(package, kind, library="11.4.0.1")
    manifest = json.loads((package / "manifest.json").read_text())
    (plan,) = manifest["plans"]["tensorrt"]["plans"]
    done = ratplus("triton", package, "-o", tmp_path / "models", "--triton-backend", "tensorrt", "--max-sequences", 3)
    assert "--backend-config=tensorrt,plugins=FOLDER/libratplus_trt.so" in done.stdout
    model = tmp_path / "models" / "package"
    assert (model / "1" / "model.plan").read_bytes() == (package / "plans" / "tensorrt" / plan["file"]).read_bytes()
    config = parsed(model)
    # A profile an engine; chunks of every length.
    profiles = [str(index) for index in range(len(plan["engines"]))]
    assert [(group["kind"], group["profile"]) for group in config["instance_group"]] == [("KIND_GPU", profiles)]
    assert config["sequence_batching"]["oldest"]["max_candidate_sequences"] == 3
    states = config["sequence_batching"]["state"]
    assert [state["output_name"] for state in states] == [
        state["input_name"].replace("past_key_values", "present") for state in states
    ]
    types = {"f32": "TYPE_FP32", "i64": "TYPE_INT64"}
    declared = {tensor["name"]: tensor for tensor in config["input"] + config["output"]}
    for state in states:
        declared[state["input_name"]] = declared[state["output_name"]] = state
    for engine in manifest["engines"]:
        tensors = engine["inputs"] + engine["outputs"]
        assert {tensor["name"] for tensor in tensors} == set(declared)
        for tensor in tensors:
            found = declared[tensor["name"]]
            opened = zip(found["dims"], tensor["shape"], strict=True)
            assert all(dim in ("-1", str(size)) for dim, size in opened), tensor["name"]
            assert found["data_type"] == types[tensor["dtype"]]
    assert declared["input_ids"]["dims"] == ["1", "-1"]
    # Our own backend runs them as well.
    ratplus("triton", package, "-o", tmp_path / "ours", "--backend", "tensorrt", "--no-cuda-graph")
    assert (tmp_path / "ours" / "package" / "1" / "plans" / "tensorrt" / plan["file"]).is_file()


@pytest.fixture(scope="module")
def stock_backends(tmp_path_factory):
    """A backend directory with triton_onnxruntime.cpp for Triton's own backend."""
    tritonserver()
    headers = ROOT / "target" / "ort-headers"
    if not (headers / "onnxruntime_cxx_api.h").is_file():
        pytest.skip(f"ONNX Runtime's headers are not in {headers.relative_to(ROOT)} (cargo xtask test)")
    folder = tmp_path_factory.mktemp("stock") / "backends"
    backend = folder / "onnxruntime"
    backend.mkdir(parents=True)
    # What the linker and the loader look for.
    runtime = backend / "libonnxruntime.so.1"
    (library,) = (Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*")
    runtime.symlink_to(library)
    words = [os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    words += ["-isystem", headers, ROOT / "tests" / "python" / "triton_onnxruntime.cpp", runtime, "-Wl,-rpath,$ORIGIN"]
    subprocess.run([str(word) for word in [*words, "-o", backend / "libtriton_onnxruntime.so"]], check=True)
    return folder


def renamed(model, copy):
    """Copies a model under another name, with the first state's successor where it is the last by name."""
    shutil.copytree(model, copy)
    config = (copy / "config.pbtxt").read_text()
    (file,) = re.findall(r'default_model_filename: "(.*)"', config)
    first = min(re.findall(r'output_name: "(.*?)"', config))
    (copy / "config.pbtxt").write_text(config.replace(f'"{first}"', '"z"').replace(f'"{model.name}"', f'"{copy.name}"'))
    graph = onnx.load(copy / "1" / file, load_external_data=False)
    for output in graph.graph.output:
        output.name = "z" if output.name == first else output.name
    for node in graph.graph.node:
        node.output[:] = ["z" if name == first else name for name in node.output]
    onnx.save(graph, copy / "1" / file)


def test_states_that_triton_keeps_give_the_tokens_of_generate(ratplus, package, server, stock_backends, tmp_path):
    models = {"ort-cpu": 1, "ort-fallback": 64}
    for backend, length in models.items():
        words = ["--triton-backend", "onnxruntime", "--backend", backend, "--length", length]
        ratplus("triton", package, "-o", tmp_path / "models", "--model-name", backend, *words)
    renamed(tmp_path / "models" / "ort-cpu", tmp_path / "models" / "renamed")
    ids = golden_case("kjv_d16w64i4").golden()["tokens"][0].tolist()
    # Longer than a chunk, and than the local window.
    prompts, count = [ids[:90], ids[100:130]], 12

    def generated(prompt):
        inputs = dict(input_ids=["INT32", [len(prompt)], prompt], sampling_parameters=GREEDY % count)
        return server.client.ask(model="kjv_unary", inputs=inputs)["outputs"]["output_ids"]

    def kept(stock, model, length):
        """The likeliest tokens after prompts, whose sequences take turns; or what is wrong."""
        sequences = [list(prompt) for prompt in prompts]
        past = [0] * len(prompts)
        while any(len(sequence) < len(prompt) + count for sequence, prompt in zip(sequences, prompts)):
            for number, sequence in enumerate(sequences):
                if len(sequence) == len(prompts[number]) + count:
                    continue
                chunk = sequence[past[number] : past[number] + length]
                inputs = {
                    "input_ids": ["INT64", [1, length], chunk + [0] * (length - len(chunk))],
                    "past_length": ["INT64", [1], [past[number]]],
                    "seq_length": ["INT64", [1], [len(chunk)]],
                }
                place = dict(sequence_id=number + 1, sequence_start=past[number] == 0)
                answer = stock.client.ask(model=model, inputs=inputs, sequence=place)
                if "error" in answer:
                    return answer["error"]
                past[number] += len(chunk)
                if past[number] == len(sequence):
                    logits = answer["outputs"]["logits"]
                    sequence.append(logits.index(max(logits)))
        return [sequence[-count:] for sequence in sequences]

    expected = [generated(prompt) for prompt in prompts]
    with Server(tmp_path / "models", stock_backends, tmp_path / "log", *models, "renamed") as stock:
        for model, length in models.items():
            assert kept(stock, model, length) == expected, model
        # Triton pairs states by the order of their names, whatever pairs the configuration has: these have other shapes.
        assert kept(stock, "renamed", 1) != expected
        assert stock.end() == 0, stock.log.read_text()


def test_repositories_are_refused_before_anything_is_written(ratplus, package, repository, tmp_path):
    done = ratplus("triton", package, "-o", repository, code=2)
    assert "expected no such models, found kjv, kjv_unary" in done.stderr
    stock = ["--triton-backend", "onnxruntime"]
    for words, said in [
        (["--model-name", "a b"], '--model-name: expected letters, digits, `.`, `-` and `_`, found "a b"'),
        (["--triton-backend", "tensorrt"], "plans: expected one for tensorrt, found none"),
        ([*stock, "--length", 5], "--length: expected one of the package's lengths"),
        ([*stock, "--backend", "tract"], "--backend: expected ort-cpu, ort-cuda"),
        (["--prefill-chunk", 5], "--prefill-chunk: expected one of"),
        (["--threads", 0], "--threads: expected 1 to"),
        (["--backend", "gpu"], "gpu"),
        (["--backend", "tensorrt"], "backend `tensorrt`: it has no plans for tensorrt; run `ratplus build"),
    ]:
        done = ratplus("triton", package, "-o", tmp_path / "none", *words, code=2)
        assert said in done.stderr, done.stderr
        assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "words, idle",
    [
        (["--no-cuda-graph"], "--no-cuda-graph"),
        (["--length", 1, "--max-sequences", 16], "--length, --max-sequences"),
        (["--backend", "ort-fallback", "--custom-ops", "x"], "--custom-ops"),
        (
            ["--backend", "tract", "--threads", 1, "--onnxruntime", "x", "--custom-ops", "x"],
            "--threads, --onnxruntime, --custom-ops",
        ),
        (
            ["--triton-backend", "onnxruntime", "--max-queued-requests", 256, "--prefix-cache", "1GB", "--threads", 1],
            "--max-queued-requests, --prefix-cache, --threads",
        ),
        (["--triton-backend", "onnxruntime", "--backend", "ort-cuda", "--no-cuda-graph"], "--no-cuda-graph"),
        (["--triton-backend", "tensorrt", "--backend", "ort-cpu", "--length", 1], "--backend, --length"),
        (
            ["--triton-backend", "tensorrt", "--prefill-chunk", 16, "--decode-steps-per-chunk", 1, "--custom-ops", "x"],
            "--prefill-chunk, --decode-steps-per-chunk, --custom-ops",
        ),
    ],
)
def test_flags_without_effect_are_refused_by_name(ratplus, package, tmp_path, words, idle):
    done = ratplus("triton", package, "-o", tmp_path / "none", *words, code=2)
    assert done.stderr.startswith(f"error: {idle}: without effect for this package with --triton-backend"), done.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "fallback, words, said",
    [
        ("trt-plugins", [], "backend `ort-cpu`: the package is for TensorRT"),
        ("trt-plugins", ["--triton-backend", "onnxruntime"], "backend `ort-cpu`: the package is for TensorRT"),
        ("none", ["--backend", "ort-fallback"], "bare custom nodes and no functions"),
        ("none", ["--triton-backend", "onnxruntime", "--backend", "ort-fallback"], "bare custom nodes and no functions"),
        ("inline", ["--backend", "ort-cuda"], "no nodes for the CUDA kernels"),
        ("inline", ["--custom-ops", "x"], "--custom-ops: without effect for this package"),
    ],
)
def test_packages_that_the_backend_cannot_run_are_refused(ratplus, tmp_path, fallback, words, said):
    case = golden_case("kjv_d16w64i4").directory
    folder = tmp_path / "package"
    files = ["--config", case / "config.json", "--fallback", fallback, "--no-check"]
    ratplus("export", case / "model.pth", "-o", folder, *files, "--max-seq-len", 64, "--prefill-lengths", 16)
    done = ratplus("triton", folder, "-o", tmp_path / "none", *words, code=2)
    assert said in done.stderr, done.stderr
    assert not (tmp_path / "none").exists()
