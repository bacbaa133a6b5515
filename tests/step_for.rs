//! An engine that is stepped within a time says what one says that runs by itself, however short the time, and none starves.

#[path = "support/tiny_model.rs"]
mod tiny_model;

use std::time::Duration;

use squire::error::Fault;
use squire::random::{Stream, below};
use squire::serve::{Engine, EngineOptions, Finish, Generation, GenerationOptions, ServedModel, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;
use tiny_model::{dense, tiny};

/// Sessions with prompts of up to so many tokens.
const LENGTHS: [usize; 6] = [3, 170, 40, 300, 1, 95];

fn model(caller_driven: bool, prefill_slice: Option<Duration>) -> ServedModel {
    let options = EngineOptions { caller_driven, prefill_slice, ..EngineOptions::default() };
    tiny(&Engine::new(options).unwrap(), &dense(), Dtype::Bf16, 3)
}

fn begin(model: &ServedModel) -> Vec<(Session, Generation)> {
    let one = |(i, n): (u64, usize)| {
        let session = Session::new(model).unwrap();
        let ids: Vec<i32> = (0..n as u64).map(|at| below(Stream::World, &[i, at], 301) as i32).collect();
        session.append(&ids, Source::Host).unwrap();
        let options = GenerationOptions { max_tokens: 12, seed: i, ignore_model_stops: true, ..Default::default() };
        let generation = session.generate(options).unwrap();
        (session, generation)
    };
    (0..).zip(LENGTHS).map(one).collect()
}

fn said(all: &[(Session, Generation)]) -> Vec<(Vec<i32>, Vec<u32>)> {
    let one = |(_, generation): &(Session, Generation)| {
        let (chunk, finish) = generation.collect().unwrap();
        assert_eq!((chunk.ids.len(), finish), (12, Finish::Length));
        (chunk.ids, chunk.logprobs.iter().map(|x| x.to_bits()).collect())
    };
    all.iter().map(one).collect()
}

#[test]
fn steps_within_any_time_give_the_bits_of_an_engine_that_runs_by_itself() {
    let free = said(&begin(&model(false, EngineOptions::default().prefill_slice)));
    for slice in [None, Some(Duration::from_millis(20))] {
        for time in [0, 50, 2_000, 1_000_000].map(Duration::from_micros) {
            let model = model(true, slice);
            let all = begin(&model);
            let rounds = || model.engine().metrics().rounds;
            let mut calls = 0;
            while model.engine().step_for(time).unwrap() {
                calls += 1;
                assert!(rounds() >= calls, "at least one round each call");
                assert!(calls < 10_000, "it goes on for ever");
            }
            assert_eq!(said(&all), free, "{slice:?} {time:?}");
            if time.is_zero() {
                assert_eq!(rounds(), calls + 1, "no more than one round each call");
            }
            let before = rounds();
            assert!(!model.engine().step_for(time).unwrap(), "nothing is left");
            assert_eq!(rounds(), before);
        }
    }
}

#[test]
fn a_time_without_end_is_until_nothing_is_left() {
    let model = model(true, None);
    let all = begin(&model);
    assert!(!model.engine().step_for(Duration::MAX).unwrap());
    assert!(all.iter().all(|(session, _)| session.len().is_ok()), "all are idle");
}

#[test]
fn a_shorter_time_has_a_prompt_come_in_more_rounds() {
    let rounds = |time| {
        let model = model(true, None);
        let session = Session::new(&model).unwrap();
        session.append(&(0..500).map(|i| i % 301).collect::<Vec<_>>(), Source::Host).unwrap();
        let generation = session.generate(GenerationOptions { max_tokens: 1, ..Default::default() }).unwrap();
        while model.engine().step_for(time).unwrap() {}
        assert_eq!(generation.collect().unwrap().1, Finish::Length);
        model.engine().metrics().rounds
    };
    // Of no time a round has the fewest rows: 16 of the first, of which nothing is known, and then 2.
    assert_eq!(rounds(Duration::ZERO), 1 + (500u64 - 16).div_ceil(2));
    assert!(rounds(Duration::MAX) < 10);
}

#[test]
fn an_engine_with_a_thread_of_its_own_is_not_stepped() {
    let e = model(false, None).engine().step_for(Duration::ZERO).unwrap_err();
    assert_eq!(
        (e.fault(), e.message()),
        (Fault::OutOfOrder, "this engine steps itself; make it caller-driven to step it")
    );
}
