//! `RecurrenceScan` over whole prompts.

use super::sample::{gated_bound, recurrence};
use super::{Bench, ELEMENT, Row};
use crate::buffers::{Buffers, i64_bytes};
use crate::failure::Failure;
use crate::model::Worst;
use crate::parallel;
use ratplus_graphs::ops::recurrence_scan::{Inputs, Outputs};
use ratplus_kernels::cuda::{CudaPlan, DevicePtr, ScanMethod, ScanPlan, ScanShape};

/// Salts of key, value and gate.
pub const SALTS: [usize; 3] = [1, 2, 3];

/// Every shape and method.
pub fn run(bench: &mut Bench) -> Result<(), Failure> {
    for channels in bench.shapes.channels.clone() {
        let prompt = Prompt::new(bench, channels)?;
        for seq_len in bench.shapes.seq_lens.clone() {
            let samples = Samples::new(bench, channels, seq_len);
            for method in [
                ScanMethod::SinglePass,
                ScanMethod::ThreeLaunches,
                ScanMethod::Serial,
            ] {
                let shape = prompt.shape(seq_len);
                let plan = ScanPlan::with_method(bench.device, shape, method)?;
                let row = row(&shape, method);
                prompt.prove(bench, &plan, &shape, &samples)?;
                let mut buffers = Buffers::new(bench.device);
                let workspace = buffers.unwritten(plan.workspace_bytes())?;
                let times = bench
                    .timer
                    .time(|| prompt.launch(bench, &plan, workspace))?;
                bench.push(&row, &times)?;
            }
        }
    }
    Ok(())
}

/// Bytes of three inputs and two outputs.
pub fn bytes(tokens: usize, channels: usize) -> f64 {
    (5 * tokens * channels * ELEMENT.size()) as f64
}

fn row(shape: &ScanShape, method: ScanMethod) -> Row {
    let tokens = shape.batch * shape.seq_len;
    Row {
        operator: "scan",
        method: format!("{method:?}"),
        batch: shape.batch,
        seq_len: shape.seq_len,
        heads: 1,
        head_dim: shape.channels,
        pattern: None,
        // Gate, and two blends.
        flops: 12.0 * (tokens * shape.channels) as f64,
        bytes: bytes(tokens, shape.channels),
        bytes_before: 0.0,
    }
}

/// Tensors of all sequences, as many as fit the tokens.
pub struct Prompt {
    buffers: Buffers,
    tokens: usize,
    channels: usize,
    inputs: Inputs<DevicePtr>,
    outputs: Outputs<DevicePtr>,
}

impl Prompt {
    /// With random inputs; every sequence starts.
    pub fn new(bench: &Bench, channels: usize) -> Result<Self, Failure> {
        let tokens = bench.shapes.tokens;
        let shortest = bench.shapes.seq_lens.iter().min().copied().unwrap_or(1);
        let most_slots = tokens / shortest;
        let mut buffers = Buffers::new(bench.device);
        let bytes = tokens * channels * ELEMENT.size();
        let mut chunks = [0; 3];
        for (input, salt) in chunks.iter_mut().zip(SALTS) {
            *input = buffers.unwritten(bytes)?;
            let stream = bench.timer.stream();
            bench
                .source
                .fill(bench.device, *input, bytes, salt, stream)?;
        }
        let state = most_slots * channels * size_of::<f32>();
        let [key, value, gate] = chunks;
        let inputs = Inputs {
            key,
            value,
            gate,
            state_key: buffers.poisoned(state)?,
            state_value: buffers.poisoned(state)?,
            past_length: buffers.upload_i64(&vec![0; most_slots])?,
            seq_length: buffers.upload_i64(&vec![0; most_slots])?,
        };
        let outputs = Outputs {
            gated_key: buffers.unwritten(bytes)?,
            gated_value: buffers.unwritten(bytes)?,
            new_state_key: buffers.unwritten(state)?,
            new_state_value: buffers.unwritten(state)?,
        };
        Ok(Self {
            buffers,
            tokens,
            channels,
            inputs,
            outputs,
        })
    }

    /// What the scan reads.
    pub fn inputs(&self) -> &Inputs<DevicePtr> {
        &self.inputs
    }

    /// What the scan writes.
    pub fn outputs(&self) -> &Outputs<DevicePtr> {
        &self.outputs
    }

    /// As sequences of this length.
    pub fn shape(&self, seq_len: usize) -> ScanShape {
        ScanShape {
            element: ELEMENT,
            batch: self.tokens / seq_len,
            seq_len,
            channels: self.channels,
        }
    }

    /// Tells the device how long every sequence is.
    pub fn set_lengths(&self, shape: &ScanShape) -> Result<(), Failure> {
        let lengths = i64_bytes(&vec![shape.seq_len as i64; shape.batch]);
        self.buffers.write(self.inputs.seq_length, &lengths)
    }

    /// Enqueues the scan.
    pub fn launch(
        &self,
        bench: &Bench,
        plan: &ScanPlan,
        workspace: DevicePtr,
    ) -> Result<(), Failure> {
        // SAFETY: the tensors hold the tokens of every shape of `shape`, and the caller's
        // workspace the plan's bytes; both outlive the timer's wait. The context is current.
        unsafe {
            plan.launch(
                &self.inputs,
                &self.outputs,
                workspace,
                1,
                bench.timer.stream(),
            )?;
        }
        Ok(())
    }

    /// Runs once on poisoned outputs and compares a sample.
    pub fn prove(
        &self,
        bench: &Bench,
        plan: &ScanPlan,
        shape: &ScanShape,
        samples: &Samples,
    ) -> Result<(), Failure> {
        let name = format!("scan {:?} {shape:?}", plan.method());
        self.set_lengths(shape)?;
        for output in [self.outputs.gated_key, self.outputs.gated_value] {
            bench.poison(output, self.tokens * self.channels)?;
        }
        let mut buffers = Buffers::new(bench.device);
        let workspace = buffers.poisoned(plan.workspace_bytes())?;
        self.launch(bench, plan, workspace)?;
        bench.timer.wait()?;
        let mut worst = Worst::default();
        for (which, output) in [self.outputs.gated_key, self.outputs.gated_value]
            .into_iter()
            .enumerate()
        {
            for (slot, token, wants) in &samples.rows {
                let first = (slot * shape.seq_len + token) * self.channels;
                let got = bench.read(output, first, self.channels)?;
                for (&channel, want) in samples.channels.iter().zip(&wants[which]) {
                    worst.see(got[channel], *want, gated_bound(*want), || {
                        format!("slot {slot} token {token} channel {channel}")
                    });
                }
                // What is not compared has been written at least.
                if got.iter().any(|x| x.is_nan()) {
                    worst.see(f32::NAN, 0.0, 1.0, || format!("slot {slot} token {token}"));
                }
            }
        }
        bench.accept(&name, &worst)
    }
}

/// What the reference makes of some channels at some tokens.
pub struct Samples {
    channels: Vec<usize>,
    /// Slot, token, and the gated key and value of every channel.
    rows: Vec<(usize, usize, [Vec<f64>; 2])>,
}

impl Samples {
    /// Of the first and the last sequence.
    pub fn new(bench: &Bench, channels: usize, seq_len: usize) -> Self {
        let sampled: Vec<usize> = (0..16).map(|i| (i * 1237 + 5) % channels).collect();
        let tokens = [0, seq_len / 3, seq_len - 1];
        let last = bench.shapes.tokens / seq_len - 1;
        let mut rows = Vec::new();
        for slot in if last == 0 { vec![0] } else { vec![0, last] } {
            let of_channel = parallel::map(sampled.len(), |index| {
                let at = |token| (slot * seq_len + token) * channels + sampled[index];
                [SALTS[0], SALTS[1]].map(|salt| {
                    let value = |token| bench.source.value(salt, at(token));
                    recurrence(&tokens, value, |token| {
                        bench.source.value(SALTS[2], at(token))
                    })
                })
            });
            for (index, &token) in tokens.iter().enumerate() {
                let wants = [0, 1].map(|which| {
                    let of_channel = of_channel.iter();
                    of_channel.map(|found| found[which][index]).collect()
                });
                rows.push((slot, token, wants));
            }
        }
        Self {
            channels: sampled,
            rows,
        }
    }
}
