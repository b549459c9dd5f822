//! One target under libFuzzer: `RATPLUS_FUZZ_TARGET` names it. With `RATPLUS_FUZZ_FOLDER` its
//! seeds and dictionary are written there before libFuzzer looks for them.

#![no_main]

use ratplus_fuzz::{Target, prepare};
use std::path::Path;
use std::sync::LazyLock;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("RATPLUS_FUZZ_TARGET").unwrap_or_default();
    Target::find(&name).unwrap_or_else(|| {
        let names: Vec<_> = ratplus_fuzz::TARGETS.iter().map(|t| t.name).collect();
        eprintln!(
            "RATPLUS_FUZZ_TARGET: expected one of {}, found `{name}`",
            names.join(", ")
        );
        std::process::exit(2);
    })
});

fn initialize() {
    // libfuzzer-sys aborts in the panic hook. A panic that the code under test catches and turns
    // into an error is none of a target's: the harness aborts at those that leave it.
    drop(std::panic::take_hook());
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let file = info.location().map_or("", |location| location.file());
        // Caught by ratplus_runtime::text.
        if !file.contains("tokenizers") {
            report(info);
        }
    }));
    if let Some(folder) = std::env::var_os("RATPLUS_FUZZ_FOLDER")
        && let Err(error) = prepare(&TARGET, Path::new(&folder))
    {
        eprintln!("{}: {error}", Path::new(&folder).display());
        std::process::exit(2);
    }
}

libfuzzer_sys::fuzz_target!(init: initialize(), |data: &[u8]| (TARGET.run)(data));
