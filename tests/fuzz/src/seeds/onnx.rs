//! Graphs that the guard is given, in every way to write custom nodes.

pub use super::package::Package;
use super::package::package;
use ratplus_graphs::package::Fallback;
use ratplus_graphs::precision::Quantization;
use std::sync::LazyLock;

/// A package in every way.
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
        layout: Default::default(),
        activations: Default::default(),
    };
    let plain = ways.map(|fallback| package(fallback, None));
    let quantized = package(Fallback::None, Some(quantization));
    plain.into_iter().chain([quantized]).collect()
});

/// One graph of a package for each first byte of an input.
pub static GRAPHS: LazyLock<Vec<(usize, usize)>> = LazyLock::new(|| {
    let packages = PACKAGES.iter().enumerate();
    packages
        .flat_map(|(package, found)| (0..found.models.len()).map(move |graph| (package, graph)))
        .collect()
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
    let graphs = GRAPHS.iter().enumerate();
    graphs
        .map(|(mode, &(package, graph))| {
            let (_, model) = &PACKAGES[package].models[graph];
            [&[mode as u8], &model[..]].concat()
        })
        .collect()
}
