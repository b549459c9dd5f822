"""Every operator on every host: what operators/ describes against what hosts.py runs."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import constant
from hosts import HOSTS, OrtCpu, close
from operator_tool import library, schemas
from operators import DESCRIPTIONS, Rounding, file_of, rounding_to
from plugin_driver import Replay, garbage_outputs, random_inputs, random_plan, run_bound
from plugin_models import DOMAIN, DTYPES, PLUGIN, ModelOptions, numpy_type

SEQ_LENS = [1, 5, 16]
# Rounding once, and a little.
UNITS = {"f32": 2**-22, "f16": 2**-11, "bf16": 2**-8}
BIG = 2**63 - 1


def test_every_operator_is_described_in_a_file_of_its_name():
    assert sorted(DESCRIPTIONS) == sorted(schemas())
    assert (library()["domain"], library()["plugin_attributes"]) == (DOMAIN, PLUGIN)
    for op, description in DESCRIPTIONS.items():
        assert description.__module__ == f"operators.{file_of(op)}"


@pytest.mark.parametrize("op", DESCRIPTIONS)
def test_a_description_fits_its_schema(op):
    schema = schemas()[op]
    axes = {axis for port in schema["inputs"] + schema["outputs"] for axis in port["axes"]}
    for node in (DESCRIPTIONS[op].example(), DESCRIPTIONS[op].random(np.random.default_rng(1))):
        assert axes <= node.dims().keys()
        own = node.attributes()
        wanted = [attribute["name"] for attribute in schema["attributes"] if not attribute["optional"] or attribute["name"] in own]
        assert list(own) == wanted
        known = [*node.chunks, *node.states, *node.lengths, *node.tables()]
        assert sorted(known) == sorted(node.inputs("f32"))
        assert sorted([*node.results, *node.states.values()]) == sorted(node.outputs("f32"))
        tokens = {name: rows.astype(np.float64) for name, rows in node.tokens(np.random.default_rng(2), "f32", 7).items()}
        assert sorted(node.model(tokens)) == sorted(node.results)
        assert sorted(node.memory(tokens)) == sorted(node.states)


@pytest.fixture(scope="module")
def host(request):
    """The host that a case names."""
    return HOSTS[request.param].make(request)


def cases(where=lambda host, description: True, types=None):
    """Parameters: every host that an operator's tests take, with every pair of types that it takes, those of
    `types` alone where given."""
    made = []
    for name, host in HOSTS.items():
        for op, description in DESCRIPTIONS.items():
            if where(host, description):
                for t, c in host.types(description):
                    if types is None or (t, c) in types:
                        names = [name, op, *dict.fromkeys((t, c))]
                        made.append(pytest.param(name, description, t, c, id="-".join(names)))
    return pytest.mark.parametrize("host, description, t, c", made, indirect=["host"])


F32 = [("f32", "f32")]
ONE_TYPE = [(t, t) for t in DTYPES]


def runs_plugins(host, description):
    """ONNX Runtime with the library."""
    return issubclass(host, HOSTS["ort-cpu"])


def of_types(node, t, c):
    return node if c == t else replace(node, cache=c)


class Fed:
    """A random node of a host, sequences for it, and what it makes of them."""

    def __init__(self, host, description, t, c, seed, **options):
        self.host, self.t, self.rng = host, t, np.random.default_rng(seed)
        self.node = of_types(description.random(self.rng), t, c)
        self.nodes = {seq_len: replace(self.node, seq_len=seq_len) for seq_len in SEQ_LENS}
        self.sessions = {seq_len: host.session(node, t, **options) for seq_len, node in self.nodes.items()}
        self.lengths = [self.node.max_seq_len, 1, int(self.rng.integers(2, self.node.max_seq_len))]
        self.sequences = self.random_sequences(self.lengths)

    def random_sequences(self, lengths):
        """By input, one a slot."""
        slots = [self.node.tokens(self.rng, self.t, length) for length in lengths]
        return {name: [tokens[name] for tokens in slots] for name in self.node.chunks}

    def plan(self):
        return random_plan(self.rng, SEQ_LENS, self.lengths)

    def replay(self, in_place=False, **options):
        return Replay(self.nodes, self.t, self.sessions, in_place, **options)

    def run(self, plan, **options):
        """The results, and the states after them."""
        replay = self.replay(**options)
        return replay.feed(self.sequences, plan), replay.state

    def tokens(self, slot):
        return {name: rows[slot].astype(np.float64) for name, rows in self.sequences.items()}

    def close(self):
        for session in self.sessions.values():
            close(session)


@pytest.fixture
def feed(request):
    """Makes a `Fed` that the test's end closes."""

    def make(*arguments, **options):
        made = Fed(*arguments, **options)
        request.addfinalizer(made.close)
        return made

    return make


def bits(arrays, slot=None):
    """The bytes of results or states, of one slot or of all."""
    part = slice(None) if slot is None else slice(slot, slot + 1)
    return {name: b"".join(rows.tobytes() for rows in array[part]) for name, array in arrays.items()}


def limits(fed, slot):
    """By result, what is exact and the largest error allowed."""
    node, t = fed.node, fed.t
    to_type = rounding_to(t)
    operand = to_type if fed.host.rounds_operands(node, t) else Rounding.operand
    exact = node.model(fed.tokens(slot))
    rounded = node.model(fed.tokens(slot), Rounding(rounding_to(node.cache or t), operand))
    found = {}
    for name, values in exact.items():
        f32_limit = constant("F32_LOGIT") * np.abs(values).max()
        naive = constant("NAIVE_ROUNDING_FACTOR") * np.abs(to_type(rounded[name]) - values).max()
        mixed = max(naive, f32_limit) if node.cache else naive
        found[name] = values, f32_limit if t == "f32" and not node.cache else mixed
    return found


def check_states(fed, state):
    """Rows that were written hold what was put there, rounded once."""
    for slot in range(fed.node.batch):
        for name, (values, more) in fed.node.memory(fed.tokens(slot)).items():
            dtype, _ = fed.node.inputs(fed.t)[name]
            written = ~np.isnan(values)
            found, wanted = state[name][slot][written], values[written]
            what = f"{name} of slot {slot} of {fed.node}"
            if more == 0:
                assert found.tobytes() == wanted.astype(numpy_type(dtype)).tobytes(), what
                continue
            largest = constant("F32_LOGIT") * np.abs(wanted).max(initial=0) if more is None else more
            error = np.abs(found.astype(np.float64) - wanted)
            assert (error <= 1.01 * UNITS[dtype] * np.abs(wanted) + largest).all(), f"{what}: {error.max():.3g}"


@cases()
def test_numbers_are_the_definition_in_any_chunks(host, description, t, c, feed):
    """Ragged chunks, idle slots, padding, states of NaN before; f32 within its tolerance, less within a
    factor of naive rounding's error."""
    for seed in range(host.seeds if t == c else min(host.seeds, 3)):
        fed = feed(host, description, t, c, seed)
        states, results = [], []
        for _ in range(2):
            found, state = fed.run(fed.plan())
            results.append(found)
            states.append(bits(state))
            check_states(fed, state)
        for slot in range(fed.node.batch):
            for name, (exact, limit) in limits(fed, slot).items():
                one, other = (found[name][slot].astype(np.float64) for found in results)
                errors = [np.abs(one - exact).max(), np.abs(other - exact).max(), np.abs(one - other).max()]
                what = f"seed {seed}: {name} of slot {slot} of {fed.node}"
                assert max(errors) <= limit, f"{what}: errors {errors}, limit {limit:.3g}"
        if fed.node.states_are_exact:
            assert states[0] == states[1], f"seed {seed}: {fed.node}"


@cases(lambda host, description: host.in_place and description.schema()["aliases"])
def test_one_buffer_for_past_and_present_is_two_bit_for_bit(host, description, t, c, feed):
    """Not of the function bodies, which read a state after they have written it."""
    fed = feed(host, description, t, c, 7)
    for _ in range(2):
        plan = fed.plan()
        runs = []
        for in_place in (False, True):
            replay = fed.replay(in_place)
            first = dict(replay.state)
            results = replay.feed(fed.sequences, plan)
            assert all((array is first[name]) == in_place for name, array in replay.state.items())
            runs.append((bits(results), bits(replay.state)))
        assert runs[0] == runs[1]


@cases(lambda host, description: description.schema()["aliases"], ONE_TYPE)
def test_nothing_of_an_unwritten_state_gets_through(host, description, t, c, feed):
    """Whatever the memory held, infinite and not; and after another sequence, past 0 starts over."""
    fed = feed(host, description, t, c, 4)
    plan = fed.plan()
    clean, _ = fed.run(plan, fill=0)
    assert any(np.abs(rows.astype(np.float64)).max() > 0.1 for arrays in clean.values() for rows in arrays)
    for fill in (np.nan, np.inf, -3e38):
        assert bits(fed.run(plan, fill=fill)[0]) == bits(clean), fill
    replay, batch = fed.replay(host.in_place), fed.node.batch
    other = fed.random_sequences([fed.node.max_seq_len] * batch)
    replay.feed(other, [(16, [16] * batch), (16, [16] * batch), (5, [5, 0, 5])])
    replay.past[:] = 0
    assert bits(replay.feed(fed.sequences, plan)) == bits(clean)


@cases(types=ONE_TYPE)
def test_a_slot_does_not_see_the_others(host, description, t, c, feed):
    """Whatever they hold, no number even, and however long they are; an idle slot stays as it was."""
    fed = feed(host, description, t, c, 5)
    longest, batch = fed.node.max_seq_len, fed.node.batch
    steps = [(seq_len, counts[1]) for seq_len, counts in random_plan(fed.rng, SEQ_LENS, [longest] * batch)]
    runs = []
    for numbers in (True, True, False):
        sequences = fed.random_sequences([longest] * batch)
        for name, slots in sequences.items():
            if not numbers:
                slots[:] = [np.full_like(rows, np.nan) for rows in slots]
            slots[1] = np.resize(fed.sequences[name][0], slots[1].shape)
        replay, found = fed.replay(host.in_place, finite=False), []
        for seq_len, own in steps:
            room = np.minimum(seq_len, longest - replay.past)
            counts = [own if slot == 1 else int(fed.rng.integers(0, room[slot] + 1)) for slot in range(batch)]
            before = {name: array.copy() for name, array in replay.state.items()}
            results = replay.feed(sequences, [(seq_len, counts)])
            found.append((bits(results, 1), bits(replay.state, 1)))
            for slot in range(batch):
                if counts[slot] == 0:
                    assert bits(replay.state, slot) == bits(before, slot), f"slot {slot} is idle"
        runs.append(found)
    assert runs[0] == runs[1] == runs[2]


def lengths_that_do_not_fit(node):
    """(past, seq) of slot 1."""
    seq_len, longest = node.seq_len, node.max_seq_len
    made = [(-1, 1), (0, seq_len + 1), (0, -1), (BIG, 1), (-BIG - 1, 0)]
    return [*made, (longest - seq_len + 1, seq_len), (longest + 1, 0)]


@cases(lambda host, description: "past_length" in description.example().lengths, F32)
def test_lengths_that_do_not_fit_are_told_and_the_slot_stays_as_it_was(host, description, t, c):
    node = description.example()
    session = host.session(node, t)
    rng = np.random.default_rng(3)
    for past, seq in lengths_that_do_not_fit(node):
        inputs = random_inputs(rng, node, t, [0, past], [1, seq])
        for name in node.states:
            inputs[name][:] = 1
        outputs = {name: np.full_like(array, 7) for name, array in garbage_outputs(node, t).items()}
        if host.in_place:
            outputs |= {new: inputs[old] for old, new in node.states.items()}
        told = host.run_unfit(session, inputs, outputs)
        case = f"past {past}, seq {seq}: {told}"
        states, results = [outputs[name] for name in node.states.values()], [outputs[name] for name in node.results]
        if host.unfit == "error":
            assert f"slot 1: past_length {past} and seq_length {seq} do not fit" in told and node.op in told, case
            untouched = [7] * len(results) + [1 if host.in_place else 7] * len(states)
            assert all((array == value).all() for array, value in zip(results + states, untouched)), case
        else:
            # The other slot ran, and this one was idle.
            assert all(np.isfinite(array[0]).all() and (array[0, 0] != 7).any() for array in results), case
            assert all((array[0] != 1).any() and (array[1] == 1).all() for array in states), case
            if host.unfit == "report":
                assert all(np.isfinite(array).all() for array in results), case
            else:
                assert all(np.isnan(array[1]).all() for array in results), case
            texts = ("slot 1: past_length", "do not fit", "the_node", node.op)
            assert all(text in told for text in texts) if host.tells else told == "", case
        good = garbage_outputs(node, t)
        run_bound(session, random_inputs(rng, node, t, [0, 3], [1, 1]), good)
        assert all(np.isfinite(good[name]).all() for name in node.results), case
    close(session)


@cases(lambda host, description: "past_length" not in description.example().lengths, ONE_TYPE)
def test_a_length_that_does_not_fit_makes_its_slot_nan_and_no_other(host, description, t, c):
    """Of an operator that is not told where a slot's sequence stands."""
    node = description.example()
    session, rng = host.session(node, t), np.random.default_rng(3)
    good = random_inputs(rng, node, t, [0, 0], [node.seq_len, node.seq_len])
    expected = garbage_outputs(node, t)
    run_bound(session, good, expected)
    for seq in (-1, node.seq_len + 1, BIG, -BIG - 1):
        found = garbage_outputs(node, t)
        run_bound(session, good | {"seq_length": np.array([node.seq_len, seq])}, found)
        for name in node.results:
            assert found[name][0].tobytes() == expected[name][0].tobytes(), f"{name}, seq {seq}"
            assert np.isnan(found[name][1]).all(), f"{name}, seq {seq}"
    # Padding is zero, and NaN where an operator before made it so.
    for value, check in ((1, lambda rows: (rows == 0).all()), (np.nan, lambda rows: np.isnan(rows).all())):
        inputs, found = dict(good), garbage_outputs(node, t)
        inputs["seq_length"] = np.array([node.seq_len, 1])
        for name in node.chunks:
            inputs[name] = good[name].copy()
            inputs[name][1, 1:] = value
        run_bound(session, inputs, found)
        for name in node.results:
            assert np.isfinite(found[name][1, 0]).all() and check(found[name][1, 1:]), name
    close(session)


OTHER_KIND = {"int": 2.5, "ints": "text", "float": 1, "string": 1}


def attributes_refused(description):
    """(attributes to replace, what the refusal says)."""
    attributes = description.schema()["attributes"]
    texts = {attribute["name"]: attribute["kind_text"] for attribute in attributes}
    expected = {name: f"attribute {name}: expected {text}" for name, text in texts.items()}
    needed = {a["name"]: expected[a["name"]] for a in attributes if not a["optional"]}
    made = [({name: None}, [f"{text}, found none"]) for name, text in needed.items()]
    if needed:
        made.append(({name: None for name in needed}, [f"{text}, found none" for text in needed.values()]))
    for attribute in attributes:
        # ONNX Runtime reads an empty list of anything else.
        text = f"attribute {attribute['name']}: expected " if attribute["kind"] == "ints" else expected[attribute["name"]]
        made.append(({attribute["name"]: OTHER_KIND[attribute["kind"]]}, [text]))
    return made + list(description.bad_attributes)


@cases(lambda host, description: host.refuses and description.schema()["attributes"], F32)
def test_attributes_that_are_wrong_are_named(host, description, t, c):
    node = description.example()
    assert host.refusal(node, t, ModelOptions()) == ""
    for attributes, expected in attributes_refused(description):
        told = host.refusal(node, t, ModelOptions(attributes=attributes))
        for text in ["the_node", node.op, *expected]:
            assert text in told, f"{attributes}: {told}"


def shapes_refused(host, node):
    """(shapes of inputs to replace, what the refusal says): what two ports say differently, every rank,
    nothing at all."""
    ports, made = node.ports(), []
    shapes = {name: shape for name, (_, shape) in node.inputs("f32").items()}
    for port in ports:
        name, axes = port["name"], port["axes"]
        # To ONNX Runtime, no dimension is any number of them.
        rank = shapes[name][:-1] or (*shapes[name], 1)
        made.append(({name: rank}, [f"{name}: expected {host.dimensions(axes)}, found "]))
        for place, axis in enumerate(axes):
            if sum(axis in other["axes"] for other in ports) > 1:
                shape = list(shapes[name])
                shape[place] += 1
                said = "as attributes say" if axis in node.attributes() else "as on earlier inputs"
                made.append(({name: tuple(shape)}, [f"expected {axis} = ", f"{said}, found "]))
    for empty in "BLN":
        if any(empty in port["axes"] for port in ports):
            zeros = {
                port["name"]: tuple(0 if axis == empty else size for axis, size in zip(port["axes"], shapes[port["name"]]))
                for port in ports
                if empty in port["axes"]
            }
            made.append((zeros, [f"{empty}: expected 1 or more, found 0"]))
    return made + list(node.bad_shapes)


@cases(lambda host, description: host.refuses, F32)
def test_shapes_that_are_wrong_are_named_before_a_run(host, description, t, c):
    node = description.example()
    for shapes, expected in shapes_refused(host, node):
        told = host.refusal(node, t, ModelOptions(shapes=shapes))
        for text in ["the_node", node.op, *expected]:
            assert text in told, f"{shapes}: {told}"


@cases(lambda host, description: host.refuses and host.sees_types, F32)
def test_types_that_are_wrong_are_refused(host, description, t, c):
    """Of any input alone: ONNX Runtime finds no operator, the plugin says what it expected."""
    node = description.example()
    # With one input of `T`, ONNX Runtime looks at the output, and tells the node's name alone.
    alone = sum(port["dtype"] == "T" for port in node.schema()["inputs"]) == 1
    name_of = "the_node" if alone and isinstance(host, OrtCpu) else node.op
    for name, (dtype, _) in node.inputs(t).items():
        if name not in [port["name"] for port in node.ports()]:
            continue
        told = host.refusal(node, t, ModelOptions(types={name: "f16" if dtype != "f16" else "f32"}))
        assert name_of in told, f"{name}: {told}"


@cases(lambda host, description: host.gpu and description.schema()["types"] != description.schema()["gpu_types"], ONE_TYPE)
def test_operators_for_gpus_refuse_a_cache_of_another_type(host, description, t, c):
    for other in DTYPES.keys() - {t}:
        node = replace(description.example(), cache=other)
        told = host.refusal(node, t, ModelOptions())
        for text in ["the_node", node.op, f"on a GPU expected {t}, the type of query, found {other}", f"`cache_dtype: {t}`"]:
            assert text in told, told


def symbolic(node, t):
    """Shapes that the model leaves open."""
    return {name: tuple(f"{name}_{axis}" for axis in range(len(shape))) for name, (_, shape) in node.inputs(t).items()}


@cases(runs_plugins, F32)
def test_wrong_shapes_behind_symbols_are_refused_at_run(host, description, t, c):
    node = description.example()
    session = host.session(node, t, ModelOptions(shapes=symbolic(node, t)))
    good = random_inputs(np.random.default_rng(1), node, t, [0, 3], [5, 1])
    first = session.run(None, good)
    for shapes, expected in shapes_refused(host, node):
        if any(len(shape) != good[name].ndim for name, shape in shapes.items()):
            continue  # ONNX Runtime refuses them itself
        bad = {name: np.ones(shape, good[name].dtype) for name, shape in shapes.items()}
        with pytest.raises(Exception) as error:
            session.run(None, good | bad)
        for text in ["the_node", node.op, *expected]:
            assert text in str(error.value), shapes
    assert [a.tobytes() for a in session.run(None, good)] == [a.tobytes() for a in first]


@cases(runs_plugins, F32)
def test_symbolic_dimensions_take_every_length(host, description, t, c):
    """More shapes than a node keeps plans for, and the first ones again."""
    rng = np.random.default_rng(2)
    node = description.random(rng)
    session = host.session(node, t, ModelOptions(shapes=symbolic(node, t)))
    for seq_len in [1, 2, 3, 4, 5, 6, 7, 1, 7, 6]:
        fixed = replace(node, seq_len=seq_len)
        inputs = random_inputs(rng, fixed, t, past=[0, 30, 17], seq=[seq_len, 1, seq_len])
        names = list(fixed.outputs(t))
        expected = host.session(fixed, t).run(names, inputs)
        for name, found, array in zip(names, session.run(names, inputs), expected):
            assert found.tobytes() == array.tobytes(), f"L {seq_len}: {name}"


@cases(runs_plugins, ONE_TYPE)
def test_a_node_between_others_agrees_with_a_bound_one(host, description, t, c):
    """States that are intermediate values: the planner may update them in place."""
    rng = np.random.default_rng(11)
    node = replace(description.random(rng), seq_len=5)
    inputs, outputs = random_inputs(rng, node, t, past=[9, 20, 0], seq=[5, 1, 2]), garbage_outputs(node, t)
    run_bound(host.session(node, t), inputs, outputs)
    session = host.session(node, t, ModelOptions(casts=True))
    outer = {n: a if a.dtype in (np.int64, np.uint8) else a.astype(np.float32) for n, a in inputs.items()}
    for name, array in zip(outputs, session.run(list(outputs), outer)):
        assert array.tobytes() == outputs[name].astype(np.float32).tobytes(), name


@cases(runs_plugins, ONE_TYPE)
def test_thread_counts_change_no_bit(host, description, t, c, feed):
    seen = []
    for threads in (1, 2, 4):
        fed = feed(host, description, t, c, 3, threads=threads)
        results, state = fed.run(fed.plan(), in_place=True)
        seen.append((bits(results), bits(state)))
    assert seen[0] == seen[1] == seen[2]


@cases(runs_plugins, F32)
def test_buffers_that_overlap_wrongly_are_refused(host, description, t, c):
    node = description.example()
    session = host.session(node, t)
    inputs, fresh = random_inputs(np.random.default_rng(1), node, t, [0, 3], [5, 1]), garbage_outputs(node, t)
    arena = np.ones(4 * max(array.size for array in fresh.values()), np.float32)
    view = lambda name, start: arena[start : start + fresh[name].size].reshape(fresh[name].shape)  # noqa: E731
    states = list(node.states.items())
    # Of the first state and of the next of its shape.
    like = next(name for name in node.chunks if inputs[name].shape == fresh[node.results[0]].shape)
    wrong = [({}, {node.results[0]: inputs[like]}, f"{node.results[0]} and {like}")]
    for old, new in states:
        wrong.append(({old: view(new, 0)}, {new: view(new, 4)}, f"{new} and {old}"))
    for (old, first), (_, second) in zip(states, states[1:]):
        wrong.append(({old: view(first, 0)}, {second: view(second, 0)}, f"{second} and {old}"))
        wrong.append(({}, {first: view(first, 0), second: view(second, 8)}, f"{second} and {first}"))
    for bad_inputs, bad_outputs, expected in wrong:
        with pytest.raises(Exception) as error:
            run_bound(session, inputs | bad_inputs, fresh | bad_outputs)
        assert "the_node" in str(error.value) and node.op in str(error.value) and expected in str(error.value)
    place, good = 0, ({}, {})
    for old, new in states:
        good[0][old] = good[1][new] = view(new, place)
        place += fresh[new].size
    run_bound(session, inputs | good[0], fresh | good[1])


@cases(lambda host, description: host.fault_places, F32)
def test_a_panic_in_any_callback_is_an_error_and_the_process_goes_on(host, description, t, c, capfd):
    node = description.example()
    for place in host.fault_places:
        told = host.fault(node, place)
        assert f"injected fault in {place}" in capfd.readouterr().err
        # ORT drops what inference returns, and destruction returns nothing.
        if place not in ("infer", "destroy"):
            assert f"panic: injected fault in {place}" in told
    assert host.fault(node, "") == ""
