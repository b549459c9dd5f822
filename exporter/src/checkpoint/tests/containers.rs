//! Where in a file the state dict is, and what of it is left out.

use super::super::Checkpoint;
use super::super::testing::{Pickler, View, ZipEnd, pth, records, state_pickle, zip};
use super::pickles::{around, refused, storages, view};
use super::{f32s, message, open_pth, values};

fn opened(pickle: Vec<u8>) -> Checkpoint {
    open_pth(pth(pickle, &storages())).unwrap()
}

#[test]
pub(super) fn state_dicts_are_found_where_they_may_be() {
    let tensor = |p: Pickler| p.tensor(&View::contiguous("FloatStorage", "0", &[2, 3]));
    let bytes = f32s((0..6).map(|i| i as f32));
    let open = |pickle: Vec<u8>| open_pth(pth(pickle, &[("0", bytes.clone())]));
    let bare = tensor(Pickler::new().op(b"}(").str("w")).op(b"u").stop();
    assert_eq!(values(&open(bare).unwrap(), 9).unwrap()["w"].1, bytes);
    for key in ["task", "model", "state_dict"] {
        let wrapped = tensor(
            Pickler::new()
                .op(b"}(")
                .str("step")
                .op(b"K\x01")
                .str(key)
                .op(b"}")
                .str("w"),
        )
        .op(b"su")
        .stop();
        assert_eq!(values(&open(wrapped).unwrap(), 9).unwrap()["w"].1, bytes);
    }
    let other = tensor(Pickler::new().op(b"}(").str("net").op(b"}").str("w"))
        .op(b"s")
        .str("step")
        .op(b"K\x01u")
        .stop();
    assert_eq!(
        message(open(other)),
        "pickle: no state dict: expected one under `task`, `state_dict`, `model`, `model_state_dict`, or nothing but tensors; found \
         `net` (a dict), `step` (an int)"
    );
    assert_eq!(
        message(open(Pickler::new().op(b"}").stop())),
        "pickle: no state dict: expected one under `task`, `state_dict`, `model`, `model_state_dict`, or nothing but tensors; found an \
         empty dict"
    );
    let two = |p: Pickler, key: &str, shape: &[i64]| {
        p.str(key)
            .op(b"}")
            .str("w")
            .tensor(&View::contiguous("FloatStorage", "0", shape))
            .op(b"s")
    };
    let several = |shape| {
        let first = two(Pickler::new().op(b"}("), "task", &[2, 3]);
        two(first, "model", shape).op(b"u").stop()
    };
    assert_eq!(
        values(&open(several(&[2, 3])).unwrap(), 9).unwrap()["w"].1,
        bytes
    );
    let several = several(&[3, 2]);
    assert_eq!(
        message(open(several)),
        "pickle: several state dicts: `task`, `model`; save the one to export alone"
    );
    let twice = tensor(tensor(Pickler::new().op(b"}(").str("w")).str("w"))
        .op(b"u")
        .stop();
    assert_eq!(
        message(open(twice)),
        "pickle: `w` is in the state dict twice"
    );
    let number = tensor(Pickler::new().op(b"}(").op(b"K\x07"))
        .op(b"u")
        .stop();
    assert_eq!(
        message(open(number)),
        "pickle: a key of the state dict is an int, expected a string"
    );
    let mixed = tensor(Pickler::new().op(b"}").str("task").op(b"}(").str("w"))
        .str("n")
        .op(b"K\x01us")
        .stop();
    assert_eq!(
        message(open(mixed)),
        "pickle: `n` in the state dict is an int, expected a tensor"
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
    let skipped = |data: Vec<u8>, pickle_crc: Option<u32>| {
        let mut records = records(state_pickle(&[("w", view())]), &[("0", data)]);
        records[0].crc = pickle_crc;
        records[2].crc = Some(0);
        open_pth(zip(&records, &ZipEnd::default()))
    };
    assert_eq!(
        message(skipped(vec![0; 24], None)),
        "its tensors have no data: torch.save wrote it inside torch.serialization.skip_data; save it again without"
    );
    skipped(f32s((0..6).map(|i| i as f32)), None).unwrap();
    skipped(vec![0; 24], Some(0)).unwrap();
}

/// A checkpoint of one tensor, and what `value` writes under `key`.
fn beside_weights(key: &str, value: impl FnOnce(Pickler) -> Pickler) -> Checkpoint {
    let p = Pickler::new().op(b"}(").str("task").op(b"}").str("w");
    let p = p.tensor(&view()).op(b"s").str(key);
    opened(value(p).op(b"u").stop())
}

#[test]
fn configurations_of_other_libraries_are_read() {
    let config = |value: &[u8]| beside_weights("config", |p| p.op(value));
    let expected = serde_json::json!({"a": [1, "x"], "n": null});
    let omega = b"comegaconf.dictconfig\nDictConfig\nq\x00)\x81q\x01}(X\x09\0\0\0_metadatacomegaconf.base\nMetadata\n\
        )\x81}bX\x07\0\0\0_parentNX\x08\0\0\0_content}(X\x01\0\0\0acomegaconf.listconfig\nListConfig\n)\x81}(\
        X\x07\0\0\0_parenth\x01X\x08\0\0\0_content](comegaconf.nodes\nAnyNode\n)\x81}(X\x04\0\0\0_valK\x01u\
        bcomegaconf.nodes\nStringNode\n)\x81}(X\x04\0\0\0_valX\x01\0\0\0xubeubX\x01\0\0\0n\
        comegaconf.nodes\nAnyNode\n)\x81}(X\x04\0\0\0_valNubuub";
    let namespace = b"cargparse\nNamespace\n)\x81}(X\x01\0\0\0a](K\x01X\x01\0\0\0xeX\x01\0\0\0nNub";
    for value in [omega.as_slice(), namespace] {
        let checkpoint = config(value);
        assert_eq!(checkpoint.saved_config(), Some(&expected));
        assert!(checkpoint.notes().is_empty());
    }
    let unread = |what: &str| {
        format!(
            "the configuration saved under `config` ({what}) is not read; what it says about the model has to be given"
        )
    };
    assert_eq!(
        config(b"cmine\nConfig\n)\x81}X\x01\0\0\0aK\x01sb").notes(),
        [unread("`mine.Config`")]
    );
    assert_eq!(config(b"C\x01x").notes(), [unread("bytes")]);
    assert!(config(b"N").notes().is_empty());
    // One that contains itself, and a long list beside what says something.
    let cycle = config(b"cargparse\nNamespace\n)\x81q\x00}X\x01\0\0\0ah\x00sb");
    let text = cycle.saved_config().unwrap().to_string();
    assert!(
        text.contains("<nested or long beyond what is read>"),
        "{text}"
    );
    let long = [
        b"}(X\x01\0\0\0a](".as_slice(),
        &b"K\x01".repeat(5000),
        b"eX\x01\0\0\0bK\x07u",
    ]
    .concat();
    let expected = serde_json::json!({"a": "<longer than what is read>", "b": 7});
    assert_eq!(config(&long).saved_config(), Some(&expected));
    // What is no plain value says what it is.
    let odd = config(b"}(X\x01\0\0\0acmine\nScalar\n)RX\x01\0\0\0bG\x7f\xf8\0\0\0\0\0\0u");
    let expected = serde_json::json!({"a": "<mine.Scalar>", "b": "<NaN>"});
    assert_eq!(odd.saved_config(), Some(&expected));
}

#[test]
fn a_configuration_under_another_key_is_read_where_it_is_a_models() {
    let with = |key: &str, fields: &str| beside_weights(key, |p| p.op(b"}").str(fields).op(b"]s"));
    for key in ["cfg", "hparams", "model_config"] {
        let found = with(key, "patterns");
        assert_eq!(
            found.saved_config(),
            Some(&serde_json::json!({"patterns": []}))
        );
        assert_eq!(
            found.notes(),
            [format!("the configuration is that saved under `{key}`")]
        );
        let other = with(key, "lr");
        assert_eq!(other.saved_config(), None);
        assert!(other.notes()[0].contains(&format!("saved under `{key}` (a dict) is not read")));
    }
    assert!(with("history", "lr").notes().is_empty());
}
