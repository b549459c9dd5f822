#!/usr/bin/env python3
"""Measures a whole model, ours next to llama.cpp, PyTorch and OpenVINO, each in processes of its own, one after the
other in rounds.

`cargo xtask peers --suite model` installs and builds what this needs. Packages and models are written first, unless they
are there. Results are written after every step; `--continue` goes on from there.
"""

import os
import shlex
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path += [str(HERE), str(ROOT / "tests" / "python")]

import steps  # noqa: E402
from limits import Limits  # noqa: E402
from model_contenders import Setting, contenders, missing  # noqa: E402
from model_sizes import SIZES  # noqa: E402
from peers import below_root  # noqa: E402
from steps import Steps, took  # noqa: E402

# Seconds that are kept for the limits at the end.
RESERVE = 20


def parse(words):
    parser = steps.parser(__doc__.splitlines()[0], SIZES, 720, "cpu.md")
    options = parser.parse_args(words)
    steps.check(parser, options)
    return options


class Measurement(Steps):
    """What has been found."""

    def __init__(self, options, words):
        options.models.mkdir(parents=True, exist_ok=True)
        files = (options.program.resolve(), options.library.resolve())
        self.setting = Setting(SIZES[options.size], options.threads, *files, options.models.resolve())
        size = self.setting.size
        command = shlex.join(["python3", "benches/cpu/model_peers.py", *map(below_root, words)])
        super().__init__(options, {
            "command": command, "size": size.name, "prompt": size.prompt, "contexts": list(size.contexts),
            "new_tokens": size.new_tokens, "batch": size.batch, "dense_ffn": size.dense_ffn, "weights": size.weights,
            "limits": {},
        })  # fmt: skip

    def take_over(self, earlier):
        super().take_over(earlier)
        self.document["limits"] = earlier["limits"]

    def limits(self, when):
        try:
            import torch
        except ImportError:
            torch = None
        small = self.setting.size.name == "tiny"
        self.document["limits"][when] = Limits(torch, self.options.threads, small).measure()

    def run(self):
        """Whether ours were measured."""
        present = []
        for contender in contenders(self.setting):
            reason = missing(contender)
            if reason:
                self.skip(contender.name, reason)
            else:
                contender.clear()
                present.append(contender)
        for contender in present:
            begin = time.monotonic()
            contender.prepare()
            if time.monotonic() - begin > 1:
                print(f"prepared {contender.name} in {time.monotonic() - begin:.0f} s", flush=True)
        # Preparing is not measuring: it is done once.
        self.deadline = time.monotonic() + self.options.seconds - RESERVE
        self.limits("start")
        self.save()
        again = range(1, self.options.rounds)
        turns = [(0, contender) for contender in present]
        for once in (False, True):
            turns += [(turn, contender) for turn in again for contender in present if contender.once == once]
        for turn, contender in turns:
            if self.done(contender=contender.name) <= turn:
                self.step(contender, turn)
        self.limits("end")
        return self.end()

    def step(self, contender, turn):
        """Measures a contender once, or says why not."""
        known = [step["seconds"] for step in self.document["steps"] if step["contender"] == contender.name]
        left = self.deadline - time.monotonic()
        if not self.in_time(contender.name, turn, max(known, default=0), left):
            return
        step = {"contender": contender.name, "program": contender.program, "bits": contender.bits, "batch": contender.batch}
        step = self.measure(step, contender.measure)
        print(f"{turn + 1}: {contender.name:22} {words_of(step)}", flush=True)


def words_of(step):
    """A step's results in one line."""
    if "reason" in step:
        return step["reason"]
    rates = ", ".join(f"{rate:.2f} tokens/s after {context}" for context, rate in step["decode"].items())
    parts = [rates, f"resident {step['resident_bytes'] / 1e9:.2f} GB"]
    if "prompt" in step:
        parts.append(f"prompt {step['prompt']:.1f} tokens/s")
    if "first_token" in step:
        parts.append(f"first token {step['first_token']:.2f} s")
    return "; ".join([*parts, took(step)])


def main(words):
    """Runs all rounds; the exit code."""
    options = parse(words)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    measurement = Measurement(options, words)
    right = measurement.run()
    if options.docs:
        import model_report

        model_report.write(measurement.document, options.docs)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
