"""Models with products in their own type, as ort-cuda loads them: valid, and the same numbers."""

import shutil
import subprocess

import numpy as np
import onnx
import pytest
from conftest import built, golden_case
from onnx import TensorProto
from ort_driver import Package, chunked, padded

# Largest difference relative to the largest golden logit that test_packages grants f16: a few
# roundings.
F16_LIMIT = 8 * 2**-11


@pytest.fixture(scope="session")
def rewritten(export_case, tmp_path_factory):
    """A golden case's package with every ONNX file rewritten, and how many products each has."""

    def run(case, **flags):
        source = export_case(case, **flags)
        target = tmp_path_factory.mktemp("native") / "package"
        shutil.copytree(source, target)
        counts = {}
        for file in source.glob("*.onnx"):
            command = [built("RATPLUS_NATIVE_PRODUCTS", "native_products"), file, target / file.name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            counts[file.name] = int(done.stdout)
        return target, counts

    return run


@pytest.mark.parametrize("fallback", ["function", "inline", "none"])
@pytest.mark.parametrize("dtype, onnx_type", [("f16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
@pytest.mark.parametrize("case, logits", [("head_hybrid", "all"), ("attention_only", "last")])
def test_rewritten_models_are_valid(rewritten, case, logits, dtype, onnx_type, fallback):
    package, counts = rewritten(case, fallback=fallback, dtype=dtype, logits=logits)
    for name, count in counts.items():
        # Strict shape and type inference over every node.
        onnx.checker.check_model(str(package / name), full_check=True)
        model = onnx.load(package / name, load_external_data=False)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
        types = {v.name: v.type.tensor_type.elem_type for v in [*inferred.value_info, *inferred.input, *inferred.output]}
        types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
        products = [node for node in model.graph.node if node.op_type == "Gemm"]
        assert len(products) == count > 0
        for node in products:
            assert [types[value] for value in [*node.input, *node.output]] == [onnx_type] * 3, node.name


def test_f32_models_have_nothing_to_rewrite(rewritten):
    _, counts = rewritten("head_hybrid")
    assert set(counts.values()) == {0}


@pytest.mark.parametrize("with_library", [False, True], ids=["body", "kernel"])
@pytest.mark.parametrize("case", ["head_hybrid", "kjv_d16w64i4", "attention_only"])
def test_a_rewritten_f16_model_matches_golden(rewritten, ort_library, case, with_library):
    # The CPU provider has no bf16 products; ort-cuda is where those run.
    golden = golden_case(case).golden()
    tokens = golden["tokens"]
    package, _ = rewritten(case, dtype="f16")
    engine = Package(package, ort_library if with_library else None)
    scale = np.abs(golden["logits"]).max()
    for plan in (chunked(tokens.shape[1]), padded(tokens.shape[1], 64)):
        engine.reset()
        logits = engine.run(tokens, plan)[:, golden["positions"]]
        assert np.abs(logits - golden["logits"]).max() <= F16_LIMIT * scale
