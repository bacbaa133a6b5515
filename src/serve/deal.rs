//! Which rows of a step go to which job.
//!
//! A higher priority is served first, and within one those that decode, a row each, before prompts. Whoever is served leaves
//! a quarter of the rows to those behind who want them (of fewer than four rows one, now and then), so that no rank starves another.
//! Within a rank rows are divided in equal parts (`fair`), and who is served first moves on by those who were, so that more jobs
//! than rows starve nobody.
//!
//! Prompts take no more rows than the pace of their model allows: what those may wait who decode at the same priority or a higher one.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::fair::divide;

/// What a job asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// tells it from others, in order of arrival
    pub(super) id: u64,
    /// higher ones are served first
    pub(super) priority: i32,
    /// rows: 1 of one that decodes, more of a prompt
    pub(super) rows: usize,
    /// the model whose pace its rows keep; None where no time is kept
    pub(super) paced: Option<usize>,
}

impl Wish {
    fn is_prompt(&self) -> bool {
        self.rows > 1
    }
}

/// What a dealer tells of a model whose prompts it is about to serve.
pub(super) struct Prompts {
    /// the model
    pub(super) model: usize,
    /// how many models have prompts whose time is kept
    pub(super) n_models: u32,
    /// whether somebody decodes whom they must not hold up
    pub(super) somebody_decodes: bool,
}

/// Jobs that are served alike.
struct Rank {
    priority: i32,
    prompts: bool,
    /// indices of wishes, in their turn
    members: Vec<usize>,
}

/// Deals out the rows of steps.
pub(super) struct Dealer {
    /// rows of a step
    rows: usize,
    /// steps so far
    steps: u64,
    /// who is served first, by priority and whether it is a prompt
    first: BTreeMap<(i32, bool), u64>,
}

impl Dealer {
    pub(super) fn new(rows: usize) -> Dealer {
        Dealer { rows: rows.max(1), steps: 0, first: BTreeMap::new() }
    }

    /// Rows for each wish, which come by priority, the highest first, and then by arrival. `pace` says how many rows the prompts of a
    /// model may take.
    pub(super) fn deal(&mut self, wishes: &[Wish], pace: impl Fn(Prompts) -> usize) -> Vec<usize> {
        self.steps += 1;
        let ranks = self.ranks(wishes);
        let mut wanted: Vec<usize> = wishes.iter().map(|wish| wish.rows).collect();
        self.keep_pace(wishes, &ranks, &mut wanted, pace);
        let all: Vec<usize> = ranks.iter().map(|rank| sum(&wanted, &rank.members)).collect();
        let mut rows = vec![0; wishes.len()];
        for (rank, n) in ranks.iter().zip(by_rank(&all, self.rows, self.steps)) {
            self.divide(wishes, rank, &rank.members, n, &wanted, &mut rows);
        }
        rows
    }

    fn ranks(&mut self, wishes: &[Wish]) -> Vec<Rank> {
        let mut ranks = Vec::new();
        let mut at = 0;
        for same in wishes.chunk_by(|a, b| a.priority == b.priority) {
            for prompts in [false, true] {
                let priority = same[0].priority;
                let mut members: Vec<usize> =
                    (at..at + same.len()).filter(|&i| wishes[i].is_prompt() == prompts).collect();
                let first = self.first.get(&(priority, prompts)).copied().unwrap_or(0);
                let turn = members.partition_point(|&i| wishes[i].id < first);
                members.rotate_left(turn);
                if !members.is_empty() {
                    ranks.push(Rank { priority, prompts, members });
                }
            }
            at += same.len();
        }
        self.first
            .retain(|&(priority, prompts), _| ranks.iter().any(|r| r.priority == priority && r.prompts == prompts));
        ranks
    }

    /// Takes from the prompts what the pace of their models does not allow.
    fn keep_pace(&mut self, wishes: &[Wish], ranks: &[Rank], wanted: &mut [usize], pace: impl Fn(Prompts) -> usize) {
        let prompts = || wishes.iter().filter(|wish| wish.is_prompt());
        let mut models: Vec<usize> = prompts().filter_map(|wish| wish.paced).collect();
        models.sort_unstable();
        models.dedup();
        let n_models = models.len() as u32;
        for model in models {
            // The highest comes first.
            let top = prompts().find(|wish| wish.paced == Some(model)).map(|wish| wish.priority);
            let somebody_decodes = wishes.iter().any(|wish| !wish.is_prompt() && Some(wish.priority) >= top);
            let allowed = pace(Prompts { model, n_models, somebody_decodes });
            let of_model = |rank: &Rank| -> Vec<usize> {
                let members = if rank.prompts { &rank.members[..] } else { &[] };
                members.iter().copied().filter(|&i| wishes[i].paced == Some(model)).collect()
            };
            let members: Vec<Vec<usize>> = ranks.iter().map(of_model).collect();
            let all: Vec<usize> = members.iter().map(|members| sum(wanted, members)).collect();
            let before = wanted.to_vec();
            for ((rank, members), n) in ranks.iter().zip(&members).zip(by_rank(&all, allowed, self.steps)) {
                self.divide(wishes, rank, members, n, &before, wanted);
            }
        }
    }

    /// Divides `n` rows among members of a rank.
    fn divide(
        &mut self,
        wishes: &[Wish],
        rank: &Rank,
        members: &[usize],
        n: usize,
        wanted: &[usize],
        rows: &mut [usize],
    ) {
        let of_members: Vec<usize> = members.iter().map(|&i| wanted[i]).collect();
        let (shares, last) = divide(&of_members, n);
        members.iter().zip(shares).for_each(|(&i, share)| rows[i] = share);
        if let Some(last) = last {
            self.first.insert((rank.priority, rank.prompts), wishes[members[last]].id + 1);
        }
    }
}

fn sum(of: &[usize], members: &[usize]) -> usize {
    members.iter().map(|&i| of[i]).sum()
}

/// Rows for each rank, the first served first: what it wants, but for what it leaves to those behind it.
fn by_rank(wanted: &[usize], rows: usize, step: u64) -> Vec<usize> {
    let mut left = rows;
    let mut behind: usize = wanted.iter().sum();
    // Ranks of few rows take turns in leaving one, so that the last comes to some as well.
    let mut turn = step;
    let mut all = Vec::with_capacity(wanted.len());
    for &n in wanted {
        behind -= n;
        let share = match left / 4 {
            0 if turn.is_multiple_of(4) => left.min(1),
            quarter => quarter,
        };
        turn = if turn.is_multiple_of(4) { turn / 4 } else { 1 };
        let taken = n.min(left - share.min(behind));
        left -= taken;
        all.push(taken);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(id: u64, priority: i32, rows: usize) -> Wish {
        Wish { id, priority, rows, paced: None }
    }

    /// Rows of so many steps in all, by wish.
    fn dealt(rows: usize, wishes: &[Wish], steps: usize) -> Vec<usize> {
        let mut dealer = Dealer::new(rows);
        let mut all = vec![0; wishes.len()];
        for _ in 0..steps {
            let step = dealer.deal(wishes, |_| usize::MAX);
            assert!(step.iter().sum::<usize>() <= rows);
            assert!(step.iter().zip(wishes).all(|(&n, wish)| n <= wish.rows));
            all.iter_mut().zip(step).for_each(|(all, n)| *all += n);
        }
        all
    }

    #[test]
    fn a_higher_priority_is_served_first_and_leaves_a_quarter() {
        assert_eq!(dealt(8, &[wish(2, 1, 100), wish(0, 0, 100), wish(1, 0, 100)], 1), [6, 1, 1]);
        assert_eq!(dealt(8, &[wish(2, 1, 4), wish(0, 0, 100)], 1), [4, 4]);
        assert_eq!(dealt(8, &[wish(0, 1, 100), wish(1, 0, 1)], 1), [7, 1], "no more is left than is wanted");
        let decoders: Vec<Wish> = (0..16).map(|i| wish(i, 1, 1)).chain((16..32).map(|i| wish(i, -1, 1))).collect();
        let rows = dealt(8, &decoders, 16);
        assert_eq!(rows[..16], [6; 16]);
        assert_eq!(rows[16..], [2; 16]);
    }

    #[test]
    fn of_few_rows_every_rank_gets_some_in_the_end() {
        for rows in 1..4 {
            let wishes: Vec<Wish> = (0..5).map(|i| wish(i, -(i as i32), 1000)).collect();
            let all = dealt(rows, &wishes, 1024);
            assert_eq!(all.iter().sum::<usize>(), 1024 * rows, "no row stood empty");
            assert!(all.iter().all(|&n| n > 0) && all.is_sorted_by(|a, b| a >= b), "{rows} rows: {all:?}");
        }
    }

    #[test]
    fn a_long_prompt_beside_a_hundred_who_decode_gets_a_quarter_and_they_a_row_each() {
        let mut wishes: Vec<Wish> = (0..100).map(|i| wish(i, 0, 1)).collect();
        wishes.push(wish(100, 0, 20_000));
        assert_eq!(dealt(512, &wishes, 1)[100], 412);
        assert_eq!(dealt(100, &wishes, 4)[..100], [3; 100], "of 100 rows 75 decode: each in three of four steps");
        assert_eq!(dealt(100, &wishes, 4)[100], 100);
    }

    #[test]
    fn prompts_keep_the_pace_that_those_may_wait_who_are_not_below_them() {
        let paced = |id, priority, rows, model| Wish { paced: Some(model), ..wish(id, priority, rows) };
        let deal = |wishes: &[Wish]| {
            Dealer::new(1000).deal(wishes, |of| {
                let rows = if of.somebody_decodes { 8 } else { 80 };
                rows / of.n_models as usize + of.model
            })
        };
        assert_eq!(deal(&[paced(0, 0, 500, 0)]), [80]);
        assert_eq!(deal(&[paced(0, 0, 500, 0), wish(1, 0, 1)]), [8, 1]);
        assert_eq!(deal(&[paced(1, 1, 500, 0), wish(0, 0, 1)]), [80, 1], "who decodes below it waits longer");
        assert_eq!(deal(&[wish(1, 1, 1), paced(0, 0, 500, 0)]), [1, 8]);
        assert_eq!(deal(&[paced(0, 0, 500, 0), paced(1, 0, 500, 1)]), [40, 41], "models share the time");
        assert_eq!(deal(&[paced(1, 1, 500, 0), paced(0, 0, 500, 0)]), [60, 20]);
        assert_eq!(deal(&[paced(0, 0, 500, 0), paced(1, 0, 3, 0), paced(2, 0, 500, 0)]), [39, 3, 38]);
    }
}
