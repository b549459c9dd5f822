//! The structs of kernels/cuda that kernels are launched with, as a C++ compiler lays them out.

use super::constants::constant;
use super::sources::{HEADERS, UNITS};

/// A field's name, offset and size.
type Field<'a> = (&'a str, usize, usize);

/// Whether a Rust struct has the fields of the C++ struct called `name`, in their places.
pub(super) fn assert_twin(name: &str, fields: &[Field<'_>], bytes: usize) {
    let (expected, size, _) = layout(name);
    assert_eq!(fields, expected, "{name}");
    assert_eq!(bytes, size, "{name}");
}

/// Fields, size and alignment.
fn layout(name: &str) -> (Vec<Field<'static>>, usize, usize) {
    let start = format!("struct {name} {{\n");
    let headers = HEADERS.iter().map(|header| header.text);
    let mut texts = headers.chain(UNITS.iter().map(|unit| unit.source));
    let body = texts.find_map(|text| {
        let (_, rest) = text.split_once(&start)?;
        Some((rest.split_once("};").expect("an end").0, text))
    });
    let (body, text) = body.unwrap_or_else(|| panic!("no struct {name} in kernels/cuda"));
    let (mut fields, mut end, mut most) = (Vec::new(), 0usize, 1);
    for line in body.lines().map(str::trim) {
        if line.is_empty() || line.starts_with("//") {
            continue;
        }
        let declaration = line.strip_suffix(';');
        let declared = declaration.and_then(|words| words.rsplit_once(' '));
        let (kind, field) = declared.unwrap_or_else(|| panic!("{name}: {line}"));
        let (size, alignment) = match kind {
            _ if kind.ends_with('*') => (8, 8),
            "i64" | "u64" => (8, 8),
            "i32" | "u32" | "float" => (4, 4),
            inner => {
                let (_, size, alignment) = layout(inner);
                (size, alignment)
            }
        };
        let (field, count) = match field.strip_suffix(']').and_then(|it| it.split_once('[')) {
            Some((field, count)) => (field, constant(text, count)),
            None => (field, 1),
        };
        end = end.next_multiple_of(alignment);
        fields.push((field, end, size * count));
        end += size * count;
        most = most.max(alignment);
    }
    (fields, end.next_multiple_of(most), most)
}

#[test]
fn a_compiler_lays_them_out_alike() {
    let emulator = ratplus_cuda_emulator::load().unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for name in emulator.kernels() {
        let kernel = emulator.kernel(&name).unwrap();
        let params = kernel.params.trim_start_matches("ratplus::");
        assert_eq!(layout(params).1, kernel.params_bytes, "{kernel:?}");
        seen.insert(params.to_owned());
    }
    assert!(seen.len() >= ratplus_graphs::ops::Op::GPU.len(), "{seen:?}");
}
