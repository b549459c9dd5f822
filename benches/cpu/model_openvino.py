#!/usr/bin/env python3
"""OpenVINO on a package of ours in standard operators (`ratplus export --fallback inline`): the same model, measured in
a process of its own."""

import argparse
import sys
from pathlib import Path

import numpy as np
import openvino

from model_sizes import SIZES
from model_worker import answer, arguments, contexts, decoding, prompting, resident

PAST, PRESENT = "past_key_values.", "present."


class Steps:
    """One engine, with two sides of states that steps go back and forth between."""

    def __init__(self, path, threads):
        options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY"}
        engine = openvino.Core().compile_model(path, "CPU", options)
        inputs = {port.any_name: port for port in engine.inputs}

        def zeros(port):
            tensor = openvino.Tensor(port.element_type, port.shape)
            tensor.data.view(np.uint8)[...] = 0
            return tensor

        self.given = {name: zeros(port) for name, port in inputs.items() if not name.startswith(PAST)}
        sides = [{name: zeros(port) for name, port in inputs.items() if name.startswith(PAST)} for _ in range(2)]
        self.requests = []
        for past, present in (sides, sides[::-1]):
            request = engine.create_infer_request()
            for name, tensor in {**self.given, **past}.items():
                request.set_tensor(name, tensor)
            for name, tensor in present.items():
                request.set_tensor(name.replace(PAST, PRESENT), tensor)
            self.requests.append(request)
        self.state_bytes = sum(tensor.byte_size for tensor in sides[0].values())

    def run(self, ids, past):
        self.given["input_ids"].data[0, : len(ids)] = ids
        self.given["past_length"].data[0] = past
        self.given["seq_length"].data[0] = len(ids)
        self.requests[0].infer()
        self.requests.reverse()

    def logits(self):
        return self.requests[1].get_tensor("logits").data


def measure(size, package, threads, wanted):
    before = resident("VmRSS")
    steps = Steps(package / "decode.onnx", threads)
    found = {"decode": {}, "state_bytes": steps.state_bytes}
    for context in wanted:
        found["decode"][context] = decoding(size, context, lambda position, token: steps.run([token], position))
    if not np.isfinite(steps.logits()).all():
        raise OSError("OpenVINO's logits are no numbers")
    found["resident_bytes"] = resident("VmHWM") - before
    del steps
    steps = Steps(package / f"prefill_{size.prompt}.onnx", threads)
    found["prompt"] = prompting(size, lambda ids: steps.run(ids, 0))
    return found


def main(words):
    parser = arguments(argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    parser.add_argument("--package", type=Path, required=True, help="exported with --fallback inline")
    options = parser.parse_args(words)
    answer(measure(SIZES[options.size], options.package, options.threads, contexts(options)))


if __name__ == "__main__":
    main(sys.argv[1:])
