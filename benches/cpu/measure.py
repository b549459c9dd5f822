"""A run: every contender is checked against the literal model, then timed within the budget."""

import json
import statistics
import time
from dataclasses import replace

import numpy as np

import machine
from limits import Limits
from problem import Inputs, exact, relative_error, sampled, sampled_positions
from suites import checks, suite

# Largest error relative to the largest value that is taken as right.
TOLERANCE = {"f32": 1e-5, "bf16": 2e-2}
CUSTOM = {"RecurrenceScan", "DilatedAttention", "BlockTopKAttention"}
# Seconds that are kept for the limits at the end.
RESERVE = 20
# Of the f32 product's rate, what a contender is thought to reach before it has been timed.
GUESS = 0.2
COMPILE_SECONDS = 25
# A contender may need this part of the free memory.
MEMORY = 0.7


def words(error):
    """An exception as one line."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def timed(run, deadline, together):
    """Seconds of each run after a first one: 1 where it takes more than 5 s, else 3 where more than 2 s, else 5 or
    more until they take `together` seconds. And how many CPUs other processes took meanwhile, where that is known."""
    run()
    seconds, before, begin = [], machine.busy_seconds(), time.perf_counter()
    while True:
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
        wanted = 1 if seconds[0] > 5 else 3 if seconds[0] > 2 else 5
        enough = len(seconds) >= wanted and (sum(seconds) > together or len(seconds) >= 200 or wanted < 5)
        if enough or time.monotonic() > deadline:
            break
    after, wall = machine.busy_seconds(), time.perf_counter() - begin
    # The clock behind it ticks a hundred times a second.
    if not before or not after or wall < 0.2:
        return seconds, None
    everyone, mine = (late - early for early, late in zip(before, after))
    return seconds, round(max(0.0, everyone - mine) / wall, 2)


class Measurement:
    """What has been found, written to a file after every row."""

    def __init__(self, options, contenders, torch, command):
        self.contenders, self.torch, self.path = contenders, torch, options.json
        self.suite, self.threads = options.suite, options.threads
        self.seconds = options.seconds
        self.deadline = time.monotonic() + options.seconds - RESERVE
        self.wrong, self.failed, self.rates = set(), {}, {}
        self.inputs = None
        self.document = {
            "command": command, "suite": options.suite, "threads": options.threads, "seconds": options.seconds,
            "date": time.strftime("%Y-%m-%d"), "machine": machine.describe(), "left_out": options.left_out,
            "tolerance": TOLERANCE, "limits": {}, "load": {"start": machine.load()}, "checks": [], "rows": [],
        }  # fmt: skip

    def save(self):
        if self.path:
            text = json.dumps(self.document, indent=1) + "\n"
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(text)

    def run(self):
        """Whether everything that ran was right."""
        self.check()
        self.limits("start")
        done = set()
        for shape, names in suite(self.suite):
            self.inputs = None
            for contender in self.contenders:
                chosen = names is None or contender.name in names
                if not chosen or contender.refuses(shape) or (shape, contender.name) in done:
                    continue
                done.add((shape, contender.name))
                self.row(contender, shape)
        self.limits("end")
        self.document["load"]["end"] = machine.load()
        self.save()
        return not self.wrong

    # Checks.

    def check(self):
        """Compares everyone with the literal model."""
        for shape, everyone in checks(self.suite):
            wanted, inputs = {}, {}
            for contender in self.contenders:
                if contender.group == "torch" and contender.slow_to_compile and not everyone:
                    continue
                for dtype in ("f32", "bf16"):
                    case = replace(shape, dtype=dtype)
                    if contender.refuses(case):
                        continue
                    if dtype not in wanted:
                        inputs[dtype] = Inputs(case, history=True)
                        wanted[dtype] = exact(case, inputs[dtype])
                    self.check_one(contender, case, inputs[dtype], wanted[dtype])
        self.save()
        for name in sorted(self.wrong):
            print(f"WRONG: {name}: it is not timed", flush=True)

    def check_one(self, contender, shape, inputs, wanted):
        entry = {"contender": contender.name, **shape.row(), "limit": TOLERANCE[shape.dtype]}
        self.document["checks"].append(entry)
        try:
            prepared = contender.prepare(shape, inputs)
            prepared.run()
            entry["error"] = relative_error(prepared.result(), wanted)
            if shape.part == "chain" and hasattr(contender, "ran"):
                entry["kernels"] = sorted(contender.ran(shape, inputs) & CUSTOM)
        except Exception as error:  # noqa: BLE001 - a failure is a result
            entry["reason"] = words(error)
            self.failed.setdefault((contender.name, shape.part), entry["reason"])
            if contender.group == "ours":
                self.wrong.add(contender.name)
        expected = sorted(shape.operators()) if contender.group == "ours" else []
        right = entry.get("error", 0) <= entry["limit"] and entry.get("kernels", expected) == expected
        if not right:
            self.wrong.add(contender.name)
        found = f"error {entry['error']:.2e}" if "error" in entry else entry["reason"]
        if not right:
            found += f"  WRONG: at most {entry['limit']:.0e}, kernels {entry.get('kernels', [])} of {expected}"
        # JSON has no infinity.
        if not np.isfinite(entry.get("error", 0)):
            entry["error"] = None
        print(f"check {contender.name:38} {shape!s:50} {found}", flush=True)

    # Rows.

    def reason_against(self, contender, shape):
        """Why a row is not run, or None."""
        if contender.name in self.wrong:
            return "wrong: see the checks"
        if (contender.name, shape.part) in self.failed:
            return f"failed in the check: {self.failed[contender.name, shape.part]}"
        needed, free = contender.bytes_needed(shape), machine.available_bytes()
        needed += 0 if self.inputs else Inputs.bytes_needed(shape)
        if needed > MEMORY * free:
            return f"does not fit: about {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB free"
        left = self.deadline - time.monotonic()
        if left <= 0:
            return f"not run: --seconds {self.seconds:g} are over"
        guess = GUESS * self.document["limits"]["start"]["gemm_f32"]["rate"]
        rate = self.rates.get((contender.name, shape.part), guess)
        once = contender.cost(shape) / rate
        repeats = 2 if once > 5 else 4 if once > 2 else 6
        estimate = repeats * once + (COMPILE_SECONDS if contender.compiled else 0)
        if estimate > max(left, 0):
            return f"not run: about {estimate:.0f} s, {left:.0f} s left of --seconds {self.seconds:g}"
        return None

    def row(self, contender, shape):
        """Times one contender on one shape, or records why not."""
        row = {"contender": contender.name, "group": contender.group, **shape.row()}
        row |= {"flops": shape.flops(), "bytes": shape.least_bytes()}
        reason = self.reason_against(contender, shape)
        if reason is None:
            try:
                self.inputs = self.inputs or Inputs(shape)
                row |= self.measured(contender, shape, self.inputs)
            except Exception as error:  # noqa: BLE001 - a failure is a result
                reason = words(error)
        if reason is not None:
            row["reason"] = reason
        self.document["rows"].append(row)
        self.save()
        print(f"{contender.name:38} {shape!s:50} {line(row)}", flush=True)

    def measured(self, contender, shape, inputs):
        """Times of a row, its error at sampled queries, and what the contender says about itself."""
        prepared = contender.prepare(shape, inputs)
        # Threads of the contender before may still spin.
        time.sleep(0.05)
        seconds, others = self.undisturbed(prepared.run)
        found = {"detail": prepared.detail} if prepared.detail else {}
        if others is not None:
            found["others_cpus"] = others
        if shape.part != "decode":
            error = sample_error(shape, inputs, prepared.result())
            found["sample_error"] = error if np.isfinite(error) else None
            if not error <= TOLERANCE[shape.dtype]:
                self.wrong.add(contender.name)
                found["reason"] = f"wrong: sampled error {error:.2e}, at most {TOLERANCE[shape.dtype]:.0e}"
                return found
        each = [1e3 * x / prepared.count for x in seconds]
        middle = statistics.median(each)
        self.rates[contender.name, shape.part] = contender.cost(shape) / (prepared.count * middle / 1e3)
        return found | {"median_ms": middle, "least_ms": min(each), "most_ms": max(each), "runs": len(each)}

    def undisturbed(self, run):
        """What `timed` finds, again where other processes took CPUs and it is not long: the quietest of 3."""
        attempts = []
        while True:
            attempts.append(timed(run, self.deadline, 0.02 if self.suite == "tiny" else 0.5))
            seconds, others = attempts[-1]
            long = sum(seconds) > 3 or time.monotonic() > self.deadline
            if others is None or others < machine.DISTURBED or long or len(attempts) == 3:
                return min(attempts, key=lambda attempt: attempt[1] or 0)

    def best_scan(self, seq_len):
        """The recurrence in PyTorch that was fastest at this length, or at the nearest one measured."""
        rows = [row for row in self.document["rows"] if row["part"] == "scan" and row["group"] == "torch"]
        rows = [row for row in rows if "median_ms" in row]
        if not rows:
            return "eager loop"
        nearest = min((row["seq_len"] for row in rows), key=lambda length: abs(length - seq_len))
        return min((row for row in rows if row["seq_len"] == nearest), key=lambda row: row["median_ms"])["contender"]

    def limits(self, when):
        found = Limits(self.torch, self.threads, self.suite == "tiny").measure()
        self.document["limits"][when] = found
        for name, limit in found.items():
            text = f"{limit['rate'] / 1e9:.1f} G/s by {limit['way']}" if "rate" in limit else limit["reason"]
            print(f"limit at the {when}: {name:10} {text}", flush=True)
        self.save()


def sample_error(shape, inputs, results):
    """The largest relative error at the sampled queries."""
    positions, worst = sampled_positions(shape), 0.0
    for span, rows in sampled(shape, inputs):
        worst = max(worst, relative_error([result[positions, span] for result in results], rows))
    return worst


def line(row):
    """Time or reason, in words."""
    if "median_ms" not in row:
        return row["reason"]
    spread = f"{row['least_ms']:.4g}..{row['most_ms']:.4g}"
    return f"{row['median_ms']:.4g} ms ({spread}, {row['runs']} runs) {row.get('detail', '')}".rstrip()
