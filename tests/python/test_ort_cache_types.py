"""The attention with every type of cache beside every type of activations, in stock onnxruntime."""

import re
from dataclasses import replace

import numpy as np
import pytest

from conftest import ROOT
from plugin_driver import Replay, make_session, make_sessions, random_plan
from plugin_models import DTYPES, Attention, Pattern, attention_reference, build_model, numpy_type, rotate

TYPES = list(DTYPES)
PAIRS = [(t, c) for t in TYPES for c in TYPES]
SEQ_LENS = [1, 5, 16]
LENGTHS = [50, 1, 37]
# Heads with every kind of row; the first keeps every position in its row.
PATTERNS = [Pattern(1, 0, 0), Pattern(4, 6, 2), Pattern(-1, 9, 1), Pattern(3, 0, 0)]


def constant(name):
    source = (ROOT / "graphs" / "src" / "tolerance.rs").read_text()
    return float(re.search(rf"const {name}: f64 = ([0-9.e+-]+);", source)[1])


def nodes_of(cache, head_dim=16):
    node = Attention(len(LENGTHS), 1, head_dim, 50, PATTERNS, cache=cache)
    return {seq_len: replace(node, seq_len=seq_len) for seq_len in SEQ_LENS}


def sequences_of(rng, node, t):
    width = node.heads * node.head_dim
    return {name: [(2 * rng.standard_normal((n, width))).astype(numpy_type(t)) for n in LENGTHS] for name in node.chunks}


def rounding(name):
    return lambda x: x.astype(numpy_type(name)).astype(np.float64)


@pytest.mark.parametrize("t, c", PAIRS)
@pytest.mark.parametrize("head_dim", [6, 16, 64])
def test_attention_is_the_definition(ort_library, t, c, head_dim):
    rng = np.random.default_rng(head_dim)
    nodes = nodes_of(c, head_dim)
    node = nodes[1]
    sequences = sequences_of(rng, node, t)
    replay = Replay(nodes, t, make_sessions(ort_library, nodes, t), in_place=False)
    output = replay.feed(sequences, random_plan(rng, SEQ_LENS, LENGTHS))["output"]
    for slot, length in enumerate(LENGTHS):
        query, key, value = (sequences[name][slot].astype(np.float64) for name in node.chunks)
        exact = attention_reference(node, query, key, value)
        naive = attention_reference(node, query, key, rounding(c)(value), round_key=rounding(c))
        naive_error = np.abs(rounding(t)(naive) - exact).max()
        f32_limit = constant("F32_LOGIT") * np.abs(exact).max()
        limit = max(constant("NAIVE_ROUNDING_FACTOR") * naive_error, f32_limit)
        error = np.abs(output[slot].astype(np.float64) - exact).max()
        assert error <= limit, f"slot {slot}: error {error:.3g}, limit {limit:.3g}"
        # Row p of the dense head holds position p: values rounded once, keys once after rotation.
        dim = node.head_dim
        values = value[:, :dim].astype(numpy_type(c))
        assert replay.state["past_value"][slot, :length].tobytes() == values.tobytes()
        cos, sin = (node.tables()[name][:length].astype(np.float64) for name in ("cos", "sin"))
        keys = rotate(key[:, :dim], cos, sin)
        found = replay.state["past_key"][slot, :length].astype(np.float64)
        roundoff = {"f32": 2**-22, "f16": 2**-11, "bf16": 2**-8}[c]
        assert (np.abs(found - keys) <= 1.01 * roundoff * np.abs(keys) + 1e-6).all()


@pytest.mark.parametrize("t, c", PAIRS)
def test_in_place_is_beside_and_no_chunking_changes_the_cache(ort_library, t, c):
    rng = np.random.default_rng(7)
    nodes = nodes_of(c)
    sequences = sequences_of(rng, nodes[1], t)
    sessions = make_sessions(ort_library, nodes, t, threads=2)
    states = []
    for _ in range(3):
        plan = random_plan(rng, SEQ_LENS, LENGTHS)
        runs = []
        for in_place in (False, True):
            replay = Replay(nodes, t, sessions, in_place)
            output = replay.feed(sequences, plan)["output"]
            runs.append([array.tobytes() for array in [*output, *replay.state.values()]])
        assert runs[0] == runs[1]
        states.append(runs[0][len(LENGTHS) :])
    assert states[0] == states[1] == states[2]


@pytest.mark.parametrize("t, c", [pair for pair in PAIRS if pair[0] != pair[1]])
def test_operators_for_cuda_refuse_another_cache(emulated_library, t, c):
    with pytest.raises(Exception) as error:
        make_session(emulated_library, build_model(nodes_of(c)[1], t))
    expected = [
        'node "the_node" (ai.ratplus.DilatedAttention): past_key, past_value: on a GPU expected '
        f"{t}, the type of query, found {c}",
        f"--cache-dtype {t}",
    ]
    for text in expected:
        assert text in str(error.value)
