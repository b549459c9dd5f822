//! Decoding on the emulator: eager, captured, in place and double-buffered give the same bits
//! over a thousand steps, and lengths that do not fit are contained and reported.

use super::gpu::{Buffers, FLAG, Schedule, assert_no_error, device};
use super::{Real, random, rng};
use crate::cuda::{
    AttentionMethod, AttentionPlan, AttentionShape, CudaPlan, Device, DeviceError, DevicePtr,
    ScanMethod, ScanPlan, ScanShape, Stream,
};
use half::bf16;
use rand::Rng;
use ratplus_graphs::cache::CacheLayout;
use ratplus_graphs::ops::{ElementType, dilated_attention, recurrence_scan};
use ratplus_graphs::pattern::Pattern;

const BATCH: usize = 2;
const DIM: usize = 64;
const MAX_SEQ_LEN: usize = 1010;

/// A layer's two operators, with memory of their own.
struct Layer {
    buffers: Buffers,
    scan: ScanPlan,
    attention: AttentionPlan,
    layout: CacheLayout,
    /// Query, key, value, gate of one token a sequence.
    inputs: [DevicePtr; 4],
    lengths: [DevicePtr; 2],
    tables: [DevicePtr; 2],
    gated: [DevicePtr; 2],
    output: DevicePtr,
    /// Both sides of key and value state; the second is used without in-place updates only.
    state: [[DevicePtr; 2]; 2],
    cache: [[DevicePtr; 2]; 2],
    workspace: [DevicePtr; 2],
}

impl Layer {
    fn new(device: &'static Device) -> Self {
        let patterns =
            [(1, 0, 0), (4, 40, 3), (-1, 300, 2)].map(|(d, w, i)| Pattern::new(d, w, i).unwrap());
        let layout = CacheLayout::new(&patterns, MAX_SEQ_LEN);
        let channels = patterns.len() * DIM;
        let element = ElementType::BF16;
        let scan = ScanPlan::new(
            device,
            ScanShape {
                element,
                batch: BATCH,
                seq_len: 1,
                channels,
            },
        )
        .unwrap();
        let shape = AttentionShape {
            element,
            batch: BATCH,
            seq_len: 1,
            group: 1,
            head_dim: DIM,
            scale: 0.125,
        };
        let attention = AttentionPlan::new(device, shape, &layout).unwrap();
        assert!(attention.splits() > 1, "{}", attention.splits());
        let mut buffers = Buffers::new(device);
        let half = DIM / 2;
        let angle =
            |i: usize| (i / half) as f64 * 10000f64.powf(-((i % half) as f64) / half as f64);
        let table = |f: fn(f64) -> f64| -> Vec<f32> {
            (0..MAX_SEQ_LEN * half)
                .map(|i| f(angle(i)) as f32)
                .collect()
        };
        let (cos, sin) = (table(f64::cos), table(f64::sin));
        let token = BATCH * channels;
        let rows = BATCH * layout.rows() * DIM;
        // SAFETY: each source has the size that is copied.
        let tables = unsafe {
            [
                buffers.copy(cos.as_ptr(), cos.len()),
                buffers.copy(sin.as_ptr(), sin.len()),
            ]
        };
        Self {
            inputs: [(); 4].map(|()| buffers.bytes(2 * token)),
            lengths: [(); 2].map(|()| buffers.bytes(8 * BATCH)),
            gated: [(); 2].map(|()| buffers.bytes(2 * token)),
            output: buffers.bytes(2 * token),
            state: [(); 2].map(|()| [(); 2].map(|()| buffers.bytes(4 * token))),
            cache: [(); 2].map(|()| [(); 2].map(|()| buffers.bytes(2 * rows))),
            workspace: [
                buffers.bytes(scan.workspace_bytes()),
                buffers.bytes(attention.workspace_bytes()),
            ],
            tables,
            scan,
            attention,
            layout,
            buffers,
        }
    }

    fn token(&self) -> usize {
        BATCH * self.layout.heads().len() * DIM
    }

    /// Launches one step that reads side `from` and writes side `to`.
    fn launch(&self, from: usize, to: usize, stream: Stream) {
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
        // SAFETY: the buffers have the shapes of the plans.
        unsafe {
            self.scan
                .launch(&scan_inputs, &scan_outputs, scan, 1, stream)
                .unwrap();
            self.attention
                .launch(&attention_inputs, &attention_outputs, attention, 2, stream)
                .unwrap();
        }
    }

    fn read<T: Copy + Default>(&self, address: DevicePtr, count: usize) -> Vec<T> {
        let mut values = vec![T::default(); count];
        // SAFETY: the vector has as many elements.
        unsafe { self.buffers.back(address, values.as_mut_ptr(), count) };
        values
    }
}

#[test]
fn a_thousand_steps_are_the_same_captured_in_place_and_double_buffered() {
    let device = device();
    Schedule::Forward.set();
    let stream = device.stream().unwrap();
    let [eager, captured, swapped] = [(); 3].map(|()| Layer::new(device));
    let layers = [&eager, &captured, &swapped];
    let mut graph = None;
    let mut rng = rng(11);
    let token = eager.token();
    for step in 0..1000usize {
        let inputs = [(); 4].map(|()| random::<bf16>(&mut rng, token, 2.0));
        // The second sequence starts later, idles at times and starts over once.
        let second = match step {
            0..30 => (0, 0),
            _ if step % 7 == 3 => ((step - 30) as i64, 0),
            500.. => ((step - 500) as i64, 1),
            _ => ((step - 30) as i64, 1),
        };
        let lengths = [[step as i64, second.0], [1, second.1]];
        for layer in layers {
            for (address, values) in layer.inputs.into_iter().zip(&inputs) {
                layer.buffers.write(address, values);
            }
            for (address, values) in layer.lengths.into_iter().zip(&lengths) {
                layer.buffers.write(address, values);
            }
        }
        eager.launch(0, 0, stream.stream());
        swapped.launch(step % 2, 1 - step % 2, stream.stream());
        let graph = graph.get_or_insert_with(|| {
            let capture = stream.capture().unwrap();
            captured.launch(0, 0, stream.stream());
            capture.end().unwrap()
        });
        // SAFETY: the layer's memory lives on.
        unsafe { graph.launch(stream.stream()).unwrap() };
        stream.synchronize().unwrap();
        let want = eager.read::<u16>(eager.output, token);
        for (layer, name) in [(&captured, "captured"), (&swapped, "swapped")] {
            assert_eq!(
                want,
                layer.read::<u16>(layer.output, token),
                "{name} step {step}"
            );
        }
    }
    let rows = BATCH * eager.layout.rows() * DIM;
    for which in 0..2 {
        let state = eager.read::<u32>(eager.state[0][which], token);
        let cache = eager.read::<u16>(eager.cache[0][which], rows);
        for layer in [&captured, &swapped] {
            // A thousand swaps end on the first side.
            assert_eq!(state, layer.read::<u32>(layer.state[0][which], token));
            assert_eq!(cache, layer.read::<u16>(layer.cache[0][which], rows));
        }
    }
    assert_no_error(device);
}

#[test]
fn blocks_of_a_head_are_counted_in_memory_that_holds_anything() {
    const STEPS: usize = 3;
    let device = device();
    let layer = Layer::new(device);
    let token = layer.token();
    let bytes = layer.attention.workspace_bytes();
    let mut rng = rng(12);
    let inputs = [(); 4].map(|()| random::<bf16>(&mut rng, token, 2.0));
    for (address, values) in layer.inputs.into_iter().zip(&inputs) {
        layer.buffers.write(address, values);
    }
    let rows = BATCH * layer.layout.rows() * DIM;
    let cache = random::<bf16>(&mut rng, rows, 1.0);
    // The last one is what a launch leaves.
    let mark = 0x7fb9_ffe3_7fb9_ff00u64.to_le_bytes().repeat(bytes / 8);
    let anything: Vec<u8> = (0..bytes).map(|_| rng.random()).collect();
    let mut want = None;
    for before in [vec![0; bytes], vec![0xff; bytes], anything, mark] {
        layer.buffers.write(layer.workspace[1], &before);
        layer.cache[0]
            .into_iter()
            .for_each(|address| layer.buffers.write(address, &cache));
        for schedule in Schedule::ALL {
            schedule.set();
            for step in 0..STEPS {
                // Every share of a head has rows.
                let past = [MAX_SEQ_LEN as i64 - 1, MAX_SEQ_LEN as i64 - 2];
                layer.buffers.write(layer.lengths[0], &past);
                layer.buffers.write(layer.lengths[1], &[1i64; 2]);
                layer.launch(0, 0, Stream(std::ptr::null_mut()));
                let output = layer.read::<u16>(layer.output, token);
                let want = want.get_or_insert_with(|| output.clone());
                assert_eq!(*want, output, "{schedule:?} {step} {:x?}", &before[..8]);
            }
        }
    }
    assert_no_error(device);
}

/// Lengths that do not fit a chunk of `L` tokens of at most `M`.
fn bad_lengths(seq_len: i64, max_seq_len: i64) -> Vec<(i64, i64)> {
    vec![
        (-1, 1),
        (0, seq_len + 1),
        (0, -1),
        (i64::MAX, 1),
        (max_seq_len, 1),
        (i64::MIN, 0),
    ]
}

#[test]
fn lengths_that_do_not_fit_leave_their_slot_alone_and_are_reported() {
    let device = device();
    Schedule::Forward.set();
    let stream = Stream(std::ptr::null_mut());
    let patterns = [(2, 3, 1), (1, 0, 0)].map(|(d, w, i)| Pattern::new(d, w, i).unwrap());
    let layout = CacheLayout::new(&patterns, 40);
    let element = ElementType::BF16;
    for (seq_len, method) in [
        (1, AttentionMethod::Decode),
        (1, AttentionMethod::Any),
        (9, AttentionMethod::Any),
        (9, AttentionMethod::Tiles),
        (9, AttentionMethod::SmallTiles),
        (9, AttentionMethod::Hopper),
        (9, AttentionMethod::SmallHopper),
    ] {
        let shape = AttentionShape {
            element,
            batch: 2,
            seq_len,
            group: 1,
            head_dim: DIM,
            scale: 0.1,
        };
        let plan = AttentionPlan::with_method(device, shape, &layout, method).unwrap();
        for (past, seq) in bad_lengths(seq_len as i64, 40) {
            let mut buffers = Buffers::new(device);
            let (chunk, rows) = (2 * seq_len * 2 * DIM, layout.rows() * DIM);
            let mut rng = rng(3);
            let values = random::<bf16>(&mut rng, chunk, 1.0);
            let cache = random::<bf16>(&mut rng, 2 * rows, 1.0);
            let table = vec![0.5f32; 40 * DIM / 2];
            // SAFETY: each source has the size that is copied.
            let (inputs, outputs) = unsafe {
                let input = buffers.copy(values.as_ptr(), chunk);
                let [key, value] = [(); 2].map(|()| buffers.copy(cache.as_ptr(), 2 * rows));
                let table = buffers.copy(table.as_ptr(), table.len());
                (
                    dilated_attention::Inputs {
                        query: input,
                        key: input,
                        value: input,
                        past_key: key,
                        past_value: value,
                        past_length: buffers.copy([4i64, past].as_ptr(), 2),
                        seq_length: buffers.copy([1i64, seq].as_ptr(), 2),
                        cos: table,
                        sin: table,
                    },
                    dilated_attention::Outputs {
                        output: buffers.bytes(2 * chunk),
                        present_key: key,
                        present_value: value,
                    },
                )
            };
            let workspace = buffers.bytes(plan.workspace_bytes());
            let (mut output, mut after) = (vec![bf16::ONE; chunk], vec![bf16::ONE; 2 * rows]);
            let _alone = FLAG.write();
            // SAFETY: the tensors have the plan's shapes, the vectors the tensors' sizes.
            unsafe {
                plan.launch(&inputs, &outputs, workspace, 77, stream)
                    .unwrap();
                buffers.back(outputs.output, output.as_mut_ptr(), chunk);
                buffers.back(outputs.present_key, after.as_mut_ptr(), 2 * rows);
            }
            let place = format!("{method:?} {past} {seq}");
            assert_eq!(
                device.error_flag().take(),
                Some(DeviceError { node: 77, slot: 1 }),
                "{place}"
            );
            assert!(output[chunk / 2..].iter().all(|x| x.bits() == 0), "{place}");
            assert!(output[..DIM].iter().any(|x| x.bits() != 0), "{place}");
            assert_eq!(cache[rows..], after[rows..], "{place}");
            assert_ne!(cache[..rows], after[..rows], "{place}");
        }
    }
}

#[test]
fn the_scan_contains_lengths_that_do_not_fit() {
    let device = device();
    Schedule::Forward.set();
    let channels = 64;
    for (seq_len, method) in [
        (1, ScanMethod::Serial),
        (300, ScanMethod::ThreeLaunches),
        (300, ScanMethod::SinglePass),
    ] {
        let shape = ScanShape {
            element: ElementType::BF16,
            batch: 2,
            seq_len,
            channels,
        };
        let plan = ScanPlan::with_method(device, shape, method).unwrap();
        for (past, seq) in [(-1, 1), (0, seq_len as i64 + 1), (0, -1), (i64::MAX, 1)] {
            let mut buffers = Buffers::new(device);
            let chunk = 2 * seq_len * channels;
            let values = random::<bf16>(&mut rng(5), chunk, 1.0);
            let state: Vec<f32> = (0..2 * channels).map(|i| i as f32).collect();
            // SAFETY: each source has the size that is copied.
            let (inputs, outputs) = unsafe {
                let input = buffers.copy(values.as_ptr(), chunk);
                let [key, value] = [(); 2].map(|()| buffers.copy(state.as_ptr(), 2 * channels));
                (
                    recurrence_scan::Inputs {
                        key: input,
                        value: input,
                        gate: input,
                        state_key: key,
                        state_value: value,
                        past_length: buffers.copy([past, 4i64].as_ptr(), 2),
                        seq_length: buffers.copy([seq, 1i64].as_ptr(), 2),
                    },
                    recurrence_scan::Outputs {
                        gated_key: buffers.bytes(2 * chunk),
                        gated_value: buffers.bytes(2 * chunk),
                        new_state_key: key,
                        new_state_value: value,
                    },
                )
            };
            let workspace = buffers.bytes(plan.workspace_bytes());
            let (mut gated, mut after) = (vec![bf16::ONE; chunk], vec![0f32; 2 * channels]);
            let _alone = FLAG.write();
            // SAFETY: the tensors have the plan's shapes, the vectors the tensors' sizes.
            unsafe {
                let stream = Stream(std::ptr::null_mut());
                plan.launch(&inputs, &outputs, workspace, 5, stream)
                    .unwrap();
                buffers.back(outputs.gated_key, gated.as_mut_ptr(), chunk);
                buffers.back(outputs.new_state_key, after.as_mut_ptr(), 2 * channels);
            }
            let place = format!("{method:?} {past} {seq}");
            assert_eq!(
                device.error_flag().take(),
                Some(DeviceError { node: 5, slot: 0 }),
                "{place}"
            );
            assert!(gated[..chunk / 2].iter().all(|x| x.bits() == 0), "{place}");
            assert_eq!(state[..channels], after[..channels], "{place}");
            assert_ne!(state[channels..], after[channels..], "{place}");
        }
    }
}
