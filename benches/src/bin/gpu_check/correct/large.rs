//! Sizes that fill a GPU, against the CPU kernels and against themselves: what depends on the
//! order in which blocks arrive shows here.

use super::{Context, no_error, same};
use crate::buffers::Buffers;
use crate::element::{self, decode, encode, random};
use crate::failure::Failure;
use crate::model::{Tables, Worst};
use crate::parallel::Threads;
use half::bf16;
use ratplus_graphs::cache::CacheLayout;
use ratplus_graphs::ops::{ElementType, dilated_attention, recurrence_scan};
use ratplus_graphs::pattern::Pattern;
use ratplus_kernels::cuda::{
    AttentionMethod, AttentionPlan, AttentionShape, CudaError, CudaPlan, ScanMethod, ScanPlan,
    ScanShape, Stream,
};
use ratplus_kernels::{AttentionParams, ScanParams};

const ELEMENT: ElementType = ElementType::BF16;

/// Both operators.
pub fn run(context: &mut Context) -> Result<(), Failure> {
    for method in [ScanMethod::SinglePass, ScanMethod::ThreeLaunches] {
        let shapes: &[_] = if context.quick {
            &[(1, 1500, 64)]
        } else {
            &[(1, 65536, 256), (8, 8192, 2048), (3, 12345, 1032)]
        };
        let name = format!("many times: scan {method:?}");
        context.line(&name, shapes, |context, &(batch, seq_len, channels)| {
            let shape = ScanShape {
                element: ELEMENT,
                batch,
                seq_len,
                channels,
            };
            scan(context, shape, method)
        })?;
    }
    let chunks: &[_] = if context.quick {
        &[(0, 200)]
    } else {
        &[(0, 4096), (3000, 2500)]
    };
    let steps: &[_] = if context.quick {
        &[(1200, 1)]
    } else {
        &[(32767, 1), (8190, 1)]
    };
    for (method, shapes) in [
        (AttentionMethod::Tiles, chunks),
        (AttentionMethod::SmallTiles, chunks),
        (AttentionMethod::Hopper, chunks),
        (AttentionMethod::SmallHopper, chunks),
        (AttentionMethod::Decode, steps),
    ] {
        let name = format!("many times: attention {method:?}");
        let probe = Attention::new(context, method, shapes[0], 1)?;
        match probe.plan(context) {
            Err(why @ CudaError::WrongArchitecture { .. }) => context.skip(&name, &why),
            _ => context.line(&name, shapes, |context, &lengths| {
                let batch = if context.quick { 1 } else { 2 };
                Attention::new(context, method, lengths, batch)?.check(context)
            })?,
        }
    }
    Ok(())
}

fn repeats(context: &Context) -> usize {
    if context.quick { 2 } else { 20 }
}

fn narrow(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&x| bf16::from_f32(x)).collect()
}

/// Both results came from bf16 through f32 arithmetic: each is off by half a unit in the last
/// place and the arithmetic.
fn bound(want: f32, more: f64) -> f64 {
    2.0 * element::unit(ELEMENT) * f64::from(want).abs() + 4e-5 + more
}

fn scan(context: &Context, shape: ScanShape, method: ScanMethod) -> Result<Worst, Failure> {
    let name = format!("{method:?} {shape:?}");
    let mut rng = context.rng(&name);
    let ScanShape {
        batch,
        seq_len,
        channels,
        ..
    } = shape;
    let count = batch * seq_len * channels;
    let tokens = [2.0, 2.0, 4.0].map(|limit| random(ELEMENT, &mut rng, count, limit));
    let mut buffers = Buffers::new(context.device);
    let (past, seq) = (vec![0; batch], vec![seq_len as i64; batch]);
    let bytes = count * ELEMENT.size();
    let state = batch * channels * size_of::<f32>();
    let inputs = recurrence_scan::Inputs {
        key: buffers.upload(&encode(ELEMENT, &tokens[0]))?,
        value: buffers.upload(&encode(ELEMENT, &tokens[1]))?,
        gate: buffers.upload(&encode(ELEMENT, &tokens[2]))?,
        state_key: buffers.poisoned(state)?,
        state_value: buffers.poisoned(state)?,
        past_length: buffers.upload_i64(&past)?,
        seq_length: buffers.upload_i64(&seq)?,
    };
    let outputs = recurrence_scan::Outputs {
        gated_key: buffers.poisoned(bytes)?,
        gated_value: buffers.poisoned(bytes)?,
        new_state_key: buffers.poisoned(state)?,
        new_state_value: buffers.poisoned(state)?,
    };
    let plan = ScanPlan::with_method(context.device, shape, method)?;
    let workspace = buffers.poisoned(plan.workspace_bytes())?;
    let mut first = None;
    for repeat in 0..repeats(context) {
        // SAFETY: every tensor and the workspace have the plan's sizes and outlive the reads
        // below, which wait for the work; `Device::open` made the context current on this thread.
        unsafe { plan.launch(&inputs, &outputs, workspace, 7, Stream::DEFAULT)? };
        let gated = [
            buffers.read(outputs.gated_key, bytes)?,
            buffers.read(outputs.gated_value, bytes)?,
        ];
        let first = first.get_or_insert_with(|| gated.clone());
        for which in 0..2 {
            same(
                &first[which],
                &gated[which],
                &format!("{name}: run {repeat}"),
            )?;
        }
    }
    no_error(context.device, &name)?;
    let [key, value, gate] = tokens.each_ref().map(|values| narrow(values));
    let mut gated = [vec![bf16::NAN; count], vec![bf16::NAN; count]];
    let mut states = [(); 2].map(|()| vec![0f32; batch * channels]);
    let params = ScanParams {
        batch,
        seq_len,
        max_seq_len: None,
        channels,
        key: key.as_ptr(),
        value: value.as_ptr(),
        gate: gate.as_ptr(),
        state_key: states[0].as_mut_ptr().cast_const(),
        state_value: states[1].as_mut_ptr().cast_const(),
        past_length: past.as_ptr(),
        seq_length: seq.as_ptr(),
        gated_key: gated[0].as_mut_ptr(),
        gated_value: gated[1].as_mut_ptr(),
        new_state_key: states[0].as_mut_ptr(),
        new_state_value: states[1].as_mut_ptr(),
    };
    // SAFETY: every vector has its tensor's size; the states are in place.
    unsafe { ratplus_kernels::recurrence_scan(&params, &Threads) }.map_err(Failure::wrong)?;
    let mut worst = Worst::default();
    for (got, want) in first.iter().flatten().zip(&gated) {
        let mut got = decode(ELEMENT, got);
        context.plant(&mut got);
        for (index, (&got, want)) in got.iter().zip(want).enumerate() {
            let want = want.to_f32();
            worst.see(got, want.into(), bound(want, 0.0), || {
                format!("{name}: element {index}")
            });
        }
    }
    Ok(worst)
}

/// One call of the attention and its inputs.
struct Attention {
    shape: AttentionShape,
    method: AttentionMethod,
    layout: CacheLayout,
    past: Vec<i64>,
    chunk: [Vec<f32>; 3],
    /// Every row is written: rows that the layout does not use are not read.
    cache: [Vec<f32>; 2],
}

impl Attention {
    fn new(
        context: &Context,
        method: AttentionMethod,
        (past, seq_len): (usize, usize),
        batch: usize,
    ) -> Result<Self, Failure> {
        let raw = [(1, 0, 0), (16, 0, 4), (16, 256, 4), (64, 0, 4)];
        let patterns = raw.map(|(d, w, i)| Pattern::new(d, w, i));
        let patterns: Vec<_> = patterns
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(Failure::wrong)?;
        let layout = CacheLayout::new(&patterns, past + seq_len);
        let head_dim = 128;
        let mut rng = context.rng(&format!("{method:?} {past} {seq_len} {batch}"));
        let count = batch * seq_len * patterns.len() * head_dim;
        let rows = batch * layout.rows() * head_dim;
        Ok(Self {
            shape: AttentionShape {
                element: ELEMENT,
                batch,
                seq_len,
                group: 1,
                head_dim,
                scale: 1.0 / (head_dim as f32).sqrt(),
            },
            method,
            layout,
            past: vec![past as i64; batch],
            chunk: [(); 3].map(|()| random(ELEMENT, &mut rng, count, 2.0)),
            cache: [(); 2].map(|()| random(ELEMENT, &mut rng, rows, 2.0)),
        })
    }

    fn plan(&self, context: &Context) -> Result<AttentionPlan, CudaError> {
        AttentionPlan::with_method(context.device, self.shape, &self.layout, self.method)
    }

    fn check(&self, context: &Context) -> Result<Worst, Failure> {
        let AttentionShape {
            batch,
            seq_len,
            head_dim,
            scale,
            ..
        } = self.shape;
        let name = format!("{:?} {:?} past {:?}", self.method, self.shape, self.past);
        let tables = Tables::new(head_dim, self.layout.max_seq_len());
        let seq = vec![seq_len as i64; batch];
        let mut buffers = Buffers::new(context.device);
        let [query, key, value] = self.chunk.each_ref().map(|tensor| encode(ELEMENT, tensor));
        let [past_key, past_value] = self.cache.each_ref().map(|cache| encode(ELEMENT, cache));
        let inputs = dilated_attention::Inputs {
            query: buffers.upload(&query)?,
            key: buffers.upload(&key)?,
            value: buffers.upload(&value)?,
            past_key: buffers.upload(&past_key)?,
            past_value: buffers.upload(&past_value)?,
            past_length: buffers.upload_i64(&self.past)?,
            seq_length: buffers.upload_i64(&seq)?,
            cos: buffers.upload(&encode(ElementType::F32, &tables.cos))?,
            sin: buffers.upload(&encode(ElementType::F32, &tables.sin))?,
        };
        let outputs = dilated_attention::Outputs {
            output: buffers.poisoned(query.len())?,
            present_key: buffers.poisoned(past_key.len())?,
            present_value: buffers.poisoned(past_key.len())?,
        };
        let plan = self.plan(context)?;
        let workspace = buffers.poisoned(plan.workspace_bytes())?;
        let mut first = None;
        for repeat in 0..repeats(context) {
            // SAFETY: every tensor and the workspace have the plan's sizes and outlive the reads
            // below, which wait for the work; the context is current on this thread.
            unsafe { plan.launch(&inputs, &outputs, workspace, 7, Stream::DEFAULT)? };
            let output = buffers.read(outputs.output, query.len())?;
            let first = first.get_or_insert_with(|| output.clone());
            same(first, &output, &format!("{name}: run {repeat}"))?;
        }
        no_error(context.device, &name)?;

        let [query, key, value] = self.chunk.each_ref().map(|tensor| narrow(tensor));
        let [mut cached_key, mut cached_value] = self.cache.each_ref().map(|cache| narrow(cache));
        let mut output = vec![bf16::NAN; query.len()];
        let params = AttentionParams {
            layout: &self.layout,
            num_heads: self.layout.heads().len(),
            scale,
            batch,
            seq_len,
            head_dim,
            query: query.as_ptr(),
            key: key.as_ptr(),
            value: value.as_ptr(),
            past_key: cached_key.as_mut_ptr().cast_const(),
            past_value: cached_value.as_mut_ptr().cast_const(),
            past_length: self.past.as_ptr(),
            seq_length: seq.as_ptr(),
            cos: tables.cos.as_ptr(),
            sin: tables.sin.as_ptr(),
            output: output.as_mut_ptr(),
            present_key: cached_key.as_mut_ptr(),
            present_value: cached_value.as_mut_ptr(),
            workspace: std::ptr::null_mut(),
        };
        // SAFETY: every vector has its tensor's size; the cache is in place.
        unsafe { ratplus_kernels::dilated_attention(&params, &Threads) }.map_err(Failure::wrong)?;
        let mut got = decode(ELEMENT, &first.unwrap_or_default());
        context.plant(&mut got);
        // Rounded weights and queries move an output by a share of the values, which are up to 2;
        // the f64 model bounds that row by row at smaller sizes.
        let tiles = if self.method == AttentionMethod::Decode {
            0.5
        } else {
            4.0
        };
        let more = tiles * 2.0 * element::unit(ELEMENT);
        let mut worst = Worst::default();
        for (index, (&got, want)) in got.iter().zip(&output).enumerate() {
            let want = want.to_f32();
            worst.see(got, want.into(), bound(want, more), || {
                format!("{name}: element {index}")
            });
        }
        Ok(worst)
    }
}
