//! The lengths that every operator is given.

/// Why a slot's lengths cannot be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "slot {slot}: past_length {past_length} and seq_length {seq_length} do not fit: seq_length must be \
     0 to {seq_len}, and past_length 0 or more with their sum at most {max_seq_len}"
)]
pub struct LengthError {
    /// Index in the batch.
    pub slot: usize,
    /// What was given.
    pub past_length: i64,
    /// What was given.
    pub seq_length: i64,
    /// `L`, the chunk's static length.
    pub seq_len: usize,
    /// `M`; `i64::MAX` where there is no bound.
    pub max_seq_len: i64,
}

/// Checks the lengths of every slot. Every implementation on a host calls this before it touches
/// a buffer; idle slots (`seq_length` 0) are checked too.
///
/// # Errors
/// The first slot whose lengths are out of range.
pub fn check_lengths(
    past_length: &[i64],
    seq_length: &[i64],
    seq_len: usize,
    max_seq_len: Option<usize>,
) -> Result<(), LengthError> {
    let max = max_seq_len.map_or(i64::MAX, |max| i64::try_from(max).unwrap_or(i64::MAX));
    for (slot, (&past, &seq)) in past_length.iter().zip(seq_length).enumerate() {
        let fits = past >= 0
            && (0..=seq_len as i64).contains(&seq)
            && past.checked_add(seq).is_some_and(|end| end <= max);
        if !fits {
            return Err(LengthError {
                slot,
                past_length: past,
                seq_length: seq,
                seq_len,
                max_seq_len: max,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_bounded() {
        assert!(check_lengths(&[0, 7], &[0, 3], 3, Some(10)).is_ok());
        for (past, seq) in [
            (-1, 1),
            (0, 4),
            (8, 3),
            (i64::MAX, 1),
            (0, -1),
            (i64::MIN, 0),
            (11, 0),
        ] {
            assert!(
                check_lengths(&[0, past], &[1, seq], 3, Some(10)).is_err(),
                "{past} {seq}"
            );
        }
        assert!(check_lengths(&[i64::MAX], &[1], 3, None).is_err());
    }
}
