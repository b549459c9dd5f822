"""Workers of NVIDIA Dynamo over packages, `python -m ratplus.dynamo`, behind its frontend, on this machine alone.

They are in an environment of their own, of requirements-dynamo.txt and this repository's wheel, which `cargo xtask test`
makes.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from array import array
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from conftest import CHAT_TEMPLATE, ROOT, golden_case
from lm_eval_case import offline
from test_serve_clients import client, eventually, free_port, run

DYNAMO = Path(os.environ.get("RATPLUS_DYNAMO", ROOT / "target" / "dynamo"))
PROMPTS = ["In the beginning God", "And it came to pass", "The LORD is my shepherd; I shall", "Blessed are the"]
SLOTS, LENGTH = 4, 4096
HOSTS = "DYN_TCP_RPC_HOST DYN_EVENT_PLANE_HOST DYN_TCP_RESPONSE_STREAM_HOST DYN_SYSTEM_HOST DYN_HTTP_RPC_HOST"


@dataclass(frozen=True)
class Worker:
    """A worker that the frontend knows."""

    process: subprocess.Popen
    log: Path

    def asked(self, path: str) -> str:
        """What its own server, of health and metrics, answers."""
        (port,) = set(re.findall(r"status server bound to: 127.0.0.1:(\d+)", self.log.read_text()))
        return get(f"http://127.0.0.1:{port}{path}")

    def numbers(self) -> dict:
        """What /metrics has of the package."""
        text = self.asked("/metrics")
        return {name: float(value) for name, value in re.findall(r"^(ratplus:\w+){.*} (\S+)$", text, re.MULTILINE)}


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


@dataclass(frozen=True)
class Cluster:
    """A frontend and what it has workers from."""

    folder: Path
    package: Path
    environment: dict
    address: str

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0, timeout=60)

    def start(self, stack: ExitStack, *words) -> Worker:
        """A worker, which ends with the stack."""
        command = [DYNAMO / "bin" / "python", "-m", "ratplus.dynamo", self.package, "--threads", 1]
        command += ["--journal", self.folder / "journal", *words]
        log = self.folder / f"worker-{len(list(self.folder.glob('*.log')))}.log"
        return Worker(stack.enter_context(running(command, self.environment, log)), log)

    def instances(self) -> int:
        """How many workers the frontend sends requests to."""
        try:
            health = json.loads(get(f"{self.address}/health"))
        except (OSError, urllib.error.HTTPError):
            return -1
        return sum(instance["endpoint"] == "generate" for instance in health["instances"])

    def has(self, *workers: Worker) -> None:
        """Waits until the frontend has these, and no others."""

        def there():
            for worker in workers:
                assert worker.process.poll() is None, worker.log.read_text()
            try:
                return self.instances() == len(workers) and bool(not workers or self.client.models.list().data)
            except openai.APIError:
                return False

        eventually(f"the frontend has {len(workers)} workers", there)


    @contextmanager
    def workers(self, *words):
        """Two workers that the frontend has, and no others before or after."""
        with ExitStack() as stack:
            self.has()
            both = [self.start(stack, *words) for _ in range(2)]
            self.has(*both)
            yield both


@contextmanager
def running(command, environment, log: Path):
    """A process, which has to end well, unless the test has killed it."""
    with log.open("w") as out:
        process = subprocess.Popen([*map(str, command)], stdout=out, stderr=out, env=environment)
        try:
            yield process
        finally:
            killed = process.poll() == -signal.SIGKILL
            process.terminate()
            try:
                assert process.wait(60) == 0 or killed, log.read_text()
            finally:
                process.kill()


@pytest.fixture(scope="module")
def package(ratplus, tmp_path_factory):
    """The King James model, with long sequences and a chat template."""
    folder, case = tmp_path_factory.mktemp("dynamo"), golden_case("kjv_d16w64i4").directory
    (folder / "chat.jinja").write_text(CHAT_TEMPLATE)
    files = ["--config", case / "config.json", "--tokenizer", case / "tokenizer.json"]
    files += ["--chat-template", folder / "chat.jinja"]
    sizes = ["--max-seq-len", LENGTH, "--prefill-lengths", "16,64", "--batch", SLOTS]
    ratplus("export", case / "model.pth", "-o", folder / "kjv", *files, *sizes)
    return folder / "kjv"


@pytest.fixture(scope="module")
def cluster(package, tmp_path_factory):
    if not (DYNAMO / "bin" / "python").is_file():
        pytest.fail(f"{DYNAMO} is not there: run `cargo xtask test`, which installs it", pytrace=False)
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "kv").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DYN_", "RATPLUS_", "ORT_"))}
    environment |= dict.fromkeys(HOSTS.split(), "127.0.0.1")
    environment |= {"DYN_FILE_KV": str(folder / "kv"), "DYN_DISCOVERY_BACKEND": "file", "DYN_REQUEST_PLANE": "tcp"}
    environment |= {"DYN_EVENT_PLANE": "zmq", "HF_HUB_OFFLINE": "1", "HOME": str(folder), "NO_PROXY": "127.0.0.1"}
    environment |= {"DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS": "0.1"}
    environment |= {"DYN_SYSTEM_PORT": "0"}
    port = free_port()
    command = [DYNAMO / "bin" / "python", "-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", port]
    command += ["--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq"]
    command += ["--migration-limit", 3, "--router-mode", "least-loaded"]
    with running(command, environment, folder / "frontend.log"):
        cluster = Cluster(folder, package, environment, f"http://127.0.0.1:{port}")
        cluster.has()
        yield cluster


def ask(cluster: Cluster, prompt, seen=None, **asked):
    """The tokens, scores, text and usage of a streamed answer; `seen` is told how many parts there are so far."""
    asked = {"max_tokens": 64, "temperature": 0, **asked}
    extra = {"nvext": {"extra_fields": ["completion_token_ids"]}}
    extra.update({key: asked.pop(key) for key in ("min_tokens", "ignore_eos", "repetition_penalty", "top_k") if key in asked})
    options = {"include_usage": True}
    stream = cluster.client.completions.create(
        model="kjv", prompt=prompt, stream=True, stream_options=options, extra_body=extra, **asked
    )
    tokens, scores, text, ends, usage = [], [], "", [], None
    for part in stream:
        usage = part.usage or usage
        tokens += (getattr(part, "nvext", None) or {}).get("completion_token_ids") or []
        for choice in part.choices:
            text += choice.text
            ends += [choice.finish_reason] if choice.finish_reason else []
            if choice.logprobs:
                scores += choice.logprobs.token_logprobs
        if seen:
            seen(len(tokens))
    (end,) = ends
    counts = (usage.prompt_tokens, usage.completion_tokens)
    assert len(tokens) == counts[1]
    return tokens, scores, text, end, counts


def test_tokens_are_those_of_ratplus(cluster, ratplus, package, tmp_path):
    (tmp_path / "prompts.txt").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    drawn = {"temperature": 0.8, "top_p": 0.9, "top_k": 50, "seed": 7, "repetition_penalty": 1.2}
    flags = "--temperature 0.8 --top-p 0.9 --top-k 50 --seed 7 --repetition-penalty 1.2".split()
    with cluster.workers() as workers:
        for asked, words in [({}, []), (drawn, flags)]:
            words = ["--prompts", tmp_path / "prompts.txt", "--max-new-tokens", 48, *words]
            lines = [json.loads(line) for line in ratplus("generate", package, *words).stdout.splitlines()]
            with ThreadPoolExecutor(len(PROMPTS)) as pool:
                answers = list(pool.map(lambda prompt: ask(cluster, prompt, max_tokens=48, **asked), PROMPTS))
            assert [answer[2] for answer in answers] == [line["completion"] for line in lines]
            assert [answer[4][1] for answer in answers] == [line["tokens"] for line in lines]
        client = cluster.client
        tokens, scores, text, _, counts = ask(cluster, PROMPTS[0], max_tokens=8, logprobs=2)
        whole = client.completions.create(model="kjv", prompt=PROMPTS[0], max_tokens=8, temperature=0, logprobs=2)
        assert (whole.choices[0].text, whole.choices[0].logprobs.token_logprobs) == (text, scores)
        assert len(scores) == 8 and all(score < 0 for score in scores)
        assert whole.usage.prompt_tokens == counts[0]
        # Token ids, and a stop string that the frontend looks for.
        word = text.split()[1]
        stopped = client.completions.create(model="kjv", prompt=PROMPTS[0], max_tokens=64, temperature=0, stop=[word])
        assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == (text[: text.index(word)], "stop")
        # The template of the package.
        said = [{"role": "user", "content": "Who is God?"}]
        rendered = "<user>Who is God?\n<assistant>"
        chat = client.chat.completions.create(model="kjv", messages=said, max_tokens=16, temperature=0)
        plain = client.completions.create(model="kjv", prompt=rendered, max_tokens=16, temperature=0)
        assert chat.choices[0].message.content == plain.choices[0].text
        # What is not supported is named.
        for name, value in [("n", 2), ("best_of", 3), ("bad_words_token_ids", [[5]])]:
            with pytest.raises(openai.BadRequestError, match=name):
                extra = {name: value}
                client.completions.create(model="kjv", prompt="x", temperature=1, extra_body=extra)
        assert all(worker.process.poll() is None for worker in workers)


def test_aiperf_meets_no_error(cluster, tmp_path):
    requests, tokens = 48, 24
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").symlink_to(cluster.package / "tokenizer.json")
    command = [client("aiperf"), "profile", "--model", "kjv", "--url", cluster.address, "--endpoint-type", "chat"]
    command += ["--streaming", "--concurrency", 2 * SLOTS, "--request-count", requests, "--random-seed", 5]
    command += ["--tokenizer", tmp_path / "tokenizer", "--synthetic-input-tokens-mean", 96, "--ui", "none"]
    command += ["--output-tokens-mean", tokens, "--extra-inputs", "ignore_eos:true"]
    command += ["--output-artifact-dir", tmp_path / "out"]
    environment = offline(tmp_path)
    # With it, a tokenizer's folder is taken for a name on the hub.
    del environment["HF_HUB_OFFLINE"]
    with cluster.workers() as workers:
        run(command, environment)
        taken = [worker.numbers()["ratplus:requests_total"] for worker in workers]
    found = json.loads((tmp_path / "out" / "profile_export_aiperf.json").read_text())
    assert found["error_summary"] == [] and not found["was_cancelled"]
    assert found["request_count"]["avg"] == requests <= sum(taken)
    made = found["usage_completion_tokens"]
    assert made["min"] == made["max"] == tokens
    assert min(taken) >= requests // 4, taken


#: Requests that a lost worker must not change: what each has to take along is another thing.
KINDS = [
    {},
    {"logprobs": 2},
    {"temperature": 0.9, "seed": 11, "top_p": 0.95},
    {"temperature": 0.9, "seed": 12, "frequency_penalty": 0.4, "presence_penalty": 0.3, "min_tokens": 200},
]


@pytest.mark.parametrize("how, words", [(signal.SIGKILL, ()), (signal.SIGTERM, ("--drain-seconds", 0))], ids=["killed", "ended"])
def test_streams_go_on_when_their_worker_is_lost(cluster, how, words):
    """Killed, or told to end and not to wait for them: without a token lost, repeated or drawn otherwise."""
    count = 600
    asked = [
        (f"{prompt} {index}", {"max_tokens": count, "ignore_eos": True, **kind})
        for index, (prompt, kind) in enumerate(zip(PROMPTS * 2, KINDS * 2))
    ]
    others = set((cluster.folder / "journal").glob("*"))
    with cluster.workers(*words) as workers, ThreadPoolExecutor(len(asked)) as pool:
        before = [worker.numbers()["ratplus:requests_total"] for worker in workers]
        undisturbed = list(pool.map(lambda one: ask(cluster, one[0], **one[1]), asked))
        # The one with the fewest is asked next.
        taken = [worker.numbers()["ratplus:requests_total"] - was for worker, was in zip(workers, before)]
        assert sum(taken) == len(asked) and min(taken) >= len(asked) // 2 - 1, taken

        lost, other = workers
        parts, running = [0] * len(asked), threading.Event()

        def seen(index):
            def tell(tokens):
                parts[index] = tokens
                if all(parts):
                    running.set()

            return tell

        answers = [
            pool.submit(ask, cluster, prompt, seen=seen(index), **kind) for index, (prompt, kind) in enumerate(asked)
        ]
        assert running.wait(60)
        moved = int(lost.numbers()["ratplus:requests_running"])
        lost.process.send_signal(how)
        told = list(parts)
        print(f"{moved} requests moved, after {told} of {count} tokens")
        found = [answer.result(60) for answer in answers]
        assert max(told) < count and moved > 0, (told, moved)
        for (prompt, kind), was, now in zip(asked, undisturbed, found):
            assert now == was, (prompt, kind)
        numbers = other.numbers()
        # One that is told to end goes on for a moment.
        least = moved if how == signal.SIGKILL else 1
        assert least <= numbers["ratplus:moved_requests_replayed_total"] <= moved
        assert numbers["ratplus:moved_requests_continued_total"] == 0
        # Nothing is left of them.
        eventually("no record is left", lambda: not set((cluster.folder / "journal").iterdir()) - others)
        eventually("nothing runs", lambda: other.numbers()["ratplus:requests_running"] == 0)


def test_a_request_whose_tokens_come_otherwise_goes_on_from_what_was_told(cluster):
    """As from a worker with another processor: here, of tokens that no worker has told."""
    prompt, told, count = [1145, 261, 1798], [5, 6], 24
    with cluster.workers() as workers:
        was = ask(cluster, prompt + told, max_tokens=count)
        assert ask(cluster, prompt, max_tokens=2)[0] != told
        name = "5b0c3a52-3f5e-4c3c-9d43-1f9e0a2b7c11"
        digest = hashlib.sha256(array("I", prompt).tobytes()).hexdigest()
        # Of them, as many have to come as are to come at most.
        record = {"prompt_tokens": len(prompt), "digest": digest, "most": len(told) + count, "seed": 1}
        record["least"] = record["most"]
        path = cluster.folder / "journal" / f"ratplus-request-{hashlib.sha256(name.encode()).hexdigest()}.json"
        path.write_text(json.dumps(record))
        answer = cluster.client.completions.create(
            model="kjv", prompt=prompt + told, max_tokens=count, temperature=0, extra_headers={"x-dynamo-request-id": name}
        )
        assert answer.choices[0].text == was[2]
        assert sum(worker.numbers()["ratplus:moved_requests_continued_total"] for worker in workers) == 1
        eventually("no record is left", lambda: not path.exists())


def test_an_engine_leaves_its_loop_and_its_folder_free(ratplus, tmp_path):
    if not (DYNAMO / "bin" / "python").is_file():
        pytest.fail(f"{DYNAMO} is not there: run `cargo xtask test`, which installs it", pytrace=False)
    case = golden_case("kjv_d16w64i4").directory
    flags = ["--config", case / "config.json", "--max-seq-len", 16384, "--prefill-lengths", 16]
    ratplus("export", case / "model.pth", "-o", tmp_path / "kjv", *flags)
    (tmp_path / "journal").mkdir()
    script = ROOT / "tests" / "python" / "dynamo_engine.py"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DYN_", "RATPLUS_", "ORT_"))}
    said = run([DYNAMO / "bin" / "python", script, tmp_path / "kjv", tmp_path / "journal"], environment)
    found = json.loads(said.splitlines()[-1])
    # Two run or wait, each with a record; what was refused goes elsewhere and has none here.
    assert "requests: expected at most 1" in found["full"]["error"]
    assert (found["full"]["kept"], found["full"]["left"], found["after"], found["end"]) == (2, [], [], [])
    assert found["slow"]["called"] == ["find", "generate", "keep"] and found["slow"]["chunks"] == 9
    assert found["slow"]["longest"] < 1
    tokens, reason = found["gone"]
    assert tokens < 16_000 and reason == "cancelled"
    assert found["wrong"] == "`stop_conditions.min_tokens`: expected at most `max_tokens`, 8, found 9"
    assert found["numbers"].startswith('ratplus:requests_running{model="é \\"\\\\\\n"} ')


def test_a_worker_that_is_told_to_end_finishes(cluster):
    with cluster.workers() as workers, ThreadPoolExecutor(4) as pool:
        prompts = PROMPTS
        was = list(pool.map(lambda prompt: ask(cluster, prompt, max_tokens=300, ignore_eos=True), prompts))
        running = threading.Barrier(len(prompts) + 1)
        first = [True] * len(prompts)

        def seen(index):
            def tell(_):
                if first[index]:
                    first[index] = False
                    running.wait(60)

            return tell

        answers = [
            pool.submit(ask, cluster, prompt, seen=seen(index), max_tokens=300, ignore_eos=True)
            for index, prompt in enumerate(prompts)
        ]
        running.wait(60)
        ends, other = workers
        busy = ends.numbers()["ratplus:requests_running"]
        ends.process.terminate()
        assert busy > 0
        assert [answer.result(60) for answer in answers] == was
        assert ends.process.wait(30) == 0, ends.log.read_text()
        # They ended where they were.
        assert other.numbers()["ratplus:moved_requests_replayed_total"] == 0
        cluster.has(other)
        assert ask(cluster, prompts[0], max_tokens=300, ignore_eos=True) == was[0]
        other.process.terminate()
        assert other.process.wait(30) == 0, other.log.read_text()


def test_a_stream_that_is_left_frees_its_slot(cluster):
    with cluster.workers() as workers:
        running = lambda: sum(worker.numbers()["ratplus:requests_running"] for worker in workers)  # noqa: E731
        options = dict(model="kjv", prompt=PROMPTS[0], max_tokens=LENGTH - 64, temperature=0, stream=True)
        streams = [cluster.client.completions.create(**options, extra_body={"ignore_eos": True}) for _ in range(3)]
        for stream in streams:
            next(iter(stream))
        eventually("all three run", lambda: running() == 3)
        for stream in streams:
            stream.close()
        eventually("the slots are free", lambda: running() == 0)
        # Long before they were whole.
        assert sum(worker.numbers()["ratplus:new_tokens_total"] for worker in workers) < 3 * (LENGTH - 64)
        health = json.loads(workers[0].asked("/health"))
        assert health["status"] == "ready"
