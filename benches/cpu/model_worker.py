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
    parser.add_argument("--contexts", required=True, help="tokens before those that are decoded, with commas between")
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


def contexts(options):
    """Those of the command line."""
    return [int(word) for word in options.contexts.split(",")]


def prompting(size, run):
    """Tokens a second of `run(ids)` on a prompt, after a short one that is not counted."""
    ids = tokens(size, size.prompt)
    run(ids[: size.prompt // 8])
    return size.prompt / seconds(lambda: run(ids))


def decoding(size, context, step):
    """Tokens a second of `step(position, token)` after `context` tokens, after a few that are not counted."""
    ids = tokens(size, size.new_tokens)
    for count in (size.new_tokens // 8, size.new_tokens):
        taken = seconds(lambda: [step(context + at, int(token)) for at, token in enumerate(ids[:count])])  # noqa: B023
    return size.new_tokens / taken


def answer(measured):
    """Hands the results to model_peers.py."""
    json.dump(measured, sys.stdout)
