//! Which code runs on which GPU.

use super::sources::UNITS;
use super::units::{ARCHITECTURES, Unit, VIRTUAL_ARCHITECTURE};

/// Major and minor number of a compute capability.
pub(super) type Capability = (u32, u32);

/// `8.6`, as NVIDIA writes it.
pub(super) fn capability_text((major, minor): Capability) -> String {
    format!("{major}.{minor}")
}

/// `86` for 8.6, `103` for 10.3.
fn number((major, minor): Capability) -> u32 {
    10 * major + minor
}

/// The capability in `sm_<name>`, and whether its code runs on that capability alone.
fn parse(name: &str) -> (Capability, bool) {
    let digits = name.trim_end_matches('a');
    let number: u32 = digits.parse().unwrap_or(0);
    ((number / 10, number % 10), digits.len() < name.len())
}

/// Whether code for `sm_<name>` runs on a device: within a major number it runs on later ones.
fn runs_on(name: &str, device: Capability) -> bool {
    match parse(name) {
        (code, true) => code == device,
        (code, false) => code.0 == device.0 && code.1 <= device.1,
    }
}

/// The unit that has a kernel: of those whose names match, the longest.
pub(super) fn unit_of(kernel: &str) -> Option<usize> {
    let name = kernel.strip_prefix("ratplus_")?;
    let has = |unit: &Unit| {
        let rest = name.strip_prefix(unit.stem());
        rest.is_some_and(|rest| rest.starts_with('_'))
    };
    let units = UNITS.iter().enumerate().filter(|(_, unit)| has(unit));
    let longest = units.max_by_key(|(_, unit)| unit.stem().len());
    longest.map(|(index, _)| index)
}

/// What a unit needs that the device does not have, if anything.
pub(super) fn lacking(unit: &Unit, device: Capability) -> Option<String> {
    match unit.only.map(parse) {
        Some((only, _)) => (only != device).then(|| capability_text(only)),
        None => {
            let (oldest, _) = parse(VIRTUAL_ARCHITECTURE);
            (device < oldest).then(|| format!("{} or newer", capability_text(oldest)))
        }
    }
}

/// Whether code that was compiled for `known` holds something for the device.
pub(super) fn covers(unit: &Unit, known: &[&str], device: Capability) -> bool {
    let exact = unit
        .architectures(known)
        .iter()
        .any(|name| runs_on(name, device));
    exact || (unit.is_virtual() && device >= parse(VIRTUAL_ARCHITECTURE).0)
}

/// What a compiler is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Machine code for `sm_<name>`.
    Real(String),
    /// Code for `compute_<name>`, which the driver compiles on.
    Virtual(String),
}

impl Target {
    /// The best that a compiler which knows `supported` (86 for 8.6) makes for the device.
    pub fn choose(supported: &[u32], device: Capability) -> Option<Self> {
        let wanted = number(device);
        if supported.contains(&wanted) {
            let own = ARCHITECTURES.iter().find(|name| parse(name).0 == device);
            let name = own.map_or_else(|| wanted.to_string(), |name| (*name).to_owned());
            return Some(Self::Real(name));
        }
        let older = supported.iter().copied().filter(|&known| known < wanted);
        let nearest = older.max()?;
        let name = nearest.to_string();
        Some(match nearest / 10 == device.0 {
            true => Self::Real(name),
            false => Self::Virtual(name),
        })
    }

    /// As the compiler's option wants it.
    pub fn name(&self) -> String {
        match self {
            Self::Real(name) => format!("sm_{name}"),
            Self::Virtual(name) => format!("compute_{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Unit = Unit {
        file: "any.cu",
        only: None,
        source: "",
        embedded: None,
    };
    const HOPPER: Unit = Unit {
        file: "hopper.cu",
        only: Some("90a"),
        ..ANY
    };

    #[test]
    fn code_runs_on_later_devices_of_its_major_number() {
        for (name, device, runs) in [
            ("80", (8, 0), true),
            ("80", (8, 9), true),
            ("86", (8, 0), false),
            ("80", (9, 0), false),
            ("90a", (9, 0), true),
            ("100", (10, 0), true),
            ("100", (10, 3), true),
            ("100", (11, 0), false),
            ("120", (12, 1), true),
        ] {
            assert_eq!(runs_on(name, device), runs, "{name} on {device:?}");
        }
    }

    #[test]
    fn units_say_what_they_need() {
        assert_eq!(lacking(&ANY, (8, 0)), None);
        assert_eq!(lacking(&ANY, (7, 5)).as_deref(), Some("8.0 or newer"));
        assert_eq!(lacking(&HOPPER, (9, 0)), None);
        assert_eq!(lacking(&HOPPER, (10, 0)).as_deref(), Some("9.0"));
    }

    #[test]
    fn virtual_code_covers_what_comes_later() {
        assert!(covers(&ANY, &ARCHITECTURES, (13, 0)));
        assert!(!covers(&ANY, &ARCHITECTURES, (7, 5)));
        assert!(covers(&HOPPER, &ARCHITECTURES, (9, 0)));
        assert!(!covers(&HOPPER, &["80"], (9, 0)));
        assert!(!covers(&HOPPER, &ARCHITECTURES, (10, 0)));
    }

    #[test]
    fn the_target_is_the_nearest_that_runs() {
        let real = |name: &str| Some(Target::Real(name.into()));
        let known = [75, 80, 86, 89, 90, 100, 120];
        assert_eq!(Target::choose(&known, (9, 0)), real("90a"));
        assert_eq!(Target::choose(&known, (8, 6)), real("86"));
        assert_eq!(Target::choose(&known, (8, 7)), real("86"));
        assert_eq!(Target::choose(&known, (10, 3)), real("100"));
        let old = [80, 86, 89, 90];
        let later = Some(Target::Virtual("90".into()));
        assert_eq!(Target::choose(&old, (12, 0)), later);
        assert_eq!(Target::choose(&old, (7, 5)), None);
    }

    #[test]
    fn every_architecture_is_its_own_target() {
        let known: Vec<u32> = ARCHITECTURES
            .iter()
            .map(|name| number(parse(name).0))
            .collect();
        for name in ARCHITECTURES {
            let chosen = Target::choose(&known, parse(name).0);
            assert_eq!(chosen, Some(Target::Real(name.into())));
        }
    }

    #[test]
    fn kernels_belong_to_one_unit() {
        for (index, unit) in UNITS.iter().enumerate() {
            let kernel = format!("ratplus_{}_bf16", unit.stem());
            assert_eq!(unit_of(&kernel), Some(index), "{kernel}");
        }
        assert_eq!(unit_of("ratplus_no_such_kernel"), None);
    }
}
