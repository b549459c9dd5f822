"""The backend `ratplus` in a real Triton Inference Server."""

import json
import re
import socket
import subprocess
import time

import pytest
from conftest import golden_case
from triton_server import GREEDY, LONG, PROMPT, Server, backends, client, expected, gathered, package, repository, server

__all__ = ["backends", "expected", "package", "repository", "server"]


def test_streams_of_many_requests_at_once_have_the_tokens_of_generate(server, expected):
    wanted = dict(stream=True, return_output_ids=True, return_finish_reason=True, return_num_output_tokens=True)
    requests = [dict(text_input=prompt, sampling_parameters=GREEDY % 24, **wanted) for prompt in expected]
    answer = server.stream(*requests)
    assert answer["whole"] and not any("error" in one for one in answer["told"]), answer
    told = answer["told"]
    tokens, texts = gathered(told, "output_ids"), gathered(told, "text_output")
    for index, line in enumerate(expected.values()):
        assert len(tokens[str(index)]) == line["tokens"]
        assert "".join(texts[str(index)]) == line["completion"]
        last = [one for one in told if one["id"] == str(index)][-1]
        assert last["final"] and last["outputs"]["finish_reason"] == ["length"]
        assert last["outputs"]["num_output_tokens"] == [24]
    # A token a response.
    assert len(told) >= 4 * 24
    server.becomes_idle()


def test_requests_of_one_instance_run_together(server):
    parameters = '{"max_tokens": 600, "temperature": 0, "ignore_eos": true}'
    request = dict(text_input=PROMPT, sampling_parameters=parameters, stream=True, return_output_ids=True)
    told = server.stream(request, request)["told"]
    order = [one["id"] for one in told]
    assert order != sorted(order)
    tokens = gathered(told, "output_ids")
    assert len(tokens["0"]) == 600 and tokens["0"] == tokens["1"]


def test_one_response_has_all_of_it(server, expected):
    line = expected[PROMPT]
    inputs = dict(text_input=PROMPT, sampling_parameters=GREEDY % 24)
    # The prompt is part of the answer, as with vLLM's backend.
    whole = server.client.ask(model="kjv_unary", inputs=inputs)
    assert whole == {"outputs": {"text_output": [PROMPT + line["completion"]]}}
    more = ["output_ids", "finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens"]
    inputs |= {f"return_{name}": True for name in more} | {"exclude_input_in_output": True}
    outputs = server.client.ask(model="kjv_unary", inputs=inputs)["outputs"]
    assert sorted(outputs) == sorted([*more, "text_output"])
    assert (outputs["text_output"], outputs["finish_reason"]) == ([line["completion"]], ["length"])
    assert len(outputs["output_ids"]) == line["tokens"] == outputs["num_output_tokens"][0]
    scores = json.loads(outputs["logprobs"][0])
    assert "".join(scores["tokens"]) == line["completion"] and len(scores["token_logprobs"]) == 24
    assert outputs["cumulative_logprob"][0] == pytest.approx(sum(scores["token_logprobs"]), abs=1e-4)
    # Only what the client names is sent.
    named = server.client.ask(model="kjv_unary", inputs=inputs, outputs=["output_ids"])["outputs"]
    assert named == {"output_ids": outputs["output_ids"]}


def test_token_ids_go_on_from_token_ids(server):
    ids = golden_case("kjv_d16w64i4").golden()["tokens"][0][:20].tolist()

    def asked(ids, count):
        return dict(input_ids=["INT32", [len(ids)], ids], sampling_parameters=GREEDY % count)

    whole = server.client.ask(model="kjv_unary", inputs=asked(ids, 16))["outputs"]
    assert sorted(whole) == ["output_ids", "text_output"]
    new = whole["output_ids"]
    rest = server.client.ask(model="kjv_unary", inputs=asked(ids + new[:8], 8) | {"return_num_input_tokens": True})
    assert (rest["outputs"]["output_ids"], rest["outputs"]["num_input_tokens"]) == (new[8:], [28])
    status, text = server.generate("kjv", input_ids=ids, sampling_parameters=GREEDY % 16)
    assert status == 200 and json.loads(text)["output_ids"] == new, text
    told = server.stream(asked(ids, 16) | {"stream": True})["told"]
    assert gathered(told, "output_ids") == {"0": new}
    assert "".join(gathered(told, "text_output")["0"]) == whole["text_output"][0]


def test_http_generates_whole_and_in_parts(server, expected):
    body = dict(text_input=PROMPT, sampling_parameters=GREEDY % 24)
    for model in ("kjv", "kjv_unary"):
        status, text = server.generate(model, **body)
        assert (status, json.loads(text)["text_output"]) == (200, PROMPT + expected[PROMPT]["completion"])
    status, text = server.generate("kjv", "generate_stream", **body, stream=True)
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert status == 200 and len(events) > 3
    assert "".join(event["text_output"] for event in events) == expected[PROMPT]["completion"]
    # Parameters beside the tensors, as clients of vLLM's backend send them.
    parameters = dict(temperature=0, max_tokens=24)
    status, text = server.generate("kjv_unary", text_input=PROMPT, parameters=parameters)
    assert (status, json.loads(text)["text_output"]) == (200, PROMPT + expected[PROMPT]["completion"])


def test_kserves_client_asks_both_ways(server, expected):
    line = expected[PROMPT]
    inputs = {
        "text_input": ["BYTES", [PROMPT]],
        "sampling_parameters": ["BYTES", [GREEDY % 24]],
        "exclude_input_in_output": ["BOOL", [True]],
        "return_num_output_tokens": ["BOOL", [True]],
        "return_output_ids": ["BOOL", [True]],
    }
    addresses = f"http://127.0.0.1:{server.http}", f"127.0.0.1:{server.grpc}"
    process = client("kserve_client.py", *addresses, "kjv_unary", json.dumps(inputs), stderr=subprocess.PIPE)
    try:
        told, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, said
    told = json.loads(told)
    assert (told["rest_ready"], told["grpc_ready"]) == ([True, False], [True, True, True])
    # Tensors as bytes, and as values.
    for how in ("rest_True", "rest_False", "grpc_True", "grpc_False"):
        answer = told[how]
        assert (answer["text_output"], answer["num_output_tokens"]) == ([line["completion"]], [24]), how
        assert len(answer["output_ids"]) == line["tokens"] and answer["output_ids"] == told["rest_True"]["output_ids"]
    for how in ("rest_wrong", "grpc_wrong"):
        assert "`stream`: expected false, found true" in told[how]
    assert (told["rest_wrong"][:4], told["grpc_wrong"][:17]) == ("400:", "INVALID_ARGUMENT:")


def test_the_log_has_what_the_libraries_say(server):
    said = server.log.read_text()
    assert re.search(r"^I\d.*ratplus: ort-cpu: ", said, re.MULTILINE), said
    # The second model over the package.
    assert "ratplus: runs in an engine that is there" in said


@pytest.mark.parametrize(
    "inputs, said",
    [
        ({"stream": False}, "expected one of `text_input` and `input_ids`, found neither"),
        ({"text_input": "a", "input_ids": ["INT32", [1], [1]]}, "found both"),
        ({"text_input": ""}, "`prompt`: expected 1 to 2048 tokens, found 0"),
        ({"text_input": "a " * 5000}, "`prompt`: expected 1 to 2048 tokens"),
        ({"text_input": ["BYTES", [2], ["a", "b"]]}, "text_input"),
        ({"text_input": ["BYTES", [1], [[255, 254]]]}, "`text_input`: expected UTF-8"),
        ({"text_input": ["INT32", [1], [1]]}, "text_input"),
        ({"input_ids": ["FP32", [1], [1]]}, "input_ids"),
        ({"input_ids": ["INT32", [2], [1, 1000000]]}, "`input_ids`: expected token ids of 0 to"),
        ({"input_ids": ["INT32", [2], [1, -1]]}, "found -1"),
        ({"input_ids": ["INT32", [0], []]}, "`prompt`: expected 1 to 2048 tokens, found 0"),
        ({"text_input": "a", "stream": True}, "`stream`: expected false"),
        ({"text_input": "a", "stream": ["BOOL", [2], [True, True]]}, "stream"),
        ({"text_input": "a", "sampling_parameters": "{"}, "expected a JSON object"),
        ({"text_input": "a", "sampling_parameters": '{"temperature": -1}'}, "temperature"),
        ({"text_input": "a", "sampling_parameters": '{"tempreature": 1}'}, "`tempreature`: not supported"),
        ({"text_input": "a", "sampling_parameters": '{"n": 2}'}, "`n`: not supported but as 1"),
        ({"text_input": "a", "sampling_parameters": '{"model": "kjv"}'}, "`model`: not supported"),
        ({"text_input": "a", "sampling_parameters": '{"prompt": "b"}'}, "`prompt`: not supported"),
        ({"text_input": "a", "sampling_parameters": '{"echo": true}'}, "`echo`: not supported"),
        ({"text_input": "a", "sampling_parameters": '{"suffix": ""}'}, "`suffix`: not supported"),
        ({"text_input": "a", "sampling_parameters": '{"regex": "["}'}, "regex"),
        ({"input_ids": ["INT32", [1], [1]], "exclude_input_in_output": False}, "exclude_input_in_output"),
        ({"text_input": "a", "nonsense": True}, "nonsense"),
    ],
)
def test_what_is_wrong_is_told_and_the_server_lives(server, inputs, said):
    answer = server.client.ask(model="kjv_unary", inputs=inputs)
    assert said in answer.get("error", ""), answer
    assert server.generate("kjv_unary", text_input="a", sampling_parameters=GREEDY % 1)[0] == 200


def test_a_cancelled_stream_ends_within_a_step(server):
    request = dict(text_input=PROMPT, sampling_parameters='{"max_tokens": %d, "ignore_eos": true}' % LONG, stream=True)
    before = server.metrics("kjv")["generated_tokens"]
    answer = server.stream(request, request, request, request, stop_after=8)
    assert answer["whole"]
    server.becomes_idle()
    # Those that waited for their turn have none.
    assert server.metrics("kjv")["generated_tokens"] - before < LONG
    # A socket that closes.
    body = json.dumps(dict(text_input=PROMPT, sampling_parameters=request["sampling_parameters"], stream=True))
    before = server.metrics("kjv")["generated_tokens"]
    with socket.create_connection(("127.0.0.1", server.http)) as client:
        head = f"POST /v2/models/kjv/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall((head + body).encode())
        assert client.recv(64).startswith(b"HTTP/1.1 200")
    server.becomes_idle()
    assert server.metrics("kjv")["generated_tokens"] - before < LONG


def test_a_full_queue_refuses_by_the_servers_policy(server):
    parameters = '{"max_tokens": %d, "ignore_eos": true}' % LONG
    inputs = dict(text_input=PROMPT, sampling_parameters=parameters, stream=True)
    requests = [dict(id=str(index), model="short", inputs=inputs) for index in range(12)]
    # Two slots, one that is next, one that waits for its turn, and two in the queue: others are refused, all but the
    # two of the queue where they come faster than it is emptied.
    answer = server.client.ask(stream=requests, every=0.02, stop_after=60)
    refused = [one["error"] for one in answer["told"] if "error" in one and "maximum queue size" in one["error"]]
    assert 1 <= len(refused) <= 10, answer
    # Triton takes cancelled requests out of its queue one by one.
    until = time.monotonic() + 30
    while server.generate("short", text_input=PROMPT, sampling_parameters=GREEDY % 1)[0] != 200:
        assert time.monotonic() < until, server.log.read_text()
    server.becomes_idle("short")


def test_statistics_and_metrics_count_what_ran(server):
    def statistics():
        (model,) = json.loads(server.fetch("v2/models/kjv/stats")[1])["model_stats"]
        return model

    server.becomes_idle()
    before, counted = statistics(), server.metrics("kjv")
    server.stream(*[dict(text_input=PROMPT, sampling_parameters=GREEDY % 5, stream=True)] * 3)
    server.becomes_idle()
    after, now = statistics(), server.metrics("kjv")
    assert after["inference_count"] - before["inference_count"] == 3
    for part in ("success", "queue", "compute_infer"):
        old, new = before["inference_stats"][part], after["inference_stats"][part]
        assert new["count"] - old["count"] == 3
        # Times that ran backwards would have wrapped around.
        assert 0 <= new["ns"] - old["ns"] < 60e9
    assert after["inference_stats"]["fail"]["count"] == before["inference_stats"]["fail"]["count"]
    assert after["response_stats"]["0"]["success"]["count"] - before["response_stats"]["0"]["success"]["count"] == 3
    assert now["generated_tokens"] - counted["generated_tokens"] == 15
    assert now["prompt_tokens"] > counted["prompt_tokens"]
    assert (now["slots"], now["time_to_first_token_seconds_count"]) == (2, counted["time_to_first_token_seconds_count"] + 3)


def test_a_model_that_is_wrong_says_all_of_it(server):
    status, text = server.fetch("v2/repository/models/wrong/load", {})
    assert status == 400
    for said in ("`max_batch_size`: expected 0, found 4", "parameter `prefix_cash`: expected one of package, backend"):
        assert said in text, text
    assert server.status("v2/models/kjv/ready") == 200


def test_models_are_unloaded_and_loaded_while_others_run(server, expected):
    parameters = '{"max_tokens": %d, "temperature": 0, "ignore_eos": true}' % LONG
    request = dict(text_input=PROMPT, sampling_parameters=parameters, stream=True, return_output_ids=True)
    status = []

    def unload():
        status.append(server.fetch("v2/repository/models/kjv/unload", {})[0])

    # What runs is answered whole.
    told = server.while_it_streams(request, unload)
    (tokens,) = gathered(told, "output_ids").values()
    (texts,) = gathered(told, "text_output").values()
    assert status == [200] and len(tokens) == LONG and "".join(texts).startswith(expected[PROMPT]["completion"])
    assert server.generate("kjv", text_input=PROMPT)[0] in (400, 404)
    assert server.generate("kjv_unary", text_input=PROMPT, sampling_parameters=GREEDY % 1)[0] == 200
    assert server.fetch("v2/repository/models/kjv/load", {})[0] == 200
    status, text = server.generate("kjv", text_input=PROMPT, sampling_parameters=GREEDY % 24)
    assert (status, json.loads(text)["text_output"]) == (200, PROMPT + expected[PROMPT]["completion"])


def test_a_server_that_ends_answers_what_it_has(repository, backends, tmp_path):
    parameters = '{"max_tokens": %d, "temperature": 0, "ignore_eos": true}' % LONG
    request = dict(text_input=PROMPT, sampling_parameters=parameters, stream=True, return_output_ids=True)
    with Server(repository, backends, tmp_path / "log", "kjv") as server:
        told = server.while_it_streams(request, server.terminate)
        (tokens,) = gathered(told, "output_ids").values()
        assert len(tokens) == LONG
        assert server.end() == 0, server.log.read_text()
