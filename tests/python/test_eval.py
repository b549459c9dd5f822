"""`ratplus eval` against a model written in numpy, windows and all."""

import json
import math
import re

import numpy as np
import pytest
from conftest import golden_case
from golden_maker import forward, make
from safetensors.numpy import load_file, save_file

PATTERN = {"dilation": 4, "local_window": 3, "initial": 2}
SIZES = {
    "model_type": "ratplus",
    "vocab_size": 61,
    "d_model": 32,
    "num_layers": 2,
    "d_head": 8,
    "d_ffn": 48,
    "rope_base": 10000.0,
    "norm_eps": 1e-6,
    "recurrence": True,
    "patterns": [PATTERN, PATTERN],
}
TOKENS = np.random.default_rng(5).integers(0, SIZES["vocab_size"], 130)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A random model, a tokenizer of one word a token, and a text of TOKENS."""
    folder = tmp_path_factory.mktemp("eval")
    make(folder, SIZES, seed=1, batch=2, length=40)
    words = [f"w{index}" for index in range(SIZES["vocab_size"])]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: at for at, word in enumerate(words)}, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "text.txt").write_text(" ".join(words[token] for token in TOKENS))
    return folder


@pytest.fixture(scope="module")
def packages(made, ratplus):
    """By logits mode: one slot and all logits, three slots and the last token's."""
    found = {}
    for logits, batch, lengths in [("all", 1, "16,64"), ("last", 3, "16")]:
        found[logits] = made / logits
        flags = ["--config", made / "config.json", "--tokenizer", made / "tokenizer.json", "--max-seq-len", 64]
        flags += ["--logits", logits, "--batch", batch, "--prefill-lengths", lengths]
        ratplus("export", made / "model.safetensors", "-o", found[logits], *flags)
    return found


def expected(folder, window, stride):
    """(tokens, nats a token, share that is the most likely): each window a sequence of its own."""
    weights = load_file(folder / "model.safetensors")
    total, count, correct, scored, start = 0.0, 0, 0, 0, 0
    while True:
        end = min(start + window, len(TOKENS))
        logits, _ = forward(SIZES, weights, TOKENS[None, start:end])
        for target in range(max(scored, start + 1), end):
            row = logits[0, target - start - 1]
            total += np.log(np.exp(row - row.max()).sum()) + row.max() - row[TOKENS[target]]
            correct += row.argmax() == TOKENS[target]
            count += 1
        scored = end
        if end == len(TOKENS):
            return count, total / count, correct / count
        start += stride


@pytest.mark.parametrize("logits", ["all", "last"])
@pytest.mark.parametrize("window, stride", [(64, None), (64, 32), (50, 7), (2, None), (17, 16)])
def test_scores_are_those_of_the_literal_model(ratplus, made, packages, logits, window, stride):
    flags = ["--text", made / "text.txt", "--window", window, "--json", "--backend", "ort-cpu,tract"]
    flags += [] if stride is None else ["--stride", stride]
    rows = json.loads(ratplus("eval", packages[logits], *flags).stdout)
    tokens, nll, accuracy = expected(made, window, stride or window - 1)
    assert [row["backend"] for row in rows] == ["ort-cpu", "tract"]
    text = (made / "text.txt").read_bytes()
    for row in rows:
        assert row["tokens"] == tokens == len(TOKENS) - 1
        assert row["mean_nll"] == pytest.approx(nll, rel=1e-5)
        assert row["perplexity"] == pytest.approx(math.exp(nll), rel=1e-4)
        assert row["accuracy"] == pytest.approx(accuracy, abs=1e-12)
        predicted = len(text) - len(f"w{TOKENS[0]}")
        assert row["bits_per_byte"] == pytest.approx(nll * tokens / math.log(2) / predicted, rel=1e-5)
        assert any("kernel" in engine or "reference" in engine for engine in row["implementations"])


def test_the_golden_logits_own_score_comes_first(ratplus, tmp_path):
    """A trained model: what it costs to leave its precision, beside what f64 logits score."""
    case = golden_case("kjv_d16w64i4")
    found = []
    for dtype in ("f32", "bf16"):
        package = tmp_path / dtype
        found.append(package)
        flags = ["--config", case.directory / "config.json", "--dtype", dtype, "--max-seq-len", 512]
        ratplus("export", case.checkpoint, "-o", package, *flags)
    golden = case.directory / "golden.safetensors"
    rows = json.loads(ratplus("eval", *found, "--golden", golden, "--json").stdout)
    assert [row["package"] for row in rows] == [None, *map(str, found)]
    reference = case.golden()
    targets = [position + 1 for position in reference["positions"] if position + 1 < reference["tokens"].shape[1]]
    logits = reference["logits"][0, : len(targets)].astype(np.float64)
    likely = logits[np.arange(len(targets)), reference["tokens"][0, targets]]
    nll = np.mean(np.log(np.exp(logits).sum(-1)) - likely)
    assert rows[0]["tokens"] == len(targets) and rows[0]["mean_nll"] == pytest.approx(nll, rel=1e-9)
    assert rows[1]["mean_nll"] == pytest.approx(nll, rel=1e-5)
    assert rows[2]["mean_nll"] == pytest.approx(nll, rel=0.02) and rows[2]["mean_nll"] != rows[1]["mean_nll"]
    table = ratplus("eval", *found, "--golden", golden).stdout
    assert "golden logits" in table and "+0.000 %" in table


def test_what_does_not_fit_is_refused(ratplus, made, packages, tmp_path):
    short, strange = tmp_path / "short.txt", tmp_path / "strange.txt"
    short.write_text("w1")
    strange.write_bytes(b"w1 w2 \xff w3")
    bare = tmp_path / "bare"
    ratplus("export", made / "model.safetensors", "-o", bare, "--config", made / "config.json", "--max-seq-len", 32)
    other = golden_case("kjv_d16w64i4").directory / "golden.safetensors"
    text = made / "text.txt"
    for words, parts in [
        ([packages["all"], "--text", text, "--window", 65], ["--window: expected 2 to 64", "found 65"]),
        ([packages["all"], "--text", text, "--window", 1], ["--window: expected 2 to 64", "found 1"]),
        ([packages["all"], "--text", text, "--stride", 0], ["--stride: expected 1 to 63", "found 0"]),
        ([packages["all"], "--text", text, "--stride", 64], ["--stride: expected 1 to 63", "found 64"]),
        ([packages["all"], "--text", short], ["short.txt", "at least 2 tokens, found 1"]),
        ([packages["all"], "--text", strange], ["strange.txt", "expected UTF-8", "byte 6"]),
        ([packages["all"], "--text", tmp_path / "none.txt"], ["none.txt"]),
        ([bare, "--text", text], ["bare", "no tokenizer", "--tokenizer"]),
        ([packages["all"], "--golden", other], ["golden logits of 61 tokens", "found 2048"]),
        ([packages["all"], "--text", text, "--golden", other], ["cannot be used with"]),
        ([packages["all"], "--text", text, "--backend", "gpu"], ["gpu"]),
        ([packages["all"]], ["--text"]),
    ]:
        done = ratplus("eval", *words, code=2)
        assert done.stdout == "" and all(part in done.stderr for part in parts), done.stderr


def test_logits_that_are_no_numbers_are_a_bad_result(ratplus, made, packages, tmp_path):
    weights = load_file(made / "model.safetensors")
    weights["head.lm_head.weight"][3] = np.inf
    save_file(weights, tmp_path / "model.safetensors")
    flags = ["--config", made / "config.json", "--tokenizer", made / "tokenizer.json", "--max-seq-len", 64]
    ratplus("export", tmp_path / "model.safetensors", "-o", tmp_path / "bad", "--allow-nonfinite", *flags)
    done = ratplus("eval", tmp_path / "bad", "--text", made / "text.txt", code=1)
    assert "text 0, token 1: non-finite logits at step 1, slot 0: token 3's is " in done.stderr
    done = ratplus("generate", tmp_path / "bad", "--prompt", "In the beginning", code=1)
    (step,) = re.findall(r"non-finite logits at step (\d+), slot 0: token 3's is ", done.stderr)
    assert int(step) > 1 and "`ratplus verify` names the tensor" in done.stderr
