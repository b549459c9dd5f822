#!/usr/bin/env python3
"""Writes the part of cpu.md about a whole model, and its drawing, from what benches/cpu/model_peers.py wrote."""

import statistics
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))
import charts  # noqa: E402
from machine import DISTURBED  # noqa: E402
from model_contenders import BITS, OursInt8Rows, words  # noqa: E402
from report import MODEL, PAGE, about, limits_table, main, parts_of, table, write_parts  # noqa: E402
from steps import not_measured  # noqa: E402

PICTURE = "model_peers.svg"
ROWS = OursInt8Rows.program
PROGRAMS = ("ours", ROWS, "llama.cpp", "PyTorch", "OpenVINO")

READING = """\
Batch 1 where nothing else is said. Each contender runs in processes of its own, in turn, round after round; medians of
the rounds, in parentheses the least, the most and how many. What is measured runs before, some of it, once uncounted.

- `ours` is `ratplus bench` and `ratplus generate` on packages of `ratplus export --synthetic config`, {pattern}, with rows as
  they are; `int8 rows` are those of `--activations int8`, which rounds what integers are multiplied with as llama.cpp does.
- `llama.cpp` is what `llama-cpp-python` builds for this processor, through its C interface, with its defaults. Its model
  has the architecture `arcee` (Llama's attention, dense; a feed-forward of two matrices) and d_ffn {dense_ffn}, so that it
  has as many weights as ours, {weights:.3f} thousand million with the head, in bf16, Q8_0 or Q4_0; caches are f16. Its long
  cache is filled with the rows of two tokens instead of a prompt's.
- `PyTorch` runs that model in bf16, eagerly, with `scaled_dot_product_attention`; `OpenVINO` runs our graphs in standard
  operators (`--fallback inline`), states going from one buffer to another.
- Weights read a token are those of all products, the head's too. Resident memory is the most of the process, over
  what Python alone has where a peer runs in Python; PyTorch's has the cache of the longest context.
- The first token is that of the whole command `ratplus generate DIR --prompt "In the beginning God" -n 1`, files
  cached; of llama.cpp, from opening the model to the logits of as many tokens, without its process's start.
"""


class Data:
    """A results file, with look-ups."""

    def __init__(self, document):
        self.document = document

    def values(self, program, bits, read, batch=1):
        """What `read` finds in each step of a contender that has it."""
        found = []
        for step in self.document["steps"]:
            if (step["program"], step["bits"], step["batch"]) == (program, bits, batch) and "reason" not in step:
                value = read(step)
                if value is not None:
                    found.append(value)
        return found

    def median(self, *of, **more):
        values = self.values(*of, **more)
        return statistics.median(values) if values else None

    def why_not(self, program, bits):
        """Why there is no figure of a contender."""
        name = f"{program} {bits}"
        reasons = [x["reason"] for x in self.document["skipped"] + self.document["steps"] if x["contender"] == name and "reason" in x]
        return reasons[0] if reasons else ""

    def cell(self, program, bits, read, scale, batch=1):
        values = self.values(program, bits, read, batch)
        if not values:
            return self.why_not(program, bits) if read is PROMPT else ""
        return spread([value * scale for value in values])

    def read_rate(self):
        """Bytes a second that this machine reads at most; None where that was not measured."""
        rates = [found["read"]["rate"] for found in self.document["limits"].values() if "rate" in found.get("read", {})]
        return max(rates, default=None)


def spread(values):
    """The median, and in parentheses the least, the most and how many."""
    return f"{figure(statistics.median(values))} ({figure(min(values))}..{figure(max(values))}, {len(values)})"


def figure(value):
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def decode(context):
    # JSON's keys are text.
    return lambda step: step["decode"].get(str(context), step["decode"].get(context))


PROMPT = lambda step: step.get("prompt")  # noqa: E731
RESIDENT = lambda step: step.get("resident_bytes")  # noqa: E731
FIRST = lambda step: step.get("first_token")  # noqa: E731


def over(data, read, bits, inverse=False, program="ours"):
    """Ours over llama.cpp's, as a number or None."""
    ours, theirs = data.median(program, bits, read), data.median("llama.cpp", bits, read)
    if ours is None or theirs is None:
        return None
    return theirs / ours if inverse else ours / theirs


def found(ratio):
    return "not in this run" if ratio is None else f"**{ratio:.2f}**"


def kinds(data, read, bits):
    """(name, ours over llama.cpp's in words), of both kinds of rows."""
    made = [(f"{bits}: over llama.cpp", found(over(data, read, bits)))]
    if bits != "bf16":
        made.append((f"{bits}, int8 rows: over llama.cpp", found(over(data, read, bits, program=ROWS))))
    return made


def goals(data):
    """(ratio, goal, figure)."""
    short, long = data.document["contexts"][0], data.document["contexts"][-1]
    rows, rate = [], data.read_rate()
    for bits in BITS:
        goal = "0.85" if bits == "bf16" else "0.7"
        read = data.median("ours", bits, lambda step: step["read_bytes"])
        steps = data.median("ours", bits, decode(short))
        share = read * steps / rate if rate and read and steps else None
        rows.append([f"decode after {short}, {bits}: weights read a second over the read rate", goal, found(share)])
    for bits in BITS:
        rows += [[f"decode after {short}, {name}", "1.3", ratio] for name, ratio in kinds(data, decode(short), bits)]
    ratio = over(data, decode(long), "bf16")
    rows.append([f"decode after {long}, bf16: over llama.cpp with its dense cache", "3", found(ratio)])
    batch = data.document["batch"]
    for bits in ("bf16", "int4"):
        one, all_ = data.median("ours", bits, decode(short)), data.median("ours", bits, decode(short), batch=batch)
        ratio = all_ / one if one and all_ else None
        rows.append([f"{batch} sequences together over one, after {short}, {bits}", "5", found(ratio)])
    for bits in BITS:
        what = f"prompt of {data.document['prompt']}"
        rows += [[f"{what}, {name}", "1.5", ratio] for name, ratio in kinds(data, PROMPT, bits)]
    for bits in BITS:
        kept = data.median("ours", bits, lambda step: step["weights_bytes"] + step["state_bytes"])
        resident = data.median("ours", bits, RESIDENT)
        rows.append([f"resident over weights and state, {bits}", "at most 1.1", found(resident / kept if kept else None)])
    first = data.median("ours", "bf16", FIRST)
    rows.append(["command to first token, bf16", "at most 2 s", "not in this run" if first is None else f"**{first:.2f} s**"])
    return rows


def measurements(data):
    """(what, unit, its reader, scale, batch)."""
    made = [(f"decode after {context}", "tokens/s", decode(context), 1, 1) for context in data.document["contexts"]]
    made.append((f"prompt of {data.document['prompt']}", "tokens/s", PROMPT, 1, 1))
    short, batch = data.document["contexts"][0], data.document["batch"]
    made.append((f"{batch} sequences together after {short}", "tokens/s", decode(short), 1, batch))
    made.append(("resident", "GB", RESIDENT, 1e-9, 1))
    made.append(("first token", "s", FIRST, 1, 1))
    return made


def rows(data):
    """The table of all figures."""
    body = []
    for what, unit, read, scale, batch in measurements(data):
        for bits in BITS:
            cells = [data.cell(program, bits, read, scale, batch) for program in PROGRAMS]
            if any(cells):
                ratio = over(data, read, bits, inverse=unit != "tokens/s") if batch == 1 else None
                body.append([f"{what}, {unit}", bits, *cells[:3], f"{ratio:.2f}" if ratio else "", *cells[3:]])
    return body


def sizes(data):
    """What each reads a token and keeps."""
    body = []
    for program in PROGRAMS:
        for bits in BITS:
            gigabytes = lambda name: data.median(program, bits, lambda step: step.get(name))  # noqa: B023, E731
            read, state, resident = (gigabytes(name) for name in ("read_bytes", "state_bytes", "resident_bytes"))
            if read is not None:
                body.append([program.rstrip(","), bits, f"{read / 1e9:.3f}", f"{state / 1e9:.3f}", f"{resident / 1e9:.2f}"])
    return body


def disturbed(document):
    """Steps that other processes took part of the machine from, in words."""
    shares = [step.get("others_cpus", 0) for step in document["steps"]]
    many = sum(share >= DISTURBED for share in shares)
    if not many:
        return ""
    return f"- other processes took a tenth of a CPU or more in {many} of {len(shares)} steps, {max(shares):.2g} CPUs at most\n"


def drawing(data):
    short = data.document["contexts"][0]
    bars = []
    for bits in BITS:
        for program in PROGRAMS:
            rate = data.median(program, bits, decode(short))
            if rate:
                bars.append((f"{program} {bits}", rate, program in ("ours", ROWS)))
    bars.sort(key=lambda bar: -bar[1])
    return charts.bars(f"Decoding after {short} tokens, a model of {data.document['size']}", bars, "tokens/s")


def section(document):
    """The part of the page."""
    data = Data(document)
    lines = [f"{MODEL}\n", about(document | {"left_out": []}) + disturbed(document)]
    lines.append(table(["ratio", "goal", "found"], goals(data)))
    lines.append(f"![Decoding, ours and the others]({PICTURE})\n")
    head = ["", "weights", "ours", "ours, int8 rows", "llama.cpp", "ours over it", "PyTorch", "OpenVINO"]
    lines.append(table(head, rows(data)))
    lines.append(table(["", "weights", "read a token, GB", "state, GB", "resident, GB"], sizes(data)))
    about_it = {"pattern": words(), "dense_ffn": document["dense_ffn"], "weights": document["weights"] / 1e9}
    lines.append("### How to read the model's figures\n\n" + READING.format(**about_it))
    lines += not_measured(document, lambda step: step["contender"])
    lines.append(limits_table(document))
    return "\n".join(lines)


def write(document, folder):
    """Writes the drawing, and the section in place of the page's earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PICTURE).write_text(drawing(Data(document)))
    *others, _ = parts_of(folder / PAGE)
    write_parts(folder / PAGE, [*others, section(document)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], __doc__, "model_peers.py", write))
