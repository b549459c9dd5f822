//! ONNX Runtime's C and C++ headers, which its wheels do not have: the example in C++ is built with
//! them.

use crate::step::{Error, Steps, say};
use crate::workspace::Workspace;
use std::path::Path;
use std::process::Command;

/// A package of npm's that carries Microsoft's headers (MIT), of a release that ONNX Runtime 1.31
/// serves, and the folder inside.
const PACKAGE: &str = "com.github.asus4.onnxruntime@0.4.9";
const HEADERS: &str = "package/Plugins/iOS~/onnxruntime.xcframework/\
    ios-arm64_x86_64-simulator/onnxruntime.framework/Headers";
/// Below the target directory.
const FOLDER: &str = "ort-headers";
const STAMP: &str = "ratplus-setup.txt";

/// Installs the headers. Where they cannot be had, that is said; the example's test skips.
pub fn install(workspace: &Workspace) {
    let folder = workspace.absolute(&workspace.target.join(FOLDER));
    let stamp = folder.join(STAMP);
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == PACKAGE) {
        return;
    }
    if let Err(error) = fetch(&Steps::new(workspace), &folder) {
        say(&format!(
            "    not installed, the example in C++ will be skipped: {error}"
        ));
    } else if let Err(error) = std::fs::write(&stamp, PACKAGE) {
        say(&format!("    {}: {error}", stamp.display()));
    }
}

fn fetch(steps: &Steps<'_>, folder: &Path) -> Result<(), Error> {
    let remedy = "check the network, the disk, and that npm and tar are installed";
    let unwritable = |error: std::io::Error| {
        let what = format!("setup: {}: {error}", folder.display());
        Error::new(what, "free disk space or permissions, then run it again")
    };
    if folder.exists() {
        std::fs::remove_dir_all(folder).map_err(unwritable)?;
    }
    std::fs::create_dir_all(folder).map_err(unwritable)?;
    let mut pack = Command::new("npm");
    pack.args(["pack", "--silent", PACKAGE, "--pack-destination"])
        .arg(folder);
    let title = "setup: fetch ONNX Runtime's headers (150 MB)";
    steps.run_quiet(title, &mut pack, remedy)?;
    let archives = std::fs::read_dir(folder).map_err(unwritable)?;
    for archive in archives.flatten().map(|entry| entry.path()) {
        let mut unpack = Command::new("tar");
        unpack.arg("-xzf").arg(&archive).arg("-C").arg(folder);
        unpack
            .arg(format!("--strip-components={}", HEADERS.split('/').count()))
            .arg(HEADERS);
        steps.run_quiet("setup: unpack them", &mut unpack, remedy)?;
        std::fs::remove_file(&archive).map_err(unwritable)?;
    }
    Ok(())
}
