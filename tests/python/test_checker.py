"""Every exported file against onnx's own checker, and the promises about files on disk."""

import json

import onnx
import pytest
from blake3 import blake3
from conftest import CASES, LOWERINGS
from onnx import TensorProto

DOMAIN = "ai.ratplus"
ELEMENT_BYTES = {
    TensorProto.FLOAT: 4,
    TensorProto.FLOAT16: 2,
    TensorProto.BFLOAT16: 2,
    TensorProto.INT64: 8,
    TensorProto.INT32: 4,
    TensorProto.BOOL: 1,
}
ONNX_TYPES = {
    "f32": TensorProto.FLOAT,
    "f16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "i64": TensorProto.INT64,
}
LARGEST_FILE = 64 << 20
# Smaller constants may stay in the graph.
INLINE_BYTES = 1024


# By `--fallback`, the targets that a package has graphs for.
TARGETS = {
    "function": ["portable", "cpu", "cuda", "tensorrt"],
    "none": ["portable", "cpu", "cuda", "tensorrt"],
    "inline": ["portable", "cuda"],
}


def onnx_files(package, fallback):
    files = sorted(package.glob("*.onnx"))
    one = {"tensorrt": "model.tensorrt.onnx"}
    ends = ["" if target == "portable" else f".{target}" for target in TARGETS[fallback] if target not in one]
    batch = json.loads((package / "manifest.json").read_text())["batch"]
    engines = ["decode", "prefill_64", "prefill_7", *([f"decode_b{batch}"] if batch > 1 else [])]
    names = [f"{name}{end}.onnx" for name in engines for end in ends]
    names += [one[target] for target in TARGETS[fallback] if target in one]
    assert [file.name for file in files] == sorted(names)
    return files


@pytest.mark.parametrize("fallback", LOWERINGS)
@pytest.mark.parametrize("case", CASES)
def test_checker_accepts_every_file(export_case, case, fallback):
    # `check_custom_domain` stays off: it wants a schema registered inside onnx for every node, and
    # a bare custom node has none there by nature. Everything else is checked, with strict shape
    # inference.
    for file in onnx_files(export_case(case, fallback=fallback), fallback):
        onnx.checker.check_model(str(file), full_check=True)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("fallback", LOWERINGS)
@pytest.mark.parametrize("case", ["head_hybrid", "attention_only"])
def test_checker_accepts_half_types(export_case, case, fallback, dtype):
    for file in onnx_files(export_case(case, fallback=fallback, dtype=dtype), fallback):
        onnx.checker.check_model(str(file), full_check=True)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("fallback", LOWERINGS)
def test_graph_is_what_the_manifest_says(export_case, fallback, dtype):
    package = export_case("head_hybrid", fallback=fallback, dtype=dtype)
    manifest = json.loads((package / "manifest.json").read_text())
    assert (manifest["dtype"], manifest["fallback"]) == (dtype, fallback)
    graphs = [(engine, *item) for engine in manifest["engines"] for item in engine["files"].items()]
    assert len(graphs) == 4 * len(TARGETS[fallback])
    for engine, target, file in graphs:
        domain = "trt.plugins" if target == "tensorrt" else DOMAIN
        model = onnx.load(package / file, load_external_data=False)
        assert model.ir_version == manifest["ir_version"] == 9
        opsets = {opset.domain: opset.version for opset in model.opset_import}
        assert opsets.pop("") == manifest["opset"] == 18
        assert opsets == ({} if fallback == "inline" else {domain: 1})
        for values, tensors in (
            (model.graph.input, engine["inputs"]),
            (model.graph.output, engine["outputs"]),
        ):
            found = [
                (
                    value.name,
                    value.type.tensor_type.elem_type,
                    [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
                )
                for value in values
            ]

            def declared(tensor):
                if target != "tensorrt":
                    return tensor["shape"]
                named = ["batch", "seq_len"] if tensor["name"] in ("input_ids", "logits") else ["batch"]
                return named + tensor["shape"][len(named) :]

            assert found == [(t["name"], ONNX_TYPES[t["dtype"]], declared(t)) for t in tensors]

        layers = manifest["model"]["num_layers"]
        custom = [node for node in model.graph.node if node.domain == domain]
        functions = {(function.domain, function.name) for function in model.functions}
        if fallback == "inline":
            assert not custom and not functions
            assert all(node.domain == "" for node in model.graph.node)
            continue
        # All matrices; the head's product is a standard one in the portable graph.
        products = {"portable": 4 * layers, "cpu": 4 * layers + 1}.get(target, 0)
        patterns = manifest["model"]["patterns"]
        attention = ["BlockTopKAttention" if "block_size" in pattern else "DilatedAttention" for pattern in patterns]
        of_layers = [*attention, *["RecurrenceScan"] * layers]
        assert sorted(node.op_type for node in custom) == sorted([*of_layers, *["Linear"] * products])
        for node in custom:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            assert attributes["plugin_namespace"] == DOMAIN.encode()
            assert attributes["plugin_version"] == b"1"
        with_functions = fallback == "function" and target in ("portable", "cuda")
        bodies = {*of_layers} | ({"Linear"} if target == "portable" else set())
        expected = {(DOMAIN, name) for name in bodies} if with_functions else set()
        assert functions == expected


@pytest.mark.parametrize("fallback", LOWERINGS)
@pytest.mark.parametrize("case", ["kjv_d16w64i4", "head_hybrid"])
def test_all_engines_share_one_weights_file(export_case, case, fallback):
    package = export_case(case, fallback=fallback)
    weights = package / "weights.bin"
    size = weights.stat().st_size
    regions: dict = {}
    for file in onnx_files(package, fallback):
        assert file.stat().st_size < LARGEST_FILE
        model = onnx.load(file, load_external_data=False)
        for tensor in model.graph.initializer:
            shape_bytes = ELEMENT_BYTES[tensor.data_type]
            for dim in tensor.dims:
                shape_bytes *= dim
            if tensor.data_location != TensorProto.EXTERNAL:
                assert shape_bytes <= INLINE_BYTES, f"{file.name}: {tensor.name} is inside the graph"
                continue
            where = {entry.key: entry.value for entry in tensor.external_data}
            assert where["location"] == weights.name
            offset, length = int(where["offset"]), int(where["length"])
            assert length == shape_bytes and offset + length <= size
            regions.setdefault(tensor.name, set()).add((offset, length))
    assert regions
    for name, places in regions.items():
        assert len(places) == 1, f"{name} is stored more than once: {places}"
    placed = sorted(next(iter(places)) for places in regions.values())
    for (offset, length), (next_offset, _) in zip(placed, placed[1:]):
        assert offset + length <= next_offset, "two tensors overlap"
    stored = sum(length for _, length in placed)
    assert size <= stored + 4096 * (len(placed) + 1), "the weights file holds more than the weights"


@pytest.mark.parametrize("fallback", LOWERINGS)
def test_checksums_cover_every_file(export_case, fallback):
    package = export_case("kjv_d16w64i4", fallback=fallback)
    manifest = json.loads((package / "manifest.json").read_text())
    on_disk = {path.name for path in package.iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == on_disk
    assert {"weights.bin", "tokenizer.json"} <= on_disk
    for name, info in manifest["files"].items():
        data = (package / name).read_bytes()
        assert info == {"bytes": len(data), "blake3": blake3(data).hexdigest()}
