//! Compiles the shim once for every release of TensorRT whose headers are there.

use ratplus_tensorrt_headers::{self as headers, Headers};
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

/// The oldest releases that the shim is written for.
const OLDEST: (u32, u32) = (10, 15);
const OLDEST_RTX: (u32, u32) = (1, 7);

fn main() {
    if let Err(error) = build() {
        println!("cargo::error={error}");
    }
}

fn build() -> Result<(), String> {
    for path in ["build.rs", "shim"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let out = env::var("OUT_DIR").map_err(|error| format!("OUT_DIR: {error}"))?;
    let out = Path::new(&out);
    let mut releases = headers::find(out)?;
    releases.retain(|headers| headers.version >= if headers.rtx { OLDEST_RTX } else { OLDEST });
    let (mut declared, mut listed) = (String::new(), String::new());
    for release in &releases {
        let entry = compile(release)?;
        let failed = |error| format!("writing the list of releases: {error}");
        writeln!(declared, "    fn {entry}() -> *const Table;").map_err(failed)?;
        writeln!(listed, "    {entry},").map_err(failed)?;
    }
    let text = format!(
        "unsafe extern \"C\" {{\n{declared}}}\n/// One for every release that was compiled in.\n\
         static ENTRIES: &[unsafe extern \"C\" fn() -> *const Table] = &[\n{listed}];\n"
    );
    let path = out.join("flavours.rs");
    fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Compiles the shim against a release's headers; returns the name of its entry.
fn compile(release: &Headers) -> Result<String, String> {
    let Headers {
        rtx,
        version: (major, minor),
        folder,
        cuda,
    } = release;
    let kind = if *rtx { "rtx" } else { "trt" };
    let name = format!("ratplus_nvinfer_{kind}_{major}_{minor}");
    if headers::without_cxx() {
        return Ok(name);
    }
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .warnings(true)
        .extra_warnings(true)
        .flag("-fvisibility=hidden")
        // As system headers: their warnings are not ours.
        .flag("-isystem")
        .flag(folder)
        .flag("-isystem")
        .flag(cuda)
        // Classes of two releases differ under one name: each release gets names of its own.
        .define("nvinfer1", format!("{name}_nvinfer1").as_str())
        .define("nvonnxparser", format!("{name}_nvonnxparser").as_str())
        .define("RATPLUS_NAMESPACE", format!("{name}_shim").as_str())
        .define("RATPLUS_ENTRY", name.as_str())
        .define("RATPLUS_RTX", if *rtx { "1" } else { "0" })
        .file("shim/nvinfer.cpp");
    build
        .try_compile(&name)
        .map_err(|error| format!("shim for {}: {error}", folder.display()))?;
    Ok(name)
}
