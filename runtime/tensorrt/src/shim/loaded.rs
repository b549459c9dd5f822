//! A library of TensorRT's.

use super::{Logger, Symbols, Table};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::error::Error;
use std::ffi::{CStr, c_void};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;

/// TensorRT's library, and its parser's. Neither is ever unloaded.
pub(crate) struct Loaded {
    engine: Library,
    pub(super) symbols: Symbols,
    /// Why there is no parser.
    no_parser: String,
    /// Why it puts no weights into plans.
    no_parser_refitter: String,
    logger: Option<Logger>,
}

// SAFETY: the addresses are of functions, which stay loaded and belong to no thread.
unsafe impl Send for Loaded {}
// SAFETY: nothing changes behind a shared reference; the functions take calls from several threads.
unsafe impl Sync for Loaded {}

fn open(file: &Path) -> Result<Library, String> {
    // SAFETY: the initialisers of the library that the user chose are what loading it means.
    let library = unsafe { Library::open(Some(file), RTLD_NOW | RTLD_LOCAL) };
    library.map_err(|error| {
        // The loader's own words.
        let words = error.source().map(ToString::to_string);
        words.unwrap_or_else(|| error.to_string())
    })
}

/// The address of a function, null where there is none.
fn address(library: &Library, name: &CStr) -> *mut c_void {
    // SAFETY: the symbol is only looked for.
    let found = unsafe { library.get::<*mut c_void>(name.to_bytes_with_nul()) };
    found.map_or(null_mut(), |symbol| symbol.into_raw())
}

impl Loaded {
    /// Loads a file; a bare name is looked up as the system's loader does.
    pub fn open(file: &Path) -> Result<Self, String> {
        let engine = open(file)?;
        let symbols = Symbols {
            create_builder: address(&engine, c"createInferBuilder_INTERNAL"),
            create_runtime: address(&engine, c"createInferRuntime_INTERNAL"),
            create_parser: null_mut(),
            create_refitter: address(&engine, c"createInferRefitter_INTERNAL"),
            create_parser_refitter: null_mut(),
        };
        if symbols.create_runtime.is_null() {
            return Err("it exports no createInferRuntime_INTERNAL".into());
        }
        Ok(Self {
            engine,
            symbols,
            no_parser: "no ONNX parser".into(),
            no_parser_refitter: "no ONNX parser".into(),
            logger: None,
        })
    }

    /// Major, minor, patch and build.
    pub fn version(&self) -> Result<[u32; 4], String> {
        let mut version = [0; 4];
        let names = [
            c"getInferLibMajorVersion",
            c"getInferLibMinorVersion",
            c"getInferLibPatchVersion",
            c"getInferLibBuildVersion",
        ];
        for (part, name) in version.iter_mut().zip(names) {
            let function = address(&self.engine, name);
            if function.is_null() {
                return Err(format!("it exports no {}", name.to_string_lossy()));
            }
            // SAFETY: these functions of NvInferRuntime.h take nothing and return an int32_t.
            let function: unsafe extern "C" fn() -> i32 = unsafe { std::mem::transmute(function) };
            // SAFETY: it is not null, and its library stays loaded.
            *part = u32::try_from(unsafe { function() }).unwrap_or(0);
        }
        Ok(version)
    }

    /// The file that the loader found.
    pub fn file(&self) -> Option<PathBuf> {
        // Whose code lies where the function does.
        let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
        let address = self.symbols.create_runtime as usize;
        maps.lines().find_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let bound = |text| usize::from_str_radix(text, 16).ok();
            let inside = (bound(start)?..bound(end)?).contains(&address);
            inside
                .then(|| rest.find('/').map(|at| rest[at..].into()))
                .flatten()
        })
    }

    /// Loads the parser, or remembers why not.
    pub fn add_parser(&mut self, file: &Path) {
        match open(file) {
            Ok(library) => {
                self.symbols.create_parser = address(&library, c"createNvOnnxParser_INTERNAL");
                self.symbols.create_parser_refitter =
                    address(&library, c"createNvOnnxParserRefitter_INTERNAL");
                let name = file.display();
                self.no_parser = format!("`{name}` has no parser");
                self.no_parser_refitter =
                    format!("`{name}` exports no createNvOnnxParserRefitter_INTERNAL");
                // Its code may be in use until the process ends.
                std::mem::forget(library);
            }
            Err(reason) => {
                self.no_parser = format!("the ONNX parser does not load: {reason}");
                self.no_parser_refitter.clone_from(&self.no_parser);
            }
        }
    }

    /// Makes the logger that everything of this library uses.
    pub fn log_for(&mut self, table: &'static Table) {
        self.logger = Some(Logger::new(table));
    }

    pub(super) fn logger(&self) -> Result<&Logger, String> {
        let logger = self.logger.as_ref().filter(|logger| !logger.raw.is_null());
        logger.ok_or_else(|| "no memory for the logger".into())
    }

    /// `message`, with what TensorRT logged.
    pub fn explain(&self, message: &str) -> String {
        match &self.logger {
            Some(logger) => logger.messages.explain(message),
            None => message.to_owned(),
        }
    }

    /// Whether builder and parser are there.
    pub fn can_build(&self) -> Result<(), String> {
        let mut missing = Vec::new();
        if self.symbols.create_builder.is_null() {
            missing.push("it exports no createInferBuilder_INTERNAL: it runs plans only".into());
        }
        if self.symbols.create_parser.is_null() {
            missing.push(self.no_parser.clone());
        }
        none_missing(&missing)
    }

    /// Whether what puts weights into stripped plans is there.
    pub fn can_refit(&self) -> Result<(), String> {
        let mut missing = Vec::new();
        if self.symbols.create_refitter.is_null() {
            missing.push("it exports no createInferRefitter_INTERNAL".into());
        }
        if self.symbols.create_parser_refitter.is_null() {
            missing.push(self.no_parser_refitter.clone());
        }
        none_missing(&missing)
    }
}

fn none_missing(missing: &[String]) -> Result<(), String> {
    match missing {
        [] => Ok(()),
        missing => Err(missing.join("; ")),
    }
}
