//! Engine plans of a package: strictly those that were built from it, for what is to run them.

use crate::common::{Options, info, write_manifest, write_package};
use ratplus_graphs::package::{FileInfo, MANIFEST_FILE, Manifest, Target, WEIGHTS_FILE};
use ratplus_graphs::plans::{Plan, PlanSet, plan_file, plans_folder};
use ratplus_runtime::backend::BackendKind;
use ratplus_runtime::package::{Package, PlanTarget};
use ratplus_tools::plans::{self, BuildOptions};
use std::fs;
use std::path::{Path, PathBuf};

const BACKEND: &str = "tensorrt-rtx";
const TARGET: PlanTarget<'_> = PlanTarget {
    backend: BACKEND,
    graphs: Target::Cuda,
    library: "1.7.1.116",
    compute_capability: Some((8, 6)),
};

fn content(seq_len: usize) -> Vec<u8> {
    format!("the plan for {seq_len} tokens").into_bytes()
}

/// A package with made-up plans.
fn package() -> (tempfile::TempDir, Manifest) {
    let dir = tempfile::tempdir().unwrap();
    let mut manifest = write_package(dir.path(), Options::default(), 1);
    let folder = dir.path().join(plans_folder(BACKEND));
    fs::create_dir_all(&folder).unwrap();
    let plan = |engine: &ratplus_graphs::package::Engine| {
        let bytes = content(engine.seq_len);
        let info: FileInfo = info(&bytes);
        let file = plan_file(&[&engine.name], &info);
        fs::write(folder.join(&file), bytes).unwrap();
        Plan {
            engines: vec![engine.name.clone()],
            file,
            info,
            onnx_blake3: manifest.files[&engine.files[&TARGET.graphs]].blake3.clone(),
        }
    };
    let set = PlanSet {
        library: TARGET.library.into(),
        version_compatible: false,
        stripped: false,
        tool: "test".into(),
        compute_capabilities: ["8.6", "12.0+"].map(|text| text.parse().unwrap()).to_vec(),
        weights_blake3: manifest.files[WEIGHTS_FILE].blake3.clone(),
        plans: manifest.engines.iter().map(plan).collect(),
        timing_cache: None,
    };
    manifest.plans.insert(BACKEND.into(), set);
    write_manifest(dir.path(), &manifest);
    (dir, manifest)
}

fn refused(dir: &Path, target: &PlanTarget<'_>) -> String {
    let error = Package::open(dir).unwrap().plans(target).unwrap_err();
    let text = error.to_string();
    for problem in &error.problems {
        assert!(problem.contains("run `ratplus build "), "{text}");
    }
    text
}

fn decode_plan(dir: &Path, manifest: &Manifest) -> PathBuf {
    let file = &manifest.plans[BACKEND].plans[0].file;
    dir.join(plans_folder(BACKEND)).join(file)
}

#[test]
fn plans_are_opened_in_the_order_of_the_engines() {
    let (dir, manifest) = package();
    let package = Package::open(dir.path()).unwrap();
    let newer = PlanTarget {
        compute_capability: Some((12, 1)),
        ..TARGET
    };
    let no_gpu = PlanTarget {
        compute_capability: None,
        ..TARGET
    };
    for target in [TARGET, newer, no_gpu] {
        let plans = package.plans(&target).unwrap();
        let found: Vec<_> = plans.iter().map(|plan| plan.to_vec()).collect();
        let engines = manifest.engines.iter();
        let expected: Vec<_> = engines.map(|engine| content(engine.seq_len)).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn a_manifest_without_plans_does_not_mention_them() {
    let dir = tempfile::tempdir().unwrap();
    write_package(dir.path(), Options::default(), 1);
    let json = fs::read_to_string(dir.path().join(MANIFEST_FILE)).unwrap();
    assert!(!json.contains("plans"), "{json}");
    let text = refused(dir.path(), &TARGET);
    assert!(text.contains("it has no plans for tensorrt-rtx"), "{text}");
}

#[test]
fn plans_for_something_else_are_refused() {
    let (dir, _) = package();
    let target = PlanTarget {
        library: "1.8.0.1",
        compute_capability: Some((9, 0)),
        ..TARGET
    };
    let text = refused(dir.path(), &target);
    for part in [
        "version 1.7.1.116 of its library, found version 1.8.0.1",
        "compute capability 8.6, 12.0+, found a GPU of 9.0",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let other = PlanTarget {
        backend: "tensorrt",
        ..TARGET
    };
    assert!(refused(dir.path(), &other).contains("no plans for tensorrt;"));
}

#[test]
fn plans_of_other_files_are_refused() {
    let (dir, mut manifest) = package();
    let set = manifest.plans.get_mut(BACKEND).unwrap();
    set.weights_blake3 = "0".repeat(64);
    set.plans[1].onnx_blake3 = "1".repeat(64);
    write_manifest(dir.path(), &manifest);
    let text = refused(dir.path(), &TARGET);
    for part in [
        "a weights.bin with BLAKE3 000",
        "plan of decode_b2.cuda.onnx",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn damaged_plans_are_refused() {
    let (dir, manifest) = package();
    let path = decode_plan(dir.path(), &manifest);
    let good = fs::read(&path).unwrap();
    let mut flipped = good.clone();
    flipped[3] ^= 1;
    let mut longer = good.clone();
    longer.push(0);
    for (bytes, part) in [
        (&good[1..], "bytes, found"),
        (&[], "bytes, found 0"),
        (&longer[..], "bytes, found"),
        (&flipped[..], "expected BLAKE3"),
    ] {
        fs::write(&path, bytes).unwrap();
        let text = refused(dir.path(), &TARGET);
        assert!(text.contains(part) && text.contains("decode-"), "{text}");
    }
    fs::remove_file(&path).unwrap();
    assert!(refused(dir.path(), &TARGET).contains("No such file"));
    fs::create_dir(&path).unwrap();
    assert!(refused(dir.path(), &TARGET).contains("a regular file"));
    // Other backends do not care.
    Package::open(dir.path()).unwrap();
}

#[test]
fn plans_may_not_lead_out_of_the_package() {
    let (dir, manifest) = package();
    let elsewhere = tempfile::tempdir().unwrap();
    let path = decode_plan(dir.path(), &manifest);
    let outside = elsewhere.path().join("decode.plan");
    fs::rename(&path, &outside).unwrap();
    std::os::unix::fs::symlink(&outside, &path).unwrap();
    let package = Package::open(dir.path()).unwrap();
    let text = package.plans(&TARGET).unwrap_err().to_string();
    assert!(text.contains("leads out of the package"), "{text}");
}

#[test]
fn a_manifest_with_strange_plans_is_refused() {
    let refuse = |part: &str, change: &dyn Fn(&mut Manifest)| {
        let (dir, mut manifest) = package();
        change(&mut manifest);
        write_manifest(dir.path(), &manifest);
        let text = Package::open(dir.path()).unwrap_err().to_string();
        assert!(text.contains(part), "{part}: {text}");
    };
    let set = |manifest: &mut Manifest| manifest.plans.get_mut(BACKEND).unwrap().clone();
    refuse("`../../weights.bin`", &|manifest| {
        let set = manifest.plans.get_mut(BACKEND).unwrap();
        set.plans[0].file = "../../weights.bin".into();
    });
    refuse("found decode, decode_b2, prefill_4", &|manifest| {
        manifest.plans.get_mut(BACKEND).unwrap().plans.pop();
    });
    refuse("plans: ort-cpu", &|manifest| {
        let set = set(manifest);
        manifest.plans.insert("ort-cpu".into(), set);
    });
    // Not what was written: a bit of the capability.
    let (dir, _) = package();
    let path = dir.path().join(MANIFEST_FILE);
    let json = fs::read_to_string(&path).unwrap();
    fs::write(&path, json.replace("\"12.0+\"", "\"12.1+\"")).unwrap();
    let text = Package::open(dir.path()).unwrap_err().to_string();
    assert!(text.contains("changed after it was written"), "{text}");
    fs::write(&path, json.replace("\"12.0+\"", "\"twelve\"")).unwrap();
    let text = Package::open(dir.path()).unwrap_err().to_string();
    assert!(text.contains("`twelve`"), "{text}");
}

#[test]
fn a_build_that_cannot_start_changes_nothing() {
    let (dir, manifest) = package();
    let package = Package::open(dir.path()).unwrap();
    let mut options = BuildOptions::default();
    options.tensorrt = Some(dir.path().join("nowhere"));
    for (backend, part) in [
        (BackendKind::TensorRtRtx, "libtensorrt_rtx.so.1"),
        (BackendKind::TensorRt, "libnvinfer.so.11"),
        (BackendKind::OrtCuda, "expected tensorrt or tensorrt-rtx"),
    ] {
        let error = plans::build(&package, backend, &options, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(
        fs::read(dir.path().join(MANIFEST_FILE)).unwrap(),
        manifest.to_json()
    );
    let folder = dir.path().join(plans_folder(BACKEND));
    assert_eq!(
        fs::read_dir(folder).unwrap().count(),
        manifest.engines.len()
    );
}
