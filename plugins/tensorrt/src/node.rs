//! The state of one plugin object.

use crate::abi::{Field, LINEAR, Tensor, data_type, element};
use crate::fields::{self, Settings, Stored, Workspace};
use ratplus_graphs::none_wrong;
use ratplus_graphs::ops::{DOMAIN, ElementType, Op, PortType, TensorType};
use ratplus_kernels::cuda::{
    CudaError, Device, DeviceMemory, DevicePtr, NodeNumber, OperatorPlan, Stream, register_node,
};
use std::ffi::{CString, c_void};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A plugin object's state. TensorRT makes one for the network, copies it for the engine, and
/// again for every execution context, which alone prepares and runs its copy.
pub struct Node {
    op: Op,
    /// The layer's, as TensorRT told it.
    pub name: String,
    settings: Settings,
    /// The attributes in words.
    pub identity: CString,
    /// What TensorRT was told to set aside, by profile.
    workspace: Mutex<Vec<Workspace>>,
    stored: Stored,
    run: Option<Run>,
}

/// What runs one set of shapes on one device.
struct Run {
    #[cfg(feature = "cuda-emulation")]
    device: &'static Device,
    number: NodeNumber,
    inputs: Vec<Tensor>,
    plan: OperatorPlan,
    /// Where TensorRT was told less than the plan needs: a plan made on another GPU.
    own_workspace: Option<DeviceMemory>,
}

impl Node {
    /// A new node.
    ///
    /// # Errors
    /// Every field that is wrong.
    ///
    /// # Safety
    /// As [`fields::parse`].
    pub unsafe fn new(op: Op, name: String, fields: &[Field]) -> Result<Self, String> {
        // SAFETY: the caller's contract.
        let settings = unsafe { fields::parse(op, fields)? };
        Ok(Self::of(name, settings))
    }

    fn of(name: String, settings: Settings) -> Self {
        let op = settings.operator.op();
        let mut identity = format!("ratplus {} {op}", fields::FORMAT);
        for (spec, value) in settings.operator.attributes() {
            identity.push_str(&format!(" {}={value:?}", spec.name));
        }
        Self {
            op,
            name,
            identity: CString::new(identity).unwrap_or_default(),
            workspace: Mutex::new(settings.workspace.clone()),
            stored: Stored::default(),
            settings,
            run: None,
        }
    }

    fn told(&self) -> MutexGuard<'_, Vec<Workspace>> {
        self.workspace
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The settings with what TensorRT was told since.
    fn settings(&self) -> Settings {
        Settings {
            workspace: self.told().clone(),
            ..self.settings.clone()
        }
    }

    /// The same node, not prepared for any shape.
    pub fn copy(&self) -> Self {
        Self::of(self.name.clone(), self.settings())
    }

    /// What [`Node::new`] makes the same node of.
    pub fn fields(&mut self) -> &[Field] {
        self.stored = Stored::new(&self.settings());
        self.stored.fields()
    }

    /// `nvinfer1::DataType` of every output.
    ///
    /// # Errors
    /// Numbers of tensors or types that are not the schema's.
    pub fn output_types(&self, inputs: &[i32], outputs: &mut [i32]) -> Result<(), String> {
        self.check_counts(inputs.len(), outputs.len())?;
        let ports = self.op.inputs().iter().zip(inputs);
        let mut errors = Vec::new();
        self.check_cache(inputs)?;
        for (port, &code) in ports {
            if !fits(port.dtype, code, inputs[0]) {
                let expected = expected_type(port.dtype, inputs[0]);
                errors.push(format!(
                    "{}: expected {expected}, found {}",
                    port.name,
                    type_name(code)
                ));
            }
        }
        none_wrong(errors).map_err(joined)?;
        for (to, port) in outputs.iter_mut().zip(self.op.outputs()) {
            *to = match port.dtype {
                PortType::T | PortType::C => inputs[0],
                fixed => resolved(fixed, ElementType::F32).map_or(inputs[0], data_type),
            };
        }
        Ok(())
    }

    /// Whether the tensor at `position` of inputs and outputs may have its type and format, those
    /// before it having theirs.
    pub fn supports(&self, position: usize, tensors: &[Tensor]) -> bool {
        let mut ports = self.op.inputs().iter().chain(self.op.outputs());
        let (Some(port), Some(tensor)) = (ports.nth(position), tensors.get(position)) else {
            return false;
        };
        tensor.format == LINEAR && fits(port.dtype, tensor.dtype, tensors[0].dtype)
    }

    /// Compares tensors with the schema, as far as they are known. Without types, the numbers of
    /// tensors and the shapes only.
    ///
    /// # Errors
    /// Every contradiction.
    pub fn check(
        &self,
        inputs: &[Tensor],
        outputs: Option<&[Tensor]>,
        typed: bool,
    ) -> Result<(), String> {
        // TensorRT asks again whenever an address changes.
        let all = || inputs.iter().chain(outputs.unwrap_or_default());
        if typed && self.is_planned(inputs) && all().all(|tensor| tensor.format == LINEAR) {
            return Ok(());
        }
        self.check_counts(
            inputs.len(),
            outputs.map_or(self.op.outputs().len(), <[Tensor]>::len),
        )?;
        let mut errors = Vec::new();
        let ports = self.op.inputs().iter().chain(self.op.outputs());
        let tensors = inputs.iter().chain(outputs.unwrap_or_default());
        for (port, tensor) in ports.zip(tensors) {
            if typed && tensor.format != LINEAR {
                errors.push(format!(
                    "{}: expected the linear format, found {}",
                    port.name, tensor.format
                ));
            }
            if tensor.dims().len() != port.axes.len() {
                errors.push(format!(
                    "{}: expected {} dimensions, found {}",
                    port.name,
                    port.axes.len(),
                    tensor.rank
                ));
            }
        }
        none_wrong(errors).map_err(joined)?;
        if !inputs.iter().all(Tensor::is_known) {
            return Ok(());
        }
        let mut errors = Vec::new();
        let inferred = self.infer(&self.types(inputs, typed)?)?;
        let found = self.op.outputs().iter().zip(outputs.unwrap_or_default());
        for ((port, tensor), expected) in found.zip(&inferred) {
            let shape: Vec<_> = expected.shape.iter().map(|&dim| dim as i64).collect();
            if tensor.is_known() && tensor.dims() != shape {
                let found = tensor.dims();
                errors.push(format!(
                    "{}: expected {shape:?}, found {found:?}",
                    port.name
                ));
            }
            if typed && tensor.dtype != data_type(expected.dtype) {
                let found = type_name(tensor.dtype);
                errors.push(format!(
                    "{}: expected {}, found {found}",
                    port.name, expected.dtype
                ));
            }
        }
        none_wrong(errors).map_err(joined)
    }

    /// The inputs as the schema's functions take them; types of its own where they do not count.
    fn types(&self, inputs: &[Tensor], typed: bool) -> Result<Vec<TensorType>, String> {
        let ports = self.op.inputs().iter().zip(inputs);
        ports
            .map(|(port, tensor)| {
                let mut tensor = *tensor;
                if let (false, Some(dtype)) = (typed, resolved(port.dtype, ElementType::F32)) {
                    tensor.dtype = data_type(dtype);
                }
                tensor.known().ok_or_else(|| {
                    let found = type_name(tensor.dtype);
                    let dims = tensor.dims();
                    format!("{}: expected f32, f16, bf16 or i64 elements of a known shape, found {found}{dims:?}", port.name)
                })
            })
            .collect()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let inferred = self.settings.operator.infer(inputs);
        let inferred = inferred.map_err(|errors| errors.errors.join("; "))?;
        let schema = self.op.schema();
        schema.check_gpu_types(inferred.element, inferred.cache)?;
        Ok(inferred.outputs)
    }

    /// Refuses a cache of another type than the activations, where both are known.
    fn check_cache(&self, inputs: &[i32]) -> Result<(), String> {
        let schema = self.op.schema();
        let known = |variable| {
            let found = element(inputs[schema.variable(variable)?])?;
            ElementType::ACTIVATIONS.contains(&found).then_some(found)
        };
        match known(PortType::T).zip(known(PortType::C)) {
            Some((activations, cache)) => schema.check_gpu_types(activations, cache),
            None => Ok(()),
        }
    }

    fn check_counts(&self, inputs: usize, outputs: usize) -> Result<(), String> {
        let expected = (self.op.inputs().len(), self.op.outputs().len());
        if (inputs, outputs) == expected {
            return Ok(());
        }
        Err(format!(
            "expected {} inputs and {} outputs, found {inputs} and {outputs}",
            expected.0, expected.1
        ))
    }

    /// Bytes of workspace for a profile's largest inputs on the current device.
    ///
    /// # Errors
    /// Inputs that contradict the schema; no device, or one without kernels for them.
    pub fn workspace(&self, smallest: &[Tensor], largest: &[Tensor]) -> Result<usize, String> {
        let types = self.types(largest, true)?;
        let bytes = self.plan(device()?, &types)?.workspace_bytes();
        let profile = Workspace {
            smallest: sizes(smallest),
            largest: sizes(largest),
            bytes,
        };
        let mut told = self.told();
        let same = |known: &Workspace| {
            (known.smallest, known.largest) == (profile.smallest, profile.largest)
        };
        told.retain(|known| !same(known));
        told.push(profile);
        Ok(bytes)
    }

    /// Bytes of workspace that TensorRT gives a run of these inputs at least: which profile it is of, it
    /// does not say.
    fn given(&self, inputs: &[Tensor]) -> usize {
        let (told, sizes) = (self.told(), sizes(inputs));
        let profiles = told.iter().filter(|profile| profile.covers(sizes));
        profiles.map(|profile| profile.bytes).min().unwrap_or(0)
    }

    fn plan(&self, device: &'static Device, inputs: &[TensorType]) -> Result<OperatorPlan, String> {
        OperatorPlan::new(device, &self.settings.operator, inputs)
            .map_err(|error| error.to_string())
    }

    /// Gets ready to run inputs of these shapes on the current device. Loads kernels: not allowed
    /// while a stream is captured.
    ///
    /// # Errors
    /// As [`workspace`](Self::workspace).
    pub fn prepare(&mut self, inputs: &[Tensor]) -> Result<(), String> {
        // An execution context stays on its device.
        if self.is_planned(inputs) {
            return Ok(());
        }
        let device = device()?;
        let types = self.types(inputs, true)?;
        let plan = self.plan(device, &types)?;
        let bytes = plan.workspace_bytes();
        let own_workspace = if bytes > self.given(inputs) {
            Some(device.allocate(bytes).map_err(|error| error.to_string())?)
        } else {
            None
        };
        self.run = Some(Run {
            #[cfg(feature = "cuda-emulation")]
            device,
            number: register_node(device, self.to_string()),
            inputs: inputs.to_vec(),
            plan,
            own_workspace,
        });
        Ok(())
    }

    /// Whether it was prepared for these shapes.
    fn is_planned(&self, inputs: &[Tensor]) -> bool {
        let same = |(a, b): (&Tensor, &Tensor)| a.dtype == b.dtype && a.dims() == b.dims();
        self.run.as_ref().is_some_and(|run| {
            run.inputs.len() == inputs.len() && run.inputs.iter().zip(inputs).all(same)
        })
    }

    /// Puts the work into the stream. Lengths are in device memory: a slot whose lengths do not fit
    /// is idle, which [`RatplusTakeDeviceError`](crate::exports::RatplusTakeDeviceError) tells.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare), and what the driver reports.
    ///
    /// # Safety
    /// `inputs` and `outputs` are device addresses of tensors of the operator with these
    /// descriptions, `workspace` of as many bytes as [`workspace`](Self::workspace) told, all of
    /// the current context, and live until the stream has done the work.
    pub unsafe fn enqueue(
        &mut self,
        descriptions: &[Tensor],
        inputs: &[*const c_void],
        outputs: &[*mut c_void],
        workspace: *mut c_void,
        stream: *mut c_void,
    ) -> Result<(), String> {
        self.prepare(descriptions)?;
        let Some(run) = &self.run else {
            return Err("not prepared".into());
        };
        let text = |error: CudaError| error.to_string();
        #[cfg(feature = "cuda-emulation")]
        run.device.make_current().map_err(text)?;
        let (mut from, mut to) = ([0; MAX_TENSORS], [0; MAX_TENSORS]);
        let (from, to) = (&mut from[..inputs.len()], &mut to[..outputs.len()]);
        let addresses = inputs.iter().map(|pointer| pointer.addr());
        from.iter_mut()
            .zip(addresses)
            .for_each(|(to, address)| *to = address as DevicePtr);
        let addresses = outputs.iter().map(|pointer| pointer.addr());
        to.iter_mut()
            .zip(addresses)
            .for_each(|(to, address)| *to = address as DevicePtr);
        let memory = match &run.own_workspace {
            Some(own) => own.address(),
            None => workspace.addr() as DevicePtr,
        };
        let number = run.number.get();
        // SAFETY: the caller's contract; the plan is for these descriptions.
        unsafe { run.plan.launch(from, to, memory, number, Stream(stream)) }.map_err(text)
    }

    /// Numbers of inputs and outputs.
    pub fn counts(&self) -> (usize, usize) {
        (self.op.inputs().len(), self.op.outputs().len())
    }
}

/// Batch and length, of the first input.
fn sizes(inputs: &[Tensor]) -> [i64; 2] {
    match inputs.first().map(Tensor::dims) {
        Some(&[batch, seq_len, ..]) => [batch, seq_len],
        _ => [0; 2],
    }
}

fn joined(errors: Vec<String>) -> String {
    errors.join("; ")
}

/// What messages call it.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&describe(self.op, &self.name))
    }
}

/// kMaxTensors of cpp/abi.h.
pub const MAX_TENSORS: usize = 16;

/// What messages call a layer.
pub fn describe(op: Op, name: &str) -> String {
    format!("plugin `{name}` ({DOMAIN}.{op})")
}

/// The device that TensorRT works with on this thread.
fn device() -> Result<&'static Device, String> {
    #[cfg(feature = "cuda-emulation")]
    {
        ratplus_cuda_emulator::load()?.set_pageable_memory(true);
        Device::open(0).map_err(|error| error.to_string())
    }
    #[cfg(not(feature = "cuda-emulation"))]
    Device::current().map_err(|error| error.to_string())
}

/// Whether a port takes a `nvinfer1::DataType` where the first input has another.
fn fits(port: PortType, code: i32, first: i32) -> bool {
    match port {
        PortType::T | PortType::C => {
            code == first
                && element(code).is_some_and(|found| ElementType::ACTIVATIONS.contains(&found))
        }
        fixed => element(code) == resolved(fixed, ElementType::F32),
    }
}

/// The type of a port where `T` and `C` are `t`.
fn resolved(port: PortType, t: ElementType) -> Option<ElementType> {
    port.resolve(t, t)
}

fn expected_type(port: PortType, first: i32) -> String {
    let activation = element(first).filter(|found| ElementType::ACTIVATIONS.contains(found));
    match (port, activation) {
        (PortType::T | PortType::C, None) => "f32, f16 or bf16".into(),
        (port, found) => {
            let dtype = resolved(port, found.unwrap_or(ElementType::F32));
            dtype.map_or_else(String::new, |dtype| dtype.to_string())
        }
    }
}

fn type_name(code: i32) -> String {
    element(code).map_or_else(
        || format!("TensorRT's type {code}"),
        |found| found.to_string(),
    )
}
