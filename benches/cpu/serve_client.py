"""Loads that clients put on a server of OpenAI's interface, ours or llama.cpp's, and what they see of it.

Prompts are token ids drawn at random, so that none begins as another does unless it is meant to. Streams are read
event by event; a token is an event with a choice that has not ended, and the server's own count has to agree.
"""

import asyncio
import json
import random
import statistics
import time
from contextlib import asynccontextmanager

# Longest that a client waits for the next event, in seconds.
PATIENCE = 600


def prompts(seed, count, length, vocab_size):
    """Prompts that have no token in common but by chance; none of the special ones."""
    rng = random.Random(seed)
    return [[rng.randrange(300, vocab_size) for _ in range(length)] for _ in range(count)]


class Answer:
    """A stream, as far as it came."""

    def __init__(self):
        self.begun, self.times, self.usage = time.perf_counter(), [], None

    @property
    def first(self):
        """Seconds to the first token."""
        return self.times[0] - self.begun

    def cached(self):
        """Tokens of the prompt that the server did not run; None where it does not say."""
        details = (self.usage or {}).get("prompt_tokens_details") or {}
        return details.get("cached_tokens")


async def parts(reader, headers):
    """The bytes of an answer as they come."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        yield await reader.readexactly(int(headers["content-length"]))
        return
    while size := int(await asyncio.wait_for(reader.readline(), PATIENCE), 16):
        yield await reader.readexactly(size)
        await reader.readline()


class Response:
    """An answer whose body is still to come."""

    def __init__(self, reader, status, headers):
        self.reader, self.status, self.headers = reader, status, headers

    async def lines(self):
        rest = b""
        async for part in parts(self.reader, self.headers):
            *whole, rest = (rest + part).split(b"\n")
            for line in whole:
                yield line

    async def text(self):
        return b"".join([part async for part in parts(self.reader, self.headers)]).decode()


class Client:
    """Requests to one server, each on a connection of its own; `more` are members of each."""

    def __init__(self, port, more):
        self.port, self.more = port, more

    @asynccontextmanager
    async def send(self, method, path, body=None):
        """The answer; the connection is closed when it is left."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        try:
            data = b"" if body is None else json.dumps(body).encode()
            head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
            writer.write(head.encode() + data)
            first = await asyncio.wait_for(reader.readline(), PATIENCE)
            headers = {}
            while line := (await reader.readline()).strip():
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            yield Response(reader, int(first.split()[1]), headers)
        finally:
            writer.close()

    async def ask(self, prompt, new_tokens, answer=None, **more):
        """Streams `new_tokens` tokens after `prompt`; `answer` is filled as they come."""
        answer = answer or Answer()
        body = {"prompt": prompt, "max_tokens": new_tokens, "stream": True, "ignore_eos": True, "temperature": 0}
        body |= {"stream_options": {"include_usage": True}} | self.more | more
        answer.begun = time.perf_counter()
        async with self.send("POST", "/v1/completions", body) as response:
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {(await response.text())[:300]}")
            async for line in response.lines():
                if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                    self.event(answer, json.loads(line[6:]))
        if len(answer.times) != new_tokens or answer.usage["completion_tokens"] != new_tokens:
            raise RuntimeError(f"expected {new_tokens} tokens, found {len(answer.times)} in parts, usage {answer.usage}")
        return answer

    def event(self, answer, part):
        if "error" in part:
            raise RuntimeError(f"in the stream: {part['error']}")
        answer.usage = part.get("usage") or answer.usage
        for choice in part["choices"]:
            # The last part has a reason, and a token where nothing was held back before it.
            if choice["finish_reason"] is None or (choice.get("logprobs") or {}).get("tokens"):
                answer.times.append(time.perf_counter())

    async def json(self, method, path, body=None):
        """The answer to a request that has to be answered."""
        async with self.send(method, path, body) as response:
            if response.status != 200:
                raise RuntimeError(f"{path}: {response.status}: {(await response.text())[:300]}")
            return json.loads(await response.text())


async def together(client, load, seed, vocab_size):
    """All clients ask at once: tokens a second from the first request to the last token."""
    asked = prompts(seed, load.clients, load.prompt, vocab_size)
    begin = time.perf_counter()
    answers = await asyncio.gather(*(client.ask(prompt, load.new_tokens) for prompt in asked))
    end = max(answer.times[-1] for answer in answers)
    return {
        "tokens_per_second": load.clients * load.new_tokens / (end - begin),
        "first_token_p50": statistics.median(answer.first for answer in answers),
        "first_token_most": max(answer.first for answer in answers),
    }


async def prefix(client, load, seed, vocab_size):
    """A prompt with an end of its own, cold; then what came before that end again, with another."""
    (common,), ends = prompts(seed, 1, load.prefix, vocab_size), prompts(seed + 1, 3, load.tail, vocab_size)
    cold, *hits = [await client.ask(common + end, 1) for end in ends]
    return {
        "cold": cold.first,
        "hit": statistics.median(hit.first for hit in hits),
        "cached": [hit.cached() for hit in hits],
    }


async def long(client, load, seed, vocab_size, share):
    """One long prompt cold; then all clients continue it, `share` having given it to every slot: tokens a second
    while all of them get tokens."""
    (prompt,) = prompts(seed, 1, load.long, vocab_size)
    cold = await client.ask(prompt, 1, **share.first())
    await share.spread(client)
    asked = (client.ask(prompt, load.long_new, **share.of(slot)) for slot in range(load.clients))
    answers = await asyncio.gather(*asked)
    begin, end = max(answer.times[0] for answer in answers), min(answer.times[-1] for answer in answers)
    if begin >= end:
        raise RuntimeError("expected clients that get tokens at the same time, found one that ended before another began")
    inside = sum(begin < moment <= end for answer in answers for moment in answer.times)
    rate = inside / (end - begin)
    # As if every client had come with such a prompt of its own.
    whole = load.clients * load.new_tokens / (load.clients * cold.first + load.clients * load.new_tokens / rate)
    return {"cold": cold.first, "decode": rate, "whole": whole, "cached": [answer.cached() for answer in answers]}


async def stall(client, load, seed, vocab_size):
    """Some requests run when a long prompt enters: seconds between their tokens before, and while it runs."""
    running = [Answer() for _ in range(load.running)]
    asked = prompts(seed, load.running, load.running_prompt, vocab_size)
    tasks = [asyncio.create_task(client.ask(p, load.running_new, a)) for p, a in zip(asked, running)]
    while not all(len(answer.times) > 1 for answer in running):
        await asyncio.sleep(0.01)
        failed = [task for task in tasks if task.done()]
        if failed:
            failed[0].result()
            raise RuntimeError("requests ended before the long prompt came")
    await asyncio.sleep(load.before)
    enters, entering = time.perf_counter(), Answer()
    (prompt,) = prompts(seed + 1, 1, load.entering, vocab_size)
    tasks.append(asyncio.create_task(client.ask(prompt, 1, entering)))
    await asyncio.wait(tasks, timeout=load.window, return_when=asyncio.FIRST_COMPLETED)
    end = entering.times[0] if entering.times else time.perf_counter()
    for task in tasks:
        if task.done():
            task.result()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    def between(since, until, more=()):
        found = []
        for answer in running:
            times = [*(moment for moment in answer.times if moment <= until), *more]
            found += [late - early for early, late in zip(times, times[1:]) if late > since]
        return sorted(found)

    # The gap that is open when the watch ends counts as far as it is.
    alone, beside = between(running[0].begun, enters), between(enters, end, [end])
    return {
        "alone_p50": statistics.median(alone),
        "p50": statistics.median(beside),
        "p99": beside[min(len(beside) - 1, int(0.99 * len(beside)))],
        "most": beside[-1],
        "entered": entering.first if entering.times else None,
        "watched": end - enters,
    }
