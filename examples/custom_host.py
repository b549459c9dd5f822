"""A program of one's own around a package: ONNX Runtime, the library of RAT+ operators, and nothing of `ratplus`.

    python custom_host.py PACKAGE LIBRARY 12,503,88 [COUNT]

prints COUNT tokens (default 16) after the given ones, the likeliest each time, for packages with `--logits last`. Needs onnxruntime and numpy, and the library
`libratplus_ort.so`. docs/by-hand.md says what the inputs and outputs mean.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def sessions(package, library, manifest):
    """An ONNX Runtime session for each static length of the package."""
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library))
    # Those for one sequence, built for CPUs and the library; `portable` are those that run anywhere.
    engines = [engine for engine in manifest["engines"] if engine["batch"] == 1]
    files = {engine["seq_len"]: package / engine["files"]["cpu"] for engine in engines}
    return {length: ort.InferenceSession(file, options, ["CPUExecutionProvider"]) for length, file in files.items()}


def states(session):
    """One buffer for each state, of any content: a sequence starts at past_length 0."""
    types = {"tensor(float)": 1, "tensor(float16)": 10, "tensor(bfloat16)": 16}
    make = ort.OrtValue.ortvalue_from_shape_and_type
    inputs = [each for each in session.get_inputs() if each.name.startswith("past_key_values.")]
    return {each.name: make(each.shape, types[each.type]) for each in inputs}


def step(session, buffers, past_length, chunk):
    """Runs one chunk; the logits after its last token. The library updates states in place."""
    ids = np.zeros(session.get_inputs()[0].shape, np.int64)
    ids[0, : len(chunk)] = chunk
    past, count = np.array([past_length]), np.array([len(chunk)])
    binding = session.io_binding()
    binding.bind_output("logits", "cpu")  # the first output
    for name, array in [("input_ids", ids), ("past_length", past), ("seq_length", count)]:
        binding.bind_cpu_input(name, array)
    for name, buffer in buffers.items():
        binding.bind_ortvalue_input(name, buffer)
        binding.bind_ortvalue_output(name.replace("past_key_values.", "present."), buffer)
    session.run_with_iobinding(binding)
    return binding.get_outputs()[0].numpy()[0]


def generate(package, library, prompt, count):
    """`count` tokens after `prompt`."""
    manifest = json.loads((package / "manifest.json").read_text())
    engines = sessions(package, library, manifest)
    buffers = states(engines[1])
    past_length, tokens = 0, list(prompt)
    while len(tokens) < len(prompt) + count:
        # The prompt in the longest chunks there are, then a token at a time.
        chunk = tokens[past_length : past_length + max(engines)]
        engine = engines[min(length for length in engines if length >= len(chunk))]
        logits = step(engine, buffers, past_length, chunk)
        past_length += len(chunk)
        if past_length == len(tokens):
            tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    words = [int(word) for word in sys.argv[3].split(",")]
    print(*generate(Path(sys.argv[1]), sys.argv[2], words, int(sys.argv[4]) if len(sys.argv) == 5 else 16))
