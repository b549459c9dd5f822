//! NVRTC, the compiler as a library, found when it is needed.

mod search;

pub use search::{add_search_folder, add_search_folders_around};

use super::architecture::{Capability, Target, capability_text};
use super::cache;
use super::driver::Driver;
use super::error::CudaError;
use super::library::{self, function_table};
use super::sources::HEADERS;
use cudarc::nvrtc::sys::nvrtcProgram;
use search::Search;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_uint};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

function_table! {
    /// NVRTC's functions that are used here. All are in every release since 12.0.
    pub(super) struct Functions {
        fn nvrtcVersion(*mut c_int, *mut c_int);
        fn nvrtcGetErrorString(c_uint) -> *const c_char;
        fn nvrtcGetNumSupportedArchs(*mut c_int);
        fn nvrtcGetSupportedArchs(*mut c_int);
        fn nvrtcCreateProgram(
            *mut nvrtcProgram, *const c_char, *const c_char, c_int, *const *const c_char,
            *const *const c_char,
        );
        fn nvrtcDestroyProgram(*mut nvrtcProgram);
        fn nvrtcCompileProgram(nvrtcProgram, c_int, *const *const c_char);
        fn nvrtcGetProgramLogSize(nvrtcProgram, *mut usize);
        fn nvrtcGetProgramLog(nvrtcProgram, *mut c_char);
        fn nvrtcGetCUBINSize(nvrtcProgram, *mut usize);
        fn nvrtcGetCUBIN(nvrtcProgram, *mut c_char);
        fn nvrtcGetPTXSize(nvrtcProgram, *mut usize);
        fn nvrtcGetPTX(nvrtcProgram, *mut c_char);
    }
}

/// NVRTC as the kernels of this process use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvrtcLibrary {
    /// Major and minor number.
    pub version: String,
    /// The file.
    pub path: PathBuf,
}

/// Finds NVRTC, and loads it.
pub fn nvrtc() -> Result<NvrtcLibrary, CudaError> {
    let nvrtc = Nvrtc::for_driver()?;
    Ok(NvrtcLibrary {
        version: nvrtc.version_text(),
        path: nvrtc.path.clone(),
    })
}

/// CUDA's major version of the driver, where there is one.
fn driver_major() -> Option<u32> {
    let driver = Driver::get().ok()?;
    u32::try_from(driver.version / 1000).ok()
}

/// The Python package that has NVRTC for a major version of CUDA.
fn package(major: Option<u32>) -> String {
    match major {
        Some(major @ ..13) => format!("nvidia-cuda-nvrtc-cu{major}"),
        _ => "nvidia-cuda-nvrtc".into(),
    }
}

/// The compiler of this process, once found.
pub(super) struct Nvrtc {
    call: Functions,
    /// Major and minor number.
    pub version: (i32, i32),
    /// Where it was loaded from.
    pub path: PathBuf,
}

/// What it made of a unit.
pub(super) struct Compiled {
    /// For `cuModuleLoadData`.
    pub code: Vec<u8>,
    /// What the compiler said; empty where the code came from the cache.
    #[cfg(test)]
    log: String,
    /// What it is for, as `sm_90a`.
    pub architecture: String,
    /// How the cache took part.
    pub cache: CacheUse,
}

/// How the cache took part.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CacheUse {
    /// The code came from it.
    Hit,
    /// The code was compiled and is in it now.
    Stored,
    /// The code was compiled and is not in it, and why.
    NotStored(String),
}

impl Nvrtc {
    /// The compiler for the driver of this process.
    pub fn for_driver() -> Result<&'static Self, CudaError> {
        Self::get(driver_major())
    }

    /// The compiler; the first one found serves the process. `preferred` is the major version of
    /// the driver.
    fn get(preferred: Option<u32>) -> Result<&'static Self, CudaError> {
        static LOADED: Mutex<Option<&'static Nvrtc>> = Mutex::new(None);
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(nvrtc) = *loaded {
            return Ok(nvrtc);
        }
        let found = Search::of_process(preferred).find();
        let found = found.map_err(|looked| CudaError::NvrtcMissing {
            looked,
            package: package(preferred),
        })?;
        Ok(*loaded.insert(Box::leak(Box::new(found))))
    }

    /// Loads a file, or what the loader finds under a bare name.
    fn load(file: &Path) -> Result<Self, String> {
        // SAFETY: these names are NVRTC's, or the user named the file; its initialisers are what
        // loading it means.
        let library = unsafe { library::open(file)? };
        // SAFETY: the signatures are nvrtc.h's, and the library stays loaded.
        let call = unsafe { Functions::from_library(&library) };
        let call = call.map_err(|name| {
            let file = file.display();
            format!("{file} has no {name}; expected NVRTC 12.0 or newer")
        })?;
        let path = file_of(call.nvrtcVersion as *const _).unwrap_or_else(|| file.to_owned());
        let mut version = (0, 0);
        // SAFETY: the pointers are valid for the writes.
        let code = unsafe { (call.nvrtcVersion)(&raw mut version.0, &raw mut version.1) };
        if code != 0 {
            return Err(format!("{}: nvrtcVersion failed ({code})", path.display()));
        }
        // The loader may know nothing of NVRTC's own folder, and finds what is loaded already.
        if let Some(folder) = path.parent() {
            let (major, minor) = version;
            let builtins = folder.join(format!("libnvrtc-builtins.so.{major}.{minor}"));
            // SAFETY: this library belongs to the one just loaded. Without it, compiling fails
            // with words of its own.
            let _ = unsafe { library::open(&builtins) };
        }
        Ok(Self {
            call,
            version,
            path,
        })
    }

    /// `13.0`
    pub fn version_text(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// What it compiles for, 86 for 8.6.
    pub fn supported(&self) -> Vec<u32> {
        let mut count = 0;
        // SAFETY: the pointer is valid for the write.
        if unsafe { (self.call.nvrtcGetNumSupportedArchs)(&raw mut count) } != 0 {
            return Vec::new();
        }
        let mut numbers = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: there is room for as many numbers as it announced.
        if unsafe { (self.call.nvrtcGetSupportedArchs)(numbers.as_mut_ptr()) } != 0 {
            return Vec::new();
        }
        numbers
            .into_iter()
            .filter_map(|number| u32::try_from(number).ok())
            .collect()
    }

    /// Code for a device, from the cache in `folder` or compiled.
    pub fn code(
        &self,
        unit: &'static str,
        source: &str,
        device: Capability,
        folder: Option<&Path>,
    ) -> Result<Compiled, CudaError> {
        let Some(target) = Target::choose(&self.supported(), device) else {
            return Err(self.failure(
                unit,
                &capability_text(device),
                "nvrtcGetSupportedArchs",
                5,
                "",
            ));
        };
        let architecture = target.name();
        let options = [
            format!("--gpu-architecture={architecture}"),
            "--std=c++17".into(),
            "--generate-line-info".into(),
            "--ptxas-options=-v".into(),
        ];
        let version = self.version_text();
        let options_text = options.join(" ");
        let own = [unit, source, &options_text, &version].map(str::as_bytes);
        let headers = HEADERS.iter();
        let headers = headers.flat_map(|header| [header.name.to_bytes(), header.text.as_bytes()]);
        let key = cache::key(own.into_iter().chain(headers));
        if let Some(code) = folder.and_then(|folder| cache::read(folder, &key)) {
            return Ok(Compiled {
                code,
                #[cfg(test)]
                log: String::new(),
                architecture,
                cache: CacheUse::Hit,
            });
        }
        let (code, _log) = self.compile(unit, source, &target, &options)?;
        let cache = match folder {
            None => CacheUse::NotStored("no folder for it".into()),
            Some(folder) => match cache::write(folder, &key, &code) {
                Ok(()) => CacheUse::Stored,
                Err(error) => CacheUse::NotStored(format!("{}: {error}", folder.display())),
            },
        };
        Ok(Compiled {
            code,
            #[cfg(test)]
            log: _log,
            architecture,
            cache,
        })
    }

    fn compile(
        &self,
        unit: &'static str,
        source: &str,
        target: &Target,
        options: &[String],
    ) -> Result<(Vec<u8>, String), CudaError> {
        let architecture = target.name();
        let check = |call, code, log: &str| match code {
            0 => Ok(()),
            _ => Err(self.failure(unit, &architecture, call, code, log)),
        };
        let text = |text: &str| CString::new(text.replace('\0', " ")).unwrap_or_default();
        let (source, name) = (text(source), text(unit));
        let header_texts: Vec<_> = HEADERS.iter().map(|header| text(header.text)).collect();
        let header_texts: Vec<_> = header_texts.iter().map(|text| text.as_ptr()).collect();
        let header_names: Vec<_> = HEADERS.iter().map(|header| header.name.as_ptr()).collect();
        let mut program = Program {
            call: &self.call,
            raw: std::ptr::null_mut(),
        };
        // SAFETY: all pointers are C strings that outlive the call, with one name for each text.
        let code = unsafe {
            (self.call.nvrtcCreateProgram)(
                &raw mut program.raw,
                source.as_ptr(),
                name.as_ptr(),
                HEADERS.len() as c_int,
                header_texts.as_ptr(),
                header_names.as_ptr(),
            )
        };
        check("nvrtcCreateProgram", code, "")?;
        let options: Vec<_> = options.iter().map(|option| text(option)).collect();
        let options: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is live, and the options are C strings that outlive the call.
        let code = unsafe {
            (self.call.nvrtcCompileProgram)(program.raw, options.len() as c_int, options.as_ptr())
        };
        let log = program.bytes(
            self.call.nvrtcGetProgramLogSize,
            self.call.nvrtcGetProgramLog,
        );
        let log = log.unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let log = log.trim_end_matches(['\0', '\n']);
        check("nvrtcCompileProgram", code, log)?;
        let (call, size, get) = match target {
            Target::Real(_) => (
                "nvrtcGetCUBIN",
                self.call.nvrtcGetCUBINSize,
                self.call.nvrtcGetCUBIN,
            ),
            Target::Virtual(_) => (
                "nvrtcGetPTX",
                self.call.nvrtcGetPTXSize,
                self.call.nvrtcGetPTX,
            ),
        };
        let code = program.bytes(size, get);
        let code = code.map_err(|code| self.failure(unit, &architecture, call, code, log))?;
        Ok((code, log.to_owned()))
    }

    fn failure(
        &self,
        unit: &'static str,
        architecture: &str,
        call: &'static str,
        code: u32,
        log: &str,
    ) -> CudaError {
        // SAFETY: any number is allowed, and the answer is a static C string or null.
        let words = unsafe {
            let words = (self.call.nvrtcGetErrorString)(code);
            match words.is_null() {
                true => format!("error {code}"),
                false => CStr::from_ptr(words).to_string_lossy().into_owned(),
            }
        };
        CudaError::Compile {
            unit,
            compiler: format!("NVRTC {} for {architecture}", self.version_text()),
            call,
            words,
            log: log.to_owned(),
        }
    }
}

/// A program, destroyed when dropped.
struct Program<'a> {
    call: &'a Functions,
    raw: nvrtcProgram,
}

impl Program<'_> {
    /// What a pair of functions gives: the first its size, the second its bytes.
    fn bytes(
        &self,
        size: unsafe extern "C" fn(nvrtcProgram, *mut usize) -> u32,
        get: unsafe extern "C" fn(nvrtcProgram, *mut c_char) -> u32,
    ) -> Result<Vec<u8>, u32> {
        let mut count = 0;
        // SAFETY: the program is live and the pointer valid for the write.
        match unsafe { size(self.raw, &raw mut count) } {
            0 => (),
            code => return Err(code),
        }
        let mut bytes = vec![0; count];
        // SAFETY: there is room for as many bytes as it announced.
        match unsafe { get(self.raw, bytes.as_mut_ptr().cast()) } {
            0 => Ok(bytes),
            code => Err(code),
        }
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: the program is destroyed once.
            unsafe { (self.call.nvrtcDestroyProgram)(&raw mut self.raw) };
        }
    }
}

/// The file that a function was loaded from.
fn file_of(function: *const std::ffi::c_void) -> Option<PathBuf> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: `info` is valid for writes; `dladdr` only compares addresses, and `dli_fname` is a
    // C string where it returns non-zero.
    unsafe {
        if libc::dladdr(function, info.as_mut_ptr()) == 0 {
            return None;
        }
        let name = info.assume_init().dli_fname;
        (!name.is_null()).then(|| PathBuf::from(OsStr::from_bytes(CStr::from_ptr(name).to_bytes())))
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) use tests::folder as installed;
