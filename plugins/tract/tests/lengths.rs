//! Lengths that do not fit, in the standard operators as tract runs them: outputs are NaN, states stay,
//! and the other slot keeps its bits.

mod one_node;

use one_node::{Way, engine, run};
use ratplus_graphs::ops::body::BodyShape;
use ratplus_graphs::ops::{
    DilatedAttention, ElementType, Operator, RecurrenceScan, TensorType, check_lengths,
};
use ratplus_graphs::pattern::Pattern;
use ratplus_tract::TensorRef;

const SHAPE: BodyShape = BodyShape {
    dtype: ElementType::F32,
    cache_dtype: ElementType::F32,
    batch: 2,
    seq_len: 3,
    num_heads: 2,
    num_kv_heads: 2,
    head_dim: 4,
    max_seq_len: 20,
    quantization: None,
};
/// `past_length` and `seq_length`, on both sides of every bound.
const LENGTHS: [i64; 13] = [
    i64::MIN,
    -100,
    -1,
    0,
    1,
    3,
    4,
    17,
    18,
    20,
    21,
    1 << 33,
    i64::MAX,
];

fn tensor(dtype: ElementType, shape: &[usize]) -> TensorType {
    TensorType::new(dtype, shape.to_vec())
}

fn values(tensor: &TensorType) -> Vec<f32> {
    (0..tensor.elements())
        .map(|i| (i * 37 % 61) as f32 / 16.0 - 2.0)
        .collect()
}

/// Runs `operator` with every pair of lengths in slot 0; `floats` come before the lengths, `tables` after
/// them, and the states, which are `floats[3..]`, are the last outputs.
fn check(operator: &Operator, floats: &[TensorType], tables: &[TensorType]) {
    let op = operator.op();
    let lengths = tensor(ElementType::I64, &[2]);
    let types: Vec<TensorType> = [floats, &[lengths.clone(), lengths], tables].concat();
    let states = &floats[3..];
    let results = vec![floats[0].clone(); op.outputs().len() - states.len()];
    let (floats, tables): (Vec<_>, Vec<_>) = (
        floats.iter().map(values).collect(),
        tables.iter().map(values).collect(),
    );
    let mut engine = engine(operator, &SHAPE, &types, Way::Body);
    let mut run = |past: i64, seq: i64| {
        let (past, seq) = ([past, 5], [seq, 2]);
        let inputs: Vec<TensorRef<'_>> = floats
            .iter()
            .map(|x| TensorRef::F32(x))
            .chain([TensorRef::I64(&past), TensorRef::I64(&seq)])
            .chain(tables.iter().map(|x| TensorRef::F32(x)))
            .collect();
        run(&mut engine, op, &inputs)
    };
    let idle = run(0, 0);
    let (max, mut refused) = (Some(SHAPE.max_seq_len), 0);
    for (past, seq) in LENGTHS
        .iter()
        .flat_map(|&past| LENGTHS.map(|seq| (past, seq)))
    {
        let what = format!("{op}: past_length {past}, seq_length {seq}");
        let fits = check_lengths(&[past], &[seq], SHAPE.seq_len, max).is_ok();
        refused += usize::from(!fits);
        let found = run(past, seq);
        for (index, (found, idle)) in found.iter().zip(&idle).enumerate() {
            let ((mine, other), (kept, same)) = (
                found.split_at(found.len() / 2),
                idle.split_at(idle.len() / 2),
            );
            assert_eq!(other, same, "{what}: output {index} of the other slot");
            match (fits, index < results.len()) {
                (true, _) => assert!(mine.iter().all(|x| x.is_finite()), "{what}"),
                (false, true) => assert!(mine.iter().all(|x| x.is_nan()), "{what}"),
                (false, false) => assert_eq!(mine, kept, "{what}: output {index}"),
            }
        }
    }
    assert!(refused > LENGTHS.len() && refused < LENGTHS.len() * LENGTHS.len());
}

#[test]
fn the_scan_answers_nan() {
    let chunk = tensor(ElementType::F32, &[2, 3, 8]);
    let state = tensor(ElementType::F32, &[2, 8]);
    let floats = [chunk.clone(), chunk.clone(), chunk, state.clone(), state];
    check(&RecurrenceScan::default().into(), &floats, &[]);
}

#[test]
fn the_attention_answers_nan() {
    let patterns = [(4, 2, 1), (-1, 3, 0)].map(|(d, w, i)| Pattern::new(d, w, i).unwrap());
    let attention = DilatedAttention::ungrouped(patterns.to_vec(), 0.5);
    let max = SHAPE.max_seq_len;
    let rows = attention.cache_layout(max).rows();
    let chunk = tensor(ElementType::F32, &[2, 3, 8]);
    let cache = tensor(ElementType::F32, &[2, rows, 4]);
    let table = tensor(ElementType::F32, &[max, 2]);
    check(
        &attention.into(),
        &[chunk.clone(), chunk.clone(), chunk, cache.clone(), cache],
        &[table.clone(), table],
    );
}
