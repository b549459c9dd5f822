"""Packages that are open."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Mapping, Sequence, TypeVar, Union

import numpy as np

from . import _libraries, _ratplus
from ._errors import QueueFull
from ._ratplus import Completion, Request, Scores, Service, State, Token
from ._ratplus import Stream as _Stream

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from ._ratplus import Parameters

    #: A text, or token ids [n]: an array of integers (uint32, int32 and int64 are read where they lie) or a list.
    Prompt = Union[str, Sequence[int], NDArray[np.integer[Any]]]

T = TypeVar("T")
#: Seconds after which a batch looks again whether the queue has room.
_GLANCE = 0.002
_models: weakref.WeakSet[Model] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # A thread that still ran would use what the process takes down.
    for model in list(_models):
        model.close()


class Stream:
    """A request that runs or waits: an iterator of :class:`Token`, and an asynchronous one.

    It has begun when it is made. Where it is not kept, or its loop is left, the request ends within a step. Its model stays
    open as long as it is kept.
    """

    def __init__(self, stream: _Stream, model: Model) -> None:
        self._stream = stream
        self._model = model

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        return next(self._stream)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Token:
        try:
            while True:
                token = self._stream.poll()
                if token is not None:
                    return token
                await self._readable()
        except StopIteration:
            raise StopAsyncIteration from None
        except asyncio.CancelledError:
            self.cancel()
            raise

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        there = loop.create_future()
        descriptor = self._stream.fileno()
        loop.add_reader(descriptor, lambda: there.done() or there.set_result(None))
        try:
            await there
        finally:
            loop.remove_reader(descriptor)

    def result(self) -> Completion:
        """All of it, once it has ended; tokens that were iterated over are in it.

        Raises:
            RunError: It failed.
        """
        return self._stream.result()

    async def wait(self) -> Completion:
        """The same, where an event loop runs."""
        async for _ in self:
            pass
        return self._stream.result()

    def cancel(self) -> None:
        """Ends it before its next step; its `finish_reason` is "cancelled" then."""
        self._stream.cancel()


class Model:
    """A package that is open on a backend, with a scheduler over its slots.

    Every method may be called from any thread, and no engine holds the GIL. Tokens and scores are the same bits as
    those of `ratplus generate` and `ratplus serve` on the same machine, whatever else runs.
    """

    def __init__(self, service: Service, directory: str, backend: str) -> None:
        self._service = service
        #: The package's directory.
        self.directory = directory
        #: What runs it.
        self.backend = backend
        #: manifest.json.
        self.manifest: dict[str, Any] = json.loads(service.manifest())
        _models.add(self)

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        backend: str = "ort-cpu",
        *,
        threads: int | None = None,
        onnxruntime: str | os.PathLike[str] | None = None,
        custom_ops: str | os.PathLike[str] | None = None,
        plugins: str | os.PathLike[str] | None = None,
        tensorrt: str | os.PathLike[str] | None = None,
        device: int = 0,
        cuda_graph: bool = True,
        passive_wait: bool = False,
        prefill_chunk: int | None = None,
        prefix_cache: int = 0,
        prefix_cache_file: str | os.PathLike[str] | None = None,
        max_queued_requests: int = _ratplus.DEFAULT_MAX_QUEUED_REQUESTS,
        max_queued_tokens: int = _ratplus.DEFAULT_MAX_QUEUED_TOKENS,
        decode_steps_per_chunk: int = _ratplus.DEFAULT_DECODE_STEPS_PER_CHUNK,
    ) -> Model:
        """Opens a package.

        Args:
            directory: What `export` has written.
            backend: "ort-cpu", "ort-cuda", "ort-fallback", "tensorrt", "tensorrt-rtx" or "tract".
            threads: Of one engine; all cores unless given.
            onnxruntime: ONNX Runtime's library, or a folder that holds it. Unless given, that which ORT_DYLIB_PATH
                names; else that of the `onnxruntime` that Python would import; else as `ratplus doctor` shows.
            custom_ops: The library of RAT+ operators; unless given, RATPLUS_ORT_LIBRARY or `library_path()`.
            plugins: The library of RAT+ plugins for TensorRT; unless given, RATPLUS_TRT_LIBRARY or
                `tensorrt_plugin_path()`.
            tensorrt: A folder with TensorRT's libraries.
            device: Number of the GPU.
            cuda_graph: Whether decode steps replay a CUDA graph.
            passive_wait: Whether threads that wait sleep and do not spin.
            prefill_chunk: The longest of the package's lengths that prompts are cut into.
            prefix_cache: Bytes of states that are kept for prompts that begin alike.
            prefix_cache_file: Where those come from at the start, if it is there, and go to when the model is closed.
            max_queued_requests: Most requests that wait for a slot.
            max_queued_tokens: Most tokens of their prompts.
            decode_steps_per_chunk: Decode steps after each chunk of a prompt.

        Raises:
            InputError: The package, a library or an option cannot be used.
        """
        if onnxruntime is None and backend.startswith("ort-"):
            onnxruntime = _libraries.onnxruntime_path()
        if custom_ops is None and not os.environ.get("RATPLUS_ORT_LIBRARY"):
            custom_ops = _libraries.library_path()
        if plugins is None and backend == "tensorrt" and not os.environ.get("RATPLUS_TRT_LIBRARY"):
            plugins = _libraries.tensorrt_plugin_path()
        service = Service.open(
            directory,
            backend,
            threads=threads,
            onnxruntime=onnxruntime,
            custom_ops=custom_ops,
            plugins=plugins,
            tensorrt=tensorrt,
            device=device,
            cuda_graph=cuda_graph,
            passive_wait=passive_wait,
            prefill_chunk=prefill_chunk,
            prefix_cache=prefix_cache,
            prefix_cache_file=prefix_cache_file,
            max_queued_requests=max_queued_requests,
            max_queued_tokens=max_queued_tokens,
            decode_steps_per_chunk=decode_steps_per_chunk,
        )
        return cls(service, os.fspath(directory), backend)

    @property
    def slots(self) -> int:
        """How many sequences run at once."""
        return self._service.slots

    @property
    def max_seq_len(self) -> int:
        """Tokens of a sequence in all."""
        return self._service.max_seq_len

    @property
    def vocab_size(self) -> int:
        """Tokens are below."""
        return self._service.vocab_size

    @property
    def lengths(self) -> list[int]:
        """Static lengths of the package's engines, ascending."""
        return self._service.lengths

    @property
    def begin_token(self) -> int | None:
        """The token of the tokenizer that begins a text, where it has one."""
        return self._service.begin_token

    @property
    def end_tokens(self) -> list[int]:
        """Tokens of the tokenizer that end a text."""
        return self._service.end_tokens

    @property
    def state_bytes(self) -> int:
        """Bytes of all slots' recurrence states and caches."""
        return self._service.state_bytes

    @property
    def implementations(self) -> list[str]:
        """What runs the custom nodes of each engine."""
        return self._service.implementations

    def encode(self, text: str, *, special_tokens: bool | None = None) -> NDArray[np.uint32]:
        """The tokens of a text, uint32 [n].

        Args:
            special_tokens: Whether those that the tokenizer adds are added; as the package says unless given.
        """
        return self._service.encode(text, special_tokens)

    def token(self, id: int) -> str | None:
        """A token as the tokenizer writes it; None of one that it does not know."""
        return self._service.token(id)

    def decode(self, tokens: Prompt) -> str:
        """The text of tokens [n], special ones left out."""
        return self._service.decode(tokens)

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation, by the package's chat template.

        Args:
            messages: Each with "role" and "content".
            add_generation_prompt: Whether the beginning of an answer comes last.
        """
        return self._service.chat(json.dumps(list(messages)), add_generation_prompt)

    def generate(self, prompt: Prompt, **parameters: Unpack[Parameters]) -> Stream:
        """Continues a prompt.

        Without parameters it takes the likeliest tokens, at most 128. Parameters:
            max_new_tokens (int, 128): Most tokens to add.
            min_new_tokens (int, 0): Before so many, no stop token comes and no stop string ends the text.
            temperature (float, 0): 0 takes the likeliest token.
            top_k (int), top_p (float), min_p (float): What is drawn from.
            repetition_penalty (float, 1), presence_penalty (float, 0), frequency_penalty (float, 0).
            logit_bias (dict of token id to float): Added to logits.
            seed (int, 0): Start of the random sequence.
            stop (str or list of str): Texts that end it; no part of one is shown.
            include_stop (bool, False): Whether the text has the one that ended it.
            stop_tokens (list of int): Tokens that end it, beside those of the tokenizer.
            ignore_eos (bool, False): Whether the tokenizer's end tokens do not.
            logprobs (int): Scores of every new token, beside so many of the likeliest.
            prompt_logprobs (int): The same of the prompt; needs a package that was exported with `logits="all"`.
            json (bool), json_schema (str), regex (str), lark (str): What the text has to be; one of them.
            timeout (float): Seconds after which it ends.
            state (State): What the prompt goes on from; penalties do not know its tokens.
            keep_state (bool, False): Whether the completion has the state that it leaves.
            special_tokens (bool): As for `encode`; none are added to what goes on from a state, unless given.

        Returns:
            Its tokens as they come.

        Raises:
            InputError: The prompt or a parameter does not fit the package.
            QueueFull: Too many requests wait.
        """
        (request,) = self._service.prepare([prompt], **parameters)
        return self._submitted(request)

    def generate_batch(self, prompts: Iterable[Prompt], **parameters: Unpack[Parameters]) -> list[Completion]:
        """Continues prompts, as many at once as there are slots; the completions in the same order.

        All of them are checked before the first one runs, and each waits until the queue has room for it. `parameters` are
        those of :meth:`generate`.
        """
        return self._run(self._service.prepare(list(prompts), **parameters), Stream.result)

    def score(
        self, sequence: Prompt, *, start: int = 1, top: int = 0, special_tokens: bool | None = None
    ) -> Scores:
        """How likely the model finds the tokens of a sequence [n], from index `start` on.

        A package that was exported with `logits="all"` runs it in chunks; another one runs what comes before `start`
        in chunks, and the rest token by token.

        Args:
            sequence: Of at most `max_seq_len` + 1 tokens: the last one is not run.
            start: The first token that is scored. The one at index 0 has no prediction.
            top: So many of the likeliest tokens are told beside each.

        Returns:
            `logprobs` float32 [n - start], `top_tokens` uint32 and `top_logprobs` float32 [n - start, top].

        Raises:
            InputError: The sequence is too short or too long, or `start` is not in it.
        """
        return self.score_batch([sequence], starts=[start], top=top, special_tokens=special_tokens)[0]

    def score_batch(
        self,
        sequences: Sequence[Prompt],
        *,
        starts: Sequence[int] | None = None,
        top: int = 0,
        special_tokens: bool | None = None,
    ) -> list[Scores]:
        """:meth:`score` of several sequences, as many at once as there are slots."""
        starts = starts or [1] * len(sequences)
        if len(starts) != len(sequences):
            raise ValueError(f"`starts`: expected {len(sequences)}, found {len(starts)}")
        pairs = zip(sequences, starts)
        made = [self._service.scoring(sequence, start, top, special_tokens) for sequence, start in pairs]
        counts = iter([count for _, count in made])
        return self._run([request for request, _ in made], lambda stream: stream._stream.scores(next(counts)))

    def state(self, prompt: Prompt, *, state: State | None = None, special_tokens: bool | None = None) -> State:
        """What a prompt leaves: `generate(..., state=...)` goes on from there, in this model or another of the same package
        and kind of backend."""
        done = self.generate(prompt, max_new_tokens=0, state=state, keep_state=True, special_tokens=special_tokens)
        left = done.result().state
        assert left is not None
        return left

    def snapshot(self) -> dict[str, Any]:
        """What is going on, a step old at most: `running` and `waiting` requests, `slots`, `prefix_bytes`, totals.

        `ended` is true where the scheduler has failed for good: the model has to be opened again.
        """
        return self._service.snapshot()

    def drain(self) -> None:
        """Takes no more requests; those that it has go on."""
        self._service.drain()

    def wait_idle(self, timeout: float = float("inf")) -> bool:
        """Waits until nothing runs or waits, at most for so many seconds; whether nothing does."""
        return self._service.wait_idle(timeout)

    def close(self) -> None:
        """Ends what runs and frees the engines."""
        self._service.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Model({self.directory!r}, backend={self.backend!r})"

    def _run(self, requests: list[Request], end: Callable[[Stream], T]) -> list[T]:
        """What comes of requests, of which twice as many run and wait as there are slots, where the queue has the room."""
        done: list[T] = []
        queued: deque[Stream] = deque()
        for request in requests:
            if len(queued) >= 2 * self.slots:
                done.append(end(queued.popleft()))
            queued.append(self._submitted_in_turn(request))
        done.extend(map(end, queued))
        return done

    def _submitted_in_turn(self, request: Request) -> Stream:
        """Waits for room in the queue, where requests wait that others have made, too."""
        while True:
            try:
                return self._submitted(request)
            except QueueFull:
                time.sleep(_GLANCE)

    def _submitted(self, request: Request) -> Stream:
        (stream,) = self._service.submit([request])
        return Stream(stream, self)
