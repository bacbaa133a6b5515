//! Curves with so few points that a page can hold them, without the loss of a spike.

/// A value at a step; None where there is none.
pub type Point = (u64, Option<f64>);

/// What a stretch of a curve comes to: its first step, and the least, the mean and the largest of its values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stretch {
    pub step: u64,
    pub least: f64,
    pub mean: f64,
    pub largest: f64,
}

/// A curve as at most `most` stretches, so that what is drawn of it is the mean with a band in which no spike is lost. A
/// stretch without a value is a gap, None.
pub fn thin(points: &[Point], most: usize) -> Vec<Option<Stretch>> {
    let of = |stretch: &[Point]| {
        let known = || stretch.iter().filter_map(|(_, value)| *value);
        let n = known().count();
        (n > 0).then(|| Stretch {
            step: stretch[0].0,
            least: known().fold(f64::INFINITY, f64::min),
            mean: known().sum::<f64>() / n as f64,
            largest: known().fold(f64::NEG_INFINITY, f64::max),
        })
    };
    stretches(points, most).map(of).collect()
}

/// At most `most` stretches of nearly the same length, none empty.
pub fn stretches<T>(all: &[T], most: usize) -> impl Iterator<Item = &[T]> {
    let n = most.min(all.len());
    (0..n).map(move |i| &all[i * all.len() / n..(i + 1) * all.len() / n])
}

/// The mean of a value over the last `n` points with a weight: a sum over a sum. None where nothing weighs.
pub fn moving_mean(points: &[(u64, f64, f64)], n: usize) -> Vec<Point> {
    let mean = |i: usize| {
        let last = &points[(i + 1).saturating_sub(n)..=i];
        let (sum, weight) = last.iter().fold((0.0, 0.0), |(s, w), (_, sum, weight)| (s + sum, w + weight));
        (points[i].0, (weight > 0.0).then(|| sum / weight))
    };
    (0..points.len()).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spikes_and_gaps_survive_and_the_number_of_points_is_bounded() {
        let value = |i: u64| match i {
            7_777 => Some(1e6),
            3_333 => Some(-1e6),
            5_000..=5_999 => None,
            _ => Some(i as f64),
        };
        let points: Vec<Point> = (0..10_000).map(|i| (i, value(i))).collect();
        let kept = thin(&points, 200);
        assert_eq!(kept.len(), 200);
        let known: Vec<&Stretch> = kept.iter().flatten().collect();
        assert_eq!(known.len(), 180);
        assert!(known.iter().any(|s| s.largest == 1e6) && known.iter().any(|s| s.least == -1e6));
        assert_eq!(*known[0], Stretch { step: 0, least: 0.0, mean: 24.5, largest: 49.0 });
        assert!(known.is_sorted_by_key(|s| s.step));
        let few = thin(&[(3, Some(1.0)), (4, None), (9, Some(2.0))], 200);
        assert_eq!(
            few.iter().map(|s| s.map(|s| (s.step, s.mean))).collect::<Vec<_>>(),
            [Some((3, 1.0)), None, Some((9, 2.0))]
        );
    }

    #[test]
    fn a_moving_mean_weighs_by_what_was_counted() {
        let points = [(0, 1.0, 2.0), (1, 0.0, 0.0), (2, 3.0, 4.0), (5, 0.0, 4.0)];
        let wanted = [(0, Some(0.5)), (1, Some(0.5)), (2, Some(0.75)), (5, Some(3.0 / 8.0))];
        assert_eq!(moving_mean(&points, 2), wanted);
    }
}
