//! The second pass over a batch's plan: when the teacher has said its part, the student's turns are weighed by what the two make of
//! them.
#![forbid(unsafe_code)]

use super::batch::{BatchPlan, TokenLoss};
use super::turn_weights::{Rule, TurnFacts, TurnWeights};
use super::workspace::{Finished, Scores, Workspace};
use crate::backend::ops::{Loss, Tail};
use crate::backend::{Device, host};
use crate::error::Result;
use crate::model::plan::LOSS_ROWS;
use crate::serve::ServedModel;
use crate::text::source::Source;

/// Multiplies the turn weights into the plan. `go_on` is asked before each chunk of rows.
pub(super) fn weigh(
    plan: &mut BatchPlan,
    finished: &[&Finished],
    workspace: &mut Workspace,
    (device, teacher, vocabulary): (&Device, Option<&ServedModel>, usize),
    settings: TurnWeights,
    go_on: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    if settings.rule == Rule::None {
        return Ok(());
    }
    let drawn = |t: &&TokenLoss| {
        t.kind.needs_teacher() && finished[t.trajectory].trajectory.sources()[t.position] == Source::Student
    };
    let mut rows: Vec<(usize, &TokenLoss)> = host::with_room(plan.tokens.iter().filter(drawn).count())?;
    rows.extend(plan.tokens.iter().filter(drawn).map(|t| (0, t)));
    let teacher_of = |t: &TokenLoss| finished[t.trajectory].scores.as_ref().map(Scores::weights);
    // (sum of |ln p - ln q|, sum of -ln p, tokens) of each turn in order
    let mut turns: Vec<(usize, usize, TurnFacts, f64)> = Vec::new();
    let runs = rows.chunk_by(|(_, a), (_, b)| teacher_of(a) == teacher_of(b));
    for chunk in runs.flat_map(|run| run.chunks(LOSS_ROWS)) {
        go_on()?;
        let targets = targets(finished, chunk);
        let theirs = workspace.fill_teacher_rows((teacher, Tail::Bucket), vocabulary, finished, chunk)?;
        let said = workspace.teacher_logprobs(device, theirs, &targets, chunk.len())?;
        for ((_, t), q) in chunk.iter().zip(said) {
            let p = f64::from(finished[t.trajectory].trajectory.logprobs()[t.position]);
            // Infinite only of logits beyond f32.
            let gap = (p - f64::from(q).max(-1e30)).abs();
            match turns.last_mut() {
                Some((trajectory, turn, sums, n)) if (*trajectory, *turn) == (t.trajectory, t.turn) => {
                    (sums.gap, sums.surprise, *n) = (sums.gap + gap, sums.surprise - p, *n + 1.0);
                }
                _ => turns.push((t.trajectory, t.turn, TurnFacts { gap, surprise: -p }, 1.0)),
            }
        }
    }
    let mut weights: Vec<(usize, usize, f64)> = Vec::new();
    for of_one in turns.chunk_by(|a, b| a.0 == b.0) {
        let mean = |&(_, _, sums, n): &(usize, usize, TurnFacts, f64)| TurnFacts {
            gap: sums.gap / n,
            surprise: sums.surprise / n,
        };
        let facts: Vec<TurnFacts> = of_one.iter().map(mean).collect();
        let weighed = of_one.iter().zip(settings.rule.weights(&facts));
        weights.extend(weighed.map(|((trajectory, turn, ..), weight)| (*trajectory, *turn, weight)));
    }
    let weight_of = |t: &TokenLoss| {
        let at = weights.binary_search_by_key(&(t.trajectory, t.turn), |(trajectory, turn, _)| (*trajectory, *turn));
        at.ok().map(|i| weights[i].2)
    };
    let scale = match settings.renormalise {
        false => 1.0,
        true => {
            let sums = plan.tokens.iter().filter_map(|t| Some((t.weight, t.weight * weight_of(t)?)));
            let (plain, weighed) = sums.fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
            if weighed > 0.0 { plain / weighed } else { 1.0 }
        }
    };
    plan.mean_turn_weight = match weights.len() {
        0 => None,
        n => Some(scale * weights.iter().map(|w| w.2).sum::<f64>() / n as f64),
    };
    let mut tokens = std::mem::take(&mut plan.tokens);
    for t in &mut tokens {
        let Some(weight) = weight_of(t) else { continue };
        match t.kind {
            Loss::PolicyGradient(_) => t.teacher *= scale * weight,
            _ => t.weight *= scale * weight,
        }
    }
    plan.tokens = tokens;
    Ok(())
}

/// The tokens that stand there.
pub(super) fn targets(finished: &[&Finished], chunk: &[(usize, &TokenLoss)]) -> Vec<i32> {
    chunk.iter().map(|(_, t)| finished[t.trajectory].trajectory.ids()[t.position]).collect()
}
