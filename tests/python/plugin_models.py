"""One-node ONNX models of the operators."""

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper

DOMAIN = "ai.ratplus"
PLUGIN = {"plugin_namespace": DOMAIN, "plugin_version": "1"}
# Name -> (numpy type, ONNX type).
DTYPES = {
    "f32": (np.dtype(np.float32), TensorProto.FLOAT),
    "f16": (np.dtype(np.float16), TensorProto.FLOAT16),
    "bf16": (np.dtype(ml_dtypes.bfloat16), TensorProto.BFLOAT16),
}
INTEGERS = {
    "i64": (np.dtype(np.int64), TensorProto.INT64),
    "u8": (np.dtype(np.uint8), TensorProto.UINT8),
}
ONNX_TYPES = {numpy: onnx for numpy, onnx in (DTYPES | INTEGERS).values()}


def numpy_type(name):
    return (DTYPES | INTEGERS)[name][0]


def onnx_type(name):
    return (DTYPES | INTEGERS)[name][1]


@dataclass
class ModelOptions:
    """What differs from the plain model of a node."""

    attributes: dict = field(default_factory=dict)  # replaced; None removes one
    shapes: dict = field(default_factory=dict)  # of inputs, replaced
    types: dict = field(default_factory=dict)  # of inputs, replaced
    declared: bool = False  # outputs have the node's shapes where those of inputs are replaced
    casts: bool = False  # f32 outside, Cast nodes around the operator
    functions: list = field(default_factory=list)


def build_model(node, t="f32", options=None):
    """The bytes of a model of one node."""
    options = options or ModelOptions()
    attributes = PLUGIN | node.attributes() | options.attributes
    attributes = {name: value for name, value in attributes.items() if value is not None}
    inputs, outputs = node.inputs(t), node.outputs(t)
    inputs |= {name: (inputs[name][0], shape) for name, shape in options.shapes.items()}
    inputs |= {name: (dtype, inputs[name][1]) for name, dtype in options.types.items()}
    nodes, names, made = [], [], []
    cast = {name: options.casts and dtype in (t, "f16", "bf16") for name, (dtype, _) in (inputs | outputs).items()}
    outer = {name: "f32" if cast[name] else dtype for name, (dtype, _) in (inputs | outputs).items()}
    for name, (dtype, _) in inputs.items():
        inner = name
        if cast[name]:
            inner = f"{name}_cast"
            nodes.append(helper.make_node("Cast", [name], [inner], to=onnx_type(dtype)))
        names.append(inner)
    tail = []
    for name, (dtype, _) in outputs.items():
        inner = name
        if cast[name]:
            inner = f"{name}_cast"
            tail.append(helper.make_node("Cast", [inner], [name], to=TensorProto.FLOAT))
        made.append(inner)
    nodes.append(helper.make_node(node.op, names, made, name="the_node", domain=DOMAIN, **attributes))
    info, declared = helper.make_tensor_value_info, options.declared or not options.shapes
    graph = helper.make_graph(
        nodes + tail,
        "one_node",
        [info(name, onnx_type(outer[name]), shape) for name, (_, shape) in inputs.items()],
        [info(name, onnx_type(outer[name]), shape if declared else None) for name, (_, shape) in outputs.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=options.functions)
    return model.SerializeToString()
