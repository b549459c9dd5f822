"""The backend `ratplus` in a real Triton Inference Server, and the repositories that `ratplus triton` writes.

`cargo xtask test` installs the server, of PyPI's nvidia-pytriton, into target/triton, and its clients with others into
target/clients.
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
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from conftest import ROOT, built, golden_case
from test_plan_backends import KINDS, add_plans

PROMPT = "In the beginning"
GREEDY = '{"temperature": 0, "max_tokens": %d}'
# Long enough to be met while it runs.
LONG = 1500


CLIENTS = Path(os.environ.get("RATPLUS_CLIENTS", ROOT / "target" / "clients"))


def tritonserver():
    """The server, or a skip."""
    program = ROOT / "target" / "triton" / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    if not program.exists():
        pytest.skip("Triton is not installed (cargo xtask test installs it where it can)")
    return program


def client(script, *words, **pipes):
    """A client's process."""
    command = [CLIENTS / "bin" / "python", ROOT / "tests" / "python" / script, *words]
    return subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True, **pipes)


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
        self.process = client("triton_client.py", address, stdin=subprocess.PIPE)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()

    def ask(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the client has ended"
        return json.loads(line)


class Server:
    """A tritonserver with the models of a repository, which is killed where it has not ended."""

    def __init__(self, repository, backends, log, *models):
        self.log, self.process, self.client = log, None, None
        words = [f"--model-repository={repository}", f"--backend-directory={backends}"]
        words += ["--model-control-mode=explicit", "--exit-on-error=false", "--log-verbose=0"]
        words += [f"--load-model={model}" for model in models]
        try:
            # Ports that were free a moment ago may be others' now.
            started = any(self.start(words) for _ in range(5))
            assert started, log.read_text()
            self.client = Client(f"127.0.0.1:{self.grpc}")
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process:
            self.process.kill()
            self.process.wait()
        if self.client:
            self.client.__exit__()

    def start(self, words):
        """Whether a server is up; not, where one of its ports was taken."""
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        self.http, self.grpc, self.numbers = [one.getsockname()[1] for one in sockets]
        for one in sockets:
            one.close()
        places = dict(http=self.http, grpc=self.grpc, metrics=self.numbers)
        places = [f"--{name}-{what}" for name, port in places.items() for what in ("address=127.0.0.1", f"port={port}")]
        # libratplus_ort.so lies beside the backend.
        given = {name: value for name, value in os.environ.items() if name != "RATPLUS_ORT_LIBRARY"}
        with self.log.open("w") as file:
            words = [str(tritonserver()), *places, *words]
            self.process = subprocess.Popen(words, stdout=file, stderr=file, env=given)
        until = time.monotonic() + 60
        # The numbers' socket is opened last.
        while [self.status("v2/health/live"), self.status("metrics", self.numbers)] != [200, 200]:
            said = self.log.read_text()
            if self.process.poll() is not None and "already in use" in said:
                return False
            assert self.process.poll() is None and time.monotonic() < until, said
            time.sleep(0.1)
        return self.process.poll() is None

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
        except OSError:
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

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def end(self):
        """The exit code after SIGTERM."""
        self.terminate()
        self.client.__exit__()
        return self.process.wait(timeout=60)

    def while_it_streams(self, inputs, act):
        """Responses to one request, in the midst of which something is done."""
        before = self.metrics("kjv").get("generated_tokens", 0)
        answers = []
        running = threading.Thread(target=lambda: answers.append(self.stream(inputs)), daemon=True)
        running.start()
        until = time.monotonic() + 30
        while self.metrics("kjv").get("generated_tokens", 0) == before:
            assert time.monotonic() < until, self.log.read_text()
        # The same clock as the client's.
        acted = time.monotonic()
        act()
        running.join(timeout=60)
        (answer,) = answers
        assert answer["whole"] and answer["told"][-1]["at"] > acted, "it was over before"
        return answer["told"]


@pytest.fixture(scope="module")
def backends(tmp_path_factory):
    """A backend directory, as it is installed."""
    tritonserver()
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
    with Server(repository, backends, log, "kjv", "kjv_unary", "short") as server:
        ready = [server.status(f"v2/models/{model}/ready") for model in ("kjv", "kjv_unary", "short")]
        assert ready == [200, 200, 200], log.read_text()
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


@pytest.fixture(scope="module")
def parsed():
    """Reads a model's configuration by Triton's own protobuf messages."""
    with Client("none") as client:
        yield lambda model: client.ask(parse=str(model / "config.pbtxt"))


def test_configurations_are_what_triton_reads(repository, parsed):
    for name, decoupled in [("kjv", True), ("kjv_unary", False)]:
        config = parsed(repository / name)
        assert (config["name"], config["backend"]) == (name, "ratplus")
        assert config["model_transaction_policy"].get("decoupled", False) is decoupled
        assert all(tensor["optional"] for tensor in config["input"])


def test_parameters_of_the_engine_are_written(ratplus, package, parsed, tmp_path):
    def parameters(*words):
        ratplus("triton", package, "-o", tmp_path, "--model-name", f"m{len(list(tmp_path.iterdir()))}", *words)
        newest = max(tmp_path.iterdir(), key=lambda model: (model.stat().st_ctime_ns, not model.name.endswith("unary")))
        written = parsed(newest)["parameters"]
        return {name: value["string_value"] for name, value in written.items() if name != "package"}

    as_it_is = {"backend": "ort-cpu", "decode_steps_per_chunk": "1", "prefix_cache_bytes": "1000000000"}
    assert parameters() == as_it_is
    words = ["--threads", 3, "--prefix-cache", "64MiB", "--prefill-chunk", 16, "--decode-steps-per-chunk", 2]
    more = {"threads": "3", "prefix_cache_bytes": str(64 << 20), "prefill_chunk": "16", "decode_steps_per_chunk": "2"}
    assert parameters(*words) == as_it_is | more
    more = {"backend": "ort-cuda", "no_cuda_graph": "true"}
    assert parameters("--backend", "ort-cuda", "--no-cuda-graph") == as_it_is | more


def test_a_configuration_of_the_stock_backend_is_its_graphs(ratplus, package, ort_library, parsed, tmp_path):
    # The graph's own tensors, every state with its successor.
    manifest = json.loads((package / "manifest.json").read_text())
    for backend, length in [("ort-cpu", 1), ("ort-fallback", 64)]:
        words = ["--triton-backend", "onnxruntime", "--backend", backend, "--length", length]
        ratplus("triton", package, "-o", tmp_path, "--model-name", backend, *words)
        config = parsed(tmp_path / backend)
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
        # Triton pairs them by this order.
        assert len(states) == 4 * manifest["model"]["num_layers"]
        pasts, presents = ([state[key] for state in states] for key in ("input_name", "output_name"))
        assert [name.replace("past_key_values", "present") for name in sorted(pasts)] == sorted(presents)
        library = config.get("model_operations", {}).get("op_library_filename", [])
        assert library == [str(ort_library)] * (backend == "ort-cpu")
        onnx.load(tmp_path / backend / "1" / config["default_model_filename"])


def test_a_configuration_of_the_stock_backend_is_its_plans(ratplus, export, parsed, tmp_path):
    package = tmp_path / "package"
    shutil.copytree(export(case="kjv_d16w64i4", batch=1, prefill_lengths=(16,), max_seq_len=64), package)
    (kind,) = (kind for kind in KINDS if kind.backend == "tensorrt")
    add_plans(package, kind, library="11.4.0.1")
    manifest = json.loads((package / "manifest.json").read_text())
    (plan,) = manifest["plans"]["tensorrt"]["plans"]
    done = ratplus("triton", package, "-o", tmp_path / "models", "--triton-backend", "tensorrt", "--max-sequences", 3)
    assert "--backend-config=tensorrt,plugins=FOLDER/libratplus_trt.so" in done.stdout
    model = tmp_path / "models" / "package"
    assert (model / "1" / "model.plan").read_bytes() == (package / "plans" / "tensorrt" / plan["file"]).read_bytes()
    config = parsed(model)
    # A profile an engine; chunks of every length.
    profiles = [str(index) for index in range(len(plan["engines"]))]
    assert [(group["kind"], group["profile"]) for group in config["instance_group"]] == [("KIND_GPU", profiles)]
    assert config["sequence_batching"]["oldest"]["max_candidate_sequences"] == 3
    states = config["sequence_batching"]["state"]
    assert [state["output_name"] for state in states] == [
        state["input_name"].replace("past_key_values", "present") for state in states
    ]
    types = {"f32": "TYPE_FP32", "i64": "TYPE_INT64"}
    declared = {tensor["name"]: tensor for tensor in config["input"] + config["output"]}
    for state in states:
        declared[state["input_name"]] = declared[state["output_name"]] = state
    for engine in manifest["engines"]:
        tensors = engine["inputs"] + engine["outputs"]
        assert {tensor["name"] for tensor in tensors} == set(declared)
        for tensor in tensors:
            found = declared[tensor["name"]]
            opened = zip(found["dims"], tensor["shape"], strict=True)
            assert all(dim in ("-1", str(size)) for dim, size in opened), tensor["name"]
            assert found["data_type"] == types[tensor["dtype"]]
    assert declared["input_ids"]["dims"] == ["1", "-1"]
    # Our own backend runs them as well.
    ratplus("triton", package, "-o", tmp_path / "ours", "--backend", "tensorrt", "--no-cuda-graph")
    assert (tmp_path / "ours" / "package" / "1" / "plans" / "tensorrt" / plan["file"]).is_file()


@pytest.fixture(scope="module")
def stock_backends(tmp_path_factory):
    """A backend directory with triton_onnxruntime.cpp for Triton's own backend."""
    tritonserver()
    headers = ROOT / "target" / "ort-headers"
    if not (headers / "onnxruntime_cxx_api.h").is_file():
        pytest.skip(f"ONNX Runtime's headers are not in {headers.relative_to(ROOT)} (cargo xtask test)")
    folder = tmp_path_factory.mktemp("stock") / "backends"
    backend = folder / "onnxruntime"
    backend.mkdir(parents=True)
    # What the linker and the loader look for.
    runtime = backend / "libonnxruntime.so.1"
    (library,) = (Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*")
    runtime.symlink_to(library)
    words = [os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    words += ["-isystem", headers, ROOT / "tests" / "python" / "triton_onnxruntime.cpp", runtime, "-Wl,-rpath,$ORIGIN"]
    subprocess.run([str(word) for word in [*words, "-o", backend / "libtriton_onnxruntime.so"]], check=True)
    return folder


def renamed(model, copy):
    """Copies a model under another name, with the first state's successor where it is the last by name."""
    shutil.copytree(model, copy)
    config = (copy / "config.pbtxt").read_text()
    (file,) = re.findall(r'default_model_filename: "(.*)"', config)
    first = min(re.findall(r'output_name: "(.*?)"', config))
    (copy / "config.pbtxt").write_text(config.replace(f'"{first}"', '"z"').replace(f'"{model.name}"', f'"{copy.name}"'))
    graph = onnx.load(copy / "1" / file, load_external_data=False)
    for output in graph.graph.output:
        output.name = "z" if output.name == first else output.name
    for node in graph.graph.node:
        node.output[:] = ["z" if name == first else name for name in node.output]
    onnx.save(graph, copy / "1" / file)


def test_states_that_triton_keeps_give_the_tokens_of_generate(ratplus, package, server, stock_backends, tmp_path):
    models = {"ort-cpu": 1, "ort-fallback": 64}
    for backend, length in models.items():
        words = ["--triton-backend", "onnxruntime", "--backend", backend, "--length", length]
        ratplus("triton", package, "-o", tmp_path / "models", "--model-name", backend, *words)
    renamed(tmp_path / "models" / "ort-cpu", tmp_path / "models" / "renamed")
    ids = golden_case("kjv_d16w64i4").golden()["tokens"][0].tolist()
    # Longer than a chunk, and than the local window.
    prompts, count = [ids[:90], ids[100:130]], 12

    def generated(prompt):
        inputs = dict(input_ids=["INT32", [len(prompt)], prompt], sampling_parameters=GREEDY % count)
        return server.client.ask(model="kjv_unary", inputs=inputs)["outputs"]["output_ids"]

    def kept(stock, model, length):
        """The likeliest tokens after prompts, whose sequences take turns; or what is wrong."""
        sequences = [list(prompt) for prompt in prompts]
        past = [0] * len(prompts)
        while any(len(sequence) < len(prompt) + count for sequence, prompt in zip(sequences, prompts)):
            for number, sequence in enumerate(sequences):
                if len(sequence) == len(prompts[number]) + count:
                    continue
                chunk = sequence[past[number] : past[number] + length]
                inputs = {
                    "input_ids": ["INT64", [1, length], chunk + [0] * (length - len(chunk))],
                    "past_length": ["INT64", [1], [past[number]]],
                    "seq_length": ["INT64", [1], [len(chunk)]],
                }
                place = dict(sequence_id=number + 1, sequence_start=past[number] == 0)
                answer = stock.client.ask(model=model, inputs=inputs, sequence=place)
                if "error" in answer:
                    return answer["error"]
                past[number] += len(chunk)
                if past[number] == len(sequence):
                    logits = answer["outputs"]["logits"]
                    sequence.append(logits.index(max(logits)))
        return [sequence[-count:] for sequence in sequences]

    expected = [generated(prompt) for prompt in prompts]
    with Server(tmp_path / "models", stock_backends, tmp_path / "log", *models, "renamed") as stock:
        for model, length in models.items():
            assert kept(stock, model, length) == expected, model
        # Triton pairs states by the order of their names, whatever pairs the configuration has: these have other shapes.
        assert kept(stock, "renamed", 1) != expected
        assert stock.end() == 0, stock.log.read_text()


def test_repositories_are_refused_before_anything_is_written(ratplus, package, repository, tmp_path):
    done = ratplus("triton", package, "-o", repository, code=2)
    assert "expected no such models, found kjv, kjv_unary" in done.stderr
    stock = ["--triton-backend", "onnxruntime"]
    for words, said in [
        (["--model-name", "a b"], '--model-name: expected letters, digits, `.`, `-` and `_`, found "a b"'),
        (["--triton-backend", "tensorrt"], "plans: expected one for tensorrt, found none"),
        ([*stock, "--length", 5], "--length: expected one of the package's lengths"),
        ([*stock, "--backend", "tract"], "--backend: expected ort-cpu, ort-cuda"),
        (["--prefill-chunk", 5], "--prefill-chunk: expected one of"),
        (["--threads", 0], "--threads: expected 1 to"),
        (["--backend", "gpu"], "gpu"),
        (["--backend", "tensorrt"], "backend `tensorrt`: it has no plans for tensorrt; run `ratplus build"),
    ]:
        done = ratplus("triton", package, "-o", tmp_path / "none", *words, code=2)
        assert said in done.stderr, done.stderr
        assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "words, idle",
    [
        (["--no-cuda-graph"], "--no-cuda-graph"),
        (["--length", 1, "--max-sequences", 16], "--length, --max-sequences"),
        (["--backend", "ort-fallback", "--custom-ops", "x"], "--custom-ops"),
        (
            ["--backend", "tract", "--threads", 1, "--onnxruntime", "x", "--custom-ops", "x"],
            "--threads, --onnxruntime, --custom-ops",
        ),
        (
            ["--triton-backend", "onnxruntime", "--max-queued-requests", 256, "--prefix-cache", "1GB", "--threads", 1],
            "--max-queued-requests, --prefix-cache, --threads",
        ),
        (["--triton-backend", "onnxruntime", "--backend", "ort-cuda", "--no-cuda-graph"], "--no-cuda-graph"),
        (["--triton-backend", "tensorrt", "--backend", "ort-cpu", "--length", 1], "--backend, --length"),
        (
            ["--triton-backend", "tensorrt", "--prefill-chunk", 16, "--decode-steps-per-chunk", 1, "--custom-ops", "x"],
            "--prefill-chunk, --decode-steps-per-chunk, --custom-ops",
        ),
    ],
)
def test_flags_without_effect_are_refused_by_name(ratplus, package, tmp_path, words, idle):
    done = ratplus("triton", package, "-o", tmp_path / "none", *words, code=2)
    assert done.stderr.startswith(f"error: {idle}: without effect for this package with --triton-backend"), done.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "fallback, words, said",
    [
        ("trt-plugins", [], "backend `ort-cpu`: the package is for TensorRT"),
        ("trt-plugins", ["--triton-backend", "onnxruntime"], "backend `ort-cpu`: the package is for TensorRT"),
        ("none", ["--backend", "ort-fallback"], "bare custom nodes and no functions"),
        ("none", ["--triton-backend", "onnxruntime", "--backend", "ort-fallback"], "bare custom nodes and no functions"),
        ("inline", ["--backend", "ort-cuda"], "no nodes for the CUDA kernels"),
        ("inline", ["--custom-ops", "x"], "--custom-ops: without effect for this package"),
    ],
)
def test_packages_that_the_backend_cannot_run_are_refused(ratplus, tmp_path, fallback, words, said):
    case = golden_case("kjv_d16w64i4").directory
    folder = tmp_path / "package"
    files = ["--config", case / "config.json", "--fallback", fallback, "--no-check"]
    ratplus("export", case / "model.pth", "-o", folder, *files, "--max-seq-len", 64, "--prefill-lengths", 16)
    done = ratplus("triton", folder, "-o", tmp_path / "none", *words, code=2)
    assert said in done.stderr, done.stderr
    assert not (tmp_path / "none").exists()
