//! Decoding step by step: eager, captured and double-buffered give the same bits.

use super::{Context, no_error, same};
use crate::buffers::{Buffers, i64_bytes};
use crate::element::{self, encode, random};
use crate::failure::Failure;
use crate::model::{Tables, Worst};
use ratplus_graphs::cache::CacheLayout;
use ratplus_graphs::ops::{ElementType, dilated_attention, recurrence_scan};
use ratplus_graphs::pattern::Pattern;
use ratplus_kernels::cuda::{
    AttentionPlan, AttentionShape, CudaPlan, Device, DevicePtr, Graph, ScanPlan, ScanShape, Stream,
};

const BATCH: usize = 2;
const STEPS: usize = 1000;
/// Heads: one is dense, one has few slots and a window, one a window only.
const PATTERNS: [(i64, i64, i64); 3] = [(1, 0, 0), (4, 40, 3), (-1, 300, 2)];

/// Every element type and head_dim.
pub fn run(context: &mut Context) -> Result<(), Failure> {
    let bf16 = [ElementType::BF16];
    let elements: &[_] = if context.quick { &bf16 } else { &element::ALL };
    let dims = context.some(&[64, 128], 1);
    for &element in elements {
        let steps = if context.quick { 40 } else { STEPS };
        let name = format!("{steps} decode steps {}", element::name(element));
        context.line(&name, dims, |context, &dim| {
            check(context, element, dim, steps)
        })?;
    }
    Ok(())
}

fn check(
    context: &Context,
    element: ElementType,
    head_dim: usize,
    steps: usize,
) -> Result<Worst, Failure> {
    let device = context.device;
    let name = format!("steps {element:?} {head_dim}");
    let stream = device.stream()?;
    let make = || Layer::new(device, element, head_dim, steps + 10);
    let [eager, captured, swapped] = [make()?, make()?, make()?];
    let layers = [&eager, &captured, &swapped];
    let mut graph: Option<Graph> = None;
    let mut rng = context.rng(&name);
    for step in 0..steps {
        let inputs = [(); 4].map(|()| {
            let values = random(element, &mut rng, eager.elements(), 2.0);
            encode(element, &values)
        });
        let lengths = lengths(step, steps);
        for layer in layers {
            for (address, values) in layer.inputs.into_iter().zip(&inputs) {
                layer.buffers.write(address, values)?;
            }
            for (address, values) in layer.lengths.into_iter().zip(&lengths) {
                layer.buffers.write(address, &i64_bytes(values))?;
            }
        }
        eager.launch([0, 0], stream.stream())?;
        swapped.launch([step % 2, 1 - step % 2], stream.stream())?;
        if graph.is_none() {
            let capture = stream.capture()?;
            captured.launch([0, 0], stream.stream())?;
            graph = Some(capture.end()?);
        }
        if let Some(graph) = &mut graph {
            // SAFETY: the layer's memory outlives the graph's last launch, which the reads below
            // wait for.
            unsafe { graph.launch(stream.stream())? };
        }
        stream.synchronize()?;
        let want = eager.buffers.read(eager.output, eager.bytes())?;
        for (layer, way) in layers.into_iter().zip(["eager", "captured", "swapped"]) {
            let got = layer.buffers.read(layer.output, layer.bytes())?;
            same(
                &want,
                &got,
                &format!("{name}: {way}, output of step {step}"),
            )?;
        }
    }
    // The double-buffered one ends on the first side after an even number of steps.
    for which in 0..2 {
        let state = |layer: &Layer| {
            let bytes = layer.elements() * size_of::<f32>();
            layer.buffers.read(layer.state[0][which], bytes)
        };
        let cache = |layer: &Layer| {
            layer
                .buffers
                .read(layer.cache[0][which], layer.cache_bytes())
        };
        let (want_state, want_cache) = (state(&eager)?, cache(&eager)?);
        for (layer, way) in layers.into_iter().zip(["eager", "captured", "swapped"]) {
            same(
                &want_state,
                &state(layer)?,
                &format!("{name}: {way}, state"),
            )?;
            same(
                &want_cache,
                &cache(layer)?,
                &format!("{name}: {way}, cache"),
            )?;
        }
    }
    no_error(device, &name)?;
    Ok(Worst::default())
}

/// Both slots' `past_length`, then `seq_length`. The second starts later, idles at times and
/// starts over once.
fn lengths(step: usize, steps: usize) -> [[i64; 2]; 2] {
    let (start, again) = (steps * 3 / 100, steps / 2);
    let begin = if step >= again { again } else { start };
    let second = match step.checked_sub(begin) {
        None => (0, 0),
        Some(past) => (past as i64, i64::from(step % 7 != 3)),
    };
    [[step as i64, second.0], [1, second.1]]
}

/// A layer's two operators, with memory of their own.
struct Layer {
    buffers: Buffers,
    scan: ScanPlan,
    attention: AttentionPlan,
    layout: CacheLayout,
    element: ElementType,
    head_dim: usize,
    /// Query, key, value, gate of one token a sequence.
    inputs: [DevicePtr; 4],
    lengths: [DevicePtr; 2],
    tables: [DevicePtr; 2],
    gated: [DevicePtr; 2],
    output: DevicePtr,
    /// Both sides of key and value; the second is used without in-place updates only.
    state: [[DevicePtr; 2]; 2],
    cache: [[DevicePtr; 2]; 2],
    workspace: [DevicePtr; 2],
}

impl Layer {
    fn new(
        device: &'static Device,
        element: ElementType,
        head_dim: usize,
        max_seq_len: usize,
    ) -> Result<Self, Failure> {
        let patterns = PATTERNS.map(|(d, w, i)| Pattern::new(d, w, i));
        let patterns: Vec<_> = patterns
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(Failure::wrong)?;
        let layout = CacheLayout::new(&patterns, max_seq_len);
        let channels = patterns.len() * head_dim;
        let scan = ScanPlan::new(
            device,
            ScanShape {
                element,
                batch: BATCH,
                seq_len: 1,
                channels,
            },
        )?;
        let shape = AttentionShape {
            element,
            batch: BATCH,
            seq_len: 1,
            group: 1,
            head_dim,
            scale: 0.125,
        };
        let attention = AttentionPlan::new(device, shape, &layout)?;
        let mut buffers = Buffers::new(device);
        let tables = Tables::new(head_dim, max_seq_len);
        let token = BATCH * channels * element.size();
        let rows = BATCH * layout.rows() * head_dim * element.size();
        let state = BATCH * channels * size_of::<f32>();
        let mut several = |count: usize, bytes: usize| -> Result<Vec<DevicePtr>, Failure> {
            (0..count).map(|_| buffers.poisoned(bytes)).collect()
        };
        let inputs = several(4, token)?;
        let lengths = several(2, 8 * BATCH)?;
        let gated = several(2, token)?;
        let output = several(1, token)?[0];
        let states = several(4, state)?;
        let caches = several(4, rows)?;
        let tables = [
            buffers.upload(&encode(ElementType::F32, &tables.cos))?,
            buffers.upload(&encode(ElementType::F32, &tables.sin))?,
        ];
        let workspace = [
            buffers.poisoned(scan.workspace_bytes())?,
            buffers.poisoned(attention.workspace_bytes())?,
        ];
        Ok(Self {
            inputs: [inputs[0], inputs[1], inputs[2], inputs[3]],
            lengths: [lengths[0], lengths[1]],
            gated: [gated[0], gated[1]],
            state: [[states[0], states[1]], [states[2], states[3]]],
            cache: [[caches[0], caches[1]], [caches[2], caches[3]]],
            buffers,
            scan,
            attention,
            layout,
            element,
            head_dim,
            tables,
            output,
            workspace,
        })
    }

    fn elements(&self) -> usize {
        BATCH * PATTERNS.len() * self.head_dim
    }

    fn bytes(&self) -> usize {
        self.elements() * self.element.size()
    }

    fn cache_bytes(&self) -> usize {
        BATCH * self.layout.rows() * self.head_dim * self.element.size()
    }

    /// Launches one step that reads side `from` and writes side `to`.
    fn launch(&self, [from, to]: [usize; 2], stream: Stream) -> Result<(), Failure> {
        let [query, key, value, gate] = self.inputs;
        let [past_length, seq_length] = self.lengths;
        let [gated_key, gated_value] = self.gated;
        let scan_inputs = recurrence_scan::Inputs {
            key,
            value,
            gate,
            state_key: self.state[from][0],
            state_value: self.state[from][1],
            past_length,
            seq_length,
        };
        let scan_outputs = recurrence_scan::Outputs {
            gated_key,
            gated_value,
            new_state_key: self.state[to][0],
            new_state_value: self.state[to][1],
        };
        let attention_inputs = dilated_attention::Inputs {
            query,
            key: gated_key,
            value: gated_value,
            past_key: self.cache[from][0],
            past_value: self.cache[from][1],
            past_length,
            seq_length,
            cos: self.tables[0],
            sin: self.tables[1],
        };
        let attention_outputs = dilated_attention::Outputs {
            output: self.output,
            present_key: self.cache[to][0],
            present_value: self.cache[to][1],
        };
        let [scan, attention] = self.workspace;
        // SAFETY: the buffers have the shapes of the plans and live as long as the layer,
        // whose work is waited for before it goes; the context is current on this thread.
        unsafe {
            self.scan
                .launch(&scan_inputs, &scan_outputs, scan, 1, stream)?;
            self.attention
                .launch(&attention_inputs, &attention_outputs, attention, 2, stream)?;
        }
        Ok(())
    }
}
