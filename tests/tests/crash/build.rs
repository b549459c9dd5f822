//! `ratplus build` failing or dying while it publishes its plans.

use crate::faults::preload;
use crate::scene::{Scene, Tree, say, succeeded, tree};
use ratplus_graphs::package::{FileInfo, MANIFEST_FILE, Manifest};
use ratplus_graphs::plans::plans_folder;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const BACKEND: &str = "tensorrt-rtx";

fn build(package: &Path) -> Command {
    let mut command = Command::new(ratplus_tests::ratplus());
    command.arg("build").arg(package);
    // One target is the least work.
    command.args(["--backend", BACKEND, "--compute-capability", "8.6"]);
    command
}

/// What is wrong with a package that had the files of `before` when a build began, if anything;
/// whether it names plans.
fn judge(package: &Path, before: &Tree) -> Result<bool, String> {
    let found = tree(package).unwrap();
    let same = |name: &PathBuf| found.get(name) == before.get(name);
    let manifest = PathBuf::from(MANIFEST_FILE);
    if let Some(name) = before.keys().find(|name| **name != manifest && !same(name)) {
        return Err(format!("{} was changed", name.display()));
    }
    let parsed = Manifest::parse(&found[&manifest]).map_err(|error| error.to_string())?;
    let Some(set) = parsed.plans.get(BACKEND) else {
        return match same(&manifest) {
            true => Ok(false),
            false => Err("a manifest that is neither".into()),
        };
    };
    for plan in &set.plans {
        let file = Path::new(&plans_folder(BACKEND)).join(&plan.file);
        let bytes = found
            .get(&file)
            .ok_or(format!("{} is missing", plan.file))?;
        if FileInfo::of(bytes).blake3 != plan.info.blake3 {
            return Err(format!("half of {}", plan.file));
        }
    }
    Ok(true)
}

#[test]
fn plans_are_published_together() {
    let library = std::env::var_os("RATPLUS_TENSORRT_RTX").map(PathBuf::from);
    if !library.is_some_and(|folder| folder.join("libtensorrt_rtx.so.1").is_file()) {
        eprintln!("SKIPPED: RATPLUS_TENSORRT_RTX names no folder with TensorRT for RTX");
        return;
    }
    let scene = Scene::tiny();
    scene.clear();
    let decode_alone = ["--max-seq-len", "8", "--prefill-lengths", "1"];
    succeeded(&scene.command(&decode_alone).output().unwrap()).unwrap();
    let (package, log) = (scene.target(), scene.root().join("log"));
    let before = tree(&package).unwrap();
    let restore = || {
        let _ = fs::remove_dir_all(package.join("plans"));
        fs::write(
            package.join(MANIFEST_FILE),
            &before[Path::new(MANIFEST_FILE)],
        )
        .unwrap();
    };
    let mut dry = build(&package);
    preload(&mut dry, &package, &log, None);
    succeeded(&dry.output().unwrap()).unwrap();
    assert_eq!(judge(&package, &before), Ok(true));
    let calls = fs::read_to_string(&log).unwrap();
    let calls: Vec<_> = calls.lines().collect();
    // From the first plan that is whole: before, nothing but the build's own folder has changed.
    let first = calls
        .iter()
        .position(|line| line.contains(" fsync "))
        .unwrap();
    restore();
    let (mut runs, mut named) = (0, 0);
    for (call, line) in calls.iter().enumerate().skip(first) {
        let name = line.split(' ').nth(1).unwrap();
        for action in ["kill", "eio"] {
            // A build takes most of a second. The disk is the same before every call that changes
            // nothing, and what only looks around has failed at every call of an export.
            let changes = ["write", "fsync", "rename", "mkdir", "unlink"].contains(&name);
            if !changes && (action == "kill" || name != "open") {
                continue;
            }
            let mut command = build(&package);
            preload(&mut command, &package, &log, Some((call + 1, action)));
            let output = command.output().unwrap();
            let (_, stderr) = ratplus_tests::texts(&output);
            let at = format!("{action} at {line}: {stderr}");
            let has_plans =
                judge(&package, &before).unwrap_or_else(|problem| panic!("{at}: {problem}"));
            match (action, output.status.code()) {
                ("kill", None) => (),
                ("eio", Some(0)) => assert!(has_plans, "{at}"),
                ("eio", Some(2)) => {
                    assert_eq!(stderr.matches("error: ").count(), 1, "{at}");
                    assert!(stderr.contains(&package.display().to_string()), "{at}");
                }
                _ => panic!("{}: {at}", output.status),
            }
            runs += 1;
            if has_plans {
                named += 1;
                restore();
            }
        }
    }
    // What the last of them left goes with the next build.
    succeeded(&build(&package).output().unwrap()).unwrap();
    let found = tree(&package).unwrap();
    assert_eq!(judge(&package, &before), Ok(true));
    assert_eq!(found.len(), before.len() + 1, "{:?}", found.keys());
    assert!(named > 0 && named < runs);
    say(&format!(
        "{} calls of {} x 2 actions, {runs} builds, {named} with new plans: 0 half packages, 0 lost",
        calls.len() - first,
        calls.len()
    ));
}
