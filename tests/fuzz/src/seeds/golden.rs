//! Golden files.

use safetensors::Dtype;
use safetensors::tensor::TensorView;

pub const WORDS: &[&[u8]] = super::safetensors::WORDS;

fn file(tensors: &[(&str, Dtype, &[usize])]) -> Vec<u8> {
    let sized: Vec<_> = tensors
        .iter()
        .map(|&(name, dtype, shape)| {
            let size = if dtype == Dtype::I64 { 8 } else { 4 };
            let elements: usize = shape.iter().product();
            let mut bytes = vec![0; elements * size];
            // Ascending positions.
            for (index, bytes) in bytes.chunks_mut(size).enumerate() {
                bytes[0] = index as u8;
            }
            (name, dtype, shape, bytes)
        })
        .collect();
    let views = sized.iter().map(|(name, dtype, shape, bytes)| {
        let view = TensorView::new(*dtype, shape.to_vec(), bytes).expect("a tensor");
        (*name, view)
    });
    safetensors::serialize(views, None).expect("a file")
}

pub fn seeds() -> Vec<Vec<u8>> {
    let (i64, f32) = (Dtype::I64, Dtype::F32);
    vec![
        file(&[
            ("tokens", i64, &[2, 3]),
            ("positions", i64, &[2]),
            ("logits", f32, &[2, 2, 5]),
            ("layer0.gated_key", f32, &[2, 2, 3, 2]),
            ("layer0.gated_value", f32, &[2, 2, 3, 2]),
            ("layer0.hidden", f32, &[2, 3, 4]),
            ("last_hidden", f32, &[2, 3, 4]),
        ]),
        file(&[
            ("tokens", i64, &[1, 1]),
            ("positions", i64, &[0]),
            ("logits", f32, &[1, 0, 7]),
        ]),
    ]
}
