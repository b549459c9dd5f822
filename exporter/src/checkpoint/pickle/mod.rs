//! An interpreter of the pickles `torch.save` writes that has nothing to call.
//!
//! Names are looked up in a fixed list. Rebuilding a tensor makes a description of it; every
//! other object is kept as inert data. Anything else is an error that names it. Values live in
//! one flat arena, so nothing here recurses and a value that contains itself is harmless.

mod machine;

pub(super) use machine::parse;

use super::tensor::StoredType;

/// Longest pickle read. One of a 32-layer model with optimizer state has about 0.5 MB.
pub(super) const MAX_LEN: u64 = 32 << 20;

/// Index of a [`Node`].
pub(super) type Id = u32;

/// A range of the pickle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    start: u32,
    len: u32,
}

/// One Python value.
#[derive(Debug)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Span),
    /// Bytes, or an integer beyond 64 bits.
    Bytes,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Set(Vec<Id>),
    /// A dictionary, or an object that holds items like one.
    Dict(Vec<(Id, Id)>),
    Global(Global),
    /// Index into [`Pickle::storages`].
    Storage(usize),
    /// Index into [`Pickle::tensors`].
    Tensor(usize),
    /// Anything else that is known to be data.
    Inert,
}

/// What a name may stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    RebuildTensor,
    RebuildTensorWithDtype,
    RebuildParameter,
    /// A dictionary type: called without arguments, it holds items.
    Mapping,
    /// A type whose instances are kept as [`Node::Inert`].
    Data,
    Storage(StoredType),
    Dtype(StoredType),
}

fn global(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_tensor_v3") => Global::RebuildTensorWithDtype,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("collections", "OrderedDict") | ("easydict", "EasyDict") => Global::Mapping,
        ("torch", "Size" | "device") | ("_codecs", "encode") => Global::Data,
        ("__builtin__" | "builtins", "set" | "frozenset" | "complex" | "bytearray") => Global::Data,
        ("torch.storage", "UntypedStorage") | ("torch", "UntypedStorage") => {
            Global::Storage(StoredType::U8)
        }
        ("torch", name) => match name.strip_suffix("Storage") {
            Some(kind) => Global::Storage(match kind {
                "Float" => StoredType::F32,
                "Half" => StoredType::F16,
                "BFloat16" => StoredType::BF16,
                "Double" => StoredType::F64,
                "Long" => StoredType::I64,
                "Int" => StoredType::I32,
                "Short" => StoredType::I16,
                "Char" => StoredType::I8,
                "Byte" => StoredType::U8,
                "Bool" => StoredType::Bool,
                _ => return None,
            }),
            None => Global::Dtype(match name {
                "float32" => StoredType::F32,
                "float16" => StoredType::F16,
                "bfloat16" => StoredType::BF16,
                "float64" => StoredType::F64,
                "int64" => StoredType::I64,
                "int32" => StoredType::I32,
                "int16" => StoredType::I16,
                "int8" => StoredType::I8,
                "uint8" => StoredType::U8,
                "bool" => StoredType::Bool,
                _ => return None,
            }),
        },
        _ => return None,
    })
}

/// A storage, as its persistent id describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StorageRef {
    pub dtype: StoredType,
    /// Name of its record under `data/`.
    pub key: Span,
    /// Elements.
    pub numel: u64,
}

/// A tensor: a strided view of a storage. Not yet checked against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TensorRef {
    pub storage: usize,
    pub dtype: StoredType,
    /// In elements.
    pub offset: u64,
    pub shape: Vec<u64>,
    /// In elements.
    pub strides: Vec<u64>,
}

/// An interpreted pickle.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    bytes: &'a [u8],
    pub nodes: Vec<Node>,
    pub root: Id,
    pub storages: Vec<StorageRef>,
    pub tensors: Vec<TensorRef>,
}

impl Pickle<'_> {
    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    pub(super) fn text(&self, span: Span) -> &str {
        text(self.bytes, span)
    }

    /// The string `id` is, if it is one.
    pub(super) fn string(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Str(span) => Some(self.text(*span)),
            _ => None,
        }
    }

    /// A word for the kind of value `id` is.
    pub(super) fn kind(&self, id: Id) -> &'static str {
        match self.node(id) {
            Node::None => "None",
            Node::Bool(_) => "a bool",
            Node::Int(_) => "an int",
            Node::Float(_) => "a float",
            Node::Str(_) => "a string",
            Node::Bytes => "bytes",
            Node::Tuple(_) => "a tuple",
            Node::List(_) => "a list",
            Node::Set(_) => "a set",
            Node::Dict(_) => "a dict",
            Node::Global(_) => "a name",
            Node::Storage(_) => "a storage",
            Node::Tensor(_) => "a tensor",
            Node::Inert => "an object",
        }
    }
}

/// Spans of strings were checked to be UTF-8.
fn text(bytes: &[u8], span: Span) -> &str {
    let start = span.start as usize;
    std::str::from_utf8(&bytes[start..start + span.len as usize]).unwrap_or_default()
}
