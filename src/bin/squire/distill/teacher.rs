//! Who teaches a run from records: a model that is named, or what the record says that a teacher said.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use squire::distill::queue_options::Vocabulary;
use squire::distill::{Actor, Config, QueueOptions, Record, Teacher, TeacherQueue};
use squire::serve::{Engine, LoadOptions};

use crate::output::Failure;

/// The teacher of a run; None where its losses ask for none. `folder`: the model that is named.
pub fn teacher(
    folder: Option<&Path>,
    engine: &Engine,
    config: &Config,
    record: &Record,
) -> Result<Option<Teacher>, Failure> {
    if let Some(folder) = folder {
        return Ok(Some(Teacher::Local(engine.load(folder, LoadOptions::default())?)));
    }
    if !config.needs_teacher() {
        return Ok(None);
    }
    let said = said(record);
    let asks = [Actor::Student, Actor::Teacher, Actor::Replay]
        .into_iter()
        .find(|&actor| config.loss_of(actor).needs_teacher());
    if let (None, Some(actor)) = (said, asks) {
        let why = format!(
            "{}_turns.kernel: {} asks for a teacher's scores, and there is neither --teacher nor a line of what a teacher said in \
             the record",
            actor.name(),
            config.loss_of(actor).name()
        );
        return Err(Failure::Usage(why));
    }
    // Of a record nobody acts, so whether this one could is no question; that the ids are the student's is seen when the record is
    // imported.
    let queue = TeacherQueue::new(QueueOptions {
        top_k: said.unwrap_or(0),
        deadline: Duration::from_secs(60),
        vocabulary: Vocabulary::TheStudents,
        acts: true,
        scores: said.is_some(),
    });
    // Nobody answers: who asks is told so at once.
    queue.close();
    Ok(Some(Teacher::Queue(queue)))
}

/// With how many ids a place most of the record's episodes were scored; None where none was.
fn said(record: &Record) -> Option<u32> {
    let mut episodes = BTreeMap::new();
    for said in record.episodes.iter().filter_map(|episode| episode.said.as_ref()) {
        *episodes.entry(said.top_k).or_insert(0_usize) += 1;
    }
    let most = episodes.into_iter().max_by_key(|&(top_k, n)| (n, top_k));
    most.and_then(|(top_k, _)| u32::try_from(top_k).ok())
}
