"""Servers of a whole model, ours and llama.cpp's: what each needs on disk, how it is started and ended."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

import model_contenders
import serve_client
from machine import available_bytes
from model_contenders import Gguf, Package, environment

READY_SECONDS = 120


@dataclass(frozen=True)
class Load:
    """What clients ask for, in tokens and seconds."""

    clients: int = 8
    prompt: int = 512
    new_tokens: int = 128
    long: int = 8192
    long_new: int = 24
    prefix: int = 4096
    tail: int = 16
    running: int = 7
    # A chunk, as all of the long prompt are.
    running_prompt: int = 512
    running_new: int = 4096
    before: float = 5
    entering: int = 16384
    window: float = 60

    @property
    def longest(self):
        """Tokens of the longest sequence."""
        return max(self.prompt, self.long, self.entering, self.running_prompt + self.running_new) + self.new_tokens


LOADS = {
    "1.5b": Load(),
    "tiny": Load(
        clients=2, prompt=32, new_tokens=8, long=512, long_new=1000, prefix=512, tail=4, running=1, running_prompt=8,
        running_new=2000, before=0.1, entering=1024, window=5,
    ),
}  # fmt: skip

# In the order of a round.
SCENARIOS = ("together", "prefix", "stall", "long")
# Measured in all of them.
MAIN = ("ours", "llama.cpp")


class NoSharing:
    """Slots have what one has through the server's own cache."""

    @staticmethod
    def first():
        return {}

    @staticmethod
    async def spread(client):
        """Nothing to do."""

    @staticmethod
    def of(_slot):
        return {}


class Server:
    """A program that serves one model while scenarios run; its class has `setting`, `load` and `words`."""

    share = NoSharing

    def clear(self):
        """Nothing of it grows old."""

    def fits(self, scenario):
        """Why a scenario cannot run here, or None."""

    def measure(self, scenario, seed):
        """What clients see of a scenario."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = self.setting.folder / f"{self.name.replace(' ', '-')}.log"
        with log.open("w") as out:
            command = [str(word) for word in self.words(scenario, port)]
            process = subprocess.Popen(command, stdout=out, stderr=out, env=environment(self.setting))
            try:
                self.wait(process, port, log)
                return asyncio.run(self.run(scenario, port, seed))
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def wait(self, process, port, log):
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            if process.poll() is not None:
                last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-3:]
                raise RuntimeError(f"{self.name}: exit {process.returncode}: {' '.join(last)[:300]}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{self.ready}", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.05)
        raise RuntimeError(f"{self.name}: not ready after {READY_SECONDS} s")

    async def run(self, scenario, port, seed):
        vocab, load = self.setting.size.vocab_size, self.load
        client = serve_client.Client(port, self.more)
        # What the first request opens or touches.
        await client.ask(serve_client.prompts(seed + 9, 1, load.running_prompt, vocab)[0], 4)
        shared = (self.share,) if scenario == "long" else ()
        found = await getattr(serve_client, scenario)(client, load, seed, vocab, *shared)
        return found | await self.about(client)

    async def about(self, client):
        return {}


class Ours(Package, Server):
    """`ratplus serve` on a package for as many sequences as there are clients."""

    program, activations, ready, needs = "ours", "float", "/ready", ()
    # A package without a tokenizer tells tokens by their scores.
    more = {"logprobs": 0}

    def __init__(self, setting, load, bits):
        self.setting, self.load, self.bits = setting, load, bits
        self.name = f"{self.program} {bits}"
        self.package = setting.folder / f"{setting.size.name}-serve-{self.name.replace(',', '').replace(' ', '-')}"

    def flags(self):
        flags = ["--dtype", "bf16", "--batch", self.load.clients, "--max-seq-len", self.load.longest]
        return flags + ([] if self.bits == "bf16" else ["--quantize", self.bits, "--activations", self.activations])

    def words(self, scenario, port):
        cache = "0" if scenario in ("together", "stall") else "4GB"
        words = [self.setting.program, "serve", self.package, "--port", port, "--prefix-cache", cache]
        return [*words, "--threads", self.setting.threads]

    async def about(self, client):
        totals = (await client.json("GET", "/slots"))["totals"]
        return {"chunk": totals["prefill_seconds"] / max(1, totals["prefill_steps"])}


class OursInt8Rows(Ours):
    """Rows are rounded to eight bits before they are multiplied with integers, as llama.cpp does."""

    program, activations = "ours, int8 rows,", "int8"


class LlamaServer(Gguf, Server):
    """llama.cpp's server, a slot a client."""

    program, ready, needs, more = "llama.cpp", "/health", ("gguf",), {"cache_prompt": True}

    def __init__(self, setting, load, bits, server):
        self.setting, self.load, self.bits, self.server = setting, load, bits, server
        self.name = f"{self.program} {bits}"
        self.saved = setting.folder / "slots"
        self.share = self

    def room(self, scenario):
        """Tokens that all slots together have rows for."""
        load = self.load
        return {
            "together": load.clients * (load.prompt + load.new_tokens + 128),
            "prefix": 2 * (load.prefix + 512),
            "stall": load.entering + load.running * (load.running_prompt + 1024) + 512,
            "long": load.clients * (load.long + load.new_tokens + 128),
        }[scenario]

    def fits(self, scenario):
        size = self.setting.size
        # Keys and values in f16.
        needed = self.model.stat().st_size + 4 * size.num_layers * size.d_model * self.room(scenario)
        if needed + (1 << 30) > available_bytes():
            return f"its cache and weights take {needed / 1e9:.1f} GB, {available_bytes() / 1e9:.1f} are free"
        return None

    def words(self, scenario, port):
        self.saved.mkdir(exist_ok=True)
        slots = 2 if scenario == "prefix" else self.load.clients
        words = [self.server, "-m", self.model, "--host", "127.0.0.1", "--port", port, "-np", slots, "-c", self.room(scenario)]
        words += ["-t", self.setting.threads, "-tb", self.setting.threads, "--no-ui", "-fit", "off", "--cache-ram", 0]
        # The long prompt takes the room that the others do not need.
        words += ["--kv-unified"] if scenario == "stall" else ["--no-kv-unified"]
        return [*words, "--slot-save-path", f"{self.saved}{os.sep}"]

    def first(self):
        return {"id_slot": 0}

    async def spread(self, client):
        await client.json("POST", "/slots/0?action=save", {"filename": "long"})
        for slot in range(1, self.load.clients):
            await client.json("POST", f"/slots/{slot}?action=restore", {"filename": "long"})
        shutil.rmtree(self.saved)

    def of(self, slot):
        return {"id_slot": slot}


def missing(contender):
    """Why a contender cannot be measured here, or None."""
    if isinstance(contender, LlamaServer) and not (contender.server and contender.server.is_file()):
        return "its server is not built: `cargo xtask peers --suite serve` does"
    return model_contenders.missing(contender)


def contenders(setting, load, server):
    """In the order of a round: ours and llama.cpp's of a kind in turn."""
    made = []
    for bits in ("int4", "bf16"):
        made += [Ours(setting, load, bits), LlamaServer(setting, load, bits, server)]
    return [*made, OursInt8Rows(setting, load, "int4")]


def turns(contenders, rounds):
    """(round, scenario, contender): all of one kind of bits first, throughput most often."""
    one = [each for each in contenders if each.bits == "int4" and each.program in MAIN]
    made = [(0, "together", each) for each in contenders]
    made += [(0, scenario, each) for scenario in SCENARIOS[1:] for each in one]
    made += [(0, "long", each) for each in contenders if each.program == OursInt8Rows.program]
    for turn in range(1, rounds):
        made += [(turn, "together", each) for each in contenders]
        made += [(turn, scenario, each) for scenario in SCENARIOS[1:3] for each in one]
    return made
