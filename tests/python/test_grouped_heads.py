"""Grouped heads are heads of their own with equal weights: whole models, bit for bit."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from conftest import golden_case
from ort_driver import Package, chunked, padded
from safetensors.numpy import load_file, save_file

# Key-value heads of a golden case with four query heads.
CASES = {"gqa": 2, "gqa_head_hybrid": 2, "topk_bounds": 2, "topk_mean": 1, "topk_dilated": 2}
TYPES = [("f32",), ("bf16",), ("f32", "--cache-dtype", "f16"), ("bf16", "--quantize", "int8")]


@dataclass(frozen=True)
class Model:
    """A checkpoint with its configuration."""

    weights: dict
    config: dict

    @classmethod
    def of(cls, case):
        config = json.loads((case.directory / "config.json").read_text())
        return cls(load_file(case.directory / "model.safetensors"), config)

    @property
    def heads(self):
        return self.config["d_model"] // self.config["d_head"]

    @property
    def kv_heads(self):
        return self.config.get("num_kv_heads", self.heads)

    def changed(self, kv_heads, of):
        """With another number of key-value heads: `of` makes a list of theirs of a list of the old ones."""
        weights = {}
        for name, tensor in self.weights.items():
            if name.endswith("in_proj.weight"):
                own, shared = np.split(tensor, [2 * self.config["d_model"]])
                # Keys, values and, with a recurrence, gates.
                parts = shared.reshape(-1, self.kv_heads, self.config["d_head"], self.config["d_model"])
                parts = [np.stack(of(list(part))) for part in parts]
                tensor = np.concatenate([own, *(part.reshape(-1, own.shape[1]) for part in parts)])
            weights[name] = np.ascontiguousarray(tensor)
        patterns = [of(layer) if isinstance(layer, list) else layer for layer in self.config["patterns"]]
        return Model(weights, self.config | {"num_kv_heads": kv_heads, "patterns": patterns})

    def grouped(self, kv_heads):
        """With so many of its key-value heads."""
        return self.changed(kv_heads, lambda heads: heads[:: self.kv_heads // kv_heads])

    def ungrouped(self):
        """A key-value head for each query head, with the weights of the one that it shared."""
        group = self.heads // self.kv_heads
        return self.changed(self.heads, lambda heads: [head for head in heads for _ in range(group)])


@pytest.mark.parametrize("types", TYPES, ids=" ".join)
@pytest.mark.parametrize("name", CASES)
def test_grouped_heads_have_the_bits_of_repeated_ones(ratplus, ort_library, tmp_path, name, types):
    case = golden_case(name)
    tokens = case.golden()["tokens"]
    batch, length = tokens.shape
    grouped = Model.of(case).grouped(CASES[name])
    states, logits = [], []
    for model, folder in [(grouped, "grouped"), (grouped.ungrouped(), "ungrouped")]:
        source = tmp_path / folder
        source.mkdir()
        save_file(model.weights, source / "model.safetensors")
        (source / "config.json").write_text(json.dumps(model.config))
        sizes = ["--batch", batch, "--max-seq-len", length + 1, "--prefill-lengths", "7,64", "--logits", "all"]
        words = ["--config", source / "config.json", "--no-check", "--dtype", *types, *sizes]
        ratplus("export", source / "model.safetensors", "-o", source / "package", *words)
        engine = Package(source / "package", ort_library)
        states.append(sum(state.nbytes for state in engine.states.values()))
        runs = []
        for plan in (padded(length, 64), [*chunked(length - 20, (7, 1)), *chunked(20, (1,))]):
            engine.reset()
            runs.append(engine.run(tokens, plan))
        logits.append(runs)
    # What a group shares is kept once.
    assert states[1] == grouped.heads // grouped.kv_heads * states[0]
    for one, other in zip(*logits):
        assert one.tobytes() == other.tobytes()
