//! `BlockTopKAttention` on random chunks, a chunk after a random past.
//!
//! Queries and keys are quarters, and rotations quarter turns: every score of a block is exact, and there is one
//! right choice.

use super::{Context, no_error, same};
use crate::buffers::Buffers;
use crate::element::{self, decode, encode, random};
use crate::failure::Failure;
use crate::model::Worst;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::blocks::{BlockTopK, Score};
use ratplus_graphs::ops::block_top_k_attention::{Inputs, Outputs};
use ratplus_graphs::ops::{BlockTopKAttention, Definition, ElementType, Inferred, TensorType};
use ratplus_graphs::pattern::Pattern;
use ratplus_kernels::cuda::{BlockTopKPlan, BlockTopKWays, CudaPlan, DevicePtr, Stream};
use ratplus_reference::{Input, Rounding};

/// Errors of f32 arithmetic on values of up to 1.
const ARITHMETIC: f64 = 2e-5;

struct Case {
    operator: BlockTopKAttention,
    element: ElementType,
    head_dim: usize,
    seq_len: usize,
    max_seq_len: usize,
    /// `past_length` and `seq_length` of every slot.
    lengths: Vec<(usize, usize)>,
}

/// Every element type, with rows that lanes share and others.
pub fn run(context: &mut Context) -> Result<(), Failure> {
    for &head_dim in context.some(&[128, 80, 64, 6, 256], 2) {
        for element in element::ALL {
            let cases = cases(context, element, head_dim)?;
            let name = format!("blocks {} of {head_dim}", element::name(element));
            context.line(&name, &cases, check)?;
        }
    }
    Ok(())
}

fn cases(context: &Context, element: ElementType, head_dim: usize) -> Result<Vec<Case>, Failure> {
    let sizes: &[_] = match context.quick {
        true => &[(1, 70), (33, 40)],
        false => &[
            (1, 0),
            (1, 700),
            (7, 129),
            (130, 0),
            (130, 1000),
            (600, 333),
        ],
    };
    let patterns = [
        (16, 3, (-1, 0, 0), [2, 4]),
        (7, 5, (12, 20, 3), [1, 3]),
        (64, 2, (-1, 0, 0), [2, 1]),
        (1, 40, (-1, 9, 0), [1, 2]),
    ];
    let mut cases = Vec::new();
    for &(seq_len, past) in sizes {
        for (size, top_k, (dilation, window, initial), [kv_heads, group]) in
            context.some(&patterns, 2).iter().copied()
        {
            let beside = Pattern::new(dilation, window, initial).map_err(Failure::wrong)?;
            for score in Score::ALL {
                let blocks = BlockTopK::new(size, top_k, score, beside);
                let blocks = blocks.map_err(|errors| Failure::wrong(format!("{errors:?}")))?;
                cases.push(Case {
                    operator: BlockTopKAttention {
                        num_heads: kv_heads * group,
                        num_kv_heads: kv_heads,
                        blocks,
                        scale: 1.0 / (head_dim as f32).sqrt(),
                    },
                    element,
                    head_dim,
                    seq_len,
                    max_seq_len: past + seq_len + 9,
                    lengths: vec![(past, seq_len), (past / 2, seq_len.div_ceil(2)), (past, 0)],
                });
            }
        }
    }
    Ok(cases)
}

/// What a call reads but its lengths.
struct Tensors {
    /// Query, key, value.
    chunk: [Vec<f32>; 3],
    /// Keys, values, summaries.
    state: [Vec<f32>; 3],
}

impl Case {
    fn batch(&self) -> usize {
        self.lengths.len()
    }

    fn widths(&self) -> [usize; 3] {
        let heads = &self.operator;
        [heads.num_heads, heads.num_kv_heads, heads.num_kv_heads].map(|of| of * self.head_dim)
    }

    fn state_rows(&self) -> [usize; 3] {
        let heads = self.operator.num_kv_heads;
        let rows = heads * self.max_seq_len;
        [
            rows,
            rows,
            heads * self.operator.blocks.summary_rows(self.max_seq_len),
        ]
    }

    /// Shapes of the inputs, without the lengths' and the tables' types.
    fn shapes(&self, seq_len: usize) -> Inputs<Vec<usize>> {
        let [width, kv_width, _] = self.widths();
        let [rows, _, summaries] = self.state_rows();
        let (batch, dim) = (self.batch(), self.head_dim);
        let table = vec![self.max_seq_len, dim / 2];
        Inputs {
            query: vec![batch, seq_len, width],
            key: vec![batch, seq_len, kv_width],
            value: vec![batch, seq_len, kv_width],
            past_key: vec![batch, rows, dim],
            past_value: vec![batch, rows, dim],
            past_block: vec![batch, summaries, dim],
            past_length: vec![batch],
            seq_length: vec![batch],
            cos: table.clone(),
            sin: table,
        }
    }

    fn node(&self) -> Result<Inferred, Failure> {
        let shapes = self.shapes(self.seq_len);
        let of = |shape: Vec<usize>| TensorType::new(self.element, shape);
        let float = |shape: Vec<usize>| TensorType::new(ElementType::F32, shape);
        let int = |shape: Vec<usize>| TensorType::new(ElementType::I64, shape);
        let inputs = [
            of(shapes.query),
            of(shapes.key),
            of(shapes.value),
            of(shapes.past_key),
            of(shapes.past_value),
            float(shapes.past_block),
            int(shapes.past_length),
            int(shapes.seq_length),
            float(shapes.cos),
            float(shapes.sin),
        ];
        self.operator.infer(&inputs).map_err(Failure::wrong)
    }

    /// Random tokens, not numbers past each slot's end.
    fn tokens(&self, rng: &mut ChaCha8Rng, seq_len: usize, lengths: &[usize]) -> [Vec<f32>; 3] {
        let mut tensor = 0;
        self.widths().map(|width| {
            let count = self.batch() * seq_len * width;
            let mut values = match tensor {
                2 => random(self.element, rng, count, 1.0),
                _ => (0..count)
                    .map(|_| rng.random_range(-8..=8) as f32 / 4.0)
                    .collect(),
            };
            tensor += 1;
            for (slot, &length) in lengths.iter().enumerate() {
                let padding = (slot * seq_len + length) * width..(slot + 1) * seq_len * width;
                values[padding].fill(f32::NAN);
            }
            values
        })
    }

    /// The reference's outputs, rounded as the operator stores them.
    fn reference(
        &self,
        tensors: &Tensors,
        seq_len: usize,
        past: &[i64],
        seq: &[i64],
        [cos, sin]: &[Vec<f32>; 2],
    ) -> Result<Outputs<Vec<f32>>, Failure> {
        let shapes = self.shapes(seq_len);
        let [query, key, value] = &tensors.chunk;
        let [past_key, past_value, past_block] = &tensors.state;
        let inputs = Inputs {
            query: Input::f32s(shapes.query, query),
            key: Input::f32s(shapes.key, key),
            value: Input::f32s(shapes.value, value),
            past_key: Input::f32s(shapes.past_key, past_key),
            past_value: Input::f32s(shapes.past_value, past_value),
            past_block: Input::f32s(shapes.past_block, past_block),
            past_length: Input::i64s(shapes.past_length, past),
            seq_length: Input::i64s(shapes.seq_length, seq),
            cos: Input::f32s(shapes.cos, cos),
            sin: Input::f32s(shapes.sin, sin),
        };
        let rounding = Rounding::uniform(element::round(self.element));
        ratplus_reference::run(&self.operator, inputs, rounding).map_err(Failure::wrong)
    }

    /// Types of keys, values and summaries.
    fn state_types(&self) -> [ElementType; 3] {
        [self.element, self.element, ElementType::F32]
    }
}

fn check(context: &Context, case: &Case) -> Result<Worst, Failure> {
    let name = format!(
        "{:?} {} of {} x {} {:?}",
        case.element, case.operator.blocks, case.operator.num_heads, case.head_dim, case.lengths
    );
    let mut rng = context.rng(&name);
    let count = case.max_seq_len * case.head_dim / 2;
    let turns: Vec<usize> = (0..count).map(|_| rng.random_range(0..4)).collect();
    let table = |of: [f32; 4]| turns.iter().map(|&turn| of[turn]).collect();
    let tables: [Vec<f32>; 2] = [table([1.0, 0.0, -1.0, 0.0]), table([0.0, 1.0, 0.0, -1.0])];
    let pasts: Vec<usize> = case.lengths.iter().map(|lengths| lengths.0).collect();
    let seqs: Vec<usize> = case.lengths.iter().map(|lengths| lengths.1).collect();
    let [past, seq] = [&pasts, &seqs].map(|of| of.iter().map(|&x| x as i64).collect::<Vec<_>>());

    // The past is the reference's own.
    let longest = pasts.iter().copied().max().unwrap_or(0).max(1);
    let nothing = case
        .state_rows()
        .map(|rows| vec![f32::NAN; case.batch() * rows * case.head_dim]);
    let before = Tensors {
        chunk: case.tokens(&mut rng, longest, &pasts),
        state: nothing,
    };
    let start = vec![0; case.batch()];
    let before = case.reference(&before, longest, &start, &past, &tables)?;
    let tensors = Tensors {
        chunk: case.tokens(&mut rng, case.seq_len, &seqs),
        state: [
            before.present_key,
            before.present_value,
            before.present_block,
        ],
    };
    let want = case.reference(&tensors, case.seq_len, &past, &seq, &tables)?;

    let mut first: Option<Vec<Vec<u8>>> = None;
    for (in_shares, slice, in_place) in [
        (None, None, false),
        (Some(true), Some(1), true),
        (Some(false), Some(5), false),
        (None, None, true),
    ] {
        let ways = BlockTopKWays { in_shares, slice };
        let got = launch(
            context,
            case,
            &tensors,
            [&past, &seq],
            &tables,
            ways,
            in_place,
        )?;
        no_error(context.device, &name)?;
        match &first {
            None => first = Some(got),
            Some(first) => {
                for (one, other) in first.iter().zip(&got) {
                    same(one, other, &format!("{name}, {ways:?}"))?;
                }
            }
        }
    }
    let got = first.unwrap_or_default();
    let mut output = decode(case.element, &got[0]);
    context.plant(&mut output);
    let mut worst = Worst::default();
    let unit = element::unit(case.element);
    for (at, (&got, &want)) in output.iter().zip(&want.output).enumerate() {
        let want = f64::from(want);
        let bound = ARITHMETIC + 2.0 * unit * want.abs();
        worst.see(got, want, bound, || format!("{name}: element {at}"));
    }
    let states = [&want.present_key, &want.present_value, &want.present_block];
    for ((got, want), dtype) in got[1..].iter().zip(states).zip(case.state_types()) {
        let differs = |(a, b): (&f32, &f32)| a != b && !(a.is_nan() && b.is_nan());
        if let Some(at) = decode(dtype, got).iter().zip(want).position(differs) {
            return Err(Failure::Wrong(format!(
                "{name}: other states, first at element {at}"
            )));
        }
    }
    Ok(worst)
}

/// The output and the states.
fn launch(
    context: &Context,
    case: &Case,
    tensors: &Tensors,
    [past, seq]: [&[i64]; 2],
    [cos, sin]: &[Vec<f32>; 2],
    ways: BlockTopKWays,
    in_place: bool,
) -> Result<Vec<Vec<u8>>, Failure> {
    let plan = BlockTopKPlan::with_ways(context.device, &case.operator, &case.node()?, ways)?;
    let mut buffers = Buffers::new(context.device);
    let mut upload = |dtype, values: &[f32]| buffers.upload(&encode(dtype, values));
    let [query, key, value] = &tensors.chunk;
    let (query_bytes, element) = (query.len() * case.element.size(), case.element);
    let [query, key, value] = [
        upload(element, query)?,
        upload(element, key)?,
        upload(element, value)?,
    ];
    let [cos, sin] = [
        upload(ElementType::F32, cos)?,
        upload(ElementType::F32, sin)?,
    ];
    let mut old = [0; 3];
    let mut bytes = [0; 3];
    for (which, dtype) in case.state_types().into_iter().enumerate() {
        old[which] = upload(dtype, &tensors.state[which])?;
        bytes[which] = tensors.state[which].len() * dtype.size();
    }
    let mut new: [DevicePtr; 3] = old;
    if !in_place {
        for (to, bytes) in new.iter_mut().zip(bytes) {
            *to = buffers.poisoned(bytes)?;
        }
    }
    let inputs = Inputs {
        query,
        key,
        value,
        past_key: old[0],
        past_value: old[1],
        past_block: old[2],
        past_length: buffers.upload_i64(past)?,
        seq_length: buffers.upload_i64(seq)?,
        cos,
        sin,
    };
    let outputs = Outputs {
        output: buffers.poisoned(query_bytes)?,
        present_key: new[0],
        present_value: new[1],
        present_block: new[2],
    };
    let workspace = buffers.poisoned(plan.workspace_bytes())?;
    // SAFETY: every tensor and the workspace have the plan's sizes and outlive the reads below,
    // which wait for the work; `Device::open` made the context current on this thread.
    unsafe { plan.launch(&inputs, &outputs, workspace, 7, Stream::DEFAULT)? };
    let mut found = vec![buffers.read(outputs.output, query_bytes)?];
    for (address, bytes) in new.into_iter().zip(bytes) {
        found.push(buffers.read(address, bytes)?);
    }
    Ok(found)
}
