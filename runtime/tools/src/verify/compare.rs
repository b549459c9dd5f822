//! Running differences between what was found and what was expected.

use ratplus_graphs::tolerance::Statistic;
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
    /// Largest absolute difference at each position, over all sequences; 0 where none was compared.
    pub by_position: Vec<f64>,
    elements: u64,
    sum: f64,
    /// How many elements have a difference whose f32 begins with these [`BIN_BITS`]; empty before the
    /// first row.
    bins: Vec<u64>,
}

/// Sign, exponent and seven bits of the mantissa: a bin ends less than 1 % above its start.
const BIN_BITS: u32 = 16;
const BINS: usize = (f32::INFINITY.to_bits() >> BIN_BITS) as usize + 1;

/// Elements whose difference is in one decade.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Decade {
    /// Their differences are below this power of ten, and no less than a tenth of it; `None`: infinite or
    /// not a number.
    pub below: Option<f64>,
    /// How many they are.
    pub elements: u64,
}

impl Differences {
    /// Compares one row.
    pub fn add(&mut self, sequence: usize, position: usize, expected: &[f32], found: &[f32]) {
        self.bins.resize(BINS, 0);
        let mut most = 0.0f64;
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
            self.bins[((difference as f32).to_bits() >> BIN_BITS) as usize] += 1;
            most = most.max(difference);
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
            (self.max, most) = (f64::INFINITY, f64::INFINITY);
        }
        if self.by_position.len() <= position {
            self.by_position.resize(position + 1, 0.0);
        }
        self.by_position[position] = self.by_position[position].max(most);
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

    /// That statistic; a quantile is the upper end of its bin, less than 1 % above it.
    pub fn statistic(&self, statistic: Statistic) -> f64 {
        match statistic {
            Statistic::Max => self.max,
            Statistic::Mean => self.mean(),
            Statistic::Quantile(share) => self.quantile(share),
        }
    }

    fn quantile(&self, share: f64) -> f64 {
        let wanted = (share * self.elements as f64).ceil() as u64;
        let mut seen = 0;
        let bin = self.bins.iter().position(|&count| {
            seen += count;
            seen >= wanted.max(1)
        });
        let end = |bin| f64::from(f32::from_bits((bin as u32 + 1) << BIN_BITS));
        match bin {
            Some(bin) if bin + 1 < BINS => self.max.min(end(bin)),
            _ => self.max,
        }
    }

    /// The elements by the size of their differences, smallest first; zeros are below 0.
    pub fn decades(&self) -> Vec<Decade> {
        let mut decades: Vec<Decade> = Vec::new();
        for (bin, &elements) in self.bins.iter().enumerate() {
            let start = f32::from_bits((bin as u32) << BIN_BITS);
            let below = match bin {
                0 => Some(0.0),
                _ if bin + 1 == BINS => None,
                _ => Some(10f64.powi(start.log10().floor() as i32 + 1)),
            };
            match decades.last_mut() {
                Some(last) if last.below == below => last.elements += elements,
                _ if elements > 0 => decades.push(Decade { below, elements }),
                _ => {}
            }
        }
        decades
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
    fn quantiles_are_bounded_from_above_and_decades_count_everything() {
        let mut differences = Differences::default();
        let found: Vec<f32> = (0..1000).map(|n| n as f32 * 1e-3).collect();
        differences.add(0, 2, &[0.0; 1000], &found);
        for percent in [1, 50, 90, 99] {
            let exact = f64::from(found[percent * 10 - 1]);
            let got = differences.statistic(Statistic::Quantile(percent as f64 / 100.0));
            assert!((exact..exact * 1.01).contains(&got), "p{percent}: {got}");
        }
        assert_eq!(differences.by_position, [0.0, 0.0, f64::from(found[999])]);
        let decades = differences.decades();
        let counted: u64 = decades.iter().map(|decade| decade.elements).sum();
        assert_eq!(counted, 1000);
        assert_eq!(
            decades[0],
            Decade {
                below: Some(0.0),
                elements: 1
            }
        );
        // Bins end within 1 % of a power of ten.
        let last = decades.last().unwrap();
        assert!(
            last.below == Some(1.0) && (890..=901).contains(&last.elements),
            "{decades:?}"
        );
    }

    #[test]
    fn quantiles_of_little_are_what_there_is() {
        let mut differences = Differences::default();
        assert_eq!(differences.statistic(Statistic::Quantile(0.5)), 0.0);
        assert!(differences.decades().is_empty());
        differences.add(0, 0, &[1.0, 1.0], &[1.0, f32::NAN]);
        assert!(differences.statistic(Statistic::Quantile(0.5)) < 1e-40);
        assert_eq!(
            differences.statistic(Statistic::Quantile(0.99)),
            f64::INFINITY
        );
        assert_eq!(
            differences.decades()[1],
            Decade {
                below: None,
                elements: 1
            }
        );
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
