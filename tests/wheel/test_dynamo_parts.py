"""What `ratplus.dynamo` makes of Dynamo's requests, without Dynamo; tests/python/test_dynamo.py has the rest."""

import json
import os
import time
from pathlib import Path

import pytest
from conftest import CASE, export
from ratplus import InputError, Model
from ratplus._dynamo_files import endpoint_types, write
from ratplus._dynamo_journal import Journal, Plan
from ratplus._dynamo_request import parameters


def test_requests_become_parameters():
    asked = parameters(
        {
            "model": "kjv",
            "token_ids": [1, 2],
            "sampling_options": {"temperature": 0.5, "top_k": -1, "top_p": 0.9, "n": 1, "seed": -1, "min_p": None},
            "stop_conditions": {"max_tokens": 7, "min_tokens": 2, "stop": ["x"], "stop_token_ids_hidden": [2]},
            "output_options": {"logprobs": 3, "skip_special_tokens": True},
            "eos_token_ids": [2],
            "annotations": [],
            "routing": {"dp_rank": None},
            "extra_args": {"nvext": {"extra_fields": ["timing"]}},
        }
    )
    sampling = {"temperature": 0.5, "top_k": None, "top_p": 0.9, "seed": 2**64 - 1}
    stops = {"max_new_tokens": 7, "min_new_tokens": 2, "ignore_eos": False, "stop_tokens": [2]}
    assert asked == {**sampling, **stops, "logprobs": 3}


def test_what_a_request_leaves_open_is_as_the_server_has_it():
    first, second = parameters({"token_ids": [1]}), parameters({"token_ids": [1], "sampling_options": {}})
    assert first["temperature"] == 1.0 and first["max_new_tokens"] is None and first["logprobs"] is None
    # Every such request has draws of its own.
    assert first.pop("seed") != second.pop("seed")
    assert first == second


@pytest.mark.parametrize(
    "group, fields, form",
    [
        ("json", {"type": "object"}, {"json_schema": '{"type": "object"}'}),
        ("json", "true", {"json_schema": "true"}),
        ("regex", "a+", {"regex": "a+"}),
        ("grammar", 'start: "a"', {"lark": 'start: "a"'}),
        ("choice", ["a", 'b"'], {"lark": 'start: "a" | "b\\""'}),
        ("choice", ["é", "😀"], {"lark": 'start: "é" | "😀"'}),
        ("json", {"const": "é"}, {"json_schema": '{"const": "é"}'}),
    ],
)
def test_forms_are_taken(group, fields, form):
    asked = parameters({"token_ids": [1], "sampling_options": {"guided_decoding": {group: fields}}})
    assert form.items() <= asked.items()


@pytest.mark.parametrize(
    "request_, name",
    [
        ({"sampling_options": {"n": 2}}, "sampling_options.n"),
        ({"sampling_options": {"use_beam_search": True}}, "sampling_options.use_beam_search"),
        ({"sampling_options": {"length_penalty": 2.0}}, "sampling_options.length_penalty"),
        ({"sampling_options": {"allowed_token_ids": [1]}}, "sampling_options.allowed_token_ids"),
        ({"sampling_options": {"bad_words_token_ids": [[1]]}}, "sampling_options.bad_words_token_ids"),
        ({"sampling_options": {"top_k": -2}}, "sampling_options.top_k"),
        ({"sampling_options": {"heat": 1}}, "sampling_options.heat"),
        ({"sampling_options": {"guided_decoding": {"structural_tag": {}}}}, "guided_decoding.structural_tag"),
        ({"stop_conditions": {"max_thinking_tokens": 4}}, "stop_conditions.max_thinking_tokens"),
        ({"output_options": {"logprobs": 21}}, "output_options.logprobs"),
        ({"output_options": {"prompt_logprobs": 1}}, "output_options.prompt_logprobs"),
        ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
        ({"multi_modal_data": {"image_url": []}}, "multi_modal_data"),
        ({"prefill_result": {}}, "prefill_result"),
        ({"routing": {"lora_name": "x"}}, "routing.lora_name"),
        ({"extra_args": {"sampling_options": {"detokenize": False}}}, "extra_args.sampling_options"),
    ],
)
def test_what_is_not_supported_is_named(request_, name):
    with pytest.raises(InputError, match=f"`{name}`"):
        parameters({"token_ids": [1], **request_})


def begin(journal, name, tokens, most, least, seed) -> Plan:
    """What a worker does when a request comes that it has room for."""
    plan = journal.find(name, tokens, most, least, seed)
    journal.keep(name, plan)
    return plan


def test_a_request_that_moves_is_known(tmp_path):
    first, second = Journal(tmp_path / "shared"), Journal(tmp_path / "shared")
    assert begin(first, "a/../b", [5, 6], 10, 4, 77) == Plan([5, 6], [], 10, 4, 77)
    # After three tokens its worker is lost; the seed that another one drew is not taken.
    moved = Plan([5, 6], [7, 8, 9], 10, 4, 77)
    assert begin(second, "a/../b", [5, 6, 7, 8, 9], 7, 4, 78) == moved
    # And once more, before a fourth.
    assert begin(first, "a/../b", [5, 6, 7, 8, 9], 7, 4, 79) == moved
    # Another request of that name begins anew.
    assert begin(first, "a/../b", [5, 6, 7, 8, 9], 10, 0, 80) == Plan([5, 6, 7, 8, 9], [], 10, 0, 80)
    assert begin(first, "a/../b", [4], None, 0, 81) == Plan([4], [], None, 0, 81)
    assert begin(second, "a/../b", [4, 3], None, 0, 82) == Plan([4], [3], None, 0, 81)
    (record,) = (tmp_path / "shared").iterdir()
    record.write_text("{")
    assert begin(second, "a/../b", [4, 3], None, 0, 83) == Plan([4, 3], [], None, 0, 83)
    second.end("a/../b")
    second.end("a/../b")
    assert list((tmp_path / "shared").iterdir()) == []
    # Without a folder nothing is known.
    alone = Journal(None)
    begin(alone, "a", [5], 3, 0, 1)
    assert begin(alone, "a", [5, 6], 2, 0, 2) == Plan([5, 6], [], 2, 0, 2)
    alone.end("a")


def test_a_request_that_no_worker_has_taken_leaves_nothing(tmp_path):
    journal = Journal(tmp_path)
    assert journal.find("a", [5, 6], 10, 0, 77) == Plan([5, 6], [], 10, 0, 77)
    assert list(tmp_path.iterdir()) == []


def test_what_goes_on_from_what_was_told_has_so_much_less_to_come():
    assert Plan([5, 6], [7, 8, 9], 10, 5, 77).from_told() == Plan([5, 6, 7, 8, 9], [], 7, 2, 77)
    assert Plan([5, 6], [7, 8, 9], None, 2, 77).from_told() == Plan([5, 6, 7, 8, 9], [], None, 0, 77)


def test_more_tokens_at_least_than_at_most_are_refused(tmp_path):
    journal = Journal(tmp_path)
    with pytest.raises(InputError, match="`stop_conditions.min_tokens`: expected at most `max_tokens`, 4, found 5"):
        journal.find("a", [5], 4, 5, 1)
    # One that has moved has fewer to come.
    begin(journal, "b", [5], 9, 5, 1)
    assert journal.find("b", [5, 6, 7, 8, 9, 10, 11], 3, 5, 2) == Plan([5], [6, 7, 8, 9, 10, 11], 9, 5, 1)
    # Without records it cannot be known whether it has.
    assert Journal(None).find("b", [5, 6, 7, 8, 9, 10, 11], 3, 5, 2).least == 3


def test_a_folder_that_cannot_be_written_ends_no_request(tmp_path, caplog):
    journal = Journal(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert begin(journal, "a", [5], 3, 0, 1) == Plan([5], [], 3, 0, 1)
    assert "draws" in caplog.text
    journal.end("a")
    (tmp_path / "gone").write_text("a file")
    assert begin(journal, "a", [5], 3, 0, 1) == Plan([5], [], 3, 0, 1)
    assert "cannot be read" in caplog.text
    journal.end("a")


def test_records_that_nobody_ended_go_and_nothing_else(tmp_path):
    journal = Journal(tmp_path)
    begin(journal, "old", [1], 1, 0, 1)
    (old,) = tmp_path.iterdir()
    # One that was not written whole.
    (tmp_path / f"{old.name}.0123456789abcdef").write_text("{")
    begin(journal, "new", [1], 1, 0, 1)
    (new,) = {path.name for path in tmp_path.iterdir()} - {old.name, f"{old.name}.0123456789abcdef"}
    for name in ("notes.txt", f"{'0' * 64}.json", f"{new}.backup", f"x{old.name}"):
        (tmp_path / name).write_text("somebody's")
    (tmp_path / "folder").mkdir()
    foreign = {path.name for path in tmp_path.iterdir()} - {old.name, f"{old.name}.0123456789abcdef", new}
    for path in tmp_path.iterdir():
        if path.name != new:
            os.utime(path, (time.time() - 10**6,) * 2)
    Journal(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == foreign | {new}


def test_the_frontend_reads_a_tokenizer(model, tmp_path):
    assert endpoint_types(model) == "completions"
    folder = write(model, tmp_path)
    # Models with the same name and tokenizer are not taken for one.
    assert folder.name == json.loads((Path(model.directory) / "manifest.json").read_text())["blake3"]
    read = {path.name: json.loads(path.read_text()) for path in folder.iterdir()}
    config, words = read["config.json"], read["tokenizer_config.json"]
    assert (config["vocab_size"], config["max_position_embeddings"]) == (model.vocab_size, model.max_seq_len)
    assert config["eos_token_id"] == model.end_tokens == read["generation_config.json"]["eos_token_id"]
    assert "chat_template" not in words
    own = json.loads((CASE / "tokenizer.json").read_text())
    assert read["tokenizer.json"]["model"] == own["model"] and read["tokenizer.json"]["truncation"] is None


def test_the_frontend_begins_and_ends_texts_as_templates_do(tmp_path):
    """Also where the token that begins one is not among those that were added to the tokenizer."""
    (tmp_path / "chat.jinja").write_text("{{ bos_token }}|{{ eos_token }}")
    tokenizer = json.loads((CASE / "tokenizer.json").read_text())
    without = [token for token in tokenizer["added_tokens"] if token["content"] != "<s>"]
    for index, added in enumerate([tokenizer["added_tokens"], without]):
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer | {"added_tokens": added}))
        options = dict(tokenizer=tmp_path / "tokenizer.json", chat_template=tmp_path / "chat.jinja")
        with Model.open(export(tmp_path / f"kjv{index}", **options)) as model:
            folder = write(model, tmp_path / f"files{index}")
            words = json.loads((folder / "tokenizer_config.json").read_text())
            begin = json.loads((folder / "config.json").read_text())["bos_token_id"]
            assert f"{words['bos_token']}|{words['eos_token']}" == model.chat([]) == "<s>|</s>"
            assert model.token(begin) == "<s>" and begin == model.begin_token


def test_a_package_says_what_it_can_be_asked_for(tmp_path):
    (tmp_path / "chat.jinja").write_text("{{ messages[0].content }}")
    with Model.open(export(tmp_path / "chat", chat_template=tmp_path / "chat.jinja")) as model:
        assert endpoint_types(model) == "chat,completions"
        words = json.loads((write(model, tmp_path / "files") / "tokenizer_config.json").read_text())
        assert words["chat_template"] == "{{ messages[0].content }}"
    with Model.open(export(tmp_path / "ids", tokenizer=None)) as model:
        with pytest.raises(InputError, match="--tokenizer"):
            endpoint_types(model)
