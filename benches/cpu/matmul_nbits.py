"""How fast ONNX Runtime's CPU provider multiplies by block-wise integers, and how closely.

    python benches/cpu/matmul_nbits.py [--outputs N] [--inputs K] [--threads T]

One row a way: milliseconds (the median and the least of 15 runs), the product's largest error relative
to its largest value against numpy in f64, and the time next to the f32 product's in the same run.
"""

import argparse
import statistics
import time

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

BLOCK = 32
F32, INT8 = 1, 4  # accuracy_level


def initializers(rng, outputs, inputs, bits):
    """Constants of a node, and the f64 matrix that they stand for."""
    blocks = inputs // BLOCK
    packed = rng.integers(0, 256, (outputs, blocks, BLOCK * bits // 8), dtype=np.uint8)
    scales = rng.random((outputs * blocks,), dtype=np.float32) / 100
    q = packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(outputs, blocks, BLOCK)
    matrix = (q.astype(np.float64) - (1 << bits - 1)) * scales.reshape(outputs, blocks, 1)
    return [numpy_helper.from_array(packed, "q"), numpy_helper.from_array(scales, "s")], matrix.reshape(outputs, inputs)


def halves(q, scales):
    """Eight bits as two nodes of four, as `ratplus export --quantize int8` writes them."""
    packed, s = numpy_helper.to_array(q), numpy_helper.to_array(scales)
    outputs, blocks, _ = packed.shape

    def half(shift, name):
        values = packed >> shift & 15
        return numpy_helper.from_array(values[..., 0::2] | values[..., 1::2] << 4, name)

    zeros = np.zeros(outputs * -(-blocks // 2), np.uint8)
    return [half(4, "h"), numpy_helper.from_array(s * 16, "hs"), half(0, "l"), scales, numpy_helper.from_array(zeros, "z")]


def ways(rng, outputs, inputs):
    """(name, nodes, initializers, f64 matrix)."""
    matrix = rng.standard_normal((outputs, inputs), dtype=np.float32)
    gemm = helper.make_node("Gemm", ["a", "w"], ["y"], transB=1)
    yield "f32", [gemm], [numpy_helper.from_array(matrix, "w")], matrix.astype(np.float64)

    def node(constants, out, bits, level):
        attributes = {"K": inputs, "N": outputs, "bits": bits, "block_size": BLOCK, "accuracy_level": level}
        return helper.make_node("MatMulNBits", ["a", *constants], [out], domain="com.microsoft", **attributes)

    for bits in (4, 8):
        constants, matrix = initializers(rng, outputs, inputs, bits)
        yield f"int{bits}, rows in f32", [node("qs", "y", bits, F32)], constants, matrix
        yield f"int{bits}, rows in int8", [node("qs", "y", bits, INT8)], constants, matrix
    nodes = [node(["h", "hs"], "y0", 4, F32), node(["l", "s", "z"], "y1", 4, F32)]
    nodes.append(helper.make_node("Add", ["y0", "y1"], ["y"]))
    yield "int8 as two of int4, rows in f32", nodes, halves(*constants), matrix


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--outputs", type=int, default=4096)
    parser.add_argument("--inputs", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    outputs, inputs = arguments.outputs, arguments.inputs
    print(f"onnxruntime {ort.__version__}, [{outputs}, {inputs}], {arguments.threads} threads")
    print("| rows | way | median ms | least ms | of f32 | error |\n|---|---|---|---|---|---|")
    for rows in (1, 64):
        baseline = None
        for name, nodes, constants, matrix in ways(np.random.default_rng(0), outputs, inputs):
            value = helper.make_tensor_value_info
            graph = helper.make_graph(
                nodes, "g", [value("a", TensorProto.FLOAT, [rows, inputs])], [value("y", TensorProto.FLOAT, [rows, outputs])], constants
            )
            imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
            model = helper.make_model(graph, opset_imports=imports, ir_version=9)
            options = ort.SessionOptions()
            options.intra_op_num_threads = arguments.threads
            session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
            a = np.random.default_rng(1).standard_normal((rows, inputs), dtype=np.float32)
            expected = a.astype(np.float64) @ matrix.T
            error = np.abs(session.run(None, {"a": a})[0] - expected).max() / np.abs(expected).max()
            times = []
            for _ in range(15):
                started = time.perf_counter()
                session.run(None, {"a": a})
                times.append(1e3 * (time.perf_counter() - started))
            median = statistics.median(times)
            baseline = baseline or median
            print(f"| {rows} | {name} | {median:.2f} | {min(times):.2f} | {median / baseline:.2f} | {error:.1e} |")


if __name__ == "__main__":
    main()
