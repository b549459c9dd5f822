//! What the manifest says about engine plans that were built from a package's ONNX files.

use super::{EVERY_ENGINE, Engine, FileInfo};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Folder of a package that holds its plans, a folder for each backend.
pub const PLANS_FOLDER: &str = "plans";
/// Names in a backend's folder that start so are of a build under way, or of one that was
/// interrupted.
pub const BUILDING_PREFIX: &str = ".building-";
/// Backends that run plans.
pub const PLAN_BACKENDS: [&str; 2] = ["tensorrt", "tensorrt-rtx"];

/// GPUs that a plan is for: `8.6` is that compute capability, `12.0+` that and later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ComputeTarget {
    /// Major and minor number.
    pub capability: (u32, u32),
    /// Whether later ones run it too.
    pub and_later: bool,
}

impl ComputeTarget {
    /// One compute capability.
    pub fn only(capability: (u32, u32)) -> Self {
        Self {
            capability,
            and_later: false,
        }
    }

    /// Whether a GPU of that compute capability runs the plan.
    pub fn covers(&self, capability: (u32, u32)) -> bool {
        capability == self.capability || self.and_later && capability > self.capability
    }
}

impl fmt::Display for ComputeTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability;
        let later = if self.and_later { "+" } else { "" };
        write!(f, "{major}.{minor}{later}")
    }
}

impl From<ComputeTarget> for String {
    fn from(target: ComputeTarget) -> Self {
        target.to_string()
    }
}

impl FromStr for ComputeTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix('+').unwrap_or(text);
        let parsed = number.split_once('.').and_then(|(major, minor)| {
            let capability = (major.parse().ok()?, minor.parse().ok()?);
            Some(Self {
                capability,
                and_later: number != text,
            })
        });
        // Only as it is written: `08.6` names nothing.
        parsed
            .filter(|target| target.to_string() == text)
            .ok_or_else(|| {
                format!("expected a compute capability such as 8.6 or 12.0+, found `{text}`")
            })
    }
}

impl TryFrom<String> for ComputeTarget {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// The plan of one engine, or of several over one copy of the weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Names of the engines: each is the optimization profile of its position.
    pub engines: Vec<String>,
    /// File in the folder of the backend.
    pub file: String,
    /// Size and checksum of that file.
    #[serde(flatten)]
    pub info: FileInfo,
    /// BLAKE3 of the ONNX file that it was built from.
    pub onnx_blake3: String,
}

/// The plans of one backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanSet {
    /// Version of the library that built them, and that alone runs them, unless they say more.
    pub library: String,
    /// Whether later libraries of the same major version run them, with code that is in the plans.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub version_compatible: bool,
    /// Whether they are without those weights that can be put in when they are opened.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stripped: bool,
    /// The program that wrote them.
    pub tool: String,
    /// GPUs that they are for.
    pub compute_capabilities: Vec<ComputeTarget>,
    /// BLAKE3 of the weights that they were built with.
    pub weights_blake3: String,
    /// Engines in the manifest's order.
    pub plans: Vec<Plan>,
    /// What was measured as they were built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timing_cache: Option<TimingCache>,
}

/// What TensorRT has measured, which shortens later builds by the same library on the same kind of GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimingCache {
    /// File in the folder of the backend.
    pub file: String,
    /// Size and checksum of that file.
    #[serde(flatten)]
    pub info: FileInfo,
}

/// Folder of a backend's plans, from the package's on.
pub fn plans_folder(backend: &str) -> String {
    format!("{PLANS_FOLDER}/{backend}")
}

/// Name of a plan: the content's checksum in it, so that a new build never writes over an old one.
pub fn plan_file<E: AsRef<str>>(engines: &[E], info: &FileInfo) -> String {
    let name = match engines {
        [one] => one.as_ref(),
        _ => EVERY_ENGINE,
    };
    format!("{name}-{}.plan", checksum_start(info))
}

/// Name of a timing cache, as [`plan_file`] has it.
pub fn timing_cache_file(info: &FileInfo) -> String {
    format!("{TIMING_PREFIX}{}.cache", checksum_start(info))
}

const TIMING_PREFIX: &str = "timing-";

fn checksum_start(info: &FileInfo) -> &str {
    info.blake3.get(..16).unwrap_or(&info.blake3)
}

/// Name of what a runtime has compiled of a plan, beside it.
pub fn plan_cache(plan: &str) -> String {
    format!("{plan}.cache")
}

/// Whether a file's name is one that [`plan_file`], [`plan_cache`] or [`timing_cache_file`] gives.
pub fn is_plan_file(name: &str) -> bool {
    let timing = name.strip_prefix(TIMING_PREFIX);
    if let Some(start) = timing.and_then(|name| name.strip_suffix(".cache")) {
        return start.len() == 16 && is_hexadecimal(start);
    }
    let engine = name
        .strip_suffix(".cache")
        .unwrap_or(name)
        .strip_suffix(".plan")
        .and_then(|name| name.rsplit_once('-'));
    engine.is_some_and(|(engine, start)| {
        let name = engine
            .rsplit_once("_b")
            .filter(|(_, batch)| is_number(batch));
        let name = name.map_or(engine, |(name, _)| name);
        let known = ["decode", EVERY_ENGINE].contains(&name)
            || name.strip_prefix("prefill_").is_some_and(is_number);
        known && start.len() == 16 && is_hexadecimal(start)
    })
}

fn is_number(text: &str) -> bool {
    text.parse::<usize>().is_ok()
}

fn is_hexadecimal(text: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.bytes().all(digit)
}

fn is_checksum(text: &str) -> bool {
    text.len() == 64 && is_hexadecimal(text)
}

impl PlanSet {
    /// Everything that is wrong with it by itself and against the manifest's engines.
    pub fn problems(&self, backend: &str, engines: &[Engine]) -> Vec<String> {
        let mut problems = Vec::new();
        let mut wrong = |what: String| problems.push(format!("plans: {backend}: {what}"));
        if !PLAN_BACKENDS.contains(&backend) {
            wrong(format!("expected one of {}", PLAN_BACKENDS.join(", ")));
        }
        let checksums = self.plans.iter().flat_map(|plan| {
            [
                (plan.file.as_str(), "blake3", &plan.info.blake3),
                (&plan.file, "onnx_blake3", &plan.onnx_blake3),
            ]
        });
        let timing = self.timing_cache.iter();
        let timing = timing.map(|cache| (cache.file.as_str(), "blake3", &cache.info.blake3));
        let checksums = checksums
            .chain([("the set", "weights_blake3", &self.weights_blake3)])
            .chain(timing);
        for (of, field, text) in checksums {
            if !is_checksum(text) {
                wrong(format!(
                    "{of}: {field}: expected 64 hexadecimal digits, found `{text}`"
                ));
            }
        }
        for plan in &self.plans {
            let expected = plan_file(&plan.engines, &plan.info);
            if plan.file != expected {
                wrong(format!(
                    "expected the file `{expected}`, found `{}`",
                    plan.file
                ));
            }
        }
        if let Some(TimingCache { file, info }) = &self.timing_cache {
            let expected = timing_cache_file(info);
            if *file != expected {
                wrong(format!("expected the file `{expected}`, found `{file}`"));
            }
        }
        let wanted: Vec<_> = engines.iter().map(|engine| &*engine.name).collect();
        let found = self.plans.iter().flat_map(|plan| &plan.engines);
        let found: Vec<_> = found.map(String::as_str).collect();
        if wanted != found {
            wrong(format!(
                "expected plans for {}, found {}",
                wanted.join(", "),
                found.join(", ")
            ));
        }
        problems
    }

    /// Which plan holds an engine, and its profile in it.
    pub fn place(&self, engine: &str) -> Option<(usize, usize)> {
        self.plans.iter().enumerate().find_map(|(plan, held)| {
            let profile = held.engines.iter().position(|name| name == engine);
            profile.map(|profile| (plan, profile))
        })
    }

    /// Whether a library of that version runs the plans.
    pub fn runs_with(&self, library: &str) -> bool {
        let numbers = |version: &str| -> Vec<u64> {
            version
                .split('.')
                .map(|part| part.parse().unwrap_or(0))
                .collect()
        };
        let (own, other) = (numbers(&self.library), numbers(library));
        self.library == library
            || self.version_compatible && own.first() == other.first() && own <= other
    }

    /// Whether a GPU of that compute capability runs the plans.
    pub fn covers(&self, capability: (u32, u32)) -> bool {
        let mut targets = self.compute_capabilities.iter();
        targets.any(|target| target.covers(capability))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::EngineSize;
    use std::collections::BTreeMap;

    #[test]
    fn compute_targets_are_read_back() {
        for text in ["7.5", "8.0", "12.0+"] {
            assert_eq!(text.parse::<ComputeTarget>().unwrap().to_string(), text);
        }
        for text in ["", "8", "8.", "08.6", "8.6++", "+8.6", "8.6 ", "a.b"] {
            let error = text.parse::<ComputeTarget>().unwrap_err();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
        let blackwell: ComputeTarget = "12.0+".parse().unwrap();
        assert!(blackwell.covers((12, 0)) && blackwell.covers((12, 1)));
        assert!(!blackwell.covers((9, 0)));
        let ampere: ComputeTarget = "8.6".parse().unwrap();
        assert!(ampere.covers((8, 6)) && !ampere.covers((8, 9)));
    }

    fn set() -> (PlanSet, Vec<Engine>) {
        let info = FileInfo {
            bytes: 10,
            blake3: "0123456789abcdef".repeat(4),
        };
        let plan = |engine: &str| Plan {
            engines: vec![engine.into()],
            file: plan_file(&[engine], &info),
            info: info.clone(),
            onnx_blake3: info.blake3.clone(),
        };
        let set = PlanSet {
            library: "1.7.1.116".into(),
            version_compatible: false,
            stripped: false,
            tool: "ratplus 0".into(),
            compute_capabilities: vec![ComputeTarget::only((8, 6))],
            weights_blake3: info.blake3.clone(),
            plans: vec![plan("decode"), plan("prefill_16")],
            timing_cache: Some(TimingCache {
                file: timing_cache_file(&info),
                info: info.clone(),
            }),
        };
        let engine = |seq_len| Engine {
            name: EngineSize { batch: 1, seq_len }.name(),
            batch: 1,
            seq_len,
            files: BTreeMap::new(),
            inputs: vec![],
            outputs: vec![],
        };
        (set, vec![engine(1), engine(16)])
    }

    #[test]
    fn every_contradiction_is_named() {
        let (good, engines) = set();
        assert_eq!(good.problems("tensorrt-rtx", &engines), [""; 0]);
        let bad = |change: &dyn Fn(&mut PlanSet), part: &str| {
            let (mut set, engines) = set();
            change(&mut set);
            let problems = set.problems("tensorrt", &engines).join("\n");
            assert!(problems.contains(part), "{problems}");
        };
        bad(
            &|set| set.plans[1].file = "../decode.plan".into(),
            "`../decode.plan`",
        );
        bad(
            &|set| set.plans[0].info.blake3.make_ascii_uppercase(),
            "decode-",
        );
        bad(&|set| set.plans[0].onnx_blake3.clear(), "onnx_blake3");
        bad(&|set| set.weights_blake3.push('0'), "weights_blake3");
        let timing =
            |set: &mut PlanSet, file: &str| set.timing_cache.as_mut().unwrap().file = file.into();
        bad(&|set| timing(set, "../timing.cache"), "`../timing.cache`");
        bad(
            &|set| drop(set.plans.pop()),
            "for decode, prefill_16, found decode",
        );
        bad(&|set| set.plans.swap(0, 1), "found prefill_16, decode");
        bad(&|set| set.plans[1].engines.push("decode".into()), "`model-");
        bad(&|set| set.plans[1].engines.clear(), "found decode");
        assert!(good.problems("ort-cpu", &engines)[0].contains("tensorrt-rtx"));
    }

    #[test]
    fn a_plan_may_hold_every_engine_a_profile_each() {
        let (mut set, engines) = set();
        let names = ["decode", "prefill_16"].map(str::to_owned).to_vec();
        set.plans.truncate(1);
        set.plans[0].file = plan_file(&names, &set.plans[0].info);
        set.plans[0].engines = names;
        assert_eq!(set.problems("tensorrt", &engines), [""; 0]);
        assert_eq!(set.plans[0].file, "model-0123456789abcdef.plan");
        assert!(is_plan_file(&set.plans[0].file));
        assert_eq!(set.place("prefill_16"), Some((0, 1)));
        assert_eq!(set.place("prefill_4"), None);
    }

    #[test]
    fn later_libraries_of_a_major_version_run_what_says_so() {
        let (mut set, _) = set();
        set.library = "11.4.0.9".into();
        let runs = |set: &PlanSet| {
            [
                "11.4.0.9",
                "11.4.0.10",
                "11.10.0.1",
                "11.3.9.9",
                "12.0.0.0",
                "",
            ]
            .map(|version| set.runs_with(version))
        };
        assert_eq!(runs(&set), [true, false, false, false, false, false]);
        set.version_compatible = true;
        assert_eq!(runs(&set), [true, true, true, false, false, false]);
    }

    #[test]
    fn names_of_plans_are_told_from_others() {
        let (set, _) = set();
        assert!(set.plans.iter().all(|plan| is_plan_file(&plan.file)));
        assert!(is_plan_file("decode_b8-0123456789abcdef.plan"));
        assert!(is_plan_file(&plan_cache("decode-0123456789abcdef.plan")));
        assert!(is_plan_file("timing-0123456789abcdef.cache"));
        for name in [
            "timing-0123456789abcdef",
            "timing-.cache",
            "decode.plan",
            "decode.cache",
            "decode-0123456789abcde.plan",
            "prefill_x-0123456789abcdef.plan",
            "decode_bx-0123456789abcdef.plan",
        ] {
            assert!(!is_plan_file(name), "{name}");
        }
    }

    #[test]
    fn a_set_is_read_back() {
        let (mut set, _) = set();
        let json = serde_json::to_string(&set).unwrap();
        assert!(json.contains("\"8.6\""), "{json}");
        assert!(!json.contains("stripped"), "{json}");
        assert_eq!(serde_json::from_str::<PlanSet>(&json).unwrap(), set);
        set.stripped = true;
        let json = serde_json::to_string(&set).unwrap();
        assert_eq!(serde_json::from_str::<PlanSet>(&json).unwrap(), set);
    }
}
