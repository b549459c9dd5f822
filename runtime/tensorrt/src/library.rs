//! Finds and loads TensorRT.

use crate::search::Folder;
use crate::shim::{self, Loaded, Table};
use crate::{Flavour, NvinferError, Product};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A loaded TensorRT that this build can drive. It is never unloaded.
#[derive(Clone)]
pub struct Library {
    product: Product,
    path: PathBuf,
    version: [u32; 4],
    pub(crate) loaded: Arc<Loaded>,
    pub(crate) table: &'static Table,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (product, version) = (self.product, self.version());
        write!(f, "{product} {version} at {}", self.path.display())
    }
}

/// One of each product for the process: a library does not go away when it is closed.
static LOADED: Mutex<Vec<(PathBuf, Library)>> = Mutex::new(Vec::new());

impl Library {
    /// Loads the product's library, and the ONNX parser beside it where there is one.
    ///
    /// # Errors
    /// Nothing found, a library that does not load, a version that no flavour fits.
    pub fn open(product: Product, folder: &Folder) -> Result<Self, NvinferError> {
        let names = product.names();
        let mut places = String::new();
        for place in folder.places(names) {
            let mut missing = Vec::new();
            for name in names.engine {
                let file = match &place {
                    Some(folder) => folder.join(name),
                    None => PathBuf::from(name),
                };
                if place.is_some() && !file.is_file() {
                    missing.push(format!("no {name}"));
                    continue;
                }
                match Self::load(product, &file)? {
                    Ok(library) => return Ok(library),
                    Err(unknown) => missing.push(unknown),
                }
            }
            let place = place.map_or_else(
                || "the system's loader".into(),
                |folder| folder.display().to_string(),
            );
            places += &format!("\n    {place}: {}", missing.join("; "));
        }
        if std::env::var_os(names.variable).is_none_or(|value| value.is_empty()) {
            places = format!("\n    {}: not set{places}", names.variable);
        }
        Err(NvinferError(format!(
            "{product}: {} was not found; looked at:{places}\n  {}",
            names.engine[0], names.advice
        )))
    }

    /// Loads one file; within, the system's loader's words about a name that it does not know.
    fn load(product: Product, file: &Path) -> Result<Result<Self, String>, NvinferError> {
        let mut known = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, library)) = known.iter().find(|(path, _)| path == file) {
            return Ok(Ok(library.clone()));
        }
        let names = product.names();
        let bare = file.parent().is_none_or(|folder| folder == Path::new(""));
        let mut loaded = match Loaded::open(file) {
            Ok(loaded) => loaded,
            Err(unknown) if bare => return Ok(Err(unknown)),
            Err(reason) => return Err(unusable(product, file, &reason, names.advice)),
        };
        let version = loaded.version();
        let version = version.map_err(|reason| unusable(product, file, &reason, names.advice))?;
        let [major, minor, ..] = version;
        let tables: Vec<&'static Table> = shim::tables().collect();
        let fitting = tables.iter().rev();
        let table = fitting
            .copied()
            .find(|table| table.flavour().fits(product, (major, minor)));
        let Some(table) = table else {
            let built: Vec<_> = tables
                .iter()
                .map(|table| table.flavour().to_string())
                .collect();
            let reason = match built.is_empty() {
                true => format!(
                    "found {product} {}, but this build has no code for TensorRT: no headers were \
                     there",
                    text(version)
                ),
                false => format!(
                    "expected a release that this build has code for ({}), found {product} {}",
                    built.join(", "),
                    text(version)
                ),
            };
            let advice = "install such a release, or build again with its headers (`cargo xtask \
                          setup` installs some, RATPLUS_TENSORRT_INCLUDE names others)";
            return Err(unusable(product, file, &reason, advice));
        };
        let order = names.engine.iter().position(|name| file.ends_with(name));
        if let Some(parser) = order.and_then(|order| names.parser.get(order)) {
            loaded.add_parser(&file.with_file_name(parser));
        }
        loaded.log_for(table);
        let library = Self {
            product,
            path: loaded.file().unwrap_or_else(|| file.into()),
            version,
            loaded: Arc::new(loaded),
            table,
        };
        known.push((file.into(), library.clone()));
        Ok(Ok(library))
    }

    /// Which product it is.
    pub fn product(&self) -> Product {
        self.product
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version, such as `1.7.1.116`.
    pub fn version(&self) -> String {
        text(self.version)
    }

    /// What drives it.
    pub fn flavour(&self) -> Flavour {
        self.table.flavour()
    }

    /// Whether it can build plans.
    ///
    /// # Errors
    /// What is missing for that.
    pub fn can_build(&self) -> Result<(), NvinferError> {
        let advice = self.product.names().advice;
        let able = self.loaded.can_build();
        able.map_err(|reason| unusable(self.product, &self.path, &reason, advice))
    }

    /// Whether it can put weights into stripped plans.
    ///
    /// # Errors
    /// What is missing for that.
    pub fn can_refit(&self) -> Result<(), NvinferError> {
        let able = self.loaded.can_refit();
        able.map_err(|reason| {
            let (product, version, path) = (self.product, self.version(), self.path.display());
            let reason = format!(
                "{product} {version} at `{path}` puts no weights into stripped plans: {reason}"
            );
            NvinferError(reason)
        })
    }

    /// The error of a failed call, with what TensorRT logged.
    pub(crate) fn failed(&self, what: &str, message: &str) -> NvinferError {
        let message = self.loaded.explain(message);
        NvinferError(format!(
            "{} {}: {what}: {message}",
            self.product,
            self.version()
        ))
    }
}

fn unusable(product: Product, file: &Path, reason: &str, advice: &str) -> NvinferError {
    NvinferError(format!(
        "{product}: `{}`: {reason}; {advice}",
        file.display()
    ))
}

fn text(version: [u32; 4]) -> String {
    version.map(|part| part.to_string()).join(".")
}
