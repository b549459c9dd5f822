"""The TensorRT plugin library: in real registries, through a plugin's whole life, what it refuses. Its
numbers are test_operators.py's."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import trt_driver
from conftest import ROOT, TENSORRT, constant, tensorrt_headers, tensorrt_library
from onnx import helper
from operator_tool import schemas
from operators import GPU_DESCRIPTIONS as DESCRIPTIONS
from operators.block_top_k_attention import BlockTopKAttention
from operators.dilated_attention import DilatedAttention, Pattern
from operators.recurrence_scan import RecurrenceScan
from plugin_driver import garbage_outputs, random_inputs
from plugin_models import DTYPES, ModelOptions, build_model
from trt_driver import CHAR, CHW2, DATA_TYPES, DOMAIN, FLOAT32, INT32, Plugin, PluginSession, parsed_fields

FIELD_TYPES = {"int": INT32, "ints": INT32, "float": FLOAT32, "string": CHAR}
every_operator = pytest.mark.parametrize("op", DESCRIPTIONS)


@pytest.mark.parametrize("host", TENSORRT)
@pytest.mark.parametrize("order", ["load,load,unload,load", "dlopen,dlopen,load,unload,load"])
def test_registries_take_the_library(harnesses, trt_library, host, order):
    attributes = json.dumps({op: description.example().attributes() for op, description in DESCRIPTIONS.items()})
    command = [sys.executable, trt_driver.__file__, "registry", harnesses(TENSORRT[host].headers), tensorrt_library(host)]
    command = [*map(str, command), str(trt_library), order, attributes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["host"] == TENSORRT[host].version
    first = True
    for step in report["steps"]:
        there = {} if step["step"] == "unload" else DESCRIPTIONS
        assert sorted(step["creators"]) == sorted(there), step
        for name, (version, fields) in step["creators"].items():
            assert version == "1"
            attributes = schemas()[name]["attributes"]
            assert fields == {attribute["name"]: FIELD_TYPES[attribute["kind"]] for attribute in attributes}
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
    assert set(headers) == {release.headers for release in TENSORRT.values()}
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
    assert names == {"RatplusDescribe", "RatplusTakeDeviceError", "getCreators", "setLoggerFinder"}
    shown = subprocess.run(["readelf", "-d", trt_library], capture_output=True, text=True, check=True)
    needed = [line.split("[")[1].rstrip("]") for line in shown.stdout.splitlines() if "NEEDED" in line]
    assert not [name for name in needed if "cuda" in name or "nvinfer" in name or "tensorrt" in name], needed


@every_operator
def test_a_plugin_has_the_three_capabilities(harness, creators, op):
    node, _, made = example(op)
    plugin = Plugin.create(harness, creators[op], parsed_fields(node.attributes()))
    kinds = [("PLUGIN_V3ONE_CORE", 1), ("PLUGIN_V3ONE_BUILD", 2), ("PLUGIN_V3ONE_RUNTIME", 1)]
    assert plugin.capabilities() == kinds
    assert plugin.texts() == [op, "1", DOMAIN]
    assert harness.lib.output_count(plugin.address) == len(made)
    aliased = [harness.lib.aliased_input(plugin.address, output) for output in range(-1, len(made) + 1)]
    olds, inputs = {new: old for old, new in node.states.items()}, list(node.inputs("f32"))
    places = [inputs.index(olds[name]) if name in olds else -1 for name in node.outputs("f32")]
    assert aliased == [-1, *places, -1]
    plugin.destroy()


def node_of(onnx_node, shapes, max_seq_len):
    """An exported node as operators/ describes it, and its attributes."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in onnx_node.attribute}
    if onnx_node.op_type == "RecurrenceScan":
        return RecurrenceScan(*shapes[onnx_node.input[1]]), attributes
    (batch, seq_len, channels), heads = shapes[onnx_node.input[0]], attributes["num_heads"]
    kv_heads = attributes.get("num_kv_heads", heads)
    sizes, group = (batch, seq_len, channels // heads, max_seq_len), heads // kv_heads
    if onnx_node.op_type == "BlockTopKAttention":
        beside = Pattern(*(attributes[name] for name in ("dilation", "local_window", "initial")))
        blocks = (attributes["block_size"], attributes["top_k"], attributes["score"].decode())
        return BlockTopKAttention(*sizes, kv_heads, *blocks, beside, group=group), attributes
    lists = [attributes[name] * (kv_heads // len(attributes[name])) for name in ("dilation", "local_window", "initial")]
    patterns = [Pattern(*values) for values in zip(*lists)]
    return DilatedAttention(*sizes, patterns, group=group), attributes


@pytest.mark.parametrize("case", ["kjv_d16w64i4", "gqa_head_hybrid", "topk_dilated"])
def test_nodes_of_an_exported_package_make_plugins(harness, creators, export, case):
    package = export(case=case, prefill_lengths=(16,), max_seq_len=256)
    manifest = json.loads((package / "manifest.json").read_text())
    width, d_head = (manifest["model"][name] for name in ("d_model", "d_head"))
    kv_width = (manifest["model"].get("num_kv_heads") or width // d_head) * d_head
    made = []
    for engine in manifest["engines"]:
        model = onnx.load(package / engine["files"]["tensorrt"], load_external_data=False)
        for node in model.graph.node:
            if node.domain != "trt.plugins":
                continue
            tokens = (manifest["batch"], engine["seq_len"])
            shapes = {node.input[0]: (*tokens, width), node.input[1]: (*tokens, kv_width)}
            described, attributes = node_of(node, shapes, manifest["max_seq_len"])
            plugin = Plugin.create(harness, creators[node.op_type], parsed_fields(attributes), node.name)
            assert plugin, harness.messages()
            outputs = described.outputs("f32").values()
            code, found = plugin.output_shapes([shape for _, shape in described.inputs("f32").values()], len(outputs))
            assert code == 0, harness.messages()
            assert found == [tuple(shape) for _, shape in outputs]
            if node.op_type != "RecurrenceScan":
                layer = len([op for op in made if op != "RecurrenceScan"]) % len(manifest["cache"])
                assert found[1][1] == manifest["cache"][layer]["rows"]
            plugin.destroy()
            made.append(node.op_type)
    assert len(made) == 2 * len(manifest["engines"]) * len(manifest["cache"])
    assert ("BlockTopKAttention" in made) == case.startswith("topk")


def parse(harnesses, trt_library, model, folder):
    """What TensorRT for RTX's own parser printed about a model of one node, in a process of its own:
    it cannot put public plugins into a network, and ends the process once it has made one."""
    host = tensorrt_library("rtx-1.7")
    path = folder / "model.onnx"
    path.write_bytes(model)
    script = "import ctypes, sys; parse = ctypes.CDLL(sys.argv[1]).parse_model; parse.restype = ctypes.c_int64\n"
    script += "print('read', parse(*(a.encode() for a in sys.argv[2:]), None, 0))"
    command = [sys.executable, "-c", script, harnesses(TENSORRT["rtx-1.7"].headers), host]
    command += [host.with_name("libtensorrt_onnxparser_rtx.so.1"), trt_library, path]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


@every_operator
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


@every_operator
def test_open_dimensions_pass_through_the_shapes(harness, creators, op):
    """Of the inputs with a row a token, batch and length: outputs have the first one's."""
    node, inputs, outputs = example(op)
    plugin = Plugin.create(harness, creators[op], parsed_fields(node.attributes()))
    shapes = [list(shape) for _, shape in inputs]
    for name, shape in zip(node.inputs("f32"), shapes):
        if name in node.chunks:
            shape[0] = shape[1] = -1
    code, found = plugin.output_shapes(shapes, len(outputs))
    assert code == 0, harness.messages()
    opened = {"B": (0, 0), "L": (0, 1)}
    ports = schemas()[op]["outputs"]
    assert found == [tuple(opened.get(axis, node.dims()[axis]) for axis in port["axes"]) for port in ports]
    plugin.destroy()


def example(op, t="f32"):
    """A node, its fields and its tensors."""
    node = DESCRIPTIONS[op].example()
    return node, list(node.inputs(t).values()), list(node.outputs(t).values())


@every_operator
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
    """Beside what test_operators.py refuses: fields that no node has, and what only this library writes."""
    good = DilatedAttention.example().attributes()
    return {
        "a float for heads": (good | {"num_heads": 2.0}, ["num_heads: expected an integer, found 1 floats"]),
        "text for a scale": (good | {"scale": "half"}, ["scale: expected a float, found text `half`"]),
        "an empty list": (good | {"dilation": []}, ["dilation: expected a list of integers"]),
        "another library": (good | {"ratplus_format": "9"}, ["ratplus_format", "9", "built again"]),
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
    collection, alive = trt_driver.make_fields(parsed_fields(DilatedAttention.example().attributes()))
    alive[0][0].data = None
    made = harness.lib.create_plugin(creators["DilatedAttention"], b"a", ctypes.byref(collection), 0)
    assert made is None and "num_heads" in harness.messages()
    assert harness.lib.create_plugin(creators["DilatedAttention"], None, None, 0) is None
    assert "num_heads" in harness.messages()


def bad_tensors(node):
    """(index, type, shape, what the message names): every tensor with another type; outputs and inputs
    whose axes others have too with another shape."""
    ports = schemas()[node.op]["inputs"] + schemas()[node.op]["outputs"]
    variables = [port["dtype"] for port in ports]
    tensors = [*node.inputs("f32").items(), *node.outputs("f32").items()]
    for index, (name, (dtype, shape)) in enumerate(tensors):
        # The first of a type variable is what the next one is measured by.
        decides = variables[index] in ("T", "C") and variables.index(variables[index]) == index
        yield index, "i32" if dtype == "i64" else "bf16", None, None if decides else name
        if index >= len(node.inputs("f32")):
            yield index, None, (*shape[:-1], shape[-1] + 1), name
        else:
            for place, axis in enumerate(ports[index]["axes"]):
                if sum(axis in port["axes"] for port in schemas()[node.op]["inputs"]) > 1:
                    yield index, None, (*shape[:place], shape[place] + 1, *shape[place + 1 :]), f"expected {axis} = "


@every_operator
def test_bad_tensors_are_codes_with_a_reason(harness, creators, op):
    node, inputs, outputs = example(op)
    plugin = Plugin.create(harness, creators[op], parsed_fields(node.attributes()), "blocks.7")
    for index, dtype, shape, named in bad_tensors(node):
        tensors = [*inputs, *outputs]
        old = tensors[index]
        tensors[index] = (dtype or old[0], shape or old[1])
        changed = tensors[: len(inputs)], tensors[len(inputs) :]
        for call in ("configure", "shape_change"):
            assert plugin.call(call, *changed) != 0
            messages = harness.messages()
            assert "`blocks.7`" in messages and (named or "") in messages and "expected" in messages, messages
        if index < len(inputs):
            code, _ = plugin.output_types(changed[0], len(outputs))
            shapes_code, _ = plugin.output_shapes([shape for _, shape in changed[0]], len(outputs))
            # With one port of the type alone, another type is as good.
            alone = index == 0 and [port["dtype"] for port in schemas()[op]["inputs"]].count("T") == 1
            assert (code != 0) == (dtype is not None and not alone) and (shapes_code != 0) == (shape is not None)
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


def test_a_cache_of_another_type_is_refused_by_every_call(harness, creators):
    node = DilatedAttention.example()
    plugin = Plugin.create(harness, creators[node.op], parsed_fields(node.attributes()), "blocks.7")
    node.cache = "bf16"
    inputs, outputs = list(node.inputs("f32").values()), list(node.outputs("f32").values())
    calls = [lambda: plugin.output_types(inputs, len(outputs))[0]]
    calls += [lambda call=call: plugin.call(call, inputs, outputs) for call in ("configure", "shape_change")]
    for call in calls:
        assert call() != 0
        messages = harness.messages()
        expected = "expected f32, the type of query, found bf16; export with `cache_dtype: f32`"
        assert "`blocks.7`" in messages and expected in messages, messages
    plugin.destroy()


PLACES = ["create", "clone", "output_types", "check", "supports", "workspace", "prepare", "enqueue", "fields"]


@every_operator
@pytest.mark.parametrize("place", PLACES)
def test_a_panic_in_any_callback_is_a_code(harness, creators, place, op):
    node, inputs, outputs = example(op)
    plugin = Plugin.create(harness, creators[op], parsed_fields(node.attributes()), f"fault:{place};")
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
            arrays = random_inputs(np.random.default_rng(1), node, "f32", [0, 0], [1, 1]) | garbage_outputs(node, "f32")
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


def test_a_plan_of_a_smaller_gpu_runs_in_memory_of_its_own(harness, creators):
    """Where TensorRT set aside less than this GPU needs, nothing is written beyond it."""
    node = DilatedAttention(1, 1, 64, 4096, [Pattern(1, 0, 0)] * 2)
    inputs, outputs = list(node.inputs("f32").values()), list(node.outputs("f32").values())
    built = Plugin.create(harness, creators[node.op], parsed_fields(node.attributes()))
    needed = built.call("workspace_size", inputs, outputs)
    assert needed > 0
    stored = built.stored_fields()
    (name,) = [name for name in stored if "workspace" in name]
    assert stored[name][1].tolist() == [1, 1, 1, 1, needed]
    results = []
    for promised in (needed, 0):
        stored[name] = (stored[name][0], np.array([1, 1, 1, 1, promised], np.int64))
        plugin = Plugin.create(harness, creators[node.op], stored, "layer", trt_driver.RUNTIME)
        assert plugin.call("shape_change", inputs, outputs) == 0, harness.messages()
        session = PluginSession(harness, creators[node.op], node, "f32")
        session.plugin, guard = plugin, np.full(max(promised, 256) + 4096, 77, np.uint8)
        session.workspace = guard
        shapes = {key: shape for key, (t, shape) in node.inputs("f32").items() if t == "f32"}
        rng = np.random.default_rng(5)
        arrays = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
        arrays |= {"past_length": np.array([4000]), "seq_length": np.array([1])} | node.tables()
        made = garbage_outputs(node, "f32")
        code, messages = session.enqueue({key: arrays[key] for key in node.inputs("f32")}, made)
        assert code == 0, messages
        results.append(made["output"].tobytes())
        assert (guard[-3000:] == 77).all()
    assert (guard == 77).all()
    assert results[0] == results[1]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_every_profile_has_its_own_workspace(harness, creators, order):
    """One plugin, two profiles: whichever TensorRT asks about last, no context counts on the other's."""
    nodes = [DilatedAttention(1, length, 64, 4096, [Pattern(4, 8, 2)] * 2) for length in (1, 300)]
    profiles = []
    for node in nodes:
        tensors = list(node.inputs("f32").values()), list(node.outputs("f32").values())
        opened = [[(*tensor, trt_driver.LINEAR, min(2, len(tensor[1]) - 1)) for tensor in side] for side in tensors]
        profiles.append((tensors, opened))
    built = Plugin.create(harness, creators[nodes[0].op], parsed_fields(nodes[0].attributes()))
    told = {}
    for index in order:
        _, opened = profiles[index]
        assert built.call("configure", *opened) == 0, harness.messages()
        told[index] = built.call("workspace_size", *opened)
    assert 0 < told[0] != told[1] > 0
    (stored,) = [data for name, (_, data) in built.stored_fields().items() if "workspace" in name]
    lengths = (1, 300)
    assert stored.tolist() == [n for i in order for n in (1, lengths[i], 1, lengths[i], told[i])]
    # A shape that the profile's range contradicts is found before anything runs.
    tensors, opened = profiles[1]
    dtype, shape, *rest = opened[0][1]
    wrong = [opened[0][0], (dtype, (*shape[:2], shape[2] + 1), *rest), *opened[0][2:]]
    assert built.call("configure", wrong, opened[1]) != 0
    assert "Nkv: expected num_kv_heads x dh = 2 x 64, found 129" in harness.messages()
    loaded = Plugin.create(harness, creators[nodes[0].op], built.stored_fields(), "layer", trt_driver.RUNTIME)
    for node, (tensors, _), given in zip(nodes, profiles, (told[0], told[1])):
        plugin = loaded.attach()
        assert plugin.call("shape_change", *tensors) == 0, harness.messages()
        session = PluginSession(harness, creators[node.op], node, "f32")
        session.plugin, session.workspace = plugin, np.full(given + 256 + 4096, 77, np.uint8)
        start = -session.workspace.ctypes.data % 256
        arrays = random_inputs(np.random.default_rng(5), node, "f32", [3000], [node.seq_len])
        session.run_arrays(arrays, garbage_outputs(node, "f32"))
        guard = session.workspace
        assert (guard[start : start + given] != 77).any() and (guard[start + given :] == 77).all()


def test_lengths_that_do_not_fit_can_be_asked_for(harness, creators, emulated_trt_library):
    """Neither this run fails nor the next: builders and trtexec run on lengths of any value."""
    node = RecurrenceScan.example()
    session = PluginSession(harness, creators[node.op], node, "f32", "blocks.2.scan")
    inputs, outputs = random_inputs(np.random.default_rng(1), node, "f32", [0, 0], [-1, 5]), garbage_outputs(node, "f32")
    take = ctypes.CDLL(str(emulated_trt_library)).RatplusTakeDeviceError
    take.restype, take.argtypes = ctypes.c_size_t, [ctypes.c_char_p, ctypes.c_size_t]
    for lengths in ([-1, 5], [2, 5]):
        inputs["seq_length"][:] = lengths
        code, messages = session.enqueue(inputs, outputs)
        assert code == 0, messages
    text = ctypes.create_string_buffer(512)
    assert take(text, len(text)) > 0
    told = text.value.decode()
    assert "blocks.2.scan" in told and "slot 0" in told, told
    assert take(None, 0) == 0
    session.close()


def test_without_a_driver_the_reason_is_logged(harnesses, trt_library):
    """In a process of its own: the library that users get, on a machine without a GPU."""
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has an NVIDIA driver")
    script = """
import sys; sys.path.insert(0, sys.argv[1])
import trt_driver as d
from operators.recurrence_scan import RecurrenceScan
h = d.Harness(sys.argv[2]); h.open(sys.argv[3])
node = RecurrenceScan.example()
plugin = d.Plugin.create(h, h.creators_of(sys.argv[4])[node.op], {}, "blocks.1")
tensors = list(node.inputs("f32").values()), list(node.outputs("f32").values())
assert plugin.call("configure", *tensors) == 0
assert plugin.call("workspace_size", *tensors) == 0
print(h.messages())
assert plugin.call("shape_change", *tensors) != 0
print(h.messages())
"""
    command = [sys.executable, "-c", script, ROOT / "tests" / "python", harnesses(TENSORRT["rtx-1.7"].headers)]
    command += [tensorrt_library("rtx-1.7"), trt_library]
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
