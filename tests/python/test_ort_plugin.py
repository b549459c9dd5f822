"""The custom-op library in stock onnxruntime: numbers, in-place updates, determinism, threads. Its
operators for CUDA take part on the emulator."""

import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from conftest import ROOT
from plugin_driver import Replay, bind, garbage, make_session, make_sessions, random_plan, run_bound
from plugin_models import (
    DOMAIN,
    DTYPES,
    Attention,
    ModelOptions,
    Pattern,
    Scan,
    attention_reference,
    build_model,
    numpy_type,
    random_pattern,
    scan_reference,
)

SEQ_LENS = [1, 5, 16]
ALL_DTYPES = list(DTYPES)


def constant(name):
    source = (ROOT / "graphs" / "src" / "tolerance.rs").read_text()
    return float(re.search(rf"const {name}: f64 = ([0-9.e+-]+);", source)[1])


def assert_close(found, exact, naive, t, what):
    """f32 within its tolerance; less, within a factor of naive rounding's error."""
    found = found.astype(np.float64)
    error = np.abs(found - exact).max()
    if t == "f32":
        limit = constant("F32_LOGIT") * np.abs(exact).max()
    else:
        limit = constant("NAIVE_ROUNDING_FACTOR") * np.abs(naive - exact).max()
    assert error <= limit, f"{what}: error {error:.3g}, limit {limit:.3g}"


def random_sequences(rng, node, t, lengths):
    """Per chunk input, one [T, N] array per slot."""
    width = node.inputs(t)[node.chunks[0]][1][2]
    return {name: [(2 * rng.standard_normal((n, width))).astype(numpy_type(t)) for n in lengths] for name in node.chunks}


def per_length(node):
    return {seq_len: replace(node, seq_len=seq_len) for seq_len in SEQ_LENS}


def random_attention(rng, **fields):
    patterns = [random_pattern(rng) for _ in range(int(rng.integers(1, 5)))]
    shape = {"batch": 3, "seq_len": 1, "head_dim": int(rng.choice([2, 6, 16, 64])), "max_seq_len": 50}
    return Attention(patterns=patterns, **(shape | fields))


def multiplies_bf16():
    """Whether this machine has instructions that the CPU kernels multiply bf16 with."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


@pytest.mark.parametrize("t", ALL_DTYPES)
@pytest.mark.parametrize("seed", range(6))
def test_attention_is_the_definition(operators, t, seed):
    rng = np.random.default_rng(seed)
    node = random_attention(rng)
    nodes = per_length(node)
    lengths = [50, 1, int(rng.integers(2, 50))]
    sequences = random_sequences(rng, node, t, lengths)
    replay = Replay(nodes, t, make_sessions(operators.library, nodes, t), in_place=False)
    results = replay.feed(sequences, random_plan(rng, SEQ_LENS, lengths))
    dtype = numpy_type(t)
    to_type = lambda x: x.astype(dtype).astype(np.float64)  # noqa: E731
    # Tensor cores take every operand in the tensors' type, and so do a processor's instructions for bf16.
    # The latter come in rows of 32.
    rounds = operators.cuda or (t == "bf16" and node.head_dim % 32 == 0 and multiplies_bf16())
    rounding = {"round_key": to_type} | ({"round_operand": to_type} if rounds else {})
    for slot in range(node.batch):
        tokens = [sequences[name][slot].astype(np.float64) for name in node.chunks]
        exact = attention_reference(node, *tokens)
        rounded = attention_reference(node, *tokens, **rounding)
        naive = rounded.astype(dtype).astype(np.float64)
        assert_close(results["output"][slot], exact, naive, t, f"slot {slot} of {node}")


@pytest.mark.parametrize("t", ALL_DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_scan_is_the_definition(operators, t, seed):
    rng = np.random.default_rng(seed)
    node = Scan(batch=3, seq_len=1, channels=int(rng.choice([1, 7, 48])))
    nodes = per_length(node)
    lengths = [60, 1, int(rng.integers(2, 60))]
    sequences = random_sequences(rng, node, t, lengths)
    replay = Replay(nodes, t, make_sessions(operators.library, nodes, t), in_place=bool(seed % 2))
    results = replay.feed(sequences, random_plan(rng, SEQ_LENS, lengths))
    dtype = numpy_type(t)
    for slot in range(node.batch):
        tokens = [sequences[name][slot].astype(np.float64) for name in node.chunks]
        for name, exact in zip(node.results, scan_reference(*tokens)):
            naive = exact.astype(dtype).astype(np.float64)
            assert_close(results[name][slot], exact, naive, t, f"{name} of slot {slot}")


def test_one_attribute_value_stands_for_all_heads(operators):
    rng = np.random.default_rng(1)
    node = Attention(2, 5, 8, 20, [Pattern(4, 2, 1)] * 3)
    sequences = random_sequences(rng, node, "f32", [20, 20])
    plan = [(5, [5, 5])] * 4
    results = []
    for uniform in (False, True):
        nodes = {5: replace(node, uniform=uniform)}
        replay = Replay(nodes, "f32", make_sessions(operators.library, nodes, "f32"), in_place=False)
        results.append(replay.feed(sequences, plan)["output"])
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize("t", ALL_DTYPES)
@pytest.mark.parametrize("make", [random_attention, lambda rng: Scan(3, 1, 40)], ids=["attention", "scan"])
def test_one_buffer_for_past_and_present_is_two_bit_for_bit(operators, t, make):
    rng = np.random.default_rng(7)
    node = make(rng)
    nodes = per_length(node)
    lengths = [50, 23, 50]
    sequences = random_sequences(rng, node, t, lengths)
    plan = random_plan(rng, SEQ_LENS, lengths)
    sessions = make_sessions(operators.library, nodes, t, threads=2)
    runs = []
    for in_place in (False, True):
        replay = Replay(nodes, t, sessions, in_place)
        first = dict(replay.state)
        results = replay.feed(sequences, plan)
        assert all((array is first[name]) == in_place for name, array in replay.state.items())
        runs.append((results, replay.state))
    (results, state), (in_place_results, in_place_state) = runs
    for name, arrays in results.items():
        for array, other in zip(arrays, in_place_results[name]):
            assert array.tobytes() == other.tobytes(), name
    for name, array in state.items():
        assert array.tobytes() == in_place_state[name].tobytes(), name


@pytest.mark.parametrize("t", ALL_DTYPES)
def test_thread_counts_change_no_bit(operators, t):
    rng = np.random.default_rng(3)
    lengths = [50, 49, 2]
    for node in (random_attention(rng, head_dim=16), Scan(3, 1, 300)):
        nodes = per_length(node)
        sequences = random_sequences(rng, node, t, lengths)
        plan = random_plan(rng, SEQ_LENS, lengths)
        seen = set()
        for threads in (1, 2, 4):
            replay = Replay(nodes, t, make_sessions(operators.library, nodes, t, threads), in_place=True)
            results = replay.feed(sequences, plan)
            parts = [a.tobytes() for arrays in results.values() for a in arrays]
            seen.add(b"".join(parts + [a.tobytes() for a in replay.state.values()]))
        assert len(seen) == 1, node


def test_a_slot_does_not_see_the_others(operators):
    rng = np.random.default_rng(5)
    node = random_attention(rng, seq_len=5)
    session = make_session(operators.library, build_model(node, "f32"))
    inputs = full_inputs(rng, node, "f32", past=[9, 20, 3], seq=[5, 0, 2])
    first = {name: garbage(*spec) for name, spec in node.outputs("f32").items()}
    run_bound(session, inputs, first)
    for name in (*node.chunks, *node.states):
        inputs[name][[0, 2]] = np.nan
    second = {name: garbage(*spec) for name, spec in node.outputs("f32").items()}
    run_bound(session, inputs, second)
    for name, array in first.items():
        assert array[1].tobytes() == second[name][1].tobytes(), name
    # An idle slot's cache stays as it was.
    assert first["present_key"][1].tobytes() == inputs["past_key"][1].tobytes()


def full_inputs(rng, node, t, past, seq):
    """Random inputs, caches filled."""
    inputs = {}
    for name, (dtype, shape) in node.inputs(t).items():
        if dtype != "i64":
            inputs[name] = rng.standard_normal(shape).astype(numpy_type(dtype))
    inputs |= {"past_length": np.array(past, np.int64), "seq_length": np.array(seq, np.int64)}
    return inputs | (node.tables() if isinstance(node, Attention) else {})


@pytest.mark.parametrize("t", ["f16", "bf16", "f32"])
def test_a_node_between_others_agrees_with_a_bound_one(operators, t):
    """Caches that are intermediate values: the planner may update them in place."""
    rng = np.random.default_rng(11)
    for node in (random_attention(rng, seq_len=5), Scan(3, 5, 24)):
        inputs = full_inputs(rng, node, t, past=[9, 20, 0], seq=[5, 1, 2])
        outputs = {name: garbage(*spec) for name, spec in node.outputs(t).items()}
        run_bound(make_session(operators.library, build_model(node, t)), inputs, outputs)
        session = make_session(operators.library, build_model(node, t, ModelOptions(casts=True)))
        outer = {n: a if a.dtype == np.int64 else a.astype(np.float32) for n, a in inputs.items()}
        names = list(outputs)
        for name, array in zip(names, session.run(names, outer)):
            expected = outputs[name].astype(np.float32)
            assert array.tobytes() == expected.tobytes(), f"{node.op}.{name}"


def test_symbolic_dimensions_take_every_length(operators):
    rng = np.random.default_rng(2)
    node = random_attention(rng, head_dim=6)
    symbolic = {name: ("B", "L", node.heads * 6) for name in node.chunks}
    symbolic |= {name: ("B", node.rows(), 6) for name in node.states}
    symbolic |= {"past_length": ("B",), "seq_length": ("B",)}
    session = make_session(operators.library, build_model(node, "f32", ModelOptions(shapes=symbolic)))
    # More shapes than a node keeps plans for, and the first ones again.
    for seq_len in [1, 2, 3, 4, 5, 6, 7, 1, 7, 6]:
        fixed = replace(node, seq_len=seq_len)
        inputs = full_inputs(rng, fixed, "f32", past=[0, 30, 17], seq=[seq_len, 1, seq_len])
        names = list(fixed.outputs("f32"))
        expected = make_session(operators.library, build_model(fixed, "f32")).run(names, inputs)
        for name, found, array in zip(names, session.run(names, inputs), expected):
            assert found.tobytes() == array.tobytes(), f"L {seq_len}: {name}"


def test_two_sessions_and_one_options_object(operators):
    rng = np.random.default_rng(4)
    node = Scan(1, 3, 8)
    inputs = full_inputs(rng, node, "f32", [2], [3])
    first, second = (make_session(operators.library, build_model(node, "f32")) for _ in range(2))
    results = [session.run(None, inputs) for session in (first, second, first)]
    del first
    results.append(second.run(None, inputs))
    for result in results[1:]:
        assert [a.tobytes() for a in result] == [a.tobytes() for a in results[0]]


@pytest.mark.parametrize("config", [{}, {"session__disable_aot_function_inlining": "1"}])
def test_the_kernel_wins_over_a_function_of_its_name(operators, config):
    """The function returns garbage: zeros times the inputs."""
    node = Scan(1, 3, 8)
    names, made = list(node.inputs("f32")), list(node.outputs("f32"))
    body = [helper.make_node("Sub", [name, name], [out]) for name, out in zip(["key", "value", "state_key", "state_value"], made)]
    function = helper.make_function(
        DOMAIN, node.op, names, made, body, [helper.make_opsetid("", 18)], ["plugin_namespace", "plugin_version"]
    )
    model = build_model(node, "f32", ModelOptions(functions=[function]))
    inputs = full_inputs(np.random.default_rng(8), node, "f32", [2], [3])
    found = make_session(operators.library, model, **config).run(None, inputs)
    plain = make_session(operators.library, build_model(node, "f32")).run(None, inputs)
    assert np.abs(plain[0]).max() > 0.1
    assert [a.tobytes() for a in found] == [a.tobytes() for a in plain]


def test_many_threads_share_a_session(operators):
    """8 threads x 1000 runs (100 on the emulator), each with inputs of its own, and never another's
    result."""
    runs = 100 if operators.cuda else 1000
    rng = np.random.default_rng(6)
    node = random_attention(rng, seq_len=3, head_dim=16)
    session = make_session(operators.library, build_model(node, "f32"), threads=2)
    wrong, ran = [], []

    def work(seed):
        own = np.random.default_rng(seed)
        inputs = full_inputs(own, node, "f32", past=[seed, 20, 0], seq=[3, 1, 2])
        expected = b"".join(a.tobytes() for a in session.run(None, inputs))
        outputs = {name: garbage(*spec) for name, spec in node.outputs("f32").items()}
        binding = bind(session, inputs, outputs)
        for run in range(runs):
            session.run_with_iobinding(binding)
            if b"".join(a.tobytes() for a in outputs.values()) != expected:
                wrong.append((seed, run))
        ran.append(run + 1)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and ran == [runs] * 8
