"""Quantised packages: the integers are the checkpoint's, their products what their values say, in
every ONNX Runtime that has the operator."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import golden_case
from ort_driver import Package, chunked, padded
from safetensors.numpy import load_file
from test_native_products import F16_LIMIT
from test_ort_plugin_process import other_version

KINDS = [
    ("--quantize", "int4"),
    ("--quantize", "int4", "--asymmetric", "--block-size", "16"),
    ("--quantize", "int8", "--block-size", "64"),
    ("--quantize", "int8", "--asymmetric"),
]
IDS = ["int4", "int4-asymmetric", "int8", "int8-asymmetric"]
CASE = "d16_w20_i4"
LINEAR = ("in_proj", "out_proj", "fc1", "fc2", "lm_head")


def initializers(directory):
    model = onnx.load(directory / "decode.cpu.onnx")
    return model, {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def nibbles(array):
    """The lower half of every byte, then the upper, along the last axis."""
    return np.stack([array & 15, array >> 4], -1).reshape(*array.shape[:-1], -1).astype(np.int64)


def matrix(node, tensors):
    """The f64 matrix of a node, in the layout that ONNX Runtime documents for MatMulNBits."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    rows, columns, size = (attributes[name].i for name in ("out_features", "in_features", "block_size"))
    bits = {b"int4": 4, b"int8": 8}[attributes["weight_type"].s]
    blocks, scales = tensors[node.input[1]], tensors[node.input[3]]
    count = blocks.shape[1]
    assert blocks.shape == (rows, -(-columns // size), size * bits // 8)
    unpack = nibbles if bits == 4 else lambda array: array.astype(np.int64)
    zero = np.full((rows, count), 1 << (bits - 1))
    if node.input[4:] and node.input[4].endswith(".zero_points"):
        zero = unpack(tensors[node.input[4]].reshape(rows, -1))[:, :count]
    values = (unpack(blocks) - zero[:, :, None]) * scales.reshape(rows, count, 1).astype(np.float64)
    return values.reshape(rows, -1)[:, :columns]


def matrices(directory):
    """Every quantised weight of a package by its name."""
    model, tensors = initializers(directory)
    found = {}
    for node in model.graph.node:
        if node.op_type == "Linear" and node.input[1].endswith(".blocks"):
            assert node.domain == "ai.ratplus"
            found[node.input[1].removesuffix(".blocks")] = matrix(node, tensors)
    return found


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_integers_are_the_checkpoints_weights(export_case, tmp_path, kind):
    report = tmp_path / "report.json"
    directory = export_case(CASE, more=(*kind, "--report", report))
    weights = load_file(golden_case(CASE).checkpoint)
    found = matrices(directory)
    assert sorted(found) == sorted(name for name in weights if name.split(".")[-2] in LINEAR)
    reported = {entry["name"]: entry for entry in json.loads(report.read_text())}
    assert reported.keys() == found.keys()
    bits = 4 if "int4" in kind else 8
    for name, values in found.items():
        weight = weights[name].astype(np.float64)
        error = np.sqrt(((values - weight) ** 2).mean() / (weight**2).mean())
        # Uniform steps over twice the largest of 16 to 64 values: some 9 % in 4 bits.
        assert error < (0.11 if bits == 4 else 0.008), name
        assert error == pytest.approx(reported[name]["relative_error"], rel=1e-3)
        assert np.abs(values - weight).max() == pytest.approx(reported[name]["max_error"], rel=1e-3)
        assert reported[name]["shape"] == list(weight.shape)


def test_kept_layers_are_stored_in_f32(export_case):
    directory = export_case(CASE, dtype="bf16", more=("--quantize", "int4", "--keep-f32", "0,head"))
    weights = load_file(golden_case(CASE).checkpoint)
    model, tensors = initializers(directory)
    kept = [name for name in weights if name.startswith(("backbone.layers.0.", "backbone.ln.", "head."))]
    assert len(kept) == 8
    for name in kept:
        np.testing.assert_array_equal(tensors[name], weights[name].astype(np.float32))
    assert set(matrices(directory)).isdisjoint(kept)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert types["embedding.wte.weight"] == types["backbone.layers.1.hidden_layer.ln.weight"] == onnx.TensorProto.BFLOAT16


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_products_are_those_of_the_values(export_case, ort_library, f32_tolerance, kind):
    # The same package with the integers' values in place of the checkpoint's weights, in f32.
    directory = export_case(CASE, more=kind)
    plain = Package(export_case(CASE), ort_library, None)
    tokens = golden_case(CASE).golden()["tokens"]
    quantized = Package(directory, ort_library, None).run(tokens, chunked(tokens.shape[1]))
    before = plain.run(tokens, chunked(tokens.shape[1]))
    restored = Package(with_values(export_case(CASE), directory), ort_library, None)
    expected = restored.run(tokens, chunked(tokens.shape[1]))
    scale = np.abs(expected).max()
    assert np.abs(quantized - expected).max() <= f32_tolerance * scale
    # Which is not because the integers lose nothing.
    assert np.abs(expected - before).max() > 20 * f32_tolerance * scale or "int8" in kind


def with_values(plain, quantized):
    """A copy of a plain package whose weights file holds the integers' values."""
    directory = quantized.parent / f"{quantized.name}-values"
    if directory.exists():
        return directory
    shutil.copytree(plain, directory)
    model = onnx.load(directory / "decode.onnx", load_external_data=False)
    data = bytearray((directory / "weights.bin").read_bytes())
    values = matrices(quantized)
    for tensor in model.graph.initializer:
        if tensor.name in values:
            place = {entry.key: entry.value for entry in tensor.external_data}
            array = values[tensor.name].astype(np.float32).tobytes()
            assert len(array) == int(place["length"])
            data[int(place["offset"]) : int(place["offset"]) + len(array)] = array
    (directory / "weights.bin").write_bytes(data)
    return directory


DECODE = """
import json, sys, numpy as np, onnxruntime as ort
directory, tokens, out = sys.argv[1:]
options = ort.SessionOptions()
options.log_severity_level = 3
tokens = np.load(tokens)
batch = len(tokens)
engines = json.load(open(directory + "/manifest.json"))["engines"]
(engine,) = [e for e in engines if (e["batch"], e["seq_len"]) == (batch, 1)]
session = ort.InferenceSession(directory + "/" + engine["files"]["portable"], options, ["CPUExecutionProvider"])
states = {t["name"]: np.zeros(t["shape"], np.float32) for t in engine["inputs"][3:]}
rows = []
for position in range(tokens.shape[1]):
    feeds = {
        "input_ids": tokens[:, position : position + 1],
        "past_length": np.full(batch, position, np.int64),
        "seq_length": np.ones(batch, np.int64),
    }
    logits, *presents = session.run([t["name"] for t in engine["outputs"]], feeds | states)
    states = dict(zip(states, presents))
    rows.append(logits)
np.save(out, np.concatenate(rows, 1))
print(ort.__version__)
"""


@pytest.mark.parametrize("version", ["1.17", "1.20", "1.24", "1.32"])
@pytest.mark.parametrize("kind", [KINDS[1], KINDS[2]], ids=[IDS[1], IDS[2]])
def test_older_runtimes_have_the_operator(export_case, f32_tolerance, tmp_path, kind, version):
    directory = export_case(CASE, more=kind)
    tokens = golden_case(CASE).golden()["tokens"][:, :40]
    np.save(tmp_path / "tokens.npy", tokens)
    results = []
    for packages in (None, other_version(version)):
        out = tmp_path / "logits.npy"
        environment = os.environ | ({"PYTHONPATH": str(packages)} if packages else {})
        command = [sys.executable, "-c", DECODE, directory, tmp_path / "tokens.npy", out]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
        results.append((done.stdout.strip(), np.load(out)))
    (newest, expected), (older, found) = results
    assert older.startswith(version + ".") and newest == ort.__version__ != older
    assert expected.shape == found.shape == (*tokens.shape, 97)
    assert np.abs(found - expected).max() <= f32_tolerance * np.abs(expected).max()


# For runtimes without the product: `DequantizeLinear`, as TensorRT takes it.
SIGNED = [("--quantize", "int4"), ("--quantize", "int8", "--block-size", "64")]


@pytest.mark.parametrize("kind", SIGNED, ids=["int4", "int8"])
@pytest.mark.parametrize("fallback", ["inline", "trt-plugins"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_integers_for_tensorrt_are_the_checkpoints_weights(export_case, fallback, dtype, kind):
    weights = load_file(golden_case(CASE).checkpoint)
    directory = export_case(CASE, dtype=dtype, fallback=fallback, more=kind)
    (decode,) = [e for e in json.loads((directory / "manifest.json").read_text())["engines"] if e["name"] == "decode"]
    file = decode["files"]["cuda" if fallback == "inline" else "tensorrt"]
    model = onnx.load(directory / file)
    onnx.checker.check_model(str(directory / file), full_check=True)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    array = lambda name: onnx.numpy_helper.to_array(tensors[name]).astype(np.float64)  # noqa: E731
    assert tensors["head.lm_head.weight.integers"].data_type == getattr(onnx.TensorProto, kind[1].upper())
    scales = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    (opset,) = [entry.version for entry in model.opset_import if entry.domain == ""]
    assert opset == 21
    found = {}
    for node in model.graph.node:
        assert node.domain != "com.microsoft"
        if node.op_type == "DequantizeLinear":
            attributes = {attribute.name: attribute.i for attribute in node.attribute}
            assert attributes["axis"] == 1 and len(node.input) == 2
            scale = array(scales.get(node.input[1], node.input[1]))
            assert (scale > 0).all()  # TensorRT takes no others
            found[node.input[0].removesuffix(".integers")] = array(node.input[0]) * scale.repeat(attributes["block_size"], 1)
    assert sorted(found) == sorted(name for name in weights if name.split(".")[-2] in LINEAR)
    for name, values in found.items():
        weight = weights[name].astype(np.float64)
        error = np.sqrt(((values - weight) ** 2).mean() / (weight**2).mean())
        assert error < (0.11 if "int4" in kind else 0.008), name


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("kind", SIGNED, ids=["int4", "int8"])
def test_graphs_for_tensorrt_for_rtx_compute_that_model(export_case, f32_tolerance, dtype, kind):
    # The CPU provider has no bf16 products.
    tokens = golden_case(CASE).golden()["tokens"]
    plan = padded(tokens.shape[1], 64)
    # `verify` holds the portable graph in f32 to the reference.
    expected = Package(export_case(CASE, fallback="inline", more=kind), None, target="portable").run(tokens, plan)
    package = export_case(CASE, dtype=dtype, fallback="inline", more=kind)
    found = Package(package, None, target="cuda").run(tokens, plan)
    limit = f32_tolerance if dtype == "f32" else F16_LIMIT
    assert np.abs(found - expected).max() <= limit * np.abs(expected).max()


@pytest.mark.parametrize("flags, words", [
    (("--quantize", "int4", "--asymmetric"), "--asymmetric: expected symmetric blocks"),
    (("--quantize", "int4", "--block-size", "256"), "--block-size: with --fallback inline expected one that divides"),
])  # fmt: skip
def test_what_tensorrt_does_not_take_is_refused(ratplus, tmp_path, flags, words):
    case = golden_case(CASE)
    words_of = ("export", case.checkpoint, "-o", tmp_path / "package", "--config", case.directory / "config.json")
    done = ratplus(*words_of, "--fallback", "inline", *flags, code=2)
    assert words in done.stderr and not (tmp_path / "package").exists()
