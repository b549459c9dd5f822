//! Attributes, typed once and read by every host in its own way.

use crate::none_wrong;
use std::fmt;

/// Kind of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttributeKind {
    /// One integer.
    Int,
    /// A list of integers: one, or one per head.
    Ints,
    /// One f32.
    Float,
    /// Text.
    String,
}

impl AttributeKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Int, Self::Ints, Self::Float, Self::String];
}

impl fmt::Display for AttributeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Int => "an integer",
            Self::Ints => "a list of integers",
            Self::Float => "a float",
            Self::String => "a text",
        })
    }
}

/// One attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttributeSpec {
    /// Name.
    pub name: &'static str,
    /// Kind.
    pub kind: AttributeKind,
    /// Whether a node may be without it.
    pub optional: bool,
}

/// Value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum AttributeValue {
    /// One integer.
    Int(i64),
    /// A list of integers.
    Ints(Vec<i64>),
    /// One f32.
    Float(f32),
    /// Text.
    String(String),
}

/// A node's attributes as a host has them.
pub trait AttributeReader {
    /// The value of `attribute`, of its kind; `None` where there is nothing of its name.
    ///
    /// # Errors
    /// What there is in its place, in words that follow "found".
    fn read(&mut self, attribute: &AttributeSpec) -> Result<Option<AttributeValue>, String>;
}

/// The attributes of an operator as a node carries them.
pub trait Attributes: Sized {
    /// Their names and kinds.
    const SPECS: &'static [AttributeSpec];

    /// Reads all of them.
    ///
    /// # Errors
    /// Every attribute that is not there or of another kind.
    fn read(reader: &mut dyn AttributeReader) -> Result<Self, Vec<String>>;

    /// Their values in the order of [`SPECS`](Self::SPECS), `None` for what the node is without.
    fn values(self) -> Vec<Option<AttributeValue>>;
}

/// A Rust type that an attribute of one kind is read into.
pub(super) trait Typed: Default {
    const KIND: AttributeKind;
    const OPTIONAL: bool = false;

    fn from_value(value: AttributeValue) -> Option<Self>;

    fn into_value(self) -> Option<AttributeValue>;
}

impl<T: Typed> Typed for Option<T> {
    const KIND: AttributeKind = T::KIND;
    const OPTIONAL: bool = true;

    fn from_value(value: AttributeValue) -> Option<Self> {
        T::from_value(value).map(Some)
    }

    fn into_value(self) -> Option<AttributeValue> {
        self.and_then(T::into_value)
    }
}

macro_rules! typed {
    ($($rust:ty => $kind:ident,)*) => {$(
        impl Typed for $rust {
            const KIND: AttributeKind = AttributeKind::$kind;

            fn from_value(value: AttributeValue) -> Option<Self> {
                match value {
                    AttributeValue::$kind(value) => Some(value),
                    _ => None,
                }
            }

            fn into_value(self) -> Option<AttributeValue> {
                Some(AttributeValue::$kind(self))
            }
        }
    )*};
}

typed! {
    i64 => Int,
    Vec<i64> => Ints,
    f32 => Float,
    String => String,
}

/// Reads attributes one by one, and keeps what is wrong.
pub(super) struct Read<'a> {
    reader: &'a mut dyn AttributeReader,
    errors: Vec<String>,
}

impl<'a> Read<'a> {
    pub fn of(reader: &'a mut dyn AttributeReader) -> Self {
        Self {
            reader,
            errors: Vec::new(),
        }
    }

    pub fn typed<T: Typed>(&mut self, name: &'static str) -> T {
        let (kind, optional) = (T::KIND, T::OPTIONAL);
        let spec = AttributeSpec {
            name,
            kind,
            optional,
        };
        let typed = self.reader.read(&spec).and_then(|value| match value {
            Some(value) => {
                let found = format!("{value:?}");
                T::from_value(value).ok_or(found)
            }
            None if optional => Ok(T::default()),
            None => Err("none".into()),
        });
        typed.unwrap_or_else(|found| {
            let error = format!("attribute {name}: expected {kind}, found {found}");
            self.errors.push(error);
            T::default()
        })
    }

    pub fn finish<R>(self, found: R) -> Result<R, Vec<String>> {
        none_wrong(self.errors)?;
        Ok(found)
    }
}

/// Declares a struct with one field an attribute.
macro_rules! attributes {
    (
        $(#[$struct_doc:meta])*
        $name:ident { $($(#[$doc:meta])* $field:ident: $type:ty,)* }
    ) => {
        $(#[$struct_doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $($(#[$doc])* pub $field: $type,)*
        }

        impl $crate::ops::Attributes for $name {
            const SPECS: &'static [$crate::ops::AttributeSpec] = &[$($crate::ops::AttributeSpec {
                name: stringify!($field),
                kind: <$type as $crate::ops::attributes::Typed>::KIND,
                optional: <$type as $crate::ops::attributes::Typed>::OPTIONAL,
            }),*];

            fn read(
                reader: &mut dyn $crate::ops::AttributeReader,
            ) -> Result<Self, Vec<String>> {
                #[allow(unused_mut, reason = "an operator may have none")]
                let mut read = $crate::ops::attributes::Read::of(reader);
                let found = Self { $($field: read.typed(stringify!($field)),)* };
                read.finish(found)
            }

            fn values(self) -> Vec<Option<$crate::ops::AttributeValue>> {
                vec![$($crate::ops::attributes::Typed::into_value(self.$field)),*]
            }
        }
    };
}
pub(super) use attributes;
