"""Golden folders of any shape, from an f64 numpy model written from the contract alone.

Nothing here is shared with the project's own code: it is the whole-history definition of RAT+ with the
literal mask.
"""

import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def sigmoid(x):
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2)))


ACTIVATIONS = {
    "gelu": gelu,
    "fastgelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x * sigmoid(x),
    "relu": lambda x: np.maximum(x, 0),
    "relusquared": lambda x: np.maximum(x, 0) ** 2,
}


def rope(x, base):
    """Half-split rotary embedding of [B, H, T, dh] at positions 0..T."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[2])[:, None] / base ** (np.arange(half) / half)[None, :]
    low, high = x[..., :half], x[..., half:]
    return np.concatenate([low * np.cos(angle) - high * np.sin(angle), high * np.cos(angle) + low * np.sin(angle)], -1)


def visible(length, pattern):
    query, key = np.arange(length)[:, None], np.arange(length)[None, :]
    dilation, window, initial = pattern["dilation"], pattern["local_window"], pattern["initial"]
    dilated = (key + 1) % dilation == 0 if dilation > 0 else np.zeros_like(key, dtype=bool)
    return (key <= query) & (dilated | (query - key <= window) | (key < initial))


def chosen(q, k, pattern):
    """Which keys [B, T, T] are of a query's own block or of those that it chooses; of one head's rotated rows."""
    size, length = pattern["block_size"], q.shape[1]
    block = np.arange(length) // size
    seen = np.zeros((len(q), length, length), dtype=bool)
    for i in range(length):
        own, rows = block[i], k[:, : block[i] * size].reshape(len(k), block[i], size, k.shape[2])
        query = q[:, i, None]
        if pattern["score"] == "mean":
            scores = (query * rows.mean(axis=2)).sum(-1)
        else:
            scores = np.maximum(query * rows.min(axis=2), query * rows.max(axis=2)).sum(-1)
        best = np.argsort(-scores, axis=-1, kind="stable")[:, : pattern["top_k"] - 1]
        for sequence, blocks in enumerate(best):
            seen[sequence, i] = np.isin(block, [own, *blocks]) & (np.arange(length) <= i)
    return seen


def forward(config, weights, tokens):
    """Logits [B, T, V] and the taps of the golden format, in f64."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    d, dh, eps = config["d_model"], config["d_head"], config["norm_eps"]
    heads = d // dh
    kv_heads = config.get("num_kv_heads", heads)
    group, d_kv = heads // kv_heads, kv_heads * dh
    batch, length = tokens.shape
    x = w["embedding.wte.weight"][tokens]
    taps = {}

    def split(rows):
        return rows.reshape(batch, length, -1, dh).transpose(0, 2, 1, 3)

    for layer, patterns in enumerate(config["patterns"]):
        name = f"backbone.layers.{layer}."
        projected = rms_norm(x, w[name + "seq_layer.input_norm.weight"], eps) @ w[name + "seq_layer.in_proj.weight"].T
        o, q, k, v, *gates = np.split(projected, np.cumsum([d, d, d_kv, d_kv]), axis=-1)
        if config["recurrence"]:
            g = sigmoid(gates[0])
            for rows in (k, v):
                state = np.zeros((batch, d_kv))
                for t in range(length):
                    state = g[:, t] * state + (1 - g[:, t]) * rows[:, t]
                    rows[:, t] = state
        if layer == 0:
            taps["layer0.gated_key"], taps["layer0.gated_value"] = split(k), split(v)
        q, k, v = split(q), split(k), split(v)
        if config.get("rope", True):
            q, k = rope(q, config["rope_base"]), rope(k, config["rope_base"])
        mixed = np.empty_like(q)
        for head in range(heads):
            pattern = patterns[head // group] if isinstance(patterns, list) else patterns
            keys, values = k[:, head // group], v[:, head // group]
            seen = np.broadcast_to(visible(length, pattern), (batch, length, length))
            if "block_size" in pattern:
                seen = seen | chosen(q[:, head], keys, pattern)
            scores = q[:, head] @ keys.transpose(0, 2, 1) / math.sqrt(dh)
            scores = np.where(seen, scores, -np.inf)
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            mixed[:, head] = scores / scores.sum(axis=-1, keepdims=True) @ values
        attended = mixed.transpose(0, 2, 1, 3).reshape(batch, length, d) * sigmoid(o)
        x = x + attended @ w[name + "seq_layer.out_proj.weight"].T
        inner = rms_norm(x, w[name + "hidden_layer.ln.weight"], eps) @ w[name + "hidden_layer.fc1.weight"].T
        x = x + ACTIVATIONS[config.get("activation", "gelu")](inner) @ w[name + "hidden_layer.fc2.weight"].T
        if layer == 0:
            taps["layer0.hidden"] = x.copy()
    taps["last_hidden"] = x
    head = w.get("head.lm_head.weight", w["embedding.wte.weight"])
    return rms_norm(x, w["backbone.ln.weight"], eps) @ head.T, taps


def make(folder, config, seed, batch, length, gate_scale=1.0, dtype=np.float32):
    """Writes model.safetensors, config.json and golden.safetensors; `gate_scale` saturates gates."""
    rng = np.random.default_rng(seed)
    d, ffn, vocab = config["d_model"], config["d_ffn"], config["vocab_size"]
    d_kv = config.get("num_kv_heads", d // config["d_head"]) * config["d_head"]
    shared = 3 if config["recurrence"] else 2

    def matrix(rows, columns):
        return rng.normal(0, columns**-0.5, (rows, columns))

    weights = {"embedding.wte.weight": rng.normal(0, 1, (vocab, d))}
    if not config.get("tie_embedding", False):
        weights["head.lm_head.weight"] = matrix(vocab, d)
    weights["backbone.ln.weight"] = 1 + 0.1 * rng.normal(size=d)
    for layer in range(config["num_layers"]):
        name = f"backbone.layers.{layer}."
        in_proj = matrix(2 * d + shared * d_kv, d)
        in_proj[2 * d + 2 * d_kv :] *= gate_scale
        weights[name + "seq_layer.in_proj.weight"] = in_proj
        weights[name + "seq_layer.input_norm.weight"] = 1 + 0.1 * rng.normal(size=d)
        weights[name + "seq_layer.out_proj.weight"] = matrix(d, d)
        weights[name + "hidden_layer.ln.weight"] = 1 + 0.1 * rng.normal(size=d)
        weights[name + "hidden_layer.fc1.weight"] = matrix(ffn, d)
        weights[name + "hidden_layer.fc2.weight"] = matrix(d, ffn)
    weights = {name: value.astype(dtype) for name, value in weights.items()}
    tokens = rng.integers(0, vocab, (batch, length))
    logits, taps = forward(config, weights, tokens)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    positions = np.unique(np.concatenate([np.arange(min(length, 70)), np.linspace(0, length - 1, 40).astype(np.int64)]))
    golden = {"tokens": tokens.astype(np.int64), "positions": positions.astype(np.int64)}
    golden["logits"] = np.ascontiguousarray(logits[:, positions], dtype=np.float32)
    golden.update({name: np.ascontiguousarray(value, dtype=np.float32) for name, value in taps.items()})
    save_file(weights, folder / "model.safetensors")
    save_file(golden, folder / "golden.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
