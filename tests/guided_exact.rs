//! The guided loop's numbers: methods reduce to each other bit for bit, and every preset's loss, weights
//! and gradients equal what is computed here by hand, in f64, from whole sequences.

#[path = "support/by_hand.rs"]
mod by_hand;
#[path = "support/scripted.rs"]
mod scripted;

use by_hand::{assert_near, logits, softmax};
use scripted::*;
use serde_json::{Value, json};
use squire::backend::Compute;
use squire::backend::ops::Loss;
use squire::backend::page::PAGE;
use squire::distill::batch::{TokenLoss, plan};
use squire::distill::trajectory::Trajectory;
use squire::distill::{Actor, Distiller, EpisodeSpec, Update};
use squire::model::Weights;
use squire::serve::{Cancel, ServedModel, Session};

/// Plays a batch and builds its update.
fn batch(d: &Distiller, n: usize) -> (Vec<Trajectory>, Update) {
    let records = play_together(d, n, 4);
    let update = build(d);
    (records, update)
}

/// Asserts that two settings roll out, lose and differentiate alike, to the bit.
fn assert_same_update(a: Value, b: Value) {
    for (kind, compute) in ALL {
        let (records_a, update_a) = batch(&distiller(kind, compute, a.clone()), 4);
        let (records_b, update_b) = batch(&distiller(kind, compute, b.clone()), 4);
        assert_eq!(records(&records_a), records(&records_b), "{kind:?} {compute:?}");
        assert_eq!(update_a.report().loss.to_bits(), update_b.report().loss.to_bits(), "{kind:?} {compute:?}");
        assert!(update_a.report().loss > 0.01 && update_a.report().gradient_norm > 0.0, "{kind:?} {compute:?}");
        assert!(bytes(update_a.gradients()) == bytes(update_b.gradients()), "{kind:?} {compute:?}");
    }
}

#[test]
fn guided_distillation_without_a_teachers_share_is_plain_on_policy_distillation() {
    let guided = json!({"preset": "guided-opd", "actor": {"kind": "bernoulli", "beta": 0}});
    assert_same_update(guided, json!({"preset": "opd"}));
}

#[test]
fn a_depth_curriculum_beyond_the_turn_cap_is_plain_on_policy_distillation() {
    assert_same_update(json!({"preset": "tcod-f2b", "depth": 30}), json!({"preset": "opd"}));
}

#[test]
fn settings_that_differ_in_the_actor_differ_in_the_update() {
    // The comparison above can fail.
    let opd = json!({"preset": "opd"});
    let guided = json!({"preset": "guided-opd", "actor": {"kind": "bernoulli", "beta": 0.5}});
    let [(records_a, a), (records_b, b)] = [opd, guided].map(|s| batch(&distiller(Kind::Dense, Compute::F32, s), 4));
    assert_ne!(records(&records_a), records(&records_b));
    assert!(bytes(a.gradients()) != bytes(b.gradients()));
}

/// Log-probs of the whole vocabulary before each token but the first, by a session of its own: row i
/// predicts token i + 1.
fn distributions(model: &ServedModel, ids: &[i32]) -> Vec<Vec<f64>> {
    let session = Session::new(model).unwrap();
    session.append(&ids[..1], squire::text::source::Source::Host).unwrap();
    let rows = session.score(&ids[1..], VOCABULARY, &Cancel::default()).unwrap();
    rows.into_iter()
        .map(|row| {
            let mut all = vec![f64::NAN; VOCABULARY];
            row.top.into_iter().for_each(|(id, logprob)| all[id as usize] = logprob as f64);
            all
        })
        .collect()
}

/// What a token's loss is: (trajectory, position, kernel, weight).
type Weighted = (usize, usize, Loss, f64);

/// The loss by hand, from what student and teacher say of the sequences in sessions of their own.
fn loss_by_hand(student: &ServedModel, teacher: &ServedModel, batch: &[Trajectory], losses: &[Weighted]) -> f64 {
    let both: Vec<_> =
        batch.iter().map(|t| (distributions(student, t.ids()), distributions(teacher, t.ids()))).collect();
    let of = |&(i, position, loss, weight): &Weighted| {
        let (p, q) = (&both[i].0[position - 1], &both[i].1[position - 1]);
        let kl = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(x, y)| x.exp() * (x - y)).sum() };
        weight
            * match loss {
                Loss::ReverseKl => kl(p, q),
                Loss::ForwardKl => kl(q, p),
                Loss::JensenShannon(share) => {
                    let share = f64::from(share);
                    let mixed: Vec<f64> =
                        p.iter().zip(q).map(|(p, q)| (share * q.exp() + (1.0 - share) * p.exp()).ln()).collect();
                    share * kl(q, &mixed) + (1.0 - share) * kl(p, &mixed)
                }
                Loss::CrossEntropy => -p[batch[i].ids()[position] as usize],
                Loss::SampledReverseKl => {
                    let said = batch[i].ids()[position] as usize;
                    p[said] - q[said]
                }
                other => panic!("{other:?} is methods_exact's"),
            }
    };
    losses.iter().map(of).sum()
}

/// The gradients by hand: one sequence at a time, the loss's gradient by the logits in f64.
fn gradients_by_hand(
    student: &ServedModel,
    teacher: &ServedModel,
    batch: &[Trajectory],
    losses: &[Weighted],
) -> Weights {
    let mut theirs = Vec::new();
    let of = |&(i, position, loss, weight): &Weighted| (i, position, (loss, weight));
    let losses: Vec<_> = losses.iter().map(of).collect();
    by_hand::gradients(student, batch, &losses, |i, position, p, &(loss, weight)| {
        if theirs.len() <= i {
            theirs.resize_with(i + 1, Vec::new);
        }
        if theirs[i].is_empty() {
            theirs[i] = logits(teacher, batch[i].ids()).0;
        }
        let q = softmax(&theirs[i][(position - 1) * VOCABULARY..position * VOCABULARY]);
        let said = batch[i].ids()[position] as usize;
        by_hand::by_logits(loss, p, &q, said).into_iter().map(|g| weight * g).collect()
    })
}

/// Every token of the turns for which `loss_of` gives a loss, with its share of the token mean.
fn token_mean(batch: &[Trajectory], loss_of: impl Fn(Actor) -> Option<Loss>) -> Vec<Weighted> {
    let tokens: Vec<(usize, usize, Loss)> = batch
        .iter()
        .enumerate()
        .flat_map(|(i, t)| t.turns().iter().map(move |turn| (i, turn)))
        .filter_map(|(i, turn)| Some((i, turn, loss_of(turn.actor)?)))
        .flat_map(|(i, turn, loss)| turn.range.clone().map(move |position| (i, position, loss)))
        .collect();
    let share = 1.0 / tokens.len() as f64;
    tokens.into_iter().map(|(i, position, loss)| (i, position, loss, share)).collect()
}

/// Plays a batch and holds its plan, loss and gradients against the numbers by hand.
fn assert_by_hand(document: Value, loss_of: fn(Actor) -> Option<Loss>, n_turns: std::ops::RangeInclusive<usize>) {
    for (kind, compute) in ALL {
        let what = format!("{document} {kind:?} {compute:?}");
        let d = distiller(kind, compute, document.clone());
        let (records, update) = batch(&d, 4);
        let report = update.report();
        assert!(n_turns.contains(&report.trained_turns), "{what}: {} turns", report.trained_turns);
        let losses = token_mean(&records, loss_of);
        let planned: Vec<Weighted> = plan(&records, d.config(), 1)
            .unwrap()
            .tokens
            .iter()
            .map(|t| (t.trajectory, t.position, t.kind, t.weight))
            .collect();
        assert_eq!(planned, losses, "{what}");
        assert_eq!(report.trained_tokens, losses.len(), "{what}");
        let (student, teacher) = (d.student(), d.teacher().unwrap());
        let loss = loss_by_hand(student, teacher, &records, &losses);
        assert!((report.loss - loss).abs() < 3e-6 * loss.abs(), "{what}: {} and {loss} by hand", report.loss);
        assert!(loss > 0.01, "{what}: {loss}");
        assert_near(update.gradients(), &gradients_by_hand(student, teacher, &records, &losses), 3e-5, &what);
    }
}

#[test]
fn how_far_an_update_moves_the_student_is_what_is_computed_by_hand() {
    // Of what one build computes at once, and of a trajectory at a time.
    for ((kind, compute), micro_tokens) in ALL.into_iter().flat_map(|of| [(of, 8192), (of, 1)]) {
        let rate = json!({"learning_rate": 1e-2});
        let settings = json!({"preset": "guided-opd", "optimizer": rate, "micro_tokens": micro_tokens});
        let d = distiller(kind, compute, settings);
        let (records, mut update) = batch(&d, 2);
        let said = |d: &Distiller| -> Vec<Vec<Vec<f64>>> {
            records
                .iter()
                .map(|t| logits(d.student(), t.ids()).0.chunks_exact(VOCABULARY).map(softmax).collect())
                .collect()
        };
        let before = said(&d);
        assert_eq!(update.report().update_kl, None, "before it is applied");
        d.apply(&mut update).unwrap();
        d.publish().unwrap();
        let after = said(&d);
        let tokens = plan(&records, d.config(), 1).unwrap().tokens;
        let of_each: Vec<&[TokenLoss]> = tokens.chunk_by(|a, b| a.trajectory == b.trajectory).collect();
        // No more is fed than the build took at once.
        let longest = of_each.iter().filter_map(|of| of.last()).map(|t| t.position).max().unwrap();
        let (at_once, mut fed, mut counted) = (if micro_tokens == 1 { longest } else { 128 }, 0, Vec::new());
        // Nor more pages, of which each timeline takes whole ones.
        let of_pages = |n: usize| n.div_ceil(PAGE);
        let (most_pages, mut pages) = (if micro_tokens == 1 { of_pages(longest) } else { usize::MAX }, 0);
        for of_one in of_each {
            let fits = |t: &&TokenLoss| fed + t.position <= at_once && pages + of_pages(t.position) <= most_pages;
            let n = of_one.iter().take_while(fits).count();
            let last = of_one[..n].last().map_or(0, |t| t.position);
            (fed, pages) = (fed + last, pages + of_pages(last));
            counted.extend(&of_one[..n]);
        }
        assert!(counted.len() <= 64 && (micro_tokens == 1 || counted.len() == tokens.len()), "{}", counted.len());
        let kl = |t: &TokenLoss| -> f64 {
            let (p, q) = (&before[t.trajectory][t.position - 1], &after[t.trajectory][t.position - 1]);
            p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum()
        };
        let wanted = counted.iter().copied().map(kl).sum::<f64>() / counted.len() as f64;
        let found = update.report().update_kl.unwrap();
        assert!(wanted > 1e-3 && (found - wanted).abs() < 1e-4 * wanted, "{kind:?} {compute:?}: {found}, {wanted}");
    }
}

#[test]
fn supervised_fine_tuning_is_cross_entropy_on_what_was_replayed() {
    let loss_of = |actor| if actor == Actor::Replay { Some(Loss::CrossEntropy) } else { None };
    assert_by_hand(json!({"preset": "sft"}), loss_of, 16..=16);
}

#[test]
fn on_policy_distillation_is_reverse_kl_on_what_the_student_said() {
    let loss_of = |actor| if actor == Actor::Student { Some(Loss::ReverseKl) } else { None };
    assert_by_hand(json!({"preset": "opd"}), loss_of, 16..=16);
}

#[test]
fn generalised_distillation_is_the_jensen_shannon_divergence_of_its_share() {
    let half = |actor| if actor == Actor::Student { Some(Loss::JensenShannon(0.5)) } else { None };
    assert_by_hand(json!({"preset": "opd", "student_turns": {"kernel": "jsd"}}), half, 16..=16);
    let most = |actor| if actor == Actor::Student { Some(Loss::JensenShannon(0.9)) } else { None };
    assert_by_hand(json!({"preset": "opd", "student_turns": {"kernel": {"jsd": 0.9}}}), most, 16..=16);
}

#[test]
fn the_sampled_reverse_kl_is_of_what_the_student_said() {
    let loss_of = |actor| if actor == Actor::Student { Some(Loss::SampledReverseKl) } else { None };
    assert_by_hand(json!({"preset": "opd", "student_turns": {"kernel": "sampled-reverse-kl"}}), loss_of, 16..=16);
}

#[test]
fn guided_distillation_is_reverse_kl_on_student_turns_and_forward_kl_on_teacher_turns() {
    let loss_of = |actor| if actor == Actor::Student { Some(Loss::ReverseKl) } else { Some(Loss::ForwardKl) };
    let document = json!({"preset": "guided-opd", "seed": 5, "actor": {"kind": "bernoulli", "beta": 0.5}});
    assert_by_hand(document.clone(), loss_of, 16..=16);
    let records = play(&distiller(Kind::Dense, Compute::F32, document), 4, 4);
    let turns_of = |actor| records.iter().flat_map(|t| t.turns()).filter(|turn| turn.actor == actor).count();
    assert!(turns_of(Actor::Student) >= 4 && turns_of(Actor::Teacher) >= 4, "the draws give both");
}

#[test]
fn the_presets_first_step_is_forward_kl_on_teacher_turns_alone() {
    // Beta is 1 at step 0: every turn is the teacher's.
    let loss_of = |actor| if actor == Actor::Teacher { Some(Loss::ForwardKl) } else { None };
    assert_by_hand(json!({"preset": "guided-opd"}), loss_of, 16..=16);
}

#[test]
fn the_depth_curriculums_first_step_is_reverse_kl_on_the_first_turn() {
    let loss_of = |actor| if actor == Actor::Student { Some(Loss::ReverseKl) } else { None };
    assert_by_hand(json!({"preset": "tcod-f2b"}), loss_of, 4..=4);
}

#[test]
fn small_micro_batches_change_the_gradients_by_rounding_alone() {
    let build = |micro: u32| {
        let document =
            json!({"preset": "guided-opd", "micro_tokens": micro, "actor": {"kind": "bernoulli", "beta": 0.5}});
        batch(&distiller(Kind::Moe, Compute::F32, document), 5).1
    };
    let (one, many) = (build(4096), build(1));
    assert!((one.report().loss - many.report().loss).abs() < 1e-9);
    assert_near(one.gradients(), many.gradients(), 1e-5, "micro-batches");
}

#[test]
fn the_kernels_weight_scales_loss_and_gradients() {
    let build = |weight: f64| {
        batch(&distiller(Kind::Dense, Compute::F32, json!({"preset": "opd", "student_turns": {"weight": weight}})), 3).1
    };
    let (whole, half) = (build(1.0), build(0.5));
    assert_eq!(whole.report().loss, 2.0 * half.report().loss);
    for ((name, w), (_, h)) in whole.gradients().tensors().into_iter().zip(half.gradients().tensors()) {
        assert!(w.f32().iter().zip(h.f32()).all(|(w, h)| *w == 2.0 * h), "{name}: a half is exact");
    }
}

#[test]
fn a_teacher_that_is_the_student_gives_no_loss_and_no_gradient() {
    for (kind, compute) in ALL {
        for preset in ["opd", "guided-opd"] {
            let engine = engine(compute);
            let (student, same, other) = (
                model(&engine, &config(kind, 32, 2), 1),
                model(&engine, &config(kind, 32, 2), 1),
                model(&engine, &config(kind, 32, 2), 3),
            );
            let document = json!({"preset": preset, "steps": 10, "actor": {"kind": if preset == "opd" { "student" } else { "teacher" }}});
            for (teacher, zero) in [(&same, true), (&student, true), (&other, false)] {
                let d = Distiller::new(&student, Some(teacher), settings(document.clone())).unwrap();
                let (_, update) = batch(&d, 3);
                let nothing = update.gradients().tensors().iter().all(|(_, g)| g.f32().iter().all(|&x| x == 0.0));
                let seen = (update.report().loss == 0.0, update.report().gradient_norm == 0.0, nothing);
                assert_eq!(seen, (zero, zero, zero), "{preset} {kind:?} {compute:?}");
            }
        }
    }
}

#[test]
fn an_episode_without_a_trained_turn_changes_no_bit() {
    for (kind, compute) in ALL {
        let d = distiller(kind, compute, json!({"preset": "opd"}));
        // Episode 1 says what the host did not do; it is in one batch, and not in the other.
        let play = |also: bool| {
            for id in [0, 1, 2] {
                let mut seat = Seat::new(&d, EpisodeSpec { episode: Some(id), ..Default::default() });
                if id != 1 {
                    seat.play(3);
                } else if also {
                    let begun = seat.start().unwrap().unwrap();
                    begun.collect().unwrap();
                    seat.episode.outcome(None, false).unwrap();
                    seat.end();
                }
            }
            build(&d)
        };
        let (without, with) = (play(false), play(true));
        assert_eq!((without.report().episodes, with.report().episodes), (2, 3));
        assert_eq!(without.report().trained_episodes, with.report().trained_episodes);
        assert_eq!(without.report().loss.to_bits(), with.report().loss.to_bits());
        assert!(bytes(without.gradients()) == bytes(with.gradients()), "{kind:?} {compute:?}");
    }
}

#[test]
fn what_was_not_executed_carries_nothing_and_is_context_all_the_same() {
    for (kind, compute) in ALL {
        let d = distiller(kind, compute, json!({"preset": "opd"}));
        let mut seat = Seat::new(&d, EpisodeSpec::default());
        for turn in 0..3 {
            let begun = seat.start().unwrap();
            begun.unwrap().collect().unwrap();
            seat.episode.outcome(None, turn != 1).unwrap();
        }
        let records = [seat.end()];
        let update = build(&d);
        let middle = records[0].turns()[1].range.clone();
        let mut losses = token_mean(&records, |_| Some(Loss::ReverseKl));
        losses.retain(|l| !middle.contains(&l.1));
        let share = 1.0 / losses.len() as f64;
        losses.iter_mut().for_each(|l| l.3 = share);
        let by_hand = gradients_by_hand(d.student(), d.teacher().unwrap(), &records, &losses);
        assert_near(update.gradients(), &by_hand, 3e-5, "middle turn masked");
        assert_eq!(update.report().loss_by_turn[1], None);
        assert!(update.report().loss_by_turn[0].is_some() && update.report().loss_by_turn[2].is_some());
    }
}

#[test]
fn what_follows_the_last_trained_token_changes_no_bit() {
    let d = distiller(Kind::Moe, Compute::Bf16, json!({"preset": "opd"}));
    let play = |tail: &[i32], more: bool| {
        let mut seat = Seat::new(&d, EpisodeSpec { episode: Some(0), ..Default::default() });
        assert!(seat.turn() && seat.turn());
        seat.episode.observe_ids(tail).unwrap();
        if more {
            seat.episode.decide().unwrap();
            seat.episode.act(&options()).unwrap().collect().unwrap();
            seat.episode.outcome(None, false).unwrap();
        }
        seat.end();
        build(&d)
    };
    let [a, b, c] = [play(&[1, 2, 3], false), play(&[9; 20], false), play(&[5, 6], true)];
    assert!(bytes(a.gradients()) == bytes(b.gradients()) && bytes(a.gradients()) == bytes(c.gradients()));
    assert!(c.report().student_turns == 3 && c.report().trained_turns == 2);
}

#[test]
fn rollout_log_probs_are_the_training_forwards_to_the_bit() {
    for (kind, compute) in ALL {
        let document = json!({"preset": "guided-opd", "actor": {"kind": "bernoulli", "beta": 0.3}, "micro_tokens": 100,
            "sampling": {"temperature": 0.8, "top_k": 20}, "optimizer": {"learning_rate": 1e-2}});
        let d = distiller(kind, compute, document);
        for step in 0..3 {
            // Episodes of three revisions and two ways of playing in the batches.
            play(&d, 1, 4);
            play_together(&d, 5, 4);
            let report = update(&d).report().clone();
            assert_eq!(report.compared, report.student_tokens, "{kind:?} {compute:?} step {step}");
            assert!(report.compared > 20, "{kind:?} {compute:?} step {step}: {}", report.compared);
            assert_eq!((report.differing, report.largest_difference), (0, 0.0), "{kind:?} {compute:?} step {step}");
        }
        assert_eq!(d.student().current().number, 4);
    }
}

#[test]
fn only_tokens_of_the_weights_at_hand_are_compared() {
    let d = distiller(Kind::Dense, Compute::F32, json!({"preset": "opd", "optimizer": {"learning_rate": 1e-2}}));
    let late = Seat::new(&d, EpisodeSpec::default());
    play(&d, 2, 3);
    update(&d);
    late.play(3);
    let fresh = play(&d, 1, 3);
    let report = build(&d).report().clone();
    let n: usize = fresh[0].turns().iter().map(|turn| turn.range.len()).sum();
    assert_eq!((report.compared, report.differing), (n, 0));
    assert!(report.student_tokens > n);
}

#[test]
fn weights_changed_behind_the_rollouts_back_are_noticed() {
    for (kind, compute) in ALL {
        let d = distiller(kind, compute, json!({"preset": "opd"}));
        play(&d, 2, 3);
        d.student().restore(wide(d.student(), 77), 1);
        let report = build(&d).report().clone();
        assert!(report.compared > 0 && report.differing * 10 > report.compared * 9, "{kind:?} {compute:?}");
        assert!(report.largest_difference > 0.01);
    }
}

#[test]
fn a_teacher_that_moves_on_is_read_with_the_weights_that_scored() {
    let d = distiller(Kind::Dense, Compute::F32, json!({"preset": "opd"}));
    let teacher = d.teacher().unwrap();
    let first = play(&d, 2, 3);
    let unmoved = build(&d);
    // The same episodes again, the first scored by the old teacher, the second by the new one.
    let again = |id| EpisodeSpec { episode: Some(id), ..Default::default() };
    let zero = Seat::new(&d, again(0)).play(3);
    let by_hand = |record: &Trajectory| {
        let batch = std::slice::from_ref(record);
        loss_by_hand(d.student(), teacher, batch, &token_mean(batch, |_| Some(Loss::ReverseKl)))
    };
    let old = by_hand(&zero);
    teacher.restore(wide(teacher, 99), 2);
    let one = Seat::new(&d, again(1)).play(3);
    assert_eq!(records(&first), records(&[zero.clone(), one.clone()]));
    let new = by_hand(&one);
    let n = |t: &Trajectory| t.turns().iter().map(|turn| turn.range.len()).sum::<usize>() as f64;
    let wanted = (old * n(&zero) + new * n(&one)) / (n(&zero) + n(&one));
    let loss = build(&d).report().loss;
    assert!((loss - wanted).abs() < 3e-6 * wanted, "{loss} and {wanted} by hand");
    assert!((loss - unmoved.report().loss).abs() > 1e-3, "the new teacher says something else");
}
