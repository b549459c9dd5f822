//! What is compiled from kernels/cuda, and for which GPUs. build.rs includes this file.

/// A file that is compiled by itself.
#[derive(Debug)]
pub struct Unit {
    /// Its name in kernels/cuda.
    pub file: &'static str,
    /// What its kernels' names begin with. Where several units match, the longest one counts.
    pub prefixes: &'static [&'static str],
    /// The only architecture that it is for, one of [`ARCHITECTURES`]; all of them otherwise.
    pub only: Option<&'static str>,
}

/// Every unit.
pub const UNITS: &[Unit] = &[
    unit("scan.cu", &["ratplus_scan_"]),
    unit(
        "attention_update.cu",
        &["ratplus_attention_keep_", "ratplus_attention_ring_"],
    ),
    unit("attention_decode.cu", &["ratplus_attention_decode_"]),
    unit("attention_prefill.cu", &["ratplus_attention_prefill_"]),
    unit("attention_any.cu", &["ratplus_attention_any_"]),
    Unit {
        file: "attention_hopper.cu",
        prefixes: &["ratplus_attention_hopper_"],
        only: Some("90a"),
    },
];

const fn unit(file: &'static str, prefixes: &'static [&'static str]) -> Unit {
    Unit {
        file,
        prefixes,
        only: None,
    }
}

/// What code is embedded for, as in `sm_90a`.
pub const ARCHITECTURES: [&str; 6] = ["80", "86", "89", "90a", "100", "120"];

/// The virtual architecture whose code the driver can compile for every later GPU. It is also
/// the oldest that the kernels run on.
pub const VIRTUAL_ARCHITECTURE: &str = "80";

impl Unit {
    /// Those of `known` that this unit is for.
    pub fn architectures<'a>(&self, known: &[&'a str]) -> Vec<&'a str> {
        let wanted = |name: &&str| self.only.is_none_or(|only| only == *name);
        known.iter().copied().filter(wanted).collect()
    }

    /// Whether it has a form that the driver can compile for later GPUs.
    pub fn is_virtual(&self) -> bool {
        self.only.is_none()
    }
}
