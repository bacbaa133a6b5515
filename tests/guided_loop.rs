//! The guided loop from outside: who may call what and when, what each call costs, which revision acts,
//! and that no way of running episodes changes what is learnt.

#[path = "support/scripted.rs"]
mod scripted;
#[path = "support/tiny_tokenizer.rs"]
mod tiny_tokenizer;

use scripted::*;
use serde_json::{Value, json};
use squire::backend::Compute;
use squire::distill::{Actor, Distiller, Episode, EpisodeSpec, Reason, Replay};
use squire::error::{Fault, Result};
use squire::format::{Companions, save_model};
use squire::model::Weights;
use squire::serve::{Cancel, Engine, EngineOptions, Finish, GenerationOptions, LoadOptions, ServedModel};
use squire::tensor::Dtype;
use squire::text::source::Source;

fn numbered(episode: u64) -> EpisodeSpec {
    EpisodeSpec { episode: Some(episode), ..Default::default() }
}

fn fault<T>(result: Result<T>) -> Fault {
    result.err().expect("a refusal").fault()
}

fn plain(document: Value) -> Distiller {
    distiller(Kind::Dense, Compute::F32, document)
}

/// A distiller on an engine that moves only when it is told to.
fn stepped(document: Value) -> (Engine, Distiller) {
    let options = EngineOptions { n_threads: 1, compute: Compute::F32, caller_driven: true, ..Default::default() };
    let engine = Engine::new(options).unwrap();
    let (student, teacher) =
        (model(&engine, &config(Kind::Dense, 32, 2), 1), model(&engine, &config(Kind::Dense, 48, 3), 2));
    let d = Distiller::new(&student, Some(&teacher), settings(document)).unwrap();
    (engine, d)
}

fn half_guided() -> Value {
    json!({"preset": "guided-opd", "actor": {"kind": "bernoulli", "beta": 0.5}, "optimizer": {"learning_rate": 1e-2}})
}

// What it costs.

#[test]
fn a_teacher_computes_each_token_of_an_episode_once_and_none_that_it_is_not_asked_about() {
    for seed in 0..6 {
        let mut document = half_guided();
        document["seed"] = json!(seed);
        let d = plain(document);
        let rows = || d.student().engine().metrics().rows;
        let before = rows();
        let mut seat = Seat::new(&d, EpisodeSpec::default());
        let mut computed = 0;
        for _ in 0..5 {
            assert!(seat.turn());
            let record = seat.episode.trajectory().unwrap();
            let turn = record.turns().last().unwrap();
            if turn.actor == Actor::Teacher {
                computed = turn.range.end as u64 - 1;
            }
            assert_eq!(seat.episode.teacher_computed().unwrap(), computed, "seed {seed}");
        }
        // An observation that nobody answers costs nothing.
        seat.episode.observe_ids(&[1, 2, 3]).unwrap();
        let record = seat.end();
        build(&d);
        let last = |actor| record.turns().iter().rfind(|t| t.actor == actor).map_or(0, |t| t.range.end as u64 - 1);
        let teacher = record.turns().last().unwrap().range.end as u64 - 1;
        assert_eq!(rows() - before, last(Actor::Student) + teacher, "seed {seed}");
    }
}

#[test]
fn a_teacher_scores_nothing_that_carries_no_divergence() {
    let d = plain(json!({"preset": "opd"}));
    let mut seat = Seat::new(&d, EpisodeSpec::default());
    assert!(seat.turn());
    seat.start().unwrap().unwrap().collect().unwrap();
    seat.episode.outcome(None, false).unwrap();
    let rows = d.student().engine().metrics().rows;
    let record = seat.end();
    build(&d);
    // The first turn is scored, the second one was not executed.
    let wanted = record.turns()[0].range.end as u64 - 1;
    assert_eq!(d.student().engine().metrics().rows - rows, wanted);
}

#[test]
fn a_decision_is_a_function_of_seed_episode_turn_and_step_alone() {
    let decisions = |document: Value| {
        let d = plain(document);
        let rows = d.student().engine().metrics().rows;
        let list: Vec<_> = (0..40)
            .map(|id| {
                let episode = d.begin(numbered(id)).unwrap();
                episode.observe_ids(&[1, 2]).unwrap();
                let decision = episode.decide().unwrap();
                assert_eq!((decision, decision), (episode.decide().unwrap(), episode.decide().unwrap()));
                assert_eq!((decision.reason, decision.probability), (Reason::Curriculum, 0.5));
                assert_eq!((decision.train_on_this, decision.horizon), (true, 30));
                decision.actor
            })
            .collect();
        assert_eq!(d.student().engine().metrics().rows, rows, "no model work");
        list
    };
    let first = decisions(half_guided());
    assert_eq!(first, decisions(half_guided()));
    let (mut cool, mut other) = (half_guided(), half_guided());
    cool["sampling"] = json!({"temperature": 0.1});
    other["seed"] = json!(43);
    assert_eq!(first, decisions(cool), "how tokens are sampled changes no decision");
    assert_ne!(first, decisions(other));
    assert!(first.contains(&Some(Actor::Student)) && first.contains(&Some(Actor::Teacher)));
}

#[test]
fn decisions_change_no_sample() {
    let d = plain(half_guided());
    let play = |ask: bool| {
        let episode = d.begin(numbered(3)).unwrap();
        for turn in 0..3 {
            episode.observe_ids(&observation(3, turn, &[])).unwrap();
            if ask {
                episode.decide().unwrap();
            }
            episode.override_actor(Actor::Student).unwrap();
            episode.act(&options()).unwrap().collect().unwrap();
            episode.outcome(None, true).unwrap();
        }
        record(&episode.trajectory().unwrap())
    };
    assert_eq!(play(false), play(true));
}

#[test]
fn a_decision_says_why() {
    let reasons = |document: Value, spec: EpisodeSpec, asked: Option<Actor>| {
        let episode = plain(document).begin(spec).unwrap();
        episode.observe_ids(&[1]).unwrap();
        let decision = match asked {
            None => episode.decide().unwrap(),
            Some(actor) => episode.override_actor(actor).unwrap(),
        };
        (decision.actor, decision.reason, decision.train_on_this)
    };
    let (opd, guided) = (json!({"preset": "opd"}), json!({"preset": "guided-opd"}));
    let (student, teacher, none) = (Some(Actor::Student), Some(Actor::Teacher), EpisodeSpec::default());
    let evaluation = EpisodeSpec { evaluation: true, ..Default::default() };
    assert_eq!(reasons(opd.clone(), none.clone(), None), (student, Reason::Method, true));
    assert_eq!(reasons(guided.clone(), none.clone(), None), (teacher, Reason::Curriculum, true));
    assert_eq!(reasons(guided.clone(), none.clone(), student), (student, Reason::HostOverride, true));
    assert_eq!(reasons(opd, none, teacher), (teacher, Reason::HostOverride, false));
    assert_eq!(reasons(guided, evaluation, None), (student, Reason::Evaluation, false));
    let ended = EpisodeSpec { demonstration: Some(vec![]), ..Default::default() };
    let silent = json!({"preset": "sft", "teacher_turns": {"kernel": "none"}});
    assert_eq!(reasons(silent, ended, None), (None, Reason::ReplayEnded, false));
}

// Revisions.

#[test]
fn episodes_under_way_keep_their_revision_and_new_ones_get_the_new() {
    let d = plain(half_guided());
    let undisturbed = Seat::new(&d, numbered(7)).play(4);
    let mut under_way = Seat::new(&d, numbered(7));
    under_way.turn();
    play(&d, 2, 2);
    update(&d);
    let fresh = Seat::new(&d, numbered(8));
    assert_eq!((d.student().current().number, d.student().n_revisions_alive()), (2, 2));
    let record_under_way = under_way.play(4);
    assert_eq!(record(&record_under_way), record(&undisturbed), "the old weights act to the end");
    assert_eq!(record_under_way.heading.revision, 1);
    assert_eq!(fresh.play(1).heading.revision, 2);
    assert_ne!(record(&Seat::new(&d, numbered(7)).play(4)), record(&undisturbed), "the new weights say other things");
}

#[test]
fn a_revision_too_many_is_refused_and_published_once_there_is_room() {
    let mut document = half_guided();
    document["kept_revisions"] = json!(1);
    let (_, d) = stepped(document);
    let held = Seat::new(&d, numbered(100));
    play(&d, 1, 2);
    // Nothing to publish is no question of room.
    assert_eq!(d.publish().unwrap(), 1);
    let mut built = build(&d);
    d.apply(&mut built).unwrap();
    let before = weight_bytes(d.student());
    assert_eq!(fault(d.publish()), Fault::HostBudget);
    assert!(weight_bytes(d.student()) == before && d.student().current().number == 1);
    held.end();
    assert_eq!(d.publish().unwrap(), 2);
    assert!(weight_bytes(d.student()) != before);
    assert_eq!(d.publish().unwrap(), 2);
    // An ended episode holds nothing, even while the host holds on to it.
    assert_eq!((d.student().n_revisions_alive(), d.student().kv_pages()), (1, 0));
    assert_eq!(held.episode.trajectory().unwrap().heading.episode, 100);
}

#[test]
fn stale_episodes_are_dropped_and_counted() {
    let mut document = half_guided();
    document["max_staleness"] = json!(1);
    document["kept_revisions"] = json!(4);
    let d = plain(document);
    let seats = [numbered(50), numbered(51)].map(|spec| Seat::new(&d, spec));
    let [first, second] = seats;
    play(&d, 1, 2);
    update(&d);
    first.play(2);
    assert_eq!(update(&d).report().stale, 0, "one revision behind is learnt from");
    second.play(2);
    let refusal = d.build(0, &Cancel::default(), &mut |_, _| true);
    assert_eq!(fault(refusal), Fault::NothingToLearn);
    play(&d, 1, 2);
    let report = build(&d).report().clone();
    assert_eq!((report.episodes, report.stale, report.trained_episodes), (2, 1, 1));
}

#[test]
fn evaluations_are_the_students_alone_and_disturb_nothing() {
    let run = |evaluate: bool| {
        let d = plain(half_guided());
        let mut seen = Vec::new();
        for _ in 0..3 {
            let mut seats: Vec<Seat> = (0..3).map(|_| Seat::new(&d, EpisodeSpec::default())).collect();
            for _ in 0..3 {
                if evaluate {
                    let spec = EpisodeSpec { evaluation: true, ..Default::default() };
                    let record = Seat::new(&d, spec).play(2);
                    assert!(record.turns().iter().all(|t| t.actor == Actor::Student && !t.train));
                }
                let begun: Vec<_> = seats.iter_mut().map(|s| s.start().unwrap()).collect();
                seats.iter_mut().zip(begun).for_each(|(seat, generation)| seat.finish(generation));
            }
            seen.extend(seats.iter().map(|s| record(&s.end())));
            assert_eq!(d.n_waiting(), 3);
            let update = update(&d);
            assert_eq!(update.report().episodes, 3);
        }
        let metrics = d.metrics();
        assert_eq!((metrics["episodes"].as_u64(), metrics["updates"].as_u64()), (Some(9), Some(3)));
        assert_eq!(metrics["evaluations"].as_u64(), Some(if evaluate { 9 } else { 0 }));
        (seen, weight_bytes(d.student()))
    };
    assert!(run(false) == run(true));
}

#[test]
fn an_evaluation_is_sampled_as_the_host_says_and_a_training_episode_is_not() {
    let d = plain(json!({"preset": "opd"}));
    let said = |evaluation: bool, temperature: f32, seed: u64| {
        let episode = d.begin(EpisodeSpec { evaluation, ..numbered(1) }).unwrap();
        episode.observe_ids(&[1, 2, 3]).unwrap();
        episode.decide().unwrap();
        let mut options = GenerationOptions { max_tokens: 12, seed, ..Default::default() };
        options.sampling.temperature = temperature;
        episode.act(&options).unwrap().collect().unwrap().0.ids
    };
    assert_eq!(said(false, 1.0, 0), said(false, 0.0, 5), "temperature and seed are the settings'");
    assert_eq!(said(true, 1.0, 0), said(true, 1.0, 5), "the seed is the episode's own");
    assert_ne!(said(true, 1.0, 0), said(true, 0.0, 0));
    assert_ne!(said(true, 1.0, 0), said(false, 1.0, 0), "evaluations have draws of their own");
}

// Ways of running that must not matter.

#[test]
fn episodes_side_by_side_say_what_they_say_one_after_the_other() {
    for (kind, compute) in ALL {
        let run = |together: bool| {
            let d = distiller(kind, compute, half_guided());
            let records = if together { play_together(&d, 8, 3) } else { play(&d, 8, 3) };
            let update = update(&d);
            (self::records(&records), bytes(update.gradients()), weight_bytes(d.student()))
        };
        assert!(run(true) == run(false), "{kind:?} {compute:?}");
    }
    let (_, d) = stepped(half_guided());
    assert_eq!(records(&play_together(&d, 8, 3)), records(&play(&plain(half_guided()), 8, 3)));
}

#[test]
fn the_order_in_which_episodes_end_changes_no_bit() {
    let run = |order: [usize; 5]| {
        let d = distiller(Kind::Moe, Compute::Bf16, half_guided());
        let mut seats: Vec<Seat> = (0..5).map(|_| Seat::new(&d, EpisodeSpec::default())).collect();
        seats.iter_mut().for_each(|s| assert!(s.turn() && s.turn()));
        order.into_iter().for_each(|i| drop(seats[i].end()));
        let mut built = build(&d);
        d.apply(&mut built).unwrap();
        d.publish().unwrap();
        (built.report().loss.to_bits(), bytes(built.gradients()), weight_bytes(d.student()))
    };
    let first = run([0, 1, 2, 3, 4]);
    assert!(first == run([4, 3, 2, 1, 0]) && first == run([2, 0, 4, 1, 3]));
}

#[test]
fn an_update_takes_the_oldest_episodes_it_is_allowed() {
    let d = plain(half_guided());
    for id in [4, 2, 0, 3, 1] {
        Seat::new(&d, numbered(id)).play(2);
    }
    let first = d.build(2, &Cancel::default(), &mut |_, _| true).unwrap();
    assert_eq!((first.report().episodes, d.n_waiting()), (2, 3));
    let e = plain(half_guided());
    for id in [0, 1] {
        Seat::new(&e, numbered(id)).play(2);
    }
    assert!(bytes(first.gradients()) == bytes(build(&e).gradients()));
    assert_eq!((d.discard(), d.n_waiting()), (3, 0));
}

// Updates that fail.

#[test]
fn a_cancelled_build_leaves_the_episodes_waiting() {
    let mut document = half_guided();
    document["micro_tokens"] = json!(1);
    let d = plain(document.clone());
    play(&d, 4, 2);
    let set = Cancel::default();
    set.set();
    assert_eq!(fault(d.build(0, &set, &mut |_, _| true)), Fault::Cancelled);
    let mut seen = Vec::new();
    let stop_at_the_third = |done: u64, all: u64| {
        seen.push((done, all));
        seen.len() < 3
    };
    let mut stop = stop_at_the_third;
    assert_eq!(fault(d.build(0, &Cancel::default(), &mut stop)), Fault::Cancelled);
    assert!(seen.len() == 3 && seen[0].0 == 0 && seen[1].0 > 0 && seen[2].0 < seen[2].1, "{seen:?}");
    assert_eq!((d.n_waiting(), d.step()), (4, 0));
    let e = plain(document);
    play(&e, 4, 2);
    assert!(bytes(update(&d).gradients()) == bytes(update(&e).gradients()));
    assert!(weight_bytes(d.student()) == weight_bytes(e.student()));
}

/// Weights with an infinity in them.
fn broken(model: &ServedModel) -> Weights {
    let mut weights = wide(model, 5);
    weights.norm.f32_mut()[3] = f32::INFINITY;
    weights
}

#[test]
fn an_update_that_is_not_finite_is_refused_and_leaves_no_trace() {
    let (d, e) = (plain(half_guided()), plain(half_guided()));
    for x in [&d, &e] {
        play(x, 2, 2);
        update(x);
    }
    // A teacher that has gone mad scores two episodes.
    let teacher = d.teacher().unwrap();
    teacher.restore(broken(teacher), 2);
    for id in [2, 3] {
        let episode = d.begin(numbered(id)).unwrap();
        episode.observe_ids(&[1, 2]).unwrap();
        episode.override_actor(Actor::Student).unwrap();
        episode.act(&options()).unwrap().collect().unwrap();
        episode.outcome(None, true).unwrap();
        episode.end(0.0, None).unwrap();
    }
    let before = weight_bytes(d.student());
    assert_eq!(fault(d.build(0, &Cancel::default(), &mut |_, _| true)), Fault::NotFinite);
    assert_eq!((d.n_waiting(), d.discard(), d.step()), (2, 2, 1));
    assert!(weight_bytes(d.student()) == before);
    teacher.restore(wide(teacher, 2), 3);
    for x in [&d, &e] {
        for id in [10, 11] {
            Seat::new(x, numbered(id)).play(2);
        }
        update(x);
    }
    assert!(weight_bytes(d.student()) == weight_bytes(e.student()), "as if nothing had been");
    assert!(weight_bytes(d.student()) != before);
}

#[test]
fn a_student_that_has_diverged_says_so_at_the_turns_end() {
    let d = plain(json!({"preset": "opd"}));
    d.student().restore(broken(d.student()), 1);
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    episode.observe_ids(&[1, 2]).unwrap();
    episode.decide().unwrap();
    episode.act(&options()).unwrap().collect().unwrap();
    for _ in 0..2 {
        assert_eq!(fault(episode.outcome(None, true)), Fault::NotFinite);
    }
}

#[test]
fn the_smallest_eps_keeps_weights_without_a_gradient_as_they_are() {
    let run = |eps: f64| {
        let d = plain(json!({"preset": "opd", "optimizer": {"learning_rate": 1e-2, "eps": eps}}));
        play(&d, 2, 2);
        update(&d);
        weight_bytes(d.student())
    };
    let finite = |weights: &[(String, Vec<u8>)]| {
        let mut all = weights.iter().flat_map(|(_, b)| b.chunks(4));
        all.all(|c| f32::from_le_bytes(c.try_into().unwrap()).is_finite())
    };
    assert!(finite(&run(1e-30)));
    let e = squire::distill::Config::from_value(&json!({"optimizer": {"eps": 1e-50}})).unwrap_err();
    assert_eq!(e.fault(), Fault::BadValue);
}

#[test]
fn an_update_is_applied_once_at_its_own_step_by_its_own_distiller() {
    let d = plain(half_guided());
    let refused = d.build(0, &Cancel::default(), &mut |_, _| true);
    assert_eq!(fault(refused), Fault::NothingToLearn);
    play(&d, 1, 2);
    let mut first = build(&d);
    play(&d, 1, 2);
    let mut second = build(&d);
    let other = plain(half_guided());
    assert_eq!(fault(other.apply(&mut first)), Fault::ForeignHandle);
    assert_eq!((first.step(), second.step(), d.step()), (0, 0, 0));
    d.apply(&mut second).unwrap();
    let applied = |d: &Distiller| (d.step(), d.publish().unwrap(), weight_bytes(d.student()));
    let after = applied(&d);
    assert_eq!(fault(d.apply(&mut second)), Fault::StaleUpdate);
    assert_eq!(fault(d.apply(&mut first)), Fault::StaleUpdate);
    assert!(applied(&d) == after && after.0 == 1);
}

#[test]
fn two_updates_between_publications_start_from_each_other() {
    // Published or not, the second update differentiates the weights of the first.
    let run = |publish: bool| {
        let d = plain(half_guided());
        let mut seats: Vec<Seat> = (0..4).map(|_| Seat::new(&d, EpisodeSpec::default())).collect();
        let mut gradients = Vec::new();
        for two in [0..2, 2..4] {
            seats[two].iter_mut().for_each(|s| assert!(s.turn() && s.turn() && s.end().outcome().is_some()));
            let mut built = build(&d);
            d.apply(&mut built).unwrap();
            if publish {
                d.publish().unwrap();
            }
            gradients.push(bytes(built.gradients()));
        }
        assert_ne!(gradients[0], gradients[1]);
        d.publish().unwrap();
        (gradients, weight_bytes(d.student()))
    };
    assert!(run(false) == run(true));
}

#[test]
fn busy_distillers_refuse_a_second_build_at_once() {
    let d = plain(half_guided());
    play(&d, 2, 2);
    let mut seen = Vec::new();
    let inside = d.clone();
    let mut progress = |_: u64, _: u64| {
        seen.push(fault(inside.build(0, &Cancel::default(), &mut |_, _| true)));
        seen.push(fault(inside.publish()));
        seen.push(fault(inside.save(std::path::Path::new("never-written"))));
        true
    };
    d.build(0, &Cancel::default(), &mut progress).unwrap();
    assert!(!seen.is_empty() && seen.iter().all(|&f| f == Fault::DistillerBusy), "{seen:?}");
}

// The order of calls.

const CALLS: [&str; 7] = ["observe", "decide", "override", "act", "replay", "outcome", "end"];

fn call(episode: &Episode, name: &str) -> Result<()> {
    match name {
        "observe" => episode.observe_ids(&[1]).map(drop),
        "decide" => episode.decide().map(drop),
        "override" => episode.override_actor(Actor::Student).map(drop),
        "act" => episode.act(&options()).map(drop),
        "replay" => episode.replay(Replay::Ids(&[1])),
        "outcome" => episode.outcome(None, true),
        _ => episode.end(0.0, None),
    }
}

/// Options under which the first token ends the turn.
fn stopped() -> GenerationOptions {
    GenerationOptions { stop_ids: (0..VOCABULARY as i32).collect(), ..options() }
}

fn say(e: &Episode) {
    assert_eq!(e.act(&stopped()).unwrap().collect().unwrap().1, Finish::Stop);
}

fn see_and_decide(e: &Episode) {
    e.observe_ids(&[4, 5]).unwrap();
    e.decide().unwrap();
}

fn see_and_say(e: &Episode) {
    see_and_decide(e);
    say(e);
}

fn reach_the_depth_cap(e: &Episode) {
    see_and_say(e);
    e.outcome(None, true).unwrap();
    see_and_decide(e);
    assert_eq!(e.decide().unwrap().actor, None);
}

fn see_and_replay(e: &Episode) {
    see_and_decide(e);
    e.replay(Replay::Ids(&[7, STOP])).unwrap();
}

/// A phase: its name, the preset, the way there, the calls that are in order, and the one that is expected.
type Stage = (&'static str, &'static str, fn(&Episode), &'static [&'static str], &'static str);

const STAGES: [Stage; 8] = [
    ("open", "opd", |_| {}, &["observe", "end"], "observe"),
    ("observed", "opd", |e| assert!(e.observe_ids(&[4]).is_ok()), &["observe", "decide", "override", "end"], "decide"),
    ("decided", "opd", see_and_decide, &["decide", "override", "act", "end"], "act"),
    ("to be replayed", "sft", see_and_decide, &["decide", "override", "replay", "end"], "replay"),
    ("beyond the cap", "tcod-f2b", reach_the_depth_cap, &["decide", "override", "end"], "end"),
    ("said", "opd", see_and_say, &["outcome"], "outcome"),
    ("replayed", "sft", see_and_replay, &["outcome"], "outcome"),
    ("ended", "opd", |e| e.end(1.0, None).unwrap(), &[], "nothing"),
];

#[test]
fn every_call_out_of_order_is_refused_names_what_is_expected_and_changes_nothing() {
    for (stage, preset, way, allowed, expected) in STAGES {
        let d = plain(json!({ "preset": preset }));
        for name in CALLS {
            let episode = d.begin(EpisodeSpec::default()).unwrap();
            way(&episode);
            let before = episode.trace().unwrap();
            let waiting = d.n_waiting();
            // A stop id as the host's options name it ends the turn for good.
            let result = if name == "act" { episode.act(&stopped()).map(drop) } else { call(&episode, name) };
            if allowed.contains(&name) {
                result.unwrap_or_else(|e| panic!("{name} when {stage}: {e}"));
                continue;
            }
            let e = result.expect_err(&format!("{name} when {stage}"));
            assert_eq!(e.fault(), Fault::OutOfOrder, "{name} when {stage}");
            let wanted = format!("{name} is out of order; expected now: ");
            let told = e.message().strip_prefix(&wanted).unwrap_or_else(|| panic!("{name} when {stage}: {e}"));
            assert!(told.contains(expected) && before["phase"] == told, "{name} when {stage}: {e}");
            assert_eq!(episode.trace().unwrap(), before, "{name} when {stage}");
            assert_eq!(d.n_waiting(), waiting, "{name} when {stage}");
            // What was refused is no hindrance.
            for name in allowed.iter().filter(|n| **n == expected) {
                call(&episode, name).unwrap();
            }
        }
    }
}

#[test]
fn while_somebody_speaks_nothing_else_happens() {
    let (engine, d) = stepped(json!({"preset": "opd"}));
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    episode.observe_ids(&[1, 2]).unwrap();
    episode.decide().unwrap();
    let generation = episode.act(&options()).unwrap();
    engine.step().unwrap();
    for name in CALLS {
        let wanted = if matches!(name, "observe" | "replay") { Fault::OutOfOrder } else { Fault::SessionBusy };
        assert_eq!(fault(call(&episode, name)), wanted, "{name}");
    }
    assert_eq!(fault(episode.trace()), Fault::SessionBusy);
    let said = generation.collect().unwrap().0.ids;
    assert_eq!(episode.trajectory().unwrap().ids()[2..], said);
    episode.outcome(Some(0.5), true).unwrap();
    assert_eq!(episode.trajectory().unwrap().turns()[0].reward, Some(0.5));
}

#[test]
fn values_that_are_no_numbers_are_refused() {
    let d = plain(json!({"preset": "opd"}));
    let mut seat = Seat::new(&d, EpisodeSpec::default());
    seat.start().unwrap().unwrap().collect().unwrap();
    assert_eq!(fault(seat.episode.outcome(Some(f64::NAN), true)), Fault::BadValue);
    seat.episode.outcome(Some(1.0), true).unwrap();
    assert_eq!(fault(seat.episode.end(f64::INFINITY, None)), Fault::BadValue);
    assert_eq!(d.n_waiting(), 0);
    seat.episode.end(1.0, None).unwrap();
    assert_eq!(d.n_waiting(), 1);
}

#[test]
fn a_begin_that_is_refused_takes_no_number() {
    let options = EngineOptions { n_threads: 1, compute: Compute::F32, max_sessions: 2, ..Default::default() };
    let engine = Engine::new(options).unwrap();
    let config = config(Kind::Dense, 32, 1);
    let (student, teacher) = (model(&engine, &config, 1), model(&engine, &config, 2));
    let d = Distiller::new(&student, Some(&teacher), settings(json!({"preset": "opd"}))).unwrap();
    let number = |e: &Episode| e.trajectory().unwrap().heading.episode;
    let first = d.begin(EpisodeSpec::default()).unwrap();
    assert_eq!(fault(d.begin(EpisodeSpec::default())), Fault::SessionBudget);
    assert_eq!(number(&first), 0);
    drop(first);
    assert_eq!(number(&d.begin(EpisodeSpec::default()).unwrap()), 1);
}

// Turns that do not go straight.

/// Begins a turn of `actor` in a fresh episode 5.
fn decided(d: &Distiller, actor: Actor) -> Episode {
    let episode = d.begin(numbered(5)).unwrap();
    episode.observe_ids(&observation(5, 0, &[])).unwrap();
    episode.override_actor(actor).unwrap();
    episode
}

#[test]
fn a_cancelled_turn_goes_on_as_if_it_had_not_been() {
    for actor in [Actor::Student, Actor::Teacher] {
        let (engine, d) = stepped(half_guided());
        let whole = decided(&d, actor);
        let long = GenerationOptions { max_tokens: 9, ..Default::default() };
        whole.act(&long).unwrap().collect().unwrap();
        whole.outcome(None, true).unwrap();

        let cut = decided(&d, actor);
        let generation = cut.act(&long).unwrap();
        (0..4).for_each(|_| assert!(engine.step().unwrap()));
        generation.cancel();
        let (chunk, finish) = generation.collect().unwrap();
        assert_eq!((chunk.ids.len(), finish), (4, Finish::Cancelled));
        // To look is not to touch.
        assert_eq!(cut.trajectory().unwrap().turns()[0].range.len(), 4);
        assert_eq!(fault(cut.end(0.0, None)), Fault::OutOfOrder);
        let rest = cut.act(&GenerationOptions { max_tokens: 5, ..long }).unwrap().collect().unwrap();
        assert_eq!((rest.0.ids.len(), rest.1), (5, Finish::Length));
        cut.outcome(None, true).unwrap();
        assert_eq!(record(&cut.trajectory().unwrap()), record(&whole.trajectory().unwrap()), "{actor:?}");
        for episode in [whole, cut] {
            episode.end(0.0, None).unwrap();
        }
        let report = build(&d).report().clone();
        assert_eq!((report.trained_tokens, report.differing), (18, 0));
    }
}

#[test]
fn a_turn_cancelled_before_its_first_token_is_still_to_be_acted() {
    for actor in [Actor::Student, Actor::Teacher] {
        let (_, d) = stepped(half_guided());
        let silent = || {
            let episode = decided(&d, actor);
            let generation = episode.act(&options()).unwrap();
            generation.cancel();
            let (chunk, finish) = generation.collect().unwrap();
            assert!(chunk.ids.is_empty() && finish == Finish::Cancelled);
            assert!(episode.trajectory().unwrap().turns().is_empty());
            assert_eq!(fault(episode.outcome(None, true)), Fault::OutOfOrder);
            episode
        };
        silent().end(0.0, None).unwrap();
        assert_eq!(silent().decide().unwrap().actor, Some(actor));
        let again = |episode: Episode| {
            episode.act(&options()).unwrap().collect().unwrap();
            episode.outcome(None, true).unwrap();
            record(&episode.trajectory().unwrap())
        };
        let straight = again(decided(&d, actor));
        assert_eq!(again(silent()), straight);
        for other in [Actor::Student, Actor::Teacher] {
            let episode = silent();
            episode.override_actor(other).unwrap();
            assert_eq!(again(episode), again(decided(&d, other)), "{actor:?} then {other:?}");
        }
    }
}

#[test]
fn a_turn_that_has_stopped_is_not_gone_on_with() {
    let d = plain(half_guided());
    for actor in [Actor::Student, Actor::Teacher] {
        let episode = decided(&d, actor);
        say(&episode);
        assert_eq!(fault(episode.act(&stopped())), Fault::OutOfOrder);
        episode.outcome(None, true).unwrap();
        assert_eq!(episode.trajectory().unwrap().turns()[0].range.len(), 1);
    }
}

#[test]
fn options_that_are_refused_leave_the_turn_to_be_acted() {
    let d = plain(half_guided());
    let episode = decided(&d, Actor::Student);
    let before = episode.trace().unwrap();
    let bad = GenerationOptions { stop_ids: vec![VOCABULARY as i32], ..options() };
    assert_eq!(fault(episode.act(&bad)), Fault::IdOutOfRange);
    assert_eq!(episode.trace().unwrap(), before);
    episode.override_actor(Actor::Teacher).unwrap();
    episode.act(&options()).unwrap().collect().unwrap();
    episode.outcome(None, true).unwrap();
}

#[test]
fn a_teachers_turn_ends_where_the_students_context_does() {
    let engine = engine(Compute::F32);
    let small = engine.random_model(config(Kind::Dense, 32, 2), Dtype::F32, 1, 24).unwrap();
    let teacher = model(&engine, &config(Kind::Dense, 48, 2), 2);
    let d = Distiller::new(&small, Some(&teacher), settings(json!({"preset": "guided-opd"}))).unwrap();
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    episode.observe_ids(&[3; 20]).unwrap();
    episode.decide().unwrap();
    let (said, _) = episode.act(&GenerationOptions::default()).unwrap().collect().unwrap();
    assert_eq!(said.ids.len(), 4);
    episode.outcome(None, true).unwrap();
    assert_eq!(fault(episode.observe_ids(&[1])), Fault::ContextFull);
    episode.observe_ids(&[]).unwrap();
    episode.decide().unwrap();
    assert_eq!(fault(episode.act(&options())), Fault::ContextFull);
    episode.end(0.0, None).unwrap();
    assert_eq!(build(&d).report().teacher_tokens, 4);
}

#[test]
fn replayed_ids_are_recorded_as_they_are() {
    let d = plain(json!({"preset": "sft"}));
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    episode.observe_ids(&[1, 2]).unwrap();
    episode.decide().unwrap();
    let before = episode.trace().unwrap();
    assert_eq!(fault(episode.replay(Replay::Ids(&[3, VOCABULARY as i32]))), Fault::IdOutOfRange);
    assert_eq!(fault(episode.replay(Replay::Ids(&[3; CONTEXT]))), Fault::ContextFull);
    assert_eq!(fault(episode.replay(Replay::Ids(&[]))), Fault::BadLength);
    assert_eq!(fault(episode.replay(Replay::Stored)), Fault::BadValue);
    assert_eq!(fault(episode.replay(Replay::Text("no tokenizer"))), Fault::MissingFile);
    assert_eq!(episode.trace().unwrap(), before);
    episode.replay(Replay::Ids(&[3, 4, STOP])).unwrap();
    episode.outcome(None, true).unwrap();
    episode.observe_ids(&[9]).unwrap();
    episode.decide().unwrap();
    episode.replay(Replay::Ids(&[5])).unwrap();
    episode.outcome(None, false).unwrap();
    episode.end(1.0, Some(true)).unwrap();
    let record = episode.trajectory().unwrap();
    assert_eq!(record.ids(), [1, 2, 3, 4, STOP, 9, 5]);
    let (h, r) = (Source::Host, Source::Replay);
    assert_eq!(record.sources(), [h, h, r, r, r, h, r]);
    assert!(record.logprobs().iter().all(|p| p.is_nan()));
    assert_eq!(record.turns().iter().map(|t| t.train).collect::<Vec<_>>(), [true, false]);
    let report = build(&d).report().clone();
    assert_eq!((report.replay_turns, report.trained_turns, report.trained_tokens, report.compared), (2, 1, 3, 0));
}

#[test]
fn nothing_is_said_before_anything_is_seen() {
    let d = plain(json!({"preset": "sft"}));
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    episode.observe_ids(&[]).unwrap();
    episode.decide().unwrap();
    for _ in 0..2 {
        assert_eq!(fault(episode.replay(Replay::Ids(&[1]))), Fault::BadLength);
    }
    episode.override_actor(Actor::Student).unwrap();
    assert_eq!(fault(episode.act(&options())), Fault::EmptySession);
    assert!(episode.trajectory().unwrap().ids().is_empty());
    episode.end(0.0, None).unwrap();
}

// With a tokenizer and a template.

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const IM_END: i32 = 266;

fn chatting(document: Value) -> Distiller {
    let mut config = config(Kind::Dense, 32, 2);
    config.vocab_size = 273;
    let engine = engine(Compute::F32);
    let make = |seed| {
        let folder = tempfile::tempdir().unwrap();
        let weights = Weights::random(&config, engine.device(), Dtype::F32, seed, 0.2).unwrap();
        let tensors = weights.tensors();
        let list = tensors.iter().map(|(name, t)| (name.as_str(), t.dtype(), t.shape(), t.bytes()));
        let (tokenizer, stops) = (tiny_tokenizer::tiny_tokenizer_json(), json!({"eos_token_id": IM_END}));
        let companions = Companions {
            tokenizer: Some(&tokenizer),
            tokenizer_config: None,
            chat_template: Some(TEMPLATE),
            generation_config: Some(&stops),
        };
        save_model(folder.path().join("m").as_path(), &config.to_json(), list, companions).unwrap();
        engine.load(&folder.path().join("m"), LoadOptions { max_context: 0, copy: true }).unwrap()
    };
    Distiller::new(&make(1), Some(&make(2)), settings(document)).unwrap()
}

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

#[test]
fn stored_demonstrations_are_replayed_as_text_and_learnt_with_their_end() {
    let d = chatting(json!({"preset": "sft"}));
    let texts = ["hello", "us <|im_end|>"].map(str::to_string).to_vec();
    let episode = d.begin(EpisodeSpec { demonstration: Some(texts.clone()), ..Default::default() }).unwrap();
    for text in ["one", "two"] {
        episode.observe(&user(text)).unwrap();
        assert_eq!(episode.decide().unwrap().actor, Some(Actor::Replay));
        episode.replay(Replay::Stored).unwrap();
        episode.outcome(None, true).unwrap();
    }
    episode.observe(&user("three")).unwrap();
    let decision = episode.decide().unwrap();
    assert_eq!((decision.actor, decision.reason), (Some(Actor::Teacher), Reason::ReplayEnded));
    episode.end(1.0, Some(true)).unwrap();
    let record = episode.trajectory().unwrap();
    let tokenizer = d.student().tokenizer().unwrap();
    for (turn, text) in record.turns().iter().zip(&texts) {
        let ids = &record.ids()[turn.range.clone()];
        assert_eq!(ids.last(), Some(&IM_END));
        assert!(!ids[..ids.len() - 1].contains(&IM_END), "content is never control");
        let bytes: Vec<u8> =
            ids[..ids.len() - 1].iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap().to_vec()).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), *text);
    }
    assert_eq!(build(&d).report().trained_turns, 2);
}

#[test]
fn a_generation_prompt_stands_once_whatever_was_refused() {
    let d = chatting(half_guided());
    let run = |trouble: bool| {
        let episode = d.begin(numbered(1)).unwrap();
        for text in ["one", "two"] {
            episode.observe(&user(text)).unwrap();
            if trouble {
                episode.override_actor(Actor::Replay).unwrap();
                assert_eq!(fault(episode.replay(Replay::Ids(&[1, 999]))), Fault::IdOutOfRange);
                episode.override_actor(Actor::Teacher).unwrap();
                let bad = GenerationOptions { stop_ids: vec![999], ..Default::default() };
                assert_eq!(fault(episode.act(&bad)), Fault::IdOutOfRange);
            }
            episode.override_actor(Actor::Student).unwrap();
            episode.act(&GenerationOptions { max_tokens: 4, ..Default::default() }).unwrap().collect().unwrap();
            episode.outcome(None, true).unwrap();
        }
        record(&episode.trajectory().unwrap())
    };
    let straight = run(false);
    let begins = straight.0.iter().filter(|&&id| id == IM_END - 1).count();
    assert!(begins >= 4, "two questions and two answers begin");
    assert_eq!(run(true), straight);
}

#[test]
fn models_that_do_not_belong_together_are_refused() {
    let engines = [engine(Compute::F32), engine(Compute::F32)];
    let tiny = config(Kind::Dense, 32, 1);
    let mut wider = tiny.clone();
    wider.vocab_size += 1;
    let student = model(&engines[0], &tiny, 1);
    let opd = || settings(json!({"preset": "opd"}));
    let other_words = engines[0].random_model(wider, Dtype::F32, 2, CONTEXT).unwrap();
    assert_eq!(fault(Distiller::new(&student, Some(&other_words), opd())), Fault::TeacherVocabulary);
    let shorter = engines[0].random_model(tiny.clone(), Dtype::F32, 2, CONTEXT - 1).unwrap();
    assert_eq!(fault(Distiller::new(&student, Some(&shorter), opd())), Fault::BadOption);
    let elsewhere = model(&engines[1], &tiny, 2);
    assert_eq!(fault(Distiller::new(&student, Some(&elsewhere), opd())), Fault::ForeignHandle);
    assert_eq!(fault(Distiller::new(&student, None, opd())), Fault::BadOption);
    let d = Distiller::new(&student, None, settings(json!({"preset": "sft"}))).unwrap();
    Seat::new(&d, EpisodeSpec::default()).play(2);
    assert!(build(&d).report().cross_entropy.is_some());
}
