"""ONNX models: the operators alone and chained, with the bodies that `ratplus export` gives them, and ONNX
Runtime's own attention."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from plugin_models import DOMAIN, PLUGIN, ModelOptions, build_model, onnx_type

MICROSOFT = "com.microsoft"


class Bodies:
    """Model-local functions of the operators, read from synthetic packages of one layer."""

    def __init__(self, program):
        self.program = Path(program)
        self.made = {}

    def of(self, shape, seq_len):
        """The functions for chunks of `seq_len` tokens of a sequence of at most `shape.seq_len`."""
        key = (shape.heads, shape.head_dim, shape.seq_len, seq_len, shape.group, shape.blocks)
        if key not in self.made:
            self.made[key] = self.export(shape, seq_len)
        return self.made[key]

    def export(self, shape, seq_len):
        folder = Path(tempfile.mkdtemp(prefix="ratplus-peers-"))
        try:
            layer = {"dilation": 1, "local_window": 0, "initial": 0}
            if shape.blocks:
                layer = {"block_size": shape.blocks.size, "top_k": shape.blocks.top_k, "score": shape.blocks.score}
            config = {
                "vocab_size": 8, "d_model": shape.width, "num_layers": 1, "d_head": shape.head_dim, "d_ffn": 8,
                "num_kv_heads": shape.kv_heads, "patterns": [layer],
            }  # fmt: skip
            (folder / "config.json").write_text(json.dumps(config))
            lengths = str(seq_len) if seq_len > 1 else str(shape.seq_len)
            command = [self.program, "export", "--no-check", "--synthetic", "config", "--config", folder / "config.json"]
            command += ["-o", folder / "package", "--max-seq-len", shape.seq_len, "--prefill-lengths", lengths]
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"ratplus export: exit {done.returncode}: {done.stderr.strip()}")
            name = "decode.onnx" if seq_len == 1 else f"prefill_{seq_len}.onnx"
            return list(onnx.load(folder / "package" / name, load_external_data=False).functions)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def operator_model(shape, seq_len, functions):
    """The bytes of a model of `shape.part` for chunks of `seq_len`: RecurrenceScan, the attention, or the first's
    results into the second."""
    scan, attention = shape.scan_node(seq_len), shape.part != "scan" and shape.attention_node(seq_len)
    if shape.part in ("scan", "attention"):
        node = scan if shape.part == "scan" else attention
        used = [function for function in functions if function.name == node.op]
        return build_model(node, shape.dtype, ModelOptions(functions=used))
    inputs = scan.inputs(shape.dtype) | {
        name: spec for name, spec in attention.inputs(shape.dtype).items() if name not in ("key", "value")
    }
    outputs = {name: spec for name, spec in scan.outputs(shape.dtype).items() if name not in scan.results}
    outputs |= attention.outputs(shape.dtype)
    gated = {"key": "gated_key", "value": "gated_value"}
    taken = [gated.get(name, name) for name in attention.inputs(shape.dtype)]
    names = {node.op: (list(node.inputs(shape.dtype)), list(node.outputs(shape.dtype))) for node in (scan, attention)}
    names[attention.op] = (taken, names[attention.op][1])
    nodes = [
        helper.make_node(node.op, *names[node.op], domain=DOMAIN, **PLUGIN, **node.attributes())
        for node in (scan, attention)
    ]
    return finish(nodes, inputs, outputs, functions, DOMAIN)


def finish(nodes, inputs, outputs, functions, domain):
    """The bytes of a model of these nodes; values are name -> (dtype, shape)."""
    info = lambda values: [  # noqa: E731
        helper.make_tensor_value_info(name, dtype if isinstance(dtype, int) else onnx_type(dtype), shape)
        for name, (dtype, shape) in values.items()
    ]
    graph = helper.make_graph(nodes, "operators", info(inputs), info(outputs))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(domain, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=functions).SerializeToString()


def multi_head_attention(shape):
    """ONNX Runtime's MultiHeadAttention, causal, on rotated queries and keys."""
    chunk = ("f32", (1, shape.seq_len, shape.width))
    node = helper.make_node(
        "MultiHeadAttention", ["query", "key", "value"], ["output"],
        domain=MICROSOFT, num_heads=shape.heads, unidirectional=1, scale=shape.attention_node(1).scale,
    )  # fmt: skip
    return finish([node], {name: chunk for name in ("query", "key", "value")}, {"output": chunk}, [], MICROSOFT)


def group_query_attention(shape):
    """ONNX Runtime's GroupQueryAttention; its cache comes back as an output."""
    chunk, kv_chunk = (("f32", (1, shape.seq_len, width)) for width in (shape.width, shape.kv_width))
    cache = ("f32", (1, shape.kv_heads, shape.seq_len, shape.head_dim))
    inputs = {"query": chunk, "key": kv_chunk, "value": kv_chunk}
    inputs |= {"seqlens_k": (TensorProto.INT32, (1,)), "total_sequence_length": (TensorProto.INT32, (1,))}
    node = helper.make_node(
        "GroupQueryAttention", ["query", "key", "value", "", "", "seqlens_k", "total_sequence_length"],
        ["output", "present_key", "present_value"],
        domain=MICROSOFT, num_heads=shape.heads, kv_num_heads=shape.kv_heads, scale=shape.attention_node(1).scale,
    )  # fmt: skip
    return finish([node], inputs, {"output": chunk, "present_key": cache, "present_value": cache}, [], MICROSOFT)
