//! A node of a session: made once, run many times, from many threads.

use crate::api::{Api, Failure, Tensor, TensorShape};
use crate::attributes::KernelAttributes;
use crate::compute::{Call, Cpu, Prepared, Processor};
use crate::descriptor::{Descriptor, Provider, Types};
use crate::plan::Plan;
use crate::watch;
use ort_sys::{OrtKernelContext, OrtKernelInfo};
use ratplus_graphs::ops::{DOMAIN, ElementType, Operator, PortType};
use std::ptr::null_mut;
use std::sync::OnceLock;

/// No operator has more inputs: tested.
pub const MAX_INPUTS: usize = 16;
/// No operator has more outputs: tested.
pub const MAX_OUTPUTS: usize = 8;

/// Input shapes a node keeps plans for. A node of a static model has one; one that alternates
/// between prefill chunks and decode has one per chunk length.
const PLANS: usize = 4;

/// One node.
pub struct Kernel {
    /// The runtime.
    pub api: Api,
    /// What messages call it.
    name: String,
    operator: Operator,
    types: Types,
    /// Filled from the first on. Shapes beyond these are planned anew at every run.
    plans: [OnceLock<Prepared>; PLANS],
    processor: Processor,
    #[cfg(feature = "fault-injection")]
    fault: crate::fault::Fault,
    #[cfg(feature = "fault-injection")]
    order: crate::fault::Order,
}

impl Kernel {
    /// Reads the node's attributes, and checks its inputs' shapes as far as the model tells them.
    ///
    /// # Errors
    /// Attributes or shapes that contradict the schema, all of them, or a GPU that cannot be
    /// used; with the node's name.
    ///
    /// # Safety
    /// `info` is the one ORT passes to `CreateKernelV2`.
    pub unsafe fn new(
        descriptor: &'static Descriptor,
        info: *const OrtKernelInfo,
    ) -> Result<Self, Failure> {
        // SAFETY: the caller's contract.
        let node = unsafe { descriptor.api.node_name(info) }.unwrap_or_default();
        let name = format!("node {node:?} ({DOMAIN}.{})", descriptor.op);
        // SAFETY: the caller's contract.
        let made = unsafe { Self::named(descriptor, name.clone(), info) };
        let made = made.map_err(|failure| failure.prefixed(name))?;
        watch::made(&node, descriptor.name, descriptor.provider);
        Ok(made)
    }

    /// # Safety
    /// As [`Kernel::new`].
    unsafe fn named(
        descriptor: &'static Descriptor,
        name: String,
        info: *const OrtKernelInfo,
    ) -> Result<Self, Failure> {
        let (api, op, types) = (descriptor.api, descriptor.op, descriptor.types);
        // SAFETY: the caller's contract.
        let mut attributes = unsafe { KernelAttributes::new(api, info) };
        #[cfg(feature = "fault-injection")]
        let fault = crate::fault::Fault::read(&mut attributes);
        #[cfg(feature = "fault-injection")]
        fault.trip("create");
        if let Provider::Cuda(..) = descriptor.provider {
            let fits = op.schema().check_gpu_types(types.element, types.cache);
            fits.map_err(Failure::invalid)?;
        }
        let operator = op
            .read(&mut attributes)
            .map_err(|errors| Failure::invalid(errors.errors.join("; ")))?;
        // SAFETY: `info` is live, as the caller promises.
        let plan = unsafe { declared_plan(api, &operator, info)? };
        let processor = match descriptor.provider {
            Provider::Cpu => {
                // SAFETY: `info` is live.
                unsafe { crate::elsewhere::warn_once(api, &name, info) };
                Processor::Cpu(Cpu::new(api)?)
            }
            #[cfg(feature = "cuda")]
            Provider::Cuda(api, _) => {
                // SAFETY: `info` is live.
                let made = unsafe { crate::compute::Cuda::new(api, name.clone(), info)? };
                Processor::Cuda(made)
            }
            #[cfg(not(feature = "cuda"))]
            Provider::Cuda(..) => return Err(Failure::invalid("this build has no CUDA kernels")),
        };
        let mut plans: [OnceLock<Prepared>; PLANS] = Default::default();
        if let Some(plan) = plan {
            plans[0] = OnceLock::from(processor.prepare(&operator, plan)?);
        }
        Ok(Self {
            api,
            name,
            operator,
            types,
            plans,
            processor,
            #[cfg(feature = "fault-injection")]
            fault,
            #[cfg(feature = "fault-injection")]
            order: crate::fault::Order::default(),
        })
    }

    /// Runs the node.
    ///
    /// # Errors
    /// Shapes that contradict the schema, buffers that overlap, and what ORT reports; with the node's
    /// name.
    ///
    /// # Safety
    /// `context` is the one ORT passes to `KernelComputeV2`.
    pub unsafe fn compute(&self, context: *mut OrtKernelContext) -> Result<(), Failure> {
        #[cfg(feature = "fault-injection")]
        let _inside = self.order.enter();
        // SAFETY: the caller's contract.
        unsafe { self.run(context) }.map_err(|failure| failure.prefixed(&self.name))
    }

    /// # Safety
    /// As [`Kernel::compute`].
    unsafe fn run(&self, context: *mut OrtKernelContext) -> Result<(), Failure> {
        #[cfg(feature = "fault-injection")]
        self.fault.trip("compute");
        let op = self.operator.op();
        let mut inputs = [Tensor::NONE; MAX_INPUTS];
        let inputs = &mut inputs[..op.inputs().len()];
        for (index, (input, port)) in inputs.iter_mut().zip(op.inputs()).enumerate() {
            let mut value = std::ptr::null();
            // SAFETY: the caller's contract; the value lives as long as the run.
            unsafe {
                self.api.context_input(context, index, &mut value)?;
                if value.is_null() && port.optional {
                    continue;
                }
                if value.is_null() {
                    let message = format!("{}: expected a tensor, found none", port.name);
                    return Err(Failure::invalid(message));
                }
                *input = self.api.tensor(value)?;
            }
        }
        #[cfg(feature = "fault-injection")]
        // SAFETY: for sanitizers to find.
        unsafe {
            self.fault.overread(&inputs[0]);
            self.fault.race("race");
        };
        let unkept;
        let prepared = match self.find_plan(inputs)? {
            Ok(prepared) => prepared,
            Err(prepared) => {
                unkept = prepared;
                &unkept
            }
        };
        let plan = &prepared.plan;
        for (input, has) in inputs.iter_mut().zip(&plan.node.has) {
            if !has {
                *input = Tensor::NONE;
            }
        }
        let mut outputs = [Tensor::NONE; MAX_OUTPUTS];
        let outputs = &mut outputs[..plan.outputs.len()];
        for (index, (output, shape)) in outputs.iter_mut().zip(&plan.outputs).enumerate() {
            let (dims, mut value) = (shape.dims(), null_mut());
            // SAFETY: the caller's contract; the value lives as long as the run.
            unsafe {
                let rank = dims.len();
                self.api
                    .context_output(context, index, dims.as_ptr(), rank, &mut value)?;
                if value.is_null() {
                    let name = op.outputs()[index].name;
                    let message = format!("{name}: expected a named output, found none");
                    return Err(Failure::invalid(message));
                }
                self.api.data(value, &mut output.data)?;
            }
            output.shape = *shape;
        }
        let call = Call {
            api: self.api,
            name: &self.name,
            op,
            context,
            inputs,
            outputs,
            #[cfg(feature = "fault-injection")]
            fault: &self.fault,
        };
        call.check_overlaps()?;
        // SAFETY: shapes and element types are the plan's, and nothing overlaps.
        unsafe { self.processor.run(&call, prepared) }
    }

    /// The plan for these shapes: one that is kept, else a new one.
    #[allow(clippy::result_large_err)] // Not an error: a plan to own.
    fn find_plan(&self, inputs: &[Tensor]) -> Result<Result<&Prepared, Prepared>, Failure> {
        let fits = |prepared: &&Prepared| {
            let planned = prepared.plan.inputs.iter();
            planned.eq(inputs.iter().map(|input| &input.shape))
        };
        let mut kept = self.plans.iter().map_while(OnceLock::get);
        if let Some(prepared) = kept.find(fits) {
            return Ok(Ok(prepared));
        }
        let shapes: Vec<_> = inputs.iter().map(|input| input.shape).collect();
        self.check_types(&shapes)?;
        let plan = Plan::new(&self.operator, &shapes)?;
        let mut prepared = self.processor.prepare(&self.operator, plan)?;
        for slot in &self.plans {
            match slot.set(prepared) {
                Ok(()) => {
                    return slot
                        .get()
                        .map(Ok)
                        .ok_or_else(|| Failure::invalid("no plan"));
                }
                Err(back) => prepared = back,
            }
        }
        Ok(Err(prepared))
    }

    /// ORT picks the kernel by the declared types; this is against a feed of another type.
    fn check_types(&self, inputs: &[TensorShape]) -> Result<(), Failure> {
        let Types { element, cache } = self.types;
        for (port, input) in self.operator.op().inputs().iter().zip(inputs) {
            let variable = matches!(port.dtype, PortType::T | PortType::C);
            let expected = port.dtype.resolve(element, cache).filter(|_| variable);
            let none = port.optional && *input == Tensor::NONE.shape;
            if let Some(expected) = expected
                && !none
                && input.element != expected.onnx()
            {
                let found = ElementType::from_onnx(input.element).map_or_else(
                    || format!("ONNX element type {}", input.element),
                    |found| found.to_string(),
                );
                let name = port.name;
                return Err(Failure::invalid(format!(
                    "{name}: expected {expected}, found {found}"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(feature = "fault-injection")]
impl Drop for Kernel {
    fn drop(&mut self) {
        self.order.close();
        self.fault.trip("destroy");
    }
}

/// The plan for the shapes a node is declared with; `None` where the model leaves some open.
///
/// # Errors
/// As [`Kernel::new`].
///
/// # Safety
/// `info` is live.
unsafe fn declared_plan(
    api: Api,
    operator: &Operator,
    info: *const OrtKernelInfo,
) -> Result<Option<Plan>, Failure> {
    let op = operator.op();
    let (mut inputs, mut outputs) = (0, 0);
    // SAFETY: the caller's contract.
    unsafe {
        api.info_input_count(info, &mut inputs)?;
        api.info_output_count(info, &mut outputs)?;
    }
    let (least, most) = (op.schema().least_inputs(), op.inputs().len());
    if !(least..=most).contains(&inputs) || outputs != op.outputs().len() {
        let expected = match least == most {
            true => most.to_string(),
            false => format!("{least} to {most}"),
        };
        return Err(Failure::invalid(format!(
            "expected {expected} inputs and {} outputs, found {inputs} and {outputs}",
            op.outputs().len()
        )));
    }
    // SAFETY: the caller's contract.
    let declared = |index| unsafe { api.declared_input(info, index) };
    // A type that cannot be had is as good as an unknown shape: every run checks.
    let shapes: Result<Vec<_>, _> = (0..inputs).map(declared).collect();
    let padded = |mut shapes: Vec<_>| {
        shapes.resize(most, Tensor::NONE.shape);
        shapes
    };
    let shapes = shapes.map(padded);
    match shapes {
        Ok(shapes) if shapes.iter().all(TensorShape::is_known) => {
            Plan::new(operator, &shapes).map(Some)
        }
        _ => Ok(None),
    }
}
