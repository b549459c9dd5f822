//! An interpreter of the pickles `torch.save` writes that has nothing to call.
//!
//! Names are looked up in a fixed list. Rebuilding a tensor makes a description of it. Any other
//! name, and whatever a pickle makes of it, is inert: it stands beside the weights and is no
//! weight. A name that only an attack has is an error wherever it stands (see `names`). Values
//! live in one flat arena, so nothing here recurses and a value that contains itself is harmless.

mod machine;
mod names;
mod opcodes;
mod rebuild;

pub(super) use machine::parse;
#[cfg(test)]
pub(super) use names::hostile;

use super::error::show;
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
    /// A name that means nothing here.
    Foreign(Foreign),
    /// Index into [`Pickle::storages`].
    Storage(usize),
    /// Index into [`Pickle::tensors`].
    Tensor(usize),
    /// Anything else that is data.
    Object(Object),
}

/// An object that means nothing here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Object {
    /// The [`Node::Foreign`] it was made by, if any.
    pub cause: Option<Id>,
    /// What BUILD gave it last: its attributes.
    pub state: Option<Id>,
}

impl Object {
    fn by(cause: Option<Id>) -> Self {
        Self { cause, state: None }
    }
}

/// What a name that a state dict needs stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    Rebuild(Rebuild),
    /// A dictionary type: called without arguments, it holds items.
    Mapping,
    /// A type whose instances are kept as [`Node::Object`].
    Data,
    /// `getattr`, by which protocols below 4 name what is inside a type: never looked up.
    Attribute,
    Storage(StoredType),
    Dtype(StoredType),
}

/// Functions that describe a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rebuild {
    Tensor,
    TensorWithDtype,
    Parameter,
    ParameterWithState,
    /// A tensor with attributes: one of the others, a type, arguments and the attributes.
    FromType,
}

/// A name that no state dict needs. Spans are of names as the pickle spells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Foreign {
    pub module: Span,
    pub name: Span,
    /// Where it is named first.
    pub at: u32,
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
    /// Its values are those of the storage negated or conjugated.
    pub lazy: bool,
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

    fn unknown(&self, id: Id) -> Option<Foreign> {
        let id = match *self.node(id) {
            Node::Object(object) => object.cause?,
            _ => id,
        };
        match *self.node(id) {
            Node::Foreign(foreign) => Some(foreign),
            _ => None,
        }
    }

    /// Module and name of what made `id`, where that means nothing here.
    pub(super) fn maker(&self, id: Id) -> Option<(&str, &str)> {
        let foreign = self.unknown(id)?;
        Some((self.text(foreign.module), self.text(foreign.name)))
    }

    /// Why `id` is not known: a name that means nothing here.
    pub(super) fn foreign(&self, id: Id) -> Option<String> {
        let (module, name) = self.maker(id)?;
        Some(at_byte(&refusal(module, name), self.unknown(id)?.at))
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
            Node::Global(_) | Node::Foreign(_) => "a name",
            Node::Storage(_) => "a storage",
            Node::Tensor(_) => "a tensor",
            Node::Object(_) => "an object",
        }
    }
}

fn refusal(module: &str, name: &str) -> String {
    format!(
        "it names `{}.{}`, which is not one of the types a state dict needs; nothing was run. Load it where it \
         is trusted and save the state dict alone",
        show(module.as_bytes()),
        show(name.as_bytes())
    )
}

fn at_byte(problem: &str, at: impl std::fmt::Display) -> String {
    format!("{problem} (at byte {at} of data.pkl)")
}

/// Spans of strings were checked to be UTF-8.
fn text(bytes: &[u8], span: Span) -> &str {
    let start = span.start as usize;
    std::str::from_utf8(&bytes[start..start + span.len as usize]).unwrap_or_default()
}
