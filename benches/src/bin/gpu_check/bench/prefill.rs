//! Whole prompts: the attention alone, and the scan with the attention after it.

use super::sample::see_row;
use super::scan::{self, Prompt, Samples};
use super::{Bench, ELEMENT, Row};
use crate::buffers::Buffers;
use crate::element::{self, encode};
use crate::failure::Failure;
use crate::model::{Answer, History, Tables, Worst, attend};
use crate::parallel;
use ratplus_graphs::cache::CacheLayout;
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::ops::dilated_attention::{Inputs, Outputs};
use ratplus_graphs::pattern::Pattern;
use ratplus_kernels::cuda::{
    AttentionMethod, AttentionPlan, AttentionShape, CudaError, CudaPlan, DevicePtr, ScanPlan,
};

const INITIAL: i64 = 4;
/// Tokens of the longest prompt that tiles for few keys are timed with.
const SHORT: usize = 16384;
const QUERY: usize = 4;

/// Every pattern and length, by one method or both.
pub fn run(bench: &mut Bench, tiles: bool, hopper: bool) -> Result<(), Failure> {
    let methods = |seq_len| {
        let mut methods = Vec::new();
        // Tiles for few keys are slow for many.
        let short = seq_len <= SHORT;
        if tiles {
            methods.push(AttentionMethod::Tiles);
            methods.extend(short.then_some(AttentionMethod::SmallTiles));
        }
        if hopper {
            methods.push(AttentionMethod::Hopper);
            methods.extend(short.then_some(AttentionMethod::SmallHopper));
        }
        methods
    };
    let layer = Layer::new(bench, 128)?;
    for seq_len in bench.shapes.seq_lens.clone() {
        layer.prove_scan(bench, seq_len)?;
        for pattern in patterns(bench, seq_len) {
            layer.run(bench, seq_len, pattern, &methods(seq_len))?;
        }
    }
    drop(layer);
    if bench.shapes.goals.is_some() {
        return Ok(());
    }
    // One length with the other head_dim.
    let layer = Layer::new(bench, 64)?;
    let seq_len = bench.shapes.seq_lens[bench.shapes.seq_lens.len() / 3];
    layer.prove_scan(bench, seq_len)?;
    for pattern in [(1, 0, 0), (16, 0, INITIAL)] {
        layer.run(bench, seq_len, pattern, &methods(seq_len))?;
    }
    Ok(())
}

/// Dense attention sees everything: its window and initial tokens are none.
fn patterns(bench: &Bench, seq_len: usize) -> Vec<(i64, i64, i64)> {
    let pattern = |dilation| match dilation {
        1 => (1, 0, 0),
        _ => (dilation, 0, INITIAL),
    };
    if let Some(goals) = &bench.shapes.goals {
        let own = goals.iter().filter(|(length, _)| *length == seq_len);
        return own.map(|(_, dilation)| pattern(*dilation)).collect();
    }
    let mut patterns = Vec::new();
    for &dilation in &bench.shapes.dilations {
        if dilation == 1 {
            patterns.push(pattern(1));
            continue;
        }
        let windows = bench.shapes.windows.iter();
        patterns.extend(windows.map(|&window| (dilation, window, INITIAL)));
    }
    patterns
}

/// The two operators of a layer and their tensors.
struct Layer {
    prompt: Prompt,
    _buffers: Buffers,
    query: DevicePtr,
    output: DevicePtr,
    tables: Tables,
    device_tables: [DevicePtr; 2],
    head_dim: usize,
    heads: usize,
}

impl Layer {
    fn new(bench: &Bench, head_dim: usize) -> Result<Self, Failure> {
        let prompt = Prompt::new(bench, bench.shapes.width)?;
        let bytes = bench.shapes.tokens * bench.shapes.width * ELEMENT.size();
        let mut buffers = Buffers::new(bench.device);
        let query = buffers.unwritten(bytes)?;
        let stream = bench.timer.stream();
        bench
            .source
            .fill(bench.device, query, bytes, QUERY, stream)?;
        let output = buffers.unwritten(bytes)?;
        let longest = bench.shapes.seq_lens.iter().max().copied().unwrap_or(1);
        let tables = Tables::new(head_dim, longest);
        let device_tables = [
            buffers.upload(&encode(ElementType::F32, &tables.cos))?,
            buffers.upload(&encode(ElementType::F32, &tables.sin))?,
        ];
        Ok(Self {
            heads: bench.shapes.width / head_dim,
            prompt,
            _buffers: buffers,
            query,
            output,
            tables,
            device_tables,
            head_dim,
        })
    }

    fn prove_scan(&self, bench: &Bench, seq_len: usize) -> Result<(), Failure> {
        let shape = self.prompt.shape(seq_len);
        let samples = Samples::new(bench, shape.channels, seq_len);
        let plan = ScanPlan::new(bench.device, shape)?;
        self.prompt.prove(bench, &plan, &shape, &samples)
    }

    fn run(
        &self,
        bench: &mut Bench,
        seq_len: usize,
        raw: (i64, i64, i64),
        methods: &[AttentionMethod],
    ) -> Result<(), Failure> {
        let pattern = Pattern::new(raw.0, raw.1, raw.2).map_err(Failure::wrong)?;
        let layout = CacheLayout::new(&vec![pattern; self.heads], seq_len);
        let scan_shape = self.prompt.shape(seq_len);
        let batch = scan_shape.batch;
        let shape = AttentionShape {
            element: ELEMENT,
            batch,
            seq_len,
            group: 1,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
        };
        let mut cache = Buffers::new(bench.device);
        let bytes = batch * layout.rows() * self.head_dim * ELEMENT.size();
        let present = [cache.unwritten(bytes)?, cache.unwritten(bytes)?];
        let answers = self.answers(bench, &shape, pattern);
        let scan = ScanPlan::new(bench.device, scan_shape)?;
        let scan_workspace = cache.unwritten(scan.workspace_bytes())?;
        for &method in methods {
            let row = self.row("attention", &shape, raw, pattern, method);
            let plan = match AttentionPlan::with_method(bench.device, shape, &layout, method) {
                Err(why @ CudaError::WrongArchitecture { .. }) => {
                    bench.skip(&row, &why.to_string())?;
                    continue;
                }
                plan => plan?,
            };
            let mut buffers = Buffers::new(bench.device);
            let workspace = buffers.unwritten(plan.workspace_bytes())?;
            let (raw_rows, scanned) = (self.prompt.inputs(), self.prompt.outputs());
            let bare = self.inputs([raw_rows.key, raw_rows.value], present);
            let gated = self.inputs([scanned.gated_key, scanned.gated_value], present);
            let outputs = Outputs {
                output: self.output,
                present_key: present[0],
                present_value: present[1],
            };
            let stream = bench.timer.stream();
            let attention = |inputs: &Inputs<DevicePtr>| -> Result<(), Failure> {
                // SAFETY: the tensors hold the tokens of every shape, the cache the layout's
                // rows, the workspace the plan's bytes; all outlive the timer's wait. The context
                // is current.
                unsafe { Ok(plan.launch(inputs, &outputs, workspace, 2, stream)?) }
            };
            bench.poison(self.output, bench.shapes.tokens * bench.shapes.width)?;
            attention(&bare)?;
            self.prove(bench, &answers, &row)?;
            let times = bench.timer.time(|| attention(&bare))?;
            bench.push(&row, &times)?;

            let row = Row {
                bytes_before: scan::bytes(bench.shapes.tokens, bench.shapes.width),
                ..self.row("scan + attention", &shape, raw, pattern, method)
            };
            let times = bench.timer.time(|| {
                self.prompt.launch(bench, &scan, scan_workspace)?;
                attention(&gated)
            })?;
            bench.push(&row, &times)?;
        }
        Ok(())
    }

    fn inputs(&self, [key, value]: [DevicePtr; 2], past: [DevicePtr; 2]) -> Inputs<DevicePtr> {
        let scan = self.prompt.inputs();
        Inputs {
            query: self.query,
            key,
            value,
            past_key: past[0],
            past_value: past[1],
            past_length: scan.past_length,
            seq_length: scan.seq_length,
            cos: self.device_tables[0],
            sin: self.device_tables[1],
        }
    }

    fn row(
        &self,
        operator: &'static str,
        shape: &AttentionShape,
        raw: (i64, i64, i64),
        pattern: Pattern,
        method: AttentionMethod,
    ) -> Row {
        let keys: usize = (0..shape.seq_len)
            .map(|query| pattern.visible_count(query))
            .sum();
        let elements = shape.batch * shape.seq_len * self.heads * self.head_dim;
        Row {
            operator,
            method: format!("{method:?}"),
            batch: shape.batch,
            seq_len: shape.seq_len,
            heads: self.heads,
            head_dim: self.head_dim,
            pattern: Some(raw),
            flops: 4.0 * (self.head_dim * self.heads * shape.batch * keys) as f64,
            // Query, key, value, output.
            bytes: (4 * elements * ELEMENT.size()) as f64,
            bytes_before: 0.0,
        }
    }

    /// Some rows of the attention alone: slot, token, head, and the reference's output.
    fn answers(
        &self,
        bench: &Bench,
        shape: &AttentionShape,
        pattern: Pattern,
    ) -> Vec<(usize, usize, usize, Answer)> {
        let seq_len = shape.seq_len;
        let mut places = Vec::new();
        for (slot, token, head) in [
            (0, seq_len - 1, 0),
            (shape.batch - 1, seq_len - 1, self.heads - 1),
            (shape.batch - 1, seq_len / 2 + 3, 0),
            (0, seq_len / 3, self.heads - 1),
            (0, 17, 0),
            (shape.batch / 2, 0, 0),
        ] {
            places.push((slot, token, head));
        }
        parallel::map(places.len(), |index| {
            let (slot, token, head) = places[index];
            let first = (slot * seq_len * self.heads + head) * self.head_dim;
            let history = Fed {
                bench,
                layer: self,
                first,
            };
            let mut query = vec![0.0; self.head_dim];
            history.row(QUERY, token, &mut query);
            let query = self.tables.rotate(&query, token);
            let round = element::round(ELEMENT);
            let answer = attend(pattern, shape.scale, &query, token, &history, round);
            (slot, token, head, answer)
        })
    }

    fn prove(
        &self,
        bench: &Bench,
        answers: &[(usize, usize, usize, Answer)],
        row: &Row,
    ) -> Result<(), Failure> {
        let name = format!("{} {} {}", row.operator, row.method, row.shape());
        let mut worst = Worst::default();
        for (slot, token, head, answer) in answers {
            let place = format!("slot {slot} token {token} head {head}");
            let at = ((slot * row.seq_len + token) * self.heads + head) * self.head_dim;
            let got = bench.read(self.output, at, self.head_dim)?;
            see_row(&mut worst, &got, answer, true, &place);
        }
        bench.accept(&name, &worst)
    }
}

/// One head of one sequence, from the source.
struct Fed<'a> {
    bench: &'a Bench,
    layer: &'a Layer,
    /// Element of the head's first channel at the first token.
    first: usize,
}

impl Fed<'_> {
    fn row(&self, salt: usize, position: usize, to: &mut [f32]) {
        let at = self.first + position * self.layer.heads * self.layer.head_dim;
        for (channel, to) in to.iter_mut().enumerate() {
            *to = self.bench.source.value(salt, at + channel);
        }
    }
}

impl History for Fed<'_> {
    fn key(&self, position: usize, to: &mut [f32]) {
        self.row(scan::SALTS[0], position, to);
        let round = element::round(ELEMENT);
        let turned = self.layer.tables.rotate(to, position);
        for (to, x) in to.iter_mut().zip(turned) {
            *to = round(x as f32);
        }
    }

    fn value(&self, position: usize, to: &mut [f32]) {
        self.row(scan::SALTS[1], position, to);
    }
}
