//! `DilatedAttention` on random chunks, a chunk after a random past.

use super::{Context, no_error, same};
use crate::buffers::{Buffers, POISON};
use crate::element::{self, decode, encode, random};
use crate::failure::Failure;
use crate::model::{Answer, History, Tables, Worst, attend};
use crate::parallel;
use ratplus_graphs::cache::CacheLayout;
use ratplus_graphs::ops::{DilatedAttention, ElementType, dilated_attention};
use ratplus_graphs::pattern::Pattern;
use ratplus_kernels::cuda::{
    AttentionMethod, AttentionPlan, AttentionShape, CudaError, CudaPlan, Device, Stream,
};
use ratplus_reference::{Input, Rounding, exact};

/// Errors of f32 arithmetic on values of up to 2.
const ARITHMETIC: f64 = 2e-5;

struct Case {
    shape: AttentionShape,
    method: AttentionMethod,
    patterns: Vec<(i64, i64, i64)>,
    max_seq_len: usize,
    /// `past_length` and `seq_length` of every slot.
    lengths: Vec<(usize, usize)>,
}

/// A method with every element type and head_dim that it takes.
pub fn run(context: &mut Context, method: AttentionMethod) -> Result<(), Failure> {
    let (elements, dims): (&[ElementType], &[usize]) = match method {
        AttentionMethod::Decode => (&element::ALL, &[128, 64]),
        AttentionMethod::Any => (&element::ALL, &[80, 128, 6, 256, 512]),
        _ => (&element::ALL[1..], &[128, 64]),
    };
    for &head_dim in context.some(dims, 2) {
        for &element in elements {
            let name = format!(
                "attention {method:?} {} of {head_dim}",
                element::name(element)
            );
            let cases = cases(context, method, element, head_dim);
            let layout = CacheLayout::new(&[Pattern::DENSE], 1);
            match AttentionPlan::with_method(context.device, cases[0].shape, &layout, method) {
                Err(why @ CudaError::WrongArchitecture { .. }) => context.skip(&name, &why),
                _ => context.line(&name, &cases, check)?,
            }
        }
    }
    Ok(())
}

/// Heads that keep what others do not; one pattern for all heads; no window anywhere.
fn head_patterns() -> [Vec<(i64, i64, i64)>; 3] {
    [
        vec![(1, 0, 0), (16, 0, 4), (4, 70, 0), (-1, 33, 5)],
        vec![(16, 0, 4); 2],
        vec![(1, 0, 0), (64, 256, 4)],
    ]
}

fn cases(
    context: &Context,
    method: AttentionMethod,
    element: ElementType,
    head_dim: usize,
) -> Vec<Case> {
    let seq_lens: &[usize] = match method {
        AttentionMethod::Decode => &[1],
        AttentionMethod::Any if head_dim > 128 => &[7, 1, 130],
        _ => &[130, 7, 1, 64, 1000],
    };
    let pasts: &[usize] = match method {
        AttentionMethod::Decode => &[300, 0, 16, 1999],
        _ => &[0, 150, 1100],
    };
    let mut cases = Vec::new();
    let patterns = head_patterns();
    for &seq_len in context.some(seq_lens, 2) {
        for &past in context.some(pasts, 2) {
            if seq_len == 1000 && past > 1000 {
                continue;
            }
            for (index, patterns) in context.some(&patterns, 1).iter().enumerate() {
                // The emulator takes a second for a long tile.
                let batch = if index > 0 || (context.quick && seq_len > 64) {
                    1
                } else {
                    3
                };
                let all = [(past, seq_len), (past / 2, seq_len.div_ceil(2)), (past, 0)];
                cases.push(Case {
                    shape: AttentionShape {
                        element,
                        batch,
                        seq_len,
                        group: 1,
                        head_dim,
                        scale: 1.0 / (head_dim as f32).sqrt(),
                    },
                    method,
                    patterns: patterns.clone(),
                    max_seq_len: past + seq_len + 9,
                    lengths: all[..batch].to_vec(),
                });
            }
        }
    }
    cases
}

/// Everything that goes in.
struct Inputs {
    layout: CacheLayout,
    tables: Tables,
    /// Query, key, value `[B, L, H * dh]`.
    chunk: [Vec<f32>; 3],
    /// Rotated keys, and values, of the past: for each slot `[past, H * dh]`.
    past: [Vec<Vec<f32>>; 2],
    /// `[B, R, dh]`; rows that nothing was written to are not numbers.
    cache: [Vec<f32>; 2],
}

impl Inputs {
    fn new(context: &Context, case: &Case, name: &str) -> Result<Self, Failure> {
        let AttentionShape {
            element,
            batch,
            seq_len,
            head_dim,
            ..
        } = case.shape;
        let patterns = case.patterns.iter().map(|&(d, w, i)| Pattern::new(d, w, i));
        let patterns: Vec<_> = patterns.collect::<Result<_, _>>().map_err(Failure::wrong)?;
        let layout = CacheLayout::new(&patterns, case.max_seq_len);
        let width = patterns.len() * head_dim;
        let mut rng = context.rng(name);
        let mut chunk = [(); 3].map(|()| random(element, &mut rng, batch * seq_len * width, 2.0));
        let past = [(); 2].map(|()| {
            let slots = case.lengths.iter();
            slots
                .map(|&(past, _)| random(element, &mut rng, past * width, 2.0))
                .collect::<Vec<_>>()
        });
        let mut cache = [(); 2].map(|()| vec![f32::NAN; batch * layout.rows() * head_dim]);
        for (slot, &(length, tokens)) in case.lengths.iter().enumerate() {
            for tensor in &mut chunk {
                let padding = (slot * seq_len + tokens) * width..(slot + 1) * seq_len * width;
                tensor[padding].fill(f32::NAN);
            }
            for (index, head) in layout.heads().iter().enumerate() {
                for row in 0..head.rows {
                    let Some(position) = head.position_of_row(row, length) else {
                        continue;
                    };
                    let to = (slot * layout.rows() + head.offset + row) * head_dim;
                    let from = position * width + index * head_dim;
                    for which in 0..2 {
                        cache[which][to..to + head_dim]
                            .copy_from_slice(&past[which][slot][from..from + head_dim]);
                    }
                }
            }
        }
        let tables = Tables::new(head_dim, case.max_seq_len);
        Ok(Self {
            layout,
            tables,
            chunk,
            past,
            cache,
        })
    }
}

struct Results {
    output: Vec<u8>,
    cache: [Vec<u8>; 2],
}

fn check(context: &Context, case: &Case) -> Result<Worst, Failure> {
    let name = format!(
        "{:?} {:?} {:?} {:?}",
        case.method, case.shape, case.patterns, case.lengths
    );
    let inputs = Inputs::new(context, case, &name)?;
    let plan = AttentionPlan::with_method(context.device, case.shape, &inputs.layout, case.method)?;
    let results = launch(context.device, &plan, case, &inputs, false)?;
    no_error(context.device, &name)?;
    for repeat in 0..if context.quick { 1 } else { 3 } {
        let again = launch(context.device, &plan, case, &inputs, repeat % 2 == 0)?;
        let place = format!("{name}, repeated");
        same(&results.output, &again.output, &place)?;
        for which in 0..2 {
            same(&results.cache[which], &again.cache[which], &place)?;
        }
    }
    let mut got = decode(case.shape.element, &results.output);
    context.plant(&mut got);
    let mut worst = Worst::default();
    let heads = case.patterns.len();
    let found: Vec<Result<_, Failure>> = parallel::map(case.lengths.len() * heads, |task| {
        let head = Head::new(case, &inputs, task / heads, task % heads);
        let mut worst = Worst::default();
        head.compare_outputs(&got, &name, &mut worst)?;
        head.compare_cache(&results, &name, &mut worst)?;
        Ok(worst)
    });
    for head in found {
        worst.merge(head?);
    }
    Ok(worst)
}

fn launch(
    device: &'static Device,
    plan: &AttentionPlan,
    case: &Case,
    inputs: &Inputs,
    in_place: bool,
) -> Result<Results, Failure> {
    let element = case.shape.element;
    let mut buffers = Buffers::new(device);
    let [query, key, value] = inputs
        .chunk
        .each_ref()
        .map(|tensor| encode(element, tensor));
    let [old_key, old_value] = inputs
        .cache
        .each_ref()
        .map(|cache| cache_bytes(element, cache));
    let (chunk, cache) = (query.len(), old_key.len());
    let past: Vec<i64> = case
        .lengths
        .iter()
        .map(|lengths| lengths.0 as i64)
        .collect();
    let seq: Vec<i64> = case
        .lengths
        .iter()
        .map(|lengths| lengths.1 as i64)
        .collect();
    let old = [buffers.upload(&old_key)?, buffers.upload(&old_value)?];
    let new = match in_place {
        true => old,
        false => [buffers.poisoned(cache)?, buffers.poisoned(cache)?],
    };
    let inputs = dilated_attention::Inputs {
        query: buffers.upload(&query)?,
        key: buffers.upload(&key)?,
        value: buffers.upload(&value)?,
        past_key: old[0],
        past_value: old[1],
        past_length: buffers.upload_i64(&past)?,
        seq_length: buffers.upload_i64(&seq)?,
        cos: buffers.upload(&encode(ElementType::F32, &inputs.tables.cos))?,
        sin: buffers.upload(&encode(ElementType::F32, &inputs.tables.sin))?,
    };
    let outputs = dilated_attention::Outputs {
        output: buffers.poisoned(chunk)?,
        present_key: new[0],
        present_value: new[1],
    };
    let workspace = buffers.poisoned(plan.workspace_bytes())?;
    // SAFETY: every tensor and the workspace have the plan's sizes and outlive the reads below,
    // which wait for the work; `Device::open` made the context current on this thread.
    unsafe { plan.launch(&inputs, &outputs, workspace, 7, Stream::DEFAULT)? };
    Ok(Results {
        output: buffers.read(outputs.output, chunk)?,
        cache: [buffers.read(new[0], cache)?, buffers.read(new[1], cache)?],
    })
}

/// A cache whose unwritten rows are all ones, bit by bit.
fn cache_bytes(element: ElementType, cache: &[f32]) -> Vec<u8> {
    let mut bytes = encode(element, cache);
    for (value, bytes) in cache.iter().zip(bytes.chunks_exact_mut(element.size())) {
        if value.is_nan() {
            bytes.fill(POISON);
        }
    }
    bytes
}

/// One head of one slot.
struct Head<'a> {
    case: &'a Case,
    inputs: &'a Inputs,
    slot: usize,
    index: usize,
    past: usize,
    tokens: usize,
    /// Rotated keys of the chunk, rounded.
    keys: Vec<Vec<f32>>,
}

impl<'a> Head<'a> {
    fn new(case: &'a Case, inputs: &'a Inputs, slot: usize, index: usize) -> Self {
        let (past, tokens) = case.lengths[slot];
        let mut head = Self {
            case,
            inputs,
            slot,
            index,
            past,
            tokens,
            keys: Vec::new(),
        };
        let round = element::round(case.shape.element);
        let turned = (0..tokens).map(|token| {
            let key = inputs.tables.rotate(head.token(1, token), past + token);
            key.into_iter().map(|x| round(x as f32)).collect()
        });
        head.keys = turned.collect();
        head
    }

    fn at(&self, token: usize) -> usize {
        let (width, dim) = (self.case.patterns.len(), self.case.shape.head_dim);
        ((self.slot * self.case.shape.seq_len + token) * width + self.index) * dim
    }

    /// Of the query, key or value.
    fn token(&self, tensor: usize, token: usize) -> &'a [f32] {
        &self.inputs.chunk[tensor][self.at(token)..][..self.case.shape.head_dim]
    }

    fn pattern(&self) -> Pattern {
        self.inputs.layout.heads()[self.index].pattern
    }

    /// The reference's outputs `[tokens, dh]`, f32 without the rounding to the element type. What
    /// is rotated is given to it rotated, so that keys alone are rounded.
    fn reference(&self) -> Result<Vec<f32>, Failure> {
        let dim = self.case.shape.head_dim;
        let max_seq_len = self.case.max_seq_len;
        let queries = (0..self.tokens).flat_map(|token| {
            let position = self.past + token;
            self.inputs.tables.rotate(self.token(0, token), position)
        });
        let query: Vec<f32> = queries.map(|x| x as f32).collect();
        let value: Vec<f32> = (0..self.tokens)
            .flat_map(|token| self.token(2, token).to_vec())
            .collect();
        let head = self.inputs.layout.heads()[self.index];
        let first = (self.slot * self.inputs.layout.rows() + head.offset) * dim;
        let rows = first..first + head.rows * dim;
        let scale = self.case.shape.scale;
        let operator = DilatedAttention::ungrouped(vec![self.pattern()], scale);
        let keys = self.keys.concat();
        let (past, seq) = ([self.past as i64], [self.tokens as i64]);
        let ones = vec![1.0; max_seq_len * dim / 2];
        let zeros = vec![0.0; max_seq_len * dim / 2];
        let tokens = |values| Input::f32s([1, self.tokens, dim], values);
        let cached = |values| Input::f32s([1, head.rows, dim], values);
        let inputs = dilated_attention::Inputs {
            query: tokens(&query),
            key: tokens(&keys),
            value: tokens(&value),
            past_key: cached(&self.inputs.cache[0][rows.clone()]),
            past_value: cached(&self.inputs.cache[1][rows]),
            past_length: Input::i64s([1], &past),
            seq_length: Input::i64s([1], &seq),
            cos: Input::f32s([max_seq_len, dim / 2], &ones),
            sin: Input::f32s([max_seq_len, dim / 2], &zeros),
        };
        let outputs = ratplus_reference::run(&operator, inputs, Rounding::uniform(exact));
        Ok(outputs.map_err(Failure::wrong)?.output)
    }

    fn answer(&self, token: usize) -> Answer {
        let position = self.past + token;
        let query = self.inputs.tables.rotate(self.token(0, token), position);
        let round = element::round(self.case.shape.element);
        attend(
            self.pattern(),
            self.case.shape.scale,
            &query,
            position,
            self,
            round,
        )
    }

    fn compare_outputs(&self, got: &[f32], name: &str, worst: &mut Worst) -> Result<(), Failure> {
        let AttentionShape {
            element,
            seq_len,
            head_dim,
            ..
        } = self.case.shape;
        let want = match self.tokens {
            0 => Vec::new(),
            _ => self.reference()?,
        };
        let unit = element::unit(element);
        let tiles = !matches!(
            self.case.method,
            AttentionMethod::Decode | AttentionMethod::Any
        );
        for token in 0..seq_len {
            let mut tolerance = ARITHMETIC;
            if element != ElementType::F32 {
                // A rotated key may round to the other neighbour when f32 and f64 differ.
                tolerance += unit;
            }
            if tiles && token < self.tokens {
                tolerance += 2.0 * self.answer(token).naive_error;
            }
            let own = &got[self.at(token)..][..head_dim];
            for (channel, &got) in own.iter().enumerate() {
                // Padding is zero and nothing else.
                let (want, bound) = match want.get(token * head_dim + channel) {
                    Some(&want) => (f64::from(want), unit * f64::from(want).abs() + tolerance),
                    None => (0.0, f64::MIN_POSITIVE),
                };
                worst.see(got, want, bound, || {
                    let (slot, index) = (self.slot, self.index);
                    format!("{name}: slot {slot} token {token} head {index} channel {channel}")
                });
            }
        }
        Ok(())
    }

    /// Rows hold what the layout says; all others are as before.
    fn compare_cache(
        &self,
        results: &Results,
        name: &str,
        worst: &mut Worst,
    ) -> Result<(), Failure> {
        let AttentionShape {
            element, head_dim, ..
        } = self.case.shape;
        let size = head_dim * element.size();
        let unit = element::unit(element);
        let head = self.inputs.layout.heads()[self.index];
        for row in 0..head.rows {
            let row_of_all = self.slot * self.inputs.layout.rows() + head.offset + row;
            let [key, value] = results
                .cache
                .each_ref()
                .map(|cache| &cache[row_of_all * size..][..size]);
            let place = format!("{name}: slot {} head {} row {row}", self.slot, self.index);
            let written = head
                .position_of_row(row, self.past + self.tokens)
                .filter(|&position| position >= self.past);
            let Some(position) = written else {
                for (which, got) in [key, value].into_iter().enumerate() {
                    let before = &self.inputs.cache[which][row_of_all * head_dim..][..head_dim];
                    same(got, &cache_bytes(element, before), &place)?;
                }
                continue;
            };
            let token = position - self.past;
            same(value, &encode(element, self.token(2, token)), &place)?;
            for (&got, &want) in decode(element, key).iter().zip(&self.keys[token]) {
                let want = f64::from(want);
                worst.see(got, want, 2.0 * unit * want.abs() + 1e-6, || place.clone());
            }
        }
        Ok(())
    }
}

impl History for Head<'_> {
    fn key(&self, position: usize, to: &mut [f32]) {
        match position.checked_sub(self.past) {
            Some(token) => to.copy_from_slice(&self.keys[token]),
            None => self.past_row(0, position, to),
        }
    }

    fn value(&self, position: usize, to: &mut [f32]) {
        match position.checked_sub(self.past) {
            Some(token) => to.copy_from_slice(self.token(2, token)),
            None => self.past_row(1, position, to),
        }
    }
}

impl Head<'_> {
    fn past_row(&self, which: usize, position: usize, to: &mut [f32]) {
        let at = (position * self.case.patterns.len() + self.index) * to.len();
        to.copy_from_slice(&self.inputs.past[which][self.slot][at..at + to.len()]);
    }
}
