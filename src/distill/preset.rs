//! The presets: published methods as settings of the knobs in [`config`](super::config), nothing more.
//! A preset stands between the defaults and the document that names it; every key of it may be overridden.
//!
//! Where a paper leaves a knob open (loss estimator, normaliser), the defaults decide: full-vocabulary
//! divergences and the token mean.
#![forbid(unsafe_code)]

/// Supervised fine-tuning: the host's demonstrations are replayed, or the teacher acts where there is
/// none, and their tokens are learnt by cross-entropy. Add `"filter": "success"` for rejection sampling.
const SFT: &str = r#"{
    "actor": {"kind": "replay"},
    "student_turns": {"kernel": "none"},
    "teacher_turns": {"kernel": "cross-entropy"},
    "replay_turns": {"kernel": "cross-entropy"}
}"#;

/// On-policy distillation: the student acts, reverse KL to the teacher on its turns.
const OPD: &str = r#"{
    "actor": {"kind": "student"},
    "student_turns": {"kernel": "reverse-kl"}
}"#;

/// Guided on-policy distillation (arXiv 2606.15912): the teacher takes each turn with probability beta,
/// a cosine from 1 to 0 over the first 80 % of the updates; reverse KL on student turns, forward KL on teacher turns.
const GUIDED_OPD: &str = r#"{
    "actor": {
        "kind": "bernoulli",
        "beta": {"start": 1, "end": 0, "shape": "cosine", "begin": 0, "finish": 0.8, "clock": "fraction"}
    },
    "student_turns": {"kernel": "reverse-kl"},
    "teacher_turns": {"kernel": "forward-kl"}
}"#;

/// Forward-to-backward depth curriculum (TCOD, arXiv 2604.24005): the student plays only the first
/// 1 + floor(n / eta) turns, eta 6. Every update publishes a checkpoint, so n counts steps. The line ends
/// at 1001 turns, beyond any turn cap; the cap of the episode is what ends it.
const TCOD_F2B: &str = r#"{
    "actor": {"kind": "student"},
    "student_turns": {"kernel": "reverse-kl"},
    "depth": {"start": 1, "end": 1001, "shape": "linear", "begin": 0, "finish": 1000, "clock": {"units": 6}}
}"#;

/// Every preset: its name and its settings as JSON.
pub const PRESETS: &[(&str, &str)] = &[("sft", SFT), ("opd", OPD), ("guided-opd", GUIDED_OPD), ("tcod-f2b", TCOD_F2B)];
