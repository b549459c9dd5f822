//! Kernels by name: which unit has one, and how the unit gets onto a device.

use super::architecture::{self, Capability, capability_text};
use super::cache;
use super::device::Function;
use super::driver::Driver;
use super::error::CudaError;
use super::nvrtc::{CacheUse, Nvrtc};
use super::sources::{TOOLKIT, Toolkit, UNITS};
use super::units::Unit;
use cudarc::driver::sys::{CUfunction, CUfunction_attribute as Attribute, CUmodule};
use std::ffi::CString;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// What is loaded on one device.
pub(super) struct Program {
    driver: &'static Driver,
    capability: Capability,
    /// Where compiled code is kept.
    cache: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Index of the unit, and the unit.
    modules: Vec<(usize, CUmodule)>,
    functions: Vec<Function>,
    log: Vec<String>,
}

/// Errors of the driver that say "not for this device, or not for this driver": other code may
/// do. CUDA_ERROR_INVALID_IMAGE, NO_BINARY_FOR_GPU, INVALID_PTX, UNSUPPORTED_PTX_VERSION,
/// JIT_COMPILATION_DISABLED.
const NOT_FOR_US: [u32; 5] = [200, 209, 218, 222, 223];
/// CUDA_ERROR_NOT_FOUND
const NOT_FOUND: u32 = 500;

impl Program {
    pub fn new(driver: &'static Driver, capability: Capability) -> Self {
        Self {
            driver,
            capability,
            cache: cache::cache_folder(),
            state: Mutex::default(),
        }
    }

    /// What happened so far, one line each.
    pub fn log(&self) -> Vec<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.log.clone()
    }

    /// A kernel that may use `shared_limit` bytes of shared memory. The device's context is
    /// current.
    pub fn function(&self, kernel: &'static str, shared_limit: u32) -> Result<Function, CudaError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let known = state.functions.iter().find(|known| known.kernel == kernel);
        if let Some(&function) = known {
            return Ok(function);
        }
        let index = architecture::unit_of(kernel).ok_or(CudaError::KernelUnknown { kernel })?;
        let unit = &UNITS[index];
        let module = match state.modules.iter().find(|(loaded, _)| *loaded == index) {
            Some(&(_, module)) => module,
            None => {
                let module = self.load(unit, &mut state.log)?;
                state.modules.push((index, module));
                module
            }
        };
        let raw = self.kernel(unit, module, kernel)?;
        self.allow_shared_memory(raw, shared_limit)?;
        let function = Function { raw, kernel };
        state.functions.push(function);
        Ok(function)
    }

    fn kernel(
        &self,
        unit: &Unit,
        module: CUmodule,
        kernel: &'static str,
    ) -> Result<CUfunction, CudaError> {
        let name = CString::new(kernel).map_err(|_| CudaError::KernelUnknown { kernel })?;
        let mut raw = std::ptr::null_mut();
        let call = self.driver.call.cuModuleGetFunction;
        // SAFETY: the module is loaded, the name a C string, the pointer valid for the write.
        let code = unsafe { call(&raw mut raw, module, name.as_ptr()) };
        if code == NOT_FOUND {
            return Err(CudaError::KernelMissing {
                unit: unit.file,
                kernel,
            });
        }
        self.driver.check("cuModuleGetFunction", code)?;
        Ok(raw)
    }

    /// Lets launches use what the kernel's own shared memory leaves of `limit`. Reading the
    /// attribute also makes a driver that loads lazily load the kernel now, and not at a launch
    /// that may be under capture.
    fn allow_shared_memory(&self, raw: CUfunction, limit: u32) -> Result<(), CudaError> {
        let mut own = 0;
        let attribute = Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        // SAFETY: the function is loaded and the pointer valid for the write.
        let code = unsafe { (self.driver.call.cuFuncGetAttribute)(&raw mut own, attribute, raw) };
        self.driver.check("cuFuncGetAttribute", code)?;
        let rest = i32::try_from(limit).unwrap_or(i32::MAX) - own;
        let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is loaded.
        let code = unsafe { (self.driver.call.cuFuncSetAttribute)(raw, attribute, rest) };
        self.driver.check("cuFuncSetAttribute", code)
    }

    /// Loads a unit, if the device is one that it is for.
    fn load(&self, unit: &Unit, log: &mut Vec<String>) -> Result<CUmodule, CudaError> {
        if let Some(expected) = architecture::lacking(unit, self.capability) {
            return Err(CudaError::WrongArchitecture {
                unit: unit.file,
                expected,
                found: capability_text(self.capability),
            });
        }
        // The emulator has the kernels already: no compiler is needed.
        #[cfg(any(test, feature = "emulation"))]
        if self.driver.emulator {
            log.push(format!("{}: the emulator's", unit.file));
            return self
                .load_code(unit.source.as_bytes())
                .map_err(|code| self.not_loaded(code));
        }
        self.load_image(unit, TOOLKIT, log)
    }

    /// Loads what is embedded, else what NVRTC makes of it.
    fn load_image(
        &self,
        unit: &Unit,
        toolkit: Option<Toolkit>,
        log: &mut Vec<String>,
    ) -> Result<CUmodule, CudaError> {
        let embedded = match (unit.embedded, toolkit) {
            (Some(code), Some(toolkit)) => {
                let version = toolkit.version;
                if architecture::covers(unit, toolkit.architectures, self.capability) {
                    match self.load_code(code) {
                        Ok(module) => {
                            let file = unit.file;
                            log.push(format!("{file}: embedded code of nvcc {version}"));
                            return Ok(module);
                        }
                        Err(code) if NOT_FOR_US.contains(&code) => {
                            let (name, words) = self.driver.words(code);
                            format!(
                                "the embedded code of nvcc {version} does not load ({name}: {words})"
                            )
                        }
                        Err(code) => return Err(self.not_loaded(code)),
                    }
                } else {
                    format!(
                        "the embedded code is for sm_{}",
                        toolkit.architectures.join(", sm_")
                    )
                }
            }
            _ => "this build embeds none".into(),
        };
        let nvrtc = Nvrtc::for_driver().map_err(|nvrtc| CudaError::NoCode {
            unit: unit.file,
            architecture: capability_text(self.capability),
            embedded: embedded.clone(),
            nvrtc: Box::new(nvrtc),
        })?;
        let start = Instant::now();
        let made = nvrtc.code(
            unit.file,
            unit.source,
            self.capability,
            self.cache.as_deref(),
        )?;
        let seconds = start.elapsed().as_secs_f64();
        let origin = match made.cache {
            CacheUse::Hit => "from the cache".into(),
            CacheUse::Stored => format!("compiled in {seconds:.1} s"),
            CacheUse::NotStored(why) => format!("compiled in {seconds:.1} s, not kept ({why})"),
        };
        log.push(format!(
            "{}: {embedded}; code of NVRTC {} for {}, {origin}",
            unit.file,
            nvrtc.version_text(),
            made.architecture,
        ));
        self.load_code(&made.code)
            .map_err(|code| self.not_loaded(code))
    }

    fn load_code(&self, code: &[u8]) -> Result<CUmodule, u32> {
        let mut module = std::ptr::null_mut();
        let call = self.driver.call.cuModuleLoadData;
        // SAFETY: the bytes are a whole cubin, fat binary or NUL-terminated PTX, which know their
        // size; the pointer is valid for the write.
        match unsafe { call(&raw mut module, code.as_ptr().cast()) } {
            0 => Ok(module),
            code => Err(code),
        }
    }

    fn not_loaded(&self, code: u32) -> CudaError {
        let checked = self.driver.check("cuModuleLoadData", code);
        checked.expect_err("the code is not 0")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::Device;
    use crate::cuda::driver::LIBRARY;
    use crate::cuda::nvrtc::installed;
    use ratplus_cuda_emulator as emulator;
    use std::ffi::c_void;

    /// Of an emulated device, its context current.
    fn program(capability: Capability) -> Program {
        emulator::load().unwrap();
        Device::open(0).unwrap();
        Program::new(Driver::get().unwrap(), capability)
    }

    const NOTHING_EMBEDDED: Unit = Unit {
        file: "nothing.cu",
        only: None,
        source: "extern \"C\" __global__ void kernel() {}",
        embedded: None,
    };

    #[test]
    fn what_is_not_embedded_is_compiled() {
        crate::cuda::add_search_folder(installed());
        let folder = tempfile::tempdir().unwrap();
        let mut program = program((9, 0));
        program.cache = Some(folder.path().to_owned());
        let mut log = Vec::new();
        for expected in ["compiled in", "from the cache"] {
            program
                .load_image(&NOTHING_EMBEDDED, None, &mut log)
                .unwrap();
            let line = log.last().unwrap();
            for part in ["nothing.cu", "this build embeds none", "sm_90a", expected] {
                assert!(line.contains(part), "{part}: {line}");
            }
        }
        program.cache = Some(folder.path().join("file/below"));
        std::fs::write(folder.path().join("file"), "").unwrap();
        program
            .load_image(&NOTHING_EMBEDDED, None, &mut log)
            .unwrap();
        assert!(log.last().unwrap().contains("not kept ("), "{log:?}");
    }

    /// Code that the driver of [`picky`] refuses with CUDA_ERROR_UNSUPPORTED_PTX_VERSION, and such
    /// that it refuses with CUDA_ERROR_OUT_OF_MEMORY.
    const TOO_NEW: &[u8] = b"too new";
    const TOO_LARGE: &[u8] = b"too large";

    /// A `cuModuleLoadData` with opinions.
    unsafe extern "C" fn picky_load(module: *mut CUmodule, image: *const c_void) -> u32 {
        // SAFETY: the test hands in nothing shorter than `TOO_NEW`, and a valid pointer.
        unsafe {
            *module = std::ptr::dangling_mut();
            match std::slice::from_raw_parts(image.cast::<u8>(), TOO_NEW.len()) {
                TOO_NEW => 222,
                start if TOO_LARGE.starts_with(start) => 2,
                _ => 0,
            }
        }
    }

    #[test]
    fn code_that_the_driver_does_not_take_is_compiled() {
        crate::cuda::add_search_folder(installed());
        let folder = tempfile::tempdir().unwrap();
        let mut program = program((8, 6));
        program.cache = Some(folder.path().to_owned());
        let mut driver = Driver::load(LIBRARY).unwrap();
        driver.call.cuModuleLoadData = picky_load;
        program.driver = Box::leak(Box::new(driver));
        let toolkit = Some(Toolkit {
            version: "99.9",
            architectures: &["80"],
        });
        let load = |embedded| {
            let unit = Unit {
                embedded: Some(embedded),
                ..NOTHING_EMBEDDED
            };
            let mut log = Vec::new();
            let module = program.load_image(&unit, toolkit, &mut log);
            module.map(|_| log.concat())
        };
        let log = load(b"just right").unwrap();
        assert_eq!(log, "nothing.cu: embedded code of nvcc 99.9");
        let log = load(TOO_NEW).unwrap();
        for part in [
            "nvcc 99.9 does not load (",
            "code of NVRTC",
            "sm_86, compiled in",
        ] {
            assert!(log.contains(part), "{part}: {log}");
        }
        let error = load(TOO_LARGE).unwrap_err();
        let expected = "cuModuleLoadData failed: CUDA_ERROR_OUT_OF_MEMORY (2)";
        assert!(error.to_string().starts_with(expected), "{error}");

        // Code for another device is not even tried.
        program.capability = (12, 0);
        let only = Unit {
            only: Some("120"),
            embedded: Some(TOO_LARGE),
            ..NOTHING_EMBEDDED
        };
        let mut log = Vec::new();
        program.load_image(&only, toolkit, &mut log).unwrap();
        assert!(
            log[0].contains("the embedded code is for sm_80;"),
            "{log:?}"
        );
    }

    #[test]
    fn units_for_other_devices_are_refused() {
        let old = program((7, 5));
        let error = old.load(&NOTHING_EMBEDDED, &mut Vec::new());
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("expected a GPU of compute capability 8.0 or newer"),
            "{text}"
        );
        assert!(text.contains("found 7.5"), "{text}");
        let unit = Unit {
            only: Some("90a"),
            ..NOTHING_EMBEDDED
        };
        let error = program((10, 0)).load(&unit, &mut Vec::new());
        let text = error.unwrap_err().to_string();
        assert!(text.contains("capability 9.0, found 10.0"), "{text}");
    }

    #[test]
    fn advice_comes_with_what_is_missing() {
        let error = CudaError::NoCode {
            unit: "recurrence_scan.cu",
            architecture: "9.0".into(),
            embedded: "this build embeds none".into(),
            nvrtc: Box::new(CudaError::NvrtcMissing {
                looked: "no such file".into(),
                package: "nvidia-cuda-nvrtc".into(),
            }),
        };
        assert_eq!(
            error.to_string(),
            "recurrence_scan.cu: no code for compute capability 9.0: this build embeds none, and NVRTC, \
             which would compile it here, does not load (no such file); install it beside ONNX \
             Runtime (`pip install nvidia-cuda-nvrtc`), or name its file in RATPLUS_NVRTC"
        );
    }
}
