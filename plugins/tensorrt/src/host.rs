//! The TensorRT libraries of this process: their registries and loggers.
//!
//! Nothing is linked: a library that is loaded is found by its name, what it exports by its symbols.
//! Two generations of the interfaces exist; each is called by C++ code compiled with
//! headers of its own.

use libloading::os::unix::{Library, RTLD_LAZY};
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// `nvinfer1::ILogger::Severity::kERROR`.
pub const ERROR: i32 = 1;
/// `nvinfer1::ILogger::Severity::kWARNING`.
pub const WARNING: i32 = 2;

/// Names of libraries with a registry of plugins begin so.
const NAMES: [&str; 2] = ["libnvinfer", "libtensorrt_rtx"];

/// Functions of one generation of the host's interfaces.
struct Calls {
    find_logger: unsafe extern "C" fn(*mut c_void) -> *mut c_void,
    log: unsafe extern "C" fn(*mut c_void, i32, *const c_char),
    register: unsafe extern "C" fn(*mut c_void, *mut c_void, *const c_char) -> bool,
    deregister: unsafe extern "C" fn(*mut c_void, *mut c_void) -> bool,
    find: unsafe extern "C" fn(
        *mut c_void,
        *const c_char,
        *const c_char,
        *const c_char,
    ) -> *mut c_void,
}

#[cfg(any(tensorrt_v10, tensorrt_v11))]
macro_rules! generation {
    ($calls:ident, $($field:ident: $function:ident $arguments:tt $(-> $result:ty)?;)*) => {{
        unsafe extern "C" {
            $(fn $function $arguments $(-> $result)?;)*
        }
        static $calls: Calls = Calls { $($field: $function),* };
        Some(&$calls)
    }};
}

/// TensorRT before 11, TensorRT for RTX before 1.5; `None` where no such headers were found.
fn v10() -> Option<&'static Calls> {
    #[cfg(not(tensorrt_v10))]
    return None;
    #[cfg(tensorrt_v10)]
    generation! { V10,
        find_logger: ratplus_trt_v10_find_logger(finder: *mut c_void) -> *mut c_void;
        log: ratplus_trt_v10_log(logger: *mut c_void, severity: i32, message: *const c_char);
        register: ratplus_trt_v10_register_creator(registry: *mut c_void, creator: *mut c_void, domain: *const c_char) -> bool;
        deregister: ratplus_trt_v10_deregister_creator(registry: *mut c_void, creator: *mut c_void) -> bool;
        find: ratplus_trt_v10_find_creator(registry: *mut c_void, name: *const c_char, version: *const c_char, domain: *const c_char) -> *mut c_void;
    }
}

/// Those since.
fn v11() -> Option<&'static Calls> {
    #[cfg(not(tensorrt_v11))]
    return None;
    #[cfg(tensorrt_v11)]
    generation! { V11,
        find_logger: ratplus_trt_v11_find_logger(finder: *mut c_void) -> *mut c_void;
        log: ratplus_trt_v11_log(logger: *mut c_void, severity: i32, message: *const c_char);
        register: ratplus_trt_v11_register_creator(registry: *mut c_void, creator: *mut c_void, domain: *const c_char) -> bool;
        deregister: ratplus_trt_v11_deregister_creator(registry: *mut c_void, creator: *mut c_void) -> bool;
        find: ratplus_trt_v11_find_creator(registry: *mut c_void, name: *const c_char, version: *const c_char, domain: *const c_char) -> *mut c_void;
    }
}

/// The calls that fit a library, by what its `getInferLibVersion` tells: major x 10000 + minor x
/// 100 + patch, for TensorRT for RTX with majors of its own below 8.
fn calls_of(version: i32) -> Option<&'static Calls> {
    let rtx = version < 80_000;
    if version >= if rtx { 10_500 } else { 110_000 } {
        v11()
    } else {
        v10()
    }
}

/// A library with a registry.
struct Host {
    path: CString,
    calls: &'static Calls,
    registry: unsafe extern "C" fn() -> *mut c_void,
    logger: Option<unsafe extern "C" fn() -> *mut c_void>,
    /// The address of the `nvinfer1::ILoggerFinder` that it gave us.
    finder: Option<usize>,
    /// Whether [`register`] has put our creators into its registry.
    registered: bool,
}

impl Host {
    /// The library at `path`, which is loaded; `None` where it is no host that we can talk to.
    fn of(path: &CStr) -> Option<Self> {
        let name = OsStr::from_bytes(path.to_bytes());
        // SAFETY: the library is loaded already: no code of it runs.
        let library = unsafe { Library::open(Some(name), libc::RTLD_NOLOAD | RTLD_LAZY) }.ok()?;
        type Getter = unsafe extern "C" fn() -> *mut c_void;
        // SAFETY: `int32_t getInferLibVersion() noexcept`, `IPluginRegistry* getPluginRegistry()
        // noexcept` and `ILogger* getLogger() noexcept` in every release.
        let (version, registry, logger) = unsafe {
            let version = library.get::<unsafe extern "C" fn() -> i32>("getInferLibVersion");
            let registry = library.get::<Getter>("getPluginRegistry");
            let logger = library.get::<Getter>("getLogger");
            (version.ok()?(), registry.ok()?, logger.ok())
        };
        let host = Self {
            path: path.to_owned(),
            calls: calls_of(version)?,
            registry: *registry,
            logger: logger.map(|logger| *logger),
            finder: None,
            registered: false,
        };
        // It counts once more as long as the process lives: its registry keeps pointers to us.
        std::mem::forget(library);
        Some(host)
    }
}

/// Paths of the loaded libraries that may be hosts.
fn loaded() -> Vec<CString> {
    unsafe extern "C" fn collect(
        info: *mut libc::dl_phdr_info,
        _size: usize,
        paths: *mut c_void,
    ) -> c_int {
        // SAFETY: the loader passes a live entry, whose name ends with a null byte.
        let name = unsafe { (*info).dlpi_name };
        if !name.is_null() {
            // SAFETY: it is not null, ends with a null byte, and its entry lives as long as this call.
            let path = unsafe { CStr::from_ptr(name) };
            let file = Path::new(OsStr::from_bytes(path.to_bytes())).file_name();
            let file = file.unwrap_or_default().to_string_lossy();
            if NAMES.iter().any(|name| file.starts_with(name)) {
                // SAFETY: the pointer is the one passed below.
                unsafe { (*paths.cast::<Vec<CString>>()).push(path.to_owned()) };
            }
        }
        0
    }
    let mut paths: Vec<CString> = Vec::new();
    // SAFETY: the callback keeps to its contract, and the vector outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(collect), (&raw mut paths).cast()) };
    paths
}

/// The hosts that are loaded by now.
fn hosts() -> MutexGuard<'static, Vec<Host>> {
    static HOSTS: Mutex<Vec<Host>> = Mutex::new(Vec::new());
    let mut hosts = HOSTS.lock().unwrap_or_else(PoisonError::into_inner);
    for path in loaded() {
        if !hosts.iter().any(|host| host.path == path)
            && let Some(host) = Host::of(&path)
        {
            hosts.push(host);
        }
    }
    hosts
}

/// Every logger, once.
fn loggers() -> Vec<(&'static Calls, *mut c_void)> {
    let mut loggers: Vec<(&'static Calls, *mut c_void)> = Vec::new();
    for host in hosts().iter() {
        let found = host.finder.map(|finder| {
            // SAFETY: the host gave the finder to use as long as it is loaded.
            unsafe { (host.calls.find_logger)(std::ptr::with_exposed_provenance_mut(finder)) }
        });
        let found = found.filter(|logger| !logger.is_null()).or_else(|| {
            // SAFETY: the host is loaded.
            host.logger.map(|logger| unsafe { logger() })
        });
        if let Some(logger) = found
            && !logger.is_null()
            && !loggers.iter().any(|(_, known)| *known == logger)
        {
            loggers.push((host.calls, logger));
        }
    }
    loggers
}

/// Tells every host's logger; where there is none, standard error about what failed.
pub fn log(severity: i32, message: &str) {
    let loggers = loggers();
    if loggers.is_empty() && severity <= ERROR {
        eprintln!("libratplus_trt: {message}");
    }
    let text = CString::new(message.replace('\0', " ")).unwrap_or_default();
    for (calls, logger) in loggers {
        // SAFETY: the logger is the host's, of the calls' generation.
        unsafe { (calls.log)(logger, severity, text.as_ptr()) };
    }
}

/// Takes the finder of loggers of the host that calls.
///
/// # Safety
/// `finder` is null or a live `nvinfer1::ILoggerFinder`.
pub unsafe fn set_logger_finder(finder: *mut c_void) {
    if finder.is_null() {
        return;
    }
    let mut hosts = hosts();
    // The finder's class is the host's own.
    // SAFETY: every object with virtual functions begins with the address of its table.
    let table = unsafe { *finder.cast::<*const c_void>() };
    // SAFETY: plain data.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid.
    let found = unsafe { libc::dladdr(table, &raw mut info) } != 0 && !info.dli_fname.is_null();
    if found {
        // SAFETY: the loader's text, which lives as long as the library.
        let path = unsafe { CStr::from_ptr(info.dli_fname) };
        let mut hosts = hosts.iter_mut();
        if let Some(host) = hosts.find(|host| host.path.as_c_str() == path) {
            host.finder = Some(finder.expose_provenance());
        }
    }
}

/// Registers creators with every host that is loaded and has none of these names. For hosts that
/// merely load plugin libraries; a registry that loads this one asks for the creators and finds
/// that they are the same.
///
/// # Safety
/// `creators` are live `nvinfer1::IPluginCreatorInterface`s for as long as the process lives.
pub unsafe fn register(creators: &[Creator]) {
    for host in hosts().iter_mut() {
        // SAFETY: the host is loaded.
        let registry = unsafe { (host.registry)() };
        if registry.is_null() {
            continue;
        }
        for creator in creators {
            // SAFETY: the registry is the host's, of the calls' generation, and the texts end
            // with null bytes.
            unsafe {
                let domain = creator.domain.as_ptr();
                let name = creator.name.as_ptr();
                let version = creator.version.as_ptr();
                if (host.calls.find)(registry, name, version, domain).is_null() {
                    host.registered |= (host.calls.register)(registry, creator.object, domain);
                }
            }
        }
    }
}

/// Takes creators out of the registries that [`register`] has put them into, so that a registry
/// that is about to register them with their library can.
///
/// # Safety
/// As [`register`].
pub unsafe fn deregister(creators: &[Creator]) {
    for host in hosts().iter_mut() {
        if !std::mem::take(&mut host.registered) {
            continue;
        }
        // SAFETY: the host is loaded, the registry its own, of the calls' generation, and the texts end
        // with null bytes.
        unsafe {
            let registry = (host.registry)();
            if registry.is_null() {
                continue;
            }
            for creator in creators {
                let found = (host.calls.find)(
                    registry,
                    creator.name.as_ptr(),
                    creator.version.as_ptr(),
                    creator.domain.as_ptr(),
                );
                if found == creator.object {
                    (host.calls.deregister)(registry, creator.object);
                }
            }
        }
    }
}

/// A creator and what registries know it by.
pub struct Creator {
    /// `nvinfer1::IPluginCreatorInterface*`.
    pub object: *mut c_void,
    /// The plugin's name.
    pub name: &'static CStr,
    /// Its version.
    pub version: &'static CStr,
    /// Its namespace.
    pub domain: &'static CStr,
}
