//! Puts a state of a disk into a folder and looks at what is there.

use super::model::Disk;
use crate::scene::{NEW, Scene, Tree, folder, succeeded, tree};
use ratplus_graphs::staging::{Aside, set_aside};
use ratplus_runtime::package::Package;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a reader finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Old,
    New,
    /// Nothing, where there was nothing.
    Absent,
    /// No package, and the old one where the reader says it is.
    Aside,
    /// No package, and the new one where the reader says it is.
    Ready,
}

pub struct Judge<'a> {
    scene: &'a Scene,
    before: Option<&'a Tree>,
    /// What is beside the packages, and stays.
    sources: Disk,
    dir: tempfile::TempDir,
}

impl<'a> Judge<'a> {
    /// Of exports to the scene's target, where `before` was.
    pub fn new(scene: &'a Scene, before: Option<&'a Tree>) -> Self {
        let files = read(scene.root()).into_iter();
        Self {
            scene,
            before,
            sources: files
                .filter(|(path, bytes)| bytes.is_some() && path.parent() == Some(Path::new("")))
                .collect(),
            dir: folder(),
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn target(&self) -> PathBuf {
        let target = self.scene.target();
        self.root()
            .join(target.strip_prefix(self.scene.root()).unwrap())
    }

    /// What is wrong with that state, if anything, where the export reported `success` or not.
    pub fn judge(&self, disk: &Disk, success: bool) -> Result<End, String> {
        let root = self.root();
        if root.exists() {
            fs::remove_dir_all(&root).unwrap();
        }
        write(&root, disk);
        let target = self.target();
        let found = tree(&target);
        let opened = Package::open(&target);
        let is_new = found.as_ref() == Some(&self.scene.new);
        let is_old = found.is_some() && found.as_ref() == self.before;
        if success && !is_new {
            return Err("success was reported, and the new package is not there".into());
        }
        if let Some(aside) = set_aside(&target) {
            let (whole, end) = match &aside {
                Aside::Old(_) => (self.before, End::Aside),
                Aside::New(_) => (Some(&self.scene.new), End::Ready),
            };
            let path = aside.path();
            if whole.is_none() || tree(path).as_ref() != whole {
                return Err(format!("{} is not the old package", path.display()));
            }
            let error = opened.err().map(|error| error.to_string());
            let named = error.is_some_and(|error| error.contains(&path.display().to_string()));
            return match named {
                true => Ok(end),
                false => Err(format!("a reader does not name {}", path.display())),
            };
        }
        match (&found, opened) {
            (_, Ok(_)) if is_new => Ok(End::New),
            (_, Ok(_)) if is_old => Ok(End::Old),
            (_, Ok(_)) => Err("a package is accepted that is neither".into()),
            (_, Err(error)) if is_new || is_old => Err(format!("a whole package: {error}")),
            (Some(found), Err(_)) => {
                let names = found.keys();
                let kept: Vec<_> = names.filter(|name| self.is_whole(name, found)).collect();
                Err(format!("half a package, of which {kept:?} are whole"))
            }
            (None, Err(_)) => match self.before {
                None => Ok(End::Absent),
                Some(_) => Err("the old package is lost".into()),
            },
        }
    }

    fn is_whole(&self, name: &Path, found: &Tree) -> bool {
        let same = |tree: &Tree| tree.get(name) == found.get(name);
        same(&self.scene.new) || self.before.is_some_and(same)
    }

    /// Exports over the state that was judged last.
    pub fn export_again(&self) -> Result<(), String> {
        let target = self.target();
        let output = self.scene.command_to(&target, NEW).output().unwrap();
        succeeded(&output).map_err(|error| format!("the next export: {error}"))?;
        if tree(&target).as_ref() != Some(&self.scene.new) {
            return Err("the next export made another package".into());
        }
        let root = self.root();
        let is_own = |path: &Path| {
            let path = root.join(path);
            path.starts_with(&target) || target.starts_with(&path)
        };
        let mut beside = read(&root);
        beside.retain(|path, _| !is_own(path));
        match beside == self.sources {
            true => Ok(()),
            false => Err(format!("the next export left {:?}", beside.keys())),
        }
    }
}

/// Everything below a folder.
pub fn read(root: &Path) -> Disk {
    let mut disk = Disk::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            assert!(kind.is_dir() || kind.is_file(), "{}", path.display());
            let bytes = kind.is_file().then(|| Arc::new(fs::read(&path).unwrap()));
            let name = path.strip_prefix(root).unwrap().to_owned();
            if bytes.is_none() {
                open.push(path);
            }
            disk.insert(name, bytes);
        }
    }
    disk
}

fn write(root: &Path, disk: &Disk) {
    fs::create_dir(root).unwrap();
    // A folder comes before what is in it.
    for (path, bytes) in disk {
        match bytes {
            None => fs::create_dir(root.join(path)).unwrap(),
            Some(bytes) => fs::write(root.join(path), &***bytes).unwrap(),
        }
    }
}
