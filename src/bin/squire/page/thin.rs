//! Curves with so few points that a page can hold them, without the loss of a spike.

/// A value at a step; None where there is none.
pub type Point = (u64, Option<f64>);

/// At most about `most` points: of each of equal stretches the least and the largest value, in their order. A stretch
/// without a value is a gap.
pub fn thin(points: &[Point], most: usize) -> Vec<Point> {
    if points.len() <= most {
        return points.to_vec();
    }
    let mut kept = Vec::new();
    for stretch in stretches(points, most / 2) {
        let known = || stretch.iter().filter_map(|(step, value)| Some((*step, (*value)?)));
        let least = known().min_by(|a, b| a.1.total_cmp(&b.1));
        let largest = known().max_by(|a, b| a.1.total_cmp(&b.1));
        match (least, largest) {
            (Some(a), Some(b)) => {
                let (first, second) = if a.0 <= b.0 { (a, b) } else { (b, a) };
                kept.push((first.0, Some(first.1)));
                if second.0 != first.0 {
                    kept.push((second.0, Some(second.1)));
                }
            }
            _ => kept.push((stretch[0].0, None)),
        }
    }
    kept
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
        let kept = thin(&points, 400);
        assert!(kept.len() <= 400 && kept.len() > 300, "{}", kept.len());
        assert!(kept.contains(&(7_777, Some(1e6))) && kept.contains(&(3_333, Some(-1e6))));
        assert!(kept.iter().any(|(step, value)| value.is_none() && (5_000..6_000).contains(step)));
        assert!(kept.is_sorted_by_key(|(step, _)| *step));
        assert_eq!(thin(&points[..400], 400), points[..400]);
    }

    #[test]
    fn a_moving_mean_weighs_by_what_was_counted() {
        let points = [(0, 1.0, 2.0), (1, 0.0, 0.0), (2, 3.0, 4.0), (5, 0.0, 4.0)];
        let wanted = [(0, Some(0.5)), (1, Some(0.5)), (2, Some(0.75)), (5, Some(3.0 / 8.0))];
        assert_eq!(moving_mean(&points, 2), wanted);
    }
}
