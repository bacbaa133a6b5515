//! The settings document of a distillation, seen from outside: layers, refusals by path, and the
//! reductions of one method to another.

use serde_json::{Value, json};
use squire::backend::ops::Loss;
use squire::distill::config::{Config, Origin};
use squire::distill::knob_table::KNOBS;
use squire::distill::preset::PRESETS;
use squire::error::Fault;

fn config(document: Value) -> Config {
    Config::from_value(&document).unwrap()
}

/// The refusal of a document: its fault and message.
fn refusal(document: Value) -> (Fault, String) {
    let e = Config::from_value(&document).unwrap_err();
    (e.fault(), e.message().to_string())
}

#[test]
fn an_empty_document_is_plain_on_policy_distillation() {
    let empty = config(json!({}));
    assert_eq!(empty.to_json(), Config::preset("opd").unwrap().to_json());
    assert!(KNOBS.iter().all(|knob| empty.origin(knob.path) == Some(Origin::Default)));
    assert_eq!(empty.origin("optimizer"), None);
}

#[test]
fn layers_go_default_then_preset_then_document() {
    let c = config(json!({"preset": "guided-opd", "teacher_turns": {"weight": 0.5}, "optimizer": {"beta2": 0.98}}));
    assert_eq!(c.preset, Some("guided-opd"));
    // The document's weight joins the preset's kernel; the rest of the optimiser keeps its defaults.
    assert_eq!((c.teacher_turns.kind, c.teacher_turns.weight), (Some(Loss::ForwardKl), 0.5));
    assert_eq!((c.optimizer.beta1, c.optimizer.beta2), (0.9, 0.98));
    let origins = ["teacher_turns.kernel", "teacher_turns.weight", "optimizer.beta1", "optimizer.beta2", "actor"];
    let preset = Origin::Preset("guided-opd");
    let wanted = [preset, Origin::Given, Origin::Default, Origin::Given, preset];
    assert_eq!(origins.map(|knob| c.origin(knob).unwrap()), wanted);
    assert_eq!(
        wanted.map(|origin| origin.to_string()),
        ["preset guided-opd", "given", "default", "given", "preset guided-opd"]
    );
}

#[test]
fn the_order_of_keys_does_not_matter() {
    let first: Value = serde_json::from_str(r#"{"preset": "tcod-f2b", "depth": null}"#).unwrap();
    let last: Value = serde_json::from_str(r#"{"depth": null, "preset": "tcod-f2b"}"#).unwrap();
    assert_eq!(config(first).to_json(), config(last.clone()).to_json());
    assert_eq!(config(last).depth, None);
}

#[test]
fn every_preset_resolves_and_survives_writing_and_reading() {
    for name in PRESETS.iter().map(|preset| preset.name) {
        let c = Config::preset(name).unwrap();
        assert_eq!(config(c.to_json()).to_json(), c.to_json(), "{name}");
        assert_eq!(Config::from_json(&c.to_json().to_string()).unwrap().to_json(), c.to_json(), "{name}");
    }
    assert!(PRESETS.len() > 15);
}

#[test]
fn every_knob_can_be_given_and_is_kept() {
    let document = json!({
        "steps": 120, "seed": u64::MAX,
        "actor": {"kind": "bernoulli", "beta": {"start": 0.9, "end": 0.1, "shape": "linear", "begin": 1.0, "finish": 50.0, "clock": "step"}},
        "depth": {"start": 2.0, "end": 9.0, "shape": "step", "begin": 0.0, "finish": 0.5, "clock": "fraction"},
        "teacher_tokens": 4000,
        "teacher_fails": "student",
        "teacher_adapter": "expert",
        "student_turns": {"kernel": "policy-gradient", "weight": 0.5},
        "teacher_turns": {"kernel": "cross-entropy", "weight": 2.0},
        "replay_turns": {"kernel": {"jsd": 0.9}, "weight": 3.0},
        "advantage": {
            "teacher": {"start": 1.0, "end": 0.1, "shape": "linear", "begin": 0.0, "finish": 80.0, "clock": "step"},
            "reward": 2.0, "constant": -0.5, "reference": "recomputed", "shape": {"clamp": 5.0}
        },
        "ratio": {"of": "turn", "clip": {"ppo": {"low": 0.2, "high": 0.28}}, "dual_clip": 3.0},
        "reward": {"of": "return", "baseline": "group", "group": 4, "eps": 1e-4, "discount": 0.95},
        "turn_weights": {"rule": "t-dur", "renormalise": true},
        "normaliser": {"blend": {"start": 0.0, "end": 1.0, "shape": "linear", "begin": 0.0, "finish": 1.0, "clock": "fraction"}},
        "normaliser_scope": "actor", "learn_turns": "last",
        "filter": "success", "truncated": "mask", "max_repeats": 3, "max_staleness": 0,
        "tail": "truncated",
        "sampling": {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
        "batch_episodes": 32,
        "optimizer": {
            "learning_rate": {"start": 0.0015, "end": 0.00015, "shape": "cosine", "begin": 0.0, "finish": 1.0, "clock": "fraction"},
            "warmup_steps": 5, "beta1": 0.8, "beta2": 0.98, "eps": 1e-6, "weight_decay": 0.01, "grad_clip": 0.0
        },
        "micro_tokens": 1024, "recompute": "feed-forward", "training_budget": 3_500_000_000_u64, "lora": {"rank": 8, "alpha": 12.0, "rslora": true, "targets": ["q_proj", "down_proj"]},
        "kept_revisions": 3, "rollback_revisions": 5, "max_turns": 20,
        "update_kl_tokens": 16, "max_update_kl": 0.25, "refuse_update_kl": 2.5, "probe_rows": 7
    });
    let c = config(document.clone());
    assert_eq!(c.to_json(), document);
    assert!(KNOBS.iter().all(|knob| c.origin(knob.path) == Some(Origin::Given)));
    let paths = KNOBS.iter().map(|knob| format!("/{}", knob.path.replace('.', "/")));
    assert!(paths.clone().all(|path| document.pointer(&path).is_some()));
}

#[test]
fn warm_up_scales_the_learning_rate_schedule() {
    let c = config(json!({"optimizer": {"warmup_steps": 4, "learning_rate":
        {"start": 1.0, "end": 0.1, "shape": "cosine", "finish": 1, "clock": "fraction"}}}));
    let at = |step| c.optimizer.learning_rate_at(step, 100);
    let cosine = |s: f64| 1.0 - 0.9 * (1.0 - (std::f64::consts::PI * s / 100.0).cos()) / 2.0;
    for (step, factor) in [(0u32, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (4, 1.0), (50, 1.0)] {
        assert!((at(u64::from(step)) - factor * cosine(f64::from(step))).abs() < 1e-14, "{step}");
    }
    assert_eq!(at(100), 0.1);
    assert_eq!(Config::default().optimizer.learning_rate_at(0, 250), 1e-6);
}

#[test]
fn text_that_is_not_json_is_refused() {
    for text in ["", "{", "{\"steps\": NaN}", "{} {}", "\u{0}"] {
        assert_eq!(Config::from_json(text).unwrap_err().fault(), Fault::BadJson, "{text:?}");
    }
    assert_eq!(Config::from_json(&"[".repeat(100_000)).unwrap_err().fault(), Fault::BadJson);
}

#[test]
fn an_unknown_preset_is_refused_with_the_known_ones() {
    let (fault, message) = refusal(json!({"preset": "atodd"}));
    assert_eq!(fault, Fault::UnknownPreset);
    assert!(
        message.starts_with("preset atodd is not known; known are sft, opd, opd-sampled, gkd, guided-opd,"),
        "{message}"
    );
    assert!(refusal(json!({"preset": "x".repeat(1 << 20)})).1.len() < 500);
    assert_eq!(refusal(json!({"preset": null})).0, Fault::BadValue);
}

#[test]
fn an_unknown_key_is_refused_with_its_path_and_the_known_ones() {
    let (fault, message) = refusal(json!({"step": 3}));
    assert_eq!(fault, Fault::UnknownKey);
    assert!(message.starts_with("unknown key `step`; known here: preset, steps, seed, actor"), "{message}");
    for (document, path) in [
        (json!({"optimizer": {"beta3": 1}}), "optimizer.beta3"),
        (json!({"sampling": {"min_p": 0.1}}), "sampling.min_p"),
        (json!({"student_turns": {"clip": 0.2}}), "student_turns.clip"),
        (json!({"actor": {"kind": "student", "lambda": 1}}), "actor.lambda"),
        (json!({"depth": {"start": 1, "shape": "const", "eta": 6}}), "depth.eta"),
        (json!({"group_size": 8}), "group_size"),
    ] {
        let (fault, message) = refusal(document);
        assert_eq!(fault, Fault::UnknownKey);
        assert!(message.starts_with(&format!("unknown key `{path}`")), "{message}");
    }
}

#[test]
fn every_knob_refuses_wrong_types_and_ranges_by_its_path() {
    let wrong = [
        ("steps", json!([0, 1.5, -1, "10", null, 1_000_000_001u64])),
        ("seed", json!([-1, 0.5, "a", null])),
        ("actor", json!(["student", 3, null, []])),
        ("actor.kind", json!(["mixtures", 1, null])),
        ("teacher_tokens", json!([-1, 0.5, "all", null])),
        ("teacher_fails", json!([true, "never", null])),
        ("teacher_adapter", json!(["", 1, true, ["expert"]])),
        ("advantage", json!([1, null])),
        ("advantage.teacher", json!([-1, 1001, "1"])),
        ("advantage.reward", json!([-0.1, "1", null])),
        ("advantage.constant", json!([-1001, "1", null])),
        ("advantage.reference", json!(["old", 1, null])),
        (
            "advantage.shape",
            json!(["clip", {}, {"clamp": 0}, {"clamp": -1}, {"tanh": "1"}, {"power": 1, "tanh": 1}, null]),
        ),
        ("ratio.of", json!(["sequence", true, null])),
        (
            "ratio.clip",
            json!([0.2, {}, {"ppo": 0}, {"ppo": -0.2}, {"ppo": 1}, {"ppo": {"low": 0.2}}, {"ppo": {"low": -0.1, "high": 0.2}}, {"ppo": {"low": 0.2, "high": -0.2}}, {"truncate": 0.5}, null]),
        ),
        ("ratio.dual_clip", json!([1, -3, 0.5, "3", null])),
        ("reward.of", json!(["sum", 1, null])),
        ("reward.baseline", json!(["critic", null])),
        ("reward.group", json!([0, 1, 65_537, 2.5, null])),
        ("reward.eps", json!([0, -1, 2, null])),
        ("reward.discount", json!([-0.1, 1.1, null])),
        ("turn_weights.rule", json!(["tdur", {}, {"sod": -1}, {"gap-ratio": 0}, {"sod": 1, "gap-ratio": 1}, null])),
        ("turn_weights.renormalise", json!([1, "yes", null])),
        ("normaliser_scope", json!(["turn", null])),
        ("learn_turns", json!(["first", 1, null])),
        ("truncated", json!(["keep", true, null])),
        ("max_repeats", json!([-1, 1.5, null])),
        ("depth", json!(["deep", true, 0, 0.5, 2e6])),
        ("student_turns", json!(["reverse-kl", null])),
        ("student_turns.kernel", json!(["kl", 1, null])),
        ("student_turns.weight", json!([0, -1, 1e7, "1", null])),
        ("teacher_turns.kernel", json!(["kl", {"jsd": 0}, {"jsd": 1}, {"jsd": "half"}, {"jsd": null}])),
        ("teacher_turns.weight", json!([0])),
        ("replay_turns.kernel", json!([["none"]])),
        ("replay_turns.weight", json!([{}])),
        ("normaliser", json!(["mean", 1, null, {}, {"blend": 1.5}, {"fixed": 0}, {"fixed": 10, "blend": 0}])),
        ("filter", json!(["failure", false])),
        ("max_staleness", json!([-1, 1.0, 1_000_001])),
        ("sampling", json!([1])),
        ("sampling.temperature", json!([-0.1, 101, "1"])),
        ("sampling.top_k", json!([-1, 1.5, 4_294_967_296u64])),
        ("sampling.top_p", json!([0, 1.1, null])),
        ("batch_episodes", json!([0, 65_537, 1.0])),
        ("optimizer", json!(["adam"])),
        ("optimizer.learning_rate", json!([-1, 11, "1e-6"])),
        ("optimizer.warmup_steps", json!([-1, 0.5])),
        ("optimizer.beta1", json!([1, -0.1, "0.9"])),
        ("optimizer.beta2", json!([1, -0.1, null])),
        ("optimizer.eps", json!([0, 2])),
        ("optimizer.weight_decay", json!([-1, 2])),
        ("optimizer.grad_clip", json!([-1, 1e13])),
        ("micro_tokens", json!([0, 16_777_217])),
        ("recompute", json!(["none", "all", true, 1])),
        ("training_budget", json!([-1, 0.5, "4 GB", null])),
        ("lora", json!([true, 16, "all"])),
        ("lora.rank", json!([0, -1, 1.5, "16", 4097])),
        ("tail", json!(["all", 1, null])),
        ("lora.alpha", json!([0, -1, "32", null, 1e7])),
        ("lora.rslora", json!([1, "yes", null])),
        ("lora.dropout", json!([0.05, 1, "0"])),
        ("lora.targets", json!(["q_proj", [], [1], ["gate"], ["lm_head"], ["experts.0.up_proj"], ["kv_proj"], null])),
        ("kept_revisions", json!([0, 1025])),
        ("rollback_revisions", json!([-1, 65, "all", null])),
        ("max_turns", json!([0, 1_000_001])),
        ("update_kl_tokens", json!([-1, 65, "all", null])),
        ("max_update_kl", json!([-0.1, 1e13, "1"])),
        ("refuse_update_kl", json!([-0.1, "never"])),
        ("probe_rows", json!([-1, 65, 1.5, null])),
    ];
    assert!(KNOBS.iter().all(|knob| wrong.iter().any(|(path, _)| *path == knob.path)));
    for (path, values) in wrong {
        for value in values.as_array().unwrap() {
            let document = match path.split_once('.') {
                None => json!({ path: value }),
                Some((outer, inner)) => json!({ outer: { inner: value } }),
            };
            let (fault, message) = refusal(document);
            assert_eq!(fault, Fault::BadValue, "{path} {value}");
            assert!(message.starts_with(path), "{path} {value}: {message}");
        }
    }
}

#[test]
fn beta_goes_with_bernoulli_and_stays_a_probability() {
    let actor = |actor: Value| refusal(json!({ "actor": actor })).1;
    assert_eq!(actor(json!({"kind": "bernoulli"})), "actor.beta is missing");
    assert_eq!(actor(json!({"kind": "student", "beta": 1})), "actor.beta has meaning only with kind bernoulli");
    let message = actor(json!({"kind": "bernoulli", "beta": {"start": 2, "end": 0, "shape": "linear", "finish": 9}}));
    assert_eq!(message, "actor.beta must stay within 0 to 1, found values from 0 to 2");
    let message = actor(json!({"kind": "bernoulli", "beta": {"start": 1, "end": 0, "shape": "exp", "finish": 9}}));
    assert!(message.starts_with("actor.beta: shape exp needs both ends above 0"), "{message}");
}

#[test]
fn settings_under_which_nothing_is_learnt_are_refused() {
    let (fault, message) = refusal(json!({"student_turns": {"kernel": "none"}}));
    assert_eq!(fault, Fault::UnsupportedMethod);
    assert_eq!(message, "no turn would carry loss: actor student with student_turns.kernel none");
    assert_eq!(refusal(json!({"actor": {"kind": "teacher"}})).0, Fault::UnsupportedMethod);
    assert_eq!(refusal(json!({"actor": {"kind": "replay"}})).0, Fault::UnsupportedMethod);
    // One trained actor is enough.
    config(json!({"actor": {"kind": "bernoulli", "beta": 0.5}}));
}
