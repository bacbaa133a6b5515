//! What forks cost: nothing is computed again, pages are shared, and what is computed first is computed for all.

#[path = "support/forked.rs"]
mod forked;
#[path = "support/scripted.rs"]
mod scripted;

use forked::*;
use scripted::*;
use serde_json::json;
use squire::backend::page::PAGE;
use squire::distill::trajectory::Trajectory;
use squire::distill::{Actor, Episode, EpisodeSpec, ForkOptions, Replay};
use squire::error::Fault;
use squire::serve::Cancel;

#[test]
fn nothing_is_computed_again_by_student_or_teacher() {
    // What the student has computed ends before the last token that was said.
    let d = plain(json!({"preset": "opd"}));
    let parent = begun(&d, 0, 3);
    let of = parent.trajectory().unwrap();
    for u in 1..=3 {
        let fork = parent.fork(at(u)).unwrap();
        let before = rows(&d);
        let is_next = u == 3;
        if is_next {
            show(&fork);
        }
        answer(&fork);
        let own = fork.trajectory().unwrap().turns()[u as usize].range.clone();
        // The row that the first draw is made from, or all after what was computed.
        let from = if is_next { of.turns()[2].range.end - 1 } else { own.start - 1 };
        assert_eq!(rows(&d) - before, (own.end - 1 - from) as u64, "turn {u}");
        assert_eq!(fork.teacher_computed().unwrap(), 0);
    }
    // The teacher's.
    let d = plain(json!({"preset": "guided-opd", "actor": {"kind": "bernoulli", "beta": 1}}));
    for train_prefix in [false, true] {
        let parent = begun(&d, 0, 2);
        let said = parent.trajectory().unwrap().turns()[1].range.end;
        assert_eq!(parent.teacher_computed().unwrap(), said as u64 - 1);
        let fork = parent.fork(ForkOptions { train_prefix, ..ForkOptions::default() }).unwrap();
        show(&fork);
        fork.override_actor(Actor::Student).unwrap();
        fork.act(&options()).unwrap().collect().unwrap();
        fork.outcome(None, true).unwrap();
        assert_eq!(fork.teacher_computed().unwrap(), 0);
        let before = rows(&d);
        let record = end(&fork);
        build(&d);
        // It scores the student's turn, and of what it had computed no row again, whether the prefix is learnt or not.
        let own = record.turns()[2].range.end;
        assert_eq!(rows(&d) - before, (own - said) as u64, "train_prefix {train_prefix}");
    }
}

#[test]
fn what_is_computed_first_is_computed_once_for_all_forks() {
    let (rounds, long) = (3, (0..40).map(|i| i % 60).collect::<Vec<i32>>());
    for settings in [json!({"preset": "opd"}), half_guided()] {
        let run = |first: bool| {
            let d = plain(settings.clone());
            let parent = d.begin(EpisodeSpec::default()).unwrap();
            parent.observe_ids(&long).unwrap();
            let before = rows(&d);
            if first {
                parent.prefill(&Cancel::default()).unwrap();
                assert_eq!(rows(&d) - before, 2 * long.len() as u64, "student and teacher");
                assert_eq!(parent.teacher_computed().unwrap(), long.len() as u64);
                parent.prefill(&Cancel::default()).unwrap();
                assert_eq!(rows(&d) - before, 2 * long.len() as u64, "nothing is pending");
            }
            let mut episodes: Vec<Episode> = (0..4).map(|_| parent.fork(ForkOptions::default()).unwrap()).collect();
            episodes.push(parent);
            for episode in &episodes {
                answer(episode);
                (1..rounds).for_each(|_| turn(episode));
            }
            let records: Vec<Trajectory> = episodes.iter().map(end).collect();
            let built = build(&d);
            (self::records(&records), bytes(built.gradients()), rows(&d) - before, records)
        };
        let (alone, shared) = (run(false), run(true));
        assert!(alone.0 == shared.0 && alone.1 == shared.1, "nothing is said or learnt differently: {settings}");
        if settings == half_guided() {
            assert!(shared.2 < alone.2);
            continue;
        }
        // Of the shared rows the last one is computed again by each student, which draws from it.
        let own: usize = shared.3.iter().map(|t| t.turns().last().unwrap().range.end - 1 - long.len()).sum();
        assert_eq!(shared.2, (2 * long.len() + 2 * own + shared.3.len()) as u64);
    }
}

#[test]
fn a_turn_behind_what_was_computed_first_is_learnt_whoever_takes_it() {
    // The row before the turn is there already when it is known who speaks, and whether anybody does.
    let run = |first: bool, more: bool, fork: bool| {
        let d = plain(json!({"preset": "guided-opd"}));
        let parent = begun(&d, 0, 1);
        let prefill = || {
            if first {
                parent.prefill(&Cancel::default()).unwrap()
            }
        };
        prefill();
        show(&parent);
        prefill();
        let forked = parent.fork(called(0)).unwrap();
        let episode = if fork { &forked } else { &parent };
        if more {
            episode.observe_ids(&[1, 2]).unwrap();
        }
        for actor in [Actor::Student, Actor::Teacher, Actor::Student] {
            episode.override_actor(actor).unwrap();
            episode.act(&options()).unwrap().collect().unwrap();
            episode.outcome(None, true).unwrap();
            show(episode);
        }
        end(episode);
        bytes(build(&d).gradients())
    };
    for (more, fork) in [(false, false), (false, true), (true, false), (true, true)] {
        assert!(run(true, more, fork) == run(false, more, fork), "{more} {fork}");
    }
}

#[test]
fn what_is_computed_first_may_be_cancelled_and_is_refused_out_of_order() {
    let d = plain(json!({"preset": "opd"}));
    let parent = d.begin(numbered(0)).unwrap();
    parent.prefill(&Cancel::default()).unwrap();
    show(&parent);
    let set = Cancel::default();
    set.set();
    assert_eq!(fault(parent.prefill(&set)), Fault::Cancelled);
    answer(&parent);
    parent.observe_ids(&[1]).unwrap();
    parent.override_actor(Actor::Replay).unwrap();
    parent.replay(Replay::Ids(&[1, STOP])).unwrap();
    assert_eq!(fault(parent.prefill(&Cancel::default())), Fault::OutOfOrder);
    parent.outcome(None, true).unwrap();
    end(&parent);
    let e = parent.prefill(&Cancel::default()).unwrap_err();
    assert!(e.fault() == Fault::OutOfOrder && e.message().contains("prefill before the end"), "{e}");
    build(&d);
}

#[test]
fn forks_share_pages_until_they_write() {
    let d = plain(json!({"preset": "guided-opd", "actor": {"kind": "bernoulli", "beta": 1}}));
    let (student, teacher) = (d.student(), d.teacher().unwrap());
    let pages = || (student.kv_pages(), teacher.kv_pages());
    let parent = d.begin(EpisodeSpec::default()).unwrap();
    let long: Vec<i32> = (0..2 * PAGE as i32 + 5).map(|i| i % 60).collect();
    parent.observe_ids(&long).unwrap();
    answer(&parent);
    // The student has computed nothing yet: only the teacher spoke.
    assert_eq!(pages(), (0, 3));
    parent.observe_ids(&[1, 2]).unwrap();
    parent.override_actor(Actor::Student).unwrap();
    parent.act(&options()).unwrap().collect().unwrap();
    parent.outcome(None, true).unwrap();
    assert_eq!(pages(), (3, 3));
    let forks: Vec<Episode> = (0..8).map(|_| parent.fork(ForkOptions::default()).unwrap()).collect();
    assert_eq!(pages(), (3, 3), "eight forks take no page");
    for (n, fork) in forks.iter().enumerate() {
        fork.observe_ids(&[3]).unwrap();
        fork.override_actor(Actor::Student).unwrap();
        fork.act(&options()).unwrap().collect().unwrap();
        fork.outcome(None, true).unwrap();
        assert!(fork.trajectory().unwrap().ids().len() <= 3 * PAGE);
        assert_eq!(pages(), (3 + n + 1, 3), "the page that it writes into, and no other");
    }
    drop(forks);
    assert_eq!(pages(), (3, 3));
    drop(parent);
    assert_eq!(pages(), (0, 0));
}
