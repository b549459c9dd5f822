"""Builds a stand-in for TensorRT's library from the real headers."""

import re
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("nvinfer_double.cpp")


def body(header: str, name: str) -> str:
    """What a class of a header declares."""
    return re.search(rf"\nclass {name}\b[^;{{]*\{{(.*?)\n\}};", header, re.S)[1]


def overrides(declared: str) -> str:
    """Every pure function of a class, as one that aborts: what the double does not have, nobody calls."""
    declared = re.sub(r"//.*", "", declared)
    found = re.findall(r"virtual\s+([^;]*?\))\s*(const)?\s*(noexcept)?\s*=\s*0\s*;", declared)
    return "".join(f"    {head} {const} {no} override {{ std::abort(); }}\n" for head, const, no in found if "~" not in head)


def base(headers: Path, in_place: bool) -> str:
    """Classes that have every function of TensorRT's own."""
    implementations = (headers / "NvInferImpl.h").read_text()
    text = "#include <NvInfer.h>\n#include <NvOnnxParser.h>\n#include <dlfcn.h>\n#include <algorithm>\n#include <cstdlib>\n"
    text += f"#define DOUBLE_IN_PLACE {int(in_place)}\nnamespace nvinfer1 {{ namespace apiv {{\n"
    own = ("Builder", "BuilderConfig", "NetworkDefinition", "OptimizationProfile", "Refitter", "Tensor", "TimingCache")
    own = own if in_place else ("RuntimeCache", "RuntimeConfig")
    for name in ("Runtime", "CudaEngine", "ExecutionContext", "EngineInspector", "HostMemory", *own):
        functions = overrides(body(implementations, f"V{name}"))
        text += f"class Double{name} : public V{name} {{ public:\n{functions}}};\n"
    text += "} // apiv\n"
    if in_place:
        registry = overrides(body((headers / "NvInferRuntimeCommon.h").read_text(), "IPluginRegistry"))
        # The one that counts: a library was loaded.
        loads = re.compile(r"(.*\bloadLibrary\([^)]*\)[^{]*)\{ std::abort\(\); \}")
        registry, count = loads.subn(r"\1{ return this; }", registry)
        assert count == 1
        text += f"class DoubleRegistry : public IPluginRegistry {{ public:\n{registry}}};\n"
    text += "} // nvinfer1\nnamespace nvonnxparser {\n"
    for name in ("Parser", "ParserRefitter"):
        functions = overrides(body((headers / "NvOnnxParser.h").read_text(), f"I{name}"))
        text += f"class Double{name} : public I{name} {{ public:\n{functions}}};\n"
    return text + "} // nvonnxparser\n"


def compile_double(headers: Path, library: Path, in_place: bool):
    """Compiles the library `library` against `headers`; past and present share memory where `in_place`."""
    library.parent.mkdir()
    (library.parent / "double_base.h").write_text(base(headers, in_place))
    command = ["g++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-isystem", headers, "-isystem", headers.parent]
    command += ["-I", library.parent, f"-Wl,-soname,{library.name}", "-o", library, SOURCE, "-ldl"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if in_place:
        # It has the parser too.
        (library.parent / library.name.replace("nvinfer", "nvonnxparser")).symlink_to(library)
