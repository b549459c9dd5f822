//! Head and embedding as one matrix.

use super::*;

#[test]
fn a_tied_matrix_has_either_name() {
    let tied = run(set("/task/tie_embedding", json!(true)));
    for missing in [Weight::LmHead, Weight::Embedding] {
        let without = |weight: Weight| distinct(weight).filter(|_| weight != missing);
        let options = ResolveOptions::default();
        let found = resolve(&checkpoint(true, &tied, without), &options).unwrap();
        assert!(found.spec.tie_embedding);
        has_note(
            &found,
            &format!(
                "`{}` is not in the checkpoint: head and embedding are tied",
                missing.name()
            ),
        );
        has_note(
            &found,
            "says task.tie_embedding of the training configuration",
        );
        let (first, last) = (&found.sources[0], &found.sources[14]);
        assert_eq!(
            (first.weight, last.weight),
            (Weight::Embedding, Weight::LmHead)
        );
        assert_eq!(first.parts, last.parts);
        // Where nothing says so, what to do.
        let silent = run(|config| config["task"] = json!({}));
        let problems = refused(resolve(&checkpoint(true, &silent, without), &options));
        let there = match missing {
            Weight::LmHead => EMBEDDING,
            _ => HEAD,
        };
        let remedy = format!(
            "where it is tied to `{there}`, give a `config_file` with \"tie_embedding\": true"
        );
        assert!(
            problems.iter().any(|problem| problem.ends_with(&remedy)),
            "{problems:?}"
        );
        // A configuration of this one field is enough.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tie.json");
        std::fs::write(&path, r#"{"tie_embedding": true}"#).unwrap();
        let options = ResolveOptions {
            config_file: Some(path),
            ..options
        };
        let found = resolve(&checkpoint(true, &silent, without), &options).unwrap();
        assert!(found.spec.tie_embedding);
    }
}

#[test]
fn identical_matrices_become_one_and_others_stay_two() {
    let tied = run(set("/task/tie_embedding", json!(true)));
    let untied = run(|_| {});
    let shared = |weight: Weight| match weight {
        Weight::LmHead => distinct(Weight::Embedding),
        other => distinct(other),
    };
    // Another storage with the same numbers.
    let copied = |weight: Weight| match weight {
        Weight::LmHead => Some(("copy".into(), distinct(Weight::Embedding)?.1)),
        other => distinct(other),
    };
    let options = ResolveOptions::default();
    for config in [&tied, &untied] {
        for change in [&shared as &dyn Fn(Weight) -> Option<(String, f32)>, &copied] {
            let found = resolve(&checkpoint(true, config, change), &options).unwrap();
            assert!(found.spec.tie_embedding);
            has_note(
                &found,
                "head and embedding are the same matrix, which is stored once",
            );
        }
        let found = resolve(&checkpoint(true, config, distinct), &options).unwrap();
        assert!(!found.spec.tie_embedding);
    }
    has_note(
        &plain(&tied),
        "but the checkpoint has two that differ: both are kept",
    );
}
