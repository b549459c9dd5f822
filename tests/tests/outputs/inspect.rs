//! What a package or checkpoint costs.

use super::{case, export, printed};
use ratplus_tests::{run, texts};

#[test]
fn inspect_shows_patterns_bytes_and_flops() {
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("package");
    export(
        &case("kjv_hybrid"),
        &package,
        &["--max-seq-len", "1024", "--batch", "2"],
    );
    let plot = dir.path().join("cost.svg");
    let text = printed(&["inspect", "--plot", plot.to_str().unwrap()], &package);
    // Files' sizes follow the graphs.
    let lines = text
        .lines()
        .filter(|line| !line.contains(".onnx"))
        .map(|line| line.replace(&dir.path().display().to_string(), "DIR"));
    insta::assert_snapshot!("inspect", lines.collect::<Vec<_>>().join("\n"));
    let svg = std::fs::read_to_string(plot).unwrap();
    assert!(
        svg.starts_with("<svg") && svg.contains("dense attention"),
        "{svg}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&printed(&["inspect", "--json"], &package)).unwrap();
    assert_eq!(json["bound_state_bytes"], json["manifest"]["state_bytes"]);
}

#[test]
fn a_checkpoints_cache_can_be_counted_in_another_type() {
    let case = case("kjv_hybrid");
    let config = case.file("config.json");
    let cache = |more: &[&str]| {
        let flags = ["inspect", "--json", "--config", config.to_str().unwrap()];
        let json = printed(&[&flags, more].concat(), &case.checkpoint());
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        json["state_bytes_per_sequence"]["cache"].as_u64().unwrap()
    };
    let f32 = cache(&[]);
    assert_eq!(cache(&["--cache-dtype", "f32"]), f32);
    assert_eq!(2 * cache(&["--cache-dtype", "bf16"]), f32);
    // A package has a type, and says so instead of ignoring the flag.
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("package");
    export(&case, &package, &["--max-seq-len", "64"]);
    let refused = run([
        "inspect".into(),
        package.into_os_string(),
        "--cache-dtype".into(),
        "f16".into(),
        "--max-seq-len".into(),
        "32".into(),
    ]);
    assert_eq!(refused.status.code(), Some(2));
    let (_, stderr) = texts(&refused);
    assert!(
        stderr.contains("--max-seq-len and --cache-dtype, found a package, which has its own: leave it out, or export again"),
        "{stderr}"
    );
}
