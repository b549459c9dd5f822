"""A package as Dynamo's frontend reads models: a folder in Hugging Face's form, without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ._errors import InputError
from ._model import Model


def endpoint_types(model: Model) -> str:
    """What a package can be asked for through a frontend that tokenizes: "chat,completions", or one of them.

    Raises:
        InputError: Nothing.
    """
    manifest = model.manifest
    if manifest.get("tokenizer") is None:
        raise InputError(f"{model.directory}: the package has no tokenizer; export it with `--tokenizer tokenizer.json`")
    kinds = []
    if manifest.get("chat_template") is not None:
        kinds.append("chat")
    # The frontend adds no special tokens to a text. A template spells its own.
    if not len(model.encode("")):
        kinds.append("completions")
    if not kinds:
        text = "texts have special tokens added, which Dynamo's frontend does not do; export it with `--special-tokens none`"
        raise InputError(f"{model.directory}: {text}, or with a chat template")
    return ",".join(kinds)


def write(model: Model, folder: Path) -> Path:
    """Writes a package's tokenizer, chat template and sizes into a folder in this one, which is named after the package's
    checksum; its path."""
    package, manifest = Path(model.directory), model.manifest
    folder /= json.loads((package / "manifest.json").read_text(encoding="utf-8"))["blake3"]
    folder.mkdir(parents=True)
    tokenizer = json.loads((package / manifest["tokenizer"]).read_text(encoding="utf-8"))
    # A prompt has its own length.
    tokenizer.update(truncation=None, padding=None)
    begin, ends = model.begin_token, model.end_tokens
    config: dict[str, Any] = {
        "architectures": ["RatPlusForCausalLM"],
        "model_type": "ratplus",
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.max_seq_len,
        "bos_token_id": begin,
        "eos_token_id": ends,
    }
    words: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.max_seq_len,
        "bos_token": None if begin is None else model.token(begin),
        "eos_token": model.token(ends[0]) if ends else None,
    }
    if manifest.get("chat_template") is not None:
        words["chat_template"] = (package / manifest["chat_template"]).read_text(encoding="utf-8")
    files = {
        "config.json": config,
        "generation_config.json": {"eos_token_id": ends},
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {name: value for name, value in words.items() if value is not None},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder
