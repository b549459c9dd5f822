"""What the custom-op library refuses, and how it says so."""

import ctypes
import subprocess
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from plugin_driver import garbage, make_session, run_bound
from plugin_models import Attention, ModelOptions, Pattern, Scan, build_model, sigmoid

NODE = Attention(2, 5, 8, 20, [Pattern(4, 2, 1)] * 3)
NAME = 'node "the_node" (ai.ratplus.DilatedAttention): '


def inputs_of(node, past, seq):
    inputs = {name: np.ones(shape, np.float32) for name, (dtype, shape) in node.inputs("f32").items() if dtype != "i64"}
    inputs |= {"past_length": np.array(past, np.int64), "seq_length": np.array(seq, np.int64)}
    return inputs | (node.tables() if isinstance(node, Attention) else {})


@pytest.mark.parametrize(
    "attributes, expected",
    [
        ({"scale": None}, ["attribute scale: expected a float, found none"]),
        ({"scale": 1}, ["attribute scale: expected a float"]),
        ({"num_heads": None, "initial": None}, ["num_heads: expected an integer", "initial: expected a list of integers"]),
        ({"dilation": [1, 2]}, ["attribute dilation: expected one value or one per head (3), found 2"]),
        ({"num_heads": 0}, ["attribute num_heads: expected 1 to 65536, found 0"]),
        ({"num_heads": 2**40}, ["attribute num_heads: expected 1 to 65536, found 1099511627776"]),
        ({"dilation": [4, 0, 4]}, ["head 1: attribute dilation is 0, expected -1 (none) or 1 or more"]),
        ({"local_window": [-1]}, ["head 0: attribute local_window is -1", "head 2: attribute local_window is -1"]),
        ({"scale": float("nan")}, ["attribute scale: expected a finite number, found NaN"]),
    ],
)
def test_attributes_are_named(operators, attributes, expected):
    with pytest.raises(Exception) as error:
        make_session(operators.library, build_model(NODE, "f32", ModelOptions(attributes=attributes)))
    for text in [NAME, *expected]:
        assert text in str(error.value)


def test_every_wrong_static_shape_is_listed_at_load(operators):
    shapes = {"past_key": (2, 23, 8), "seq_length": (5,), "cos": (20, 3)}
    with pytest.raises(Exception) as error:
        make_session(operators.library, build_model(NODE, "f32", ModelOptions(shapes=shapes)))
    for text in [
        NAME,
        "past_value: expected R = 23 as on earlier inputs, found 24",
        "seq_length: expected B = 2 as on earlier inputs, found 5",
        "cos, sin: expected dh/2 = 4, found 3",
        "R: the patterns keep 24 rows for sequences of 20, found 23",
    ]:
        assert text in str(error.value)


def test_a_wrong_rank_is_refused_at_load(operators):
    with pytest.raises(Exception, match=r"query: expected \[B, L, N\], found \[2, 5\]"):
        make_session(operators.library, build_model(NODE, "f32", ModelOptions(shapes={"query": (2, 5)})))


def test_wrong_shapes_behind_symbols_are_refused_at_run(operators):
    symbols = {name: ("a", "b", "c") for name in ("query", "key", "value", "past_key", "past_value")}
    session = make_session(operators.library, build_model(NODE, "f32", ModelOptions(shapes=symbols)))
    good = inputs_of(NODE, [0, 3], [5, 1])
    assert np.isfinite(session.run(None, good)[0]).all()
    for name, shape, expected in [
        ("past_key", (2, 23, 8), "past_value: expected R = 23 as on earlier inputs, found 24"),
        ("key", (2, 4, 24), "key: expected L = 5 as on earlier inputs, found 4"),
        ("query", (3, 5, 24), "key: expected B = 3 as on earlier inputs, found 2"),
        ("value", (2, 5, 0), "value: expected N = 24 as on earlier inputs, found 0"),
    ]:
        with pytest.raises(Exception) as error:
            session.run(None, good | {name: np.ones(shape, np.float32)})
        assert NAME in str(error.value) and expected in str(error.value)
    assert np.isfinite(session.run(None, good)[0]).all()


def test_empty_batches_and_chunks_are_refused(operators):
    node = Scan(2, 3, 4)
    chunk = {name: ("b", "l", "n") for name in node.chunks}
    state = {"state_key": ("b", "n"), "state_value": ("b", "n"), "past_length": ("b",), "seq_length": ("b",)}
    session = make_session(operators.library, build_model(node, "f32", ModelOptions(shapes=chunk | state)))
    for empty, axis in [(replace(node, batch=0), "B"), (replace(node, seq_len=0), "L"), (replace(node, channels=0), "N")]:
        with pytest.raises(Exception, match=f"{axis}: expected 1 or more, found 0"):
            session.run(None, inputs_of(empty, [0] * empty.batch, [0] * empty.batch))


BIG = 2**63 - 1


@pytest.mark.parametrize(
    "past, seq",
    [([0, -1], [1, 1]), ([0, 0], [1, 6]), ([0, 0], [1, -1]), ([0, 16], [1, 5]), ([0, BIG], [1, 1]), ([0, -BIG - 1], [1, 0]), ([0, 21], [1, 0])],
)  # fmt: skip
def test_lengths_that_do_not_fit_name_the_slot_and_leave_it_as_it_was(operators, past, seq):
    session = make_session(operators.library, build_model(NODE, "f32"))
    inputs = inputs_of(NODE, past, seq)
    inputs["key"] *= 2
    outputs = {name: np.full(shape, 7, np.float32) for name, (_, shape) in NODE.outputs("f32").items()}
    outputs |= {"present_key": inputs["past_key"], "present_value": inputs["past_value"]}
    with pytest.raises(Exception) as error:
        run_bound(session, inputs, outputs)
    message = str(error.value)
    assert NAME in message
    if operators.cuda:
        # Kernels find it, in device memory: the other slot ran, and this one counted as idle.
        assert "slot 1: past_length and seq_length do not fit" in message
        assert np.isfinite(outputs["output"]).all()
        assert (outputs["present_key"][0] != 1).any() and (outputs["present_key"][1] == 1).all()
        run_bound(session, inputs_of(NODE, [0, 3], [1, 1]), outputs)
    else:
        assert f"slot 1: past_length {past[1]} and seq_length {seq[1]} do not fit" in message
        assert (outputs["output"] == 7).all() and (outputs["present_key"] == 1).all()


def take_device_error(library, capacity=1000):
    """What RatplusTakeDeviceError returns and writes."""
    take = ctypes.CDLL(str(library)).RatplusTakeDeviceError
    take.argtypes, take.restype = [ctypes.c_char_p, ctypes.c_size_t], ctypes.c_size_t
    text = ctypes.create_string_buffer(b"#" * (capacity + 1))
    length = take(text if capacity else None, capacity)
    written = min(length + 1, capacity) if length else 0
    assert text.raw[written:-1] == b"#" * (capacity + 1 - written)
    return length, text.value.decode() if written else ""


def leave_device_error(library):
    """Lengths that do not fit in slot 1, found by a run that fails before it can tell."""
    options = ModelOptions(attributes={"ratplus_fault": "launched"})
    session = make_session(library, build_model(NODE, "f32", options))
    with pytest.raises(Exception, match="injected fault in launched"):
        session.run(None, inputs_of(NODE, [0, 3], [5, 6]))


DEVICE_ERROR = f"{NAME}slot 1: past_length and seq_length do not fit"


def test_a_host_can_ask_for_the_error_of_a_device(emulated_library):
    leave_device_error(emulated_library)
    length, text = take_device_error(emulated_library)
    assert text.startswith(DEVICE_ERROR) and length == len(text)
    assert take_device_error(emulated_library) == (0, "")
    for capacity in (0, 1, 30):
        leave_device_error(emulated_library)
        assert take_device_error(emulated_library, capacity) == (length, text[: max(capacity - 1, 0)])
    assert take_device_error(emulated_library)[0] == 0


def test_the_next_run_tells_the_error_of_an_earlier_one(emulated_library):
    session = make_session(emulated_library, build_model(NODE, "f32"))
    leave_device_error(emulated_library)
    with pytest.raises(Exception) as error:
        session.run(None, inputs_of(NODE, [0, 3], [5, 1]))
    assert f"{NAME}stopped: the GPU reports an error of an earlier run: {DEVICE_ERROR}" in str(error.value)
    assert np.isfinite(session.run(None, inputs_of(NODE, [0, 3], [5, 1]))[0]).all()


def test_without_a_device_there_is_no_error_to_take(ort_library):
    assert take_device_error(ort_library) == (0, "")


def test_the_scan_has_no_longest_sequence(operators):
    node = Scan(1, 2, 3)
    session = make_session(operators.library, build_model(node, "f32"))
    found = session.run(None, inputs_of(node, [BIG - 2], [2]))
    g = sigmoid(np.float64(1))
    np.testing.assert_allclose(found[0], np.full((1, 2, 3), g + (1 - g)), rtol=1e-6)
    with pytest.raises(Exception, match="slot 0"):
        session.run(None, inputs_of(node, [BIG - 1], [2]))


def test_buffers_that_overlap_wrongly_are_refused(operators):
    session = make_session(operators.library, build_model(NODE, "f32"))
    inputs = inputs_of(NODE, [0, 3], [5, 1])
    fresh = {name: garbage(*spec) for name, spec in NODE.outputs("f32").items()}
    shape = fresh["present_key"].shape
    size = fresh["present_key"].size
    arena = np.ones(3 * size, np.float32)
    view = lambda start: arena[start : start + size].reshape(shape)  # noqa: E731
    for bad_inputs, bad_outputs, expected in [
        ({"past_key": view(0)}, {"present_key": view(4)}, "present_key and past_key"),
        ({"past_key": view(0)}, {"present_value": view(0)}, "present_value and past_key"),
        ({}, {"present_key": view(0), "present_value": view(8)}, "present_value and present_key"),
        ({}, {"output": inputs["query"]}, "output and query"),
    ]:
        with pytest.raises(Exception) as error:
            run_bound(session, inputs | bad_inputs, fresh | bad_outputs)
        assert NAME in str(error.value) and expected in str(error.value)
    run_bound(session, inputs | {"past_key": view(0)}, fresh | {"present_key": view(0), "present_value": view(size)})


def test_registering_twice_in_one_options_object_is_refused_by_ort(operators):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for _ in range(2):
        options.register_custom_ops_library(str(operators.library))
    with pytest.raises(Exception, match="Domain already set in registry"):
        ort.InferenceSession(build_model(NODE), options, ["CPUExecutionProvider"])
    make_session(operators.library, build_model(NODE))


def test_mixed_element_types_are_refused(operators):
    model = onnx.load_from_string(build_model(Scan(1, 2, 3), "f32"))
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    with pytest.raises(Exception, match="no kernel def matches node inputs for Op: RecurrenceScan"):
        make_session(operators.library, model.SerializeToString())


def test_three_symbols_are_exported_and_the_library_stays(ort_library):
    def tool(*command):
        return subprocess.run([*command, ort_library], capture_output=True, text=True, check=True).stdout

    symbols = [line.split()[-1].split("@")[0] for line in tool("nm", "-D", "--defined-only").splitlines()]
    assert sorted(symbols) == ["RatplusTakeDeviceError", "RatplusWatchKernels", "RegisterCustomOps"]
    dynamic = tool("readelf", "-d", "-W")
    assert "NODELETE" in dynamic
    for absent in ["onnxruntime", "stdc++", "cuda", "nvrtc", "cublas"]:
        assert absent not in dynamic
