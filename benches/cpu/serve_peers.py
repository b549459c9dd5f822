#!/usr/bin/env python3
"""Measures `ratplus serve` next to llama.cpp's server, with a whole model of the same shape and bits, by what clients
see: one server at a time, in turn.

`cargo xtask peers --suite serve` installs and builds what this needs. Packages and models are written first, unless they
are there. Results are written after every step.
"""

import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path += [str(HERE), str(ROOT / "tests" / "python")]

import machine  # noqa: E402
import steps  # noqa: E402
from model_contenders import Setting  # noqa: E402
from model_sizes import SIZES  # noqa: E402
from peers import below_root  # noqa: E402
from serve_contenders import LOADS, contenders, missing, turns  # noqa: E402
from steps import Steps, took  # noqa: E402


def parse(words):
    parser = steps.parser(__doc__.splitlines()[0], LOADS, 900, "serving.md")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's")
    options = parser.parse_args(words)
    steps.check(parser, options)
    return options


class Measurement(Steps):
    """What has been found."""

    def __init__(self, options, words):
        options.models.mkdir(parents=True, exist_ok=True)
        files = (options.program.resolve(), options.library.resolve())
        self.setting = Setting(SIZES[options.size], options.threads, *files, options.models.resolve())
        self.load = LOADS[options.size]
        command = shlex.join(["python3", "benches/cpu/serve_peers.py", *map(below_root, words)])
        super().__init__(options, {"command": command, "size": options.size, "asked": asdict(self.load)})

    def run(self):
        """Whether ours were measured."""
        present = []
        server = self.options.llama_server
        for contender in contenders(self.setting, self.load, server and server.resolve()):
            reason = missing(contender)
            if reason:
                self.skip(contender.name, reason)
                continue
            contender.clear()
            contender.prepare()
            present.append(contender)
        # Preparing is not measuring: it is done once.
        deadline = time.monotonic() + self.options.seconds
        self.begin()
        for turn, scenario, contender in turns(present, self.options.rounds):
            if self.done(scenario=scenario, contender=contender.name) <= turn:
                self.step(turn, scenario, contender, deadline)
        return self.end()

    def known(self, scenario, contender):
        """Seconds that a step takes: what it took, or what one of that scenario took at most."""
        alike = [step for step in self.document["steps"] if step["scenario"] == scenario]
        own = [step["seconds"] for step in alike if step["contender"] == contender.name]
        return max(own or [step["seconds"] for step in alike], default=0)

    def step(self, turn, scenario, contender, deadline):
        """Measures a contender once, or says why not."""
        name = f"{scenario}, {contender.name}"
        if not self.in_time(name, turn, self.known(scenario, contender), deadline - time.monotonic()):
            return
        reason = contender.fits(scenario)
        if reason:
            self.skip(name, reason)
            return
        step = {"contender": contender.name, "program": contender.program, "bits": contender.bits, "scenario": scenario}
        step = self.measure(step, lambda: contender.measure(scenario, 100 * turn + 1))
        print(f"{turn + 1}: {name:34} {words_of(step)}", flush=True)


def words_of(step):
    """A step's results in one line."""
    if "reason" in step:
        return step["reason"]
    left_out = ("contender", "program", "bits", "scenario", "seconds", "others_cpus")
    figures = [f"{name} {value:.3g}" for name, value in step.items() if name not in left_out and isinstance(value, float)]
    return ", ".join([*figures, took(step)])


def main(words):
    """Runs all rounds; the exit code."""
    options = parse(words)
    measurement = Measurement(options, words)
    right = measurement.run()
    if options.docs:
        import serve_report

        serve_report.write(measurement.document, options.docs)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
