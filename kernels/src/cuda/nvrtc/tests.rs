//! NVRTC as `cargo xtask setup` installs it; no driver and no GPU is needed.

use super::*;
use crate::cuda::sources::{TOOLKIT, UNITS};
use crate::cuda::units::ARCHITECTURES;
use std::fs;
use std::sync::OnceLock;
use std::thread;

/// The installed compiler's folder, below the target directory that this test runs from.
pub(crate) fn folder() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let mut folders = program
        .ancestors()
        .map(|above| above.join("cuda/nvidia/cu13/lib"));
    folders
        .find(|folder| folder.is_dir())
        .expect("expected NVRTC in the target directory, found none; run `cargo xtask setup`")
}

fn search(named: Option<PathBuf>, folders: Vec<PathBuf>) -> Search {
    Search {
        named,
        names: vec!["libnvrtc.so.13".into()],
        folders,
    }
}

fn compiler() -> &'static Nvrtc {
    static COMPILER: OnceLock<Nvrtc> = OnceLock::new();
    COMPILER.get_or_init(|| search(Some(folder()), Vec::new()).find().unwrap())
}

const SOURCE: &str = "
#include \"device.cuh\"
#include \"recurrence_scan.h\"
using namespace ratplus;
RATPLUS_KERNEL(ratplus_trial, ScanParams, 128, 1) {
    static_cast<float*>(p.gated_key)[thread_index()] = 1.0f;
}
";

/// The name of an architecture as a capability.
fn capability(name: &str) -> Capability {
    let number: u32 = name.trim_end_matches('a').parse().unwrap();
    (number / 10, number % 10)
}

#[test]
fn every_unit_compiles_without_a_spill() {
    let nvrtc = compiler();
    // Where nvcc is used it has done the rest, and only the other front end is new.
    let architectures = match TOOLKIT {
        Some(_) => &["90a"][..],
        None => &ARCHITECTURES,
    };
    let compile = |architecture: &str| {
        for unit in UNITS {
            if unit.architectures(&[architecture]).is_empty() {
                continue;
            }
            let made = nvrtc.code(unit.file, unit.source, capability(architecture), None);
            let made = made.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(made.architecture, format!("sm_{architecture}"));
            assert!(made.code.starts_with(b"\x7fELF"), "{}", unit.file);
            let kernels = made.log.matches("Compiling entry function").count();
            let clean = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
            assert!(kernels > 0, "{}: {}", unit.file, made.log);
            assert_eq!(made.log.matches(clean).count(), kernels, "{}", made.log);
        }
    };
    thread::scope(|scope| {
        for half in architectures.chunks(architectures.len().div_ceil(2)) {
            scope.spawn(move || half.iter().copied().for_each(compile));
        }
    });
}

#[test]
fn code_is_compiled_once() {
    let folder = tempfile::tempdir().unwrap();
    let code = || {
        compiler()
            .code("trial.cu", SOURCE, (9, 0), Some(folder.path()))
            .unwrap()
    };
    let first = code();
    assert_eq!(first.cache, CacheUse::Stored);
    let second = code();
    assert_eq!(second.cache, CacheUse::Hit);
    assert!(second.code == first.code);

    let entry = fs::read_dir(folder.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let length = fs::metadata(&entry).unwrap().len();
    fs::OpenOptions::new()
        .write(true)
        .open(&entry)
        .unwrap()
        .set_len(length / 2)
        .unwrap();
    assert_eq!(code().cache, CacheUse::Stored);
    assert_eq!(code().cache, CacheUse::Hit);

    // Another device, another text: other entries.
    let other = compiler()
        .code("trial.cu", SOURCE, (8, 0), Some(folder.path()))
        .unwrap();
    assert_eq!(other.cache, CacheUse::Stored);
    let text = SOURCE.replace("1.0f", "2.0f");
    let other = compiler()
        .code("trial.cu", &text, (9, 0), Some(folder.path()))
        .unwrap();
    assert_eq!(other.cache, CacheUse::Stored);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
}

#[test]
fn an_unwritable_cache_is_no_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let folder = file.path().join("below");
    let made = compiler()
        .code("trial.cu", SOURCE, (9, 0), Some(&folder))
        .unwrap();
    let CacheUse::NotStored(why) = made.cache else {
        panic!("{:?}", made.cache);
    };
    assert!(why.contains("below"), "{why}");
    let made = compiler().code("trial.cu", SOURCE, (9, 0), None).unwrap();
    assert!(matches!(made.cache, CacheUse::NotStored(_)));
}

#[test]
fn first_uses_at_once_agree() {
    let folder = tempfile::tempdir().unwrap();
    let codes: Vec<_> = thread::scope(|scope| {
        let code = || {
            compiler()
                .code("trial.cu", SOURCE, (8, 6), Some(folder.path()))
                .unwrap()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(code)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap().code)
            .collect()
    });
    assert!(codes.iter().all(|code| *code == codes[0]));
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[test]
fn a_mistake_is_shown_with_its_line() {
    let error = compiler().code(
        "trial.cu",
        "#include \"device.cuh\"\nint x = y;",
        (9, 0),
        None,
    );
    let text = error.err().unwrap().to_string();
    for part in [
        "trial.cu",
        "sm_90a",
        "nvrtcCompileProgram",
        "trial.cu(2)",
        "\"y\" is undefined",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_device_before_all_is_refused() {
    let error = compiler()
        .code("trial.cu", SOURCE, (5, 0), None)
        .err()
        .unwrap();
    let text = error.to_string();
    assert!(text.contains("for 5.0 did not compile it"), "{text}");
}

#[test]
fn it_is_found_in_folders_and_by_its_variable() {
    let site_packages = folder().join("../../..");
    let below = ["nvidia/cuda_nvrtc/lib", "nvidia/cu13/lib"];
    let below = below.map(|below| site_packages.join(below)).to_vec();
    let found = search(None, below).find().unwrap();
    assert_eq!(found.version, compiler().version);
    let file = folder().join("libnvrtc.so.13");
    assert_eq!(
        search(Some(file), Vec::new()).find().unwrap().version,
        found.version
    );
    assert!(found.path.is_file(), "{}", found.path.display());
}

#[test]
fn where_it_is_not_the_error_says_where_it_was_looked_for() {
    let missing = Search {
        named: None,
        names: vec!["libratplus-no-nvrtc.so.13".into()],
        folders: vec!["/no/such/folder".into(), folder()],
    };
    let text = missing.find().err().unwrap();
    assert!(text.contains("libratplus-no-nvrtc.so.13"), "{text}");
    assert!(text.contains(&folder().display().to_string()), "{text}");
    assert!(!text.contains("/no/such/folder"), "{text}");

    let text = search(Some("/no/such/file".into()), vec![folder()])
        .find()
        .err()
        .unwrap();
    assert!(text.contains("RATPLUS_NVRTC names /no/such/file"), "{text}");

    let text = search(Some("libc.so.6".into()), Vec::new())
        .find()
        .err()
        .unwrap();
    assert!(text.contains("no nvrtcVersion"), "{text}");
}
