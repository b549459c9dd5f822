//! Times both operators on one thread, f32, 16 heads of 128, against this machine's copy
//! bandwidth in the same run: `cargo run --release -p ratplus-benches --bin operators`
//!
//! Every shape is first run small and compared with the plain-loop reference. Words after `--` leave
//! only the operators whose names have all of them: `-- prefill D=64`, under `perf record` for one.

#![allow(unsafe_code)]

mod problem;

use problem::Problem;
use ratplus_graphs::pattern::{Pattern, PatternError};
use std::process::ExitCode;
use std::time::Instant;

/// (name, D, W, I, tokens cached, tokens of the chunk)
const SHAPES: [(&str, i64, i64, i64, usize, usize); 8] = [
    ("prefill 4096, D=1", 1, 0, 0, 0, 4096),
    ("prefill 4096, D=16 W=0 I=4", 16, 0, 4, 0, 4096),
    ("prefill 4096, D=16 W=256 I=4", 16, 256, 4, 0, 4096),
    ("prefill 4096, D=64 W=0 I=4", 64, 0, 4, 0, 4096),
    ("decode at 16384, D=1", 1, 0, 0, 16383, 1),
    ("decode at 16384, D=16 W=0 I=4", 16, 0, 4, 16383, 1),
    ("decode at 16384, D=16 W=256 I=4", 16, 256, 4, 16383, 1),
    ("decode at 16384, D=64 W=0 I=4", 64, 0, 4, 16383, 1),
];
const HEADS: usize = 16;
const HEAD_DIM: usize = 128;
/// Largest difference from the reference that is taken as equal, on values of at most 1.
const TOLERANCE: f64 = 1e-5;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(1)
        }
    }
}

fn run() -> Result<(), String> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let wanted = |name: &str| words.iter().all(|word| name.contains(word.as_str()));
    let scans = [4096, 32768].map(|seq_len| (format!("scan {seq_len}"), seq_len));
    let names = scans.iter().map(|scan| scan.0.as_str());
    let names: Vec<_> = names.chain(SHAPES.map(|shape| shape.0)).collect();
    if !names.iter().any(|name| wanted(name)) {
        return Err(format!(
            "expected words of some of {}, found {}",
            names.join("; "),
            words.join(" ")
        ));
    }
    let copy = copy_bandwidth();
    println!(
        "kernels: {}, one thread; copy {:.1} GB/s, read and written",
        ratplus_kernels::isa(),
        copy / 1e9
    );
    println!(
        "{:34} {:>10} {:>14} {:>13} {:>12}",
        "operator", "ms", "spread", "GFLOP/s", "of copy"
    );
    for (name, seq_len) in scans.iter().filter(|scan| wanted(&scan.0)) {
        scan(name, *seq_len, copy)?;
    }
    let shapes = SHAPES.into_iter().filter(|shape| wanted(shape.0));
    for (name, dilation, window, initial, past, seq_len) in shapes {
        let pattern =
            Pattern::new(dilation, window, initial).map_err(|e: PatternError| e.to_string())?;
        let small = Problem::new(pattern, 2, HEAD_DIM, past.min(200), seq_len.min(200));
        let error = small.error_against_reference()?;
        if error.is_nan() || error > TOLERANCE {
            return Err(format!(
                "{name}: differs from the reference by {error:e}, tolerance {TOLERANCE:e}"
            ));
        }
        let mut problem = Problem::new(pattern, HEADS, HEAD_DIM, past, seq_len);
        let times = time(|| problem.attend());
        let flops = problem.flops();
        // Keys and values of the rows read, once; what one step of decoding cannot avoid.
        let bytes = (seq_len == 1).then(|| problem.row_bytes());
        report(name, &times, Some(flops), bytes, copy);
    }
    Ok(())
}

fn scan(name: &str, seq_len: usize, copy: f64) -> Result<(), String> {
    let error = problem::Scan::new(64, 200).error_against_reference()?;
    if error.is_nan() || error > TOLERANCE {
        return Err(format!(
            "scan: differs from the reference by {error:e}, tolerance {TOLERANCE:e}"
        ));
    }
    let mut scan = problem::Scan::new(HEADS * HEAD_DIM, seq_len);
    let times = time(|| scan.run());
    report(name, &times, None, Some(scan.bytes()), copy);
    Ok(())
}

/// Median, least and most seconds.
struct Times {
    median: f64,
    least: f64,
    most: f64,
}

/// At least 9 runs and half a second.
fn time(mut work: impl FnMut()) -> Times {
    work();
    let begin = Instant::now();
    let mut seconds = Vec::new();
    while seconds.len() < 9 || begin.elapsed().as_secs_f64() < 0.5 {
        let start = Instant::now();
        work();
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Times {
        median: seconds[seconds.len() / 2],
        least: seconds[0],
        most: seconds[seconds.len() - 1],
    }
}

fn report(name: &str, times: &Times, flops: Option<f64>, bytes: Option<f64>, copy: f64) {
    let Times {
        median,
        least,
        most,
    } = times;
    println!(
        "{name:34} {:>10.3} {:>14} {:>13} {:>12}",
        median * 1e3,
        format!("{:.3}-{:.3}", least * 1e3, most * 1e3),
        flops.map_or_else(String::new, |flops| format!("{:.1}", flops / median / 1e9)),
        bytes.map_or_else(String::new, |bytes| format!("{:.2}", bytes / median / copy)),
    );
}

/// Bytes a second, read plus written, of copies far larger than the last-level cache.
fn copy_bandwidth() -> f64 {
    let source = vec![1u8; 256 << 20];
    let mut target = vec![0u8; 256 << 20];
    let times = time(|| {
        target.copy_from_slice(&source);
        std::hint::black_box(&mut target);
    });
    2.0 * source.len() as f64 / times.median
}
