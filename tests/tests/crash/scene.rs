//! A folder with a checkpoint, a target beside it, and the packages that may be there.

use ratplus_graphs::package::MANIFEST_FILE;
use ratplus_graphs::pattern::Pattern;
use ratplus_graphs::spec::{LayerPatterns, ModelSpec};
use ratplus_graphs::staging::{
    Aside, LOCK_FILE, NEW_FOLDER, OLD_FOLDER, READY_FOLDER, REPLACED_FILE, folders, set_aside,
};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The files below a folder, by path from it on.
pub type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// What an export is given, so that packages differ in every file but the tokenizer.
pub const OLD: &[&str] = &["--max-seq-len", "32", "--prefill-lengths", "8"];
pub const NEW: &[&str] = &["--max-seq-len", "64", "--prefill-lengths", "16"];

pub struct Scene {
    dir: tempfile::TempDir,
    /// Below `dir`.
    target: PathBuf,
    checkpoint: PathBuf,
    flags: Vec<OsString>,
    pub old: Tree,
    pub new: Tree,
}

/// In memory where there is such a place: thousands of exports wait for the disk otherwise, and a
/// killed process loses nothing that it gave to the kernel.
pub fn folder() -> tempfile::TempDir {
    let memory = tempfile::tempdir_in("/dev/shm");
    memory.unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn tiny() -> ModelSpec {
    ModelSpec {
        vocab_size: 16,
        d_model: 16,
        num_layers: 1,
        d_head: 16,
        d_ffn: 64,
        patterns: vec![LayerPatterns::Uniform(Pattern::new(4, 3, 1).unwrap())],
        ..ModelSpec::default()
    }
}

impl Scene {
    /// With the smallest safetensors checkpoint that there is, and a tokenizer.
    pub fn tiny() -> Self {
        Self::tiny_at("package")
    }

    /// [`tiny`](Self::tiny) with another target, whose folder may be missing.
    pub fn tiny_at(target: &str) -> Self {
        let dir = folder();
        let checkpoint = dir.path().join("model.safetensors");
        ratplus_tests::synthetic::write_safetensors(&tiny(), &checkpoint).unwrap();
        let tokenizer = dir.path().join("tokenizer.json");
        fs::write(&tokenizer, r#"{"model": {}}"#).unwrap();
        let flags = "--d-head 16 --dilation 4 --local-window 3 --initial 1 --tokenizer".split(' ');
        let flags = flags.map(Into::into).chain([tokenizer.into()]);
        Self::new(dir, target, checkpoint, flags.collect())
    }

    /// With a golden case's `.pth` and its configuration.
    pub fn golden(name: &str) -> Self {
        let cases = ratplus_tests::golden_cases();
        let case = cases.into_iter().find(|case| case.name == name).unwrap();
        let dir = folder();
        let copied = |name: &str| {
            fs::copy(case.file(name), dir.path().join(name)).unwrap();
            dir.path().join(name)
        };
        let (checkpoint, config) = (copied("model.pth"), copied("config.json"));
        let flags = vec!["--config".into(), config.into()];
        Self::new(dir, "package", checkpoint, flags)
    }

    fn new(
        dir: tempfile::TempDir,
        target: &str,
        checkpoint: PathBuf,
        flags: Vec<OsString>,
    ) -> Self {
        let mut scene = Self {
            dir,
            target: target.into(),
            checkpoint,
            flags,
            old: Tree::new(),
            new: Tree::new(),
        };
        for flags in [OLD, NEW] {
            scene.clear();
            let output = scene.command(flags).output().unwrap();
            let (_, stderr) = ratplus_tests::texts(&output);
            assert!(output.status.success(), "{stderr}");
            let made = tree(&scene.target()).unwrap();
            match flags == OLD {
                true => scene.old = made,
                false => scene.new = made,
            }
        }
        assert!(scene.old.len() >= 4 && scene.old != scene.new);
        scene
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn target(&self) -> PathBuf {
        self.root().join(&self.target)
    }

    /// An export to the target, not started.
    pub fn command(&self, flags: &[&str]) -> Command {
        self.command_to(&self.target(), flags)
    }

    /// As [`command`](Self::command), to another target.
    pub fn command_to(&self, target: &Path, flags: &[&str]) -> Command {
        let mut command = Command::new(ratplus_tests::ratplus());
        command.arg("export").arg(&self.checkpoint);
        command.arg("-o").arg(target);
        command.args(&self.flags).args(flags).arg("--no-check");
        command
    }

    /// Makes other weights of the same sizes the checkpoint's (a safetensors file of bf16).
    pub fn change_weights(&self) {
        let mut bytes = fs::read(&self.checkpoint).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[8 + header..].rotate_right(2);
        fs::write(&self.checkpoint, bytes).unwrap();
    }

    /// Folders of exports beside the target.
    pub fn left_over(&self) -> Vec<PathBuf> {
        folders(&self.target()).unwrap()
    }

    /// Removes everything but the sources.
    pub fn clear(&self) {
        for entry in fs::read_dir(self.root()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                fs::remove_dir_all(path).unwrap();
            }
        }
    }

    /// Puts the old package at the target.
    pub fn put_old(&self) {
        let _ = fs::remove_dir_all(self.target());
        write_tree(&self.target(), &self.old);
    }

    /// What an export leaves that dies between its two renames.
    pub fn put_aside(&self) {
        let folder = self.root().join("package.tmp-1");
        write_tree(&folder.join(OLD_FOLDER), &self.old);
        write_tree(&folder.join(NEW_FOLDER), &self.new);
        fs::write(folder.join(LOCK_FILE), "").unwrap();
    }

    /// What an export of the old package leaves over the new one in a folder that cannot be
    /// renamed, where it dies while it removes that.
    pub fn put_half_removed(&self) {
        let folder = self.root().join("package.tmp-1");
        write_tree(&folder.join(READY_FOLDER), &self.old);
        fs::write(folder.join(LOCK_FILE), "").unwrap();
        write_tree(&self.target(), &self.new);
        let manifest = self.target().join(MANIFEST_FILE);
        fs::rename(manifest, folder.join(REPLACED_FILE)).unwrap();
        fs::remove_file(self.target().join("decode.onnx")).unwrap();
    }

    /// A whole package that is not at the target, where the other one is not either, but can be
    /// given its name.
    pub fn aside(&self) -> Option<PathBuf> {
        let found = set_aside(&self.target())?;
        let waits = tree(found.path());
        let is_old = waits.as_ref() == Some(&self.old);
        // Of this export, or of the one before.
        let is_new = matches!(found, Aside::New(_)) && waits.as_ref() == Some(&self.new);
        (is_old || is_new).then(|| found.path().to_owned())
    }
}

/// `None` where there is nothing.
pub fn tree(dir: &Path) -> Option<Tree> {
    fn walk(root: &Path, dir: &Path, files: &mut Tree) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, files);
            } else {
                let name = path.strip_prefix(root).unwrap().to_owned();
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    dir.symlink_metadata().ok()?;
    let mut files = Tree::new();
    walk(dir, dir, &mut files);
    Some(files)
}

fn write_tree(dir: &Path, files: &Tree) {
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// What a command that has to end well said.
pub fn succeeded(output: &Output) -> Result<(), String> {
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{}: {}",
            output.status,
            ratplus_tests::texts(output).1
        )),
    }
}

/// Prints a line also where the test passes, which `println` is kept from.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
