//! What is compiled from kernels/cuda, and for which GPUs. build.rs includes this file.

/// A `.cu` file of kernels/cuda, which is compiled by itself. Its kernels' names begin with
/// `ratplus_<stem>_`.
#[derive(Clone, Copy, Debug)]
pub struct Unit {
    /// Its name.
    pub file: &'static str,
    /// The only architecture that it is for, one of [`ARCHITECTURES`], as it says in a line
    /// `// Only for sm_<name>.`; all of them otherwise.
    pub only: Option<&'static str>,
    /// Its text.
    pub source: &'static str,
    /// Its code for all architectures of the toolkit, where nvcc was there.
    pub embedded: Option<&'static [u8]>,
}

/// What code is embedded for, as in `sm_90a`.
pub const ARCHITECTURES: [&str; 6] = ["80", "86", "89", "90a", "100", "120"];

/// The virtual architecture whose code the driver can compile for every later GPU. It is also
/// the oldest that the kernels run on.
pub const VIRTUAL_ARCHITECTURE: &str = "80";

impl Unit {
    /// What its kernels' names begin with, but for `ratplus_` and the `_` after it.
    pub fn stem(&self) -> &'static str {
        self.file.trim_end_matches(".cu")
    }

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
