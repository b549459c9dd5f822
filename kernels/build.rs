//! Compiles the CUDA kernels where nvcc is found, and gathers their sources for NVRTC.

#[path = "src/cuda/units.rs"]
#[allow(dead_code)]
mod units;

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use units::{ARCHITECTURES, Unit, VIRTUAL_ARCHITECTURE};

/// Names the compiler, or turns it off with `none`.
const NVCC: &str = "RATPLUS_NVCC";

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=cuda");
    println!("cargo:rerun-if-changed=src/cuda/units.rs");
    // For kernels/emulator, as DEP_RATPLUS_KERNELS_CUDA.
    if let Ok(package) = env::var("CARGO_MANIFEST_DIR") {
        println!("cargo::metadata=cuda={package}/cuda");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("ratplus-kernels: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let folder = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("cuda");
    let out = PathBuf::from(variable("OUT_DIR")?);
    let sources = Sources::read(&folder)?;
    let nvcc = Nvcc::find(&out)?;

    let mut units = String::new();
    let mut resources = Vec::new();
    let built = match &nvcc {
        Some(nvcc) => nvcc.compile_all(&folder, &sources, &out)?,
        None => Vec::new(),
    };
    for (index, unit) in sources.units.iter().enumerate() {
        let mut image = "None".to_owned();
        if let Some(Some(built)) = built.get(index) {
            resources.extend(read_resources(unit, &built.log)?);
            let path = below("OUT_DIR", &out, &built.image)?;
            image = format!("Some(&Aligned(*include_bytes!({path})).0)");
        }
        let (file, only, source) = (unit.file, unit.only, source(unit.file));
        writeln!(
            units,
            "    Unit {{ file: {file:?}, only: {only:?}, source: include_str!({source}), embedded: \
             {image} }},"
        )
        .expect("a string takes all text");
    }
    let headers = sources.headers.keys().map(|name| {
        let path = source(name);
        format!("    Header {{ name: c{name:?}, text: include_str!({path}) }},\n")
    });
    let headers: String = headers.collect();
    let toolkit = match &nvcc {
        Some(nvcc) => format!(
            "Some(Toolkit {{ version: {:?}, architectures: &{:?} }})",
            nvcc.version, nvcc.architectures
        ),
        None => "None".into(),
    };
    let resources: String = resources
        .iter()
        .map(|line| format!("    {line},\n"))
        .collect();
    let table = format!(
        "/// Every unit.\n\
         pub(super) static UNITS: &[Unit] = &[\n{units}];\n\
         /// What the units include.\n\
         pub(super) static HEADERS: &[Header] = &[\n{headers}];\n\
         /// What compiled the embedded code.\n\
         pub(super) static TOOLKIT: Option<Toolkit> = {toolkit};\n\
         /// What every embedded kernel needs.\n\
         pub(super) static RESOURCES: &[Resources] = &[\n{resources}];\n"
    );
    write(&out.join("embedded.rs"), &table)
}

/// The path of a CUDA source, as an expression. A checkout that was moved takes its build with it.
fn source(name: &str) -> String {
    let path = format!("/cuda/{name}");
    format!("concat!(env!(\"CARGO_MANIFEST_DIR\"), {path:?})")
}

/// The path of a file in the folder that `variable` names, as an expression.
fn below(variable: &str, folder: &Path, file: &Path) -> Result<String, String> {
    let name = file.strip_prefix(folder).ok().and_then(Path::to_str);
    let name = name.ok_or_else(|| format!("{}: expected it in {variable}", file.display()))?;
    let path = format!("/{name}");
    Ok(format!("concat!(env!({variable:?}), {path:?})"))
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}

fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Everything in kernels/cuda.
struct Sources {
    /// In order of their names.
    units: Vec<Unit>,
    /// By file name.
    headers: BTreeMap<String, String>,
}

impl Sources {
    /// Reads the folder.
    fn read(folder: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
        let (mut units, mut headers) = (Vec::new(), BTreeMap::new());
        for entry in fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let text = || {
                let text = fs::read_to_string(&path);
                text.map_err(|error| format!("{}: {error}", path.display()))
            };
            if name.ends_with(".cu") {
                units.push(unit(name, text()?)?);
            } else if name.ends_with(".cuh") || name.ends_with(".h") {
                headers.insert(name, text()?);
            }
        }
        units.sort_by_key(|unit| unit.file);
        Ok(Self { units, headers })
    }
}

/// What a `.cu` file says of itself.
fn unit(file: String, source: String) -> Result<Unit, String> {
    let named = |line: &str| {
        let rest = line.strip_prefix("// Only for sm_")?;
        Some(rest.trim_end_matches('.').to_owned())
    };
    let only = match source.lines().find_map(named) {
        None => None,
        Some(name) => match ARCHITECTURES.into_iter().find(|known| *known == name) {
            None => {
                return Err(format!(
                    "kernels/cuda/{file}: expected one of {ARCHITECTURES:?} in its line `// Only \
                     for sm_..`, found {name:?}; correct it, or add the architecture to \
                     kernels/src/cuda/units.rs"
                ));
            }
            only => only,
        },
    };
    Ok(Unit {
        file: file.leak(),
        only,
        source: source.leak(),
        embedded: None,
    })
}

/// The compiler that was found.
struct Nvcc {
    program: PathBuf,
    version: String,
    /// Those of [`ARCHITECTURES`] that it knows.
    architectures: Vec<&'static str>,
    /// Whether it can make the images a fifth of their size.
    compresses: bool,
}

/// What one call of the compiler made.
struct Built {
    image: PathBuf,
    log: String,
}

impl Nvcc {
    /// The compiler, or none where there is none or it was turned off.
    fn find(out: &Path) -> Result<Option<Self>, String> {
        for name in [NVCC, "NVCC", "CUDA_HOME", "CUDA_PATH"] {
            println!("cargo:rerun-if-env-changed={name}");
        }
        let named = env::var_os(NVCC).or_else(|| env::var_os("NVCC"));
        let program = match named {
            Some(name) if name == "none" => return Ok(None),
            Some(name) => PathBuf::from(name),
            None => match Self::search(out) {
                Some(program) => program,
                None => return Ok(None),
            },
        };
        // A name that PATH resolves is no file that cargo could watch.
        if program.is_file() {
            println!("cargo:rerun-if-changed={}", program.display());
        }
        let ask = |argument: &str| {
            let output = Command::new(&program).arg(argument).output();
            let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
            if output.status.success() {
                return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
            }
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(format!(
                "`{} {argument}` failed: {words}",
                program.display()
            ))
        };
        let text = ask("--version")?;
        let version = text
            .split(", V")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next());
        let version = version.unwrap_or("of unknown version").to_owned();
        let known = ask("--list-gpu-code")?;
        let architectures: Vec<_> = ARCHITECTURES
            .into_iter()
            .filter(|name| {
                let code = format!("sm_{}", name.trim_end_matches('a'));
                known.split_whitespace().any(|word| word == code)
            })
            .collect();
        if architectures.len() < ARCHITECTURES.len() {
            println!(
                "cargo:warning=nvcc {version} knows only {architectures:?} of {ARCHITECTURES:?}: \
                 other GPUs will need NVRTC"
            );
        }
        let compresses = ask("--help")?.contains("--compress-mode");
        Ok(Some(Self {
            program,
            version,
            architectures,
            compresses,
        }))
    }

    fn search(out: &Path) -> Option<PathBuf> {
        let name = format!("nvcc{}", env::consts::EXE_SUFFIX);
        let toolkits = ["CUDA_HOME", "CUDA_PATH"]
            .into_iter()
            .filter_map(env::var_os);
        let toolkits = toolkits.map(|folder| PathBuf::from(folder).join("bin"));
        let path = env::var_os("PATH").unwrap_or_default();
        let path: Vec<_> = env::split_paths(&path).collect();
        // <target>[/<triple>]/<profile>/build/<package>/out
        let installed = out.ancestors().skip(4).take(2);
        let installed = installed.map(|target| target.join("cuda/nvidia/cu13/bin"));
        let folders = toolkits.chain(path).chain(installed);
        folders
            .map(|folder| folder.join(&name))
            .find(|file| file.is_file())
    }

    /// Compiles every unit, two at a time.
    fn compile_all(
        &self,
        folder: &Path,
        sources: &Sources,
        out: &Path,
    ) -> Result<Vec<Option<Built>>, String> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            while let Some((index, unit)) = sources
                .units
                .iter()
                .enumerate()
                .nth(next.fetch_add(1, Ordering::Relaxed))
            {
                let built = self.compile(unit, &folder.join(unit.file), sources, out);
                done.push((index, built));
            }
            done
        };
        let mut done = thread::scope(|scope| {
            let other = scope.spawn(work);
            let mut done = work();
            done.extend(other.join().expect("compiling does not panic"));
            done
        });
        done.sort_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, built)| built).collect()
    }

    /// Compiles a unit for every architecture, unless that was done before with all the same.
    /// `None` where this compiler knows no architecture that the unit is for.
    fn compile(
        &self,
        unit: &Unit,
        source: &Path,
        sources: &Sources,
        out: &Path,
    ) -> Result<Option<Built>, String> {
        let path = |suffix: &str| out.join(format!("{}.{suffix}", unit.file));
        let (image, log_file, key_file) = (path("fatbin"), path("log"), path("key"));
        let mut command = Command::new(&self.program);
        command.args(["-fatbin", "-O3", "-std=c++17", "-lineinfo", "-Xptxas", "-v"]);
        if self.compresses {
            command.arg("--compress-mode=size");
        }
        let architectures = unit.architectures(&self.architectures);
        if architectures.is_empty() {
            return Ok(None);
        }
        for name in architectures {
            command.arg(format!("-gencode=arch=compute_{name},code=sm_{name}"));
        }
        if unit.is_virtual() {
            let name = VIRTUAL_ARCHITECTURE;
            command.arg(format!("-gencode=arch=compute_{name},code=compute_{name}"));
        }
        command.arg("-o").arg(&image).arg(source);

        let text = unit.source;
        let key = format!(
            "{command:?}\n{}\n{text}\n{:?}",
            self.version, sources.headers
        );
        let known = fs::read_to_string(&key_file).is_ok_and(|found| found == key);
        if let (true, Ok(log)) = (known && image.is_file(), fs::read_to_string(&log_file)) {
            return Ok(Some(Built { image, log }));
        }
        let _ = fs::remove_file(&key_file);
        let output = command.output();
        let output = output.map_err(|error| format!("{}: {error}", self.program.display()))?;
        let said = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let log = said.concat();
        if !output.status.success() {
            return Err(format!(
                "kernels/cuda/{}: nvcc {} failed ({}); {NVCC}=none builds without it\n\
                 {command:?}\n{log}",
                unit.file, self.version, output.status
            ));
        }
        for line in log
            .lines()
            .filter(|line| line.contains("arning") || line.contains("Loss"))
        {
            println!("cargo:warning={}: {line}", unit.file);
        }
        write(&log_file, &log)?;
        write(&key_file, &key)?;
        Ok(Some(Built { image, log }))
    }
}

/// What ptxas says about each kernel and architecture, as Rust expressions.
fn read_resources(unit: &Unit, log: &str) -> Result<Vec<String>, String> {
    let mut lines = Vec::new();
    let mut entry: Option<(&str, &str)> = None;
    let mut frame = [0; 3];
    for line in log.lines().map(str::trim) {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let mut words = rest.split('\'');
            entry = words.next().zip(words.nth(1));
        } else if line.contains("bytes stack frame") {
            frame = [
                "bytes stack frame",
                "bytes spill stores",
                "bytes spill loads",
            ]
            .map(|what| number_before(line, what));
        } else if line.contains("Used ")
            && line.contains(" registers")
            && let Some((kernel, architecture)) = entry.take()
        {
            let [stack, spill_stores, spill_loads] = frame;
            let registers = number_before(line, "registers");
            let shared = number_before(line, "bytes smem");
            let architecture = architecture.trim_start_matches("sm_");
            lines.push(format!(
                "Resources {{ kernel: {kernel:?}, architecture: {architecture:?}, registers: \
                 {registers}, shared_bytes: {shared}, stack_bytes: {stack}, spill_store_bytes: \
                 {spill_stores}, spill_load_bytes: {spill_loads} }}"
            ));
        }
    }
    if lines.is_empty() {
        return Err(format!(
            "kernels/cuda/{}: expected nvcc to report registers (-Xptxas -v), found none:\n{log}",
            unit.file
        ));
    }
    Ok(lines)
}

/// The number before `what`, 0 where there is none.
fn number_before(line: &str, what: &str) -> u32 {
    let before = line.split_once(what).map_or("", |(before, _)| before);
    let word = before.split_whitespace().next_back();
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}
