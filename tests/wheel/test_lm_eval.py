"""lm-evaluation-harness with a package, offline: the harness of the clients' environment, and this one's module."""

import json
import math
import os
import subprocess
from pathlib import Path

import lm_eval_case
import pytest
import ratplus
from conftest import CASE, ROOT, SIZES

CLIENTS = Path(os.environ.get("RATPLUS_CLIENTS", ROOT / "target" / "clients"))
WINDOW = SIZES["max_seq_len"]


def lm_eval(package, folder, tasks, **options):
    """Results by task."""
    words = ",".join(f"{name}={value}" for name, value in {"package": package, **options}.items())
    command = [CLIENTS / "bin" / "python", "-m", "ratplus.lm_eval", "run", "--model", "ratplus", "--model_args", words]
    command += lm_eval_case.write(folder, tasks)
    local = {"HOME": str(folder), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    local["PYTHONPATH"] = str(Path(ratplus.__file__).parents[1])
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=280, env=os.environ | local, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return lm_eval_case.results(folder)


def test_scores_and_answers_are_those_of_ratplus(program, kjv, model, tmp_path):
    if not (CLIENTS / "bin" / "lm_eval").is_file():
        pytest.fail(f"{CLIENTS} has no lm_eval: run `cargo xtask test`, which installs it", pytrace=False)
    text = (CASE / "sample.txt").read_text()
    ids = lm_eval_case.whole_windows(model.encode(text), WINDOW)
    text = model.decode(ids)
    assert model.encode(text).tolist() == ids
    (tmp_path / "text.txt").write_text(text)
    tasks, greedy = lm_eval_case.cases(
        text,
        text,
        model.encode,
        lambda begin: model.generate(begin, max_new_tokens=3).result().text,
        lambda _, context, end: model.generate(context, max_new_tokens=len(end)).result().tokens.tolist() == end,
    )
    found = lm_eval(kjv, tmp_path, tasks, backend="ort-cpu", max_length=WINDOW - 1)

    flags = ["--text", tmp_path / "text.txt", "--window", WINDOW, "--json"]
    (expected,) = json.loads(program("eval", kjv, *flags).stdout)
    assert expected["tokens"] == len(ids) - 1
    mean = lm_eval_case.nll(found, text) / expected["tokens"]
    print(f"perplexity: lm-eval {math.exp(mean)}, ratplus eval {expected['perplexity']}")
    assert mean == pytest.approx(expected["mean_nll"], rel=1e-6)
    assert found["likely"]["acc,none"] == pytest.approx(greedy)
    assert found["answers"]["exact_match,none"] == 1
