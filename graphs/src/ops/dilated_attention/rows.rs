//! Which key-value head owns a cached row, what the row holds, and which rows a chunk writes.

use super::DilatedAttention;
use crate::onnx::{AttributeProto, AttributeType, TensorProto};
use crate::ops::ElementType;
use crate::ops::attention::Attention;
use crate::ops::body::{F32, positions, select};
use crate::pattern::Pattern;

/// Vectors over key-value heads, `[Hkv]`, i64 unless said.
pub(super) struct Heads {
    pub dilation: String,
    /// bool: whether there is a dilation.
    pub dilated: String,
    pub window: String,
    pub initial: String,
    pub rows: String,
    pub start: String,
    pub end: String,
}

/// Per-row vectors `[R]`, i64 unless said.
pub(super) struct Rows {
    pub head: String,
    /// Row counted from its head's first.
    pub row: String,
    pub initial: String,
    pub window: String,
    /// `row - initial`.
    pub slot: String,
    /// The position a dilated row holds.
    pub dilated_position: String,
    /// bool.
    pub is_initial: String,
    /// bool.
    pub is_window: String,
}

impl Attention<'_, DilatedAttention> {
    /// Attribute `name` as a vector `[Hkv]`.
    fn per_head(&mut self, name: &str, value: fn(&Pattern) -> i64) -> String {
        let values = match self.operator {
            Some(attributes) => {
                let values: Vec<_> = attributes.patterns.iter().map(value).collect();
                return self.w.ints(&values);
            }
            None => {
                let value = AttributeProto::reference("value_ints", name, AttributeType::Ints);
                self.w.op("Constant", &[], vec![value])
            }
        };
        let shape = self.w.ints(&[self.shape.num_kv_heads as i64]);
        self.w.call("Expand", &[&values, &shape])
    }

    pub(super) fn heads(&mut self) -> Heads {
        let dilation = self.per_head("dilation", Pattern::dilation_or_minus_one);
        let window = self.per_head("local_window", |pattern| pattern.local_window.into());
        let initial = self.per_head("initial", |pattern| pattern.initial.into());
        let heads = self.shape.num_kv_heads;
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
        let end = w.sum(&counted, &one);
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

    pub(super) fn rows(&mut self, heads: &Heads, past: &str) -> Rows {
        let index = self.row_indices(past);
        let w = &mut *self.w;
        let one = w.ints(&[1]);
        let column = w.unsqueeze(&index, &[1]);
        let passed = w.call("GreaterOrEqual", &[&column, &heads.end]);
        let passed = w.cast(&passed, ElementType::I64);
        let head = w.sum(&passed, &one);
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
    pub(super) fn held(&mut self, rows: &Rows, length: &str) -> (String, String) {
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

    /// Which rows the chunk writes, `[B, R, 1]` bool, and from which row of `[B * L * Hkv]`,
    /// `[B, R]`.
    pub(super) fn written(&mut self, rows: &Rows, past: &str, seq: &str) -> (String, String) {
        let [batch, seq_len, num_kv_heads, _] = self.by_kv_head();
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
        let heads = w.ints(&[num_kv_heads as i64]);
        let index = w.call("Mul", &[&token, &heads]);
        let index = w.call("Add", &[&index, &rows.head]);
        (written, index)
    }

    /// `written`, known once `result` `[B, L, N]` is: past and present may be one buffer, and every row
    /// is read for it.
    pub(super) fn after(&mut self, result: &str, written: String) -> String {
        let first = self.w.slice(result, 1, 0, 1);
        let first = self.w.slice(&first, 2, 0, 1);
        // Never, of NaN neither.
        let never = self.w.call("Less", &[&first, &first]);
        self.w.call("Or", &[&written, &never])
    }

    /// `present`: rows of `tokens` `[B, L, Hkv, dh]` f32 where written, else `past`.
    pub(super) fn update(
        &mut self,
        written: &str,
        index: &str,
        tokens: &str,
        past: &str,
        present: &str,
    ) {
        let [batch, seq_len, heads, head_dim] = self.by_kv_head();
        let cache = self.shape.cache_dtype;
        let tokens = self.w.reshape(tokens, &[batch * seq_len * heads, head_dim]);
        let fresh = self.w.gather(&tokens, index, 0);
        let past = self.w.convert(past, cache, F32);
        select(self.w, cache, [written, &fresh, &past], present);
    }

    /// How the row axis becomes (head, row): a reshape where all heads are known to own equally
    /// many, else a gather padded to the longest head.
    pub(super) fn split_heads(&mut self, heads: &Heads) -> HeadSplit {
        let longest = match self.operator {
            Some(attributes) => {
                let layout = attributes.cache_layout(self.shape.max_seq_len);
                let rows = layout.heads().iter().map(|head| head.rows);
                let longest = rows.max().unwrap_or(0);
                // To Reshape, 0 rows would mean a copy of the input's dimension.
                if longest > 0 && longest * self.shape.num_kv_heads == layout.rows() {
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
pub(super) struct HeadSplit {
    pub rows: Option<usize>,
    pub index: String,
    /// `[Hkv, rows]` bool: whether a row is the head's own.
    pub inside: Option<String>,
}

impl HeadSplit {
    /// Splits `axis` of a value with `rest` dimensions after it; axis 1 comes after the batch.
    pub(super) fn apply(
        &self,
        attention: &mut Attention<'_, DilatedAttention>,
        value: &str,
        axis: i64,
        rest: &[usize],
    ) -> String {
        match self.rows {
            None => attention.w.gather(value, &self.index, axis),
            Some(rows) => {
                let batch = (axis == 1).then_some(attention.shape.batch);
                let mut shape = Vec::from_iter(batch);
                shape.extend([attention.shape.num_kv_heads, rows]);
                shape.extend(rest);
                attention.w.reshape(value, &shape)
            }
        }
    }
}
