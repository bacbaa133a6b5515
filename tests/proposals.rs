//! Guidance on demand: what the student proposes is judged by its uncertainty, and the teacher takes the turn where that is high.

#[path = "support/by_hand.rs"]
mod by_hand;
#[path = "support/scripted.rs"]
mod scripted;

use by_hand::{logits, softmax};
use scripted::*;
use serde_json::{Value, json};
use squire::backend::Compute;
use squire::distill::{Actor, Distiller, Episode, EpisodeSpec, Reason};
use squire::error::Fault;
use squire::serve::{Cancel, Engine, EngineOptions, Finish, ServedModel};

fn gated(by: &str, rate: f64, minimum: u32) -> Value {
    let actor = json!({"kind": "proposal", "by": by, "rate": rate, "window": 8, "minimum": minimum});
    json!({"preset": "uopd", "seed": 5, "actor": actor})
}

/// An episode in which something was observed.
fn begun(d: &Distiller, number: u64) -> Episode {
    let episode = d.begin(numbered(number)).unwrap();
    episode.observe_ids(&observation(number, 0, &[])).unwrap();
    episode
}

fn speak(episode: &Episode) -> Vec<i32> {
    episode.act(&options()).unwrap().collect().unwrap().0.ids
}

/// The mean -ln of what a model makes of the last tokens of a sequence.
fn uncertainty(model: &ServedModel, context: &[i32], said: &[i32]) -> f64 {
    let ids = [context, said].concat();
    let rows = logits(model, &ids).0;
    let of = |i: usize| {
        let at = context.len() + i;
        -softmax(&rows[(at - 1) * VOCABULARY..at * VOCABULARY])[said[i] as usize].ln()
    };
    (0..said.len()).map(of).sum::<f64>() / said.len() as f64
}

#[test]
fn proposals_above_the_quantile_of_those_before_go_to_the_teacher() {
    for by in ["teacher", "student"] {
        let d = plain(gated(by, 0.25, 4));
        let model = if by == "teacher" { d.teacher().unwrap() } else { d.student() };
        let (mut window, mut replaced): (Vec<f64>, usize) = (Vec::new(), 0);
        for number in 0..24 {
            let episode = begun(&d, number);
            let first = episode.decide().unwrap();
            assert_eq!((first.actor, first.reason), (Some(Actor::Student), Reason::Proposal));
            let said = speak(&episode);
            let own = uncertainty(model, &observation(number, 0, &[]), &said);
            let wanted = window.len() >= 4 && {
                let mut sorted = window.clone();
                sorted.sort_by(f64::total_cmp);
                own > sorted[(0.75 * window.len() as f64).ceil() as usize - 1]
            };
            let judged = episode.judge(&Cancel::default()).unwrap();
            let reason = if wanted { Reason::ProposalReplaced } else { Reason::ProposalStands };
            let actor = if wanted { Actor::Teacher } else { Actor::Student };
            assert_eq!((judged.actor, judged.reason), (Some(actor), reason), "{by} {number}: {own} of {window:?}");
            assert_eq!(episode.judge(&Cancel::default()).unwrap(), judged, "asked again it answers the same");
            window.push(own);
            window = window.split_off(window.len().saturating_sub(8));
            replaced += usize::from(wanted);
            if wanted {
                speak(&episode);
            }
            episode.outcome(None, true).unwrap();
            assert_eq!(episode.trajectory().unwrap().turns()[0].actor, actor);
            episode.end(0.0, None).unwrap();
        }
        assert!((2..16).contains(&replaced), "{by}: {replaced}");
    }
}

#[test]
fn a_turn_that_was_replaced_is_what_the_teacher_would_have_said_from_the_first() {
    for (kind, compute) in ALL {
        let d = distiller(kind, compute, gated("teacher", 1.0, 1));
        let asked = |number: u64, overridden: bool| {
            let episode = begun(&d, number);
            match overridden {
                true => _ = episode.override_actor(Actor::Teacher).unwrap(),
                false => {
                    episode.decide().unwrap();
                    speak(&episode);
                    let judged = episode.judge(&Cancel::default()).unwrap();
                    // The first of all is judged by none.
                    assert_eq!(judged.actor == Some(Actor::Teacher), number > 0);
                    if number == 0 {
                        episode.outcome(None, true).unwrap();
                        return None;
                    }
                }
            }
            speak(&episode);
            episode.outcome(None, true).unwrap();
            episode.end(1.0, None).unwrap();
            Some(record(&episode.trajectory().unwrap()))
        };
        assert!(asked(0, false).is_none());
        let (replaced, from_the_first) = (asked(1, false).unwrap(), asked(1, true).unwrap());
        assert_eq!(replaced, from_the_first, "{kind:?} {compute:?}");
        // Both are learnt alike.
        let update = build(&d);
        assert!(update.report().differing == 0 && update.report().teacher_turns == 2);
    }
}

#[test]
fn a_proposal_is_judged_before_its_outcome_and_nothing_else_is() {
    let d = plain(gated("teacher", 0.5, 1));
    let episode = begun(&d, 0);
    let refused = |e: squire::error::Error, expected: &str| {
        assert!(e.fault() == Fault::OutOfOrder && e.message().contains(expected), "{e}");
    };
    refused(
        episode.judge(&Cancel::default()).unwrap_err(),
        "judge is out of order; expected now: observe, decide, or end",
    );
    episode.decide().unwrap();
    refused(episode.judge(&Cancel::default()).unwrap_err(), "act, override, or end");
    speak(&episode);
    refused(episode.outcome(None, true).unwrap_err(), "expected now: judge or override, once the generation has ended");
    assert!(episode.trace().unwrap()["phase"].as_str().unwrap().starts_with("judge"));
    episode.judge(&Cancel::default()).unwrap();
    episode.outcome(None, true).unwrap();
    refused(episode.judge(&Cancel::default()).unwrap_err(), "observe, or end");

    // Cancelled, it is judged later.
    let episode = begun(&d, 1);
    episode.decide().unwrap();
    speak(&episode);
    let cancel = Cancel::default();
    cancel.set();
    assert_eq!(fault(episode.judge(&cancel)), Fault::Cancelled);
    episode.judge(&Cancel::default()).unwrap();

    // Evaluations and what the host overrides are nobody's proposals.
    let evaluation = d.begin(EpisodeSpec { evaluation: true, ..Default::default() }).unwrap();
    evaluation.observe_ids(&[1, 2, 3]).unwrap();
    assert_eq!(evaluation.decide().unwrap().reason, Reason::Evaluation);
    speak(&evaluation);
    refused(evaluation.judge(&Cancel::default()).unwrap_err(), "outcome");
    evaluation.outcome(None, true).unwrap();
    let overridden = begun(&d, 2);
    assert_eq!(overridden.override_actor(Actor::Student).unwrap().reason, Reason::HostOverride);
    speak(&overridden);
    overridden.outcome(None, true).unwrap();
}

#[test]
fn a_proposal_that_was_cut_short_is_finished_or_overridden_before_it_counts() {
    let (engine, d) = stepped(gated("teacher", 0.5, 1));
    let cut = |number: u64| {
        let episode = begun(&d, number);
        episode.decide().unwrap();
        let generation = episode.act(&options()).unwrap();
        while episode.trajectory().map_or(0, |t| t.turns().len()) == 0 {
            // The timeline is the engine's while it speaks: cancelled after its first tokens, it stands.
            engine.step().unwrap();
            engine.step().unwrap();
            generation.cancel();
            engine.step().unwrap();
        }
        assert_eq!(generation.collect().unwrap().1, Finish::Cancelled);
        let e = episode.judge(&Cancel::default()).unwrap_err();
        assert!(e.fault() == Fault::OutOfOrder && e.message().contains("or act again where it was cancelled"), "{e}");
        assert_eq!(fault(episode.outcome(None, true)), Fault::OutOfOrder);
        let said = episode.trajectory().unwrap().turns()[0].range.len();
        assert!(said > 0 && said < LONGEST, "{said} tokens");
        (episode, said)
    };
    let (gone_on, said) = cut(0);
    speak(&gone_on);
    gone_on.judge(&Cancel::default()).unwrap();
    gone_on.outcome(None, true).unwrap();
    assert!(gone_on.trajectory().unwrap().turns()[0].range.len() > said);
    // Taken as it stands, and dropped for the teacher.
    let (taken, said) = cut(1);
    assert_eq!(taken.override_actor(Actor::Student).unwrap().reason, Reason::HostOverride);
    taken.outcome(None, true).unwrap();
    let record = taken.trajectory().unwrap();
    assert_eq!((record.turns()[0].actor, record.turns()[0].range.len()), (Actor::Student, said));
    let (dropped, _) = cut(2);
    dropped.override_actor(Actor::Teacher).unwrap();
    speak(&dropped);
    dropped.outcome(None, true).unwrap();
    let record = dropped.trajectory().unwrap();
    assert_eq!((record.turns().len(), record.turns()[0].actor), (1, Actor::Teacher));
    for episode in [gone_on, taken, dropped] {
        episode.end(0.0, None).unwrap();
    }
    let update = build(&d);
    assert!(update.report().differing == 0 && update.report().trained_turns == 3);
}

#[test]
fn while_a_proposal_is_judged_nobody_else_goes_on_with_it() {
    let own = engine(Compute::F32);
    let options = EngineOptions { n_threads: 1, compute: Compute::F32, caller_driven: false, ..Default::default() };
    let other = Engine::new(options).unwrap();
    let (student, teacher) =
        (model(&own, &config(Kind::Dense, 32, 2), 1), model(&other, &config(Kind::Dense, 48, 3), 2));
    let d = Distiller::new(&student, Some(&teacher), settings(gated("teacher", 0.5, 1))).unwrap();
    for number in 0..20 {
        let episode = begun(&d, number);
        episode.decide().unwrap();
        speak(&episode);
        // Two judge at once: one of them is told to wait, or both are told the same.
        let judge = || episode.judge(&Cancel::default());
        let (one, two) = std::thread::scope(|s| {
            let other = s.spawn(judge);
            (judge(), other.join().unwrap())
        });
        let told: Vec<_> = [&one, &two].into_iter().flatten().collect();
        assert!(!told.is_empty() && told.iter().all(|d| *d == told[0]), "{one:?} {two:?}");
        for e in [&one, &two].into_iter().filter_map(|r| r.as_ref().err()) {
            assert!(e.fault() == Fault::OutOfOrder && e.message().contains("until the proposal is judged"), "{e}");
        }
        if told[0].actor == Some(Actor::Teacher) {
            speak(&episode);
        }
        assert_eq!(fault(episode.outcome(Some(2e9), true)), Fault::BadValue);
        episode.outcome(Some(1.0), true).unwrap();
        episode.end(0.0, None).unwrap();
    }
    let update = build(&d);
    assert!(update.report().differing == 0 && update.report().trained_turns == 16);
}

#[test]
fn a_proposal_stands_where_the_teachers_tokens_are_spent() {
    let mut document = gated("teacher", 1.0, 1);
    document["teacher_tokens"] = 1.into();
    let d = plain(document);
    let judged = |number: u64| {
        let episode = begun(&d, number);
        let first = episode.decide().unwrap();
        speak(&episode);
        (first.reason, episode, number)
    };
    // Two are decided before the first of them has the teacher speak.
    let (_, stands, _) = judged(0);
    assert_eq!(stands.judge(&Cancel::default()).unwrap().reason, Reason::ProposalStands);
    let ((reason, one, _), (_, other, _)) = (judged(1), judged(2));
    assert_eq!(reason, Reason::Proposal);
    assert_eq!(one.judge(&Cancel::default()).unwrap().reason, Reason::ProposalReplaced);
    speak(&one);
    one.outcome(None, true).unwrap();
    for _ in 0..2 {
        let stood = other.judge(&Cancel::default()).unwrap();
        assert_eq!((stood.actor, stood.reason), (Some(Actor::Student), Reason::TeacherSpent));
    }
    other.outcome(None, true).unwrap();
    // From then on nothing is proposed.
    assert_eq!(judged(3).0, Reason::TeacherSpent);
}

#[test]
fn a_checkpoint_keeps_by_what_proposals_are_judged() {
    let folder = tempfile::tempdir().unwrap();
    let play = |d: &Distiller, numbers: std::ops::Range<u64>| -> Vec<Option<Actor>> {
        let one = |number| {
            let episode = begun(d, number);
            episode.decide().unwrap();
            speak(&episode);
            let judged = episode.judge(&Cancel::default()).unwrap();
            if judged.actor == Some(Actor::Teacher) {
                speak(&episode);
            }
            episode.outcome(None, true).unwrap();
            episode.end(0.0, None).unwrap();
            judged.actor
        };
        numbers.map(one).collect()
    };
    let document = || gated("teacher", 0.5, 4);
    let whole = plain(document());
    play(&whole, 0..8);
    update(&whole);
    whole.save(folder.path()).unwrap();
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    let resumed = Distiller::resume(&student, Some(&teacher), settings(document()), folder.path()).unwrap();
    let (a, b) = (play(&whole, 8..20), play(&resumed, 8..20));
    assert_eq!(a, b);
    let without = plain(document());
    assert_ne!(play(&without, 8..12), a[..4], "the first of a new run are judged by nobody");
    assert!(a.contains(&Some(Actor::Teacher)) && a.contains(&Some(Actor::Student)));

    let state = folder.path().join("step-00000001/state.json");
    let text = std::fs::read_to_string(&state).unwrap();
    let mut broken: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(broken["uncertainties"].as_array().unwrap().len(), 8);
    broken["uncertainties"][0] = json!(f64::NAN.to_bits());
    std::fs::write(&state, broken.to_string()).unwrap();
    let e = Distiller::resume(&student, Some(&teacher), settings(document()), folder.path()).err().unwrap();
    assert!(e.fault() == Fault::CheckpointForm && e.message().contains("uncertainties"), "{e}");
}
