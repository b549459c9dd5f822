//! Running differences between what was found and what was expected.

use serde::Serialize;

/// Where the largest difference was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Worst {
    /// Sequence of the golden batch.
    pub sequence: usize,
    /// Position of the token.
    pub position: usize,
    /// Index in the row: a token of the vocabulary, or a channel.
    pub index: usize,
    /// Expected value.
    pub expected: f32,
    /// Found value.
    pub found: f32,
}

/// Differences over many rows.
#[derive(Clone, Debug, Default)]
pub struct Differences {
    /// Rows compared.
    pub rows: u64,
    /// Rows whose largest element was at the same index.
    pub argmax_agreed: u64,
    /// Largest absolute difference; infinite where something was not a number.
    pub max: f64,
    /// Where it was.
    pub worst: Option<Worst>,
    elements: u64,
    sum: f64,
}

impl Differences {
    /// Compares one row.
    pub fn add(&mut self, sequence: usize, position: usize, expected: &[f32], found: &[f32]) {
        let mut best = (0, 0);
        for (index, (&expected_value, &found_value)) in expected.iter().zip(found).enumerate() {
            // Anything that is not a number is as wrong as can be.
            let difference = (f64::from(expected_value) - f64::from(found_value)).abs();
            let difference = if difference.is_nan() {
                f64::INFINITY
            } else {
                difference
            };
            self.sum += difference;
            if difference > self.max || self.worst.is_none() {
                self.max = self.max.max(difference);
                self.worst = Some(Worst {
                    sequence,
                    position,
                    index,
                    expected: expected_value,
                    found: found_value,
                });
            }
            if expected_value > expected[best.0] {
                best.0 = index;
            }
            if found_value > found[best.1] {
                best.1 = index;
            }
        }
        if expected.len() != found.len() {
            self.max = f64::INFINITY;
        }
        self.argmax_agreed += u64::from(best.0 == best.1);
        self.rows += 1;
        self.elements += expected.len() as u64;
    }

    /// Mean absolute difference.
    pub fn mean(&self) -> f64 {
        if self.elements == 0 {
            0.0
        } else {
            self.sum / self.elements as f64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_find_the_worst_element_and_count_argmax() {
        let mut differences = Differences::default();
        differences.add(0, 3, &[1.0, 5.0, 2.0], &[1.0, 4.5, 2.0]);
        differences.add(1, 4, &[1.0, 2.0, 2.5], &[1.0, 2.75, 2.5]);
        assert_eq!((differences.rows, differences.argmax_agreed), (2, 1));
        assert_eq!(differences.max, 0.75);
        assert_eq!(
            differences
                .worst
                .map(|worst| (worst.sequence, worst.position, worst.index)),
            Some((1, 4, 1))
        );
        assert!((differences.mean() - 1.25 / 6.0).abs() < 1e-12);
    }

    #[test]
    fn not_a_number_is_never_equal() {
        let mut differences = Differences::default();
        differences.add(0, 0, &[0.0, 1.0], &[f32::NAN, 1.0]);
        assert_eq!(differences.max, f64::INFINITY);
        let mut differences = Differences::default();
        differences.add(0, 0, &[0.0, 1.0], &[0.0]);
        assert_eq!(differences.max, f64::INFINITY);
    }
}
