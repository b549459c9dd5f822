"""The backend `ratplus` in a real Triton Inference Server, and the repositories that `ratplus triton` writes.

`cargo xtask test` installs the server, from PyPI's nvidia-pytriton, with a client into target/triton.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

import onnx
import pytest
from conftest import ROOT, built, golden_case

PROMPT = "In the beginning"
GREEDY = '{"temperature": 0, "max_tokens": %d}'
# Long enough to be met while it runs.
LONG = 1500


def environment():
    """Triton's environment of Python, or a skip."""
    folder = ROOT / "target" / "triton"
    if not (folder / "bin" / "python").exists():
        pytest.skip("Triton is not installed (cargo xtask test installs it where it can)")
    return folder


@pytest.fixture(scope="module")
def package(ratplus, tmp_path_factory):
    """The King James model, two sequences at once."""
    folder = tmp_path_factory.mktemp("package") / "kjv"
    case = golden_case("kjv_d16w64i4").directory
    files = ["--config", case / "config.json", "--tokenizer", case / "tokenizer.json"]
    sizes = "--max-seq-len 2048 --prefill-lengths 16,64 --batch 2".split()
    ratplus("export", case / "model.pth", "-o", folder, *files, *sizes)
    return folder


class Client:
    """triton_client.py as a process."""

    def __init__(self, address):
        words = [environment() / "bin" / "python", ROOT / "tests" / "python" / "triton_client.py", address]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen([str(word) for word in words], **pipes)

    def ask(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the client has ended"
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


class Server:
    """A tritonserver with the models of a repository."""

    def __init__(self, repository, backends, log, *models):
        (folder,) = environment().glob("lib/python3*/site-packages/pytriton/tritonserver")
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        self.http, self.grpc, self.numbers = [one.getsockname()[1] for one in sockets]
        for one in sockets:
            one.close()
        places = dict(http=self.http, grpc=self.grpc, metrics=self.numbers)
        words = [f"--{name}-{what}" for name, port in places.items() for what in ("address=127.0.0.1", f"port={port}")]
        words += [f"--model-repository={repository}", f"--backend-directory={backends}"]
        words += ["--model-control-mode=explicit", "--exit-on-error=false", "--log-verbose=0"]
        words += [f"--load-model={model}" for model in models]
        # libratplus_ort.so lies beside the backend.
        given = {name: value for name, value in os.environ.items() if name != "RATPLUS_ORT_LIBRARY"}
        self.log = log
        with log.open("w") as file:
            words = [str(folder / "bin" / "tritonserver"), *words]
            self.process = subprocess.Popen(words, stdout=file, stderr=file, env=given)
        self.client = Client(f"127.0.0.1:{self.grpc}")
        until = time.monotonic() + 60
        # The numbers' socket is opened last.
        while [self.status("v2/health/live"), self.status("metrics", self.numbers)] != [200, 200]:
            assert self.process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)

    def fetch(self, path, body=None, port=None):
        """Status and text of an answer."""
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port or self.http}/{path}", data, 60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def status(self, path, port=None):
        try:
            return self.fetch(path, port=port)[0]
        except urllib.error.URLError:
            return 0

    def generate(self, model, how="generate", **body):
        """The answer of one of Triton's HTTP endpoints for texts."""
        return self.fetch(f"v2/models/{model}/{how}", body)

    def stream(self, *requests, **more):
        """Responses to requests of the model kjv, sent together."""
        requests = [dict(id=str(index), model="kjv", inputs=inputs) for index, inputs in enumerate(requests)]
        return self.client.ask(stream=requests, **more)

    def metrics(self, model):
        """This backend's numbers of a model."""
        text = self.fetch("metrics", port=self.numbers)[1]
        found = re.findall(rf'^ratplus_(\w+){{model="{model}",version="1"}} (\S+)$', text, re.MULTILINE)
        return {name: float(value) for name, value in found}

    def becomes_idle(self, model="kjv"):
        """Waits until no request is left."""
        until = time.monotonic() + 30
        while self.metrics(model)["requests_in_flight"] != 0:
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.02)

    def end(self):
        """The exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        self.client.close()
        return self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def backends(tmp_path_factory):
    """A backend directory, as it is installed."""
    environment()
    folder = tmp_path_factory.mktemp("backends")
    (folder / "ratplus").mkdir()
    for variable, name in [("RATPLUS_TRITON_LIBRARY", "libtriton_ratplus.so"), ("RATPLUS_ORT_LIBRARY", "libratplus_ort.so")]:
        (folder / "ratplus" / name).symlink_to(built(variable, name))
    return folder


@pytest.fixture(scope="module")
def repository(ratplus, package, tmp_path_factory):
    """A repository with the package's models, one with a short queue, and one that is wrong."""
    folder = tmp_path_factory.mktemp("repository") / "models"
    ratplus("triton", package, "-o", folder)
    ratplus("triton", package, "-o", folder, "--model-name", "short", "--max-queued-requests", 2)
    shutil.copytree(folder / "kjv_unary", folder / "wrong")
    config = (folder / "wrong" / "config.pbtxt").read_text()
    config = config.replace('"kjv_unary"', '"wrong"').replace('"prefix_cache_bytes"', '"prefix_cash"')
    config = config.replace("max_batch_size: 0", "max_batch_size: 4")
    (folder / "wrong" / "config.pbtxt").write_text(config)
    return folder


@pytest.fixture(scope="module")
def server(repository, backends, tmp_path_factory):
    """A server of both models."""
    log = tmp_path_factory.mktemp("server") / "log"
    server = Server(repository, backends, log, "kjv", "kjv_unary", "short")
    assert [server.status(f"v2/models/{model}/ready") for model in ("kjv", "kjv_unary")] == [200, 200], log.read_text()
    yield server
    assert server.end() == 0, log.read_text()


@pytest.fixture(scope="module")
def expected(ratplus, package, tmp_path_factory):
    """What `ratplus generate` says to prompts: token ids and texts."""
    prompts = [PROMPT, "And God said", "The LORD is my shepherd", "Blessed are the meek"]
    file = tmp_path_factory.mktemp("prompts") / "prompts"
    file.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    done = ratplus("generate", package, "--prompts", file, "--temperature", 0, "--max-new-tokens", 24)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["prompt"]: line for line in lines}


def gathered(told, name):
    """What all responses have of an output, by request."""
    parts = {}
    for one in told:
        parts.setdefault(one["id"], []).extend(one["outputs"].get(name, []))
    return parts


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
    parameters = '{"max_tokens": 300, "temperature": 0, "ignore_eos": true}'
    request = dict(text_input=PROMPT, sampling_parameters=parameters, stream=True, return_output_ids=True)
    answers = []
    running = threading.Thread(target=lambda: answers.append(server.stream(request)))
    before = server.metrics("kjv")["generated_tokens"]
    running.start()
    until = time.monotonic() + 30
    while server.metrics("kjv")["generated_tokens"] == before:
        assert time.monotonic() < until
    # What runs is answered whole.
    assert server.fetch("v2/repository/models/kjv/unload", {})[0] == 200
    running.join()
    (tokens,) = gathered(answers[0]["told"], "output_ids").values()
    (texts,) = gathered(answers[0]["told"], "text_output").values()
    assert len(tokens) == 300 and "".join(texts).startswith(expected[PROMPT]["completion"])
    assert server.generate("kjv", text_input=PROMPT)[0] in (400, 404)
    assert server.generate("kjv_unary", text_input=PROMPT, sampling_parameters=GREEDY % 1)[0] == 200
    assert server.fetch("v2/repository/models/kjv/load", {})[0] == 200
    status, text = server.generate("kjv", text_input=PROMPT, sampling_parameters=GREEDY % 24)
    assert (status, json.loads(text)["text_output"]) == (200, PROMPT + expected[PROMPT]["completion"])


def test_a_server_that_ends_answers_what_it_has(repository, backends, tmp_path):
    server = Server(repository, backends, tmp_path / "log", "kjv")
    parameters = '{"max_tokens": 400, "temperature": 0, "ignore_eos": true}'
    answers = []
    request = dict(text_input=PROMPT, sampling_parameters=parameters, stream=True, return_output_ids=True)
    running = threading.Thread(target=lambda: answers.append(server.stream(request)))
    running.start()
    until = time.monotonic() + 30
    while server.metrics("kjv").get("generated_tokens", 0) == 0:
        assert time.monotonic() < until
    server.process.send_signal(signal.SIGTERM)
    running.join()
    (tokens,) = gathered(answers[0]["told"], "output_ids").values()
    assert len(tokens) == 400
    assert server.end() == 0, server.log.read_text()


def test_configurations_are_what_triton_reads(ratplus, package, repository, tmp_path):
    client = Client("none")
    for name, decoupled in [("kjv", True), ("kjv_unary", False)]:
        config = client.ask(parse=str(repository / name / "config.pbtxt"))
        assert (config["name"], config["backend"]) == (name, "ratplus")
        assert config["model_transaction_policy"].get("decoupled", False) is decoupled
        assert all(tensor["optional"] for tensor in config["input"])
    # Triton's own backend for ONNX Runtime: the graph's own tensors, every state with its successor.
    manifest = json.loads((package / "manifest.json").read_text())
    for backend, length in [("ort-cpu", 1), ("ort-fallback", 64)]:
        words = ["--triton-backend", "onnxruntime", "--backend", backend, "--length", length]
        ratplus("triton", package, "-o", tmp_path, "--model-name", backend, *words)
        config = client.ask(parse=str(tmp_path / backend / "config.pbtxt"))
        model = onnx.load(tmp_path / backend / "1" / config["default_model_filename"], load_external_data=False)
        sizes = {
            value.name: [str(size.dim_value) for size in value.type.tensor_type.shape.dim]
            for value in [*model.graph.input, *model.graph.output]
        }
        states = config["sequence_batching"]["state"]
        declared = {tensor["name"]: tensor["dims"] for tensor in config["input"] + config["output"]}
        for state in states:
            declared[state["input_name"]] = declared[state["output_name"]] = state["dims"]
            assert state["output_name"] == state["input_name"].replace("past_key_values", "present")
        assert declared == sizes
        # Triton also pairs them by order.
        assert len(states) == 4 * manifest["model"]["num_layers"]
        pasts, presents = ([state[key] for state in states] for key in ("input_name", "output_name"))
        assert [name.replace("past_key_values", "present") for name in sorted(pasts)] == sorted(presents)
        library = config.get("model_operations", {}).get("op_library_filename", [])
        assert [os.path.basename(path) for path in library] == ["libratplus_ort.so"] * (backend == "ort-cpu")
        onnx.load(tmp_path / backend / "1" / config["default_model_filename"])
    client.close()


def test_repositories_are_refused_before_anything_is_written(ratplus, package, repository, tmp_path):
    done = ratplus("triton", package, "-o", repository, code=2)
    assert "expected no such models, found kjv, kjv_unary" in done.stderr
    for words, said in [
        (["--model-name", "a/b"], "expected letters, digits"),
        (["--triton-backend", "tensorrt"], "plans: expected one for tensorrt, found none"),
        (["--triton-backend", "onnxruntime", "--length", 5], "--length: expected one of the package's lengths"),
        (["--triton-backend", "onnxruntime", "--backend", "tract"], "--backend: expected ort-cpu, ort-cuda"),
        (["--prefill-chunk", 5], "--prefill-chunk: expected one of"),
        (["--backend", "gpu"], "gpu"),
    ]:
        done = ratplus("triton", package, "-o", tmp_path / "none", *words, code=2)
        assert said in done.stderr, done.stderr
        assert not (tmp_path / "none").exists()
