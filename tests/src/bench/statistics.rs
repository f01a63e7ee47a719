//! Order statistics of measurements.

use serde::Serialize;

/// Measurements in ascending order. There is at least one.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Sorted<T>(Vec<T>);

impl<T: PartialOrd + Copy> Sorted<T> {
    pub(super) fn new(values: impl IntoIterator<Item = T>) -> Self {
        let mut values: Vec<T> = values.into_iter().collect();
        assert!(!values.is_empty(), "nothing was measured");
        values.sort_unstable_by(|one, other| one.partial_cmp(other).expect("a measurement is a number"));
        Self(values)
    }

    pub(super) fn median(&self) -> T {
        self.percentile(50)
    }

    /// The value that this percentage of the measurements does not exceed.
    pub(super) fn percentile(&self, percent: usize) -> T {
        let last = self.0.len() - 1;
        self.0[(self.0.len() * percent / 100).min(last)]
    }

    pub(super) fn least(&self) -> T {
        self.0[0]
    }

    pub(super) fn greatest(&self) -> T {
        self.0[self.0.len() - 1]
    }
}

/// The median and the quartiles of all rounds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Quartiles {
    /// The median.
    pub median: f64,
    /// The first quartile and the third.
    pub quartiles: [f64; 2],
}

impl Quartiles {
    /// The quartiles of a single measurement.
    pub(super) const fn single(value: f64) -> Self {
        Self {
            median: value,
            quartiles: [value; 2],
        }
    }

    /// The quartiles of many measurements.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let sorted = Sorted::new(values);
        Self {
            median: sorted.median(),
            quartiles: [25, 75].map(|percent| sorted.percentile(percent)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Sorted;

    #[test]
    fn percentiles_are_values_of_the_measurements() {
        let sorted = Sorted::new((0..1000).rev());
        assert_eq!(
            (
                sorted.least(),
                sorted.median(),
                sorted.percentile(99),
                sorted.greatest()
            ),
            (0, 500, 990, 999)
        );
        assert_eq!(Sorted::new([7]).percentile(99), 7);
    }
}
