"""One file an operator: what its schema does not say. Every test of test_operators.py runs for each.

A file defines one class with the operator's name, a dataclass of sizes and attributes that says what a
`Node` has to. Ports, types and aliases are the library's own.
"""

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Callable

import numpy as np
from operator_tool import schemas
from plugin_models import numpy_type


def exact(x):
    return x


@dataclass(frozen=True)
class Rounding:
    """How a model rounds, in f64: what is stored in the type of the cache, and what products take
    besides, where an implementation has them in the type of the activations."""

    cache: Callable = exact
    operand: Callable = exact


EXACT = Rounding()


def rounding_to(dtype):
    """A function that rounds f64 to a type."""
    return lambda x: x.astype(numpy_type(dtype)).astype(np.float64)


class Node:
    """A node of an operator. Beside what is here, a description has the fields `batch` and `seq_len`, the
    longest sequence that is tried, `max_seq_len`, and says:

    - `random(rng)`: a node of batch 3, different every time;
    - `example()`: a small fixed one of batch 2, whose wrong attributes and shapes are told below;
    - `dims()`: the size of every axis of the schema, by its letter;
    - `attributes()`: by name;
    - `model(tokens, rounding)`: what a whole sequence gives, `[T, N]` f64 by the name of the result, from
      `[T, N]` f64 by the name of the input, in the operator's definition;
    - `memory(tokens)`, where it has states: by the state's input, what it holds after the sequence (f64 of its
      shape without the batch, NaN where nothing was written) and the largest error beside rounding once (None:
      that of an f32 result).
    """

    # The type of the cache, where it is another than that of the activations.
    cache = ""
    # How many terms the products sum that an implementation may take in the type of the activations.
    product = 0
    # Whether any way to cut a sequence leaves the same bits in the states.
    states_are_exact = False
    # Whether any node can be written in standard operators.
    has_body = True
    # (attributes to replace, what the refusal says). A missing one and one of another kind are known already.
    bad_attributes = ()
    # (shapes to replace, what the refusal says), beside those that two ports say differently.
    bad_shapes = ()

    @classmethod
    def schema(cls):
        return schemas()[cls.__name__]

    @property
    def op(self):
        return type(self).__name__

    def carried(self):
        """The node for an implementation that has f16 and bf16 in f32."""
        return self

    def tables(self, t="f32"):
        """Values of the inputs that are neither tokens, states nor lengths."""
        return {}

    def memory(self, tokens):
        return {}

    def _typed(self, port, t):
        dims = self.dims()
        dtype = {"T": t, "C": self.cache or t}.get(port["dtype"], port["dtype"])
        return dtype, tuple(dims[axis] for axis in port["axes"])

    def inputs(self, t):
        """(type, shape) by name, in the schema's order."""
        return {port["name"]: self._typed(port, t) for port in self.schema()["inputs"]}

    def outputs(self, t):
        return {port["name"]: self._typed(port, t) for port in self.schema()["outputs"]}

    @property
    def states(self):
        """The output that takes the place of an input, by the input."""
        return dict(self.schema()["aliases"])

    @property
    def chunks(self):
        """Inputs with a row a token."""
        return [port["name"] for port in self.ports() if "L" in port["axes"]]

    def ports(self):
        """The inputs that the node has."""
        return self.schema()["inputs"]

    @property
    def results(self):
        """Outputs with a row a token."""
        return [port["name"] for port in self.schema()["outputs"] if "L" in port["axes"]]

    @property
    def lengths(self):
        return [port["name"] for port in self.schema()["inputs"] if port["dtype"] == "i64"]

    def tokens(self, rng, t, length):
        """A random sequence, `[T, N]` by input."""
        types = self.inputs(t)
        return {name: (2 * rng.standard_normal((length, types[name][1][2]))).astype(numpy_type(t)) for name in self.chunks}


def file_of(op):
    """The name of the file that describes an operator."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", op).lower()


def _load():
    files = [path.stem for path in sorted(Path(__file__).parent.glob("*.py")) if path.stem != "__init__"]
    modules = {name: import_module(f"operators.{name}") for name in files}
    found = {}
    for name, module in modules.items():
        classes = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Node)]
        described = [kind for kind in classes if kind is not Node and file_of(kind.__name__) == name]
        assert len(described) == 1, f"operators/{name}.py has to define the one class of its name"
        found[described[0].__name__] = described[0]
    return found


DESCRIPTIONS = _load()
# Those with kernels for GPUs.
GPU_DESCRIPTIONS = {op: description for op, description in DESCRIPTIONS.items() if description.schema()["gpu_types"]}
