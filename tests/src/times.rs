/// `count` as often as RATPLUS_TIMES says, once without it: how many times CI's work long tests do.
///
/// # Panics
/// RATPLUS_TIMES is no whole number from 1 on.
pub fn times(count: usize) -> usize {
    let Ok(text) = std::env::var("RATPLUS_TIMES") else {
        return count;
    };
    let factor = text.parse().ok().filter(|&factor| factor > 0);
    let factor: usize = factor
        .unwrap_or_else(|| panic!("RATPLUS_TIMES: expected a number from 1 on, found `{text}`"));
    count * factor
}
