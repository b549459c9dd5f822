"""LongBench's and RULER's forms, over small data."""

import json
import subprocess
import sys

import pytest
import ratplus
from conftest import CASE, export
from ratplus.predict import middle_cut


def run(*words, code=0):
    command = [sys.executable, "-m", "ratplus.predict", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A package of 4096 tokens."""
    return export(tmp_path_factory.mktemp("long") / "kjv", max_seq_len=4096, prefill_lengths=[64, 512], logits="last")


def test_the_middle_is_cut():
    assert middle_cut(range(10), 10) == list(range(10))
    assert middle_cut(range(11), 10) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert middle_cut(range(11), 5) == [0, 1, 9, 10]


def test_longbench(long, tmp_path):
    text = (CASE / "sample.txt").read_text()
    prompts = {"qasper": "Read this: {context}\nAnd say: {input}", "gov_report": "{context}\nIn short:"}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    (tmp_path / "gen.json").write_text(json.dumps({"qasper": 8, "gov_report": 40}))
    rows = [
        {"input": "who?", "context": text[:300], "answers": ["he"], "all_classes": None, "length": 60, "_id": "a"},
        {"input": "what?", "context": text * 3, "answers": ["it"], "all_classes": None, "length": 9000, "_id": "b"},
    ]
    for name in prompts:
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [tmp_path / f"{name}.jsonl" for name in prompts]
    run("longbench", long, *data, "--prompts", tmp_path / "prompts.json", "--max-gen", tmp_path / "gen.json", "-o", tmp_path / "out")
    with ratplus.Model.open(long) as model:
        for name, most, penalty in [("qasper", 8, 1.0), ("gov_report", 40, 1.2)]:
            found = [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
            for row, one in zip(rows, found):
                tokens = model.encode(prompts[name].format(**row)).tolist()
                if len(tokens) > 4096 - most:
                    half = (4096 - most) // 2
                    tokens = tokens[:half] + tokens[-half:]
                expected = model.generate(tokens, max_new_tokens=most, repetition_penalty=penalty).result().text
                assert one == {"pred": expected, "answers": row["answers"], "all_classes": None, "length": row["length"]}
            assert len(found) == 2


def test_ruler(long, tmp_path):
    text = (CASE / "sample.txt").read_text()
    rows = [{"index": 3, "input": text[:500], "outputs": ["x"], "length": 200}]
    (tmp_path / "niah.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("ruler", long, tmp_path / "niah.jsonl", "-o", tmp_path / "out")
    (found,) = [json.loads(line) for line in (tmp_path / "out" / "niah.jsonl").read_text().splitlines()]
    with ratplus.Model.open(long) as model:
        expected = model.generate(rows[0]["input"], max_new_tokens=128).result().text
    assert found == {"pred": expected, **rows[0], "others": {}, "truncation": -1}
    rows.append({"index": 4, "input": text * 3, "outputs": ["x"]})
    (tmp_path / "niah.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = run("ruler", long, tmp_path / "niah.jsonl", "-o", tmp_path / "out", code=2).stderr
    assert "expected prompts of at most 3968 tokens, found more in 1: row 1: " in said
    (tmp_path / "niah.jsonl").write_text("{}\n{\n")
    assert "niah.jsonl, line 2: expected a JSON object" in run("ruler", long, tmp_path / "niah.jsonl", "-o", tmp_path / "out", code=2).stderr


@pytest.fixture()
def files(tmp_path):
    """What longbench asks for, of one good row."""
    (tmp_path / "qasper.jsonl").write_text(json.dumps({"input": "who?", "context": "He.", "answers": ["he"]}) + "\n")
    (tmp_path / "prompts.json").write_text(json.dumps({"qasper": "{context}\n{input}"}))
    (tmp_path / "gen.json").write_text(json.dumps({"qasper": 4}))
    return tmp_path


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("qasper.jsonl", b'{"input": "who?"}\n', "qasper.jsonl: row 0: expected a field 'context', found input"),
        ("qasper.jsonl", b"[1]\n", "qasper.jsonl, line 1: expected a JSON object, found list"),
        ("qasper.jsonl", b"\xff\n", "qasper.jsonl: expected UTF-8"),
        ("qasper.jsonl", b'{"input": "\\ud800", "context": ""}\n', "qasper.jsonl, line 1: expected texts"),
        ("prompts.json", b"{", "prompts.json: expected a JSON object"),
        ("prompts.json", b"{}", "prompts.json: expected an entry `qasper`, found none"),
        ("prompts.json", b'{"qasper": 3}', "prompts.json: `qasper`: expected str, found 3"),
        ("prompts.json", b'{"qasper": "{context"}', "row 0: the prompt '{context' cannot be filled in"),
        ("prompts.json", b'{"qasper": "{}"}', "row 0: the prompt '{}' cannot be filled in"),
        ("gen.json", b'{"qasper": "4"}', "gen.json: `qasper`: expected int, found '4'"),
        ("gen.json", b'{"qasper": 4096}', "gen.json: `qasper`: expected 1 to 4095, found 4096"),
        ("gen.json", b'{"qasper": 0}', "gen.json: `qasper`: expected 1 to 4095, found 0"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(long, files, name, content, said):
    (files / name).write_bytes(content)
    (files / "out").mkdir()
    (files / "out" / "qasper.jsonl").write_text("of an earlier run")
    words = ["longbench", long, files / "qasper.jsonl", "--prompts", files / "prompts.json", "--max-gen", files / "gen.json"]
    error = run(*words, "-o", files / "out", code=2).stderr
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert (files / "out" / "qasper.jsonl").read_text() == "of an earlier run"


def test_all_data_is_checked_before_any_of_it_runs(long, files):
    (files / "good.jsonl").write_text(json.dumps({"input": "x"}) + "\n")
    (files / "bad.jsonl").write_text(json.dumps({"input": 5}) + "\n")
    error = run("ruler", long, files / "good.jsonl", files / "bad.jsonl", "-o", files / "out", code=2).stderr
    assert error == f"error: {files / 'bad.jsonl'}: expected a text `input`, found none in 1: row 0\n"
    assert list((files / "out").iterdir()) == []
    (files / "more").mkdir()
    (files / "more" / "good.jsonl").write_text("")
    error = run("ruler", long, files / "good.jsonl", files / "more" / "good.jsonl", "-o", files / "out", code=2).stderr
    assert error == "error: expected data of different names, found several `good.jsonl`\n"
    for words in (["ruler", long, files / "none.jsonl"], ["ruler", files, files / "good.jsonl"]):
        error = run(*words, "-o", files / "out", code=2).stderr
        assert error.startswith("error: ") and "Traceback" not in error
