"""docs/by-hand.md: its listing is run, and what it says of the ONNX files is tried in onnxruntime."""

import ctypes
import json
import re
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import onnx
import onnx.reference
import onnxruntime as ort
import pytest
from conftest import CASES, ROOT, golden_case
from hosts import told_by
from ort_driver import NAN_BITS, Package, chunked, to_bytes

PAGE = (ROOT / "docs" / "by-hand.md").read_text()
CASE = "head_hybrid"
M = 160
SMALL = {"case": CASE, "batch": 2, "prefill_lengths": (7,), "max_seq_len": M}
BODIES = ["function", "inline"]
PLAN = [(7, 7)] * 3 + [(1, 1)] * 2 + [(7, 7)]
I64 = np.iinfo(np.int64)


@pytest.fixture(scope="session")
def tokens():
    """Two sequences."""
    return golden_case(CASE).golden()["tokens"]


@pytest.fixture(scope="session")
def listing():
    """What the page's listing defines."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    defined: dict = {}
    exec(compile(code, "docs/by-hand.md", "exec"), defined)
    return defined


def relative(found, expected) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def decode(case, ids) -> str:
    """Text of a byte-level tokenizer's ids."""
    vocabulary = json.loads((case.directory / "tokenizer.json").read_text())["model"]["vocab"]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    bytes_of = {chr(byte): byte for byte in printable}
    bytes_of |= {chr(256 + i): byte for i, byte in enumerate(b for b in range(256) if b not in printable)}
    pieces = {number: piece for piece, number in vocabulary.items()}
    return bytes(bytes_of[char] for number in ids for char in pieces[int(number)]).decode()


@pytest.mark.parametrize("with_library", [False, True], ids=["stock", "library"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_the_listing_says_what_generate_says(export, ratplus, ort_library, listing, dtype, with_library):
    case = golden_case("kjv_d16w64i4")
    package = export(case="kjv_d16w64i4", dtype=dtype, logits="last", prefill_lengths=(64,), max_seq_len=160)
    # More than the longest engine, up to the end of a word.
    prompt = [int(token) for token in case.golden()["tokens"][0, :90]]
    while not decode(case, [*prompt, case.golden()["tokens"][0, len(prompt)]])[len(decode(case, prompt)) :].startswith(" "):
        prompt.pop()
    text = decode(case, prompt)
    count = 40
    backend = "ort-cpu" if with_library else "ort-fallback"
    said = ratplus("generate", package, "--prompt", text, "-n", count, "--backend", backend, "--custom-ops", ort_library)
    model = listing["Model"](package, ort_library if with_library else None)
    ids = listing["greedy"](model, prompt, count)
    assert len(ids) == count
    assert said.stdout.rstrip("\n") == (text + decode(case, ids)).rstrip("\n")
    # A sequence starts over in used states.
    model.past_length[:] = 0
    assert listing["greedy"](model, prompt, count) == ids
    with pytest.raises(ValueError, match="no room"):
        listing["greedy"](model, prompt, 1)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_the_listing_runs_slots_of_their_own_lengths(export, ort_library, listing, tokens, f32_tolerance, dtype):
    golden = golden_case(CASE).golden()
    package = export(**SMALL, logits="last", dtype=dtype)
    limit = f32_tolerance if dtype == "f32" else 8 * 2**-11
    for library in (None, ort_library):
        model = listing["Model"](package, library)
        for counts in [(7, 3), (0, 1), (7, 7), (1, 1), (5, 0), (0, 0)]:
            ends = model.past_length + counts
            logits = model.step([list(tokens[slot, end - n : end]) for slot, (end, n) in enumerate(zip(ends, counts))])
            assert set(logits) >= {slot for slot, n in enumerate(counts) if n}
            for slot, n in enumerate(counts):
                if n:
                    assert logits[slot].shape == (97,) and logits[slot].dtype == np.float32
                    assert relative(logits[slot], golden["logits"][slot, ends[slot] - 1]) <= limit


@pytest.mark.parametrize("case", CASES)
def test_ports_are_those_of_the_page_and_the_manifest(export, case):
    package = export(case=case, batch=2, dtype="f16", prefill_lengths=(7,), logits="all", more=("--cache-dtype", "bf16"))
    manifest = json.loads((package / "manifest.json").read_text())
    model, m = manifest["model"], manifest["max_seq_len"]
    names = {"i64": "tensor(int64)", "f32": "tensor(float)", "f16": "tensor(float16)", "bf16": "tensor(bfloat16)"}
    states = []
    for layer, patterns in enumerate(model["patterns"]):
        heads = model.get("num_kv_heads") or model["d_model"] // model["d_head"]
        patterns = patterns if isinstance(patterns, list) else [patterns] * heads
        rows = sum(p["initial"] + p["local_window"] + (m // p["dilation"] if p["dilation"] > 0 else 0) for p in patterns)
        chooses = "block_size" in patterns[0]
        rows = heads * m if chooses else rows
        states += [(f"{layer}.{name}", "bf16", [rows, model["d_head"]]) for name in ("key", "value")]
        if chooses:
            parts = {"bounds": 2, "mean": 1}[patterns[0]["score"]]
            states += [(f"{layer}.block", "f32", [heads * -(-m // patterns[0]["block_size"]) * parts, model["d_head"]])]
        if model["recurrence"]:
            states += [(f"{layer}.recurrent_{name}", "f32", [heads * model["d_head"]]) for name in ("key", "value")]
    for engine in manifest["engines"]:
        length, b = engine["seq_len"], engine["batch"]
        inputs = [("input_ids", "i64", [b, length]), ("past_length", "i64", [b]), ("seq_length", "i64", [b])]
        inputs += [(f"past_key_values.{name}", dtype, [b, *shape]) for name, dtype, shape in states]
        outputs = [("logits", "f32", [b, length, model["vocab_size"]])]
        outputs += [(f"present.{name}", dtype, [b, *shape]) for name, dtype, shape in states]
        session = ort.InferenceSession(package / engine["files"]["portable"], providers=["CPUExecutionProvider"])
        for expected, listed, found in (
            (inputs, engine["inputs"], session.get_inputs()),
            (outputs, engine["outputs"], session.get_outputs()),
        ):
            assert [(t["name"], t["dtype"], t["shape"]) for t in listed] == expected
            assert [(t.name, t.type, t.shape) for t in found] == [(n, names[dtype], shape) for n, dtype, shape in expected]
    engines = [(engine["files"]["portable"], engine["batch"], engine["seq_len"]) for engine in manifest["engines"]]
    assert engines == [("decode.onnx", 1, 1), ("decode_b2.onnx", 2, 1), ("prefill_7.onnx", 1, 7)]


def once(engine, seq_len, ids, past, seq):
    """Logits and states of one run from the engine's states, which stay."""
    logits, states = engine.once(seq_len, ids, past, seq)
    return logits, {name: to_bytes(state) for name, state in states.items()}


def bad_lengths(seq_len, held):
    """(past_length, seq_length) that do not fit an engine."""
    return [(M, 1), (M - seq_len + 1, seq_len), (M + 1, 0), (100_000, 1), (-1, 1), (-1, 0), (held, -1), (held, seq_len + 1),
            (I64.max, seq_len), (I64.max, 0), (I64.min, seq_len), (held, I64.max), (held, I64.min), (-held, I64.max),
            (I64.max, I64.max), (I64.min, I64.min)]  # fmt: skip


def check_lengths(engine, tokens):
    # Rows that were never written are read below, as if more tokens had been fed.
    engine.states = {name: np.zeros_like(state) for name, state in engine.states.items()}
    for seq_len, count in PLAN:
        engine.step(seq_len, tokens, (count, count))
    held = int(engine.past_length[0])
    before = {name: to_bytes(state) for name, state in engine.states.items()}
    for seq_len in (7, 1):
        ids = tokens[:, held : held + seq_len]
        expected, kept = once(engine, seq_len, ids, [held, held], [0, seq_len])
        assert np.isfinite(expected).all()
        for past, seq in bad_lengths(seq_len, held):
            what = f"engine {seq_len}, past_length {past}, seq_length {seq}"
            logits, states = once(engine, seq_len, ids, [past, held], [seq, seq_len])
            assert np.isnan(logits[0]).all(), what
            assert logits[1].tobytes() == expected[1].tobytes(), what
            for name, state in states.items():
                assert np.array_equal(state[0], before[name][0]), f"{what}: {name}"
                assert np.array_equal(state[1], kept[name][1]), f"{what}: {name}"
        # The last that fit.
        for past, seq in [(M - seq_len, seq_len), (M, 0), (held, 0), (0, 0)]:
            logits, _ = once(engine, seq_len, ids, [past, held], [seq, seq_len])
            assert np.isfinite(logits).all()
            assert logits[1].tobytes() == expected[1].tobytes()


@pytest.mark.parametrize("fallback", BODIES)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_bodies_answer_lengths_that_do_not_fit_with_nan(export, tokens, dtype, fallback):
    check_lengths(Package(export(**SMALL, dtype=dtype, fallback=fallback)), tokens)


@pytest.mark.parametrize("case", [CASE, "attention_only"])
def test_the_last_logits_are_nan_too(export, case):
    package = export(**SMALL | {"case": case}, logits="last")
    check_lengths(Package(package), golden_case(case).golden()["tokens"])


@pytest.mark.parametrize("case", [CASE, "attention_only"])
def test_the_library_answers_them_the_same_and_names_them(export, ort_library, case):
    package = export(**SMALL | {"case": case})
    check_lengths(Package(package, ort_library), golden_case(case).golden()["tokens"])
    told = told_by(ort_library)
    assert "slot 0: past_length" in told and "do not fit" in told


@pytest.mark.parametrize("library", ["ort_library", "emulated_library"])
def test_a_slot_past_its_end_stops_no_other_in_one_buffer(export, request, tokens, library):
    """All layers: one that had advanced where another had not would show in what follows."""
    library = request.getfixturevalue(library)
    plan = [(1, (1, 0))] * 3 + [(1, (1, 1))] * 4
    engines = [Package(export(**SMALL), library) for _ in range(2)]
    for engine in engines:
        engine.run(tokens, PLAN[:3], engine.step_in_place)
    held, (spoilt, clean) = int(engines[0].past_length[1]), engines
    for number, (seq_len, counts) in enumerate(plan):
        if counts[1] == 0:
            # Slot 1 is full, says the host.
            spoilt.past_length[1] = M
            found = spoilt.step_in_place(seq_len, np.pad(tokens, ((0, 0), (0, M))), (1, 1))
            spoilt.past_length[1] = held
        else:
            found = spoilt.step_in_place(seq_len, tokens, counts)
        expected = clean.step_in_place(seq_len, tokens, counts)
        slots = 2 if counts[1] else 1
        assert found[:slots].tobytes() == expected[:slots].tobytes(), number
    for name, state in clean.states.items():
        assert np.array_equal(to_bytes(spoilt.states[name]), to_bytes(state)), name
    assert "slot 1: past_length" in told_by(library)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("fallback", BODIES)
@pytest.mark.parametrize("case", ["head_hybrid", "kjv_d16w64i4", "attention_only"])
def test_one_buffer_gives_the_bits_of_two(export_case, case, fallback, dtype):
    """Without the library, past the initial tokens and the window: rows are overwritten."""
    sequences = golden_case(case).golden()["tokens"][:, :150]
    engine = Package(export_case(case, fallback=fallback, dtype=dtype))
    plan = [*chunked(142), (7, 5), (1, 1), (1, 1), (1, 1)]
    separate = engine.run(sequences, plan)
    kept = engine.states
    engine.reset()
    assert engine.run(sequences, plan, engine.step_in_place).tobytes() == separate.tobytes()
    for name, state in kept.items():
        assert engine.states[name].tobytes() == state.tobytes(), name


@pytest.mark.parametrize("case", ["head_hybrid", "kjv_d16w64i4"])
def test_one_buffer_gives_the_bits_of_two_with_the_library(export_case, ort_library, case):
    sequences = golden_case(case).golden()["tokens"][:, :150]
    kernels = Package(export_case(case), ort_library)
    separate = kernels.run(sequences, chunked(150))
    kernels.reset()
    assert kernels.run(sequences, chunked(150), kernels.step_in_place).tobytes() == separate.tobytes()


def test_plain_run_is_right(export, tokens, f32_tolerance):
    package, tokens = export(**SMALL | {"batch": 1}), tokens[:1]
    expected = Package(package).run(tokens, PLAN)
    sessions = {n: ort.InferenceSession(package / name) for n, name in [(7, "prefill_7.onnx"), (1, "decode.onnx")]}
    feeds = {t.name: np.full(t.shape, np.nan, np.float32) for t in sessions[1].get_inputs()[3:]}
    start = 0
    for seq_len, count in PLAN:
        lengths = {"past_length": np.full(1, start), "seq_length": np.full(1, count)}
        logits, *states = sessions[seq_len].run(None, {"input_ids": tokens[:, start : start + count]} | lengths | feeds)
        feeds = dict(zip(feeds, states))
        assert relative(logits, expected[:, start : start + count]) <= f32_tolerance
        start += count


@pytest.mark.parametrize("with_library", [False, True], ids=["stock", "library"])
def test_padding_changes_no_bit_and_ids_have_a_range(export, ort_library, tokens, with_library):
    engine = Package(export(**SMALL), ort_library if with_library else None)
    engine.run(tokens, [(7, 7)])
    seen = []
    for padding in (0, 96, 31):
        ids = np.full((2, 7), padding)
        ids[:, :3] = tokens[:, 7:10]
        logits, states = once(engine, 7, ids, [7, 7], [3, 3])
        seen.append([logits[:, :3].tobytes(), *(state.tobytes() for state in states.values())])
    assert seen[0] == seen[1] == seen[2]
    with pytest.raises(Exception, match="out of data bounds"):
        once(engine, 1, [[97], [0]], [7, 7], [1, 1])
    last, negative = (once(engine, 1, [[number]] * 2, [7, 7], [1, 1])[0] for number in (96, -1))
    assert last.tobytes() == negative.tobytes()


@pytest.mark.parametrize("with_library", [False, True], ids=["stock", "library"])
def test_a_smaller_past_length_does_not_go_back(export, ort_library, tokens, f32_tolerance, with_library):
    engine = Package(export(**SMALL), ort_library if with_library else None)
    expected = engine.run(tokens, PLAN)
    engine.past_length[:] -= 7
    start = int(engine.past_length[0])
    again = engine.step(7, tokens, (7, 7))
    assert relative(again, expected[:, start : start + 7]) > 10 * f32_tolerance


def test_bf16_goes_through_ort_values(export):
    session = ort.InferenceSession(export(**SMALL, dtype="bf16") / "decode.onnx")
    types = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(bfloat16)": ml_dtypes.bfloat16}
    arrays = {t.name: np.zeros(t.shape, types[t.type]) for t in session.get_inputs()}
    with pytest.raises(Exception, match="can't be converted"):
        session.run(None, arrays)
    ones = np.ones((2, 3), ml_dtypes.bfloat16)
    with pytest.raises(Exception, match="only supported from"):
        ort.OrtValue.ortvalue_from_numpy(ones)
    onnx_type = NAN_BITS["bf16"][0]
    assert onnx_type == 16
    value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(ones, 16)
    bits = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(ones.view(np.uint16), 16)
    empty = ort.OrtValue.ortvalue_from_shape_and_type((2, 3), 16)
    for v in (value, bits, empty):
        assert v.data_type() == "tensor(bfloat16)"
    with pytest.raises(Exception, match="bfloat16"):
        value.numpy()
    for v in (value, bits):
        read = np.frombuffer(ctypes.string_at(v.data_ptr(), v.tensor_size_in_bytes()), ml_dtypes.bfloat16)
        assert (read == 1).all() and read.shape == (6,)
    assert all(text in PAGE for text in ("ortvalue_from_shape_and_type(shape, 16)", "_with_onnx_type(array, 16)"))


def test_weights_lie_beside_the_file(export, tmp_path):
    package = export(**SMALL)
    model = (package / "decode.onnx").read_bytes()
    for name in ("alone", "linked"):
        (tmp_path / name).mkdir()
        shutil.copy(package / "decode.onnx", tmp_path / name)
    with pytest.raises(Exception, match="weights.bin"):
        ort.InferenceSession(tmp_path / "alone" / "decode.onnx")
    (tmp_path / "linked" / "weights.bin").symlink_to(package / "weights.bin")
    with pytest.raises(Exception, match="escapes model directory"):
        ort.InferenceSession(tmp_path / "linked" / "decode.onnx")
    with pytest.raises(Exception, match="weights.bin"):
        ort.InferenceSession(model)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(package))
    ort.InferenceSession(model, options)


def test_ratplus_reads_no_changed_package(export, ratplus, tmp_path):
    package = shutil.copytree(export(case="kjv_d16w64i4", logits="last"), tmp_path / "package")
    onnx.save(onnx.load(package / "decode.onnx"), package / "decode.onnx")
    assert "decode.onnx: expected" in ratplus("generate", package, "--prompt", "In", code=2).stderr


MEASURE = """
import sys, onnxruntime as ort
anonymous = lambda: sum(int(l.split()[1]) for l in open("/proc/self/smaps_rollup") if l.startswith("Anonymous:"))
options, before = ort.SessionOptions(), anonymous()
options.add_session_config_entry("session.disable_prepacking", sys.argv[2])
sessions = [ort.InferenceSession(sys.argv[1], options) for _ in range(2)]
assert any("weights.bin" in line for line in open("/proc/self/maps"))
print(anonymous() - before)
"""


def test_weights_are_mapped_and_packed_in_each_session(export):
    package = export(case="kjv_d16w64i4", logits="last")
    kilobytes = [
        int(subprocess.check_output([sys.executable, "-c", MEASURE, package / "decode.onnx", value])) for value in "01"
    ]
    weights = (package / "weights.bin").stat().st_size / 1024
    assert kilobytes[0] - kilobytes[1] > weights


def optimized(package, library, config=(), level="ORT_ENABLE_ALL", profile=None):
    """A package whose sessions have these options."""
    engine = Package(package, library, profile)
    make = ort.SessionOptions

    def options():
        made = make()
        made.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        for key, value in config:
            made.add_session_config_entry(key, value)
        return made

    ort.SessionOptions = options
    try:
        for seq_len in engine.engines:
            engine.session(seq_len)
    finally:
        ort.SessionOptions = make
    return engine


@pytest.mark.parametrize("with_library", [False, True], ids=["stock", "library"])
def test_session_options_keep_the_numbers(export, ort_library, tokens, f32_tolerance, tmp_path, with_library):
    package, library = export(**SMALL), ort_library if with_library else None
    expected = Package(package, library).run(tokens, PLAN)[:, :30]
    variants = [{"level": f"ORT_{level}"} for level in ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED")]
    variants += [{"config": [("session.disable_aot_function_inlining", "1")]}]
    variants += [{"config": [("session.disable_prepacking", "1")]}]
    for number, variant in enumerate(variants):
        (tmp_path / str(number)).mkdir()
        engine = optimized(package, library, profile=tmp_path / str(number), **variant)
        assert relative(engine.run(tokens, PLAN)[:, :30], expected) <= f32_tolerance, variant
        ran = [counts.get("DilatedAttention", 0) > 0 for counts in engine.executed_ops().values()]
        assert ran == [with_library] * 2, variant


@pytest.mark.parametrize("fallback", BODIES)
def test_no_constant_needs_64_bits(export, fallback):
    for name in ("decode.onnx", "prefill_7.onnx"):
        model = onnx.load(export(**SMALL, fallback=fallback) / name, load_external_data=False)
        nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
        tensors = [a.t for node in nodes if node.op_type == "Constant" for a in node.attribute if a.name == "value"]
        values = [onnx.numpy_helper.to_array(t) for t in tensors if t.data_type == onnx.TensorProto.INT64]
        assert len(values) > 50
        assert max(np.abs(v).max() for v in values if v.size) < 2**31


@pytest.mark.parametrize("fallback", BODIES)
def test_the_reference_of_onnx_runs_the_files(export, tokens, f32_tolerance, fallback):
    package, tokens = export(**SMALL | {"batch": 1}, fallback=fallback), tokens[:1]
    expected = Package(package).run(tokens, PLAN)
    runs = {n: onnx.reference.ReferenceEvaluator(str(package / name)) for n, name in [(7, "prefill_7.onnx"), (1, "decode.onnx")]}
    states = {t["name"]: np.full(t["shape"], np.nan, np.float32) for t in Package(package)._state_inputs}
    start = 0
    for seq_len, count in [(7, 7), (7, 7), (1, 1), (1, 1)]:
        lengths = {"past_length": np.full(1, start), "seq_length": np.full(1, count)}
        logits, *made = runs[seq_len].run(None, {"input_ids": tokens[:, start : start + count]} | lengths | states)
        states = dict(zip(states, made))
        if start + count <= 14:
            assert relative(logits, expected[:, start : start + count]) <= f32_tolerance
        start += count
    # Token by token where the other took a chunk.
    assert relative(logits[:, 0], expected[:, start - 1]) <= f32_tolerance
