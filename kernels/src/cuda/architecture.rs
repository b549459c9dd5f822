//! Which code runs on which GPU.

use super::units::{ARCHITECTURES, UNITS, Unit, VIRTUAL_ARCHITECTURE};

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

/// The unit that has a kernel.
pub(super) fn unit_of(kernel: &str) -> Option<usize> {
    let length = |unit: &Unit| {
        let prefixes = unit.prefixes.iter();
        let matching = prefixes.filter(|prefix| kernel.starts_with(**prefix));
        matching.map(|prefix| prefix.len()).max()
    };
    let units = UNITS.iter().enumerate();
    let matching = units.filter_map(|(index, unit)| Some((length(unit)?, index)));
    matching.max().map(|(_, index)| index)
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
