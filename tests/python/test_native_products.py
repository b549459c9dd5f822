"""Graphs for GPUs, whose products are in the package's own type: valid, and the same numbers."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import golden_case
from onnx import TensorProto
from ort_driver import Package, chunked, padded

# Largest difference relative to the largest golden logit that test_packages grants f16: a few
# roundings.
F16_LIMIT = 8 * 2**-11


@pytest.mark.parametrize("fallback", ["function", "inline", "none"])
@pytest.mark.parametrize("dtype, onnx_type", [("f16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
@pytest.mark.parametrize("case, logits, layers", [("head_hybrid", "all", 2), ("attention_only", "last", 2)])
def test_products_have_the_type_of_the_package(export_case, case, logits, layers, dtype, onnx_type, fallback):
    package = export_case(case, fallback=fallback, dtype=dtype, logits=logits)
    files = [file for file in package.glob("*.onnx") if file.suffixes[0] in (".cuda", ".tensorrt")]
    # One for TensorRT, whose sizes are open.
    assert len(files) == (4 if fallback == "inline" else 5)
    for file in files:
        # Strict shape and type inference over every node; `trt.plugins` has no rules but declares its outputs.
        onnx.checker.check_model(str(file), full_check=True)
        model = onnx.load(file, load_external_data=False)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
        types = {v.name: v.type.tensor_type.elem_type for v in [*inferred.value_info, *inferred.input, *inferred.output]}
        types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
        products = [node for node in model.graph.node if node.op_type == "Gemm"]
        assert len(products) == 4 * layers + 1
        for node in products:
            assert [types[value] for value in [*node.input, *node.output]] == [onnx_type] * 3, node.name


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_graphs_for_cpus_multiply_in_f32(export_case, dtype):
    package = export_case("head_hybrid", dtype=dtype)
    for name in ("decode.onnx", "decode.cpu.onnx", *(["decode.cuda.onnx"] if dtype == "f32" else [])):
        model = onnx.load(package / name, load_external_data=False)
        casts = {node.output[0] for node in model.graph.node if node.op_type == "Cast"}
        for node in model.graph.node:
            if node.op_type == "Gemm":
                assert (node.input[1] in casts) == (dtype != "f32"), node.name


@pytest.mark.parametrize("logits", ["all", "last"])
@pytest.mark.parametrize("case", ["head_hybrid", "kjv_d16w64i4", "attention_only"])
def test_one_graph_for_tensorrt_serves_every_size(export_case, ort_library, f32_tolerance, tmp_path, case, logits):
    """Its plugins stand in the domain of ONNX Runtime's operators here, which have the same numbers."""
    package = Path(shutil.copytree(export_case(case, logits=logits), tmp_path / "package"))
    (file,) = package.glob("*.tensorrt.onnx")
    model = onnx.load(file, load_external_data=False)
    for named in [*model.graph.node, *model.opset_import]:
        named.domain = named.domain.replace("trt.plugins", "ai.ratplus")
    file.write_bytes(model.SerializeToString())
    golden = golden_case(case).golden()
    tokens = golden["tokens"]
    scale = np.abs(golden["logits"]).max()
    engine, other = (Package(package, ort_library, target=target) for target in ("tensorrt", "cpu"))
    if logits == "all":
        for plan in (chunked(tokens.shape[1]), padded(tokens.shape[1], 64)):
            engine.reset()
            found = engine.run(tokens, plan)[:, golden["positions"]]
            assert np.abs(found - golden["logits"]).max() <= f32_tolerance * scale
        return
    # The last valid token's, of slots with lengths of their own; of an idle one they do not count.
    for seq_len, counts in ((64, 50), (7, 3), (7, 7), (1, 1)):
        counts = np.maximum(counts - np.arange(engine.batch), 1)
        found, expected = (each.step(seq_len, tokens, counts) for each in (engine, other))
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= f32_tolerance * scale


@pytest.mark.parametrize("with_library", [False, True], ids=["body", "kernel"])
@pytest.mark.parametrize("case", ["head_hybrid", "kjv_d16w64i4", "attention_only"])
def test_the_f16_graph_for_gpus_matches_golden(export_case, ort_library, case, with_library):
    # The CPU provider has no bf16 products; ort-cuda is where those run.
    golden = golden_case(case).golden()
    tokens = golden["tokens"]
    package = export_case(case, dtype="f16")
    engine = Package(package, ort_library if with_library else None, target="cuda")
    scale = np.abs(golden["logits"]).max()
    for plan in (chunked(tokens.shape[1]), padded(tokens.shape[1], 64)):
        engine.reset()
        logits = engine.run(tokens, plan)[:, golden["positions"]]
        assert np.abs(logits - golden["logits"]).max() <= F16_LIMIT * scale
