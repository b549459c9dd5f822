"""The module against the program of the same wheel."""

import asyncio
import importlib.metadata
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import ratplus
from conftest import CASE, LIMIT, PROMPTS, SIZES, export
from ratplus import _ratplus

LONG = dict(max_new_tokens=400, ignore_eos=True)


def in_child(script: str, *words, **environment) -> str:
    """What a Python of its own prints."""
    command = [sys.executable, "-c", script, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_import_is_quick():
    script = "import numpy, time; start = time.perf_counter(); import ratplus; print(time.perf_counter() - start)"
    seconds = min(float(in_child(script)) for _ in range(3))
    print(f"import ratplus: {1000 * seconds:.1f} ms after numpy")
    assert seconds < 0.5
    # Nothing of others is imported before it is needed.
    loaded = in_child("import sys, ratplus; print({name.split('.')[0] for name in sys.modules})")
    assert "'onnxruntime'" not in loaded and "'lm_eval'" not in loaded


def test_what_is_installed(program):
    assert ratplus.__version__ == importlib.metadata.version("ratplus")
    assert program("--version").stdout.split() == ["ratplus", ratplus.__version__]
    assert ratplus.library_path().endswith("libratplus_ort.so")
    assert ratplus.tensorrt_plugin_path().endswith("libratplus_trt.so")
    # Every name that is said to be there is.
    assert all(hasattr(ratplus, name) for name in ratplus.__all__)


def test_export_writes_what_the_program_writes(program, kjv, tmp_path):
    told = []
    options = dict(config=CASE / "config.json", dtype="bf16", keep_f32="0,head", dilation=[16, 8, 4, 2])
    options |= dict(local_window=64, initial=4, max_seq_len=256, prefill_lengths=[32], fallback="none")
    made = ratplus.export(CASE / "model.pth", tmp_path / "ours", progress=lambda *now: told.append(now), **options)
    flags = ["--config", CASE / "config.json", "--dtype", "bf16", "--keep-f32", "0,head", "--dilation", "16,8,4,2"]
    flags += ["--local-window", 64, "--initial", 4, "--max-seq-len", 256, "--prefill-lengths", 32, "--fallback", "none"]
    notes = program("export", CASE / "model.pth", "-o", tmp_path / "theirs", *flags).stderr
    names = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "ours").iterdir())
    for name in names:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes(), name
    written = json.loads((tmp_path / "ours" / "manifest.json").read_text())
    # Its own checksum is in the file alone.
    assert written.pop("blake3") and made.manifest == written
    assert len(made.notes) <= notes.count("note: ")
    _, done, total = told[-1]
    assert done == total > 0 and any(what for what, _, _ in told)


def test_tokens_are_those_of_the_program(program, kjv, model, tmp_path):
    (tmp_path / "prompts.txt").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    drawn = dict(temperature=0.8, top_p=0.9, top_k=50, seed=7, repetition_penalty=1.2, stop=["\n", ". "])
    flags = "--temperature 0.8 --top-p 0.9 --top-k 50 --seed 7 --repetition-penalty 1.2".split()
    flags += ["--stop", "\n", "--stop", ". "]
    for parameters, words in [({}, []), (drawn, flags)]:
        words = ["--prompts", tmp_path / "prompts.txt", "--max-new-tokens", 48, *words]
        lines = [json.loads(line) for line in program("generate", kjv, *words).stdout.splitlines()]
        expected = [(line["completion"], line["stop"], line["tokens"]) for line in lines]
        # All at once, and one by one.
        done = model.generate_batch(PROMPTS, max_new_tokens=48, **parameters)
        assert [(one.text, one.finish_reason, len(one.tokens)) for one in done] == expected
        for prompt, whole in zip(PROMPTS, done):
            stream = model.generate(prompt, max_new_tokens=48, **parameters)
            tokens = list(stream)
            assert "".join(token.text for token in tokens) == whole.text
            assert [token.token for token in tokens if token.token is not None] == whole.tokens.tolist()
            assert stream.result().tokens.tolist() == whole.tokens.tolist()


def test_tokens_may_be_given_in_any_form(model):
    ids = model.encode(PROMPTS[0])
    assert ids.dtype == np.uint32 and model.decode(ids) == PROMPTS[0]
    expected = model.generate(PROMPTS[0]).result()
    assert expected.tokens.dtype == np.uint32 and expected.prompt_tokens == len(ids)
    forms = [ids, ids.tolist(), tuple(ids.tolist()), iter(ids.tolist())]
    forms += [ids.astype(kind) for kind in ("int64", "int32", "uint16", ">i4")]
    forms += [np.stack([ids, ids + 1], axis=1)[:, 0], np.ascontiguousarray(ids[::-1])[::-1]]
    # Strides that are no whole elements, and elements that are not aligned.
    records = np.zeros(len(ids), [("more", "u1"), ("token", "i4"), ("long", "i8")])
    records["token"] = records["long"] = ids
    shifted = np.frombuffer(b"." + ids.astype("int64").tobytes(), "int64", offset=1)
    assert not records["long"].flags.aligned and not shifted.flags.aligned
    forms += [records["token"], records["long"], shifted]
    for form in forms:
        assert model.generate(form).result().tokens.tolist() == expected.tokens.tolist()
    for wrong, text in [([5, -1], "token 1: expected 0 to"), ([1 << 40], "token 0: expected 0 to")]:
        for form in (wrong, np.array(wrong)):
            with pytest.raises(ratplus.InputError, match=text):
                model.generate(form)
    with pytest.raises(ratplus.InputError, match=r"expected shape \[n\], found \[2, 2\]"):
        model.generate(np.zeros((2, 2), "int64"))
    for wrong in (5, [1.5], [None], np.zeros(2)):
        with pytest.raises(TypeError, match="expected a text, or token ids"):
            model.generate(wrong)


def test_scores_are_those_of_eval(program, kjv, kjv_last, model, tmp_path):
    text = (CASE / "sample.txt").read_text()
    ids = model.encode(text)[: model.max_seq_len]
    (tmp_path / "text.txt").write_text(model.decode(ids))
    ids = model.encode((tmp_path / "text.txt").read_text())
    assert 400 < len(ids) <= model.max_seq_len
    with ratplus.Model.open(kjv_last) as last:
        for package, opened in [(kjv, model), (kjv_last, last)]:
            (expected,) = json.loads(program("eval", package, "--text", tmp_path / "text.txt", "--json").stdout)
            scores = opened.score(ids, top=2)
            assert scores.logprobs.dtype == np.float32 and scores.logprobs.shape == (len(ids) - 1,)
            assert scores.top_tokens.shape == scores.top_logprobs.shape == (len(ids) - 1, 2)
            assert expected["tokens"] == len(ids) - 1
            mean = -scores.logprobs.mean(dtype="float64")
            assert mean == pytest.approx(expected["mean_nll"], rel=1e-7)
            assert (scores.top_tokens[:, 0] == ids[1:]).mean() == pytest.approx(expected["accuracy"])
            assert (scores.top_logprobs[:, 0] >= scores.top_logprobs[:, 1]).all()
        # What comes before is context, and runs in chunks in either package.
        whole, end = model.score(ids), last.score(ids, start=len(ids) - 20)
        assert end.logprobs == pytest.approx(whole.logprobs[-20:], abs=1e-4)
        # One more than fits: the last one does not run.
        longer = np.append(ids, ids)[: model.max_seq_len + 1]
        both = [one.score(longer, start=500).logprobs for one in (model, last)]
        assert len(both[0]) == len(longer) - 500 and both[0] == pytest.approx(both[1], abs=1e-4)
        many = model.score_batch([ids[:50], ids[:2], ids[:90]], starts=[1, 1, 40])
        assert [len(one.logprobs) for one in many] == [49, 1, 50]
        assert many[0].logprobs == pytest.approx(whole.logprobs[:49], abs=1e-4)
        with pytest.raises(ratplus.InputError, match="`prompt_logprobs`: expected a package with the logits of all"):
            last.generate(ids[:5], prompt_logprobs=0)
        # And one more than that does not: not one score would be of the token that it is taken for.
        longer = np.append(ids, ids)[: model.max_seq_len + 2]
        for one in (model, last):
            for start in (1, 500, len(longer) - 1):
                with pytest.raises(ratplus.InputError, match="expected at most 513 tokens, found 514"):
                    one.score(longer, start=start)
    for wrong, text in [((ids[:1], 1), "expected at least 2 tokens, found 1"), ((ids[:3], 3), "`start`: expected 1 to 2")]:
        with pytest.raises(ratplus.InputError, match=text):
            model.score(wrong[0], start=wrong[1])


def test_scores_come_with_tokens(model):
    stream = model.generate(PROMPTS[0], max_new_tokens=8, logprobs=3, prompt_logprobs=1)
    tokens = [token for token in stream if token.token is not None]
    done = stream.result()
    assert [token.logprob for token in tokens] == pytest.approx(done.scores.logprobs)
    # Greedy: the likeliest was taken.
    assert [token.top[0] for token in tokens] == [(token.token, token.logprob) for token in tokens]
    assert done.scores.top_tokens.shape == (8, 3)
    assert done.prompt_scores.logprobs.shape == (done.prompt_tokens - 1,)
    both = np.append(model.encode(PROMPTS[0]), done.tokens)
    expected = model.score(both, start=done.prompt_tokens).logprobs
    assert done.scores.logprobs == pytest.approx(expected, abs=1e-4)
    assert model.generate(PROMPTS[0], max_new_tokens=1).result().scores is None


def test_bounds_of_new_tokens_fit(model):
    with pytest.raises(ratplus.InputError, match="`min_new_tokens`: expected at most `max_new_tokens`, 4, found 5"):
        model.generate("And", min_new_tokens=5, max_new_tokens=4)
    assert len(model.generate("And", min_new_tokens=4, max_new_tokens=4).result().tokens) == 4


def test_defaults_are_the_programs(program, model):
    """What the program's own help says."""
    said = {}
    for command in ("serve", "export", "generate"):
        text = " ".join(program(command, "--help").stdout.split())
        pairs = re.findall(r"--([\w-]+) <[^>]*>(?:(?! --\w).)*?\[default: ([^\]]*)\]", text)
        said[command] = {name.replace("-", "_"): value for name, value in pairs}
    for command, call in (("serve", ratplus.Model.open), ("export", ratplus.export)):
        ours = {name: one.default for name, one in inspect.signature(call).parameters.items()}
        both = [name for name in said[command] if ours.get(name) is not None and name != "prefix_cache"]
        assert {name: str(ours[name]) for name in both} == {name: said[command][name] for name in both}
        assert {"serve": "max_queued_tokens", "export": "max_seq_len"}[command] in both
    assert _ratplus.DEFAULT_PREFIX_CACHE_BYTES == int(said["serve"]["prefix_cache"])
    assert said["generate"]["max_new_tokens"] == "128"
    assert len(model.generate(PROMPTS[0], ignore_eos=True).result().tokens) == 128


def test_forms_hold(model):
    done = model.generate("And", regex="[a-z ]{5,20}", max_new_tokens=30).result()
    assert 5 <= len(done.text) <= 20 and done.text.replace(" ", "").islower()
    with pytest.raises(ratplus.InputError, match="grammar: "):
        model.generate("And", regex="(")
    with pytest.raises(ratplus.InputError, match="expected one of `json`"):
        model.generate("And", regex="a", json=True)


def test_many_streams_in_one_event_loop(model):
    expected = [one.tokens.tolist() for one in model.generate_batch(PROMPTS, max_new_tokens=40)]

    async def one(prompt):
        return [token.token async for token in model.generate(prompt, max_new_tokens=40) if token.token is not None]

    async def main():
        found = await asyncio.gather(*map(one, PROMPTS * 3))
        whole = await model.generate(PROMPTS[0], max_new_tokens=40).wait()
        assert whole.tokens.tolist() == expected[0]
        # One that is left while it waits ends.
        task = asyncio.create_task(model.generate(PROMPTS[0], **LONG).wait())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return found

    assert asyncio.run(main()) == expected * 3
    assert model.wait_idle(5)


def test_a_request_ends_where_nobody_wants_it(model):
    assert model.wait_idle(5)
    before = model.snapshot()
    stream = model.generate(PROMPTS[0], **LONG)
    next(stream)
    stream.cancel()
    done = stream.result()
    assert done.finish_reason == "cancelled" and 0 < len(done.tokens) < 400
    assert done.text == model.decode(done.tokens)
    next(model.generate(PROMPTS[0], **LONG))
    assert model.wait_idle(5)
    after = model.snapshot()
    assert (after["running"], after["waiting"], after["slots"]) == (0, 0, 4)
    assert after["finished"] - before["finished"] == 2
    assert after["new_tokens"] - before["new_tokens"] < 500
    assert model.generate(PROMPTS[0], timeout=0.0, **LONG).result().finish_reason == "timeout"


def interrupted(call):
    """Calls until a signal of the keyboard's ends it."""
    # Programs in the background are started with it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            for _ in range(10_000):
                call()
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_keyboard_interrupts_within_a_step(model, kjv, tmp_path):
    for call in (
        lambda: model.generate(PROMPTS[0], **LONG).result(),
        lambda: list(model.generate(PROMPTS[0], **LONG)),
        lambda: model.generate_batch(PROMPTS, **LONG),
        lambda: model.score_batch([[5] * 400] * 8),
    ):
        interrupted(call)
        start = time.monotonic()
        assert model.wait_idle(5)
        assert time.monotonic() - start < 1
    interrupted(lambda: export(tmp_path / "kjv"))
    # As it was, or not there.
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left in ([], ["kjv"]), left


def test_engines_do_not_hold_pythons_lock(kjv):
    with ratplus.Model.open(kjv, "tract") as model:
        thread = threading.Thread(target=model.score, args=([5] * 200,))
        thread.start()
        ticks = 0
        while thread.is_alive():
            time.sleep(0.001)
            ticks += 1
    assert ticks > 20


def test_errors_have_the_programs_words(program, kjv, model, tmp_path):
    def words(*command):
        return program(*command, code=2).stderr.removeprefix("error: ").rstrip("\n")

    nowhere = tmp_path / "nowhere"
    with pytest.raises(ratplus.InputError) as raised:
        ratplus.Model.open(nowhere)
    assert str(raised.value) == words("generate", nowhere, "--prompt", "x")
    with pytest.raises(ratplus.InputError) as raised:
        ratplus.Model.open(kjv, "ort-gpu")
    assert str(raised.value) == words("generate", kjv, "--prompt", "x", "--backend", "ort-gpu")
    # In a process that has loaded none yet.
    script = """
import sys, ratplus
try:
    ratplus.Model.open(sys.argv[1], onnxruntime=sys.argv[2])
except ratplus.InputError as error:
    print(error)
"""
    said = words("generate", kjv, "--prompt", "x", "--onnxruntime", nowhere)
    assert in_child(script, kjv, nowhere).rstrip("\n") == said
    with pytest.raises(ratplus.InputError) as raised:
        model.generate("x", temperature=-1, top_p=2)
    # The program says the flags of the same names.
    flags = str(raised.value).replace("`temperature`", "--temperature").replace("`top_p`", "--top-p")
    said = words("generate", kjv, "--prompt", "x", "--temperature=-1", "--top-p", 2)
    assert flags.split("; ") == said.split("\n  ")
    with pytest.raises(ratplus.InputError) as raised:
        ratplus.export(CASE / "model.pth", nowhere, config=CASE / "config.json", d_head=7)
    assert "d_head" in str(raised.value) and not nowhere.exists()
    with pytest.raises(ratplus.InputError, match="`dtype`: .*f64"):
        ratplus.export(CASE / "model.pth", nowhere, dtype="f64")
    with pytest.raises(ratplus.InputError, match="expected room for|tokens"):
        model.generate([5] * 600)
    with pytest.raises(TypeError, match="temprature"):
        model.generate("x", temprature=1)
    # Nothing of a batch runs where one of it cannot.
    before = model.snapshot()["submitted"]
    with pytest.raises(ratplus.InputError):
        model.generate_batch(["x", [5] * 600])
    assert model.snapshot()["submitted"] == before


def eventually(found):
    end = time.monotonic() + 60
    while not found():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_batches_wait_for_room_in_the_queue(kjv, model):
    expected = [one.tokens.tolist() for one in model.generate_batch(PROMPTS, max_new_tokens=8)]
    scores = [one.logprobs.tolist() for one in model.score_batch(PROMPTS)]
    longest = max(len(model.encode(prompt)) for prompt in PROMPTS)
    for options in (dict(max_queued_requests=1), dict(max_queued_tokens=longest)):
        with ratplus.Model.open(kjv, **options) as tight, ThreadPoolExecutor(3) as pool:
            # Beside others that fill it.
            batches = [pool.submit(tight.generate_batch, PROMPTS * 4, max_new_tokens=8) for _ in range(2)]
            scored = pool.submit(tight.score_batch, PROMPTS * 4)
            for batch in batches:
                assert [one.tokens.tolist() for one in batch.result()] == expected * 4
            assert [one.logprobs.tolist() for one in scored.result()] == scores * 4
    # What never has room is said before anything runs.
    with ratplus.Model.open(kjv, max_queued_tokens=longest) as tight:
        for call in (tight.generate_batch, tight.score_batch):
            with pytest.raises(ratplus.InputError, match=f"expected at most {longest} tokens.*max_queued_tokens"):
                call([*PROMPTS, [5] * (longest + 1)])
        assert tight.snapshot()["submitted"] == 0
    with pytest.raises(ratplus.InputError, match="`max_queued_requests`: expected 1 or more, found 0"):
        ratplus.Model.open(kjv, max_queued_requests=0)


def test_a_request_that_was_refused_can_be_submitted_later(kjv_last):
    with ratplus.Model.open(kjv_last, max_queued_requests=1) as model:
        (request,) = model._service.prepare([PROMPTS[0]], max_new_tokens=4)
        running = model.generate(PROMPTS[0], **LONG)
        eventually(lambda: model.snapshot()["running"])
        waiting = model.generate(PROMPTS[0], max_new_tokens=4)
        with pytest.raises(ratplus.QueueFull):
            model._service.submit([request])
        running.cancel()
        expected = waiting.result().tokens.tolist()
        (stream,) = model._service.submit([request])
        assert stream.result().tokens.tolist() == expected
        with pytest.raises(ratplus.InputError, match="not submitted yet"):
            model._service.submit([request])


def test_where_there_is_no_room_it_says_when(kjv_last):
    with ratplus.Model.open(kjv_last, max_queued_requests=2) as model:
        running = [model.generate(PROMPTS[0], **LONG) for _ in range(2)]
        with pytest.raises(ratplus.QueueFull, match="requests: expected at most 2") as raised:
            running += [model.generate(PROMPTS[0], **LONG) for _ in range(3)]
        assert raised.value.retry_after > 0
        # One that is dropped while it waits is waited for no longer.
        waiting = model.snapshot()["waiting"]
        running.pop()
        eventually(lambda: model.snapshot()["waiting"] < waiting)
        assert model.snapshot()["running"] == 1
        del running
        assert model.wait_idle(5)
        model.drain()
        with pytest.raises(ratplus.RunError, match="takes no more requests"):
            model.generate("x")
    with pytest.raises(ratplus.RunError, match="the model is closed"):
        model.generate("x")


def test_what_runs_ends_when_the_model_is_closed(kjv):
    model = ratplus.Model.open(kjv)
    stream = model.generate(PROMPTS[0], **LONG)
    model.close()
    with pytest.raises(ratplus.RunError, match="closed before the end"):
        stream.result()
    # Closed by the end of the process, with requests that run.
    script = "import sys, ratplus; model = ratplus.Model.open(sys.argv[1]); kept = [model.generate('x', ignore_eos=True, max_new_tokens=400)"
    script += " for _ in range(8)]; print(next(kept[0]).token)"
    assert in_child(script, kjv).strip().isdigit()


def test_a_stream_keeps_its_model(kjv_last):
    stream = ratplus.Model.open(kjv_last).generate(PROMPTS[0], max_new_tokens=20, ignore_eos=True)
    done = stream.result()
    assert (done.finish_reason, len(done.tokens)) == ("max_new_tokens", 20)


def test_a_model_that_goes_does_not_hold_pythons_lock(tmp_path):
    package = export(tmp_path / "kjv", max_seq_len=2048, prefill_lengths=[1024], logits="last", batch=1)
    model = ratplus.Model.open(package, "tract")
    stream = model.generate([5] * 2000)
    # Its first chunk has run, and the second one does.
    eventually(lambda: model.snapshot()["running"])
    ticks, ended = [], threading.Event()

    def tick():
        while not ended.wait(0.001):
            ticks.append(time.monotonic())

    thread = threading.Thread(target=tick)
    thread.start()
    eventually(lambda: ticks)
    start = time.monotonic()
    del stream, model
    end = time.monotonic()
    ended.set()
    thread.join()
    print(f"a model goes within {end - start:.3f} s")
    assert end - start > 0.02
    assert sum(start < tick < end for tick in ticks) > 5


FORKED = """
import gc, os, signal, sys, ratplus
model = ratplus.Model.open(sys.argv[1])
stream = model.generate("x", max_new_tokens=400, ignore_eos=True)
next(stream)
child = os.fork()
if child == 0:
    # It hangs for ever otherwise.
    signal.alarm(30)
    native = stream._stream
    calls = [stream.result, lambda: next(stream), native.poll, native.fileno, lambda: native.scores(1)]
    calls += [lambda: model.generate("x"), lambda: model.score([1, 2]), model.snapshot, model.drain, model.wait_idle]
    for call in calls:
        try:
            call()
        except ratplus.RunError as error:
            assert "before this process was forked" in str(error)
        else:
            sys.exit(f"{call}: no error")
    stream.cancel()
    model.close()
    calls.clear()
    del stream, native, model, call
    gc.collect()
    print("child", flush=True)
    # As multiprocessing's children end: handlers of ONNX Runtime's wait for its threads otherwise.
    os._exit(0)
print("status", os.waitpid(child, 0)[1])
print("tokens", len(stream.result().tokens))
"""


def test_a_forked_process_is_told(kjv):
    assert in_child(FORKED, kjv).split("\n") == ["child", "status 0", "tokens 400", ""]


def test_a_prefix_is_kept_on_disk(kjv, tmp_path):
    ids = [int(token) for token in np.arange(200) % 300]
    expected = None
    for cached in (0, 192):
        options = dict(prefix_cache=1 << 26, prefix_cache_file=tmp_path / "prefixes")
        with ratplus.Model.open(kjv, **options) as model:
            done = model.generate(ids, max_new_tokens=8).result()
            assert model.snapshot()["prefix_bytes"] > 0
        assert done.cached_tokens >= cached
        expected = expected or done.tokens.tolist()
        assert done.tokens.tolist() == expected


def test_onnxruntimes_own_sessions_run_beside(kjv, model):
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(ratplus.library_path())
    session = onnxruntime.InferenceSession(kjv / "prefill_64.cpu.onnx", options, providers=["CPUExecutionProvider"])
    ids = model.encode(PROMPTS[0])
    shapes = {value.name: (value.shape, value.type) for value in session.get_inputs()}
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    feeds = {name: np.zeros(shape, kinds[kind]) for name, (shape, kind) in shapes.items()}
    feeds["input_ids"][0, : len(ids)] = ids
    feeds["seq_length"][0] = len(ids)
    logits = session.run(["logits"], feeds)[0]
    assert logits[0, len(ids) - 1].argmax() == model.generate(ids, max_new_tokens=1).result().tokens[0]


def test_without_onnxruntime_it_says_what_to_install(kjv, tmp_path):
    script = """
import sys, ratplus, importlib.util
importlib.util.find_spec = lambda name: None
try:
    ratplus.Model.open(sys.argv[1])
except ratplus.InputError as error:
    print(error)
"""
    said = in_child(script, kjv, PATH="", HOME=str(tmp_path))
    assert "ONNX Runtime was not found" in said and "pip install onnxruntime" in said


def test_what_goes_on_from_a_state_has_no_beginning(tmp_path):
    """Of a package whose texts have a token that begins them."""
    tokenizer = json.loads((CASE / "tokenizer.json").read_text())
    text, begin = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 0}}
    added = {"type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text, text]}
    added["special_tokens"] = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": added}))
    export(tmp_path / "kjv", tokenizer=tmp_path / "tokenizer.json", special_tokens="tokenizer")
    with ratplus.Model.open(tmp_path / "kjv") as model:
        count = len(model.encode("And", special_tokens=False))
        assert len(model.encode("And")) == count + 1
        state = model.state("And")
        assert state.past_length == count + 1
        more = len(model.encode(" it came", special_tokens=False))
        for special_tokens, added in [(None, 0), (False, 0), (True, 1)]:
            asked = dict(state=state, special_tokens=special_tokens)
            assert model.generate(" it came", max_new_tokens=2, **asked).result().prompt_tokens == more + added
            assert model.state(" it came", **asked).past_length == state.past_length + more + added


def test_a_state_goes_on_elsewhere(model, kjv, kjv_last, tmp_path):
    ids = model.encode(PROMPTS[0])
    whole = model.generate(ids, max_new_tokens=30).result().tokens
    first = model.generate(ids, max_new_tokens=10, keep_state=True).result()
    assert first.tokens.tolist() == whole[:10].tolist()
    assert first.state.past_length == len(ids) + 9
    first.state.save(tmp_path / "state")
    loaded = ratplus.State.load(tmp_path / "state")
    assert (loaded.past_length, loaded.fingerprint) == (first.state.past_length, first.state.fingerprint)
    with ratplus.Model.open(kjv) as other:
        rest = other.generate(whole[9:10], max_new_tokens=20, state=loaded).result()
    assert rest.tokens.tolist() == whole[10:].tolist()
    # A prompt alone, and its tensors where they lie.
    state = model.state(ids)
    assert state.past_length == len(ids)
    total = 0
    for name, dtype, shape, held in state.views():
        assert name.startswith("past_key_values.") and dtype == "f32" and not held.flags.writeable
        assert held.view("float32").reshape(shape).shape[0] == 1
        total += held.nbytes
    assert total == state.nbytes == model.state_bytes // model.slots
    with pytest.raises(ratplus.InputError, match="expected a saved state"):
        ratplus.State.load(kjv / "manifest.json")
    export(tmp_path / "shorter", max_seq_len=256)
    with ratplus.Model.open(tmp_path / "shorter") as other, pytest.raises(ratplus.InputError, match="`state`: expected one"):
        other.generate([5], state=loaded)
