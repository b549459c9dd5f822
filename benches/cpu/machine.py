"""The machine, in words that name no host."""

import os
import platform
from importlib import metadata
from pathlib import Path

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
# CPUs that other processes take while a row is timed, from which on it counts as disturbed.
DISTURBED = 0.1
PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "llama_cpp_python", "openvino")


def read(path):
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def field(text, name):
    """The value of the first `name : value` line."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def available_bytes():
    """Memory that can be had without swapping; much where the system does not say."""
    kilobytes = field(read("/proc/meminfo"), "MemAvailable").split()
    return int(kilobytes[0]) * 1024 if kilobytes else 1 << 62


def last_level_cache():
    """Bytes of the largest cache that a core sees; 0 where the system does not say."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [read(path).strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size and size[-1] in units), default=0)


def describe():
    """Model, features, sizes and versions."""
    cpu = read("/proc/cpuinfo")
    present = field(cpu, "flags").split()
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    # A model's name can be the vendor's word for all of them; the numbers tell them apart.
    numbers = [field(cpu, name) for name in ("cpu family", "model", "stepping")]
    return {
        "model": field(cpu, "model name") or platform.machine(),
        "family_model_stepping": "/".join(numbers) if all(numbers) else "",
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "features": [flag for flag in FLAGS if flag in present],
        "last_level_cache": last_level_cache(),
        "memory": int((field(read("/proc/meminfo"), "MemTotal").split() or [0])[0]) * 1024,
        "versions": versions,
    }


def busy_seconds():
    """CPU seconds that all processes have used, and those of this one and of its ended children; None where the
    system does not say."""
    fields = field(read("/proc/stat").replace("cpu  ", "cpu : ", 1), "cpu").split()
    if len(fields) < 8:
        return None
    user, nice, system, _, _, interrupt, soft, stolen = map(int, fields[:8])
    mine = os.times()
    own = mine.user + mine.system + mine.children_user + mine.children_system
    return (user + nice + system + interrupt + soft + stolen) / os.sysconf("SC_CLK_TCK"), own


def load():
    """Load average of the last minute: what else ran."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
