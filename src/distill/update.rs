//! A built update, and what becomes of it: applied to the masters, then published, or refused.
//!
//! Applying changes masters and moments in place, so a step is not undone; what it made is looked at before anybody
//! gets it. What is refused is not saved either: the last checkpoint is the way back.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::distiller::{Distiller, Learning};
use super::learner::Gradients;
use super::probe::{Expected, Probe};
use super::report::Report;
use super::trained;
use super::unpublished::{Moved, Unpublished};
use super::update_kl::{are_finite, mean_kl, mean_known};
use crate::backend::cpu::FloatEnv;
use crate::error::{Error, Fault, Result};
use crate::model::{Adapter, Parameters, Weights};
use crate::serve::{Level, Session};

/// A built update: gradients with their report. Applied at most once, and only at the step it was built for.
pub struct Update {
    pub(super) distiller: Distiller,
    pub(super) gradients: Gradients,
    pub(super) step: u64,
    /// a distiller that went back since has dropped the weights that it is of
    pub(super) line: u64,
    pub(super) applied: bool,
}

impl Update {
    /// The account of the update.
    pub fn report(&self) -> &Report {
        &self.gradients.report
    }

    /// The optimiser step it belongs to.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Every gradient, f32, by name.
    pub fn gradients(&self) -> &Parameters {
        &self.gradients.parameters
    }
}

impl Distiller {
    /// Applies an update to the masters: one optimiser step. The student serves it once it is published. How far it moves
    /// the student is then in the update's report, and a warning in the log where that is beyond `max_update_kl`.
    pub fn apply(&self, update: &mut Update) -> Result<()> {
        self.take_step(update).inspect_err(|e| self.note_failure("apply", e))
    }

    fn take_step(&self, update: &mut Update) -> Result<()> {
        if !Arc::ptr_eq(&self.0, &update.distiller.0) {
            return Err(Error::new(Fault::ForeignHandle, "the update belongs to another distiller"));
        }
        let begun = Instant::now();
        let busy = || Error::new(Fault::DistillerBusy, "another update is being built or applied");
        let mut learning = self.0.learning.try_lock().ok_or_else(busy)?;
        let _floats = FloatEnv::scalars();
        let (step, settings) = (self.step(), &self.0.config);
        if update.applied || update.step != step {
            let why = format!("the update was built at step {}, the distiller is at step {step}", update.step);
            return Err(Error::new(Fault::StaleUpdate, why));
        }
        if update.line != learning.line {
            let why = "the distiller went back to a revision since the update was built; build another";
            return Err(Error::new(Fault::StaleUpdate, why));
        }
        let (model, current) = (self.0.student.model(), self.0.student.current());
        trained::check(settings, &model.config, &current)?;
        self.check_base(&learning, &current)?;
        let waits = model.device.work_that_waits();
        let Learning { learner, unpublished, workspace, .. } = &mut *learning;
        let missing = || Error::new(Fault::OutOfOrder, "there is no learner: build an update first");
        let (learner, workspace) = learner.as_mut().zip(workspace.as_mut()).ok_or_else(missing)?;
        let Gradients { parameters: gradients, norm, report, sample, probe, .. } = &mut update.gradients;
        // Whatever may be refused is refused before the masters move.
        let compared = match sample.is_empty() {
            true => None,
            false => {
                let before = sample.served_logits(model, &current, self.0.vocabulary, workspace)?;
                Some((before, sample.room(&model.config)?))
            }
        };
        // What an earlier step made and nobody published is overwritten: two of them would not be planned.
        let mut next = match unpublished.take() {
            Some(Unpublished { parameters, .. }) => parameters,
            None => trained::served_form(settings, &model.config, &current)?,
        };
        learner.apply(&model.device, gradients, *norm, (settings, step));
        next.round_from(&model.device, &learner.masters);
        let are_finite = are_finite(&next);
        let student: (&Weights, Option<&Adapter>) = match &next {
            Parameters::Weights(weights) => (weights, None),
            Parameters::Adapter(adapter) => (&current.weights, Some(adapter)),
        };
        let is_asked_for = compared.is_some();
        let moved = compared.filter(|_| are_finite).and_then(|(before, mut after)| {
            sample.logits(model, student, self.0.vocabulary, workspace, &mut after).ok()?;
            let known = mean_known(&model.device, &before, self.0.vocabulary).ok()?;
            let kl = mean_kl(&model.device, &before, after).ok().filter(|kl| kl.is_finite())?;
            Some(Moved { kl, known })
        });
        let kl = moved.map(|moved| moved.kl);
        report.update_kl = kl;
        let probe = std::mem::take(probe);
        // The step is taken; what cannot be computed of it is not looked at.
        let probe = if are_finite { probe.expected(model, student, workspace).ok().flatten() } else { None };
        drop(waits);
        *unpublished = Some(Unpublished { parameters: next, are_finite, moved, probe });
        update.applied = true;
        let mut state = self.0.state.lock();
        state.step += 1;
        state.unlearnt.applied();
        state.totals.updates += 1;
        state.teacher_said = 0;
        drop((state, learning));
        let (rate, steps) = (settings.optimizer.learning_rate_at(step, settings.steps), settings.steps);
        let (seconds, bound) = (begun.elapsed().as_secs_f64(), settings.max_update_kl);
        let without = if is_asked_for { "unknown" } else { "not measured" };
        let moved = kl.map_or(without.to_string(), |kl| format!("{kl:.4}"));
        let what =
            format!("step {} of {steps} applied: learning rate {rate:.3e}, KL {moved}, {seconds:.3} s", step + 1);
        self.log(Level::Info, &what);
        self.note("applied", || json!({"step": step + 1, "update_kl": kl, "finite": are_finite, "seconds": seconds}));
        if !are_finite {
            self.log(Level::Warning, &format!("step {}: the weights are not finite and are not published", step + 1));
        } else if is_asked_for && bound > 0.0 && kl.is_none_or(|kl| kl > bound) {
            let why = format!(
                "step {}: the student moved by a KL of {moved} nats a token in one update, max_update_kl is {bound}: lower \
                 the learning rate or clip the gradient",
                step + 1
            );
            self.log(Level::Warning, &why);
        }
        Ok(())
    }

    /// Makes the applied weights the revision that new sessions and episodes get; returns its number, or
    /// the current one if nothing was applied since. Refused with `UpdateTooFar` beyond `refuse_update_kl`, and with
    /// `NotFinite` where the step broke the weights: the old revision then serves on, and no checkpoint is written
    /// over the last one. What is published is then asked a few log-probs, which are compared with the training forward's
    /// (`probe_rows`): a difference is an error in the log and no refusal.
    pub fn publish(&self) -> Result<u64> {
        self.publish_and_note(|unpublished| unpublished.check(&self.0.config))
    }

    /// The same however far the update moves the student; weights that are not finite are refused all the same.
    pub fn publish_anyway(&self) -> Result<u64> {
        self.publish_and_note(|unpublished| match unpublished.check(&self.0.config) {
            Err(e) if e.fault() != Fault::UpdateTooFar => Err(e),
            _ => Ok(()),
        })
    }

    fn publish_and_note(&self, check: impl FnOnce(&Unpublished) -> Result<()>) -> Result<u64> {
        // Another thread may apply the next step as soon as this one is published.
        let mut step = self.step();
        match self.publish_if(check, &mut step) {
            Ok(None) => Ok(self.0.student.current().number),
            Ok(Some((revision, probe))) => {
                self.note("published", || json!({"step": step, "revision": revision, "probe": probe}));
                Ok(revision)
            }
            Err(e) => {
                // For want of room it is asked again and again.
                if matches!(e.fault(), Fault::UpdateTooFar | Fault::NotFinite) {
                    self.log(Level::Warning, &format!("step {step} is not published: {}", e.message()));
                    self.note("refused", || json!({"step": step, "reason": e.message()}));
                }
                Err(e)
            }
        }
    }

    /// The number of the new revision and what its probe found, None where nothing was applied since the last; `step` is set to that
    /// which is published or refused.
    fn publish_if(
        &self,
        check: impl FnOnce(&Unpublished) -> Result<()>,
        step: &mut u64,
    ) -> Result<Option<(u64, Option<Probe>)>> {
        let busy = || Error::new(Fault::DistillerBusy, "an update is being built or applied");
        let mut learning = self.0.learning.try_lock().ok_or_else(busy)?;
        *step = self.step();
        let (student, limit) = (&self.0.student, self.0.config.kept_revisions as usize);
        let Learning { unpublished, begun, base, .. } = &mut *learning;
        let Some(applied) = unpublished else { return Ok(None) };
        check(applied)?;
        student.check_room(limit)?;
        let Some(Unpublished { parameters, are_finite, moved, probe }) = unpublished.take() else {
            return Ok(None);
        };
        let replaced = student.current();
        let published = match student.publish_or_give_back(parameters, base, limit) {
            Ok(published) => published,
            Err(refused) => {
                // An episode that began since the check took the room, or somebody replaced the base.
                let (parameters, e) = *refused;
                *unpublished = Some(Unpublished { parameters, are_finite, moved, probe });
                return Err(e);
            }
        };
        *begun = None;
        let forgotten = self.keep_for_rollback(Some(replaced));
        let probed = probe.map(|expected| self.probe(&expected, published));
        let found = probed.as_ref().and_then(|probed| probed.as_ref().ok().copied());
        self.0.state.lock().probe = found;
        drop(learning);
        drop(forgotten);
        if let Some(probed) = probed {
            self.tell_of_probe((*step, published), probed);
        }
        Ok(Some((published, found)))
    }

    /// Asks the serving path what the revision that was just published says. The learner's lock is held, so that it is the one.
    fn probe(&self, expected: &Expected, published: u64) -> Result<Probe> {
        let session = Session::new(&self.0.student)?;
        let bound = session.revision().number;
        if bound != published {
            let why = format!("revision {bound} was published over it at once");
            return Err(Error::new(Fault::OutOfOrder, why));
        }
        expected.ask(&session)
    }

    fn tell_of_probe(&self, (step, published): (u64, u64), probed: Result<Probe>) {
        match probed {
            Ok(Probe { differing: 0, .. }) => {}
            Ok(Probe { rows, differing, largest_difference }) => self.log(
                Level::Error,
                &format!(
                    "step {step}: revision {published} is not served as it was trained: {differing} of {rows} log-probs differ, by \
                     up to {largest_difference:e} nats; that is a defect of squire or of the machine"
                ),
            ),
            Err(e) => self.log(
                Level::Warning,
                &format!("step {step}: whether revision {published} is served as it was trained is not known: {}", e.message()),
            ),
        }
    }
}
