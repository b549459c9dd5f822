//! The published drift is what this source computes, and says what it should.

use approx::assert_abs_diff_eq;
use std::path::Path;
use std::process::Command;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[test]
fn the_page_is_what_is_computed() {
    let done = Command::new(env!("CARGO_BIN_EXE_drift"))
        .arg("--check")
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

#[test]
fn a_changed_page_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["drift.md", "drift.svg"] {
        std::fs::copy(root().join("docs").join(name), dir.path().join(name)).unwrap();
    }
    let page = dir.path().join("drift.md");
    let text = std::fs::read_to_string(&page).unwrap();
    std::fs::write(&page, text.replacen("0.", "1.", 1)).unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_drift"))
        .args(["--check", "--docs"])
        .arg(dir.path())
        .current_dir(root())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(
        done.status.code() == Some(2) && error.contains("drift.md: line "),
        "{error}"
    );
}

/// The cells of the first row that starts with `name` after `section`.
fn cells(page: &str, section: &str, name: &str) -> Vec<f64> {
    let (_, rest) = page.split_once(section).unwrap();
    let line = rest
        .lines()
        .find(|line| line.starts_with(&format!("| {name} |")))
        .unwrap();
    let cells = line
        .split('|')
        .skip(2)
        .map(str::trim)
        .filter(|cell| !cell.is_empty());
    cells.map(|cell| cell.parse().unwrap()).collect()
}

#[test]
fn f32_follows_and_bf16_stalls() {
    let page = std::fs::read_to_string(root().join("docs/drift.md")).unwrap();
    let constant = |name: &str| cells(&page, "## Constant input 1", name)[5];
    for (gate, stalls, follows) in [
        (0.99, 0.805, 1.0),
        (0.999, 0.25, 1.0),
        (0.9999, 0.031, 0.865),
    ] {
        assert_abs_diff_eq!(constant(&format!("{gate} bf16")), stalls, epsilon = 2e-3);
        assert_abs_diff_eq!(constant(&format!("{gate} f32")), follows, epsilon = 1e-3);
    }
    // Our state after ten thousand tokens.
    for (section, names) in [
        (
            "## Uniform noise",
            &["0.9 f32", "0.99 f32", "0.999 f32", "0.9999 f32"][..],
        ),
        ("## A trained model", &["f32"][..]),
    ] {
        for name in names {
            let worst = cells(&page, section, name).into_iter().fold(0.0, f64::max);
            assert!(worst < 2e-5, "{section} {name}: {worst}");
        }
    }
}
