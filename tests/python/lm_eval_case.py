"""A case for lm-evaluation-harness: a text of whole windows to score, beginnings of lines that go on as the model would or
otherwise, and what the harness has to find. Whoever runs it says how a model is asked."""

import json
import math
import os


def offline(home):
    """An environment in which a program asks this machine alone, and writes below `home`."""
    local = {"HOME": str(home), "HF_HOME": str(home / "hf"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return os.environ | local | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def whole_windows(ids, window):
    """The tokens that fill windows, each of which begins with the last token of the one before: the harness has the last
    one reach back otherwise."""
    ids = list(ids)[: 1 + (len(ids) - 1) // (window - 1) * (window - 1)]
    assert len(ids) > 2 * window
    return ids


def cases(text, scored, encode, answer, goes_on):
    """(tasks, the share of ends that are the model's own). `scored` is what is scored as a whole; `encode` gives a text's
    tokens, `answer` the model's next three tokens as text, and `goes_on(begin, context, end)` whether it goes on so."""
    rolling = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    }
    pairs, greedy = [], []
    for index, line in enumerate(line for line in text.splitlines() if len(line.split()) > 12):
        begin = " ".join(line.split(" ")[:8])
        end = answer(begin) if index % 2 else " " + " ".join(line.split(" ")[8:10])
        pairs.append({"begin": begin, "end": end})
        context = list(encode(begin))
        greedy.append(goes_on(begin, context, list(encode(begin + end))[len(context) :]))
    likely = {"output_type": "loglikelihood", "target_delimiter": "", "metric_list": [{"metric": "acc"}]}
    likely |= {"doc_to_text": "{{begin}}", "doc_to_target": "{{end}}"}
    answers = likely | {"output_type": "generate_until", "metric_list": [{"metric": "exact_match"}]}
    answers |= {"generation_kwargs": {"max_gen_toks": 3, "until": ["\n\n"], "temperature": 0}}
    tasks = {"rolling": (rolling, [{"text": scored}]), "likely": (likely, pairs), "answers": (answers, pairs[1::2])}
    share = sum(greedy) / len(greedy)
    assert 0.2 < share < 0.9
    return tasks, share


def write(folder, tasks):
    """Words of a command line that runs tasks, each of its settings and documents, in `folder`."""
    for name, (settings, documents) in tasks.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
        files = {"data_files": {"test": str(folder / f"{name}.jsonl")}}
        task = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test", **settings}
        # JSON is YAML.
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    return ["--tasks", ",".join(tasks), "--include_path", folder, "--output_path", folder / "out"]


def results(folder):
    """Results by task."""
    (found,) = folder.glob("out/*/results_*.json")
    return json.loads(found.read_text())["results"]


def nll(found, scored):
    """Of all tokens: the harness divides it by words and bytes."""
    return found["rolling"]["bits_per_byte,none"] * math.log(2) * len(scored.encode())
