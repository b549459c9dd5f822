"""Where floating point ends, in stock onnxruntime: gates that saturate, rows without keys, scores at the
ends of what a number can be. The operators of the library, those for CUDA on the emulator, and the
functions that models carry, against f64."""

import numpy as np
import pytest
from hosts import HOSTS
from operators.dilated_attention import DilatedAttention, Pattern
from operators.recurrence_scan import RecurrenceScan
from plugin_driver import garbage_outputs, run_bound
from plugin_models import DTYPES, numpy_type

# Both sides of where f32's sigmoid becomes 1 (16.6), where ONNX Runtime's does (18), where its complement
# leaves the normal numbers (87.3) and the subnormal ones (103.97).
MAGNITUDES = [0, 1e-40, 1e-3, 0.5, 1, 4, 12, 16.5, 16.7, 17, 17.9, 18, 18.1, 20, 40, 80, 87.3, 88, 88.8, 89,
              100, 103, 103.9, 104, 105, 1e3, 1e4, np.inf]  # fmt: skip
OPERANDS = [(0, 1), (1, 0), (1, -1), (-1, 1), (2, 2), (1e-40, 1), (6e4, -6e4), (1e30, -1e30)]
GARBAGE = [np.nan, np.inf, -np.inf, 3e38, -1e-40]
# Of one gate, the products and their sum; composed gates have that of the largest operand so far.
STEP = 3e-7
# unit, smallest positive number
ROUNDING = {"f32": (2.0**-24, 1.4e-45), "f16": (2.0**-11, 5.97e-8), "bf16": (2.0**-8, 9.2e-41)}


@pytest.fixture(scope="module", params=["ort-cpu", "ort-cuda", "function"])
def host(request):
    """What runs the nodes."""
    return HOSTS[request.param].make(request)


LENGTHS = (9,)


def run(session, node, t, inputs):
    outputs = garbage_outputs(node, t)
    run_bound(session, inputs, outputs)
    return {name: array.astype(np.float64) for name, array in outputs.items()}


def assert_agrees(found, want, tolerance, what):
    """Within the tolerance where the model is finite; elsewhere no number is made of it. How many."""
    finite = np.isfinite(want)
    with np.errstate(invalid="ignore"):
        right = np.where(finite, np.abs(found - want) <= tolerance, ~np.isfinite(found))
    where = np.argwhere(~right)
    assert right.all(), f"{what}: {len(where)} wrong, first {where[0]}: {found[tuple(where[0])]} is not {want[tuple(where[0])]}"
    return found.size


def columns(t):
    """(logit, state, token) of every channel; as many as a multiple of 8."""
    dtype = numpy_type(t)
    with np.errstate(over="ignore"):
        fits = [(h, x) for h, x in OPERANDS if np.isfinite(np.array([h, x]).astype(dtype).astype(np.float64)).all()]
    logits = [sign * z for z in MAGNITUDES for sign in (1, -1)] + [np.nan]
    made = [(z, h, x) for h, x in fits for z in logits]
    made += made[: -len(made) % 8]
    return np.array(made).T


def scan_model(state, tokens, gates):
    """The recurrence in f64 over [L, N], with a tolerance for each number."""
    rows, bounds = [], []
    h, error, largest = state.copy(), np.zeros_like(state), np.zeros_like(state)
    with np.errstate(over="ignore", invalid="ignore"):
        for x, z in zip(tokens, gates):
            keep, take = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
            magnitude = np.maximum(np.abs(h), np.abs(x))
            h = keep * h + take * x
            largest = np.maximum(largest, magnitude)
            error = keep * error + STEP * magnitude
            rows.append(h)
            bounds.append(error + 2 * STEP * largest + 2**-126)
    return np.array(rows), np.array(bounds)


@pytest.mark.parametrize("flush", [False, True], ids=["exact", "flushing"])
@pytest.mark.parametrize("t", list(DTYPES))
def test_gates_saturate_both_ways(host, t, flush):
    unit, smallest = ROUNDING[t]
    dtype = numpy_type(t)
    logit, state, token = columns(t)
    channels = len(logit)
    points = 0
    for seq_len in (1, *LENGTHS):
        node = RecurrenceScan(2, seq_len, channels)
        config = {"session__set_denormal_as_zero": "1"} if flush else {}
        session = host.session(node, t, threads=2, **config)
        valid = seq_len if seq_len == 1 else seq_len - 2
        # Every second token meets its channel's logit, those between the ones of other channels; a gate
        # that is no number ends its channel: it comes once, last.
        gates = np.array([logit if i % 2 == 0 else np.roll(logit, -13 * i) for i in range(seq_len)])
        gates[: valid - 1] = np.nan_to_num(gates[: valid - 1], nan=0.5, posinf=np.inf, neginf=-np.inf)
        gates[valid:] = 1
        signs = np.where(np.arange(seq_len) % 4 < 2, 1, -1)[:, None]
        with np.errstate(over="ignore"):
            chunk = {
                name: np.stack([values.astype(dtype)] * 2)
                for name, values in [("key", signs * token), ("value", -signs * token), ("gate", gates)]
            }
        before = np.stack([state, np.resize(GARBAGE, channels)]).astype(np.float32)
        inputs = chunk | {"state_key": before, "state_value": before.copy()}
        inputs |= {"past_length": np.array([5, 0]), "seq_length": np.array([valid, valid])}
        outputs = run(session, node, t, inputs)
        for slot, start in enumerate([before[0].astype(np.float64), np.zeros(channels)]):
            for name in ("key", "value"):
                tokens = chunk[name][slot, :valid].astype(np.float64)
                want, bound = scan_model(start, tokens, chunk["gate"][slot, :valid].astype(np.float64))
                what = f"{name} of slot {slot}, {seq_len} tokens"
                tolerance = bound + unit * np.abs(want) + smallest
                points += assert_agrees(outputs[f"gated_{name}"][slot, :valid], want, tolerance, what)
                assert (outputs[f"gated_{name}"][slot, valid:] == 0).all(), what
                points += assert_agrees(outputs[f"new_state_{name}"][slot], want[-1], bound[-1], what)
    print(f"{points} points")
    assert points >= 2000


SCORES = [
    [0], [0, 0, 0, 0], [1e-40, -1e-40, 0], [88, -88, 0], [-104, -103, 0], [0, 126, 127, 128, 129],
    [-1e4, -1e4, -1e4], [6e4, 6e4, -6e4, 6e4], [1e30, -1e30, 1e30], [-1e30, -1e30], [-5e37, -5e37],
    [-5e37, 0, -5e37, 5], [-np.inf, 0], [-np.inf, -np.inf, 3, -np.inf, 1],
    [np.inf, 0], [0, np.inf, -np.inf, 1], [np.nan, 0], [1, np.nan, np.inf, 2],
]  # fmt: skip


@pytest.mark.parametrize("t", list(DTYPES))
def test_rows_without_keys_and_scores_without_numbers(host, t):
    """The heads see everything, and themselves alone: D -1, W 0, I 0."""
    unit, _ = ROUNDING[t]
    dtype = numpy_type(t)
    rng = np.random.default_rng(1)
    patterns = [Pattern(1, 0, 0)] * 2 + [Pattern(-1, 0, 0)] * 2
    points = 0
    for seq_len in (1, *LENGTHS):
        node = DilatedAttention(2, seq_len, 16, 40, patterns)
        session = host.session(node, t, threads=2)
        for scores in SCORES:
            past = len(scores) - 1
            with np.errstate(over="ignore"):
                kept = np.array(scores, np.float64).astype(dtype).astype(np.float64)
            if (np.isfinite(kept) != np.isfinite(scores)).any():
                continue
            inputs = {name: np.zeros(shape, numpy_type(kind)) for name, (kind, shape) in node.inputs(t).items()}
            for name in ("value", "past_value"):
                inputs[name] = (2 * rng.standard_normal(inputs[name].shape)).astype(dtype)
            inputs["cos"][:] = 1
            # Channel 0 of each head; scores are divided by 4, by ONNX Runtime after the product.
            inputs["query"][..., :: node.head_dim] = 4
            inputs["key"][..., :: node.head_dim] = kept[-1]
            keys = inputs["past_key"].reshape(2, 2, 40, node.head_dim)
            # Unwritten rows hold anything.
            keys[:], inputs["past_value"].reshape(keys.shape)[:, :, past:] = np.nan, np.nan
            keys[:, :, :past] = 0
            keys[:, :, :past, 0] = kept[:-1]
            inputs |= {"past_length": np.array([past, past]), "seq_length": np.array([seq_len, max(seq_len - 2, 0)])}
            output = run(session, node, t, inputs)["output"].reshape(2, seq_len, 4, node.head_dim)
            values = inputs["value"].astype(np.float64).reshape(output.shape)
            cached = inputs["past_value"].astype(np.float64).reshape(keys.shape)
            for slot, length in enumerate(inputs["seq_length"]):
                # A head that sees itself alone: its value, bit for bit, unless its own score is no number.
                points += assert_agrees(output[slot, :length, 2:], values[slot, :length, 2:], 0, f"{scores}")
                for row in range(length):
                    seen = np.concatenate([kept[:-1], np.full(row + 1, kept[-1])])
                    with np.errstate(invalid="ignore", over="ignore"):
                        weights = np.exp(seen - seen.max())
                        weights /= weights.sum()
                        for head in range(2):
                            mixed = np.concatenate([cached[slot, head, :past], values[slot, : row + 1, head]])
                            want = (weights[:, None] * mixed).sum(0)
                            # Weights round too where they are multiplied in the type.
                            tolerance = 1e-4 + 4 * unit * np.abs(mixed).max()
                            what = f"{scores} of slot {slot}, row {row} of {seq_len}, head {head}"
                            points += assert_agrees(output[slot, row, head], want, tolerance, what)
                assert (output[slot, length:] == 0).all()
    print(f"{points} points")
    assert points >= 2000
