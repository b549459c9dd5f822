"""What the programs that measure one peer share: random tokens, time, and memory of their own process."""

import json
import sys
import time
from pathlib import Path

import numpy as np


def arguments(parser):
    """The arguments of every worker."""
    parser.add_argument("--size", required=True, help="a name in model_sizes.py")
    parser.add_argument("--threads", type=int, required=True)
    return parser


def tokens(size, count):
    return np.random.default_rng(0).integers(0, size.vocab_size, count, dtype=np.int32)


def seconds(work):
    """Seconds of a call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def resident(field):
    """Bytes of a field of this process's status: VmRSS, now; VmHWM, at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status: expected {field}")


def decoding(size, context, step):
    """Tokens a second of `step(position, token)` after `context` tokens; a first round is not counted."""
    ids = tokens(size, size.new_tokens)
    rates = []
    for _ in range(2):
        taken = seconds(lambda: [step(context + at, int(token)) for at, token in enumerate(ids)])
        rates.append(size.new_tokens / taken)
    return rates[-1]


def answer(measured):
    """Hands the results to model_peers.py."""
    json.dump(measured, sys.stdout)
