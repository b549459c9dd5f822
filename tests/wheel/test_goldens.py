"""The repository's golden files through the wheel's own program: exported, and every output compared with what the
reference computed."""

import pytest
from conftest import ROOT

CASES = sorted(path.parent for path in (ROOT / "tests" / "golden").glob("*/golden.safetensors"))


@pytest.mark.parametrize("backend", ["ort-cpu", "tract"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_outputs_are_the_references(program, case, backend, tmp_path):
    (checkpoint,) = case.glob("model.*")
    package = tmp_path / "package"
    program("export", checkpoint, "-o", package, "--config", case / "config.json", "--no-check")
    told = program("verify", package, "--golden", case / "golden.safetensors", "--backend", backend).stdout
    assert backend in told
