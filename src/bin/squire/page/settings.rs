//! The settings of the run: those that differ from their defaults, and all of them.

use serde_json::Value;
use squire::distill::config::Config;
use squire::distill::explain::explain;

use super::html::Html;
use crate::run_folder::History;

/// A knob, what the run has, and the default.
struct Knob {
    path: String,
    value: String,
    default: String,
    differs: bool,
}

/// All knobs that this program knows, as the run has them. What a run of another version lacks is not shown.
fn knobs(settings: &Value) -> Vec<Knob> {
    let config = Config::default();
    let table = explain(&config, config.steps);
    let known = table["knobs"].as_array().map_or(&[][..], Vec::as_slice);
    let knob = |known: &Value| {
        let path = known["knob"].as_str()?;
        let value = path.split('.').try_fold(settings, |at, key| at.get(key))?;
        let default = &known["value"];
        Some(Knob {
            path: path.into(),
            value: value.to_string(),
            default: default.to_string(),
            differs: !same(value, default),
        })
    };
    known.iter().filter_map(knob).collect()
}

/// Whether two values are one: 1 and 1.0 are.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

fn table(html: &mut Html, knobs: &[&Knob]) {
    html.raw(
        "<div class=box role=region tabindex=0 aria-label=settings><table class=words><thead><tr><th scope=col>knob",
    );
    html.raw("<th scope=col>value<th scope=col>default<tbody>");
    for knob in knobs {
        html.element("<tr><th scope=row>", &knob.path, "<td>").cut(&knob.value, 400).raw("<td>").text(&knob.default);
    }
    html.raw("</table></div>");
}

pub fn draw(html: &mut Html, history: &History) {
    let knobs = knobs(&history.settings);
    html.raw("<section id=settings><h2>Settings</h2>");
    if knobs.is_empty() {
        html.raw("<p class=quiet>The file has none that this program knows.</p></section>");
        return;
    }
    let differing: Vec<&Knob> = knobs.iter().filter(|knob| knob.differs).collect();
    match differing.is_empty() {
        true => html.raw("<p class=quiet>All are the defaults.</p>"),
        false => {
            html.element("<details><summary>", &differing.len().to_string(), " differ from their defaults</summary>")
        }
    };
    if !differing.is_empty() {
        table(html, &differing);
        html.raw("</details>");
    }
    html.element("<details><summary>All ", &knobs.len().to_string(), "</summary>");
    table(html, &knobs.iter().collect::<Vec<_>>());
    html.raw("</details></section>");
}
