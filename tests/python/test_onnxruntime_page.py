"""The listing of docs/onnxruntime.md, on a CPU: with the kernels for CPUs, and with those for CUDA on the emulator."""

import re

import numpy as np
import pytest
from conftest import ROOT, golden_case
from ort_driver import Package

PAGE = (ROOT / "docs" / "onnxruntime.md").read_text()
CPU = ("CPUExecutionProvider", {})


@pytest.fixture(scope="module")
def listing():
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    defined: dict = {}
    exec(compile(code, "docs/onnxruntime.md", "exec"), defined)
    return defined


@pytest.mark.parametrize("kind", ["ort_library", "emulated_library"])
def test_the_listing_decodes_and_tells(export, request, listing, f32_tolerance, kind):
    library = request.getfixturevalue(kind)
    golden = golden_case("head_hybrid").golden()
    package = export(case="head_hybrid", batch=2, prefill_lengths=(7,), max_seq_len=160)
    shared = listing["weights"](package, "cpu")
    decoders = [listing["Decoder"](package, library, shared, CPU, "cpu") for _ in range(2)]
    expected = Package(package, library).run(golden["tokens"], [(1, 1)] * 40)
    for position in range(40):
        for decoder in decoders:
            decoder.inputs["input_ids"][:, 0] = golden["tokens"][:, position]
            decoder.inputs["past_length"][:] = position
            decoder.inputs["seq_length"][:] = 1
            found = decoder.step()
            assert np.abs(found[:, 0] - expected[:, position]).max() <= f32_tolerance * np.abs(golden["logits"]).max()
    assert listing["told"](library) == ""
    decoders[0].inputs["past_length"][1] = 160
    assert np.isfinite(decoders[0].step()[0]).all()
    assert "slot 1" in listing["told"](library) and listing["told"](library) == ""
