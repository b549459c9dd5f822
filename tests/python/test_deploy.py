"""The container files of deploy/: what they copy is there or is built, what they install is pinned, and what they start has
the flags that they give. Nothing here builds an image."""

import json
import re
import subprocess

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
REQUIREMENTS = [ROOT / "tests" / "python" / name for name in ("requirements.txt", "requirements-dynamo.txt")]


def instructions(path):
    """Instructions of a container file, each with its words as one line."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in whole.splitlines() if line.strip()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_container_file_is_whole(path, ratplus_bin):
    found = instructions(path)
    assert [name for name, _ in found if name not in INSTRUCTIONS] == []
    names = [name for name, _ in found]
    assert names.count("ENTRYPOINT") == names.count("USER") == 1
    values = dict(found)
    # Tags that say which.
    arguments = dict(words.split("=") for name, words in found if name == "ARG")
    stages = [re.sub(r"\$\{(\w+)\}", lambda use: arguments[use[1]], words) for name, words in found if name == "FROM"]
    for stage in stages:
        assert re.fullmatch(r"[\w./-]+:\d[\w.-]*( AS \w+)?", stage), stage
    user = values["USER"]
    assert user.isdecimal() and user != "0" and names.index("USER") > names.index("RUN")
    # Where the last stage's Python keeps its packages.
    for version in re.findall(r"lib/python([\d.]+)/", values.get("ENV", "")):
        assert stages[-1].startswith(f"python:{version}-")

    for name, words in found:
        if name == "COPY":
            *sources, target = words.split()
            assert target.startswith("/") and target.endswith("/")
            for source in sources:
                if sources[0].startswith("--from="):
                    assert any(stage.endswith(f" AS {sources[0].removeprefix('--from=')}") for stage in stages)
                elif source in BUILT:
                    file, says = BUILT[source]
                    assert says in (ROOT / file).read_text(), source
                else:
                    assert (ROOT / source).is_file(), source
        if name == "RUN":
            for install in re.findall(r"pip install ([^&]*)", words):
                pinned = [word for word in install.split() if "==" in word]
                lists = [word for word in install.split() if word.endswith((".txt", ".whl"))]
                assert pinned or lists, install
                # The releases that the tests run.
                known = [line for file in REQUIREMENTS for line in file.read_text().splitlines()]
                assert [word for word in pinned if word not in known] == []

    command = json.loads(values["ENTRYPOINT"])
    flags = [word.split("=")[0] for word in command if word.startswith("--")]
    if command[0] == "ratplus":
        help_ = subprocess.run([ratplus_bin, command[1], "--help"], capture_output=True, text=True, check=True).stdout
    elif command[:3] == ["python", "-m", "ratplus.dynamo"]:
        help_ = (ROOT / "python" / "ratplus" / "dynamo.py").read_text()
    else:
        help_ = (ROOT / "tests" / "python" / "test_triton.py").read_text() + (ROOT / "docs" / "triton.md").read_text()
    assert [flag for flag in flags if not re.search(rf"{flag}\b", help_)] == []


def test_there_is_one_for_each_way_to_scale_out():
    assert [path.stem for path in FILES] == ["dynamo", "serve", "triton"]
    page = (ROOT / "docs" / "scale-out.md").read_text()
    assert all(f"deploy/{path.name}" in page for path in FILES)
