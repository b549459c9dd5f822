#!/usr/bin/env python3
"""Checks and measures the CUDA kernels on a machine with a GPU: one command over built binaries.

Runs the chosen steps one after the other, each under a time limit of its own. A step that fails
does not stop the next. Everything is written below --out, after each step: results.json (what
benches/gpu/report.py reads), log.txt (what the steps printed), clocks.csv (the GPU's clocks, several times a second)
and summary.txt, which is also printed last. With --resume, steps that an earlier run with the same --out ended are
left out, and its results are kept.

`--steps brief` is for a card that is there for a quarter of an hour: 9 minutes at most, 25 seconds a step.

Exit 0: every step ran and was right. Exit 1: a step failed. Exit 2: bad arguments.
"""

import argparse
import datetime
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
GROUPS = ["scan", "decode", "tiles", "small-tiles", "hopper", "small-hopper", "any", "blocks", "steps", "flags", "large"]
# The same in few minutes: what runs by default first, what could hang last.
QUICK = ["scan", "decode", "tiles", "small-tiles", "blocks", "flags", "hopper", "small-hopper"]
PARTS = ["scan", "decode", "prefill-tiles", "prefill-hopper"]
# For memcheck all; the others watch what blocks and threads share.
WATCHED = ["scan", "decode", "tiles", "small-tiles", "hopper", "small-hopper", "any", "blocks", "flags"]
# One launch of each, and what is asked of it.
COUNTED = {
    "hopper": ("prefill-hopper", "attention_hopper_bf16_128"),
    "tiles": ("prefill-tiles", "attention_prefill_bf16_128"),
    "scan": ("scan", "scan_single_pass_bf16"),
    "decode": ("decode", "attention_decode_bf16_128"),
}
COUNTERS = [
    "gpu__time_duration.sum",
    "sm__inst_executed.avg.per_cycle_active",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",
    "smsp__average_warps_issue_stalled_membar_per_issue_active.ratio",
    "smsp__average_warps_issue_stalled_math_pipe_throttle_per_issue_active.ratio",
    "smsp__average_warps_issue_stalled_wait_per_issue_active.ratio",
    "dram__bytes.sum",
    "lts__t_sector_hit_rate.pct",
    "l1tex__data_bank_conflicts_pipe_lsu.sum",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
]
SUMMARY_CHARACTERS = 10_500

# Seconds that a step may take.
LIMITS = {"info": 60, "limits": 120, "correct": 240, "sanitize": 150, "bench": 240, "peers": 300, "ort": 200, "trt": 240}
# Of any step of the brief set, and of all.
BRIEF_STEP, BRIEF = 25, 530


# Backend, the variable that names its libraries, and their folder where the bundle has them.
PLANS = {
    "trt-rtx": ("tensorrt-rtx", "RATPLUS_TENSORRT_RTX", "tensorrt_rtx_libs"),
    "trt-full": ("tensorrt", "RATPLUS_TENSORRT", "tensorrt_libs"),
}


def all_steps():
    """Every step in the order in which they run; the limits first, as bench uses them."""
    steps = ["info", "limits"]
    steps += [f"correct-{group}" for group in GROUPS]
    steps += [f"memcheck-{group}" for group in WATCHED]
    steps += [f"racecheck-{group}" for group in WATCHED]
    steps += [f"initcheck-{group}" for group in ("scan", "decode", "tiles", "hopper")]
    steps += [f"synccheck-{group}" for group in ("scan", "decode", "tiles", "hopper")]
    steps += [f"bench-{part}" for part in PARTS]
    steps += ["peers-scan", "peers-decode", "peers-prefill", "ort", "trt-plugins", *PLANS]
    return steps + [step for step in brief() if step not in steps]


def brief():
    """The steps of 9 minutes, what matters most first."""
    steps = ["info", "limits"]
    steps += [f"quick-{group}" for group in QUICK]
    steps += [f"goals-{part}" for part in ("scan", "prefill-tiles", "prefill-hopper", "decode")]
    steps += [f"ncu-{name}" for name in COUNTED]
    steps += ["correct-large", "correct-steps"]
    steps += [f"memcheck-{group}" for group in QUICK]
    return steps + ["peers-goals"]


# What is typed for several steps.
SETS = {
    "correct": [f"correct-{group}" for group in GROUPS],
    "sanitize": [step for step in all_steps() if "check-" in step],
    "bench": ["limits"] + [f"bench-{part}" for part in PARTS],
    "peers": ["peers-scan", "peers-decode", "peers-prefill"],
    "first": ["info", "limits"] + [f"correct-{group}" for group in GROUPS] + [f"memcheck-{group}" for group in WATCHED],
    "brief": brief(),
    "all": [step for step in all_steps() if step.split("-")[0] not in ("quick", "goals", "ncu") and step != "peers-goals"],
}


class Run:
    """One invocation: where things are, and what came out so far."""

    def __init__(self, options):
        self.bundle = options.bundle.resolve()
        self.out = options.out.resolve()
        self.tiny = options.tiny
        self.deadline = time.monotonic() + options.seconds
        self.most = options.step_seconds
        self.out.mkdir(parents=True, exist_ok=True)
        self.work = self.out / "parts"
        self.results = {
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "commit": commit(self.bundle),
            "command": "python3 " + " ".join(sys.argv),
            "driver": driver(),
            "steps": {},
            "device": None,
            "limits": {},
            "rows": [],
            "peers": [],
            "tensorrt": {},
        }
        before = self.out / "results.json"
        if options.resume and before.is_file():
            self.results |= json.loads(before.read_text())
        self.log = (self.out / "log.txt").open("a" if options.resume else "w")
        self.save()

    def save(self):
        """Keeps what there is, should the next step be the last."""
        text = json.dumps(self.results, indent=1)
        written = self.out / "results.json.new"
        written.write_text(text + "\n")
        written.replace(self.out / "results.json")
        (self.out / "summary.txt").write_text(summary(self.results) + "\n")
        self.log.flush()

    def command(self, step):
        """The command line of a step, and its limit in seconds; a reason instead where it cannot run."""
        check = str(self.bundle / "gpu_check")
        kind, _, what = step.partition("-")
        if kind == "info":
            return [check, "info"], LIMITS["info"]
        if kind in ("correct", "quick"):
            quick = ["--quick"] if self.tiny or kind == "quick" else []
            return [check, "correct", "--only", what, *quick], LIMITS["correct"]
        if kind.endswith("check"):
            sanitizer = find_sanitizer()
            if sanitizer is None:
                return "compute-sanitizer is not here", 0
            tool = [sanitizer, "--tool", kind, "--error-exitcode", "9", "--print-limit", "20"]
            return [*tool, check, "correct", "--quick", "--only", what], LIMITS["sanitize"]
        if kind == "ncu":
            profiler = find_tool("ncu", "/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/ncu")
            if profiler is None:
                return "ncu is not here", 0
            part, kernel = COUNTED[what]
            tool = [profiler, "--kernel-name", f"regex:{kernel}", "--launch-count", "1", "--csv"]
            return [*tool, "--metrics", ",".join(COUNTERS), check, "bench", "--goals", "--only", part], LIMITS["bench"]
        if kind in ("bench", "goals"):
            command = [check, "bench", "--only", what, "--json", str(self.part(step))]
            if kind == "goals":
                command.append("--goals")
            if "gemm_tflops" in self.results["limits"]:
                command += ["--gemm-tflops", f"{self.results['limits']['gemm_tflops']:.1f}"]
            if self.tiny:
                command.append("--tiny")
            return command, LIMITS["bench"]
        if kind in ("limits", "peers"):
            if importlib.util.find_spec("torch") is None:
                return "PyTorch is not here", 0
            command = [sys.executable, str(HERE / "peers.py"), "--only", what or kind, "--json", str(self.part(step))]
            if self.tiny:
                command += ["--device", "cpu", "--small"]
            return command, LIMITS[kind]
        if step in PLANS:
            return self.plans(step)
        if kind == "trt":
            harness, library = self.bundle / "trt_harness.so", self.bundle / "libratplus_trt.so"
            missing = next((path.name for path in (harness, library) if not path.exists()), None)
            if missing:
                return f"{missing} is not in the bundle", 0
            script = HERE / "trt_plugin_check.py"
            return [sys.executable, str(script), str(harness), str(library), "--json", str(self.part(step))], LIMITS["trt"]
        package, library = self.bundle / "package", self.bundle / "libratplus_ort.so"
        missing = next((path.name for path in (package, library) if not path.exists()), None)
        if missing or not has_cuda_provider():
            return f"{missing} is not in the bundle" if missing else "onnxruntime-gpu is not installed", 0
        return [sys.executable, str(HERE / "ort_cuda_check.py"), str(package), "--library", str(library)], LIMITS["ort"]

    def plans(self, step):
        """Builds engine plans of the bundle's package, compares what they compute with the reference,
        and decodes with them; as `command`."""
        backend, variable, folder = PLANS[step]
        library = Path(os.environ.get(variable) or self.bundle / folder)
        package, packed = self.bundle / "package", self.bundle / "ratplus.gz"
        if not library.is_dir() or not package.is_dir():
            return f"{variable} names no folder and the bundle has no {folder}, or no package", 0
        capability = smi("compute_cap")
        if step == "trt-rtx" and capability.split(".")[0] not in ("8", "12"):
            return f"TensorRT for RTX builds nothing for compute capability {capability}", 0
        copy = self.out / step
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(package, copy)
        words = {"copy": copy, "backend": backend, "variable": variable, "library": library}
        words.update(packed=packed, program=self.out / "ratplus")
        quoted = {name: shlex.quote(str(word)) for name, word in words.items()}
        script = (
            "set -e; export {variable}={library}\n"
            "program={program}; trap 'rm -f \"$program\"' EXIT\n"
            "gunzip -c {packed} > {program}; chmod +x {program}\n"
            "{program} build {copy} --backend {backend}\n"
            "{program} verify {copy} --backend {backend}\n"
            "{program} generate {copy} --backend {backend} --prompt 'In the beginning' -n 200 --stats\n"
        ).format(**quoted)
        return ["sh", "-c", script], LIMITS["trt"]

    def part(self, step):
        """The file that a step writes."""
        self.work.mkdir(exist_ok=True)
        return self.work / f"{step}.json"

    def ended(self, step):
        """Whether an earlier run came to the step's end, be it that it was stopped."""
        return self.results["steps"].get(step, {}).get("verdict", "skipped") not in ("skipped", "did not end")

    def step(self, step):
        """Runs one step and takes in what it wrote."""
        command, limit = self.command(step)
        if isinstance(command, str):
            self.results["steps"][step] = {"verdict": "skipped", "why": command, "seconds": 0.0, "tail": ""}
            self.save()
            return
        left = self.deadline - time.monotonic()
        if left < 5:
            why = "no time left in this run"
            self.results["steps"][step] = {"verdict": "skipped", "why": why, "seconds": 0.0, "tail": ""}
            self.save()
            return
        limit = min(limit, left, self.most)
        self.results["steps"][step] = {"verdict": "did not end", "why": "", "seconds": 0.0, "tail": ""}
        self.save()
        print(f"==> {step}: {' '.join(command)}", flush=True)
        start = time.monotonic()
        verdict, output = execute(command, limit)
        if step == "info" and verdict == "ok" and not self.tiny and "embedded: code of nvcc" not in output:
            verdict = "no code is embedded"
        seconds = time.monotonic() - start
        self.log.write(f"\n==> {step}: {' '.join(command)}\n{output}\n    {verdict}, {seconds:.1f} s\n")
        self.results["steps"][step] = {
            "verdict": verdict,
            "why": "",
            "seconds": round(seconds, 1),
            "tail": output[-6000:],
        }
        self.take(step)
        self.save()

    def take(self, step):
        """Adds the rows that a step wrote, be it that it did not end."""
        path = self.work / f"{step}.json"
        if not path.is_file():
            return
        try:
            part = json.loads(path.read_text())
        except ValueError as error:
            self.results["steps"][step]["verdict"] += f"; {path.name}: {error}"
            return
        self.results["device"] = part.get("device") or self.results["device"]
        self.results["limits"].update(measured(step, part.get("limits", {})))
        for kind in ("rows", "peers"):
            own = [row | {"step": step} for row in part.get(kind, [])]
            self.results[kind] = [row for row in self.results[kind] if row["step"] != step] + own
        if step.startswith("trt"):
            self.results["tensorrt"][step] = part

    def failures(self):
        """Steps that were not right."""
        steps = self.results["steps"].items()
        return [name for name, step in steps if step["verdict"] not in ("ok", "skipped")]


def measured(step, limits):
    """Of the limits that a part names, those that it measured itself."""
    own = "copy_tb_s" if step.startswith("bench") else "gemm_tflops"
    kept = {own: limits[own]} if own in limits else {}
    if "peer_copy_tb_s" in limits:
        kept["peer_copy_tb_s"] = limits["peer_copy_tb_s"]
    return kept


def execute(command, limit):
    """Runs a command in a process group of its own; how it ended and what it printed."""
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
        )
    except OSError as error:
        return f"did not start: {error}", ""
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, _ = process.communicate()
        return f"stopped after {limit:.0f} s", output
    return ("ok" if process.returncode == 0 else f"exit {process.returncode}"), output


def find_tool(name, *places):
    """A program on the path, or where toolkits put it."""
    return shutil.which(name) or next((place for place in places if os.access(place, os.X_OK)), None)


def find_sanitizer():
    """The sanitizer."""
    folder = "/usr/local/cuda"
    places = f"{folder}/bin/compute-sanitizer", f"{folder}/compute-sanitizer/compute-sanitizer"
    return find_tool("compute-sanitizer", *places)


def log_clocks(path):
    """Starts what writes the GPU's clocks, temperature and power until it is ended; none where there is no driver."""
    fields = "timestamp,clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_event_reasons.active,utilization.gpu"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv", "--loop-ms=200"]
    try:
        return subprocess.Popen(query, stdout=path.open("a"), stderr=subprocess.DEVNULL)
    except OSError:
        return None


def has_cuda_provider():
    """Whether this Python's ONNX Runtime was built for CUDA."""
    script = "import onnxruntime as o; raise SystemExit('CUDAExecutionProvider' not in o.get_available_providers())"
    return subprocess.run([sys.executable, "-c", script], stderr=subprocess.DEVNULL).returncode == 0


def commit(bundle):
    """What the bundle was built from."""
    path = bundle / "commit.txt"
    return path.read_text().strip() if path.is_file() else "unknown"


def driver():
    """The driver's version."""
    return smi("driver_version")


def smi(what):
    """What the driver's own tool prints of the first GPU."""
    query = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip().splitlines()[0] if found.returncode == 0 and found.stdout.strip() else "unknown"


def shape(row):
    """A row's shape in few characters."""
    pattern = row.get("pattern")
    text = f"{row['batch']}x{row['seq_len']}"
    return text + (f" D{pattern[0]}W{pattern[1]}" if pattern else f" N{row['heads'] * row['head_dim']}")


def summary(results):
    """Steps, wrong lines, then the figures, as far as they fit."""
    lines = [f"{results['date']}, commit {results['commit']}, driver {results['driver']}, limits {results['limits']}"]
    failed = []
    for name, step in results["steps"].items():
        lines.append(f"{name:24} {step['verdict']}{': ' + step['why'] if step['why'] else ''} ({step['seconds']} s)")
        if step["verdict"] not in ("ok", "skipped"):
            failed.append(name)
    for name in failed:
        tail = results["steps"][name]["tail"].splitlines()
        wrong = [line for line in tail if "WRONG" in line or "rror" in line][:6] or tail[-4:]
        lines += [f"--- {name}", *(line[:300] for line in wrong)]
    rows = []
    for row in results["rows"]:
        name = f"{row['operator']} {row['method']} {shape(row)}"
        if row["head_dim"] == 64:
            name += " dh64"
        if "median_ms" in row:
            rows.append(f"{name}: {row['median_ms']:.4g} ms, {row['ratio']:.2f}x")
    for row in results["peers"]:
        found = f"{row['median_ms']:.4g} ms" if "median_ms" in row else row.get("failed", "?")[:60]
        rows.append(f"{row['peer']} {shape(row)}: {found}")
    text = "\n".join(lines)[: SUMMARY_CHARACTERS - 400]
    left_out = 0
    for row in rows:
        if len(text) + len(row) + 60 > SUMMARY_CHARACTERS:
            left_out += 1
        else:
            text += "\n" + row
    return text + (f"\n{left_out} more rows in results.json" if left_out else "")


def parse(arguments):
    """The options, with the steps spelled out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default_out = os.environ.get("OUT", "target/gpu-results")
    parser.add_argument("--steps", default="all", help="steps or sets of them, comma-separated; see --list")
    parser.add_argument("--list", action="store_true", help="print every step and set")
    parser.add_argument("--bundle", type=Path, default=HERE, help="folder with gpu_check")
    parser.add_argument("--out", type=Path, default=Path(default_out))
    parser.add_argument("--seconds", type=float, help="for all steps together")
    parser.add_argument("--step-seconds", type=float, help="for a step")
    parser.add_argument("--resume", action="store_true", help="leave out what an earlier run with this --out ended")
    parser.add_argument("--tiny", action="store_true", help="shapes that a CPU can do")
    options = parser.parse_args(arguments)
    wanted = []
    for name in options.steps.split(","):
        if name not in SETS and name not in all_steps():
            known = ", ".join([*SETS, *all_steps()])
            parser.error(f"--steps: expected some of {known}; found `{name}`")
        wanted += SETS.get(name, [name])
    short = options.steps == "brief"
    options.steps = list(dict.fromkeys(wanted))
    options.seconds = options.seconds or (BRIEF if short else 570)
    options.step_seconds = options.step_seconds or (BRIEF_STEP if short else max(LIMITS.values()))
    return options


def main(arguments):
    """Runs the steps; the exit code."""
    options = parse(arguments)
    if options.list:
        for name, steps in SETS.items():
            print(f"{name}: {', '.join(steps)}")
        return 0
    run = Run(options)
    clocks = log_clocks(run.out / "clocks.csv")
    try:
        for step in options.steps:
            if not (options.resume and run.ended(step)):
                run.step(step)
    finally:
        if clocks is not None:
            clocks.terminate()
    run.log.close()
    shutil.rmtree(run.work, ignore_errors=True)
    print(summary(run.results))
    return 1 if run.failures() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
