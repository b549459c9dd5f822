"""The same input gives the same bytes."""

from dataclasses import replace

import pytest
from conftest import LOWERINGS, Export, run_export


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("fallback", LOWERINGS)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_exports_are_byte_identical(ratplus_bin, tmp_path, fallback, dtype):
    flags = Export(case="kjv_hybrid", fallback=fallback, dtype=dtype)
    first = contents(run_export(ratplus_bin, flags, tmp_path / "first"))
    second = contents(run_export(ratplus_bin, flags, tmp_path / "second"))
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_the_default_type_of_the_cache_changes_no_byte(ratplus_bin, tmp_path):
    flags = Export(case="kjv_hybrid", dtype="bf16")
    named = replace(flags, more=("--cache-dtype", "bf16"))
    first = contents(run_export(ratplus_bin, flags, tmp_path / "first"))
    assert first == contents(run_export(ratplus_bin, named, tmp_path / "second"))


def test_export_leaves_nothing_beside_the_package(ratplus_bin, tmp_path):
    run_export(ratplus_bin, Export(case="dense"), tmp_path / "package")
    assert [path.name for path in tmp_path.iterdir()] == ["package"]
