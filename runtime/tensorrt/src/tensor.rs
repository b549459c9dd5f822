use std::fmt;

/// Type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementKind {
    /// 32-bit floating point.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// 64-bit integer.
    I64,
    /// Another, by TensorRT's number.
    Other(i32),
}

impl fmt::Display for ElementKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => f.write_str("f32"),
            Self::F16 => f.write_str("f16"),
            Self::BF16 => f.write_str("bf16"),
            Self::I64 => f.write_str("i64"),
            Self::Other(number) => write!(f, "TensorRT's type {number}"),
        }
    }
}

/// An input or output of a network or of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Whether it is an input.
    pub input: bool,
    /// Type of the elements.
    pub kind: ElementKind,
    /// -1 where it is not static.
    pub shape: Vec<i64>,
}

/// Name of an input and a static shape of it.
pub type InputShape = (String, Vec<i64>);
