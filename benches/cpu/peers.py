#!/usr/bin/env python3
"""Measures our CPU kernels against what a user would run instead, in one process: the function bodies and the
dense attention of ONNX Runtime, and PyTorch; next to what the machine can do at most.

Every contender is first compared with a literal model in f64, at small shapes and then at sampled queries of each
shape that is timed; a wrong one is not timed, and the run exits 1. `cargo xtask peers` installs and builds what
this needs.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path += [str(HERE), str(ROOT / "tests" / "python")]
GROUPS = ("ours", "body", "ort", "torch")


def below_root(word):
    """A word of the command line without this machine's folders."""
    path = Path(word)
    if not path.is_absolute():
        return word
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default="must", choices=("must", "full", "heads", "tiny"), help="which shapes (default: must)")
    parser.add_argument("--threads", type=int, default=2, help="of every contender (default: 2)")
    parser.add_argument("--seconds", type=float, default=1800, help="no row is started that may end after these")
    parser.add_argument("--library", type=Path, default=ROOT / "target/release/libratplus_ort.so", help="our kernels")
    parser.add_argument("--program", type=Path, default=ROOT / "target/release/ratplus", help="exports the bodies")
    parser.add_argument("--contenders", default=",".join(GROUPS), help=f"some of {', '.join(GROUPS)}")
    parser.add_argument("--json", type=Path, help="where results go, after every row")
    parser.add_argument("--docs", type=Path, help="the folder that report.py writes cpu.md and drawings to")
    options = parser.parse_args(arguments)
    options.groups = options.contenders.split(",")
    for name in options.groups:
        if name not in GROUPS:
            parser.error(f"--contenders: expected some of {', '.join(GROUPS)}; found `{name}`")
    if options.threads < 1:
        parser.error(f"--threads: expected 1 or more, found {options.threads}")
    for flag, path in [("--library", options.library), ("--program", options.program)]:
        if not path.is_file():
            build = "cargo build --release -p ratplus -p ratplus-onnxruntime -p ratplus-tests"
            parser.error(f"{flag}: {path}: no such file; `{build}` makes it")
    options.left_out = [name for name in GROUPS if name not in options.groups]
    return options


def main(arguments):
    """Runs a suite; the exit code."""
    options = parse(arguments)
    # Read when the libraries behind numpy and torch are loaded.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    # No pool of compiling processes beside what is timed.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    import ort_contenders
    from measure import Measurement
    from models import Bodies

    torch, peers = None, []
    measurement = None
    if "torch" in options.groups:
        import torch
        import torch_blocks
        import torch_contenders

        peers = torch_contenders.contenders(lambda seq_len: measurement.best_scan(seq_len), options.threads)
        peers += torch_blocks.contenders()
    everyone = ort_contenders.contenders(options.library, Bodies(options.program), options.threads) + peers
    chosen = [contender for contender in everyone if contender.group in options.groups]
    command = shlex.join(["python3", "benches/cpu/peers.py", *map(below_root, arguments)])
    measurement = Measurement(options, chosen, torch, command)
    right = measurement.run()
    if options.docs:
        import heads_report
        import report

        made = heads_report if options.suite == "heads" else report
        made.write(measurement.document, options.docs)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
