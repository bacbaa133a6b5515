//! One wait for many generations: each event comes once, in order, under its tag; nobody is starved; what leaves is forgotten.

#[path = "support/tiny_model.rs"]
mod tiny_model;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use squire::error::Fault;
use squire::random::{Stream, below};
use squire::serve::{Engine, EngineOptions, Finish, Generation, GenerationOptions, Next, Queue, ServedModel, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;
use tiny_model::{dense, tiny};

fn model(caller_driven: bool) -> ServedModel {
    let engine = Engine::new(EngineOptions { caller_driven, ..EngineOptions::default() }).unwrap();
    tiny(&engine, &dense(), Dtype::Bf16, 3)
}

fn ids(seed: u64, n: usize) -> Vec<i32> {
    (0..n as u64).map(|i| below(Stream::World, &[seed, i], 301) as i32).collect()
}

fn start(model: &ServedModel, seed: u64, max_tokens: usize) -> (Session, Arc<Generation>) {
    let session = Session::new(model).unwrap();
    session.append(&ids(seed, 5 + seed as usize % 40), Source::Host).unwrap();
    let options = GenerationOptions { max_tokens, seed, ignore_model_stops: true, ..GenerationOptions::default() };
    let generation = session.generate(options).unwrap();
    (session, Arc::new(generation))
}

#[test]
fn fifty_agents_are_waited_for_together_and_say_what_they_say_alone() {
    for caller_driven in [false, true] {
        let model = model(caller_driven);
        let queue = Queue::new(model.engine());
        let all: Vec<_> = (0..50).map(|seed| start(&model, seed, 3 + seed as usize % 9)).collect();
        // Some are taken in when they have begun, or ended.
        if !caller_driven {
            std::thread::sleep(Duration::from_millis(20));
        }
        all.iter().zip(0..).for_each(|((_, generation), tag)| queue.add(generation, tag).unwrap());
        assert_eq!(queue.len(), 50);
        let mut said: BTreeMap<u64, Vec<i32>> = BTreeMap::new();
        let mut ended = 0;
        while ended < 50 {
            let (tag, next) = queue.next(None).unwrap();
            match next.unwrap() {
                Next::Chunk(chunk) => said.entry(tag).or_default().extend(chunk.ids),
                Next::End(finish) => {
                    assert_eq!(finish, Finish::Length);
                    ended += 1;
                }
                Next::Timeout => panic!("an event was promised"),
            }
        }
        assert!(queue.is_empty() && queue.next(Some(Duration::ZERO)).is_none());
        for (tag, said) in said {
            let alone = self::model(false);
            let (_session, generation) = start(&alone, tag, 3 + tag as usize % 9);
            assert_eq!(generation.collect().unwrap().0.ids, said, "generation {tag}");
        }
    }
}

#[test]
fn those_that_have_something_take_turns() {
    let model = model(false);
    let queue = Queue::new(model.engine());
    let all: Vec<_> = (0..3).map(|seed| start(&model, seed, 4)).collect();
    all.iter().zip(0..).for_each(|((_, generation), tag)| queue.add(generation, tag).unwrap());
    // All have ended before anybody asks: each tells its tokens before one tells its end.
    all.iter().for_each(|(session, _)| while session.len().is_err() {});
    let tags: Vec<u64> = (0..6).map(|_| queue.next(None).unwrap().0).collect();
    let (first, last) = tags.split_at(3);
    let sorted = |tags: &[u64]| {
        let mut tags = tags.to_vec();
        tags.sort_unstable();
        tags
    };
    assert_eq!((sorted(first), sorted(last)), (vec![0, 1, 2], vec![0, 1, 2]), "{tags:?}");
}

#[test]
fn a_wait_ends_with_its_time_and_with_what_comes_meanwhile() {
    let model = model(false);
    let queue = Queue::new(model.engine());
    let begun = Instant::now();
    assert!(queue.next(Some(Duration::from_millis(30))).is_none());
    assert!(begun.elapsed() >= Duration::from_millis(30));
    // Whoever waits hears of one that is put in meanwhile.
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| queue.next(None).unwrap().0);
        let (_session, generation) = start(&model, 1, 2);
        queue.add(&generation, 77).unwrap();
        assert_eq!(waiter.join().unwrap(), 77);
        while !queue.is_empty() {
            queue.next(None).unwrap().1.unwrap();
        }
    });
}

#[test]
fn what_is_dropped_or_cancelled_leaves_and_a_queue_that_goes_leaves_its_generations() {
    let model = model(true);
    let queue = Queue::new(model.engine());
    let (_one, dropped) = start(&model, 1, 500);
    let (_two, cancelled) = start(&model, 2, 500);
    let (_three, kept) = start(&model, 3, 3);
    queue.add(&dropped, 1).unwrap();
    queue.add(&cancelled, 2).unwrap();
    queue.add(&kept, 3).unwrap();
    let again = queue.add(&kept, 4).unwrap_err();
    assert_eq!((again.fault(), again.message()), (Fault::BadValue, "the generation is in a queue already"));
    drop(dropped);
    cancelled.cancel();
    let ends_cancelled = || loop {
        let (tag, next) = queue.next(None).unwrap();
        assert_ne!(tag, 1, "nobody holds it");
        if let (2, Next::End(finish)) = (tag, next.unwrap()) {
            return finish;
        }
    };
    assert_eq!(ends_cancelled(), Finish::Cancelled);
    assert_eq!(queue.len(), 1);
    drop(queue);
    assert!(kept.next(None).is_ok_and(|next| !matches!(next, Next::Timeout)));
    let other = Queue::new(model.engine());
    other.add(&kept, 9).unwrap();
    let foreign = self::model(false);
    let (_session, theirs) = start(&foreign, 1, 1);
    assert_eq!(other.add(&theirs, 1).unwrap_err().fault(), Fault::ForeignHandle);
}

#[test]
fn a_queue_that_is_closed_lets_go_of_who_waits() {
    let model = model(false);
    let queue: Queue = Queue::new(model.engine());
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| queue.next(None).is_none());
        std::thread::sleep(Duration::from_millis(20));
        queue.close();
        assert!(waiter.join().unwrap());
    });
    assert!(queue.next(None).is_none());
}
