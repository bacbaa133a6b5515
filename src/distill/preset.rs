//! The presets: published methods as settings of the knobs in [`knob_table`](super::knob_table), nothing more. A preset stands
//! between the defaults and the document that names it; every key of it may be overridden.
//!
//! Where a source leaves a knob open, the defaults decide: full-vocabulary divergences and the token mean. What a source leaves
//! open or has otherwise, and what was chosen, is said beside each preset and by `explain`.
#![forbid(unsafe_code)]

/// A published method.
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// What it is, with its source.
    pub what: &'static str,
    /// Its settings, as JSON.
    pub settings: &'static str,
    /// Where the source is silent or differs, and what was chosen.
    pub notes: &'static [&'static str],
}

/// Every preset.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "sft",
        what: "Supervised fine-tuning: the host's demonstrations are replayed, or the teacher acts where there is none, and their \
               tokens are learnt by cross-entropy.",
        settings: r#"{
            "actor": {"kind": "replay"},
            "student_turns": {"kernel": "none"},
            "teacher_turns": {"kernel": "cross-entropy"},
            "replay_turns": {"kernel": "cross-entropy"}
        }"#,
        notes: &["with \"filter\": \"success\" it is rejection-sampling fine-tuning"],
    },
    Preset {
        name: "opd",
        what: "On-policy distillation: the student acts, and its turns carry the reverse KL to the teacher.",
        settings: r#"{
            "actor": {"kind": "student"},
            "student_turns": {"kernel": "reverse-kl"}
        }"#,
        notes: &[
            "sources take a sampled estimate of the reverse KL (a policy gradient on ln q - ln p); here it is exact over the \
                  vocabulary, which has the same mean and no variance; \"opd-sampled\" has the estimate",
        ],
    },
    Preset {
        name: "opd-sampled",
        what: "On-policy distillation as Thinking Machines' cookbook has it: a policy gradient whose advantage is ln q - ln p of the \
               draw, with the token's importance ratio and no clip.",
        settings: r#"{
            "actor": {"kind": "student"},
            "student_turns": {"kernel": "policy-gradient"},
            "ratio": {"of": "token"}
        }"#,
        notes: &[
            "only the immediate term of each token is used, not the sum of later ones, as every agentic source does: biased for \
                  the KL of whole sequences, with less variance",
        ],
    },
    Preset {
        name: "gkd",
        what: "Generalised knowledge distillation (arXiv 2306.13649): with probability 1 - lambda an episode is a demonstration, else the \
               student's own, and both carry the generalised Jensen-Shannon divergence; lambda 0.5, b 0.5.",
        settings: r#"{
            "actor": {"kind": "mixture", "replay": 0.5},
            "student_turns": {"kernel": "jsd"},
            "replay_turns": {"kernel": "jsd"},
            "normaliser": "sequence-mean"
        }"#,
        notes: &[
            "the paper's best divergence depends on the task; lambda and b 0.5 are the defaults of other libraries",
        ],
    },
    Preset {
        name: "guided-opd",
        what: "Guided on-policy distillation (arXiv 2606.15912): the teacher takes each turn with probability beta, a cosine from 1 to 0 \
               over the first 80 % of the updates; reverse KL on student turns, forward KL on teacher turns.",
        settings: r#"{
            "actor": {
                "kind": "bernoulli",
                "beta": {"start": 1, "end": 0, "shape": "cosine", "begin": 0, "finish": 0.8, "clock": "fraction"}
            },
            "student_turns": {"kernel": "reverse-kl"},
            "teacher_turns": {"kernel": "forward-kl"}
        }"#,
        notes: &[
            "the paper does not say whether its divergences are exact or sampled: exact over the vocabulary was chosen",
            "nor how the two sums are weighed and normalised: one mean over all trained tokens, weights 1; \
             \"guided-opd-sampled\" has what a re-implementation does",
            "beta is that of the step at which an episode begins, for all its turns",
        ],
    },
    Preset {
        name: "guided-opd-sampled",
        what: "Guided on-policy distillation as the FutureBridge repository re-implements it: sampled reverse KL with a PPO clip of 0.2 on \
               student turns, cross-entropy on teacher turns, 0.5 of each one's own mean.",
        settings: r#"{
            "actor": {
                "kind": "bernoulli",
                "beta": {"start": 1, "end": 0, "shape": "cosine", "begin": 0, "finish": 0.8, "clock": "fraction"}
            },
            "student_turns": {"kernel": "policy-gradient", "weight": 0.5},
            "teacher_turns": {"kernel": "cross-entropy", "weight": 0.5},
            "ratio": {"of": "token", "clip": {"ppo": 0.2}},
            "normaliser_scope": "actor"
        }"#,
        notes: &["that repository normalises each part by its own batch; here by its own trained tokens"],
    },
    Preset {
        name: "tcod-f2b",
        what: "TCOD forward to backward (arXiv 2604.24005): the student plays only the first 1 + floor(n / 6) turns.",
        settings: r#"{
            "actor": {"kind": "student"},
            "student_turns": {"kernel": "reverse-kl"},
            "depth": {"start": 1, "end": 1001, "shape": "linear", "begin": 0, "finish": 1000, "clock": {"units": 6}}
        }"#,
        notes: &[
            "the paper writes the forward KL, its code takes the sampled reverse KL: the reverse KL was chosen, exact; \"tcod-code\" \
             has the code's",
            "n counts updates, each of which may be published; the depth ends at 1001 turns, beyond any turn cap",
            "the source trains only on tasks for which the teacher has a success: the host chooses its tasks",
        ],
    },
    Preset {
        name: "tcod-b2f",
        what: "TCOD backward to forward (arXiv 2604.24005): the teacher's demonstration is replayed but for its last turn and \
               floor(n / 6) more, without loss, and the student goes on from there.",
        settings: r#"{
            "actor": {
                "kind": "prefix",
                "withdrawn": {"start": 0, "end": 1000, "shape": "linear", "begin": 0, "finish": 1000, "clock": {"units": 6}}
            },
            "student_turns": {"kernel": "reverse-kl"}
        }"#,
        notes: &[
            "the paper's text, its algorithm and its code differ by one in where the student begins: the code's L - 1 - floor(n / eta) \
             replayed turns were chosen",
            "in the code the student's chat memory starts empty where it takes over; here it sees the replayed turns",
            "as in tcod-f2b the reverse KL was chosen, exact",
        ],
    },
    Preset {
        name: "tcod-code",
        what: "TCOD forward to backward as its code has it (github.com/kokolerk/TCOD): sampled reverse KL of the draw, PPO clip 0.2 with \
               a dual clip of 3, sequence mean of token means.",
        settings: r#"{
            "actor": {"kind": "student"},
            "student_turns": {"kernel": "policy-gradient"},
            "ratio": {"of": "token", "clip": {"ppo": 0.2}, "dual_clip": 3},
            "normaliser": "sequence-mean",
            "depth": {"start": 1, "end": 1001, "shape": "linear", "begin": 0, "finish": 1000, "clock": {"units": 6}}
        }"#,
        notes: &[
            "the code trains one experience a turn, so its sequence is a turn: with \"normaliser\": \"turn-mean\" each turn counts the \
                  same, as there; sequence-mean is of whole episodes",
        ],
    },
    Preset {
        name: "atod",
        what: "ATOD (arXiv 2606.27814): one clipped policy gradient on kappa w (ln q - ln p) + rho A, A the group's advantage, kappa from 1 \
               to 0.1 and rho from 1 to 2 by step 80, w by T-DUR.",
        settings: r#"{
            "actor": {"kind": "student"},
            "student_turns": {"kernel": "policy-gradient"},
            "advantage": {
                "teacher": {"start": 1, "end": 0.1, "shape": "linear", "begin": 0, "finish": 80, "clock": "step"},
                "reward": {"start": 1, "end": 2, "shape": "linear", "begin": 0, "finish": 80, "clock": "step"}
            },
            "ratio": {"of": "token", "clip": {"ppo": 0.2}},
            "reward": {"of": "score", "baseline": "group", "group": 8},
            "turn_weights": {"rule": "t-dur"},
            "normaliser": "sequence-mean"
        }"#,
        notes: &[
            "the paper does not state the clip, the deviation's epsilon or whether ln p in the advantage is that of the draw: PPO's 0.2, 1e-6 \
             and the draw's were chosen",
            "T-DUR's d and h are taken with the log-probs of the draw",
        ],
    },
    Preset {
        name: "opd-then-rl",
        what: "Distillation, then reinforcement learning (arXiv 2609.04108): the advantage is ln q - ln p up to step 60 and the group's from \
               there on.",
        settings: r#"{
            "actor": {"kind": "student"},
            "student_turns": {"kernel": "policy-gradient"},
            "advantage": {
                "teacher": {"start": 1, "end": 0, "shape": "step", "begin": 0, "finish": 60, "clock": "step"},
                "reward": {"start": 0, "end": 1, "shape": "step", "begin": 0, "finish": 60, "clock": "step"}
            },
            "ratio": {"of": "token", "clip": {"ppo": 0.2}},
            "reward": {"of": "score", "baseline": "group", "group": 8}
        }"#,
        notes: &[
            "the source switches at the plateau of its validation curve, at step 60 of 150: set \"finish\" to your own run's",
        ],
    },
    Preset {
        name: "grpo",
        what: "GRPO (arXiv 2402.03300): a clipped policy gradient on the group's advantage, no teacher.",
        settings: r#"{
            "actor": {"kind": "student"},
            "student_turns": {"kernel": "policy-gradient"},
            "advantage": {"teacher": 0, "reward": 1},
            "ratio": {"of": "token", "clip": {"ppo": 0.2}},
            "reward": {"of": "score", "baseline": "group", "group": 8},
            "normaliser": "sequence-mean"
        }"#,
        notes: &["without the KL to a reference model that the source has; the deviation is the sample's (n - 1)"],
    },
    Preset {
        name: "turn-ppo",
        what: "The clipped policy gradient with the importance ratio of a whole turn, after Turn-PPO and ST-PPO (arXiv 2511.20718).",
        settings: r#"{
            "actor": {"kind": "student"},
            "student_turns": {"kernel": "policy-gradient"},
            "advantage": {"teacher": 0, "reward": 1},
            "ratio": {"of": "turn", "clip": {"ppo": 0.2}},
            "reward": {"of": "return", "baseline": "group", "group": 8},
            "normaliser": "turn-mean"
        }"#,
        notes: &[
            "the sources' formulas are unsettled: built was the geometric mean of the token ratios, each token differentiated as if the \
             ratio were its own; the clipping-bias correction is not built",
            "the source's advantage comes from a critic; here from returns compared within the group",
        ],
    },
    Preset {
        name: "oec",
        what: "On-policy expert corrections (arXiv 2512.14895): the student begins, from turn K on the teacher goes on, K even from 0 to 30; \
               cross-entropy on the teacher's tokens of episodes that succeed.",
        settings: r#"{
            "actor": {"kind": "switch", "from": 0, "to": 30},
            "student_turns": {"kernel": "none"},
            "teacher_turns": {"kernel": "cross-entropy"},
            "filter": "success",
            "max_repeats": 3
        }"#,
        notes: &[
            "the source's repetition filter is not stated: dropped is an episode in which one action stands more than three times in a row",
            "the source lets the student play greedily and trains offline, in rounds, mixed with whole demonstrations",
        ],
    },
    Preset {
        name: "dagger",
        what: "DAgger for agents (arXiv 2605.12913): the teacher acts with probability beta (1, 0.8, then 0.6), and labels every turn that \
               the student acts; cross-entropy on what the teacher said.",
        settings: r#"{
            "actor": {
                "kind": "bernoulli",
                "beta": {"start": 1, "end": 0.6, "shape": "linear", "begin": 0, "finish": 2, "clock": {"units": 1}}
            },
            "student_turns": {"kernel": "none"},
            "teacher_turns": {"kernel": "cross-entropy"},
            "sampling": {"temperature": 0.7, "top_p": 0.9}
        }"#,
        notes: &[
            "a label is a fork: where the student is to act, the host forks the episode, overrides the fork to the teacher, lets it act \
             and ends the fork, whose one turn is then learnt",
            "labels are ended episodes: build with as many as wait, or batch_episodes leaves them to grow stale",
            "beta falls by update; the source's rounds are of 512 tasks and three epochs, so give \"units\" as many updates as a round has",
        ],
    },
    Preset {
        name: "uopd",
        what: "Uncertainty-gated guidance (the UOPD repository, github.com/onepounchman/UOPD): the student proposes every turn; the share of \
               proposals that are the most surprising to the teacher, from 0.3 falling to 0.05 by step 120, is replaced by the teacher's turn, learnt by \
               cross-entropy; the others by the sampled reverse KL without a clip.",
        settings: r#"{
            "actor": {
                "kind": "proposal",
                "by": "teacher",
                "rate": {"start": 0.3, "end": 0.05, "shape": "linear", "begin": 0, "finish": 120, "clock": "step"}
            },
            "student_turns": {"kernel": "policy-gradient"},
            "teacher_turns": {"kernel": "cross-entropy"},
            "advantage": {"shape": {"clamp": 20}},
            "ratio": {"of": "token"}
        }"#,
        notes: &[
            "the window of 1,000 proposals and the least of 300 are the repository's; until then none is replaced",
            "what is compared there is not stated in full: the log-ratio is held within 20 nats, and one mean over all tokens was chosen",
            "the host asks squire_episode_judge after the student's turn; \"by\": \"student\" gates on the student's own uncertainty and is \
             experimental",
        ],
    },
    Preset {
        name: "sod",
        what: "SOD (arXiv 2605.07725): a policy gradient on w (ln q - ln p) plus the group's advantage, w falling where a turn diverges more \
               than the first.",
        settings: r#"{
            "actor": {"kind": "student"},
            "student_turns": {"kernel": "policy-gradient"},
            "advantage": {"teacher": 1, "reward": 1},
            "ratio": {"of": "token", "clip": {"ppo": 0.2}},
            "reward": {"of": "score", "baseline": "group", "group": 16},
            "turn_weights": {"rule": {"sod": 0.2}}
        }"#,
        notes: &[
            "the weights follow a re-implementation; clip and normaliser are not stated: PPO's 0.2 and the token mean were chosen",
        ],
    },
    Preset {
        name: "og-opd",
        what: "OG-OPD (arXiv 2609.35319) as far as its formulas go without branches: w = min(1.2, gap of the first turn over this one's), a \
               clipped policy gradient.",
        settings: r#"{
            "actor": {"kind": "student"},
            "student_turns": {"kernel": "policy-gradient"},
            "ratio": {"of": "token", "clip": {"ppo": 0.2}, "dual_clip": 3},
            "turn_weights": {"rule": {"gap-ratio": 1.2}}
        }"#,
        notes: &[
            "the source raises a turn's weight to 1.5 where a paired continuation from the teacher's action succeeds and one from the \
                  student's does not: its candidates and pairs are not built (forks are what to build them on)",
        ],
    },
    Preset {
        name: "skill-sd",
        what: "Skill-SD (arXiv 2604.10674): the group's advantage and 0.001 of the sampled reverse KL to the model itself with a skill in its \
               prompt.",
        settings: r#"{
            "actor": {"kind": "student"},
            "student_turns": {"kernel": "policy-gradient"},
            "advantage": {"teacher": 0.001, "reward": 1, "reference": "recomputed"},
            "ratio": {"of": "token"},
            "reward": {"of": "score", "baseline": "group", "group": 8}
        }"#,
        notes: &[
            "the source's importance-weighted k3 has, token by token, the gradient of this policy gradient (docs/methods.md)",
            "the teacher sees the skill where the host gives it one (teacher_prefix, teacher_messages); without one it sees what the student sees",
            "group size and clip are not stated: 8 and none were chosen",
        ],
    },
    Preset {
        name: "ccopd",
        what: "CCOPD (arXiv 2605.30251): the reverse KL on the student's last turn to a teacher that saw the whole request at once.",
        settings: r#"{
            "actor": {"kind": "student"},
            "student_turns": {"kernel": "reverse-kl"},
            "learn_turns": "last",
            "sampling": {"temperature": 1, "top_p": 0.95}
        }"#,
        notes: &[
            "the teacher sees the clean request where the host gives it one (teacher_messages); without one it sees what the student sees",
        ],
    },
    Preset {
        name: "no-teacher",
        what: "A control (arXiv 2608.31046): no teacher, every token of the student's has the advantage -1.",
        settings: r#"{
            "actor": {"kind": "student"},
            "student_turns": {"kernel": "policy-gradient"},
            "advantage": {"teacher": 0, "constant": -1},
            "ratio": {"of": "token", "clip": {"ppo": 0.2}}
        }"#,
        notes: &[
            "the source's constant is not known to us: -1 was chosen; a constant advantage of what the student draws has no gradient on \
                  average, so whatever it does comes from clips, sampling noise and the optimiser",
        ],
    },
    Preset {
        name: "student-retry",
        what: "A control for guidance (arXiv 2609.35303): the student acts throughout and the teacher only scores, with the sampled loss and \
               the optimiser of guided-opd-sampled; the host plays again what failed, for the tokens that a teacher would have said.",
        settings: r#"{
            "actor": {"kind": "student"},
            "student_turns": {"kernel": "policy-gradient", "weight": 0.5},
            "ratio": {"of": "token", "clip": {"ppo": 0.2}},
            "normaliser_scope": "actor"
        }"#,
        notes: &[
            "which episodes are played again is the host's: it owns the environment; the report's teacher_tokens of the guided run \
                  is the budget to spend",
        ],
    },
];
