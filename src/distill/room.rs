//! The memory that an update takes, known before it starts: what the backward computes again is chosen by it, and what does
//! not fit the budget is refused.
#![forbid(unsafe_code)]

use super::config::Config;
use super::trained;
use crate::backend::page::PAGE;
use crate::error::{Error, Fault, Result};
use crate::model::activations::Recompute;
use crate::model::plan::{TrainingLoad, TrainingPlan};
use crate::model::{Adapter, Model, Weights};
use crate::serve::ServedModel;

/// What is planned for: a student's model with the weights of its base, and the teacher whose logits are wanted.
#[derive(Clone, Copy)]
pub(super) struct Room<'a> {
    pub(super) config: &'a Config,
    pub(super) model: &'a Model,
    pub(super) base: &'a Weights,
    pub(super) adapter: Option<&'a Adapter>,
    pub(super) teacher: Option<&'a ServedModel>,
    /// What the engine's host budget leaves for it; None: no limit.
    pub(super) host: Option<u64>,
}

/// What an update was found to fit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fitted {
    pub(super) recompute: Recompute,
    /// Tokens of a pass, and pages of its timelines.
    pub(super) most: (usize, usize),
    /// Whether what an earlier, larger pass left must go first.
    pub(super) afresh: bool,
    /// Bytes of it all.
    pub(super) bytes: u64,
}

impl Room<'_> {
    /// The plan of passes of so many tokens on timelines of so many pages.
    pub(super) fn plan(&self, rows: usize, pages: usize, recompute: Recompute) -> Result<TrainingPlan> {
        let Room { config, model, base, adapter, teacher, .. } = self;
        let lora = config.lora.as_ref().map(|lora| lora.of(&model.config)).transpose()?;
        let (parameters, stored) = match &lora {
            None => (base.n_parameters(), base.bytes()),
            Some(lora) => {
                let dtype = adapter.map_or_else(|| trained::fresh_dtype(base), Adapter::dtype);
                let n = Adapter::parameters_of(&model.config, lora);
                (n, n * dtype.size() as u64)
            }
        };
        let rank = lora.map_or(0, |lora| lora.rank);
        let teacher = teacher.map(|t| (t.config().hidden_size, t.config().vocab_size));
        let load = TrainingLoad { rows, pages, parameters, stored, rank, recompute, teacher };
        Ok(TrainingPlan::new(&model.config, &model.device, model.compute, load))
    }

    /// What passes of (tokens, pages) take in buffers that held `had` before: what that was larger in counts, and is given up
    /// where there is no room for it.
    pub(super) fn fit(&self, wanted: (usize, usize), had: (usize, usize)) -> Result<Fitted> {
        let most = (had.0.max(wanted.0), had.1.max(wanted.1));
        match self.choose(most.0, most.1) {
            Ok((recompute, bytes)) => Ok(Fitted { recompute, most, afresh: false, bytes }),
            Err(_) => {
                let (recompute, bytes) = self.choose(wanted.0, wanted.1)?;
                Ok(Fitted { recompute, most: wanted, afresh: true, bytes })
            }
        }
    }

    /// What the backward computes again, for passes of so many tokens: what the settings say, or as little as the budgets
    /// allow; and the bytes of the update.
    fn choose(&self, rows: usize, pages: usize) -> Result<(Recompute, u64)> {
        let own = Some(self.config.training_budget).filter(|&budget| budget > 0);
        let budget = own.into_iter().chain(self.host).min();
        let choices = match &self.config.recompute {
            Some(given) => std::slice::from_ref(given),
            None => &Recompute::ALL,
        };
        let mut least = None;
        for &choice in choices {
            let plan = self.plan(rows, pages, choice)?;
            if budget.is_none_or(|budget| plan.total() <= budget) {
                return Ok((choice, plan.total()));
            }
            least = Some((plan, choice));
        }
        let (Some((plan, choice)), Some(budget)) = (least, budget) else { return Ok((Recompute::Nothing, 0)) };
        let (needed, fixed) = (plan.total(), plan.fixed());
        let whose = match own == Some(budget) {
            true => format!("training_budget of {budget} bytes"),
            false => format!("the engine's host_budget, of which {budget} bytes are free for it"),
        };
        let why = format!(
            "{whose}: an update of {rows} tokens at once needs {needed} where it computes {} again, \
             {fixed} of them whatever the tokens; lower micro_tokens, play shorter episodes, or train an adapter",
            choice.name()
        );
        Err(Error::memory(Fault::HostBudget, needed, budget, why))
    }

    /// The least update, of one token. Refused by budgets that hold none at all.
    pub(super) fn least(&self) -> Result<Fitted> {
        self.fit((1, 1), (0, 0))
    }
}

/// Pages of a timeline of `n` tokens.
pub(super) fn pages_of(n: usize) -> usize {
    n.div_ceil(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distill::{Distiller, EpisodeSpec, Replay};
    use crate::model::ModelConfig;
    use crate::serve::{Cancel, Engine, EngineOptions};
    use crate::tensor::Dtype;
    use serde_json::{Value, json};

    const N: usize = 70;

    fn model(engine: &Engine, sparse: bool) -> ServedModel {
        let mut document = json!({
            "model_type": "qwen3", "vocab_size": 301, "hidden_size": 48, "intermediate_size": 80,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "max_position_embeddings": 512, "tie_word_embeddings": true,
        });
        if sparse {
            let more = json!({
                "model_type": "qwen3_moe", "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [1],
            });
            more.as_object().unwrap().iter().for_each(|(key, value)| document[key] = value.clone());
        }
        engine.random_model(ModelConfig::from_json(&document).unwrap(), Dtype::F32, 1, 0).unwrap()
    }

    /// What an update of one episode took of each part, and what was planned.
    #[test]
    fn what_is_planned_is_what_is_taken() {
        let none = Value::Null;
        let adapter = json!({"rank": 4, "targets": ["q_proj", "o_proj"]});
        for (sparse, lora) in [(false, &none), (true, &none), (false, &adapter), (true, &adapter)] {
            for recompute in Recompute::ALL {
                let engine = Engine::new(EngineOptions { n_threads: 2, ..EngineOptions::default() }).unwrap();
                let (student, teacher) = (model(&engine, sparse), model(&engine, sparse));
                let settings = json!({
                    "preset": "sft", "replay_turns": {"kernel": "reverse-kl"}, "recompute": recompute.name(), "lora": lora,
                });
                let config = Config::from_value(&settings).unwrap();
                let d = Distiller::new(&student, Some(&teacher), config).unwrap();
                let episode = d.begin(EpisodeSpec::default()).unwrap();
                let ids: Vec<i32> = (0..=N as i32).map(|i| i * 31 % 250).collect();
                episode.observe_ids(&ids[..4]).unwrap();
                episode.decide().unwrap();
                episode.replay(Replay::Ids(&ids[4..])).unwrap();
                episode.outcome(None, true).unwrap();
                episode.end(1.0, None).unwrap();
                let mut update = d.build(0, &Cancel::default(), &mut |_, _| true).unwrap();
                d.apply(&mut update).unwrap();

                let current = student.current();
                let room = Room {
                    config: d.config(),
                    model: student.model(),
                    base: &current.weights,
                    adapter: None,
                    teacher: Some(&teacher),
                    host: None,
                };
                let plan = room.plan(N, pages_of(N), recompute).unwrap();
                let learning = d.learning().unwrap();
                let (learner, workspace) = (learning.learner.as_ref().unwrap(), learning.workspace.as_ref().unwrap());
                let n = learner.masters.n_parameters();
                assert_eq!((plan.masters, plan.moments, plan.gradients), (4 * n, 8 * n, 4 * n));
                let made = &learning.unpublished.as_ref().unwrap().parameters;
                assert_eq!(plan.weights, made.tensors().iter().map(|(_, t)| t.n_bytes() as u64).sum::<u64>());
                // Of the logits that a step is measured by, nothing is kept.
                let measured = 2 * student.model().device.taken(64 * 301 * 4);
                let held = plan.kv + plan.activations + plan.backward + plan.logits - measured;
                match sparse {
                    false => assert_eq!(workspace.taken(), held, "{recompute:?}, {lora}"),
                    // All rows might have gone to one expert.
                    true => assert!(workspace.taken() <= held, "{recompute:?}, {lora}"),
                }
                assert!(student.model().device.cpu().scratch_held() <= plan.scratch, "{recompute:?}, {lora}");
            }
        }
    }
}
