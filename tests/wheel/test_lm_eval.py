"""lm-evaluation-harness with a package, offline: the harness of the clients' environment, and this one's module."""

import json
import math
import os
import subprocess
from pathlib import Path

import pytest
import ratplus
from conftest import CASE, ROOT, SIZES

CLIENTS = Path(os.environ.get("RATPLUS_CLIENTS", ROOT / "target" / "clients"))
WINDOW = SIZES["max_seq_len"]


def lm_eval(package, folder, tasks, **options):
    """Results by task; `tasks` has each one's settings and documents."""
    for name, (settings, documents) in tasks.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
        files = {"data_files": {"test": str(folder / f"{name}.jsonl")}}
        task = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test", **settings}
        # JSON is YAML.
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    words = ",".join(f"{name}={value}" for name, value in {"package": package, **options}.items())
    command = [CLIENTS / "bin" / "python", "-m", "ratplus.lm_eval", "run", "--model", "ratplus", "--model_args", words]
    command += ["--tasks", ",".join(tasks), "--include_path", folder, "--output_path", folder / "out"]
    local = {"HOME": str(folder), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    local["PYTHONPATH"] = str(Path(ratplus.__file__).parents[1])
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=280, env=os.environ | local, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("out/**/results_*.json")
    return json.loads(found.read_text())["results"]


def test_scores_and_answers_are_those_of_ratplus(program, kjv, model, tmp_path):
    if not (CLIENTS / "bin" / "lm_eval").is_file():
        pytest.fail(f"{CLIENTS} has no lm_eval: run `cargo xtask test`, which installs it", pytrace=False)
    text = (CASE / "sample.txt").read_text()
    # Whole windows: the harness has the last one reach back otherwise.
    ids = model.encode(text)
    ids = ids[: 1 + (len(ids) - 1) // (WINDOW - 1) * (WINDOW - 1)]
    text = model.decode(ids)
    assert model.encode(text).tolist() == ids.tolist() and len(ids) > 2 * WINDOW
    (tmp_path / "text.txt").write_text(text)
    rolling = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    }
    # Beginnings of lines, of which some go on as the model would, some otherwise.
    pairs, greedy = [], []
    for index, line in enumerate(line for line in text.splitlines() if len(line.split()) > 12):
        begin = " ".join(line.split(" ")[:8])
        answer = model.generate(begin, max_new_tokens=3).result().text
        pairs.append({"begin": begin, "end": answer if index % 2 else " " + " ".join(line.split(" ")[8:10])})
        context = model.encode(begin)
        end = model.encode(begin + pairs[-1]["end"])[len(context) :]
        greedy.append(model.generate(context, max_new_tokens=len(end)).result().tokens.tolist() == end.tolist())
    likely = {"output_type": "loglikelihood", "target_delimiter": "", "metric_list": [{"metric": "acc"}]}
    likely |= {"doc_to_text": "{{begin}}", "doc_to_target": "{{end}}"}
    answers = likely | {"output_type": "generate_until", "metric_list": [{"metric": "exact_match"}]}
    answers |= {"generation_kwargs": {"max_gen_toks": 3, "until": ["\n\n"], "temperature": 0}}
    tasks = {"rolling": (rolling, [{"text": text}]), "likely": (likely, pairs), "answers": (answers, pairs[1::2])}
    found = lm_eval(kjv, tmp_path, tasks, backend="ort-cpu", max_length=WINDOW - 1)

    flags = ["--text", tmp_path / "text.txt", "--window", WINDOW, "--json"]
    (expected,) = json.loads(program("eval", kjv, *flags).stdout)
    assert expected["tokens"] == len(ids) - 1
    # The harness divides the text's score by its bytes.
    nll = found["rolling"]["bits_per_byte,none"] * math.log(2) * len(text.encode())
    print(f"perplexity: lm-eval {math.exp(nll / expected['tokens'])}, ratplus eval {expected['perplexity']}")
    assert nll / expected["tokens"] == pytest.approx(expected["mean_nll"], rel=1e-6)
    assert 0.2 < sum(greedy) / len(greedy) < 0.9
    assert found["likely"]["acc,none"] == pytest.approx(sum(greedy) / len(greedy))
    assert found["answers"]["exact_match,none"] == 1
