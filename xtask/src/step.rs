//! Running one command: a line before it, its command line, and how long it took.

use crate::workspace::Workspace;
use std::ffi::OsString;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::Instant;

/// Where `cargo run` adds its own directories.
const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";

/// One message: what failed and what to do about it.
#[derive(Debug)]
pub struct Error {
    what: String,
    remedy: String,
}

impl Error {
    /// `what` names the thing, what was expected and what was found; `remedy` says what to do.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  what to do: {}", self.what, self.remedy)
    }
}

/// One word of a command line as a POSIX shell in the checkout's root has to be given it.
fn quote(word: &str, root: &Path) -> String {
    if let Ok(below) = Path::new(word).strip_prefix(root) {
        return format!("\"$PWD\"/{}", quote(&below.to_string_lossy(), root));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The command as a person can type it in the checkout's root.
pub fn command_line(command: &Command, root: &Path) -> String {
    let mut words = Vec::new();
    for (name, value) in command.get_envs() {
        let name = name.to_string_lossy();
        words.push(match value {
            Some(value) => format!("{name}={}", quote(&value.to_string_lossy(), root)),
            None => format!("{name}="),
        });
    }
    let program = std::iter::once(command.get_program());
    for word in program.chain(command.get_args()) {
        words.push(quote(&word.to_string_lossy(), root));
    }
    words.join(" ")
}

/// When the first step began: a run that is cut off still tells where its time went.
static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Announces steps and times them.
pub struct Steps<'a> {
    root: &'a Path,
    library_path: Option<OsString>,
}

impl<'a> Steps<'a> {
    /// Steps in a checkout.
    pub fn new(workspace: &'a Workspace) -> Self {
        let root = workspace.root.as_path();
        let target = workspace.absolute(&workspace.target);
        let sysroot = std::env::var_os("CARGO")
            .and_then(|cargo| Some(Path::new(&cargo).ancestors().nth(2)?.to_owned()));
        let ours = |path: &PathBuf| {
            let of_rust = sysroot.as_ref().is_some_and(|root| path.starts_with(root));
            !of_rust && !path.starts_with(&target)
        };
        let library_path = std::env::var_os(LIBRARY_PATH).and_then(|value| {
            let kept = std::env::split_paths(&value).filter(ours);
            std::env::join_paths(kept)
                .ok()
                .filter(|path| !path.is_empty())
        });
        Self { root, library_path }
    }

    /// Takes back what `cargo run` put into the library path, so that a command finds here what
    /// it finds when typed by hand.
    fn as_typed<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        match &self.library_path {
            Some(path) => command.env(LIBRARY_PATH, path),
            None => command.env_remove(LIBRARY_PATH),
        }
    }

    /// Runs `work` between a line that names it and a line with its time.
    pub fn timed<T>(&self, title: &str, work: impl FnOnce() -> T) -> T {
        say(&format!("==> {title}"));
        let (begin, start) = (*BEGIN, Instant::now());
        let result = work();
        say(&format!(
            "    ({:.1} s, {:.0} s since the first step)",
            start.elapsed().as_secs_f64(),
            begin.elapsed().as_secs_f64()
        ));
        result
    }

    /// Runs a command on this terminal and returns whether it succeeded.
    pub fn try_run(&self, title: &str, command: &mut Command) -> Result<bool, Error> {
        self.timed(title, || {
            say(&format!("    $ {}", command_line(command, self.root)));
            let status = self.as_typed(&mut copy(command)).status();
            let status = status.map_err(|error| self.unstarted(command, &error))?;
            Ok(status.success())
        })
    }

    /// Runs a command on this terminal.
    pub fn run(&self, title: &str, command: &mut Command, remedy: &str) -> Result<(), Error> {
        if self.try_run(title, command)? {
            return Ok(());
        }
        let line = command_line(command, self.root);
        Err(Error::new(
            format!("{title} failed (its messages are above)\n  command: {line}"),
            remedy,
        ))
    }

    /// Runs a command in silence; a failure shows the end of what it said.
    pub fn run_quiet(&self, title: &str, command: &mut Command, remedy: &str) -> Result<(), Error> {
        self.timed(title, || {
            let line = command_line(command, self.root);
            say(&format!("    $ {line}"));
            let mut output = Vec::new();
            let status = self.stream(command, |line| output.push(line.to_owned()))?;
            if status.success() {
                return Ok(());
            }
            let tail = output[output.len().saturating_sub(12)..].join("\n    | ");
            Err(Error::new(
                format!("{title} failed: {status}\n  command: {line}\n    | {tail}"),
                remedy,
            ))
        })
    }

    /// Runs a command, shows what it says and hands every line to `each`.
    pub fn run_watched(
        &self,
        title: &str,
        command: &mut Command,
        mut each: impl FnMut(&str),
    ) -> Result<ExitStatus, Error> {
        self.timed(title, || {
            say(&format!("    $ {}", command_line(command, self.root)));
            self.stream(command, |line| {
                say(line);
                each(line);
            })
        })
    }

    /// Both output streams of a command in the order it wrote them, line by line.
    fn stream(
        &self,
        command: &mut Command,
        mut each: impl FnMut(&str),
    ) -> Result<ExitStatus, Error> {
        let failed = |error: std::io::Error| self.unstarted(command, &error);
        let (reader, writer) = std::io::pipe().map_err(failed)?;
        let second = writer.try_clone().map_err(failed)?;
        // The child alone may hold the writing end, or the reading end never sees the end: the
        // copy that holds it goes once it has been started.
        let child = {
            let mut copy = copy(command);
            copy.stdin(Stdio::null()).stdout(writer).stderr(second);
            self.as_typed(&mut copy).spawn()
        };
        let mut child = child.map_err(failed)?;
        let mut lines = BufReader::new(reader);
        read_lines(&mut lines, &mut each).map_err(failed)?;
        child.wait().map_err(failed)
    }

    fn unstarted(&self, command: &Command, error: &std::io::Error) -> Error {
        let program = command.get_program().to_string_lossy();
        let line = command_line(command, self.root);
        Error::new(
            format!("`{program}` did not run: {error}\n  command: {line}"),
            format!("install `{program}` or put it on PATH"),
        )
    }
}

/// A command of the same program, arguments and environment.
fn copy(command: &Command) -> Command {
    let mut copy = Command::new(command.get_program());
    copy.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => copy.env(name, value),
            None => copy.env_remove(name),
        };
    }
    copy
}

/// Hands every line to `each`, whatever bytes it holds.
fn read_lines(input: &mut BufReader<impl Read>, mut each: impl FnMut(&str)) -> std::io::Result<()> {
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line)? > 0 {
        each(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']));
        line.clear();
    }
    Ok(())
}

/// Prints a line at once, so that it keeps its place among what commands print. A closed standard
/// output does not stop the work: the exit code still tells.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_can_be_typed() {
        let mut command = Command::new("target/release/ratplus");
        command
            .args(["generate", "--prompt", "In the beginning God", "it's"])
            .arg("/src/tests/my golden")
            .env("LIB", "/src/target/libx.so");
        assert_eq!(
            command_line(&command, Path::new("/src")),
            "LIB=\"$PWD\"/target/libx.so target/release/ratplus generate --prompt \
             'In the beginning God' 'it'\\''s' \"$PWD\"/'tests/my golden'"
        );
    }

    #[test]
    fn lines_need_not_be_text() {
        let mut lines = Vec::new();
        let mut input = BufReader::new(&b"one\r\n\xff\nlast"[..]);
        read_lines(&mut input, |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(lines, ["one", "\u{fffd}", "last"]);
    }
}
