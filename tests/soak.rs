//! A soak: a thousand sessions opened, forked, preempted, cancelled and dropped at random from sixteen threads under tight
//! budgets. Every token must be the one that follows its ids whatever ran beside it, and at the end nothing is left.
//! `SQUIRE_SOAK_SECONDS=120 cargo test --release --test soak -- --nocapture` is the long form; without it the soak lasts three seconds.

#[path = "support/tiny_model.rs"]
#[allow(dead_code)] // other tests use the rest
mod tiny_model;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use squire::error::{Error, Fault};
use squire::random::{Stream, below};
use squire::serve::{Cancel, Engine, EngineOptions, Generation, GenerationOptions, Next, Queue, ServedModel, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;
use tiny_model::{adapter, dense, moe, tiny};

const THREADS: u64 = 16;
const SESSIONS: usize = 1000;
const KINDS: [&str; 10] =
    ["open", "fork", "append", "truncate", "generate", "pull", "cancel", "prefill", "score", "drop"];

/// What a thread may hear when others are in its way; everything else is a defect.
const EXPECTED: [Fault; 5] =
    [Fault::SessionBudget, Fault::SessionBusy, Fault::Cancelled, Fault::ContextFull, Fault::EmptySession];

/// A place of the table: a session, which model and adapter it is on, and what it generates.
struct Place {
    model: usize,
    adapter: Option<&'static str>,
    /// dropped before the session, or it is let go of while it runs
    generation: Option<Arc<Generation>>,
    session: Session,
}

/// What stands before a token: model, adapter, ids.
type Before = (usize, Option<&'static str>, Vec<i32>);

struct Soak {
    models: Vec<ServedModel>,
    places: Vec<Mutex<Option<Place>>>,
    queue: Queue<Generation>,
    stop: AtomicBool,
    /// to the bits of what follows: the likeliest id and its log-prob, told by whoever came first
    known: Mutex<HashMap<Before, (i32, u32)>>,
    /// times that what is known was seen again
    seen: AtomicU64,
    done: [AtomicU64; KINDS.len()],
}

/// Draws of one thread.
struct Dice(u64, u64);

impl Dice {
    fn roll(&mut self, n: usize) -> usize {
        self.1 += 1;
        below(Stream::World, &[77, self.0, self.1], n as u64) as usize
    }
}

/// One of a few pieces of text, so that many sessions come to the same ids.
fn piece(which: usize) -> Vec<i32> {
    let n = [3, 17, 40, 90][which % 4];
    (0..n).map(|i| below(Stream::World, &[which as u64, i], 280) as i32).collect()
}

impl Soak {
    /// Looks at what was sampled: each token is the one that follows those before it.
    fn check(&self, place: &Place) -> Result<(), Error> {
        let tokens = place.session.tokens()?;
        let mut known = self.known.lock().unwrap();
        for (at, token) in tokens.iter().enumerate().filter(|(_, token)| token.source == Source::Student) {
            let before: Vec<i32> = tokens[..at].iter().map(|token| token.id).collect();
            let found = (token.id, token.logprob.to_bits());
            let mut is_new = false;
            let told = *known.entry((place.model, place.adapter, before)).or_insert_with(|| {
                is_new = true;
                found
            });
            assert_eq!(told, found, "what follows the same ids");
            self.seen.fetch_add(u64::from(!is_new), Ordering::Relaxed);
        }
        Ok(())
    }

    fn open(&self, dice: &mut Dice) -> Result<Place, Error> {
        let model = dice.roll(self.models.len());
        let adapter = [None, None, Some("a"), Some("b")][dice.roll(4)];
        let session = match adapter {
            None => Session::new(&self.models[model])?,
            Some(name) => Session::with_adapter(&self.models[model], name)?,
        };
        session.append(&piece(dice.roll(6)), Source::Host)?;
        Ok(Place { model, adapter, generation: None, session })
    }

    fn act(&self, dice: &mut Dice) -> Result<usize, Error> {
        let mut place = self.places[dice.roll(SESSIONS)].lock().unwrap();
        let Some(here) = place.as_mut() else {
            *place = Some(self.open(dice)?);
            return Ok(0);
        };
        let kind = 1 + dice.roll(KINDS.len() - 1);
        match KINDS[kind] {
            "fork" => {
                let (model, adapter, session) = (here.model, here.adapter, here.session.fork()?);
                let fork = Place { model, adapter, generation: None, session };
                drop(place);
                let replaced = self.places[dice.roll(SESSIONS)].lock().unwrap().replace(fork);
                drop(replaced);
            }
            "append" => here.session.append(&piece(dice.roll(6))[..3], Source::Host)?,
            "truncate" => here.session.truncate(dice.roll(here.session.len()?.max(1)))?,
            "generate" => {
                here.generation = None;
                let options = GenerationOptions {
                    max_tokens: 1 + dice.roll(30),
                    sampling: squire::backend::ops::Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 },
                    priority: dice.roll(5) as i32 - 2,
                    ignore_model_stops: true,
                    ..GenerationOptions::default()
                };
                let generation = Arc::new(here.session.generate(options)?);
                if dice.roll(3) == 0 {
                    self.queue.add(&generation, dice.1)?;
                    drop(self.queue.next(Some(Duration::ZERO)));
                }
                here.generation = Some(generation);
            }
            "pull" => {
                let Some(generation) = &here.generation else { return Ok(kind) };
                let timeout = Duration::from_millis(dice.roll(3) as u64);
                match generation.next(Some(timeout)) {
                    Ok(Next::End(_)) => {
                        here.generation = None;
                        self.check(here)?;
                    }
                    Ok(_) => {}
                    Err(e) if e.fault() == Fault::SessionBusy => {}
                    Err(e) => return Err(e),
                }
            }
            "cancel" => {
                let Some(generation) = here.generation.take() else { return Ok(kind) };
                if dice.roll(2) == 0 {
                    generation.cancel();
                }
                drop(generation);
                self.check(here)?;
            }
            "prefill" => {
                let cancel = Cancel::default();
                if dice.roll(3) == 0 {
                    cancel.set();
                }
                here.session.prefill(&cancel)?;
            }
            "score" => drop(here.session.score(&piece(1)[..5], dice.roll(3), &Cancel::default())?),
            _ => *place = None,
        }
        Ok(kind)
    }

    fn run(&self, seed: u64) {
        let mut dice = Dice(seed, 0);
        while !self.stop.load(Ordering::Relaxed) {
            match self.act(&mut dice) {
                Ok(kind) => drop(self.done[kind].fetch_add(1, Ordering::Relaxed)),
                Err(e) => assert!(EXPECTED.contains(&e.fault()), "{:?}: {e}", e.fault()),
            }
        }
    }
}

/// Entries of a folder of this process: its threads, its open files.
fn own(what: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{what}")).into_iter().flatten().count()
}

fn comes_true(what: &str, is: impl Fn() -> bool) {
    let late = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < late, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_thousand_sessions_at_random_say_what_each_says_alone_and_leave_nothing_behind() {
    let seconds = std::env::var("SQUIRE_SOAK_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(3);
    let before = (own("task"), own("fd"));
    let page = {
        let model = tiny(&Engine::new(EngineOptions::default()).unwrap(), &dense(), Dtype::Bf16, 1);
        model.model().page_shape().bytes() as u64
    };
    let options = EngineOptions {
        kv_budget: 60 * page,
        prefix_budget: 12 * page,
        max_sessions: SESSIONS - 100,
        n_threads: 2,
        ..EngineOptions::default()
    };
    let engine = Engine::new(options).unwrap();
    let models: Vec<ServedModel> =
        [(dense(), 1), (moe(), 2)].iter().map(|(document, seed)| tiny(&engine, document, Dtype::Bf16, *seed)).collect();
    for model in &models {
        for (name, seed) in [("a", 7), ("b", 8)] {
            model.add_adapter(name, adapter(model, 4, Dtype::Bf16, seed)).unwrap();
        }
    }
    let soak = Arc::new(Soak {
        models,
        places: (0..SESSIONS).map(|_| Mutex::new(None)).collect(),
        queue: Queue::new(&engine),
        stop: AtomicBool::new(false),
        known: Mutex::default(),
        seen: AtomicU64::new(0),
        done: Default::default(),
    });
    let begun = Instant::now();
    let threads: Vec<_> = (0..THREADS)
        .map(|seed| {
            let soak = soak.clone();
            std::thread::spawn(move || soak.run(seed))
        })
        .collect();
    while begun.elapsed() < Duration::from_secs(seconds) && threads.iter().all(|t| !t.is_finished()) {
        std::thread::sleep(Duration::from_millis(50));
    }
    soak.stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let done: Vec<u64> = soak.done.iter().map(|n| n.load(Ordering::Relaxed)).collect();
    let seen = soak.seen.load(Ordering::Relaxed);
    println!(
        "in {seconds} s: {:?}; {seen} tokens seen again; {:?}",
        KINDS.iter().zip(&done).collect::<Vec<_>>(),
        engine.metrics()
    );
    assert!(done.iter().all(|&n| n > 0), "every kind of call came to its end at least once: {done:?}");
    let metrics = engine.metrics();
    assert!(metrics.evicted > 0 && metrics.preempted > 0 && metrics.prefix_hits > 0 && seen > 0, "{metrics:?}");
    soak.places.iter().for_each(|place| *place.lock().unwrap() = None);
    comes_true("the end of all sessions", || engine.metrics().sessions == 0);
    let jobs = || {
        let metrics = engine.metrics();
        metrics.jobs_waiting + metrics.jobs_running + metrics.jobs_preempted
    };
    comes_true("the end of all work", || jobs() == 0);
    for model in &soak.models {
        comes_true("the end of all pages", || model.kv_pages() == 0);
        assert!(model.idle_kv_pages() <= 12);
    }
    drop((engine, soak));
    comes_true("as many threads and open files as before", || (own("task"), own("fd")) == before);
}
