"""`ratplus serve` through the official `openai` client."""

import json
import urllib.request

import openai
import pytest
from conftest import serving

PROMPT = "In the beginning"


@pytest.fixture(scope="module")
def server(ratplus_bin, kjv_chat, tmp_path_factory):
    """The address of a server of the King James model."""
    keys = tmp_path_factory.mktemp("serve") / "keys"
    keys.write_text("secret\n")
    with serving(ratplus_bin, kjv_chat, "--api-key-file", keys) as server:
        yield server.address


@pytest.fixture
def client(server):
    """A client that tries once."""
    return openai.OpenAI(base_url=f"{server}/v1", api_key="secret", max_retries=0)


def test_the_model_is_listed(client):
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == ("kjv", "ratplus")
    assert client.models.retrieve("kjv").id == "kjv"


def test_completions_whole_and_in_parts(client):
    asked = dict(model="kjv", prompt=PROMPT, max_tokens=16, temperature=0, logprobs=2)
    whole = client.completions.create(**asked)
    (choice,) = whole.choices
    assert choice.finish_reason == "length"
    assert whole.usage.completion_tokens == len(choice.logprobs.tokens) == 16
    assert "".join(choice.logprobs.tokens) == choice.text
    parts = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert parts[-1].choices == []
    assert parts[-1].usage.completion_tokens == 16
    assert "".join(part.choices[0].text for part in parts[:-1]) == choice.text
    # Several prompts and choices at once.
    many = client.completions.create(**{**asked, "prompt": [PROMPT, "And God said", PROMPT]}, n=2)
    assert [choice.index for choice in many.choices] == list(range(6))
    assert {many.choices[index].text for index in (0, 1, 4, 5)} == {choice.text}


@pytest.mark.parametrize("flags, asked", [
    (["--temperature", 0], {"temperature": 0}),
    (["--temperature", 0.8, "--top-k", 20, "--seed", 7], {"temperature": 0.8, "seed": 7, "extra_body": {"top_k": 20}}),
], ids=["greedy", "seeded"])  # fmt: skip
def test_answers_are_those_of_generate(client, ratplus, kjv_chat, tmp_path, flags, asked):
    prompts = [PROMPT, "And God said", "The LORD is my shepherd", "Blessed are the meek", "a"]
    file = tmp_path / "prompts"
    file.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    done = ratplus("generate", kjv_chat, "--prompts", file, "--max-new-tokens", 24, *flags)
    expected = [json.loads(line)["completion"] for line in done.stdout.splitlines()]
    found = [client.completions.create(model="kjv", prompt=prompt, max_tokens=24, **asked) for prompt in prompts]
    assert [one.choices[0].text for one in found] == expected


def test_chats_whole_and_in_parts(client):
    messages = [{"role": "user", "content": "Who made the earth?"}]
    asked = dict(model="kjv", messages=messages, max_completion_tokens=12, seed=7, logprobs=True, top_logprobs=3)
    whole = client.chat.completions.create(**asked)
    (choice,) = whole.choices
    assert choice.message.role == "assistant"
    assert len(choice.logprobs.content) == 12
    assert all(len(token.top_logprobs) == 3 for token in choice.logprobs.content)
    parts = list(client.chat.completions.create(**asked, stream=True))
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == choice.message.content
    assert parts[-1].choices[0].finish_reason == "length"
    assert all(part.usage is None for part in parts)


def test_errors_are_those_that_the_client_knows(client, server):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="kjv", prompt=PROMPT, temperature=-1)
    assert error.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as error:
        tools = [{"type": "function", "function": {"name": "f"}}]
        client.chat.completions.create(model="kjv", messages=[{"role": "user", "content": "a"}], tools=tools)
    assert (error.value.param, error.value.code) == ("tools", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt=PROMPT)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server}/v1", api_key="wrong", max_retries=0).models.list()
    with urllib.request.urlopen(f"{server}/health") as answer:
        assert answer.status == 200


def test_memory_for_servers_is_planned(ratplus, kjv_chat):
    told = lambda *words: ratplus("inspect", kjv_chat, *words).stdout  # noqa: E731
    found = json.loads(told("--serve-memory", "1GB", "--json"))
    servers, state = found["servers"], found["state_bytes_per_sequence"]
    assert [server["slots"] for server in servers] == [2**n for n in range(len(servers))] and len(servers) > 2
    for server in servers:
        assert server["resident_bytes"] + server["prefix_cache_bytes"] == 10**9
    first, second = servers[2:4]
    more = (second["resident_bytes"] - first["resident_bytes"]) / (second["slots"] - first["slots"])
    assert more >= state["cache"] + state["recurrent"]
    assert first["prefix_cache_tokens"] > second["prefix_cache_tokens"] > 0
    assert "no server fits in 1.00 MB" in told("--serve-memory", "1MB")
