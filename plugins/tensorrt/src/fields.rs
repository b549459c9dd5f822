//! Attributes as TensorRT carries them: fields from the ONNX parser, and what a plan stores.

use crate::abi::{CHAR, FLOAT32, FLOAT64, Field, INT32, INT64};
use ratplus_graphs::ops::{
    AttributeKind, AttributeReader, AttributeSpec, AttributeValue, Op, Operator,
};
use std::ffi::{CStr, CString, c_void};
use std::slice;

/// Of what a plan stores beside the operator's attributes: [`FORMAT`].
const PLAN_FORMAT: &str = "ratplus_format";
/// Beside it: the workspace that the plan sets aside for each of its profiles.
const WORKSPACE: &str = "ratplus_workspace";
/// Version of what a plan stores; goes up when an older library could not read it.
pub const FORMAT: &str = "2";

/// What TensorRT was told to set aside for the batches and lengths of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workspace {
    /// Smallest batch and length.
    pub smallest: [i64; 2],
    /// Largest batch and length.
    pub largest: [i64; 2],
    /// Bytes.
    pub bytes: usize,
}

impl Workspace {
    /// Numbers of one in a plan.
    const NUMBERS: usize = 5;

    fn numbers(&self) -> [i64; Self::NUMBERS] {
        let ([b, l], [most_b, most_l]) = (self.smallest, self.largest);
        [b, l, most_b, most_l, self.bytes as i64]
    }

    fn read(numbers: &[i64]) -> Option<Self> {
        let &[b, l, most_b, most_l, bytes] = numbers else {
            return None;
        };
        Some(Self {
            smallest: [b, l],
            largest: [most_b, most_l],
            bytes: usize::try_from(bytes).ok()?,
        })
    }

    /// Whether a batch and length are of the profile.
    pub fn covers(&self, sizes: [i64; 2]) -> bool {
        let within =
            |axis: usize| (self.smallest[axis]..=self.largest[axis]).contains(&sizes[axis]);
        within(0) && within(1)
    }
}

/// What a plugin is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// With its attributes.
    pub operator: Operator,
    /// Of the profiles of an earlier plan; none for a new plugin.
    pub workspace: Vec<Workspace>,
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

/// Fields by name.
struct Fields<'a>(&'a [Field]);

impl Fields<'_> {
    /// # Safety
    /// As [`parse`].
    unsafe fn named(&self, wanted: &str) -> Option<Values> {
        // SAFETY: the caller's contract.
        unsafe {
            let of_name = |field: &&Field| {
                !field.name.is_null() && CStr::from_ptr(field.name).to_bytes() == wanted.as_bytes()
            };
            self.0.iter().find(of_name).map(|field| Values::read(field))
        }
    }
}

impl AttributeReader for Fields<'_> {
    fn read(&mut self, attribute: &AttributeSpec) -> Result<Option<AttributeValue>, String> {
        // SAFETY: `parse`, which makes them, was promised that the fields are readable.
        let Some(found) = (unsafe { self.named(attribute.name) }) else {
            return Ok(None);
        };
        let value = match (attribute.kind, found) {
            (AttributeKind::Int, Values::Ints(values)) if values.len() == 1 => {
                Ok(AttributeValue::Int(values[0]))
            }
            (AttributeKind::Ints, Values::Ints(values)) if !values.is_empty() => {
                Ok(AttributeValue::Ints(values))
            }
            (AttributeKind::Float, Values::Floats(values)) if values.len() == 1 => {
                Ok(AttributeValue::Float(values[0] as f32))
            }
            (AttributeKind::String, Values::Text(text)) => Ok(AttributeValue::String(text)),
            (_, other) => Err(other.describe()),
        };
        value.map(Some)
    }
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
    let mut fields = Fields(fields);
    let mut errors = Vec::new();
    // SAFETY: the caller's contract.
    let (version, workspace) = unsafe { (fields.named(PLAN_FORMAT), fields.named(WORKSPACE)) };
    match version {
        None => (),
        Some(Values::Text(version)) if version == FORMAT => (),
        Some(other) => errors.push(format!(
            "field {PLAN_FORMAT}: expected `{FORMAT}`, this library's (a plan of another has to be \
             built again), found {}",
            other.describe()
        )),
    }
    let workspace = match workspace {
        Some(Values::Ints(values)) => {
            let each = values.chunks(Workspace::NUMBERS);
            each.filter_map(Workspace::read).collect()
        }
        _ => Vec::new(),
    };
    match op.read(&mut fields) {
        Ok(operator) if errors.is_empty() => Ok(Settings {
            operator,
            workspace,
        }),
        Ok(_) => Err(errors.join("; ")),
        Err(wrong) => {
            errors.extend(wrong.errors);
            Err(errors.join("; "))
        }
    }
}

/// Fields with memory of their own, which [`parse`] makes the same settings of.
#[derive(Debug, Default)]
pub struct Stored {
    fields: Vec<Field>,
    // What the fields point to, never changed.
    _data: Vec<(CString, Data)>,
}

/// Memory of one field's values.
#[derive(Debug)]
enum Data {
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float32(f32),
    Text(String),
}

impl Data {
    /// Integers as parsers give them, where they fit.
    fn ints(values: Vec<i64>) -> Self {
        let narrow: Result<_, _> = values.iter().map(|&value| i32::try_from(value)).collect();
        narrow.map_or(Self::Int64(values), Self::Int32)
    }

    fn of(value: AttributeValue) -> Self {
        match value {
            AttributeValue::Int(value) => Self::ints(vec![value]),
            AttributeValue::Ints(values) => Self::ints(values),
            AttributeValue::Float(value) => Self::Float32(value),
            AttributeValue::String(text) => Self::Text(text),
        }
    }

    /// Address, type and number of the values.
    fn view(&self) -> (*const c_void, i32, usize) {
        match self {
            Self::Int32(values) => (values.as_ptr().cast(), INT32, values.len()),
            Self::Int64(values) => (values.as_ptr().cast(), INT64, values.len()),
            Self::Float32(value) => ((&raw const *value).cast(), FLOAT32, 1),
            Self::Text(text) => (text.as_ptr().cast(), CHAR, text.len()),
        }
    }
}

impl Stored {
    /// What a plan stores of `settings`.
    pub fn new(settings: &Settings) -> Self {
        let attributes = settings.operator.attributes();
        let workspace = settings.workspace.iter().map(Workspace::numbers);
        let own = attributes.map(|(spec, value)| (spec.name, Data::of(value)));
        let data: Vec<_> = own
            .chain([
                (PLAN_FORMAT, Data::Text(FORMAT.into())),
                (WORKSPACE, Data::Int64(workspace.flatten().collect())),
            ])
            .map(|(name, data)| (CString::new(name).unwrap_or_default(), data))
            .collect();
        let fields = data.iter().map(|(name, data)| {
            let (data, kind, length) = data.view();
            Field {
                name: name.as_ptr(),
                data,
                kind,
                length: length as i32,
            }
        });
        Self {
            fields: fields.collect(),
            _data: data,
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
    use ratplus_graphs::blocks::{BlockTopK, Score};
    use ratplus_graphs::ops::{BlockTopKAttention, DilatedAttention, RecurrenceScan};
    use ratplus_graphs::pattern::Pattern;

    fn settings(patterns: Vec<Pattern>) -> Settings {
        Settings {
            operator: Operator::from(DilatedAttention::ungrouped(patterns, 0.125)),
            workspace: [1, 512]
                .map(|length| Workspace {
                    smallest: [1, length],
                    largest: [8, length],
                    bytes: 5 << 32,
                })
                .to_vec(),
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
            operator: RecurrenceScan::default().into(),
            workspace: Vec::new(),
        };
        let stored = Stored::new(&scan);
        assert_eq!(read(Op::RecurrenceScan, stored.fields()).unwrap(), scan);
        for score in Score::ALL {
            let beside = Pattern::new(16, 3, 2).unwrap();
            let blocks = BlockTopKAttention {
                num_heads: 6,
                num_kv_heads: 2,
                blocks: BlockTopK::new(64, 8, score, beside).unwrap(),
                scale: 0.125,
            };
            let settings = Settings {
                operator: blocks.into(),
                workspace: Vec::new(),
            };
            let stored = Stored::new(&settings);
            let found = read(Op::BlockTopKAttention, stored.fields()).unwrap();
            assert_eq!(found, settings);
        }
    }

    #[test]
    fn every_wrong_field_is_named() {
        let text = read(Op::DilatedAttention, &[]).unwrap_err();
        for name in ["num_heads", "dilation", "local_window", "initial", "scale"] {
            assert!(
                text.contains(&format!("attribute {name}: expected ")),
                "{text}"
            );
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
            text.contains("initial: expected a list of integers, found a field of type 99"),
            "{text}"
        );
        let text = read(Op::RecurrenceScan, &[field(c"ratplus_format", INT32, 1)]).unwrap_err();
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
