//! Scripts that mount file systems, in a namespace of their own.

use std::ffi::OsStr;
use std::process::{Command, Output};

/// Exit code of a script that finds that the machine lets it mount nothing.
pub const CANNOT_MOUNT: i32 = 77;

/// Runs a shell script whose mounts nobody else sees, as root or as whoever may become it there.
///
/// # Errors
/// Why the machine does not let it mount anything, which a test has to print.
pub fn with_own_mounts<S: AsRef<OsStr>>(
    script: &str,
    args: impl IntoIterator<Item = S> + Clone,
) -> Result<Output, String> {
    let mut refusals = Vec::new();
    for namespace in [&["-m"][..], &["-r", "-m"]] {
        let mut command = Command::new("unshare");
        command.args(namespace).args(["--propagation", "private"]);
        command.args(["sh", "-c", script, "sh"]).args(args.clone());
        let output = command
            .output()
            .map_err(|error| format!("unshare: {error}"))?;
        let (_, stderr) = crate::texts(&output);
        let refused = stderr.starts_with("unshare: ");
        if !refused && output.status.code() != Some(CANNOT_MOUNT) {
            return Ok(output);
        }
        refusals.push(stderr.trim().to_owned());
    }
    Err(refusals.join("; "))
}
