//! Strided views against an oracle that computes every element's place by itself.

use super::super::tensor::StoredType;
use super::super::testing::{View, pth, state_pickle, storage_class};
use super::super::{CheckpointError, ReadOptions};
use super::{F32, f32s, open_pth};
use half::{bf16, f16};
use proptest::prelude::*;
use ratplus_graphs::ops::ElementType;
use ratplus_tests::times;

#[derive(Clone, Debug)]
struct Case {
    dtype: StoredType,
    storage: usize,
    offset: i64,
    shape: Vec<i64>,
    strides: Vec<i64>,
    step: usize,
    target: ElementType,
}

fn case() -> impl Strategy<Value = Case> {
    let dims = prop::collection::vec((0..7i64, 0..20i64), 0..4);
    let dtype = prop::sample::select(vec![
        StoredType::F32,
        StoredType::F16,
        StoredType::BF16,
        StoredType::F64,
    ]);
    let target = prop::sample::select(ElementType::ACTIVATIONS.to_vec());
    (dtype, 1..200usize, 0..40i64, dims, 1..8usize, target).prop_map(
        |(dtype, storage, offset, dims, step, target)| {
            let (shape, strides) = dims.into_iter().unzip();
            Case {
                dtype,
                storage,
                offset,
                shape,
                strides,
                step,
                target,
            }
        },
    )
}

/// Half-integers, exact in every type.
fn stored(index: usize) -> f32 {
    (index % 256) as f32 * 0.5 - 64.0
}

fn encode(value: f32, dtype: ElementType) -> Vec<u8> {
    match dtype {
        ElementType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        ElementType::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    }
}

/// The elements in row-major order, or `None` if any lies outside the storage.
fn oracle(case: &Case) -> Option<Vec<f32>> {
    let mut places = vec![case.offset];
    for (&dim, &stride) in case.shape.iter().zip(&case.strides) {
        places = places
            .into_iter()
            .flat_map(|at| (0..dim).map(move |i| at + i * stride))
            .collect();
    }
    if places.is_empty() && case.offset > case.storage as i64 {
        return None;
    }
    places
        .into_iter()
        .map(|at| (at < case.storage as i64).then(|| stored(at as usize)))
        .collect()
}

fn check(case: &Case) -> Result<(), TestCaseError> {
    let data: Vec<u8> = (0..case.storage)
        .flat_map(|index| match case.dtype.element_type() {
            Some(element) => encode(stored(index), element),
            None => f64::from(stored(index)).to_le_bytes().to_vec(),
        })
        .collect();
    let view = View {
        class: storage_class(case.dtype),
        key: "k".into(),
        numel: case.storage as i64,
        offset: case.offset,
        shape: case.shape.clone(),
        strides: case.strides.clone(),
    };
    let opened = open_pth(pth(state_pickle(&[("w", view)]), &[("k", data)]));
    let Some(expected) = oracle(case) else {
        prop_assert!(opened.is_err());
        return Ok(());
    };
    let checkpoint = opened.unwrap();
    let tensor = checkpoint.tensor("w").unwrap();
    let shape: Vec<i64> = tensor.shape().iter().map(|&dim| dim as i64).collect();
    prop_assert_eq!(&shape, &case.shape);
    let mut reader = checkpoint.reader(ReadOptions::default());
    let mut found = Vec::new();
    for start in (0..tensor.rows()).step_by(case.step) {
        let rows = start..tensor.rows().min(start + case.step);
        let mut out = vec![0xff; rows.len() * tensor.row_len() * case.target.size()];
        reader
            .read_rows(tensor, rows, case.target, &mut out)
            .unwrap();
        found.extend(out);
    }
    let expected: Vec<u8> = expected
        .iter()
        .flat_map(|&value| encode(value, case.target))
        .collect();
    prop_assert_eq!(found, expected);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: times(100_000) as u32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn views_agree_with_the_oracle(case in case()) {
        check(&case)?;
    }
}

#[test]
fn large_views_agree_with_the_oracle() {
    // Longer than one piece in every direction: transposed, rows with gaps, columns of a matrix,
    // reversed dimensions, one element in many, repeated rows.
    let views: [(&[i64], &[i64], i64); 7] = [
        (&[700, 600], &[1, 700], 0),
        (&[600, 500], &[700, 1], 3),
        (&[700, 2], &[600, 5], 1),
        (&[7, 100, 600], &[1, 7, 700], 0),
        (&[200], &[2099], 5),
        (&[5, 420_000], &[0, 1], 0),
        (&[210_000], &[2], 1),
    ];
    for (shape, strides, offset) in views {
        for dtype in [StoredType::F32, StoredType::BF16, StoredType::F64] {
            for target in [ElementType::F32, ElementType::BF16] {
                let case = Case {
                    dtype,
                    storage: 420_000,
                    offset,
                    shape: shape.to_vec(),
                    strides: strides.to_vec(),
                    step: 311_000,
                    target,
                };
                check(&case).unwrap();
            }
        }
    }
}

#[test]
fn two_views_of_one_storage_are_read_from_it() {
    let whole = View::contiguous("FloatStorage", "0", &[4, 3]);
    let lower = View {
        offset: 6,
        shape: vec![2, 3],
        ..whole.clone()
    };
    let transposed = View {
        shape: vec![3, 4],
        strides: vec![1, 3],
        ..whole.clone()
    };
    let pickle = state_pickle(&[
        ("lower", lower),
        ("transposed", transposed),
        ("whole", whole),
    ]);
    let checkpoint = open_pth(pth(pickle, &[("0", f32s((0..12).map(|i| i as f32)))])).unwrap();
    let read = |name: &str| {
        let tensor = checkpoint.tensor(name).unwrap();
        let mut out = vec![0; tensor.numel() * 4];
        let mut reader = checkpoint.reader(ReadOptions::default());
        reader
            .read_rows(tensor, 0..tensor.rows(), F32, &mut out)
            .unwrap();
        out
    };
    assert_eq!(read("lower"), f32s((6..12).map(|i| i as f32)));
    assert_eq!(
        read("transposed"),
        f32s([0., 3., 6., 9., 1., 4., 7., 10., 2., 5., 8., 11.])
    );
    assert_eq!(read("whole"), f32s((0..12).map(|i| i as f32)));
}

#[test]
fn damage_is_found_in_any_order_of_reading() {
    let pickle = state_pickle(&[("w", View::contiguous("FloatStorage", "0", &[4, 3]))]);
    let data = f32s((0..12).map(|i| i as f32));
    let mut bytes = pth(pickle, &[("0", data.clone())]);
    let at = bytes.windows(data.len()).position(|w| w == data).unwrap();
    bytes[at + 40] ^= 1;
    let checkpoint = open_pth(bytes).unwrap();
    let tensor = checkpoint.tensor("w").unwrap();
    let read = |order: &[(usize, usize)]| {
        let mut reader = checkpoint.reader(ReadOptions::default());
        order
            .iter()
            .map(|&(start, end)| {
                reader.read_rows(tensor, start..end, F32, &mut vec![0; (end - start) * 12])
            })
            .map(|result| match result {
                Ok(()) => true,
                Err(CheckpointError::Checksum { record, .. }) => {
                    assert_eq!(record, "model/data/0");
                    false
                }
                Err(other) => panic!("{other}"),
            })
            .collect::<Vec<_>>()
    };
    // In order: found by the time the last row is handed out.
    assert_eq!(read(&[(0, 1), (1, 3), (3, 4)]), [true, true, false]);
    assert_eq!(read(&[(0, 4)]), [false]);
    // Out of order: found at once.
    assert_eq!(read(&[(1, 2)]), [false]);
    assert_eq!(read(&[(0, 1), (2, 3)]), [true, false]);
    assert_eq!(read(&[(0, 2), (0, 1), (2, 4)]), [true, true, false]);
}

#[test]
fn values_that_are_not_finite_are_named() {
    let mut values: Vec<f32> = (0..12).map(|i| i as f32).collect();
    values[7] = f32::NAN;
    values[9] = 1e39f64 as f32;
    let pickle = state_pickle(&[(
        "layer.weight",
        View::contiguous("FloatStorage", "0", &[4, 3]),
    )]);
    let checkpoint = open_pth(pth(pickle, &[("0", f32s(values.clone()))])).unwrap();
    let tensor = checkpoint.tensor("layer.weight").unwrap();
    let read = |rows: std::ops::Range<usize>, dtype: ElementType, allow_nonfinite| {
        let mut out = vec![0; rows.len() * 3 * dtype.size()];
        let mut reader = checkpoint.reader(ReadOptions { allow_nonfinite });
        reader
            .read_rows(tensor, rows, dtype, &mut out)
            .map(|()| out)
    };
    for dtype in ElementType::ACTIVATIONS {
        assert_eq!(
            read(1..4, dtype, false).unwrap_err().to_string(),
            "x.pth: tensor `layer.weight`: element [2, 1] is NaN, expected a finite number; give `allow_nonfinite` to \
             export it as it is"
        );
        assert!(
            read(3..4, dtype, false)
                .unwrap_err()
                .to_string()
                .contains("element [3, 0] is inf")
        );
        assert_eq!(read(0..4, dtype, true).unwrap().len(), 12 * dtype.size());
        read(0..2, dtype, false).unwrap();
    }
    let pickle = state_pickle(&[("w", View::contiguous("FloatStorage", "0", &[2]))]);
    let checkpoint = open_pth(pth(pickle, &[("0", f32s([1.0, -7e4]))])).unwrap();
    let tensor = checkpoint.tensor("w").unwrap();
    let error = checkpoint
        .reader(ReadOptions {
            allow_nonfinite: true,
        })
        .read_rows(tensor, 0..2, ElementType::F16, &mut [0; 4])
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "x.pth: tensor `w`: element [1] is -7e4, beyond the range of f16; export with a wider type"
    );
    let pickle = state_pickle(&[("w", View::contiguous("DoubleStorage", "0", &[2]))]);
    let doubles = [0.1f64, -1e39].iter().flat_map(|value| value.to_le_bytes());
    let checkpoint = open_pth(pth(pickle, &[("0", doubles.collect())])).unwrap();
    let tensor = checkpoint.tensor("w").unwrap();
    let mut reader = checkpoint.reader(ReadOptions::default());
    let mut out = [0; 4];
    reader.read_rows(tensor, 0..1, F32, &mut out).unwrap();
    assert_eq!(out, 0.1f32.to_le_bytes());
    let error = reader.read_rows(tensor, 1..2, F32, &mut out).unwrap_err();
    assert_eq!(
        error.to_string(),
        "x.pth: tensor `w`: element [1] is -1e39, beyond the range of f32; no package holds f64: find what made the \
         weight so large"
    );
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let pickle = state_pickle(&[
        ("i", View::contiguous("LongStorage", "1", &[2])),
        ("w", View::contiguous("FloatStorage", "0", &[2, 3])),
    ]);
    let checkpoint = open_pth(pth(pickle, &[("0", vec![0; 24]), ("1", vec![0; 16])])).unwrap();
    let mut reader = checkpoint.reader(ReadOptions::default());
    let w = checkpoint.tensor("w").unwrap();
    let mut out = [0; 24];
    for (rows, dtype, len, problem) in [
        (0..3, F32, 24, "expected rows within 0..2, found 0..3"),
        (
            0..2,
            F32,
            20,
            "expected a buffer of Some(24) bytes for rows 0..2, found 20",
        ),
        (
            0..2,
            ElementType::I64,
            24,
            "expected f32, f16 or bf16 as the target, found i64",
        ),
    ] {
        let error = reader
            .read_rows(w, rows, dtype, &mut out[..len])
            .unwrap_err();
        assert_eq!(error.to_string(), format!("tensor `w`: {problem}"));
    }
    let error = reader
        .read_rows(checkpoint.tensor("i").unwrap(), 0..2, F32, &mut out[..8])
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor `i`: expected f32, f16, bf16 or f64 elements, found i64"
    );
}
