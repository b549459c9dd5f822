#!/usr/bin/env python3
"""Writes the part of serving.md about throughput and latency, and its drawing, from what benches/cpu/serve_peers.py
wrote."""

import statistics
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))
import charts  # noqa: E402
from model_contenders import words  # noqa: E402
from model_report import disturbed, found, spread  # noqa: E402
from report import about, main, table  # noqa: E402
from steps import not_measured  # noqa: E402

PAGE = "serving.md"
PICTURE = "serve_peers.svg"
# Begins what is written here, to the end of the page.
HEADING = "## Beside llama.cpp's server"
PROGRAMS = ("ours", "ours, int8 rows,", "llama.cpp")
BITS = ("int4", "bf16")

READING = """\
One server at a time, in turn, on loopback, with as many slots as there are clients; medians of the rounds, in parentheses
the least, the most and how many. Prompts are token ids drawn at random, each of its own unless it is said; answers are
greedy, streamed, and of the length asked for whatever they hold. What a client counts is what the server says it made.

- `ours` is `ratplus serve` on a package of `ratplus export --synthetic config`, {pattern}; `int8 rows` is one of
  `--activations int8`, which rounds rows as llama.cpp does. `llama.cpp` is `llama-server` of the same source that `llama-cpp-python`
  builds, on a dense model with as many weights (docs/cpu.md says how it is made), keys and values in f16.
- Together: {clients} clients ask at once for {new_tokens} tokens after {prompt}; tokens a second from the first request
  to the last token, prompts included.
- Long prompts: a prompt of {long} runs cold in one slot and comes to the others by the prefix cache here, by saving
  and restoring the slot there; then all {clients} decode after it, and tokens a second are counted while all of them get
  some. `whole` is computed from both: {clients} such prompts, each cold, and {new_tokens} tokens of each.
- Prefix hit: a prompt of {prefix} and {tail} tokens, then its first {prefix} with {tail} others; the time to the first token.
- Stall: {running} requests are being answered when a prompt of {entering} enters; times between their tokens until it
  has its first one, or for {window:g} s.
"""


class Data:
    """A results file, with look-ups."""

    def __init__(self, document):
        self.document = document

    def values(self, program, bits, scenario, name):
        steps = self.document["steps"]
        steps = [s for s in steps if (s["program"], s["bits"], s["scenario"]) == (program, bits, scenario)]
        return [step[name] for step in steps if step.get(name) is not None]

    def median(self, *of):
        values = self.values(*of)
        return statistics.median(values) if values else None

    def cell(self, *of, scale=1):
        values = [value * scale for value in self.values(*of)]
        return spread(values) if values else ""

    def over(self, bits, scenario, name, program="ours"):
        """Ours over llama.cpp's, or None."""
        ours, theirs = self.median(program, bits, scenario, name), self.median("llama.cpp", bits, scenario, name)
        return ours / theirs if ours and theirs else None

    def between(self, bits, scenario, above, below):
        """One of our figures over another, or None."""
        above, below = (self.median("ours", bits, scenario, name) for name in (above, below))
        return above / below if above and below else None


def goals(data):
    """(ratio, goal, figure)."""
    asked = data.document["asked"]
    what = f"{asked['clients']} clients, {asked['new_tokens']} tokens after {asked['prompt']}"
    rows = [[f"{what}, {bits}: over llama.cpp", "1.3", found(data.over(bits, "together", "tokens_per_second"))] for bits in BITS]
    rows.insert(1, [f"{what}, int4, int8 rows: over llama.cpp", "1.3", found(data.over("int4", "together", "tokens_per_second", PROGRAMS[1]))])
    what = f"{asked['clients']} clients after {asked['long']}, int4"
    for program, more in zip(PROGRAMS, ("", ", int8 rows")):
        kind = f"{what}{more}"
        rows.append([f"{kind}: decoding over llama.cpp", "3", found(data.over("int4", "long", "decode", program))])
        rows.append([f"{kind}: prompts and {asked['new_tokens']} tokens, computed, over llama.cpp", "3", found(data.over("int4", "long", "whole", program))])
    hit = data.between("int4", "prefix", "hit", "cold")
    rows.append([f"first token on a prefix hit of {asked['prefix']}, over cold", "at most 0.05", "not in this run" if hit is None else f"**{hit:.3f}**"])
    stall = data.between("int4", "stall", "p99", "chunk")
    rows.append([f"p99 between tokens while {asked['entering']} enter, over a chunk's time", "about 1", found(stall)])
    return rows


def measurements(asked):
    """(what, unit, scenario, name, scale, whether more is better)."""
    long = f"after {asked['long']}"
    return [
        (f"{asked['clients']} clients together", "tokens/s", "together", "tokens_per_second", 1, True),
        ("the same, first token, median", "s", "together", "first_token_p50", 1, False),
        (f"decoding {long}, all clients", "tokens/s", "long", "decode", 1, True),
        (f"prompt of {asked['long']}, cold", "s", "long", "cold", 1, False),
        (f"{long}, whole, computed", "tokens/s", "long", "whole", 1, True),
        (f"prompt of {asked['prefix'] + asked['tail']}, cold", "s", "prefix", "cold", 1, False),
        ("the same on a hit", "s", "prefix", "hit", 1, False),
        ("between tokens, nothing enters, p50", "ms", "stall", "alone_p50", 1e3, False),
        (f"between tokens, {asked['entering']} enter, p50", "ms", "stall", "p50", 1e3, False),
        (f"between tokens, {asked['entering']} enter, p99", "ms", "stall", "p99", 1e3, False),
        (f"between tokens, {asked['entering']} enter, most", "ms", "stall", "most", 1e3, False),
        ("a chunk of a prompt", "ms", "stall", "chunk", 1e3, False),
    ]


def rows(data):
    """The table of all figures."""
    body = []
    for what, unit, scenario, name, scale, more in measurements(data.document["asked"]):
        for bits in BITS:
            cells = [data.cell(program, bits, scenario, name, scale=scale) for program in PROGRAMS]
            if any(cells):
                ratio = data.over(bits, scenario, name)
                ratio = ratio and (ratio if more else 1 / ratio)
                body.append([f"{what}, {unit}", bits, *cells, f"{ratio:.2f}" if ratio else ""])
    return body


def drawing(data):
    asked, bars = data.document["asked"], []
    for bits in BITS:
        for program in PROGRAMS:
            rate = data.median(program, bits, "together", "tokens_per_second")
            if rate:
                bars.append((f"{program} {bits}", rate, program != "llama.cpp"))
    bars.sort(key=lambda bar: -bar[1])
    title = f"{asked['clients']} clients, {asked['new_tokens']} tokens after {asked['prompt']}, a model of {data.document['size']}"
    return charts.bars(title, bars, "tokens/s")


def section(document):
    """The part of the page."""
    data = Data(document)
    lines = [f"{HEADING}\n", about(document | {"left_out": []}) + disturbed(document)]
    lines.append(table(["ratio", "goal", "found"], goals(data)))
    lines.append(f"![Tokens a second, ours and llama.cpp's]({PICTURE})\n")
    lines.append(table(["", "weights", "ours", "ours, int8 rows", "llama.cpp", "ours better by"], rows(data)))
    lines.append("### How to read these figures\n\n" + READING.format(pattern=words(), **document["asked"]))
    lines += not_measured(document, lambda step: f"{step['scenario']}, {step['contender']}")
    return "\n".join(lines)


def write(document, folder):
    """Writes the drawing, and the section in place of the page's earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    if any("tokens_per_second" in step for step in document["steps"]):
        (folder / PICTURE).write_text(drawing(Data(document)))
    page = folder / PAGE
    before, _, _ = (page.read_text() if page.is_file() else "").partition(HEADING)
    page.write_text((before.rstrip() + "\n\n" if before.strip() else "") + section(document))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], __doc__, "serve_peers.py", write))
