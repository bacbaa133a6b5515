//! Episodes forked at a turn: a fork stands where its parent stood, shares what was computed, draws under its own identity,
//! and learns what it is told to learn.

#[path = "support/forked.rs"]
mod forked;
#[path = "support/scripted.rs"]
mod scripted;

use std::time::Duration;

use forked::*;
use scripted::*;
use serde_json::{Value, json};
use squire::backend::Compute;
use squire::distill::trajectory::{Heading, Trajectory};
use squire::distill::{
    Actor, Distiller, Episode, EpisodeSpec, ForkOptions, QueueOptions, Reason, Replay, Teacher, TeacherQueue,
};
use squire::error::{Fault, Status};
use squire::serve::{Engine, EngineOptions};

/// An episode that was never forked: the first turns of `of` by their ids, and what was shown before the next one.
fn afresh(d: &Distiller, number: u64, of: &Trajectory, turns: usize, train: bool) -> Episode {
    let episode = d.begin(numbered(number)).unwrap();
    let mut from = 0;
    for turn in &of.turns()[..turns] {
        episode.observe_ids(&of.ids()[from..turn.range.start]).unwrap();
        episode.override_actor(Actor::Replay).unwrap();
        episode.replay(Replay::Ids(&of.ids()[turn.range.clone()])).unwrap();
        episode.outcome(None, train).unwrap();
        from = turn.range.end;
    }
    show(&episode);
    episode
}

/// What was recorded of a turn and all after it: ids, log-probs and sampled log-probs as bits, and the turns.
fn from_turn(t: &Trajectory, turn: usize) -> Record {
    let start = t.turns()[turn].range.start;
    let (ids, logprobs, sampled, turns) = record(t);
    (ids[start..].to_vec(), logprobs[start..].to_vec(), sampled[start..].to_vec(), turns[turn..].to_vec())
}

// Where it stands, and what it says.

#[test]
fn a_fork_under_its_parents_number_goes_on_as_the_parent_does() {
    for (kind, compute) in ALL {
        let d = distiller(kind, compute, half_guided());
        let parent = begun(&d, 7, 2);
        let next = parent.fork(called(7)).unwrap();
        let before = parent.fork(ForkOptions { turn: Some(1), ..called(7) }).unwrap();
        assert_eq!((next.turn(), before.turn()), (2, 1));
        answer(&before);
        turn(&before);
        turn(&next);
        turn(&parent);
        let wanted = record(&end(&parent));
        assert_eq!(record(&end(&next)), wanted, "{kind:?} {compute:?}");
        assert_eq!(record(&end(&before)), wanted, "{kind:?} {compute:?}");
    }
}

#[test]
fn without_draws_every_fork_says_what_its_parent_says() {
    let d = plain(json!({"preset": "opd", "sampling": {"temperature": 0}}));
    let parent = begun(&d, 0, 1);
    let forks: Vec<Episode> = (0..3).map(|_| parent.fork(ForkOptions::default()).unwrap()).collect();
    turn(&parent);
    let wanted = record(&end(&parent));
    for fork in forks {
        turn(&fork);
        assert_eq!(record(&end(&fork)), wanted);
    }
}

#[test]
fn forks_draw_each_under_its_own_identity() {
    let d = plain(json!({"preset": "opd"}));
    let parent = d.begin(numbered(0)).unwrap();
    show(&parent);
    let said = |episode: &Episode| {
        answer(episode);
        record(&episode.trajectory().unwrap()).0
    };
    let forks: Vec<Episode> = (0..4).map(|_| parent.fork(ForkOptions::default()).unwrap()).collect();
    let mut all: Vec<_> = forks.iter().map(said).collect();
    all.push(said(&parent));
    assert_eq!(forks.iter().map(|f| f.heading().episode).collect::<Vec<_>>(), [1, 2, 3, 4], "the next numbers");
    for (i, one) in all.iter().enumerate() {
        assert!(all[..i].iter().all(|other| other != one), "{all:?}");
    }
    // Who acts is drawn anew as well.
    let d = plain(half_guided());
    let parent = d.begin(numbered(0)).unwrap();
    show(&parent);
    let actors: Vec<_> =
        (0..20).map(|_| parent.fork(ForkOptions::default()).unwrap().decide().unwrap().actor).collect();
    assert!(actors.contains(&Some(Actor::Student)) && actors.contains(&Some(Actor::Teacher)), "{actors:?}");
    let alone: Vec<_> = (1..21)
        .map(|number| {
            let episode = d.begin(numbered(number)).unwrap();
            show(&episode);
            episode.decide().unwrap().actor
        })
        .collect();
    assert_eq!(actors, alone);
}

#[test]
fn a_fork_at_any_turn_says_what_an_episode_of_its_number_says_behind_the_same_ids() {
    for (kind, compute) in ALL {
        let d = distiller(kind, compute, half_guided());
        let parent = begun(&d, 0, 3);
        show(&parent);
        let of = parent.trajectory().unwrap();
        for u in 0..=3 {
            let number = 100 + u as u64;
            let fork = parent.fork(ForkOptions { turn: Some(u as u32), ..called(number) }).unwrap();
            let fresh = afresh(&distiller(kind, compute, half_guided()), number, &of, u, true);
            for episode in [&fork, &fresh] {
                answer(episode);
                turn(episode);
            }
            let (fork, fresh) = (end(&fork), end(&fresh));
            assert_eq!(fork.ids(), fresh.ids(), "{kind:?} {compute:?} turn {u}");
            assert_eq!(from_turn(&fork, u), from_turn(&fresh, u), "{kind:?} {compute:?} turn {u}");
            // Before it stands what the parent has recorded.
            let start = fork.turns()[u].range.start;
            let whole = |t: &Trajectory, n: usize| {
                let (ids, logprobs, sampled, turns) = record(t);
                (ids[..n].to_vec(), logprobs[..n].to_vec(), sampled[..n].to_vec(), turns[..u].to_vec())
            };
            if u < 3 {
                assert_eq!(whole(&fork, start), whole(&of, start), "{kind:?} {compute:?} turn {u}");
                assert_eq!(fork.sources()[..start], of.sources()[..start]);
            }
        }
    }
}

#[test]
fn a_fork_is_forked_in_its_turn_even_before_its_own_part() {
    let d = plain(half_guided());
    let parent = begun(&d, 0, 3);
    let first = parent.fork(ForkOptions { turn: Some(2), ..called(50) }).unwrap();
    answer(&first);
    let of = first.trajectory().unwrap();
    // Further back than the first fork begins, and of what it has said itself.
    for (u, number) in [(1, 60), (3, 61)] {
        let second = first.fork(ForkOptions { turn: Some(u), ..called(number) }).unwrap();
        assert_eq!(second.heading().forked_from, Some((50, u)));
        if u == 3 {
            show(&second);
        }
        answer(&second);
        let fresh = afresh(&plain(half_guided()), number, &of, u as usize, true);
        answer(&fresh);
        assert_eq!(from_turn(&end(&second), u as usize), from_turn(&end(&fresh), u as usize), "turn {u}");
    }
}

#[test]
fn a_fork_has_its_parents_step_revision_and_options_and_the_trace_says_where_it_was_forked() {
    let d = plain(half_guided());
    let spec = EpisodeSpec { task: "mug".into(), max_turns: Some(3), ..numbered(9) };
    let parent = d.begin(spec).unwrap();
    turn(&parent);
    play(&d, 2, 2);
    update(&d);
    assert_eq!((d.step(), d.student().current().number), (1, 2));
    let fork = parent.fork(ForkOptions::default()).unwrap();
    assert_eq!(fork.heading(), Heading { episode: 12, forked_from: Some((9, 1)), ..parent.heading() });
    assert_eq!((fork.heading().step, fork.heading().revision), (0, 1));
    let trace = fork.trace().unwrap();
    assert_eq!(trace["forked_from"], json!({"episode": 9, "turn": 1}));
    assert_eq!((&trace["phase"], &trace["task"]), (&json!("observe, or end"), &json!("mug")));
    assert_eq!(parent.trace().unwrap()["forked_from"], Value::Null);
    // The cap counts the turns that are shared; a fork may have its own.
    let longer = parent.fork(ForkOptions { max_turns: Some(5), ..ForkOptions::default() }).unwrap();
    for (episode, horizon) in [(&fork, 2), (&longer, 4)] {
        show(episode);
        assert_eq!(episode.decide().unwrap().horizon, horizon);
    }
    let shorter = parent.fork(ForkOptions { max_turns: Some(1), ..ForkOptions::default() }).unwrap();
    show(&shorter);
    assert_eq!(shorter.decide().unwrap().reason, Reason::TurnCap);
}

#[test]
fn a_decision_is_taken_anew_and_more_may_be_shown_first() {
    let d = plain(json!({"preset": "opd"}));
    let parent = begun(&d, 0, 1);
    parent.observe_ids(&[1, 2]).unwrap();
    parent.override_actor(Actor::Teacher).unwrap();
    let fork = parent.fork(ForkOptions::default()).unwrap();
    fork.observe_ids(&[3]).unwrap();
    let decision = fork.decide().unwrap();
    assert_eq!((decision.actor, decision.reason), (Some(Actor::Student), Reason::Method));
    answer(&fork);
    let (record, start) = (fork.trajectory().unwrap(), parent.trajectory().unwrap().ids().len());
    assert_eq!(record.ids()[start..record.turns()[1].range.start], [1, 2, 3]);
    assert_eq!(parent.decide().unwrap().reason, Reason::HostOverride, "the parent's own stands");
}

#[test]
fn neither_needs_the_other() {
    let undisturbed = |first: bool| {
        let d = plain(half_guided());
        let parent = begun(&d, 3, 2);
        let fork = parent.fork(called(4)).unwrap();
        let episode = if first { parent } else { fork };
        turn(&episode);
        record(&end(&episode))
    };
    for parent_ends in [true, false] {
        for drops in [true, false] {
            let d = plain(half_guided());
            let parent = begun(&d, 3, 2);
            let fork = parent.fork(called(4)).unwrap();
            let (ends, stays) = if parent_ends { (parent, fork) } else { (fork, parent) };
            if !drops {
                turn(&ends);
                end(&ends);
                build(&d);
            }
            drop(ends);
            turn(&stays);
            assert_eq!(record(&end(&stays)), undisturbed(!parent_ends), "{parent_ends} {drops}");
            build(&d);
        }
    }
}

// What is learnt.

/// A batch of a parent with two forks, and the same batch of episodes that were never forked.
fn batches(kind: Kind, compute: Compute, train_prefix: bool) -> [Distiller; 2] {
    // Replayed turns carry the loss that they carry in the parent.
    let loss = json!({"kernel": "reverse-kl"});
    let mut document = half_guided();
    ["student_turns", "teacher_turns", "replay_turns"].iter().for_each(|turns| document[turns] = loss.clone());
    document["normaliser"] = json!("sequence-mean");
    let forked = distiller(kind, compute, document.clone());
    let parent = begun(&forked, 0, 2);
    let of = parent.trajectory().unwrap();
    let forks = [(1, 1), (2, 2)].map(|(turn, number)| {
        let fork = parent.fork(ForkOptions { turn: Some(turn), train_prefix, ..called(number) }).unwrap();
        if turn == 2 {
            show(&fork);
        }
        fork
    });
    let apart = distiller(kind, compute, document);
    let alone = begun(&apart, 0, 2);
    let fresh = [(1, 1), (2, 2)].map(|(turn, number)| afresh(&apart, number, &of, turn, train_prefix));
    for ([one, two], parent) in [(forks, parent), (fresh, alone)] {
        for episode in [&one, &two] {
            answer(episode);
            turn(episode);
        }
        turn(&parent);
        [two, parent, one].iter().for_each(|episode| drop(end(episode)));
    }
    [forked, apart]
}

#[test]
fn a_prefix_is_learnt_once_or_by_every_fork_that_says_so() {
    for (kind, compute) in ALL {
        let mut norms = Vec::new();
        for train_prefix in [false, true] {
            let [forked, apart] = batches(kind, compute, train_prefix).map(|d| build(&d));
            let what = format!("{kind:?} {compute:?} {train_prefix}");
            let (a, b) = (forked.report(), apart.report());
            // Three turns of the parent, and two or all of each fork.
            let turns = if train_prefix { 3 + 3 + 4 } else { 3 + 2 + 2 };
            assert_eq!((a.trained_episodes, a.trained_turns, b.trained_turns), (3, turns, turns), "{what}");
            assert!(a.loss.to_bits() == b.loss.to_bits() && a.loss > 0.01, "{what}");
            assert_eq!(a.differing, 0, "{what}");
            assert!(bytes(forked.gradients()) == bytes(apart.gradients()), "{what}");
            norms.push(a.gradient_norm);
        }
        assert_ne!(norms[0], norms[1]);
    }
}

#[test]
fn a_turn_that_carries_no_loss_in_the_parent_carries_none_in_a_fork() {
    let d = plain(json!({"preset": "opd"}));
    let parent = begun(&d, 0, 1);
    show(&parent);
    parent.decide().unwrap();
    parent.act(&options()).unwrap().collect().unwrap();
    parent.outcome(None, false).unwrap();
    for (train_prefix, wanted) in [(false, [false, false, true]), (true, [true, false, true])] {
        let fork = parent.fork(ForkOptions { train_prefix, ..ForkOptions::default() }).unwrap();
        turn(&fork);
        let trained: Vec<bool> = fork.trajectory().unwrap().turns().iter().map(|turn| turn.train).collect();
        assert_eq!(trained, wanted);
    }
    assert!(parent.trajectory().unwrap().turns()[0].train);
}

#[test]
fn the_hosts_teacher_is_asked_of_the_turns_that_a_fork_learns() {
    let (student, _) = pair(Kind::Dense, Compute::F32);
    let queue = TeacherQueue::new(QueueOptions::from_json(r#"{"vocabulary": "the-students", "top_k": 4}"#).unwrap());
    let settings = settings(json!({"preset": "opd"}));
    let d = Distiller::taught(&student, Some(Teacher::Queue(queue.clone())), settings).unwrap();
    let parent = begun(&d, 0, 2);
    let asked = |episode: &Episode| {
        let record = end(episode);
        let request = queue.next(10, Duration::from_millis(5)).pop().expect("a request");
        assert_eq!(request.ids, record.ids()[..record.turns().last().unwrap().range.end]);
        (record, request.from)
    };
    let [alone, whole] = [false, true].map(|train_prefix| {
        let fork = parent.fork(ForkOptions { train_prefix, turn: Some(1), ..ForkOptions::default() }).unwrap();
        answer(&fork);
        turn(&fork);
        asked(&fork)
    });
    assert_eq!(alone.1, alone.0.turns()[1].range.start);
    assert_eq!(whole.1, whole.0.turns()[0].range.start);
    // Nothing of its own, nothing to ask.
    end(&parent.fork(ForkOptions::default()).unwrap());
    assert_eq!(queue.n_waiting(), 0);
    let (record, from) = asked(&parent);
    assert_eq!(from, record.turns()[0].range.start, "the parent learns its turns as ever");
}

#[test]
fn a_fork_of_an_evaluation_is_an_evaluation() {
    let d = plain(half_guided());
    let parent = d.begin(EpisodeSpec { evaluation: true, ..numbered(5) }).unwrap();
    turn(&parent);
    let fork = parent.fork(ForkOptions { train_prefix: true, ..ForkOptions::default() }).unwrap();
    assert_eq!((fork.heading().evaluation, fork.heading().episode), (true, 6), "counted with its kind");
    show(&fork);
    assert_eq!(fork.decide().unwrap().reason, Reason::Evaluation);
    answer(&fork);
    assert!(end(&fork).turns().iter().all(|turn| !turn.train));
    end(&parent);
    assert_eq!((d.n_waiting(), d.metrics()["evaluations"].as_u64()), (0, Some(2)));
}

#[test]
fn a_demonstration_is_counted_from_the_first_turn_on() {
    let d = plain(json!({"preset": "sft"}));
    let with = |texts: &[&str]| Some(texts.iter().map(|text| text.to_string()).collect::<Vec<_>>());
    let spec = EpisodeSpec { demonstration: with(&["a", "b"]), ..numbered(0) };
    let parent = d.begin(spec).unwrap();
    parent.observe_ids(&[1, 2]).unwrap();
    parent.decide().unwrap();
    parent.replay(Replay::Ids(&[3, STOP])).unwrap();
    parent.outcome(None, true).unwrap();
    let reason = |options: ForkOptions| {
        let fork = parent.fork(options).unwrap();
        show(&fork);
        fork.decide().unwrap().reason
    };
    assert_eq!(reason(ForkOptions::default()), Reason::Method, "the parent's has a second turn");
    assert_eq!(reason(ForkOptions { demonstration: with(&["x"]), ..ForkOptions::default() }), Reason::ReplayEnded);
    assert_eq!(reason(ForkOptions { demonstration: with(&["x", "y"]), ..ForkOptions::default() }), Reason::Method);
}

// What is refused.

#[test]
fn a_fork_out_of_order_is_refused_and_says_what_is_expected() {
    let (engine, d) = stepped(json!({"preset": "opd"}));
    let parent = d.begin(numbered(0)).unwrap();
    let refused = |wanted: Fault, said: &str| {
        for options in [ForkOptions::default(), at(0)] {
            let e = parent.fork(options).err().expect("a refusal");
            assert!(e.fault() == wanted && e.message().contains(said), "{e}");
        }
    };
    show(&parent);
    parent.decide().unwrap();
    let generation = parent.act(&options()).unwrap();
    assert!(engine.step().unwrap());
    refused(Fault::SessionBusy, "being worked on");
    generation.collect().unwrap();
    refused(Fault::OutOfOrder, "expected now: outcome");
    parent.outcome(None, true).unwrap();
    show(&parent);
    parent.override_actor(Actor::Replay).unwrap();
    parent.replay(Replay::Ids(&[1, STOP])).unwrap();
    refused(Fault::OutOfOrder, "fork is out of order; expected now: outcome");
    parent.outcome(None, true).unwrap();
    let e = parent.fork(at(3)).err().expect("a refusal");
    assert_eq!((e.fault(), e.status()), (Fault::BadValue, Status::Argument));
    assert_eq!(e.message(), "turn: wanted one that the episode has reached, 0 to 2, found 3");
    let trace = parent.trace().unwrap();
    parent.fork(at(2)).unwrap();
    assert_eq!(parent.trace().unwrap(), trace, "forks leave no trace in the parent");
    parent.end(0.0, None).unwrap();
    refused(Fault::OutOfOrder, "has ended and holds no pages");
    // What was refused took no number: one fork was made.
    assert_eq!(d.begin(EpisodeSpec::default()).unwrap().heading().episode, 2);
}

#[test]
fn a_fork_beyond_the_budget_of_sessions_leaves_the_parent_as_it_was() {
    let options = EngineOptions { n_threads: 1, compute: Compute::F32, max_sessions: 3, ..Default::default() };
    let engine = Engine::new(options).unwrap();
    let (student, teacher) =
        (model(&engine, &config(Kind::Dense, 32, 2), 1), model(&engine, &config(Kind::Dense, 48, 3), 2));
    let d = Distiller::new(&student, Some(&teacher), settings(half_guided())).unwrap();
    let parent = begun(&d, 0, 2);
    let (pages, trace) = ((student.kv_pages(), teacher.kv_pages()), parent.trace().unwrap());
    // There is room for the student's session and none for the teacher's.
    assert_eq!(fault(parent.fork(ForkOptions::default())), Fault::SessionBudget);
    assert_eq!((engine.metrics().sessions, parent.trace().unwrap()), (2, trace));
    assert_eq!((student.kv_pages(), teacher.kv_pages()), pages);
    turn(&parent);
    let undisturbed = begun(&plain(half_guided()), 0, 3);
    assert_eq!(record(&end(&parent)), record(&end(&undisturbed)));
    assert_eq!(d.begin(EpisodeSpec::default()).unwrap().heading().episode, 1, "no number was taken");
}
