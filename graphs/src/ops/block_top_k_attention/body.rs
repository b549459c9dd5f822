//! `BlockTopKAttention`: the cache and the summaries after the chunk, then every query against all of
//! them, in standard operators.

use super::{BlockTopKAttention, Inputs, Outputs};
use crate::blocks::Score;
use crate::onnx::{AttributeProto, AttributeType, TensorProto};
use crate::ops::attention::Attention;
use crate::ops::body::{BodyShape, Call, F32, LengthCheck, lengths, positions, select, valid_rows};

/// Writes one call.
pub(super) fn write(call: Call<'_, '_, BlockTopKAttention>) {
    let mut attention = Attention {
        w: call.w,
        shape: call.shape,
        operator: call.operator,
    };
    attention.write(call.inputs, call.outputs);
}

/// Sizes that the attributes decide; where those are known, so are they.
struct Sizes {
    /// `S`, a scalar.
    block_size: String,
    /// Blocks of the longest sequence, `[1]`.
    blocks: String,
    /// `0 ..` blocks.
    block: String,
    /// The block of every position, `[M]`.
    block_of: String,
}

/// Where tokens of a chunk go.
struct Chunk<'a> {
    /// Tokens before it, `[B, 1]`.
    past: &'a str,
    /// Its tokens, `[B, 1]`.
    seq: &'a str,
    /// Tokens after it, `[B, 1]`.
    end: &'a str,
    /// `0 .. M`.
    position: &'a str,
}

impl Attention<'_, BlockTopKAttention> {
    fn write(&mut self, inputs: Inputs<&str>, outputs: Outputs<&str>) {
        let (shape, dtype) = (self.shape, self.shape.dtype);
        let BodyShape { batch, seq_len, .. } = shape;
        let (heads, dim) = (shape.num_kv_heads, shape.head_dim);
        let given = [inputs.past_length, inputs.seq_length];
        let lengths = lengths(self.w, LengthCheck::Room, &shape, given);
        let past = self.w.unsqueeze(&lengths.past, &[1]);
        let seq = self.w.unsqueeze(&lengths.seq, &[1]);
        let end = self.w.call("Add", &[&past, &seq]);
        let valid = valid_rows(self.w, seq_len, &lengths.seq);
        let row = self.w.constant(positions(seq_len));
        let query_position = self.w.call("Add", &[&past, &row]);
        let tables = self.rotary_rows(&query_position, [inputs.cos, inputs.sin]);
        let query = self.rotate(inputs.query, &tables, &self.by_head());
        let key = self.rotate(inputs.key, &tables, &self.by_kv_head());
        let key = self.as_cached(key, F32);
        let value = self.w.convert(inputs.value, dtype, F32);
        let value = self.as_cached(value, dtype);
        let tokens = [batch * seq_len, heads * dim];
        let [key, value] = [key, value].map(|tokens_of| self.w.reshape(&tokens_of, &tokens));

        // The cache after the chunk.
        let position = self.w.constant(positions(shape.max_seq_len));
        let chunk = Chunk {
            past: &past,
            seq: &seq,
            end: &end,
            position: &position,
        };
        let fresh = self.fresh_rows(&chunk);
        let keys = self.update(&fresh, &key, inputs.past_key, outputs.present_key);
        let values = self.update(&fresh, &value, inputs.past_value, outputs.present_value);
        let held = self.w.call("Less", &[&position, &end]);
        let held = self.w.unsqueeze(&held, &[1, 3]);
        let nothing = self.w.float(0.0);
        let values = self.w.call("Where", &[&held, &values, &nothing]);

        let sizes = self.sizes();
        let summaries = self.summaries(
            &sizes,
            &chunk,
            &key,
            inputs.past_block,
            outputs.present_block,
        );
        let query = self.w.transpose(&query, &[0, 2, 1, 3]);
        let query = self.together(&query, dim);
        let blocks = self.seen_blocks(&sizes, &query, &query_position, summaries);
        let mask = self.mask(&sizes, &blocks, &query_position, &position);

        let scale = self.scale(self.operator.map(|operator| operator.scale));
        let query = self.w.call("Mul", &[&query, &scale]);
        let keys = self.w.transpose(&keys, &[0, 1, 3, 2]);
        let scores = self.w.call("MatMul", &[&query, &keys]);
        let by_query = [batch, shape.num_heads, seq_len, shape.max_seq_len];
        let scores = self.apart(&scores, &by_query);
        let scores = self.masked(&scores, &mask);
        let last = vec![AttributeProto::int("axis", 3)];
        let weights = self.w.op("Softmax", &[&scores], last);
        let weights = self.together(&weights, shape.max_seq_len);
        let mixed = self.w.call("MatMul", &[&weights, &values]);
        let mixed = self.apart(&mixed, &[batch, shape.num_heads, seq_len, dim]);
        let mixed = self.w.transpose(&mixed, &[0, 2, 1, 3]);
        let mixed = self
            .w
            .reshape(&mixed, &[batch, seq_len, shape.num_heads * dim]);
        select(
            self.w,
            dtype,
            [&valid, &mixed, &lengths.unused],
            outputs.output,
        );
    }

    /// The opposite of [`together`](Self::together).
    fn apart(&mut self, value: &str, by_query: &[usize; 4]) -> String {
        match self.is_grouped() {
            true => self.w.reshape(value, by_query),
            false => value.to_owned(),
        }
    }

    /// An attribute that is an integer, a scalar.
    fn attribute(&mut self, name: &str, known: impl Fn(&BlockTopKAttention) -> i64) -> String {
        match self.operator {
            Some(operator) => self.w.int(known(operator)),
            None => {
                let value = AttributeProto::reference("value_int", name, AttributeType::Int);
                self.w.op("Constant", &[], vec![value])
            }
        }
    }

    /// `0 .. count`, a scalar, or as many as are known.
    fn range(&mut self, count: &str, known: Option<usize>) -> String {
        match known {
            Some(count) => self.w.constant(positions(count)),
            None => {
                let (zero, one) = (self.w.int(0), self.w.int(1));
                self.w.call("Range", &[&zero, count, &one])
            }
        }
    }

    fn sizes(&mut self) -> Sizes {
        let block_size = self.attribute("block_size", |of| of.blocks.block_size.into());
        let max_seq_len = self.shape.max_seq_len;
        let known = self.operator.map(|of| of.blocks);
        let count = known.map(|blocks| blocks.blocks(max_seq_len));
        let blocks = match count {
            Some(count) => self.w.int(count as i64),
            None => {
                let last = self.w.int(max_seq_len as i64 - 1);
                let last = self.w.call("Div", &[&last, &block_size]);
                let one = self.w.int(1);
                self.w.call("Add", &[&last, &one])
            }
        };
        let block = self.range(&blocks, count);
        let block_of = match known {
            Some(blocks) => {
                let of: Vec<_> = (0..max_seq_len)
                    .map(|position| blocks.block_of(position) as i64)
                    .collect();
                self.w.ints(&of)
            }
            None => {
                let position = self.w.constant(positions(max_seq_len));
                self.w.call("Div", &[&position, &block_size])
            }
        };
        Sizes {
            block_size,
            blocks: self.w.unsqueeze(&blocks, &[0]),
            block,
            block_of,
        }
    }

    /// Which rows the chunk writes, `[B, R, 1]` bool, and of which of its tokens, `[B, M]`.
    fn fresh_rows(&mut self, chunk: &Chunk<'_>) -> (String, String) {
        let shape = self.shape;
        let (heads, max_seq_len) = (shape.num_kv_heads, shape.max_seq_len);
        let begun = self.w.call("GreaterOrEqual", &[chunk.position, chunk.past]);
        let before = self.w.call("Less", &[chunk.position, chunk.end]);
        let written = self.w.call("And", &[&begun, &before]);
        let written = self.w.unsqueeze(&written, &[1]);
        let all = self
            .w
            .ints(&[shape.batch as i64, heads as i64, max_seq_len as i64]);
        let written = self.w.call("Expand", &[&written, &all]);
        let written = self
            .w
            .reshape(&written, &[shape.batch, heads * max_seq_len, 1]);
        let token = self.w.call("Sub", &[chunk.position, chunk.past]);
        (written, self.token_rows(&token, 2))
    }

    /// Tokens `[B, ..]` of a chunk, counted from its start and cut to it, as rows of `[B * L, ..]`.
    fn token_rows(&mut self, token: &str, rank: usize) -> String {
        let BodyShape { batch, seq_len, .. } = self.shape;
        let (first, last) = (self.w.ints(&[0]), self.w.ints(&[seq_len as i64 - 1]));
        let token = self.w.call("Max", &[token, &first]);
        let token = self.w.call("Min", &[&token, &last]);
        let slots: Vec<_> = (0..batch).map(|slot| (slot * seq_len) as i64).collect();
        let mut dims = vec![1; rank];
        dims[0] = batch as i64;
        let first = self.w.constant(TensorProto::i64s(&dims, &slots));
        self.w.call("Add", &[&token, &first])
    }

    /// Writes `present`, rows of `tokens` `[B * L, Nkv]` where fresh, else `past`; by head it is `[B, Hkv, M, dh]` f32.
    fn update(
        &mut self,
        (written, token): &(String, String),
        tokens: &str,
        past: &str,
        present: &str,
    ) -> String {
        let shape = self.shape;
        let (batch, heads, dim) = (shape.batch, shape.num_kv_heads, shape.head_dim);
        let max_seq_len = shape.max_seq_len;
        let fresh = self.w.gather(tokens, token, 0);
        let fresh = self.w.reshape(&fresh, &[batch, max_seq_len, heads, dim]);
        let fresh = self.w.transpose(&fresh, &[0, 2, 1, 3]);
        let fresh = self.w.reshape(&fresh, &[batch, heads * max_seq_len, dim]);
        let past = self.w.convert(past, shape.cache_dtype, F32);
        let operands = [written, &*fresh, &past];
        let rows = match shape.cache_dtype {
            F32 => {
                select(self.w, F32, operands, present);
                present.to_owned()
            }
            cache => {
                let rows = self.w.call("Where", &operands);
                self.w.cast_as(&rows, cache, present);
                rows
            }
        };
        self.w.reshape(&rows, &[batch, heads, max_seq_len, dim])
    }

    /// Writes the summaries after the chunk; what queries take of them, `[B, Hkv, blocks, dh]` each: first and last row
    /// of a block, which may be one.
    fn summaries(
        &mut self,
        sizes: &Sizes,
        chunk: &Chunk<'_>,
        key: &str,
        past_block: &str,
        present_block: &str,
    ) -> [String; 2] {
        let shape = self.shape;
        let (batch, heads, dim) = (shape.batch, shape.num_kv_heads, shape.head_dim);
        let score = self.operator.map(|operator| operator.blocks.score);
        let by_block = |of: &mut Self, rest: [i64; 2]| {
            let before = of.w.ints(&[batch as i64, heads as i64]);
            let rest = of.w.ints(&rest);
            of.w.concat(&[&before, &sizes.blocks, &rest], 0)
        };
        // [B, Hkv, blocks, parts, dh].
        let parts = score.map_or(-1, |score| score.parts() as i64);
        let dims = by_block(self, [parts, dim as i64]);
        let past = self.w.call("Reshape", &[past_block, &dims]);
        let zero = self.w.int(0);
        let one = self.w.int(1);
        let (first, last, is_sum) = match score {
            Some(score) => {
                let last = self.w.int(score.parts() as i64 - 1);
                (zero.clone(), last, None)
            }
            None => {
                let dims = self.w.call("Shape", &[&past]);
                let three = self.w.int(3);
                let parts = self.w.gather(&dims, &three, 0);
                let last = self.w.call("Sub", &[&parts, &one]);
                let is_sum = self.w.call("Equal", &[&parts, &one]);
                (zero.clone(), last, Some(is_sum))
            }
        };
        let past_first = self.w.gather(&past, &first, 3);
        let past_last = self.w.gather(&past, &last, 3);

        // Of the tokens of the chunk: [B, touched, S] of them.
        let seq_len = shape.seq_len;
        let known = self
            .operator
            .map(|operator| operator.blocks.block_size as usize);
        let touched = known.map(|size| (seq_len + size - 2) / size + 1);
        let count = {
            let most = self.w.int(seq_len as i64 - 2);
            let most = self.w.call("Add", &[&most, &sizes.block_size]);
            let most = self.w.call("Div", &[&most, &sizes.block_size]);
            self.w.call("Add", &[&most, &one])
        };
        let column = self.range(&sizes.block_size, known);
        let nth = self.range(&count, touched);
        let own = self.w.call("Div", &[chunk.past, &sizes.block_size]);
        let block = self.w.call("Add", &[&own, &nth]);
        let start = self.w.call("Mul", &[&block, &sizes.block_size]);
        let start = self.w.call("Sub", &[&start, chunk.past]);
        let start = self.w.unsqueeze(&start, &[2]);
        let token = self.w.call("Add", &[&start, &column]);
        let counted = self.w.call("GreaterOrEqual", &[&token, &zero]);
        let seq = self.w.unsqueeze(chunk.seq, &[2]);
        let below = self.w.call("Less", &[&token, &seq]);
        let inside = self.w.call("And", &[&counted, &below]);
        let inside = self.w.unsqueeze(&inside, &[3]);
        let rows = self.token_rows(&token, 3);
        let keys = self.w.gather(key, &rows, 0);
        // The block in the chunk, of all blocks, and whether it is there: [B, blocks].
        let behind = self.w.call("Sub", &[&sizes.block, &own]);
        let most = self.w.call("Sub", &[&count, &one]);
        let nth = self.w.call("Max", &[&behind, &zero]);
        let nth = self.w.call("Min", &[&nth, &most]);
        let slots: Vec<_> = (0..batch as i64).collect();
        let slots = self
            .w
            .constant(TensorProto::i64s(&[batch as i64, 1], &slots));
        let slots = self.w.call("Mul", &[&slots, &count]);
        let nth = self.w.call("Add", &[&nth, &slots]);
        let begins = self.w.call("Mul", &[&sizes.block, &sizes.block_size]);
        let reached = self.w.call("Less", &[&begins, chunk.end]);
        let left = self.w.call("GreaterOrEqual", &[&behind, &zero]);
        let any = self.w.call("Greater", &[chunk.seq, &zero]);
        let there = self.w.call("And", &[&reached, &left]);
        let there = self.w.call("And", &[&there, &any]);
        let there = self.w.unsqueeze(&there, &[1, 3]);
        let continues = self.w.call("Less", &[&begins, chunk.past]);
        let continues = self.w.unsqueeze(&continues, &[1, 3]);

        let reduced = |of: &mut Self, reduce: &str, join: &str, none: f32, past: &str| {
            let none = of.w.float(none);
            let keys = of.w.call("Where", &[&inside, &keys, &none]);
            let axis = of.w.ints(&[2]);
            let gone = vec![AttributeProto::int("keepdims", 0)];
            let found = of.w.op(reduce, &[&keys, &axis], gone);
            let flat = of.w.ints(&[-1, (heads * dim) as i64]);
            let found = of.w.call("Reshape", &[&found, &flat]);
            let found = of.w.gather(&found, &nth, 0);
            let found = {
                let before = of.w.ints(&[batch as i64]);
                let rest = of.w.ints(&[heads as i64, dim as i64]);
                let dims = of.w.concat(&[&before, &sizes.blocks, &rest], 0);
                of.w.call("Reshape", &[&found, &dims])
            };
            let found = of.w.transpose(&found, &[0, 2, 1, 3]);
            let joined = of.w.call(join, &[past, &found]);
            of.w.call("Where", &[&continues, &joined, &found])
        };
        let least = |of: &mut Self| reduced(of, "ReduceMin", "Min", f32::INFINITY, &past_first);
        let greatest =
            |of: &mut Self| reduced(of, "ReduceMax", "Max", f32::NEG_INFINITY, &past_last);
        let sum = |of: &mut Self| reduced(of, "ReduceSum", "Add", 0.0, &past_first);
        let [now_first, now_last] = match (score, &is_sum) {
            (Some(Score::Bounds), _) => [least(self), greatest(self)],
            (Some(Score::Mean), _) => {
                let sum = sum(self);
                [sum.clone(), sum]
            }
            (None, is_sum) => {
                let of = [least(self), greatest(self)];
                let sum = sum(self);
                let is_sum = is_sum.as_deref().unwrap_or_default();
                of.map(|bound| self.w.call("Where", &[is_sum, &sum, &bound]))
            }
        };
        let first = self.w.call("Where", &[&there, &now_first, &past_first]);
        let last = match score {
            Some(Score::Mean) => first.clone(),
            _ => self.w.call("Where", &[&there, &now_last, &past_last]),
        };
        // One row of every block, or both.
        let [above, below] = [&first, &last].map(|rows| self.w.unsqueeze(rows, &[3]));
        let both = match score {
            Some(Score::Mean) => above,
            Some(Score::Bounds) => self.w.concat(&[&above, &below], 3),
            None => {
                let both = self.w.concat(&[&above, &below], 3);
                let from = self.w.ints(&[0]);
                let dims = self.w.call("Shape", &[&past]);
                let axis = self.w.ints(&[3]);
                let parts = self.w.gather(&dims, &axis, 0);
                self.w.call("Slice", &[&both, &from, &parts, &axis])
            }
        };
        let flat = self.w.ints(&[batch as i64, -1, dim as i64]);
        self.w
            .push("", "Reshape", &[&both, &flat], &[present_block], Vec::new());
        [first, last]
    }

    /// `[B, H, L, blocks]` bool: the blocks that a query at `position` `[B, L]` sees whole. `query` is as
    /// [`together`](Self::together) makes it.
    fn seen_blocks(
        &mut self,
        sizes: &Sizes,
        query: &str,
        position: &str,
        [first, last]: [String; 2],
    ) -> String {
        let shape = self.shape;
        let score = self.operator.map(|operator| operator.blocks.score);
        let [first, last] = [first, last].map(|rows| self.w.transpose(&rows, &[0, 1, 3, 2]));
        let scores = match score {
            Some(Score::Mean) => self.w.call("MatMul", &[query, &first]),
            // Of a block's sum both are the same, and of their products so is the query's.
            _ => {
                let zero = self.w.float(0.0);
                let above = self.w.call("Max", &[query, &zero]);
                let below = self.w.call("Min", &[query, &zero]);
                let above = self.w.call("MatMul", &[&above, &last]);
                let below = self.w.call("MatMul", &[&below, &first]);
                self.w.call("Add", &[&above, &below])
            }
        };
        let dims = [shape.batch, shape.num_heads, shape.seq_len].map(|size| size as i64);
        let dims = self.w.ints(&dims);
        let dims = self.w.concat(&[&dims, &sizes.blocks], 0);
        let scores = self.w.call("Reshape", &[&scores, &dims]);
        let own = self.w.call("Div", &[position, &sizes.block_size]);
        let own = self.w.unsqueeze(&own, &[1, 3]);
        let earlier = self.w.call("Less", &[&sizes.block, &own]);
        let scores = self.masked(&scores, &earlier);

        let top_k = self.attribute("top_k", |of| of.blocks.top_k.into());
        let one = self.w.int(1);
        let others = self.w.call("Sub", &[&top_k, &one]);
        let count = match self.operator.map(|operator| operator.blocks) {
            Some(blocks) => {
                let most = blocks.blocks(shape.max_seq_len) as i64;
                self.w.ints(&[(i64::from(blocks.top_k) - 1).clamp(1, most)])
            }
            None => {
                let count = self.w.call("Max", &[&others, &one]);
                self.w.call("Min", &[&count, &sizes.blocks])
            }
        };
        let axis = vec![AttributeProto::int("axis", 3)];
        let outputs = [self.w.fresh("greatest"), self.w.fresh("chosen")];
        let names = [&*outputs[0], &outputs[1]];
        self.w
            .push("", "TopK", &[&scores, &count], &names, axis.clone());
        let zero = self.w.int(0);
        let yes = self.w.call("GreaterOrEqual", &[&outputs[1], &zero]);
        let yes = self.w.cast(&yes, F32);
        // Never, of NaN neither.
        let none = self.w.call("Less", &[&scores, &scores]);
        let none = self.w.cast(&none, F32);
        let chosen = self
            .w
            .op("ScatterElements", &[&none, &outputs[1], &yes], axis);
        let nothing = self.w.float(0.0);
        let chosen = self.w.call("Greater", &[&chosen, &nothing]);
        let chosen = self.w.call("And", &[&chosen, &earlier]);
        let any = self.w.call("Greater", &[&others, &zero]);
        let chosen = self.w.call("And", &[&chosen, &any]);
        let own = self.w.call("Equal", &[&sizes.block, &own]);
        self.w.call("Or", &[&chosen, &own])
    }

    /// `[B, H, L, M]` bool: which keys a query at `query` `[B, L]` sees.
    fn mask(&mut self, sizes: &Sizes, blocks: &str, query: &str, position: &str) -> String {
        let chosen = self.w.gather(blocks, &sizes.block_of, 3);
        let dilation = self.attribute("dilation", |of| of.blocks.beside.dilation_or_minus_one());
        let window = self.attribute("local_window", |of| of.blocks.beside.local_window.into());
        let initial = self.attribute("initial", |of| of.blocks.beside.initial.into());
        let (zero, one) = (self.w.int(0), self.w.int(1));
        let query = self.w.unsqueeze(query, &[1, 3]);
        let dilated = self.w.call("Greater", &[&dilation, &zero]);
        let dilation = self.w.call("Max", &[&dilation, &one]);
        let next = self.w.call("Add", &[position, &one]);
        let rest = self.w.call("Mod", &[&next, &dilation]);
        let kept = self.w.call("Equal", &[&rest, &zero]);
        let kept = self.w.call("And", &[&kept, &dilated]);
        let initial = self.w.call("Less", &[position, &initial]);
        let kept = self.w.call("Or", &[&kept, &initial]);
        let distance = self.w.call("Sub", &[&query, position]);
        let near = self.w.call("LessOrEqual", &[&distance, &window]);
        let beside = self.w.call("Or", &[&near, &kept]);
        let causal = self.w.call("GreaterOrEqual", &[&distance, &zero]);
        let seen = self.w.call("Or", &[&chosen, &beside]);
        self.w.call("And", &[&seen, &causal])
    }
}
