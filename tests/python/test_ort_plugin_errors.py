"""What the custom-op library refuses beside what every host does (test_operators.py), errors of a
device, and what it exports."""

import ctypes
import subprocess

import numpy as np
import onnxruntime as ort
import pytest
from operators.dilated_attention import DilatedAttention
from operators.recurrence_scan import RecurrenceScan, sigmoid
from plugin_driver import lengths_of, make_session
from plugin_models import ModelOptions, build_model

NODE = DilatedAttention.example()
NAME = 'node "the_node" (ai.ratplus.DilatedAttention): '


def inputs_of(node, past, seq):
    inputs = {name: np.ones(shape, np.float32) for name, (dtype, shape) in node.inputs("f32").items() if dtype != "i64"}
    return inputs | node.tables() | lengths_of(node, past, seq)


def test_attributes_have_64_bits(operators):
    options = ModelOptions(attributes={"num_heads": 2**40})
    with pytest.raises(Exception, match="attribute num_heads: expected 1 to 65536, found 1099511627776"):
        make_session(operators.library, build_model(NODE, "f32", options))


def take_device_error(library, capacity=1000):
    """What RatplusTakeDeviceError returns and writes."""
    take = ctypes.CDLL(str(library)).RatplusTakeDeviceError
    take.argtypes, take.restype = [ctypes.c_char_p, ctypes.c_size_t], ctypes.c_size_t
    text = ctypes.create_string_buffer(b"#" * (capacity + 1))
    length = take(text if capacity else None, capacity)
    written = min(length + 1, capacity) if length else 0
    assert text.raw[written:-1] == b"#" * (capacity + 1 - written)
    return length, text.value.decode() if written else ""


def leave_error(session):
    """Lengths that do not fit in slot 1."""
    session.run(None, inputs_of(NODE, [0, 3], [5, 6]))


def test_a_host_can_ask_for_lengths_that_did_not_fit(operators):
    session = make_session(operators.library, build_model(NODE, "f32"))
    leave_error(session)
    length, text = take_device_error(operators.library)
    assert text.startswith(f"{NAME}slot 1: past_length") and "do not fit" in text and length == len(text)
    assert take_device_error(operators.library) == (0, "")
    for capacity in (0, 1, 30):
        leave_error(session)
        assert take_device_error(operators.library, capacity) == (length, text[: max(capacity - 1, 0)])
    assert take_device_error(operators.library)[0] == 0


def test_what_a_session_leaves_fails_no_other(operators):
    session, other = (make_session(operators.library, build_model(NODE, "f32")) for _ in range(2))
    expected = other.run(None, inputs_of(NODE, [0, 3], [5, 1]))
    leave_error(session)
    for again in (other, session):
        found = again.run(None, inputs_of(NODE, [0, 3], [5, 1]))
        assert [array.tobytes() for array in found] == [array.tobytes() for array in expected]
    assert take_device_error(operators.library)[0] > 0


def test_a_scan_without_a_longest_sequence_has_none(operators):
    node = RecurrenceScan(1, 2, 3)
    session = make_session(operators.library, build_model(node, "f32", ModelOptions(attributes={"max_seq_len": None})))
    found = session.run(None, inputs_of(node, [2**63 - 3], [2]))
    g = sigmoid(np.float64(1))
    np.testing.assert_allclose(found[0], np.full((1, 2, 3), g + (1 - g)), rtol=1e-6)
    assert take_device_error(operators.library) == (0, "")
    session.run(None, inputs_of(node, [2**63 - 2], [2]))
    assert "slot 0" in take_device_error(operators.library)[1]


def test_registering_twice_in_one_options_object_is_refused_by_ort(operators):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for _ in range(2):
        options.register_custom_ops_library(str(operators.library))
    with pytest.raises(Exception, match="Domain already set in registry"):
        ort.InferenceSession(build_model(NODE), options, ["CPUExecutionProvider"])
    make_session(operators.library, build_model(NODE))


def test_four_symbols_are_exported_and_the_library_stays(ort_library):
    def tool(*command):
        return subprocess.run([*command, ort_library], capture_output=True, text=True, check=True).stdout

    symbols = [line.split()[-1].split("@")[0] for line in tool("nm", "-D", "--defined-only").splitlines()]
    assert sorted(symbols) == ["RatplusDescribe", "RatplusTakeDeviceError", "RatplusWatchNodes", "RegisterCustomOps"]
    dynamic = tool("readelf", "-d", "-W")
    assert "NODELETE" in dynamic
    for absent in ["onnxruntime", "stdc++", "cuda", "nvrtc", "cublas"]:
        assert absent not in dynamic
