//! Fuzz targets: one for each reader of files and requests that come from strangers.
//!
//! A target takes any bytes. It must return without a panic, in time and memory that the length
//! of its input justifies, and it asserts what holds for everything that a reader accepts. The
//! program `fuzz` runs them under libFuzzer (`cargo xtask fuzz`); the tests of this crate replay
//! `corpus/TARGET` and `regressions/TARGET`, the seeds, and mutations of all of them.

mod mutate;
mod seeds;
mod targets;

pub use mutate::Mutator;

use std::fs;
use std::path::{Path, PathBuf};

/// One reader under test.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folders.
    pub name: &'static str,
    /// Reads the bytes and checks what was accepted.
    pub run: fn(&[u8]),
    /// Small inputs to start from, valid ones among them.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// What the format is made of.
    pub words: &'static [&'static [u8]],
}

macro_rules! targets {
    ($($name:ident),*) => {
        /// Every target.
        pub const TARGETS: &[Target] = &[$(Target {
            name: stringify!($name),
            run: targets::$name::run,
            seeds: seeds::$name::seeds,
            words: seeds::$name::WORDS,
        }),*];
    };
}

targets!(
    pth,
    pickle,
    zip,
    safetensors,
    index,
    config,
    manifest,
    onnx,
    tokenizer,
    golden,
    request
);

impl Target {
    /// The target of this name.
    pub fn find(name: &str) -> Option<Self> {
        TARGETS.iter().copied().find(|target| target.name == name)
    }

    /// Inputs in the repository: what fuzzing reached, then what it found wrong.
    pub fn committed(&self) -> Vec<(PathBuf, Vec<u8>)> {
        ["corpus", "regressions"]
            .iter()
            .flat_map(|folder| files(&folder_of(folder, self.name)))
            .collect()
    }
}

/// `corpus/NAME` or `regressions/NAME` of this crate.
pub fn folder_of(kind: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(name)
}

/// The files of a folder, by name; none where there is no folder.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            (path, bytes)
        })
        .collect()
}

/// Writes seeds to `folder/seeds/NAME` and the dictionary to `folder/NAME.dict`, where libFuzzer
/// takes them from.
///
/// # Errors
/// The folder cannot be written.
pub fn prepare(target: &Target, folder: &Path) -> std::io::Result<()> {
    let seeds = folder.join("seeds").join(target.name);
    fs::create_dir_all(&seeds)?;
    for (index, seed) in (target.seeds)().iter().enumerate() {
        fs::write(seeds.join(format!("{index:03}")), seed)?;
    }
    let line = |word: &&[u8]| {
        let escaped: String = word.iter().map(|byte| format!("\\x{byte:02x}")).collect();
        format!("\"{escaped}\"\n")
    };
    let words: String = target.words.iter().map(line).collect();
    fs::write(folder.join(format!("{}.dict", target.name)), words)
}
