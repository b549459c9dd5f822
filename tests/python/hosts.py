"""What runs the operators, each behind the same few methods."""

import ctypes
import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
from operator_tool import lowered, tool
from plugin_driver import garbage_outputs, make_session, random_inputs, run_bound
from plugin_models import INTEGERS, ModelOptions, build_model, numpy_type
from trt_driver import Plugin, PluginSession, parsed_fields


def multiplies_bf16():
    """Whether this machine has instructions that the CPU kernels multiply bf16 with."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


class Host:
    """A host; `make` gives one, or skips the test and says what is missing.

    `session(node, t)` has a `run_arrays(inputs, outputs)`, or is one of onnxruntime's, to which alone
    `threads` and `config` matter.
    """

    gpu = False
    # One buffer may be past and present.
    in_place = True
    # It looks at attributes and shapes; and at types.
    refuses = True
    sees_types = True
    # What becomes of lengths that do not fit: `error` before anything ran; `report`: all other slots ran, and
    # the library tells; `nan`: all other slots ran, and this one's results are NaN.
    unfit = "error"
    # Whether the library tells of them beside NaN.
    tells = False
    # Where it can be made to panic, and which of these places are told.
    fault_places = ()
    # Plans and seeds of each test of numbers.
    seeds = 2

    @classmethod
    def types(cls, description):
        """Pairs of the activations' type and the cache's that it takes."""
        return [tuple(pair) for pair in description.schema()["gpu_types" if cls.gpu else "types"]]

    def rounds_operands(self, node, t):
        """Whether products take every operand in the tensors' type."""
        return self.gpu

    def dimensions(self, axes):
        """What it calls the axes of a port where there are more or fewer."""
        return f"[{', '.join(axes)}]"

    def session(self, node, t, options=None, threads=1, **config):
        raise NotImplementedError

    def refusal(self, node, t, options):
        """What it says of a model, which it does not run; empty where it takes it."""
        try:
            close(self.session(node, t, options))
        except Exception as error:
            return str(error)
        return ""

    def run_unfit(self, session, inputs, outputs):
        """What it says of inputs whose lengths do not fit; empty where it says nothing."""
        try:
            run_bound(session, inputs, outputs)
        except Exception as error:
            return str(error)
        return ""


def close(session):
    if hasattr(session, "close"):
        session.close()


def told_by(library):
    """What a library has left to tell of lengths, once."""
    take = ctypes.CDLL(str(library)).RatplusTakeDeviceError
    take.restype, take.argtypes = ctypes.c_size_t, [ctypes.c_char_p, ctypes.c_size_t]
    text = ctypes.create_string_buffer(1000)
    return text.value.decode() if take(text, len(text)) else ""


class OrtCpu(Host):
    """The custom-op library in ONNX Runtime."""

    unfit, tells = "nan", True
    fault_places = ("create", "compute", "task", "infer", "destroy")
    seeds = 6

    def __init__(self, library, faulty):
        self.library, self.faulty = library, faulty

    @classmethod
    def make(cls, request):
        return cls(request.getfixturevalue("ort_library"), lambda: request.getfixturevalue("fault_library"))

    def rounds_operands(self, node, t):
        # In rows of 32.
        return t == "bf16" and not node.cache and node.product % 32 == 0 and multiplies_bf16()

    def session(self, node, t, options=None, threads=1, **config):
        return make_session(self.library, build_model(node, t, options), threads, **config)

    def run_unfit(self, session, inputs, outputs):
        run_bound(session, inputs, outputs)
        return told_by(self.library)

    def fault(self, node, place):
        """What a whole life says with a panic in one place."""
        inputs = random_inputs(np.random.default_rng(1), node, "f32", [0] * node.batch, [1] * node.batch)
        options = ModelOptions(attributes={"ratplus_fault": place} if place else {})
        told = ""
        try:
            session = make_session(self.faulty(), build_model(node, "f32", options), threads=2)
            run_bound(session, inputs, garbage_outputs(node, "f32"))
            del session
        except Exception as error:
            told = str(error)
        gc.collect()
        return told


class OrtCuda(OrtCpu):
    """The same with its operators for CUDA, on the emulator."""

    gpu = True
    unfit, tells = "report", True
    fault_places = (*OrtCpu.fault_places, "launched")

    @classmethod
    def make(cls, request):
        library = request.getfixturevalue("emulated_library")
        return cls(library, lambda: library)

    def rounds_operands(self, node, t):
        return True


class TensorRT(Host):
    """The plugin library on the emulator, with a harness that plays TensorRT."""

    gpu = True
    unfit, tells = "report", True
    seeds = 3

    def __init__(self, harness, creators, library):
        self.harness, self.creators, self.library = harness, creators, library

    def dimensions(self, axes):
        return f"{len(axes)} dimensions"

    @classmethod
    def make(cls, request):
        return cls(*map(request.getfixturevalue, ("harness", "creators", "emulated_trt_library")))

    def session(self, node, t, options=None, threads=1, **config):
        return PluginSession(self.harness, self.creators[node.op], node, t, "the_node")

    def refusal(self, node, t, options):
        fields = {name: value for name, value in (node.attributes() | options.attributes).items() if value is not None}
        plugin = Plugin.create(self.harness, self.creators[node.op], parsed_fields(fields), "the_node")
        if plugin is None:
            return self.harness.messages()
        inputs = node.inputs(t)
        inputs |= {name: (inputs[name][0], shape) for name, shape in options.shapes.items()}
        inputs |= {name: (dtype, inputs[name][1]) for name, dtype in options.types.items()}
        code = plugin.call("configure", list(inputs.values()), list(node.outputs(t).values()))
        plugin.destroy()
        told = self.harness.messages()
        return told if code != 0 else ""

    def run_unfit(self, session, inputs, outputs):
        ordered = {name: inputs[name] for name in session.node.inputs(session.t)}
        outputs = {name: outputs[name] for name in session.node.outputs(session.t)}
        code, messages = session.enqueue(ordered, outputs)
        assert code == 0, messages
        return told_by(self.library)


class Function(Host):
    """The function body in ONNX Runtime, without the library."""

    form = "function"
    refuses = False
    unfit = "nan"

    @classmethod
    def types(cls, description):
        return super().types(description) if description.has_body else []

    @classmethod
    def make(cls, request):
        return cls()

    def session(self, node, t, options=None, threads=1, **config):
        model = lowered(build_model(node, t, options), self.form, node.max_seq_len)
        return make_session(None, model, threads, **config)


class Inline(Function):
    """The same nodes without the function around them."""

    form = "inline"
    seeds = 1


class TractSession:
    """A model in tract."""

    def __init__(self, model, node, t, body=False):
        self.engine = tool().ask("load", model, max_seq_len=node.max_seq_len, body=body)[0]["engine"]
        self.inputs, self.outputs = node.inputs(t), node.outputs(t)

    def run_arrays(self, inputs, outputs):
        types = {name: numpy_type(dtype) if dtype in INTEGERS else np.float32 for name, (dtype, _) in self.inputs.items()}
        carried = [inputs[name].astype(dtype) for name, dtype in types.items()]
        found = tool().ask("run", b"".join(array.tobytes() for array in carried), engine=self.engine)[1]
        values, start = np.frombuffer(found, np.float32), 0
        for name, (dtype, shape) in self.outputs.items():
            end = start + int(np.prod(shape))
            outputs[name][...] = values[start:end].reshape(shape).astype(numpy_type(dtype))
            start = end
        assert start == len(values)

    def close(self):
        tool().ask("drop", engine=self.engine)


class Tract(Host):
    """The reference, a custom operator of tract."""

    # The outputs are copies.
    in_place = False
    # f16 and bf16 are carried in f32.
    sees_types = False

    @classmethod
    def make(cls, request):
        return cls()

    def session(self, node, t, options=None, threads=1, **config):
        options = replace(options or ModelOptions(), declared=True)
        return TractSession(build_model(node.carried(), t, options), node, t)


class TractInline(Tract):
    """The body in tract."""

    @classmethod
    def types(cls, description):
        return super().types(description) if description.has_body else []

    refuses = False
    unfit = "nan"
    seeds = 1

    def session(self, node, t, options=None, threads=1, **config):
        return TractSession(build_model(node, t, options), node, t, body=True)


HOSTS = {
    "ort-cpu": OrtCpu, "ort-cuda": OrtCuda, "tensorrt": TensorRT, "function": Function, "inline": Inline,
    "tract": Tract, "tract-inline": TractInline,
}  # fmt: skip

