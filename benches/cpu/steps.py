"""What a run of whole programs in rounds has found: steps of so many seconds, and what was left out."""

import json
import time
from pathlib import Path

import machine

ROOT = Path(__file__).resolve().parents[2]


def check(parser, options):
    """Refuses what no run can do with."""
    for flag, value in [("--threads", options.threads), ("--rounds", options.rounds)]:
        if value < 1:
            parser.error(f"{flag}: expected 1 or more, found {value}")
    for flag, path in [("--library", options.library), ("--program", options.program)]:
        if not path.is_file():
            parser.error(f"{flag}: {path}: no such file; `cargo build --release -p ratplus -p ratplus-onnxruntime` makes it")


class Steps:
    """A document with `steps` and `skipped`, written to `options.json` after every step."""

    def __init__(self, options, document):
        self.options = options
        self.document = {
            "date": time.strftime("%Y-%m-%d"), "threads": options.threads, "machine": machine.describe(),
            "load": {"start": machine.load()}, "skipped": [], "steps": [], **document,
        }  # fmt: skip

    def save(self):
        if self.options.json:
            self.options.json.parent.mkdir(parents=True, exist_ok=True)
            self.options.json.write_text(json.dumps(self.document, indent=1) + "\n")

    def skip(self, name, reason):
        self.document["skipped"].append({"contender": name, "reason": reason})
        print(f"skipped: {name}: {reason}", flush=True)

    def in_time(self, name, turn, about, left):
        """Whether a step of about so many seconds ends in those that are left; says so where it does not."""
        if left > 0 and about <= left:
            return True
        words = f", of about {about:.0f} s," if about else ""
        self.skip(name, f"round {turn + 1}{words} does not end within --seconds {self.options.seconds:g}")
        return False

    def measure(self, step, work):
        """`step` with what `work` finds, or why it found nothing, and how long it took."""
        before, begin = machine.busy_seconds(), time.monotonic()
        try:
            step |= work()
        except Exception as error:  # noqa: BLE001 - a failure is a result
            step["reason"] = f"{type(error).__name__}: {error}"[:400].replace(str(ROOT), ".")
        step["seconds"] = time.monotonic() - begin
        after = machine.busy_seconds()
        if before and after and step["seconds"] > 0.2:
            everyone, mine = (late - early for early, late in zip(before, after))
            step["others_cpus"] = round(max(0.0, everyone - mine) / step["seconds"], 2)
        self.document["steps"].append(step)
        self.save()
        return step

    def end(self):
        """Whether ours were measured."""
        self.document["load"]["end"] = machine.load()
        self.save()
        failed = [step["contender"] for step in self.document["steps"] if "reason" in step]
        print(f"{len(self.document['steps'])} steps measured, {len(self.document['skipped'])} skipped", flush=True)
        return not any(name.startswith("ours") for name in failed)


def took(step):
    """The end of a step's line."""
    return f"({step['seconds']:.0f} s, others {step.get('others_cpus', '?')} CPUs)"
