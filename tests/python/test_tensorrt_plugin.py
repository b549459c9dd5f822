"""The TensorRT plugin library: in real registries, through a plugin's whole life, and its numbers on
the emulator."""

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import trt_driver
from conftest import ROOT, tensorrt_headers
from plugin_driver import Replay, garbage, random_plan
from plugin_models import DTYPES, Attention, ModelOptions, Pattern, Scan, attention_reference, build_model, numpy_type, scan_reference
from test_ort_plugin import assert_close, constant, random_attention, random_sequences
from trt_driver import CHW2, DATA_TYPES, DOMAIN, INT32, OPERATORS, Harness, Plugin, PluginSession, parsed_fields

# Library of a registry, and the headers of its generation.
HOSTS = {
    "lean-11.4": ("tensorrt_lean_libs/libnvinfer_lean.so.11", "tensorrt-11.4"),
    "lean-10.16": ("tensorrt_lean_libs/libnvinfer_lean.so.10", "tensorrt-rtx-1.3"),
    "rtx-1.7": ("tensorrt_rtx_libs/libtensorrt_rtx.so.1", "tensorrt-rtx-1.7"),
}
VERSIONS = {"lean-11.4": 110400, "lean-10.16": 101601, "rtx-1.7": 10701}
SEQ_LENS = [1, 5, 16]


def host_library(name):
    path = ROOT / "target" / "tensorrt" / name / HOSTS[name][0]
    if not path.is_file():
        pytest.skip(f"TensorRT {name} is not installed (cargo xtask test installs it where it can)")
    return path


@pytest.fixture(scope="module")
def harnesses(tmp_path_factory):
    """The harness compiled with the headers of this name."""
    made = {}

    def get(name):
        if name not in tensorrt_headers():
            pytest.skip(f"TensorRT's headers {name} are not installed (cargo xtask setup)")
        if name not in made:
            output = tmp_path_factory.mktemp("harness") / f"{name}.so"
            made[name] = trt_driver.compile_harness(tensorrt_headers()[name], output)
        return made[name]

    return get


@pytest.fixture(scope="module")
def harness(harnesses):
    """With a real host's log: of TensorRT for RTX, which takes a logger without a GPU."""
    harness = Harness(harnesses("tensorrt-rtx-1.7"))
    harness.open(host_library("rtx-1.7"))
    return harness


@pytest.fixture(scope="module")
def creators(harness, emulated_trt_library):
    """The creators of the library on the emulator, by name."""
    return harness.creators_of(emulated_trt_library)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("order", ["load,load,unload,load", "dlopen,dlopen,load,unload,load"])
def test_registries_take_the_library(harnesses, trt_library, host, order):
    command = [sys.executable, trt_driver.__file__, "registry", harnesses(HOSTS[host][1]), host_library(host)]
    done = subprocess.run([*map(str, command), str(trt_library), order], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["host"] == VERSIONS[host]
    first = True
    for step in report["steps"]:
        there = {} if step["step"] == "unload" else OPERATORS
        assert sorted(step["creators"]) == sorted(there), step
        for name, (version, fields) in step["creators"].items():
            assert version == "1"
            attention = {"num_heads": 5, "dilation": 5, "local_window": 5, "initial": 5, "scale": 1}
            assert fields == (attention if name == "DilatedAttention" else {})
            assert step["made"][name] == [name, "1", DOMAIN]
        if step["step"] == "load":
            # A registry refuses a library that it has; the first stays.
            assert step["loaded"] == first, step
            first = False
            if step["loaded"]:
                assert "ERROR" not in step["messages"], step
        elif step["step"] == "dlopen":
            assert "ERROR" not in step["messages"], step
        else:
            first = True


def test_the_sources_compile_with_every_release(tmp_path):
    headers = tensorrt_headers()
    if not headers:
        pytest.skip("TensorRT's headers are not installed (cargo xtask setup)")
    assert set(headers) == {name for _, name in HOSTS.values()}
    folder = ROOT / "plugins" / "tensorrt" / "cpp"
    for path in headers.values():
        command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fno-exceptions", "-c", "-o", tmp_path / "x.o"]
        command += ["-DRATPLUS_GENERATION=any", "-isystem", path, "-isystem", path.parent]
        for source in sorted(folder.glob("*.cpp")):
            done = subprocess.run([*map(str, command), str(source)], capture_output=True, text=True)
            assert done.returncode == 0, f"{path.name}\n{done.stderr}"


def test_the_library_exports_three_functions_and_links_no_host(trt_library):
    shown = subprocess.run(["nm", "-D", "--defined-only", trt_library], capture_output=True, text=True, check=True)
    names = {line.split()[2] for line in shown.stdout.splitlines()}
    assert names == {"RatplusTakeDeviceError", "getCreators", "setLoggerFinder"}
    shown = subprocess.run(["readelf", "-d", trt_library], capture_output=True, text=True, check=True)
    needed = [line.split("[")[1].rstrip("]") for line in shown.stdout.splitlines() if "NEEDED" in line]
    assert not [name for name in needed if "cuda" in name or "nvinfer" in name or "tensorrt" in name], needed


def test_a_plugin_has_the_three_capabilities(harness, creators):
    for name, attributes in (("RecurrenceScan", {}), ("DilatedAttention", trt_driver.EXAMPLE)):
        plugin = Plugin.create(harness, creators[name], parsed_fields(attributes))
        kinds = [("PLUGIN_V3ONE_CORE", 1), ("PLUGIN_V3ONE_BUILD", 2), ("PLUGIN_V3ONE_RUNTIME", 1)]
        assert plugin.capabilities() == kinds
        assert plugin.texts() == [name, "1", DOMAIN]
        outputs = harness.lib.output_count(plugin.address)
        aliased = [harness.lib.aliased_input(plugin.address, output) for output in range(-1, outputs + 1)]
        assert aliased == {"RecurrenceScan": [-1, -1, -1, 3, 4, -1], "DilatedAttention": [-1, -1, 3, 4, -1]}[name]
        plugin.destroy()


def node_of(onnx_node, shapes, max_seq_len):
    """An exported node as plugin_models describes it, and its attributes."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in onnx_node.attribute}
    if onnx_node.op_type == "RecurrenceScan":
        return Scan(*shapes[onnx_node.input[0]]), attributes
    (batch, seq_len, channels), heads = shapes[onnx_node.input[0]], attributes["num_heads"]
    lists = [attributes[name] * (heads // len(attributes[name])) for name in ("dilation", "local_window", "initial")]
    patterns = [Pattern(*values) for values in zip(*lists)]
    return Attention(batch, seq_len, channels // heads, max_seq_len, patterns), attributes


def test_nodes_of_an_exported_package_make_plugins(harness, creators, export):
    package = export(case="kjv_d16w64i4", prefill_lengths=(16,), max_seq_len=256)
    manifest = json.loads((package / "manifest.json").read_text())
    made = 0
    for engine in manifest["engines"]:
        model = onnx.load(package / engine["files"]["tensorrt"], load_external_data=False)
        for node in model.graph.node:
            if node.domain != "trt.plugins":
                continue
            width = manifest["model"]["d_model"]
            shapes = {node.input[0]: (manifest["batch"], engine["seq_len"], width)}
            described, attributes = node_of(node, shapes, manifest["max_seq_len"])
            plugin = Plugin.create(harness, creators[node.op_type], parsed_fields(attributes), node.name)
            assert plugin, harness.messages()
            outputs = described.outputs("f32").values()
            code, found = plugin.output_shapes([shape for _, shape in described.inputs("f32").values()], len(outputs))
            assert code == 0, harness.messages()
            assert found == [tuple(shape) for _, shape in outputs]
            if node.op_type == "DilatedAttention":
                layer = len([n for n in model.graph.node if n.op_type == node.op_type and n.name < node.name])
                assert found[1][1] == manifest["cache"][layer]["rows"]
            plugin.destroy()
            made += 1
    assert made == 2 * len(manifest["engines"]) * len(manifest["cache"])


def parse(harnesses, trt_library, model, folder):
    """What TensorRT for RTX's own parser printed about a model of one node, in a process of its own:
    it cannot put public plugins into a network, and ends the process once it has made one."""
    host = host_library("rtx-1.7")
    path = folder / "model.onnx"
    path.write_bytes(model)
    script = "import ctypes, sys; print('read', ctypes.CDLL(sys.argv[1]).parse_model(*(a.encode() for a in sys.argv[2:])))"
    command = [sys.executable, "-c", script, harnesses("tensorrt-rtx-1.7"), host]
    command += [host.with_name("libtensorrt_onnxparser_rtx.so.1"), trt_library, path]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("op", OPERATORS)
def test_a_real_parser_makes_the_plugins_of_our_nodes(harnesses, trt_library, tmp_path, op):
    node, _, _ = example(op)
    _, _, printed = parse(harnesses, trt_library, build_model(node), tmp_path)
    assert f"Found registered plugin: {op}" in printed, printed[-3000:]
    assert f"Successfully created plugin: {op}" in printed, printed[-3000:]


def test_a_real_parser_tells_why_a_node_is_refused(harnesses, trt_library, tmp_path):
    node, _, _ = example("DilatedAttention")
    options = ModelOptions(attributes={"dilation": [1, 2]})
    code, out, printed = parse(harnesses, trt_library, build_model(node, options=options), tmp_path)
    assert (code, out.strip()) == (0, "read 0"), printed[-3000:]
    assert "ERROR: plugin `the_node` (ai.ratplus.DilatedAttention): attribute dilation: expected one" in printed


@pytest.mark.parametrize("t", DTYPES)
def test_packages_for_onnx_runtimes_tensorrt_provider(harnesses, trt_library, export, ratplus_bin, tmp_path, t):
    package = export(case="kjv_d16w64i4", fallback="trt-plugins", dtype=t, prefill_lengths=(16,), max_seq_len=256)
    for path in sorted(package.glob("*.onnx")):
        onnx.checker.check_model(path)
        model = onnx.load(path, load_external_data=False)
        domains = {node.domain for node in model.graph.node}
        assert domains == {"", "trt.plugins"} == {opset.domain for opset in model.opset_import}
        assert not model.functions
        declared = {info.name: info for info in [*model.graph.value_info, *model.graph.output]}
        element = {info.name: info.type.tensor_type.elem_type for info in declared.values()}
        for node in model.graph.node:
            if node.domain == "trt.plugins":
                assert all(declared[name].type.tensor_type.HasField("shape") for name in node.output)
                chunk = DTYPES[t][1]
                assert element[node.output[0]] == chunk
            # Products are in the package's type: their inputs are weights and what has its type.
            if node.op_type == "Gemm" and t != "f32":
                weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
                assert weights[node.input[1]] == DTYPES[t][1], node.name
    # Ours to check, and nobody else's to run.
    run = lambda *words: subprocess.run([ratplus_bin, *words], capture_output=True, text=True)  # noqa: E731
    done = run("verify", package, "--backend", "ort-cpu")
    assert done.returncode == 2 and "TensorRT provider" in done.stderr
    done = run("inspect", package)
    assert done.returncode == 0 and "trt-plugins" in done.stdout, done.stdout


def test_open_dimensions_pass_through_the_shapes(harness, creators):
    node = Attention(2, 5, 8, 20, [Pattern(4, 2, 1)] * 3)
    plugin = Plugin.create(harness, creators["DilatedAttention"], parsed_fields(node.attributes()))
    shapes = [list(shape) for _, shape in node.inputs("f32").values()]
    for shape in shapes[:3]:
        shape[0] = shape[1] = -1
    code, found = plugin.output_shapes(shapes, 3)
    assert code == 0, harness.messages()
    rows = node.rows()
    assert found == [((0, 0), (0, 1), 24), ((0, 0), rows, 8), ((0, 0), rows, 8)]
    plugin.destroy()


def example(op, t="f32"):
    """A node, its fields and its tensors."""
    node = Scan(2, 5, 24) if op == "RecurrenceScan" else Attention(2, 5, 8, 20, [Pattern(4, 2, 1)] * 3)
    return node, list(node.inputs(t).values()), list(node.outputs(t).values())


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("t", DTYPES)
def test_formats_are_linear_and_types_follow_the_schema(harness, creators, op, t):
    node, inputs, outputs = example(op, t)
    plugin = Plugin.create(harness, creators[op], parsed_fields(node.attributes()))
    tensors = [*inputs, *outputs]
    for position, (dtype, shape) in enumerate(tensors):
        taken = {}
        for other in DATA_TYPES:
            changed = [*tensors[:position], (other, shape), *tensors[position + 1 :]]
            taken[other] = plugin.supports(position, changed, len(inputs))
        expected = set(DTYPES) if position == 0 else {dtype}
        assert {other for other, yes in taken.items() if yes} == expected, position
        blocked = [*tensors[:position], (dtype, shape, CHW2), *tensors[position + 1 :]]
        assert not plugin.supports(position, blocked, len(inputs))
        # Wrong numbers of tensors, and positions outside.
        assert not plugin.supports(position, tensors, len(inputs) - 1)
    for position in (-1, len(tensors)):
        assert not plugin.supports(position, tensors, len(inputs))
    plugin.destroy()


def bad_fields():
    good = {"num_heads": 2, "dilation": [4], "local_window": [2], "initial": [1], "scale": 0.5}
    changed = lambda **fields: {name: value for name, value in (good | fields).items() if value is not None}  # noqa: E731
    return {
        "none": ({}, ["num_heads", "dilation", "local_window", "initial", "scale"]),
        "without heads": (changed(num_heads=None), ["attribute num_heads: expected an integer, found none"]),
        "a float for heads": (changed(num_heads=2.0), ["attribute num_heads: expected an integer, found 1 floats"]),
        "text for a scale": (changed(scale="half"), ["attribute scale: expected a float, found text `half`"]),
        "integer for a scale": (changed(scale=1), ["attribute scale: expected a float, found 1 integers"]),
        "no heads": (changed(num_heads=0), ["num_heads", "0"]),
        "many heads": (changed(num_heads=2**30), ["num_heads", str(2**30)]),
        "an empty list": (changed(dilation=[]), ["attribute dilation: expected a list of integers"]),
        "a short list": (changed(dilation=[1, 2, 3]), ["dilation", "3"]),
        "dilation 0": (changed(dilation=[0]), ["dilation", "0"]),
        "a negative window": (changed(local_window=[-1]), ["local_window", "-1"]),
        "scale nan": (changed(scale=float("nan")), ["scale"]),
        "another library": (changed(ratplus_version="9.9.9"), ["ratplus_version", "9.9.9", "built again"]),
    }


@pytest.mark.parametrize("what", bad_fields())
def test_bad_fields_are_one_error(harness, creators, what):
    attributes, parts = bad_fields()[what]
    assert Plugin.create(harness, creators["DilatedAttention"], parsed_fields(attributes), "blocks.3") is None
    messages = harness.messages()
    assert messages.count("ERROR: ") == 1, messages
    for part in ["`blocks.3`", "ai.ratplus.DilatedAttention", *parts]:
        assert part in messages, messages


def test_fields_without_data_are_an_error(harness, creators):
    collection, alive = trt_driver.make_fields(parsed_fields(trt_driver.EXAMPLE))
    alive[0][0].data = None
    made = harness.lib.create_plugin(creators["DilatedAttention"], b"a", ctypes.byref(collection), 0)
    assert made is None and "num_heads" in harness.messages()
    assert harness.lib.create_plugin(creators["DilatedAttention"], None, None, 0) is None
    assert "num_heads" in harness.messages()


def bad_tensors(op):
    """Changes of one input or output each, and what the message names."""
    if op == "RecurrenceScan":
        return [(1, ("f16", None), "value"), (3, (None, (2, 25)), "state_key"), (5, ("i32", None), "past_length"),
                (2, (None, (2, 24)), "gate"), (9, (None, (2, 23)), "new_state_key"), (7, ("bf16", None), "gated_key")]  # fmt: skip
    return [(1, ("bf16", None), "key"), (3, (None, (2, 31, 8)), "R"), (7, (None, (19, 4)), "sin"),
            (6, (None, (3,)), "seq_length"), (9, (None, (2, 5, 25)), "output"), (10, ("f16", None), "present_key")]  # fmt: skip


@pytest.mark.parametrize("op", OPERATORS)
def test_bad_tensors_are_codes_with_a_reason(harness, creators, op):
    node, inputs, outputs = example(op)
    plugin = Plugin.create(harness, creators[op], parsed_fields(node.attributes()), "blocks.7")
    for index, (dtype, shape), name in bad_tensors(op):
        tensors = [*inputs, *outputs]
        old = tensors[index]
        tensors[index] = (dtype or old[0], shape or old[1])
        changed = tensors[: len(inputs)], tensors[len(inputs) :]
        for call in ("configure", "shape_change"):
            assert plugin.call(call, *changed) != 0
            messages = harness.messages()
            assert "`blocks.7`" in messages and name in messages and "expected" in messages, messages
        if index < len(inputs):
            code, _ = plugin.output_types(changed[0], len(outputs))
            shapes_code, _ = plugin.output_shapes([shape for _, shape in changed[0]], len(outputs))
            assert (code != 0) == (dtype is not None) and (shapes_code != 0) == (shape is not None)
            harness.messages()
    for wrong in (len(outputs) - 1, len(outputs) + 1):
        assert plugin.output_types(inputs, wrong)[0] != 0
        assert plugin.output_shapes([shape for _, shape in inputs], wrong)[0] != 0
        assert f"{len(outputs)} outputs" in harness.messages()
    assert plugin.call("configure", inputs[:-1], outputs) != 0
    assert plugin.call("configure", [], []) != 0
    harness.messages()
    # It goes on.
    assert plugin.call("configure", inputs, outputs) == 0, harness.messages()
    plugin.destroy()


def test_a_cache_of_another_type_is_refused_by_name(harness, creators):
    node, inputs, outputs = example("DilatedAttention")
    plugin = Plugin.create(harness, creators["DilatedAttention"], parsed_fields(node.attributes()), "blocks.7")
    other = replace(node, cache="bf16")
    inputs, outputs = list(other.inputs("f32").values()), list(other.outputs("f32").values())
    calls = [lambda: plugin.output_types(inputs, len(outputs))[0]]
    calls += [lambda call=call: plugin.call(call, inputs, outputs) for call in ("configure", "shape_change")]
    for call in calls:
        assert call() != 0
        messages = harness.messages()
        expected = "expected f32, the type of query, found bf16; export with --cache-dtype f32"
        assert "`blocks.7`" in messages and expected in messages, messages
    plugin.destroy()


PLACES = ["create", "clone", "output_types", "check", "supports", "workspace", "prepare", "enqueue", "fields"]


@pytest.mark.parametrize("place", PLACES)
def test_a_panic_in_any_callback_is_a_code(harness, creators, place):
    node, inputs, outputs = example("RecurrenceScan")
    plugin = Plugin.create(harness, creators[node.op], {}, f"fault:{place};")
    if place == "create":
        assert plugin is None
    else:
        tensors = [*inputs, *outputs]
        found = {
            "clone": plugin.clone(),
            "output_types": plugin.output_types(inputs, len(outputs))[0],
            "check": plugin.call("configure", inputs, outputs),
            "supports": plugin.supports(0, tensors, len(inputs)),
            "workspace": plugin.call("workspace_size", inputs, outputs),
            "fields": plugin.stored_fields(),
            "prepare": plugin.call("shape_change", inputs, outputs),
            "enqueue": 0,
        }
        if place == "enqueue":
            arrays = {name: garbage(*spec) for name, spec in (node.inputs("f32") | node.outputs("f32")).items()}
            addresses = (ctypes.c_void_p * len(tensors))(*(array.ctypes.data for array in arrays.values()))
            flat, start = trt_driver.words(tensors), ctypes.sizeof(ctypes.c_void_p) * len(inputs)
            outs = ctypes.c_void_p(ctypes.addressof(addresses) + start)
            args = [plugin.address, trt_driver.pointer(flat), len(inputs), len(outputs), addresses, outs, None, None]
            found["enqueue"] = harness.lib.enqueue(*args)
        bad = {"clone": None, "supports": False, "workspace": 0, "fields": {}}.get(place, -1)
        assert found[place] == bad, found
        if place not in ("prepare", "check"):
            assert found["prepare"] == 0
        plugin.destroy()
    messages = harness.messages()
    assert f"panic: asked for at {place}" in messages, messages


def sessions(harness, creators, nodes, t):
    return {seq_len: PluginSession(harness, creators[node.op], node, t) for seq_len, node in nodes.items()}


@pytest.mark.parametrize("t", DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_the_definition(harness, creators, t, seed):
    rng = np.random.default_rng(seed)
    dtype = numpy_type(t)
    to_type = lambda x: x.astype(dtype).astype(np.float64)  # noqa: E731
    for node in (random_attention(rng), Scan(batch=3, seq_len=1, channels=int(rng.choice([1, 7, 48])))):
        nodes = {seq_len: replace(node, seq_len=seq_len) for seq_len in SEQ_LENS}
        lengths = [50, 1, int(rng.integers(2, 50))]
        sequences = random_sequences(rng, node, t, lengths)
        plan = random_plan(rng, SEQ_LENS, lengths)
        runs = []
        for in_place in (True, False):
            replay = Replay(nodes, t, sessions(harness, creators, nodes, t), in_place)
            runs.append((replay.feed(sequences, plan), replay.state))
            for session in replay.sessions.values():
                session.close()
        # Aliased or not: the same bits.
        for name, arrays in runs[0][0].items():
            assert all(a.tobytes() == b.tobytes() for a, b in zip(arrays, runs[1][0][name])), name
        for name, array in runs[0][1].items():
            assert array.tobytes() == runs[1][1][name].tobytes(), name
        for slot in range(node.batch):
            tokens = [sequences[name][slot].astype(np.float64) for name in node.chunks]
            if isinstance(node, Scan):
                exact = scan_reference(*tokens)
                naive = [to_type(array) for array in exact]
            else:
                exact = [attention_reference(node, *tokens)]
                naive = [to_type(attention_reference(node, *tokens, round_key=to_type, round_operand=to_type))]
            for name, wanted, rounded in zip(node.results, exact, naive):
                assert_close(runs[0][0][name][slot], wanted, rounded, t, f"{name} of slot {slot} of {node}")


def test_a_plan_of_a_smaller_gpu_runs_in_memory_of_its_own(harness, creators):
    """Where TensorRT set aside less than this GPU needs, nothing is written beyond it."""
    node = Attention(1, 1, 64, 4096, [Pattern(1, 0, 0)] * 2)
    inputs, outputs = list(node.inputs("f32").values()), list(node.outputs("f32").values())
    built = Plugin.create(harness, creators[node.op], parsed_fields(node.attributes()))
    needed = built.call("workspace_size", inputs, outputs)
    assert needed > 0
    stored = built.stored_fields()
    (name,) = [name for name in stored if "workspace" in name]
    assert stored[name][1].tolist() == [needed]
    results = []
    for promised in (needed, 0):
        stored[name] = (stored[name][0], np.array([promised], np.int64))
        plugin = Plugin.create(harness, creators[node.op], stored, "layer", trt_driver.RUNTIME)
        assert plugin.call("shape_change", inputs, outputs) == 0, harness.messages()
        session = PluginSession(harness, creators[node.op], node, "f32")
        session.plugin, guard = plugin, np.full(max(promised, 256) + 4096, 77, np.uint8)
        session.workspace = guard
        shapes = {key: shape for key, (t, shape) in node.inputs("f32").items() if t == "f32"}
        rng = np.random.default_rng(5)
        arrays = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
        arrays |= {"past_length": np.array([4000]), "seq_length": np.array([1])} | node.tables()
        made = {key: garbage(*spec) for key, spec in node.outputs("f32").items()}
        code, messages = session.enqueue({key: arrays[key] for key in node.inputs("f32")}, made)
        assert code == 0, messages
        results.append(made["output"].tobytes())
        assert (guard[-3000:] == 77).all()
    assert (guard == 77).all()
    assert results[0] == results[1]


def test_lengths_that_do_not_fit_are_reported_with_layer_and_slot(harness, creators, emulated_trt_library):
    node = Scan(2, 5, 24)
    session = PluginSession(harness, creators[node.op], node, "f32", "blocks.2.scan")
    inputs = {name: np.ones(shape, numpy_type(t)) for name, (t, shape) in node.inputs("f32").items()}
    outputs = {name: garbage(*spec) for name, spec in node.outputs("f32").items()}
    inputs["seq_length"][:] = [2, 6]
    codes = [session.enqueue(inputs, outputs) for _ in range(2)]
    told = [messages for code, messages in codes if code != 0]
    assert told and "blocks.2.scan" in told[0] and "slot 1" in told[0], codes
    take = ctypes.CDLL(str(emulated_trt_library)).RatplusTakeDeviceError
    take.restype, take.argtypes = ctypes.c_size_t, [ctypes.c_char_p, ctypes.c_size_t]
    while take(None, 0):
        pass
    inputs["seq_length"][:] = [2, 5]
    code, messages = session.enqueue(inputs, outputs)
    assert code == 0, messages
    inputs["seq_length"][:] = [-1, 5]
    session.enqueue(inputs, outputs)
    text = ctypes.create_string_buffer(512)
    # The work is done when the call returns here, and so the call itself has told; else this does.
    told = take(text, len(text)) or session.enqueue(inputs, outputs)[0]
    assert told
    while take(None, 0):
        pass
    session.close()


def test_without_a_driver_the_reason_is_logged(harnesses, trt_library):
    """In a process of its own: the library that users get, on a machine without a GPU."""
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has an NVIDIA driver")
    script = """
import sys; sys.path.insert(0, sys.argv[1])
import trt_driver as d
from plugin_models import Scan
h = d.Harness(sys.argv[2]); h.open(sys.argv[3])
node = Scan(2, 5, 24)
plugin = d.Plugin.create(h, h.creators_of(sys.argv[4])[node.op], {}, "blocks.1")
tensors = list(node.inputs("f32").values()), list(node.outputs("f32").values())
assert plugin.call("configure", *tensors) == 0
assert plugin.call("workspace_size", *tensors) == 0
print(h.messages())
assert plugin.call("shape_change", *tensors) != 0
print(h.messages())
"""
    command = [sys.executable, "-c", script, ROOT / "tests" / "python", harnesses("tensorrt-rtx-1.7")]
    command += [host_library("rtx-1.7"), trt_library]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "WARNING: " in done.stdout and "size of the workspace" in done.stdout
    assert "ERROR: " in done.stdout and "`blocks.1`" in done.stdout and "no CUDA driver" in done.stdout


def test_the_check_for_gpus_runs_on_the_emulator(harnesses, emulated_trt_library, tmp_path):
    script = ROOT / "benches" / "gpu" / "trt_plugin_check.py"
    report = tmp_path / "report.json"
    command = [sys.executable, script, harnesses("tensorrt-11.4"), emulated_trt_library, "--tiny", "--json", report]
    command = [str(word) for word in command]
    drivers = (ROOT / "target" / "flavours" / "release" / "build").glob("ratplus-cuda-emulator-*/out/libcuda.so.1")
    newest = max(drivers, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        pytest.skip("the emulator was not built here: RATPLUS_TRT_EMULATED_LIBRARY names a library from elsewhere")
    emulator = os.environ | {"LD_LIBRARY_PATH": str(newest.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=emulator)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert len(found["cases"]) == 9 and all(case["ok"] for case in found["cases"])
    assert [row.get("ok") for row in found["times"]] == [True, None]
    text = script.read_text()
    assert f"F32_TOLERANCE = {constant('F32_LOGIT'):g}".replace("0.0002", "2e-4") in text
    assert f"NAIVE_FACTOR = {constant('NAIVE_ROUNDING_FACTOR'):.1f}" in text
    # It can fail.
    missing = subprocess.run(command[:4], capture_output=True, text=True, timeout=300)
    if not Path("/proc/driver/nvidia").exists():
        assert missing.returncode == 2 and "no CUDA driver" in missing.stderr, missing.stdout + missing.stderr
