//! `DilatedAttention`: rotary embedding, masked softmax over cached rows and the chunk, and the
//! cache update.

use super::{DilatedAttention, Inputs, Outputs};
use crate::onnx::{AttributeProto, AttributeType, NodeWriter, TensorProto};
use crate::ops::ElementType;
use crate::ops::body::{
    BodyShape, Call, F32, LengthCheck, finish_rows, lengths, positions, valid_rows,
};

/// Writes one call.
pub(super) fn write(call: Call<'_, '_, DilatedAttention>) {
    let Call {
        w,
        shape,
        operator,
        inputs,
        outputs,
    } = call;
    Attention { w, shape, operator }.write(inputs, outputs);
}

struct Attention<'a> {
    w: &'a mut NodeWriter,
    shape: BodyShape,
    /// `None` in a function, whose nodes have the attributes.
    operator: Option<&'a DilatedAttention>,
}

/// Per-head vectors `[H]`, i64 unless said.
struct Heads {
    dilation: String,
    /// bool: whether there is a dilation.
    dilated: String,
    window: String,
    initial: String,
    rows: String,
    start: String,
    end: String,
}

/// Per-row vectors `[R]`, i64 unless said.
struct Rows {
    head: String,
    /// Row counted from its head's first.
    row: String,
    initial: String,
    window: String,
    /// `row - initial`.
    slot: String,
    /// The position a dilated row holds.
    dilated_position: String,
    /// bool.
    is_initial: String,
    /// bool.
    is_window: String,
}

impl Attention<'_> {
    fn write(&mut self, inputs: Inputs<&str>, outputs: Outputs<&str>) {
        let Inputs {
            query,
            key,
            value,
            past_key,
            past_value,
            past_length,
            seq_length,
            cos,
            sin,
        } = inputs;
        let BodyShape {
            dtype,
            batch,
            seq_len,
            num_heads,
            head_dim,
            ..
        } = self.shape;
        let heads = self.heads();
        let rows = self.rows(&heads, past_key);
        let check = LengthCheck::Room;
        let lengths = lengths(self.w, check, &self.shape, past_length, seq_length);
        let past = self.w.unsqueeze(&lengths.past, &[1]);
        let seq = self.w.unsqueeze(&lengths.seq, &[1]);
        let valid = valid_rows(self.w, seq_len, &lengths.seq);
        let valid4 = self.w.unsqueeze(&valid, &[3]);
        let zero = self.w.float(0.0);

        // Tokens of the chunk: [B, L, H, dh] in f32.
        let row = self.w.constant(positions(seq_len));
        let position = self.w.call("Add", &[&past, &row]);
        let tables = self.rotary_rows(&position, cos, sin);
        let query = self.rotate(query, &tables);
        let key = self.rotate(key, &tables);
        let key = self.w.call("Where", &[&valid4, &key, &zero]);
        let key = self.as_cached(key, F32);
        let value = self.w.convert(value, dtype, F32);
        let value = self.as_cached(value, dtype);
        let value = self
            .w
            .reshape(&value, &[batch, seq_len, num_heads, head_dim]);
        let value = self.w.call("Where", &[&valid4, &value, &zero]);

        // Scores of cached rows [B, H, L, rows] and of the chunk's own keys [B, H, L, L].
        let query = self.w.transpose(&query, &[0, 2, 1, 3]);
        let (cached, cached_values) = self.cached_rows(&heads, &rows, past_key, past_value, &past);
        let scale = self.scale();
        let query = self.w.call("Mul", &[&query, &scale]);
        let own = {
            let key = self.w.transpose(&key, &[0, 2, 3, 1]);
            let scores = self.w.call("MatMul", &[&query, &key]);
            let mask = self.own_mask(&heads, &position, &valid);
            self.masked(&scores, &mask)
        };
        let cached = {
            let mask = cached.mask(self, &position);
            let keys = self.w.transpose(&cached.keys, &[0, 1, 3, 2]);
            let scores = self.w.call("MatMul", &[&query, &keys]);
            self.masked(&scores, &mask)
        };
        let scores = self.w.concat(&[&cached, &own], 3);
        let weights = self
            .w
            .op("Softmax", &[&scores], vec![AttributeProto::int("axis", 3)]);
        let start = self.w.ints(&[-(seq_len as i64)]);
        let (from, axis) = (self.w.ints(&[0]), self.w.ints(&[3]));
        let end = self.w.ints(&[i32::MAX.into()]);
        let cached_weights = self.w.call("Slice", &[&weights, &from, &start, &axis]);
        let own_weights = self.w.call("Slice", &[&weights, &start, &end, &axis]);
        let own_values = self.w.transpose(&value, &[0, 2, 1, 3]);
        let mixed = self.w.call("MatMul", &[&cached_weights, &cached_values]);
        let own_mixed = self.w.call("MatMul", &[&own_weights, &own_values]);
        let mixed = self.w.call("Add", &[&mixed, &own_mixed]);
        let mixed = self.w.transpose(&mixed, &[0, 2, 1, 3]);
        let mixed = self
            .w
            .reshape(&mixed, &[batch, seq_len, num_heads * head_dim]);
        finish_rows(self.w, dtype, &valid, &mixed, &lengths.unused, outputs.output);

        let (written, index) = self.written(&rows, &past, &seq);
        self.update(&written, &index, &key, past_key, outputs.present_key);
        self.update(&written, &index, &value, past_value, outputs.present_value);
    }

    /// f32 `tokens`, each a value of type `exact`, as a later chunk reads them from the cache.
    fn as_cached(&mut self, tokens: String, exact: ElementType) -> String {
        let cache = self.shape.cache_dtype;
        if cache == exact || cache == F32 {
            return tokens;
        }
        let stored = self.w.cast(&tokens, cache);
        self.w.cast(&stored, F32)
    }

    /// Attribute `name` as a vector `[H]`.
    fn per_head(
        &mut self,
        name: &str,
        literal: impl Fn(&DilatedAttention) -> Vec<i64>,
    ) -> String {
        let values = match self.operator {
            Some(attributes) => return self.w.ints(&literal(attributes)),
            None => {
                let value = AttributeProto::reference("value_ints", name, AttributeType::Ints);
                self.w.op("Constant", &[], vec![value])
            }
        };
        let shape = self.w.ints(&[self.shape.num_heads as i64]);
        self.w.call("Expand", &[&values, &shape])
    }

    fn scale(&mut self) -> String {
        let value = match self.operator {
            Some(attributes) => {
                AttributeProto::float("value_float", attributes.scale)
            }
            None => {
                AttributeProto::reference("value_float", "scale", AttributeType::Float)
            }
        };
        self.w.op("Constant", &[], vec![value])
    }

    fn heads(&mut self) -> Heads {
        let list = |f: fn(&crate::pattern::Pattern) -> i64| {
            move |attributes: &DilatedAttention| {
                attributes.patterns.iter().map(f).collect::<Vec<_>>()
            }
        };
        let dilation = self.per_head("dilation", list(|pattern| pattern.dilation_or_minus_one()));
        let window = self.per_head("local_window", list(|pattern| pattern.local_window.into()));
        let initial = self.per_head("initial", list(|pattern| pattern.initial.into()));
        let heads = self.shape.num_heads;
        let w = &mut *self.w;
        let (zero, one) = (w.ints(&[0]), w.ints(&[1]));
        let dilated = w.call("Greater", &[&dilation, &zero]);
        let dilation = w.call("Max", &[&dilation, &one]);
        let max_seq_len = w.ints(&[self.shape.max_seq_len as i64]);
        let slots = w.call("Div", &[&max_seq_len, &dilation]);
        let slots = w.call("Where", &[&dilated, &slots, &zero]);
        let rows = w.call("Add", &[&initial, &window]);
        let rows = w.call("Add", &[&rows, &slots]);
        // Running sum over heads: sum the rows of all heads up to this one.
        let index = w.constant(positions(heads));
        let column = w.unsqueeze(&index, &[1]);
        let upto = w.call("LessOrEqual", &[&index, &column]);
        let counted = w.call("Where", &[&upto, &rows, &zero]);
        let end = w.op(
            "ReduceSum",
            &[&counted, &one],
            vec![AttributeProto::int("keepdims", 0)],
        );
        let start = w.call("Sub", &[&end, &rows]);
        Heads {
            dilation,
            dilated,
            window,
            initial,
            rows,
            start,
            end,
        }
    }

    /// `0 .. R`, where `R` is read from the shape of `past` unless known.
    fn row_indices(&mut self, past: &str) -> String {
        let (zero, one) = (self.w.int(0), self.w.int(1));
        let count = match self.operator {
            Some(attributes) => {
                let rows = attributes.cache_layout(self.shape.max_seq_len).rows();
                self.w.int(rows as i64)
            }
            None => {
                let shape = self.w.call("Shape", &[past]);
                self.w.gather(&shape, &one, 0)
            }
        };
        self.w.call("Range", &[&zero, &count, &one])
    }

    fn rows(&mut self, heads: &Heads, past: &str) -> Rows {
        let index = self.row_indices(past);
        let w = &mut *self.w;
        let one = w.ints(&[1]);
        let column = w.unsqueeze(&index, &[1]);
        let passed = w.call("GreaterOrEqual", &[&column, &heads.end]);
        let passed = w.cast(&passed, ElementType::I64);
        let head = w.op(
            "ReduceSum",
            &[&passed, &one],
            vec![AttributeProto::int("keepdims", 0)],
        );
        let start = w.gather(&heads.start, &head, 0);
        let row = w.call("Sub", &[&index, &start]);
        let initial = w.gather(&heads.initial, &head, 0);
        let window = w.gather(&heads.window, &head, 0);
        let dilation = w.gather(&heads.dilation, &head, 0);
        let is_initial = w.call("Less", &[&row, &initial]);
        let slot = w.call("Sub", &[&row, &initial]);
        let not_initial = w.call("Not", &[&is_initial]);
        let below = w.call("Less", &[&slot, &window]);
        let is_window = w.call("And", &[&not_initial, &below]);
        let count = w.call("Sub", &[&slot, &window]);
        let count = w.call("Add", &[&count, &one]);
        let dilated_position = w.call("Mul", &[&count, &dilation]);
        let dilated_position = w.call("Sub", &[&dilated_position, &one]);
        Rows {
            head,
            row,
            initial,
            window,
            slot,
            dilated_position,
            is_initial,
            is_window,
        }
    }

    /// The position each row holds after `length` `[B, 1]` tokens, and whether it holds one:
    /// `[B, R]` each.
    fn held(&mut self, rows: &Rows, length: &str) -> (String, String) {
        let w = &mut *self.w;
        let (zero, one) = (w.ints(&[0]), w.ints(&[1]));
        let last = w.call("Sub", &[length, &one]);
        let window = w.call("Max", &[&rows.window, &one]);
        let behind = w.call("Sub", &[&last, &rows.slot]);
        let behind = w.call("Add", &[&behind, &window]);
        // Rows of other kinds would make it negative, where Mod differs between runtimes.
        let behind = w.call("Max", &[&behind, &zero]);
        let behind = w.call("Mod", &[&behind, &window]);
        let ring = w.call("Sub", &[&last, &behind]);
        let position = w.call("Where", &[&rows.is_window, &ring, &rows.dilated_position]);
        let position = w.call("Where", &[&rows.is_initial, &rows.row, &position]);
        let begun = w.call("Less", &[&position, length]);
        let not_negative = w.call("GreaterOrEqual", &[&position, &zero]);
        let past_initial = w.call("GreaterOrEqual", &[&position, &rows.initial]);
        let belongs = w.call("Or", &[&rows.is_initial, &past_initial]);
        let holds = w.call("And", &[&begun, &not_negative]);
        let holds = w.call("And", &[&holds, &belongs]);
        (position, holds)
    }

    /// Which rows the chunk writes, `[B, R, 1]` bool, and from which row of `[B * L * H]`,
    /// `[B, R]`.
    fn written(&mut self, rows: &Rows, past: &str, seq: &str) -> (String, String) {
        let BodyShape {
            batch,
            seq_len,
            num_heads,
            ..
        } = self.shape;
        let length = self.w.call("Add", &[past, seq]);
        let (position, holds) = self.held(rows, &length);
        let w = &mut *self.w;
        let recent = w.call("GreaterOrEqual", &[&position, past]);
        let written = w.call("And", &[&holds, &recent]);
        let written = w.unsqueeze(&written, &[2]);
        let token = w.call("Sub", &[&position, past]);
        let (zero, last) = (w.ints(&[0]), w.ints(&[seq_len as i64 - 1]));
        let token = w.call("Max", &[&token, &zero]);
        let token = w.call("Min", &[&token, &last]);
        let slots: Vec<_> = (0..batch).map(|slot| (slot * seq_len) as i64).collect();
        let first = w.constant(TensorProto::i64s(&[batch as i64, 1], &slots));
        let token = w.call("Add", &[&token, &first]);
        let heads = w.ints(&[num_heads as i64]);
        let index = w.call("Mul", &[&token, &heads]);
        let index = w.call("Add", &[&index, &rows.head]);
        (written, index)
    }

    /// `present`: rows of `tokens` `[B, L, H, dh]` f32 where written, else `past`.
    fn update(&mut self, written: &str, index: &str, tokens: &str, past: &str, present: &str) {
        let BodyShape {
            cache_dtype,
            batch,
            seq_len,
            num_heads,
            head_dim,
            ..
        } = self.shape;
        let tokens = self
            .w
            .reshape(tokens, &[batch * seq_len * num_heads, head_dim]);
        let fresh = self.w.gather(&tokens, index, 0);
        let past = self.w.convert(past, cache_dtype, F32);
        if cache_dtype == F32 {
            self.w.push(
                "",
                "Where",
                &[written, &fresh, &past],
                &[present],
                Vec::new(),
            );
        } else {
            let rows = self.w.call("Where", &[written, &fresh, &past]);
            self.w.cast_as(&rows, cache_dtype, present);
        }
    }

    /// Rows of the rotary tables for each token: `[B, L, 1, dh / 2]` each.
    fn rotary_rows(&mut self, position: &str, cos: &str, sin: &str) -> [String; 2] {
        // Padding may lie past the table.
        let last = self.w.ints(&[self.shape.max_seq_len as i64 - 1]);
        let position = self.w.call("Min", &[position, &last]);
        [cos, sin].map(|table| {
            let rows = self.w.gather(table, &position, 0);
            self.w.unsqueeze(&rows, &[2])
        })
    }

    /// Half-split rotary embedding: `[B, L, H * dh]` T to `[B, L, H, dh]` f32.
    fn rotate(&mut self, tokens: &str, [cos, sin]: &[String; 2]) -> String {
        let BodyShape {
            dtype,
            batch,
            seq_len,
            num_heads,
            head_dim,
            ..
        } = self.shape;
        let w = &mut *self.w;
        let tokens = w.convert(tokens, dtype, F32);
        let tokens = w.reshape(&tokens, &[batch, seq_len, num_heads, head_dim]);
        let halves = w.split(&tokens, 3, &[head_dim / 2; 2]);
        let (low, high) = (&halves[0], &halves[1]);
        let low_cos = w.call("Mul", &[low, cos]);
        let high_sin = w.call("Mul", &[high, sin]);
        let high_cos = w.call("Mul", &[high, cos]);
        let low_sin = w.call("Mul", &[low, sin]);
        let first = w.call("Sub", &[&low_cos, &high_sin]);
        let second = w.call("Add", &[&high_cos, &low_sin]);
        w.concat(&[&first, &second], 3)
    }

    /// `[B, H, L, L]` bool: which keys of the chunk each of its queries sees. Padding sees only
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

    fn masked(&mut self, scores: &str, mask: &str) -> String {
        let hidden = self.w.float(f32::NEG_INFINITY);
        self.w.call("Where", &[mask, scores, &hidden])
    }

    /// Cached keys and values by head, `[B, H, rows, dh]` f32. Values of rows that hold nothing
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

    /// How the row axis becomes (head, row): a reshape where all heads are known to own equally
    /// many, else a gather padded to the longest head.
    fn split_heads(&mut self, heads: &Heads) -> HeadSplit {
        let BodyShape {
            num_heads,
            max_seq_len,
            ..
        } = self.shape;
        let longest = match self.operator {
            Some(attributes) => {
                let layout = attributes.cache_layout(max_seq_len);
                let longest = layout
                    .heads()
                    .iter()
                    .map(|head| head.rows)
                    .max()
                    .unwrap_or(0);
                // To Reshape, 0 rows would mean a copy of the input's dimension.
                if longest > 0 && longest * num_heads == layout.rows() {
                    return HeadSplit {
                        rows: Some(longest),
                        index: String::new(),
                        inside: None,
                    };
                }
                self.w.int(longest as i64)
            }
            None => {
                let none = AttributeProto::int("keepdims", 0);
                self.w.op("ReduceMax", &[&heads.rows], vec![none])
            }
        };
        let w = &mut *self.w;
        let (zero, one) = (w.int(0), w.int(1));
        let row = w.call("Range", &[&zero, &longest, &one]);
        let rows = w.unsqueeze(&heads.rows, &[1]);
        let inside = w.call("Less", &[&row, &rows]);
        let start = w.unsqueeze(&heads.start, &[1]);
        let index = w.call("Add", &[&start, &row]);
        let index = w.call("Where", &[&inside, &index, &zero]);
        HeadSplit {
            rows: None,
            index,
            inside: Some(inside),
        }
    }
}

/// See [`Attention::split_heads`].
struct HeadSplit {
    rows: Option<usize>,
    index: String,
    /// `[H, rows]` bool: whether a row is the head's own.
    inside: Option<String>,
}

impl HeadSplit {
    /// Splits `axis` of a value with `rest` dimensions after it; axis 1 comes after the batch.
    fn apply(
        &self,
        attention: &mut Attention<'_>,
        value: &str,
        axis: i64,
        rest: &[usize],
    ) -> String {
        let BodyShape {
            batch, num_heads, ..
        } = attention.shape;
        match self.rows {
            None => attention.w.gather(value, &self.index, axis),
            Some(rows) => {
                let mut shape = if axis == 1 { vec![batch] } else { Vec::new() };
                shape.extend([num_heads, rows]);
                shape.extend(rest);
                attention.w.reshape(value, &shape)
            }
        }
    }
}

/// Cached rows by head.
struct CachedRows {
    /// `[B, H, rows, dh]` f32.
    keys: String,
    /// `[B, H, rows]`.
    base: String,
    /// `[H, rows]`.
    slope: String,
}

impl CachedRows {
    /// `[B, H, L, rows]` bool: which rows each query sees.
    fn mask(&self, attention: &mut Attention<'_>, position: &str) -> String {
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
