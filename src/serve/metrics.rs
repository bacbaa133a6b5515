//! What an engine counts. A reader takes a snapshot without a lock.
#![forbid(unsafe_code)]

use crate::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The counters of an engine.
        #[derive(Default)]
        pub(super) struct Counters { $(pub(super) $name: AtomicU64,)+ }

        /// A snapshot of an engine's counters.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
        pub struct Metrics { $($(#[doc = $doc])+ pub $name: u64,)+ }

        impl Counters {
            pub(super) fn snapshot(&self) -> Metrics {
                Metrics { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// Sessions that exist.
    sessions,
    /// Batched forward passes.
    rounds,
    /// Rows (tokens) that went through a forward.
    rows,
    /// Tokens sampled.
    sampled,
    /// Generations and other work that wait to be computed, for pages or for those before them.
    jobs_waiting,
    /// Those that are being computed.
    jobs_running,
    /// Those that gave up their pages to others and wait to be computed again.
    jobs_preempted,
    /// Times that work found pages that others had computed from the same ids.
    prefix_hits,
    /// Rows of them, which needed no computing.
    prefix_rows,
    /// Sessions at rest whose KV pages others needed; they compute again when they are used.
    evicted,
    /// Times that work gave up its KV pages to work of a higher priority or older; it computes again in its turn.
    preempted,
    /// Times that tokens which stood in a session were taken out or replaced and what stood behind them is computed
    /// again: by a history that strips thoughts, or by ids that go on otherwise.
    prefix_breaks,
    /// Bytes of weights that forward products on the engine's device read, counted where they are read.
    weight_bytes,
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
