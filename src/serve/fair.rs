//! Rows divided among those who want them: max-min fair, so that a short prompt beside a long one comes through at once, and
//! what the short ones leave goes to the long ones.
#![forbid(unsafe_code)]

/// What each gets of `rows`, in their order: all that it wants, or as much as anybody. Rows that do not divide go one each to
/// the first who want more. Returns the shares and the last who got such a row.
pub(super) fn divide(wanted: &[usize], rows: usize) -> (Vec<usize>, Option<usize>) {
    let mut by_wish: Vec<usize> = (0..wanted.len()).collect();
    by_wish.sort_by_key(|&i| wanted[i]);
    let (mut left, mut level) = (rows, usize::MAX);
    for (k, &i) in by_wish.iter().enumerate() {
        let among = wanted.len() - k;
        if wanted[i] > left / among {
            level = left / among;
            left %= among;
            break;
        }
        left -= wanted[i];
    }
    let mut shares: Vec<usize> = wanted.iter().map(|&n| n.min(level)).collect();
    let mut last = None;
    if level != usize::MAX {
        for i in (0..wanted.len()).filter(|&i| wanted[i] > level).take(left) {
            shares[i] += 1;
            last = Some(i);
        }
    }
    (shares, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_wishes_are_met_and_long_ones_share_the_rest() {
        for (wanted, rows, shares, last) in [
            (&[8, 4000][..], 36, &[8, 28][..], None),
            (&[4000, 8], 36, &[28, 8], None),
            (&[4000, 4000, 3], 36, &[17, 16, 3], Some(0)),
            (&[5, 5, 5], 2, &[1, 1, 0], Some(1)),
            (&[5, 6], 11, &[5, 6], None),
            (&[5, 6], usize::MAX, &[5, 6], None),
            (&[7], 0, &[0], None),
            (&[], 9, &[], None),
        ] {
            assert_eq!(divide(wanted, rows), (shares.to_vec(), last), "{rows} rows for {wanted:?}");
        }
    }

    #[test]
    fn no_row_is_wasted_and_nobody_gets_more_than_one_beyond_another_who_wants_more() {
        for case in 0..2000usize {
            let wanted: Vec<usize> = (0..case % 7).map(|i| (case * 31 + i * i * 17) % 40).collect();
            let rows = case * 13 % 90;
            let (shares, _) = divide(&wanted, rows);
            assert_eq!(shares.iter().sum::<usize>(), rows.min(wanted.iter().sum()));
            for (&share, &n) in shares.iter().zip(&wanted) {
                assert!(share <= n && (share == n || shares.iter().all(|&other| other <= share + 1)));
            }
        }
    }
}
