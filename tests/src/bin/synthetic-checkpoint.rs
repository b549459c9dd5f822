//! Writes a checkpoint of a released size with random weights:
//! `cargo run --release -p ratplus-tests --bin synthetic-checkpoint -- 1.5b FILE.safetensors`

use ratplus_tests::synthetic;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [size, path] = args.as_slice() else {
        eprintln!("usage: synthetic-checkpoint 1.5b|2.6b|7.6b FILE.safetensors");
        return ExitCode::from(2);
    };
    let Some(spec) = synthetic::released(size) else {
        eprintln!("error: expected a size of 1.5b, 2.6b or 7.6b, found {size}");
        return ExitCode::from(2);
    };
    match synthetic::write_safetensors(&spec, Path::new(path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: cannot write {path}: {error}");
            ExitCode::from(2)
        }
    }
}
