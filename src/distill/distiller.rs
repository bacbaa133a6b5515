//! The distiller: a student that learns, its teacher, the settings, and the episodes between updates.
//!
//! An update is three calls, so that the host can look in between: build (gradients and a report), apply
//! (one optimiser step on the masters), publish (new sessions and episodes get the new weights).
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use serde_json::{Value, json};

use super::config::Config;
use super::ended::{Ended, Waiting};
use super::kept::Kept;
use super::knobs::Proposal;
use super::learner::Learner;
use super::probe::Probe;
use super::queue_options::Vocabulary;
use super::record::folder::RunFolder;
use super::record::known::{Identity, Known};
use super::room::{Fitted, Room};
use super::run_id::RunId;
use super::spec::EpisodeSpec;
use super::teacher::Teacher;
use super::teacher_queue::TeacherQueue;
use super::trained;
use super::trajectory::Heading;
use super::uncertainty::Uncertainties;
use super::unlearnt::{Unlearnt, identity};
use super::unpublished::Unpublished;
use super::workspace::Workspace;
use crate::backend::cpu::FloatEnv;
use crate::error::{Error, Fault, Result};
use crate::model::{Adapter, Parameters, Weights};
use crate::serve::{Counted, Level, Reserved, Revision, ServedModel};
use crate::sync::Mutex;

/// Distillers of this process so far.
static MADE: AtomicU64 = AtomicU64::new(0);

/// A distiller. Cheap to clone; clones are the same distiller.
#[derive(Clone)]
pub struct Distiller(pub(super) Arc<Inner>);

pub(super) struct Inner {
    /// of which the process has no other
    number: u64,
    /// which run it goes on with
    run: RunId,
    pub(super) student: ServedModel,
    pub(super) teacher: Option<Teacher>,
    pub(super) config: Config,
    /// Ids that student and teacher share: one may have rows of padding that the other lacks.
    pub(super) vocabulary: usize,
    pub(super) state: Mutex<State>,
    /// held while an update is built or applied, and while a checkpoint is written
    pub(super) learning: Mutex<Learning>,
    /// where the run is written down, if it is
    pub(super) recorder: Mutex<Option<RunFolder>>,
}

/// What changes between updates; locked for moments only.
pub(super) struct State {
    pub(super) step: u64,
    next_episode: u64,
    next_evaluation: u64,
    /// ended training episodes
    pub(super) ended: Vec<Waiting>,
    pub(super) totals: Totals,
    /// tokens that the teacher said in training since the last update
    pub(super) teacher_said: u64,
    /// of the last proposals
    pub(super) uncertainties: Uncertainties,
    /// episodes that were taken from records
    pub(super) known: Known,
    /// training episodes that no update had
    pub(super) unlearnt: Unlearnt,
    /// published revisions to go back to
    pub(super) kept: Kept,
    /// of the revision that was published last; None where it was not looked at
    pub(super) probe: Option<Probe>,
}

impl State {
    fn n_waiting(&self) -> usize {
        self.ended.iter().filter(|waiting| waiting.set_aside.is_none()).count()
    }

    /// The number that is asked for, or the next one of its kind.
    fn number(&mut self, asked: Option<u64>, evaluation: bool) -> u64 {
        let next = if evaluation { &mut self.next_evaluation } else { &mut self.next_episode };
        let episode = asked.unwrap_or(*next);
        *next = (*next).max(episode.saturating_add(1));
        episode
    }

    /// Whether an episode of a record was had before: taken from one, or of the own run and begun before the updates that were
    /// applied, or at this step under a number that was given already; but for those that an earlier process had begun and no
    /// update had.
    pub(super) fn has_had(&self, own: RunId, identity: &Identity) -> bool {
        let &(run, step, episode) = identity;
        let was_begun = || step < self.step || (step == self.step && episode < self.next_episode);
        self.known.has(identity) || (own == run && was_begun() && !self.unlearnt.was_left(identity))
    }

    /// Notes that an episode of a record is had from now on.
    pub(super) fn takes(&mut self, own: RunId, identity: Identity) {
        if own == identity.0 {
            self.number(Some(identity.2), false);
            self.unlearnt.taken(&identity);
        }
        self.known.add(identity);
        self.totals.episodes += 1;
    }
}

/// Counts over the distiller's life.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    episodes: u64,
    evaluations: u64,
    pub(super) updates: u64,
    thrown_away: u64,
}

pub(super) struct Learning {
    pub(super) learner: Option<Learner>,
    /// an adapter that was just begun, until the first step is published: what the student serves then has none
    pub(super) begun: Option<Adapter>,
    /// the base weights that it trains beside; nobody keeps them for it
    pub(super) base: Weak<Counted<Weights>>,
    /// what the last applied step made, until it is published
    pub(super) unpublished: Option<Unpublished>,
    /// times that what was learnt was dropped: updates that were built before are stale
    pub(super) line: u64,
    /// what the knobs by which the run learns were, each time before it was resumed with others: {path: value}
    pub(super) lineage: Vec<Value>,
    /// buffers of the last build
    pub(super) workspace: Option<Workspace>,
    /// what all of this may take of the engine's host budget
    pub(super) reserved: Reserved,
}

impl Distiller {
    /// A distiller of `student` towards `teacher` under `config`. Refused where the settings need a teacher
    /// that is not there, where the two do not share one vocabulary (rows of padding aside), or (`UnsupportedBackend`) where one is on a GPU.
    pub fn new(student: &ServedModel, teacher: Option<&ServedModel>, config: Config) -> Result<Distiller> {
        Distiller::taught(student, teacher.cloned().map(Teacher::Local), config)
    }

    /// The same by any teacher. Refused where the settings ask it for what it does not give.
    pub fn taught(student: &ServedModel, teacher: Option<Teacher>, config: Config) -> Result<Distiller> {
        Distiller::of_run(RunId::drawn(), student, teacher, config)
    }

    /// The same, that goes on with a run.
    pub(super) fn of_run(
        run: RunId,
        student: &ServedModel,
        teacher: Option<Teacher>,
        config: Config,
    ) -> Result<Distiller> {
        let local = teacher.as_ref().and_then(Teacher::model);
        for (role, model) in [("student", Some(student)), ("teacher", local)] {
            if model.is_some_and(|m| !m.model().device.trains()) {
                let why =
                    format!("the {role} is on the cuda backend; a distiller works with models of the cpu backend");
                return Err(Error::new(Fault::UnsupportedBackend, why));
            }
        }
        trained::check(&config, student.config(), &student.current()).map_err(|e| e.within("student"))?;
        match &teacher {
            None if config.needs_teacher() => {
                let why = "the settings let a teacher act or score, but there is no teacher";
                return Err(Error::new(Fault::BadOption, why));
            }
            None if config.teacher_adapter.is_some() => {
                let why = "teacher_adapter: wanted null, since there is no teacher that could have an adapter";
                return Err(Error::new(Fault::BadOption, why));
            }
            Some(Teacher::Local(teacher))
                if config.teacher_adapter.is_some() && config.lora.is_none() && teacher.is(student) =>
            {
                let why = "teacher_adapter: the teacher is the student's own model, and the settings train all of its weights, so \
                           the first update would replace the base that the adapter is of; give lora, or load the model once \
                           more as the teacher";
                return Err(Error::new(Fault::BadOption, why));
            }
            None => {}
            Some(Teacher::Local(teacher)) => check_model(student, teacher)?,
            Some(Teacher::Queue(queue)) => check_vocabulary(student, queue)?,
        }
        teacher.as_ref().map_or(Ok(()), |teacher| teacher.check(&config))?;
        let current = student.current();
        let (base, adapter) = (&current.weights, current.adapter());
        let reserved = Reserved::of(student.engine());
        let host = reserved.most();
        Room { config: &config, model: student.model(), base, adapter, teacher: local, host }.least()?;
        let rows = |model: &ServedModel| model.config().vocab_size;
        Ok(Distiller(Arc::new(Inner {
            number: MADE.fetch_add(1, Ordering::Relaxed) + 1,
            run,
            student: student.clone(),
            config,
            vocabulary: local.map_or(usize::MAX, rows).min(rows(student)),
            teacher,
            state: Mutex::new(State {
                step: 0,
                next_episode: 0,
                next_evaluation: 0,
                ended: Vec::new(),
                totals: Totals::default(),
                teacher_said: 0,
                uncertainties: Uncertainties::default(),
                known: Known::default(),
                unlearnt: Unlearnt::default(),
                kept: Kept::default(),
                probe: None,
            }),
            learning: Mutex::new(Learning {
                learner: None,
                begun: None,
                lineage: Vec::new(),
                base: Weak::new(),
                unpublished: None,
                line: 0,
                workspace: None,
                reserved,
            }),
            recorder: Mutex::new(None),
        })))
    }

    /// Its number, from 1, of which the process has no other: what tells apart the distillers that share a teacher.
    pub fn number(&self) -> u64 {
        self.0.number
    }

    /// The run that it goes on with: of its own, or of the checkpoint that it was resumed from.
    pub fn run(&self) -> RunId {
        self.0.run
    }

    /// The student.
    pub fn student(&self) -> &ServedModel {
        &self.0.student
    }

    /// The teacher, if it is a model.
    pub fn teacher(&self) -> Option<&ServedModel> {
        self.0.teacher.as_ref().and_then(Teacher::model)
    }

    /// The teacher, if it has one.
    pub(super) fn any_teacher(&self) -> Option<&Teacher> {
        self.0.teacher.as_ref()
    }

    /// The queue of the host's teacher, if it has one.
    pub(super) fn teacher_queue(&self) -> Option<&TeacherQueue> {
        match &self.0.teacher {
            Some(Teacher::Queue(queue)) => Some(queue),
            _ => None,
        }
    }

    /// The queue of the host's teacher, if it takes turns.
    pub(super) fn acting_queue(&self) -> Option<&TeacherQueue> {
        self.teacher_queue().filter(|queue| queue.options().acts)
    }

    /// Ids that student and teacher share.
    pub(super) fn vocabulary(&self) -> usize {
        self.0.vocabulary
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// The vocabulary that an actor draws from in training, 0 where it is the actor's own whole one.
    pub(super) fn vocabulary_to_draw_from(&self, teacher_acts: bool) -> usize {
        let actor = if teacher_acts { self.teacher() } else { Some(&self.0.student) };
        let whole = actor.is_none_or(|actor| actor.config().vocab_size == self.0.vocabulary);
        if whole { 0 } else { self.0.vocabulary }
    }

    /// Refuses ids of the student's that the teacher has no row for.
    pub(super) fn check_shared(&self, ids: &[i32]) -> Result<()> {
        let (shared, rows) = (self.0.vocabulary, self.0.student.config().vocab_size);
        match ids.iter().find(|&&id| id >= 0 && (shared..rows).contains(&(id as usize))) {
            None => Ok(()),
            Some(id) => {
                let why = format!(
                    "id {id}: wanted one of the {shared} that student and teacher share, found a row of the student's \
                     padding, which is no token; leave it out"
                );
                Err(Error::new(Fault::IdOutOfRange, why))
            }
        }
    }

    /// Updates applied so far.
    pub fn step(&self) -> u64 {
        self.0.state.lock().step
    }

    /// Whether the teacher may say no more until the next update.
    pub(super) fn teacher_spent(&self) -> bool {
        let most = self.0.config.teacher_tokens;
        most > 0 && self.0.state.lock().teacher_said >= most
    }

    /// Whether a proposal is replaced.
    pub(super) fn is_replaced(&self, settings: &Proposal, rate: f64, uncertainty: f64) -> bool {
        self.0.state.lock().uncertainties.is_replaced(settings, rate, uncertainty)
    }

    /// Notes a proposal that was judged.
    pub(super) fn was_judged(&self, settings: &Proposal, uncertainty: f64) {
        self.0.state.lock().uncertainties.push(settings, uncertainty);
    }

    /// Counts what the teacher said in a training turn.
    pub(super) fn teacher_said(&self, tokens: u64) {
        let mut state = self.0.state.lock();
        state.teacher_said = state.teacher_said.saturating_add(tokens);
    }

    /// Tokens that the teacher said in training since the last update.
    pub(super) fn teacher_has_said(&self) -> u64 {
        self.0.state.lock().teacher_said
    }

    /// Ended training episodes that wait for an update, without those that are set aside.
    pub fn n_waiting(&self) -> usize {
        self.0.state.lock().n_waiting()
    }

    /// Ended training episodes that the teacher could not score, so that a build went on without them.
    pub fn n_set_aside(&self) -> usize {
        let state = self.0.state.lock();
        state.ended.len() - state.n_waiting()
    }

    /// Numbers a new episode.
    pub(super) fn heading(&self, spec: &EpisodeSpec, revision: u64) -> Heading {
        let mut state = self.0.state.lock();
        let heading = Heading {
            episode: state.number(spec.episode, spec.evaluation),
            step: state.step,
            task: spec.task.clone(),
            group: spec.group.clone(),
            seed: self.0.config.seed,
            revision,
            evaluation: spec.evaluation,
            panel: spec.panel.clone(),
            task_seed: spec.task_seed,
            run: self.0.run,
            forked_from: None,
        };
        state.unlearnt.begun(&heading);
        heading
    }

    /// Numbers a fork that begins with a turn of another episode.
    pub(super) fn heading_of_fork(&self, asked: Option<u64>, (parent, turn): (&Heading, u32)) -> Heading {
        let mut state = self.0.state.lock();
        let episode = state.number(asked, parent.evaluation);
        let heading = Heading { episode, forked_from: Some((parent.episode, turn)), ..parent.clone() };
        state.unlearnt.begun(&heading);
        heading
    }

    /// An episode that nobody plays on.
    pub(super) fn given_up(&self, heading: &Heading) {
        self.0.state.lock().unlearnt.closed(heading);
    }

    /// Takes an ended episode; its teacher may still be computing.
    pub(super) fn ended(&self, ended: Ended) {
        let Ended::Waiting { trajectory, .. } = &ended else { return };
        let Heading { episode, evaluation, .. } = trajectory.heading;
        let mut state = self.0.state.lock();
        state.unlearnt.closed(&trajectory.heading);
        if evaluation {
            state.totals.evaluations += 1;
        } else {
            state.totals.episodes += 1;
            state.ended.push(Waiting { episode, ended, set_aside: None, is_imported: false });
        }
    }

    /// Throws away all ended episodes that wait for an update or are set aside, and says how many.
    pub fn discard(&self) -> usize {
        let mut state = self.0.state.lock();
        let thrown_away = std::mem::take(&mut state.ended);
        state.totals.thrown_away += thrown_away.len() as u64;
        drop(state);
        // Dropped without the lock: a teacher that is still computing is cancelled then.
        thrown_away.len()
    }

    /// What the distiller did so far and where its schedules stand.
    pub fn metrics(&self) -> Value {
        let _floats = FloatEnv::scalars();
        let recording = self.recording();
        let state = self.0.state.lock();
        let (totals, step) = (state.totals, state.step);
        let config = &self.0.config;
        json!({
            "step": step,
            "steps": config.steps,
            "beta": config.beta_at(step),
            "depth": config.depth.as_ref().map(|_| config.depth_at(step)),
            "schedules": config.schedules_at(step),
            "teacher_tokens": state.teacher_said,
            "learning_rate": config.optimizer.learning_rate_at(step, config.steps),
            "revision": self.0.student.current().number,
            "revisions_alive": self.0.student.n_revisions_alive(),
            "episodes": totals.episodes,
            "evaluations": totals.evaluations,
            "updates": totals.updates,
            "thrown_away": totals.thrown_away,
            "waiting": state.n_waiting(),
            "set_aside": state.ended.len() - state.n_waiting(),
            "run": self.0.run,
            "recording": recording,
            "kept_for_rollback": state.kept.numbers(),
            "probe": state.probe,
        })
    }

    /// What the probe of the last published revision found; None before the first, and where it was not looked at.
    pub fn last_probe(&self) -> Option<Probe> {
        self.0.state.lock().probe
    }

    /// Keeps a revision that was just replaced to go back to, as far as the settings say. What is kept no longer comes back: its
    /// memory goes with it, which no lock should wait for.
    pub(super) fn keep_for_rollback(&self, replaced: Option<Arc<Revision>>) -> Vec<Arc<Revision>> {
        let most = self.0.config.rollback_revisions as usize;
        replaced.map_or(Vec::new(), |replaced| self.0.state.lock().kept.push(replaced, most))
    }

    /// Tells the host, if it listens. With no lock held.
    pub(super) fn log(&self, level: Level, message: &str) {
        self.0.student.engine().log(level, "distill", message);
    }

    /// Makes the learner where there is none yet, from what the student serves.
    ///
    /// Errors: `AdapterMismatch` where the student serves what the settings do not train, an adapter of another form or one
    /// at all, or where an adapter is trained and the base under it was replaced.
    pub(super) fn begin_learning(&self, learning: &mut Learning, current: &Revision) -> Result<()> {
        let (config, model) = (&self.0.config, self.0.student.model());
        // Whoever publishes beside it may have changed what is served.
        trained::check(config, &model.config, current)?;
        if learning.learner.is_none() {
            let masters = trained::masters(config, &model.config, &model.device, current)?;
            if let (Parameters::Adapter(_), None) = (&masters, &current.adapter) {
                let mut served = trained::served_form(config, &model.config, current)?;
                served.round_from(&model.device, &masters);
                learning.begun = served.adapter();
            }
            learning.learner = Some(Learner::new(&model.config, masters)?);
            learning.base = Arc::downgrade(&current.weights);
        }
        self.check_base(learning, current)
    }

    /// Sets aside what an update of passes of (tokens, pages) takes of the engine's host budget, before anything of it is
    /// made. It stays reserved until the distiller goes: masters, moments and buffers do.
    pub(super) fn reserve(
        &self,
        learning: &mut Learning,
        current: &Revision,
        wanted: (usize, usize),
    ) -> Result<Fitted> {
        let Inner { student, config, .. } = &*self.0;
        let (base, adapter) = (&current.weights, current.adapter());
        let host = learning.reserved.most();
        let room = Room { config, model: student.model(), base, adapter, teacher: self.teacher(), host };
        let fitted = room.fit(wanted, learning.workspace.as_ref().map_or((0, 0), Workspace::most))?;
        learning.reserved.resize(fitted.bytes)?;
        Ok(fitted)
    }

    /// Refuses to train an adapter beside other base weights than it was begun with.
    pub(super) fn check_base(&self, learning: &Learning, current: &Revision) -> Result<()> {
        if self.0.config.lora.is_none() || std::ptr::eq(learning.base.as_ptr(), Arc::as_ptr(&current.weights)) {
            return Ok(());
        }
        let why = "the base weights were replaced while an adapter is trained beside the ones before; make a new distiller, or \
                   resume the last checkpoint on the old base";
        Err(Error::new(Fault::AdapterMismatch, why))
    }

    /// The learner's lock, for checkpoints.
    pub(super) fn learning(&self) -> Result<crate::sync::MutexGuard<'_, Learning>> {
        let busy = || Error::new(Fault::DistillerBusy, "an update is being built or applied");
        self.0.learning.try_lock().ok_or_else(busy)
    }

    /// (step, next episode, next evaluation), for a checkpoint: read in one moment with the waiting episodes, so that none
    /// that ended before it is left out. The learner's lock is held, so no update takes episodes meanwhile.
    pub(super) fn counters_with_nothing_waiting(&self) -> Result<((u64, u64, u64), Known)> {
        let state = self.0.state.lock();
        match state.n_waiting() {
            0 => {
                let aside = state.ended.iter().map(|waiting| identity(&waiting.trajectory().heading));
                let mut unlearnt = Known::default();
                state.unlearnt.all().chain(aside).filter(|of| of.0 == self.0.run).for_each(|of| unlearnt.add(of));
                Ok(((state.step, state.next_episode, state.next_evaluation), unlearnt))
            }
            waiting => {
                let why = format!(
                    "{waiting} ended episodes wait for an update and are no part of a checkpoint; build or discard"
                );
                Err(Error::new(Fault::OutOfOrder, why))
            }
        }
    }

    /// Episodes of records that were taken, as a checkpoint keeps them: those that are set aside are no part of it, and may be taken
    /// again.
    pub(super) fn known_of_records(&self) -> Known {
        let state = self.0.state.lock();
        let mut known = state.known.clone();
        let aside = state.ended.iter().map(|waiting| identity(&waiting.trajectory().heading));
        let aside: BTreeSet<Identity> = aside.chain(state.unlearnt.all()).collect();
        // Of the own run the step says it.
        known.forget(|identity| aside.contains(identity) || (identity.0 == self.0.run && identity.1 < state.step));
        known
    }

    /// Puts a checkpoint's lists of episodes in place.
    pub(super) fn knows(&self, episodes: (Known, Unlearnt)) {
        let mut state = self.0.state.lock();
        (state.known, state.unlearnt) = episodes;
    }

    /// The window of proposals, as a checkpoint keeps it.
    pub(super) fn uncertainties(&self) -> Uncertainties {
        self.0.state.lock().uncertainties.clone()
    }

    /// Puts a checkpoint's window of proposals in place.
    pub(super) fn set_uncertainties(&self, uncertainties: Uncertainties) {
        self.0.state.lock().uncertainties = uncertainties;
    }

    /// Puts a checkpoint's counters in place.
    pub(super) fn set_counters(&self, (step, next_episode, next_evaluation): (u64, u64, u64)) {
        let mut state = self.0.state.lock();
        (state.step, state.next_episode, state.next_evaluation) = (step, next_episode, next_evaluation);
    }
}

/// Whether the ids of the host's teacher mean what the student's mean.
fn check_vocabulary(student: &ServedModel, queue: &TeacherQueue) -> Result<()> {
    let theirs = match queue.options().vocabulary {
        Vocabulary::Fingerprint(theirs) => theirs,
        Vocabulary::TheStudents => return Ok(()),
        // Its texts are made ids by the student's.
        Vocabulary::Another => {
            return student.tokenizer().map(drop).map_err(|e| e.within("the teacher's vocabulary is another"));
        }
    };
    let refused = |why: String| Err(Error::new(Fault::TeacherVocabulary, why));
    match student.tokenizer() {
        Ok(own) if own.fingerprint() == theirs => Ok(()),
        Ok(own) => refused(format!(
            "student and teacher: wanted one vocabulary, found the fingerprints {:016x} of the student's tokenizer and \
             {theirs:016x} of the teacher's: their ids have different meanings, and losses compare the two id by id",
            own.fingerprint()
        )),
        Err(_) => refused(
            "the student has no tokenizer, so whether the teacher's ids mean the same is not known; put its tokenizer.json \
             into its folder, or say that the vocabulary is \"the-students\""
                .into(),
        ),
    }
}

/// Whether a model can teach the student: the same meaning for every id, room for its episodes. Its engine may be another,
/// with threads, kernels and budgets of its own: results depend on none of them.
///
/// Losses compare distributions over one vocabulary. Where the tokenizers agree the tables may differ in rows: those
/// beyond the shorter one are padding, which no id of the tokenizer has, and training leaves them out on both sides.
fn check_model(student: &ServedModel, teacher: &ServedModel) -> Result<()> {
    let (s, t) = (student.config().vocab_size, teacher.config().vocab_size);
    let agree = match (student.tokenizer(), teacher.tokenizer()) {
        (Ok(s), Ok(t)) => Some(s.fingerprint() == t.fingerprint()),
        _ => None,
    };
    let (known, remedy) = match agree {
        Some(true) => ("", ""),
        Some(false) => (
            "their tokenizers give ids different meanings",
            "distil from a teacher of the student's tokenizer, since losses compare the two id by id",
        ),
        None => (
            "whether ids mean the same in both is not known, since not both folders have a tokenizer.json",
            "put the tokenizer beside both, or give both as many rows (resize_token_embeddings) and save them",
        ),
    };
    if agree == Some(false) || (agree.is_none() && s != t) {
        let why = format!(
            "student and teacher: wanted one vocabulary, found {s} rows in the student's and {t} in the teacher's; \
             {known}; {remedy}"
        );
        return Err(Error::new(Fault::TeacherVocabulary, why));
    }
    if student.model().max_context() > teacher.model().max_context() {
        let (s, t) = (student.model().max_context(), teacher.model().max_context());
        let why = format!("the student's context holds {s} tokens, the teacher's {t}; load the teacher with as many");
        return Err(Error::new(Fault::BadOption, why));
    }
    Ok(())
}
