//! `gpu_check bench`: both operators, with a cold second-level cache, against this device's own
//! limits. A shape is compared with the reference on a sample before it is timed.

mod decode;
mod prefill;
mod sample;
mod scan;
mod source;
mod timer;

use crate::failure::Failure;
use clap::{Args, ValueEnum};
use ratplus_graphs::ops::ElementType;
use ratplus_kernels::cuda::{Device, toolkit};
use serde_json::{Value, json};
use source::Source;
use std::path::PathBuf;
use timer::{Timer, Times};

/// The tensors' element type.
const ELEMENT: ElementType = ElementType::BF16;

/// What is timed; each alone fits a process of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// `RecurrenceScan` by every method.
    Scan,
    /// One token a sequence.
    Decode,
    /// Whole prompts by both methods.
    Prefill,
    /// Whole prompts by `mma.sync`.
    PrefillTiles,
    /// Whole prompts by `wgmma`.
    PrefillHopper,
}

/// Arguments of `bench`.
#[derive(Args)]
pub struct Options {
    /// Writes every row to this file, as each is done.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only these, comma-separated; scan, decode and prefill where none is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Rate of a large bf16 matrix product here, which benches/gpu/peers.py measures; 790, which an
    /// H200 reached, where it is not given.
    #[arg(long, value_name = "TFLOP/s")]
    gemm_tflops: Option<f64>,
    /// Only the rows that goals are set for, by every method.
    #[arg(long)]
    goals: bool,
    /// Shapes that a CPU can do.
    #[arg(long, hide = true)]
    tiny: bool,
}

const ASSUMED_TFLOPS: f64 = 790.0;

/// What is timed by default, and what a CPU can do of it.
struct Shapes {
    /// Of all sequences of a prompt batch.
    tokens: usize,
    seq_lens: Vec<usize>,
    channels: Vec<usize>,
    /// Of a step.
    batch: usize,
    contexts: Vec<usize>,
    /// Channels of all heads.
    width: usize,
    dilations: Vec<i64>,
    windows: Vec<i64>,
    /// Prompts and dilations where not all are timed.
    goals: Option<Vec<(usize, i64)>>,
}

impl Shapes {
    fn new(tiny: bool, goals: bool) -> Self {
        if goals {
            let all = Self::new(tiny, false);
            let (short, long) = (all.seq_lens[0], all.seq_lens[all.seq_lens.len() - 1]);
            let dilations = if tiny { [1, 4, 4] } else { [1, 16, 64] };
            let [dense, usual, far] = dilations;
            return Self {
                goals: Some(vec![
                    (short, usual),
                    (long, usual),
                    (long, far),
                    (long, dense),
                ]),
                seq_lens: vec![short, long],
                channels: vec![all.width],
                contexts: vec![all.contexts[0]],
                dilations: vec![usual, far],
                ..all
            };
        }
        if tiny {
            return Self {
                goals: None,
                tokens: 256,
                seq_lens: vec![128, 256],
                channels: vec![128],
                batch: 2,
                contexts: vec![64, 300],
                width: 256,
                dilations: vec![1, 4],
                windows: vec![0, 16],
            };
        }
        let lengths: Vec<usize> = (12..=18).map(|power| 1 << power).collect();
        Self {
            tokens: 1 << 18,
            seq_lens: lengths.clone(),
            channels: vec![2048, 4096],
            batch: 128,
            contexts: lengths,
            width: 2048,
            dilations: vec![1, 2, 4, 16, 64],
            windows: vec![0, 256],
            goals: None,
        }
    }
}

/// What one row measures.
struct Row {
    operator: &'static str,
    method: String,
    batch: usize,
    seq_len: usize,
    heads: usize,
    head_dim: usize,
    /// Dilation, window, initial tokens; none for the scan.
    pattern: Option<(i64, i64, i64)>,
    /// What has to be computed and moved, each input read once and each output written once.
    flops: f64,
    bytes: f64,
    /// Bytes of a part that has to be done before the rest, with no arithmetic to speak of.
    bytes_before: f64,
}

/// A run of `bench`.
struct Bench {
    device: &'static Device,
    timer: Timer,
    source: Source,
    shapes: Shapes,
    /// Bytes a second of a copy, read plus written.
    copy: f64,
    /// FLOPs a second.
    rate: f64,
    document: Value,
    json: Option<PathBuf>,
}

/// Times what was asked for.
pub fn run(device: &'static Device, options: &Options) -> Result<(), Failure> {
    let mut timer = Timer::new(device, options.tiny)?;
    let copy = timer.copy_bandwidth()?;
    let tflops = options.gemm_tflops.unwrap_or(ASSUMED_TFLOPS);
    let rate = tflops * 1e12;
    println!("{}", crate::info::line(device)?);
    println!(
        "copy {:.3} TB/s read and written; matrix products {tflops} TFLOP/s, {}; L2 cold \
         before every run",
        copy / 1e12,
        options.gemm_tflops.map_or("assumed", |_| "as given")
    );
    let limits = device.limits();
    let mut document = json!({
        "device": {
            "name": limits.name,
            "compute_capability": [limits.compute_capability.0, limits.compute_capability.1],
            "multiprocessors": limits.multiprocessors,
            "l2_bytes": limits.l2_bytes,
            "total_memory": limits.total_memory,
            "cuda_driver": Device::driver_version()?,
            "nvcc": toolkit().map(|toolkit| toolkit.version),
        },
        "limits": { "copy_tb_s": copy / 1e12 },
        "rows": [],
    });
    if let Some(tflops) = options.gemm_tflops {
        document["limits"]["gemm_tflops"] = json!(tflops);
    }
    let mut bench = Bench {
        device,
        source: Source::new(options.tiny),
        timer,
        shapes: Shapes::new(options.tiny, options.goals),
        copy,
        rate,
        document,
        json: options.json.clone(),
    };
    bench.write()?;
    println!(
        "{:22} {:28} {:>10} {:>21} {:>5} {:>9} {:>7} {:>9} {:>6}",
        "operator", "shape", "ms", "least - most", "runs", "TFLOP/s", "TB/s", "floor ms", "x"
    );
    let parts = match &options.only[..] {
        [] => &[Part::Scan, Part::Decode, Part::Prefill],
        only => only,
    };
    for part in parts {
        let done = match part {
            Part::Scan => scan::run(&mut bench),
            Part::Decode => decode::run(&mut bench),
            Part::Prefill => prefill::run(&mut bench, true, true),
            Part::PrefillTiles => prefill::run(&mut bench, true, false),
            Part::PrefillHopper => prefill::run(&mut bench, false, true),
        };
        done.map_err(|failure| failure.during(&format!("{part:?}")))?;
    }
    Ok(())
}

impl Row {
    fn shape(&self) -> String {
        let Self { batch, seq_len, .. } = self;
        match self.pattern {
            Some((d, w, i)) => format!("{batch} x {seq_len} D={d} W={w} I={i}"),
            None => format!("{batch} x {seq_len} N={}", self.heads * self.head_dim),
        }
    }

    fn json(&self) -> Value {
        let pattern = self.pattern.map(|(d, w, i)| json!([d, w, i]));
        json!({
            "operator": self.operator,
            "method": self.method,
            "batch": self.batch,
            "seq_len": self.seq_len,
            "heads": self.heads,
            "head_dim": self.head_dim,
            "pattern": pattern,
            "flops": self.flops,
            "bytes": self.bytes,
            "bytes_before": self.bytes_before,
        })
    }
}

impl Bench {
    /// Seconds that nothing is faster than here.
    fn floor(&self, row: &Row) -> f64 {
        row.bytes_before / self.copy + (row.flops / self.rate).max(row.bytes / self.copy)
    }

    fn push(&mut self, row: &Row, times: &Times) -> Result<(), Failure> {
        let floor = self.floor(row);
        let bytes = row.bytes + row.bytes_before;
        println!(
            "{:22} {:28} {:10.4} {:>21} {:5} {:9.2} {:7.3} {:9.4} {:6.2}",
            format!("{} {}", row.operator, row.method),
            row.shape(),
            times.median * 1e3,
            format!("{:.4} - {:.4}", times.least * 1e3, times.most * 1e3),
            times.runs,
            row.flops / times.median / 1e12,
            bytes / times.median / 1e12,
            floor * 1e3,
            times.median / floor,
        );
        let mut value = row.json();
        value["median_ms"] = json!(times.median * 1e3);
        value["least_ms"] = json!(times.least * 1e3);
        value["most_ms"] = json!(times.most * 1e3);
        value["runs"] = json!(times.runs);
        value["floor_ms"] = json!(floor * 1e3);
        value["ratio"] = json!(times.median / floor);
        self.append(value)
    }

    /// A row that this device cannot do.
    fn skip(&mut self, row: &Row, why: &str) -> Result<(), Failure> {
        let name = format!("{} {}", row.operator, row.method);
        println!("{name:22} {:28} SKIPPED: {why}", row.shape());
        let mut value = row.json();
        value["skipped"] = json!(why);
        self.append(value)
    }

    fn append(&mut self, value: Value) -> Result<(), Failure> {
        if let Some(rows) = self.document["rows"].as_array_mut() {
            rows.push(value);
        }
        self.write()
    }

    fn write(&self) -> Result<(), Failure> {
        let Some(path) = &self.json else {
            return Ok(());
        };
        std::fs::write(path, format!("{:#}\n", self.document)).map_err(|error| {
            Failure::Environment(format!(
                "--json {}: {error}; name a file in a folder that exists",
                path.display()
            ))
        })
    }
}
