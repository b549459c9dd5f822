//! Attributes as TensorRT carries them: fields from the ONNX parser, and what a plan stores.

use crate::abi::{CHAR, FLOAT32, FLOAT64, Field, INT32, INT64};
use ratplus_graphs::ops::{AttentionAttributes, Op, RawAttentionAttributes};
use std::ffi::{CStr, CString, c_void};
use std::slice;

/// Of what a plan stores beside the operator's attributes: this library's version.
const LIBRARY_VERSION: &str = "ratplus_version";
/// As above: bytes of workspace that the plan sets aside.
const WORKSPACE: &str = "ratplus_workspace_bytes";
/// This library's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What a plugin is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// [`Op::DilatedAttention`] only.
    pub attributes: Option<AttentionAttributes>,
    /// Bytes that an earlier plan was built with; 0 for a new plugin.
    pub workspace: usize,
}

/// One field's values.
enum Values {
    Ints(Vec<i64>),
    Floats(Vec<f64>),
    Text(String),
    Other(i32),
}

impl Values {
    /// # Safety
    /// `field` describes readable memory.
    unsafe fn read(field: &Field) -> Self {
        let length = usize::try_from(field.length).unwrap_or(0);
        if field.data.is_null() && length > 0 {
            return Self::Other(field.kind);
        }
        // SAFETY: the caller's contract. Plans are not padded to the alignment of their values.
        unsafe {
            match field.kind {
                INT32 => Self::Ints(
                    read_all(field.data.cast::<i32>(), length)
                        .map(i64::from)
                        .collect(),
                ),
                INT64 => Self::Ints(read_all(field.data.cast::<i64>(), length).collect()),
                FLOAT32 => Self::Floats(
                    read_all(field.data.cast::<f32>(), length)
                        .map(f64::from)
                        .collect(),
                ),
                FLOAT64 => Self::Floats(read_all(field.data.cast::<f64>(), length).collect()),
                CHAR if length == 0 => Self::Text(String::new()),
                CHAR => {
                    let bytes = slice::from_raw_parts(field.data.cast::<u8>(), length);
                    let text = String::from_utf8_lossy(bytes);
                    Self::Text(text.trim_end_matches('\0').to_owned())
                }
                other => Self::Other(other),
            }
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Ints(values) => format!("{} integers", values.len()),
            Self::Floats(values) => format!("{} floats", values.len()),
            Self::Text(text) => format!("text `{text}`"),
            Self::Other(kind) => format!("a field of type {kind}, or without data"),
        }
    }
}

/// # Safety
/// `length` values from `data` are readable; they may be anywhere.
unsafe fn read_all<T: Copy>(data: *const T, length: usize) -> impl Iterator<Item = T> {
    // SAFETY: the caller's contract.
    (0..length).map(move |index| unsafe { data.add(index).read_unaligned() })
}

/// What the fields say.
///
/// # Errors
/// Every field that is missing, of another type or out of range. Fields of other names are left
/// alone: parsers add some of their own.
///
/// # Safety
/// Every field has a name that ends with a null byte, and describes readable memory.
pub unsafe fn parse(op: Op, fields: &[Field]) -> Result<Settings, String> {
    // SAFETY: the caller's contract.
    let named = |wanted: &str| unsafe {
        let of_name = |field: &&Field| {
            !field.name.is_null() && CStr::from_ptr(field.name).to_bytes() == wanted.as_bytes()
        };
        fields.iter().find(of_name).map(|field| Values::read(field))
    };
    let mut errors = Vec::new();
    let mut wrong = |name: &str, expected: &str, found: Option<Values>| {
        let found = found.map_or("none".into(), |values| values.describe());
        errors.push(format!("field {name}: expected {expected}, found {found}"));
    };
    match named(LIBRARY_VERSION) {
        None => (),
        Some(Values::Text(version)) if version == VERSION => (),
        Some(other) => wrong(
            LIBRARY_VERSION,
            &format!("`{VERSION}`, this library's (a plan of another has to be built again)"),
            Some(other),
        ),
    }
    let workspace = match named(WORKSPACE) {
        Some(Values::Ints(values)) if values.len() == 1 => usize::try_from(values[0]).unwrap_or(0),
        _ => 0,
    };
    let attributes = match op {
        Op::RecurrenceScan => None,
        Op::DilatedAttention => {
            let mut ints = |name| match named(name) {
                Some(Values::Ints(values)) if !values.is_empty() => values,
                other => {
                    wrong(name, "integers", other);
                    Vec::new()
                }
            };
            let mut raw = RawAttentionAttributes {
                num_heads: 0,
                dilation: ints("dilation"),
                local_window: ints("local_window"),
                initial: ints("initial"),
                scale: 0.0,
            };
            match named("num_heads") {
                Some(Values::Ints(values)) if values.len() == 1 => raw.num_heads = values[0],
                other => wrong("num_heads", "an integer", other),
            }
            match named("scale") {
                Some(Values::Floats(values)) if values.len() == 1 => raw.scale = values[0] as f32,
                other => wrong("scale", "a float", other),
            }
            Some(raw)
        }
    };
    if !errors.is_empty() {
        return Err(errors.join("; "));
    }
    let attributes = attributes.map(AttentionAttributes::try_from).transpose();
    Ok(Settings {
        attributes: attributes.map_err(|errors| errors.errors.join("; "))?,
        workspace,
    })
}

/// Fields with memory of their own, which [`parse`] makes the same settings of.
#[derive(Debug, Default)]
pub struct Stored {
    fields: Vec<Field>,
    // What the fields point to. The vectors are not changed once they are pointed to.
    _names: Vec<CString>,
    _ints: Vec<Vec<i32>>,
    _scale: Box<[f32]>,
    _workspace: Box<[i64]>,
}

impl Stored {
    /// What a plan stores of `settings`.
    pub fn new(settings: &Settings) -> Self {
        let mut named: Vec<(&str, i32, *const c_void, usize)> = Vec::new();
        let mut ints = Vec::new();
        let mut scale: Box<[f32]> = Box::default();
        if let Some(attributes) = &settings.attributes {
            let raw = attributes.to_raw();
            let narrow = |values: &[i64]| -> Vec<i32> {
                // Patterns and heads are checked to be below 2^31.
                values.iter().map(|&value| value as i32).collect()
            };
            ints = vec![
                narrow(&[raw.num_heads]),
                narrow(&raw.dilation),
                narrow(&raw.local_window),
                narrow(&raw.initial),
            ];
            scale = Box::new([raw.scale]);
            let names = ["num_heads", "dilation", "local_window", "initial"];
            for (name, values) in names.into_iter().zip(&ints) {
                named.push((name, INT32, values.as_ptr().cast(), values.len()));
            }
            named.push(("scale", FLOAT32, scale.as_ptr().cast(), scale.len()));
        }
        named.push((
            LIBRARY_VERSION,
            CHAR,
            VERSION.as_ptr().cast(),
            VERSION.len(),
        ));
        let workspace: Box<[i64]> = Box::new([settings.workspace as i64]);
        named.push((WORKSPACE, INT64, workspace.as_ptr().cast(), 1));
        let names: Vec<_> = named
            .iter()
            .map(|(name, ..)| CString::new(*name).unwrap_or_default())
            .collect();
        let fields = named.iter().zip(&names);
        Self {
            fields: fields
                .map(|(&(_, kind, data, length), name)| Field {
                    name: name.as_ptr(),
                    data,
                    kind,
                    length: length as i32,
                })
                .collect(),
            _names: names,
            _ints: ints,
            _scale: scale,
            _workspace: workspace,
        }
    }

    /// The fields.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratplus_graphs::pattern::Pattern;

    fn settings(patterns: Vec<Pattern>) -> Settings {
        Settings {
            attributes: Some(AttentionAttributes {
                patterns,
                scale: 0.125,
            }),
            workspace: 5 << 32,
        }
    }

    fn read(op: Op, fields: &[Field]) -> Result<Settings, String> {
        // SAFETY: the fields are those of a `Stored`, or of constants.
        unsafe { parse(op, fields) }
    }

    #[test]
    fn settings_survive_a_plan() {
        let hybrid = vec![Pattern::DENSE, Pattern::new(-1, 3, 2).unwrap()];
        for settings in [settings(hybrid), settings(vec![Pattern::DENSE; 3])] {
            let stored = Stored::new(&settings);
            assert_eq!(
                read(Op::DilatedAttention, stored.fields()).unwrap(),
                settings
            );
        }
        let scan = Settings {
            attributes: None,
            workspace: 7,
        };
        let stored = Stored::new(&scan);
        assert_eq!(read(Op::RecurrenceScan, stored.fields()).unwrap(), scan);
    }

    #[test]
    fn every_wrong_field_is_named() {
        let text = read(Op::DilatedAttention, &[]).unwrap_err();
        for name in ["num_heads", "dilation", "local_window", "initial", "scale"] {
            assert!(text.contains(&format!("field {name}: expected ")), "{text}");
        }
        let heads = [2_i32, 3];
        let field = |name: &'static CStr, kind, length| Field {
            name: name.as_ptr(),
            data: heads.as_ptr().cast(),
            kind,
            length,
        };
        let text = read(
            Op::DilatedAttention,
            &[
                field(c"num_heads", INT32, 2),
                field(c"scale", CHAR, 0),
                field(c"initial", 99, 1),
            ],
        )
        .unwrap_err();
        assert!(
            text.contains("num_heads: expected an integer, found 2 integers"),
            "{text}"
        );
        assert!(
            text.contains("scale: expected a float, found text ``"),
            "{text}"
        );
        assert!(
            text.contains("initial: expected integers, found a field of type 99"),
            "{text}"
        );
        let text = read(Op::RecurrenceScan, &[field(c"ratplus_version", INT32, 1)]).unwrap_err();
        assert!(text.contains("built again"), "{text}");
    }

    #[test]
    fn values_are_checked_as_everywhere() {
        let good = settings(vec![Pattern::DENSE; 2]);
        let stored = Stored::new(&good);
        let zero = [0_i32];
        let mut fields = stored.fields().to_vec();
        fields[1].data = zero.as_ptr().cast();
        let text = read(Op::DilatedAttention, &fields).unwrap_err();
        assert!(text.contains("dilation"), "{text}");
    }
}
