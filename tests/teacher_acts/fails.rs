//! Turns that the teacher does not take: silence, failures, cancels, what nobody heard.

use std::thread;
use std::time::{Duration, Instant};

use super::*;
use answering::*;
use scripted::*;
use serde_json::json;
use squire::distill::{Actor, EpisodeSpec, Reason};
use squire::error::Fault;
use squire::serve::{Cancel, Chunk, Finish, Next};

#[test]
fn a_teacher_that_does_not_speak_costs_its_deadline_and_no_episode() {
    for fails in ["again", "student"] {
        let document = guided(json!({"actor": {"kind": "teacher"}, "teacher_fails": fails, "batch_episodes": 1}));
        let (d, queue, model) = taught(json!({"top_k": VOCABULARY, "acts": true, "deadline_ms": 30}), document);
        let episode = decided(&d);
        for taken in [false, true] {
            let generation = episode.act(&options()).unwrap();
            let request = taken.then(|| queue.next(1, SHORT).pop().unwrap());
            is(episode.trace().err().unwrap(), Fault::SessionBusy, "asked for its turn");
            is(episode.end(0.0, None).unwrap_err(), Fault::SessionBusy, "asked for its turn");
            let since = Instant::now();
            let why =
                if taken { "was taken and not answered within 30 ms" } else { "was taken by nobody within 30 ms" };
            is(generation.collect().err().unwrap(), Fault::TeacherSilent, why);
            assert!(since.elapsed() < Duration::from_secs(20));
            if let Some(request) = request {
                is(queue.say(request.number, ids(&[STOP], &[])).unwrap_err(), Fault::TeacherRequest, "deadline passed");
            }
            let next = episode.decide().unwrap();
            if fails == "student" {
                assert_eq!(
                    (next.actor, next.reason, next.train_on_this),
                    (Some(Actor::Student), Reason::TeacherFailed, true)
                );
                break;
            }
            assert_eq!((next.actor, next.reason), (Some(Actor::Teacher), Reason::Method));
        }
        if fails == "again" {
            let generation = episode.act(&options()).unwrap();
            let request = queue.next(1, SHORT).pop().unwrap();
            queue.fail(request.number, "the server said 500").unwrap();
            is(generation.collect().err().unwrap(), Fault::TeacherFailed, "the server said 500");
        }
        let generation = episode.act(&options()).unwrap();
        queue.next(1, SHORT).iter().for_each(|request| serve(&queue, &model, request));
        assert!(!generation.collect().unwrap().0.ids.is_empty());
        episode.outcome(None, true).unwrap();
        let actor = if fails == "again" { Actor::Teacher } else { Actor::Student };
        assert_eq!(episode.trajectory().unwrap().turns()[0].actor, actor);
        episode.end(1.0, None).unwrap();
        answer_all(&queue, &model);
        assert_eq!(build(&d).report().trained_episodes, 1);
    }
}

#[test]
fn a_turn_that_the_host_gave_to_the_teacher_stays_the_teachers() {
    let document = guided(json!({"teacher_fails": "student"}));
    let (d, queue, _) = taught(json!({"top_k": 2, "acts": true}), document);
    let episode = teachers(&d);
    let generation = episode.act(&options()).unwrap();
    queue.fail(queue.next(1, SHORT)[0].number, "no").unwrap();
    assert_eq!(generation.collect().err().unwrap().fault(), Fault::TeacherFailed);
    assert_eq!(episode.decide().unwrap().actor, Some(Actor::Teacher));
    assert_eq!(episode.override_actor(Actor::Student).unwrap().actor, Some(Actor::Student));
}

#[test]
fn a_closed_teacher_takes_no_turn() {
    for fails in ["again", "student"] {
        let document = guided(json!({"actor": {"kind": "teacher"}, "teacher_fails": fails}));
        let (d, queue, _) = taught(json!({"top_k": 2, "acts": true}), document);
        let waiting = decided(&d);
        let generation = waiting.act(&options()).unwrap();
        queue.close();
        assert_eq!(generation.collect().err().unwrap().fault(), Fault::TeacherClosed);
        let episode = decided(&d);
        assert_eq!(episode.act(&options()).err().unwrap().fault(), Fault::TeacherClosed);
        let actor = if fails == "again" { Actor::Teacher } else { Actor::Student };
        for episode in [waiting, episode] {
            assert_eq!(episode.decide().unwrap().actor, Some(actor));
        }
    }
}

#[test]
fn a_cancelled_turn_is_withdrawn_and_asked_for_anew() {
    let document = guided(json!({"actor": {"kind": "teacher"}, "teacher_fails": "student"}));
    let (d, queue, _) = taught(json!({"top_k": 2, "acts": true}), document);
    let episode = decided(&d);
    let generation = episode.act(&options()).unwrap();
    let request = queue.next(1, SHORT).pop().unwrap();
    generation.cancel();
    // Before anybody pulls.
    is(queue.say(request.number, ids(&[STOP], &[])).unwrap_err(), Fault::TeacherRequest, "nobody wants the answer");
    assert_eq!(generation.collect().unwrap().1, Finish::Cancelled);
    // Cancelled is not failed: the turn is the teacher's still. Dropped is cancelled.
    drop(episode.act(&options()).unwrap());
    assert_eq!((queue.n_waiting(), episode.decide().unwrap().actor), (0, Some(Actor::Teacher)));
    // An episode that goes while its generation is held: that one ends by its deadline or its drop.
    let generation = episode.act(&options()).unwrap();
    drop(episode);
    let request = queue.next(1, SHORT).pop().unwrap();
    queue.say(request.number, ids(&[9, STOP], &[])).unwrap();
    assert_eq!(generation.collect().unwrap().0.ids, [9, STOP]);
}

#[test]
fn who_polls_hears_of_a_deadline_and_of_a_cancel() {
    let (d, queue, _) = taught(json!({"top_k": 2, "acts": true, "deadline_ms": 60}), guided(json!({})));
    let poll = |generation: &squire::serve::Generation| {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            match generation.next(Some(Duration::ZERO)) {
                Ok(Next::Timeout) if Instant::now() < until => thread::yield_now(),
                other => return other,
            }
        }
    };
    for taken in [false, true] {
        let episode = teachers(&d);
        let generation = episode.act(&options()).unwrap();
        // Nobody waits yet, so that nothing runs out; looking is not waiting.
        thread::sleep(Duration::from_millis(80));
        assert_eq!(episode.trace().err().unwrap().fault(), Fault::SessionBusy);
        if taken {
            assert_eq!(queue.next(1, SHORT).len(), 1);
        }
        let since = Instant::now();
        assert!(matches!(generation.next(Some(Duration::ZERO)).unwrap(), Next::Timeout));
        is(poll(&generation).err().unwrap(), Fault::TeacherSilent, "within 60 ms");
        assert!(since.elapsed() > Duration::from_millis(40));
        let generation = episode.act(&options()).unwrap();
        generation.cancel();
        assert!(matches!(poll(&generation).unwrap(), Next::End(Finish::Cancelled)));
    }
}

#[test]
fn what_was_said_and_not_heard_is_taken_back_when_its_generation_is_let_go_of() {
    let (d, queue, _) = taught(json!({"top_k": 2, "acts": true}), guided(json!({"teacher_fails": "student"})));
    let episode = decided_by_chance(&d);
    let say = |said: &[i32]| queue.say(queue.next(1, SHORT)[0].number, ids(said, &[])).unwrap();
    let generation = episode.act(&options()).unwrap();
    say(&[5, STOP]);
    drop(generation);
    // The turn is the teacher's still.
    assert_eq!(episode.decide().unwrap().actor, Some(Actor::Teacher));
    let generation = episode.act(&options()).unwrap();
    say(&[6, STOP]);
    assert!(matches!(generation.next(None).unwrap(), Next::Chunk(_)));
    drop(generation);
    // Heard, it is the turn.
    is(episode.decide().unwrap_err(), Fault::OutOfOrder, "outcome");
    episode.outcome(None, true).unwrap();
    assert_eq!(&episode.trajectory().unwrap().ids()[3..], [6, STOP]);
    // An answer that races with a release leaves the episode free either way.
    for _ in 0..200 {
        let episode = teachers(&d);
        let generation = episode.act(&options()).unwrap();
        let request = queue.next(1, SHORT).pop().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| drop(queue.say(request.number, ids(&[5, STOP], &[]))));
            drop(generation);
            episode.decide().unwrap();
            episode.end(0.0, None).unwrap();
        });
    }
}

#[test]
fn a_replaced_proposal_whose_teacher_fails_is_the_students_again() {
    let actor = json!({"kind": "proposal", "by": "student", "rate": 1.0, "window": 8, "minimum": 1});
    let document = json!({"preset": "uopd", "seed": 5, "actor": actor, "teacher_fails": "student"});
    let (d, queue, _) = taught(json!({"top_k": 4, "acts": true}), document);
    let mut stepped_in = 0;
    for number in 0..4 {
        let episode = d.begin(numbered(number)).unwrap();
        episode.observe_ids(&observation(number, 0, &[])).unwrap();
        episode.decide().unwrap();
        let proposed = episode.act(&options()).unwrap().collect().unwrap().0.ids;
        if episode.judge(&Cancel::default()).unwrap().reason == Reason::ProposalReplaced {
            let generation = episode.act(&options()).unwrap();
            queue.fail(queue.next(1, SHORT)[0].number, "no").unwrap();
            assert!(generation.collect().is_err());
            let decision = episode.decide().unwrap();
            assert_eq!((decision.actor, decision.reason), (Some(Actor::Student), Reason::TeacherFailed));
            // The same draw, so what it proposed; it is not judged a second time.
            assert_eq!(episode.act(&options()).unwrap().collect().unwrap().0.ids, proposed);
            assert_eq!(episode.judge(&Cancel::default()).unwrap(), decision);
            stepped_in += 1;
        }
        episode.outcome(None, true).unwrap();
    }
    assert_eq!(stepped_in, 3);
}

/// Imitation goes on with the teacher where a demonstration ends, and with the student where that fails.
#[test]
fn the_turns_behind_a_demonstration_are_the_teachers_or_the_students() {
    let (d, queue, _) = taught(json!({"acts": true}), json!({"preset": "sft", "teacher_fails": "student"}));
    let episode = d.begin(EpisodeSpec { demonstration: Some(Vec::new()), ..Default::default() }).unwrap();
    episode.observe_ids(&[1, 2, 3]).unwrap();
    let decision = episode.decide().unwrap();
    assert_eq!((decision.actor, decision.reason), (Some(Actor::Teacher), Reason::ReplayEnded));
    let generation = episode.act(&options()).unwrap();
    queue.fail(queue.next(1, SHORT)[0].number, "no").unwrap();
    assert!(generation.collect().is_err());
    assert_eq!(episode.decide().unwrap().reason, Reason::TeacherFailed);
}

#[test]
fn a_turn_whose_time_is_up_is_the_teachers_still_and_what_is_said_later_is_refused() {
    for looked_at in [true, false] {
        let (d, queue, _) = taught(json!({"top_k": VOCABULARY, "acts": true}), guided(json!({})));
        let episode = teachers(&d);
        let limit = Duration::from_millis(60);
        let generation = episode.act(&GenerationOptions { time_limit: Some(limit), ..options() }).unwrap();
        let request = queue.next(1, SHORT).pop().unwrap();
        assert!(request.turn.as_ref().unwrap().time_left().is_some_and(|left| left <= limit));
        thread::sleep(limit);
        assert!(request.turn.as_ref().unwrap().time_left().is_some_and(|left| left.is_zero()));
        if looked_at {
            assert_eq!(generation.collect().unwrap(), (Chunk::default(), Finish::Time));
        }
        let e = queue.say(request.number, ids(&[5, STOP], &[])).unwrap_err();
        is(e, Fault::TeacherRequest, "the time limit of its turn is over");
        assert_eq!(generation.collect().unwrap(), (Chunk::default(), Finish::Time));
        assert!(episode.trajectory().unwrap().turns().is_empty());
        let again = episode.act(&options()).unwrap();
        queue.say(queue.next(1, SHORT)[0].number, ids(&[5, STOP], &[])).unwrap();
        assert_eq!(again.collect().unwrap().1, Finish::Stop);
        episode.outcome(None, true).unwrap();
        assert_eq!(episode.trajectory().unwrap().turns()[0].ended_by, Some(TurnEnd::StopId));
    }
}

#[test]
fn a_flag_of_the_options_withdraws_a_turn() {
    let (d, queue, _) = taught(json!({"top_k": VOCABULARY, "acts": true}), guided(json!({})));
    let flag = Cancel::default();
    let (first, second) = (teachers(&d), teachers(&d));
    let under = GenerationOptions { cancel: Some(flag.clone()), ..options() };
    let all = [first.act(&under).unwrap(), second.act(&under).unwrap()];
    let number = queue.next(2, SHORT)[0].number;
    flag.set();
    for generation in &all {
        assert_eq!(generation.collect().unwrap(), (Chunk::default(), Finish::Cancelled));
    }
    is(queue.say(number, ids(&[5, STOP], &[])).unwrap_err(), Fault::TeacherRequest, "nobody wants the answer any more");
}
