//! What a distiller writes into its run's folder, and when.
//!
//! The record comes first: an episode whose line cannot be written has not ended, and what the host's teacher said of one is
//! written before an update is built from it, what a teacher in the process says of it with the update that computes it. The metrics are for people: where they cannot be written the log says so once, and
//! the run goes on.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::folder::RunFolder;
use super::line::{EpisodeLine, RecordLine, TeacherLine, VERSION};
use super::options::RecordOptions;
use crate::distill::actor::Actor;
use crate::distill::config::Config;
use crate::distill::distiller::Distiller;
use crate::distill::learner::ByModel;
use crate::distill::report::Report;
use crate::distill::trajectory::{Trajectory, Turn};
use crate::distill::workspace::{Finished, Scores};
use crate::error::{Error, Fault, Result};
use crate::random::mix_bytes;
use crate::serve::Level;

/// Tells settings apart.
pub(in crate::distill) fn fingerprint(config: &Config) -> String {
    format!("{:016x}", mix_bytes(0, config.to_json().to_string().as_bytes()))
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

impl Distiller {
    /// Writes from now on each episode that ends, what the host's teacher says of it, and what becomes of the run into the folder
    /// `path`, which is made if it is not there. A resumed run goes on in its folder.
    ///
    /// Errors: `CannotWrite`, `CannotRead`; `RecordInUse` where another distiller writes there; `RecordMismatch` where another run
    /// lies there; `RecordForm`, `RecordVersion` where something else does.
    pub fn record(&self, path: &Path, options: RecordOptions) -> Result<()> {
        let student = self.student();
        let (settings, fingerprint) = (self.config().to_json(), fingerprint(self.config()));
        let step = self.step();
        let mut recorder = self.0.recorder.lock();
        // The same folder again is locked by this one; of another that is refused the one before must not suffer.
        let goes_on = recorder.as_ref().is_some_and(|folder| folder.is(path));
        if goes_on {
            *recorder = None;
        }
        let (mut folder, cut) = RunFolder::open(path, self.run(), (options, fingerprint.clone()))?;
        let line = RecordLine {
            kind: "record".into(),
            run: self.run(),
            version: VERSION,
            vocabulary: student.vocabulary_fingerprint(),
            rows: self.vocabulary(),
            compute: student.model().compute.name().into(),
            settings: settings.clone(),
            fingerprint: fingerprint.clone(),
            squire: env!("CARGO_PKG_VERSION").into(),
        };
        folder.record.append(&line)?;
        let config = student.config();
        // Before anything else can be told: whoever reads begins with it.
        folder.metrics.append(&json!({
            "kind": "run",
            "run": self.run(),
            "time": now(),
            "version": VERSION,
            "step": step,
            "goes_on": goes_on,
            "settings": settings,
            "fingerprint": fingerprint,
            "student": {
                "parameters": student.current().weights.n_parameters(),
                "layers": config.n_layers,
                "hidden_size": config.hidden_size,
            },
            "squire": env!("CARGO_PKG_VERSION"),
        }))?;
        *recorder = Some(folder);
        drop(recorder);
        for what in cut {
            self.log(Level::Warning, &what);
        }
        Ok(())
    }

    /// Writes nothing more.
    pub fn stop_recording(&self) {
        *self.0.recorder.lock() = None;
    }

    /// For the metrics: where the run is written, how many episodes were, and why the metrics were not; null where it is not.
    pub(in crate::distill) fn recording(&self) -> Value {
        let recorder = self.0.recorder.lock();
        recorder.as_ref().map_or(Value::Null, |RunFolder { path, episodes, failed, .. }| {
            json!({"folder": path.display().to_string(), "episodes": episodes, "failed": failed})
        })
    }

    /// Writes an episode that ends, and gives what the metrics are to say of it once it has; None where nothing is recorded. Errors:
    /// `CannotWrite`.
    pub(in crate::distill) fn record_episode(&self, trajectory: &Trajectory) -> Result<Option<Value>> {
        let mut recorder = self.0.recorder.lock();
        let Some(RunFolder { record, options, fingerprint, episodes, .. }) = &mut *recorder else { return Ok(None) };
        let tokenizer = self.student().tokenizer().ok().filter(|_| options.texts);
        let line = EpisodeLine::of(trajectory, fingerprint, tokenizer);
        record.append(&line).map_err(|e| {
            e.within("the episode has not ended, since its record cannot be written; make room and end it again, or record no more")
        })?;
        *episodes += 1;
        Ok(Some(summary(trajectory)))
    }

    /// Writes what the host's teacher said of finished episodes, once. Errors: `CannotWrite`.
    pub(in crate::distill) fn record_teacher(&self, finished: &mut [(u64, Finished)]) -> Result<()> {
        let mut recorder = self.0.recorder.lock();
        let Some(RunFolder { record, .. }) = &mut *recorder else { return Ok(()) };
        for (_, Finished { trajectory, scores, is_noted, .. }) in finished {
            // Another run's episodes stand in another record.
            let is_own = trajectory.heading.run == self.run();
            if let (Some(Scores::Said(said)), false, true) = (&*scores, *is_noted, is_own) {
                record.append(&TeacherLine::of(trajectory, said))?;
                *is_noted = true;
            }
        }
        Ok(())
    }

    /// Writes what a teacher that is a model says of the tokens that an update was built from, once. Errors: `CannotWrite`.
    pub(in crate::distill) fn record_model(&self, finished: &mut [(u64, Finished)], said: &[ByModel]) -> Result<()> {
        let mut recorder = self.0.recorder.lock();
        let Some(RunFolder { record, .. }) = &mut *recorder else { return Ok(()) };
        for of_one in said.chunk_by(|a, b| a.0 == b.0) {
            let (_, Finished { trajectory, is_noted, .. }) = &mut finished[of_one[0].0];
            if trajectory.heading.run == self.run() && !*is_noted {
                record.append(&TeacherLine::by_model(trajectory, of_one))?;
                *is_noted = true;
            }
        }
        Ok(())
    }

    /// Puts what was written where a power cut does not reach it: a checkpoint must not be ahead of the record.
    pub(in crate::distill) fn sync_record(&self) -> Result<()> {
        let files = self.0.recorder.lock().as_ref().map(RunFolder::files);
        // Without the lock: nobody's episode waits for the disk.
        files.map_or(Ok(()), |files| files?.into_iter().try_for_each(|file| file.sync()))
    }

    /// Writes an event down; `of` gives an object, and is called where somebody records only.
    pub(in crate::distill) fn note(&self, kind: &str, of: impl FnOnce() -> Value) {
        if self.0.recorder.lock().is_none() {
            return;
        }
        let mut line = json!({"kind": kind, "run": self.run(), "time": now()});
        if let (Value::Object(line), Value::Object(fields)) = (&mut line, of()) {
            line.extend(fields);
        }
        let mut recorder = self.0.recorder.lock();
        let Some(RunFolder { metrics, failed, .. }) = &mut *recorder else { return };
        let was_failing = failed.is_some();
        *failed = metrics.append(&line).err().map(|e| e.message().to_string());
        let news = failed.clone().filter(|_| !was_failing);
        drop(recorder);
        if let Some(why) = news {
            self.log(Level::Warning, &format!("the metrics cannot be written, the run goes on: {why}"));
        }
    }

    /// Notes that an update was built.
    pub(in crate::distill) fn note_update(&self, step: u64, report: &Report) {
        self.note("update", || {
            let config = self.config();
            let mut report = json!(report);
            report["step"] = json!(step);
            json!({
                "step": step,
                "schedules": config.schedules_at(step),
                "learning_rate": config.optimizer.learning_rate_at(step, config.steps),
                "report": report,
            })
        });
    }

    /// Notes what could not be done, unless somebody stopped it or came too early.
    pub(in crate::distill) fn note_failure(&self, what: &str, e: &Error) {
        let is_nothing =
            matches!(e.fault(), Fault::Cancelled | Fault::DistillerBusy | Fault::NothingToLearn | Fault::RunComplete);
        if !is_nothing {
            self.note("failed", || json!({"step": self.step(), "what": what, "reason": e.message()}));
        }
    }
}

/// An episode in a line.
pub(super) fn summary(trajectory: &Trajectory) -> Value {
    let heading = &trajectory.heading;
    let own = &trajectory.turns()[trajectory.shared_turns()..];
    let of = |actor: Actor| own.iter().filter(move |turn| turn.actor == actor);
    let tokens = |actor: Actor| of(actor).map(|turn| turn.range.len()).sum::<usize>();
    let score = trajectory.outcome().map_or(0.0, |o| o.score);
    let rewards: f64 = trajectory.turns().iter().filter_map(|turn: &Turn| turn.reward).sum();
    json!({
        "episode": heading.episode,
        "step": heading.step,
        "task": heading.task,
        "evaluation": heading.evaluation,
        "score": score,
        "success": trajectory.outcome().and_then(|o| o.success),
        "revision": heading.revision,
        "turns": trajectory.turns().len(),
        "tokens": trajectory.ids().len(),
        "student_tokens": tokens(Actor::Student),
        "teacher_tokens": tokens(Actor::Teacher),
        "replay_tokens": tokens(Actor::Replay),
        "student_turns": of(Actor::Student).count(),
        "teacher_turns": of(Actor::Teacher).count(),
        "replay_turns": of(Actor::Replay).count(),
        "return": rewards + score,
        "truncated": trajectory.turns().iter().filter(|turn| turn.truncated).count(),
    })
}
