//! States that a power loss may leave, drawn and judged.

use super::judge::End;
use super::model::{Bytes, Disk, History, torn, zeros};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt as _;

/// How a file system orders changes of folders' entries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    Journal,
    Any,
}

pub const ORDERS: [Order; 2] = [Order::Journal, Order::Any];

#[derive(Default)]
pub struct Findings {
    pub drawn: usize,
    pub judged: usize,
    pub ends: BTreeMap<End, usize>,
    pub problems: Vec<String>,
}

/// A point of time, and what it was asked for.
struct Source {
    point: usize,
    order: Order,
    rng: ChaCha8Rng,
    draws: usize,
    misses: usize,
}

impl Source {
    fn new(point: usize, order: Order) -> Self {
        let seed = point as u64 * 2 + u64::from(order == Order::Any);
        Self {
            point,
            order,
            rng: ChaCha8Rng::seed_from_u64(seed),
            draws: 0,
            misses: 0,
        }
    }

    /// First the extremes, then at random; and which changes of entries are kept.
    fn draw(&mut self, history: &History) -> (Disk, Vec<bool>) {
        let point = self.point;
        let rng = &mut self.rng;
        let oldest = |versions: &[Bytes]| versions[0].clone();
        let newest = |versions: &[Bytes]| versions[versions.len() - 1].clone();
        let least = match self.order {
            Order::Journal => history.least_in_order(point),
            Order::Any => history.certain(point),
        };
        let all = history.all(point);
        self.draws += 1;
        let (kept, disk) = match self.draws {
            1 => (least.clone(), history.disk(point, &least, &mut { oldest })),
            2 => (all.clone(), history.disk(point, &all, &mut { newest })),
            3 => (all.clone(), history.disk(point, &all, &mut zeros.clone())),
            4 => (all.clone(), history.disk(point, &all, &mut { oldest })),
            5 => (least.clone(), history.disk(point, &least, &mut { newest })),
            _ => {
                let kept = match self.order {
                    Order::Journal => history.in_order(point, rng),
                    Order::Any => history.in_any_order(point, rng),
                };
                let disk =
                    history.disk(point, &kept, &mut |versions| match rng.random_range(0..6) {
                        0 => oldest(versions),
                        1 => newest(versions),
                        2 => zeros(versions),
                        3 => torn(versions, 4096, rng),
                        _ => torn(versions, 512, rng),
                    });
                (kept, disk)
            }
        };
        (disk, kept)
    }
}

/// Judges different states at all points of time of an export by turns, until that is `enough` or
/// `patience` draws in a row at each of them brought nothing new.
pub fn explore(
    history: &History,
    orders: &[Order],
    patience: usize,
    enough: &dyn Fn(&Findings) -> bool,
    mut judge: impl FnMut(&Disk, bool) -> Result<End, String>,
) -> Findings {
    let mut findings = Findings::default();
    let mut seen = BTreeSet::new();
    let points = 0..=history.end;
    let sources =
        points.flat_map(|point| orders.iter().map(move |order| Source::new(point, *order)));
    let mut sources: Vec<_> = sources.collect();
    while !sources.is_empty() {
        for source in &mut sources {
            if enough(&findings) {
                return findings;
            }
            let (disk, kept) = source.draw(history);
            findings.drawn += 1;
            let success = source.point == history.end;
            if !seen.insert(digest(&disk, success)) {
                source.misses += 1;
                continue;
            }
            source.misses = 0;
            findings.judged += 1;
            match judge(&disk, success) {
                Ok(end) => *findings.ends.entry(end).or_default() += 1,
                Err(problem) => findings.problems.push(format!(
                    "power lost after event {}, {:?}, without the changes of {:?}: {problem}",
                    source.point,
                    source.order,
                    history.without(&kept)
                )),
            }
        }
        sources.retain(|source| source.misses < patience);
    }
    findings
}

fn digest(disk: &Disk, success: bool) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix([u8::from(success)]);
    for (path, bytes) in disk {
        let path = path.as_os_str().as_bytes();
        let length = bytes.as_ref().map_or(u64::MAX, |bytes| bytes.len() as u64);
        hash.update((path.len() as u64).to_le_bytes());
        hash.update(path);
        hash.update(length.to_le_bytes());
        if let Some(bytes) = bytes {
            hash.update(&***bytes);
        }
    }
    hash.finalize().into()
}
