"""lm-evaluation-harness with packages: `python -m ratplus.lm_eval run --model ratplus --model_args package=DIR ...`.

The harness has no way to find models of others by itself. This module gives it one, named `ratplus`, and is its command
line then; after `import ratplus.lm_eval`, `lm_eval.simple_evaluate(model="ratplus", ...)` has it too.
"""

from __future__ import annotations

import sys
from typing import Any, Iterable

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ._model import Model


@register_model("ratplus")
class RatplusLM(TemplateLM):
    """A package as a model of the harness.

    Args:
        package: The package's directory.
        backend: What runs it.
        max_length: Tokens that a prediction may see; the package's `max_seq_len` unless given. Of longer contexts the end
            is kept.
        max_gen_toks: Tokens of an answer where the task does not say.
        prefix_token_id: What a text begins with that has nothing before it. Unless given nothing does, as released
            models were trained and evaluated: its first token has no prediction and is not scored.
        batch_size, device, max_batch_size: The package's slots and `backend` say that; taken and not used.
        options: As `ratplus.Model.open` has them.
    """

    def __init__(
        self,
        package: str,
        backend: str = "ort-cpu",
        max_length: int | str | None = None,
        max_gen_toks: int | str = 256,
        prefix_token_id: int | str | None = None,
        batch_size: object = None,
        max_batch_size: object = None,
        device: object = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.model = Model.open(package, backend, **options)
        longest = self.model.max_seq_len
        self.max_length = longest if max_length is None else int(max_length)
        if not 2 <= self.max_length <= longest:
            raise ValueError(f"`max_length`: expected 2 to {longest}, the package's, found {max_length}")
        self.max_gen_toks = int(max_gen_toks)
        self.prefix_token = None if prefix_token_id is None else int(prefix_token_id)

    @property
    def eot_token_id(self) -> int:
        ends = self.model.end_tokens
        if not ends:
            raise ValueError("the package's tokenizer has no token that ends a text")
        return ends[0]

    @property
    def tokenizer_name(self) -> str:
        return self.model.directory

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.model.chat(chat_history, add_generation_prompt=add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return [int(token) for token in self.model.encode(string, special_tokens=add_special_tokens)]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = []
        for context, continuation in (request.args for request in requests):
            context_ids, ids = self._encode_pair(context, continuation) if context else ([], self.tok_encode(continuation))
            # Spaces at a context's end are the continuation's, so that there may be none either.
            if not context_ids:
                context_ids, ids = self._begin(ids)
            pairs.append(((context, continuation), context_ids, ids))
        return self._loglikelihood_tokens(pairs)

    def _begin(self, tokens: list[int]) -> tuple[list[int], list[int]]:
        """What a text of these tokens begins with, and what is scored of it."""
        return ([self.prefix_token], tokens) if self.prefix_token is not None else (tokens[:1], tokens[1:])

    def _loglikelihood_tokens(
        self, requests: Iterable[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation after its context, and whether it is the likeliest."""
        requests = list(requests)
        # A continuation of nothing is certain.
        scored = [index for index, (_, _, ids) in enumerate(requests) if ids]
        sequences, starts = [], []
        for index in scored:
            _, context, ids = requests[index]
            # The last token is predicted and not seen.
            kept = (context + ids)[-(self.max_length + 1) :]
            sequences.append(kept)
            starts.append(max(1, len(kept) - len(ids)))
        found = self.model.score_batch(sequences, starts=starts, top=1)
        results = [(0.0, True)] * len(requests)
        for index, kept, start, scores in zip(scored, sequences, starts, found):
            greedy = bool((scores.top_tokens[:, 0] == kept[start:]).all())
            results[index] = (float(scores.logprobs.sum(dtype="float64")), greedy)
            key = requests[index][0]
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, results[index])
        return results

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        windows, counts = [], []
        for (text,) in (request.args for request in requests):
            first, tokens = self._begin(self.tok_encode(text))
            # As the harness cuts texts for its own models: a window's first token is the one before. A text of nothing has
            # none.
            cut = get_rolling_token_windows(tokens, *first, self.max_length, 1) if tokens else ()
            cut = [(None, *make_disjoint_window(window)) for window in cut]
            windows += cut
            counts.append(len(cut))
        scores = iter(self._loglikelihood_tokens(windows))
        sums = [sum(next(scores)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, sums):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        texts: list[str | None] = [None] * len(requests)
        prompts = [self._prompt(request.args[0]) for request in requests]
        # Those that are asked for in the same way run together.
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(index)
        for indices in groups.values():
            asked = normalize_gen_kwargs(dict(requests[indices[0]].args[1]), self.max_gen_toks)
            most = asked.pop("max_gen_toks")
            room = self.max_length - most
            if room < 1:
                raise ValueError(f"`max_gen_toks`: expected less than {self.max_length}, found {most}")
            cut = [prompts[index][-room:] for index in indices]
            done = self.model.generate_batch(cut, max_new_tokens=most, **_parameters(asked))
            for index, completion in zip(indices, done):
                texts[index] = completion.text
                self.cache_hook.add_partial("generate_until", requests[index].args, completion.text)
        return texts

    def _prompt(self, text: str) -> list[int]:
        tokens = self.tok_encode(text)
        if tokens or self.prefix_token is not None:
            return tokens or [self.prefix_token]
        raise ValueError("a prompt without a text: expected at least one token; `prefix_token_id=N` begins such prompts")


def _parameters(asked: dict[str, Any]) -> dict[str, Any]:
    """Our parameters for Hugging Face's; what means nothing here is refused."""
    until = asked.pop("until", None) or []
    until = [until] if isinstance(until, str) else list(until)
    sample = asked.pop("do_sample", False)
    parameters = {"stop": [text for text in until if text]}
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"):
        value = asked.pop(name, None)
        if value is not None:
            parameters[name] = value
    if not sample:
        parameters["temperature"] = 0.0
    if parameters.get("top_k") == 0:
        del parameters["top_k"]
    # What they say is so in any case.
    for name in ("use_cache", "num_beams", "pad_token_id", "eos_token_id"):
        if name == "num_beams" and asked.get(name, 1) != 1:
            raise ValueError(f"`num_beams`: expected 1, found {asked[name]}")
        asked.pop(name, None)
    if asked:
        raise ValueError(f"generation parameters: not supported: {', '.join(map(repr, asked))}")
    return parameters


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    sys.exit(cli_evaluate())
