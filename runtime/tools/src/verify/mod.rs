//! Proof that a package computes what its model does, on every backend.
//!
//! Every backend takes the golden tokens along every [`Route`]; its logits and taps are compared
//! with the golden file, or, where there is none, with tract in f32 without any rounding. The
//! tolerance comes from [`ratplus_graphs::tolerance`]: a fraction of the largest golden logit in
//! f32; where activations or cache are f16 or bf16, twice the error that tract makes with the
//! same roundings.
//!
//! Weights that are stored in f16, bf16 or block-wise integers are not the golden file's. One row of
//! its own compares tract in f32 on the stored weights with the golden file, and holds the difference
//! to what random noise of the same size in the same weights makes: rounding explains no more.
//! A package of block-wise integers is another model by that; its backends are held to tract in
//! f32 with the same integers, as closely as without them.
//!
//! [`VerifyOptions::tolerances`] of a caller's own take the place of these for the outputs they name; the
//! report has both.

mod choices;
mod compare;
mod curves;
mod diverge;
mod golden;
mod judge;
mod reference;
mod report;
mod route;
mod turn;

use choices::{Chosen, Given};
pub use compare::{Decade, Differences, Worst};
pub use golden::{Golden, GoldenError, GoldenTap};
use ratplus_graphs::none_wrong;
pub use report::{
    Asked, ChoiceRow, Curve, Implementations, Row, STORED_WEIGHTS, Skip, VerifyReport,
};
pub use route::Route;
use turn::{Seen, turns};

use ratplus_graphs::package::Manifest;
use ratplus_graphs::tolerance::OutputTolerance;
use ratplus_runtime::backend::inspection::{self, Exactness, Inspection};
use ratplus_runtime::backend::{BackendError, BackendKind, Session, SessionBuilder};
use ratplus_runtime::engine::Limits;
use ratplus_runtime::package::Package;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

/// What to verify, and how.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct VerifyOptions {
    /// Backends that have to run. Empty: all that are present, the others are reported as skipped.
    pub backends: Vec<BackendKind>,
    /// Chunk lengths. Empty: every static length of the package, and the planner's own plan.
    pub chunks: Vec<usize>,
    /// Number of tokens where there is no golden file.
    pub tokens: usize,
    /// Seed of these tokens.
    pub seed: u64,
    /// In place of the tolerances that come from the package's types, for the outputs they name: `logits`
    /// or a tap of the golden file.
    pub tolerances: Vec<OutputTolerance>,
    /// Where there is no golden file: also compare the intermediate tensors that such files hold.
    pub reference_taps: bool,
    /// Measure differences by position, of logits and of the residual stream after some layers; a further
    /// run of each backend.
    pub curves: bool,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            backends: Vec::new(),
            chunks: Vec::new(),
            tokens: 96,
            seed: 0,
            tolerances: Vec::new(),
            reference_taps: false,
            curves: false,
        }
    }
}

/// Why a verification did not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// Options, golden file and package do not fit together.
    #[error("{}", .0.join("\n  "))]
    Mismatch(Vec<String>),
    /// A backend could not be opened or run.
    #[error("{backend}, {route}: {source}")]
    Backend {
        /// The backend.
        backend: BackendKind,
        /// What it was doing.
        route: String,
        /// Why.
        source: BackendError,
    },
}

/// Runs the whole matrix on sessions that are opened as `sessions` has it. `progress` hears what starts.
///
/// # Errors
/// Something does not fit together, or an engine failed to run; a bad result is no error but a
/// report that did not pass.
pub fn verify(
    sessions: &SessionBuilder<'_>,
    golden: Option<&Golden>,
    options: &VerifyOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<VerifyReport, VerifyError> {
    let package = sessions.package();
    let routes = check(package, golden, options)?;
    let mut verifier = Verifier {
        sessions,
        package,
        options,
        progress,
        naive: BTreeMap::new(),
        curves: Vec::new(),
        choices: Vec::new(),
        given: None,
    };
    let (mut rows, mut implementations, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
    let given = golden.is_some();
    let (golden, golden_source) = match golden {
        Some(file) => match verifier.stored_weights(file, &mut rows)? {
            Some(exact) if package.manifest().precision.quantization.is_some() => (
                Cow::Owned(exact),
                "tract in f32 with the same integers, on the golden file's tokens",
            ),
            _ => (Cow::Borrowed(file), "golden file"),
        },
        None => (
            Cow::Owned(verifier.reference_golden()?),
            "tract in f32 without rounding",
        ),
    };
    if let Cow::Owned(exact) = &golden {
        let wrong = exact.not_finite().into_iter().map(|what| {
            format!("the reference, {golden_source}: {what}; the model itself leaves the range of f32 there")
        });
        none_wrong(wrong.collect()).map_err(VerifyError::Mismatch)?;
    }
    let layers = match options.curves {
        true => Some(verifier.layers(&golden)?),
        false => None,
    };
    let explicit = !options.backends.is_empty();
    let mut backends = if explicit {
        options.backends.clone()
    } else {
        BackendKind::ALL.to_vec()
    };
    // The reference first: in low precision it sets the tolerance.
    backends.sort_by_key(|&backend| (backend != BackendKind::Tract, backend));
    backends.dedup();
    for backend in backends {
        (verifier.progress)(&format!("{backend}: opening"));
        let chooses = verifier.sees_choices(backend);
        let taps = if chooses {
            choices::taps(&package.manifest().model, 0)
        } else {
            Vec::new()
        };
        match verifier.open(backend, verifier.graph_names(&taps), Exactness::AsStored) {
            Ok(session) => {
                let seen = verifier.verify_backend(session, &golden, &routes, &mut rows)?;
                implementations.push(seen);
                if let Some(layers) = &layers {
                    verifier.layer_curves(backend, layers, &routes)?;
                }
            }
            Err(VerifyError::Backend {
                source: source @ BackendError::Unavailable { .. },
                ..
            }) if !explicit => skipped.push(Skip::new(backend, &source)),
            Err(error) => return Err(error),
        }
    }
    let manifest = package.manifest();
    Ok(VerifyReport {
        tool: concat!("ratplus ", env!("CARGO_PKG_VERSION")).into(),
        dtype: manifest.dtype,
        cache_dtype: manifest.shape().cache_dtype,
        types: manifest.types(),
        fallback: manifest.fallback,
        batch: manifest.batch,
        golden: golden_source.into(),
        sequences: golden.batch(),
        seq_len: golden.seq_len(),
        largest_logit: golden.largest_logit(),
        passed: report::passed(&rows, &implementations)
            && verifier.choices.iter().all(|row| row.passed),
        rows,
        implementations,
        skipped,
        curves: verifier.curves,
        choices: verifier.choices,
        reference: (!given).then(|| golden.into_owned()),
    })
}

/// Checks everything that can be known before an engine runs, and picks the routes.
fn check(
    package: &Package,
    golden: Option<&Golden>,
    options: &VerifyOptions,
) -> Result<Vec<Route>, VerifyError> {
    let manifest = package.manifest();
    let Limits { lengths, .. } = manifest.into();
    let mut errors = Vec::new();
    for chunk in &options.chunks {
        if !lengths.contains(chunk) {
            errors.push(format!(
                "`chunks`: {chunk} is no static length of this package; it has {lengths:?}; export with \
                 `prefill_lengths: {chunk}` to get it"
            ));
        }
    }
    let total = golden.map_or(options.tokens, Golden::seq_len);
    if total == 0 || total > manifest.max_seq_len {
        let source = if golden.is_some() {
            "`golden`: tokens"
        } else {
            "`tokens`"
        };
        let most = manifest.max_seq_len;
        let remedy = if total > most {
            "; export with a larger `max_seq_len`"
        } else {
            ""
        };
        errors.push(format!(
            "{source}: expected sequences of 1 to {most}, found {total}{remedy}"
        ));
    }
    if let Some(golden) = golden {
        let vocab = manifest.model.vocab_size;
        if golden.vocab_size != vocab {
            errors.push(format!(
                "`golden`: logits: expected vocabulary {vocab}, found {}",
                golden.vocab_size
            ));
        }
        let outside = golden
            .tokens
            .iter()
            .flatten()
            .find(|&&t| t < 0 || t >= vocab as i64);
        if let Some(token) = outside {
            errors.push(format!(
                "`golden`: tokens: expected 0 to {}, found {token}",
                vocab - 1
            ));
        }
        let wrong = golden.not_finite().into_iter();
        errors.extend(wrong.map(|what| format!("`golden`: {what}")));
        for tap in &golden.taps {
            if tap
                .layer
                .is_some_and(|layer| layer >= manifest.model.num_layers)
            {
                errors.push(format!(
                    "`golden`: {}: the package has {} layers",
                    tap.name, manifest.model.num_layers
                ));
            }
            let expected = tap.tap.width(&manifest.model);
            if tap.width != expected {
                errors.push(format!(
                    "`golden`: {}: expected {expected} channels, found {}",
                    tap.name, tap.width
                ));
            }
        }
    }
    let taps: Vec<_> = match golden {
        Some(golden) => golden.taps.iter().map(|tap| tap.name.clone()).collect(),
        None if options.reference_taps => {
            let taps = GoldenTap::usual(&manifest.model).into_iter();
            taps.map(|tap| tap.name).collect()
        }
        None => Vec::new(),
    };
    for OutputTolerance { output, .. } in &options.tolerances {
        if output != "logits" && !taps.contains(output) {
            let known = [&["logits".to_owned()], &taps[..]].concat().join(", ");
            errors.push(format!(
                "`tolerances`: expected one of {known}, found {output}"
            ));
        }
    }
    none_wrong(errors).map_err(VerifyError::Mismatch)?;
    let chunks = if options.chunks.is_empty() {
        &lengths
    } else {
        &options.chunks
    };
    let mut routes: Vec<_> = chunks
        .iter()
        .flat_map(|&chunk| Route::of_chunk(chunk))
        .collect();
    if !two_decode_engines(manifest) {
        routes.retain(|&route| route != Route::DecodeApart);
    }
    if options.chunks.is_empty() {
        routes.push(Route::Planned);
    }
    Ok(routes)
}

/// Whether single tokens have an engine of one slot and one of all.
fn two_decode_engines(manifest: &Manifest) -> bool {
    let engines = manifest.engines.iter();
    engines.filter(|engine| engine.seq_len == 1).count() > 1
}

struct Verifier<'a> {
    sessions: &'a SessionBuilder<'a>,
    package: &'a Package,
    options: &'a VerifyOptions,
    progress: &'a mut dyn FnMut(&str),
    /// Largest error of tract with the package's roundings, by tensor.
    naive: BTreeMap<String, f64>,
    curves: Vec<Curve>,
    /// How the backends' choices of blocks stand to the reference's.
    choices: Vec<ChoiceRow>,
    /// What the reference makes of the last choices.
    given: Option<Rc<Given>>,
}

impl Verifier<'_> {
    fn low_precision(&self) -> bool {
        let manifest = self.package.manifest();
        !manifest.shape().is_f32() || manifest.precision.rounds_rows()
    }

    fn open(
        &self,
        backend: BackendKind,
        taps: Vec<String>,
        how: Exactness,
    ) -> Result<Session, VerifyError> {
        let inspection = Inspection {
            extra_outputs: taps,
            exactness: how,
            ..Inspection::default()
        };
        let mut sessions = self.sessions.clone().inspect(inspection);
        // Small steps of several sessions, beside whatever else a test machine runs.
        sessions.ort.passive_wait = true;
        let opened = sessions.open(backend);
        opened.map_err(|source| VerifyError::Backend {
            backend,
            route: "opening".into(),
            source,
        })
    }

    /// Whether the model's queries choose blocks, and it can be seen which.
    fn sees_choices(&self, backend: BackendKind) -> bool {
        let spec = &self.package.manifest().model;
        !backend.runs_plans() && !choices::choosing(spec).is_empty()
    }

    /// Names of taps in the graph.
    fn graph_names(&self, taps: &[GoldenTap]) -> Vec<String> {
        let layers = self.package.manifest().model.num_layers;
        taps.iter().map(|tap| tap.graph_name(layers)).collect()
    }

    /// Compares logits along every route, then taps; what ran.
    fn verify_backend(
        &mut self,
        mut session: Session,
        golden: &Golden,
        routes: &[Route],
        rows: &mut Vec<Row>,
    ) -> Result<Implementations, VerifyError> {
        let backend = session.backend();
        for &route in routes {
            (self.progress)(&format!("{backend}: {route}"));
            if self.sees_choices(backend) {
                let mut choices = std::mem::take(&mut self.choices);
                let row = self.verify_choices(&mut session, golden, route, &mut choices)?;
                self.choices = choices;
                rows.push(row);
                continue;
            }
            let started = Instant::now();
            let mut differences = Differences::default();
            self.drive(&mut session, golden, route, None, &mut |seen| {
                seen.each_logits(&mut |sequence, position, row| {
                    if let Some(expected) = golden.logits_at(sequence, position) {
                        differences.add(sequence, position, expected, row);
                    }
                });
            })?;
            let seconds = started.elapsed().as_secs_f64();
            if self.options.curves {
                self.logits_curve(backend, &differences.by_position);
            }
            let scale = golden.largest_logit();
            let mut row = self.judge(
                backend,
                &route.to_string(),
                "logits",
                &differences,
                scale,
                seconds,
            )?;
            self.explain(&mut row, backend, golden, route, None)?;
            rows.push(row);
        }
        let implementations = Implementations::of(backend, &session);
        drop(session);
        self.verify_taps(backend, golden, routes, rows)?;
        Ok(implementations)
    }

    /// Adds to a row that failed where the backend leaves the reference first.
    fn explain(
        &mut self,
        row: &mut Row,
        backend: BackendKind,
        golden: &Golden,
        route: Route,
        chosen: Option<&Rc<Chosen>>,
    ) -> Result<(), VerifyError> {
        if !row.passed && backend != BackendKind::Tract {
            (self.progress)(&format!(
                "{backend}: {route}: looking for the first difference"
            ));
            row.divergence = Some(self.first_divergence(backend, golden, route, chosen)?);
        }
        Ok(())
    }

    /// Compares the golden file's taps along the first route.
    fn verify_taps(
        &mut self,
        backend: BackendKind,
        golden: &Golden,
        routes: &[Route],
        rows: &mut Vec<Row>,
    ) -> Result<(), VerifyError> {
        let Some(route) = shown_route(routes) else {
            return Ok(());
        };
        let taps = &golden.taps;
        if taps.is_empty() {
            return Ok(());
        }
        if backend.runs_plans() {
            // Plans have no such outputs: rows that compare nothing say so.
            for tap in taps {
                let none = Differences::default();
                let row = self.judge(backend, &route.to_string(), &tap.name, &none, 0.0, 0.0)?;
                rows.push(row);
            }
            return Ok(());
        }
        if self.sees_choices(backend) {
            return self.verify_taps_of_choices(backend, golden, route, rows);
        }
        let started = Instant::now();
        let differences = self.tap_differences(backend, golden, route)?;
        let seconds = started.elapsed().as_secs_f64();
        for (tap, differences) in taps.iter().zip(&differences) {
            let scale = tap.largest();
            rows.push(self.judge(
                backend,
                &route.to_string(),
                &tap.name,
                differences,
                scale,
                seconds,
            )?);
        }
        Ok(())
    }

    /// How far the backend's taps are from the golden file's along `route`, in the file's order.
    fn tap_differences(
        &mut self,
        backend: BackendKind,
        golden: &Golden,
        route: Route,
    ) -> Result<Vec<Differences>, VerifyError> {
        (self.progress)(&format!("{backend}: taps, {route}"));
        let layers = self.package.manifest().model.num_layers;
        let taps = &golden.taps;
        let names: Vec<_> = taps.iter().map(|tap| tap.graph_name(layers)).collect();
        let mut session = self.open(backend, names.clone(), Exactness::AsStored)?;
        let mut differences = vec![Differences::default(); taps.len()];
        let total = golden.seq_len();
        self.drive(&mut session, golden, route, None, &mut |seen| {
            for ((tap, name), differences) in taps.iter().zip(&names).zip(&mut differences) {
                for (sequence, position, row) in seen.tap(name, tap.width) {
                    let start = (sequence * total + position) * tap.width;
                    let expected = &tap.values[start..start + tap.width];
                    differences.add(sequence, position, expected, &row);
                }
            }
        })?;
        Ok(differences)
    }

    /// Takes all sequences along a route, in groups of the package's batch; with `chosen` a reference takes these
    /// blocks in place of its own.
    fn drive(
        &self,
        session: &mut Session,
        golden: &Golden,
        route: Route,
        chosen: Option<&Rc<Chosen>>,
        visit: &mut dyn FnMut(&Seen<'_>),
    ) -> Result<(), VerifyError> {
        for turn in turns(session, golden, route)? {
            let mut run = || -> Result<(), VerifyError> {
                visit(&turn.run(session, golden, route)?);
                Ok(())
            };
            match chosen {
                None => run()?,
                Some(chosen) => inspection::with_choices(turn.choices(chosen), run)?,
            }
        }
        Ok(())
    }
}

/// The route that taps are compared along: the longest prefill, which shows most of a chunk's work.
fn shown_route(routes: &[Route]) -> Option<Route> {
    let prefills = |route: &&Route| matches!(route, Route::Prefill(_));
    routes
        .iter()
        .rev()
        .find(prefills)
        .or(routes.first())
        .copied()
}
