//! A teacher in the host's own code that takes turns: what it says is checked, and is then the turn as a model's would be.

#[path = "../support/answering.rs"]
mod answering;
mod fails;
#[path = "../support/folders.rs"]
#[allow(dead_code)]
mod folders;
mod says;
#[path = "../support/scripted.rs"]
mod scripted;
mod texts;

use std::thread;
use std::time::Duration;

use answering::*;
use serde_json::{Value, json};
use squire::distill::{Actor, Distiller, Episode, EpisodeSpec, Request, TeacherQueue, TeacherSays, TurnEnd, Words};
use squire::error::{Error, Fault};
use squire::serve::{GenerationOptions, ServedModel, Session};
use squire::text::source::Source;

fn ids<'a>(ids: &'a [i32], logprobs: &'a [f32]) -> TeacherSays<'a> {
    TeacherSays { what: Words::Ids(ids, logprobs), cut_off: false }
}

/// Says to a request what a model says under the same seed, or scores.
fn serve(queue: &TeacherQueue, model: &ServedModel, request: &Request) {
    let Some(turn) = &request.turn else {
        return queue.reply(request.number, answer(model, request).reply()).unwrap();
    };
    let session = Session::new(model).unwrap();
    session.append(&request.ids, Source::Host).unwrap();
    let options = GenerationOptions {
        max_tokens: turn.max_tokens,
        sampling: turn.sampling,
        seed: turn.seed,
        stop_ids: turn.stop_ids.clone(),
        ignore_model_stops: true,
        source: Source::Teacher,
        ..Default::default()
    };
    let said = session.generate(options).unwrap().collect().unwrap().0;
    queue.say(request.number, ids(&said.ids, &said.logprobs)).unwrap();
}

/// Answers on a thread of its own until the teacher is closed.
fn serving<T>(queue: &TeacherQueue, model: &ServedModel, f: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        scope.spawn(|| {
            while !queue.is_closed() {
                queue.next(4, Duration::from_secs(1)).iter().for_each(|request| serve(queue, model, request));
            }
        });
        let done = f();
        queue.close();
        done
    })
}

fn guided(changes: Value) -> Value {
    let mut document = json!({
        "preset": "guided-opd", "seed": 7, "actor": {"kind": "bernoulli", "beta": 0.5}, "batch_episodes": 4,
    });
    changes.as_object().unwrap().iter().for_each(|(key, value)| document[key] = value.clone());
    document
}

/// An episode whose first turn is the teacher's.
fn teachers(d: &Distiller) -> Episode {
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    episode.observe_ids(&[1, 2, 3]).unwrap();
    episode.override_actor(Actor::Teacher).unwrap();
    episode
}

fn is(e: Error, fault: Fault, said: &str) {
    assert!(e.fault() == fault && e.message().contains(said), "{e}");
}

/// An episode that the policy gives to the teacher.
fn decided(d: &Distiller) -> Episode {
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    episode.observe_ids(&[1, 2, 3]).unwrap();
    assert_eq!(episode.decide().unwrap().actor, Some(Actor::Teacher));
    episode
}

/// An episode that the draw gives to the teacher.
fn decided_by_chance(d: &Distiller) -> Episode {
    let begun = || {
        let episode = d.begin(EpisodeSpec::default()).unwrap();
        episode.observe_ids(&[1, 2, 3]).unwrap();
        (episode.decide().unwrap().actor == Some(Actor::Teacher)).then_some(episode)
    };
    (0..100).find_map(|_| begun()).unwrap()
}
