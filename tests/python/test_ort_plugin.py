"""The custom-op library in stock onnxruntime: sessions, threads, functions of an operator's name. Its
operators for CUDA take part on the emulator."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from onnx import helper
from operators import DESCRIPTIONS
from operators.dilated_attention import DilatedAttention, Pattern
from plugin_driver import bind, garbage_outputs, make_session, random_inputs, run_bound
from plugin_models import DOMAIN, PLUGIN, ModelOptions, build_model

every_operator = pytest.mark.parametrize("op", DESCRIPTIONS)


def test_one_attribute_value_stands_for_all_heads(operators):
    rng = np.random.default_rng(1)
    node = DilatedAttention(2, 5, 8, 20, [Pattern(4, 2, 1)] * 3)
    inputs = random_inputs(rng, node, "f32", [10, 0], [5, 3])
    results = []
    for uniform in (False, True):
        outputs = garbage_outputs(node, "f32")
        run_bound(make_session(operators.library, build_model(replace(node, uniform=uniform))), inputs, outputs)
        results.append([array.tobytes() for array in outputs.values()])
    assert results[0] == results[1]


@every_operator
def test_two_sessions_and_one_options_object(operators, op):
    node = DESCRIPTIONS[op].example()
    inputs = random_inputs(np.random.default_rng(4), node, "f32", [2, 0], [3, 5])
    first, second = (make_session(operators.library, build_model(node, "f32")) for _ in range(2))
    results = [session.run(None, inputs) for session in (first, second, first)]
    del first
    results.append(second.run(None, inputs))
    for result in results[1:]:
        assert [a.tobytes() for a in result] == [a.tobytes() for a in results[0]]


@every_operator
@pytest.mark.parametrize("config", [{}, {"session__disable_aot_function_inlining": "1"}])
def test_the_kernel_wins_over_a_function_of_its_name(operators, config, op):
    """The function returns garbage: zeros times the inputs."""
    node = DESCRIPTIONS[op].example()
    inputs, outputs = node.inputs("f32"), node.outputs("f32")
    like = {name: next(other for other, spec in inputs.items() if spec == outputs[name]) for name in outputs}
    body = [helper.make_node("Sub", [source, source], [name]) for name, source in like.items()]
    attributes = [*node.attributes(), *PLUGIN]
    opsets = [helper.make_opsetid("", 18)]
    function = helper.make_function(DOMAIN, node.op, list(inputs), list(outputs), body, opsets, attributes)
    model = build_model(node, "f32", ModelOptions(functions=[function]))
    given = random_inputs(np.random.default_rng(8), node, "f32", [2, 0], [3, 5])
    found = make_session(operators.library, model, **config).run(None, given)
    plain = make_session(operators.library, build_model(node, "f32")).run(None, given)
    assert np.abs(plain[0]).max() > 0.1
    assert [a.tobytes() for a in found] == [a.tobytes() for a in plain]


@every_operator
def test_many_threads_share_a_session(operators, op):
    """8 threads x 1000 runs (100 on the emulator), each with inputs of its own, and never another's
    result."""
    runs = 100 if operators.cuda else 1000
    node = replace(DESCRIPTIONS[op].random(np.random.default_rng(6)), seq_len=3)
    session = make_session(operators.library, build_model(node, "f32"), threads=2)
    wrong, ran = [], []

    def work(seed):
        own = np.random.default_rng(seed)
        inputs = random_inputs(own, node, "f32", past=[seed, 20, 0], seq=[3, 1, 2])
        outputs = garbage_outputs(node, "f32")
        run_bound(session, inputs, outputs)
        expected = b"".join(a.tobytes() for a in outputs.values())
        binding = bind(session, inputs, outputs)
        for run in range(runs):
            session.run_with_iobinding(binding)
            if b"".join(a.tobytes() for a in outputs.values()) != expected:
                wrong.append((seed, run))
        ran.append(run + 1)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and ran == [runs] * 8
