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
pub(super) fn weights_that_are_negated_views_are_refused() {
    let tensor = |value: &'static [u8]| {
        move |p: Pickler| {
            p.global("torch._utils", "_rebuild_tensor_v2")
                .op(b"(")
                .storage("FloatStorage", "0", 6)
                .op(b"K\0K\x02K\x03\x86K\x03K\x01\x86\x89}}X\x03\0\0\0neg")
                .op(value)
                .op(b"stR")
        }
    };
    opened(around(tensor(b"\x89")));
    opened(beside(tensor(b"\x88")));
    assert_eq!(
        refused(around(tensor(b"\x88"))),
        "`w` is a negated or conjugated view of its storage; save a copy of it"
    );
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
