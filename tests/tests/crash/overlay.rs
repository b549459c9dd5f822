//! Exports over a package of a container's image: of the lower layer of a real overlay file system.

use crate::scene::{NEW, OLD, Scene, say, tree};
use ratplus_tests::with_own_mounts;
use std::fs;
use std::path::Path;
use std::process::Output;

/// In a mount namespace: `$1` becomes an overlay file system over a lower layer with the package
/// `$2`, the command after that exports to the package in it, and what is there then is copied
/// to `$3`. Exit 77: the machine does not let us mount.
const SCRIPT: &str = r#"
root=$1; package=$2; copy=$3; shift 3
mount -t tmpfs none "$root" || exit 77
cd "$root" && mkdir -p lower/models upper work merged || exit 77
cp -r "$package" lower/models/package && mkdir lower/models/empty || exit 77
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged || exit 77
"$@"
code=$?
cp -r merged/models "$copy" && exit $code
"#;

/// Exports to `name` over a lower layer; `None` where the machine lets us mount nothing.
fn export(scene: &Scene, name: &str, flags: &[&str], copy: &Path) -> Option<Output> {
    let (root, package) = (scene.root().join("overlay"), scene.root().join("lower"));
    fs::create_dir_all(&root).unwrap();
    let target = root.join("merged/models").join(name);
    let export = scene.command_to(&target, flags);
    let mut words = vec![root.as_os_str(), package.as_os_str(), copy.as_os_str()];
    words.push(export.get_program());
    words.extend(export.get_args());
    with_own_mounts(SCRIPT, words)
        .map_err(|reason| {
            let what = "an export over an overlay's lower layer";
            say(&format!("SKIPPED {what}: {reason}"));
        })
        .ok()
}

#[test]
fn a_package_of_a_lower_layer_is_replaced() {
    let scene = Scene::tiny();
    scene.put_old();
    fs::rename(scene.target(), scene.root().join("lower")).unwrap();
    // Another package, the same one again, and one in the place of an empty folder.
    for (name, flags) in [("package", NEW), ("package", OLD), ("empty", NEW)] {
        let copy = scene.root().join("copy");
        let _ = fs::remove_dir_all(&copy);
        let Some(output) = export(&scene, name, flags, &copy) else {
            return;
        };
        let (_, stderr) = ratplus_tests::texts(&output);
        assert_eq!(output.status.code(), Some(0), "{name}: {stderr}");
        let expected = match flags == NEW {
            true => &scene.new,
            false => &scene.old,
        };
        assert!(tree(&copy.join(name)).as_ref() == Some(expected), "{name}");
        let other = ["package", "empty"]
            .into_iter()
            .find(|other| *other != name);
        assert!(copy.join(other.unwrap()).is_dir());
        assert_eq!(fs::read_dir(&copy).unwrap().count(), 2, "something is left");
    }
}
