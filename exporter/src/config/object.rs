use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A value and the field that says it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Said<T> {
    pub value: T,
    /// The field's path, such as `model.backbone.d_model`.
    pub field: String,
}

/// Fields of a configuration, with what was asked for and what was wrong with it.
pub(crate) struct Object<'a> {
    path: String,
    fields: &'a Map<String, Value>,
    known: BTreeSet<&'static str>,
}

/// What a field may hold.
pub(crate) trait Read: Sized {
    /// In words that follow "expected".
    const EXPECTED: &'static str;

    fn read(value: &Value) -> Option<Self>;
}

macro_rules! read {
    ($($type:ty, $expected:literal, $read:expr;)*) => {$(
        impl Read for $type {
            const EXPECTED: &'static str = $expected;

            fn read(value: &Value) -> Option<Self> {
                let read: fn(&Value) -> Option<Self> = $read;
                read(value)
            }
        }
    )*};
}

read! {
    usize, "a whole number that is not negative", |value| match value.as_u64() {
        Some(size) => usize::try_from(size).ok(),
        None => usize::try_from(integer(value)?).ok(),
    };
    f64, "a number", Value::as_f64;
    bool, "true or false", Value::as_bool;
    String, "a text", |value| value.as_str().map(str::to_owned);
    Vec<i64>, "a whole number, or a list of one per layer", |value| match value {
        Value::Array(items) => items.iter().map(integer).collect(),
        value => Some(vec![integer(value)?]),
    };
}

/// A field that two places say, or is the problem that they say two things.
pub(crate) fn one_of<T: PartialEq>(
    ours: Option<Said<T>>,
    theirs: Option<Said<T>>,
    problems: &mut Vec<String>,
) -> Option<Said<T>> {
    if let (Some(ours), Some(theirs)) = (&ours, &theirs)
        && ours.value != theirs.value
    {
        problems.push(format!(
            "{} and {}: expected the same value, found two",
            ours.field, theirs.field
        ));
    }
    ours.or(theirs)
}

impl<'a> Object<'a> {
    /// The fields of `value`, whose own path is `path`; `None` where it has none.
    pub(crate) fn new(value: &'a Value, path: &str) -> Option<Self> {
        Some(Self {
            path: path.to_owned(),
            fields: value.as_object()?,
            known: BTreeSet::new(),
        })
    }

    pub(crate) fn path(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    /// A field that is there and not null.
    pub(crate) fn get(&mut self, name: &'static str) -> Option<&'a Value> {
        self.known.insert(name);
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// Whether a field is there and null.
    pub(crate) fn is_null(&self, name: &str) -> bool {
        self.fields.get(name).is_some_and(Value::is_null)
    }

    /// Fields that change nothing.
    pub(crate) fn ignore(&mut self, names: impl IntoIterator<Item = &'static str>) {
        self.known.extend(names);
    }

    /// Paths of the fields that nothing asked for and that say something, by their names: an object's
    /// own order depends on how `serde_json` was built.
    pub(crate) fn unknown(&self) -> impl Iterator<Item = String> + '_ {
        let fields: BTreeMap<_, _> = self.fields.iter().collect();
        let unknown = fields
            .into_iter()
            .filter(|(name, value)| !value.is_null() && !self.known.contains(name.as_str()));
        unknown.map(|(name, _)| self.path(&printable(name)))
    }

    /// What a field holds, where it is there.
    pub(crate) fn read<T: Read>(
        &mut self,
        name: &'static str,
        problems: &mut Vec<String>,
    ) -> Option<Said<T>> {
        let found = self.get(name)?;
        let field = self.path(name);
        let value = T::read(found);
        if value.is_none() {
            problems.push(format!(
                "{field}: expected {}, found {}",
                T::EXPECTED,
                show(found)
            ));
        }
        value.map(|value| Said { value, field })
    }

    /// What a field of either name holds; it is a problem where they say two things.
    pub(crate) fn either<T: Read + PartialEq>(
        &mut self,
        names: [&'static str; 2],
        problems: &mut Vec<String>,
    ) -> Option<Said<T>> {
        let [ours, theirs] = names.map(|name| self.read(name, problems));
        one_of(ours, theirs, problems)
    }

    pub(crate) fn object(
        &mut self,
        name: &'static str,
        problems: &mut Vec<String>,
    ) -> Option<Object<'a>> {
        let found = self.get(name)?;
        let inner = Object::new(found, &self.path(name));
        if inner.is_none() {
            let problem = format!(
                "{}: expected fields, found {}",
                self.path(name),
                show(found)
            );
            problems.push(problem);
        }
        inner
    }
}

/// A whole number; YAML and JSON writers may write one as `4096.0`.
pub(crate) fn integer(value: &Value) -> Option<i64> {
    let whole =
        |value: f64| (value.fract() == 0.0 && value.abs() < 2f64.powi(53)).then_some(value as i64);
    value.as_i64().or_else(|| whole(value.as_f64()?))
}

fn printable(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut shown: String = text
        .chars()
        .take(LONGEST)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

/// A value for a message: short, and on one line.
pub(crate) fn show(value: &Value) -> impl fmt::Display + use<> {
    match value {
        Value::Object(fields) if fields.is_empty() => "an empty object".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::String(text) if text.contains("${") => format!(
            "the interpolation `{}` (save the resolved configuration: OmegaConf.to_container(config, \
             resolve=True))",
            printable(text)
        ),
        Value::String(text) => format!("`{}`", printable(text)),
        other => other.to_string(),
    }
}
