//! The operators: each one value, defined in one file.
//!
//! A file of this folder holds everything about its operator that hosts have to agree on: ports,
//! attributes, what sizes fit together, which outputs may take an input's memory, and the function
//! body in standard ONNX operators. `registry!` below is the one list of them; hosts reach every
//! operator through [`Op`], [`Operator`], [`with_operator!`](crate::with_operator) and
//! [`with_op!`](crate::with_op).

mod attention;
pub(crate) mod attributes;
mod inference;
mod lengths;
mod schema;

pub use crate::tensor::{ElementType, TensorType};
pub use attributes::{AttributeKind, AttributeReader, AttributeSpec, AttributeValue, Attributes};
pub use inference::{Dims, Given, Inferred};
pub use lengths::{LengthError, check_lengths};
pub use schema::{Axis, Port, PortType, Ports, Schema, check_gpu_cache};

use std::fmt;

/// Domain of the operators; also TensorRT's plugin namespace.
pub const DOMAIN: &str = "ai.ratplus";
/// Where ONNX Runtime's TensorRT provider declares an operator for every plugin that it has loaded.
pub const TRT_PLUGINS_DOMAIN: &str = "trt.plugins";
/// Version of the domain.
pub const DOMAIN_VERSION: i64 = 1;
/// Value of the `plugin_version` attribute.
pub const PLUGIN_VERSION: &str = "1";
/// Attributes every custom node carries for TensorRT's parser.
pub const PLUGIN_ATTRIBUTES: [(&str, &str); 2] = [
    ("plugin_namespace", DOMAIN),
    ("plugin_version", PLUGIN_VERSION),
];

/// An operator with its attributes.
pub trait Definition: Clone + fmt::Debug + PartialEq + Send + Sync + 'static {
    /// Which one it is.
    const OP: Op;
    /// What it looks like from outside.
    const SCHEMA: Schema;
    /// Its inputs by name.
    type Inputs<P>: Ports<P>;
    /// Its outputs by name.
    type Outputs<P>: Ports<P>;
    /// Its attributes as a node carries them.
    type Attributes: Attributes;

    /// The operator with these attributes.
    ///
    /// # Errors
    /// Every value out of range.
    fn new(attributes: Self::Attributes) -> Result<Self, Vec<String>>;

    /// What a node carries.
    fn attributes(&self) -> Self::Attributes;

    /// What attributes tell of the inputs.
    fn given(&self) -> Given {
        Given::default()
    }

    /// Adds what is wrong with a node, as far as its sizes are known, beside what the ports say.
    fn check(&self, node: &Inferred, errors: &mut Vec<String>);

    /// Sizes, types and outputs of a node with inputs of these types.
    ///
    /// # Errors
    /// The inputs contradict the schema, the attributes or one another: everything that is wrong.
    fn infer(&self, inputs: &[TensorType]) -> Result<Inferred, SchemaErrors> {
        let check = |node: &Inferred, errors: &mut _| self.check(node, errors);
        inference::infer(Self::OP, inputs, self.given(), check)
    }

    /// Whether its model-local function in packages of `shape` has the input or attribute `name`.
    fn in_function(name: &str, shape: &body::BodyShape) -> bool {
        let _ = (name, shape);
        true
    }

    /// Writes the operator in standard ONNX operators.
    fn body(call: body::Call<'_, '_, Self>);
}

/// Lists the operators: everything that goes over all of them is made here.
macro_rules! registry {
    (
        $d:tt
        everywhere { $($(#[$gpu_doc:meta])* $gpu_module:ident::$gpu_name:ident,)* }
        $($(#[$doc:meta])* $module:ident::$name:ident,)*
    ) => {
        registry! { @all $d
            $($(#[$gpu_doc])* $gpu_module::$gpu_name,)*
            $($(#[$doc])* $module::$name,)*
        }

        impl Op {
            /// Those with kernels for GPUs.
            pub const GPU: [Self; [$(stringify!($gpu_name)),*].len()] = [$(Self::$gpu_name),*];
        }

        /// As [`with_operator!`](crate::with_operator) for the operators of
        /// [`Op::GPU`](crate::ops::Op::GPU), and `other` for the rest.
        #[macro_export]
        macro_rules! with_gpu_operator {
            ($d operator:expr, $d inner:ident => $d body:expr, $d other:expr) => {
                match $d operator {
                    $($crate::ops::Operator::$gpu_name($d inner) => $d body,)*
                    _ => $d other,
                }
            };
        }

        /// As [`with_op!`](crate::with_op) for the operators of
        /// [`Op::GPU`](crate::ops::Op::GPU), and `other` for the rest.
        #[macro_export]
        macro_rules! with_gpu_op {
            ($d op:expr, $d inner:ident => $d body:expr, $d other:expr) => {
                match $d op {
                    $($crate::ops::Op::$gpu_name => {
                        type $d inner = $crate::ops::$gpu_name;
                        $d body
                    })*
                    _ => $d other,
                }
            };
        }
    };
    (@all $d:tt $($(#[$doc:meta])* $module:ident::$name:ident,)*) => {
        $(
            pub mod $module;
            pub use $module::$name;
        )*

        /// An operator of [`DOMAIN`], without its attributes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Op {
            $($(#[$doc])* $name,)*
        }

        /// An operator of [`DOMAIN`] with its attributes: what a node is.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Operator {
            $($(#[$doc])* $name($name),)*
        }

        $(
            impl From<$name> for Operator {
                fn from(operator: $name) -> Self {
                    Self::$name(operator)
                }
            }
        )*

        impl Op {
            /// Every operator.
            pub const ALL: [Self; [$(stringify!($name)),*].len()] = [$(Self::$name),*];
        }

        /// Evaluates an expression with the [`Definition`](crate::ops::Definition) inside an
        /// [`Operator`](crate::ops::Operator) (or a reference to one):
        /// `with_operator!(operator, op => f(op))`.
        #[macro_export]
        macro_rules! with_operator {
            ($d operator:expr, $d inner:ident => $d body:expr) => {
                match $d operator {
                    $($crate::ops::Operator::$name($d inner) => $d body,)*
                }
            };
        }

        /// Evaluates an expression with the type that defines an [`Op`](crate::ops::Op):
        /// `with_op!(op, O => f::<O>())`.
        #[macro_export]
        macro_rules! with_op {
            ($d op:expr, $d inner:ident => $d body:expr) => {
                match $d op {
                    $($crate::ops::Op::$name => {
                        type $d inner = $crate::ops::$name;
                        $d body
                    })*
                }
            };
        }
    };
}

registry! { $
    everywhere {
        /// The gated linear recurrence over keys and values.
        recurrence_scan::RecurrenceScan,
        /// Rotary embedding, dilated attention and the cache update.
        dilated_attention::DilatedAttention,
        /// Rotary embedding, attention to chosen blocks, the cache update and blocks' summaries.
        block_top_k_attention::BlockTopKAttention,
    }
    /// Rows times a matrix that is read where it is stored; for CPUs.
    linear::Linear,
}

// After the registry: it goes over the operators.
pub mod body;
#[cfg(test)]
mod tests;

impl Op {
    /// What it looks like from outside.
    pub fn schema(self) -> &'static Schema {
        with_op!(self, O => {
            const SCHEMA: &Schema = &O::SCHEMA;
            SCHEMA
        })
    }

    /// The operator with this `op_type`.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|op| op.name() == name)
    }

    /// `op_type`.
    pub fn name(self) -> &'static str {
        self.schema().name
    }

    /// Inputs in order.
    pub fn inputs(self) -> &'static [Port] {
        self.schema().inputs
    }

    /// Outputs in order.
    pub fn outputs(self) -> &'static [Port] {
        self.schema().outputs
    }

    /// The operator with the attributes that `reader` has.
    ///
    /// # Errors
    /// Every attribute that is missing, of another kind or out of range.
    pub fn read(self, reader: &mut dyn AttributeReader) -> Result<Operator, SchemaErrors> {
        fn read<O: Definition + Into<Operator>>(
            reader: &mut dyn AttributeReader,
        ) -> Result<Operator, Vec<String>> {
            O::new(O::Attributes::read(reader)?).map(Into::into)
        }
        with_op!(self, O => read::<O>(reader)).map_err(|errors| SchemaErrors::new(self, errors))
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn op_of<O: Definition>(_: &O) -> Op {
    O::OP
}

impl Operator {
    /// Which one it is.
    pub fn op(&self) -> Op {
        with_operator!(self, operator => op_of(operator))
    }

    /// What its node has, [`PLUGIN_ATTRIBUTES`] not included.
    pub fn attributes(&self) -> impl Iterator<Item = (&'static AttributeSpec, AttributeValue)> {
        let values = with_operator!(self, operator => operator.attributes().values());
        let specs = self.op().schema().attributes.iter();
        specs
            .zip(values)
            .filter_map(|(spec, value)| Some((spec, value?)))
    }

    /// [`Definition::infer`].
    ///
    /// # Errors
    /// As there.
    pub fn infer(&self, inputs: &[TensorType]) -> Result<Inferred, SchemaErrors> {
        with_operator!(self, operator => operator.infer(inputs))
    }
}

/// Everything wrong with one node's attributes, types or shapes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op}: {}", .errors.join("; "))]
pub struct SchemaErrors {
    /// The operator.
    pub op: Op,
    /// One line each: what, expected, found.
    pub errors: Vec<String>,
}

impl SchemaErrors {
    fn new(op: Op, errors: Vec<String>) -> Self {
        Self { op, errors }
    }
}
