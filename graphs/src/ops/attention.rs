//! What every kind of attention has: numbers of heads and the sizes they ask for, and in its body rotary embedding,
//! groups of heads, what the cache rounds.

use super::body::{BodyShape, F32};
use super::{Axis, ElementType, Inferred};
use crate::onnx::{AttributeProto, AttributeType, NodeWriter};

/// More heads than any model has; bounds allocations that follow an attribute.
const MAX_HEADS: i64 = 1 << 16;

/// Numbers of heads.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub query: usize,
    /// A divisor of `query`.
    pub kv: usize,
}

impl Heads {
    /// Those of a node's attributes; 1 where they are wrong, which is said.
    pub(super) fn new(
        num_heads: i64,
        num_kv_heads: Option<i64>,
        scale: f32,
        errors: &mut Vec<String>,
    ) -> Self {
        let kv_heads = num_kv_heads.unwrap_or(num_heads);
        let mut heads = Self { query: 1, kv: 1 };
        if !(1..=MAX_HEADS).contains(&num_heads) {
            errors.push(format!(
                "attribute num_heads: expected 1 to {MAX_HEADS}, found {num_heads}"
            ));
        } else if !(1..=num_heads).contains(&kv_heads) || num_heads % kv_heads != 0 {
            errors.push(format!(
                "attribute num_kv_heads: expected a divisor of num_heads {num_heads}, found {kv_heads}"
            ));
        } else {
            heads = Self {
                query: num_heads as usize,
                kv: kv_heads as usize,
            };
        }
        if !scale.is_finite() {
            errors.push(format!(
                "attribute scale: expected a finite number, found {scale}"
            ));
        }
        heads
    }
}

/// What sizes say against one another, those of rows apart.
pub(super) fn check_sizes(heads: Heads, node: &Inferred, errors: &mut Vec<String>) {
    use Axis::{Channels, HalfHeadDim, HeadDim, KvChannels, MaxSeqLen, SeqLen};
    let dims = &node.dims;
    if let Some(head_dim) = dims.get(HeadDim) {
        for (axis, what, count) in [
            (Channels, "num_heads", heads.query),
            (KvChannels, "num_kv_heads", heads.kv),
        ] {
            if let Some(channels) = dims.get(axis)
                && count.checked_mul(head_dim) != Some(channels)
            {
                errors.push(format!(
                    "{}: expected {what} x dh = {count} x {head_dim}, found {channels}",
                    axis.name()
                ));
            }
        }
        if head_dim == 0 || head_dim % 2 == 1 {
            errors.push(format!("dh: expected an even number, found {head_dim}"));
        }
        if let Some(half) = dims.get(HalfHeadDim)
            && half != head_dim / 2
        {
            errors.push(format!(
                "cos, sin: expected dh/2 = {}, found {half}",
                head_dim / 2
            ));
        }
    }
    if let (Some(seq_len), Some(max_seq_len)) = (dims.get(SeqLen), dims.get(MaxSeqLen))
        && seq_len > max_seq_len
    {
        errors.push(format!(
            "L: expected at most M = {max_seq_len}, found {seq_len}"
        ));
    }
}

/// The body of an attention operator `O`.
pub(super) struct Attention<'a, O> {
    pub w: &'a mut NodeWriter,
    pub shape: BodyShape,
    /// `None` in a function, whose nodes have the attributes.
    pub operator: Option<&'a O>,
}

impl<O> Attention<'_, O> {
    /// `[B, L, H, dh]`.
    pub(super) fn by_head(&self) -> [usize; 4] {
        let shape = self.shape;
        [shape.batch, shape.seq_len, shape.num_heads, shape.head_dim]
    }

    /// `[B, L, Hkv, dh]`.
    pub(super) fn by_kv_head(&self) -> [usize; 4] {
        let shape = self.shape;
        let heads = shape.num_kv_heads;
        [shape.batch, shape.seq_len, heads, shape.head_dim]
    }

    pub(super) fn is_grouped(&self) -> bool {
        self.shape.num_kv_heads != self.shape.num_heads
    }

    /// Query heads of a key-value head.
    pub(super) fn group(&self) -> usize {
        self.shape.num_heads / self.shape.num_kv_heads
    }

    /// `[B, H, L, width]`; where heads are grouped, `[B, Hkv, group * L, width]`: one product has all that reads the same
    /// keys.
    pub(super) fn together(&mut self, value: &str, width: usize) -> String {
        if !self.is_grouped() {
            return value.to_owned();
        }
        let shape = self.shape;
        let rows = self.group() * shape.seq_len;
        self.w
            .reshape(value, &[shape.batch, shape.num_kv_heads, rows, width])
    }

    /// f32 `tokens`, each a value of type `exact`, as a later chunk reads them from the cache.
    pub(super) fn as_cached(&mut self, tokens: String, exact: ElementType) -> String {
        let cache = self.shape.cache_dtype;
        if cache == exact || cache == F32 {
            return tokens;
        }
        let stored = self.w.cast(&tokens, cache);
        self.w.cast(&stored, F32)
    }

    /// The attribute `scale`, as far as it is known.
    pub(super) fn scale(&mut self, known: Option<f32>) -> String {
        let value = match known {
            Some(scale) => AttributeProto::float("value_float", scale),
            None => AttributeProto::reference("value_float", "scale", AttributeType::Float),
        };
        self.w.op("Constant", &[], vec![value])
    }

    /// Rows of the rotary tables for each token: `[B, L, 1, dh / 2]` each.
    pub(super) fn rotary_rows(&mut self, position: &str, tables: [&str; 2]) -> [String; 2] {
        // Padding may lie past the table.
        let last = self.w.ints(&[self.shape.max_seq_len as i64 - 1]);
        let position = self.w.call("Min", &[position, &last]);
        tables.map(|table| {
            let rows = self.w.gather(table, &position, 0);
            self.w.unsqueeze(&rows, &[2])
        })
    }

    /// Half-split rotary embedding: `[B, L, heads * dh]` T to `[B, L, heads, dh]` f32.
    pub(super) fn rotate(
        &mut self,
        tokens: &str,
        [cos, sin]: &[String; 2],
        by_head: &[usize],
    ) -> String {
        let shape = self.shape;
        let w = &mut *self.w;
        let tokens = w.convert(tokens, shape.dtype, F32);
        let tokens = w.reshape(&tokens, by_head);
        let halves = w.split(&tokens, 3, &[shape.head_dim / 2; 2]);
        let (low, high) = (&halves[0], &halves[1]);
        let low_cos = w.call("Mul", &[low, cos]);
        let high_sin = w.call("Mul", &[high, sin]);
        let high_cos = w.call("Mul", &[high, cos]);
        let low_sin = w.call("Mul", &[low, sin]);
        let first = w.call("Sub", &[&low_cos, &high_sin]);
        let second = w.call("Add", &[&high_cos, &low_sin]);
        w.concat(&[&first, &second], 3)
    }

    pub(super) fn masked(&mut self, scores: &str, mask: &str) -> String {
        let hidden = self.w.float(f32::NEG_INFINITY);
        self.w.call("Where", &[mask, scores, &hidden])
    }
}
