//! The metrics in the text format that Prometheus reads, version 0.0.4.
//!
//! A counter is `squire_NAME_total`, everything else `squire_NAME`, by the names of [`Metrics`]; times are histograms in seconds.
#![forbid(unsafe_code)]

use std::fmt::{self, Display, Write};

use super::latency::Latency;
use super::metrics::{Kind, Metrics};

/// The ends of the buckets that are told, as powers of two of nanoseconds: from 66 µs to 69 s.
const POWERS: std::ops::RangeInclusive<u32> = 16..=36;

impl Metrics {
    /// The metrics as Prometheus reads them (text format 0.0.4): to be answered with the content type
    /// `text/plain; version=0.0.4`.
    pub fn prometheus(&self) -> String {
        let mut text = String::new();
        // A string takes whatever is written to it.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        for figure in self.figures() {
            match figure.kind {
                Kind::Counter => number(out, &format!("{}_total", figure.name), figure.help, "counter", figure.value)?,
                Kind::Gauge => number(out, figure.name, figure.help, "gauge", figure.value)?,
            }
        }
        let help = "Tokens sampled a second, of all generations together, over the last ten seconds.";
        number(out, "tokens_per_second", help, "gauge", self.tokens_per_second)?;
        let help = "From the call that starts a generation to its first token.";
        histogram(out, "time_to_first_token_seconds", help, &self.time_to_first_token_seconds)?;
        let help = "From a token of a generation to its next one.";
        histogram(out, "inter_token_seconds", help, &self.inter_token_seconds)
    }
}

fn head(out: &mut String, name: &str, help: &str, kind: &str) -> fmt::Result {
    let help = help.replace('\\', "\\\\").replace('\n', "\\n");
    writeln!(out, "# HELP squire_{name} {help}\n# TYPE squire_{name} {kind}")
}

fn number(out: &mut String, name: &str, help: &str, kind: &str, value: impl Display) -> fmt::Result {
    head(out, name, help, kind)?;
    writeln!(out, "squire_{name} {value}")
}

fn histogram(out: &mut String, name: &str, help: &str, times: &Latency) -> fmt::Result {
    head(out, name, help, "histogram")?;
    for power in POWERS {
        let end = (1u64 << power) as f64 / 1e9;
        writeln!(out, "squire_{name}_bucket{{le=\"{end}\"}} {}", times.within(power))?;
    }
    let count = times.count();
    writeln!(out, "squire_{name}_bucket{{le=\"+Inf\"}} {count}")?;
    writeln!(out, "squire_{name}_sum {}", times.sum().as_secs_f64())?;
    writeln!(out, "squire_{name}_count {count}")
}
