//! Sizes that the kernels and their launches have to agree on, read from the kernels' sources.

/// The value of `constexpr i32 NAME = VALUE;`.
pub(super) fn constant(source: &str, name: &str) -> usize {
    let start = format!("constexpr i32 {name} = ");
    let found = source
        .lines()
        .find_map(|line| line.trim().strip_prefix(&start));
    let value = found.and_then(|rest| rest.strip_suffix(';'));
    match value.map(str::parse) {
        Some(Ok(value)) => value,
        _ => panic!("{name}: expected `{start}NUMBER;`, found {value:?}"),
    }
}
