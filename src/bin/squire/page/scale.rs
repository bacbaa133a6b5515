//! From values to places in a drawing: scales and the ticks of their axes.

/// A scale of values over pixels, linear or by the logarithm.
#[derive(Clone, Copy)]
pub struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    logarithmic: bool,
}

impl Scale {
    /// From `low` at pixel `from` to `high` at pixel `to`; one value alone stands in the middle.
    pub fn linear((low, high): (f64, f64), (from, to): (f64, f64)) -> Scale {
        let (low, high) = if high > low { (low, high) } else { (low - 0.5, low + 0.5) };
        Scale { low, high, from, to, logarithmic: false }
    }

    /// The same by the logarithm, of numbers above 0; whole decades.
    pub fn logarithmic((low, high): (f64, f64), (from, to): (f64, f64)) -> Scale {
        let low = low.log10().floor();
        let high = high.log10().ceil().max(low + 1.0);
        Scale { low, high, from, to, logarithmic: true }
    }

    /// Where a value stands.
    pub fn place(&self, value: f64) -> f64 {
        let value = if self.logarithmic { value.log10() } else { value };
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Round values within the scale, about `n` of them.
    pub fn ticks(&self, n: usize) -> Vec<f64> {
        if self.logarithmic {
            let every = ((self.high - self.low) / n as f64).ceil().max(1.0);
            let n = ((self.high - self.low) / every) as usize;
            return (0..=n).map(|i| 10f64.powf(self.low + i as f64 * every)).collect();
        }
        let step = round_step((self.high - self.low) / n as f64);
        let first = (self.low / step - 1e-9).ceil();
        let n = (self.high / step + 1e-9).floor() - first;
        // Counted from zero, so that a tick at zero is exactly that.
        (0..=n.clamp(0.0, 99.0) as usize).map(|i| (first + i as f64) * step).collect()
    }

    /// Whether it goes by the logarithm.
    pub fn is_logarithmic(&self) -> bool {
        self.logarithmic
    }
}

/// 1, 2 or 5 times a power of ten, at least `least`.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|digit| digit * power).find(|step| *step >= least * 0.999).unwrap_or(10.0 * power)
}

/// A range that ends at round values and holds all of `low` and `high`.
pub fn round_range(low: f64, high: f64) -> (f64, f64) {
    let width = if high > low { high - low } else { high.abs().max(1e-12) };
    let step = round_step(width / 4.0);
    (((low / step) + 1e-9).floor() * step, ((high / step) - 1e-9).ceil() * step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        let scale = Scale::linear((0.0, 1.0), (100.0, 0.0));
        assert_eq!(scale.ticks(4), [0.0, 0.5, 1.0]);
        assert_eq!((scale.place(0.0), scale.place(0.25)), (100.0, 75.0));
        assert_eq!(Scale::linear((0.0, 999.0), (0.0, 1.0)).ticks(4), [0.0, 500.0]);
        let scale = Scale::logarithmic((3e-4, 0.2), (0.0, 4.0));
        assert!((scale.place(1e-2) - 2.0).abs() < 1e-9);
        assert_eq!(scale.ticks(4).len(), 5);
        assert_eq!(round_range(0.13, 0.87), (0.0, 1.0));
        assert_eq!(round_range(0.0, 9.3), (0.0, 10.0));
    }

    #[test]
    fn a_range_of_one_value_has_a_width() {
        for value in [0.0, 3.0, -2.0, 1e-9] {
            let (low, high) = round_range(value, value);
            let scale = Scale::linear((low, high), (0.0, 1.0));
            assert!(scale.place(value).is_finite() && low <= value && value <= high, "{value}: {low} {high}");
        }
    }
}
