"""Stock onnxruntime runs an exported package by itself, with and without the custom-op library."""

import json

import numpy as np
import onnxruntime as ort
import pytest
from conftest import CASES, golden_case
from ort_driver import Package, chunked, padded, to_bytes

# (lowering, with the custom-op library): what can run.
ROUTES = [("function", False), ("function", True), ("inline", False), ("none", True)]
ROUTE_IDS = ["function-body", "function-kernel", "inline", "none-kernel"]
KERNELS = [("function", True), ("none", True)]
CUSTOM_OPS = {"RecurrenceScan", "DilatedAttention"}


@pytest.fixture(scope="session")
def package(export_case, ort_library):
    """Opens a golden case's package by (lowering, with library)."""

    def open_package(case, route, profile=None, **flags) -> Package:
        fallback, with_library = route
        directory = export_case(case, fallback=fallback, **flags)
        return Package(directory, ort_library if with_library else None, profile)

    return open_package


def relative_error(found, golden) -> float:
    """Largest difference relative to the largest golden logit."""
    return float(np.abs(found - golden).max() / np.abs(golden).max())


def check_golden(logits, golden, tolerance):
    found = logits[:, golden["positions"]]
    assert np.isfinite(found).all()
    assert relative_error(found, golden["logits"]) <= tolerance


def same_bits(a, b) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("route", ROUTES, ids=ROUTE_IDS)
@pytest.mark.parametrize("case", CASES)
def test_prefill_and_decode_match_golden(package, f32_tolerance, case, route):
    golden = golden_case(case).golden()
    tokens = golden["tokens"]
    length = tokens.shape[1]
    engine = package(case, route)
    mixed = [(64, 64), *chunked(length - 64 - 20, (7, 1)), *chunked(20, (1,))]
    results = []
    for plan in (chunked(length), padded(length, 64), padded(length, 7), mixed, chunked(length, (1,))):
        engine.reset()
        logits = engine.run(tokens, plan)
        assert np.isfinite(logits).all()
        check_golden(logits, golden, f32_tolerance)
        results.append(logits)
    for other in results[1:]:
        assert relative_error(other, results[0]) <= f32_tolerance


@pytest.mark.parametrize("more", [("--local-window", "19"), ("--dilation", "15"), ("--initial", "3")], ids=lambda x: x[0])
@pytest.mark.parametrize("route", ROUTES, ids=ROUTE_IDS)
def test_another_pattern_does_not_match_golden(package, f32_tolerance, route, more):
    # What the comparison above is able to see: one row too few, or the wrong ones.
    golden = golden_case("d16_w20_i4").golden()
    logits = package("d16_w20_i4", route, more=more).run(golden["tokens"], chunked(150))
    assert relative_error(logits[:, golden["positions"]], golden["logits"]) > 10 * f32_tolerance


@pytest.mark.parametrize("case", CASES)
def test_kernel_and_body_agree(package, f32_tolerance, case):
    tokens = golden_case(case).golden()["tokens"]
    plan = chunked(tokens.shape[1])
    kernel, body, inline, bare = (
        package(case, route).run(tokens, plan)
        for route in (("function", True), ("function", False), ("inline", False), ("none", True))
    )
    assert relative_error(body, kernel) <= f32_tolerance
    assert relative_error(inline, kernel) <= f32_tolerance
    # One kernel, one graph around it: the lowering cannot change a bit.
    assert same_bits(bare, kernel)


@pytest.mark.parametrize("route", ROUTES, ids=ROUTE_IDS)
def test_library_decides_what_runs(package, tmp_path, route):
    engine = package("head_hybrid", route, profile=tmp_path)
    engine.run(golden_case("head_hybrid").golden()["tokens"], [(64, 64), (7, 7), (1, 1)])
    layers = engine.manifest["model"]["num_layers"]
    executed = engine.executed_ops()
    assert set(executed) == {64, 7, 1}
    for seq_len, counts in executed.items():
        assert sum(counts.values()) > 0
        nodes = layers * engine.batch // engine.engines[seq_len]["batch"]
        custom = {op: counts.get(op, 0) for op in CUSTOM_OPS}
        assert custom == dict.fromkeys(CUSTOM_OPS, nodes if route[1] else 0)


def test_bare_nodes_need_the_library(export_case):
    directory = export_case("dense", fallback="none")
    with pytest.raises(Exception, match="RecurrenceScan|DilatedAttention|Linear"):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        ort.InferenceSession(directory / "decode.onnx", options, ["CPUExecutionProvider"])


@pytest.mark.parametrize("route", KERNELS, ids=["function", "none"])
@pytest.mark.parametrize("case", ["d16_w20_i4", "head_hybrid", "attention_only", "kjv_d16w64i4"])
def test_shared_buffers_match_separate_ones(package, f32_tolerance, case, route):
    golden = golden_case(case).golden()
    tokens = golden["tokens"]
    plan = [(64, 64), *padded(tokens.shape[1] - 64 - 30, 7), *chunked(30, (1,))]
    separate = package(case, route)
    expected = separate.run(tokens, plan)
    check_golden(expected, golden, f32_tolerance)
    shared = package(case, route)
    found = shared.run(tokens, plan, shared.step_in_place)
    assert same_bits(found, expected)
    for name, state in separate.states.items():
        assert np.array_equal(to_bytes(shared.states[name]), to_bytes(state)), name


FOR_CUDA = [(case, dtype) for case in ("head_hybrid", "d16_w20_i4", "head_dim_128", "gqa_head_hybrid") for dtype in ("f32", "f16", "bf16")]
# What bf16 chooses is not what the golden file's f64 does: `ratplus verify` is given the choice.
FOR_CUDA += [(case, dtype) for case in ("topk_bounds", "topk_dilated") for dtype in ("f32", "f16")]


@pytest.mark.parametrize("case, dtype", FOR_CUDA)
def test_operators_for_cuda_match_golden(export_case, emulated_library, f32_tolerance, case, dtype):
    golden = golden_case(case).golden()
    tokens = golden["tokens"]
    engine = Package(export_case(case, dtype=dtype), emulated_library)
    length = tokens.shape[1]
    plans = [[(64, 64), *padded(length - 64 - 10, 7), *chunked(10, (1,))], padded(length, 64)]
    limit = {"f32": f32_tolerance, "f16": 8 * 2**-11, "bf16": 8 * 2**-8}[dtype]
    for plan, step in zip(plans, [engine.step, engine.step_in_place]):
        engine.reset()
        logits = engine.run(tokens, plan, step)
        assert relative_error(logits[:, golden["positions"]], golden["logits"]) <= limit


@pytest.mark.parametrize("route", ROUTES, ids=ROUTE_IDS)
@pytest.mark.parametrize("case", ["head_hybrid", "streaming"])
def test_sequences_have_their_own_lengths(package, f32_tolerance, case, route):
    golden = golden_case(case).golden()
    tokens = golden["tokens"]
    ragged = [(64, (64, 0)), (64, (0, 51)), (7, (3, 7)), (1, (1, 0)), (64, (64, 64)), (7, (5, 1)), (7, (0, 6))]
    engine = package(case, route)
    logits = engine.run(tokens, ragged)
    assert engine.past_length.tolist() == [137, 129]
    scale = np.abs(golden["logits"]).max()
    for slot, length in enumerate(engine.past_length):
        difference = np.abs(logits[slot, :length] - golden["logits"][slot, :length]).max()
        assert difference <= f32_tolerance * scale


@pytest.mark.parametrize("route", ROUTES, ids=ROUTE_IDS)
def test_idle_slots_keep_their_state(package, route):
    tokens = golden_case("head_hybrid").golden()["tokens"]
    engine = package("head_hybrid", route)
    engine.run(tokens, [(64, (64, 40))])
    before = {name: to_bytes(state) for name, state in engine.states.items()}
    engine.run(tokens, [(7, (7, 0)), (1, (1, 0))])
    after = {name: to_bytes(state) for name, state in engine.states.items()}
    for name in before:
        assert np.array_equal(after[name][1], before[name][1]), name
        assert not np.array_equal(after[name][0], before[name][0]), name


@pytest.mark.parametrize("route", ROUTES, ids=ROUTE_IDS)
def test_slots_do_not_see_each_other(package, route):
    tokens = golden_case("head_hybrid").golden()["tokens"]
    plan = chunked(150)
    alone = package("head_hybrid", route)
    first = alone.run(tokens, [(seq_len, (count, 0)) for seq_len, count in plan])
    full = package("head_hybrid", route)
    second = full.run(tokens, plan)
    assert same_bits(first[0], second[0])


@pytest.mark.parametrize("route", ROUTES, ids=ROUTE_IDS)
def test_a_slot_starts_over_without_clearing(package, route):
    tokens = golden_case("head_hybrid").golden()["tokens"]
    engine = package("head_hybrid", route)
    plan = [(64, 64), (7, 5), (1, 1)]
    fresh = engine.run(tokens, plan)
    engine.run(tokens, [(64, 64)])
    engine.past_length[:] = 0
    again = engine.run(tokens, plan)
    assert np.array_equal(fresh[:, :70], again[:, :70])


@pytest.mark.parametrize("route", ROUTES, ids=ROUTE_IDS)
def test_last_logits_are_those_of_the_last_valid_token(package, f32_tolerance, route):
    golden = golden_case("d16_w20_i4").golden()
    tokens = golden["tokens"]
    engine = package("d16_w20_i4", route, logits="last")
    scale = np.abs(golden["logits"]).max()
    for seq_len, counts in [(64, (64, 10)), (7, (3, 7)), (1, (1, 1)), (64, (1, 64))]:
        logits = engine.step(seq_len, tokens, counts)
        assert logits.shape == (2, 97)
        expected = np.stack([golden["logits"][b, engine.past_length[b] - 1] for b in range(2)])
        assert np.abs(logits - expected).max() <= f32_tolerance * scale


@pytest.mark.parametrize("route", ROUTES, ids=ROUTE_IDS)
@pytest.mark.parametrize("dtype, cache", [("f32", "bf16"), ("f32", "f16"), ("bf16", "f32"), ("f16", "bf16")])
def test_caches_of_another_type_run(package, route, dtype, cache):
    golden = golden_case("head_hybrid").golden()
    length = golden["tokens"].shape[1]
    engine = package("head_hybrid", route, dtype=dtype, more=("--cache-dtype", cache))
    assert engine.manifest["dtype"] == dtype and engine.manifest["cache_dtype"] == cache
    roundoff = 2**-8 if "bf16" in (dtype, cache) else 2**-11
    for plan in (chunked(length), padded(length, 7)):
        engine.reset()
        logits = engine.run(golden["tokens"], plan)
        assert relative_error(logits[:, golden["positions"]], golden["logits"]) <= 8 * roundoff


@pytest.mark.parametrize("with_library", [False, True], ids=["body", "kernel"])
@pytest.mark.parametrize("dtype, roundoff", [("f16", 2**-11), ("bf16", 2**-8)])
@pytest.mark.parametrize("case", ["head_hybrid", "kjv_d16w64i4"])
def test_half_types_run(package, case, dtype, roundoff, with_library):
    # A sanity bound of a few roundings; the strict one, twice the error of naive rounding, needs
    # the reference and is `ratplus verify`'s.
    golden = golden_case(case).golden()
    length = golden["tokens"].shape[1]
    engine = package(case, ("function", with_library), dtype=dtype)
    logits = engine.run(golden["tokens"], chunked(length))
    assert relative_error(logits[:, golden["positions"]], golden["logits"]) <= 8 * roundoff


@pytest.mark.parametrize("case", ["topk_bounds", "topk_mean"])
def test_chosen_blocks_cost_their_scores_and_summaries(ratplus, export_case, case):
    found = json.loads(ratplus("inspect", export_case(case), "--json").stdout)
    config = json.loads((golden_case(case).directory / "config.json").read_text())
    (costs,) = [costs for costs in found["token_costs"] if costs["context"] == found["manifest"]["max_seq_len"]]
    width, query = config["d_model"], costs["context"] - 1
    flops, summaries = 0, 0
    for pattern in config["patterns"]:
        seen = query + 1
        if "block_size" in pattern:
            size, parts = pattern["block_size"], {"bounds": 2, "mean": 1}[pattern["score"]]
            own = query // size
            seen = min(pattern["top_k"] - 1, own) * size + query % size + 1
            flops += 2 * width * parts * own
            summaries += 4 * width * parts * (own + 1)
        flops += 4 * width * seen
    dense = 2 * 4 * width * costs["context"] * len(config["patterns"])
    assert (costs["attention_flops"], costs["cache_bytes"]) == (flops, dense + summaries)
    state = found["state_bytes_per_sequence"]
    assert (state["cache"], state["summaries"], costs["dense_cache_bytes"]) == (dense, summaries, dense)
