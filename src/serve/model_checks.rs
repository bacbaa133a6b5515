//! What waits, locks and counts pages, in orders of threads that shuttle chooses: no wait is for ever, no token is lost, no page is
//! lost or held twice. `cargo test --release --features model-check --lib model_checks` runs them; `SQUIRE_MODEL_CHECKS` says how many
//! orders each is run in, 300 where it says nothing.
#![forbid(unsafe_code)]

use std::sync::Arc;

use serde_json::json;
use shuttle::thread;

use super::bell::{Bell, Rings};
use super::outbox::{Finish, Outbox, Rest, Sampled};
use super::{Cancel, Engine, EngineOptions, GenerationOptions, Next, Queue, ServedModel, Session};
use crate::backend::cpu::Cpu;
use crate::backend::page::{PAGE, PageShape};
use crate::backend::{Device, ops::Sampling};
use crate::error::Fault;
use crate::model::{KvCache, KvPool, ModelConfig};
use crate::tensor::Dtype;
use crate::text::source::Source;

/// Runs it in many orders. A deadlock in one of them is a failure that names the order.
fn in_many_orders(run: impl Fn() + Send + Sync + 'static) {
    let orders = std::env::var("SQUIRE_MODEL_CHECKS").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    shuttle::check_random(run, orders);
}

fn sampled(id: i32) -> Sampled {
    let (logprob, top, text) = (0.0, Vec::new(), String::new());
    Sampled { id, logprob, sampled_logprob: logprob, top, position: 0, revision: 1, text, stop: None }
}

/// Says the ids from a thread of its own, one by one, and the end.
fn speak(outbox: &Arc<Outbox>, ids: std::ops::Range<i32>) -> thread::JoinHandle<()> {
    let outbox = outbox.clone();
    thread::spawn(move || {
        ids.for_each(|id| outbox.push(sampled(id)));
        outbox.end(Ok(Finish::Length), Rest::default());
    })
}

#[test]
fn every_token_and_the_end_reach_who_waits_for_one() {
    in_many_orders(|| {
        let outbox = Arc::new(Outbox::default());
        let speaker = speak(&outbox, 0..3);
        let mut ids = Vec::new();
        loop {
            outbox.wait(None);
            match outbox.take() {
                Some(taken) if !taken.tokens.is_empty() => ids.extend(taken.tokens.iter().map(|token| token.id)),
                _ => break,
            }
        }
        assert_eq!(ids, [0, 1, 2]);
        assert!(outbox.has_ended());
        speaker.join().unwrap();
    });
}

#[test]
fn every_token_of_each_reaches_those_who_wait_for_many() {
    in_many_orders(|| {
        let bell = Arc::new(Bell::default());
        let boxes: Vec<Arc<Outbox>> = (0..2).map(|_| Arc::default()).collect();
        let speakers: Vec<_> = boxes.iter().zip([0..2, 10..12]).map(|(outbox, ids)| speak(outbox, ids)).collect();
        // Watched while they speak already.
        let rings: Vec<Arc<Rings>> = (0..2).map(|i| Rings::new(&bell, i)).collect();
        boxes.iter().zip(&rings).for_each(|(outbox, rings)| assert!(outbox.watch(rings)));
        let (mut ids, mut ended) = (Vec::new(), 0);
        while ended < 2 {
            bell.wait(None);
            while let Some(number) = bell.take() {
                let (outbox, rings) = (&boxes[number as usize], &rings[number as usize]);
                rings.taken();
                match outbox.take() {
                    Some(taken) if !taken.tokens.is_empty() => {
                        ids.extend(taken.tokens.iter().map(|token| token.id));
                        rings.ring();
                    }
                    Some(_) => {
                        outbox.unwatch();
                        ended += 1;
                    }
                    None => {}
                }
            }
        }
        ids.sort_unstable();
        assert_eq!(ids, [0, 1, 10, 11]);
        speakers.into_iter().for_each(|speaker| speaker.join().unwrap());
    });
}

#[test]
fn who_waits_for_many_is_woken_when_nobody_is_to_wait_any_more() {
    in_many_orders(|| {
        let bell = Arc::new(Bell::default());
        let other = bell.clone();
        let waiter = thread::spawn(move || other.wait(None));
        bell.close();
        waiter.join().unwrap();
        assert!(bell.is_closed());
    });
}

const BUDGET: usize = 4;

fn pool() -> Arc<KvPool> {
    let shape = PageShape { n_layers: 1, n_kv_heads: 1, head_dim: 1, dtype: Dtype::F32 };
    let device = Device::Cpu(Cpu::new(1, None).unwrap());
    KvPool::keeping(&device, shape, (BUDGET * shape.bytes()) as u64, (2 * shape.bytes()) as u64)
}

#[test]
fn pages_are_neither_lost_nor_given_twice_however_they_are_shared_and_given_up() {
    in_many_orders(|| {
        let pool = pool();
        let root = pool.new_root();
        let ids: Vec<i32> = (0..3 * PAGE as i32).collect();
        let compute = |kv: &mut KvCache, n: usize| match kv.reserve(n) {
            Ok(()) => {
                let last = (kv.len() + n).div_ceil(PAGE);
                // What will be written to is nobody else's.
                let own = (kv.len() / PAGE..last).all(|page| Arc::get_mut(&mut kv.pages_mut()[page]).is_some());
                assert!(own);
                kv.advance(n);
                true
            }
            Err(e) => {
                assert_eq!(e.fault(), Fault::KvBudget);
                false
            }
        };
        let threads: Vec<_> = (0..3)
            .map(|i| {
                let (pool, ids) = (pool.clone(), ids.clone());
                thread::spawn(move || {
                    let mut kv = KvCache::new(&pool);
                    for round in 0..2 {
                        kv.adopt(root, &ids, 2 * PAGE);
                        let held = kv.len();
                        if held < 2 * PAGE && compute(&mut kv, 2 * PAGE - held) {
                            kv.tell_ids(root, &ids);
                        }
                        let mut fork = kv.fork().unwrap();
                        compute(&mut fork, 1);
                        kv.truncate((i + round) % 2 * (PAGE + 1));
                        compute(&mut kv, 1);
                        drop(fork);
                        assert!(pool.pages_existing() <= BUDGET);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(pool.pages_in_use(), 0);
        assert!(pool.pages_idle() <= 2, "{} idle", pool.pages_idle());
        pool.forget(root);
        assert_eq!(pool.pages_idle(), 0);
        let mut all = KvCache::new(&pool);
        all.reserve(BUDGET * PAGE).expect("none was lost");
    });
}

/// A model so small that a thousand of its tokens take no time, with room for so many pages.
fn tiny(engine: &Engine) -> ServedModel {
    let document = json!({
        "model_type": "qwen3", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 4 * PAGE,
    });
    engine.random_model(ModelConfig::from_json(&document).unwrap(), Dtype::F32, 1, 0).unwrap()
}

/// An engine that the threads drive, with so many pages for each model like `tiny`.
fn engine(pages: u64) -> Engine {
    let engine = |kv_budget| {
        let options = EngineOptions {
            caller_driven: true,
            n_threads: 1,
            kv_budget,
            prefill_slice: None,
            ..EngineOptions::default()
        };
        Engine::new(options).unwrap()
    };
    let page = tiny(&engine(u64::MAX)).model().page_shape().bytes() as u64;
    engine(pages * page)
}

fn greedy(max_tokens: usize, priority: i32) -> GenerationOptions {
    let sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 };
    GenerationOptions { max_tokens, sampling, priority, ignore_model_stops: true, ..GenerationOptions::default() }
}

fn prompt(n: usize) -> Vec<i32> {
    (0..n as i32).map(|i| i * 5 % 16).collect()
}

#[test]
fn sessions_that_take_each_others_pages_say_what_each_says_alone_and_leave_none() {
    // Over all orders: what is said, and how often pages were taken.
    let wanted = Arc::new(std::sync::Mutex::new(None::<Vec<i32>>));
    let taken = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let all_taken = taken.clone();
    in_many_orders(move || {
        let engine = engine(3);
        let model = tiny(&engine);
        let threads: Vec<_> = (0..3)
            .map(|i: i32| {
                let (model, wanted) = (model.clone(), wanted.clone());
                thread::spawn(move || {
                    let session = Session::new(&model).unwrap();
                    session.append(&prompt(PAGE - 1), Source::Host).unwrap();
                    if i == 2 {
                        // One is cancelled somewhere, and goes on.
                        let generation = session.generate(greedy(3, i)).unwrap();
                        generation.cancel();
                        drop(generation);
                        session.truncate(PAGE - 1).unwrap();
                    }
                    let said = session.generate(greedy(3, i)).unwrap().collect().unwrap().0.ids;
                    assert_eq!(wanted.lock().unwrap().get_or_insert_with(|| said.clone()), &said);
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let metrics = engine.metrics();
        assert_eq!((metrics.sessions, model.kv_pages()), (0, 0));
        taken.fetch_add(metrics.preempted + metrics.evicted, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(all_taken.load(std::sync::atomic::Ordering::Relaxed) > 0, "nobody lost pages");
}

#[test]
fn a_queue_that_two_pull_tells_every_token_once() {
    in_many_orders(|| {
        let engine = engine(8);
        let model = tiny(&engine);
        let queue = Arc::new(Queue::new(&engine));
        let sessions: Vec<Session> = (0..2).map(|_| Session::new(&model).unwrap()).collect();
        let mut running = Vec::new();
        for (tag, session) in (0..).zip(&sessions) {
            session.append(&prompt(3), Source::Host).unwrap();
            let generation = Arc::new(session.generate(greedy(2, 0)).unwrap());
            queue.add(&generation, tag).unwrap();
            running.push(generation);
        }
        let told = Arc::new(shuttle::sync::Mutex::new((0, 0)));
        let pullers: Vec<_> = (0..2)
            .map(|_| {
                let (engine, queue, told) = (engine.clone(), queue.clone(), told.clone());
                thread::spawn(move || {
                    while told.lock().unwrap().1 < 2 {
                        match queue.next(Some(std::time::Duration::ZERO)) {
                            Some((_, Ok(Next::Chunk(chunk)))) => told.lock().unwrap().0 += chunk.ids.len(),
                            Some((_, Ok(Next::End(_)))) => told.lock().unwrap().1 += 1,
                            Some((_, Err(e))) => panic!("{e}"),
                            _ => assert!(engine.step().is_ok()),
                        }
                    }
                })
            })
            .collect();
        pullers.into_iter().for_each(|puller| puller.join().unwrap());
        assert_eq!(*told.lock().unwrap(), (4, 2));
    });
}

#[test]
fn a_session_whose_work_is_let_go_of_is_idle_for_its_next_call() {
    in_many_orders(|| {
        let engine = engine(8);
        let model = tiny(&engine);
        let session = Arc::new(Session::new(&model).unwrap());
        session.append(&prompt(4), Source::Host).unwrap();
        let generation = session.generate(greedy(2, 0)).unwrap();
        let other = session.clone();
        let stepper = {
            let engine = engine.clone();
            thread::spawn(move || assert!(engine.step().is_ok()))
        };
        let dropper = thread::spawn(move || drop(generation));
        // Busy until it is let go of, and then waited for.
        let caller = thread::spawn(move || match other.prefill(&Cancel::default()) {
            Ok(()) => {}
            Err(e) => assert_eq!(e.fault(), Fault::SessionBusy),
        });
        [stepper, dropper, caller].into_iter().for_each(|thread| thread.join().unwrap());
        assert!(session.len().unwrap() >= 4);
        session.prefill(&Cancel::default()).unwrap();
    });
}
