//! From ended episodes to an update: whose teacher is waited for, who is set aside, and the gradients of the rest.
#![forbid(unsafe_code)]

use std::time::Instant;

use super::batch::plan;
use super::distiller::{Distiller, Learning};
use super::ended::{Gathering, Score, Waiting, may_succeed_later};
use super::learner::Task;
use super::packing::Packing;
use super::report::{Report, SetAside};
use super::unlearnt::identity;
use super::unpublished::Unpublished;
use super::update::Update;
use super::weighing::weigh;
use super::workspace::{Finished, Workspace};
use crate::backend::cpu::FloatEnv;
use crate::error::{Error, Fault, Result};
use crate::model::{Parameters, Weights};
use crate::serve::{Cancel, Level};

impl Distiller {
    /// Builds an update from up to `max_episodes` ended episodes (0: the settings' `batch_episodes`), in order of their
    /// identity; further ones wait for the next. Refused with `RunComplete` once the settings' `steps` are done.
    /// Blocks; `progress` is told tokens done (none while the teacher is waited for) and in all, and may stop it by
    /// returning false. Cancelled or failed, the episodes wait on.
    ///
    /// An episode that the teacher cannot score is set aside, and the next in order takes its place: the report and the log
    /// name it with the reason. Later builds ask again where memory was lacking, or the host's teacher failed or was silent; any other stays until [`Distiller::discard`].
    /// Where none is left the build fails with the first reason.
    pub fn build(
        &self,
        max_episodes: usize,
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Update> {
        let busy = || Error::new(Fault::DistillerBusy, "another update is being built or applied");
        let mut learning = self.0.learning.try_lock().ok_or_else(busy)?;
        // Weights, schedules and sums are computed in squire's own environment, whatever the caller's is.
        let floats = FloatEnv::scalars();
        let device = self.0.student.model().device.clone();
        let progress: &mut dyn FnMut(u64, u64) -> bool =
            &mut |done, all| device.at_rest(|| floats.outside(|| progress(done, all)));
        let (step, steps) = (self.step(), self.0.config.steps);
        if step >= steps {
            let why = format!(
                "all {steps} steps of the run are done; to go on, discard the episodes that wait, save a checkpoint and \
                 resume it with more steps"
            );
            return Err(Error::new(Fault::RunComplete, why));
        }
        let most = if max_episodes == 0 { self.0.config.batch_episodes as usize } else { max_episodes };
        let mut gathering = Gathering::default();
        let begun = Instant::now();
        let result = self.gather(&mut gathering, most, cancel, progress);
        let waited = begun.elapsed().as_secs_f64();
        let result = result.and_then(|()| self.record_teacher(&mut gathering.finished));
        let result = result.and_then(|()| self.build_from(&mut learning, &gathering.finished, cancel, progress));
        let mut result = result.and_then(|mut update| {
            let by_model = std::mem::take(&mut update.gradients.by_model);
            self.record_model(&mut gathering.finished, &by_model).map(|()| update)
        });
        if result.is_ok() {
            let of = gathering.finished.iter().map(|(_, finished)| identity(&finished.trajectory.heading));
            self.0.state.lock().unlearnt.built(of);
        }
        if result.is_err() {
            // Under the learner's lock: a checkpoint that is taken next must not miss them.
            self.0.state.lock().ended.extend(std::mem::take(&mut gathering).give_back());
        }
        let aside = match &mut result {
            Err(_) => Vec::new(),
            Ok(update) => self.set_aside(gathering.failed, update),
        };
        drop(learning);
        aside.iter().for_each(|what| self.log(Level::Warning, what));
        match &mut result {
            Err(e) => self.note_failure("build", e),
            Ok(update) => {
                update.gradients.report.teacher_seconds = waited;
                let Report { loss, trained_tokens, episodes, gradient_norm, seconds, .. } = update.report();
                let what = format!(
                    "update of step {} built: loss {loss:.6}, {trained_tokens} tokens of {episodes} episodes, gradient \
                     norm {gradient_norm:.4}, {seconds:.3} s",
                    update.step
                );
                self.log(Level::Info, &what);
                self.note_update(update.step, update.report());
                for warning in &update.report().warnings {
                    self.log(Level::Warning, &format!("update of step {}: {warning}", update.step));
                }
            }
        }
        result
    }

    /// Takes episodes in the order of their identity until `most` are there with what the teacher says of them.
    fn gather(
        &self,
        gathering: &mut Gathering,
        most: usize,
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<()> {
        let (student, config) = (&self.0.student, &self.0.config);
        let score: &Score = &|trajectory| self.scoring_of(trajectory);
        loop {
            let mut state = self.0.state.lock();
            state.ended.sort_by_key(|waiting| (waiting.episode, waiting.trajectory().heading.run));
            let (mut taken, mut room) = (Vec::new(), most.saturating_sub(gathering.finished.len()));
            state.ended = std::mem::take(&mut state.ended).into_iter().fold(Vec::new(), |mut left, waiting| {
                let takes = room > 0 && waiting.is_asked_for();
                room -= usize::from(takes);
                if takes { &mut taken } else { &mut left }.push(waiting);
                left
            });
            drop(state);
            if taken.is_empty() {
                break;
            }
            gathering.add(taken, score);
            let all = plan(&gathering.trajectories(), config, student.current().number)?.n_fed() as u64;
            let mut watch = || !cancel.is_set() && progress(0, all);
            gathering.finish(&mut watch, || student.engine().check_alive(), score)?;
        }
        match gathering.failed.first() {
            Some((waiting, e)) if gathering.finished.is_empty() => {
                Err(e.again().within(format!("episode {}", waiting.episode)))
            }
            _ => Ok(()),
        }
    }

    /// Keeps what could not be scored beside the waiting episodes, tells of it in the report, and gives what the log is to say:
    /// under the learner's lock too.
    fn set_aside(&self, failed: Vec<(Waiting, Error)>, update: &mut Update) -> Vec<String> {
        let mut told = Vec::new();
        for (mut waiting, e) in failed {
            let (episode, reason) = (waiting.episode, e.message().to_string());
            let next = if may_succeed_later(&e) { "later builds ask again" } else { "it stays until it is discarded" };
            told.push(format!("episode {episode} is set aside, the teacher could not score it ({next}): {reason}"));
            update.gradients.report.set_aside.push(SetAside { episode, reason });
            waiting.set_aside = Some(e);
            self.0.state.lock().ended.push(waiting);
        }
        told
    }

    fn build_from(
        &self,
        learning: &mut Learning,
        finished: &[(u64, Finished)],
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Update> {
        let current = self.0.student.bind();
        let device = self.0.student.model().device.clone();
        let _waits = device.work_that_waits();
        let records: Vec<&Finished> = finished.iter().map(|(_, f)| f).collect();
        let mut packing = Packing::of(&records, &self.0.config, current.number)?;
        let fitted = self.reserve(learning, &current, packing.extent()).map_err(|e| packing.refused(&records, e))?;
        self.begin_learning(learning, &current)?;
        let (weights, adapter, revision): (&Weights, _, _) = match &learning.unpublished {
            Some(Unpublished { parameters: Parameters::Weights(weights), .. }) => (weights, None, None),
            Some(Unpublished { parameters: Parameters::Adapter(adapter), .. }) => {
                (&current.weights, Some(adapter), None)
            }
            // One that was just begun changes nothing, so what was sampled without it was sampled with it.
            None => (&current.weights, current.adapter().or(learning.begun.as_ref()), Some(current.number)),
        };
        let missing = || Error::new(Fault::OutOfOrder, "there is no learner");
        let task = Task {
            student: self.0.student.model(),
            weights,
            adapter,
            trained: &learning.learner.as_ref().ok_or_else(missing)?.masters,
            revision,
            served: revision.map(|_| current.watch()),
            published: current.number,
            teacher: self.teacher(),
            vocabulary: self.0.vocabulary,
            config: &self.0.config,
        };
        let workspace = match &mut learning.workspace {
            Some(workspace) => workspace,
            none => none.insert(Workspace::new(task.student, task.teacher)?),
        };
        workspace.fit(task.student, fitted)?;
        let settings = task.config.turn_weights;
        let all = packing.batch.n_fed() as u64;
        let mut go_on = || match !cancel.is_set() && progress(0, all) {
            true => Ok(()),
            false => Err(Error::new(Fault::Cancelled, "the update was cancelled")),
        };
        let of = (&device, task.teacher, task.vocabulary);
        weigh(&mut packing.batch, &records, workspace, of, settings, &mut go_on)?;
        let gradients = task.gradients(workspace, &records, &packing, cancel, progress)?;
        Ok(Update { distiller: self.clone(), gradients, step: self.step(), line: learning.line, applied: false })
    }
}
