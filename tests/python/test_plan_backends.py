"""The backends that run engine plans, on the emulated GPU with a stand-in for TensorRT.

The stand-in has TensorRT's real interfaces, from its headers, and a made-up model: a state that
tokens and positions drive, and logits that point at it.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import onnx
import pytest
from blake3 import blake3
from conftest import ROOT, sealed, serving
from nvinfer_double import compile_double
from safetensors.numpy import save_file

HEADERS = ROOT / "target" / "tensorrt" / "headers"
BATCH, LENGTH, DTYPES = 2, 40, {"f32": 0, "f16": 1, "bf16": 2, "i64": 3}


class Kind:
    """A backend and its stand-in."""

    def __init__(self, backend: str, headers: str, library: str, variable: str, in_place: bool):
        self.backend, self.library, self.variable = backend, library, variable
        self.headers, self.in_place = HEADERS / headers, in_place

    def version(self) -> str:
        text = (self.headers / "NvInferVersion.h").read_text()
        parts = ("TRT_MAJOR_", "TRT_MINOR_", "TRT_PATCH_", "TRT_BUILD_")
        lines = [line.split() for line in text.splitlines() if line.startswith("#define TRT_")]
        return ".".join(next(words[2] for words in lines if words[1].startswith(part)) for part in parts)


KINDS = [
    Kind("tensorrt-rtx", "tensorrt-rtx-1.7", "libtensorrt_rtx.so.1", "RATPLUS_TENSORRT_RTX", False),
    Kind("tensorrt", "tensorrt-11.4", "libnvinfer.so.11", "RATPLUS_TENSORRT", True),
]


@pytest.fixture(scope="session")
def emulator() -> Path:
    """The folder with the emulator under the driver's name."""
    found = (ROOT / "target" / "release" / "build").glob("ratplus-cuda-emulator-*/out/libcuda.so.1")
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        pytest.skip("the CUDA emulator is not built; `cargo xtask test` builds it")
    return newest.parent


@pytest.fixture(scope="session", params=KINDS, ids=lambda kind: kind.backend)
def kind(request, tmp_path_factory) -> Kind:
    kind = request.param
    if not (kind.headers / "NvInfer.h").is_file():
        pytest.skip(f"{kind.headers} is not there; `cargo xtask setup` installs it")
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    kind.folder = tmp_path_factory.mktemp(kind.backend) / "lib"
    compile_double(kind.headers, kind.folder / kind.library, kind.in_place)
    return kind


def plan_text(kind: Kind, engines: list, first_word: str, layers=None) -> str:
    """A plan of the stand-in: of static sizes, or with the engines as profiles."""
    lines = [first_word]

    def line(word, tensor, shape):
        lines.append(" ".join(map(str, (word, tensor["name"], DTYPES[tensor["dtype"]], len(shape), *shape))))

    for side in ("inputs", "outputs"):
        for tensor in engines[0][side]:
            opened = 0 if not kind.in_place else 2 if tensor["name"] in ("input_ids", "logits") else 1
            line(side[:-1], tensor, [-1] * opened + tensor["shape"][opened:])
    for engine in engines if kind.in_place else []:
        lines.append("profile")
        for tensor in engine["inputs"]:
            line("sizes", tensor, tensor["shape"])
    pairs = zip(engines[0]["inputs"][3:], engines[0]["outputs"][1:])
    plugins = [{"Name": "p", "Inputs": [{"Name": a["name"]}], "Outputs": [{"Name": b["name"]}]} for a, b in pairs]
    lines.append("layers " + json.dumps({"Layers": plugins if layers is None else layers}))
    return "\n".join(lines)


def add_plans(
    package: Path, kind: Kind, library=None, targets=("8.0+",), first_word="double", layers=None, stripped=False
):
    """Puts plans of the stand-in into a package."""
    text = (package / "manifest.json").read_text()
    manifest = json.loads(text)
    folder = package / "plans" / kind.backend
    folder.mkdir(parents=True)
    plans = []
    engines = manifest["engines"]
    for group in [engines] if kind.in_place else [[engine] for engine in engines]:
        content = plan_text(kind, group, first_word, layers).encode()
        checksum = blake3(content).hexdigest()
        name = f"{group[0]['name'] if len(group) == 1 else 'model'}-{checksum[:16]}.plan"
        (folder / name).write_bytes(content)
        onnx = manifest["files"][group[0]["files"]["tensorrt" if kind.in_place else "cuda"]]["blake3"]
        names = [engine["name"] for engine in group]
        plans.append({"engines": names, "file": name, "bytes": len(content), "blake3": checksum, "onnx_blake3": onnx})
    record = {
        "library": library or kind.version(),
        **({"stripped": True} if stripped else {}),
        "tool": "test",
        "compute_capabilities": list(targets),
        "weights_blake3": manifest["files"]["weights.bin"]["blake3"],
        "plans": plans,
    }
    lines = json.dumps({"plans": {kind.backend: record}}, indent=2).splitlines()[1:-1]
    head, seal = text.rsplit(',\n  "blake3"', 1)
    text = head + ",\n" + "\n".join(lines) + ',\n  "blake3"' + seal
    (package / "manifest.json").write_text(sealed(text))


@pytest.fixture
def package(export, tmp_path):
    def copy(**flags) -> Path:
        flags = {"case": "d16_w20_i4", "batch": BATCH, "max_seq_len": 64, "prefill_lengths": (7,)} | flags
        return Path(shutil.copytree(export(**flags), tmp_path / "package"))

    return copy


def stand_ins(kind: Kind, emulator: Path) -> dict:
    """What has a process find the emulated GPU and the stand-in."""
    return {
        kind.variable: str(kind.folder),
        "RATPLUS_TRT_LIBRARY": str(kind.folder / kind.library),
        "LD_LIBRARY_PATH": str(emulator),
    }


@pytest.fixture
def ratplus(ratplus_bin, kind, emulator):
    """Runs `ratplus` on the emulated GPU with the stand-in."""

    def run(*arguments, code=0, log=None, **more) -> subprocess.CompletedProcess:
        command = [str(word) for word in (ratplus_bin, *arguments)]
        environment = os.environ | stand_ins(kind, emulator)
        environment |= {"RATPLUS_DOUBLE_LOG": str(log)} if log else {}
        environment |= more
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        assert done.returncode == code, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    return run


def golden(path: Path, vocabulary: int, tokens, wrong=False) -> Path:
    """What the made-up model returns for `tokens`, as a golden file."""
    logits = np.zeros((*tokens.shape, vocabulary), np.float32)
    for sequence, row in enumerate(tokens):
        state = first = 0
        for position, token in enumerate(row):
            state = (31 * state + first + int(token) + 7 * position) % 1009
            first = state if position == 0 else first
            logits[sequence, position, state % vocabulary] = 1 + state
    if wrong:
        logits[1, LENGTH // 2] += 1
    positions = np.arange(tokens.shape[1], dtype=np.int64)
    # Plans return no such tensor: it is said not to be compared.
    tap = np.zeros((*tokens.shape, 64), np.float32)
    save_file({"tokens": tokens, "positions": positions, "logits": logits, "last_hidden": tap}, path)
    return path


def random_tokens(vocabulary: int):
    tokens = np.random.default_rng(1).integers(14, vocabulary, (3, LENGTH))
    return tokens.astype(np.int64)


def vocabulary(package: Path) -> int:
    return json.loads((package / "manifest.json").read_text())["model"]["vocab_size"]


def verify(kind: Kind, package: Path, golden_file: Path) -> tuple:
    # The emulator cannot record what the stand-in computes.
    return ("verify", package, "--backend", kind.backend, "--golden", golden_file, "--json", "--no-cuda-graph")


def test_every_route_carries_the_state(kind, package, ratplus, tmp_path):
    directory = package()
    add_plans(directory, kind)
    words = vocabulary(directory)
    tokens = random_tokens(words)
    done = ratplus(*verify(kind, directory, golden(tmp_path / "golden.safetensors", words, tokens)))
    report = json.loads(done.stdout)
    (tap,) = (row for row in report["rows"] if row["tensor"] != "logits")
    assert tap["tensor"] == "last_hidden" and tap["rows"] == 0
    rows = {row["route"]: row for row in report["rows"] if row["tensor"] == "logits"}
    assert len(rows) >= 3 and all(row["max_error"] == 0 for row in rows.values()), rows
    assert all(row["rows"] == tokens.size for row in rows.values())
    (found,) = report["implementations"]
    text = json.dumps(found)
    assert ("plugin" if kind.in_place else "function body") in text, text
    wrong = golden(tmp_path / "wrong.safetensors", words, tokens, wrong=True)
    done = ratplus(*verify(kind, directory, wrong)[:-2], "--no-cuda-graph", code=1)
    assert "plans have no intermediate outputs" in done.stdout
    assert "not compared 1 intermediate tensors of engine plans" in done.stdout


def completion(address: str, tokens: list) -> tuple:
    """What a server answers to a prompt, with its scores; and the tokens that its prefix cache has given so far."""
    asked = {"model": "package", "prompt": tokens, "max_tokens": 6, "temperature": 0, "logprobs": 3}
    request = Request(f"{address}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        (choice,) = json.load(answer)["choices"]
    with urlopen(f"{address}/slots", timeout=60) as answer:
        return choice, json.load(answer)["prefix_cache"]["hit_tokens"]


def test_a_server_goes_on_from_a_prefix_as_from_the_beginning(kind, package, ratplus_bin, emulator, monkeypatch):
    directory = package()
    add_plans(directory, kind)
    for name, value in stand_ins(kind, emulator).items():
        monkeypatch.setenv(name, value)
    first, other, *_ = random_tokens(vocabulary(directory)).tolist()
    # The whole prompt, a longer one, and one that leaves it halfway.
    prompts = [first, first, first + other[:9], first[:20] + other[:11]]
    answers, hits = {}, {}
    for cache in ("0", "64MB"):
        words = ["--backend", kind.backend, "--no-cuda-graph", "--prefix-cache", cache]
        with serving(ratplus_bin, directory, *words) as server:
            found = [completion(server.address, prompt) for prompt in prompts]
            answers[cache], hits[cache] = zip(*found)
    assert answers["64MB"] == answers["0"]
    assert len({json.dumps(answer) for answer in answers["0"]}) == 3
    assert hits["0"] == (0, 0, 0, 0)
    # Of chunks of 7 tokens all that end before the last token, and what both begin with.
    assert hits["64MB"] == (0, 35, 70, 84), hits


def test_a_failed_run_is_told_in_tensorrts_words(kind, package, ratplus, tmp_path):
    directory = package()
    add_plans(directory, kind)
    words = vocabulary(directory)
    tokens = random_tokens(words)
    tokens[0, 9] = 13
    done = ratplus(*verify(kind, directory, golden(tmp_path / "golden.safetensors", words, tokens)), code=2)
    assert "enqueueV3 failed" in done.stderr and "a planted failure" in done.stderr


def test_plans_that_do_not_fit_the_machine_are_refused(kind, package, ratplus):
    def refused(*parts, **record):
        directory = package()
        add_plans(directory, kind, **record)
        done = ratplus("verify", directory, "--backend", kind.backend, "--tokens", 8, code=2)
        assert "again" in done.stderr or "not a plan" in done.stderr
        for part in parts:
            assert part in done.stderr, done.stderr
        shutil.rmtree(directory)

    refused("version 0.1 of its library", kind.version(), library="0.1")
    refused("built for compute capability 7.5, found a GPU of", targets=["7.5"])
    if kind.backend == "tensorrt-rtx":
        refused("it is not for this GPU's compute capability", first_word="unfit")
    else:
        refused("not a plan of the double", first_word="strange")


def test_doctor_finds_everything(kind, ratplus):
    findings = json.loads(ratplus("doctor", "--json").stdout)
    found = {finding["name"]: finding for finding in findings}
    name = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}[kind.backend]
    assert found[name]["found"] and kind.version() in found[name]["detail"]
    assert ("builder" if kind.in_place else "runs plans only") in found[name]["detail"]
    assert found["CUDA driver"]["found"] and found["RAT+ plugins"]["found"]


@pytest.mark.parametrize("release", ["11.4", "10.16"])
def test_real_libraries_are_told_by_their_version(ratplus_bin, tmp_path, release):
    major = release.split(".")[0]
    lean = ROOT / "target" / "tensorrt" / f"lean-{release}" / "tensorrt_lean_libs" / f"libnvinfer_lean.so.{major}"
    if not lean.is_file() or not (KINDS[1].headers / "NvInfer.h").is_file():
        pytest.skip(f"TensorRT's lean runtime {release} or its headers are not installed; `cargo xtask test` does")
    # It has the runtime's functions of the whole library.
    (tmp_path / f"libnvinfer.so.{major}").symlink_to(lean)
    environment = os.environ | {"RATPLUS_TENSORRT": str(tmp_path)}
    command = [str(ratplus_bin), "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    finding = next(found for found in json.loads(done.stdout) if found["name"] == "TensorRT")
    if release == "11.4":
        assert finding["found"] and "driven as TensorRT 11.4" in finding["detail"], finding
    else:
        # No code for 10: both are named.
        assert not finding["found"], finding
        assert "TensorRT 11.4" in finding["detail"] and "found TensorRT 10.16" in finding["detail"], finding


def test_decode_is_recorded_unless_told_otherwise(kind, package, ratplus):
    directory = package(case="kjv_d16w64i4", batch=1)
    add_plans(directory, kind)
    generate = ("generate", directory, "--backend", kind.backend, "--prompt", "In the beginning", "-n", 8)
    plain = ratplus(*generate, "--no-cuda-graph").stdout
    recorded = ratplus(*generate).stdout
    # The graph of the stand-in is empty: replayed, it leaves the logits as they are.
    assert (recorded == plain) == (kind.backend == "tensorrt-rtx")


@pytest.fixture
def full(kind):
    """TensorRT's stand-in alone: it has a builder."""
    if kind.backend != "tensorrt":
        pytest.skip("TensorRT for RTX has a builder of its own here: test_tensorrt_rtx.py")
    return kind


def plans_of(package: Path, kind: Kind) -> tuple:
    """What the manifest says, and what the plans hold."""
    record = json.loads((package / "manifest.json").read_text())["plans"][kind.backend]
    texts = [(package / "plans" / kind.backend / plan["file"]).read_text() for plan in record["plans"]]
    return record, texts


def test_a_build_makes_one_plan_with_a_profile_an_engine(full, package, ratplus, tmp_path):
    directory = package()
    done = ratplus("build", directory, "--backend", full.backend, "--json")
    assert "of host memory" in done.stderr
    names = ["decode", f"decode_b{BATCH}", "prefill_7"]
    (built,) = json.loads(done.stdout)["plans"]
    assert built["engine"] == "model.tensorrt.onnx" and built["engines"] == names
    record, (text,) = plans_of(directory, full)
    (plan,) = record["plans"]
    assert plan["engines"] == names and plan["file"].startswith("model-")
    assert "version_compatible" not in record and len(record["compute_capabilities"]) == 1
    sizes = [line.split()[-2:] for line in text.splitlines() if line.startswith("sizes input_ids")]
    assert sizes == [["1", "1"], [str(BATCH), "1"], ["1", "7"]]
    assert "input input_ids 3 2 -1 -1" in text
    log, words = tmp_path / "log", vocabulary(directory)
    tokens = random_tokens(words)
    done = ratplus(*verify(full, directory, golden(tmp_path / "g.safetensors", words, tokens)), log=log)
    rows = [row for row in json.loads(done.stdout)["rows"] if row["tensor"] == "logits"]
    assert len(rows) >= 3 and all(row["max_error"] == 0 and row["rows"] == tokens.size for row in rows), rows
    lines = log.read_text().splitlines()
    # Each engine of the one plan runs in a context of its own, on scratch memory that all share.
    assert {line for line in lines if line.startswith("profile")} == {"profile 0", "profile 1", "profile 2"}
    opened = lines.count("host code refused")
    scratch = [line.split()[1:] for line in lines if line.startswith("scratch")]
    assert len(scratch) == lines.count("context") >= 3 * opened
    assert len({address for address, _ in scratch}) <= opened and {size for _, size in scratch} == {"7000"}


def test_engines_can_be_split(full, package, ratplus, tmp_path):
    directory = package()
    ratplus("build", directory, "--backend", full.backend, "--split-engines")
    record, texts = plans_of(directory, full)
    assert [plan["engines"] for plan in record["plans"]] == [["decode"], [f"decode_b{BATCH}"], ["prefill_7"]]
    assert all(text.count("\nprofile\n") == 1 for text in texts)
    words = vocabulary(directory)
    done = ratplus(*verify(full, directory, golden(tmp_path / "g.safetensors", words, random_tokens(words))))
    assert all(row["max_error"] == 0 for row in json.loads(done.stdout)["rows"] if row["tensor"] == "logits")
    # One plan again: the others go.
    ratplus("build", directory, "--backend", full.backend)
    left = sorted(path.name.split("-")[0] for path in (directory / "plans" / full.backend).iterdir())
    assert left == ["model", "timing"]


def test_what_was_measured_is_kept_beside_the_plans(full, package, ratplus, tmp_path):
    directory = package()
    folder = directory / "plans" / "tensorrt"

    def build(machine: str) -> tuple[list, dict]:
        """What the builder was given, and the report; `machine` is one with a cache of its own."""
        log, report = tmp_path / f"{machine}.log", tmp_path / "report.json"
        log.unlink(missing_ok=True)
        flags = ("--backend", full.backend, "--split-engines", "--report", report)
        done = ratplus("build", directory, *flags, log=log, RATPLUS_CACHE_DIR=str(tmp_path / machine))
        given = [line[14:-1] for line in log.read_text().splitlines() if line.startswith("timing cache `")]
        return given, json.loads(report.read_text()) | {"said": done.stderr}

    def kept() -> Path:
        (file,) = folder.glob("timing-*.cache")
        record = json.loads((directory / "manifest.json").read_text())["plans"]["tensorrt"]["timing_cache"]
        assert record["file"] == file.name and record["blake3"] == blake3(file.read_bytes()).hexdigest()
        return file

    given, report = build("first")
    # Three plans, each from what the one before left.
    once = " measured"
    assert given == [once, once * 2]
    assert kept().read_text() == once * 3
    assert report["timing_cache"]["earlier_bytes"] == [0, 0]
    assert report["timing_cache"]["file"] == f"plans/tensorrt/{kept().name}"
    for plan in report["plans"]:
        assert 0 <= plan["parse_seconds"] + plan["build_seconds"] <= plan["seconds"]
    # Another machine has it from the package, this one from both.
    given, report = build("second")
    assert given[0] == once * 3 and report["timing_cache"]["earlier_bytes"] == [len(once) * 3, 0]
    given, _ = build("second")
    assert given[0] == given[1] == once * 6
    # A damaged one is left out, and said to be.
    kept().write_text("damaged")
    given, report = build("third")
    assert given[0] == once and "its timing cache is not used" in report["said"]
    assert "damaged" not in kept().read_text()
    done = ratplus("build", directory, "--backend", full.backend, "--report", kept(), code=2)
    assert "is in the package" in done.stderr


def test_builder_options_reach_the_builder(full, package, ratplus):
    directory = package()
    ratplus("build", directory, "--backend", full.backend)
    _, (plain,) = plans_of(directory, full)
    # None is set, TF32 is off.
    assert "\nsettings flags=0\n" in plain
    options = ("--workspace", 96, "--optimization-level", 4, "--version-compatible")
    ratplus("build", directory, "--backend", full.backend, *options, "--hardware-compatibility", "ampere+")
    record, (text,) = plans_of(directory, full)
    assert f"\nsettings flags={1 << 12} workspace={96 << 20} level=4 hardware=1\n" in text
    assert record["version_compatible"] and record["compute_capabilities"] == ["8.0+"]
    done = ratplus("build", directory, "--backend", full.backend, "--hardware-compatibility", "all", code=2)
    assert "ampere+" in done.stderr
    done = ratplus("build", directory, "--backend", full.backend, "--compute-capability", "8.6", code=2)
    assert "--compute-capability is for tensorrt-rtx only" in done.stderr


def weights_of(package: Path) -> list:
    """Names of those that lie in the package's file of weights."""
    graph = onnx.load(package / "model.tensorrt.onnx", load_external_data=False).graph
    return sorted(tensor.name for tensor in graph.initializer if tensor.external_data)


@pytest.mark.parametrize("more", [(), ("--split-engines",)], ids=["one", "split"])
def test_a_stripped_plan_gets_its_weights_when_it_is_opened(full, package, ratplus, tmp_path, more):
    directory = package()
    ratplus("build", directory, "--backend", full.backend, *more)
    record, plain = plans_of(directory, full)
    assert "stripped" not in record and not any("\nstripped " in text for text in plain)
    ratplus("build", directory, "--backend", full.backend, "--strip-weights", *more)
    record, texts = plans_of(directory, full)
    assert record["stripped"] is True and len(texts) == len(plain)
    names = weights_of(directory)
    assert len(names) > 5
    for text, before in zip(texts, plain):
        lines = text.splitlines()
        assert f"settings flags={1 << 18 | 1 << 19}" in lines
        assert sorted(line.split()[1] for line in lines if line.startswith("stripped ")) == names
        # Nothing else differs.
        rest = [line for line in lines if not line.startswith(("stripped ", "settings "))]
        assert rest == [line for line in before.splitlines() if not line.startswith("settings ")]
    log, words = tmp_path / "log", vocabulary(directory)
    tokens = random_tokens(words)
    done = ratplus(*verify(full, directory, golden(tmp_path / "g.safetensors", words, tokens)), log=log)
    rows = [row for row in json.loads(done.stdout)["rows"] if row["tensor"] == "logits"]
    assert len(rows) >= 3 and all(row["max_error"] == 0 and row["rows"] == tokens.size for row in rows), rows
    said = [line for line in log.read_text().splitlines() if line.startswith(("host", "refitted", "context"))]
    # Every plan that is opened is given all of its weights at once, before it has contexts.
    opened = [at for at, line in enumerate(said) if line.startswith("host")]
    assert len(opened) >= len(texts) and "context" in said
    assert all(said[at + 1] == f"refitted {len(names)}" for at in opened)
    assert sum(line.startswith("refitted") for line in said) == len(opened)


def test_weights_that_a_stripped_plan_misses_are_named_at_once(full, package, ratplus):
    directory = package()
    ratplus("build", directory, "--backend", full.backend, "--strip-weights")
    forgotten = weights_of(directory)[2]
    words = ("verify", directory, "--backend", full.backend, "--tokens", 8)
    done = ratplus(*words, code=2, RATPLUS_DOUBLE_FORGETS=forgotten)
    missing = f"weights that the model was expected to have are missing: `{forgotten}`"
    assert f"putting weights into the plan: {missing}" in done.stderr
    assert full.version() in done.stderr and done.stderr.count("error: ") == 1


def test_a_library_that_puts_no_weights_into_plans_is_told_by_its_version(kind, package, ratplus):
    if kind.backend != "tensorrt-rtx":
        pytest.skip("TensorRT's stand-in has what puts them in; the other one has not")
    directory = package()
    add_plans(directory, kind, stripped=True)
    done = ratplus("verify", directory, "--backend", kind.backend, "--tokens", 8, code=2)
    assert f"TensorRT for RTX {kind.version()} at `" in done.stderr
    # Both that are missing: its library's, and the parser's.
    missing = "it exports no createInferRefitter_INTERNAL; the ONNX parser does not load: "
    assert f"puts no weights into stripped plans: {missing}" in done.stderr


def test_integer_weights_are_not_stripped(full, export, ratplus, tmp_path):
    more = ("--quantize", "int8", "--block-size", "32")
    flags = {"case": "d16_w20_i4", "max_seq_len": 64, "prefill_lengths": (7,), "fallback": "trt-plugins", "more": more}
    directory = Path(shutil.copytree(export(**flags), tmp_path / "package"))
    before = (directory / "manifest.json").read_bytes()
    done = ratplus("build", directory, "--backend", full.backend, "--strip-weights", code=2)
    assert "--strip-weights: expected a package without integer weights" in done.stderr
    assert "export without --quantize" in done.stderr and done.stderr.count("error: ") == 1
    assert (directory / "manifest.json").read_bytes() == before and not (directory / "plans").exists()
    ratplus("build", directory, "--backend", full.backend)


def test_plans_of_a_later_release_run_where_they_say_so(full, package, ratplus, tmp_path):
    log = tmp_path / "log"
    command = ("verify", "--backend", full.backend, "--tokens", 8, "--no-cuda-graph")
    directory = package()
    ratplus("build", directory, "--backend", full.backend, "--version-compatible")
    manifest = directory / "manifest.json"
    manifest.write_text(sealed(manifest.read_text().replace(f'"library": "{full.version()}"', '"library": "11.0.0.1"')))
    # The stand-in's numbers are no model's: what counts is that it ran.
    ratplus(*command, directory, code=1, log=log)
    assert "host code allowed" in log.read_text()


def test_a_plan_that_copies_a_state_is_not_kept(full, package, ratplus):
    directory = package()
    before = (directory / "manifest.json").read_bytes()
    done = ratplus("build", directory, "--backend", full.backend, code=2, RATPLUS_DOUBLE_COPIES="1")
    assert "copies states at every step" in done.stderr
    # The last state of the last profile is the only one.
    assert done.stderr.count("past_key_values.") == 1, done.stderr
    assert "found it copied by `Reformatting CopyNode for Input Tensor 3` (Reformat)" in done.stderr
    assert (directory / "manifest.json").read_bytes() == before and not (directory / "plans").exists()


def test_a_plan_that_tells_nothing_of_its_layers_is_refused(full, package, ratplus):
    directory = package()
    add_plans(directory, full, layers=["one", "two"])
    done = ratplus("verify", directory, "--backend", full.backend, "--tokens", 8, code=2)
    assert "found none that tells of it in detail" in done.stderr and "again on this machine" in done.stderr


def test_tensorrts_words_are_shown_to_who_asks(full, package, ratplus):
    directory = package()
    add_plans(directory, full, first_word="strange")
    words = ("verify", directory, "--backend", full.backend, "--tokens", 8)
    assert ratplus(*words, code=2).stderr.count("not a plan of the double") == 1
    done = ratplus(*words, code=2, RATPLUS_LOG="ratplus_nvinfer=warn")
    assert done.stderr.count("not a plan of the double") == 2


def test_what_rtx_compiles_is_kept_beside_the_plan(kind, package, ratplus, tmp_path):
    if kind.backend != "tensorrt-rtx":
        pytest.skip("TensorRT compiles when it builds")
    directory = package()
    add_plans(directory, kind)
    folder = directory / "plans" / kind.backend
    plans = sorted(path.name for path in folder.iterdir())

    def run(*flags) -> list:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        ratplus("verify", directory, "--backend", kind.backend, "--tokens", 8, *flags, code=1, log=log)
        return [line for line in log.read_text().splitlines() if line.startswith("compiled")]

    compiled = run()
    # Decode is captured by TensorRT itself, prefill is not.
    assert set(compiled) == {"compiled captured", "compiled enqueued"}
    caches = sorted(path.name for path in folder.iterdir() if path.name not in plans)
    assert caches == [f"{name}.cache" for name in plans]
    assert run() == []
    assert set(run("--no-cuda-graph")) == {"compiled enqueued"}
    assert run() == []
    (folder / caches[0]).write_text("damaged")
    assert run() == ["compiled captured"]
    assert (folder / caches[0]).read_text() != "damaged"
    assert sorted(path.name for path in folder.iterdir()) == sorted(plans + caches)
