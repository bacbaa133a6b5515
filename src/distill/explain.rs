//! What a run will do, before it runs: every knob with its value and origin, and every schedule's value
//! by step. The same facts as JSON for programs and as text for people.
#![forbid(unsafe_code)]

use super::config::{Config, Origin};
use super::knob_table::KNOBS;
use super::knobs::{ActorPolicy, By, Normaliser};
use super::preset::PRESETS;
use super::report::{BF16_FLOOR, BF16_FLOOR_OF_EXPERTS};
use super::unpublished::LEAST_BOUND;
use crate::backend::ops::{Loss, Ratio};
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// At most this many steps are tabulated; longer runs are shown at even intervals.
const MOST_ROWS: u64 = 1000;
/// Schedules of which the floor counts.
const WHOLE: [&str; 2] = ["depth", "withdrawn"];
/// Lines of the table in the text form.
const TEXT_ROWS: usize = 26;

/// The settings and schedules of a run of `steps` steps (its fractions refer to these, whatever `config.steps`):
/// `{"preset", "steps", "knobs": [{"knob", "value", "source"}], "notes", "schedules": {"columns", "rows", "mean"}}`.
/// A row is an array in the order of the columns, `step` first; `mean` is over the rows.
pub fn explain(config: &Config, steps: u64) -> Value {
    let mut config = config.clone();
    if config.steps != steps.max(1) {
        config.steps = steps.max(1);
        config.mark("steps", Origin::Given);
    }
    let knobs: Vec<_> = KNOBS
        .iter()
        .map(|knob| {
            let path = knob.path;
            let source = config.origin(path).map_or(String::new(), |origin| origin.to_string());
            json!({"knob": path, "value": (knob.show)(&config), "source": source})
        })
        .collect();
    let (notes, schedules) = (notes(&config), schedules(&config));
    json!({"preset": config.preset, "steps": config.steps, "knobs": knobs, "notes": notes, "schedules": schedules})
}

/// What the knobs' values do not say.
fn notes(config: &Config) -> Vec<String> {
    let mut notes =
        vec!["losses are at temperature 1, divergences over the whole shared vocabulary or, where the teacher gives its most \
              likely ids, over those and a tail, whatever sampling says".to_string()];
    if matches!(config.student_turns.kind, Some(Loss::SampledReverseKl | Loss::K2)) && config.max_staleness > 0 {
        let name = config.student_turns.name();
        notes.push(format!("{name} is of what an older revision drew where episodes lag (max_staleness)"));
    }
    let has_no_ratio =
        matches!(config.student_turns.kind, Some(Loss::PolicyGradient(_))) && config.ratio.of == Ratio::None;
    if has_no_ratio && config.max_staleness > 0 {
        notes.push("without a ratio a policy gradient takes what an older revision drew as its own where episodes lag (max_staleness)".into());
    }
    if matches!(config.actor, ActorPolicy::Proposal(proposal) if proposal.by == By::Student) {
        notes
            .push("actor: guidance by the student's own uncertainty is experimental: no paper stands behind it".into());
    }
    for knob in KNOBS.iter().filter(|knob| knob.experimental && config.origin(knob.path) != Some(Origin::Default)) {
        notes.push(format!("{} is experimental: no paper stands behind it", knob.path));
    }
    let preset = PRESETS.iter().filter(|preset| Some(preset.name) == config.preset);
    notes.extend(preset.flat_map(|preset| preset.notes).map(|note| note.to_string()));
    if config.normaliser == Normaliser::TokenMean {
        notes.push("token-mean divides by all trained tokens of the batch, of all losses together".into());
    }
    if config.optimizer.weight_decay > 0.0 {
        notes.push("weight_decay is for matrices: weights of norms and biases have none".into());
    }
    notes.push(match (config.update_kl_tokens, config.refuse_update_kl) {
        (0, _) => "update_kl_tokens is 0: no step's KL is measured, so publish refuses only weights that are not finite".into(),
        (_, Some(0.0)) => "refuse_update_kl is 0: publish refuses only weights that are not finite".into(),
        (_, bound) => format!(
            "publish refuses a step that moves the student by more than {}, and one whose weights are not finite; the old \
             revision then serves on",
            match bound {
                Some(bound) => format!("{bound} nats a token"),
                None => format!(
                    "half of what it knew (the nats a token from what it said to an even guess over the vocabulary; at least {LEAST_BOUND})"
                ),
            }
        ),
    });
    notes.push(format!(
        "in bf16 compute a KL below {BF16_FLOOR:.0e} nats a token (with experts {BF16_FLOOR_OF_EXPERTS:.0e}) is rounding"
    ));
    notes
}

fn schedules(config: &Config) -> Value {
    let others = config.schedules();
    let mut columns = vec!["step", "learning_rate"];
    columns.extend(others.iter().map(|(name, _)| *name));
    let value = |column: &str, step| match others.iter().find(|(name, _)| *name == column) {
        None => config.optimizer.learning_rate_at(step, config.steps),
        // Turns are whole.
        Some((name, schedule)) if WHOLE.contains(name) => schedule.value(step, config.steps).floor(),
        Some((_, schedule)) => schedule.value(step, config.steps),
    };
    let stride = config.steps.div_ceil(MOST_ROWS) as usize;
    let steps: Vec<u64> = (0..config.steps).step_by(stride).collect();
    let row = |&step: &u64| {
        let mut row = vec![json!(step)];
        row.extend(columns[1..].iter().map(|column| json!(value(column, step))));
        Value::Array(row)
    };
    let mean = |column: &&str| {
        let sum: f64 = steps.iter().map(|&step| value(column, step)).sum();
        (column.to_string(), json!(sum / steps.len() as f64))
    };
    let means: Map<_, _> = columns[1..].iter().map(mean).collect();
    json!({"columns": columns, "rows": steps.iter().map(row).collect::<Vec<_>>(), "mean": means})
}

/// The same as text: a line a knob, then a table of about two dozen evenly spaced steps.
pub fn explain_text(config: &Config, steps: u64) -> String {
    let facts = explain(config, steps);
    let mut text = String::new();
    let preset = config.preset.unwrap_or("none");
    line(&mut text, &["preset".to_string(), String::new(), preset.to_string()], &[24, 18]);
    for knob in list(&facts["knobs"]) {
        let cells = [plain(&knob["knob"]), plain(&knob["source"]), plain(&knob["value"])];
        line(&mut text, &cells, &[24, 18]);
    }
    text.push('\n');
    for note in list(&facts["notes"]) {
        line(&mut text, &["note".to_string(), plain(note)], &[24]);
    }
    text.push('\n');
    let (table, width) = (&facts["schedules"], [8, 16, 10, 10]);
    let columns: Vec<_> = list(&table["columns"]).iter().map(plain).collect();
    line(&mut text, &columns, &width);
    let rows = list(&table["rows"]);
    let stride = rows.len().div_ceil(TEXT_ROWS);
    for row in rows.iter().step_by(stride.max(1)) {
        let cells: Vec<_> = list(row).iter().map(short).collect();
        line(&mut text, &cells, &width);
    }
    let mut mean = vec!["mean".to_string()];
    mean.extend(columns[1..].iter().map(|column| short(&table["mean"][column])));
    line(&mut text, &mean, &width);
    text
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A value as people read it: text without quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// A number with about four digits.
fn short(value: &Value) -> String {
    match value.as_f64() {
        Some(x) if value.is_f64() && x.fract() != 0.0 && x.abs() < 0.001 => format!("{x:.3e}"),
        Some(x) if value.is_f64() && x.fract() != 0.0 => format!("{x:.3}"),
        Some(x) => format!("{x}"),
        None => plain(value),
    }
}

/// One line of cells, each padded to its column's width, the last one as it is.
fn line(text: &mut String, cells: &[String], widths: &[usize]) {
    let mut row = String::new();
    for (i, cell) in cells.iter().enumerate() {
        let width = widths.get(i).copied().unwrap_or(0);
        // Writing into a String cannot fail.
        let _ = write!(row, "{cell:width$} ");
    }
    text.push_str(row.trim_end());
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_guided_distillation_shows_the_derived_values() {
        let facts = explain(&Config::preset("guided-opd").unwrap(), 250);
        let schedules = &facts["schedules"];
        assert_eq!(schedules["columns"], json!(["step", "learning_rate", "beta"]));
        assert_eq!(list(&schedules["rows"]).len(), 250);
        let beta = |step: usize| schedules["rows"][step][2].as_f64().unwrap();
        for (step, wanted) in [(0, 1.0), (50, 0.854), (100, 0.5), (150, 0.146), (200, 0.0), (249, 0.0)] {
            assert!((beta(step) - wanted).abs() < 5e-4, "step {step}: {}", beta(step));
        }
        assert!((schedules["mean"]["beta"].as_f64().unwrap() - 0.402).abs() < 1e-9);
    }

    #[test]
    fn every_knob_is_listed_with_value_and_source() {
        let config = Config::from_value(&json!({"preset": "tcod-f2b", "optimizer": {"beta2": 0.98}})).unwrap();
        let facts = explain(&config, 120);
        let knobs = list(&facts["knobs"]);
        assert_eq!(knobs.len(), KNOBS.len());
        let of = |name: &str| knobs.iter().find(|knob| knob["knob"] == name).unwrap();
        assert_eq!(*of("optimizer.beta2"), json!({"knob": "optimizer.beta2", "value": 0.98, "source": "given"}));
        assert_eq!(*of("steps"), json!({"knob": "steps", "value": 120, "source": "given"}));
        assert_eq!((&of("depth")["source"], &of("seed")["source"]), (&json!("preset tcod-f2b"), &json!("default")));
        assert!(knobs.iter().all(|knob| {
            ["depth", "recompute", "lora", "teacher_adapter", "refuse_update_kl"]
                .contains(&knob["knob"].as_str().unwrap())
                || !knob["value"].is_null()
        }));
        assert_eq!(facts["schedules"]["rows"][12][2], json!(3.0));
    }

    #[test]
    fn notes_say_what_holds_for_these_settings() {
        let notes = |document| {
            let facts = explain(&Config::from_value(&document).unwrap(), 10);
            list(&facts["notes"]).iter().map(plain).collect::<Vec<_>>().join("; ")
        };
        let plainly = notes(json!({}));
        assert!(
            plainly.contains("temperature 1") && plainly.contains("all losses together") && plainly.contains("bf16")
        );
        assert!(!plainly.contains("weight_decay") && plainly.contains("half of what it knew"));
        assert!(notes(json!({"refuse_update_kl": 7})).contains("more than 7 nats a token"));
        assert!(notes(json!({"refuse_update_kl": 0})).contains("refuses only weights that are not finite"));
        assert!(notes(json!({"update_kl_tokens": 0})).contains("no step's KL is measured"));
        let other = notes(json!({"normaliser": "turn-mean", "optimizer": {"weight_decay": 0.1}}));
        assert!(!other.contains("token-mean") && other.contains("weights of norms and biases have none"));
    }

    #[test]
    fn long_runs_are_tabulated_at_intervals() {
        let config = Config::default();
        for (steps, rows) in [(0, 1), (1, 1), (1000, 1000), (1001, 501), (u64::MAX, 1000)] {
            assert_eq!(list(&explain(&config, steps)["schedules"]["rows"]).len(), rows, "{steps}");
        }
    }

    #[test]
    fn the_text_has_a_line_for_each_knob_and_a_table() {
        let text = explain_text(&Config::preset("guided-opd").unwrap(), 250);
        let lines: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(lines[0], ["preset", "guided-opd"]);
        assert!(KNOBS.iter().all(|knob| lines.iter().any(|line| line.first() == Some(&knob.path))), "{text}");
        for row in [["50", "1.000e-6", "0.854"], ["100", "1.000e-6", "0.500"], ["150", "1.000e-6", "0.146"]] {
            assert!(lines.iter().any(|line| *line == row), "{text}");
        }
        assert_eq!(*lines.last().unwrap(), ["mean", "1.000e-6", "0.402"]);
        assert!(text.lines().all(|line| line.trim_end() == line));
    }
}
