//! What an update does not keep it computes again, with the same bits; and it takes no more memory than it is given.

#[path = "support/tiny_model.rs"]
#[allow(dead_code)]
mod tiny_model;

use serde_json::{Value, json};
use squire::backend::Compute;
use squire::distill::{Config, Distiller, EpisodeSpec, Replay, Update};
use squire::error::{Error, Fault};
use squire::serve::{Cancel, Engine, EngineOptions, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;
use tiny_model::{biased, dense, moe, tiny};

/// Tokens of the episodes of a batch.
const LENGTHS: [usize; 3] = [50, 7, 33];

fn distiller(document: &Value, compute: Compute, settings: &Value) -> Result<Distiller, Error> {
    let options = EngineOptions { n_threads: 2, compute, ..EngineOptions::default() };
    let engine = Engine::new(options).unwrap();
    let dtype = if compute == Compute::F32 { Dtype::F32 } else { Dtype::Bf16 };
    let (student, teacher) = (tiny(&engine, document, dtype, 1), tiny(&engine, document, dtype, 2));
    let mut all = json!({
        "preset": "sft", "steps": 100, "batch_episodes": LENGTHS.len(), "replay_turns": {"kernel": "reverse-kl"},
        "optimizer": {"learning_rate": 1e-3},
    });
    settings.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
    Distiller::new(&student, Some(&teacher), Config::from_value(&all).unwrap())
}

fn play(d: &Distiller) {
    play_of(d, &LENGTHS);
}

/// Episodes of so many tokens.
fn play_of(d: &Distiller, lengths: &[usize]) {
    for (e, &n) in lengths.iter().enumerate() {
        let ids: Vec<i32> = (0..n).map(|i| ((i * 31 + e * 7) % 290) as i32).collect();
        let episode = d.begin(EpisodeSpec::default()).unwrap();
        episode.observe_ids(&ids[..4]).unwrap();
        episode.decide().unwrap();
        episode.replay(Replay::Ids(&ids[4..])).unwrap();
        episode.outcome(None, true).unwrap();
        episode.end(1.0, Some(true)).unwrap();
    }
}

fn build(d: &Distiller) -> Result<Update, Error> {
    d.build(0, &Cancel::default(), &mut |_, _| true)
}

/// Every bit of an update's gradients.
fn bits(update: &Update) -> Vec<(String, Vec<u32>)> {
    let tensors = update.gradients().tensors().into_iter();
    tensors.map(|(name, t)| (name, t.f32().iter().map(|x| x.to_bits()).collect())).collect()
}

/// What an update of the batch takes, as its refusal says.
fn needed(document: &Value, settings: &Value) -> u64 {
    needed_by(document, settings, &LENGTHS)
}

/// The same of episodes of so many tokens.
fn needed_by(document: &Value, settings: &Value, lengths: &[usize]) -> u64 {
    let mut poor = settings.clone();
    // Enough for one token, for it is a distiller that is refused where that does not fit.
    poor["training_budget"] = json!(1);
    let least = distiller(document, Compute::F32, &poor).err().unwrap().bytes().unwrap().0;
    poor["training_budget"] = json!(least);
    let d = distiller(document, Compute::F32, &poor).unwrap();
    play_of(&d, lengths);
    let refused = build(&d).err().unwrap();
    assert_eq!((refused.fault(), refused.bytes().unwrap().1), (Fault::HostBudget, least), "{refused}");
    assert_eq!(d.n_waiting(), lengths.len(), "the episodes wait on");
    refused.bytes().unwrap().0
}

#[test]
fn what_is_computed_again_has_the_same_bits() {
    for (document, compute) in [dense(), moe(), biased()].iter().flat_map(|d| [(d, Compute::F32), (d, Compute::Bf16)]) {
        for lora in [json!(null), json!({"rank": 3, "alpha": 6.0, "targets": ["q_proj", "v_proj"]})] {
            // Packed together, and each alone.
            for micro_tokens in [4096, 1] {
                let mut judge = None;
                for recompute in ["nothing", "feed-forward", "layer"] {
                    let settings = json!({"recompute": recompute, "micro_tokens": micro_tokens, "lora": lora});
                    let d = distiller(document, compute, &settings).unwrap();
                    let mut found = Vec::new();
                    for _ in 0..2 {
                        play(&d);
                        let mut update = build(&d).unwrap();
                        d.apply(&mut update).unwrap();
                        d.publish().unwrap();
                        found.push((update.report().update_kl.map(f64::to_bits), bits(&update)));
                    }
                    assert!(*judge.get_or_insert_with(|| found.clone()) == found, "{recompute}, {compute:?}");
                }
            }
        }
    }
}

#[test]
fn the_budget_chooses_what_is_computed_again_and_the_exact_plan_suffices() {
    for document in [dense(), moe()] {
        let by = |recompute| needed(&document, &json!({"recompute": recompute}));
        let plans = ["nothing", "feed-forward", "layer"].map(by);
        assert!(plans[0] > plans[1] && plans[1] > plans[2], "{plans:?}");
        let chosen = |budget: u64| {
            let d = distiller(&document, Compute::F32, &json!({"training_budget": budget})).unwrap();
            play(&d);
            build(&d).map(|update| bits(&update))
        };
        let judge = chosen(0).unwrap();
        for plan in plans {
            // To the byte: one less, and it is the next choice, or a refusal.
            assert!(chosen(plan).unwrap() == judge);
            match chosen(plan - 1) {
                Ok(found) => assert!(plan != plans[2] && found == judge),
                Err(e) => assert_eq!((plan, e.bytes()), (plans[2], Some((plan, plan - 1))), "{e}"),
            }
        }
        // The host's own choice is not changed for it.
        let settings = json!({"recompute": "nothing", "training_budget": plans[0] - 1});
        let d = distiller(&document, Compute::F32, &settings).unwrap();
        play(&d);
        let refused = build(&d).err().unwrap();
        assert!(refused.to_string().contains("computes nothing again"), "{refused}");
        assert_eq!(refused.bytes(), Some((plans[0], plans[0] - 1)));
    }
}

#[test]
fn a_budget_that_cannot_hold_one_row_is_refused_with_the_distiller() {
    let refused = distiller(&dense(), Compute::F32, &json!({"training_budget": 1000})).err().unwrap();
    assert_eq!(refused.fault(), Fault::HostBudget);
    assert!(refused.to_string().contains("training_budget of 1000 bytes: an update of 1 tokens at once"), "{refused}");
    let (needed, free) = refused.bytes().unwrap();
    assert!(needed > 1000 && free == 1000);
    // An adapter's masters and moments are few.
    let settings = json!({"training_budget": needed / 2, "lora": {"rank": 2}});
    distiller(&dense(), Compute::F32, &settings).unwrap();
}

#[test]
fn a_trajectory_longer_than_micro_tokens_trains_within_its_plan() {
    let settings = json!({"micro_tokens": 8, "recompute": "layer"});
    let longest = needed(&dense(), &settings);
    let poor = json!({"micro_tokens": 8, "recompute": "layer", "training_budget": longest - 1});
    let d = distiller(&dense(), Compute::F32, &poor).unwrap();
    play(&d);
    let refused = build(&d).err().unwrap();
    assert!(
        refused.to_string().contains("episode 0: training_budget"),
        "the one that is too long by itself: {refused}"
    );
    let together = needed(&dense(), &json!({"recompute": "layer"}));
    assert!(longest < together, "one trajectory at a time takes less than all three");
    let mut exact = settings.clone();
    exact["training_budget"] = json!(longest);
    let d = distiller(&dense(), Compute::F32, &exact).unwrap();
    play(&d);
    build(&d).unwrap();
}

#[test]
fn a_build_may_be_stopped_before_each_layer_and_chunk_and_loses_nothing() {
    for recompute in ["nothing", "layer"] {
        // Without a teacher: while one is waited for, how often the host is asked is a matter of time.
        let loss = json!({"kernel": "cross-entropy"});
        let settings = json!({"micro_tokens": 8, "recompute": recompute, "replay_turns": loss});
        let d = distiller(&dense(), Compute::F32, &settings).unwrap();
        play(&d);
        let mut asked = 0;
        let judge = {
            let other = distiller(&dense(), Compute::F32, &settings).unwrap();
            play(&other);
            let update = other.build(0, &Cancel::default(), &mut |_, _| {
                asked += 1;
                true
            });
            bits(&update.unwrap())
        };
        assert!(asked > 3 * (3 + 1 + 3), "three trajectories of three layers there and back, {asked} times asked");
        for stop in 1..asked {
            let mut told = 0;
            let stopped = d.build(0, &Cancel::default(), &mut |_, _| {
                told += 1;
                told != stop
            });
            assert_eq!(stopped.err().map(|e| e.fault()), Some(Fault::Cancelled), "{stop} of {asked}");
            assert_eq!((told, d.n_waiting()), (stop, LENGTHS.len()), "{stop} of {asked}");
        }
        assert!(bits(&build(&d).unwrap()) == judge, "as if nobody had stopped it");
    }
}

#[test]
fn a_divergence_below_the_rounding_of_bf16_is_warned_of_and_in_f32_is_not() {
    for (compute, document, warned) in
        [(Compute::Bf16, dense(), true), (Compute::Bf16, moe(), true), (Compute::F32, dense(), false)]
    {
        let options = EngineOptions { n_threads: 2, compute, ..EngineOptions::default() };
        let engine = Engine::new(options).unwrap();
        // A teacher that is the student's equal.
        let (student, teacher) = (tiny(&engine, &document, Dtype::F32, 1), tiny(&engine, &document, Dtype::F32, 1));
        let settings = json!({"preset": "sft", "replay_turns": {"kernel": "forward-kl"}});
        let d = Distiller::new(&student, Some(&teacher), Config::from_value(&settings).unwrap()).unwrap();
        play(&d);
        let update = build(&d).unwrap();
        let warnings = &update.report().warnings;
        assert_eq!(warnings.len(), usize::from(warned), "{warnings:?}");
        assert!(warnings.iter().all(|w| w.starts_with("forward_kl is") && w.contains("rounding in bf16 compute")));
    }
}

#[test]
fn what_a_larger_batch_left_counts_against_the_budget_of_a_smaller_one() {
    let document = dense();
    let large = needed(&document, &json!({"recompute": "layer"}));
    let d = distiller(&document, Compute::F32, &json!({"training_budget": large})).unwrap();
    let small = |d: &Distiller| {
        let episode = d.begin(EpisodeSpec::default()).unwrap();
        episode.observe_ids(&[1, 2, 3, 4]).unwrap();
        episode.decide().unwrap();
        episode.replay(Replay::Ids(&[5, 6, 7])).unwrap();
        episode.outcome(None, true).unwrap();
        episode.end(1.0, Some(true)).unwrap();
        bits(&build(d).unwrap())
    };
    let judge = small(&distiller(&document, Compute::F32, &json!({})).unwrap());
    for _ in 0..2 {
        play(&d);
        build(&d).unwrap();
        assert!(small(&d) == judge);
    }
}

#[test]
fn steps_that_are_not_published_go_on_in_the_same_memory() {
    let d = distiller(&dense(), Compute::F32, &json!({})).unwrap();
    for _ in 0..3 {
        play(&d);
        let mut update = build(&d).unwrap();
        d.apply(&mut update).unwrap();
    }
    assert_eq!(d.step(), 3);
    d.publish().unwrap();
}

#[test]
fn a_host_that_is_told_of_progress_may_wait_for_tokens_of_the_same_engine() {
    for learning_slice in [EngineOptions::default().learning_slice, None] {
        let options = EngineOptions { n_threads: 2, learning_slice, ..EngineOptions::default() };
        let engine = Engine::new(options).unwrap();
        let student = tiny(&engine, &dense(), Dtype::F32, 1);
        let settings = json!({"preset": "sft"});
        let d = Distiller::new(&student, None, Config::from_value(&settings).unwrap()).unwrap();
        play(&d);
        let mut said = 0;
        let mut talk = |_, _| {
            let session = squire::serve::Session::new(&student).unwrap();
            session.append(&[1, 2, 3], squire::text::source::Source::Host).unwrap();
            let options = squire::serve::GenerationOptions { max_tokens: 2, ..Default::default() };
            session.generate(options).unwrap().collect().unwrap();
            said += 1;
            true
        };
        d.build(0, &Cancel::default(), &mut talk).unwrap();
        assert!(said > 3);
    }
}

#[test]
fn a_build_goes_on_whether_the_host_pulls_its_generations_or_not() {
    let engine = Engine::new(EngineOptions { n_threads: 2, ..EngineOptions::default() }).unwrap();
    let student = tiny(&engine, &dense(), Dtype::F32, 1);
    let d = Distiller::new(&student, None, Config::from_value(&json!({"preset": "sft"})).unwrap()).unwrap();
    let sessions: Vec<_> = (0..4).map(|_| squire::serve::Session::new(&student).unwrap()).collect();
    let options = squire::serve::GenerationOptions { max_tokens: 400, ignore_model_stops: true, ..Default::default() };
    let mut idle = Vec::new();
    for session in &sessions {
        session.append(&[1, 2, 3], squire::text::source::Source::Host).unwrap();
        idle.push(session.generate(options.clone()).unwrap());
    }
    for _ in 0..3 {
        play(&d);
        let mut update = build(&d).unwrap();
        d.apply(&mut update).unwrap();
        d.publish().unwrap();
    }
    // What they said meanwhile is all there.
    for generation in idle {
        assert_eq!(generation.collect().unwrap().0.ids.len(), 400);
    }
}

#[test]
fn what_is_held_from_a_longer_batch_is_given_up_where_both_do_not_fit() {
    // One long episode has more rows and fewer pages than three short ones: the most of either is more than each needs.
    let (document, long) = (dense(), [120]);
    let by_layer = json!({"recompute": "layer"});
    let (of_one, of_three) = (needed_by(&document, &by_layer, &long), needed(&document, &by_layer));
    let budget = json!({"training_budget": of_one.max(of_three)});
    let d = distiller(&document, Compute::F32, &budget).unwrap();
    let free = distiller(&document, Compute::F32, &json!({})).unwrap();
    for lengths in [&long[..], &LENGTHS, &long, &LENGTHS] {
        play_of(&d, lengths);
        play_of(&free, lengths);
        assert!(bits(&build(&d).unwrap()) == bits(&build(&free).unwrap()));
    }
}

/// An engine of a host budget, a student, a teacher, and settings.
fn budgeted(document: &Value, host_budget: u64) -> Result<(Engine, Distiller), Error> {
    let engine =
        Engine::new(EngineOptions { n_threads: 2, host_budget, compute: Compute::F32, ..EngineOptions::default() })
            .unwrap();
    let (student, teacher) = (tiny(&engine, document, Dtype::F32, 1), tiny(&engine, document, Dtype::F32, 2));
    let settings = json!({
        "preset": "sft", "steps": 100, "batch_episodes": LENGTHS.len(), "replay_turns": {"kernel": "reverse-kl"},
        "recompute": "nothing",
    });
    let d = Distiller::new(&student, Some(&teacher), Config::from_value(&settings).unwrap())?;
    Ok((engine, d))
}

#[test]
fn weights_and_updates_draw_on_one_host_budget_to_the_byte() {
    for document in [dense(), moe()] {
        let of_update = needed(&document, &json!({"recompute": "nothing"}));
        let (_, d) = budgeted(&document, 0).unwrap();
        let weights = d.student().current().weights.bytes();
        let exact = 2 * weights + of_update;

        // One byte less: refused before anything of it is made, and the episodes wait on.
        let (engine, d) = budgeted(&document, exact - 1).unwrap();
        play(&d);
        let refused = build(&d).err().unwrap();
        assert_eq!((refused.fault(), refused.bytes()), (Fault::HostBudget, Some((of_update, of_update - 1))));
        assert!(refused.to_string().contains("host_budget"), "{refused}");
        assert_eq!(d.n_waiting(), LENGTHS.len());
        // Nothing is held for it, so another model has the room.
        assert!(of_update > 2 * weights);
        drop(engine.random_model(d.student().config().clone(), Dtype::F32, 3, 0).unwrap());

        // All of it: serves, learns and serves on.
        let (engine, d) = budgeted(&document, exact).unwrap();
        for _ in 0..3 {
            play(&d);
            let mut update = build(&d).unwrap();
            d.apply(&mut update).unwrap();
            d.publish().unwrap();
        }
        let session = Session::new(d.student()).unwrap();
        session.append(&[1, 2, 3], Source::Host).unwrap();
        drop(session);
        // What the distiller holds is not there for others, until it goes.
        let another = || engine.random_model(d.student().config().clone(), Dtype::F32, 3, 0);
        let refused = another().err().unwrap();
        assert_eq!((refused.fault(), refused.bytes()), (Fault::HostBudget, Some((weights, 0))));
        let (student, teacher) = (d.student().clone(), d.teacher().cloned());
        drop(d);
        engine.random_model(student.config().clone(), Dtype::F32, 3, 0).unwrap();
        drop(teacher);

        // Not even one token.
        let refused = budgeted(&document, 2 * weights + 1000).err().unwrap();
        assert_eq!(refused.bytes().unwrap().1, 1000);
    }
}

#[test]
fn a_resumed_run_is_refused_by_the_host_budget_before_its_masters_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let (_, d) = budgeted(&dense(), 0).unwrap();
    play(&d);
    let mut update = build(&d).unwrap();
    d.apply(&mut update).unwrap();
    d.publish().unwrap();
    d.save(folder.path()).unwrap();
    let weights = d.student().current().weights.bytes();
    let options = EngineOptions { host_budget: 3 * weights, compute: Compute::F32, ..EngineOptions::default() };
    let engine = Engine::new(options).unwrap();
    let (student, teacher) = (tiny(&engine, &dense(), Dtype::F32, 1), tiny(&engine, &dense(), Dtype::F32, 2));
    let before = student.current().number;
    let refused = Distiller::resume(&student, Some(&teacher), d.config().clone(), folder.path()).err().unwrap();
    assert_eq!((refused.fault(), refused.bytes().unwrap().1), (Fault::HostBudget, weights));
    assert_eq!(student.current().number, before);
}
