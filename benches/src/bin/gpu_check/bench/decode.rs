//! One token a sequence after a long past: the scan, then the attention.

use super::sample::{gated_bound, see_row};
use super::{Bench, ELEMENT, Row};
use crate::buffers::Buffers;
use crate::element::{self, encode, random};
use crate::failure::Failure;
use crate::model::{History, Tables, Worst, attend};
use crate::parallel;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::cache::{CacheLayout, HeadCache};
use ratplus_graphs::ops::{ElementType, dilated_attention, recurrence_scan};
use ratplus_graphs::pattern::Pattern;
use ratplus_kernels::cuda::{
    AttentionPlan, AttentionShape, CudaPlan, DevicePtr, ScanPlan, ScanShape,
};
use ratplus_reference::full::sigmoid;

const INITIAL: i64 = 4;
/// Query, key, value, gate.
const TOKEN: [usize; 4] = [11, 12, 13, 14];
/// Cached keys and values.
const CACHE: [usize; 2] = [15, 16];
/// The part of the device's memory that one shape may take.
const ROOM: f64 = 0.9;

/// Every pattern and length.
pub fn run(bench: &mut Bench) -> Result<(), Failure> {
    if bench.shapes.goals.is_some() {
        let seq_len = bench.shapes.contexts[0];
        for dilation in bench.shapes.dilations.clone() {
            step(bench, seq_len, dilation, 128)?;
        }
        return Ok(());
    }
    for dilation in [1, 4, 16, 64] {
        for seq_len in bench.shapes.contexts.clone() {
            step(bench, seq_len, dilation, 128)?;
        }
    }
    let seq_len = bench.shapes.contexts[bench.shapes.contexts.len() / 2];
    step(bench, seq_len, 16, 64)
}

/// The last token of `seq_len`.
fn step(bench: &mut Bench, seq_len: usize, dilation: i64, head_dim: usize) -> Result<(), Failure> {
    // Dense attention sees everything: its initial tokens are none.
    let raw = match dilation {
        1 => (1, 0, 0),
        _ => (dilation, 0, INITIAL),
    };
    let pattern = Pattern::new(raw.0, raw.1, raw.2).map_err(Failure::wrong)?;
    let heads = bench.shapes.width / head_dim;
    let batch = bench.shapes.batch;
    let layout = CacheLayout::new(&vec![pattern; heads], seq_len);
    let row = {
        let seen = batch * heads * pattern.visible_count(seq_len - 1);
        let own = batch * heads;
        Row {
            operator: "decode",
            method: "Serial + Decode".into(),
            batch,
            seq_len,
            heads,
            head_dim,
            pattern: Some(raw),
            flops: 4.0 * (head_dim * seen) as f64,
            // Cached keys and values; query, key, value, gate, output; state read and written. Gated
            // keys and values need no memory: one launch could do both operators.
            // The own key and value are among those that are seen.
            bytes: (head_dim
                * (2 * (seen - own) * ELEMENT.size()
                    + own * (5 * ELEMENT.size() + 4 * size_of::<f32>()))) as f64,
            bytes_before: 0.0,
        }
    };
    let needed = 2 * batch * layout.rows() * head_dim * ELEMENT.size();
    let room = ROOM * bench.device.limits().total_memory as f64;
    if needed as f64 > room {
        let why = format!(
            "the cache has {:.1} GB, the device room for {:.1}",
            needed as f64 / 1e9,
            room / 1e9
        );
        return bench.skip(&row, &why);
    }
    let layer = Layer::new(bench, layout, batch, seq_len, head_dim)?;
    layer.prove(bench, &row.shape())?;
    let times = bench.timer.time(|| layer.launch(bench))?;
    bench.push(&row, &times)
}

/// The two operators of a layer and their tensors.
struct Layer {
    _buffers: Buffers,
    layout: CacheLayout,
    batch: usize,
    seq_len: usize,
    head_dim: usize,
    scan: ScanPlan,
    attention: AttentionPlan,
    scanned: (
        recurrence_scan::Inputs<DevicePtr>,
        recurrence_scan::Outputs<DevicePtr>,
    ),
    attended: (
        dilated_attention::Inputs<DevicePtr>,
        dilated_attention::Outputs<DevicePtr>,
    ),
    workspace: [DevicePtr; 2],
    tables: Tables,
    state: [Vec<f32>; 2],
}

impl Layer {
    fn new(
        bench: &Bench,
        layout: CacheLayout,
        batch: usize,
        seq_len: usize,
        head_dim: usize,
    ) -> Result<Self, Failure> {
        let channels = layout.heads().len() * head_dim;
        let scan = ScanPlan::new(
            bench.device,
            ScanShape {
                element: ELEMENT,
                batch,
                seq_len: 1,
                channels,
            },
        )?;
        let shape = AttentionShape {
            element: ELEMENT,
            batch,
            seq_len: 1,
            group: 1,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
        };
        let attention = AttentionPlan::new(bench.device, shape, &layout)?;
        let mut buffers = Buffers::new(bench.device);
        let mut filled = |bytes: usize, salt: usize| -> Result<DevicePtr, Failure> {
            let address = buffers.unwritten(bytes)?;
            let stream = bench.timer.stream();
            bench
                .source
                .fill(bench.device, address, bytes, salt, stream)?;
            Ok(address)
        };
        let token = batch * channels * ELEMENT.size();
        let rows = batch * layout.rows() * head_dim * ELEMENT.size();
        let mut inputs = [0; 4];
        for (input, salt) in inputs.iter_mut().zip(TOKEN) {
            *input = filled(token, salt)?;
        }
        let cache = [filled(rows, CACHE[0])?, filled(rows, CACHE[1])?];
        let [query, key, value, gate] = inputs;
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let state = [(); 2].map(|()| random(ElementType::F32, &mut rng, batch * channels, 2.0));
        let tables = Tables::new(head_dim, seq_len);
        let state_bytes = batch * channels * size_of::<f32>();
        let past_length = buffers.upload_i64(&vec![seq_len as i64 - 1; batch])?;
        let seq_length = buffers.upload_i64(&vec![1; batch])?;
        // The new state goes elsewhere, so that every run computes the same.
        let scan_inputs = recurrence_scan::Inputs {
            key,
            value,
            gate,
            state_key: buffers.upload(&encode(ElementType::F32, &state[0]))?,
            state_value: buffers.upload(&encode(ElementType::F32, &state[1]))?,
            past_length,
            seq_length,
        };
        let scan_outputs = recurrence_scan::Outputs {
            gated_key: buffers.poisoned(token)?,
            gated_value: buffers.poisoned(token)?,
            new_state_key: buffers.poisoned(state_bytes)?,
            new_state_value: buffers.poisoned(state_bytes)?,
        };
        let attention_inputs = dilated_attention::Inputs {
            query,
            key: scan_outputs.gated_key,
            value: scan_outputs.gated_value,
            past_key: cache[0],
            past_value: cache[1],
            past_length,
            seq_length,
            cos: buffers.upload(&encode(ElementType::F32, &tables.cos))?,
            sin: buffers.upload(&encode(ElementType::F32, &tables.sin))?,
        };
        let attention_outputs = dilated_attention::Outputs {
            output: buffers.poisoned(token)?,
            present_key: cache[0],
            present_value: cache[1],
        };
        let workspace = [
            buffers.unwritten(scan.workspace_bytes())?,
            buffers.unwritten(attention.workspace_bytes())?,
        ];
        Ok(Self {
            _buffers: buffers,
            layout,
            batch,
            seq_len,
            head_dim,
            scan,
            attention,
            scanned: (scan_inputs, scan_outputs),
            attended: (attention_inputs, attention_outputs),
            workspace,
            tables,
            state,
        })
    }

    fn channels(&self) -> usize {
        self.layout.heads().len() * self.head_dim
    }

    /// The scan, then the attention.
    fn launch(&self, bench: &Bench) -> Result<(), Failure> {
        let stream = bench.timer.stream();
        let ((inputs, outputs), [scan, attention]) = (&self.scanned, self.workspace);
        // SAFETY: tensors and workspace have the plan's sizes and outlive the timer's wait, as
        // this layer does; the context is current.
        unsafe {
            self.scan.launch(inputs, outputs, scan, 1, stream)?;
            let (inputs, outputs) = &self.attended;
            self.attention
                .launch(inputs, outputs, attention, 2, stream)?;
        }
        Ok(())
    }

    /// A sample is as the reference says.
    fn prove(&self, bench: &Bench, shape: &str) -> Result<(), Failure> {
        let name = format!("decode {shape}");
        let count = self.batch * self.channels();
        self.launch(bench)?;
        let output = bench.read(self.attended.1.output, 0, count)?;
        let mut worst = Worst::default();
        let heads = self.layout.heads();
        let places = [
            (0, 0),
            (self.batch - 1, heads.len() - 1),
            (self.batch / 2, 1),
        ];
        let answers = parallel::map(places.len(), |index| {
            let (slot, head) = places[index];
            let step = Step::new(bench, self, slot, head);
            let mut query = vec![0.0; self.head_dim];
            step.token(TOKEN[0], &mut query);
            let (position, scale) = (self.seq_len - 1, 1.0 / (self.head_dim as f32).sqrt());
            let query = self.tables.rotate(&query, position);
            let round = element::round(ELEMENT);
            let pattern = heads[head].pattern;
            (
                step.own.clone(),
                attend(pattern, scale, &query, position, &step, round),
            )
        });
        for (&(slot, head), (own, answer)) in places.iter().zip(&answers) {
            let place = format!("slot {slot} head {head}");
            let at = slot * self.channels() + head * self.head_dim;
            see_row(
                &mut worst,
                &output[at..at + self.head_dim],
                answer,
                false,
                &place,
            );
            let got = bench.read(self.scanned.1.gated_value, at, self.head_dim)?;
            for (&got, &want) in got.iter().zip(&own[1]) {
                let bound = 2.0 * gated_bound(want.into());
                worst.see(got, want.into(), bound, || format!("{place} gated value"));
            }
        }
        bench.accept(&name, &worst)
    }
}

/// One head of one sequence.
struct Step<'a> {
    bench: &'a Bench,
    layer: &'a Layer,
    slot: usize,
    head: HeadCache,
    /// Element of the head's first channel among the tokens.
    first: usize,
    /// Rotated key, and value, of the token itself.
    own: [Vec<f32>; 2],
}

impl<'a> Step<'a> {
    fn new(bench: &'a Bench, layer: &'a Layer, slot: usize, index: usize) -> Self {
        let mut step = Self {
            bench,
            layer,
            slot,
            head: layer.layout.heads()[index],
            first: slot * layer.channels() + index * layer.head_dim,
            own: [Vec::new(), Vec::new()],
        };
        let round = element::round(ELEMENT);
        let [key, value] = [0, 1].map(|which| {
            let [mut token, mut gate] = [(); 2].map(|()| vec![0.0; layer.head_dim]);
            step.token(TOKEN[1 + which], &mut token);
            step.token(TOKEN[3], &mut gate);
            let state = &layer.state[which][step.first..];
            let blended = token.iter().zip(&gate).zip(state).map(|((&x, &gate), &h)| {
                let logit = f64::from(gate);
                let blend = sigmoid(logit) * f64::from(h) + sigmoid(-logit) * f64::from(x);
                round(blend as f32)
            });
            blended.collect::<Vec<_>>()
        });
        let turned = layer.tables.rotate(&key, layer.seq_len - 1);
        let key = turned.into_iter().map(|x| round(x as f32)).collect();
        step.own = [key, value];
        step
    }

    fn token(&self, salt: usize, to: &mut [f32]) {
        for (channel, to) in to.iter_mut().enumerate() {
            *to = self.bench.source.value(salt, self.first + channel);
        }
    }

    /// Without a window, a position that is seen has one row.
    fn row(&self, which: usize, position: usize, to: &mut [f32]) {
        if position + 1 == self.layer.seq_len {
            to.copy_from_slice(&self.own[which]);
            return;
        }
        let row = self.head.rows_of_position(position).next().unwrap_or(0);
        let rows = self.layer.layout.rows();
        let at = (self.slot * rows + self.head.offset + row) * to.len();
        for (channel, to) in to.iter_mut().enumerate() {
            *to = self.bench.source.value(CACHE[which], at + channel);
        }
    }
}

impl History for Step<'_> {
    fn key(&self, position: usize, to: &mut [f32]) {
        self.row(0, position, to);
    }

    fn value(&self, position: usize, to: &mut [f32]) {
        self.row(1, position, to);
    }
}
