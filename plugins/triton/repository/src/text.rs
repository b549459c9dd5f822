//! config.pbtxt: protobuf's text form of Triton's ModelConfig.

use ratplus_graphs::ops::{ElementType, TensorType};
use std::fmt::{Display, Write};

/// A string as it is written there.
pub fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => quoted.extend(['\\', byte.into()]),
            b' '..=b'~' => quoted.push(byte.into()),
            _ => {
                let _ = write!(quoted, "\\{byte:03o}");
            }
        }
    }
    quoted + "\""
}

/// Triton's name of a type.
pub fn data_type(dtype: ElementType) -> &'static str {
    match dtype {
        ElementType::F32 => "TYPE_FP32",
        ElementType::F16 => "TYPE_FP16",
        ElementType::BF16 => "TYPE_BF16",
        ElementType::I64 => "TYPE_INT64",
        ElementType::U8 => "TYPE_UINT8",
        ElementType::I8 => "TYPE_INT8",
        // No graph has one at its border.
        ElementType::I4 => "TYPE_INVALID",
    }
}

/// Dimensions, as `[ 1, -1 ]`.
pub fn dims(dims: impl IntoIterator<Item = impl Display>) -> String {
    let dims: Vec<_> = dims.into_iter().map(|size| size.to_string()).collect();
    format!("[ {} ]", dims.join(", "))
}

/// An input, output or state of static shape.
pub fn typed(tensor: &TensorType) -> String {
    let (data_type, dims) = (data_type(tensor.dtype), dims(&tensor.shape));
    format!("data_type: {data_type} dims: {dims}")
}

/// A repeated field, an element a line.
pub fn list(field: &str, indent: &str, elements: impl IntoIterator<Item = String>) -> String {
    let lines = elements
        .into_iter()
        .map(|element| format!("{indent}{field} {{ {element} }}\n"));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_quoted() {
        assert_eq!(quoted("a b.c"), r#""a b.c""#);
        assert_eq!(quoted("\"\\\n\u{e9}"), r#""\"\\\012\303\251""#);
        assert_eq!(dims([1, -1]), "[ 1, -1 ]");
    }
}
