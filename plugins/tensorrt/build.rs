//! Compiles the C++ classes that TensorRT sees, where its headers are found.

use ratplus_tensorrt_headers::{self as headers, Headers};
use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

/// The interfaces of the host's that differ between its releases: TensorRT before 11 and TensorRT
/// for RTX before 1.5, and those since. What plugins implement is the same in all, from 10.3 on.
const GENERATIONS: [(&str, bool); 2] = [("v10", false), ("v11", true)];

fn is_new(headers: &Headers) -> bool {
    headers.version >= if headers.rtx { (1, 5) } else { (11, 0) }
}

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rustc-check-cfg=cfg(tensorrt)");
    println!("cargo:rustc-check-cfg=cfg(tensorrt_v10)");
    println!("cargo:rustc-check-cfg=cfg(tensorrt_v11)");
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("ratplus-tensorrt: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let out = PathBuf::from(env::var("OUT_DIR").map_err(|error| format!("OUT_DIR: {error}"))?);
    let found = headers::find(&out)?;
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return Ok(());
    }
    // Creators are static and hosts keep pointers to them: the library stays where it is.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,defs");
    // The plugins come with the newest headers; full TensorRT's, where there are both.
    let Some(newest) = found.iter().rfind(|headers| !headers.rtx).or(found.last()) else {
        println!(
            "cargo:warning=TensorRT's headers were not found: libratplus_trt has no plugins; run \
             `cargo xtask setup`, or name folders with NvInfer.h in {}",
            headers::INCLUDE
        );
        return Ok(());
    };
    println!("cargo:rustc-cfg=tensorrt");
    compile("plugins", newest, &["plugin.cpp", "creators.cpp"], None)?;
    for (name, new) in GENERATIONS {
        if let Some(headers) = found.iter().rfind(|headers| is_new(headers) == new) {
            println!("cargo:rustc-cfg=tensorrt_{name}");
            compile(name, headers, &["host.cpp"], Some(name))?;
        }
    }
    Ok(())
}

fn compile(
    name: &str,
    headers: &Headers,
    files: &[&str],
    generation: Option<&str>,
) -> Result<(), String> {
    if headers::without_cxx() {
        return Ok(());
    }
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .warnings(true)
        .extra_warnings(true)
        .flag("-fvisibility=hidden")
        .flag("-fno-exceptions")
        .flag("-isystem")
        .flag(headers.folder.to_string_lossy().as_ref())
        .flag("-isystem")
        .flag(headers.cuda.to_string_lossy().as_ref())
        .files(files.iter().map(|file| format!("cpp/{file}")));
    if let Some(generation) = generation {
        // One class of several layouts must not go by one name in one library.
        build
            .define("nvinfer1", format!("nvinfer1_{generation}").as_str())
            .define("RATPLUS_GENERATION", generation);
    }
    build
        .try_compile(&format!("ratplus_trt_{name}"))
        .map_err(|error| format!("{}: {error}", headers.folder.display()))
}
