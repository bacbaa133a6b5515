//! Whether what is served says what was trained: a few log-probs of the training forward, taken when a step is applied, beside
//! those of the serving path once it is published, bit for bit.
//!
//! The rows are trained tokens of the batch's shortest trajectory, from its first one on, among its first 256 tokens, so that a
//! probe costs one short prompt each time. Log-probs are over the student's whole vocabulary, as it is served.
#![forbid(unsafe_code)]

use serde::Serialize;

use super::batch::BatchPlan;
use super::update_kl::Sample;
use super::workspace::{Finished, Workspace};
use crate::error::{Error, Fault, Result};
use crate::model::{Adapter, Model, Weights};
use crate::serve::{Cancel, Session};
use crate::text::source::Source;

/// Tokens that a probe feeds at most.
const MOST_FED: usize = 256;

/// What a probe found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Probe {
    /// Log-probs that were compared.
    pub rows: usize,
    /// Those whose bits differ; 0 unless squire has a defect, or memory has.
    pub differing: usize,
    /// The largest difference, in nats.
    pub largest_difference: f64,
}

impl Probe {
    /// Of the same log-probs by training and by serving.
    fn of(trained: &[f32], served: &[f32]) -> Probe {
        let mut probe = Probe { rows: trained.len(), ..Probe::default() };
        for (a, b) in trained.iter().zip(served).filter(|(a, b)| a.to_bits() != b.to_bits()) {
            probe.differing += 1;
            probe.largest_difference = probe.largest_difference.max((f64::from(*a) - f64::from(*b)).abs());
        }
        probe
    }
}

/// What a probe asks of: the beginning of a trajectory, up to the last of the tokens at `positions`.
#[derive(Default)]
pub(super) struct ProbeRows {
    ids: Vec<i32>,
    positions: Vec<usize>,
}

/// The same with what training says.
pub(super) struct Expected {
    rows: ProbeRows,
    logprobs: Vec<f32>,
}

impl ProbeRows {
    /// At most `wanted` rows of a batch.
    pub(super) fn of(finished: &[&Finished], batch: &BatchPlan, wanted: usize) -> ProbeRows {
        let of_each = batch.tokens.chunk_by(|a, b| a.trajectory == b.trajectory);
        let near = of_each.filter(|tokens| tokens.first().is_some_and(|t| t.position < MOST_FED));
        let length = |i: usize| finished[i].trajectory.ids().len();
        let shortest = near.min_by_key(|tokens| length(tokens[0].trajectory)).unwrap_or_default();
        let tokens = shortest.iter().take(wanted).take_while(|t| t.position < MOST_FED);
        let positions: Vec<usize> = tokens.map(|t| t.position).collect();
        let ids = positions.last().map(|&last| finished[shortest[0].trajectory].trajectory.ids()[..=last].to_vec());
        ProbeRows { ids: ids.unwrap_or_default(), positions }
    }

    /// What training says under some weights and an adapter, if any; None where there is nothing to ask.
    pub(super) fn expected(
        self,
        model: &Model,
        student: (&Weights, Option<&Adapter>),
        workspace: &mut Workspace,
    ) -> Result<Option<Expected>> {
        if self.positions.is_empty() {
            return Ok(None);
        }
        let targets: Vec<i32> = self.positions.iter().map(|&at| self.ids[at]).collect();
        let sample = Sample::of_sequence(&self.ids, &self.positions);
        let logprobs = sample.logprobs(model, student, &targets, workspace)?;
        Ok(Some(Expected { rows: self, logprobs }))
    }
}

impl Expected {
    /// Compares with what an empty session is served. Nobody waits for pages, or gives up theirs, for a probe: where they are not
    /// free that is `KvBudget`.
    pub(super) fn ask(&self, session: &Session) -> Result<Probe> {
        let ProbeRows { ids, positions } = &self.rows;
        let Some(&first) = positions.first() else { return Ok(Probe::default()) };
        if !session.finds_pages(ids.len())? {
            let why = format!("the {} tokens of a probe find no free pages", ids.len());
            return Err(Error::new(Fault::KvBudget, why));
        }
        session.append(&ids[..first], Source::Host)?;
        let rows = session.score(&ids[first..], 0, &Cancel::default())?;
        let served: Vec<f32> = positions.iter().filter_map(|at| rows.get(at - first)).map(|row| row.logprob).collect();
        Ok(Probe::of(&self.logprobs, &served))
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::TokenLoss;
    use super::super::trajectory::{Heading, Trajectory};
    use super::*;
    use crate::backend::ops::Loss;
    use crate::model::ModelConfig;
    use crate::serve::{Engine, EngineOptions, ServedModel};
    use crate::tensor::Dtype;
    use serde_json::json;

    fn finished(n: usize, base: i32) -> Finished {
        let mut trajectory = Trajectory::new(Heading {
            episode: 0,
            step: 0,
            task: String::new(),
            group: String::new(),
            seed: 0,
            revision: 1,
            evaluation: false,
            ..Heading::default()
        });
        let ids: Vec<i32> = (0..n as i32).map(|i| (base + 7 * i) % 50).collect();
        trajectory.add_context(&ids, Source::Host).unwrap();
        Finished { trajectory, scores: None, is_noted: false, is_imported: false }
    }

    fn rows(lengths: &[usize], trained: &[&[usize]], wanted: usize) -> (Vec<i32>, Vec<usize>) {
        let finished: Vec<Finished> = lengths.iter().enumerate().map(|(i, &n)| finished(n, i as i32)).collect();
        let token = |trajectory, position| TokenLoss {
            trajectory,
            turn: 0,
            position,
            kind: Loss::ReverseKl,
            weight: 1.0,
            teacher: 1.0,
            rest: 0.0,
        };
        let tokens = trained.iter().enumerate().flat_map(|(i, list)| list.iter().map(move |&p| token(i, p))).collect();
        let batch = BatchPlan { tokens, ..Default::default() };
        let ProbeRows { ids, positions } = ProbeRows::of(&finished.iter().collect::<Vec<_>>(), &batch, wanted);
        (ids, positions)
    }

    #[test]
    fn the_shortest_trajectory_with_a_token_near_its_beginning_is_asked_of() {
        let (ids, positions) = rows(&[30, 12, 20], &[&[3], &[5, 6, 9, 11], &[2]], 3);
        assert_eq!((ids.len(), ids[0], positions), (10, 1, vec![5, 6, 9]));
        // The shortest has no trained token; the next one's come too late; of the last one's two are near.
        let (ids, positions) = rows(&[8, 300, 400], &[&[], &[256, 299], &[254, 255, 256]], 4);
        assert_eq!((ids.len(), positions), (256, vec![254, 255]));
        assert_eq!(rows(&[300], &[&[299]], 4), (vec![], vec![]));
        assert_eq!(rows(&[30], &[&[3]], 0), (vec![], vec![]));
    }

    fn model(dtype: Dtype) -> ServedModel {
        let config = json!({
            "model_type": "qwen3", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
            "max_position_embeddings": 64,
        });
        let engine = Engine::new(EngineOptions { n_threads: 1, ..EngineOptions::default() }).unwrap();
        engine.random_model(ModelConfig::from_json(&config).unwrap(), dtype, 1, 0).unwrap()
    }

    #[test]
    fn what_is_served_is_what_training_says_and_other_weights_are_told() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let student = model(dtype);
            let current = student.current();
            let mut workspace = Workspace::new(student.model(), None).unwrap();
            let rows = || ProbeRows { ids: vec![1, 8, 15, 22, 29], positions: vec![2, 4] };
            let of = (&**current.weights, None);
            let expected = rows().expected(student.model(), of, &mut workspace).unwrap().unwrap();
            let found = expected.ask(&Session::new(&student).unwrap()).unwrap();
            assert_eq!(found, Probe { rows: 2, differing: 0, largest_difference: 0.0 });
            // Somebody serves other weights under the next number.
            let other = Weights::random(student.config(), &student.model().device, dtype, 9, 0.2).unwrap();
            student.publish(other, 9).unwrap();
            let found = expected.ask(&Session::new(&student).unwrap()).unwrap();
            assert!(found.rows == 2 && found.differing == 2 && found.largest_difference > 1e-4, "{found:?}");
        }
    }

    #[test]
    fn bits_are_compared() {
        let found = Probe::of(&[-1.0, -2.0, 0.0], &[-1.0, -2.5, -0.0]);
        assert_eq!(found, Probe { rows: 3, differing: 2, largest_difference: 0.5 });
    }
}
