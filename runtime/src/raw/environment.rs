//! `ort`, on a runtime that was found and checked before it is asked for.

use super::dylib;
use libloading::os::unix::Library;
use ort::environment::Environment;
use ort::ortsys;
use ort_sys::{ORT_API_VERSION, OrtApi, OrtApiBase, OrtLoggingLevel};
use std::ffi::{CStr, c_char};
use std::mem::offset_of;
use std::path::PathBuf;
use std::ptr::{copy_nonoverlapping, null_mut};

/// The API that is asked for, which every later release offers too, and the bytes of its table. Built for
/// API 18, as the workspace is, `ort` calls here what API 17 has; features of a host may raise that.
const API: (u32, usize) = match ORT_API_VERSION {
    ..=18 => (
        17,
        offset_of!(OrtApi, SessionOptionsAppendExecutionProvider_VitisAI),
    ),
    newer => (newer, size_of::<OrtApi>()),
};

fn base(library: &Library) -> Result<&'static OrtApiBase, String> {
    type Entry = unsafe extern "system" fn() -> *const OrtApiBase;
    // SAFETY: `OrtGetApiBase` has had this signature in every release, and gives a constant table of
    // two functions. Libraries are never unloaded.
    unsafe {
        let entry = library.get::<Entry>("OrtGetApiBase");
        let entry = entry.map_err(|_| "it does not export OrtGetApiBase")?;
        entry().as_ref().ok_or("OrtGetApiBase returned null".into())
    }
}

/// Version of the runtime in `library`, and the file it was loaded from.
pub(crate) fn version_of(library: &Library) -> Result<(String, Option<PathBuf>), String> {
    let base = base(library)?;
    // SAFETY: it returns a constant C string.
    let version = unsafe { CStr::from_ptr((base.GetVersionString)()) };
    let file = dylib::file_of((&raw const *base).cast());
    Ok((version.to_string_lossy().into_owned(), file))
}

/// Makes `ort` use the runtime in `library`, for the rest of the process.
pub(crate) fn environment(library: &Library) -> Result<Environment, String> {
    let base = base(library)?;
    let (version, bytes) = API;
    // SAFETY: every version may be asked for.
    let table = unsafe { (base.GetApi)(version) };
    if table.is_null() {
        return Err(format!("the runtime does not offer API {version}"));
    }
    // `ort` keeps a table as long as its own type. What the runtime's does not reach are functions
    // of no runtime, which nothing calls.
    let mut api = ort_sys::stub::api();
    // SAFETY: the tables of all releases begin alike, and both are so long.
    unsafe { copy_nonoverlapping(table.cast::<u8>(), (&raw mut api).cast(), bytes) };
    let create = api.CreateEnv;
    if !ort::set_api(api) && ort::api().CreateEnv as usize != create as usize {
        return Err("this process uses another one through `ort`".into());
    }
    let shared = || {
        // Failures arrive as statuses; nothing is logged to standard error as well. The first to
        // ask decides that for all, and has done so where the host drives this runtime as well.
        let (level, mut env) = (OrtLoggingLevel::ORT_LOGGING_LEVEL_FATAL, null_mut());
        // SAFETY: it counts one user more of what every environment of the process shares.
        ortsys![unsafe CreateEnv(level, c"ratplus".as_ptr(), &mut env)?];
        ort::init().with_name("ratplus").build()
    };
    shared().map_err(|error| {
        format!(
            "{error}; sessions of your own take that of ratplus_runtime::ort_library::environment"
        )
    })
}

/// Execution providers the runtime was built with.
pub(crate) fn providers() -> ort::Result<Vec<String>> {
    let (mut list, mut count) = (null_mut::<*mut c_char>(), 0);
    // SAFETY: `list` holds `count` C strings until it is released.
    let names = unsafe {
        ortsys![unsafe GetAvailableProviders(&mut list, &mut count)?];
        std::slice::from_raw_parts(list, usize::try_from(count).unwrap_or(0))
            .iter()
            .map(|&name| CStr::from_ptr(name).to_string_lossy().into_owned())
            .collect()
    };
    // SAFETY: `list` came from the call above.
    ortsys![unsafe ReleaseAvailableProviders(list, count)?];
    Ok(names)
}
