//! Compiles the kernels and the emulator into shared libraries that stand in for the driver's.

use std::error::Error;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::{env, fs, thread};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// `none` has nothing compiled: for checks, which link nothing.
const CXX: &str = "RATPLUS_CXX";
/// What names a library to the crate.
const LIBRARIES: [&str; 3] = [
    "RATPLUS_EMULATOR",
    "RATPLUS_EMULATOR_NAME",
    "RATPLUS_EMULATOR_TESTS",
];

/// Compilers that run at a time.
const JOBS: usize = 2;

fn main() {
    if let Err(error) = build() {
        for line in error.to_string().lines() {
            println!("cargo::error={line}");
        }
    }
}

fn build() -> Outcome<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=RATPLUS_EMULATOR_UCONTEXT");
    println!("cargo::rerun-if-env-changed={CXX}");
    if env::var_os(CXX).is_some_and(|value| value == "none") {
        for variable in LIBRARIES {
            println!("cargo::rustc-env={variable}=");
        }
        return Ok(());
    }
    if variable("CARGO_CFG_TARGET_OS")? != "linux" {
        println!("cargo::warning=the CUDA emulator is left out: it needs Linux");
        return Ok(());
    }
    let compiler = Compiler::new()?;
    let emulator = compiler.sources(&compiler.package.join("src"), "cpp")?;
    let kernels = compiler.sources(&compiler.cuda, "cu")?;
    let test_kernels = compiler.sources(&compiler.package.join("tests"), "cu")?;
    let objects = compiler.compile(&[&emulator[..], &kernels, &test_kernels].concat())?;
    let (emulator, rest) = objects.split_at(emulator.len());
    let (kernels, test_kernels) = rest.split_at(kernels.len());

    let library = compiler.link(
        "libcuda.so.1",
        "libcuda.so.1",
        &[emulator, kernels].concat(),
    )?;
    let named = compiler.link("libcuda.so", "libcuda.so", std::slice::from_ref(&library))?;
    let tests = compiler.link(
        "libratplus_emulator_tests.so",
        "libratplus_emulator_tests.so",
        &[emulator, test_kernels].concat(),
    )?;
    for (variable, path) in LIBRARIES.into_iter().zip([library, named, tests]) {
        println!("cargo::rustc-env={variable}={}", text(&path)?);
    }
    Ok(())
}

struct Compiler {
    tool: cc::Tool,
    package: PathBuf,
    /// The kernels' sources.
    cuda: PathBuf,
    /// The folder of the kernels' package, from which messages name files.
    root: PathBuf,
    out: PathBuf,
}

impl Compiler {
    fn new() -> Outcome<Self> {
        let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
        let cuda = PathBuf::from(variable("DEP_RATPLUS_KERNELS_CUDA")?);
        let root = cuda.ancestors().nth(2).ok_or("no folder of packages")?;
        let root = root.to_owned();
        let out = PathBuf::from(variable("OUT_DIR")?);
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++17")
            .opt_level(2)
            .debug(true)
            .pic(true)
            .force_frame_pointer(false)
            .warnings(true)
            .extra_warnings(true)
            .emit_rerun_if_env_changed(true)
            .include(package.join("src"))
            .include(&cuda)
            .flag(format!("-fmacro-prefix-map={}/=", text(&root)?))
            .define("RATPLUS_EMULATION", None)
            .flag("-fvisibility=hidden")
            .flag("-fno-strict-aliasing")
            // As the kernels are written: one rounding only where they say so.
            .flag("-ffp-contract=off");
        if env::var_os("RATPLUS_EMULATOR_UCONTEXT").is_some() {
            build.define("RATPLUS_EMULATOR_UCONTEXT", None);
        }
        // Without it, every `fma` is a call.
        #[cfg(target_arch = "x86_64")]
        if variable("HOST")? == variable("TARGET")?
            && ["avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe"]
                .iter()
                .all(|feature| has(feature))
        {
            build.flag("-march=x86-64-v3");
        }
        Ok(Self {
            tool: build.try_get_compiler()?,
            package,
            cuda,
            root,
            out,
        })
    }

    /// The files of `folder` with `extension`, in order of their names.
    fn sources(&self, folder: &Path, extension: &str) -> Outcome<Vec<PathBuf>> {
        println!("cargo::rerun-if-changed={}", text(folder)?);
        let mut sources = Vec::new();
        for entry in
            fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?
        {
            let path = entry?.path();
            if path.extension() == Some(OsStr::new(extension)) {
                sources.push(path);
            }
        }
        sources.sort();
        Ok(sources)
    }

    /// Compiles `sources`; the objects in the same order.
    fn compile(&self, sources: &[PathBuf]) -> Outcome<Vec<PathBuf>> {
        let objects: Vec<_> = sources
            .iter()
            .map(|source| self.object(source))
            .collect::<Outcome<_>>()?;
        let queue = Mutex::new(sources.iter().zip(&objects));
        let failed = Mutex::new(None);
        thread::scope(|scope| {
            for _ in 0..JOBS {
                scope.spawn(|| {
                    loop {
                        let next = queue.lock().ok().and_then(|mut queue| queue.next());
                        let Some((source, object)) = next else { break };
                        let compiled = self.compile_one(source, object);
                        if let (Err(error), Ok(mut failed)) = (compiled, failed.lock()) {
                            failed.get_or_insert(error);
                        }
                    }
                });
            }
        });
        match failed.into_inner() {
            Ok(None) => Ok(objects),
            Ok(Some(error)) => Err(error),
            Err(_) => Err("a compiler thread panicked".into()),
        }
    }

    fn compile_one(&self, source: &Path, object: &Path) -> Outcome<()> {
        let inputs = object.with_extension("d");
        let made_by = object.with_extension("command");
        let mut command = self.tool.to_command();
        command
            .args(["-x", "c++", "-MMD", "-MF"])
            .arg(&inputs)
            .arg("-c")
            .arg(source)
            .arg("-o")
            .arg(object);
        let line = format!("{command:?}");
        if fs::read_to_string(&made_by).is_ok_and(|made_by| made_by == line)
            && is_newer(object, &inputs)
        {
            return Ok(());
        }
        // Names the command of a whole object only.
        fs::write(&made_by, "")?;
        execute(command)?;
        Ok(fs::write(&made_by, line)?)
    }

    fn object(&self, source: &Path) -> Outcome<PathBuf> {
        let path = source.strip_prefix(&self.root).unwrap_or(source);
        let name = text(path)?.replace(['/', '\\'], "-");
        Ok(self.out.join(format!("{name}.o")))
    }

    /// Links `inputs` into the library `file`, which calls itself `soname`.
    fn link(&self, file: &str, soname: &str, inputs: &[PathBuf]) -> Outcome<PathBuf> {
        let library = self.out.join(file);
        let mut command = self.tool.to_command();
        command
            .args([
                "-shared",
                "-Wl,-z,defs",
                "-Wl,-z,nodelete",
                "-Wl,--no-as-needed",
            ])
            .arg(format!("-Wl,-soname,{soname}"))
            .args(inputs)
            .arg("-lpthread")
            .arg("-o")
            .arg(&library);
        execute(command)?;
        Ok(library)
    }
}

#[cfg(target_arch = "x86_64")]
fn has(feature: &str) -> bool {
    match feature {
        "avx2" => is_x86_feature_detected!("avx2"),
        "bmi1" => is_x86_feature_detected!("bmi1"),
        "bmi2" => is_x86_feature_detected!("bmi2"),
        "f16c" => is_x86_feature_detected!("f16c"),
        "fma" => is_x86_feature_detected!("fma"),
        "lzcnt" => is_x86_feature_detected!("lzcnt"),
        "movbe" => is_x86_feature_detected!("movbe"),
        _ => false,
    }
}

/// Whether `object` is newer than every file of the make rule in `inputs`.
fn is_newer(object: &Path, inputs: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|data| data.modified());
    let (Ok(made), Ok(rule)) = (modified(object), fs::read_to_string(inputs)) else {
        return false;
    };
    // Spaces in names are escaped.
    let rule = rule.replace("\\\n", " ").replace("\\ ", "\0");
    let mut words = rule.split_whitespace();
    words.next().is_some_and(|target| target.ends_with(':'))
        && words.all(|word| {
            modified(Path::new(&word.replace('\0', " "))).is_ok_and(|changed| changed < made)
        })
}

/// Runs a compiler and passes its warnings on.
fn execute(mut command: Command) -> Outcome<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let Output { status, stderr, .. } = command.output().map_err(|error| {
        format!("{program} does not run: {error}; install g++ (or set CXX to a C++17 compiler)")
    })?;
    let messages = String::from_utf8_lossy(&stderr);
    if status.success() {
        for line in messages.lines() {
            println!("cargo::warning={line}");
        }
        Ok(())
    } else {
        Err(format!("{program} failed, {status}:\n{messages}").into())
    }
}

fn variable(name: &str) -> Outcome<String> {
    env::var(name).map_err(|error| format!("{name}: {error}").into())
}

fn text(path: &Path) -> Outcome<&str> {
    path.to_str()
        .ok_or_else(|| format!("{}: not UTF-8; move the checkout", path.display()).into())
}
