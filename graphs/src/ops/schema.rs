//! Ports: the named inputs and outputs of an operator.

use crate::tensor::ElementType;

/// Element type of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortType {
    /// The operator's `T`: f32, f16 or bf16, the same on all such ports.
    T,
    /// The attention's `C`, as `T` but for the cache alone. Every key (after rotary embedding) and
    /// value is rounded to it, to nearest even, before any query sees it, those of the chunk
    /// itself included: results do not depend on how a sequence is cut into chunks.
    C,
    /// Always f32.
    F32,
    /// Always i64.
    I64,
}

impl PortType {
    /// The element type for given `T` and `C`.
    pub fn resolve(self, t: ElementType, c: ElementType) -> ElementType {
        match self {
            Self::T => t,
            Self::C => c,
            Self::F32 => ElementType::F32,
            Self::I64 => ElementType::I64,
        }
    }
}

/// A named dimension of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// `B`: independent sequences.
    Batch,
    /// `L`: tokens of this chunk.
    SeqLen,
    /// `N`: channels, `num_heads x head_dim`.
    Channels,
    /// `R`: cache rows of all heads.
    Rows,
    /// `dh`: channels of one head.
    HeadDim,
    /// `M`: longest sequence.
    MaxSeqLen,
    /// `dh / 2`.
    HalfHeadDim,
}

impl Axis {
    pub(super) const COUNT: usize = 7;

    /// Its letter in shapes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Batch => "B",
            Self::SeqLen => "L",
            Self::Channels => "N",
            Self::Rows => "R",
            Self::HeadDim => "dh",
            Self::MaxSeqLen => "M",
            Self::HalfHeadDim => "dh/2",
        }
    }
}

/// One input or output.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// Name in messages and in the function body.
    pub name: &'static str,
    /// Element type.
    pub dtype: PortType,
    /// Named dimensions.
    pub axes: &'static [Axis],
}

/// One value a port, by the port's name and in the order of an operator's signature.
pub trait Ports<P>: Sized {
    /// The ports in order.
    const PORTS: &'static [Port];

    /// What `make` makes of each port.
    fn from_ports(make: impl FnMut(&'static Port) -> P) -> Self;

    /// The values of a list in the ports' order; `None` where there are more or fewer than ports.
    fn from_list(list: impl IntoIterator<Item = P>) -> Option<Self>;

    /// The values in the ports' order.
    fn into_list(self) -> Vec<P>;
}

/// Declares a struct with one field a port, generic over what stands for a tensor there (a pointer,
/// a device address, a slice, the name of a value), and the ports that it declares.
macro_rules! ports {
    (
        $(#[$struct_doc:meta])*
        $name:ident {
            $($(#[$doc:meta])* $port:ident: $dtype:ident [$($axis:ident),*],)*
        }
    ) => {
        $(#[$struct_doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<P> {
            $($(#[$doc])* pub $port: P,)*
        }

        impl<P> $crate::ops::Ports<P> for $name<P> {
            const PORTS: &'static [$crate::ops::Port] = &[$($crate::ops::Port {
                name: stringify!($port),
                dtype: $crate::ops::PortType::$dtype,
                axes: &[$($crate::ops::Axis::$axis),*],
            }),*];

            fn from_ports(
                mut make: impl FnMut(&'static $crate::ops::Port) -> P,
            ) -> Self {
                let mut ports = Self::PORTS.iter();
                let mut next = || ports.next().map(&mut make);
                // As many as there are fields.
                $(let Some($port) = next() else { unreachable!() };)*
                Self { $($port,)* }
            }

            fn from_list(list: impl IntoIterator<Item = P>) -> Option<Self> {
                let mut list = list.into_iter();
                let ports = Self { $($port: list.next()?,)* };
                list.next().is_none().then_some(ports)
            }

            fn into_list(self) -> Vec<P> {
                vec![$(self.$port),*]
            }
        }
    };
}
pub(super) use ports;

/// What an operator looks like from outside.
#[derive(Debug)]
pub struct Schema {
    /// `op_type`.
    pub name: &'static str,
    /// Inputs in order.
    pub inputs: &'static [Port],
    /// Outputs in order.
    pub outputs: &'static [Port],
    /// Pairs of (input, output) that may share memory.
    pub aliases: &'static [(usize, usize)],
    /// Attributes, [`PLUGIN_ATTRIBUTES`](super::PLUGIN_ATTRIBUTES) not included.
    pub attributes: &'static [super::AttributeSpec],
}

impl Schema {
    /// Place of the input called `name`.
    pub fn input(&self, name: &str) -> Option<usize> {
        self.inputs.iter().position(|port| port.name == name)
    }

    /// Whether an input has the dimension.
    pub fn has(&self, axis: Axis) -> bool {
        self.inputs.iter().any(|port| port.axes.contains(&axis))
    }

    /// The input of the type variable `variable` that comes first.
    pub fn variable(&self, variable: PortType) -> Option<usize> {
        self.inputs.iter().position(|port| port.dtype == variable)
    }

    /// For each output, the first input of the same type and shape. Every operator has one for each:
    /// tested.
    pub fn outputs_like(&self) -> impl Iterator<Item = Option<usize>> {
        self.outputs.iter().map(|output| {
            let same = |input: &Port| input.dtype == output.dtype && input.axes == output.axes;
            self.inputs.iter().position(same)
        })
    }

    /// Whether the kernels for GPUs take a cache of type `cache`: they have none where it is not
    /// `T`.
    ///
    /// # Errors
    /// What they take, and what to do.
    pub fn check_gpu_types(&self, t: ElementType, cache: ElementType) -> Result<(), String> {
        match self.variable(PortType::C) {
            Some(_) => check_gpu_cache(t, cache),
            None => Ok(()),
        }
    }
}

/// Whether the kernels for GPUs take a cache of this type: they have none where it is not the
/// activations'.
///
/// # Errors
/// What they take, and what to do.
pub fn check_gpu_cache(activations: ElementType, cache: ElementType) -> Result<(), String> {
    if activations == cache {
        return Ok(());
    }
    Err(format!(
        "past_key, past_value: on a GPU expected {activations}, the type of query, found {cache}; export \
         with `cache_dtype: {activations}`, or run ort-cpu or ort-fallback"
    ))
}

/// Pairs of an input and the output that may take its place, by their names.
pub(super) const fn aliases<I: Ports<()>, O: Ports<()>, const N: usize>(
    names: [(&str, &str); N],
) -> [(usize, usize); N] {
    let mut pairs = [(0, 0); N];
    let mut at = 0;
    while at < N {
        pairs[at] = (place(I::PORTS, names[at].0), place(O::PORTS, names[at].1));
        at += 1;
    }
    pairs
}

/// Evaluated by the compiler: a name without a port does not compile.
const fn place(ports: &[Port], name: &str) -> usize {
    let mut at = 0;
    while at < ports.len() {
        if equal(ports[at].name.as_bytes(), name.as_bytes()) {
            return at;
        }
        at += 1;
    }
    panic!("no port of this name")
}

const fn equal(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    a.len() == b.len()
}
