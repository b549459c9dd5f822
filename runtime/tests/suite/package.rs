//! Damaged and foreign packages are refused, with everything wrong listed.

use crate::common::{Options, info, portable, write_manifest, write_package};
use prost::Message;
use ratplus_graphs::onnx::{AttributeProto, ModelProto, TensorProto};
use ratplus_graphs::ops::TensorType;
use ratplus_graphs::package::{MANIFEST_FILE, Manifest, WEIGHTS_FILE};
use ratplus_runtime::package::{OpenOptions, Package, PackageError};
use std::fs;
use std::path::Path;

fn package() -> (tempfile::TempDir, Manifest) {
    let dir = tempfile::tempdir().unwrap();
    let manifest = write_package(dir.path(), Options::default(), 1);
    Package::open(dir.path()).unwrap();
    (dir, manifest)
}

fn refused(dir: &Path) -> PackageError {
    Package::open(dir).expect_err("the package is refused")
}

/// Runs `change` on a copy of the bytes of `file`, and expects an error that names the file.
fn refuse_bytes(dir: &Path, file: &str, what: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let path = dir.join(file);
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    change(&mut bad);
    fs::write(&path, &bad).unwrap();
    let error = refused(dir);
    assert!(
        error.problems.iter().any(|problem| problem.contains(file)),
        "{what}: {error}"
    );
    fs::write(&path, good).unwrap();
}

#[test]
fn every_damaged_file_is_named() {
    let (dir, manifest) = package();
    for (name, file) in &manifest.files {
        let size = file.bytes as usize;
        for at in (0..size).step_by((size / 23).max(1)).chain([size - 1]) {
            for bit in [0, 7] {
                refuse_bytes(dir.path(), name, "flip", |bytes| bytes[at] ^= 1 << bit);
            }
        }
        refuse_bytes(dir.path(), name, "truncated", |bytes| {
            bytes.truncate(size / 2)
        });
        refuse_bytes(dir.path(), name, "empty", |bytes| bytes.clear());
        refuse_bytes(dir.path(), name, "longer", |bytes| bytes.push(0));
        let moved = dir.path().join("moved");
        fs::rename(dir.path().join(name), &moved).unwrap();
        assert!(refused(dir.path()).to_string().contains(name.as_str()));
        fs::rename(moved, dir.path().join(name)).unwrap();
    }
    Package::open(dir.path()).unwrap();
}

#[test]
fn a_damaged_manifest_is_refused() {
    let (dir, _) = package();
    let json = fs::read(dir.path().join(MANIFEST_FILE)).unwrap();
    for at in (0..json.len()).step_by(5) {
        for bit in [0, 3, 6] {
            refuse_bytes(dir.path(), MANIFEST_FILE, "flip", |bytes| {
                bytes[at] ^= 1 << bit
            });
        }
    }
    refuse_bytes(dir.path(), MANIFEST_FILE, "truncated", |bytes| {
        bytes.truncate(json.len() - 2)
    });
    Package::open(dir.path()).unwrap();
}

#[test]
fn all_problems_come_at_once() {
    let (dir, manifest) = package();
    for engine in &manifest.engines {
        for file in engine.files.values() {
            fs::write(dir.path().join(file), "x").unwrap();
        }
    }
    fs::remove_file(dir.path().join(WEIGHTS_FILE)).unwrap();
    // The engines' for TensorRT is one.
    let graphs = 3 * manifest.engines.len() + 1;
    assert_eq!(refused(dir.path()).problems.len(), graphs + 1);
}

#[test]
fn foreign_folders_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(refused(dir.path()).to_string().contains("ratplus export"));
    assert!(
        refused(&dir.path().join("nothing"))
            .to_string()
            .contains("ratplus export")
    );
    for json in [
        "",
        "{}",
        "[1]",
        "{\"format\": \"other\", \"format_version\": 1}",
    ] {
        fs::write(dir.path().join(MANIFEST_FILE), json).unwrap();
        assert!(
            refused(dir.path()).to_string().contains(MANIFEST_FILE),
            "{json}"
        );
    }
    // The weights of another model of the same sizes.
    let (other, manifest) = package();
    write_package(other.path(), Options::default(), 2);
    write_manifest(other.path(), &manifest);
    assert!(refused(other.path()).to_string().contains(WEIGHTS_FILE));
    // Sizes alone do not show it.
    let mut options = OpenOptions::default();
    options.skip_checksum = true;
    Package::open_with(other.path(), &options).unwrap();
}

/// Replaces an engine's graph, checksum included: only the guard can object.
fn refuse_model(part: &str, change: impl FnOnce(&mut ModelProto)) {
    let (dir, mut manifest) = package();
    let file = portable(&manifest, 1);
    let mut model = ModelProto::decode(&fs::read(dir.path().join(&file)).unwrap()[..]).unwrap();
    change(&mut model);
    let bytes = model.encode_to_vec();
    manifest.files.insert(file.clone(), info(&bytes));
    fs::write(dir.path().join(&file), bytes).unwrap();
    write_manifest(dir.path(), &manifest);
    let error = refused(dir.path()).to_string();
    assert!(
        error.contains(&file) && error.contains(part),
        "expected `{part}` in {error}"
    );
}

fn initializer(model: &mut ModelProto) -> &mut TensorProto {
    &mut model.graph.as_mut().unwrap().initializer[3]
}

fn set(tensor: &mut TensorProto, key: &str, value: &str) {
    let entry = tensor
        .external_data
        .iter_mut()
        .find(|entry| entry.key == key)
        .unwrap();
    entry.value = value.into();
}

#[test]
fn hostile_graphs_are_refused_before_a_runtime_sees_them() {
    for location in [
        "../weights.bin",
        "a/../weights.bin",
        "/etc/passwd",
        "/proc/self/mem",
        "./weights.bin",
        "*/_ORT_MEM_ADDR_/*",
        "weights.bin\0",
        "manifest.json",
        "",
    ] {
        refuse_model("location", |model| {
            set(initializer(model), "location", location)
        });
    }
    for offset in ["0", "-4096", "18446744073709551615", "4097", "x", ""] {
        refuse_model("offset", |model| set(initializer(model), "offset", offset));
    }
    refuse_model("length", |model| set(initializer(model), "length", "4"));
    refuse_model("nothing else", |model| {
        initializer(model).raw_data = Some(vec![0; 4])
    });
    refuse_model("nothing else", |model| initializer(model).data_location = 0);
    refuse_model("nothing else", |model| {
        let tensor = initializer(model);
        tensor.external_data.push(tensor.external_data[0].clone());
    });
    refuse_model("for the model's sizes", |model| {
        initializer(model).dims = vec![1 << 40, 1 << 40]
    });
    refuse_model("for the model's sizes", |model| {
        initializer(model).data_type = 10
    });
    refuse_model("unknown, or there twice", |model| {
        initializer(model).name = "other".into()
    });
    refuse_model("missing", |model| {
        model.graph.as_mut().unwrap().initializer.remove(0);
    });
    refuse_model("refers to a file", |model| {
        let tensor = TensorProto::external(
            "c",
            &TensorType::new(ratplus_graphs::ops::ElementType::F32, [1]),
            "/etc/passwd",
            0,
        );
        model.graph.as_mut().unwrap().node[0]
            .attribute
            .push(AttributeProto::tensor("value", tensor));
    });
    refuse_model("refers to a file", |model| {
        let tensor = TensorProto::external(
            "c",
            &TensorType::new(ratplus_graphs::ops::ElementType::F32, [1]),
            "/etc/passwd",
            0,
        );
        model.functions[0].node[0]
            .attribute
            .push(AttributeProto::tensor("value", tensor));
    });
    refuse_model("is not one a package may use", |model| {
        model.graph.as_mut().unwrap().node[0].domain = "com.example".into();
    });
    refuse_model("input `input_ids`", |model| {
        model.graph.as_mut().unwrap().input[0].r#type = None;
    });
    refuse_model("outputs as in the manifest", |model| {
        model.graph.as_mut().unwrap().output.pop();
    });
    refuse_model("found none", |model| model.graph = None);
    refuse_model("ir_version", |model| model.ir_version = 3);
    refuse_model("opset", |model| model.opset_import[0].version = 3);
    refuse_model("not one of this package's operators", |model| {
        model.functions[0].name = "Other".into()
    });
}

#[cfg(unix)]
#[test]
fn links_may_lead_to_the_real_package_only() {
    use std::os::unix::fs::symlink;
    // A model hub's cache: every file is a link to a blob of another name.
    let (dir, manifest) = package();
    let root = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (root.path().join("blobs"), root.path().join("snapshot"));
    fs::create_dir(&blobs).unwrap();
    fs::create_dir(&snapshot).unwrap();
    for (index, name) in manifest
        .files
        .keys()
        .map(String::as_str)
        .chain([MANIFEST_FILE])
        .enumerate()
    {
        let blob = format!("blob{index}");
        fs::copy(dir.path().join(name), blobs.join(&blob)).unwrap();
        symlink(Path::new("../blobs").join(blob), snapshot.join(name)).unwrap();
    }
    Package::open(&snapshot).unwrap();
    // A link out of an ordinary package.
    let outside = tempfile::tempdir().unwrap();
    fs::rename(dir.path().join(WEIGHTS_FILE), outside.path().join("w")).unwrap();
    symlink(outside.path().join("w"), dir.path().join(WEIGHTS_FILE)).unwrap();
    assert!(
        refused(dir.path())
            .to_string()
            .contains("leads out of the package")
    );
    fs::remove_file(dir.path().join(WEIGHTS_FILE)).unwrap();
    fs::create_dir(dir.path().join(WEIGHTS_FILE)).unwrap();
    assert!(refused(dir.path()).to_string().contains("regular file"));
}
