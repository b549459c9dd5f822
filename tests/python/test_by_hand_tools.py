"""Converters and optimizers of docs/by-hand.md: what each makes of a package's files, with and without
the custom-op library, is what its row of the table says."""

import re
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import onnxslim
import onnxoptimizer
import pytest
from conftest import ROOT, golden_case
from onnx import inliner, shape_inference, version_converter
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference
from onnxruntime.transformers import float16, optimizer
from ort_driver import Package

PAGE = (ROOT / "docs" / "by-hand.md").read_text()
CASE = "head_hybrid"
ENGINES = {7: "prefill_7.onnx", 1: "decode_b2.onnx"}
PLAN = [(7, 7)] * 3 + [(7, 4), (1, 1), (1, 1), (7, 7)]
COUNT = sum(count for _, count in PLAN)


def saved(source: Path, target: Path, library=None, **config):
    """ONNX Runtime's own optimized model."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(target)
    for key, value in config.items():
        options.add_session_config_entry(f"session.{key}", value)
    if library:
        options.register_custom_ops_library(str(library))
    ort.InferenceSession(source, options, ["CPUExecutionProvider"])


def on_model(convert):
    """A tool that takes a model and gives one, or changes it."""

    def run(source, target):
        model = onnx.load(source)
        onnx.save(convert(model) or model, target)

    return run


def to_ort(source, target):
    """The tool writes beside its source."""
    convert_onnx_models_to_ort(source, optimization_styles=[OptimizationStyle.Fixed])
    source.with_suffix(".ort").rename(target)


def transformers_optimizer(source, target):
    optimizer.optimize_model(str(source), model_type="bert", num_heads=0, hidden_size=0, opt_level=0).save_model_to_file(str(target))


# First cell of the table -> the tool.
TOOLS = {
    "`onnx.load`, `onnx.save`": on_model(lambda model: model),
    "`onnx.shape_inference`": lambda source, target: shape_inference.infer_shapes_path(str(source), str(target)),
    "onnxslim": lambda source, target: onnxslim.slim(str(source), str(target), verbose=False),
    "onnxoptimizer": on_model(onnxoptimizer.optimize),
    "`onnxruntime.tools.symbolic_shape_infer`": on_model(lambda model: SymbolicShapeInference.infer_shapes(model, auto_merge=True)),
    "`onnxruntime.transformers.optimizer`, `opt_level=0`": transformers_optimizer,
    "`onnx.inliner`": on_model(inliner.inline_local_functions),
    "`optimized_model_filepath`": saved,
    "`onnxruntime.quantization`'s `quant_pre_process`": lambda source, target: quant_pre_process(str(source), str(target)),
    "`.ort` files, style Fixed": to_ort,
    "`.ort` files, `session.save_model_format` = ORT": lambda source, target: saved(source, target, save_model_format="ORT"),
    "`onnx.version_converter`, to 18": on_model(lambda model: version_converter.convert_version(model, 18)),
    "`onnx.version_converter`, to 21": on_model(lambda model: version_converter.convert_version(model, 21)),
    "`onnx.version_converter`, to 17": on_model(lambda model: version_converter.convert_version(model, 17)),
    "`onnx.inliner`, then `onnx.version_converter` to 21": on_model(
        lambda model: version_converter.convert_version(inliner.inline_local_functions(model), 21)
    ),
    "`onnxruntime.transformers.float16`": on_model(lambda model: float16.convert_float_to_float16(model, keep_io_types=True)),
}


def table() -> dict:
    """Rows of the page's table: the other cells by the first."""
    part = PAGE.split("## Converters and optimizers")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows[2:]}


def dated(cells) -> bool:
    return re.search(r"\d{4}-\d{2}-\d{2}", cells[0]) is not None


ROWS = {name: cells for name, cells in table().items() if not dated(cells)}


def test_every_row_is_tried_or_dated():
    assert set(ROWS) == set(TOOLS)


@pytest.fixture(scope="module")
def package(export):
    return export(case=CASE, batch=2, prefill_lengths=(7,), max_seq_len=160)


def logits(directory: Path, library=None, suffix=".onnx"):
    engine = Package(directory, library)
    for description in engine.engines.values():
        description["files"] = {"portable": str(Path(description["files"]["portable"]).with_suffix(suffix))}
    return engine.run(golden_case(CASE).golden()["tokens"], PLAN)[:, :COUNT]


@pytest.fixture(scope="module")
def expected(package, ort_library):
    """Logits of the body and of the kernel, which differ in their last bits."""
    body, kernel = logits(package), logits(package, ort_library)
    assert np.isfinite(body).all() and body.tobytes() != kernel.tobytes()
    return {False: body.tobytes(), True: kernel.tobytes()}


def converted(package, directory, convert, suffix=".onnx") -> Path:
    """A package with every engine converted, from a copy of its own."""
    source = shutil.copytree(package, directory / "source")
    target = directory / "converted"
    target.mkdir()
    for name in ("manifest.json", "weights.bin"):
        shutil.copy(package / name, target)
    for name in ENGINES.values():
        convert(source / name, (target / name).with_suffix(suffix))
    return target


@pytest.mark.parametrize("name", ROWS)
def test_a_tool_does_what_its_row_says(package, expected, ort_library, tmp_path, name):
    tool, body, kernel, _ = ROWS[name]
    library, found = tool.split()
    assert version(library) == found
    suffix = ".ort" if name.startswith("`.ort`") else ".onnx"
    if body.startswith("**fails**"):
        with pytest.raises(Exception, match="No Adapter"):
            converted(package, tmp_path, TOOLS[name])
        return
    directory = converted(package, tmp_path, TOOLS[name], suffix)
    for with_library, cell in ((False, body), (True, kernel)):
        try:
            ran = logits(directory, ort_library if with_library else None, suffix).tobytes()
        except Exception as error:
            assert "Load model from" in str(error), error
            ran = None
        if cell == "same bits":
            assert ran == expected[with_library], (name, with_library)
        elif "function body" in cell:
            assert ran == expected[False], (name, with_library)
        else:
            assert cell.startswith("**does not load**") and ran is None, (name, with_library)


@pytest.mark.parametrize("suffix", [".onnx", ".ort"])
def test_saved_with_the_library_only_kernels_are_left(package, expected, ort_library, tmp_path, suffix):
    config = {"save_model_format": "ORT"} if suffix == ".ort" else {}
    directory = converted(package, tmp_path, lambda a, b: saved(a, b, ort_library, **config), suffix)
    assert logits(directory, ort_library, suffix).tobytes() == expected[True]
    with pytest.raises(Exception, match="not a registered function/op"):
        logits(directory, None, suffix)


def test_shapes_stay_inside_optimized_files(package, expected, tmp_path):
    def convert(least):
        def run(source, target):
            names = {"file_name": f"{target.name}.data"} | ({"min_size_in_bytes": least} if least else {})
            saved(source, target, **{f"optimized_model_external_initializers_{key}": value for key, value in names.items()})

        return run

    assert logits(converted(package, tmp_path / "default", convert(None))).tobytes() == expected[False]
    with pytest.raises(Exception, match="Cannot parse data from external tensors"):
        logits(converted(package, tmp_path / "none", convert("0")))
