//! Who teaches a run from records: a model that is named, or what the record says that a teacher said.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use squire::backend::ops::Needs;
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
    let actors = [Actor::Student, Actor::Teacher, Actor::Replay];
    let asks_for = |needs: Needs| actors.into_iter().find(|&actor| config.loss_of(actor).needs() == needs);
    let (distribution, asks) = (asks_for(Needs::Distribution), asks_for(Needs::Logprob));
    // A teacher that was a model left the log-probs of what was said alone.
    let said = said(record, usize::from(distribution.is_some()));
    if let (None, Some(actor)) = (said, distribution.or(asks)) {
        let loss = config.loss_of(actor);
        let found = match record.episodes.iter().any(|episode| episode.said.is_some()) {
            true => "the record has the log-probs of what was said alone, and none of a teacher's likely ids",
            false => "there is no line of what a teacher said in the record",
        };
        let why = format!(
            "{}_turns.kernel: {} asks for a teacher's scores; {found}, so the teacher is wanted with --teacher",
            actor.name(),
            loss.name()
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

/// With how many ids a place, `least` at least, most of the record's episodes were scored; None where none was.
fn said(record: &Record, least: usize) -> Option<u32> {
    let mut episodes = BTreeMap::new();
    for said in record.episodes.iter().filter_map(|episode| episode.said.as_ref()).filter(|said| said.top_k >= least) {
        *episodes.entry(said.top_k).or_insert(0_usize) += 1;
    }
    let most = episodes.into_iter().max_by_key(|&(top_k, n)| (n, top_k));
    most.and_then(|(top_k, _)| u32::try_from(top_k).ok())
}
