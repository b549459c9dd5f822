"""`ratplus export --synthetic` and `ratplus bench`."""

import json
import shutil
import xml.etree.ElementTree as ElementTree

import pytest

SIZES = {"vocab_size": 96, "d_model": 32, "num_layers": 2, "d_head": 8, "d_ffn": 64}
PATTERN = {"dilation": 1, "local_window": 0, "initial": 0}


@pytest.fixture(scope="module")
def packages(ratplus, tmp_path_factory):
    """Two synthetic packages that differ in dilation."""
    folder = tmp_path_factory.mktemp("synthetic")
    config = folder / "config.json"
    config.write_text(json.dumps(SIZES | {"patterns": [PATTERN] * SIZES["num_layers"]}))
    made = []
    for dilation in (1, 4):
        package = folder / f"d{dilation}"
        flags = ["--dilation", dilation, "--prefill-lengths", 8, "--max-seq-len", 64, "--batch", 2]
        ratplus("export", "--synthetic", "config", "--config", config, "-o", package, *flags)
        made.append(package)
    return made


def test_synthetic_packages_verify_like_others(ratplus, packages):
    for package in packages:
        ratplus("verify", package, "--tokens", 20)
    patterns = [json.loads((package / "manifest.json").read_text())["model"]["patterns"][0] for package in packages]
    assert [pattern["dilation"] for pattern in patterns] == [1, 4]


def test_synthetic_sizes_are_checked(ratplus, tmp_path):
    target = tmp_path / "package"
    for words, part in [
        (["--synthetic", "9b"], "1.5B, 2.6B, 7.6B, or config with --config, found 9b"),
        (["--synthetic", "1.5b", "--dilation", "1,2"], "--dilation: expected one value or one per layer (24), found 2"),
        (["--synthetic", "1.5b", "--d-head", "3"], "--synthetic 1.5b"),
        (["--synthetic", "config"], "found config"),
        ([], "required"),
    ]:
        done = ratplus("export", *words, "-o", target, code=2)
        assert part in done.stderr, done.stderr
        assert not target.exists()


def test_bench_measures_prints_and_draws(ratplus, packages, tmp_path):
    report, plot = tmp_path / "bench.json", tmp_path / "bench.svg"
    flags = ["--prompt", "8,20", "--context", "0,50", "-n", 4, "--repeat", 2, "--json", report, "--plot", plot]
    done = ratplus("bench", *packages, *flags)
    reports = json.loads(report.read_text())
    assert [found["package"] for found in reports] == [str(package) for package in packages]
    for found, package in zip(reports, packages):
        manifest = json.loads((package / "manifest.json").read_text())
        assert [row["name"] for row in found["measured"]] == ["pp8", "pp20", "tg4 @ d0", "tg4 @ d50"]
        assert found["state_bytes"] == manifest["state_bytes"]
        assert found["weights_bytes"] == (package / "weights.bin").stat().st_size
        assert found["peak_resident_bytes"] > found["weights_bytes"]
        assert all("RecurrenceScan: kernel" in engine for engine in found["implementations"])
        # The last prompt goes through an engine, and the last context through the decode engine.
        engines = {(engine["name"], engine["file"]): engine["operators"] for engine in found["operators"]}
        assert {name for name, _ in engines} == {"pp20", "tg4 @ d50"} and ("tg4 @ d50", "decode_b2.cpu.onnx") in engines
        for operators in engines.values():
            shares = {row["op_type"]: row["share"] for row in operators}
            assert {"DilatedAttention", "RecurrenceScan"} <= set(shares)
            assert abs(sum(shares.values()) - 1) < 1e-6
            assert all(row["nodes"] == SIZES["num_layers"] for row in operators if row["op_type"] == "RecurrenceScan")
        assert "DilatedAttention" in done.stdout
        for row in found["measured"]:
            assert row["name"] in done.stdout
            assert 0 < row["tokens_per_second"]["min"] <= row["tokens_per_second"]["max"]
    assert reports[1]["state_bytes"] < reports[0]["state_bytes"]
    text = "".join(ElementTree.parse(plot).getroot().itertext())
    assert "d1 " in text and "D=4" in text and "tokens" in text


def test_memory_is_what_inspect_predicts(ratplus, tmp_path):
    """On packages of 60 to 130 MB: within 5 % of what is resident."""
    config, report = tmp_path / "config.json", tmp_path / "bench.json"
    sizes = {"vocab_size": 16384, "d_model": 512, "num_layers": 4, "d_head": 64, "d_ffn": 2048}
    config.write_text(json.dumps(sizes | {"patterns": [PATTERN] * sizes["num_layers"]}))
    flags = ["--synthetic", "config", "--config", config, "--prefill-lengths", "256", "--max-seq-len", "2048"]
    for name, more in [("f32", []), ("bf16", ["--dtype", "bf16"]), ("all", ["--logits", "all"]), ("slots", ["--batch", 2])]:
        package = tmp_path / name
        ratplus("export", *flags, *more, "-o", package)
        predicted = json.loads(ratplus("inspect", package, "--json").stdout)
        done = ratplus("bench", package, "--prompt", 256, "--context", 1024, "-n", 4, "--repeat", 2, "--json", report)
        found = json.loads(report.read_text())[0]
        parts = predicted["session_memory"]
        kinds = {kind: predicted[f"session_{kind}_bytes"] for kind in ("file_backed", "anonymous")}
        assert sum(parts.values()) == sum(kinds.values())
        assert parts["weights"] == (package / "weights.bin").stat().st_size
        assert parts["state"] == found["state_bytes"]
        resident = found["file_backed_bytes"] + found["anonymous_bytes"]
        for kind, bytes_ in kinds.items():
            difference = found[f"{kind}_bytes"] - bytes_
            assert abs(difference) < 0.05 * resident, f"{name}: {kind}: {difference / 1e6:.1f} of {resident / 1e6:.1f} MB"
        assert found["anonymous_bytes"] < parts["state"] + parts["outputs"] + parts["activations"] + 64e6
        assert resident <= found["peak_resident_bytes"] * 1.01
        assert " of files, " in done.stdout and "memory  " in ratplus("inspect", package).stdout
        shutil.rmtree(package)


def test_bench_refuses_what_does_not_fit(ratplus, packages, tmp_path):
    report = tmp_path / "bench.json"
    for words, part in [(["--prompt", 65], "pp65"), (["--context", 61, "-n", 4], "tg4 @ d61"), (["--prompt", 0], "pp0")]:
        done = ratplus("bench", packages[0], "--json", report, *words, code=2)
        assert part in done.stderr and done.stdout == "" and not report.exists()
    for words, part in [
        ([packages[0], tmp_path / "none"], "none"),
        ([packages[0], "-n", 65], "tg65 @ d0"),
        ([packages[0], "--repeat", 0], "--repeat"),
        ([packages[0], "--json", tmp_path / "none" / "bench.json"], "--json: expected a file in a folder"),
        ([packages[0], "--plot", tmp_path / "none" / "bench.svg"], "--plot: expected a file in a folder"),
    ]:
        done = ratplus("bench", *words, code=2)
        assert part in done.stderr and done.stdout == "", done.stderr
