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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

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


@dataclass(frozen=True)
class Task:
    """Prompts of one file, and what becomes of their answers."""

    #: Rows of the data.
    rows: list[dict[str, Any]]
    #: Tokens of each row's prompt.
    prompts: list[list[int]]
    #: What `Model.generate` takes by keyword.
    parameters: dict[str, Any]
    #: Fields of a row that are kept beside `pred`, with what is there where a row has none.
    kept: dict[str, Any]

    def run(self, model: Model) -> list[dict[str, Any]]:
        """The rows with `pred`."""
        done = model.generate_batch(self.prompts, **self.parameters)
        kept = [{name: row.get(name, other) for name, other in self.kept.items()} for row in self.rows]
        return [{"pred": one.text, **row} for one, row in zip(done, kept)]


def longbench(model: Model, dataset: str, rows: list[dict[str, Any]], prompt: str, max_gen: int) -> Task:
    """LongBench's rows, with `pred` in place of the text.

    Args:
        prompt: How a row becomes a text, with its fields in braces: an entry of dataset2prompt.json.
        max_gen: Tokens of an answer: an entry of dataset2maxlen.json.

    Raises:
        InputError: A row does not have the fields.
    """
    prompts = []
    for index, row in enumerate(rows):
        try:
            text = prompt.format(**row)
        except KeyError as error:
            raise InputError(f"row {index}: expected a field {error}, found {', '.join(row) or 'none'}") from None
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise InputError(f"row {index}: the prompt {prompt!r} cannot be filled in: {error}") from None
        prompts.append(middle_cut(model.encode(text).tolist(), CONTEXT - max_gen))
    penalty = SUMMARY_PENALTY if dataset.removesuffix("_e") in SUMMARIES else 1.0
    parameters = {"max_new_tokens": max_gen, "repetition_penalty": penalty}
    return Task(rows, prompts, parameters, dict.fromkeys(("answers", "all_classes", "length")))


def ruler(model: Model, rows: list[dict[str, Any]]) -> Task:
    """RULER's rows, with `pred`.

    Raises:
        InputError: A row has no text, or a longer one.
    """
    without = [f"row {index}" for index, row in enumerate(rows) if not isinstance(row.get("input"), str)]
    if without:
        raise InputError(f"expected a text `input`, found none in {len(without)}: {', '.join(without[:5])}")
    prompts = [model.encode(row["input"]).tolist() for row in rows]
    most = CONTEXT - RULER_NEW_TOKENS
    long = [f"row {index}: {len(prompt)}" for index, prompt in enumerate(prompts) if len(prompt) > most]
    if long:
        raise InputError(f"expected prompts of at most {most} tokens, found more in {len(long)}: {', '.join(long[:5])}")
    kept = {"index": None, "input": None, "outputs": None, "others": {}, "truncation": -1, "length": -1}
    return Task(rows, prompts, {"max_new_tokens": RULER_NEW_TOKENS}, kept)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8: {error}") from None


def _object(where: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected a JSON object: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(found).__name__}")
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: expected texts, found a half of a surrogate pair: {error}") from None
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    lines = _read(path).split("\n")
    return [_object(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]


def _entry(path: Path, dataset: str, kind: type) -> Any:
    found = _object(str(path), _read(path))
    name = dataset if dataset in found else dataset.removesuffix("_e")
    if name not in found:
        raise InputError(f"{path}: expected an entry `{dataset}`, found none")
    if type(found[name]) is not kind:
        raise InputError(f"{path}: `{name}`: expected {kind.__name__}, found {found[name]!r}")
    return found[name]


def _max_gen(path: Path, dataset: str) -> int:
    most = _entry(path, dataset, int)
    if not 0 < most < CONTEXT:
        raise InputError(f"{path}: `{dataset}`: expected 1 to {CONTEXT - 1}, found {most}")
    return most


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
        # All is read, and every prompt made, before anything runs.
        read = [(path, _rows(path)) for path in asked.data]
        names = [path.stem for path in asked.data]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"expected data of different names, found several `{twice[0]}.jsonl`")
        settings = {}
        if asked.kind == "longbench":
            settings = {name: (_entry(asked.prompts, name, str), _max_gen(asked.max_gen, name)) for name in names}
        asked.output.mkdir(parents=True, exist_ok=True)
        with Model.open(asked.package, asked.backend) as model:
            if model.max_seq_len < CONTEXT:
                text = f"expected a package of {CONTEXT} tokens, found {model.max_seq_len}; export with `max_seq_len={CONTEXT}`"
                raise InputError(f"{asked.package}: {text}")
            tasks = {}
            for path, rows in read:
                name = path.stem
                try:
                    tasks[name] = ruler(model, rows) if asked.kind == "ruler" else longbench(model, name, rows, *settings[name])
                except InputError as error:
                    raise InputError(f"{path}: {error}") from None
            for name, task in tasks.items():
                lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in task.run(model))
                (asked.output / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    except (Error, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
