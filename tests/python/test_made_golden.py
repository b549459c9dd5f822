"""Golden folders made here, of shapes that no adopted folder has, through export and verify."""

import json
import subprocess

import ml_dtypes
import numpy as np
import pytest
from golden_maker import forward, make
from conftest import golden_case
from safetensors.numpy import load_file


def pattern(dilation, local_window=0, initial=0):
    return {"dilation": dilation, "local_window": local_window, "initial": initial}


def config(patterns, d_model=32, d_head=8, d_ffn=48, vocab_size=61, recurrence=True, rope_base=10000.0, **more):
    return {
        "model_type": "ratplus",
        "vocab_size": vocab_size,
        "d_model": d_model,
        "num_layers": len(patterns),
        "d_head": d_head,
        "d_ffn": d_ffn,
        "rope_base": rope_base,
        "norm_eps": 1e-6,
        "recurrence": recurrence,
        "patterns": patterns,
        **more,
    }


def blocks(size, top_k, score="bounds", dilation=-1, **more):
    return {**pattern(dilation, **more), "block_size": size, "top_k": top_k, "score": score}


EIGHT_HEADS = [
    pattern(1),
    pattern(2, 1, 7),
    pattern(3, 0, 0),
    pattern(5, 17, 1),
    pattern(-1, 4, 30),
    pattern(-1, 0, 0),
    pattern(64, 3, 2),
    pattern(7, 7, 7),
]

# name: config, batch, tokens, chunks, options of make, flags of export
MADE = {
    "eight_heads": (config([EIGHT_HEADS, EIGHT_HEADS[::-1]], d_model=64), 3, 131, "1,5,64,131", {}, []),
    "long_3000": (config([pattern(16, 20, 4), pattern(-1, 100, 4)]), 1, 3000, "64,700", {}, []),
    "saturated_gates": (config([pattern(4, 3, 2)] * 2), 2, 90, "1,16,90", {"gate_scale": 60.0}, []),
    "initial_longer_than_window": (config([pattern(6, 2, 40), pattern(9, 0, 11)]), 2, 100, "1,9,100", {}, []),
    "only_itself": (config([pattern(-1), pattern(-1)]), 2, 40, "1,8,40", {}, []),
    "window_longer_than_text": (config([pattern(-1, 500, 500)]), 1, 33, "1,33", {}, []),
    "one_token": (config([pattern(4, 1, 1)] * 2), 2, 1, "1", {}, []),
    "head_dim_2": (config([pattern(2, 2, 1)] * 2, d_model=6, d_head=2), 1, 50, "1,13,50", {}, []),
    "head_dim_80": (config([pattern(8, 5, 3)], d_model=160, d_head=80), 1, 70, "1,32,70", {}, []),
    "other_base": (config([pattern(3, 3, 3)] * 2, rope_base=500000.0), 1, 60, "1,60", {}, []),
    "fastgelu": (config([pattern(4, 3, 2)] * 2, activation="fastgelu"), 2, 60, "1,16", {}, []),
    "silu_bf16": (config([pattern(4, 3, 2)] * 2, activation="silu"), 2, 60, "1,16", {}, ["--dtype", "bf16"]),
    "relu": (config([pattern(4, 3, 2)] * 2, activation="relu"), 2, 60, "1,16", {}, []),
    "relusquared_f16": (config([pattern(4, 3, 2)] * 2, activation="relusquared"), 2, 60, "16", {}, ["--dtype", "f16"]),
    "no_rope": (config([EIGHT_HEADS], d_model=64, rope=False), 2, 90, "1,16", {}, []),
    "no_rope_bf16": (config([pattern(4, 3, 2)], rope=False), 2, 60, "16", {}, ["--dtype", "bf16"]),
    "tied_bf16": (config([pattern(4, 3, 2)], tie_embedding=True), 2, 60, "16", {}, ["--dtype", "bf16"]),
    "tied_int4": (config([pattern(4, 3, 2)], tie_embedding=True), 2, 60, "16", {}, ["--quantize", "int4"]),
    "no_recurrence": (config([EIGHT_HEADS], d_model=64, recurrence=False), 2, 75, "1,16,75", {}, []),
    "bf16_weights": (config([pattern(4, 8, 2)] * 2), 2, 80, "1,16,80", {"dtype": ml_dtypes.bfloat16}, []),
    "f16_weights": (config([pattern(4, 8, 2)] * 2), 2, 80, "1,16,80", {"dtype": np.float16}, []),
    "f16_package": (config([EIGHT_HEADS], d_model=64), 2, 90, "1,16,90", {}, ["--dtype", "f16"]),
    "grouped": (config([EIGHT_HEADS[:2], pattern(5, 3, 2)], d_model=64, num_kv_heads=2), 2, 90, "1,16,90", {}, []),
    "grouped_bf16": (config([EIGHT_HEADS[:2]], d_model=64, num_kv_heads=2), 2, 90, "1,16", {}, ["--dtype", "bf16"]),
    "one_kv_head": (config([pattern(1)] * 2, num_kv_heads=1, recurrence=False), 2, 70, "1,16,70", {}, []),
    "blocks_mixed": (
        config([blocks(7, 4), blocks(16, 2, "mean"), pattern(4, 3, 2), EIGHT_HEADS], d_model=64), 2, 131, "1,5,64,131", {}, [],
    ),
    "blocks_grouped": (config([blocks(8, 3), blocks(5, 6, "mean")], d_model=64, num_kv_heads=2), 3, 75, "1,16,75", {}, []),
    "blocks_beside": (config([blocks(8, 2, "mean", 3, initial=5), blocks(9, 3, local_window=20)]), 2, 100, "1,9,100", {}, []),
    "blocks_alone": (config([blocks(16, 1), blocks(3, 1, "mean")]), 2, 50, "1,13,50", {}, []),
    "blocks_longer_than_text": (config([blocks(64, 2), blocks(40, 3, "mean")]), 1, 33, "1,33", {}, []),
    "blocks_of_one": (config([blocks(1, 9), blocks(1, 2, "mean")]), 1, 40, "1,8,40", {}, []),
    "blocks_all": (config([blocks(8, 9), blocks(8, 8, "mean")]), 1, 64, "1,16,64", {}, []),
    "blocks_bf16": (config([blocks(8, 3), blocks(8, 3, "mean")], d_model=64, num_kv_heads=4), 2, 90, "1,16", {}, ["--dtype", "bf16"]),
    "blocks_f16": (config([blocks(8, 3), pattern(16)], d_model=64), 2, 90, "1,16", {}, ["--dtype", "f16"]),
    "blocks_int8": (config([blocks(8, 3), pattern(16)], d_model=64), 2, 60, "16", {}, ["--quantize", "int8"]),
    "bf16_package": (config([EIGHT_HEADS], d_model=64), 2, 90, "1,16,90", {}, ["--dtype", "bf16"]),
}


def lowerings(name):
    """Standard operators have no products with integers."""
    return ["function", "none"] if "--quantize" in MADE[name][-1] else ["function", "inline", "none"]


@pytest.mark.parametrize("name, fallback", [(name, fallback) for name in MADE for fallback in lowerings(name)])
def test_made_golden_passes(ratplus_bin, tmp_path, name, fallback):
    made, batch, length, chunks, options, flags = MADE[name]
    if name == "long_3000" and fallback == "none":
        chunks = "64"
    make(tmp_path, made, seed=len(name), batch=batch, length=length, **options)
    package = tmp_path / "package"
    lengths = [chunk for chunk in chunks.split(",") if chunk != "1"] or ["1"]
    command = [ratplus_bin, "export", tmp_path / "model.safetensors", "-o", package]
    command += ["--config", tmp_path / "config.json", "--logits", "all", "--batch", str(batch)]
    command += ["--max-seq-len", str(length), "--prefill-lengths", ",".join(lengths), "--fallback", fallback]
    subprocess.run([*command, *flags], check=True, capture_output=True, text=True)
    backends = "tract,ort-cpu" if fallback == "none" else "tract,ort-cpu,ort-fallback"
    command = [ratplus_bin, "verify", package, "--golden", tmp_path / "golden.safetensors", "--json"]
    result = subprocess.run([*command, "--chunks", chunks, "--backend", backends], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["passed"] and {row["backend"] for row in report["rows"]} == set(backends.split(","))


@pytest.mark.parametrize("name", ["head_hybrid", "tied", "gqa_head_hybrid", "topk_bounds", "topk_mean", "topk_dilated"])
def test_the_maker_agrees_with_an_adopted_golden_folder(name):
    """Two independent f64 models: ours in numpy, the adopted folders' in PyTorch."""
    case = golden_case(name)
    made = json.loads((case.directory / "config.json").read_text())
    golden = case.golden()
    logits, taps = forward(made, load_file(case.checkpoint), golden["tokens"])
    found = {**taps, "logits": logits[:, golden["positions"]]}
    for name, values in found.items():
        assert np.abs(values - golden[name]).max() < 1e-6 * np.abs(golden[name]).max(), name
