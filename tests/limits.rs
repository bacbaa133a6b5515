//! What ends a generation from outside of what it says: a time limit, and a flag that it was given.

#[path = "support/tiny_model.rs"]
mod tiny_model;

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use squire::backend::page::PAGE;
use squire::error::Fault;
use squire::serve::{
    Cancel, Chunk, Engine, EngineOptions, Finish, Generation, GenerationOptions, Next, Queue, ServedModel, Session,
};
use squire::tensor::Dtype;
use squire::text::source::Source;
use tiny_model::{dense, tiny};

/// Long enough for a few rounds of the tiny model on a machine that does much else.
const LIMIT: Duration = Duration::from_millis(700);

fn model(caller_driven: bool) -> ServedModel {
    let engine = Engine::new(EngineOptions { caller_driven, ..EngineOptions::default() }).unwrap();
    let mut document = dense();
    document["max_position_embeddings"] = 20_000.into();
    tiny(&engine, &document, Dtype::Bf16, 3)
}

fn session_of(model: &ServedModel, n: usize) -> Session {
    let session = Session::new(model).unwrap();
    session.append(&(0..n as i32).map(|i| (7 * i + n as i32) % 301).collect::<Vec<_>>(), Source::Host).unwrap();
    session
}

fn endless() -> GenerationOptions {
    GenerationOptions { ignore_model_stops: true, ..GenerationOptions::default() }
}

fn within(limit: Duration) -> GenerationOptions {
    GenerationOptions { time_limit: Some(limit), ..endless() }
}

fn under(flag: &Cancel) -> GenerationOptions {
    GenerationOptions { cancel: Some(flag.clone()), ..endless() }
}

fn bits(chunk: &Chunk) -> (Vec<i32>, Vec<u32>) {
    (chunk.ids.clone(), chunk.logprobs.iter().map(|x| x.to_bits()).collect())
}

/// Steps until the session is idle, which the generation's end makes it.
fn step_to_the_end(model: &ServedModel, session: &Session) {
    while session.len().is_err_and(|e| e.fault() == Fault::SessionBusy) {
        model.engine().step().unwrap();
    }
}

#[test]
fn a_generation_ends_by_itself_behind_the_last_token_within_its_time_and_another_goes_on_there() {
    let model = model(true);
    let session = session_of(&model, 20);
    let generation = session.generate(within(LIMIT)).unwrap();
    let begun = Instant::now();
    (0..6).for_each(|_| assert!(model.engine().step().unwrap()));
    assert!(begun.elapsed() < LIMIT, "the machine is too slow for this test");
    assert_eq!(session.len().unwrap_err().fault(), Fault::SessionBusy, "there is time left");
    sleep(LIMIT);
    // It ends in the first step after it, without a round.
    let rounds = model.engine().metrics().rounds;
    model.engine().step().unwrap();
    assert_eq!(model.engine().metrics().rounds, rounds);
    let said = session.len().unwrap() - 20;
    let (first, finish) = generation.collect().unwrap();
    assert_eq!((first.ids.len(), finish), (said, Finish::Time));
    assert!(said > 0);
    assert!(matches!(generation.next(None).unwrap(), Next::End(Finish::Time)), "the end stays the end");
    // Draws are keyed by position: the rest is what one that had the time would have said.
    let more = GenerationOptions { max_tokens: 5, ..endless() };
    let rest = session.generate(more.clone()).unwrap().collect().unwrap().0;
    let whole = GenerationOptions { max_tokens: said + 5, ..more };
    let whole = session_of(&model, 20).generate(whole).unwrap().collect().unwrap().0;
    let (first, rest) = (bits(&first), bits(&rest));
    assert_eq!(bits(&whole), ([first.0, rest.0].concat(), [first.1, rest.1].concat()));
}

#[test]
fn time_runs_while_a_prompt_is_computed_and_then_nothing_is_said() {
    for caller_driven in [false, true] {
        let model = model(caller_driven);
        let session = session_of(&model, 19_000);
        let (chunk, finish) = session.generate(within(Duration::from_millis(1))).unwrap().collect().unwrap();
        assert_eq!((chunk.ids.len(), finish), (0, Finish::Time));
        let extent = session.extent().unwrap();
        assert!(extent.len == 19_000 && extent.pending > 0, "{extent:?}");
    }
}

#[test]
fn time_runs_while_a_generation_waits_for_pages() {
    let mut options = EngineOptions { caller_driven: true, ..EngineOptions::default() };
    let page = {
        let model = model(true);
        model.model().page_shape().bytes() as u64
    };
    options.kv_budget = 6 * page;
    let engine = Engine::new(options).unwrap();
    let model = tiny(&engine, &dense(), Dtype::Bf16, 3);
    let (first, second) = (session_of(&model, 5 * PAGE - 1), session_of(&model, 3 * PAGE));
    let before = first.generate(GenerationOptions { max_tokens: 30, ..endless() }).unwrap();
    let waits = second.generate(within(LIMIT)).unwrap();
    (0..8).for_each(|_| assert!(engine.step().unwrap()));
    assert_eq!(second.len().unwrap_err().fault(), Fault::SessionBusy);
    sleep(LIMIT);
    engine.step().unwrap();
    assert_eq!(second.extent().unwrap().pending, 3 * PAGE, "it waited all the time");
    assert_eq!(waits.collect().unwrap(), (Chunk::default(), Finish::Time));
    assert_eq!(before.collect().unwrap().1, Finish::Length);
}

#[test]
fn no_time_and_time_without_end_are_limits_too() {
    let model = model(false);
    let session = session_of(&model, 5);
    assert_eq!(session.generate(within(Duration::ZERO)).unwrap().collect().unwrap(), (Chunk::default(), Finish::Time));
    let long = GenerationOptions { max_tokens: 3, ..within(Duration::MAX) };
    assert_eq!(session.generate(long).unwrap().collect().unwrap().1, Finish::Length);
}

#[test]
fn one_flag_ends_all_generations_that_were_given_it_and_no_other() {
    for caller_driven in [false, true] {
        let model = model(caller_driven);
        let sessions: Vec<Session> = (0..5).map(|i| session_of(&model, 4 + i)).collect();
        let flag = Cancel::default();
        let many: Vec<Generation> = sessions[..4].iter().map(|one| one.generate(under(&flag)).unwrap()).collect();
        let other = sessions[4].generate(GenerationOptions { max_tokens: 40, ..endless() }).unwrap();
        // One of them alone, which is nothing to the others.
        many[0].cancel();
        assert_eq!(many[0].collect().unwrap().1, Finish::Cancelled);
        assert!(!flag.is_set());
        many[1..].iter().for_each(|one| assert!(matches!(one.next(None).unwrap(), Next::Chunk(_))));
        flag.set();
        // The host's own may go: they have theirs.
        drop(flag);
        if caller_driven {
            model.engine().step().unwrap();
        }
        let ends: Vec<Finish> = many[1..].iter().map(|one| one.collect().unwrap().1).collect();
        assert_eq!(ends, [Finish::Cancelled; 3]);
        assert_eq!(other.collect().unwrap().1, Finish::Length);
        for session in &sessions {
            step_to_the_end(&model, session);
        }
    }
}

#[test]
fn a_flag_that_is_set_before_the_start_lets_nothing_be_said() {
    let model = model(false);
    let flag = Cancel::default();
    flag.set();
    let session = session_of(&model, 5);
    assert_eq!(session.generate(under(&flag)).unwrap().collect().unwrap(), (Chunk::default(), Finish::Cancelled));
    let refused = session.continuations(2, &under(&flag), &Cancel::default()).err().unwrap();
    assert_eq!(refused.fault(), Fault::Cancelled);
}

#[test]
fn a_queue_tells_the_ends_of_all_that_a_flag_ended() {
    let model = model(true);
    let queue: Queue = Queue::new(model.engine());
    let flag = Cancel::default();
    let sessions: Vec<Session> = (0..6).map(|i| session_of(&model, 4 + i)).collect();
    let all: Vec<Arc<Generation>> = sessions.iter().map(|one| Arc::new(one.generate(under(&flag)).unwrap())).collect();
    all.iter().zip(0..).for_each(|(one, tag)| queue.add(one, tag).unwrap());
    assert!(queue.next(None).is_some());
    flag.set();
    let mut ended = Vec::new();
    while !queue.is_empty() {
        if let Some((tag, Ok(Next::End(finish)))) = queue.next(None) {
            assert_eq!(finish, Finish::Cancelled);
            ended.push(tag);
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, [0, 1, 2, 3, 4, 5]);
}
