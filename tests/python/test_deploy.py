"""The container files of deploy/: what they copy is there or is built, what they install is pinned and nothing else comes with
it, and what they start has the flags and variables that they give. Nothing here builds an image."""

import json
import re
import shlex
import subprocess
from fnmatch import fnmatch

import pytest
from conftest import ROOT

FILES = sorted((ROOT / "deploy").glob("*.Containerfile"))
INSTRUCTIONS = "ARG FROM COPY RUN ENV USER EXPOSE STOPSIGNAL ENTRYPOINT".split()
#: What `cargo build` and `cargo xtask wheel` write, by what these say of it.
BUILT = {
    "target/wheel/repaired/ratplus-*.whl": ("xtask/src/wheel.rs", '"repaired"'),
    "target/release/libratplus_ort.so": ("plugins/onnxruntime/Cargo.toml", 'name = "ratplus_ort"'),
    "target/release/libtriton_ratplus.so": ("plugins/triton/Cargo.toml", 'name = "triton_ratplus"'),
}
#: Where variables are read, and below which folder of the image their values lie.
VARIABLES = {"ORT_DYLIB_PATH": "onnxruntime", "RATPLUS_ORT_LIBRARY": "ratplus"}
REQUIREMENTS = [ROOT / "tests" / "python" / name for name in ("requirements.txt", "requirements-dynamo.txt")]
PINNED = re.compile(r"[\w.-]+==[\w.]+")
PIP_FLAGS = {"--no-cache-dir", "--no-deps"}


def lines_of(path):
    """The lines of a list of requirements, without comments."""
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def instructions(text):
    """Instructions of a container file, each with its words as one line."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in whole.splitlines() if line.strip()]


def stages_of(found):
    arguments = dict(words.split("=") for name, words in found if name == "ARG")
    return [re.sub(r"\$\{(\w+)\}", lambda use: arguments[use[1]], words) for name, words in found if name == "FROM"]


def check_copies(found):
    """Checks what is copied; names of files in the image, by folder."""
    copied = []
    for words in (words for name, words in found if name == "COPY"):
        *sources, target = words.split()
        assert target.startswith("/") and target.endswith("/"), words
        stage = sources[0].removeprefix("--from=") if sources[0].startswith("--from=") else None
        if stage is not None:
            assert any(known.endswith(f" AS {stage}") for known in stages_of(found)), words
            continue
        for source in sources:
            if source in BUILT:
                file, says = BUILT[source]
                assert says in (ROOT / file).read_text(), source
            else:
                assert (ROOT / source).is_file(), source
            copied.append(target + source.rsplit("/", 1)[-1])
    return copied


def check_install(words, copied):
    """Checks the words after `pip install`: releases that the tests run, lists of such, and wheels that were copied."""
    known = {line for file in REQUIREMENTS for line in lines_of(file)}
    words = list(words)
    if "--target" in words:
        at = words.index("--target")
        assert words[at + 1].startswith("/")
        del words[at : at + 2]
    flags = {word for word in words if word.startswith("--")}
    # Nothing that is not named comes with it.
    assert flags == PIP_FLAGS, words
    rest = [word for word in words if word not in flags]
    assert rest, words
    while rest:
        word = rest.pop(0)
        if word == "-r":
            list_ = rest.pop(0)
            assert list_ in copied, list_
            (source,) = [file for file in REQUIREMENTS if file.name == list_.rsplit("/", 1)[-1]]
            assert [line for line in lines_of(source) if not PINNED.fullmatch(line)] == []
        elif word.endswith(".whl"):
            assert word in copied, word
        else:
            assert word in known, word


def check_runs(found, copied):
    removed = set()
    for words in (words for name, words in found if name == "RUN"):
        for command in words.split("&&"):
            program, *arguments = shlex.split(command)
            if program == "pip":
                assert arguments[0] == "install", command
                check_install(arguments[1:], copied)
            elif program == "rm":
                removed |= set(arguments)
            else:
                assert program == "useradd", command
    # Nothing of them stays there.
    assert {path for path in copied if path.startswith("/tmp/")} == removed


def check_variables(found, stage):
    sources = "".join(path.read_text() for path in (ROOT / "runtime" / "src").glob("*.rs"))
    for words in (words for name, words in found if name == "ENV"):
        for name, value in (word.split("=", 1) for word in words.split()):
            assert f'"{name}"' in sources, name
            assert f"/{VARIABLES[name]}" in value, value
            # Where the last stage's Python keeps its packages.
            for version in re.findall(r"lib/python([\d.]+)/", value):
                assert stage.startswith(f"python:{version}-"), value
            assert fnmatch(value, "/usr/local/lib/python*/site-packages/*") or value.startswith("/opt/ratplus/"), value


def flags_of(command, ratplus_bin):
    """The flags that what is started has, as a text."""
    if command[0] == "ratplus":
        return subprocess.run([ratplus_bin, command[1], "--help"], capture_output=True, text=True, check=True).stdout
    if command[:3] == ["python", "-m", "ratplus.dynamo"]:
        return " ".join(re.findall(r'add_argument\("(--[\w-]+)"', (ROOT / "python" / "ratplus" / "dynamo.py").read_text()))
    assert command[0] == "tritonserver"
    return (ROOT / "tests" / "python" / "triton_server.py").read_text() + (ROOT / "docs" / "triton.md").read_text()


def check(text, ratplus_bin):
    found = instructions(text)
    assert [name for name, _ in found if name not in INSTRUCTIONS] == []
    names = [name for name, _ in found]
    assert names.count("ENTRYPOINT") == names.count("USER") == 1
    values = dict(found)
    # Tags that say which.
    stages = stages_of(found)
    for stage in stages:
        assert re.fullmatch(r"[\w./-]+:\d[\w.-]*( AS \w+)?", stage), stage
    copied = check_copies(found)
    check_runs(found, copied)
    check_variables(found, stages[-1])

    user = values["USER"]
    assert user.isdecimal() and user != "0" and names.index("USER") > names.index("RUN")
    made = re.findall(r"useradd --uid (\d+)", " ".join(words for name, words in found if name == "RUN"))
    assert made in ([], [user])
    command = json.loads(values["ENTRYPOINT"])
    assert values["STOPSIGNAL"] == "SIGTERM"
    known = flags_of(command, ratplus_bin)
    flags = [word.split("=")[0] for word in command if word.startswith("--")]
    assert [flag for flag in flags if not re.search(rf"(?<![\w-]){flag}(?![\w-])", known)] == []
    if "--port" in command:
        assert values["EXPOSE"] == command[command.index("--port") + 1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_container_file_is_whole(path, ratplus_bin):
    check(path.read_text(), ratplus_bin)


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("serve", "--no-deps onnxruntime", "onnxruntime"),
        ("serve", "onnxruntime==1.31.1", "onnxruntime"),
        ("serve", "onnxruntime==1.31.1", "onnxruntime==1.0.0"),
        ("serve", "&& rm /tmp/ratplus-*.whl ", ""),
        ("serve", "target/wheel/repaired", "target/wheel"),
        ("serve", "python3.12/site-packages/ratplus", "python3.11/site-packages/ratplus"),
        ("serve", "RATPLUS_ORT_LIBRARY", "RATPLUS_LIBRARY"),
        ("serve", "USER 10001", "USER 10002"),
        ("serve", "USER 10001", "USER root"),
        ("serve", "--drain-seconds", "--drain"),
        ("serve", "EXPOSE 8080", "EXPOSE 8000"),
        ("serve", "python:3.12-slim-bookworm", "python:latest"),
        ("serve", "RUN pip install", "RUN apt-get install"),
        ("dynamo", "--no-deps -r", "-r"),
        ("dynamo", "requirements-dynamo.txt target", "requirements-other.txt target"),
        ("dynamo", "--drain-seconds", "--drain"),
        ("triton", "--target", "--root"),
        ("triton", "--from=runtime", "--from=other"),
        ("triton", "STOPSIGNAL SIGTERM", "STOPSIGNAL SIGKILL"),
    ],
)
def test_one_that_is_not_whole_is_seen(name, old, new, ratplus_bin):
    text = (ROOT / "deploy" / f"{name}.Containerfile").read_text()
    assert old in text
    with pytest.raises((AssertionError, ValueError)):
        check(text.replace(old, new), ratplus_bin)


def test_there_is_one_for_each_way_to_scale_out():
    assert [path.stem for path in FILES] == ["dynamo", "serve", "triton"]
    page = (ROOT / "docs" / "scale-out.md").read_text()
    assert all(f"deploy/{path.name}" in page for path in FILES)
