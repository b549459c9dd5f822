"""A Triton Inference Server and its clients, with a package that `ratplus triton` wrote, for the tests of both.

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

import pytest
from conftest import ROOT, built, golden_case

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
