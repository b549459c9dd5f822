"""A worker of NVIDIA Dynamo over a package: `python -m ratplus.dynamo PACKAGE`.

Dynamo's frontend speaks HTTP as OpenAI does, makes tokens of texts and texts of tokens, and sends requests to workers;
this one runs them in the package's slots, as `ratplus serve` does. Needs `ai-dynamo` and `ai-dynamo-runtime`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, Sequence

from dynamo._core import Context
from dynamo.common.backend import EngineConfig, LLMEngine, LlmRegistration, WorkerConfig
from dynamo.common.backend.run import run
from dynamo.llm.exceptions import CannotConnect, EngineShutdown, InvalidArgument

from . import _dynamo_files, _dynamo_request
from ._dynamo_journal import Journal, Plan
from ._errors import Error, InputError, QueueFull, RunError
from ._model import Model, Stream
from ._ratplus import DEFAULT_MAX_QUEUED_REQUESTS, DEFAULT_MAX_QUEUED_TOKENS, DEFAULT_PREFIX_CACHE_BYTES, Token

log = logging.getLogger(__name__)

#: Dynamo's names for why an answer ends.
_FINISH_REASONS = {
    "end": "stop",
    "max_new_tokens": "length",
    "max_seq_len": "length",
    "cancelled": "cancelled",
    "timeout": "cancelled",
}
#: What is told as numbers: of a snapshot, its name there, kind and help.
_METRICS = (
    ("running", "ratplus:requests_running", "gauge", "Requests in slots"),
    ("waiting", "ratplus:requests_waiting", "gauge", "Requests that wait for a slot"),
    ("waiting_tokens", "ratplus:queued_tokens", "gauge", "Prompt tokens of requests that wait"),
    ("slots", "ratplus:slots", "gauge", "Requests that can run at once"),
    ("cache_use", "ratplus:cache_use", "gauge", "Tokens that slots hold over those that they could"),
    ("failing", "ratplus:failing", "gauge", "Whether the last step failed on the backend"),
    ("prefix_bytes", "ratplus:prefix_cache_bytes", "gauge", "Bytes that the prefix cache holds"),
    ("prefix_queried_tokens", "ratplus:prefix_cache_queries_total", "counter", "Prompt tokens that were looked up"),
    ("prefix_hit_tokens", "ratplus:prefix_cache_hits_total", "counter", "Prompt tokens that did not have to run"),
    ("submitted", "ratplus:requests_total", "counter", "Requests that were taken"),
    ("finished", "ratplus:requests_finished_total", "counter", "Requests that ended"),
    ("prompt_tokens", "ratplus:prompt_tokens_total", "counter", "Prompt tokens of requests that ended"),
    ("new_tokens", "ratplus:new_tokens_total", "counter", "New tokens"),
    ("backend_errors", "ratplus:backend_errors_total", "counter", "Steps that the backend failed"),
    ("replayed", "ratplus:moved_requests_replayed_total", "counter", "Requests of lost workers that went on exactly"),
    ("continued", "ratplus:moved_requests_continued_total", "counter", "Of those, whose tokens came otherwise here"),
)


class PackageEngine(LLMEngine):
    """An open package, as Dynamo drives engines.

    Args:
        model: What runs requests.
        name: What they call it.
        journal: What is known of requests that come from other workers.
        drain_seconds: How long requests may go on once it ends.
    """

    def __init__(self, model: Model, name: str, journal: Journal, drain_seconds: float) -> None:
        self._model = model
        self._name = name
        self._journal = journal
        self._drain_seconds = drain_seconds
        self._ending = False
        #: By what the frontend calls a request.
        self._streams: dict[str, set[Stream]] = {}
        self._moved = dict.fromkeys(("replayed", "continued"), 0)

    @classmethod
    async def from_args(cls, argv: list[str] | None = None) -> tuple[PackageEngine, WorkerConfig]:
        raise NotImplementedError("a package is opened before Dynamo's runtime is: see `main`")

    async def start(self, worker_id: int) -> EngineConfig:
        sizes = LlmRegistration(context_length=self._model.max_seq_len, max_num_seqs=self._model.slots)
        return EngineConfig(model=self._name, served_model_name=self._name, llm=sizes)

    async def generate(self, request: dict[str, Any], context: Context) -> AsyncGenerator[dict[str, Any], None]:
        """Tells tokens one by one, then why there are no more."""
        name = context.id() or ""
        goes_on = False
        try:
            asked = _dynamo_request.parameters(request)
            bounds = (asked.pop(bound) for bound in ("max_new_tokens", "min_new_tokens", "seed"))
            plan = await asyncio.to_thread(self._journal.find, name, request["token_ids"], *bounds)
            async for chunk in self._run(name, plan, asked, context):
                yield chunk
        except InputError as error:
            raise InvalidArgument(str(error)) from error
        except QueueFull as error:
            goes_on = True
            # The frontend asks another worker.
            raise CannotConnect(str(error)) from error
        except RunError as error:
            if self._ending:
                goes_on = True
                raise EngineShutdown(str(error)) from error
            raise
        finally:
            if not goes_on:
                # At once: who is not waited for, as where the program ends, may not come back from a thread.
                self._journal.end(name)

    async def _run(
        self, name: str, plan: Plan, asked: dict[str, Any], context: Context
    ) -> AsyncIterator[dict[str, Any]]:
        told = len(plan.told)
        stream = await self._begin(name, plan, asked, context)
        try:
            await asyncio.to_thread(self._journal.keep, name, plan)
            if told and not await _replayed(stream, plan.told):
                # Another processor or version: its sums are others, and what was told stays told.
                log.warning("%s: the tokens before its move are not those that come here: it goes on from them", name)
                self._leave(name, stream)
                self._moved["continued"] += 1
                stream = await self._begin(name, plan.from_told(), asked, context)
            elif told:
                self._moved["replayed"] += 1
            new = 0
            async for token in stream:
                # The rest of a text is none of a token's.
                if token.token is not None:
                    new += 1
                    yield self._chunk(token)
            done = stream.result()
            end = {"token_ids": [], "index": 0, "finish_reason": _FINISH_REASONS[done.finish_reason]}
            if self._journal.keeps:
                end["completion_usage"] = _usage(len(plan.prompt), told + new, done.cached_tokens)
            yield end
        finally:
            self._leave(name, stream)

    async def _begin(self, name: str, plan: Plan, asked: dict[str, Any], context: Context) -> Stream:
        # A sequence is full before it has as many.
        most = self._model.max_seq_len if plan.most is None else plan.most
        bounds = {"max_new_tokens": most, "min_new_tokens": min(plan.least, most), "seed": plan.seed}
        # Forms of texts are compiled there: other requests go on meanwhile.
        stream = await asyncio.to_thread(self._model.generate, plan.prompt, **bounds, **asked)
        self._streams.setdefault(name, set()).add(stream)
        # `abort` has not seen it.
        if context.is_stopped():
            stream.cancel()
        return stream

    def _leave(self, name: str, stream: Stream) -> None:
        """Ends what nobody reads any more."""
        stream.cancel()
        streams = self._streams.get(name, set())
        streams.discard(stream)
        if not streams:
            self._streams.pop(name, None)

    def _chunk(self, new: Token) -> dict[str, Any]:
        chunk: dict[str, Any] = {"token_ids": [new.token], "index": 0}
        if new.logprob is not None:
            best = [
                {"rank": rank, "token_id": token, "logprob": logprob}
                for rank, (token, logprob) in enumerate(new.top or (), 1)
            ]
            chunk.update(log_probs=[new.logprob], top_logprobs=[best])
        return chunk

    async def abort(self, context: Context) -> None:
        for stream in self._streams.get(context.id() or "", ()):
            stream.cancel()

    async def health_check_payload(self) -> dict[str, Any]:
        """A request that runs one token."""
        return {"token_ids": [0], "sampling_options": {"temperature": 0.0}, "stop_conditions": {"max_tokens": 1}}

    async def register_prometheus(self, metrics: Any) -> None:
        metrics.register_prometheus_expfmt_callback(self.numbers)

    def numbers(self) -> str:
        """What `/metrics` has of the package, in Prometheus's format."""
        try:
            found = {**self._model.snapshot(), **self._moved}
        except RunError:
            # It is closed.
            return ""
        # What the format has a meaning for, and nothing else.
        label = self._name.translate({ord("\\"): r"\\", ord('"'): r"\"", ord("\n"): r"\n"})
        return "".join(
            f'# HELP {name} {text}\n# TYPE {name} {kind}\n{name}{{model="{label}"}} {float(found[key])}\n'
            for key, name, kind, text in _METRICS
        )

    async def cleanup(self) -> None:
        """Takes no more requests, goes on with those that it has, and frees the engines."""
        if self._ending:
            return
        self._ending = True
        self._model.drain()
        await asyncio.to_thread(self._model.wait_idle, self._drain_seconds)
        await asyncio.to_thread(self._model.close)
        # What has not ended is told so, and goes on elsewhere.
        for _ in range(500):
            if not self._streams:
                break
            await asyncio.sleep(0.01)


def _usage(prompt: int, new: int, cached: int) -> dict[str, Any]:
    """Counts of tokens. Without a journal the frontend's own have to do: a prompt that moved is not the client's."""
    details = {"cached_tokens": min(cached, prompt)}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": details,
    }


async def _replayed(stream: Stream, told: Sequence[int]) -> bool:
    """Goes past tokens that were told; false where others come. One that is cancelled meanwhile has no others."""
    for token in told:
        new = await anext(stream, None)
        if new is None:
            return stream.result().finish_reason == "cancelled"
        if new.token != token:
            return False
    return True


def _parser() -> argparse.ArgumentParser:
    def from_environment(name: str, otherwise: str | None) -> dict[str, Any]:
        return {"default": os.environ.get(name, otherwise), "help": f"{name} unless given"}

    parser = argparse.ArgumentParser(
        prog="python -m ratplus.dynamo",
        description="A worker of NVIDIA Dynamo over a package",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("package", type=Path, help="what `ratplus export` has written")
    parser.add_argument("--model-name", help="what requests call the model; the folder's name unless given")
    parser.add_argument("--backend", default="ort-cpu", help="as `ratplus serve` has it")
    parser.add_argument("--threads", type=int, help="of one engine; all cores unless given")
    parser.add_argument("--onnxruntime", type=Path, help="ONNX Runtime's library")
    parser.add_argument("--custom-ops", type=Path, help="the library of RAT+ operators")
    parser.add_argument("--no-cuda-graph", action="store_true", help="decode steps replay no CUDA graph")
    parser.add_argument("--device", type=int, default=0, help="number of the GPU")
    parser.add_argument("--prefix-cache", type=int, default=DEFAULT_PREFIX_CACHE_BYTES, help="bytes of states of prompts")
    parser.add_argument("--prefill-chunk", type=int, help="the longest chunk that prompts run as")
    parser.add_argument("--max-queued-requests", type=int, default=DEFAULT_MAX_QUEUED_REQUESTS,
                        help="most requests that wait for a slot")
    parser.add_argument("--max-queued-tokens", type=int, default=DEFAULT_MAX_QUEUED_TOKENS,
                        help="most tokens of their prompts")
    parser.add_argument("--drain-seconds", type=float, default=30.0, help="how long requests go on after SIGTERM")
    parser.add_argument("--journal", type=Path, help="a folder that all workers of the model write to: requests of a "
                        "worker that is lost have the same tokens then, draws and penalties among them")
    parser.add_argument("--namespace", **from_environment("DYN_NAMESPACE", "dynamo"))
    parser.add_argument("--component", default="backend", help="in Dynamo's names")
    parser.add_argument("--endpoint", default="generate", help="in Dynamo's names")
    parser.add_argument("--discovery-backend", **from_environment("DYN_DISCOVERY_BACKEND", "etcd"))
    parser.add_argument("--request-plane", **from_environment("DYN_REQUEST_PLANE", "tcp"))
    parser.add_argument("--event-plane", **from_environment("DYN_EVENT_PLANE", None))
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """The command line."""
    asked = _parser().parse_args(words)
    package = asked.package.resolve()
    name = asked.model_name or package.name
    try:
        journal = Journal(asked.journal and asked.journal.resolve())
        model = Model.open(
            package,
            asked.backend,
            threads=asked.threads,
            onnxruntime=asked.onnxruntime,
            custom_ops=asked.custom_ops,
            device=asked.device,
            cuda_graph=not asked.no_cuda_graph,
            prefill_chunk=asked.prefill_chunk,
            prefix_cache=asked.prefix_cache,
            max_queued_requests=asked.max_queued_requests,
            max_queued_tokens=asked.max_queued_tokens,
        )
        with model, tempfile.TemporaryDirectory(prefix="ratplus-dynamo-") as folder:
            # A frontend takes workers for those of one model where this path is the same, wherever they are; it reads the
            # files through the worker.
            os.chdir(folder)
            files = _dynamo_files.write(model, Path("ratplus"))
            config = WorkerConfig(
                namespace=asked.namespace,
                component=asked.component,
                endpoint=asked.endpoint,
                model_name=str(files),
                served_model_name=name,
                endpoint_types=_dynamo_files.endpoint_types(model),
                discovery_backend=asked.discovery_backend,
                request_plane=asked.request_plane,
                event_plane=asked.event_plane,
                # No events of a cache of blocks are sent, and no socket is opened for them.
                enable_kv_routing=False,
            )
            # Dynamo ends a worker that takes longer, whatever it still does.
            os.environ.setdefault("DYN_WORKER_GRACEFUL_SHUTDOWN_TIMEOUT", str(int(asked.drain_seconds) + 15))
            engine = PackageEngine(model, name, journal, asked.drain_seconds)

            async def made(_: object) -> tuple[PackageEngine, WorkerConfig]:
                return engine, config

            run(PackageEngine, engine_factory=made)
    except (Error, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
