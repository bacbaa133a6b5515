//! The history of a run by step, out of `metrics.jsonl`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::event::{
    Applied, EpisodeEnded, Failed, Head, Published, Refused, RolledBack, RunBegins, Saved, Student, Update,
};
use super::lines::Lines;
use super::step::Step;
use crate::output::Failure;

/// The newest form of the file that is read.
const VERSION: u64 = 1;
/// What is kept of a text, in characters: enough to read, whatever a file holds.
const KEPT: usize = 2000;
/// Texts and turns that are kept of one update.
const MOST_TEXTS: usize = 8;
const MOST_TURNS: usize = 64;

/// Where a run stands.
pub enum State {
    /// All updates of the settings are applied.
    Finished,
    /// It goes on, or was stopped without a word.
    Running,
    /// Its last update is not served, and why.
    Refused(String),
    /// What failed last, and why.
    Failed(String, String),
}

/// A run so far.
pub struct History {
    pub run: String,
    pub squire: String,
    pub student: Student,
    pub settings: Value,
    /// The steps of which something is known.
    pub steps: BTreeMap<u64, Step>,
    /// Steps at which a later process went on.
    pub resumed: Vec<u64>,
    /// Updates that were built and are void, since a later process began before them.
    pub void: u64,
    /// Steps at which an older revision was served again, with that.
    pub rolled_back: Vec<(u64, Option<u64>)>,
    pub saved: Option<u64>,
    /// The time of the first line and of the last.
    pub times: (f64, f64),
    /// What is odd about the file and no reason to refuse it.
    pub notes: Vec<String>,
    last: Last,
}

/// What was said last of an update.
enum Last {
    Nothing,
    Refused(u64),
    Failed(u64),
}

impl History {
    /// Reads `metrics.jsonl` of a run's folder.
    pub fn read(folder: &Path) -> Result<History, Failure> {
        if !folder.is_dir() {
            return Err(Failure::Failed(format!("{}: there is no such folder", folder.display())));
        }
        let path = folder.join("metrics.jsonl");
        let mut lines = Lines::open(&path, "the metrics of a run, which a distiller that records writes")?;
        let mut history: Option<History> = None;
        while lines.advance()? {
            let head: Head = lines.parse()?;
            match &mut history {
                Some(history) => history.take(&head, &lines)?,
                None => history = Some(History::begin(&head, &lines)?),
            }
        }
        let cut = lines.cut();
        let mut history = history.ok_or_else(|| {
            let found = if cut > 0 { "its beginning, cut off" } else { "an empty file" };
            Failure::Failed(format!("{}: wanted a first line of kind \"run\", found {found}", path.display()))
        })?;
        if cut > 0 {
            history.notes.push(format!("the last line of metrics.jsonl is cut off: {cut} bytes are left out"));
        }
        Ok(history)
    }

    fn begin(head: &Head, lines: &Lines) -> Result<History, Failure> {
        if head.kind != "run" {
            return Err(lines.refuse(&format!("wanted a first line of kind \"run\", found {:?}", short(&head.kind))));
        }
        let mut history = History {
            run: short(&head.run),
            squire: String::new(),
            student: Student::default(),
            settings: Value::Null,
            steps: BTreeMap::new(),
            resumed: Vec::new(),
            void: 0,
            rolled_back: Vec::new(),
            saved: None,
            times: (head.time, head.time),
            notes: Vec::new(),
            last: Last::Nothing,
        };
        history.process(lines)?;
        history.resumed.clear();
        Ok(history)
    }

    /// A line after the first.
    fn take(&mut self, head: &Head, lines: &Lines) -> Result<(), Failure> {
        if short(&head.run) != self.run {
            let (one, other) = (&self.run, short(&head.run));
            return Err(lines
                .refuse(&format!("wanted a line of run {one:?}, found one of run {other:?}; a folder is of one run")));
        }
        self.times.1 = self.times.1.max(head.time);
        match head.kind.as_str() {
            "run" => self.process(lines)?,
            "episode" => {
                let ended: EpisodeEnded = lines.parse()?;
                let step = self.step(ended.step);
                let played = if ended.evaluation { &mut step.evaluation } else { &mut step.training };
                played.episodes += 1;
                played.judged += u64::from(ended.success.is_some());
                played.successes += u64::from(ended.success == Some(true));
                if let Some(gain) = ended.gain {
                    played.returns = (played.returns.0 + gain, played.returns.1 + 1);
                }
                played.truncated += ended.truncated.unwrap_or(0.0);
                played.time = head.time;
            }
            "update" => {
                let mut update: Update = lines.parse()?;
                bound(&mut update);
                let step = self.step(update.step);
                // What was said of an update that was built here and not applied is of another one.
                (step.time, step.update, step.failed) = (head.time, Some(update), None);
                self.last = Last::Nothing;
            }
            "failed" => {
                let failed: Failed = lines.parse()?;
                self.step(failed.step).failed = Some((short(&failed.what), short(&failed.reason)));
                self.last = Last::Failed(failed.step);
            }
            "applied" => {
                let applied: Applied = lines.parse()?;
                self.last = Last::Nothing;
                if let Some(built) = applied.step.checked_sub(1) {
                    self.step(built).applied = Some(applied);
                }
            }
            "published" => {
                let mut published: Published = lines.parse()?;
                published.probe = bounded(published.probe);
                self.last = Last::Nothing;
                if let Some(built) = published.step.checked_sub(1) {
                    let step = self.step(built);
                    (step.refused, step.published) = (None, Some(published));
                }
            }
            "refused" => {
                let refused: Refused = lines.parse()?;
                let built = refused.step.saturating_sub(1);
                self.step(built).refused = Some(short(&refused.reason));
                self.last = Last::Refused(built);
            }
            "rolled_back" => {
                let back: RolledBack = lines.parse()?;
                self.rolled_back.push((back.step, back.revision));
                self.last = Last::Nothing;
            }
            "saved" => self.saved = Some(lines.parse::<Saved>()?.step),
            _ => {}
        }
        Ok(())
    }

    /// The run begins, or a process that goes on with it.
    fn process(&mut self, lines: &Lines) -> Result<(), Failure> {
        #[derive(serde::Deserialize)]
        struct Version {
            version: u64,
        }
        // First, since a later version may have all else in another form.
        let Version { version } = lines.parse()?;
        if version > VERSION {
            return Err(lines.refuse(&format!("wanted metrics of version {VERSION} or older, found version {version}")));
        }
        let begins: RunBegins = lines.parse()?;
        self.settings = begins.settings;
        self.squire = short(begins.squire.as_deref().unwrap_or(""));
        self.student = begins.student;
        if begins.goes_on {
            return Ok(());
        }
        self.resumed.push(begins.step);
        // What was built from here on is built again. Lines that name the step after an update (applied, published) are
        // kept with the update, so that the one that made this very step stays what it was.
        let void = self.steps.split_off(&begins.step);
        self.void += void.values().filter(|step| step.update.is_some()).count() as u64;
        self.rolled_back.retain(|(step, _)| *step <= begins.step);
        self.saved = self.saved.filter(|step| *step <= begins.step);
        if matches!(self.last, Last::Refused(at) | Last::Failed(at) if at >= begins.step) {
            self.last = Last::Nothing;
        }
        Ok(())
    }

    fn step(&mut self, step: u64) -> &mut Step {
        self.steps.entry(step).or_default()
    }

    /// Updates that were applied.
    pub fn applied(&self) -> u64 {
        let applied = self.steps.values().rev().find_map(|step| step.applied.as_ref());
        applied.map_or(self.resumed.last().copied().unwrap_or(0), |applied| applied.step)
    }

    /// Updates that the settings ask for.
    pub fn wanted(&self) -> Option<u64> {
        self.settings.get("steps")?.as_u64()
    }

    /// A number of the settings.
    pub fn setting(&self, knob: &str) -> Option<f64> {
        self.settings.get(knob)?.as_f64()
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        let of = |step| self.steps.get(step);
        match &self.last {
            Last::Refused(at) => State::Refused(of(at).and_then(|step| step.refused.clone()).unwrap_or_default()),
            _ if self.wanted().is_some_and(|wanted| self.applied() >= wanted) => State::Finished,
            Last::Failed(at) => {
                let (what, why) = of(at).and_then(|step| step.failed.clone()).unwrap_or_default();
                State::Failed(what, why)
            }
            Last::Nothing => State::Running,
        }
    }

    /// The updates that were built, with their steps.
    pub fn updates(&self) -> impl Iterator<Item = (u64, &Step, &Update)> {
        self.steps.iter().filter_map(|(at, step)| Some((*at, step, step.update.as_ref()?)))
    }

    /// Episodes of training and of evaluation.
    pub fn episodes(&self) -> (u64, u64) {
        let sum = |of: fn(&Step) -> u64| self.steps.values().map(of).sum();
        (sum(|step| step.training.episodes), sum(|step| step.evaluation.episodes))
    }
}

/// Its first characters.
fn short(text: &str) -> String {
    match text.char_indices().nth(KEPT) {
        None => text.to_string(),
        Some((at, _)) => format!("{} ...", &text[..at]),
    }
}

/// A value as it is where it is small, else its text's beginning.
fn bounded(value: Value) -> Value {
    let text = value.to_string();
    if text.len() <= KEPT { value } else { Value::String(short(&text)) }
}

/// Drops of an update what no page shows.
fn bound(update: &mut Update) {
    while update.schedules.len() > MOST_TEXTS {
        update.schedules.pop_last();
    }
    update.schedules = std::mem::take(&mut update.schedules).into_iter().map(|(k, v)| (short(&k), v)).collect();
    let report = &mut update.report;
    report.warnings.truncate(MOST_TEXTS);
    report.warnings.iter_mut().for_each(|text| *text = short(text));
    report.set_aside.truncate(MOST_TEXTS);
    report.set_aside.iter_mut().for_each(|aside| aside.reason = short(&aside.reason));
    report.turns.truncate(MOST_TURNS);
    report.turns.shrink_to_fit();
    report.loss_by_turn.truncate(MOST_TURNS);
    report.loss_by_turn.shrink_to_fit();
}
