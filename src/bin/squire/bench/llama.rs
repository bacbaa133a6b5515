//! Measured as llama-bench measures, and told in its columns, so that figures of both stand side by side.
//!
//! `pp512` is one prompt of 512 tokens with logits of its last, `tg128` are 128 tokens one by one with logits of each, every one
//! given and none sampled; `@ d4096` says how many tokens stood in the KV cache before, which are not timed. That is the
//! model's forward pass and head alone: no session, no draw, no log-prob. A prompt is computed in passes of at most
//! `max_batch_tokens`. Means and sample standard deviations over the repeats, after an untimed one, as llama-bench's own.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use squire::backend::ops::RowList;
use squire::model::forward::{Segment, forward, head};
use squire::model::{Activations, KvCache, KvPool, Model, Weights};
use squire::random::{Stream, below};
use squire::serve::{Counted, Revision};

use super::Args;
use super::bed::Bed;
use crate::output::{Failure, Output};
use crate::waiting::Waiting;

/// A timeline that is computed by hand.
struct Timeline {
    model: Arc<Model>,
    revision: Arc<Revision>,
    activations: Activations,
    kv: KvCache,
    ids: Vec<i32>,
    /// rows of a pass
    most: usize,
}

impl Timeline {
    fn weights(&self) -> &Arc<Counted<Weights>> {
        &self.revision.weights
    }

    /// Computes the next `n` tokens in passes of `step`, each with the logits of its last row.
    fn go_on(&mut self, n: usize, step: usize) -> Result<(), Failure> {
        let weights = self.weights().clone();
        let Timeline { model, activations, kv, ids, .. } = self;
        let first = kv.len();
        // As an engine's round has it: the threads are this pass's until it is over.
        let _turn = model.device.round();
        for ids in ids[first..first + n].chunks(step) {
            forward(model, &weights, &mut [Segment { ids, kv, adapter: None }], activations)?;
            head(model, &weights, activations, &RowList::of(&model.device, &[ids.len() - 1])?)?;
        }
        Ok(())
    }

    /// Tokens a second of the `n` behind the first `depth`.
    fn rate(&mut self, depth: usize, n: usize, step: usize) -> Result<f64, Failure> {
        self.kv.truncate(depth);
        let before = depth - self.kv.len();
        self.go_on(before, self.most)?;
        let begun = Instant::now();
        self.go_on(n, step)?;
        Ok(n as f64 / begun.elapsed().as_secs_f64())
    }
}

/// One line.
struct Measured {
    test: String,
    n_prompt: u32,
    n_gen: u32,
    depth: u32,
    rates: Vec<f64>,
}

impl Measured {
    /// Mean and sample standard deviation, tokens a second; 0 where there is one repeat.
    fn spread(&self) -> (f64, f64) {
        let n = self.rates.len() as f64;
        let mean = self.rates.iter().sum::<f64>() / n;
        let squares: f64 = self.rates.iter().map(|rate| (rate - mean).powi(2)).sum();
        (mean, (squares / (n - 1.0).max(1.0)).sqrt())
    }

    fn to_json(&self) -> Value {
        let (mean, deviation) = self.spread();
        json!({
            "test": self.test,
            "n_prompt": self.n_prompt,
            "n_gen": self.n_gen,
            "n_depth": self.depth,
            "avg_ts": mean,
            "stddev_ts": deviation,
            "samples_ts": self.rates,
        })
    }
}

pub(super) fn run(args: &Args, out: &mut Output) -> Result<(), Failure> {
    let deepest = args.depths.iter().max().copied().unwrap_or(0);
    let context = deepest as usize + args.prefill.max(args.decode) as usize;
    let bed = Bed::make(&args.shape, &args.engine, context)?;
    let served = bed.model()?;
    let model = served.model().clone();
    let pool = KvPool::new(&model.device, model.page_shape(), u64::MAX);
    let vocab = model.config.vocab_size as u64;
    let mut timeline = Timeline {
        revision: served.current(),
        activations: Activations::for_serving(&model)?,
        kv: KvCache::new(&pool),
        ids: (0..context as u64).map(|i| below(Stream::World, &[i], vocab) as i32).collect(),
        most: bed.engine.options().max_batch_tokens,
        model,
    };
    let mut lines = Vec::new();
    for &depth in &args.depths {
        for (kind, n, step) in [("pp", args.prefill, timeline.most), ("tg", args.decode, 1)] {
            let behind = if depth > 0 { format!(" @ d{depth}") } else { String::new() };
            let test = format!("{kind}{n}{behind}");
            let _waiting = Waiting::begin(test.clone());
            let untimed = if kind == "pp" { n } else { n.min(8) };
            timeline.rate(depth as usize, untimed as usize, step)?;
            let rates = (0..args.repeats).map(|_| timeline.rate(depth as usize, n as usize, step));
            let rates = rates.collect::<Result<Vec<f64>, Failure>>()?;
            let (n_prompt, n_gen) = if kind == "pp" { (n, 0) } else { (0, n) };
            lines.push(Measured { test, n_prompt, n_gen, depth, rates });
        }
    }
    if args.json {
        let mut facts = bed.facts(&served);
        facts.insert("tests".into(), lines.iter().map(Measured::to_json).collect());
        return out.json(&facts.into());
    }
    let weights = timeline.weights();
    let (size, parameters) = (size(weights.bytes()), parameters(weights.n_parameters()));
    let model = format!("{} BF16", args.shape.0);
    out.text(&row(["model", "size", "params", "backend", "threads", "test", "t/s"]))?;
    out.text(&rule())?;
    for line in &lines {
        let (mean, deviation) = line.spread();
        let speed = format!("{mean:.2} ± {deviation:.2}");
        out.text(&row([&model, &size, &parameters, "CPU", &bed.n_threads.to_string(), &line.test, &speed]))?;
    }
    let compute = bed.engine.options().compute.name();
    out.text(&format!("\nbuild: squire {}, {}, compute {compute}\n", env!("CARGO_PKG_VERSION"), bed.kernels))
}

/// Widths of the columns, and whether they stand to the right.
const COLUMNS: [(usize, bool); 7] =
    [(30, false), (10, true), (10, true), (10, false), (7, true), (15, true), (20, true)];

fn row(cells: [&str; 7]) -> String {
    let mut text = String::from("|");
    for (cell, (width, right)) in cells.into_iter().zip(COLUMNS) {
        text += &if right { format!(" {cell:>width$} |") } else { format!(" {cell:<width$} |") };
    }
    text + "\n"
}

fn rule() -> String {
    let cells = COLUMNS.map(|(width, right)| if right { "-".repeat(width - 1) + ":" } else { "-".repeat(width) });
    row(cells.each_ref().map(String::as_str))
}

/// Bytes as llama-bench has them.
fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.2} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

/// Parameters as llama-bench has them.
fn parameters(n: u64) -> String {
    let millions = n as f64 / 1e6;
    if millions < 1000.0 { format!("{millions:.2} M") } else { format!("{:.2} B", millions / 1000.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_those_of_llama_bench() {
        let line = row([
            "qwen3-0.6b BF16",
            &size(1_192_099_840),
            &parameters(596_049_920),
            "CPU",
            "2",
            "pp512",
            "1.00 ± 0.10",
        ]);
        let wanted = "| qwen3-0.6b BF16                |   1.11 GiB |   596.05 M | CPU        |       2 |           pp512 |          1.00 ± 0.10 |\n";
        assert_eq!(line, wanted);
        let wanted = "| ------------------------------ | ---------: | ---------: | ---------- | ------: | --------------: | -------------------: |\n";
        assert_eq!(rule(), wanted);
        assert_eq!((size(1 << 20), parameters(8_190_735_360)), ("1.00 MiB".into(), "8.19 B".into()));
    }

    #[test]
    fn the_spread_is_the_sample_standard_deviation() {
        let of = |rates: &[f64]| {
            Measured { test: String::new(), n_prompt: 1, n_gen: 0, depth: 0, rates: rates.to_vec() }.spread()
        };
        assert_eq!(of(&[4.0]), (4.0, 0.0));
        assert_eq!(of(&[1.0, 3.0]), (2.0, 2f64.sqrt()));
        assert_eq!(of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]), (5.0, (32f64 / 7.0).sqrt()));
    }
}
