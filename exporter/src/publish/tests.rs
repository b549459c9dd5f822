use super::replaceable::strange_plan;
use super::*;

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn a_mount_point_is_refused_before_any_work() {
    let error = check_replaceable(Path::new("/proc"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("/proc: ") && error.contains("found a mount point"),
        "{error}"
    );
}

#[test]
fn a_target_that_is_no_package_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("thesis");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("chapter1.txt"), "long work").unwrap();
    assert!(Staging::beside(&target).is_err());
    fs::write(dir.path().join("file"), "x").unwrap();
    assert!(Staging::beside(&dir.path().join("file")).is_err());
    assert_eq!(count(dir.path()), 2);
}

#[test]
fn plans_go_with_their_package_and_nothing_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("package");
    let folder = target.join("plans/tensorrt-rtx");
    fs::create_dir_all(folder.join(".building-1")).unwrap();
    assert_eq!(strange_plan(&dir.path().join("none")).unwrap(), None);
    fs::write(folder.join("decode-0123456789abcdef.plan"), "").unwrap();
    assert_eq!(strange_plan(&target).unwrap(), None);
    for other in [
        "plans/tensorrt-rtx/notes.txt",
        "plans/notes.txt",
        "plans/mine/a",
    ] {
        let file = target.join(other);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "").unwrap();
        assert_eq!(strange_plan(&target).unwrap().as_deref(), Some(other));
        fs::remove_file(file).unwrap();
        let _ = fs::remove_dir(target.join("plans/mine"));
    }
}

#[test]
fn an_unpublished_directory_disappears() {
    let dir = tempfile::tempdir().unwrap();
    let staging = Staging::beside(&dir.path().join("out")).unwrap();
    staging.write("a", b"1").unwrap();
    drop(staging);
    assert_eq!(count(dir.path()), 0);
}

/// A folder as a dead export leaves it.
fn dead(target: &Path, number: &str, folders: &[&str]) -> PathBuf {
    let folder = target.with_file_name(folder_name(target.file_name().unwrap(), number));
    fs::create_dir(&folder).unwrap();
    for name in folders {
        fs::create_dir(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("whose"), name).unwrap();
    }
    fs::write(folder.join(LOCK_FILE), "").unwrap();
    folder
}

#[test]
fn folders_of_the_dead_go_and_those_of_the_living_stay() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let living = Staging::beside(&target).unwrap();
    // This process's number is taken: it is another process's in another container.
    let second = Staging::beside(&target).unwrap();
    dead(&target, "1", &[NEW_FOLDER]);
    dead(&target, "2-7", &[]);
    fs::create_dir(dir.path().join("out.tmp-3")).unwrap();
    let other = [
        dead(&target, "4", &[NEW_FOLDER, "mine"]),
        dead(&target, "5x", &[NEW_FOLDER]),
        dead(&dir.path().join("outer"), "6", &[NEW_FOLDER]),
        dir.path().join("out.tmp-7"),
    ];
    fs::create_dir(&other[3]).unwrap();
    fs::write(other[3].join("mine"), "").unwrap();
    clear_left_over(&target).unwrap();
    assert!(other.iter().all(|folder| folder.is_dir()));
    assert_eq!(count(dir.path()), 2 + other.len());
    living.write("a", b"1").unwrap();
    second.write("a", b"2").unwrap();
    living.publish().unwrap();
    assert_eq!(fs::read(target.join("a")).unwrap(), b"1");
    drop(second);
    assert_eq!(count(dir.path()), 1 + other.len());
}

#[test]
fn an_old_package_comes_back_where_there_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let folder = dead(&target, "1", &[NEW_FOLDER, OLD_FOLDER]);
    let aside = ratplus_graphs::staging::set_aside(&target).map(|aside| aside.path().to_owned());
    assert_eq!(aside, Some(folder.join(OLD_FOLDER)));
    clear_left_over(&target).unwrap();
    assert_eq!(fs::read(target.join("whose")).unwrap(), b"old");
    dead(&target, "1", &[NEW_FOLDER, OLD_FOLDER]);
    fs::write(target.join("whose"), "newer").unwrap();
    assert_eq!(ratplus_graphs::staging::set_aside(&target), None);
    clear_left_over(&target).unwrap();
    assert_eq!(fs::read(target.join("whose")).unwrap(), b"newer");
    assert_eq!(count(dir.path()), 1);
}
