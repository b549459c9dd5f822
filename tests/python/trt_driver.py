"""Plays TensorRT: what its builder and runtime ask of a plugin, over trt_harness.cpp. Registries are
those of real libraries.

    trt_driver.py registry HARNESS HOST LIBRARY ORDER ATTRIBUTES   in a process of its own; ends with JSON

ATTRIBUTES are those of a node of each operator, JSON by its name.
"""

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
DOMAIN = "ai.ratplus"
# nvinfer1::PluginFieldType and, for numpy types, nvinfer1::DataType.
FLOAT32, INT32, CHAR, INT64 = 1, 5, 6, 10
DATA_TYPES = {"f32": 0, "f16": 1, "bf16": 7, "i64": 8, "i32": 3}
LINEAR, CHW2 = 0, 1
BUILD, RUNTIME = 0, 1


class Field(ctypes.Structure):
    """nvinfer1::PluginField."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    ]


class Fields(ctypes.Structure):
    """nvinfer1::PluginFieldCollection."""

    _fields_ = [("count", ctypes.c_int32), ("fields", ctypes.POINTER(Field))]


def compile_harness(headers, output):
    """Builds the harness with one release's headers."""
    command = ["g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wno-deprecated-declarations"]
    command += ["-isystem", headers, "-isystem", headers.parent, HERE / "trt_harness.cpp", "-o", output, "-ldl"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output


def make_fields(values):
    """A collection of (type, array) by name, and what has to live as long."""
    arrays = {name: np.frombuffer(data, np.uint8) if kind == CHAR else data for name, (kind, data) in values.items()}
    array = (Field * max(len(values), 1))()
    for field, (name, (kind, _)) in zip(array, values.items()):
        data = arrays[name]
        field.name, field.type, field.length = name.encode(), kind, len(data)
        field.data = data.ctypes.data if len(data) else None
    return Fields(len(values), array), (array, arrays)


def parsed_fields(attributes):
    """What TensorRT's parser makes of a node's attributes, a dict of Python values."""
    values = {}
    for name, value in attributes.items():
        if isinstance(value, (str, bytes)):
            values[name] = (CHAR, value.encode() if isinstance(value, str) else value)
        elif isinstance(value, float):
            values[name] = (FLOAT32, np.array([value], np.float32))
        else:
            values[name] = (INT32, np.atleast_1d(np.array(value, np.int32)))
    return values


def words(tensors):
    """(dtype, shape) pairs as the harness takes them; a third item is the format, a fourth how many first
    dimensions are open where shapes are a profile's."""
    flat = np.zeros((len(tensors), 12), np.int64)
    for row, (dtype, shape, *format) in zip(flat, tensors):
        row[0] = len(shape)
        row[1 : 1 + len(shape)] = shape
        row[9] = DATA_TYPES[dtype]
        row[10:] = (*format, LINEAR, 0)[:2]
    return flat


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


class Harness:
    """The compiled harness, and a host's registry where one was opened."""

    def __init__(self, path):
        self.lib = ctypes.CDLL(str(path))
        pointers = ["open_host", "load_library", "creator_at", "get_creator", "create_plugin", "clone_plugin"]
        for name in [*pointers, "attach_plugin"]:
            getattr(self.lib, name).restype = ctypes.c_void_p
        for name in ["take_messages", "creator_kind", "creator_text", "capability_kind", "core_text", "timing_cache_id"]:
            getattr(self.lib, name).restype = ctypes.c_char_p
        for name in ["creator_fields", "fields_to_serialize"]:
            getattr(self.lib, name).restype = ctypes.POINTER(Fields)
        self.lib.workspace_size.restype = ctypes.c_size_t
        self.registry = None

    def open(self, host):
        """Loads a library of TensorRT's; its logger is ours from then on."""
        self.registry = ctypes.c_void_p(self.lib.open_host(str(host).encode()))
        assert self.registry.value, self.messages()
        self.messages()

    def messages(self):
        """What was logged since the last call."""
        return self.lib.take_messages().decode()

    def load(self, library):
        """IPluginRegistry::loadLibrary; the handle, or None."""
        return self.lib.load_library(self.registry, str(library).encode())

    def unload(self, handle):
        self.lib.unload_library(self.registry, ctypes.c_void_p(handle))

    def creators(self):
        """Ours of the registry, by name."""
        found = {}
        for index in range(self.lib.creator_count(self.registry)):
            creator = ctypes.c_void_p(self.lib.creator_at(self.registry, index))
            if self.lib.creator_kind(creator) != b"PLUGIN CREATOR_V3ONE":
                continue
            name, version, domain = (self.lib.creator_text(creator, which).decode() for which in range(3))
            if domain == DOMAIN:
                fields = self.lib.creator_fields(creator).contents
                kinds = {fields.fields[i].name.decode(): fields.fields[i].type for i in range(fields.count)}
                found[name] = (creator, version, kinds)
        return found

    def creators_of(self, library):
        """Those that the library hands out itself."""
        count = ctypes.c_int32()
        get = ctypes.CDLL(str(library)).getCreators
        get.restype = ctypes.POINTER(ctypes.c_void_p)
        creators = get(ctypes.byref(count))
        found = [ctypes.c_void_p(creators[index]) for index in range(count.value)]
        return {self.lib.creator_text(creator, 0).decode(): creator for creator in found}


class Plugin:
    """One plugin object."""

    def __init__(self, harness, address):
        self.lib, self.harness = harness.lib, harness
        self.address = ctypes.c_void_p(address)

    @classmethod
    def create(cls, harness, creator, fields, name="layer", phase=BUILD):
        """None where the creator refuses."""
        collection, alive = make_fields(fields)
        address = harness.lib.create_plugin(creator, name.encode(), ctypes.byref(collection), phase)
        del alive
        return cls(harness, address) if address else None

    def clone(self):
        address = self.lib.clone_plugin(self.address)
        return Plugin(self.harness, address) if address else None

    def attach(self):
        address = self.lib.attach_plugin(self.address)
        return Plugin(self.harness, address) if address else None

    def destroy(self):
        self.lib.destroy_plugin(self.address)

    def capabilities(self):
        """Kind and major version of core, build and runtime."""
        major, found = ctypes.c_int32(), []
        for kind in range(3):
            name = self.lib.capability_kind(self.address, kind, ctypes.byref(major)).decode()
            found.append((name, major.value))
        return found

    def texts(self):
        return [self.lib.core_text(self.address, which).decode() for which in range(3)]

    def output_types(self, inputs, outputs):
        """Code, and the types of the outputs."""
        codes = np.array([DATA_TYPES[dtype] for dtype, *_ in inputs], np.int32)
        found = np.full(outputs, -7, np.int32)
        code = self.lib.output_types(self.address, pointer(codes), len(codes), pointer(found), outputs)
        return code, found.tolist()

    def output_shapes(self, shapes, outputs):
        """Code, and the shapes of the outputs; a dimension that an open one of input i, axis a gives
        is (i, a)."""
        flat = np.zeros((len(shapes), 9), np.int64)
        for row, shape in zip(flat, shapes):
            row[0] = len(shape)
            row[1 : 1 + len(shape)] = shape
        found = np.zeros((outputs, 9), np.int64)
        code = self.lib.output_shapes(self.address, pointer(flat), len(shapes), pointer(found), outputs)
        dim = lambda d: divmod(-1000 - int(d), 10) if d <= -1000 else int(d)  # noqa: E731
        return code, [tuple(dim(d) for d in row[1 : 1 + row[0]]) for row in found]

    def supports(self, position, tensors, inputs):
        flat = words(tensors)
        return bool(self.lib.supports(self.address, position, pointer(flat), inputs, len(tensors) - inputs))

    def call(self, name, inputs, outputs):
        """configure, workspace_size or shape_change."""
        flat = words([*inputs, *outputs])
        return getattr(self.lib, name)(self.address, pointer(flat), len(inputs), len(outputs))

    def stored_fields(self):
        """What the plan keeps: (type, array) by name."""
        fields = self.lib.fields_to_serialize(self.address).contents
        widths = {FLOAT32: np.float32, INT32: np.int32, CHAR: np.uint8, INT64: np.int64}
        found = {}
        for index in range(fields.count):
            field = fields.fields[index]
            dtype = np.dtype(widths[field.type])
            data = np.frombuffer(ctypes.string_at(field.data, dtype.itemsize * field.length), dtype).copy()
            found[field.name.decode()] = (field.type, data)
        return found


class PluginSession:
    """A node from network to execution context, in TensorRT's order; runs numpy arrays in place, the
    emulator's device memory being the host's."""

    def __init__(self, harness, creator, node, t, name="layer"):
        self.harness, self.node, self.t, self.lib = harness, node, t, harness.lib
        inputs, outputs = list(node.inputs(t).values()), list(node.outputs(t).values())
        self.types = (inputs, outputs)
        network = Plugin.create(harness, creator, parsed_fields(node.attributes()), name)
        assert network, harness.messages()
        code, types = network.output_types(inputs, len(outputs))
        assert (code, types) == (0, [DATA_TYPES[dtype] for dtype, _ in outputs]), harness.messages()
        code, shapes = network.output_shapes([shape for _, shape in inputs], len(outputs))
        assert (code, shapes) == (0, [tuple(shape) for _, shape in outputs]), harness.messages()
        built = network.clone()
        tensors = [*inputs, *outputs]
        assert all(built.supports(position, tensors, len(inputs)) for position in range(len(tensors)))
        assert built.call("configure", inputs, outputs) == 0, harness.messages()
        self.workspace = np.zeros(built.call("workspace_size", inputs, outputs) + 256, np.uint8)
        stored = built.stored_fields()
        loaded = Plugin.create(harness, creator, stored, name, RUNTIME)
        assert loaded, harness.messages()
        self.plugin = loaded.attach()
        for plugin in (network, built, loaded):
            plugin.destroy()
        assert self.plugin.call("shape_change", inputs, outputs) == 0, harness.messages()
        self.flat = words(tensors)

    def enqueue(self, inputs, outputs, stream=None):
        """The code, and what was logged."""
        sources = (ctypes.c_void_p * len(inputs))(*(array.ctypes.data for array in inputs.values()))
        targets = (ctypes.c_void_p * len(outputs))(*(array.ctypes.data for array in outputs.values()))
        start = -(-self.workspace.ctypes.data // 256) * 256
        plugin, flat = self.plugin.address, pointer(self.flat)
        args = [plugin, flat, len(inputs), len(outputs), sources, targets, ctypes.c_void_p(start), stream]
        return self.lib.enqueue(*args), self.harness.messages()

    def run_arrays(self, inputs, outputs):
        inputs = {name: inputs[name] for name in self.node.inputs(self.t)}
        outputs = {name: outputs[name] for name in self.node.outputs(self.t)}
        code, messages = self.enqueue(inputs, outputs)
        assert code == 0, messages

    def close(self):
        self.plugin.destroy()


def registry_report(harness, host, library, order, attributes):
    """Loads the library into a real registry in one of several orders; what was there after each
    step."""
    harness = Harness(harness)
    harness.open(host)
    steps, handles = [], []
    for step in order.split(","):
        handle = None
        if step == "dlopen":
            ctypes.CDLL(library)
        elif step == "load":
            handle = harness.load(library)
            handles.append(handle)
        elif step == "unload":
            harness.unload(next(handle for handle in handles if handle))
            handles.clear()
        creators = {name: [version, kinds] for name, (_, version, kinds) in harness.creators().items()}
        made = {}
        for name, (creator, _, _) in harness.creators().items():
            plugin = Plugin.create(harness, creator, parsed_fields(json.loads(attributes)[name]))
            made[name] = plugin.texts() if plugin else None
            if plugin:
                plugin.destroy()
        steps.append(
            {"step": step, "loaded": bool(handle), "creators": creators, "made": made, "messages": harness.messages()}
        )
    return {"host": harness.lib.host_version(str(host).encode()), "steps": steps}


if __name__ == "__main__":
    print(json.dumps(registry_report(*sys.argv[2:7])))
