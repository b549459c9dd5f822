"""Where libraries lie: those of this package, and ONNX Runtime."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from ._errors import InputError

_HERE = Path(__file__).resolve().parent


def _own(name: str) -> str:
    path = _HERE / name
    if not path.is_file():
        raise InputError(f"`{path}`: no such file; this build of ratplus was made without it")
    return str(path)


def library_path() -> str:
    """The library of RAT+ operators, for `onnxruntime.SessionOptions.register_custom_ops_library`."""
    return _own("libratplus_ort.so")


def tensorrt_plugin_path() -> str:
    """The library of RAT+ plugins, for `trtexec --dynamicPlugins` and TensorRT's plugin registry."""
    return _own("libratplus_trt.so")


def onnxruntime_path() -> str | None:
    """The folder of ONNX Runtime's library: that of the `onnxruntime` that Python would import.

    None where Python finds none, or where the environment variable ORT_DYLIB_PATH names another, which is taken then.
    """
    if os.environ.get("ORT_DYLIB_PATH"):
        return None
    # Found, and not imported: its own module holds a second runtime.
    found = importlib.util.find_spec("onnxruntime")
    for folder in found.submodule_search_locations or [] if found else []:
        capi = Path(folder) / "capi"
        if any(capi.glob("libonnxruntime.so*")):
            return str(capi)
    return None
