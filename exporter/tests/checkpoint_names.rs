//! Names of weights as wrappers, containers and other modules leave them.

mod common;

use common::{Tensors, checkpoint, config, lines, tensors, with_config};
use ratplus_exporter::resolve::{ResolveError, ResolveOptions, Resolved};

/// A model whose names are changed.
fn renamed(rename: impl Fn(&str) -> String) -> Tensors {
    let named = tensors(2, 64).into_iter();
    named.map(|(name, value)| (rename(&name), value)).collect()
}

fn resolved(tensors: &Tensors) -> Result<Resolved, ResolveError> {
    with_config(tensors, &config(), ResolveOptions::default())
}

fn notes(tensors: &Tensors) -> Vec<String> {
    resolved(tensors).unwrap().notes
}

#[test]
fn wrappers_are_taken_off_at_any_depth() {
    let inner = |name: &str, wrapper: &str| {
        let layers = name.replace(
            "backbone.layers.0.",
            &format!("backbone.layers.0.{wrapper}."),
        );
        layers.replace(
            "backbone.layers.1.",
            &format!("backbone.layers.1.{wrapper}."),
        )
    };
    type Rename<'a> = &'a dyn Fn(&str) -> String;
    let cases: [(Rename, &str); 11] = [
        (&|name| format!("module.{name}"), "`module.` (DataParallel)"),
        (
            &|name| format!("_orig_mod.module.{name}"),
            "`_orig_mod.` (torch.compile), `module.` (DataParallel)",
        ),
        (
            &|name| format!("module._orig_mod.{name}"),
            "`_orig_mod.` (torch.compile), `module.` (DataParallel)",
        ),
        (
            &|name| format!("module.module.{name}"),
            "`module.` (DataParallel)",
        ),
        (
            &|name| inner(name, "_orig_mod"),
            "`_orig_mod.` (torch.compile)",
        ),
        (
            &|name| {
                format!(
                    "_fsdp_wrapped_module.{}",
                    inner(name, "_fsdp_wrapped_module")
                )
            },
            "`_fsdp_wrapped_module.` (FSDP)",
        ),
        (
            &|name| inner(name, "_checkpoint_wrapped_module"),
            "`_checkpoint_wrapped_module.` (activation checkpointing)",
        ),
        (
            &|name| {
                inner(
                    name,
                    "_fsdp_wrapped_module._checkpoint_wrapped_module._orig_mod",
                )
            },
            "`_checkpoint_wrapped_module.` (activation checkpointing), `_fsdp_wrapped_module.` (FSDP), `_orig_mod.` \
             (torch.compile)",
        ),
        (
            &|name| name.replace("seq_layer.", "seq_layer.module."),
            "`module.` (DataParallel)",
        ),
        (
            &|name| name.replace("fc1.", "fc1._orig_mod."),
            "`_orig_mod.` (torch.compile)",
        ),
        (
            &|name| format!("_forward_module.{name}"),
            "`_forward_module.` (Lightning Fabric)",
        ),
    ];
    for (rename, expected) in cases {
        let named = renamed(rename);
        assert_eq!(
            notes(&named),
            [format!("{expected} removed from the tensors' names")]
        );
    }
}

#[test]
fn one_common_prefix_is_taken_off() {
    for (prefix, shown) in [
        ("task.", "task."),
        ("model.", "model."),
        ("model.task.", "model.task."),
        ("lm.net.task.", "lm.net.task."),
    ] {
        let named = renamed(|name| format!("{prefix}{name}"));
        assert_eq!(
            notes(&named),
            [format!("`{shown}` removed from the tensors' names")]
        );
    }
    let both = renamed(|name| format!("model.module._orig_mod.{name}"));
    assert_eq!(
        notes(&both),
        [
            "`_orig_mod.` (torch.compile), `module.` (DataParallel) removed from the tensors' names",
            "`model.` removed from the tensors' names"
        ]
    );
    // A weight that has another prefix, or none, is another tensor.
    let mut metric = renamed(|name| format!("task.{name}"));
    metric.insert("loss.weight".into(), ("F32", vec![97]));
    metric.insert("task.head.lm_head.bias".into(), ("F32", vec![97]));
    assert_eq!(
        lines(resolved(&metric)),
        [
            "`head.lm_head.bias`: expected no such tensor, found f32 [97]",
            "`loss.weight`: expected no such tensor, found f32 [97]"
        ]
    );
    let mut averaged = tensors(2, 64);
    averaged.insert("ema.backbone.ln.weight".into(), ("F32", vec![64]));
    assert_eq!(
        lines(resolved(&averaged)),
        ["`ema.backbone.ln.weight`: expected no such tensor, found f32 [64]"]
    );
    let mut two = renamed(|name| format!("student.{name}"));
    two.extend(renamed(|name| format!("teacher.{name}")));
    assert_eq!(
        lines(resolved(&two))[0],
        "weights of several models, named `student.` (15 tensors), `teacher.` (15 tensors); save those of the one to export"
    );
    let mut twice = renamed(|name| format!("module.{name}"));
    twice.insert("backbone.ln.weight".into(), ("F32", vec![64]));
    assert_eq!(
        lines(resolved(&twice)),
        [
            "`backbone.ln.weight`: expected once, found as `backbone.ln.weight` and as `module.backbone.ln.weight`"
        ]
    );
}

#[test]
fn what_is_no_weight_is_left_out_by_name() {
    let mut odd = renamed(|name| format!("model.{name}"));
    for name in [
        "embedding.wpe.inv_freq",
        "embedding.wpe.cos_cached",
        "embedding.wpe.sin_cached",
    ] {
        odd.insert(format!("model.{name}"), ("F32", vec![8]));
    }
    odd.insert("model.head._extra_state".into(), ("F32", vec![0]));
    assert_eq!(
        notes(&odd),
        [
            "`model.` removed from the tensors' names",
            "ignored: `embedding.wpe.cos_cached`, `embedding.wpe.inv_freq`, `embedding.wpe.sin_cached`; tables of the rotary \
             embedding follow from its base",
            "ignored: `head._extra_state`; the state of a module, not a weight"
        ]
    );
    let mut flat = tensors(2, 64);
    flat.insert("_fsdp_wrapped_module._flat_param".into(), ("F32", vec![99]));
    assert_eq!(
        lines(resolved(&flat))[0],
        "`_flat_param`: expected weights, found FSDP's flattened parameters; save with StateDictType.FULL_STATE_DICT"
    );
}

#[test]
fn doubles_are_weights_with_a_note() {
    let mut mixed = tensors(2, 64);
    mixed.insert("backbone.ln.weight".into(), ("F64", vec![64]));
    assert_eq!(
        notes(&mixed),
        ["1 tensor is stored in f64: its values are rounded"]
    );
    for (dtype, _) in mixed.values_mut() {
        *dtype = "F64";
    }
    assert_eq!(
        notes(&mixed),
        ["15 tensors are stored in f64: their values are rounded"]
    );
    assert_eq!(checkpoint("x.safetensors", &mixed).tensors().len(), 15);
}
