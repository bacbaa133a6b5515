//! Every preset trains one batch to gradients and weights that are derived here by themselves: who is trained, with what
//! advantage, ratio, weight and share is written down a second time, in f64, from the methods' formulas; a surrogate is
//! differentiated by a difference quotient; AdamW is done by hand. The batch lags by one update, so that ratios are not 1, and is
//! of step 1, so that schedules have moved.

#[path = "support/by_hand.rs"]
mod by_hand;
#[path = "support/rewarded.rs"]
mod rewarded;
#[path = "support/scripted.rs"]
mod scripted;

use by_hand::{assert_near, logits, softmax};
use rewarded::{play_one, preset, score};
use scripted::*;
use serde_json::{Value, json};
use squire::backend::Compute;
use squire::backend::ops::Loss;
use squire::distill::preset::PRESETS;
use squire::distill::trajectory::Trajectory;
use squire::distill::{Actor, Distiller, EpisodeSpec, Update};
use squire::serve::Cancel;
use std::collections::HashMap;

const RATE: f64 = 2e-2;
const ADAM_EPS: f64 = 1e-2;

fn reward(episode: usize, turn: usize) -> f64 {
    ((episode * 7 + turn * 3) % 5) as f64 / 2.0
}

/// Plays episodes of at most three turns, four of each task.
fn play(d: &Distiller, n: usize) -> Vec<Trajectory> {
    (0..n).map(|i| play_one(d, i, |turn| (reward(i, turn), true))).collect()
}

/// An action's token, log-probs in nats: the student's now and when it was drawn, the teacher's.
struct Token {
    trajectory: usize,
    turn: usize,
    position: usize,
    actor: Actor,
    now: f64,
    then: f64,
    teacher: f64,
}

fn tokens(d: &Distiller, batch: &[Trajectory]) -> Vec<Token> {
    let mut all = Vec::new();
    for (trajectory, t) in batch.iter().enumerate() {
        let (student, teacher) = (logits(d.student(), t.ids()).0, logits(d.teacher().unwrap(), t.ids()).0);
        for (turn, record) in t.turns().iter().enumerate() {
            for position in record.range.clone() {
                let said = t.ids()[position] as usize;
                let of =
                    |logits: &[f32]| softmax(&logits[(position - 1) * VOCABULARY..position * VOCABULARY])[said].ln();
                let (now, teacher) = (of(&student), of(&teacher));
                let then = f64::from(t.logprobs()[position]);
                all.push(Token { trajectory, turn, position, actor: record.actor, now, then, teacher });
            }
        }
    }
    all
}

/// What a token's loss is differentiated by.
#[derive(Clone, Copy)]
enum Hand {
    /// The gradient of a divergence or of -ln p.
    Of(Loss),
    /// So much of the gradient of -ln p.
    Factor(f64),
}

/// A token's loss: which, and its factor.
type Weighted = (usize, usize, (Hand, f64));

#[derive(Clone, Copy)]
enum Mean {
    Tokens,
    Sequences,
    Turns,
}

/// The share of each trained token, counted by `key` (actors apart, or all as one).
fn shares(tokens: &[&Token], mean: Mean, key: impl Fn(&Token) -> i32) -> Vec<f64> {
    let mut n_tokens: HashMap<i32, f64> = HashMap::new();
    let mut of_sequence: HashMap<(i32, usize), f64> = HashMap::new();
    let mut of_turn: HashMap<(i32, usize, usize), f64> = HashMap::new();
    for t in tokens {
        *n_tokens.entry(key(t)).or_default() += 1.0;
        *of_sequence.entry((key(t), t.trajectory)).or_default() += 1.0;
        *of_turn.entry((key(t), t.trajectory, t.turn)).or_default() += 1.0;
    }
    let share = |t: &&Token| {
        let k = key(t);
        let sequences = of_sequence.keys().filter(|of| of.0 == k).count() as f64;
        let turns = of_turn.keys().filter(|of| of.0 == k).count() as f64;
        match mean {
            Mean::Tokens => 1.0 / n_tokens[&k],
            Mean::Sequences => 1.0 / (sequences * of_sequence[&(k, t.trajectory)]),
            Mean::Turns => 1.0 / (turns * of_turn[&(k, t.trajectory, t.turn)]),
        }
    };
    tokens.iter().map(share).collect()
}

/// PPO's surrogate with a dual clip, as a function of ln r.
fn surrogate(log_ratio: f64, advantage: f64, clip: Option<(f64, f64)>, dual: Option<f64>) -> f64 {
    let r = log_ratio.exp();
    let clipped = clip.map_or(r, |(low, high)| r.clamp(1.0 - low, 1.0 + high));
    let least = (r * advantage).min(clipped * advantage);
    match dual {
        Some(d) if advantage < 0.0 => least.max(d * advantage),
        _ => least,
    }
}

/// Its derivative by ln r: the factor of a token.
fn slope(log_ratio: f64, advantage: f64, clip: Option<(f64, f64)>, dual: Option<f64>) -> f64 {
    let e = 1e-6;
    let at = |x| surrogate(x, advantage, clip, dual);
    (at(log_ratio + e) - at(log_ratio - e)) / (2.0 * e)
}

/// (r - mean) / (std + 1e-6) of each task's values; those of a trajectory stand in a list.
fn compared(values: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let mut all = Vec::new();
    for group in values.chunks(4) {
        let flat: Vec<f64> = group.concat();
        let mean = flat.iter().sum::<f64>() / flat.len() as f64;
        let variance = flat.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (flat.len() as f64 - 1.0);
        let of = |list: &Vec<f64>| list.iter().map(|x| (x - mean) / (variance.sqrt() + 1e-6)).collect();
        all.extend(group.iter().map(of));
    }
    all
}

fn scores(batch: &[Trajectory]) -> Vec<f64> {
    let one: Vec<Vec<f64>> = (0..batch.len()).map(|i| vec![score(i)]).collect();
    compared(&one).concat()
}

/// The means over each student turn of |ln p - ln q| and -ln p of the draw.
fn turn_facts(tokens: &[&Token]) -> HashMap<(usize, usize), (f64, f64)> {
    let mut sums: HashMap<(usize, usize), (f64, f64, f64)> = HashMap::new();
    for t in tokens {
        let sum = sums.entry((t.trajectory, t.turn)).or_default();
        *sum = (sum.0 + (t.then - t.teacher).abs(), sum.1 - t.then, sum.2 + 1.0);
    }
    sums.into_iter().map(|(turn, (d, h, n))| (turn, (d / n, h / n))).collect()
}

/// What one preset does with the batch: its losses, written down a second time.
fn by_hand_of(name: &str, batch: &[Trajectory], all: &[Token]) -> Vec<Weighted> {
    let of = |actors: &[Actor]| all.iter().filter(|t| actors.contains(&t.actor)).collect::<Vec<_>>();
    let as_one = |_: &Token| 0;
    let student = of(&[Actor::Student]);
    // Divergences or cross-entropies with a mean.
    let plain = |tokens: &[&Token], mean: Mean, loss: &dyn Fn(&Token) -> Loss| -> Vec<Weighted> {
        let weighed = tokens.iter().zip(shares(tokens, mean, as_one));
        weighed.map(|(t, share)| (t.trajectory, t.position, (Hand::Of(loss(t)), share))).collect()
    };
    // Policy gradients with a token's ratio.
    let gradient = |mean: Mean, clip: Option<(f64, f64)>, dual: Option<f64>, advantage: &dyn Fn(&Token) -> f64| {
        let weighed = student.iter().zip(shares(&student, mean, as_one));
        let factor = |t: &Token| slope(t.now - t.then, advantage(t), clip, dual);
        weighed
            .map(|(t, share)| (t.trajectory, t.position, (Hand::Factor(factor(t)), share)))
            .collect::<Vec<Weighted>>()
    };
    let clip = Some((0.2, 0.2));
    let gap = |t: &Token| t.teacher - t.then;
    let facts = turn_facts(&student);
    match name {
        "sft" => plain(&of(&[Actor::Replay]), Mean::Tokens, &|_| Loss::CrossEntropy),
        "opd" | "tcod-f2b" | "tcod-b2f" => plain(&student, Mean::Tokens, &|_| Loss::ReverseKl),
        "guided-opd" => plain(&of(&[Actor::Student, Actor::Teacher]), Mean::Tokens, &|t| match t.actor {
            Actor::Student => Loss::ReverseKl,
            _ => Loss::ForwardKl,
        }),
        "gkd" => plain(&of(&[Actor::Student, Actor::Replay]), Mean::Sequences, &|_| Loss::JensenShannon(0.5)),
        "dagger" => plain(&of(&[Actor::Teacher]), Mean::Tokens, &|_| Loss::CrossEntropy),
        "oec" => {
            let successes: Vec<_> =
                of(&[Actor::Teacher]).into_iter().filter(|t| t.trajectory.is_multiple_of(2)).collect();
            plain(&successes, Mean::Tokens, &|_| Loss::CrossEntropy)
        }
        "ccopd" => {
            let last: Vec<_> =
                student.iter().copied().filter(|t| t.turn + 1 == batch[t.trajectory].turns().len()).collect();
            plain(&last, Mean::Tokens, &|_| Loss::ReverseKl)
        }
        "opd-sampled" => gradient(Mean::Tokens, None, None, &gap),
        "tcod-code" => gradient(Mean::Sequences, clip, Some(3.0), &gap),
        "opd-then-rl" => gradient(Mean::Tokens, clip, None, &gap),
        "no-teacher" => gradient(Mean::Tokens, clip, None, &|_| -1.0),
        "grpo" => {
            let scores = scores(batch);
            gradient(Mean::Sequences, clip, None, &|t| scores[t.trajectory])
        }
        "skill-sd" => {
            let scores = scores(batch);
            // The log-ratio is that of now: skill-sd's k3 is differentiated through what it compares.
            gradient(Mean::Tokens, None, None, &|t| 0.001 * (t.teacher - t.now) + scores[t.trajectory])
        }
        "atod" => {
            let (scores, kappa, rho) = (scores(batch), 1.0 - 0.9 / 80.0, 1.0 + 1.0 / 80.0);
            let scaled = |x: f64, all: &[f64]| {
                let (least, most) =
                    (all.iter().fold(f64::MAX, |a, b| a.min(*b)), all.iter().fold(f64::MIN, |a, b| a.max(*b)));
                if most - least < 1e-8 { 0.5 } else { (x - least) / (most - least) }
            };
            let weight = |t: &Token| {
                let of_one: Vec<_> = facts.iter().filter(|(turn, _)| turn.0 == t.trajectory).map(|(_, f)| *f).collect();
                let (d, h): (Vec<f64>, Vec<f64>) = of_one.into_iter().unzip();
                let own = facts[&(t.trajectory, t.turn)];
                1.0 - (1.0 - scaled(own.0, &d)) * (1.0 - scaled(own.1, &h))
            };
            gradient(Mean::Sequences, clip, None, &|t| kappa * weight(t) * gap(t) + rho * scores[t.trajectory])
        }
        "sod" | "og-opd" => {
            let scores = scores(batch);
            let weight = |t: &Token| {
                let d = |turn: usize| facts[&(t.trajectory, turn)].0 + 1e-6;
                match name {
                    "sod" => (1..=t.turn).fold(1.0, |w: f64, turn| (w * d(turn - 1) / d(turn)).min(1.2)),
                    _ => (d(0) / d(t.turn)).min(1.2),
                }
            };
            match name {
                "sod" => gradient(Mean::Tokens, clip, None, &|t| weight(t) * gap(t) + scores[t.trajectory]),
                _ => gradient(Mean::Tokens, clip, Some(3.0), &|t| weight(t) * gap(t)),
            }
        }
        "turn-ppo" => {
            let returns = |(i, t): (usize, &Trajectory)| {
                (0..t.turns().len()).map(|turn| (turn..t.turns().len()).map(|v| reward(i, v)).sum()).collect()
            };
            let advantages = compared(&batch.iter().enumerate().map(returns).collect::<Vec<Vec<f64>>>());
            let mut ratios: HashMap<(usize, usize), (f64, f64)> = HashMap::new();
            for t in &student {
                let sum = ratios.entry((t.trajectory, t.turn)).or_default();
                *sum = (sum.0 + t.now - t.then, sum.1 + 1.0);
            }
            let factor = |t: &Token| {
                let (sum, n) = ratios[&(t.trajectory, t.turn)];
                slope(sum / n, advantages[t.trajectory][t.turn], clip, None)
            };
            let weighed = student.iter().zip(shares(&student, Mean::Turns, as_one));
            weighed.map(|(t, share)| (t.trajectory, t.position, (Hand::Factor(factor(t)), share))).collect()
        }
        "uopd" => {
            let both = of(&[Actor::Student, Actor::Teacher]);
            let hand = |t: &Token| match t.actor {
                Actor::Student => Hand::Factor(slope(t.now - t.then, gap(t).clamp(-20.0, 20.0), None, None)),
                _ => Hand::Of(Loss::CrossEntropy),
            };
            assert!(both.len() > student.len() && student.len() > 10, "both act");
            let weighed = both.iter().zip(shares(&both, Mean::Tokens, as_one));
            weighed.map(|(t, share)| (t.trajectory, t.position, (hand(t), share))).collect()
        }
        "guided-opd-sampled" | "student-retry" => {
            let both = of(&[Actor::Student, Actor::Teacher]);
            let hand = |t: &Token| match t.actor {
                Actor::Student => Hand::Factor(slope(t.now - t.then, gap(t), clip, None)),
                _ => Hand::Of(Loss::CrossEntropy),
            };
            let weighed = both.iter().zip(shares(&both, Mean::Tokens, |t| t.actor as i32));
            weighed.map(|(t, share)| (t.trajectory, t.position, (hand(t), 0.5 * share))).collect()
        }
        other => panic!("{other} is not written down here"),
    }
}

/// Settings under which a preset's batch of three turns shows what it does.
fn document(name: &str) -> Value {
    let mut document = preset(name);
    document["optimizer"] = json!({"learning_rate": RATE, "eps": ADAM_EPS});
    document
}

fn build(d: &Distiller, n: usize) -> Update {
    d.build(n, &Cancel::default(), &mut |_, _| true).unwrap()
}

/// A batch of eight episodes that begin at step 1 and are built at step 2, and the gradients of the two steps before.
fn stale_batch(d: &Distiller) -> (Vec<Trajectory>, Vec<Update>) {
    let mut before = Vec::new();
    play(d, 8);
    let mut first = build(d, 8);
    d.apply(&mut first).unwrap();
    d.publish().unwrap();
    before.push(first);
    play(d, 8);
    let batch = play(d, 8);
    let mut second = build(d, 8);
    d.apply(&mut second).unwrap();
    d.publish().unwrap();
    before.push(second);
    assert!(batch.iter().all(|t| t.heading.step == 1 && t.heading.revision + 1 == d.student().current().number));
    (batch, before)
}

#[test]
fn every_preset_trains_one_batch_to_what_is_derived_by_hand() {
    let mut far = 0;
    for preset in PRESETS {
        let name = preset.name;
        let d = plain(document(name));
        let (batch, before) = stale_batch(&d);
        let masters: Vec<Vec<f32>> =
            d.student().current().weights.tensors().iter().map(|(_, t)| t.f32().to_vec()).collect();
        let facts = tokens(&d, &batch);
        let losses = by_hand_of(name, &batch, &facts);
        assert!(losses.len() > 20, "{name}: {} tokens", losses.len());
        far += facts.iter().filter(|t| t.actor == Actor::Student && (t.now - t.then).abs() > 0.25).count();
        let mut update = build(&d, 8);
        let mut theirs: HashMap<usize, Vec<f32>> = HashMap::new();
        let wanted = by_hand::gradients(d.student(), &batch, &losses, |i, position, p, (hand, weight)| {
            let said = batch[i].ids()[position] as usize;
            let teacher = theirs.entry(i).or_insert_with(|| logits(d.teacher().unwrap(), batch[i].ids()).0);
            let q = softmax(&teacher[(position - 1) * VOCABULARY..position * VOCABULARY]);
            let (loss, factor) = match hand {
                Hand::Of(loss) => (*loss, 1.0),
                Hand::Factor(factor) => (Loss::CrossEntropy, *factor),
            };
            by_hand::by_logits(loss, p, &q, said).into_iter().map(|g| weight * factor * g).collect()
        });
        assert_eq!(update.report().trained_tokens, losses.len(), "{name}");
        assert_near(update.gradients(), &wanted, 1e-4, name);

        // AdamW from the three gradients, the last of them the one by hand.
        d.apply(&mut update).unwrap();
        d.publish().unwrap();
        let now = d.student().current();
        let norm = |set: &[Vec<f32>]| set.iter().flatten().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let earlier: Vec<Vec<Vec<f32>>> =
            before.iter().map(|u| u.gradients().tensors().iter().map(|(_, t)| t.f32().to_vec()).collect()).collect();
        let last: Vec<Vec<f32>> = wanted.tensors().iter().map(|(_, t)| t.f32().to_vec()).collect();
        let steps = [&earlier[0], &earlier[1], &last];
        let scales = steps.map(|set| {
            let n = norm(set);
            if n > 1.0 { 1.0 / (n + 1e-6) } else { 1.0 }
        });
        for (which, (tensor_name, tensor)) in now.weights.tensors().into_iter().enumerate() {
            let (mut gap, mut moved) = (0.0f64, 0.0f64);
            for (j, found) in tensor.f32().iter().enumerate() {
                let (mut m, mut v) = (0.0, 0.0);
                for (set, scale) in steps.iter().zip(scales) {
                    let g = f64::from(set[which][j]) * scale;
                    (m, v) = (0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g);
                }
                let (m, v) = (m / (1.0 - 0.9f64.powi(3)), v / (1.0 - 0.999f64.powi(3)));
                let step = RATE * m / (v.sqrt() + ADAM_EPS);
                gap = gap.max((f64::from(*found) - (f64::from(masters[which][j]) - step)).abs());
                moved = moved.max(step.abs());
            }
            assert!(gap < 1e-3 * moved + 1e-7, "{name}, {tensor_name}: {gap:e} off in a step of {moved:e}");
        }
    }
    assert!(far > 20, "ratios beyond the clips are among them: {far}");
}

#[test]
fn k2_and_weighted_k3_are_policy_gradients_on_the_log_ratio_of_now() {
    // On the sampled token each is l times the gradient of ln p, weighted k3 with the ratio: skill-sd's loss is a setting.
    let gradients = |document: Value| {
        let d = plain(document);
        // What went before must be the same, so the batch is played by the student as it is, then made stale by hand.
        play(&d, 8);
        (build(&d, 8), d)
    };
    let base = json!({"seed": 5, "batch_episodes": 8});
    let with = |more: Value| {
        let mut document = base.clone();
        more.as_object().unwrap().iter().for_each(|(key, value)| document[key] = value.clone());
        document
    };
    let (sampled, _) = gradients(with(json!({"student_turns": {"kernel": "sampled-reverse-kl"}})));
    let (k2, d) = gradients(with(json!({"student_turns": {"kernel": "k2"}})));
    let (k3, _) = gradients(with(json!({"student_turns": {"kernel": "weighted-k3"}})));
    let recomputed = json!({"student_turns": {"kernel": "policy-gradient"}, "ratio": {"of": "token"}, "advantage": {"reference": "recomputed"}});
    let (pg, _) = gradients(with(recomputed));
    assert!(bytes(sampled.gradients()) == bytes(k2.gradients()), "one factor");
    assert_near(k3.gradients(), k2.gradients(), 1e-6, "the ratio is 1");
    assert_near(pg.gradients(), k2.gradients(), 1e-6, "the ratio is 1");
    let report = |u: &Update| u.report().clone();
    let (s, k2, k3, pg) = (report(&sampled), report(&k2), report(&k3), report(&pg));
    assert_eq!((s.sampled_reverse_kl, k2.sampled_reverse_kl), (k3.sampled_reverse_kl, pg.sampled_reverse_kl));
    assert!(k2.k2.unwrap() > 0.0 && k3.weighted_k3.unwrap() > 0.0 && k2.weighted_k3.is_none());
    assert!((s.loss - s.sampled_reverse_kl.unwrap()).abs() < 1e-6);
    let told = pg.policy_gradient.unwrap();
    assert_eq!((told.ratio, told.largest_ratio, told.clipped), (1.0, 1.0, 0.0));
    assert!((told.advantage + pg.sampled_reverse_kl.unwrap()).abs() < 1e-6);
    assert!(told.least_advantage < told.advantage && told.advantage < told.largest_advantage);
    drop(d);
}

#[test]
fn weights_that_are_renormalised_do_not_change_with_their_scale() {
    // A cap so low that it holds in every turn scales all weights alike.
    let build_with = |cap: f64, renormalise: bool| {
        let weights = json!({"rule": {"gap-ratio": cap}, "renormalise": renormalise});
        let d = plain(json!({"seed": 5, "batch_episodes": 8, "turn_weights": weights}));
        play(&d, 8);
        build(&d, 8)
    };
    let plain_update = {
        let d = plain(json!({"seed": 5, "batch_episodes": 8}));
        play(&d, 8);
        build(&d, 8)
    };
    let (low, lower) = (build_with(0.02, false), build_with(0.01, false));
    let weight = |u: &Update| u.report().turn_weight.unwrap();
    assert!((weight(&low) - 0.02).abs() < 1e-12 && (weight(&lower) - 0.01).abs() < 1e-12);
    assert!((low.report().loss / lower.report().loss - 2.0).abs() < 1e-6);
    assert!((plain_update.report().loss / low.report().loss - 50.0).abs() < 1e-3);
    for cap in [0.02, 0.01] {
        let same = build_with(cap, true);
        assert!((same.report().loss - plain_update.report().loss).abs() < 1e-9);
        assert_near(same.gradients(), plain_update.gradients(), 1e-6, "renormalised");
    }
}

#[test]
fn groups_that_say_nothing_are_told_of() {
    let d = plain(json!({"preset": "grpo", "reward": {"group": 4}, "batch_episodes": 8, "seed": 5}));
    let seats = |task: &str, scores: &[f64]| {
        for &score in scores {
            let episode = d.begin(EpisodeSpec { task: task.into(), ..Default::default() }).unwrap();
            episode.observe_ids(&[1, 2, 3]).unwrap();
            episode.decide().unwrap();
            episode.act(&options()).unwrap().collect().unwrap();
            episode.outcome(None, true).unwrap();
            episode.end(score, None).unwrap();
        }
    };
    seats("level", &[0.1, 0.1, 0.1]);
    seats("alone", &[5.0]);
    seats("good", &[0.0, 1.0]);
    let update = build(&d, 8);
    let groups = update.report().groups.unwrap();
    assert_eq!((groups.groups, groups.alone, groups.uneven, groups.level), (3, 1, 3, 1));
    let told = update.report().policy_gradient.unwrap();
    let a = 0.5 / (0.5f64.sqrt() + 1e-6);
    assert!((told.largest_advantage - a).abs() < 1e-9 && (told.least_advantage + a).abs() < 1e-9);
    assert!(
        update
            .report()
            .warnings
            .iter()
            .any(|w| w.starts_with("3 of 3 groups have not the episodes that reward.group says, 1 of them one")),
        "{:?}",
        update.report().warnings
    );
    // Neither named: refused when it begins, and an evaluation needs none.
    let e = d.begin(EpisodeSpec::default()).err().unwrap();
    assert_eq!(
        e.message(),
        "group: wanted a group or a task, found none: reward.baseline compares the episodes of one"
    );
    d.begin(EpisodeSpec { evaluation: true, ..Default::default() }).unwrap();
    d.begin(EpisodeSpec { group: "g".into(), ..Default::default() }).unwrap();
}

#[test]
fn a_prefix_needs_its_demonstration() {
    let d = plain(json!({"preset": "tcod-b2f"}));
    let e = d.begin(EpisodeSpec::default()).err().unwrap();
    assert!(e.message().starts_with("demonstration: wanted a list of texts, found none"), "{e}");
}

#[test]
fn a_method_without_a_teacher_needs_none() {
    let engine = engine(Compute::F32);
    let student = model(&engine, &config(Kind::Dense, 32, 2), 1);
    for name in ["grpo", "turn-ppo", "no-teacher"] {
        Distiller::new(&student, None, settings(json!({"preset": name}))).unwrap();
    }
    for name in ["opd-then-rl", "atod", "skill-sd", "oec", "tcod-b2f", "gkd"] {
        assert!(Distiller::new(&student, None, settings(json!({"preset": name}))).is_err(), "{name}");
    }
}

#[test]
fn what_the_teacher_says_between_two_updates_is_counted_and_bounded() {
    let d = plain(
        json!({"preset": "guided-opd", "actor": {"kind": "bernoulli", "beta": 1}, "teacher_tokens": 5, "batch_episodes": 2}),
    );
    let said = |d: &Distiller| d.metrics()["teacher_tokens"].as_u64().unwrap();
    let acted = |list: &[Trajectory]| -> String {
        let letter = |actor: Actor| if actor == Actor::Teacher { 't' } else { 's' };
        list.iter().flat_map(|t| t.turns()).map(|turn| letter(turn.actor)).collect()
    };
    let records = play(&d, 2);
    let of_teacher: usize =
        records.iter().flat_map(|t| t.turns()).filter(|t| t.actor == Actor::Teacher).map(|t| t.range.len()).sum();
    assert_eq!(said(&d), of_teacher as u64);
    let turns = acted(&records);
    assert!(turns.starts_with('t') && turns.ends_with('s') && !turns.contains("st"), "{turns}");
    update(&d);
    assert_eq!(said(&d), 0);
    assert!(acted(&play(&d, 1)).starts_with('t'));
}
