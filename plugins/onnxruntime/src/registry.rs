//! The domain, once per runtime of the process.

use crate::api::{Api, Api18, Failure, create_status};
use crate::compute::EMULATED;
use crate::descriptor::{CUDA_PROVIDERS, Descriptor, Provider, Types};
use crate::guard;
use crate::version::{OLDEST_API, api_level};
use ort_sys::{
    OrtApi, OrtApiBase, OrtCustomOpDomain, OrtErrorCode, OrtSessionOptions, OrtStatusPtr,
};
use ratplus_graphs::ops::{DOMAIN, Op};
use std::ffi::{CStr, CString};
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

/// One runtime's domain. Sessions keep pointers to it, and nothing tells when the last is gone:
/// it lives as long as the process, as does this library (`-z nodelete`).
struct Runtime {
    api: Api,
    version: String,
    domain: *mut OrtCustomOpDomain,
}

// SAFETY: the domain is only read once it is here.
unsafe impl Send for Runtime {}

/// A process rarely has more than one runtime. A runtime unloaded and another loaded in its place
/// differ in their versions, or else in nothing that matters.
static RUNTIMES: Mutex<Vec<Runtime>> = Mutex::new(Vec::new());

/// Adds the domain to `options`.
///
/// # Safety
/// As [`crate::RegisterCustomOps`].
pub unsafe fn register(options: *mut OrtSessionOptions, base: *const OrtApiBase) -> OrtStatusPtr {
    // SAFETY: the caller's contract.
    let (version, get_api) = unsafe {
        let version = CStr::from_ptr(((*base).GetVersionString)());
        (version.to_string_lossy(), (*base).GetApi)
    };
    // SAFETY: any number is fine; null is the answer to one the runtime does not know.
    let table = |level: u32| unsafe { get_api(level) };
    let level = match api_level(&version) {
        Ok(level) => level,
        // SAFETY: a table, or null.
        Err(error) => return unsafe { refuse(table(1), &error) },
    };
    // A build may know fewer levels than its version promises.
    let found = (OLDEST_API..=level).rev().find_map(|level| {
        // SAFETY: tables are never unloaded before their sessions, and grow from level to level.
        unsafe { Api::new(table(level)) }.map(|api| (api, level))
    });
    let Some((api, level)) = found else {
        let message = format!("ONNX Runtime {version} has no table for API {OLDEST_API}");
        // SAFETY: a table, or null.
        return unsafe { refuse(table(1), &message) };
    };
    guard::status(api, || {
        let mut runtimes = RUNTIMES.lock().unwrap_or_else(PoisonError::into_inner);
        let known = runtimes
            .iter()
            .find(|known| known.api == api && known.version == version)
            .map(|known| known.domain);
        let domain = match known {
            Some(domain) => domain,
            None => {
                // A GPU without code in this library needs NVRTC: a Python package beside ORT's.
                #[cfg(feature = "cuda")]
                crate::compute::search_around(base.cast());
                let domain = make_domain(api, level)?;
                runtimes.push(Runtime {
                    api,
                    version: version.into_owned(),
                    domain,
                });
                domain
            }
        };
        // SAFETY: `options` is the caller's; the domain is never released.
        unsafe { api.add_domain(options, domain) }
    })
}

/// A domain with every operator in all of its types for every provider. A runtime without one of
/// the providers never makes its kernels; those for GPUs refuse the types that they lack, where
/// ORT would move the node to the CPU in silence.
fn make_domain(api: Api, level: u32) -> Result<*mut OrtCustomOpDomain, Failure> {
    let name = CString::new(DOMAIN).map_err(|error| Failure::invalid(error.to_string()))?;
    let mut domain = null_mut();
    // SAFETY: the name is copied.
    unsafe { api.create_domain(name.as_ptr(), &mut domain)? };
    let cuda = api.api_18(level).filter(|_| cfg!(feature = "cuda"));
    for provider in providers(cuda) {
        let ops = Op::ALL.into_iter().filter(|op| match provider {
            // In the emulator those for GPUs stand for the CPU's.
            Provider::Cpu => !EMULATED || !Op::GPU.contains(op),
            Provider::Cuda(..) => Op::GPU.contains(op),
        });
        for op in ops {
            for types in Types::of(op) {
                let descriptor = Descriptor::new(api, level, provider, op, types);
                let descriptor: &'static Descriptor = Box::leak(Box::new(descriptor));
                // SAFETY: both live on; on failure nobody else has the domain.
                unsafe {
                    if let Err(failure) = api.domain_add(domain, descriptor.raw()) {
                        api.release_domain(domain);
                        return Err(failure);
                    }
                }
            }
        }
    }
    Ok(domain)
}

/// Those that the operators are registered for; `cuda` is what CUDA's need.
fn providers(cuda: Option<Api18>) -> impl Iterator<Item = Provider> {
    let names = if EMULATED {
        &CUDA_PROVIDERS[..1]
    } else {
        &CUDA_PROVIDERS
    };
    let cuda = cuda
        .into_iter()
        .flat_map(|api| names.iter().map(move |name| Provider::Cuda(api, name)));
    std::iter::once(Provider::Cpu).chain(cuda)
}

/// A status from a runtime too old to be worked with. Its table starts with `CreateStatus`, as
/// all do; without one there is no way to report anything, and ORT finds the operators missing.
///
/// # Safety
/// `table` is null or a table of any version.
unsafe fn refuse(table: *const OrtApi, message: &str) -> OrtStatusPtr {
    if table.is_null() {
        return OrtStatusPtr::default();
    }
    // SAFETY: the first function of every table, read without a reference to the whole.
    let create = unsafe { (&raw const (*table).CreateStatus).read() };
    create_status(create, OrtErrorCode::ORT_NOT_IMPLEMENTED, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::c_char;
    use std::sync::OnceLock;

    /// A table whose functions all fail, with statuses that work.
    fn table() -> &'static OrtApi {
        static TABLE: OnceLock<OrtApi> = OnceLock::new();
        TABLE.get_or_init(ort_sys::stub::api)
    }

    unsafe extern "system" fn get_api(level: u32) -> *const OrtApi {
        if level <= 18 {
            table()
        } else {
            std::ptr::null()
        }
    }

    unsafe extern "system" fn no_api(_: u32) -> *const OrtApi {
        std::ptr::null()
    }

    unsafe extern "system" fn only_the_first(level: u32) -> *const OrtApi {
        if level == 1 {
            table()
        } else {
            std::ptr::null()
        }
    }

    unsafe extern "system" fn old() -> *const c_char {
        c"1.16.3".as_ptr()
    }

    unsafe extern "system" fn new() -> *const c_char {
        c"1.31.1".as_ptr()
    }

    fn message(base: &OrtApiBase) -> Option<String> {
        // SAFETY: the stub's functions take any options; the status is released.
        unsafe {
            let status = register(null_mut(), base).0;
            if status.is_null() {
                return None;
            }
            let message = CStr::from_ptr((table().GetErrorMessage)(status));
            let message = message.to_string_lossy().into_owned();
            (table().ReleaseStatus)(status);
            Some(message)
        }
    }

    #[test]
    fn an_old_runtime_is_refused_with_both_versions() {
        let base = OrtApiBase {
            GetApi: get_api,
            GetVersionString: old,
        };
        let message = message(&base).unwrap();
        assert!(
            message.contains("1.16.3") && message.contains("1.17"),
            "{message}"
        );
    }

    #[test]
    fn a_runtime_without_the_table_it_promises_is_refused() {
        let base = OrtApiBase {
            GetApi: only_the_first,
            GetVersionString: new,
        };
        let found = message(&base).unwrap();
        assert!(found.contains("no table for API 17"), "{found}");
        let base = OrtApiBase {
            GetApi: no_api,
            GetVersionString: old,
        };
        assert_eq!(message(&base), None);
    }

    #[test]
    fn both_providers_of_cuda_have_the_operators() {
        // SAFETY: the stub's table has every function.
        let api = unsafe { Api::new(table()) }.unwrap();
        let names =
            |level| -> Vec<_> { providers(api.api_18(level)).map(Provider::name).collect() };
        if EMULATED {
            assert_eq!(names(18), [c"CPUExecutionProvider"]);
            return;
        }
        let cuda = [c"CUDAExecutionProvider", c"CudaPluginExecutionProvider"];
        assert_eq!(names(18), [c"CPUExecutionProvider", cuda[0], cuda[1]]);
        assert_eq!(names(17), [c"CPUExecutionProvider"]);
    }

    #[test]
    fn what_the_runtime_reports_comes_back() {
        let base = OrtApiBase {
            GetApi: get_api,
            GetVersionString: new,
        };
        assert_eq!(message(&base).as_deref(), Some("Unimplemented"));
    }
}
