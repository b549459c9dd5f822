#!/usr/bin/env python3
"""Writes cpu.md and its drawings from what benches/cpu/peers.py wrote."""

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))
import charts  # noqa: E402
from machine import DISTURBED  # noqa: E402

DOCS = HERE.parents[1] / "docs"
PAGE = "cpu.md"
# Begins what heads_report.py writes.
HEADS = "## Grouped heads, and heads that choose blocks"
# Begins what model_report.py writes, to the end of the page.
MODEL = "## A whole model"
DENSE = [1, 0, 0]
GATHERED = ("SDPA on gathered keys",)
FLEX = ("Flex, mask made before",)
FLEX_COUNTED = ("Flex, mask made each time",)
ORT_DENSE = ("ORT ",)

HEAD = """\
# The CPU kernels next to what one would run instead

Written by `benches/cpu/report.py`; do not edit. `cargo xtask peers` measures and writes it again.
"""

READING = """\
Batch 1; every contender in one process with the same number of threads. Medians of the runs named, after a first one;
1 run where it takes more than 5 s, 3 or more where more than 2 s. Before it was timed, each contender was compared
with a literal model in f64 at small shapes, and each timed prompt was compared with it at 16 queries of two heads.
What was not run says why; a row says so where other processes took a tenth of a CPU or more while it was timed: a
peer whose threads wait for each other at every step loses most by that.

- `chain` is RecurrenceScan, rotary embedding and DilatedAttention of a prompt: ours is one ONNX Runtime session with
  the custom-op library, cache in place; `function body` is the same file without the library; PyTorch's chains are the
  fastest recurrence measured, compiled rotary embedding, and the attention named.
- `attention` is the attention alone. Ours rotates query and key and writes the cache within its time; the others are
  given rotated ones and write none.
- `decode` is one token onto a full cache: ours is the whole chain with the cache's update, the SDPA is given rows
  gathered before. Runs go through as many caches as make up the bytes of one of dense attention, as a model's layers
  would, so that no small cache stays close to the core by itself.
- Rates of the attention count two products a visible query-key pair, of a decode step the bytes of the visible rows,
  of the scan its five tensors. `of limit` is that over the larger of the limits measured at the start and the end of
  the run: the f32 or bf16 product, the read, the copy (read plus written).
"""

PROFILE = """\
## What limits

At T=4096 a query sees 36 keys with D=64 and 132 with D=16 (W=0, I=4). Its own rows of queries and outputs, each in a
page of its own, then cost more than its products: `perf record target/release/operators prefill D=64` (2026-11-22, an
Intel Xeon with AMX, one thread, f32) has two samples in the rest of a tile for each in the products. At T=16384 four
times as many keys share that. In bf16 the same rows are half as long and the products a third, so that less is gained
where there are few keys. The window's band costs what straddles its edges: panels of 64 queries multiply up to a quarter
of a block for nothing.

`vdpbf16ps` gains nothing on that processor: with D=1 it runs at 145 GFLOP/s where f32 runs at 184 and AMX at 613 (2
threads, T=4096, 4 heads of 128, `cargo test --release -p ratplus-kernels -- --ignored --nocapture timing`), so that bf16
is multiplied by AMX where there is AMX, and by `vdpbf16ps` on processors without.
"""


class Data:
    """A results file, with look-ups."""

    def __init__(self, document):
        self.document = document
        # Results of older runs know neither.
        self.rows = [{"kv_heads": row["heads"], "blocks": None} | row for row in document["rows"]]

    def limit(self, name):
        """The larger rate of the start's and the end's; None where neither is there."""
        rates = [found[name]["rate"] for found in self.document["limits"].values() if "rate" in found.get(name, {})]
        return max(rates, default=None)

    def limit_of(self, row):
        """The limit that a row's rate is compared with."""
        by_part = {"scan": "copy", "decode": "read"}
        return self.limit(by_part.get(row["part"], "gemm_f32" if row["dtype"] == "f32" else "gemm_bf16"))

    def rate(self, row):
        """Useful FLOP/s or bytes/s."""
        return (row["bytes"] or row["flops"]) / (row["median_ms"] / 1e3)

    def find(self, contenders, part, seq_len, pattern, dtype="f32", heads=16, kv_heads=None, blocks=None):
        """The fastest timed row of contenders whose names begin so; else one with a reason; else None."""
        shape = {"part": part, "seq_len": seq_len, "dtype": dtype, "heads": heads, "blocks": blocks}
        shape["kv_heads"] = kv_heads or heads
        shape["patterns"] = [pattern] if pattern else []
        found = [row for row in self.rows if row["contender"].startswith(tuple(contenders))]
        found = [row for row in found if all(row[name] == value for name, value in shape.items())]
        timed = [row for row in found if "median_ms" in row]
        return min(timed, key=lambda row: row["median_ms"]) if timed else found[0] if found else None


def table(head, rows):
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(cells) + " |" for cells in rows]) + "\n"


def missing(row):
    """Why there is no figure."""
    return row["reason"] if row else "not in this run"


def compared(peer, ours):
    """A peer's time over ours, in words."""
    for row in (peer, ours):
        if row is None or "median_ms" not in row:
            return missing(row)
    detail = ", ".join(x for x in (peer["contender"], peer.get("detail")) if x)
    ratio = peer["median_ms"] / ours["median_ms"]
    return f"**{ratio:.2f}** ({peer['median_ms']:.4g} over {ours['median_ms']:.4g} ms; {detail}{disturbed(peer, ours)})"


def disturbed(*rows):
    """Says so where other processes took CPUs from one of the rows."""
    return "; disturbed by others" if max(row.get("others_cpus", 0) for row in rows) >= DISTURBED else ""


def of_limit(data, row):
    """A row's rate over its limit, in words."""
    if row is None or "median_ms" not in row:
        return missing(row)
    limit = data.limit_of(row)
    if limit is None:
        return "its limit was not measured"
    rate = data.rate(row)
    return f"**{rate / limit:.2f}** ({rate / 1e9:.4g} of {limit / 1e9:.4g} G/s, {row['median_ms']:.4g} ms)"


def seen_keys(row):
    """What its queries see, in words."""
    if row["blocks"]:
        return "S={} K={} {}".format(*row["blocks"])
    return " ".join(f"D={d} W={w} I={i}" for d, w, i in row["patterns"])


def goals(data):
    """The questions that the must suite answers: what, the goal (at least), the figure."""
    sparse, windowed, sparser = [16, 0, 4], [16, 256, 4], [64, 0, 4]
    faster = "above 1"
    rows = []
    ours = lambda *shape, **more: data.find(["ours"], *shape, **more)  # noqa: E731
    chain = ours("chain", 4096, sparse)
    for what, goal, names, part, pattern in [
        ("compiled Flex and recurrence", "20", FLEX, "chain", sparse),
        ("the same, its mask made each time", "20", FLEX_COUNTED, "chain", sparse),
        ("best composition of PyTorch", "4", GATHERED, "chain", sparse),
        ("function body in ONNX Runtime", "20", ["function body"], "chain", sparse),
        ("dense SDPA under the mask, and recurrence", faster, ["SDPA, boolean mask"], "chain", sparse),
        ("dense causal SDPA, attention alone", faster, ["SDPA, causal"], "attention", DENSE),
        ("ONNX Runtime's dense attention alone", faster, ORT_DENSE, "attention", DENSE),
    ]:
        peer = data.find(names, part, 4096, pattern)
        rows.append([f"chain, T=4096 D=16 W=0: {what}, over ours", goal, compared(peer, chain)])
    chain = ours("chain", 16384, windowed)
    for what, goal, names in [
        ("compiled Flex and recurrence", "20", FLEX),
        ("the same, its mask made each time", "20", FLEX_COUNTED),
        ("best composition of PyTorch", faster, GATHERED),
    ]:
        peer = data.find(names, "chain", 16384, windowed)
        rows.append([f"chain, T=16384 D=16 W=256: {what}, over ours", goal, compared(peer, chain)])
    for seq_len in (4096, 16384):
        for pattern in (DENSE, sparse, windowed, sparser):
            name = f"attention, T={seq_len} D={pattern[0]} W={pattern[1]}"
            single = ours("attention", seq_len, pattern)
            rows.append([f"{name}: useful FLOPs of the f32 product's rate", "0.7", of_limit(data, single)])
            half = ours("attention", seq_len, pattern, dtype="bf16")
            rows.append([f"{name}: our f32 over our bf16", "1.8", compared(single, half)])
    rows.append(["scan, T=65536: of copy bandwidth", "0.8", of_limit(data, ours("scan", 65536, None))])
    steps = {}
    for pattern in (DENSE, sparse, sparser):
        name, steps[pattern[0]] = f"decode, T=65536 D={pattern[0]} W=0", ours("decode", 65536, pattern)
        rows.append([f"{name}: visible rows of read bandwidth", "0.8", of_limit(data, steps[pattern[0]])])
        peer = data.find(["SDPA on the visible rows"], "decode", 65536, pattern)
        rows.append([f"{name}: SDPA on the same rows, over ours", faster, compared(peer, steps[pattern[0]])])
    rows.append(["decode, T=65536: D=1 over D=16", "12", compared(steps[1], steps[16])])
    return rows


def rounded(load):
    """A load average in words."""
    return "not known" if load is None else f"{load:.2f}"


def about(document):
    """The machine, the command and what it ran with."""
    machine, load = document["machine"], document["load"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    numbers = f" (family/model/stepping {machine['family_model_stepping']})" if machine["family_model_stepping"] else ""
    lines = [
        f"- {machine['model']}{numbers}, {machine['cpus']} CPUs, {', '.join(machine['features'])}; last-level cache "
        f"{machine['last_level_cache'] >> 20} MiB, memory {machine['memory'] / 1e9:.0f} GB; {document['threads']} threads",
        f"- {document['date']}: `{document['command']}`",
        f"- {versions}",
        "- load average of the minute before: {} at the start, {} at the end".format(*map(rounded, (load.get("start"), load.get("end")))),
    ]
    if document["left_out"]:
        lines.append(f"- left out by --contenders: {', '.join(document['left_out'])}")
    return "\n".join(lines) + "\n"


def limits_table(document):
    """Limits at both ends of the run."""
    found = document["limits"]
    rows = []
    for name in sorted({name for when in found.values() for name in when}):
        cells = [name]
        for when in ("start", "end"):
            limit = found.get(when, {}).get(name, {"reason": "not reached"})
            cells.append(f"{limit['rate'] / 1e9:.4g}, {limit['way']}" if "rate" in limit else limit["reason"])
        rows.append(cells)
    text = "Thousand millions a second: FLOPs, or bytes; the best of several ways.\n\n"
    return text + table(["limit", "start", "end"], rows)


def checks_section(document, level="##"):
    """One line a contender."""
    rows = []
    for name in dict.fromkeys(check["contender"] for check in document["checks"]):
        for dtype in ("f32", "bf16"):
            mine = [check for check in document["checks"] if check["contender"] == name and check["dtype"] == dtype]
            if not mine:
                continue
            ran = [check for check in mine if "reason" not in check]
            errors = [float("inf") if check["error"] is None else check["error"] for check in ran]
            reasons = sorted({check["reason"] for check in mine if "reason" in check})
            worst = f"{max(errors):.1e}" if errors else ""
            rows.append([name, dtype, f"{len(ran)} of {len(mine)}", worst, f"{mine[0]['limit']:.0e}", "; ".join(reasons)])
    text = "Largest difference from the literal model over its largest value.\n\n"
    return f"{level} Correctness\n\n" + text + table(["contender", "dtype", "ran", "worst", "limit", "why not"], rows)


def part_section(data, part, level="##"):
    """All rows of a part, shape by shape."""
    rows = [row for row in data.rows if row["part"] == part]
    body, unit = [], "GB/s" if part in ("scan", "decode") else "GFLOP/s"
    for row in rows:
        heads = f"{row['heads']}/{row['kv_heads']}" if row["kv_heads"] < row["heads"] else str(row["heads"])
        cells = [f"{heads}x{row['head_dim']}", str(row["seq_len"]), seen_keys(row), row["dtype"], row["contender"]]
        if "median_ms" not in row:
            body.append([*cells, row["reason"], "", "", "", "", ""])
            continue
        first = row["patterns"][0] if row["patterns"] else None
        ours = data.find(["ours"], part, row["seq_len"], first, row["dtype"], row["heads"], row["kv_heads"], row["blocks"])
        ratio = f"{row['median_ms'] / ours['median_ms']:.2f}" if ours and "median_ms" in ours else ""
        limit = data.limit_of(row)
        share = f"{data.rate(row) / limit:.2f}" if limit else ""
        spread = f"{row['least_ms']:.4g}..{row['most_ms']:.4g}"
        notes = [row["detail"]] if "detail" in row else []
        if row.get("others_cpus", 0) >= DISTURBED:
            notes.append(f"others took {row['others_cpus']:.2g} CPUs")
        rate = f"{data.rate(row) / 1e9:.4g}"
        figures = [f"{row['median_ms']:.4g}", f"{spread}, {row['runs']}", rate, share, ratio]
        body.append([*cells, *figures, "; ".join(notes)])
    head = ["heads", "T", "pattern", "dtype", "contender", "ms", "spread, runs", unit, "of limit", "over ours", "note"]
    return f"{level} {part.capitalize()}\n\n" + table(head, body) if body else ""


def drawings(data):
    """File name -> drawing, for what was measured."""
    made = {}
    for part, title in [("chain", "Recurrence and attention of a prompt"), ("attention", "Attention of a prompt")]:
        series = []
        for dilation in (1, 4, 16, 64):
            rows = [row for row in data.rows if row["contender"] == "ours" and row["part"] == part and "median_ms" in row]
            rows = [row for row in rows if row["dtype"] == "f32" and row["kv_heads"] == row["heads"] and row["patterns"]]
            rows = [row for row in rows if row["patterns"][0][:2] == [dilation, 0]]
            heads = min((row["heads"] for row in rows), default=0)
            rows = [row for row in rows if row["heads"] == heads]
            if rows:
                series.append((f"D={dilation}", [(row["seq_len"], row["median_ms"]) for row in rows]))
        if part == "attention" or len({x for _, points in series for x, _ in points}) > 1:
            if not series:
                break
            made["cpu_time.svg"] = charts.lines(f"{title}, our kernels, f32", series, "tokens", "ms")
            break
    shapes = {}
    for row in data.rows:
        if row["part"] == "chain" and row["dtype"] == "f32" and "median_ms" in row and row["patterns"] != [DENSE]:
            shapes.setdefault((row["heads"], row["seq_len"], *row["patterns"][0]), []).append(row)
    if shapes:
        shape = max(shapes, key=lambda key: len(shapes[key]))
        rows = sorted(shapes[shape], key=lambda row: row["median_ms"])
        title = f"Recurrence and attention, T={shape[1]} D={shape[2]} W={shape[3]}, {shape[0]} heads, f32"
        bars = [(row["contender"], row["median_ms"], row["group"] == "ours") for row in rows]
        made["cpu_peers.svg"] = charts.bars(title, bars, "ms")
    return made


def page(document, pictures):
    """The kernels' part of the page."""
    data = Data(document)
    parts = [HEAD, about(document)]
    parts.append("## Goals\n\n" + table(["ratio", "goal", "found"], goals(data)))
    captions = {"cpu_peers.svg": "Our kernels and the others", "cpu_time.svg": "Time against the length of the prompt"}
    parts += [f"![{words}]({name})\n" for name, words in captions.items() if name in pictures]
    parts += ["## How to read this\n\n" + READING, PROFILE, "## Limits\n\n" + limits_table(document)]
    parts += [part_section(data, part) for part in ("chain", "attention", "scan", "decode")]
    parts.append(checks_section(document))
    return "\n".join(part for part in parts if part)


def parts_of(page):
    """The parts of a page, which are written apart: the kernels', that of the suite heads and the whole model's; empty
    where there is none."""
    text = page.read_text() if page.is_file() else ""
    starts = [text.find(heading) for heading in (HEADS, MODEL)]
    model = starts[1] if starts[1] >= 0 else len(text)
    heads = starts[0] if starts[0] >= 0 else model
    return [part.rstrip() + "\n" * bool(part) for part in (text[:heads], text[heads:model], text[model:])]


def write_parts(page, parts):
    """Writes a page of such parts."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(part for part in parts if part))


def write(document, folder):
    """Writes the kernels' part of the page and its drawings into a folder; the drawings of an older run go."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = drawings(Data(document))
    for old in folder.glob("cpu_*.svg"):
        if old.name not in pictures:
            old.unlink()
    for name, drawing in pictures.items():
        (folder / name).write_text(drawing)
    _, *others = parts_of(folder / PAGE)
    write_parts(folder / PAGE, [page(document, pictures), *others])


def main(arguments, doc=__doc__, script="peers.py", write=write):
    """Reads a results file of `script` and writes its part of the page; the exit code."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("results", type=Path, help=f"what {script} --json wrote")
    parser.add_argument("-o", "--output", type=Path, default=DOCS, help="folder (default: docs)")
    options = parser.parse_args(arguments)
    try:
        write(json.loads(options.results.read_text()), options.output)
    except (OSError, ValueError, KeyError) as error:
        message = f"error: {options.results}: expected what {script} --json writes, found: {error!r}; run {script} again"
        print(message, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
