"""Requests as Dynamo's frontend sends them: token ids, and how to continue them."""

from __future__ import annotations

import json
import random
from typing import Any, Mapping

from ._errors import InputError
from ._ratplus import MAX_LOGPROBS

#: What says where a request came from or went through, or what only the frontend and its routers act on.
_OF_OTHERS = (
    "model token_ids stop_conditions sampling_options output_options eos_token_ids mdc_sum annotations routing "
    "router_config_override router agent_context migration_link request_timestamp_ms extra_args tracker _HEALTH_CHECK"
).split()


def _json(value: Any) -> str:
    """With the characters that it has."""
    return json.dumps(value, ensure_ascii=False)


class _Given:
    """One group of a request's fields; those that are null ask for nothing."""

    def __init__(self, name: str, fields: Mapping[str, Any] | None) -> None:
        self._name = name
        self._fields = {field: value for field, value in (fields or {}).items() if value is not None}

    def take(self, name: str, otherwise: Any = None) -> Any:
        return self._fields.pop(name, otherwise)

    def only(self, name: str, *neutral: Any) -> None:
        """Refuses a field that says anything but what is so without it."""
        value = self.take(name)
        if value is not None and value not in neutral:
            expected = " or ".join(map(_json, neutral)) or "none"
            raise InputError(f"`{self._name}{name}`: not supported; expected {expected}, found {_json(value)}")

    def finish(self) -> None:
        """Refuses all that was not taken."""
        if self._fields:
            names = ", ".join(f"`{self._name}{name}`" for name in sorted(self._fields))
            raise InputError(f"not supported: {names}")


def parameters(request: Mapping[str, Any]) -> dict[str, Any]:
    """What `Model.generate` takes by keyword for a request. Stop strings are not in it: the frontend, which has the text,
    looks for them. `max_new_tokens` is None where the request does not say.

    Raises:
        InputError: It asks for what is not supported, which is named.
    """
    rest = _Given("", request)
    for name in _OF_OTHERS:
        rest.take(name)
    # No field of these asks for anything then.
    rest.only("require_reasoning", False)
    for name in ("multi_modal_data", "mm_processor_kwargs"):
        rest.only(name, {})
    rest.finish()
    extra = _Given("extra_args.", request.get("extra_args"))
    # Namespaces of a cache, and what else an answer tells, are the frontend's.
    extra.take("nvext")
    extra.only("sampling_options", {})
    extra.finish()
    routing = _Given("routing.", request.get("routing"))
    routing.only("lora_name")
    return {**_sampling(request), **_stops(request), **_output(request)}


def _sampling(request: Mapping[str, Any]) -> dict[str, Any]:
    given = _Given("sampling_options.", request.get("sampling_options"))
    asked: dict[str, Any] = {"temperature": given.take("temperature", 1.0)}
    for name in ("top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
        value = given.take(name)
        if value is not None:
            asked[name] = value
    # -1 and 0 are ways to say: all.
    top_k = given.take("top_k", -1)
    if top_k < -1:
        raise InputError(f"`sampling_options.top_k`: expected -1 or more, found {top_k}")
    asked["top_k"] = top_k if top_k > 0 else None
    bias = given.take("logit_bias")
    if bias:
        asked["logit_bias"] = {int(token): float(value) for token, value in bias.items()}
    # What is below 0 has the bits of its two's complement, as for the server.
    seed = given.take("seed")
    asked["seed"] = random.getrandbits(64) if seed is None else seed & (2**64 - 1)
    given.only("n", 1)
    given.only("best_of", 1)
    given.only("use_beam_search", False)
    given.only("length_penalty", 1)
    given.only("bad_words_token_ids", [])
    given.only("allowed_token_ids")
    # Whether text is made, and of what, is the frontend's.
    given.take("detokenize")
    given.take("include_stop_str_in_output")
    asked.update(_form(_Given("guided_decoding.", given.take("guided_decoding"))))
    given.finish()
    return asked


def _form(given: _Given) -> dict[str, str]:
    """What the text has to be."""
    forms = {}
    schema = given.take("json")
    if schema is not None:
        forms["json_schema"] = schema if isinstance(schema, str) else _json(schema)
    for name, ours in (("regex", "regex"), ("grammar", "lark")):
        text = given.take(name)
        if text is not None:
            forms[ours] = text
    choices = given.take("choice")
    if choices:
        # A literal of the grammar is written as JSON writes strings.
        forms["lark"] = "start: " + " | ".join(map(_json, choices))
    given.only("structural_tag")
    given.only("whitespace_pattern")
    given.only("backend")
    given.finish()
    return forms


def _stops(request: Mapping[str, Any]) -> dict[str, Any]:
    given = _Given("stop_conditions.", request.get("stop_conditions"))
    names = ("stop_token_ids", "stop_token_ids_hidden", "stop_token_ids_visible")
    tokens = [token for name in names for token in given.take(name, ())]
    asked = {
        "max_new_tokens": given.take("max_tokens"),
        "min_new_tokens": given.take("min_tokens", 0),
        "ignore_eos": given.take("ignore_eos", False),
        "stop_tokens": tokens,
    }
    given.take("stop")
    given.only("max_thinking_tokens")
    given.finish()
    return asked


def _output(request: Mapping[str, Any]) -> dict[str, Any]:
    given = _Given("output_options.", request.get("output_options"))
    count = given.take("logprobs")
    if count is not None and not 0 <= count <= MAX_LOGPROBS:
        raise InputError(f"`output_options.logprobs`: expected 0 to {MAX_LOGPROBS}, found {count}")
    given.only("prompt_logprobs")
    for name in ("skip_special_tokens", "formatted_prompt", "return_tokens_as_token_ids"):
        given.take(name)
    given.finish()
    return {"logprobs": count}
