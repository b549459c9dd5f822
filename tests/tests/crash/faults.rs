//! Every file-system call of an export, failing or fatal in every way.

use crate::scene::{NEW, OLD, Scene, Tree, say, succeeded, tree};
use ratplus_graphs::staging::{OLD_FOLDER, READY_FOLDER};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// As tests/faults knows them; after `full` and `dead` every later call fails as well.
const ACTIONS: [&str; 7] = ["kill", "enospc", "eio", "eintr", "short", "full", "dead"];

/// What is there before an export.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Before {
    Nothing,
    Package,
    /// The package was moved away by an export that died.
    Aside,
    /// In a lower layer of an overlay file system, whose folders cannot be renamed.
    Lower,
    /// As [`Before::Lower`], and an export of what is the old package then died while it removed
    /// the files of another one.
    HalfRemoved,
}

#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub before: Before,
    /// Whether the file system can swap two names.
    pub exchange: bool,
}

impl Setting {
    /// Puts there what has to be there; returns the old package, if there is one.
    pub fn prepare<'a>(&self, scene: &'a Scene) -> Option<&'a Tree> {
        scene.clear();
        match self.before {
            Before::Nothing => return None,
            Before::Package | Before::Lower => scene.put_old(),
            Before::Aside => scene.put_aside(),
            Before::HalfRemoved => scene.put_half_removed(),
        }
        Some(&scene.old)
    }

    /// An export of the new package, with the calls below the scene's folder counted.
    pub fn command(&self, scene: &Scene, log: &Path, fault: Option<(usize, &str)>) -> Command {
        let mut command = scene.command(NEW);
        preload(&mut command, scene.root(), log, fault);
        if !self.exchange {
            command.env("RATPLUS_FAULT_NO_EXCHANGE", "1");
        }
        if [Before::Lower, Before::HalfRemoved].contains(&self.before) {
            command.env("RATPLUS_FAULT_LOWER", scene.target());
        }
        command
    }
}

fn library() -> PathBuf {
    let path = ratplus_tests::ratplus().with_file_name("libratplus_faults.so");
    assert!(
        path.is_file(),
        "{} is missing: run `cargo xtask test`, which builds it",
        path.display()
    );
    path
}

/// Has tests/faults count the calls below `root` into `log`, and act at one of them.
pub fn preload(command: &mut Command, root: &Path, log: &Path, fault: Option<(usize, &str)>) {
    command
        .env("LD_PRELOAD", library())
        .env("RATPLUS_FAULT_ROOT", root)
        .env("RATPLUS_FAULT_LOG", log);
    if let Some((call, action)) = fault {
        command.env("RATPLUS_FAULT", format!("{call}:{action}"));
    }
}

struct Run<'a> {
    scene: &'a Scene,
    setting: Setting,
    log: PathBuf,
}

impl<'a> Run<'a> {
    fn new(scene: &'a Scene, setting: Setting, logs: &Path, thread: usize) -> Self {
        Self {
            scene,
            setting,
            log: logs.join(thread.to_string()),
        }
    }

    fn command(&self, fault: Option<(usize, &str)>) -> Command {
        self.setting.command(self.scene, &self.log, fault)
    }

    /// The calls of the export that ran last: name and path.
    fn calls(&self) -> Vec<(String, String)> {
        let log = fs::read_to_string(&self.log).unwrap();
        let _ = fs::remove_file(&self.log);
        let calls = log.lines().enumerate().map(|(index, line)| {
            let mut words = line.splitn(3, ' ');
            let number: usize = words.next().unwrap().parse().unwrap();
            assert_eq!(number, index + 1, "{line}");
            (words.next().unwrap().into(), words.next().unwrap().into())
        });
        calls.collect()
    }

    /// The calls of an export without a fault.
    fn dry(&self) -> Vec<(String, String)> {
        self.setting.prepare(self.scene);
        succeeded(&self.command(None).output().unwrap()).unwrap();
        assert!(tree(&self.scene.target()).unwrap() == self.scene.new);
        assert_eq!(self.scene.left_over(), [""; 0].map(PathBuf::from));
        self.calls()
    }

    /// What is wrong after an export that met a fault, if anything, and how it ended.
    fn judge(&self, call: usize, action: &str) -> Result<End, String> {
        let before = self.setting.prepare(self.scene);
        let output = self.command(Some((call, action))).output().unwrap();
        let calls = self.calls();
        let (_, stderr) = ratplus_tests::texts(&output);
        let found = tree(&self.scene.target());
        let is_new = found.as_ref() == Some(&self.scene.new);
        let is_old = found.as_ref() == before;
        let aside = self.scene.aside();
        if !(is_new || is_old || aside.is_some()) {
            return Err(format!(
                "neither package is there, but {:?}: {stderr}",
                found.map(|tree| tree.into_keys().collect::<Vec<_>>())
            ));
        }
        let end = End::of(&output, action)?;
        let left_over = self.scene.left_over();
        let published = stderr.contains("the new package is in place");
        match end {
            End::Success if !is_new => return Err("success, and the old package".into()),
            End::Refused => {
                one_message(&stderr, self.scene.root())?;
                if is_new != published {
                    return Err(format!("new package there: {is_new}, and it said {stderr}"));
                }
                if let Some(aside) = &aside
                    && !stderr.contains(&aside.display().to_string())
                {
                    // The disk went before this export could look for what an earlier one left.
                    let own = !aside.starts_with(self.scene.root().join("package.tmp-1"));
                    if own {
                        return Err(format!("does not name {}: {stderr}", aside.display()));
                    }
                }
            }
            _ => (),
        }
        // With one fault, what there is to remove is removed; a disk that stays bad may keep it.
        let ours = |folder: &&PathBuf| !folder.ends_with("package.tmp-1");
        let named = |folder: &PathBuf| stderr.contains(&folder.display().to_string());
        let may_stay = |folder: &PathBuf| match action {
            "kill" | "dead" => true,
            "full" => named(folder),
            // What is in it is needed.
            _ => aside.is_some() && named(folder),
        };
        if let Some(folder) = left_over
            .iter()
            .filter(ours)
            .find(|folder| !may_stay(folder))
        {
            return Err(format!("left {}: {stderr}", folder.display()));
        }
        if action == "eio" {
            synced_once(&calls, call)?;
        }
        if aside.is_some() {
            named_by_a_reader(self.scene, aside.as_deref())?;
        }
        if !left_over.is_empty() || aside.is_some() {
            let output = self.scene.command(NEW).output().unwrap();
            succeeded(&output).map_err(|error| format!("and the next export: {error}"))?;
            if tree(&self.scene.target()).as_ref() != Some(&self.scene.new) {
                return Err("the next export made another package".into());
            }
            if !self.scene.left_over().is_empty() {
                return Err(format!("the next export left {:?}", self.scene.left_over()));
            }
        }
        Ok(match (end, aside) {
            (End::Killed, Some(_)) | (End::Refused, Some(_)) => End::Aside,
            (end, _) => end,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Success,
    Refused,
    Killed,
    /// Killed or refused, and the old package waits beside the target.
    Aside,
}

impl End {
    fn of(output: &Output, action: &str) -> Result<Self, String> {
        let (_, stderr) = ratplus_tests::texts(output);
        match (output.status.code(), output.status.signal()) {
            (Some(0), _) if action != "kill" => Ok(Self::Success),
            (Some(2), _) if action != "kill" => Ok(Self::Refused),
            (None, Some(9)) if action == "kill" => Ok(Self::Killed),
            _ => Err(format!("{}: {stderr}", output.status)),
        }
    }
}

fn one_message(stderr: &str, root: &Path) -> Result<(), String> {
    let once = stderr.matches("error: ").count() == 1;
    let names = stderr.contains(&root.display().to_string());
    match once && names && !stderr.contains("panicked") {
        true => Ok(()),
        false => Err(format!(
            "expected one message that names a file, found {stderr}"
        )),
    }
}

/// After `fsync` failed, the kernel may have dropped what was to be written: a second one that
/// succeeds would say nothing.
fn synced_once(calls: &[(String, String)], call: usize) -> Result<(), String> {
    let failed = &calls[call - 1];
    match failed.0 == "fsync" && calls[call..].contains(failed) {
        true => Err(format!("fsync of {} was tried again", failed.1)),
        false => Ok(()),
    }
}

fn named_by_a_reader(scene: &Scene, aside: Option<&Path>) -> Result<(), String> {
    let (target, aside) = (scene.target(), aside.unwrap_or(scene.root()));
    let output = ratplus_tests::run(["inspect".as_ref(), target.as_os_str()]);
    let (_, stderr) = ratplus_tests::texts(&output);
    match output.status.code() == Some(2) && stderr.contains(&format!("`{}`", aside.display())) {
        true => Ok(()),
        false => Err(format!(
            "a reader does not say where the package is: {stderr}"
        )),
    }
}

/// Data before its name: every file synced after its last byte, its folder after the last file,
/// all of that before the rename, and the folder of the name after it.
fn assert_order(calls: &[(String, String)], scene: &Scene) {
    let last = |wanted: &dyn Fn(&str, &str) -> bool| {
        let found = calls.iter().rposition(|(name, path)| wanted(name, path));
        found.unwrap_or_else(|| panic!("not among {calls:#?}"))
    };
    let target = scene.target().display().to_string();
    let renamed = last(&|name, path| name.starts_with("rename") && path == target);
    for file in scene.new.keys() {
        let file = format!("/new/{}", file.display());
        let written = last(&|name, path| name == "write" && path.ends_with(&file));
        let synced = last(&|name, path| name == "fsync" && path.ends_with(&file));
        assert!(written < synced && synced < renamed, "{file}: {calls:#?}");
    }
    let folder = last(&|name, path| name == "fsync" && path.ends_with("/new"));
    let created = last(&|name, path| name == "open" && path.ends_with("/new/manifest.json"));
    assert!(created < folder && folder < renamed, "{calls:#?}");
    let root = scene.root().display().to_string();
    let parent = last(&|name, path| name == "fsync" && path == root);
    let removed = calls.iter().rposition(|(name, _)| name == "unlink");
    assert!(renamed < parent && removed.is_none_or(|removed| parent < removed));
}

/// Every call of an export times every action.
fn inject(make: &(dyn Fn() -> Scene + Sync), setting: Setting) {
    let logs = tempfile::tempdir().unwrap();
    let first = make();
    let dry = Run::new(&first, setting, logs.path(), 0).dry();
    let again = Run::new(&first, setting, logs.path(), 0).dry();
    let names = |calls: &[(String, String)]| calls.iter().map(|call| call.0.clone()).collect();
    let (names, again): (Vec<String>, Vec<String>) = (names(&dry), names(&again));
    assert_eq!(names, again, "two exports made different calls");
    assert_order(&dry, &first);
    let (failures, ends) = (Mutex::new(Vec::new()), Mutex::new(BTreeMap::new()));
    let next = AtomicUsize::new(0);
    let work = |thread: usize, scene: &Scene| {
        let run = Run::new(scene, setting, logs.path(), thread);
        loop {
            let job = next.fetch_add(1, Ordering::Relaxed);
            let (call, action) = (job / ACTIONS.len() + 1, ACTIONS[job % ACTIONS.len()]);
            let Some((name, path)) = dry.get(call - 1) else {
                return;
            };
            // What cannot be short is not.
            if action == "short" && !["read", "pread", "write", "writev"].contains(&&**name) {
                continue;
            }
            match run.judge(call, action) {
                Ok(end) => *ends.lock().unwrap().entry(end).or_insert(0usize) += 1,
                Err(problem) => failures
                    .lock()
                    .unwrap()
                    .push(format!("{action} at call {call}, {name} {path}: {problem}")),
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(4);
        for thread in 1..threads {
            scope.spawn(move || work(thread, &make()));
        }
        work(0, &first);
    });
    let (failures, ends) = (failures.into_inner().unwrap(), ends.into_inner().unwrap());
    let count: usize = ends.values().sum();
    assert!(
        failures.is_empty(),
        "{} failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
    say(&format!(
        "{setting:?}: {} calls x {} actions, {count} runs, {ends:?}: 0 half packages, 0 lost",
        dry.len(),
        ACTIONS.len(),
    ));
    assert!(ends[&End::Refused] > 0 && ends[&End::Killed] > 0 && ends[&End::Success] > 0);
}

#[test]
fn a_first_export() {
    let setting = Setting {
        before: Before::Nothing,
        exchange: true,
    };
    inject(&|| Scene::golden("legacy_fgate"), setting);
}

#[test]
fn an_export_over_a_package() {
    let setting = Setting {
        before: Before::Package,
        exchange: true,
    };
    inject(&Scene::tiny, setting);
}

#[test]
fn an_export_where_names_cannot_be_swapped() {
    for before in [Before::Nothing, Before::Package] {
        let setting = Setting {
            before,
            exchange: false,
        };
        inject(&Scene::tiny, setting);
    }
}

#[test]
fn an_export_over_a_package_that_no_rename_moves() {
    let before = Before::Lower;
    let setting = |exchange| Setting { before, exchange };
    inject(&Scene::tiny, setting(true));
    // One that needs two renames finds out at the first of them, and goes on as the other.
    let (scene, logs) = (Scene::tiny(), tempfile::tempdir().unwrap());
    let calls = Run::new(&scene, setting(false), logs.path(), 0).dry();
    assert!(calls.iter().any(|(_, path)| path.ends_with(OLD_FOLDER)));
    assert!(calls.iter().any(|(_, path)| path.ends_with(READY_FOLDER)));
}

#[test]
fn an_export_that_finds_a_package_half_removed() {
    let setting = Setting {
        before: Before::HalfRemoved,
        exchange: true,
    };
    inject(&Scene::tiny, setting);
}

#[test]
fn an_export_that_finds_the_package_moved_away() {
    let setting = Setting {
        before: Before::Aside,
        exchange: true,
    };
    inject(&Scene::tiny, setting);
}

/// The preloaded library does what the tests above think it does.
#[test]
fn faults_happen() {
    let scene = Scene::tiny();
    let logs = tempfile::tempdir().unwrap();
    let setting = Setting {
        before: Before::Package,
        exchange: true,
    };
    let run = Run::new(&scene, setting, logs.path(), 0);
    let calls = run.dry();
    for name in [
        "open",
        "read",
        "pread",
        "write",
        "fsync",
        "close",
        "renameat2",
        "mkdir",
        "unlink",
        "opendir",
        "readdir",
        "closedir",
        "stat",
        "statvfs",
        "flock",
    ] {
        assert!(
            calls.iter().any(|call| call.0 == name),
            "no {name} in {calls:#?}"
        );
    }
    let fsync = calls.iter().position(|call| call.0 == "fsync").unwrap() + 1;
    let output = run.command(Some((fsync, "eio"))).output().unwrap();
    let (_, stderr) = ratplus_tests::texts(&output);
    assert!(stderr.contains("Input/output error"), "{stderr}");
    assert!(run.calls().len() >= fsync);
    // An old package where the new one is expected, and the other way round, is told.
    assert_ne!(OLD, NEW);
    assert!(run.judge(calls.len() + 1, "kill").is_err());
}
