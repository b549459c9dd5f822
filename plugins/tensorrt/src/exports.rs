//! What the library exports, and what its C++ classes call.
#![allow(non_snake_case)] // TensorRT's names.

use crate::abi::{Field, Operator, Tensor};
use crate::guard::guarded;
use crate::host;
use crate::node::{MAX_TENSORS, Node, describe};
use crate::operator::operator;
use ratplus_graphs::ops::{Op, PLUGIN_VERSION};
use ratplus_graphs::releases::OLDEST_TENSORRT;
use ratplus_kernels::cuda::take_device_error;
use ratplus_kernels::write_message;
use std::ffi::{CStr, c_char, c_void};
use std::ptr::{null, null_mut};
use std::slice;

#[cfg(tensorrt)]
unsafe extern "C" {
    fn ratplus_trt_creators(calls: *const Calls, count: *mut i32) -> *const *mut c_void;
}

/// Without TensorRT's headers at build time there are no creators.
///
/// # Safety
/// `count` is writable.
#[cfg(not(tensorrt))]
unsafe fn ratplus_trt_creators(_calls: *const Calls, count: *mut i32) -> *const *mut c_void {
    // SAFETY: the caller's contract.
    unsafe { *count = 0 };
    null()
}

/// `IPluginCreatorInterface* const*` of both operators; how many, in `count`.
///
/// # Safety
/// `count` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getCreators(count: *mut i32) -> *const *mut c_void {
    guarded("getCreators", null(), || {
        // A registry that asks registers what it gets, with this library as the owner.
        // SAFETY: the creators live as long as the process.
        unsafe { host::deregister(&creators()) };
        // SAFETY: the caller's contract.
        Ok(unsafe { ratplus_trt_creators(&raw const CALLS, count) })
    })
}

/// Takes where to find the loggers of the host that calls.
///
/// # Safety
/// `finder` is null or an `nvinfer1::ILoggerFinder` that lives as long as its library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setLoggerFinder(finder: *mut c_void) {
    guarded("setLoggerFinder", (), || {
        // SAFETY: the caller's contract.
        unsafe { host::set_logger_finder(finder) };
        Ok(())
    });
}

/// Takes an error that a kernel has left on a GPU: lengths of a slot that do not fit, with the
/// names of layer and slot. To be asked once a run is complete on the GPU; needed where nothing
/// else tells, as after a replay of a CUDA graph.
///
/// Returns 0 where there is none. Otherwise returns the length of the message in bytes, writes
/// as much of it to `text` as `capacity` has room for, ends it with a null byte, and forgets the
/// error. May be called at any time and from any thread; loads nothing.
///
/// # Safety
/// `text` points to `capacity` writable bytes; it may be null where `capacity` is 0, which loses
/// the message.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn RatplusTakeDeviceError(text: *mut c_char, capacity: usize) -> usize {
    guarded("RatplusTakeDeviceError", 0, || {
        let message = take_device_error();
        // SAFETY: the caller's contract.
        Ok(unsafe { write_message(message.as_deref(), text, capacity) })
    })
}

/// Describes the library as a JSON object: operators with their types, the plugins' interface and the oldest
/// release, what its kernels are compiled for, version and build id.
///
/// Returns the length of the text in bytes, writes as much of it to `text` as `capacity` has room for, and
/// ends it with a null byte. May be called at any time and from any thread; loads nothing.
///
/// # Safety
/// `text` points to `capacity` writable bytes; it may be null where `capacity` is 0, to ask for the length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn RatplusDescribe(text: *mut c_char, capacity: usize) -> usize {
    guarded("RatplusDescribe", 0, || {
        let (major, minor) = OLDEST_TENSORRT;
        let host = serde_json::json!({
            "host": "TensorRT",
            "interface": "IPluginV3",
            "plugin_version": PLUGIN_VERSION,
            "plugins": cfg!(tensorrt),
            "oldest_release": format!("{major}.{minor}"),
        });
        let version = env!("CARGO_PKG_VERSION");
        let description = ratplus_kernels::describe("libratplus_trt", version, &Op::GPU, host);
        // SAFETY: the caller's contract.
        Ok(unsafe { write_message(Some(&description), text, capacity) })
    })
}

/// Runs when the library is loaded.
#[used]
#[unsafe(link_section = ".init_array")]
static ON_LOAD: extern "C" fn() = on_load;

extern "C" fn on_load() {
    guarded("registering the plugins", (), || {
        // SAFETY: the creators live as long as the process.
        unsafe { host::register(&creators()) };
        Ok(())
    });
}

fn creators() -> Vec<host::Creator> {
    let mut count = 0;
    // SAFETY: the count is writable, and the list as long as it says.
    let objects = unsafe {
        let list = ratplus_trt_creators(&raw const CALLS, &raw mut count);
        slice_of(list, count)
    };
    let described = (0..).zip(objects).filter_map(|(index, &object)| {
        let described = operator(index)?;
        // SAFETY: the texts end with null bytes and are never freed.
        let text = |text| unsafe { CStr::from_ptr(text) };
        Some(host::Creator {
            object,
            name: text(described.name),
            version: text(described.version),
            domain: text(described.domain),
        })
    });
    described.collect()
}

/// # Safety
/// `count` values from `start` are readable for `'a`, where `start` is not null.
unsafe fn slice_of<'a, T>(start: *const T, count: i32) -> &'a [T] {
    match usize::try_from(count) {
        // SAFETY: the caller's contract.
        Ok(count) if !start.is_null() => unsafe { slice::from_raw_parts(start, count) },
        _ => &[],
    }
}

/// Panics where the plugin's name asks for it.
fn trip(name: &str, place: &str) {
    #[cfg(feature = "fault-injection")]
    assert!(
        !name.contains(&format!("fault:{place};")),
        "asked for at {place}"
    );
    let _ = (name, place);
}

/// [`guarded`], for calls that change nothing.
fn at<T>(node: &Node, place: &str, bad: T, body: impl FnOnce() -> Result<T, String>) -> T {
    guarded(node, bad, || {
        trip(&node.name, place);
        body()
    })
}

fn op(index: i32) -> Result<Op, String> {
    let found = usize::try_from(index)
        .ok()
        .and_then(|index| Op::GPU.get(index));
    found.copied().ok_or_else(|| format!("no operator {index}"))
}

/// What the C++ classes call; `Calls` of `cpp/abi.h`.
#[repr(C)]
struct Calls {
    operators: i32,
    describe: extern "C" fn(i32) -> *const Operator,
    create: unsafe extern "C" fn(i32, *const c_char, *const Field, i32) -> *mut Node,
    clone: unsafe extern "C" fn(*const Node) -> *mut Node,
    destroy: unsafe extern "C" fn(*mut Node),
    output_types: unsafe extern "C" fn(*const Node, *const i32, i32, *mut i32, i32) -> i32,
    check: unsafe extern "C" fn(*const Node, *const Tensor, i32, *const Tensor, i32, i32) -> i32,
    supports: unsafe extern "C" fn(*const Node, i32, *const Tensor, i32) -> bool,
    workspace: unsafe extern "C" fn(*const Node, *const Tensor, *const Tensor, i32) -> usize,
    prepare: unsafe extern "C" fn(*mut Node, *const Tensor, i32) -> i32,
    enqueue: unsafe extern "C" fn(
        *mut Node,
        *const Tensor,
        *const *const c_void,
        *const *mut c_void,
        *mut c_void,
        *mut c_void,
    ) -> i32,
    fields: unsafe extern "C" fn(*mut Node, *mut i32) -> *const Field,
    identity: unsafe extern "C" fn(*const Node) -> *const c_char,
}

static CALLS: Calls = Calls {
    operators: Op::GPU.len() as i32,
    describe: describe_operator,
    create,
    clone,
    destroy,
    output_types,
    check,
    supports,
    workspace,
    prepare,
    enqueue,
    fields,
    identity,
};

extern "C" fn describe_operator(index: i32) -> *const Operator {
    guarded("describing an operator", null(), || {
        Ok(operator(index).map_or(null(), std::ptr::from_ref))
    })
}

/// # Safety
/// `name` is null or ends with a null byte; `count` fields are readable.
unsafe extern "C" fn create(
    index: i32,
    name: *const c_char,
    fields: *const Field,
    count: i32,
) -> *mut Node {
    let name = if name.is_null() {
        String::new()
    } else {
        // SAFETY: the caller's contract.
        unsafe { CStr::from_ptr(name) }
            .to_string_lossy()
            .into_owned()
    };
    let who = op(index).map_or_else(|_| name.clone(), |op| describe(op, &name));
    guarded(who, null_mut(), || {
        trip(&name, "create");
        // SAFETY: the caller's contract.
        let node = unsafe { Node::new(op(index)?, name.clone(), slice_of(fields, count))? };
        Ok(Box::into_raw(Box::new(node)))
    })
}

/// # Safety
/// `node` is live.
unsafe extern "C" fn clone(node: *const Node) -> *mut Node {
    // SAFETY: the caller's contract.
    let node = unsafe { &*node };
    at(node, "clone", null_mut(), || {
        Ok(Box::into_raw(Box::new(node.copy())))
    })
}

/// # Safety
/// `node` came from [`create`] or [`clone`] and is not used again.
unsafe extern "C" fn destroy(node: *mut Node) {
    guarded("freeing a plugin", (), || {
        // SAFETY: the caller's contract.
        drop(unsafe { Box::from_raw(node) });
        Ok(())
    });
}

/// # Safety
/// `node` is live, `inputs` readable and `outputs` writable.
unsafe extern "C" fn output_types(
    node: *const Node,
    inputs: *const i32,
    input_count: i32,
    outputs: *mut i32,
    output_count: i32,
) -> i32 {
    // SAFETY: the caller's contract.
    let (node, inputs) = unsafe { (&*node, slice_of(inputs, input_count)) };
    at(node, "output_types", -1, || {
        let mut found = [0; MAX_TENSORS];
        let count = usize::try_from(output_count).unwrap_or(0).min(MAX_TENSORS);
        node.output_types(inputs, &mut found[..count])?;
        // SAFETY: the caller's contract.
        unsafe { outputs.copy_from_nonoverlapping(found.as_ptr(), count) };
        Ok(0)
    })
}

/// # Safety
/// `node` is live; `inputs` and, where not null, `outputs` are readable.
unsafe extern "C" fn check(
    node: *const Node,
    inputs: *const Tensor,
    input_count: i32,
    outputs: *const Tensor,
    output_count: i32,
    typed: i32,
) -> i32 {
    // SAFETY: the caller's contract.
    let (node, inputs) = unsafe { (&*node, slice_of(inputs, input_count)) };
    // SAFETY: not null, they are readable: the caller's contract.
    let found = (!outputs.is_null()).then(|| unsafe { slice_of(outputs, output_count) });
    at(node, "check", -1, || {
        if found.is_none() && usize::try_from(output_count) != Ok(node.counts().1) {
            return Err(format!(
                "expected {} outputs, found {output_count}",
                node.counts().1
            ));
        }
        node.check(inputs, found, typed != 0).map(|()| 0)
    })
}

/// # Safety
/// `node` is live and `tensors` readable.
unsafe extern "C" fn supports(
    node: *const Node,
    position: i32,
    tensors: *const Tensor,
    count: i32,
) -> bool {
    // SAFETY: the caller's contract.
    let (node, tensors) = unsafe { (&*node, slice_of(tensors, count)) };
    at(node, "supports", false, || {
        Ok(usize::try_from(position).is_ok_and(|position| node.supports(position, tensors)))
    })
}

/// # Safety
/// `node` is live, `smallest` and `largest` readable.
unsafe extern "C" fn workspace(
    node: *const Node,
    smallest: *const Tensor,
    largest: *const Tensor,
    count: i32,
) -> usize {
    // SAFETY: the caller's contract.
    let (node, smallest, largest) =
        unsafe { (&*node, slice_of(smallest, count), slice_of(largest, count)) };
    // A size cannot be refused. What is missing is had when the layer is prepared.
    match at(node, "workspace", Ok(0), || {
        Ok(node.workspace(smallest, largest))
    }) {
        Ok(bytes) => bytes,
        Err(message) => {
            let message = format!("{node}: size of the workspace: {message}");
            host::log(host::WARNING, &message);
            0
        }
    }
}

/// # Safety
/// `node` is live and nobody else's; `inputs` is readable.
unsafe extern "C" fn prepare(node: *mut Node, inputs: *const Tensor, count: i32) -> i32 {
    // SAFETY: the caller's contract.
    let (node, inputs) = unsafe { (&mut *node, slice_of(inputs, count)) };
    guarded(node.to_string(), -1, || {
        trip(&node.name, "prepare");
        node.prepare(inputs).map(|()| 0)
    })
}

/// # Safety
/// `node` is live and nobody else's; descriptions and addresses are as many as the operator's
/// inputs and outputs; else as [`Node::enqueue`].
unsafe extern "C" fn enqueue(
    node: *mut Node,
    descriptions: *const Tensor,
    inputs: *const *const c_void,
    outputs: *const *mut c_void,
    workspace: *mut c_void,
    stream: *mut c_void,
) -> i32 {
    // SAFETY: the caller's contract.
    let node = unsafe { &mut *node };
    let (input_count, output_count) = node.counts();
    let done = guarded("a plugin's work", Ok(-1), || {
        trip(&node.name, "enqueue");
        // SAFETY: the caller's contract.
        Ok(unsafe {
            let descriptions = slice::from_raw_parts(descriptions, input_count);
            let inputs = slice::from_raw_parts(inputs, input_count);
            let outputs = slice::from_raw_parts(outputs, output_count);
            node.enqueue(descriptions, inputs, outputs, workspace, stream)
        }
        .map(|()| 0))
    });
    guarded(&*node, -1, || done)
}

/// # Safety
/// `node` is live and nobody else's; `count` is writable.
unsafe extern "C" fn fields(node: *mut Node, count: *mut i32) -> *const Field {
    // SAFETY: the caller's contract.
    let node = unsafe { &mut *node };
    let fields = guarded("storing a plugin", (null(), 0), || {
        trip(&node.name, "fields");
        let fields = node.fields();
        Ok((fields.as_ptr(), fields.len() as i32))
    });
    // SAFETY: the caller's contract.
    unsafe { *count = fields.1 };
    fields.0
}

/// # Safety
/// `node` is live.
unsafe extern "C" fn identity(node: *const Node) -> *const c_char {
    // SAFETY: the caller's contract.
    unsafe { &*node }.identity.as_ptr()
}
