//! The guided loop from outside: what each call costs, which revision acts, that no way of running episodes
//! changes what is learnt, and that an update that fails changes nothing.

#[path = "support/scripted.rs"]
mod scripted;

use scripted::*;
use serde_json::{Value, json};
use squire::backend::Compute;
use squire::distill::{Actor, Distiller, EpisodeSpec, Reason};
use squire::error::Fault;
use squire::model::Weights;
use squire::serve::{Cancel, GenerationOptions, ServedModel};
use squire::tensor::Dtype;

#[test]
fn a_training_turns_draws_are_those_of_its_step_and_an_evaluations_are_the_same_at_every_step() {
    // A step whose learning rate is 0 changes no weight.
    let d = plain(json!({"preset": "opd", "optimizer": {"learning_rate": 0}}));
    let evaluation = || {
        let spec = EpisodeSpec { evaluation: true, ..numbered(3) };
        record(&Seat::new(&d, spec).play(3))
    };
    let (first, seen, before) = (Seat::new(&d, numbered(7)).play(3), evaluation(), weight_bytes(d.student()));
    update(&d);
    assert!(weight_bytes(d.student()) == before);
    let second = Seat::new(&d, numbered(7)).play(3);
    // Behind the same prompt something else is said.
    let (one, other) = (&first.turns()[0].range, &second.turns()[0].range);
    assert_eq!(first.ids()[..one.start], second.ids()[..other.start]);
    assert_ne!(first.ids()[one.clone()], second.ids()[other.clone()]);
    assert!(evaluation() == seen);
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
    // Behind the first of several passes.
    let mut stop = |done: u64, all: u64| {
        seen.push((done, all));
        done == 0
    };
    assert_eq!(fault(d.build(0, &Cancel::default(), &mut stop)), Fault::Cancelled);
    let (before, last) = (seen[0], seen[seen.len() - 1]);
    assert!(before.0 == 0 && last.0 > 0 && last.0 < last.1 && before.1 == last.1, "{seen:?}");
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
fn a_student_that_has_diverged_says_so_before_it_says_anything() {
    let d = plain(json!({"preset": "opd"}));
    d.student().restore(broken(d.student()), 1);
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    episode.observe_ids(&[1, 2]).unwrap();
    episode.decide().unwrap();
    for _ in 0..2 {
        assert_eq!(fault(episode.act(&options()).unwrap().collect()), Fault::NotFinite);
        assert_eq!(fault(episode.outcome(None, true)), Fault::OutOfOrder);
    }
    episode.end(0.0, None).unwrap();
    assert!(episode.trajectory().unwrap().turns().is_empty());
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
    // Of another engine is no reason.
    let elsewhere = model(&engines[1], &tiny, 2);
    assert!(Distiller::new(&student, Some(&elsewhere), opd()).is_ok());
    assert_eq!(fault(Distiller::new(&student, None, opd())), Fault::BadOption);
    let d = Distiller::new(&student, None, settings(json!({"preset": "sft"}))).unwrap();
    Seat::new(&d, EpisodeSpec::default()).play(2);
    assert!(build(&d).report().cross_entropy.is_some());
}
