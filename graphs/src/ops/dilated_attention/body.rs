//! `DilatedAttention`: rotary embedding, masked softmax over cached rows and the chunk, and the
//! cache update, which rows of [`super::rows`] take.

use super::rows::{Heads, Rows};
use super::{DilatedAttention, Inputs, Outputs};
use crate::onnx::{AttributeProto, NodeWriter};
use crate::ops::attention::Attention;
use crate::ops::body::{BodyShape, Call, F32, LengthCheck, lengths, positions, select, valid_rows};

/// Writes one call.
pub(super) fn write(call: Call<'_, '_, DilatedAttention>) {
    let mut attention = Attention {
        w: call.w,
        shape: call.shape,
        operator: call.operator,
    };
    attention.write(call.inputs, call.outputs);
}

impl Attention<'_, DilatedAttention> {
    fn write(&mut self, inputs: Inputs<&str>, outputs: Outputs<&str>) {
        let (shape, dtype) = (self.shape, self.shape.dtype);
        let BodyShape { batch, seq_len, .. } = shape;
        let [past_key, past_value] = [inputs.past_key, inputs.past_value];
        let heads = self.heads();
        let rows = self.rows(&heads, past_key);
        let given = [inputs.past_length, inputs.seq_length];
        let lengths = lengths(self.w, LengthCheck::Room, &shape, given);
        let past = self.w.unsqueeze(&lengths.past, &[1]);
        let seq = self.w.unsqueeze(&lengths.seq, &[1]);
        let valid = valid_rows(self.w, seq_len, &lengths.seq);
        let valid4 = self.w.unsqueeze(&valid, &[3]);
        let zero = self.w.float(0.0);

        // Tokens of the chunk: [B, L, H, dh] and [B, L, Hkv, dh] in f32.
        let row = self.w.constant(positions(seq_len));
        let position = self.w.call("Add", &[&past, &row]);
        let tables = self.rotary_rows(&position, [inputs.cos, inputs.sin]);
        let query = self.rotate(inputs.query, &tables, &self.by_head());
        let key = self.rotate(inputs.key, &tables, &self.by_kv_head());
        let key = self.w.call("Where", &[&valid4, &key, &zero]);
        let key = self.as_cached(key, F32);
        let value = self.w.convert(inputs.value, dtype, F32);
        let value = self.as_cached(value, dtype);
        let value = self.w.reshape(&value, &self.by_kv_head());
        let value = self.w.call("Where", &[&valid4, &value, &zero]);

        // Scores of cached rows [B, H, L, rows] and of the chunk's own keys [B, H, L, L]; where heads
        // are grouped, [B, Hkv, group * L, ..].
        let query = self.w.transpose(&query, &[0, 2, 1, 3]);
        let query = self.together(&query, shape.head_dim);
        let (cached, cached_values) = self.cached_rows(&heads, &rows, past_key, past_value, &past);
        let scale = self.scale(self.operator.map(|operator| operator.scale));
        let query = self.w.call("Mul", &[&query, &scale]);
        let own = {
            let key = self.w.transpose(&key, &[0, 2, 3, 1]);
            let scores = self.w.call("MatMul", &[&query, &key]);
            (scores, self.own_mask(&heads, &position, &valid))
        };
        let cached = {
            let mask = cached.mask(self, &position);
            let keys = self.w.transpose(&cached.keys, &[0, 1, 3, 2]);
            (self.w.call("MatMul", &[&query, &keys]), mask)
        };
        let weights = self.weights(cached, own);
        let start = self.w.ints(&[-(seq_len as i64)]);
        let (from, axis) = (self.w.ints(&[0]), self.w.ints(&[3]));
        let end = self.w.ints(&[i32::MAX.into()]);
        let cached_weights = self.w.call("Slice", &[&weights, &from, &start, &axis]);
        let own_weights = self.w.call("Slice", &[&weights, &start, &end, &axis]);
        let own_values = self.w.transpose(&value, &[0, 2, 1, 3]);
        let mixed = self.w.call("MatMul", &[&cached_weights, &cached_values]);
        let own_mixed = self.w.call("MatMul", &[&own_weights, &own_values]);
        let mixed = self.w.call("Add", &[&mixed, &own_mixed]);
        let mixed = match self.is_grouped() {
            true => {
                let by_query = [batch, shape.num_heads, seq_len, shape.head_dim];
                self.w.reshape(&mixed, &by_query)
            }
            false => mixed,
        };
        let mixed = self.w.transpose(&mixed, &[0, 2, 1, 3]);
        let channels = shape.num_heads * shape.head_dim;
        let mixed = self.w.reshape(&mixed, &[batch, seq_len, channels]);
        let finished = [&*valid, &mixed, &lengths.unused];
        select(self.w, dtype, finished, outputs.output);

        let (written, index) = self.written(&rows, &past, &seq);
        let written = self.after(&mixed, written);
        self.update(&written, &index, &key, past_key, outputs.present_key);
        self.update(&written, &index, &value, past_value, outputs.present_value);
    }

    /// The softmax of cached and own scores, each with the mask `[B, Hkv, L, keys]` of what is seen.
    fn weights(&mut self, cached: (String, String), own: (String, String)) -> String {
        let softmax = |last| ("Softmax", vec![AttributeProto::int("axis", last)]);
        if !self.is_grouped() {
            let [cached, own] = [cached, own].map(|(scores, mask)| self.masked(&scores, &mask));
            let scores = self.w.concat(&[&cached, &own], 3);
            let (softmax, axis) = softmax(3);
            return self.w.op(softmax, &[&scores], axis);
        }
        // All heads of a group share the mask.
        let scores = self.w.concat(&[&cached.0, &own.0], 3);
        let mask = self.w.concat(&[&cached.1, &own.1], 3);
        let mask = self.w.unsqueeze(&mask, &[2]);
        let shape = self.shape;
        let BodyShape { batch, seq_len, .. } = shape;
        let [group, kv_heads] = [self.group(), shape.num_kv_heads];
        let reshape = |w: &mut NodeWriter, value: &str, dims: &[usize]| {
            let keys = [-1];
            let dims = dims.iter().map(|&size| size as i64).chain(keys);
            let dims = w.ints(&dims.collect::<Vec<_>>());
            w.call("Reshape", &[value, &dims])
        };
        let scores = reshape(self.w, &scores, &[batch, kv_heads, group, seq_len]);
        let scores = self.masked(&scores, &mask);
        let (softmax, axis) = softmax(4);
        let weights = self.w.op(softmax, &[&scores], axis);
        reshape(self.w, &weights, &[batch, kv_heads, group * seq_len])
    }

    /// `[B, Hkv, L, L]` bool: which keys of the chunk each of its queries sees. Padding sees only
    /// itself, so that no row is empty.
    fn own_mask(&mut self, heads: &Heads, position: &str, valid: &str) -> String {
        let seq_len = self.shape.seq_len;
        let w = &mut *self.w;
        let row = w.constant(positions(seq_len));
        let column = w.unsqueeze(&row, &[1]);
        let distance = w.call("Sub", &[&column, &row]);
        let zero = w.ints(&[0]);
        let causal = w.call("GreaterOrEqual", &[&distance, &zero]);
        let itself = w.call("Equal", &[&distance, &zero]);
        let window = w.unsqueeze(&heads.window, &[1, 2]);
        let near = w.call("LessOrEqual", &[&distance, &window]);
        // [B, 1, L] against [H, 1].
        let position = w.unsqueeze(position, &[1]);
        let one = w.ints(&[1]);
        let next = w.call("Add", &[&position, &one]);
        let dilation = w.unsqueeze(&heads.dilation, &[1]);
        let dilated = w.unsqueeze(&heads.dilated, &[1]);
        let rest = w.call("Mod", &[&next, &dilation]);
        let on_grid = w.call("Equal", &[&rest, &zero]);
        let kept = w.call("And", &[&on_grid, &dilated]);
        let initial = w.unsqueeze(&heads.initial, &[1]);
        let is_initial = w.call("Less", &[&position, &initial]);
        let kept = w.call("Or", &[&kept, &is_initial]);
        let kept = w.unsqueeze(&kept, &[2]);
        let seen = w.call("Or", &[&kept, &near]);
        // [B, L, 1] to keys on the last axis.
        let valid = w.transpose(valid, &[0, 2, 1]);
        let valid = w.unsqueeze(&valid, &[1]);
        let seen = w.call("And", &[&seen, &valid]);
        let seen = w.call("And", &[&seen, &causal]);
        w.call("Or", &[&seen, &itself])
    }

    /// Cached keys and values by head, `[B, Hkv, rows, dh]` f32. Values of rows that hold nothing
    /// are zeroed: they may be NaN.
    fn cached_rows(
        &mut self,
        heads: &Heads,
        rows: &Rows,
        past_key: &str,
        past_value: &str,
        past: &str,
    ) -> (CachedRows, String) {
        let (position, holds) = self.held(rows, past);
        let w = &mut *self.w;
        let (zero, one, minus_one) = (w.ints(&[0]), w.ints(&[1]), w.ints(&[-1]));
        // A row is seen where base + slope * query >= 0: always, up to a distance of W, or past it.
        let reach = w.call("Add", &[&position, &rows.window]);
        let left = w.call("Add", &[&reach, &one]);
        let left = w.call("Neg", &[&left]);
        let base = w.call("Where", &[&rows.is_window, &reach, &left]);
        let base = w.call("Where", &[&rows.is_initial, &zero, &base]);
        // Below what any query adds: positions of padding reach past M. Some runtimes keep i64 in
        // 32 bits.
        let never = w.ints(&[-((self.shape.max_seq_len + self.shape.seq_len) as i64)]);
        let base = w.call("Where", &[&holds, &base, &never]);
        let slope = w.call("Where", &[&rows.is_window, &minus_one, &one]);
        let slope = w.call("Where", &[&rows.is_initial, &zero, &slope]);
        let holds = w.unsqueeze(&holds, &[2]);
        let values = w.convert(past_value, self.shape.cache_dtype, F32);
        let nothing = w.float(0.0);
        let values = w.call("Where", &[&holds, &values, &nothing]);
        let keys = w.convert(past_key, self.shape.cache_dtype, F32);
        let split = self.split_heads(heads);
        let slope = split.apply(self, &slope, 0, &[]);
        let mut base = split.apply(self, &base, 1, &[]);
        if let Some(inside) = &split.inside {
            base = self.w.call("Where", &[inside, &base, &never]);
        }
        let dim = self.shape.head_dim;
        let keys = split.apply(self, &keys, 1, &[dim]);
        let values = split.apply(self, &values, 1, &[dim]);
        (CachedRows { keys, base, slope }, values)
    }
}

/// Cached rows by head.
struct CachedRows {
    /// `[B, Hkv, rows, dh]` f32.
    keys: String,
    /// `[B, Hkv, rows]`.
    base: String,
    /// `[Hkv, rows]`.
    slope: String,
}

impl CachedRows {
    /// `[B, Hkv, L, rows]` bool: which rows each query sees.
    fn mask(&self, attention: &mut Attention<'_, DilatedAttention>, position: &str) -> String {
        let w = &mut *attention.w;
        let position = w.unsqueeze(position, &[1, 3]);
        let slope = w.unsqueeze(&self.slope, &[1]);
        let base = w.unsqueeze(&self.base, &[2]);
        let shifted = w.call("Mul", &[&slope, &position]);
        let seen = w.call("Add", &[&base, &shifted]);
        let zero = w.ints(&[0]);
        w.call("GreaterOrEqual", &[&seen, &zero])
    }
}
