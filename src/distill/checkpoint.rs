//! Checkpoints of a distiller at the border between updates: resumed, it goes on bit for bit.
//!
//! A checkpoint is a folder `step-NNNNNNNN` with the f32 masters, both moments and a state document; a
//! second one of the same step is `step-NNNNNNNN-1`, and so on, so that none is ever replaced. It is
//! written aside, synced and renamed: at every moment the newest folder is whole. Older ones are removed
//! only after that, and what a killed save left behind by the next one. Resuming takes the newest.
//!
//! A folder is removed only if it holds exactly the files of a checkpoint of the same run, whatever it is called; and what
//! is no folder, or holds none of those files, is none, whatever it is called.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::config::Config;
use super::distiller::Distiller;
use super::knob_table::{KNOBS, Knob, OnResume};
use super::learner::Learner;
use super::record::known::Known;
use super::run_id::RunId;
use super::teacher::Teacher;
use super::trained;
use super::uncertainty::Uncertainties;
use super::unlearnt::Unlearnt;
use crate::backend::cpu::FloatEnv;
use crate::error::{Error, Fault, Result};
use crate::format::{Layout, StoredTensor, check_regular, durable, read_text, safetensors};
use crate::model::{Adapter, Lora, ModelConfig, Parameters, Weights};
use crate::serve::{Level, ServedModel};
use crate::tensor::Dtype;

const STATE: &str = "state.json";
/// (file, what it holds)
const TENSORS: [&str; 3] = ["masters.safetensors", "first_moments.safetensors", "second_moments.safetensors"];
/// The files of a checkpoint.
const LAYOUT: Layout = Layout {
    kind: "a checkpoint",
    required: &[STATE, TENSORS[0], TENSORS[1], TENSORS[2]],
    optional: &[],
    folder: None,
};
const VERSION: u64 = 1;
/// The longest state document, in bytes; one has a few thousand, and some tens for each range of episodes that came from records.
const MAX_STATE: u64 = 1 << 24;
/// Steps and numbers that a checkpoint may claim; the settings' longest run is as long.
const LARGEST: u64 = 1_000_000_000;

impl Distiller {
    /// Writes a checkpoint into the folder `path`, made if it is not there, and then removes older ones.
    /// Refused while ended episodes wait for an update: build it, or discard them.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut learning = self.learning()?;
        let ((step, next_episode, next_evaluation), unlearnt) = self.counters_with_nothing_waiting()?;
        if let Some(unpublished) = &learning.unpublished {
            // Resuming would serve it, and the last good checkpoint would be gone.
            unpublished.check(self.config()).map_err(|e| e.within("no checkpoint is written"))?;
        }
        let student = self.student();
        self.begin_learning(&mut learning, &student.current())?;
        let mut state = json!({
            "version": VERSION,
            "step": step,
            "next_episode": next_episode,
            "next_evaluation": next_evaluation,
            "revision": student.current().number,
            "published": learning.unpublished.is_none(),
            "model": student.config().to_json(),
            "dtype": student.current().weights.dtypes(),
            "compute": student.model().compute.name(),
            "vocabulary": student.vocabulary_fingerprint(),
            "settings": self.config().to_json(),
        });
        if !learning.lineage.is_empty() {
            state["lineage"] = learning.lineage.clone().into();
        }
        let (uncertainties, said) = (self.uncertainties(), self.teacher_has_said());
        if said > 0 {
            state["teacher_said"] = said.into();
        }
        state["run"] = json!(self.run());
        let known = self.known_of_records();
        if !known.is_empty() {
            state["imported"] = known.to_text().into();
        }
        if !unlearnt.is_empty() {
            state["unlearnt"] = unlearnt.to_text().into();
        }
        if uncertainties.values().next().is_some() {
            // As bits: reading may lose a number's last one.
            state["uncertainties"] = json!(uncertainties.values().map(f64::to_bits).collect::<Vec<_>>());
        }
        if self.config().lora.is_some() {
            let current = student.current();
            let served = current.adapter().or(learning.begun.as_ref());
            state["adapter_dtype"] = json!(served.map(|adapter| adapter.dtype().to_string()));
            state["base"] = json!(current.weights.fingerprint(student.config()));
        }
        let Some(learner) = &learning.learner else { return Ok(()) };
        self.sync_record()?;
        // Fewer than the run's where it went back to an older revision.
        state["optimizer_steps"] = learner.steps.into();
        fs::create_dir_all(path).map_err(|e| Error::new(Fault::CannotWrite, format!("{}: {e}", path.display())))?;
        let before = checkpoints(path)?;
        if let Some(later) = before.iter().find(|c| c.step > step) {
            // It would win when the folder is resumed: it belongs to another run, or this one was resumed elsewhere.
            let why = format!(
                "{}: a later checkpoint than step {step} lies there; choose another folder",
                later.folder.display()
            );
            return Err(Error::new(Fault::CheckpointMismatch, why));
        }
        // What is removed at the end must not be another run's; of what cannot be read nobody knows whose it is.
        for old in &before {
            if let Ok(State { document, .. }) = State::read(old) {
                // What lies there of this run may have been saved before it was resumed with other settings.
                let (lineage, settings) = (&learning.lineage, &document["settings"]);
                check_run(&document, &old.folder, student, self.config())
                    .and_then(|()| check_settings(settings, &old.folder, self.config(), lineage))
                    .map_err(|e| e.within("no checkpoint is written; choose another folder"))?;
            }
        }
        durable::clear_leftovers(path, &LAYOUT, |name| numbers(name).is_some());
        let mut serial = before.iter().filter(|c| c.step == step).map(|c| c.serial + 1).max().unwrap_or(0);
        let folder = loop {
            let folder = path.join(match serial {
                0 => format!("step-{step:08}"),
                n => format!("step-{step:08}-{n}"),
            });
            // The host may have a file of that name.
            if folder.symlink_metadata().is_err() {
                break folder;
            }
            serial += 1;
        };
        durable::replace_folder(&folder, &LAYOUT, |dir| {
            for (name, set) in TENSORS.into_iter().zip([&learner.masters, &learner.m, &learner.v]) {
                let tensors = set.tensors();
                let list = tensors.iter().map(|(name, t)| (name.as_str(), t.dtype(), t.shape(), t.bytes()));
                safetensors::write(&dir.join(name), list)?;
            }
            let text = format!("{state:#}\n");
            if text.len() as u64 > MAX_STATE {
                let why = format!(
                    "the checkpoint's state has {} bytes, which none may have: too many episodes came from records",
                    text.len()
                );
                return Err(Error::new(Fault::CannotWrite, why));
            }
            durable::write_file(&dir.join(STATE), |file| file.write_all(text.as_bytes()))
        })?;
        drop(learning);
        self.note("saved", || json!({"step": step}));
        let set_aside = self.n_set_aside();
        if set_aside > 0 {
            self.log(Level::Warning, &format!("{set_aside} episodes that are set aside are no part of the checkpoint"));
        }
        // The checkpoint stands. What cannot be removed of older ones is the next save's, or the host's.
        for old in before {
            if let Err(e) = State::read(&old).and_then(|_| durable::remove_folder(&old.folder, &LAYOUT)) {
                self.log(Level::Warning, &format!("an older checkpoint stays: {e}"));
            }
        }
        Ok(())
    }

    /// The step of the newest checkpoint in the folder `path`, None where it holds none or is not there. Its state and the
    /// headers of its tensors are read: `CheckpointForm` where they are broken.
    pub fn checkpoint(path: &Path) -> Result<Option<u64>> {
        let Some(newest) = checkpoints(path)?.into_iter().max() else { return Ok(None) };
        let step = State::read(&newest)?.counters.0;
        for name in TENSORS {
            // The message names the file.
            let form = |e: Error| Error::new(Fault::CheckpointForm, e.message());
            let file = newest.folder.join(name);
            check_regular(&file).and_then(|()| safetensors::read(&file)).map_err(form)?;
        }
        Ok(Some(step))
    }

    /// Resumes from the newest checkpoint in the folder `path`: the student gets the checkpoint's weights
    /// and revision. Refused where model, vocabulary or settings are not the checkpoint's.
    pub fn resume(
        student: &ServedModel,
        teacher: Option<&ServedModel>,
        config: Config,
        path: &Path,
    ) -> Result<Distiller> {
        Distiller::resume_taught(student, teacher.cloned().map(Teacher::Local), config, path)
    }

    /// The same by any teacher.
    pub fn resume_taught(
        student: &ServedModel,
        teacher: Option<Teacher>,
        config: Config,
        path: &Path,
    ) -> Result<Distiller> {
        let _floats = FloatEnv::scalars();
        let none = || Error::new(Fault::MissingFile, format!("{}: there is no checkpoint", path.display()));
        let newest = checkpoints(path)?.into_iter().max().ok_or_else(none)?;
        let State { document, counters, optimizer_steps, revision, published, uncertainties, episodes } =
            State::read(&newest)?;
        let folder = newest.folder;
        check_steps(&document["settings"]["steps"], &config, counters.0).map_err(|e| e.within(folder.display()))?;
        check_run(&document, &folder, student, &config)?;
        let mut lineage = document["lineage"].as_array().cloned().unwrap_or_default();
        let before = retuned(&document["settings"]);
        let changed = check_settings(&document["settings"], &folder, &config, std::slice::from_ref(&before))?;
        if before != retuned(&read_back(&config.to_json()).map_err(|e| broken(&folder, &e.to_string()))?) {
            lineage.push(before);
        }
        // Refused where it does not fit, before what it would hold is read.
        // Of before runs had a name.
        let run = document["run"].as_str().map_or_else(|| Some(RunId::drawn()), RunId::parse);
        let run = run.ok_or_else(|| broken(&folder, "run is no run's name"))?;
        let distiller = Distiller::of_run(run, student, teacher, config)?;
        let (mut learning, config) = (distiller.learning()?, distiller.config());
        let current = student.current();
        distiller.reserve(&mut learning, &current, (1, 1))?;
        let [masters, m, v] = TENSORS.map(|name| read(student.config(), config.lora.as_ref(), &folder.join(name)));
        let learner = Learner { masters: masters?, m: m?, v: v?, steps: optimizer_steps };
        let dtype = match config.lora {
            None => Dtype::F32, // weights keep their own
            Some(_) => adapter_dtype(&document).ok_or_else(|| broken(&folder, "adapter_dtype is no dtype"))?,
        };
        let mut served = trained::form_in(config, student.config(), &current, dtype)?;
        served.round_from(&student.model().device, &learner.masters);
        // What was applied and not yet published is published by resuming.
        student.restore(served, revision + u64::from(!published));
        distiller.set_counters(counters);
        distiller.set_uncertainties(uncertainties);
        distiller.knows(episodes);
        distiller.teacher_said(document["teacher_said"].as_u64().unwrap_or(0));
        learning.base = Arc::downgrade(&current.weights);
        learning.lineage = lineage;
        learning.learner = Some(learner);
        drop(learning);
        for what in changed {
            distiller.log(Level::Info, &format!("resumed with {what}: the rest of the run goes by it"));
        }
        Ok(distiller)
    }
}

/// Refuses a checkpoint of another run: its model, vocabulary and settings must be this one's, but for what is free.
fn check_run(document: &Value, folder: &Path, student: &ServedModel, config: &Config) -> Result<()> {
    let vocabulary = student.vocabulary_fingerprint();
    let base = config.lora.as_ref().map(|_| student.current().weights.fingerprint(student.config()));
    let wanted = [
        ("base", json!(base)),
        ("model", student.config().to_json()),
        ("dtype", json!(student.current().weights.dtypes())),
        ("compute", json!(student.model().compute.name())),
        ("vocabulary", json!(vocabulary)),
    ];
    for (key, value) in wanted {
        let value = read_back(&value).map_err(|e| broken(folder, &format!("{key}: {e}")))?;
        if document[key] != value {
            let what = difference(&document[key], &value);
            let why = format!("{}: its {key} is not this run's: {what}", folder.display());
            return Err(Error::new(Fault::CheckpointMismatch, why));
        }
    }
    Ok(())
}

/// Refuses other settings than the checkpoint's, but for those that a resumed run may change; says what changed. Those by
/// which the run learns may only be what they once were in this run, by its `lineage`: another run's are its own.
fn check_settings(theirs: &Value, folder: &Path, config: &Config, lineage: &[Value]) -> Result<Vec<String>> {
    let refused = |what: String| {
        let why = format!("{}: its settings is not this run's: {what}", folder.display());
        Error::new(Fault::CheckpointMismatch, why)
    };
    let (ours, default) = (config.to_json(), Config::default());
    let object = theirs.as_object().ok_or_else(|| broken(folder, "settings is no object"))?;
    let is_object =
        |key: &str| KNOBS.iter().any(|knob| knob.path.split_once('.').is_some_and(|(object, _)| object == key));
    for (key, value) in object {
        let unknown = |path: &str, value: &Value| refused(format!("{path} is {value:.80} there and no knob here"));
        match value {
            Value::Object(map) if is_object(key) => {
                let paths = map.iter().map(|(inner, value)| (format!("{key}.{inner}"), value));
                if let Some((path, value)) = paths.into_iter().find(|(path, _)| KNOBS.iter().all(|k| k.path != path)) {
                    return Err(unknown(&path, value));
                }
            }
            _ if ours.get(key.as_str()).is_none() => return Err(unknown(key, value)),
            _ => {}
        }
    }
    let mut changed = Vec::new();
    for knob in KNOBS {
        // What the run had before a knob there was is what the knob is by default.
        let of = |settings: &Value| {
            let value = settings.pointer(&format!("/{}", knob.path.replace('.', "/"))).cloned();
            value.unwrap_or_else(|| (knob.show)(&default))
        };
        let there = of(theirs);
        let was_resumed = lineage.iter().any(|before| before[knob.path] == there);
        let pair = read_back(&there).and_then(|there| Ok((there, read_back(&(knob.show)(config))?)));
        let (there, here) = pair.map_err(|e| broken(folder, &format!("settings: {}: {e}", knob.path)))?;
        match knob.on_resume {
            _ if there == here => {}
            // A checkpoint of before may have a knob set that did nothing.
            _ if config.idle(knob.path).is_some() => {}
            OnResume::Retuned if !was_resumed => {
                return Err(refused(format!("{} is {there:.80} there and {here:.80} here", knob.path)));
            }
            OnResume::Free | OnResume::Retuned => {
                changed.push(format!("{} {here:.80} in place of {there:.80}", knob.path))
            }
            OnResume::Kept => return Err(refused(format!("{} is {there:.80} there and {here:.80} here", knob.path))),
        }
    }
    Ok(changed)
}

/// The knobs of a settings document by which a run learns and that it may be resumed with others of: {path: value}.
fn retuned(settings: &Value) -> Value {
    let default = Config::default();
    let knobs = KNOBS.iter().filter(|knob| knob.on_resume == OnResume::Retuned);
    let value = |knob: &Knob| {
        let value = settings.pointer(&format!("/{}", knob.path.replace('.', "/"))).cloned();
        (knob.path.to_string(), value.unwrap_or_else(|| (knob.show)(&default)))
    };
    Value::Object(knobs.map(value).collect())
}

/// As a checkpoint's is read: reading may lose a number's last bit.
fn read_back(value: &Value) -> serde_json::Result<Value> {
    serde_json::from_str(&value.to_string())
}

/// A resumed run may have more steps than it had, not fewer. Schedules by the fraction of the run that is done, and those
/// that end with it, go on by the new number.
fn check_steps(old: &Value, config: &Config, done: u64) -> Result<()> {
    let steps = config.steps;
    match old.as_u64() {
        Some(old) if steps < old => {
            let why = format!(
                "settings: its steps are not this run's: it has {old}, of which {done} are done, wanted {steps}; give {old} or more"
            );
            Err(Error::new(Fault::CheckpointMismatch, why))
        }
        _ => Ok(()),
    }
}

fn broken(folder: &Path, why: &str) -> Error {
    Error::new(Fault::CheckpointForm, format!("{}: {why}", folder.display()))
}

/// What a checkpoint's state document says.
struct State {
    document: Value,
    /// (step, next episode, next evaluation)
    counters: (u64, u64, u64),
    /// the optimiser's own
    optimizer_steps: u64,
    revision: u64,
    published: bool,
    uncertainties: Uncertainties,
    /// taken from records, and begun without an update that had them
    episodes: (Known, Unlearnt),
}

impl State {
    fn read(checkpoint: &Checkpoint) -> Result<State> {
        let Checkpoint { step, folder, .. } = checkpoint;
        let form = |why: String| broken(folder, &format!("{STATE}: {why}"));
        let file = folder.join(STATE);
        check_regular(&file).map_err(|e| Error::new(Fault::CheckpointForm, e.message()))?;
        let text = read_text(&file, MAX_STATE).map_err(|e| Error::new(Fault::CheckpointForm, e.message()))?;
        let document: Value = serde_json::from_str(&text).map_err(|e| form(e.to_string()))?;
        let number = |key: &str| document[key].as_u64().ok_or_else(|| form(format!("{key} is no whole number")));
        if number("version")? != VERSION {
            return Err(form(format!("version {} is not known, {VERSION} is", document["version"])));
        }
        let counters = (number("step")?, number("next_episode")?, number("next_evaluation")?);
        let revision = number("revision")?;
        for (what, n) in [("step", counters.0), ("revision", revision)] {
            if n > LARGEST {
                return Err(form(format!("{what} {n} is beyond {LARGEST}")));
            }
        }
        if counters.0 != *step {
            return Err(form(format!("step {} in the folder of step {step}", counters.0)));
        }
        // Before a run could go back it had as many as the run.
        let optimizer_steps = match document.get("optimizer_steps") {
            None => counters.0,
            Some(_) => number("optimizer_steps")?,
        };
        if optimizer_steps > counters.0 {
            return Err(form(format!("{optimizer_steps} steps of the optimiser at step {}", counters.0)));
        }
        let published = document["published"].as_bool().ok_or_else(|| form("published is no truth value".into()))?;
        let bits = document.get("uncertainties").map_or(Some(Vec::new()), |list| {
            list.as_array()?.iter().map(|x| x.as_u64().map(f64::from_bits).filter(|x| x.is_finite())).collect()
        });
        let uncertainties =
            Uncertainties::of(bits.ok_or_else(|| form("uncertainties are no list of numbers' bits".into()))?);
        let listed = |key: &str| {
            let list =
                document.get(key).map_or(Some(Known::default()), |text| text.as_str().and_then(Known::from_text));
            list.ok_or_else(|| form(format!("{key} is no list of episodes")))
        };
        let episodes = (listed("imported")?, Unlearnt::of_checkpoint(listed("unlearnt")?));
        Ok(State { document, counters, optimizer_steps, revision, published, uncertainties, episodes })
    }
}

/// A whole checkpoint; the newest is the largest.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Checkpoint {
    step: u64,
    serial: u64,
    folder: PathBuf,
}

/// The names in a folder, with their paths. A folder that is not there has none.
fn entries(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    let cannot = |e| Error::new(Fault::CannotRead, format!("{}: {e}", path.display()));
    let entries = match fs::read_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(cannot)?,
    };
    let named = |e: std::io::Result<fs::DirEntry>| {
        e.map(|e| (e.file_name().to_string_lossy().into_owned(), e.path())).map_err(cannot)
    };
    entries.map(named).collect()
}

/// The checkpoints in a folder, by the names of its folders, and of links to some. One that holds none of a checkpoint's
/// files is none but the host's; one that holds some may be damaged, and is not passed over.
fn checkpoints(path: &Path) -> Result<Vec<Checkpoint>> {
    let parse = |(name, folder): (String, PathBuf)| {
        let (step, serial) = numbers(&name).filter(|_| folder.is_dir() && LAYOUT.is_any(&folder))?;
        Some(Checkpoint { step, serial, folder })
    };
    Ok(entries(path)?.into_iter().filter_map(parse).collect())
}

/// The step and the serial number in the name of a checkpoint.
fn numbers(name: &str) -> Option<(u64, u64)> {
    let name = name.strip_prefix("step-")?;
    let (step, serial) = name.split_once('-').unwrap_or((name, "0"));
    Some((step.parse().ok()?, serial.parse().ok().filter(|&n: &u64| n < u64::MAX)?))
}

/// The dtype in which an adapter was served.
fn adapter_dtype(document: &Value) -> Option<Dtype> {
    let name = document["adapter_dtype"].as_str()?;
    [Dtype::F32, Dtype::Bf16, Dtype::F16].into_iter().find(|dtype| dtype.to_string() == name)
}

/// One set of f32 tensors of what is trained.
fn read(config: &ModelConfig, lora: Option<&Lora>, path: &Path) -> Result<Parameters> {
    check_regular(path)?;
    let stored: BTreeMap<String, StoredTensor> = safetensors::read(path)?.into_iter().collect();
    let within = |fault, why: String| Error::new(fault, format!("{}: {why}", path.display()));
    // Copied: they change, and the file goes when the next checkpoint is written.
    let mut own = match lora {
        None => {
            config.check_tensors(&stored).map_err(|e| e.within(path.display()))?;
            Parameters::Weights(Weights::zeros(config)?)
        }
        Some(lora) => Parameters::Adapter(Adapter::zeros(config, lora, Dtype::F32)?),
    };
    let names: Vec<String> = own.tensors().into_iter().map(|(name, _)| name).collect();
    for (to, name) in own.tensors_mut().into_iter().zip(&names) {
        let missing = || within(Fault::TensorMissing, format!("tensor {name}: missing"));
        let from = stored.get(name).ok_or_else(missing)?;
        if from.shape != to.shape() {
            return Err(within(
                Fault::TensorShape,
                format!("tensor {name}: wanted {}, found {}", to.shape(), from.shape),
            ));
        }
        if from.dtype != Dtype::F32 {
            return Err(within(Fault::CheckpointForm, format!("{name} is {}, f32 is wanted", from.dtype)));
        }
        to.bytes_mut().copy_from_slice(from.bytes.as_ref());
    }
    match stored.keys().find(|name| !names.contains(name)) {
        None => Ok(own),
        Some(name) => {
            Err(within(Fault::TensorExtra, format!("tensor {name}: a checkpoint of this run has no such tensor")))
        }
    }
}

/// The first key in which two documents differ, for a message.
fn difference(a: &Value, b: &Value) -> String {
    if let (Value::Object(a), Value::Object(b)) = (a, b) {
        for (key, value) in b {
            if a.get(key) != Some(value) {
                return format!("{key} is {} there and {value:.80} here", a.get(key).unwrap_or(&Value::Null));
            }
        }
    }
    format!("{a:.80} there and {b:.80} here")
}
