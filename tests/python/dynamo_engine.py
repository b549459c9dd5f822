"""`ratplus.dynamo`'s engine without a frontend, in Dynamo's environment: what it does is printed as JSON.

    python dynamo_engine.py PACKAGE FOLDER
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from dynamo.llm.exceptions import CannotConnect, InvalidArgument
from ratplus import Model
from ratplus._dynamo_journal import Journal
from ratplus.dynamo import PackageEngine

#: How long what blocks is made to take.
SECONDS = 1.5
#: Tokens of a request that does not end by itself.
LONG = 16_000
NAME = 'é "\\\n'


class Context:
    """A request as the engine is told of it."""

    def __init__(self, name, stopped=False):
        self.name, self.stopped = name, stopped

    def id(self):
        return self.name

    def is_stopped(self):
        return self.stopped


def request(**stops):
    return {"token_ids": [5, 6], "stop_conditions": {"max_tokens": 8, "ignore_eos": True, **stops}}


async def answer(engine, asked, context):
    return [chunk async for chunk in engine.generate(asked, context)]


def files(folder):
    return sorted(path.name for path in folder.iterdir())


async def full(model, engine, folder):
    """A slot and a place in the queue are taken; a third request finds no room."""
    taken = [engine.generate(request(max_tokens=LONG), Context(name)) for name in ("runs", "waits")]
    first = asyncio.create_task(anext(taken[0]))
    await first
    second = asyncio.create_task(anext(taken[1]))
    while not model.snapshot()["waiting"] or len(files(folder)) < 2:
        assert model.snapshot()["finished"] == 0
        await asyncio.sleep(0.001)
    before = files(folder)
    try:
        await answer(engine, request(), Context("refused"))
        error = None
    except CannotConnect as refused:
        error = str(refused)
    found = {"error": error, "kept": len(before), "left": [name for name in files(folder) if name not in before]}
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    for generator in taken:
        await generator.aclose()
    return found


async def slow(model, engine):
    """What compiles and what writes takes long: the loop goes on meanwhile. The longest time that it did not."""
    real = {(model, "generate"): model.generate}
    real |= {(engine._journal, name): getattr(engine._journal, name) for name in ("find", "keep")}
    called = []
    for (owner, name), method in real.items():

        def wait(*words, method=method, name=name, **more):
            called.append(name)
            time.sleep(SECONDS)
            return method(*words, **more)

        setattr(owner, name, wait)
    task, longest = asyncio.create_task(answer(engine, request(), Context("slow"))), 0.0
    while not task.done():
        start = time.monotonic()
        await asyncio.sleep(0.001)
        longest = max(longest, time.monotonic() - start)
    for owner, name in real:
        delattr(owner, name)
    return {"called": called, "longest": longest, "chunks": len(task.result())}


async def main(package, folder):
    with Model.open(package, threads=1, max_queued_requests=1) as model:
        engine = PackageEngine(model, NAME, Journal(folder), 0)
        found = {"full": await full(model, engine, folder)}
        while not await asyncio.to_thread(model.wait_idle, 5):
            pass
        found["after"] = files(folder)
        found["slow"] = await slow(model, engine)
        # Cancelled before there was anything to cancel.
        chunks = await answer(engine, request(max_tokens=LONG), Context("gone", stopped=True))
        found["gone"] = [len(chunks) - 1, chunks[-1]["finish_reason"]]
        try:
            await answer(engine, request(min_tokens=9), Context("wrong"))
        except InvalidArgument as error:
            found["wrong"] = str(error)
        found["numbers"] = engine.numbers().splitlines()[2]
        found["end"] = files(folder)
        print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
