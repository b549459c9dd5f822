"""The native half of the module."""

import os
from typing import Any, Callable, Iterator, Mapping, Sequence, TypedDict, Union

import numpy as np
from numpy.typing import NDArray

_Path = Union[str, os.PathLike[str]]
_Prompt = Union[str, Sequence[int], NDArray[np.integer[Any]]]

DEFAULT_MAX_QUEUED_REQUESTS: int
DEFAULT_MAX_QUEUED_TOKENS: int
DEFAULT_DECODE_STEPS_PER_CHUNK: int
DEFAULT_PREFIX_CACHE_BYTES: int
DEFAULT_MAX_SEQ_LEN: int
#: Most tokens whose scores the server tells beside each token.
MAX_LOGPROBS: int

class Parameters(TypedDict, total=False):
    """What `Model.generate` takes by keyword; it says what they mean."""

    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | None
    seed: int
    stop: str | Sequence[str] | None
    include_stop: bool
    stop_tokens: Sequence[int] | None
    ignore_eos: bool
    logprobs: int | None
    prompt_logprobs: int | None
    json: bool
    json_schema: str | None
    regex: str | None
    lark: str | None
    timeout: float | None
    state: State | None
    keep_state: bool
    special_tokens: bool | None

class Token:
    """A new token, or the last of a text."""

    @property
    def token(self) -> int | None:
        """The id; None for the rest of a text that was held back, which comes last."""

    @property
    def text(self) -> str:
        """The text that can be shown now, often none."""

    @property
    def logprob(self) -> float | None:
        """Natural logarithm of the token's probability, where `logprobs` was asked for."""

    @property
    def top(self) -> list[tuple[int, float]] | None:
        """The likeliest tokens and theirs, most likely first."""

class Scores:
    """How likely tokens [n] were, beside the k likeliest in each place."""

    @property
    def logprobs(self) -> NDArray[np.float32]:
        """[n]: natural logarithms of their probabilities."""

    @property
    def top_tokens(self) -> NDArray[np.uint32]:
        """[n, k], most likely first."""

    @property
    def top_logprobs(self) -> NDArray[np.float32]:
        """[n, k]"""

class State:
    """A sequence after a number of tokens: others of models with its `fingerprint` go on from it."""

    @property
    def past_length(self) -> int:
        """Tokens that the sequence has."""

    @property
    def fingerprint(self) -> str:
        """What the package has that its models take it of: weights, sizes, types, longest sequence."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""

    def views(self) -> list[tuple[str, str, list[int], NDArray[np.uint8]]]:
        """Name, type ("f32", "f16", "bf16"), shape and bytes of every tensor, which are not copied and cannot be
        written to. `bytes.view("float32").reshape(shape)` has the numbers of one in f32."""

    def save(self, path: _Path) -> None:
        """Writes it as safetensors."""

    @staticmethod
    def load(path: _Path) -> State:
        """Reads what `save` has written.

        Raises:
            InputError: The file holds no state.
        """

class Completion:
    """A finished sequence."""

    @property
    def tokens(self) -> NDArray[np.uint32]:
        """New tokens [n]."""

    @property
    def text(self) -> str:
        """Their text."""

    @property
    def finish_reason(self) -> str:
        """ "end", "stop_string", "max_new_tokens", "max_seq_len", "cancelled" or "timeout"."""

    @property
    def scores(self) -> Scores | None:
        """Of the new tokens, where `logprobs` was asked for."""

    @property
    def prompt_scores(self) -> Scores | None:
        """Of the prompt's second token and those after it, where `prompt_logprobs` was."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""

    @property
    def cached_tokens(self) -> int:
        """Of those, how many came from the prefix cache."""

    @property
    def state(self) -> State | None:
        """What it leaves after the tokens that have run, all but the last new one, where `keep_state` was asked for."""

    @property
    def timing(self) -> tuple[float, float, float]:
        """Seconds from its submission to its slot, from there to its first new token, and from there to its end."""

class Request: ...

class Stream:
    def __iter__(self) -> Iterator[Token]: ...
    def __next__(self) -> Token: ...
    def poll(self) -> Token | None: ...
    def fileno(self) -> int: ...
    def cancel(self) -> None: ...
    def scores(self, count: int) -> Scores: ...
    def result(self) -> Completion: ...

class Service:
    @staticmethod
    def open(
        directory: _Path,
        backend: str,
        *,
        threads: int | None,
        onnxruntime: _Path | None,
        custom_ops: _Path | None,
        plugins: _Path | None,
        tensorrt: _Path | None,
        device: int,
        cuda_graph: bool,
        passive_wait: bool,
        prefill_chunk: int | None,
        prefix_cache: int,
        prefix_cache_file: _Path | None,
        max_queued_requests: int,
        max_queued_tokens: int,
        decode_steps_per_chunk: int,
    ) -> Service: ...
    def manifest(self) -> str: ...
    @property
    def slots(self) -> int: ...
    @property
    def max_seq_len(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def lengths(self) -> list[int]: ...
    @property
    def begin_token(self) -> int | None: ...
    @property
    def end_tokens(self) -> list[int]: ...
    @property
    def state_bytes(self) -> int: ...
    @property
    def implementations(self) -> list[str]: ...
    def encode(self, text: str, special_tokens: bool | None) -> NDArray[np.uint32]: ...
    def decode(self, tokens: _Prompt) -> str: ...
    def token(self, id: int) -> str | None: ...
    def chat(self, messages: str, add_generation_prompt: bool) -> str: ...
    def prepare(self, prompts: Sequence[_Prompt], **parameters: Any) -> list[Request]: ...
    def scoring(
        self, sequence: _Prompt, start: int, top: int, special_tokens: bool | None
    ) -> tuple[Request, int]: ...
    def submit(self, requests: Sequence[Request]) -> list[Stream]: ...
    def snapshot(self) -> dict[str, Any]: ...
    def drain(self) -> None: ...
    def wait_idle(self, patience: float) -> bool: ...
    def close(self) -> None: ...

def export(
    checkpoint: _Path | None,
    output: _Path,
    *,
    synthetic: str | None,
    config: _Path | None,
    d_head: int | None,
    dilation: int | Sequence[int] | None,
    local_window: int | Sequence[int] | None,
    initial: int | Sequence[int] | None,
    dtype: str,
    cache_dtype: str | None,
    quantize: str | None,
    block_size: int | None,
    asymmetric: bool,
    activations: str,
    keep_f32: str | None,
    batch: int,
    prefill_lengths: list[int] | None,
    max_seq_len: int,
    fallback: str,
    logits: str,
    tokenizer: _Path | None,
    chat_template: _Path | None,
    special_tokens: str,
    opset: int | None,
    allow_nonfinite: bool,
    progress: Callable[[str, int, int], object] | None,
) -> tuple[str, list[str]]: ...
