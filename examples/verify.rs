//! Compares a backend with a golden file along every route: `example-verify DIR BACKEND GOLDEN`.

use ratplus_runtime::{Package, Session};
use ratplus_tools::{Golden, VerifyOptions, verify};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, backend, golden] = &arguments[..] else {
        return Err("example-verify DIR BACKEND GOLDEN".into());
    };
    let package = Package::open(dir)?;
    let golden = Golden::read(Path::new(golden))?;
    let mut options = VerifyOptions::default();
    options.backends.push(backend.parse()?);
    let sessions = Session::builder(&package);
    let report = verify(&sessions, Some(&golden), &options, &mut |_| ())?;
    for row in &report.rows {
        let verdict = if row.passed { "passed" } else { "FAILED" };
        println!("{verdict} {}: {}, {}", row.route, row.tensor, row.max_error);
    }
    match report.passed {
        true => Ok(()),
        false => Err("out of tolerance".into()),
    }
}
