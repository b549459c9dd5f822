"""Checkpoints to packages."""

from __future__ import annotations

import json
import os
from typing import Any, Callable, NamedTuple, Sequence, Union

from . import _ratplus

#: One number for all layers, or one a layer.
PerLayer = Union[int, Sequence[int]]


class Exported(NamedTuple):
    """What `export` has written."""

    #: manifest.json.
    manifest: dict[str, Any]
    #: What was inferred from what, and what overrode what; one sentence each.
    notes: list[str]


def export(
    checkpoint: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    synthetic: str | None = None,
    config: str | os.PathLike[str] | None = None,
    d_head: int | None = None,
    dilation: PerLayer | None = None,
    local_window: PerLayer | None = None,
    initial: PerLayer | None = None,
    dtype: str = "f32",
    cache_dtype: str | None = None,
    quantize: str | None = None,
    block_size: int | None = None,
    asymmetric: bool = False,
    activations: str = "float",
    keep_f32: str | None = None,
    batch: int = 1,
    prefill_lengths: Sequence[int] | None = None,
    max_seq_len: int = _ratplus.DEFAULT_MAX_SEQ_LEN,
    fallback: str = "function",
    logits: str = "last",
    tokenizer: str | os.PathLike[str] | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    special_tokens: str = "none",
    opset: int | None = None,
    allow_nonfinite: bool = False,
    progress: Callable[[str, int, int], object] | None = None,
) -> Exported:
    """Writes a package; the options are those of `ratplus export`, and so is what it writes, byte for byte.

    Args:
        checkpoint: A .pth or .safetensors file, a .safetensors.index.json, or a directory with one of them; None with
            `synthetic`.
        output: The package's directory; it appears when it is whole.
        synthetic: Random weights: the sizes of a released model ("1.5b", "2.6b", "7.6b"), or "config" for those of
            `config`.
        config: Sizes and patterns; the options below override it.
        d_head: Channels of one head.
        dilation: Every how many keys one is kept; -1 keeps none.
        local_window: Tokens before the current one that are visible.
        initial: Tokens at the start that are always visible.
        dtype: Type of weights and activations: "f32", "f16" or "bf16".
        cache_dtype: Type of the KV cache; that of `dtype` unless given.
        quantize: "int8" or "int4": the matrices of linear layers as block-wise integers.
        block_size: Weights that share a scale.
        asymmetric: Whether every block has a zero point too.
        activations: "float" or "int8": what rows are rounded to before they are multiplied with integers.
        keep_f32: Layers that are neither quantised nor rounded, as "0,30-31,head".
        batch: Sequences that run together.
        prefill_lengths: Static lengths of chunks; 64 and 512 where they fit, unless given.
        max_seq_len: Tokens of a sequence in all.
        fallback: "function", "inline", "none" or "trt-plugins": how custom nodes are written.
        logits: "last" or "all": at each chunk's last token, or at all of its tokens.
        tokenizer: A tokenizer.json.
        chat_template: A Jinja file, or Hugging Face's tokenizer_config.json or chat_template.json.
        special_tokens: "none" or "tokenizer": those that are added to a text.
        opset: Of the standard operators.
        allow_nonfinite: Whether weights may be NaN and infinite.
        progress: Called with what is being written, bytes of weights written, and bytes of weights in all.

    Raises:
        InputError: The checkpoint or an option cannot be used; nothing was left behind.
    """
    lengths = None if prefill_lengths is None else list(prefill_lengths)
    manifest, notes = _ratplus.export(
        checkpoint,
        output,
        synthetic=synthetic,
        config=config,
        d_head=d_head,
        dilation=dilation,
        local_window=local_window,
        initial=initial,
        dtype=dtype,
        cache_dtype=cache_dtype,
        quantize=quantize,
        block_size=block_size,
        asymmetric=asymmetric,
        activations=activations,
        keep_f32=keep_f32,
        batch=batch,
        prefill_lengths=lengths,
        max_seq_len=max_seq_len,
        fallback=fallback,
        logits=logits,
        tokenizer=tokenizer,
        chat_template=chat_template,
        special_tokens=special_tokens,
        opset=opset,
        allow_nonfinite=allow_nonfinite,
        progress=progress,
    )
    return Exported(json.loads(manifest), notes)
