//! Into how many blocks the rows of a head are split when decoding.

/// Blocks of the decode kernel that a multiprocessor holds at once; the kernel's launch bounds.
const RESIDENT: usize = 6;
/// Rows that are worth a block.
pub(super) const SHARE_ROWS: usize = 256;
/// No head has more blocks: the last of them counts in eight bits.
pub(super) const MAX_SPLITS: usize = 128;

/// Blocks per head for `heads` heads of all slots with at most `rows` rows each: the fewest that
/// fill the waves of blocks about as well as any number does.
pub(super) fn decode_splits(multiprocessors: usize, heads: usize, rows: usize) -> usize {
    let capacity = (multiprocessors * RESIDENT).max(1);
    let most = rows.div_ceil(SHARE_ROWS).clamp(1, MAX_SPLITS);
    let filled = |splits: usize| {
        let blocks = heads.max(1) * splits;
        blocks as f64 / (blocks.div_ceil(capacity) * capacity) as f64
    };
    let best = (1..=most).map(filled).fold(0.0, f64::max);
    (1..=most)
        .find(|&splits| filled(splits) >= 0.85 * best)
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_waves_are_not_split() {
        // 132 multiprocessors hold 792 blocks.
        assert_eq!(decode_splits(132, 128 * 16, 4096), 1);
        assert_eq!(decode_splits(132, 792, 1 << 18), 1);
    }

    #[test]
    fn few_heads_are_split_until_they_fill_a_wave() {
        // 43 x 16 of 792.
        assert_eq!(decode_splits(132, 16, 1 << 18), 43);
        // One head cannot fill a wave: as good as the most there may be.
        assert_eq!(decode_splits(132, 1, 1 << 20), 109);
    }

    #[test]
    fn short_caches_are_not_split() {
        assert_eq!(decode_splits(132, 16, 256), 1);
        assert_eq!(decode_splits(132, 16, 257), 2);
        assert_eq!(decode_splits(132, 16, 0), 1);
        assert_eq!(decode_splits(0, 0, 0), 1);
    }
}
