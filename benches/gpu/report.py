#!/usr/bin/env python3
"""Writes docs/gpu.md from what benches/gpu/check.py (or `gpu_check bench --json`) wrote.

Without a file the page says that nothing is measured, and how to measure.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# On an H200, where a session has not measured its own.
ASSUMED = {"copy_tb_s": 4.3, "gemm_tflops": 790.0}

HEAD = """\
# The CUDA kernels on a GPU

Written by `benches/gpu/report.py`; do not edit.
"""

HOW = """\
## How to measure

On a machine with Rust, once (the binaries embed the kernels' code; no CUDA is linked):

```
cargo xtask setup
cargo xtask gpu-bundle
```

On the machine with the GPU, from the same folder; it needs the driver, Python 3 and, for the peers, PyTorch with
Triton. Each line fits ten minutes; the
first says the most in nine, and with `--resume` it goes on where a run with the same `--out` stopped:

```
python3 target/gpu-bundle/check.py --steps brief      # every kernel, the times that goals are set for, counters, memcheck
python3 target/gpu-bundle/check.py --steps first      # every kernel against the reference, memcheck
python3 target/gpu-bundle/check.py --steps bench      # our times
python3 target/gpu-bundle/check.py --steps peers      # PyTorch's times
python3 target/gpu-bundle/check.py --steps sanitize   # racecheck, initcheck, synccheck
python3 target/gpu-bundle/check.py --steps trt-plugins # TensorRT's plugins
python3 target/gpu-bundle/check.py --steps ort        # captured against eager, under onnxruntime-gpu
```

Plans are built and run where TensorRT's libraries are: `--steps trt-full` with RATPLUS_TENSORRT naming their folder, and
`--steps trt-rtx` with RATPLUS_TENSORRT_RTX, on GPUs that TensorRT for RTX knows (8.0, 8.6, 8.9, 12.x).

Each writes `results.json`, `log.txt` and `summary.txt` below `--out` (default: `$OUT`, else `target/gpu-results`).
`python3 benches/gpu/report.py FILE...` makes this page of one or more `results.json`.
"""

NOTHING = """\
Not measured: nobody has run these kernels on a GPU yet. Their results are checked on the CPU, by the emulator of
`kernels/emulator`; nothing is known of their speed.
"""

READING = """\
Medians, with the second-level cache filled with other memory before every run; that is only read, so that nothing is
left to be written back. Every shape was compared with the reference on a sample before it
was timed. The floor is the larger of useful FLOPs over the measured rate of a bf16 product of 8192 x 8192 matrices and
least bytes over the measured bandwidth of a device-to-device copy, read plus written; for the scan with the attention
after it, the scan's floor plus the attention's. `x` is the time over the floor. bf16 throughout.
"""

PEERS = """\
`official` is the composition of the released code as `benches/gpu/peers.py` builds it: RecurrenceScan by a compiled
`associative_scan` in f32, FlexAttention compiled, its block mask built in every forward, in one call where the released
code makes two and merges them; `flex` is that FlexAttention alone, without its mask; `slots` is SDPA over the dilated keys alone, which is less than the operator.
"""


class Data:
    """The rows of all files; later files win."""

    def __init__(self):
        self.rows = {}
        self.peers = {}
        self.limits = {}
        self.device = None
        self.runs = []
        self.steps = {}
        self.tensorrt = {}

    def add(self, document):
        """Takes in a file."""
        self.device = document.get("device") or self.device
        self.limits |= document.get("limits", {})
        self.steps |= document.get("steps", {})
        self.tensorrt |= document.get("tensorrt", {})
        if "command" in document:
            self.runs.append({key: document[key] for key in ("date", "commit", "driver", "command")})
        for row in document.get("rows", []):
            self.rows[(row["operator"], row["method"], *shape(row))] = row
        for row in document.get("peers", []):
            self.peers[(row["peer"], *shape(row))] = row

    def limit(self, name):
        """A measured limit, or the assumed one."""
        return self.limits.get(name, ASSUMED[name])

    def floor_ms(self, row):
        """Milliseconds that nothing is faster than."""
        copy, rate = self.limit("copy_tb_s") * 1e12, self.limit("gemm_tflops") * 1e12
        return 1e3 * (row["bytes_before"] / copy + max(row["flops"] / rate, row["bytes"] / copy))

    def of(self, operator, **wanted):
        """Rows of an operator."""
        found = [row for key, row in self.rows.items() if key[0] == operator]
        return [row for row in found if all(row[name] == value for name, value in wanted.items())]

    def peer(self, name, row):
        """A peer's time for a row's shape."""
        found = self.peers.get((name, *shape(row)))
        if found is None:
            return ""
        return f"{found['median_ms']:.4g}" if "median_ms" in found else found["failed"].split(":")[0]


def shape(row):
    """What tells shapes apart."""
    width = row["heads"] * row["head_dim"]
    pattern = row["pattern"]
    heads = (row["heads"], row["head_dim"]) if pattern else (1, width)
    return row["batch"], row["seq_len"], *heads, tuple(pattern) if pattern else None


def table(head, rows):
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join(lines) + "\n"


def cells(data, row):
    """Time, spread, rate, floor and ratio of one of our rows."""
    if "median_ms" not in row:
        return [row.get("skipped", "not run"), "", "", "", f"{data.floor_ms(row):.4g}", ""]
    median, floor = row["median_ms"], data.floor_ms(row)
    bytes_moved = row["bytes"] + row["bytes_before"]
    return [
        f"{median:.4g}",
        f"{row['least_ms']:.4g} - {row['most_ms']:.4g}",
        f"{row['flops'] / median / 1e9:.1f}",
        f"{bytes_moved / median / 1e9:.2f}",
        f"{floor:.4g}",
        f"{median / floor:.2f}",
    ]


OURS = ["ms", "spread", "TFLOP/s", "TB/s", "floor", "x"]


def scan_section(data):
    """RecurrenceScan."""
    rows = sorted(data.of("scan"), key=lambda row: (row["head_dim"], row["seq_len"]))
    if not rows:
        return ""
    body = []
    for row in rows:
        peer = data.peer("associative_scan", row)
        name = [f"{row['batch']} x {row['seq_len']}", str(row["heads"] * row["head_dim"]), row["method"]]
        body.append([*name, *cells(data, row), peer])
    return "## RecurrenceScan\n\n" + table(["sequences", "channels", "method", *OURS, "associative_scan"], body)


def pattern_text(row):
    """D and W of a row."""
    dilation, window, _ = row["pattern"]
    return f"D={dilation} W={window}"


def prefill_section(data):
    """Whole prompts, alone and with the scan."""
    parts = []
    for operator, title in [("scan + attention", "Scan and attention, prompts"), ("attention", "Attention alone, prompts")]:
        rows = data.of(operator)
        rows.sort(key=lambda row: (-row["head_dim"], row["pattern"][1], row["pattern"][0], row["seq_len"], row["method"]))
        body = []
        for row in rows:
            name = [f"{row['heads']} of {row['head_dim']}", pattern_text(row), f"{row['batch']} x {row['seq_len']}"]
            if operator == "attention":
                slots = {**row, "pattern": [row["pattern"][0], 0, 0]}
                dense = row["pattern"][0] == 1
                peer = [
                    data.peer("flex, attention alone", row),
                    data.peer("flex, mask alone", row),
                    data.peer("sdpa, dense" if dense else "sdpa, slots only", slots),
                ]
            else:
                peer = [data.peer("scan + mask + flex", row)]
            body.append([*name, row["method"], *cells(data, row), *peer])
        names = ["official"] if operator != "attention" else ["flex", "its mask", "SDPA: dense, or slots"]
        if body:
            parts.append(f"## {title}\n\n" + table(["heads", "pattern", "sequences", "method", *OURS, *names], body))
    return "\n".join(parts)


def decode_section(data):
    """One token a sequence."""
    rows = data.of("decode")
    rows.sort(key=lambda row: (-row["head_dim"], row["pattern"][0], row["seq_len"], row["method"]))
    body = []
    for row in rows:
        name = [f"{row['heads']} of {row['head_dim']}", pattern_text(row), f"{row['batch']} x {row['seq_len']}"]
        peers = [data.peer("decode, compiled step", row), data.peer("decode, sdpa alone", row)]
        body.append([*name, row["method"], *cells(data, row), *peers])
    if not body:
        return ""
    text = "Both operators, one launch each.\n\n"
    names = ["PyTorch's step", "its SDPA alone"]
    return "## Decode step\n\n" + text + table(["heads", "pattern", "sequences", "method", *OURS, *names], body)


def tensorrt_section(data):
    """The plugins in an execution context."""
    body = []
    for row in (row for part in data.tensorrt.values() for row in part["times"]):
        graph = f"{row['graph_median_ms']:.4g}" if "graph_median_ms" in row else ""
        spread = f"{row['min_ms']:.4g} - {row['max_ms']:.4g}"
        body.append([row["op"], row["what"], row["shape"], f"{row['median_ms']:.4g}", spread, graph])
    if not body:
        return ""
    cases = [case for part in data.tensorrt.values() for case in part["cases"]]
    worst = max(case["of_tolerance"] for case in cases)
    text = f"`enqueue` of the plugins, bf16; {len(cases)} cases, at most {worst:.3f} of the tolerance.\n\n"
    head = ["operator", "what", "first input", "ms", "spread", "ms, CUDA graph"]
    return "## TensorRT plugins\n\n" + text + table(head, body)


def failed_section(data):
    """Steps that did not go well, and those that did."""
    if not data.steps:
        return ""
    body = [[name, step["verdict"] + (f": {step['why']}" if step["why"] else ""), f"{step['seconds']:.0f}"] for name, step in data.steps.items()]
    return "## Checks\n\n" + table(["step", "result", "s"], body)


def page(documents):
    """The whole page."""
    data = Data()
    for document in documents:
        data.add(document)
    if not data.rows and not data.steps:
        return "\n".join([HEAD, NOTHING, HOW])
    parts = [HEAD]
    lines = []
    if data.device:
        device = data.device
        major, minor = device["compute_capability"]
        lines.append(
            f"- {device['name']}, compute capability {major}.{minor}, {device['multiprocessors']} multiprocessors, "
            f"{device['total_memory'] / 1e9:.0f} GB; driver for CUDA {device['cuda_driver']}; kernels by nvcc {device['nvcc']}"
        )
    for run in data.runs:
        lines.append(f"- {run['date']}, commit {run['commit']}, driver {run['driver']}: `{run['command']}`")
    for name, words, unit in [("copy_tb_s", "copy, read plus written", "TB/s"), ("gemm_tflops", "bf16 product", "TFLOP/s")]:
        origin = "measured" if name in data.limits else "assumed, not measured in these runs"
        lines.append(f"- {words}: {data.limit(name):.4g} {unit}, {origin}")
    parts.append("\n".join(lines) + "\n")
    if data.rows:
        parts.append(READING)
    if data.peers:
        parts.append(PEERS)
    parts += [scan_section(data), prefill_section(data), decode_section(data), tensorrt_section(data)]
    parts += [failed_section(data), HOW]
    return "\n".join(part for part in parts if part)


def main(arguments):
    """Reads the files and writes the page; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", type=Path, help="results.json of check.py, the oldest first")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "gpu.md")
    options = parser.parse_args(arguments)
    documents = []
    for path in options.results:
        try:
            documents.append(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            print(f"error: {path}: expected a results.json of check.py: {error}", file=sys.stderr)
            return 2
    options.output.write_text(page(documents))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
