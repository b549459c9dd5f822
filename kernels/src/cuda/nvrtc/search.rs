//! Where NVRTC is looked for.

use super::Nvrtc;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Names a file, or a folder with one.
const VARIABLE: &str = "RATPLUS_NVRTC";

/// Major versions that are looked for, unless the driver has another wish.
const MAJORS: [u32; 2] = [13, 12];

/// Where Python packages have it, below site-packages.
const IN_SITE_PACKAGES: [&str; 2] = ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"];

static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Adds a folder where NVRTC is looked for from now on: one that holds it, or a Python
/// site-packages folder with NVIDIA's packages.
pub fn add_search_folder(folder: impl Into<PathBuf>) {
    let folder = folder.into();
    let mut folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    if !folders.contains(&folder) {
        folders.push(folder);
    }
}

/// Adds the folder of a library that uses the kernels, and those around it, one of which is
/// site-packages where the library is of a Python package: libonnxruntime is
/// `onnxruntime/capi/libonnxruntime.so` there.
pub fn add_search_folders_around(library: &Path) {
    library
        .ancestors()
        .skip(1)
        .take(3)
        .for_each(add_search_folder);
}

/// Where the compiler is looked for.
pub(super) struct Search {
    /// The file or folder of [`VARIABLE`]: nothing else is looked at then.
    pub named: Option<PathBuf>,
    /// Names of the file, best first. The loader is asked for them too.
    pub names: Vec<String>,
    pub folders: Vec<PathBuf>,
}

impl Search {
    /// Folders of toolkits, of packages and of this program, after the loader's own.
    pub fn of_process(preferred: Option<u32>) -> Self {
        let majors = preferred.filter(|major| !MAJORS.contains(major));
        let mut majors: Vec<u32> = majors.into_iter().chain(MAJORS).collect();
        majors.sort_by_key(|major| Some(*major) != preferred);
        let names = majors.iter().map(|major| format!("libnvrtc.so.{major}"));

        let toolkits = ["CUDA_HOME", "CUDA_PATH"].map(std::env::var_os);
        let toolkits = toolkits.into_iter().flatten();
        let mut folders: Vec<_> = toolkits
            .map(|root| PathBuf::from(root).join("lib64"))
            .collect();
        for folder in FOLDERS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            folders.push(folder.clone());
            folders.extend(IN_SITE_PACKAGES.map(|below| folder.join(below)));
        }
        let program = std::env::current_exe().ok();
        folders.extend(
            program
                .as_deref()
                .and_then(Path::parent)
                .map(Path::to_owned),
        );
        let named = std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
        Self {
            named: named.map(PathBuf::from),
            names: names.collect(),
            folders,
        }
    }

    /// The first that loads. The error says where it was looked for.
    pub fn find(&self) -> Result<Nvrtc, String> {
        let in_folder = |folder: &PathBuf| {
            let files: Vec<_> = self.names.iter().map(|name| folder.join(name)).collect();
            files.into_iter().filter(|file| file.exists())
        };
        if let Some(named) = &self.named {
            let file = in_folder(named).next().unwrap_or_else(|| named.clone());
            let failed = |error| format!("{VARIABLE} names {}: {error}", named.display());
            return Nvrtc::load(&file).map_err(failed);
        }
        let loaders = self.names.iter().map(PathBuf::from);
        let mut problems = Vec::new();
        for file in loaders.chain(self.folders.iter().flat_map(in_folder)) {
            match Nvrtc::load(&file) {
                Ok(nvrtc) => return Ok(nvrtc),
                // The loader found no such file: what the message below says anyway.
                Err(problem)
                    if problem.starts_with(&format!("{}: cannot open", file.display())) => {}
                Err(problem) => problems.push(problem),
            }
        }
        let folders = self.folders.iter().filter(|folder| folder.is_dir());
        let mut places = vec!["the loader's path".to_owned()];
        places.extend(folders.map(|folder| folder.display().to_string()));
        let missing = format!("no {} in {}", self.names.join(" or "), places.join(", "));
        problems.insert(0, missing);
        Err(problems.join("; "))
    }
}
