"""What a run of whole programs in rounds has found: steps of so many seconds, and what was left out."""

import argparse
import json
import time
from pathlib import Path

import machine

ROOT = Path(__file__).resolve().parents[2]


def parser(what, sizes, seconds, page):
    """Arguments that all such runs have."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--size", default="1.5b", choices=sizes, help="of the model (default: 1.5b)")
    parser.add_argument("--rounds", type=int, default=3, help="how often all are measured, at most (default: 3)")
    ends = f"no step is started that may end so long after models are there (default: {seconds})"
    parser.add_argument("--seconds", type=float, default=seconds, help=ends)
    parser.add_argument("--threads", type=int, default=2, help="of each (default: 2)")
    parser.add_argument("--library", type=Path, default=ROOT / "target/release/libratplus_ort.so", help="our kernels")
    parser.add_argument("--program", type=Path, default=ROOT / "target/release/ratplus", help="ratplus")
    parser.add_argument("--models", type=Path, default=ROOT / "target/peers/models", help="where packages and models are kept")
    parser.add_argument("--json", type=Path, help="where results go, after every step")
    parser.add_argument("--continue", dest="resume", action="store_true", help="keep the steps that --json holds")
    parser.add_argument("--docs", type=Path, help=f"the folder whose {page} gets the results, and their drawing")
    return parser


def check(parser, options):
    """Refuses what no run can do with."""
    for flag, value in [("--threads", options.threads), ("--rounds", options.rounds)]:
        if value < 1:
            parser.error(f"{flag}: expected 1 or more, found {value}")
    if options.resume and not options.json:
        parser.error("--continue: expected --json FILE with it")
    for flag, path in [("--library", options.library), ("--program", options.program)]:
        if not path.is_file():
            parser.error(f"{flag}: {path}: no such file; `cargo build --release -p ratplus -p ratplus-onnxruntime` makes it")


class Steps:
    """A document with `steps` and `skipped`, written to `options.json` after every step."""

    def __init__(self, options, document):
        self.options, self.resumed = options, False
        self.document = {
            "date": time.strftime("%Y-%m-%d"), "threads": options.threads, "machine": machine.describe(),
            "load": {"start": machine.load()}, "skipped": [], "steps": [], **document,
        }  # fmt: skip
        if options.resume and options.json.is_file():
            self.take_over(json.loads(options.json.read_text()))

    def take_over(self, earlier):
        """Steps of an earlier run, which has to be one of the same."""
        for field in ("size", "threads", "machine", "asked"):
            if earlier.get(field) != self.document.get(field):
                raise SystemExit(
                    f"error: {self.options.json}: --continue expects `{field}` {self.document.get(field)!r}, found "
                    f"{earlier.get(field)!r}; measure anew without --continue"
                )
        # As they were when the first step was measured.
        self.document |= {"date": earlier["date"], "load": earlier["load"]}
        self.resumed = True
        self.document["steps"] = [step for step in earlier["steps"] if "reason" not in step]

    def done(self, **of):
        """How many steps of that kind are there."""
        return sum(of.items() <= step.items() for step in self.document["steps"])

    def begin(self):
        """Models are there: measuring starts."""
        if not self.resumed:
            self.document["load"]["start"] = machine.load()

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


def not_measured(document, name):
    """Lines about what has no figure, and why: `name` is what a step's reason is told of."""
    measured = {name(step) for step in document["steps"] if "reason" not in step}
    failed = [{"contender": name(step), "reason": step["reason"]} for step in document["steps"] if "reason" in step]
    # A further round that had no time left is told of by the number of rounds.
    left_out = [x for x in document["skipped"] if x["contender"] not in measured]
    lines = dict.fromkeys(f"- {x['contender']}: {x['reason']}" for x in left_out + failed)
    return ["Not measured:\n\n" + "\n".join(lines) + "\n"] if lines else []


def took(step):
    """The end of a step's line."""
    return f"({step['seconds']:.0f} s, others {step.get('others_cpus', '?')} CPUs)"
