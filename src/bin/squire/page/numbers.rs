//! Numbers for people: few digits, the same everywhere.

/// A number with three or four digits that count.
pub fn short(x: f64) -> String {
    let size = x.abs();
    match size {
        0.0 => "0".into(),
        _ if !x.is_finite() => x.to_string(),
        1e-3..1e-2 => trimmed(format!("{x:.5}")),
        1e-2..1.0 => trimmed(format!("{x:.4}")),
        1.0..10.0 => trimmed(format!("{x:.3}")),
        10.0..100.0 => trimmed(format!("{x:.2}")),
        100.0..1e4 => trimmed(format!("{x:.1}")),
        1e4..1e6 => format!("{}k", trimmed(format!("{:.1}", x / 1e3))),
        1e6..1e9 => format!("{}M", trimmed(format!("{:.2}", x / 1e6))),
        1e9..1e12 => format!("{}G", trimmed(format!("{:.2}", x / 1e9))),
        _ => {
            let text = format!("{x:.2e}");
            match text.split_once('e') {
                Some((digits, exponent)) => format!("{}e{exponent}", trimmed(digits.to_string())),
                None => text,
            }
        }
    }
}

/// A share in per cent.
pub fn percent(share: f64) -> String {
    format!("{} %", trimmed(format!("{:.1}", 100.0 * share)))
}

/// Without the zeros at its end.
fn trimmed(number: String) -> String {
    match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => number,
    }
}

/// A whole number with its thousands apart.
pub fn whole(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// So many of something.
pub fn count(n: u64, of: &str) -> String {
    format!("{} {of}{}", whole(n), if n == 1 { "" } else { "s" })
}

/// Seconds since 1970 as a date and a time of UTC.
pub fn date(seconds: f64) -> String {
    if !(0.0..1e11).contains(&seconds) {
        return "an unknown time".into();
    }
    let seconds = seconds as u64;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March, in eras of 400 of them (146,097 days); 719,468 days lie before 1970.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * march + 2) / 5 + 1, if march < 10 { march + 3 } else { march - 9 });
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3600, rest / 60 % 60)
}

/// A length of time.
pub fn duration(seconds: f64) -> String {
    match seconds {
        ..60.0 => format!("{} s", short(seconds)),
        60.0..3600.0 => format!("{} min", short(seconds / 60.0)),
        _ => format!("{} h", short(seconds / 3600.0)),
    }
}

/// The 95 % interval of Wilson's for a share of `successes` in `n`: it stays within 0 and 1 and has a width at both ends.
pub fn wilson(successes: u64, n: u64) -> Option<(f64, f64)> {
    const Z: f64 = 1.959_963_985;
    if n == 0 {
        return None;
    }
    let (n, p) = (n as f64, successes as f64 / n as f64);
    let scale = 1.0 + Z * Z / n;
    let middle = (p + Z * Z / (2.0 * n)) / scale;
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt() / scale;
    Some(((middle - half).max(0.0), (middle + half).min(1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_few_digits() {
        let wanted = [
            (0.0, "0"),
            (1.0, "1"),
            (0.5, "0.5"),
            (-0.123456, "-0.1235"),
            (0.00123456, "0.00123"),
            (1e-6, "1e-6"),
            (1.5e-7, "1.5e-7"),
            (1234.56, "1234.6"),
            (12_345.0, "12.3k"),
            (2_500_000.0, "2.5M"),
            (1e30, "1e30"),
        ];
        wanted.into_iter().for_each(|(x, text)| assert_eq!(short(x), text));
        assert_eq!((percent(0.125), percent(1.0)), ("12.5 %".into(), "100 %".into()));
        assert_eq!((whole(999), whole(1_234_567)), ("999".into(), "1,234,567".into()));
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!((count(1, "step"), count(1000, "step")), ("1 step".into(), "1,000 steps".into()));
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let wanted = [
            (0.0, "1970-01-01 00:00 UTC"),
            (951_782_400.0, "2000-02-29 00:00 UTC"),
            (1_796_083_199.9, "2026-11-30 23:59 UTC"),
            (4_107_542_400.0, "2100-03-01 00:00 UTC"),
        ];
        wanted.into_iter().for_each(|(seconds, text)| assert_eq!(date(seconds), text));
        assert_eq!(date(f64::NAN), "an unknown time");
    }

    /// Agresti and Coull's paper and R's prop.test(correct = FALSE) have these.
    #[test]
    fn wilsons_interval_is_the_known_one() {
        let near = |found: Option<(f64, f64)>, low: f64, high: f64| {
            let (a, b) = found.unwrap();
            assert!((a - low).abs() < 5e-5 && (b - high).abs() < 5e-5, "{a} {b}");
        };
        near(wilson(0, 10), 0.0, 0.2775);
        near(wilson(5, 10), 0.2366, 0.7634);
        near(wilson(81, 263), 0.2553, 0.3662);
        assert_eq!(wilson(0, 0), None);
    }
}
