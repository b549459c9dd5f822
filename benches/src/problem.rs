//! Inputs of a given shape, and what the reference makes of them.

use ratplus_graphs::cache::CacheLayout;
use ratplus_graphs::ops::{
    DilatedAttention, RecurrenceScan, dilated_attention as attention, recurrence_scan as scan,
};
use ratplus_graphs::pattern::Pattern;
use ratplus_kernels::{AttentionParams, ScanParams, Serial, dilated_attention, recurrence_scan};
use ratplus_reference::{Input, Rounding, exact};

/// Deterministic values in -1..1.
fn values(count: usize, salt: u32) -> Vec<f32> {
    let mut state = salt.wrapping_mul(2_654_435_761) | 1;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f64 {
    // NaN has to win: it is never equal.
    a.iter().zip(b).fold(0.0, |most: f64, (&a, &b)| {
        let difference = (f64::from(a) - f64::from(b)).abs();
        if most.is_nan() || difference.is_nan() {
            f64::NAN
        } else {
            most.max(difference)
        }
    })
}

/// One sequence with `past` cached tokens and a chunk of `seq_len` more.
pub struct Problem {
    attributes: DilatedAttention,
    layout: CacheLayout,
    head_dim: usize,
    past: i64,
    seq_len: usize,
    max_seq_len: usize,
    chunk: [Vec<f32>; 3],
    cache: [Vec<f32>; 2],
    tables: [Vec<f32>; 2],
    output: Vec<f32>,
}

impl Problem {
    /// A problem whose heads all have `pattern`.
    pub fn new(
        pattern: Pattern,
        heads: usize,
        head_dim: usize,
        past: usize,
        seq_len: usize,
    ) -> Self {
        let max_seq_len = past + seq_len;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let attributes = DilatedAttention::ungrouped(vec![pattern; heads], scale);
        let layout = attributes.cache_layout(max_seq_len);
        let rows = layout.rows() * head_dim;
        let angles = |f: fn(f32) -> f32| {
            let angle =
                |i: usize| (i / (head_dim / 2)) as f32 * 0.01 / (1 + i % (head_dim / 2)) as f32;
            (0..max_seq_len * head_dim / 2)
                .map(|i| f(angle(i)))
                .collect()
        };
        Self {
            chunk: [1, 2, 3].map(|salt| values(seq_len * heads * head_dim, salt)),
            cache: [4, 5].map(|salt| values(rows, salt)),
            tables: [angles(f32::cos), angles(f32::sin)],
            output: vec![f32::NAN; seq_len * heads * head_dim],
            past: past as i64,
            attributes,
            layout,
            head_dim,
            seq_len,
            max_seq_len,
        }
    }

    /// Runs the kernel in place.
    pub fn attend(&mut self) {
        let Self {
            layout,
            attributes,
            chunk: [query, key, value],
            cache,
            tables: [cos, sin],
            ..
        } = self;
        let [cached_key, cached_value] = cache;
        let params = AttentionParams {
            layout,
            num_heads: attributes.num_heads,
            scale: attributes.scale,
            batch: 1,
            seq_len: self.seq_len,
            head_dim: self.head_dim,
            query: query.as_ptr(),
            key: key.as_ptr(),
            value: value.as_ptr(),
            past_key: cached_key.as_mut_ptr().cast_const(),
            past_value: cached_value.as_mut_ptr().cast_const(),
            past_length: &self.past,
            seq_length: &(self.seq_len as i64),
            cos: cos.as_ptr(),
            sin: sin.as_ptr(),
            output: self.output.as_mut_ptr(),
            present_key: cached_key.as_mut_ptr(),
            present_value: cached_value.as_mut_ptr(),
            workspace: std::ptr::null_mut(),
        };
        // SAFETY: every slice has the length its shape says, for batch 1 and this layout, and past
        // and present are the same buffers.
        if let Err(error) = unsafe { dilated_attention(&params, &Serial) } {
            unreachable!("lengths fit by construction: {error}");
        }
    }

    /// Largest difference between kernel and reference, outputs and cache.
    pub fn error_against_reference(mut self) -> Result<f64, String> {
        let (len, dim, max) = (self.seq_len, self.head_dim, self.max_seq_len);
        let width = self.attributes.num_heads * dim;
        let rows = self.attributes.cache_layout(max).rows();
        let tokens = |values| Input::f32s([1, len, width], values);
        let cached = |values| Input::f32s([1, rows, dim], values);
        let (past, seq) = ([self.past], [len as i64]);
        let inputs = attention::Inputs {
            query: tokens(&self.chunk[0]),
            key: tokens(&self.chunk[1]),
            value: tokens(&self.chunk[2]),
            past_key: cached(&self.cache[0]),
            past_value: cached(&self.cache[1]),
            past_length: Input::i64s([1], &past),
            seq_length: Input::i64s([1], &seq),
            cos: Input::f32s([max, dim / 2], &self.tables[0]),
            sin: Input::f32s([max, dim / 2], &self.tables[1]),
        };
        let rounding = Rounding::uniform(exact);
        let expected = ratplus_reference::run(&self.attributes, inputs, rounding)
            .map_err(|error| error.to_string())?;
        self.attend();
        let pairs = [
            (&expected.output, &self.output),
            (&expected.present_key, &self.cache[0]),
            (&expected.present_value, &self.cache[1]),
        ];
        let errors = pairs.map(|(expected, found)| largest_difference(expected, found));
        Ok(errors.into_iter().fold(0.0, |most, error| {
            if error.is_nan() {
                error
            } else {
                error.max(most)
            }
        }))
    }

    /// FLOPs over visible keys: two a channel for the score, two for the sum.
    pub fn flops(&self) -> f64 {
        let queries = self.past as usize..self.past as usize + self.seq_len;
        let keys: usize = self
            .attributes
            .patterns
            .iter()
            .map(|pattern| {
                queries
                    .clone()
                    .map(|query| pattern.visible_count(query))
                    .sum::<usize>()
            })
            .sum();
        4.0 * self.head_dim as f64 * keys as f64
    }

    /// Bytes of the cached keys and values that the chunk's first query sees.
    pub fn row_bytes(&self) -> f64 {
        let past = self.past as usize;
        let runs = self
            .layout
            .heads()
            .iter()
            .flat_map(|head| head.visible_rows(past, past).runs());
        let rows: usize = runs.map(|run| run.len()).sum();
        (rows * self.head_dim * 2 * size_of::<f32>()) as f64
    }
}

/// One sequence through the recurrence.
pub struct Scan {
    channels: usize,
    seq_len: usize,
    inputs: [Vec<f32>; 3],
    state: [Vec<f32>; 2],
    outputs: [Lines; 2],
}

/// Values from a multiple of 64 bytes on, as ONNX Runtime allocates them.
struct Lines {
    buffer: Vec<f32>,
    start: usize,
    count: usize,
}

impl Lines {
    /// `count` times NaN.
    fn new(count: usize) -> Self {
        let buffer = vec![f32::NAN; count + 16];
        let start = buffer.as_ptr().align_offset(64);
        Self {
            buffer,
            start,
            count,
        }
    }

    fn values(&self) -> &[f32] {
        &self.buffer[self.start..][..self.count]
    }

    fn as_mut_ptr(&mut self) -> *mut f32 {
        self.buffer[self.start..].as_mut_ptr()
    }
}

impl Scan {
    /// A chunk of `seq_len` tokens from the start.
    pub fn new(channels: usize, seq_len: usize) -> Self {
        Self {
            inputs: [6, 7, 8].map(|salt| values(seq_len * channels, salt)),
            state: [(); 2].map(|()| vec![0.0; channels]),
            outputs: [(); 2].map(|()| Lines::new(seq_len * channels)),
            channels,
            seq_len,
        }
    }

    /// Runs the kernel.
    pub fn run(&mut self) {
        let Self {
            inputs: [key, value, gate],
            state,
            outputs,
            ..
        } = self;
        let ([state_key, state_value], [gated_key, gated_value]) = (state, outputs);
        let params = ScanParams {
            batch: 1,
            seq_len: self.seq_len,
            max_seq_len: None,
            channels: self.channels,
            key: key.as_ptr(),
            value: value.as_ptr(),
            gate: gate.as_ptr(),
            state_key: state_key.as_mut_ptr().cast_const(),
            state_value: state_value.as_mut_ptr().cast_const(),
            past_length: &0,
            seq_length: &(self.seq_len as i64),
            gated_key: gated_key.as_mut_ptr(),
            gated_value: gated_value.as_mut_ptr(),
            new_state_key: state_key.as_mut_ptr(),
            new_state_value: state_value.as_mut_ptr(),
        };
        // SAFETY: every slice has the length its shape says, for batch 1; states are in place.
        if let Err(error) = unsafe { recurrence_scan(&params, &Serial) } {
            unreachable!("lengths fit by construction: {error}");
        }
    }

    /// Largest difference between kernel and reference.
    pub fn error_against_reference(mut self) -> Result<f64, String> {
        let (len, channels) = (self.seq_len, self.channels);
        let zeros = vec![0.0; channels];
        let seq = [len as i64];
        let inputs = scan::Inputs {
            key: Input::f32s([1, len, channels], &self.inputs[0]),
            value: Input::f32s([1, len, channels], &self.inputs[1]),
            gate: Input::f32s([1, len, channels], &self.inputs[2]),
            state_key: Input::f32s([1, channels], &zeros),
            state_value: Input::f32s([1, channels], &zeros),
            past_length: Input::i64s([1], &[0]),
            seq_length: Input::i64s([1], &seq),
        };
        let rounding = Rounding::uniform(exact);
        let expected = ratplus_reference::run(&RecurrenceScan::default(), inputs, rounding)
            .map_err(|error| error.to_string())?;
        self.run();
        let pairs = [
            (&expected.gated_key, self.outputs[0].values()),
            (&expected.gated_value, self.outputs[1].values()),
            (&expected.new_state_key, &self.state[0][..]),
            (&expected.new_state_value, &self.state[1][..]),
        ];
        let errors = pairs.map(|(expected, found)| largest_difference(expected, found));
        Ok(errors.into_iter().fold(0.0, |most, error| {
            if error.is_nan() {
                error
            } else {
                error.max(most)
            }
        }))
    }

    /// Bytes of three inputs and two outputs.
    pub fn bytes(&self) -> f64 {
        (5 * self.seq_len * self.channels * size_of::<f32>()) as f64
    }
}
