//! Graphs that the guard is given, in every way to write custom nodes.

pub use super::package::Package;
use super::package::package;
use ratplus_graphs::manifest::Fallback;
use ratplus_graphs::precision::Quantization;
use std::sync::LazyLock;

/// One package for each first byte of an input.
pub static PACKAGES: LazyLock<Vec<Package>> = LazyLock::new(|| {
    let ways = [
        Fallback::Function,
        Fallback::Inline,
        Fallback::None,
        Fallback::TrtPlugins,
    ];
    let quantization = Quantization {
        bits: 8,
        block_size: 16,
        symmetric: false,
    };
    let plain = ways.map(|fallback| package(fallback, None));
    let quantized = package(Fallback::None, Some(quantization));
    plain.into_iter().chain([quantized]).collect()
});

pub const WORDS: &[&[u8]] = &[
    b"location",
    b"offset",
    b"length",
    b"weights.bin",
    b"../weights.bin",
    b"/proc/self/mem",
    b"*/_ORT_MEM_ADDR_/*",
    b"ai.ratplus",
    b"RecurrenceScan",
    b"DilatedAttention",
    b"com.microsoft",
    b"MatMulNBits",
    b"block_size",
    b"18446744073709551615",
    b"\x70\x01",
    b"\x6a\x00",
];

pub fn seeds() -> Vec<Vec<u8>> {
    let with_mode =
        |(mode, package): (usize, &Package)| [&[mode as u8], &package.model[..]].concat();
    PACKAGES.iter().enumerate().map(with_mode).collect()
}
