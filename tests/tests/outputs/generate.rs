//! What follows a prompt.

use super::{case, export, printed};

#[test]
fn every_backend_continues_a_prompt_with_the_same_words() {
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("package");
    export(&case("kjv_d16w64i4"), &package, &["--max-seq-len", "256"]);
    let prompt = [
        "generate",
        "--prompt",
        "And God said, Let there be",
        "-n",
        "60",
    ];
    let continued = |more: &[&str]| printed(&[&prompt, more].concat(), &package);
    let text = continued(&[]);
    assert!(
        text.starts_with("And God said, Let there be") && text.len() > 120,
        "{text}"
    );
    for more in [
        &["--backend", "ort-fallback"][..],
        &["--backend", "tract"],
        &["--threads", "1"],
        &["--temperature", "1.5", "--top-k", "1", "--seed", "9"],
    ] {
        assert_eq!(continued(more), text, "{more:?}");
    }
    let drawn =
        |seed: &str| continued(&["--temperature", "0.9", "--top-p", "0.95", "--seed", seed]);
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
}
