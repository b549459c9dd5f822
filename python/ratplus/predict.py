"""Predictions over LongBench's and RULER's data, in the files that their own scripts score.

    python -m ratplus.predict longbench PACKAGE DATA... --prompts dataset2prompt.json --max-gen dataset2maxlen.json -o DIR
    python -m ratplus.predict ruler PACKAGE DATA... -o DIR

DATA are JSONL files as those benchmarks have them, `DATASET.jsonl`; each becomes `DIR/DATASET.jsonl`. The answers are greedy,
as in the released evaluation: LongBench's prompts are cut in the middle to 4096 tokens without the answer's, and its
summaries have a repetition penalty of 1.2; RULER's prompts have at most 3968 tokens and its answers 128.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Iterator, Sequence

from ._errors import Error, InputError
from ._model import Model

#: LongBench's third kind of tasks, which a model without a penalty answers in loops.
SUMMARIES = ("gov_report", "qmsum", "multi_news", "vcsum")
SUMMARY_PENALTY = 1.2
CONTEXT = 4096
RULER_NEW_TOKENS = 128


def middle_cut(tokens: Sequence[int], most: int) -> list[int]:
    """The first and the last half of `most` tokens where there are more."""
    tokens = list(tokens)
    if len(tokens) <= most:
        return tokens
    half = most // 2
    return tokens[:half] + tokens[len(tokens) - half :]


def longbench(model: Model, dataset: str, rows: list[dict[str, Any]], prompt: str, max_gen: int) -> list[dict[str, Any]]:
    """LongBench's rows with `pred` in place of the text.

    Args:
        prompt: How a row becomes a text, with its fields in braces: an entry of dataset2prompt.json.
        max_gen: Tokens of an answer: an entry of dataset2maxlen.json.
    """
    prompts = [middle_cut(model.encode(prompt.format(**row)).tolist(), CONTEXT - max_gen) for row in rows]
    penalty = SUMMARY_PENALTY if dataset.removesuffix("_e") in SUMMARIES else 1.0
    done = model.generate_batch(prompts, max_new_tokens=max_gen, repetition_penalty=penalty)
    kept = ("answers", "all_classes", "length")
    return [{"pred": one.text, **{name: row.get(name) for name in kept}} for one, row in zip(done, rows)]


def ruler(model: Model, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """RULER's rows with `pred`."""
    prompts = [model.encode(row["input"]) for row in rows]
    most = CONTEXT - RULER_NEW_TOKENS
    long = [f"row {index}: {len(prompt)}" for index, prompt in enumerate(prompts) if len(prompt) > most]
    if long:
        raise InputError(f"expected prompts of at most {most} tokens, found more in {len(long)}: {', '.join(long[:5])}")
    done = model.generate_batch(prompts, max_new_tokens=RULER_NEW_TOKENS)
    kept = {"index": None, "input": None, "outputs": None, "others": {}, "truncation": -1, "length": -1}
    return [
        {"pred": one.text, **{name: row.get(name, other) for name, other in kept.items()}} for one, row in zip(done, rows)
    ]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: expected a JSON object: {error}") from None


def _entry(path: Path, dataset: str) -> Any:
    found = json.loads(path.read_text(encoding="utf-8"))
    name = dataset if dataset in found else dataset.removesuffix("_e")
    if name not in found:
        raise InputError(f"{path}: expected an entry `{dataset}`, found none")
    return found[name]


def main(words: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ratplus.predict", description="Predictions that benchmarks score")
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("longbench", "ruler"):
        own = kinds.add_parser(kind)
        own.add_argument("package")
        own.add_argument("data", nargs="+", type=Path)
        own.add_argument("-o", "--output", type=Path, required=True)
        own.add_argument("--backend", default="ort-cpu")
        if kind == "longbench":
            own.add_argument("--prompts", type=Path, required=True, help="dataset2prompt.json")
            own.add_argument("--max-gen", type=Path, required=True, help="dataset2maxlen.json")
    asked = parser.parse_args(words)
    try:
        # All is read before anything runs.
        tasks = [(path.stem, list(_rows(path))) for path in asked.data]
        settings = {}
        if asked.kind == "longbench":
            settings = {name: (_entry(asked.prompts, name), _entry(asked.max_gen, name)) for name, _ in tasks}
        asked.output.mkdir(parents=True, exist_ok=True)
        with Model.open(asked.package, asked.backend) as model:
            if model.max_seq_len < CONTEXT:
                text = f"expected a package of {CONTEXT} tokens, found {model.max_seq_len}; export with `max_seq_len={CONTEXT}`"
                raise InputError(f"{asked.package}: {text}")
            for name, rows in tasks:
                done = ruler(model, rows) if asked.kind == "ruler" else longbench(model, name, rows, *settings[name])
                lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in done)
                (asked.output / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    except (Error, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
