//! What an engine counts. A reader takes a snapshot, and whoever counts never waits for one.
#![forbid(unsafe_code)]

use std::time::Instant;

use super::latency::{Histogram, Latency};
use super::speed::Speed;
use crate::sync::atomic::{AtomicU64, Ordering};

/// What a number is: whether it also falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
}

/// A number with its name and what it counts.
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: Kind,
    pub(super) value: u64,
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $kind:ident $name:ident,)+) => {
        /// The counters of an engine.
        #[derive(Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)+
            speed: Speed,
            first_token: Histogram,
            inter_token: Histogram,
        }

        /// A snapshot of an engine's counters.
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
        pub struct Metrics {
            $($(#[doc = $doc])+ pub $name: u64,)+
            /// Tokens sampled a second, of all generations together and idle time included, over the last nine whole seconds and
            /// the one under way; since the engine began where that is less.
            pub tokens_per_second: f64,
            /// From the call that starts a generation to its first token.
            pub time_to_first_token_seconds: Latency,
            /// From a token of a generation to its next one.
            pub inter_token_seconds: Latency,
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> Metrics {
                Metrics {
                    $($name: self.$name.load(Ordering::Relaxed),)+
                    tokens_per_second: self.speed.rate(),
                    time_to_first_token_seconds: self.first_token.snapshot(),
                    inter_token_seconds: self.inter_token.snapshot(),
                }
            }
        }

        impl Metrics {
            /// The whole numbers.
            pub(super) fn figures(&self) -> Vec<Figure> {
                let help = |text: &'static str| text.trim();
                vec![$(Figure {
                    name: stringify!($name),
                    help: help(concat!($($doc),+)),
                    kind: Kind::$kind,
                    value: self.$name,
                },)+]
            }
        }
    };
}

counters! {
    /// Sessions that exist.
    Gauge sessions,
    /// Batched forward passes.
    Counter rounds,
    /// Rows (tokens) that went through a forward.
    Counter rows,
    /// Tokens sampled.
    Counter sampled,
    /// Generations and other work that wait to be computed, for pages or for those before them.
    Gauge jobs_waiting,
    /// Those that are being computed.
    Gauge jobs_running,
    /// Those that gave up their pages to others and wait to be computed again.
    Gauge jobs_preempted,
    /// Times that work found pages that others had computed from the same ids.
    Counter prefix_hits,
    /// Rows of them, which needed no computing.
    Counter prefix_rows,
    /// Sessions at rest whose KV pages others needed; they compute again when they are used.
    Counter evicted,
    /// Times that work gave up its KV pages to work of a higher priority or older; it computes again in its turn.
    Counter preempted,
    /// Times that tokens which stood in a session were taken out or replaced and what stood behind them is computed
    /// again: by a history that strips thoughts, or by ids that go on otherwise.
    Counter prefix_breaks,
    /// Bytes of weights that forward products on the engine's device read, counted where they are read.
    Counter weight_bytes,
    /// Bytes of weights that batched forward passes read; what is in weight_bytes beside them is of updates.
    Counter round_weight_bytes,
    /// Bytes of weights that a batched forward pass read, on average.
    Gauge weight_bytes_per_round,
    /// Bytes of KV pages that timelines hold, of all models; what several share counts once.
    Gauge kv_in_use_bytes,
    /// Bytes of KV pages that nobody holds, kept for whoever asks for the ids that they were computed from.
    Gauge kv_idle_bytes,
    /// Bytes that the KV pages of all models may take.
    Gauge kv_budget_bytes,
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// When a generation's last token came; at first, when it was asked for.
pub(super) struct Clock {
    last: Instant,
    is_first: bool,
}

impl Clock {
    /// Begins now.
    pub(super) fn begin() -> Clock {
        Clock { last: Instant::now(), is_first: true }
    }
}

impl Counters {
    /// A token that is sampled now.
    pub(super) fn sampled(&self, clock: &mut Clock) {
        let now = Instant::now();
        let time = now.saturating_duration_since(clock.last);
        add(&self.sampled, 1);
        if clock.is_first { &self.first_token } else { &self.inter_token }.add(time);
        self.speed.add(now);
        *clock = Clock { last: now, is_first: false };
    }
}
