//! Block top-k attention of the CUDA kernels on the emulator.

use super::block_problem::{CASES, Left, Problem, assert_same, blocks};
use super::gpu::{Buffers, FLAG, Schedule, assert_no_error, device, element};
use super::{Real, assert_bits, random, rng};
use crate::cuda::{BlockTopKPlan, BlockTopKWays, CudaPlan, DeviceError, DevicePtr, Stream};
use half::{bf16, f16};
use ratplus_graphs::blocks::Score;
use ratplus_graphs::ops::block_top_k_attention::{Inputs, Outputs};
use ratplus_graphs::ops::{Definition, ElementType, Inferred, TensorType};

#[derive(Clone, Copy, Debug)]
struct How {
    chunk: usize,
    in_place: bool,
    /// Launched once, into a graph that every step replays; in place only.
    captured: bool,
    schedule: Schedule,
    ways: BlockTopKWays,
}

impl How {
    fn chunks(chunk: usize) -> Self {
        Self {
            chunk,
            in_place: true,
            captured: false,
            schedule: Schedule::Forward,
            ways: BlockTopKWays::default(),
        }
    }
}

impl<T: Real> Problem<T> {
    fn node(&self, seq_len: usize) -> Inferred {
        let [width, kv_width] = self.widths();
        let (element, batch) = (element::<T>(), self.batch);
        let rows = self.operator.num_kv_heads * self.max;
        let of = |dtype: ElementType, shape: &[usize]| TensorType::new(dtype, shape);
        let (float, int) = (ElementType::F32, ElementType::I64);
        let inputs = [
            of(element, &[batch, seq_len, width]),
            of(element, &[batch, seq_len, kv_width]),
            of(element, &[batch, seq_len, kv_width]),
            of(element, &[batch, rows, self.dim]),
            of(element, &[batch, rows, self.dim]),
            of(float, &[batch, self.summary_rows(), self.dim]),
            of(int, &[batch]),
            of(int, &[batch]),
            of(float, &[self.max, self.dim / 2]),
            of(float, &[self.max, self.dim / 2]),
        ];
        self.operator.infer(&inputs).unwrap()
    }

    /// What is left where slots have `lengths` tokens, each cut into chunks, and memory is poison before.
    fn launched(&self, how: How, lengths: &[usize]) -> Left<T> {
        let device = device();
        how.schedule.set();
        let [width, kv_width] = self.widths();
        let summary = self.batch * self.summary_rows() * self.dim;
        let mut buffers = Buffers::new(device);
        let plan =
            BlockTopKPlan::with_ways(device, &self.operator, &self.node(how.chunk), how.ways);
        let plan = plan.unwrap();
        let workspace = buffers.bytes(plan.workspace_bytes());
        if workspace != 0 {
            buffers.write(workspace, &vec![0xffu8; plan.workspace_bytes()]);
        }
        let poison = vec![T::poison(); self.cache_len()];
        let nan = vec![f32::NAN; summary];
        let chunk = self.batch * how.chunk;
        // SAFETY: each source has the size that is copied.
        let (states, tables) = unsafe {
            let mut state = || {
                [
                    buffers.copy(poison.as_ptr(), poison.len()),
                    buffers.copy(poison.as_ptr(), poison.len()),
                    buffers.copy(nan.as_ptr(), nan.len()),
                ]
            };
            let states = [state(), state()];
            let tables = [&self.cos, &self.sin];
            (
                states,
                tables.map(|table| buffers.copy(table.as_ptr(), table.len())),
            )
        };
        let tokens: [DevicePtr; 4] = [width, kv_width, kv_width, width]
            .map(|width| buffers.bytes(chunk * width * size_of::<T>()));
        let slots = [(); 2].map(|()| buffers.bytes(8 * self.batch));
        let stream = device.stream().unwrap();
        let mut graph = None;
        let mut side = 0;
        let mut left = vec![T::poison(); self.batch * self.max * width];
        let mut past = vec![0i64; self.batch];
        let mut last = false;
        while !last {
            let seq: Vec<i64> = past
                .iter()
                .zip(lengths)
                .map(|(&past, &length)| (length as i64 - past).min(how.chunk as i64))
                .collect();
            // After the end, a step with idle slots alone.
            last = seq.iter().all(|&seq| seq == 0);
            for (address, (from, width)) in tokens.into_iter().zip([
                (&self.query, width),
                (&self.key, kv_width),
                (&self.value, kv_width),
            ]) {
                let cut = self.cut(from, width, &past, &seq, how.chunk);
                buffers.write(address, &cut);
            }
            let mut output = vec![T::poison(); chunk * width];
            buffers.write(tokens[3], &output);
            buffers.write(slots[0], &past);
            buffers.write(slots[1], &seq);
            let from = states[side];
            side = if how.in_place { side } else { 1 - side };
            let to = states[side];
            let inputs = Inputs {
                query: tokens[0],
                key: tokens[1],
                value: tokens[2],
                past_key: from[0],
                past_value: from[1],
                past_block: from[2],
                past_length: slots[0],
                seq_length: slots[1],
                cos: tables[0],
                sin: tables[1],
            };
            let outputs = Outputs {
                output: tokens[3],
                present_key: to[0],
                present_value: to[1],
                present_block: to[2],
            };
            let launch = |stream: Stream| {
                // SAFETY: the buffers have the plan's sizes and outlive the work.
                unsafe { plan.launch(&inputs, &outputs, workspace, 7, stream) }.unwrap();
            };
            if how.captured {
                let graph = graph.get_or_insert_with(|| {
                    let capture = stream.capture().unwrap();
                    launch(stream.stream());
                    capture.end().unwrap()
                });
                // SAFETY: as above.
                unsafe { graph.launch(stream.stream()) }.unwrap();
                stream.synchronize().unwrap();
            } else {
                launch(Stream::DEFAULT);
            }
            // SAFETY: the vector has the output's size.
            unsafe { buffers.back(tokens[3], output.as_mut_ptr(), output.len()) };
            for slot in 0..self.batch {
                let rows = &output[slot * how.chunk * width..(slot + 1) * how.chunk * width];
                let (valid, padding) = rows.split_at(seq[slot] as usize * width);
                let to = (slot * self.max + past[slot] as usize) * width;
                left[to..to + valid.len()].copy_from_slice(valid);
                assert!(padding.iter().all(|x| x.bits() == 0), "{how:?}");
                past[slot] += seq[slot];
            }
        }
        let mut left = Left {
            output: left,
            cache: [poison.clone(), poison],
            summary: nan,
        };
        // SAFETY: the vectors have the tensors' sizes.
        unsafe {
            let [key, value, block] = states[side];
            buffers.back(key, left.cache[0].as_mut_ptr(), self.cache_len());
            buffers.back(value, left.cache[1].as_mut_ptr(), self.cache_len());
            buffers.back(block, left.summary.as_mut_ptr(), summary);
        }
        assert_no_error(device);
        left
    }
}

/// Chunks of one token, of a few and of more than a block, by a warp a query and by a warp a share.
fn hows() -> Vec<How> {
    let mut hows = Vec::new();
    for (index, (chunk, in_shares, slice)) in [
        (1, true, 1),
        (7, false, 7),
        (64, true, 3),
        (64, false, 64),
        (1, false, 1),
        (7, true, 2),
    ]
    .into_iter()
    .enumerate()
    {
        hows.push(How {
            chunk,
            in_place: index % 2 == 0,
            captured: false,
            schedule: Schedule::ALL[index % 3],
            ways: BlockTopKWays {
                in_shares: Some(in_shares),
                slice: Some(slice),
            },
        });
    }
    hows
}

fn every_way<T: Real>(problem: &Problem<T>, lengths: &[usize], place: &str) {
    let mut expected = None;
    for how in hows() {
        let found = problem.launched(how, lengths);
        let place = format!("{place}, {how:?}");
        let expected = expected.get_or_insert_with(|| {
            problem.check(&found, lengths, &place);
            found.clone()
        });
        assert_same(&found, expected, &place);
    }
}

fn cases<T: Real>(seed: u64) {
    let mut rng = rng(seed);
    for (size, top_k, beside, kv_heads, group, dim, max) in CASES {
        for score in Score::ALL {
            let blocks = blocks(size, top_k, score, beside);
            let heads = [kv_heads, group];
            let problem = Problem::<T>::new(&mut rng, blocks, heads, dim, max, 3);
            let place = format!("{blocks} of {max}, {heads:?} x {dim}");
            every_way(&problem, &[max, 0, max / 2], &place);
        }
    }
}

#[test]
fn choices_and_results_are_the_models_in_f32() {
    cases::<f32>(31);
}

#[test]
fn choices_and_results_are_the_models_in_f16() {
    cases::<f16>(32);
}

#[test]
fn choices_and_results_are_the_models_in_bf16() {
    cases::<bf16>(33);
}

#[test]
fn a_query_has_the_same_bits_in_any_chunks_and_batch() {
    let mut rng = rng(34);
    for (dim, beside) in [
        (64, (-1, 0, 0)),
        (128, (9, 20, 3)),
        (40, (-1, 12, 0)),
        (160, (-1, 0, 0)),
    ] {
        for score in Score::ALL {
            let blocks = blocks(8, 4, score, beside);
            let problem = Problem::<bf16>::new(&mut rng, blocks, [1, 2], dim, 90, 2);
            let problem = problem.like_models(&mut rng);
            let mut expected = None;
            for how in hows() {
                let found = problem.launched(how, &[90, 41]);
                let expected = expected.get_or_insert_with(|| found.clone());
                assert_same(&found, expected, &format!("{blocks} of {dim}, {how:?}"));
            }
            let captured = How {
                captured: true,
                ..How::chunks(1)
            };
            let found = problem.launched(captured, &[90, 41]);
            let expected = expected.unwrap();
            assert_same(&found, &expected, &format!("{blocks} of {dim}, captured"));
            // The second slot alone.
            let alone = |tokens: &[bf16]| tokens[tokens.len() / 2..].to_vec();
            let second = Problem {
                batch: 1,
                query: alone(&problem.query),
                key: alone(&problem.key),
                value: alone(&problem.value),
                cos: problem.cos.clone(),
                sin: problem.sin.clone(),
                operator: problem.operator.clone(),
                ..problem
            };
            let found = second.launched(How::chunks(30), &[41]);
            let expected = alone(&expected.output);
            assert_bits(
                &found.output,
                &expected,
                &format!("{blocks} of {dim} alone"),
            );
        }
    }
}

#[test]
fn more_blocks_than_threads_pick_at_once() {
    let mut rng = rng(35);
    for score in Score::ALL {
        let blocks = blocks(1, 70, score, (-1, 0, 0));
        let problem = Problem::<f32>::new(&mut rng, blocks, [1, 1], 2, 300, 1);
        let place = format!("{blocks}");
        let found = problem.launched(How::chunks(300), &[300]);
        problem.check(&found, &[300], &place);
    }
}

#[test]
fn lengths_that_do_not_fit_leave_their_slot_alone_and_are_reported() {
    let device = device();
    Schedule::Forward.set();
    let mut rng = rng(36);
    let blocks = blocks(4, 2, Score::Bounds, (-1, 0, 0));
    for (seq_len, in_shares) in [(1, true), (9, true), (9, false)] {
        let problem = Problem::<bf16>::new(&mut rng, blocks, [1, 2], 16, 40, 2);
        let ways = BlockTopKWays {
            in_shares: Some(in_shares),
            slice: None,
        };
        let node = problem.node(seq_len);
        let plan = BlockTopKPlan::with_ways(device, &problem.operator, &node, ways).unwrap();
        let long = seq_len as i64;
        for (past, seq) in [
            (-1, 1),
            (0, long + 1),
            (0, -1),
            (i64::MAX, 1),
            (40, 1),
            (i64::MIN, 0),
        ] {
            let mut buffers = Buffers::new(device);
            let [width, kv_width] = problem.widths();
            let cache = random::<bf16>(&mut rng, problem.cache_len(), 1.0);
            let rows = problem.summary_rows() * 16;
            let summary = random::<f32>(&mut rng, 2 * rows, 1.0);
            // SAFETY: each source has the size that is copied.
            let (inputs, outputs) = unsafe {
                let mut tokens =
                    |from: &[bf16], width: usize| buffers.copy(from.as_ptr(), 2 * seq_len * width);
                let query = tokens(&problem.query, width);
                let key = tokens(&problem.key, kv_width);
                let value = tokens(&problem.value, kv_width);
                let [past_key, past_value] =
                    [(); 2].map(|()| buffers.copy(cache.as_ptr(), cache.len()));
                let past_block = buffers.copy(summary.as_ptr(), summary.len());
                let [cos, sin] = [&problem.cos, &problem.sin]
                    .map(|table| buffers.copy(table.as_ptr(), table.len()));
                let inputs = Inputs {
                    query,
                    key,
                    value,
                    past_key,
                    past_value,
                    past_block,
                    past_length: buffers.copy([14i64, past].as_ptr(), 2),
                    seq_length: buffers.copy([1i64, seq].as_ptr(), 2),
                    cos,
                    sin,
                };
                let outputs = Outputs {
                    output: buffers.bytes(2 * 2 * seq_len * width),
                    present_key: past_key,
                    present_value: past_value,
                    present_block: past_block,
                };
                (inputs, outputs)
            };
            let workspace = buffers.bytes(plan.workspace_bytes());
            let mut output = vec![bf16::ONE; 2 * seq_len * width];
            let mut after = [cache.clone(), cache.clone()];
            let mut after_summary = summary.clone();
            let _alone = FLAG.write();
            // SAFETY: the tensors have the plan's shapes, the vectors the tensors' sizes.
            unsafe {
                let stream = Stream::DEFAULT;
                plan.launch(&inputs, &outputs, workspace, 78, stream)
                    .unwrap();
                buffers.back(outputs.output, output.as_mut_ptr(), output.len());
                buffers.back(outputs.present_key, after[0].as_mut_ptr(), cache.len());
                buffers.back(outputs.present_value, after[1].as_mut_ptr(), cache.len());
                buffers.back(
                    outputs.present_block,
                    after_summary.as_mut_ptr(),
                    summary.len(),
                );
            }
            let place = format!("{seq_len} {in_shares}: {past} {seq}");
            let error = DeviceError { node: 78, slot: 1 };
            assert_eq!(device.error_flag().take(), Some(error), "{place}");
            let second = output.len() / 2;
            assert!(output[second..].iter().all(|x| x.bits() == 0), "{place}");
            assert!(output[..width].iter().any(|x| x.bits() != 0), "{place}");
            let second = cache.len() / 2;
            for after in &after {
                assert_bits(&after[second..], &cache[second..], &place);
                assert_ne!(after[..second], cache[..second], "{place}");
            }
            assert_bits(&after_summary[rows..], &summary[rows..], &place);
            assert_ne!(after_summary[..rows], summary[..rows], "{place}");
        }
    }
}
