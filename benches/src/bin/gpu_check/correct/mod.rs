//! `gpu_check correct`: every kernel and every method against the reference.

mod attention;
mod blocks;
mod flags;
mod large;
mod scan;
mod steps;

use crate::failure::Failure;
use crate::model::Worst;
use clap::{Args, ValueEnum};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use ratplus_kernels::cuda::{AttentionMethod, CudaError, Device};
use std::time::{Instant, SystemTime};

/// What is checked; each alone fits a process of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// `RecurrenceScan` by every method.
    Scan,
    /// Attention of one token, all of a head's rows in a launch.
    Decode,
    /// Attention in tiles by `mma.sync`.
    Tiles,
    /// The same in tiles of 64 queries.
    SmallTiles,
    /// Attention in tiles by `wgmma`.
    Hopper,
    /// The same in tiles of 64 queries.
    SmallHopper,
    /// Attention for any head_dim.
    Any,
    /// Attention to blocks that a query chooses.
    Blocks,
    /// A thousand decode steps: eager, captured and double-buffered.
    Steps,
    /// Lengths that do not fit are contained and reported.
    Flags,
    /// Larger sizes, against the CPU kernels, and many times over.
    Large,
}

/// Arguments of `correct`.
#[derive(Args)]
pub struct Options {
    /// Fewer and smaller shapes.
    #[arg(long)]
    quick: bool,
    /// Only these, comma-separated.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Group>,
    /// Of the random inputs; the clock's where it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Changes one element of each result before it is compared.
    #[arg(long, hide = true)]
    plant_error: bool,
}

/// What every group gets.
struct Context {
    device: &'static Device,
    quick: bool,
    seed: u64,
    plant_error: bool,
    failed: Vec<String>,
}

impl Context {
    /// Inputs of a case, which its name and the seed determine.
    fn rng(&self, name: &str) -> ChaCha8Rng {
        // FNV-1a.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        ChaCha8Rng::seed_from_u64(self.seed ^ hash)
    }

    /// Runs the cases of one line and prints it. A case that is wrong does not end the others; an
    /// error of the driver does, because it often comes from an earlier launch and stays.
    fn line<C>(
        &mut self,
        name: &str,
        cases: &[C],
        mut check: impl FnMut(&Self, &C) -> Result<Worst, Failure>,
    ) -> Result<(), Failure> {
        let start = Instant::now();
        let mut worst = Worst::default();
        let mut wrong = Vec::new();
        for case in cases {
            match check(self, case) {
                Ok(found) => worst.merge(found),
                Err(Failure::Wrong(text)) => {
                    wrong.push(text);
                    self.device.synchronize().map_err(|error| {
                        Failure::wrong(format!("{name}: {}; then {error}", wrong.join("; ")))
                    })?;
                }
                Err(other) => return Err(other),
            }
        }
        if worst.ratio > 1.0 {
            wrong.push(format!("{:.3} of the bound: {}", worst.ratio, worst.place));
        }
        let verdict = if wrong.is_empty() { "ok" } else { "WRONG" };
        println!(
            "{name:44} {:4} cases  {:6.3} of the bound  {:6.1} s  {verdict}",
            cases.len(),
            worst.ratio,
            start.elapsed().as_secs_f64()
        );
        const SHOWN: usize = 3;
        for text in wrong.iter().take(SHOWN) {
            println!("    {text}");
        }
        if wrong.len() > SHOWN {
            println!("    and {} more", wrong.len() - SHOWN);
        }
        if !wrong.is_empty() {
            self.failed.push(name.to_owned());
        }
        Ok(())
    }

    /// Says what this device cannot do.
    fn skip(&self, name: &str, why: &CudaError) {
        println!("{name:44} SKIPPED: {why}");
    }

    /// Shapes of a list; the first of them where it has to be quick.
    fn some<'a, T>(&self, all: &'a [T], quick: usize) -> &'a [T] {
        if self.quick {
            &all[..quick.min(all.len())]
        } else {
            all
        }
    }

    /// Changes one element, where errors are planted.
    fn plant(&self, values: &mut [f32]) {
        if let (true, Some(first)) = (self.plant_error, values.first_mut()) {
            *first += 0.5;
        }
    }
}

/// Checks everything that was asked for.
pub fn run(device: &'static Device, options: &Options) -> Result<(), Failure> {
    let clock = || {
        let since = SystemTime::UNIX_EPOCH.elapsed();
        since.map_or(0, |time| time.as_nanos() as u64)
    };
    let mut context = Context {
        device,
        quick: options.quick,
        seed: options.seed.unwrap_or_else(clock),
        plant_error: options.plant_error,
        failed: Vec::new(),
    };
    println!("{}; --seed {}", crate::info::line(device)?, context.seed);
    let groups = match &options.only[..] {
        [] => Group::value_variants(),
        only => only,
    };
    for group in groups {
        let done = match group {
            Group::Scan => scan::run(&mut context),
            Group::Decode => attention::run(&mut context, AttentionMethod::Decode),
            Group::Tiles => attention::run(&mut context, AttentionMethod::Tiles),
            Group::SmallTiles => attention::run(&mut context, AttentionMethod::SmallTiles),
            Group::Hopper => attention::run(&mut context, AttentionMethod::Hopper),
            Group::SmallHopper => attention::run(&mut context, AttentionMethod::SmallHopper),
            Group::Any => attention::run(&mut context, AttentionMethod::Any),
            Group::Blocks => blocks::run(&mut context),
            Group::Steps => steps::run(&mut context),
            Group::Flags => flags::run(&mut context),
            Group::Large => large::run(&mut context),
        };
        done.map_err(|failure| failure.during(&format!("{group:?}")))?;
    }
    if context.failed.is_empty() {
        println!("all right");
        return Ok(());
    }
    let names = context.failed.join(", ");
    Err(Failure::Wrong(format!(
        "not as the reference: {names} (repeat with --seed {})",
        context.seed
    )))
}

/// The same bytes, or an error.
fn same(left: &[u8], right: &[u8], what: &str) -> Result<(), Failure> {
    match left.iter().zip(right).position(|(a, b)| a != b) {
        None if left.len() == right.len() => Ok(()),
        at => Err(Failure::Wrong(format!(
            "{what}: other bits, first at byte {} of {}",
            at.unwrap_or(0),
            left.len()
        ))),
    }
}

/// No kernel found lengths that do not fit.
fn no_error(device: &Device, what: &str) -> Result<(), Failure> {
    match device.error_flag().take() {
        None => Ok(()),
        Some(error) => Err(Failure::Wrong(format!("{what}: {error}"))),
    }
}
