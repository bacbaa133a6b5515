//! How much the teacher's part counts in each of the student's turns, from what student and teacher make of it: with
//! d the mean |ln p - ln q| over the tokens of a turn that carry loss and h the mean -ln p, both of the student that drew them,
//! and turns counted from 1 over the trained student turns of a trajectory,
//!
//! - t-dur (ATOD, arXiv 2606.27814): w = 1 - (1 - d~)(1 - h~), both scaled from their least to their largest value in the
//!   trajectory (0.5 where they differ by less than 1e-8);
//! - sod (SOD, arXiv 2605.07725): w_1 = 1, w_k = min(w_(k-1) (d_(k-1) + e) / (d_k + e), 1 + delta), e = 1e-6: turns that
//!   diverge more than the first count less;
//! - gap-ratio (OG-OPD, arXiv 2609.35319): w = min(cap, (e + d_1) / (e + d_k)), which is the same where nothing was capped on
//!   the way.
//!
//! The weight multiplies the teacher's part of an advantage, and the whole of a loss that is the teacher's alone; what rewards
//! say, and turns of others, have weight 1.
#![forbid(unsafe_code)]

use super::document::{choice, number, word};
use crate::error::Result;
use serde_json::{Value, json};

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Every turn counts the same.
    None,
    /// By disagreement and uncertainty.
    TDur,
    /// By the gap's course, at most 1 plus this.
    Sod(f64),
    /// By the gap over the first turn's, at most this.
    GapRatio(f64),
}

/// How turns are weighed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TurnWeights {
    /// By which rule.
    pub rule: Rule,
    /// Whether weights are scaled so that their mean over the batch's loss is 1.
    pub renormalise: bool,
}

/// A turn as the rules see it, in nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TurnFacts {
    /// d: mean |ln p - ln q|.
    pub gap: f64,
    /// h: mean -ln p.
    pub surprise: f64,
}

/// Added to gaps that divide.
const EPS: f64 = 1e-6;

impl Rule {
    /// The weights of a trajectory's turns.
    pub fn weights(self, turns: &[TurnFacts]) -> Vec<f64> {
        match self {
            Rule::None => vec![1.0; turns.len()],
            Rule::TDur => {
                let gaps = scaled(turns.iter().map(|t| t.gap));
                let surprises = scaled(turns.iter().map(|t| t.surprise));
                gaps.iter().zip(surprises).map(|(d, h)| 1.0 - (1.0 - d) * (1.0 - h)).collect()
            }
            Rule::Sod(delta) => {
                let mut weights: Vec<f64> = Vec::with_capacity(turns.len());
                for (k, turn) in turns.iter().enumerate() {
                    let weight = match k.checked_sub(1) {
                        None => 1.0,
                        Some(before) => {
                            let ratio = (turns[before].gap + EPS) / (turn.gap + EPS);
                            (weights[before] * ratio).min(1.0 + delta)
                        }
                    };
                    weights.push(weight);
                }
                weights
            }
            Rule::GapRatio(cap) => {
                let first = turns.first().map_or(0.0, |t| t.gap);
                turns.iter().map(|t| ((EPS + first) / (EPS + t.gap)).min(cap)).collect()
            }
        }
    }
}

/// From their least to their largest, 0 to 1.
fn scaled(values: impl Iterator<Item = f64> + Clone) -> Vec<f64> {
    let least = values.clone().fold(f64::INFINITY, f64::min);
    let span = values.clone().fold(f64::NEG_INFINITY, f64::max) - least;
    values.map(|x| if span < 1e-8 { 0.5 } else { (x - least) / span }).collect()
}

/// The rule written at `path`.
pub(super) fn rule(value: &Value, path: &str) -> Result<Rule> {
    let known =
        [("none", Rule::None), ("t-dur", Rule::TDur), ("sod", Rule::Sod(0.2)), ("gap-ratio", Rule::GapRatio(1.2))];
    if !value.is_object() {
        return word(value, path, &known);
    }
    let wanted = "none, t-dur, sod, gap-ratio, {\"sod\": delta} or {\"gap-ratio\": cap}";
    let (key, inner, path) = choice(value, path, &["sod", "gap-ratio"], wanted)?;
    match key {
        "sod" => number(inner, &path, "a number from 0 to 1e6", |x| (0.0..=1e6).contains(&x)).map(Rule::Sod),
        _ => number(inner, &path, "a number above 0, at most 1e6", |x| x > 0.0 && x <= 1e6).map(Rule::GapRatio),
    }
}

pub(super) fn rule_to_json(rule: Rule) -> Value {
    match rule {
        Rule::None => json!("none"),
        Rule::TDur => json!("t-dur"),
        Rule::Sod(delta) => json!({"sod": delta}),
        Rule::GapRatio(cap) => json!({"gap-ratio": cap}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(turns: &[(f64, f64)]) -> Vec<TurnFacts> {
        turns.iter().map(|&(gap, surprise)| TurnFacts { gap, surprise }).collect()
    }

    #[track_caller]
    fn near(found: &[f64], wanted: &[f64]) {
        assert_eq!(found.len(), wanted.len());
        assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 2e-6), "{found:?} {wanted:?}");
    }

    #[test]
    fn t_dur_is_the_papers_formula() {
        // d 0.2, 0.6, 1.0 are 0, 1/2, 1; h 2, 1, 1.25 are 1, 0, 1/4.
        near(&Rule::TDur.weights(&facts(&[(0.2, 2.0), (0.6, 1.0), (1.0, 1.25)])), &[1.0, 0.5, 1.0]);
        // Equal in one: 0.5 of it; in both, and of one turn alone, 0.75.
        near(&Rule::TDur.weights(&facts(&[(0.2, 1.0), (0.6, 1.0)])), &[0.5, 1.0]);
        near(&Rule::TDur.weights(&facts(&[(0.3, 1.0), (0.3, 1.0), (0.3, 1.0)])), &[0.75; 3]);
        near(&Rule::TDur.weights(&facts(&[(0.3, 1.0)])), &[0.75]);
        // Least in both: nothing.
        near(&Rule::TDur.weights(&facts(&[(0.1, 1.0), (0.3, 1.5)])), &[0.0, 1.0]);
        assert!(Rule::TDur.weights(&[]).is_empty());
    }

    #[test]
    fn sod_is_the_closed_form_unless_a_turn_on_the_way_is_capped() {
        let falling = facts(&[(0.4, 0.0), (0.8, 0.0), (1.6, 0.0), (0.5, 0.0)]);
        near(&Rule::Sod(0.2).weights(&falling), &[1.0, 0.5, 0.25, 0.8]);
        near(&Rule::GapRatio(1.2).weights(&falling), &[1.0, 0.5, 0.25, 0.8]);
        // The second turn is capped at 1.2 in place of 4; the third is then 1.2 * 0.1 / 0.8 and not 0.4 / 0.8.
        let capped = facts(&[(0.4, 0.0), (0.1, 0.0), (0.8, 0.0)]);
        near(&Rule::Sod(0.2).weights(&capped), &[1.0, 1.2, 0.15]);
        near(&Rule::GapRatio(1.2).weights(&capped), &[1.0, 1.2, 0.5]);
        // A gap of nothing divides nothing.
        near(&Rule::Sod(0.2).weights(&facts(&[(0.0, 0.0), (0.0, 0.0)])), &[1.0, 1.0]);
        near(&Rule::GapRatio(3.0).weights(&facts(&[(0.5, 0.0), (0.0, 0.0)])), &[1.0, 3.0]);
    }
}
