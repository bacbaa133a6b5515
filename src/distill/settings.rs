//! Reading and writing the settings of a distillation: one JSON document, every value with its origin.
//!
//! Values come in three layers, defaults < preset < document, and each knob remembers which layer set it, so that a run can say
//! why it does what it does. Unknown keys are refused. Schedules, `actor` and other values that are objects are replaced as a
//! whole; objects of knobs merge field by field. Settings that contradict each other are refused when all are read.
#![forbid(unsafe_code)]

use super::actor::Actor;
use super::advantage::{Advantage, Baseline, Importance, Reward, RewardOf};
use super::config::{Config, Origin};
use super::document::{bad, fields, shorten};
use super::knob_table::{KNOBS, Knob};
use super::knobs::{ActorPolicy, Filter, LearnTurns, Normaliser, Optimizer, Sampling, Scope, TeacherFails, Truncated};
use super::preset::PRESETS;
use super::schedule::Schedule;
use super::turn_loss::TurnLoss;
use super::turn_weights::{Rule, TurnWeights};
use crate::backend::ops::{AdvantageShape, Clip, Loss, Ratio, Reference, Tail};
use crate::error::{Error, Fault, Result};
use serde_json::{Map, Value, json};

/// Where the knobs of policy gradients count.
const OF_GRADIENTS: &str = "student_turns.kernel is policy-gradient";

impl Default for Config {
    /// The table's defaults.
    fn default() -> Config {
        let nothing = Schedule::fixed(0.0);
        let mut config = Config {
            preset: None,
            steps: 0,
            seed: 0,
            actor: ActorPolicy::Student,
            teacher_tokens: 0,
            teacher_fails: TeacherFails::Again,
            teacher_adapter: None,
            depth: None,
            student_turns: TurnLoss::NONE,
            teacher_turns: TurnLoss::NONE,
            replay_turns: TurnLoss::NONE,
            tail: Tail::Bucket,
            advantage: Advantage {
                teacher: nothing,
                reward: nothing,
                constant: 0.0,
                reference: Reference::Frozen,
                shape: AdvantageShape::Identity,
            },
            ratio: Importance { of: Ratio::None, clip: Clip::None, dual_clip: 0.0 },
            reward: Reward { of: RewardOf::Score, baseline: Baseline::None, group: 0, eps: 0.0, discount: 0.0 },
            turn_weights: TurnWeights { rule: Rule::None, renormalise: false },
            normaliser: Normaliser::TokenMean,
            normaliser_scope: Scope::Batch,
            learn_turns: LearnTurns::All,
            filter: Filter::None,
            truncated: Truncated::Learn,
            max_repeats: 0,
            max_staleness: 0,
            sampling: Sampling { temperature: 0.0, top_k: 0, top_p: 0.0 },
            batch_episodes: 0,
            optimizer: Optimizer {
                learning_rate: nothing,
                warmup_steps: 0,
                beta1: 0.0,
                beta2: 0.0,
                eps: 0.0,
                weight_decay: 0.0,
                grad_clip: 0.0,
            },
            micro_tokens: 0,
            recompute: None,
            training_budget: 0,
            lora: None,
            kept_revisions: 0,
            rollback_revisions: 0,
            max_turns: 0,
            update_kl_tokens: 0,
            max_update_kl: 0.0,
            refuse_update_kl: None,
            probe_rows: 0,
            origins: vec![Origin::Default; KNOBS.len()],
        };
        for knob in KNOBS {
            let read = serde_json::from_str(knob.default).map(|value| (knob.read)(&mut config, &value, knob.path));
            // A test reads every default.
            debug_assert!(matches!(read, Ok(Ok(()))), "the default of {} is not read", knob.path);
        }
        config
    }
}

impl Config {
    /// Reads a document. [`Fault::BadJson`], [`Fault::UnknownKey`], [`Fault::BadValue`], [`Fault::UnknownPreset`];
    /// [`Fault::UnsupportedMethod`] where no turn would ever carry loss or a loss is not of the tokens that it would be given.
    pub fn from_json(text: &str) -> Result<Config> {
        let document = serde_json::from_str(text)
            .map_err(|e| Error::new(Fault::BadJson, format!("the distillation settings are not JSON: {e}")))?;
        Config::from_value(&document)
    }

    /// The same from parsed JSON.
    pub fn from_value(document: &Value) -> Result<Config> {
        let mut config = Config::default();
        if let Some(asked) = document.get("preset") {
            let asked = asked.as_str().ok_or_else(|| bad(asked, "preset", "a preset's name"))?;
            let found = PRESETS.iter().find(|preset| preset.name == asked);
            let preset = found.ok_or_else(|| {
                let names: Vec<_> = PRESETS.iter().map(|preset| preset.name).collect();
                let message = format!("preset {} is not known; known are {}", shorten(asked), names.join(", "));
                Error::new(Fault::UnknownPreset, message)
            })?;
            let name = preset.name;
            let settings = serde_json::from_str(preset.settings)
                .map_err(|e| Error::new(Fault::BadJson, format!("preset {name} is not JSON: {e}")))?;
            config.layer(&settings, Origin::Preset(name)).map_err(|e| e.within(format_args!("preset {name}")))?;
            config.preset = Some(name);
        }
        config.layer(document, Origin::Given)?;
        config.check()?;
        Ok(config)
    }

    /// A preset on its own; [`Fault::UnknownPreset`].
    pub fn preset(name: &str) -> Result<Config> {
        Config::from_value(&json!({ "preset": name }))
    }

    /// The resolved document: every knob, no preset, and the default of one that does nothing under the others. Reading it gives a
    /// run that does the same, so it is what a checkpoint compares.
    pub fn to_json(&self) -> Value {
        let (mut document, default) = (Map::new(), Config::default());
        for knob in KNOBS {
            let value = (knob.show)(if self.idle(knob.path).is_some() { &default } else { self });
            match knob.path.split_once('.') {
                None => _ = document.insert(knob.path.into(), value),
                Some((object, key)) => {
                    let object = document.entry(object).or_insert_with(|| json!({}));
                    object[key] = value;
                }
            }
        }
        Value::Object(document)
    }

    /// Which layer set the knob at `path`.
    pub fn origin(&self, path: &str) -> Option<Origin> {
        KNOBS.iter().position(|knob| knob.path == path).map(|i| self.origins[i])
    }

    /// Notes the layer that set the knob at `path`.
    pub(super) fn mark(&mut self, path: &str, origin: Origin) {
        if let Some(i) = KNOBS.iter().position(|knob| knob.path == path) {
            self.origins[i] = origin;
        }
    }

    /// Lays the keys of `document` over the settings.
    fn layer(&mut self, document: &Value, origin: Origin) -> Result<()> {
        let mut known = vec!["preset"];
        known.extend(KNOBS.iter().map(|knob| knob.path.split('.').next().unwrap_or_default()));
        known.dedup();
        for (key, value) in fields(document, "", &known)? {
            match KNOBS.iter().find(|knob| knob.path == key) {
                Some(knob) => self.set(knob, value, origin)?,
                None if key == "preset" => {} // read before
                None => {
                    let within =
                        || KNOBS.iter().filter_map(|k| Some((k, k.path.strip_prefix(key)?.strip_prefix('.')?)));
                    let names: Vec<_> = within().map(|(_, name)| name).collect();
                    for (name, value) in fields(value, key, &names)? {
                        if let Some((knob, _)) = within().find(|(_, known)| known == name) {
                            self.set(knob, value, origin)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn set(&mut self, knob: &Knob, value: &Value, origin: Origin) -> Result<()> {
        (knob.read)(self, value, knob.path)?;
        self.mark(knob.path, origin);
        Ok(())
    }

    /// Refuses settings that contradict each other.
    fn check(&self) -> Result<()> {
        self.check_that_something_is_learnt()?;
        self.student_turns.check_of_student(self.sampling)?;
        self.teacher_turns.check_of_others("teacher_turns")?;
        self.replay_turns.check_of_others("replay_turns")?;
        self.check_that_knobs_count()?;
        self.check_policy_gradient()?;
        if self.turn_weights.rule != Rule::None && !self.loss_of(Actor::Student).needs_teacher() {
            return Err(contradiction(
                "turn_weights.rule: wanted none, or a student_turns.kernel that asks a teacher: turns are weighed by what the \
                 two make of them",
            ));
        }
        for (knob, bound) in
            [("refuse_update_kl", self.refuse_update_kl.unwrap_or(0.0)), ("max_update_kl", self.max_update_kl)]
        {
            let is_asked_for = bound > 0.0 && self.origin(knob) != Some(Origin::Default);
            if is_asked_for && self.update_kl_tokens == 0 {
                let why = format!("{knob}: wanted 0, or update_kl_tokens above 0, without which no step's KL is known");
                return Err(contradiction(why));
            }
        }
        Ok(())
    }

    /// Under which other settings the knob at `path` would do something, where it does nothing under these.
    pub(super) fn idle(&self, path: &str) -> Option<&'static str> {
        let Advantage { teacher, reward, .. } = &self.advantage;
        let is_gradient = matches!(self.student_turns.kind, Some(Loss::PolicyGradient(_)));
        let (asks_teacher, takes_rewards) = (teacher.bounds() != (0.0, 0.0), reward.bounds() != (0.0, 0.0));
        let Reward { of, baseline, .. } = self.reward;
        let rule = self.turn_weights.rule;
        let by_first = matches!(rule, Rule::Sod(_) | Rule::GapRatio(_));
        // (paths that begin so, whether they count, where they do); the first that does not count is told.
        let rules: &[(&str, bool, &str)] = &[
            ("advantage.", is_gradient, OF_GRADIENTS),
            ("ratio.", is_gradient, OF_GRADIENTS),
            ("reward.", is_gradient, OF_GRADIENTS),
            ("advantage.reference", asks_teacher, "advantage.teacher is above 0"),
            ("advantage.shape", asks_teacher, "advantage.teacher is above 0"),
            ("reward.", takes_rewards, "advantage.reward is above 0"),
            ("reward.discount", of == RewardOf::Return, "reward.of is return"),
            ("reward.eps", baseline == Baseline::Group, "reward.baseline is group"),
            ("reward.group", baseline != Baseline::None, "reward.baseline compares"),
            ("turn_weights.renormalise", rule != Rule::None, "turn_weights.rule weighs"),
            (
                "turn_weights.rule",
                !by_first || self.learn_turns == LearnTurns::All,
                "more than the last turn is learnt",
            ),
            ("teacher_tokens", self.lets_teacher_act(), "the actor lets the teacher act"),
            (
                "teacher_fails",
                self.lets_teacher_act() || self.teacher_follows_replay(),
                "the actor lets the teacher act",
            ),
        ];
        let is_of = |rule: &str| path == rule || (rule.ends_with('.') && path.starts_with(rule));
        rules.iter().find(|(rule, counts, _)| !counts && is_of(rule)).map(|(_, _, when)| *when)
    }

    /// Refuses a knob that was given and does nothing under the other settings. Spelling out a default is no contradiction, and
    /// what a preset has for its own kernel may be left to stand where only a part of it is overridden.
    fn check_that_knobs_count(&self) -> Result<()> {
        let default = Config::default();
        for knob in KNOBS {
            let Some(when) = self.idle(knob.path) else { continue };
            let is_set = match self.origin(knob.path) {
                None | Some(Origin::Default) => false,
                Some(Origin::Preset(_)) => when == OF_GRADIENTS,
                Some(Origin::Given) => true,
            };
            if is_set && (knob.show)(self) != (knob.show)(&default) {
                return Err(contradiction(format!("{}: it has a meaning only where {when}", knob.path)));
            }
        }
        Ok(())
    }

    fn check_policy_gradient(&self) -> Result<()> {
        let Advantage { teacher, reward, constant, .. } = &self.advantage;
        let (asks_teacher, takes_rewards) = (teacher.bounds() != (0.0, 0.0), reward.bounds() != (0.0, 0.0));
        if !matches!(self.student_turns.kind, Some(Loss::PolicyGradient(_))) {
            return Ok(());
        }
        if !asks_teacher && !takes_rewards && *constant == 0.0 {
            return Err(contradiction(
                "advantage: wanted teacher, reward or constant other than 0: every advantage would be 0",
            ));
        }
        match self.ratio {
            Importance { of: Ratio::None, clip, dual_clip } if clip != Clip::None || dual_clip > 0.0 => Err(
                contradiction("ratio.clip: wanted none and no dual_clip, or ratio.of token or turn: there is no ratio"),
            ),
            Importance { clip: Clip::None | Clip::Truncate(_), dual_clip, .. } if dual_clip > 0.0 => {
                Err(contradiction("ratio.dual_clip: wanted 0, or ratio.clip ppo, whose bound it is"))
            }
            _ if takes_rewards
                && self.reward.baseline != Baseline::None
                && !self.batch_episodes.is_multiple_of(self.reward.group) =>
            {
                Err(contradiction(format!(
                    "batch_episodes: wanted a multiple of reward.group, {}, so that no group is cut in two, found {}",
                    self.reward.group, self.batch_episodes
                )))
            }
            _ => Ok(()),
        }
    }

    /// Refuses settings under which every actor that the policy can choose carries no loss.
    fn check_that_something_is_learnt(&self) -> Result<()> {
        let actors = self.actors();
        if actors.iter().any(|&actor| self.loss_of(actor).kind.is_some()) {
            return Ok(());
        }
        let turns: Vec<_> = actors.iter().map(|actor| format!("{}_turns.kernel", actor.name())).collect();
        let kind = self.actor.to_json();
        let kind = kind["kind"].as_str().unwrap_or_default();
        let message = format!("no turn would carry loss: actor {kind} with {} none", turns.join(" and "));
        Err(Error::new(Fault::UnsupportedMethod, message))
    }
}

fn contradiction(why: impl Into<String>) -> Error {
    Error::new(Fault::BadValue, why)
}

#[cfg(test)]
mod tests {
    use super::super::schedule::Schedule;
    use super::*;
    use std::fmt::Write;

    #[test]
    fn every_default_is_read_and_shown_as_it_is_written() {
        let config = Config::default();
        for knob in KNOBS {
            let written: Value = serde_json::from_str(knob.default).unwrap();
            (knob.read)(&mut Config::default(), &written, knob.path).unwrap();
            assert_eq!((knob.show)(&config), written, "{}", knob.path);
            assert!(knob.path.matches('.').count() <= 1 && !knob.takes.is_empty() && knob.meaning.ends_with('.'));
        }
        assert_eq!(config.advantage.teacher, Schedule::fixed(1.0));
    }

    #[test]
    fn knobs_of_one_object_stand_together() {
        let mut objects: Vec<_> =
            KNOBS.iter().filter_map(|k| k.path.split_once('.')).map(|(object, _)| object).collect();
        objects.dedup();
        let mut once = objects.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(objects.len(), once.len(), "{objects:?}");
    }

    /// docs/settings.md, of the table and the presets.
    fn page() -> String {
        let mut page = String::from(
            "# Settings of a distillation\n\nThis page is written by `cargo test` from the table that reads the settings \
             (src/distill/knob_table.rs) and the presets (src/distill/preset.rs); `SQUIRE_WRITE_SETTINGS=1 cargo test --lib \
             settings` writes it anew. `squire distill --explain PRESET` shows the same for a preset, with every schedule's values.\n\nA document \
             is a JSON object of knobs. A knob with a dot stands in an object: `optimizer.beta1` is `{\"optimizer\": \
             {\"beta1\": 0.9}}`. Values come in three layers, defaults < preset < document; objects of knobs merge knob by knob, \
             every other value is replaced as a whole, and unknown keys are refused by name.\n\nA schedule is a number, or \
             `{\"start\", \"end\", \"shape\": const, linear, cosine, exp or step, \"begin\", \"finish\", \"clock\": step, \
             fraction or {\"units\": steps}}` (src/distill/schedule.rs has the formulas). Those of an episode go by the step at \
             which it began.\n\n## Knobs\n\n",
        );
        let marks = |knob: &Knob| match (knob.on_resume, knob.experimental) {
            (_, true) => " Experimental: no paper stands behind it.",
            (super::super::knob_table::OnResume::Free | super::super::knob_table::OnResume::Retuned, _) => {
                " A resumed run may change it."
            }
            _ => "",
        };
        page.push_str("| knob | takes | default | what it does |\n|---|---|---|---|\n");
        let cell = |text: &str| text.replace('|', "\\|");
        for knob in KNOBS {
            let (path, default) = (knob.path, knob.default);
            writeln!(page, "| `{path}` | {} | `{default}` | {}{} |", cell(knob.takes), cell(knob.meaning), marks(knob))
                .unwrap();
        }
        page.push_str("\n## Presets\n\nEach is settings of the knobs above, nothing more; docs/methods.md has their formulas, recipes for hosts and what is not built.\n");
        for preset in PRESETS {
            writeln!(page, "\n### {}\n\n{}\n", preset.name, preset.what).unwrap();
            let config = Config::preset(preset.name).unwrap();
            for knob in KNOBS.iter().filter(|knob| config.origin(knob.path) != Some(Origin::Default)) {
                writeln!(page, "- `{}`: `{}`", knob.path, (knob.show)(&config)).unwrap();
            }
            page.push_str("\nWhere the source is silent or differs, and what was chosen:\n\n");
            preset.notes.iter().for_each(|note| writeln!(page, "- {note}").unwrap());
        }
        page
    }

    #[test]
    fn the_page_of_settings_is_that_of_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/settings.md");
        if std::env::var_os("SQUIRE_WRITE_SETTINGS").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == page(),
            "docs/settings.md is not the table's: SQUIRE_WRITE_SETTINGS=1 cargo test --lib settings"
        );
    }
}
