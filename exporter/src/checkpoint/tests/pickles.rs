//! Pickles that ask for more than a state dict needs.

use super::super::pickle::hostile;
use super::super::testing::{Pickler, View, pth, state_pickle};
use super::{Refusal, f32s, message, open_pth, values};

pub(super) fn refused(pickle: Vec<u8>) -> Refusal {
    message(open_pth(pth(pickle, &storages()))).without(|text| {
        let text = text.strip_prefix("pickle: ").unwrap_or(text);
        text.rsplit_once(" (at byte ")
            .map_or(text, |(problem, _)| problem)
    })
}

pub(super) fn storages() -> [(&'static str, Vec<u8>); 2] {
    [("0", f32s((0..6).map(|i| i as f32))), ("1", vec![7; 24])]
}

/// `{"task": {"w": a tensor}, "x": <operations>}`.
pub(super) fn beside(value: impl Fn(Pickler) -> Pickler) -> Vec<u8> {
    let start = Pickler::new().op(b"}(").str("task").op(b"}").str("w");
    value(start.tensor(&view()).op(b"s").str("x"))
        .op(b"u")
        .stop()
}

pub(super) fn view() -> View {
    View::contiguous("FloatStorage", "0", &[2, 3])
}

/// `{"task": {"w": <operations>}}`.
pub(super) fn around(value: impl Fn(Pickler) -> Pickler) -> Vec<u8> {
    let start = Pickler::new().op(b"}(").str("task").op(b"}(").str("w");
    value(start).op(b"uu").stop()
}

#[test]
pub(super) fn names_outside_the_list_are_refused_by_name() {
    let mut dangerous = 0;
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("__builtin__", "exec"),
        ("builtins", "getattr"),
        ("builtins", "open"),
        ("importlib", "import_module"),
        ("runpy", "run_path"),
        ("webbrowser", "open"),
        ("pickle", "loads"),
        ("torch", "load"),
        ("torch", "Tensor"),
        ("torch", "FooStorage"),
        ("torch.storage", "_load_from_bytes"),
        ("torch.serialization", "load"),
        ("torch.hub", "load"),
        ("torch._utils", "_rebuild_qtensor"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch._utils", "_rebuild_tensor"),
        ("torch.utils._config_module", "load_config"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("operator", "attrgetter"),
        ("functools", "partial"),
        ("collections", "defaultdict"),
        ("copyreg", "_reconstructor"),
        ("easydict", "os"),
        ("pip", "main"),
        ("timeit", "timeit"),
        ("idlelib.run", "Executive.runcode"),
        ("ctypes", "CDLL"),
        ("socket", "create_connection"),
        ("asyncio.unix_events", "_UnixSubprocessTransport._start"),
        ("profile", "Profile.run"),
        ("bdb", "Bdb.run"),
    ] {
        let expected = format!(
            "it names `{module}.{name}`, which is not one of the types a state dict needs; nothing was run. Load it \
             where it is trusted and save the state dict alone"
        );
        let call = |p: Pickler| p.global(module, name).op(b"(").str("true").op(b"tR");
        assert_eq!(refused(around(call)), expected);
        // Where it would do harm, beside the weights too, and without a call.
        if hostile(module, name) {
            assert_eq!(refused(beside(call)), expected);
            assert_eq!(refused(beside(|p| p.global(module, name))), expected);
            dangerous += 1;
        } else {
            open_pth(pth(beside(call), &storages())).unwrap();
        }
        // The same by STACK_GLOBAL, from the memo too.
        let stack = |p: Pickler| {
            p.str(module)
                .op(b"q\x00")
                .op(b"0h\x00")
                .str(name)
                .op([0x93])
                .op(b")R")
        };
        assert_eq!(refused(around(stack)), expected);
    }
    assert_eq!(dangerous, 29);
    let long = "x".repeat(5000);
    let message = refused(around(|p| p.global(&long, "\u{7}\u{1b}[31m")));
    assert!(
        message.len() < 600 && message.contains("\\u{7}\\u{1b}[31m"),
        "{message}"
    );
}

#[test]
pub(super) fn operations_torch_save_does_not_write_are_refused() {
    for (code, name) in [
        (b'i', "INST"),
        (b'o', "OBJ"),
        (0x82, "EXT1"),
        (0x83, "EXT2"),
        (0x84, "EXT4"),
        (0x97, "NEXT_BUFFER"),
        (0x98, "READONLY_BUFFER"),
        (b'P', "PERSID"),
        (b'S', "STRING"),
        (b'T', "BINSTRING"),
        (b'U', "SHORT_BINSTRING"),
        (b'V', "UNICODE"),
        (b'I', "INT"),
        (b'L', "LONG"),
        (b'F', "FLOAT"),
        (b'g', "GET"),
        (b'p', "PUT"),
        (0xff, "unknown"),
        (0x00, "unknown"),
    ] {
        let found = refused(around(|p| p.op([code]).op(b"os\nsystem\n1\n(tR")));
        assert_eq!(
            found,
            format!("operation {name} ({code:#04x}), which torch.save does not write")
        );
    }
}

#[test]
fn every_operation_meets_every_kind_of_stack_without_a_panic() {
    let stacks: [fn(Pickler) -> Pickler; 10] = [
        |p| p,
        |p| p.op(b"("),
        |p| p.op(b"N"),
        |p| p.op(b"NN"),
        |p| p.op(b"(NNN"),
        |p| p.op(b"})"),
        |p| p.op(b"](K\x01"),
        |p| p.str("os").str("system"),
        |p| p.global("torch", "FloatStorage").op(b")"),
        |p| {
            p.tensor(&View::contiguous("FloatStorage", "0", &[2, 3]))
                .op(b"}")
        },
    ];
    let operands: [&[u8]; 6] = [
        b"",
        b"\x00",
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x01a",
        b"a\nb\n",
        b"\x04\x00\x00\x00\x00\x00\x00\x00abcd",
    ];
    let mut cases = 0;
    for code in 0..=255u8 {
        for stack in &stacks {
            for operand in operands {
                for tail in [b".".as_slice(), b"u.", b"R.", b""] {
                    let bytes = stack(Pickler::new()).op([code]).op(operand).op(tail).0;
                    if let Ok(checkpoint) = open_pth(pth(bytes, &[("0", vec![0; 24])])) {
                        values(&checkpoint, 1).unwrap();
                    }
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 256 * 10 * 6 * 4);
}

#[test]
pub(super) fn calls_of_the_wrong_things_are_refused() {
    type Operations = fn(Pickler) -> Pickler;
    let cases: [(&str, Operations); 16] = [
        ("a call of something that is not a name", |p| {
            p.str("os").op(b")R")
        }),
        ("arguments that are not a tuple", |p| {
            p.global("collections", "OrderedDict").op(b"NR")
        }),
        ("a dict built from arguments", |p| {
            p.global("collections", "OrderedDict").op(b"N\x85R")
        }),
        ("a call of a type", |p| {
            p.global("torch", "FloatStorage").op(b"K\x05\x85R")
        }),
        ("a call of a type", |p| {
            p.global("torch", "float32").op(b")R")
        }),
        ("NEWOBJ of a function", |p| {
            p.global("torch._utils", "_rebuild_tensor_v2").op(b")\x81")
        }),
        ("a tensor with the wrong number of arguments", |p| {
            p.global("torch._utils", "_rebuild_tensor_v2").op(b")R")
        }),
        ("a tensor without a storage", |p| {
            p.global("torch._utils", "_rebuild_tensor_v2")
                .op(b"(NNNNNNtR")
        }),
        ("a parameter without a tensor", |p| {
            p.global("torch._utils", "_rebuild_parameter").op(b"(NNNtR")
        }),
        ("BUILD on a value that has no attributes", |p| {
            p.op(b"K\x01}b")
        }),
        ("BUILD on a value that has no attributes", |p| {
            p.tensor(&View::contiguous("FloatStorage", "0", &[6]))
                .op(b"}b")
        }),
        ("an item is set on a value that is not a dict", |p| {
            p.op(b"]K\x01K\x02s")
        }),
        ("an item is set on a value that is not a dict", |p| {
            p.tensor(&View::contiguous("FloatStorage", "0", &[6]))
                .op(b"K\x01K\x02s")
        }),
        ("items are appended to a value that is not a list", |p| {
            p.op(b"}K\x01a")
        }),
        ("a name that is not a string", |p| p.op(b"NN\x93")),
        ("memo entry 77 was never written", |p| p.op(b"hM")),
    ];
    for (expected, value) in cases {
        assert_eq!(refused(around(value)), expected);
    }
}

#[test]
pub(super) fn storages_are_described_one_way() {
    let id = |class: &'static str, key: &'static str, numel| {
        move |p: Pickler| p.storage(class, key, numel)
    };
    assert_eq!(
        refused(around(id("FloatStorage", "0", -1))),
        "a persistent id that does not describe a storage"
    );
    for raw in [b"NQ".as_slice(), b")Q", b"(NNNNNtQ", b"K\x01Q"] {
        assert_eq!(
            refused(around(|p| p.op(raw))),
            "a persistent id that does not describe a storage"
        );
    }
    assert_eq!(
        refused(around(|p| p
            .storage("FloatStorage", "0", 6)
            .op(b"0")
            .storage("HalfStorage", "0", 12))),
        "storage `0` is described in two ways"
    );
    assert_eq!(
        refused(around(id("FloatStorage", "../../etc/passwd", 6))),
        "zip archive: no record `data/../../etc/passwd`, which the pickle names as a storage"
    );
    assert_eq!(
        refused(around(id("FloatStorage", "0", i64::MAX))),
        "zip archive: storage `0`: expected 9223372036854775807 elements of f32, found 24 bytes"
    );
    assert_eq!(
        refused(around(id("BFloat16Storage", "0", 6))),
        "zip archive: storage `0`: expected 6 elements of bf16, found 24 bytes"
    );
}

#[test]
pub(super) fn views_outside_their_storage_are_refused() {
    let with = |change: fn(&mut View)| {
        let mut view = view();
        change(&mut view);
        refused(state_pickle(&[("w", view)]))
    };
    let misfits: [fn(&mut View); 8] = [
        |v| v.offset = 1,
        |v| v.offset = i64::MAX,
        |v| v.shape = vec![3, 3],
        |v| v.strides = vec![4, 1],
        |v| v.strides = vec![3, 2],
        |v| v.strides = vec![i64::MAX, 1],
        |v| (v.shape, v.strides) = (vec![i64::MAX, 2], vec![i64::MAX, 1]),
        |v| (v.shape, v.strides, v.offset) = (vec![0], vec![1], 7),
    ];
    for change in misfits {
        let found = with(change);
        let mut view = view();
        change(&mut view);
        assert_eq!(
            found,
            format!(
                "a tensor of size {:?}, stride {:?} and offset {} in storage `0` of 6 f32 elements: it does not fit",
                view.shape, view.strides, view.offset
            )
        );
    }
    for shape in [
        vec![1 << 42],
        vec![1 << 32, 1 << 32],
        vec![1 << 21, 1 << 21],
        vec![(1 << 24) + 1],
    ] {
        let mut view = view();
        view.strides = vec![0; shape.len()];
        view.shape = shape;
        let expected = format!(
            "a tensor of size {:?}, stride {:?} and offset 0 in storage `0` of 6 f32 elements: an expanded view; save a \
             contiguous copy",
            view.shape, view.strides
        );
        assert_eq!(refused(state_pickle(&[("w", view)])), expected);
    }
    assert_eq!(
        with(|v| v.offset = -1),
        "a tensor whose offset is negative: -1"
    );
    assert_eq!(
        with(|v| v.shape = vec![2, -3]),
        "a tensor whose size has a negative entry -3"
    );
    assert_eq!(
        with(|v| v.strides = vec![-3, 1]),
        "a tensor whose stride has a negative entry -3"
    );
    assert_eq!(
        with(|v| v.strides = vec![1]),
        "a tensor with 2 dimensions and 1 strides"
    );
    assert_eq!(
        with(|v| (v.shape, v.strides) = (vec![1; 17], vec![1; 17])),
        "a tensor of 17 dimensions"
    );
}

#[test]
pub(super) fn depth_nodes_and_expansion_have_budgets() {
    let nested = |count: usize, op: &[u8]| {
        let mut pickle = Pickler::new().op(b")");
        for _ in 0..count {
            pickle = pickle.op(op);
        }
        refused(pickle.stop())
    };
    assert_eq!(nested(100_000, b"\x85"), "values nested deeper than 512");
    assert_eq!(nested(500, b"\x85"), "it holds a tuple, expected a dict");
    assert_eq!(nested(100_000, b"("), "marks nested deeper than 256");
    assert_eq!(nested(2_000_000, b"N"), "more than 1048576 values");
    assert_eq!(
        nested(2_000_000, b"2"),
        "more than 1048576 values on the stack"
    );
    assert_eq!(nested(1_100_000, b"\x94"), "more than 1048576 memo entries");
    // Lists in lists: [[[...]]] through APPEND.
    let mut lists = Pickler::new();
    for _ in 0..100_000 {
        lists = lists.op(b"]");
    }
    for _ in 0..99_999 {
        lists = lists.op(b"a");
    }
    assert_eq!(refused(lists.stop()), "values nested deeper than 512");
    // Each level repeats the one below: 2^60 items if it were copied.
    let mut laughs = Pickler::new().op(b")");
    for _ in 0..60 {
        laughs = laughs.op(b"2\x86");
    }
    assert_eq!(refused(laughs.stop()), "it holds a tuple, expected a dict");
    // A tuple of many references to one value, many times.
    let mut many = Pickler::new().op(b"Nq\x00");
    for _ in 0..50 {
        many = many.op(b"(");
        for _ in 0..100_000 {
            many = many.op(b"h\x00");
        }
        many = many.op(b"t0");
    }
    assert_eq!(refused(many.stop()), "more than 4194304 items");
    // A list and a dict that contain themselves.
    assert_eq!(
        refused(Pickler::new().op(b"]q\x00h\x00a").stop()),
        "it holds a list, expected a dict"
    );
    let cycle = Pickler::new()
        .op(b"}q\x00(")
        .str("task")
        .op(b"h\x00u")
        .stop();
    assert_eq!(
        refused(cycle),
        "`task` in the state dict is a dict, expected a tensor"
    );
    let huge = Pickler::new().op(b"X\xff\xff\xff\xff").stop();
    assert_eq!(refused(huge), "a string longer than 33554432 bytes");
    let huge = Pickler::new().op(b"\x8d").op(u64::MAX.to_le_bytes()).stop();
    assert_eq!(refused(huge), "a string longer than 33554432 bytes");
}

#[test]
pub(super) fn pickles_that_are_not_whole() {
    assert_eq!(refused(vec![]), "it ends too early");
    assert_eq!(refused(vec![0x80, 9]), "protocol 9, expected 2 to 5");
    assert_eq!(refused(Pickler::new().op(b"}").0), "it ends too early");
    assert_eq!(refused(Pickler::new().op(b"}..").0), "1 bytes after STOP");
    assert_eq!(
        refused(Pickler::new().op(b"N}").stop()),
        "values are left over at STOP"
    );
    assert_eq!(
        refused(Pickler::new().op(b"N(N").stop()),
        "values are left over at STOP"
    );
    assert_eq!(
        refused(Pickler::new().stop()),
        "an operation lacks its operand"
    );
    assert_eq!(
        refused(Pickler::new().op(b"t").stop()),
        "an operation lacks its mark"
    );
    assert_eq!(
        refused(Pickler::new().op(b"}(Nu").stop()),
        "a key without a value"
    );
    assert_eq!(
        refused(Pickler::new().op(b"X\x02\0\0\0\xff\xfe").stop()),
        "the string `\u{fffd}\u{fffd}` is not UTF-8"
    );
}
