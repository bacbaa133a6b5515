//! The host's side of a teacher behind a queue: answers from a model of its own.
#![allow(dead_code)] // each test file uses its part

use std::time::Duration;

use super::scripted::*;
use serde_json::{Value, json};
use squire::backend::Compute;
use squire::distill::{Distiller, QueueOptions, Reply, Request, Teacher, TeacherQueue};
use squire::serve::{Cancel, ServedModel, Session};
use squire::text::source::Source;

pub const SHORT: Duration = Duration::from_millis(5);

pub fn queue(options: Value) -> TeacherQueue {
    let mut document = json!({"vocabulary": "the-students"});
    options.as_object().unwrap().iter().for_each(|(key, value)| document[key] = value.clone());
    TeacherQueue::new(QueueOptions::from_json(&document.to_string()).unwrap())
}

/// A distiller whose teacher is the host's, that teacher, and the model that it answers from.
pub fn taught(options: Value, document: Value) -> (Distiller, TeacherQueue, ServedModel) {
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    let queue = queue(options);
    let d = Distiller::taught(&student, Some(Teacher::Queue(queue.clone())), settings(document)).unwrap();
    (d, queue, teacher)
}

/// An answer with its own memory.
pub struct Answer {
    pub ids: Vec<i32>,
    pub logprobs: Vec<f32>,
    pub top_ids: Vec<i32>,
    pub top_logprobs: Vec<f32>,
}

impl Answer {
    pub fn reply(&self) -> Reply<'_> {
        let Answer { ids, logprobs, top_ids, top_logprobs } = self;
        Reply { ids, logprobs, top_ids, top_logprobs }
    }
}

/// What a model says to a request.
pub fn answer(model: &ServedModel, request: &Request) -> Answer {
    let session = Session::new(model).unwrap();
    session.append(&request.ids[..request.from], Source::Host).unwrap();
    let ids = request.ids[request.from..].to_vec();
    let rows = session.score(&ids, request.top_k, &Cancel::default()).unwrap();
    Answer {
        logprobs: rows.iter().map(|row| row.logprob).collect(),
        top_ids: rows.iter().flat_map(|row| row.top.iter().map(|(id, _)| *id)).collect(),
        top_logprobs: rows.iter().flat_map(|row| row.top.iter().map(|(_, logprob)| *logprob)).collect(),
        ids,
    }
}

pub fn answer_all(queue: &TeacherQueue, model: &ServedModel) -> usize {
    let requests = queue.next(1000, SHORT);
    requests.iter().for_each(|r| queue.reply(r.number, answer(model, r).reply()).unwrap());
    requests.len()
}
