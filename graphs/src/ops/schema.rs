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
    /// A matrix's own: what its operator's attributes say.
    W,
    /// Always f32.
    F32,
    /// Always i64.
    I64,
    /// Always bytes.
    U8,
}

impl PortType {
    /// The element type for given `T` and `C`; none for `W`.
    pub fn resolve(self, t: ElementType, c: ElementType) -> Option<ElementType> {
        match self {
            Self::T => Some(t),
            Self::C => Some(c),
            Self::W => None,
            Self::F32 => Some(ElementType::F32),
            Self::I64 => Some(ElementType::I64),
            Self::U8 => Some(ElementType::U8),
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
    /// `N`: channels; in attention of queries, `num_heads x head_dim`.
    Channels,
    /// `Nkv`: channels of keys and values in attention, `num_kv_heads x head_dim`.
    KvChannels,
    /// `R`: cache rows of all key-value heads.
    Rows,
    /// `Rb`: rows of the summaries of all key-value heads' blocks.
    BlockRows,
    /// `dh`: channels of one head.
    HeadDim,
    /// `M`: longest sequence.
    MaxSeqLen,
    /// `dh / 2`.
    HalfHeadDim,
    /// `K`: columns of a matrix.
    InFeatures,
    /// Rows of a matrix, `N` of its product.
    OutFeatures,
    /// Elements that a row of a matrix is stored in.
    Stored,
    /// Scales of a matrix.
    Scales,
    /// Bytes that hold zero points of a matrix.
    ZeroPoints,
}

impl Axis {
    pub(super) const COUNT: usize = 14;

    /// Its letter in shapes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Batch => "B",
            Self::SeqLen => "L",
            Self::Channels => "N",
            Self::KvChannels => "Nkv",
            Self::Rows => "R",
            Self::BlockRows => "Rb",
            Self::HeadDim => "dh",
            Self::MaxSeqLen => "M",
            Self::HalfHeadDim => "dh/2",
            Self::InFeatures => "in_features",
            Self::OutFeatures => "out_features",
            Self::Stored => "stored",
            Self::Scales => "scales",
            Self::ZeroPoints => "zero_points",
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
    /// Whether a node may be without it.
    pub optional: bool,
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
/// a device address, a slice, the name of a value), and the ports that it declares. A node may be
/// without one that ends in `or none`: a tensor without elements stands for it, or nothing at a list's
/// end (runtimes up to ONNX Runtime 1.31 crash on an empty name before it), and in the struct a null
/// pointer, an empty slice or an empty name.
macro_rules! ports {
    (
        $(#[$struct_doc:meta])*
        $name:ident {
            $($(#[$doc:meta])* $port:ident: $dtype:ident [$($axis:ident),*] $(or $none:ident)?,)*
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
                optional: $crate::ops::schema::is_any(&[$(stringify!($none))?]),
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

/// Whether there is any of `words`.
pub(super) const fn is_any(words: &[&str]) -> bool {
    !words.is_empty()
}

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

    /// Inputs that every node has.
    pub fn least_inputs(&self) -> usize {
        let last = self.inputs.iter().rposition(|port| !port.optional);
        last.map_or(0, |place| place + 1)
    }

    /// Whether an input has the dimension.
    pub fn has(&self, axis: Axis) -> bool {
        self.inputs.iter().any(|port| port.axes.contains(&axis))
    }

    /// The input of the type variable `variable` that comes first.
    pub fn variable(&self, variable: PortType) -> Option<usize> {
        self.inputs.iter().position(|port| port.dtype == variable)
    }

    /// The first input that has the dimension, and its place there; every node has the input. Every
    /// dimension of an output is one of an input's: tested.
    pub fn source(&self, axis: Axis) -> Option<(usize, usize)> {
        let inputs = self.inputs.iter().enumerate();
        let mut places = inputs.filter(|(_, port)| !port.optional);
        places.find_map(|(input, port)| {
            let place = port.axes.iter().position(|&found| found == axis)?;
            Some((input, place))
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
