//! What lies beside the weights and around them: inert, whatever its name.

use super::super::Checkpoint;
use super::super::testing::{Pickler, View, pth};
use super::pickles::{around, beside, refused, storages, view};
use super::{f32s, open_pth, values};

type Operations = fn(Pickler) -> Pickler;

fn opened(pickle: Vec<u8>) -> Checkpoint {
    open_pth(pth(pickle, &storages())).unwrap()
}

fn bytes() -> Vec<u8> {
    storages()[0].1.clone()
}

/// What the pickler of Python writes for objects of these kinds, and PyTorch's.
const OBJECTS: &[(&str, Operations)] = &[
    ("a numpy scalar", |p| {
        p.global("numpy._core.multiarray", "scalar")
            .global("numpy", "dtype")
            .op(b"X\x02\0\0\0f8\x89\x88\x87R(K\x03X\x01\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb")
            .global("_codecs", "encode")
            .op(b"X\x08\0\0\0abcdefghX\x06\0\0\0latin1\x86R\x86R")
    }),
    ("an array", |p| {
        p.global("numpy.core.multiarray", "_reconstruct")
            .global("numpy", "ndarray")
            .op(b"K\0\x85C\x01b\x87R(K\x01K\x04\x85NC\x04abcdtb")
    }),
    ("a Namespace", |p| {
        p.global("argparse", "Namespace")
            .op(b")\x81}X\x02\0\0\0lrK\x01sb")
    }),
    ("omegaconf", |p| {
        p.global("omegaconf.dictconfig", "DictConfig")
            .op(b")\x81}(X\x08\0\0\0_content}X\x01\0\0\0a")
            .global("omegaconf.nodes", "AnyNode")
            .op(b")\x81}X\x04\0\0\0_valK\x01sbsub")
    }),
    ("a path", |p| {
        p.global("pathlib", "PosixPath")
            .op(b"X\x01\0\0\0/X\x01\0\0\0x\x86R")
    }),
    ("a Counter", |p| {
        p.global("collections", "Counter")
            .op(b"}X\x01\0\0\0aK\x02s\x85R")
    }),
    ("a defaultdict", |p| {
        p.global("collections", "defaultdict")
            .global("__builtin__", "dict")
            .op(b"\x85R(K\x01}u")
    }),
    ("a deque", |p| {
        p.global("collections", "deque").op(b")R(K\x01K\x02e")
    }),
    ("a range", |p| {
        p.global("__builtin__", "xrange").op(b"K\0K\x03K\x01\x87R")
    }),
    ("an object with keywords", |p| {
        p.global("mine", "Thing").op(b")}X\x01\0\0\0aK\x01s\x92}b")
    }),
    ("an object of a type within a type", |p| {
        p.global("__builtin__", "getattr")
            .global("mine", "Outer")
            .op(b"X\x05\0\0\0Inner\x86R)\x81}b")
    }),
    ("what an object's method returns", |p| {
        p.global("mine", "Thing").op(b")RK\x01\x85R(K\x01K\x02u")
    }),
    ("a class", |p| p.global("mk", "Sched")),
    ("a type by STACK_GLOBAL", |p| {
        p.str("__main__").str("A.B").op(b"\x93)\x81")
    }),
    ("an fp8 tensor", |p| {
        let storage = p
            .global("torch._utils", "_rebuild_tensor_v3")
            .op(b"((")
            .str("storage")
            .global("torch.storage", "UntypedStorage")
            .op(b"X\x01\0\0\x001X\x03\0\0\0cpuK\x18tQ");
        storage
            .op(b"K\0K\x04\x85K\x01\x85\x89")
            .global("collections", "OrderedDict")
            .op(b")R")
            .global("torch", "float8_e4m3fn")
            .op(b"tR")
    }),
    ("a complex tensor", |p| {
        p.tensor(&View::contiguous("ComplexFloatStorage", "not there", &[4]))
    }),
    ("a quantised tensor", |p| {
        p.global("torch._utils", "_rebuild_qtensor")
            .op(b"(")
            .storage("QInt8Storage", "9", 3)
            .op(b"K\0K\x03\x85K\x01\x85(")
            .global("torch", "per_tensor_affine")
            .op(b"G\x3f\xb9\x99\x99\x99\x99\x99\x9aK\0t\x89")
            .global("collections", "OrderedDict")
            .op(b")RtR")
    }),
    ("a sparse tensor", |p| {
        p.global("torch._utils", "_rebuild_sparse_tensor")
            .global("torch.serialization", "_get_layout")
            .op(b"X\x10\0\0\0torch.sparse_coo\x85R(")
            .tensor(&view())
            .tensor(&view())
            .global("torch", "Size")
            .op(b"K\x03K\x03\x86\x85R\x88t\x86R")
    }),
    ("a meta tensor", |p| {
        p.global("torch._utils", "_rebuild_meta_tensor_no_storage")
            .op(b"(")
            .global("torch", "float32")
            .op(b"K\x03\x85K\x01\x85\x89tR")
    }),
    ("a parameter of another type of tensor", |p| {
        p.global("torch._utils", "_rebuild_parameter")
            .op(b"(")
            .global("torch._tensor", "_rebuild_from_type_v2")
            .op(b"(")
            .global("torch._utils", "_rebuild_tensor_v2")
            .global("torch.distributed.tensor", "DTensor")
            .op(b")}tR\x89NtR")
    }),
    ("bytes, numbers and sets", |p| {
        p.op(b"(C\x01xB\x01\0\0\0x\x96\x01\0\0\0\0\0\0\0xG\x7f\xf8\0\0\0\0\0\0\x8b\x09\0\0\0\0\0\0\0\0\0\0\0\x01\x8f(K\x01\x90(K\x01\x91t")
    }),
];

#[test]
fn objects_beside_the_weights_do_not_cost_the_file() {
    for (what, operations) in OBJECTS {
        let checkpoint = opened(beside(operations));
        assert_eq!(values(&checkpoint, 9).unwrap()["w"].1, bytes(), "{what}");
        assert!(checkpoint.notes().is_empty());
    }
}

#[test]
pub(super) fn weights_made_of_unknown_names_are_refused_by_them() {
    for (operations, name) in [
        ((|p| p.global("mine", "Thing")) as Operations, "mine.Thing"),
        (|p| p.global("mine", "Thing").op(b")R"), "mine.Thing"),
        (
            |p| p.global("mine", "Thing").op(b")R)R}b(K\x01K\x02u"),
            "mine.Thing",
        ),
        (
            |p| {
                p.global("__builtin__", "getattr")
                    .global("mine", "Outer")
                    .op(b"X\x01\0\0\0f\x86R)R")
            },
            "mine.Outer",
        ),
        (
            |p| p.tensor(&View::contiguous("QInt8Storage", "0", &[2, 3])),
            "torch.QInt8Storage",
        ),
        (
            |p| {
                p.global("torch._utils", "_rebuild_tensor_v2")
                    .op(b"(")
                    .storage("FloatStorage", "0", 6)
                    .op(b"K\0")
                    .global("mine", "Shape")
                    .op(b")RK\x01\x85\x89NtR")
            },
            "mine.Shape",
        ),
        (
            |p| {
                p.global("torch._tensor", "_rebuild_from_type_v2")
                    .op(b"(")
                    .global("torch._utils", "_rebuild_tensor_v2")
                    .global("torch.distributed.tensor", "DTensor")
                    .op(b")}tR")
            },
            "torch.distributed.tensor.DTensor",
        ),
        (
            |p| {
                p.global("torch._tensor", "_rebuild_from_type_v2")
                    .op(b"(")
                    .global("mine", "rebuild")
                    .global("torch", "Tensor")
                    .op(b")}tR")
            },
            "mine.rebuild",
        ),
    ] {
        let expected = format!(
            "it names `{name}`, which is not one of the types a state dict needs; nothing was run. Load it where \
             it is trusted and save the state dict alone"
        );
        assert_eq!(refused(around(operations)), expected);
        // It is the weight that counts, not that something else is there.
        opened(beside(operations));
    }
}

/// `getattr` names what is inside a type, as Python's pickler has it below protocol 4. Any other
/// use reaches for more.
#[test]
pub(super) fn getattr_that_is_not_a_name_is_refused() {
    let expected = "it names `builtins.getattr`, which is not one of the types a state dict needs; nothing was run. \
                    Load it where it is trusted and save the state dict alone";
    let cases: [Operations; 9] = [
        |p| p,
        |p| p.op(b")R"),
        |p| p.str("os").str("system").op(b"\x86R"),
        |p| p.global("mine", "os2").op(b"NNR").op(b"\x86R"),
        |p| p.global("mine", "A").str("__globals__").op(b"\x86R"),
        |p| p.global("mine", "A").str("os").op(b"\x86R"),
        |p| p.global("mine", "A").str("x.os.system").op(b"\x86R"),
        |p| {
            p.global("collections", "OrderedDict")
                .str("fromkeys")
                .op(b"\x86R")
        },
        |p| {
            p.global("mine", "A")
                .op(b")R")
                .str("run_shell")
                .op(b"\x86R")
        },
    ];
    for (index, case) in cases.into_iter().enumerate() {
        let named = |p: Pickler| case(p.global("builtins", "getattr"));
        let found = refused(beside(named));
        // One of them lacks operands.
        match index {
            3 => assert_eq!(found, "arguments that are not a tuple"),
            _ => assert_eq!(found, expected, "{index}"),
        }
    }
}

/// A tensor with attributes, as FSDP's files have them, and parameters with and without.
#[test]
fn tensors_with_attributes_are_tensors() {
    let tensor: Operations = |p| p.tensor(&view());
    let arguments: Operations = |p| {
        p.op(b"(")
            .storage("FloatStorage", "0", 6)
            .op(b"K\0K\x02K\x03\x86K\x03K\x01\x86\x89")
            .global("collections", "OrderedDict")
            .op(b")Rt")
    };
    let cases: [(&str, &dyn Fn(Pickler) -> Pickler); 6] = [
        ("a parameter", &|p| {
            tensor(p.global("torch._utils", "_rebuild_parameter").op(b"(")).op(b"\x88}tR")
        }),
        ("a parameter with attributes", &|p| {
            tensor(
                p.global("torch._utils", "_rebuild_parameter_with_state")
                    .op(b"("),
            )
            .op(b"\x88}}X\x01\0\0\0a\x88stR")
        }),
        ("a parameter with attributes in slots", &|p| {
            tensor(
                p.global("torch._utils", "_rebuild_parameter_with_state")
                    .op(b"("),
            )
            .op(b"\x88}N}X\x01\0\0\0a\x88s\x86tR")
        }),
        ("a tensor with attributes", &|p| {
            let p = p.global("torch._tensor", "_rebuild_from_type_v2").op(b"(");
            let p = p
                .global("torch._utils", "_rebuild_tensor_v2")
                .global("torch", "Tensor");
            arguments(p).op(b"}X\x05\0\0\0_fqns]X\x01\0\0\0wastR")
        }),
        ("a tensor with an unknown attribute", &|p| {
            let p = p.global("torch._tensor", "_rebuild_from_type_v2").op(b"(");
            let p = p.global("torch._utils", "_rebuild_tensor_v2");
            arguments(p.global("torch.nn.parameter", "Parameter"))
                .op(b"}X\x01\0\0\0a")
                .global("mine", "Thing")
                .op(b")\x81stR")
        }),
        ("a parameter that is a tensor with attributes", &|p| {
            let p = p.global("torch._utils", "_rebuild_parameter").op(b"(");
            let p = p.global("torch._tensor", "_rebuild_from_type_v2").op(b"(");
            let p = p
                .global("torch._utils", "_rebuild_tensor_v2")
                .global("torch", "Tensor");
            arguments(p).op(b"}tR\x88}tR")
        }),
    ];
    for (what, operations) in cases {
        let checkpoint = opened(around(operations));
        assert_eq!(
            values(&checkpoint, 9).unwrap()["w"],
            (vec![2, 3], bytes()),
            "{what}"
        );
    }
    let from_type = |function: &'static str, middle: &'static [u8], end: &'static [u8]| {
        move |p: Pickler| {
            let p = p.global("torch._tensor", "_rebuild_from_type_v2").op(b"(");
            let (module, function) = function.split_once(':').unwrap();
            arguments(p.global(module, function).op(middle)).op(end)
        }
    };
    let (v2, tensor) = (
        "torch._utils:_rebuild_tensor_v2",
        b"ctorch\nTensor\n".as_slice(),
    );
    for (operations, expected) in [
        (
            from_type(v2, tensor, b"}X\x04\0\0\0dataNstR"),
            "a tensor whose attributes replace its data",
        ),
        (
            from_type(v2, tensor, b"N}X\x04\0\0\0dataNs\x86tR"),
            "a tensor whose attributes replace its data",
        ),
        (
            from_type(v2, tensor, b"tR"),
            "a tensor with the wrong number of arguments",
        ),
        (
            from_type(v2, b"N", b"}tR"),
            "a tensor whose type is not a name",
        ),
        (
            from_type("collections:OrderedDict", tensor, b"}tR"),
            "a tensor made by something that makes none",
        ),
        (
            from_type("torch._tensor:_rebuild_from_type_v2", tensor, b"}tR"),
            "a tensor whose attributes have attributes",
        ),
        (
            from_type("torch._utils:_rebuild_parameter", tensor, b"}tR"),
            "a parameter without a tensor",
        ),
    ] {
        assert_eq!(refused(around(operations)), expected);
    }
}

#[test]
fn views_that_are_negated_are_refused() {
    let metadata = |value: &'static [u8]| {
        around(move |p| {
            p.global("torch._utils", "_rebuild_tensor_v2")
                .op(b"(")
                .storage("FloatStorage", "0", 6)
                .op(b"K\0K\x02K\x03\x86K\x03K\x01\x86\x89}}X\x03\0\0\0neg")
                .op(value)
                .op(b"stR")
        })
    };
    opened(metadata(b"\x89"));
    assert_eq!(
        refused(metadata(b"\x88")),
        "a tensor that is a negated or conjugated view; save a copy of it"
    );
}

/// A weight of the model, and what stands for one.
const LN: &str = "backbone.ln.weight";

fn weights(p: Pickler) -> Pickler {
    p.op(b"}").str(LN).tensor(&view()).op(b"s")
}

fn other(p: Pickler) -> Pickler {
    p.op(b"}")
        .str(LN)
        .tensor(&View::contiguous("FloatStorage", "0", &[3, 2]))
        .op(b"s")
}

#[test]
pub(super) fn weights_are_found_by_their_names() {
    let root =
        |entries: &dyn Fn(Pickler) -> Pickler| entries(Pickler::new().op(b"}(")).op(b"u").stop();
    let under = |keys: &'static [&'static str]| {
        root(&move |p| {
            let p = keys[1..]
                .iter()
                .fold(p.str(keys[0]), |p, key| p.op(b"}").str(key));
            keys[1..].iter().fold(weights(p), |p, _| p.op(b"s"))
        })
    };
    for (keys, notes) in [
        (["task"].as_slice(), [].as_slice()),
        (&["model_state_dict"], &[]),
        (&["task", "state_dict"], &[]),
        (&["model", "model"], &[]),
        (&["net"], &["the weights are those under `net`"]),
        (
            &["checkpoint", "net"],
            &["the weights are those under `checkpoint`.`net`"],
        ),
    ] {
        let checkpoint = opened(under(keys));
        assert_eq!(checkpoint.tensors().len(), 1, "{keys:?}");
        assert_eq!(checkpoint.notes(), notes, "{keys:?}");
    }
    assert_eq!(
        refused(under(&["a", "b", "c"])),
        "no state dict: expected one under `task`, `state_dict`, `model`, `model_state_dict`, or nothing but \
         tensors; found `a` (a dict)"
    );
    // One object under two keys, and two with the same tensors.
    opened(root(&|p| {
        weights(p.str("model"))
            .op(b"q\x01")
            .str("state_dict")
            .op(b"h\x01")
    }));
    opened(root(&|p| {
        weights(weights(p.str("model")).str("state_dict"))
    }));
    opened(root(&|p| weights(weights(p.str("net")).str("copy"))));
    let shown = |keys: [&str; 2]| {
        format!(
            "several state dicts: `{}`, `{}`; save the one to export alone",
            keys[0], keys[1]
        )
    };
    for keys in [["task", "model"], ["net", "ema"]] {
        let two = root(&move |p| other(weights(p.str(keys[0])).str(keys[1])));
        assert_eq!(refused(two), shown(keys));
    }
    let averaged = opened(root(&|p| other(weights(p.str("task")).str("ema"))));
    assert_eq!(averaged.tensors().next().unwrap().shape(), [2, 3]);
    assert_eq!(
        averaged.notes(),
        [
            "the weights are those under `task`; others that the file holds, under `ema`, are not read"
        ]
    );
    // At top level, with what training saves beside them.
    let top = root(&|p| {
        p.str(LN)
            .tensor(&view())
            .str("config")
            .op(b"}X\x02\0\0\0lrK\x01s")
            .str("step")
            .op(b"K\x01K\x07K\x08")
            .str("args")
            .global("argparse", "Namespace")
            .op(b")\x81")
    });
    let checkpoint = opened(top);
    assert_eq!(checkpoint.tensors().len(), 1);
    assert_eq!(
        checkpoint.saved_config(),
        Some(&serde_json::json!({"lr": 1}))
    );
    let unknown = root(&|p| p.str(LN).global("mine", "Tensor").op(b")R"));
    assert!(refused(unknown).starts_with("it names `mine.Tensor`"));
    // An optimizer's state goes by the same names.
    let optimizer = root(&|p| {
        let p = p
            .str("optimizer")
            .op(b"}")
            .str("state")
            .op(b"}")
            .str(LN)
            .op(b"}ss");
        weights(p.str("model"))
    });
    assert!(opened(optimizer).notes().is_empty());
}

#[test]
fn what_a_model_can_do_without_is_left_out() {
    let pickle = around(|p| {
        p.tensor(&view())
            .str("head._extra_state")
            .op(b"C\x01x")
            .str("a._extra_state")
            .global("mine", "Thing")
            .op(b")\x81")
            .str("head.lm_head.bias")
            .op(b"N")
    });
    let checkpoint = opened(pickle);
    assert_eq!(checkpoint.tensors().len(), 1);
    assert_eq!(
        checkpoint.notes(),
        [
            "ignored: `head.lm_head.bias`; None, which is no weight",
            "ignored: `head._extra_state`, `a._extra_state`; the state of a module, not a weight",
        ]
    );
    // Several that are something else are told at once.
    let message = refused(around(|p| p.op(b"K\x01").str("b").global("mine", "Thing")));
    assert!(
        message.contains("`w` in the state dict is an int"),
        "{message}"
    );
    assert!(message.contains("it names `mine.Thing`"), "{message}");
}

#[test]
pub(super) fn archives_without_data_are_refused() {
    use super::super::testing::{ZipEnd, records, state_pickle, zip};
    let skipped = |data: Vec<u8>, pickle_crc: Option<u32>| {
        let mut records = records(state_pickle(&[("w", view())]), &[("0", data)]);
        records[0].crc = pickle_crc;
        records[2].crc = Some(0);
        open_pth(zip(&records, &ZipEnd::default()))
    };
    assert_eq!(
        super::message(skipped(vec![0; 24], None)),
        "its tensors have no data: torch.save wrote it inside torch.serialization.skip_data; save it again without"
    );
    skipped(bytes(), None).unwrap();
    skipped(vec![0; 24], Some(0)).unwrap();
}

#[test]
fn what_training_saves_beside_the_weights_is_inert() {
    let config = Pickler::new()
        .op(b"}(")
        .str("config")
        .global("easydict", "EasyDict")
        .op(b")\x81(")
        .str("lr")
        .op(b"G")
        .op(0.5f64.to_be_bytes())
        .str("list")
        .op(b"](K\x01NeX\x01\0\0\0tK\x01\x85")
        .op(b"u}(")
        .str("lr")
        .op(b"K\x02ub")
        .str("task")
        .global("collections", "OrderedDict")
        .op(b")R(")
        .str("w")
        .global("torch._utils", "_rebuild_parameter")
        .op(b"(")
        .tensor(&view())
        .op([0x88])
        .global("collections", "OrderedDict")
        .op(b")RtR")
        .op(b"u}")
        .str("_metadata")
        .global("collections", "OrderedDict")
        .op(b")Rsb")
        .str("dtype")
        .global("torch", "bfloat16")
        .str("size")
        .global("torch", "Size")
        .op(b"K\x02\x85\x85R")
        .str("bytes")
        .op(b"C\x02hi")
        .op(b"u")
        .stop();
    let checkpoint = open_pth(pth(config, &[("0", f32s((0..6).map(|i| i as f32)))])).unwrap();
    assert_eq!(
        checkpoint.saved_config(),
        Some(&serde_json::json!({"lr": 0.5, "list": [1, null], "t": [1]}))
    );
    assert_eq!(checkpoint.tensors().len(), 1);
}

#[test]
fn untyped_storages_carry_any_type() {
    let bytes: Vec<u8> = (0..12).collect();
    let untyped = |p: Pickler, numel| {
        p.op(b"(")
            .str("storage")
            .global("torch.storage", "UntypedStorage")
            .str("0")
            .str("cuda:0")
            .int(numel)
            .op(b"tQ")
    };
    let pickle = around(|p| {
        untyped(p.global("torch._utils", "_rebuild_tensor_v3").op(b"("), 12)
            .int(1)
            .tuple(&[5])
            .tuple(&[1])
            .op([0x89])
            .op(b"N")
            .global("torch", "bfloat16")
            .op(b"tR")
    });
    let checkpoint = open_pth(pth(pickle, &[("0", bytes.clone())])).unwrap();
    assert_eq!(
        values(&checkpoint, 2).unwrap()["w"],
        (vec![5], bytes[2..].to_vec())
    );
}
