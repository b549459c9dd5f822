//! Pickles of state dicts.

use ratplus_exporter::checkpoint::testing::{Pickler, View, state_pickle};

pub const WORDS: &[&[u8]] = &[
    b"\x80\x02",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_tensor_v3\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch._utils\n_rebuild_parameter_with_state\n",
    b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"ctorch\nTensor\n",
    b"ctorch.nn.parameter\nParameter\n",
    b"ctorch\nDoubleStorage\n",
    b"ctorch\nQInt8Storage\n",
    b"ctorch\nfloat8_e4m3fn\n",
    b"c__builtin__\ngetattr\n",
    b"cargparse\nNamespace\n",
    b"cmine\nThing\n",
    b"X\x04\x00\x00\x00data",
    b"X\x03\x00\x00\x00neg",
    b"X\x12\x00\x00\x00backbone.ln.weight",
    b"X\x0c\x00\x00\x00_extra_state",
    b"X\x10\x00\x00\x00model_state_dict",
    b"X\x05\x00\x00\x00model",
    b"ccollections\nOrderedDict\n",
    b"ceasydict\nEasyDict\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch\nBFloat16Storage\n",
    b"ctorch.storage\nUntypedStorage\n",
    b"ctorch\nfloat16\n",
    b"ctorch\nSize\n",
    b"X\x07\x00\x00\x00storage",
    b"X\x04\x00\x00\x00task",
    b"X\x06\x00\x00\x00config",
    b"X\x01\x00\x00\x000",
    b"X\x03\x00\x00\x00cpu",
    b"\x8c\x01a",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x8a\x01\xff",
    b"K\x02K\x03\x86",
    b"(",
    b")R",
    b"tR",
    b"tQ",
    b"}(",
    b"uu.",
    b"us.",
    b"](",
    b"e",
    b"a",
    b"s",
    b"b",
    b"q\x00h\x00",
    b"\x94",
    b"\x93",
    b"\x81",
    b"\x92",
    b"\x85",
    b"\x8f(",
    b"\x90",
    b"\x91",
    b"\x95\x00\x00\x00\x00\x00\x00\x00\x00",
];

pub fn seeds() -> Vec<Vec<u8>> {
    let view = View::contiguous("FloatStorage", "0", &[2, 3]);
    let large = View::contiguous("BFloat16Storage", "1", &[8, 32]);
    let turned = View {
        shape: vec![32, 4],
        strides: vec![1, 64],
        ..large.clone()
    };
    let repeated = View {
        shape: vec![5, 3],
        strides: vec![0, 1],
        ..view.clone()
    };
    let trained = Pickler::new()
        .op(b"}(")
        .str("config")
        .global("easydict", "EasyDict")
        .op(b")\x81(")
        .str("model")
        .op(b"}(")
        .str("list")
        .op(b"](K\x01NG\x3f\xe0\0\0\0\0\0\0eX\x01\0\0\0tK\x01\x85uu}(")
        .str("lr")
        .op(b"K\x02ub")
        .str("task")
        .global("collections", "OrderedDict")
        .op(b")R(")
        .str("w")
        .global("torch._utils", "_rebuild_parameter")
        .op(b"(")
        .tensor(&view)
        .op([0x88])
        .global("collections", "OrderedDict")
        .op(b")RtR")
        .op(b"u}")
        .str("_metadata")
        .global("collections", "OrderedDict")
        .op(b")Rsb")
        .str("size")
        .global("torch", "Size")
        .op(b"K\x02\x85\x85R")
        .str("bytes")
        .op(b"C\x02hiu")
        .stop();
    let untyped = Pickler::new()
        .op(b"}")
        .str("w")
        .global("torch._utils", "_rebuild_tensor_v3")
        .op(b"((")
        .str("storage")
        .global("torch.storage", "UntypedStorage")
        .str("0")
        .str("cuda:0")
        .int(24)
        .op(b"tQ")
        .int(1)
        .tuple(&[5])
        .tuple(&[2])
        .op(b"\x89N")
        .global("torch", "bfloat16")
        .op(b"tRs")
        .stop();
    let doubles = View::contiguous("DoubleStorage", "1", &[8, 8]);
    vec![
        state_pickle(&[("w", view.clone())]),
        state_pickle(&[("a", large), ("b", turned), ("c", repeated)]),
        state_pickle(&[("backbone.ln.weight", doubles)]),
        trained,
        untyped,
        sharded(),
        beside(&view),
    ]
}

/// As FSDP's trainer has it: attributes on every tensor, names as keys of the optimizer.
fn sharded() -> Vec<u8> {
    let arguments = |p: Pickler| {
        p.op(b"(")
            .storage("FloatStorage", "0", 6)
            .int(0)
            .tuple(&[2, 3])
            .tuple(&[3, 1])
            .op(b"\x89}}X\x03\0\0\0neg\x89st")
    };
    let tensor = |p: Pickler| {
        let p = p.global("torch._tensor", "_rebuild_from_type_v2").op(b"(");
        let p = p
            .global("torch._utils", "_rebuild_tensor_v2")
            .global("torch", "Tensor");
        arguments(p).op(b"}X\x05\0\0\0_fqns]stR")
    };
    let p = Pickler::new().op(b"}(").str("model_state_dict").op(b"}");
    let p = tensor(p.str("_orig_mod.backbone.ln.weight"))
        .op(b"s")
        .str("optimizer")
        .op(b"}");
    let p = p
        .str("backbone.ln.weight")
        .global("torch._utils", "_rebuild_parameter_with_state");
    tensor(p.op(b"("))
        .op(b"\x88}N}X\x01\0\0\0a\x88s\x86tRsu")
        .stop()
}

/// Weights in two places, one of them with entries that are none, among objects.
fn beside(view: &View) -> Vec<u8> {
    let p = Pickler::new()
        .op(b"}(")
        .str("net")
        .op(b"}(")
        .str("backbone.ln.weight");
    let p = p
        .tensor(view)
        .str("head._extra_state")
        .op(b"C\x01x")
        .str("head.lm_head.bias");
    let p = p
        .op(b"Nu")
        .str("args")
        .global("argparse", "Namespace")
        .op(b")\x81}X\x02\0\0\0lrK\x01sb");
    let p = p
        .str("counts")
        .global("collections", "Counter")
        .op(b"}X\x01\0\0\0aK\x01s\x85R");
    let p = p
        .str("kind")
        .global("__builtin__", "getattr")
        .global("mine", "Outer");
    let p = p.op(b"X\x05\0\0\0Inner\x86R)}\x92(K\x01K\x02u");
    let p = p
        .str("quantised")
        .tensor(&View::contiguous("QInt8Storage", "none", &[3]));
    p.op(b"u").stop()
}
