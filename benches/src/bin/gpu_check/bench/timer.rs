//! Times of device work by events in the stream.

use crate::failure::Failure;
use ratplus_kernels::cuda::{Device, DeviceMemory, OwnedStream, Stream};

/// Seconds.
pub struct Times {
    pub median: f64,
    pub least: f64,
    pub most: f64,
    pub runs: usize,
}

/// What times work, on a stream of its own.
pub struct Timer {
    device: &'static Device,
    stream: OwnedStream,
    /// Twice the second-level cache, which is only read: what the cache has to write back would be
    /// charged to the work.
    flush: DeviceMemory,
    /// Where a part of it goes: all that is left dirty.
    sink: DeviceMemory,
    /// Seconds that the runs of one row may take.
    budget: f64,
    /// Runs of a short row.
    most_runs: usize,
}

const WARM_UP: usize = 2;
/// Runs, where they are not long.
const RUNS: usize = 20;
/// Runs of the longest.
const LONG_RUNS: usize = 3;
/// Seconds of a run that is not long.
const LONG: f64 = 0.02;

impl Timer {
    /// Allocates.
    pub fn new(device: &'static Device, tiny: bool) -> Result<Self, Failure> {
        let (flush, sink) = match tiny {
            true => (1 << 20, 1 << 18),
            false => (2 * device.limits().l2_bytes as usize, 1 << 20),
        };
        Ok(Self {
            device,
            stream: device.stream()?,
            flush: device.allocate(flush.next_multiple_of(sink))?,
            sink: device.allocate(sink)?,
            budget: if tiny { 0.0 } else { 0.25 },
            most_runs: if tiny { LONG_RUNS } else { 100 },
        })
    }

    /// The stream that work has to go to.
    pub fn stream(&self) -> Stream {
        self.stream.stream()
    }

    /// Waits for all work.
    pub fn wait(&self) -> Result<(), Failure> {
        Ok(self.stream.synchronize()?)
    }

    /// Times `work`, which enqueues on [`stream`](Self::stream). Between runs the cache is filled
    /// with other memory; as that takes longer than a launch, the device never waits for the host.
    pub fn time(&self, mut work: impl FnMut() -> Result<(), Failure>) -> Result<Times, Failure> {
        let once = self.runs(1, &mut work)?[0];
        let once = if once < LONG {
            self.runs(WARM_UP, &mut work)?[WARM_UP - 1]
        } else {
            once
        };
        let fitting = (self.budget / once.max(1e-9)) as usize;
        let least = if once < LONG { RUNS } else { LONG_RUNS };
        let count = fitting.max(least).min(self.most_runs);
        let mut seconds = self.runs(count, &mut work)?;
        seconds.sort_by(f64::total_cmp);
        Ok(Times {
            median: f64::midpoint(seconds[(count - 1) / 2], seconds[count / 2]),
            least: seconds[0],
            most: seconds[count - 1],
            runs: count,
        })
    }

    fn runs(
        &self,
        count: usize,
        work: &mut impl FnMut() -> Result<(), Failure>,
    ) -> Result<Vec<f64>, Failure> {
        let mut marks = Vec::new();
        for _ in 0..count {
            marks.push((self.device.event()?, self.device.event()?));
        }
        for (start, end) in &marks {
            let (to, part) = (self.sink.address(), self.sink.bytes());
            for at in (0..self.flush.bytes()).step_by(part) {
                let from = self.flush.address() + at as u64;
                // SAFETY: both buffers live as long as `self`, and nothing else uses them.
                unsafe {
                    self.device
                        .copy_device_async(to, from, part, self.stream())?;
                }
            }
            self.stream.record(start)?;
            work()?;
            self.stream.record(end)?;
        }
        self.wait()?;
        let elapsed = marks.iter().map(|(start, end)| Ok(start.elapsed(end)?));
        elapsed.collect()
    }

    /// Bytes a second, read plus written, of a copy far larger than the cache.
    pub fn copy_bandwidth(&mut self) -> Result<f64, Failure> {
        let bytes = match self.budget {
            0.0 => 1 << 20,
            _ => (4usize << 30).min(self.device.limits().total_memory as usize / 8),
        };
        let (from, to) = (self.device.allocate(bytes)?, self.device.allocate(bytes)?);
        let noise = super::Source::new(self.budget == 0.0);
        noise.fill(self.device, from.address(), bytes, 0, self.stream())?;
        let times = self.time(|| {
            // SAFETY: both buffers outlive the wait at the end of `time`.
            unsafe {
                self.device.copy_device_async(
                    to.address(),
                    from.address(),
                    bytes,
                    self.stream(),
                )?;
            }
            Ok(())
        })?;
        Ok(2.0 * bytes as f64 / times.median)
    }
}
