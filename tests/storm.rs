//! A storm: threads that do everything at once to one engine, for a while. What comes of a session must be what comes of
//! it alone; nothing may panic, poison or stay behind. `SQUIRE_STORM_SECONDS=600 cargo test --release --test storm` is the
//! long form; without it the storm lasts three seconds.

#[path = "support/tiny_model.rs"]
#[allow(dead_code)] // other tests use the rest
mod tiny_model;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use squire::distill::{Config, Distiller, EpisodeSpec};
use squire::error::{Error, Fault};
use squire::random::{Stream, below};
use squire::serve::{Cancel, Engine, EngineOptions, GenerationOptions, Next, ServedModel, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;
use tiny_model::{dense, moe, tiny};

const THREADS: u64 = 16;

/// What a thread may hear when others are in its way; everything else is a defect.
const EXPECTED: [Fault; 7] = [
    Fault::SessionBudget,
    Fault::SessionBusy,
    Fault::Cancelled,
    Fault::ContextFull,
    Fault::HostBudget,
    Fault::DistillerBusy,
    Fault::NothingToLearn,
];

fn squire_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with("squire-")).count()
}

struct Storm {
    engine: Engine,
    models: Vec<ServedModel>,
    distiller: Distiller,
    scratch: std::path::PathBuf,
    stop: AtomicBool,
    /// (model, prompt, seed) to the ids that it gives, told by whoever came first
    known: Mutex<BTreeMap<(usize, u64, u64), Vec<i32>>>,
    done: [std::sync::atomic::AtomicU64; 12],
}

/// Draws of one thread.
struct Dice(u64, u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.1 += 1;
        below(Stream::World, &[self.0, self.1], n)
    }
}

impl Storm {
    fn prompt(prompt: u64) -> Vec<i32> {
        (0..3 + prompt * 29).map(|i| below(Stream::World, &[prompt, i], 280) as i32).collect()
    }

    fn session(&self, model: usize, prompt: u64) -> Result<Session, Error> {
        let session = Session::new(&self.models[model])?;
        session.append(&Storm::prompt(prompt), Source::Host)?;
        Ok(session)
    }

    /// Generates to the end and compares with what anybody else got.
    fn generate(&self, dice: &mut Dice, cancel_at: Option<u64>) -> Result<(), Error> {
        // The model that learns changes; the others must not.
        let (model, prompt, seed) = (dice.roll(2) as usize, dice.roll(5), dice.roll(3));
        let mut session = self.session(model, prompt)?;
        if dice.roll(3) == 0 {
            session.prefill(&Cancel::default())?;
            let fork = session.fork()?;
            session = fork;
        }
        let options = GenerationOptions { max_tokens: 24, seed, ignore_model_stops: true, ..Default::default() };
        let generation = session.generate(options.clone())?;
        let mut ids = Vec::new();
        let mut pulls = 0;
        loop {
            match generation.next(Some(Duration::from_millis(dice.roll(4))))? {
                Next::Chunk(chunk) => ids.extend(chunk.ids),
                Next::End(_) => break,
                Next::Timeout => {}
            }
            pulls += 1;
            match cancel_at {
                Some(at) if pulls == at && dice.roll(2) == 0 => generation.cancel(),
                Some(at) if pulls > at => break,
                _ => {}
            }
        }
        drop(generation);
        let stands: Vec<i32> = session.tokens()?[Storm::prompt(prompt).len()..].iter().map(|t| t.id).collect();
        assert!(stands.starts_with(&ids));
        if cancel_at.is_some() && stands.len() < 24 {
            // What was cancelled goes on where it stood, with the same draws.
            let rest = GenerationOptions { max_tokens: 24 - stands.len(), ..options };
            session.generate(rest)?.collect()?;
        }
        let all: Vec<i32> = session.tokens()?[Storm::prompt(prompt).len()..].iter().map(|t| t.id).collect();
        let mut known = self.known.lock().unwrap();
        assert_eq!(known.entry((model, prompt, seed)).or_insert_with(|| all.clone()), &all);
        Ok(())
    }

    fn episode(&self, dice: &mut Dice) -> Result<(), Error> {
        let episode = self.distiller.begin(EpisodeSpec { evaluation: dice.roll(4) == 0, ..EpisodeSpec::default() })?;
        for _ in 0..1 + dice.roll(3) {
            episode.observe_ids(&Storm::prompt(dice.roll(2)))?;
            if episode.decide()?.actor.is_none() {
                break;
            }
            let generation = episode.act(&GenerationOptions { max_tokens: 4, ..Default::default() })?;
            if dice.roll(6) == 0 {
                drop(generation);
                return Ok(());
            }
            generation.collect()?;
            drop(generation);
            episode.outcome(None, true)?;
        }
        episode.end(1.0, Some(true))
    }

    fn act(&self, dice: &mut Dice) -> Result<usize, Error> {
        let kind = dice.roll(12) as usize;
        match kind {
            0..=2 => self.generate(dice, None)?,
            3 | 4 => {
                let at = dice.roll(6);
                self.generate(dice, Some(at))?;
            }
            5 => {
                let session = self.session(dice.roll(3) as usize, dice.roll(5))?;
                let cancel = Cancel::default();
                if dice.roll(3) == 0 {
                    cancel.set();
                }
                session.score(&Storm::prompt(1)[..9], dice.roll(4) as usize, &cancel)?;
            }
            6 => {
                let session = self.session(dice.roll(3) as usize, 4)?;
                drop(session.generate(GenerationOptions::default())?);
                session.truncate(dice.roll(session.len()? as u64) as usize)?;
            }
            7 | 8 => self.episode(dice)?,
            9 => {
                let mut update = self.distiller.build(0, &Cancel::default(), &mut |_, _| true)?;
                self.distiller.apply(&mut update)?;
                self.distiller.publish()?;
            }
            10 => {
                assert!(self.models[dice.roll(3) as usize].info()["revision"].as_u64() > Some(0));
                assert!(self.engine.metrics().sessions <= 48);
                self.distiller.metrics();
                if dice.roll(40) == 0 {
                    self.models[0].save(&self.scratch.join(format!("model-{}", dice.0)))?;
                }
            }
            _ => {
                let folder = self.scratch.join("start");
                let model = self.engine.load(&folder, Default::default())?;
                let session = Session::new(&model)?;
                session.append(&[1, 2, 3], Source::Host)?;
                session.generate(GenerationOptions { max_tokens: 2, ..Default::default() })?.collect()?;
            }
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

#[test]
fn sixteen_threads_that_do_everything_at_once_get_what_each_gets_alone() {
    let seconds = std::env::var("SQUIRE_STORM_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(3);
    let scratch = tempfile::tempdir().unwrap();
    let page = {
        let model = tiny(&Engine::new(EngineOptions::default()).unwrap(), &dense(), Dtype::Bf16, 1);
        model.model().page_shape().bytes() as u64
    };
    // Fewer pages and sessions than everybody together would like.
    let options = EngineOptions { kv_budget: 30 * page, max_sessions: 48, n_threads: 2, ..EngineOptions::default() };
    let engine = Engine::new(options).unwrap();
    let models: Vec<ServedModel> = [(dense(), 1), (moe(), 2), (dense(), 3), (dense(), 4)]
        .into_iter()
        .map(|(document, seed)| tiny(&engine, &document, Dtype::Bf16, seed))
        .collect();
    models[0].save(&scratch.path().join("start")).unwrap();
    let config = Config::from_value(
        &serde_json::json!({"preset": "guided-opd", "steps": 1_000_000, "batch_episodes": 4, "kept_revisions": 64}),
    )
    .unwrap();
    let distiller = Distiller::new(&models[2], Some(&models[3]), config).unwrap();
    let storm = Arc::new(Storm {
        engine: engine.clone(),
        models,
        distiller,
        scratch: scratch.path().to_path_buf(),
        stop: AtomicBool::new(false),
        known: Mutex::default(),
        done: Default::default(),
    });
    let begun = Instant::now();
    let threads: Vec<_> = (0..THREADS)
        .map(|seed| {
            let storm = storm.clone();
            std::thread::spawn(move || storm.run(seed))
        })
        .collect();
    while begun.elapsed() < Duration::from_secs(seconds) && threads.iter().all(|t| !t.is_finished()) {
        std::thread::sleep(Duration::from_millis(50));
    }
    storm.stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let done: Vec<u64> = storm.done.iter().map(|n| n.load(Ordering::Relaxed)).collect();
    println!("done in {seconds} s, by kind: {done:?}; {:?}", engine.metrics());
    assert!(done.iter().all(|&n| n > 0), "every kind of work came to its end at least once: {done:?}");
    storm.distiller.discard();
    let late = Instant::now() + Duration::from_secs(60);
    while engine.metrics().sessions > 0 && Instant::now() < late {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(engine.metrics().sessions, 0);
    for model in &storm.models {
        while model.kv_pages() > 0 && Instant::now() < late {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(model.kv_pages(), 0);
    }
    assert!(squire_threads() > 0);
    drop((engine, storm));
    assert_eq!(squire_threads(), 0, "the engine's threads are gone when its last holder is");
}
