//! Methods as settings of one set of knobs: what each preset lets act and learn, and the reductions of one to another.

use serde_json::{Value, json};
use squire::backend::ops::Loss;
use squire::distill::actor::Actor;
use squire::distill::batch::{TokenLoss, plan};
use squire::distill::config::Config;
use squire::distill::explain::explain;
use squire::distill::knobs::ActorPolicy;
use squire::distill::policy::{DecideInput, Decision, Reason, decide};
use squire::distill::preset::PRESETS;
use squire::distill::trajectory::{Action, Heading, Outcome, Trajectory};
use squire::error::Fault;
use squire::text::source::Source;

fn config(document: Value) -> Config {
    Config::from_value(&document).unwrap()
}

/// The first turn of a training episode with a teacher.
const INPUT: DecideInput = DecideInput {
    seed: 42,
    episode: 0,
    turn: 0,
    step: 0,
    evaluation: false,
    has_teacher: true,
    replay_available: false,
    demonstration: 0,
    teacher_spent: false,
    asked: None,
    max_turns: 30,
};

/// The refusal of a document: its fault and message.
fn refusal(document: Value) -> (Fault, String) {
    let e = Config::from_value(&document).unwrap_err();
    (e.fault(), e.message().to_string())
}

/// All decisions of `n` episodes that begin at `step`, but for the reason, which names the method.
fn decisions(config: &Config, step: u64, n: u64) -> Vec<Decision> {
    shown(config, step, n, 0)
}

/// The same with a demonstration of so many turns.
fn shown(config: &Config, step: u64, n: u64, demonstration: u32) -> Vec<Decision> {
    let mut all = Vec::new();
    for episode in 0..n {
        for turn in 0..=config.max_turns {
            let input = DecideInput {
                seed: config.seed,
                episode,
                turn,
                step,
                evaluation: episode % 5 == 4,
                has_teacher: true,
                replay_available: turn < demonstration,
                demonstration,
                teacher_spent: false,
                asked: None,
                max_turns: config.max_turns,
            };
            let decision = decide(config, &input).unwrap();
            all.push(Decision { reason: Reason::Method, ..decision });
        }
    }
    all
}

/// The batch that these decisions lead to, with a token more each turn.
fn losses(config: &Config, step: u64) -> Vec<TokenLoss> {
    let mut batch = Vec::new();
    for (episode, turns) in decisions(config, step, 5).chunks(config.max_turns as usize + 1).enumerate() {
        let (task, seed, evaluation) = ("task".to_string(), config.seed, episode % 5 == 4);
        let group = String::new();
        let mut t = Trajectory::new(Heading {
            episode: episode as u64,
            step,
            task,
            group,
            seed,
            revision: 0,
            evaluation,
            ..Heading::default()
        });
        for (turn, decision) in turns.iter().enumerate() {
            let Some(actor) = decision.actor else { break };
            t.add_context(&[1, 2, 3], Source::Host).unwrap();
            let (ids, logprobs) = (vec![7; turn + 1], vec![-0.5; turn + 1]);
            let action = Action {
                actor,
                ids: &ids,
                logprobs: &logprobs,
                sampled_logprobs: &logprobs,
                truncated: false,
                from_text: false,
            };
            t.add_turn(&action, decision, config.loss_of(actor)).unwrap();
        }
        batch.push(t);
    }
    plan(&batch, config, 0).unwrap().tokens
}

#[test]
fn guided_with_beta_zero_is_on_policy_distillation() {
    let opd = Config::preset("opd").unwrap();
    let zero = config(json!({"preset": "guided-opd", "actor": {"kind": "bernoulli", "beta": 0}}));
    let guided = Config::preset("guided-opd").unwrap();
    for step in [0, 100, 249] {
        assert_eq!(decisions(&zero, step, 50), decisions(&opd, step, 50));
        assert_eq!(losses(&zero, step), losses(&opd, step));
    }
    // The preset itself ends there too, and does not start there.
    assert_eq!(decisions(&guided, 200, 50), decisions(&opd, 200, 50));
    assert_ne!(decisions(&guided, 100, 50), decisions(&opd, 100, 50));
}

#[test]
fn guided_with_beta_one_and_cross_entropy_is_fine_tuning_on_teacher_rollouts() {
    let one = json!({"preset": "guided-opd", "actor": {"kind": "bernoulli", "beta": 1}, "teacher_turns": {"kernel": "cross-entropy"}});
    let sft = config(json!({"preset": "sft", "actor": {"kind": "teacher"}}));
    assert_eq!(decisions(&config(one.clone()), 10, 50), decisions(&sft, 10, 50));
    let learnt = losses(&config(one), 10);
    assert_eq!(learnt, losses(&sft, 10));
    assert!(learnt.iter().all(|token| token.kind == Loss::CrossEntropy));
}

#[test]
fn forward_to_backward_beyond_the_turn_cap_is_on_policy_distillation() {
    let opd = Config::preset("opd").unwrap();
    let f2b = Config::preset("tcod-f2b").unwrap();
    // Depth 1 + floor(step / 6) reaches the cap of 30 turns at step 174.
    assert_eq!(decisions(&f2b, 174, 20), decisions(&opd, 174, 20));
    assert_eq!(losses(&f2b, 174), losses(&opd, 174));
    assert_ne!(decisions(&f2b, 173, 20), decisions(&opd, 173, 20));
    let rolled = |step| decisions(&f2b, step, 1).iter().filter(|decision| decision.actor.is_some()).count();
    assert_eq!([0, 5, 6, 60, 173, 174, 249].map(rolled), [1, 1, 2, 11, 29, 30, 30]);
}

#[test]
fn presets_train_the_turns_that_their_papers_train() {
    let losses = |name| {
        let c = Config::preset(name).unwrap();
        [Actor::Student, Actor::Teacher, Actor::Replay].map(|actor| c.loss_of(actor).kind)
    };
    use Loss::{CrossEntropy, ForwardKl, ReverseKl};
    assert_eq!(losses("sft"), [None, Some(CrossEntropy), Some(CrossEntropy)]);
    assert_eq!(losses("opd"), [Some(ReverseKl), None, None]);
    assert_eq!(losses("guided-opd"), [Some(ReverseKl), Some(ForwardKl), None]);
    assert_eq!(losses("tcod-f2b"), [Some(ReverseKl), None, None]);
    assert!(matches!(Config::preset("guided-opd").unwrap().actor, ActorPolicy::Bernoulli { .. }));
}

/// Who acts in each turn of an episode, as letters.
fn actors(config: &Config, step: u64, episode: u64, demonstration: u32) -> String {
    let per_episode = config.max_turns as usize + 1;
    let all = shown(config, step, episode + 1, demonstration);
    let of_one = &all[episode as usize * per_episode..][..per_episode];
    let letter = |d: &Decision| match d.actor {
        None => '.',
        Some(Actor::Student) => 's',
        Some(Actor::Teacher) => 't',
        Some(Actor::Replay) => 'r',
    };
    of_one.iter().map(letter).collect()
}

#[test]
fn backward_to_forward_without_a_prefix_is_on_policy_distillation() {
    let (opd, b2f) = (Config::preset("opd").unwrap(), Config::preset("tcod-b2f").unwrap());
    // Of a demonstration of 9 turns 8 are replayed at first, one less every 6 steps, none from step 48 on.
    for (step, replayed) in [(0, 8), (5, 8), (6, 7), (47, 1), (48, 0), (200, 0)] {
        let wanted = format!("{}{}.", "r".repeat(replayed), "s".repeat(30 - replayed));
        assert_eq!(actors(&b2f, step, 0, 9), wanted, "step {step}");
    }
    assert_eq!(shown(&b2f, 48, 20, 9), decisions(&opd, 48, 20));
    // A demonstration of one turn has nothing before its last.
    assert_eq!(shown(&b2f, 0, 20, 1), decisions(&opd, 0, 20));
    assert_eq!(b2f.student_turns, opd.student_turns);
    // The replayed turns carry no loss.
    let first = shown(&b2f, 0, 1, 9);
    assert!(first[..8].iter().all(|d| !d.train_on_this) && first[8..30].iter().all(|d| d.train_on_this));
    // Handed over just before the teacher's last action.
    assert_eq!(actors(&b2f, 0, 0, 30), format!("{}s.", "r".repeat(29)));
}

#[test]
fn atod_without_a_teacher_is_grpo_and_without_rewards_is_clipped_distillation() {
    let grpo = Config::preset("grpo").unwrap();
    let plain = json!({"preset": "atod", "advantage": {"teacher": 0, "reward": 1}, "turn_weights": {"rule": "none"}});
    assert_eq!(config(plain).to_json(), grpo.to_json());
    assert!(!grpo.needs_teacher());
    let clipped = json!({"preset": "opd-sampled", "ratio": {"clip": {"ppo": 0.2}}, "normaliser": "sequence-mean"});
    let without = json!({"preset": "atod", "advantage": {"teacher": 1, "reward": 0}, "turn_weights": {"rule": "none"}});
    assert_eq!(config(without).to_json(), config(clipped).to_json());
}

#[test]
fn distillation_then_reinforcement_asks_no_teacher_once_it_has_switched() {
    let c = Config::preset("opd-then-rl").unwrap();
    let needs = |step| c.loss_at(Actor::Student, step).needs_teacher();
    assert_eq!([0, 59, 60, 149].map(needs), [true, true, false, false]);
    assert!(c.needs_teacher());
    let at = |step: u64| {
        let heading = Heading {
            episode: 0,
            step,
            task: "t".into(),
            group: String::new(),
            seed: 1,
            revision: 0,
            evaluation: false,
            ..Heading::default()
        };
        let batch = [1.0, 3.0].map(|score| {
            let mut t = Trajectory::new(heading.clone());
            t.add_context(&[1], Source::Host).unwrap();
            let action = Action {
                actor: Actor::Student,
                ids: &[7],
                logprobs: &[-0.5],
                sampled_logprobs: &[-0.5],
                truncated: false,
                from_text: false,
            };
            let decision = decisions(&c, step, 1)[0];
            t.add_turn(&action, &decision, c.loss_at(Actor::Student, step)).unwrap();
            t.end(Outcome { score, success: None }).unwrap();
            t
        });
        plan(&batch, &c, 0).unwrap().tokens.iter().map(|t| (t.teacher, t.rest)).collect::<Vec<_>>()
    };
    assert_eq!(at(59), [(1.0, 0.0), (1.0, 0.0)]);
    // Two rewards, 1 apart from their mean; their deviation is the root of 2.
    let a = 1.0 / (2f64.sqrt() + 1e-6);
    assert_eq!(at(60), [(0.0, -a), (0.0, a)]);
}

#[test]
fn expert_corrections_from_the_first_turn_are_fine_tuning_and_from_beyond_the_end_nothing() {
    let oec =
        |from: u32, to: u32| config(json!({"preset": "oec", "actor": {"kind": "switch", "from": from, "to": to}}));
    let sft = config(json!({"preset": "sft", "actor": {"kind": "teacher"}}));
    assert_eq!(
        decisions(&oec(0, 0), 3, 20),
        decisions(&sft, 3, 20).into_iter().map(|d| Decision { probability: 0.0, ..d }).collect::<Vec<_>>()
    );
    assert_eq!(actors(&oec(4, 4), 0, 0, 0), format!("{}{}.", "s".repeat(4), "t".repeat(26)));
    assert!(decisions(&oec(30, 30), 0, 20).iter().all(|d| !d.train_on_this));
    // K is even over its range: of 4,000 episodes each of five turns is drawn about 800 times.
    let c = oec(2, 6);
    let mut drawn = [0; 31];
    for episode in 0..4000 {
        let switch = |turn: &u32| {
            let input = DecideInput { episode, turn: *turn, ..INPUT };
            decide(&c, &input).unwrap().actor == Some(Actor::Teacher)
        };
        drawn[(0..30).find(switch).unwrap() as usize] += 1;
    }
    assert!(
        drawn[2..=6].iter().all(|n| (700..900).contains(n)) && drawn[2..=6].iter().sum::<i32>() == 4000,
        "{drawn:?}"
    );
}

#[test]
fn dagger_without_its_teacher_acting_lets_the_student_act_and_learns_labels_alone() {
    let dagger = config(json!({"preset": "dagger", "actor": {"kind": "bernoulli", "beta": 0}}));
    assert_eq!(actors(&dagger, 0, 0, 0), format!("{}.", "s".repeat(30)));
    assert!(decisions(&dagger, 0, 4).iter().all(|d| !d.train_on_this));
    assert_eq!(dagger.teacher_turns.kind, Some(Loss::CrossEntropy));
    // 1, 0.8, 0.6, 0.6, 0.6 over the rounds.
    let c = Config::preset("dagger").unwrap();
    assert!([1.0, 0.8, 0.6, 0.6, 0.6].iter().enumerate().all(|(i, beta)| (c.beta_at(i as u64) - beta).abs() < 1e-12));
}

#[test]
fn generalised_distillation_draws_each_episode_as_a_whole() {
    let gkd = Config::preset("gkd").unwrap();
    let mut replayed = 0;
    for episode in (0..400u64).filter(|e| e % 5 != 4) {
        let of_one = actors(&gkd, 0, episode, 30);
        let (all_student, all_replay) = (format!("{}.", "s".repeat(30)), format!("{}.", "r".repeat(30)));
        assert!(of_one == all_student || of_one == all_replay, "{of_one}");
        replayed += usize::from(of_one == all_replay);
    }
    assert!((120..200).contains(&replayed), "{replayed} of 320");
    let always = config(json!({"preset": "gkd", "actor": {"kind": "mixture", "replay": 1}}));
    assert_eq!(
        actors(&always, 0, 0, 3),
        format!("rrr{}", ".".repeat(28)),
        "a demonstration that ends ends the rollout"
    );
}

#[test]
fn a_teacher_that_has_spent_its_tokens_leaves_its_turns_to_the_student() {
    let c = config(json!({"preset": "guided-opd", "actor": {"kind": "bernoulli", "beta": 1}, "teacher_tokens": 10}));
    let input = DecideInput { teacher_spent: true, ..INPUT };
    let d = decide(&c, &input).unwrap();
    assert_eq!((d.actor, d.reason, d.train_on_this), (Some(Actor::Student), Reason::TeacherSpent, true));
    let asked = decide(&c, &DecideInput { asked: Some(Actor::Teacher), ..input }).unwrap();
    assert_eq!(asked.actor, Some(Actor::Teacher), "the host knows what it asks for");
}

#[test]
fn settings_that_contradict_each_other_are_refused_by_name() {
    let pg = |more: Value| {
        let mut document = json!({"student_turns": {"kernel": "policy-gradient"}});
        more.as_object().unwrap().iter().for_each(|(key, value)| document[key] = value.clone());
        document
    };
    for (document, wanted) in [
        (
            json!({"advantage": {"reward": 1}}),
            "advantage.reward: it has a meaning only where student_turns.kernel is policy-gradient",
        ),
        (json!({"ratio": {"of": "token"}}), "ratio.of: it has a meaning only where"),
        (
            json!({"preset": "grpo", "student_turns": {"kernel": "reverse-kl"}}),
            "advantage.teacher: it has a meaning only where",
        ),
        (pg(json!({"advantage": {"teacher": 0}})), "advantage: wanted teacher, reward or constant other than 0"),
        (
            pg(json!({"ratio": {"clip": {"ppo": 0.2}}})),
            "ratio.clip: wanted none and no dual_clip, or ratio.of token or turn",
        ),
        (pg(json!({"ratio": {"of": "token", "dual_clip": 3}})), "ratio.dual_clip: wanted 0, or ratio.clip ppo"),
        (
            pg(json!({"advantage": {"reward": 1}, "batch_episodes": 12})),
            "batch_episodes: wanted a multiple of reward.group, 8",
        ),
        (
            json!({"turn_weights": {"rule": "t-dur"}, "student_turns": {"kernel": "cross-entropy"}}),
            "turn_weights.rule: wanted none",
        ),
        (json!({"preset": "grpo", "turn_weights": {"rule": "sod"}}), "turn_weights.rule: wanted none"),
        (
            json!({"preset": "grpo", "reward": {"group": 1}}),
            "reward.group must be a whole number from 2 to 65536, found 1",
        ),
        (
            json!({"preset": "opd-sampled", "reward": {"of": "success"}}),
            "reward.of: it has a meaning only where advantage.reward is above 0",
        ),
        (
            json!({"preset": "grpo", "advantage": {"shape": {"clamp": 5}}}),
            "advantage.shape: it has a meaning only where advantage.teacher is above 0",
        ),
        (
            json!({"preset": "grpo", "reward": {"discount": 0.9}}),
            "reward.discount: it has a meaning only where reward.of is return",
        ),
        (
            json!({"preset": "grpo", "reward": {"baseline": "group-mean", "eps": 0.1}}),
            "reward.eps: it has a meaning only where reward.baseline is group",
        ),
        (
            json!({"preset": "grpo", "reward": {"baseline": "none", "group": 4}}),
            "reward.group: it has a meaning only where reward.baseline compares",
        ),
        (
            json!({"turn_weights": {"renormalise": true}}),
            "turn_weights.renormalise: it has a meaning only where turn_weights.rule weighs",
        ),
        (
            json!({"learn_turns": "last", "turn_weights": {"rule": "sod"}}),
            "turn_weights.rule: it has a meaning only where more than the last turn is learnt",
        ),
        (json!({"teacher_tokens": 10}), "teacher_tokens: it has a meaning only where the actor lets the teacher act"),
        (json!({"actor": {"kind": "switch", "from": 3, "to": 2}}), "actor.to must be a whole number from 3"),
        (json!({"actor": {"kind": "prefix"}}), "actor.withdrawn is missing"),
        (json!({"actor": {"kind": "student", "from": 1}}), "actor.from has meaning only with kind switch"),
    ] {
        let (fault, message) = refusal(document.clone());
        assert_eq!(fault, Fault::BadValue, "{document}: {message}");
        assert!(message.starts_with(wanted), "{document}: {message}");
    }
    for (document, wanted) in [
        (
            pg(json!({"sampling": {"temperature": 0.7}})),
            "student_turns.kernel: policy-gradient is an average over what the student draws",
        ),
        (
            json!({"student_turns": {"kernel": "k2"}, "sampling": {"top_p": 0.9}}),
            "student_turns.kernel: k2 is an average",
        ),
        (
            json!({"teacher_turns": {"kernel": "policy-gradient"}}),
            "teacher_turns.kernel: policy-gradient is an average",
        ),
        (json!({"replay_turns": {"kernel": "weighted-k3"}}), "replay_turns.kernel: weighted-k3 is an average"),
        (json!({"student_turns": {"kernel": "k1"}}), "student_turns.kernel: k1 is not built"),
        (json!({"student_turns": {"kernel": "k3"}}), "student_turns.kernel: k3 is not built"),
        (
            json!({"student_turns": {"kernel": "top-k-policy-gradient"}}),
            "student_turns.kernel: top-k-policy-gradient is not built",
        ),
    ] {
        let (fault, message) = refusal(document.clone());
        assert_eq!(fault, Fault::UnsupportedMethod, "{document}: {message}");
        assert!(message.starts_with(wanted), "{document}: {message}");
    }
    // Spelling out what holds anyway is no contradiction.
    config(json!({"advantage": {"teacher": 1, "reward": 0}, "ratio": {"of": "none"}}));
}

#[test]
fn the_resolved_document_of_whatever_is_accepted_is_read() {
    for document in [
        json!({"preset": "skill-sd", "advantage": {"teacher": 0}}),
        json!({"preset": "sod", "learn_turns": "last"}),
        json!({"preset": "sod", "advantage": {"reward": 0}}),
        json!({"preset": "uopd", "actor": {"kind": "student"}}),
    ] {
        let resolved = config(document.clone()).to_json();
        assert_eq!(config(resolved.clone()).to_json(), resolved, "{document}");
    }
}

#[test]
fn explain_says_where_a_source_is_silent_and_what_moves() {
    for preset in PRESETS {
        let facts = explain(&Config::preset(preset.name).unwrap(), 150);
        let notes: Vec<&str> = facts["notes"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
        assert!(preset.notes.iter().all(|note| notes.contains(note)), "{}", preset.name);
        assert!(!preset.notes.is_empty() || preset.name == "opd", "{}", preset.name);
    }
    let told = |document: Value, words: &str| {
        let facts = explain(&config(document), 10);
        facts["notes"].as_array().unwrap().iter().any(|note| note.as_str().unwrap().contains(words))
    };
    let own = |by: &str| json!({"preset": "uopd", "actor": {"kind": "proposal", "by": by, "rate": 0.3}});
    assert!(
        told(own("student"), "own uncertainty is experimental")
            && !told(own("teacher"), "own uncertainty is experimental")
    );
    let gradient = |of: &str| json!({"student_turns": {"kernel": "policy-gradient"}, "ratio": {"of": of}});
    assert!(told(gradient("none"), "without a ratio") && !told(gradient("token"), "without a ratio"));
    let budget = json!({"preset": "guided-opd", "teacher_tokens": 100});
    assert!(told(budget, "teacher_tokens is experimental"));
    let facts = explain(&Config::preset("atod").unwrap(), 150);
    assert_eq!(
        facts["schedules"]["columns"],
        json!(["step", "learning_rate", "advantage.teacher", "advantage.reward"])
    );
    let row = |step: usize| facts["schedules"]["rows"][step].clone();
    // kappa 1 to 0.1 and rho 1 to 2 by step 80.
    assert_eq!((row(0)[2].as_f64(), row(0)[3].as_f64()), (Some(1.0), Some(1.0)));
    assert!((row(40)[2].as_f64().unwrap() - 0.55).abs() < 1e-12 && row(40)[3] == json!(1.5));
    assert_eq!((row(80)[2].as_f64(), row(149)[3].as_f64()), (Some(0.1), Some(2.0)));
    let facts = explain(&Config::preset("tcod-b2f").unwrap(), 60);
    assert_eq!(facts["schedules"]["columns"][2], json!("withdrawn"));
    assert_eq!(facts["schedules"]["rows"][59][2], json!(9.0));
}
