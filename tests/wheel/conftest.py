"""What the tests of the wheel share. They run in an environment that has the wheel installed, which `cargo xtask test`
makes, and find ONNX Runtime and the operators as users do: by what is installed there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Of another build, they would be taken instead.
for _name in ("ORT_DYLIB_PATH", "RATPLUS_ORT_LIBRARY", "RATPLUS_TRT_LIBRARY", "VIRTUAL_ENV"):
    os.environ.pop(_name, None)

import ratplus  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
# What tests of the program have too.
sys.path.append(str(ROOT / "tests" / "python"))
CASE = ROOT / "tests" / "golden" / "kjv_d16w64i4"
PROMPTS = ["In the beginning God", "And it came to pass", "The LORD is my shepherd; I shall", "Blessed are the", "Jesus"]
# Seconds that a process of a test may take; an emulator takes longer.
LIMIT = int(os.environ.get("RATPLUS_TEST_SECONDS", 120))
SIZES = dict(max_seq_len=512, prefill_lengths=[16, 64], batch=4, logits="all")


@pytest.fixture(scope="session")
def program():
    """Runs the wheel's program with words; what it did, which ended with `code`."""
    path = Path(sys.executable).parent / "ratplus"

    def run(*words, code=0):
        done = subprocess.run([path, *map(str, words)], capture_output=True, text=True, timeout=LIMIT)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def export(folder: Path, **options) -> Path:
    """A package of the King James model."""
    options = {"config": CASE / "config.json", "tokenizer": CASE / "tokenizer.json", **SIZES, **options}
    ratplus.export(CASE / "model.pth", folder, **options)
    return folder


@pytest.fixture(scope="session")
def kjv(tmp_path_factory) -> Path:
    """Four slots, the logits of every token."""
    return export(tmp_path_factory.mktemp("kjv") / "kjv")


@pytest.fixture(scope="session")
def kjv_last(tmp_path_factory) -> Path:
    """One slot, the logits of each chunk's last token."""
    return export(tmp_path_factory.mktemp("last") / "kjv", batch=1, logits="last")


@pytest.fixture(scope="session")
def model(kjv):
    with ratplus.Model.open(kjv) as model:
        yield model
