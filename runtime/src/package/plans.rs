//! Opens the engine plans of a package.

use super::files::Files;
use super::{Package, PackageError};
use memmap2::Mmap;
use ratplus_graphs::none_wrong;
use ratplus_graphs::package::{Target, WEIGHTS_FILE};
use ratplus_graphs::plans::{PlanSet, plans_folder};
use std::ops::Deref;

/// What is going to run plans.
#[derive(Clone, Copy, Debug)]
pub struct PlanTarget<'a> {
    /// `tensorrt` or `tensorrt-rtx`.
    pub backend: &'a str,
    /// What the graphs were built for that the plans are of.
    pub graphs: Target,
    /// Version of its library.
    pub library: &'a str,
    /// Of the GPU; `None` where there is none to ask.
    pub compute_capability: Option<(u32, u32)>,
}

/// A plan, checked, for as long as its file is not changed in place.
#[derive(Debug)]
pub struct OpenedPlan {
    /// Its file, from the package's folder on.
    pub file: String,
    bytes: Mmap,
}

impl Deref for OpenedPlan {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Package {
    /// The plans that the manifest has for `backend`.
    ///
    /// # Errors
    /// It has none: the command that builds them.
    pub(crate) fn plan_set(&self, backend: &str) -> Result<&PlanSet, String> {
        let found = self.manifest.plans.get(backend);
        found.ok_or_else(|| {
            let dir = self.dir.display();
            format!("it has no plans for {backend}; run `ratplus build {dir}` with `backends: {backend}`")
        })
    }

    /// Opens the plans of a backend, in the order of the manifest's [`PlanSet`].
    ///
    /// # Errors
    /// There are none; they were built from other ONNX files or weights, by another version of the
    /// library or for other GPUs; a file is missing, damaged, or leads out of the package. All
    /// problems at once.
    pub fn plans(&self, target: &PlanTarget<'_>) -> Result<Vec<OpenedPlan>, PackageError> {
        let backend = target.backend;
        let again = format!(
            "run `ratplus build {}` with `backends: {backend}` again",
            self.dir.display()
        );
        let fail = |problems: Vec<String>| PackageError {
            dir: self.dir.clone(),
            problems,
        };
        let set = self.plan_set(backend);
        let set = set.map_err(|problem| fail(vec![problem]))?;
        let mut problems = self.foreign(set, target, &again);
        for engine in &self.manifest.engines {
            // The manifest's own check has a plan for every engine.
            let plan = set.place(&engine.name).map(|(plan, _)| &set.plans[plan]);
            let built_from = plan.map_or("", |plan| plan.onnx_blake3.as_str());
            let file = engine.file(target.graphs).unwrap_or_default();
            let found = self.checksum(file);
            let problem = stale(file, built_from, found, &again);
            if found != built_from && !problems.contains(&problem) {
                problems.push(problem);
            }
        }
        none_wrong(problems).map_err(fail)?;
        let files = Files::new(&self.dir)
            .map_err(|problem| fail(vec![problem]))?
            .advising(again);
        let open = |file: &str, info| {
            let file = format!("{}/{file}", plans_folder(backend));
            let bytes = files.map_checked(&file, info)?;
            Ok(OpenedPlan { file, bytes })
        };
        // Hashing is the longest part.
        let opened: Vec<Result<_, String>> = std::thread::scope(|scope| {
            let plans = set.plans.iter();
            let tasks: Vec<_> = plans
                .map(|plan| scope.spawn(|| open(&plan.file, &plan.info)))
                .collect();
            let joined = tasks.into_iter().map(|task| {
                let failed = |_| Err("a plan's check failed unexpectedly".into());
                task.join().unwrap_or_else(failed)
            });
            joined.collect()
        });
        let (good, bad): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
        if bad.is_empty() {
            Ok(good.into_iter().flatten().collect())
        } else {
            Err(fail(bad.into_iter().filter_map(Result::err).collect()))
        }
    }

    /// What was measured as the plans of a backend were built; `None` where they have none, or another library
    /// or GPU it was.
    ///
    /// # Errors
    /// The file is missing, damaged, or leads out of the package.
    pub fn timing_cache(
        &self,
        target: &PlanTarget<'_>,
    ) -> Result<Option<OpenedPlan>, PackageError> {
        let backend = target.backend;
        let set = self.manifest.plans.get(backend);
        let of_target = |set: &&PlanSet| {
            set.library == target.library
                && target.compute_capability.is_none_or(|of| set.covers(of))
        };
        let Some(cache) = set
            .filter(of_target)
            .and_then(|set| set.timing_cache.as_ref())
        else {
            return Ok(None);
        };
        let file = format!("{}/{}", plans_folder(backend), cache.file);
        let opened = Files::new(&self.dir).and_then(|files| {
            let files = files.advising("plans are built without it".to_owned());
            files.map_checked(&file, &cache.info)
        });
        let bytes = opened.map_err(|problem| PackageError {
            dir: self.dir.clone(),
            problems: vec![problem],
        })?;
        Ok(Some(OpenedPlan { file, bytes }))
    }

    /// The checksum that the manifest has for a file of the package.
    fn checksum(&self, file: &str) -> &str {
        let info = self.manifest.files.get(file);
        info.map_or("", |info| info.blake3.as_str())
    }

    /// What a set of plans was built with, against what is to run it.
    fn foreign(&self, set: &PlanSet, target: &PlanTarget<'_>, again: &str) -> Vec<String> {
        let backend = target.backend;
        let mut problems = Vec::new();
        if !set.runs_with(target.library) {
            problems.push(format!(
                "plans for {backend}: built with version {} of its library, found version {}; \
                 {again}",
                set.library, target.library
            ));
        }
        if let Some((major, minor)) = target.compute_capability
            && !set.covers((major, minor))
        {
            let targets = set.compute_capabilities.iter().map(ToString::to_string);
            problems.push(format!(
                "plans for {backend}: built for compute capability {}, found a GPU of {major}.{minor}; \
                 {again}, for this GPU{}",
                targets.collect::<Vec<_>>().join(", "),
                match backend {
                    "tensorrt" => String::new(),
                    _ => format!(" (`compute_capabilities: {major}.{minor}`)"),
                }
            ));
        }
        let found = self.checksum(WEIGHTS_FILE);
        if found != set.weights_blake3 {
            problems.push(format!(
                "plans for {backend}: built from a {WEIGHTS_FILE} with BLAKE3 {}, found {found}; \
                 {again}",
                set.weights_blake3
            ));
        }
        problems
    }
}

fn stale(file: &str, built_from: &str, found: &str, again: &str) -> String {
    format!("plan of {file}: built from a file with BLAKE3 {built_from}, found {found}; {again}")
}
