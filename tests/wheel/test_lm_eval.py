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


def run(folder, *words):
    """What the clients' Python prints, with this environment's module."""
    if not (CLIENTS / "bin" / "lm_eval").is_file():
        pytest.fail(f"{CLIENTS} has no lm_eval: run `cargo xtask test`, which installs it", pytrace=False)
    command = [CLIENTS / "bin" / "python", *words]
    environment = lm_eval_case.offline(folder) | {"PYTHONPATH": str(Path(ratplus.__file__).parents[1])}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=280, env=environment, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def lm_eval(package, folder, tasks, **options):
    """Results by task."""
    words = ",".join(f"{name}={value}" for name, value in {"package": package, **options}.items())
    words = ["-m", "ratplus.lm_eval", "run", "--model", "ratplus", "--model_args", words]
    run(folder, *words, *lm_eval_case.write(folder, tasks))
    return lm_eval_case.results(folder)


def test_scores_and_answers_are_those_of_ratplus(program, kjv, model, tmp_path):
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


EMPTY = """
import json, sys
from types import SimpleNamespace
from ratplus.lm_eval import RatplusLM

def asked(*pairs):
    return [SimpleNamespace(args=pair) for pair in pairs]

pairs = [("", ""), ("", "In"), ("", "In the beginning"), (" ", "In"), (" ", "In the beginning"), ("In", "")]
texts = [("",), ("In",), ("In the beginning",)]
found = []
for prefix in (None, 1):
    lm = RatplusLM(sys.argv[1], prefix_token_id=prefix)
    found.append([lm.loglikelihood(asked(*pairs)), lm.loglikelihood_rolling(asked(*texts))])
    until = asked(("In", {"max_gen_toks": 3}), ("", {"max_gen_toks": 2}))
    try:
        found[-1].append(lm.generate_until(until))
    except ValueError as error:
        found[-1].append([str(error), lm.model.snapshot()["new_tokens"]])
print(json.dumps(found))
"""


def test_texts_of_nothing_and_of_one_token(kjv, model, tmp_path):
    bare, begun = json.loads(run(tmp_path, "-c", EMPTY, kjv).splitlines()[-1])

    def total(text, begin=()):
        ids = [*begin, *model.encode(text)]
        return float(model.score(ids).logprobs.sum(dtype="float64")) if len(ids) > 1 else 0.0

    texts = ["", "In", "In the beginning"]
    assert len(model.encode("In")) == 1 and len(model.encode("")) == 0
    for (pairs, rolling, answers), begin in [(bare, []), (begun, [1])]:
        assert rolling == pytest.approx([total(text, begin) for text in texts], rel=1e-6)
        scored = texts + [" In", " In the beginning"]
        assert [pair[0] for pair in pairs[:5]] == pytest.approx([total(text, begin) for text in scored], rel=1e-6)
        # Nothing is certain.
        assert pairs[0] == pairs[5] == [0.0, True]
    text, new_tokens = bare[2]
    assert "`prefix_token_id=N` begins such prompts" in text and "max_gen_toks" not in text
    # And nothing ran in vain for it.
    assert new_tokens == 0
    expected = [model.generate(prompt, max_new_tokens=most).result().text for prompt, most in [("In", 3), ([1], 2)]]
    assert begun[2] == expected
