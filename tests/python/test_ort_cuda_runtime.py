"""Backend ort-cuda without a GPU: `ratplus-runtime` built to run it on the CPU, with memory of the
emulator and the operators for CUDA."""

import os
import re
import shutil
import subprocess

import pytest
from conftest import ROOT


def test_the_suite_of_the_runtime_runs_ort_cuda_on_the_emulator(emulated_library):
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed: the runtime cannot be built for the emulator")
    command = ["cargo", "test", "--workspace", "--release", "--features", "ratplus-runtime/cuda-emulation"]
    command += ["--test", "suite", "--", "--nocapture"]
    # With the kernels as they are built for all tests: they take minutes.
    environment = os.environ | {"RATPLUS_ORT_LIBRARY": str(emulated_library)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    for test in ["session::any_chunking_is_one_pass", "emulated::a_session_may_change_threads_between_steps"]:
        assert f"test {test} ... ok" in re.sub(r"\n(?!test )", "", output), output
    assert "SKIPPED" not in output, output
