//! Warnings and failures, those that differ in their numbers alone counted as one.

use std::collections::BTreeMap;

use super::html::Html;
use super::numbers::whole;
use crate::run_folder::History;

/// Kinds that are listed.
const MOST: usize = 60;

/// What was said of several steps.
struct Trouble {
    kind: &'static str,
    /// of the last of them
    text: String,
    steps: (u64, u64),
    times: u64,
}

fn word_has_digit(word: &str) -> bool {
    word.bytes().any(|b| b.is_ascii_digit())
}

/// Everything that went wrong or was warned of, the latest first.
fn troubles(history: &History) -> Vec<Trouble> {
    let mut found: BTreeMap<(&'static str, String), Trouble> = BTreeMap::new();
    let mut add = |kind: &'static str, step: u64, text: &str| {
        // Words with a digit in them are numbers.
        let mask = |word| if word_has_digit(word) { "0" } else { word };
        let alike = text.split(' ').map(mask).collect::<Vec<_>>().join(" ");
        let trouble =
            found.entry((kind, alike)).or_insert(Trouble { kind, text: String::new(), steps: (step, step), times: 0 });
        (trouble.text, trouble.steps.1, trouble.times) = (text.to_string(), step, trouble.times + 1);
    };
    for (at, step) in &history.steps {
        if let Some((what, why)) = &step.failed {
            add("failed", *at, &format!("{what}: {why}"));
        }
        if let Some(why) = &step.refused {
            add("refused", *at, why);
        }
        if step.applied.as_ref().is_some_and(|applied| applied.finite == Some(false)) {
            add("not finite", *at, "the step's weights are not all finite");
        }
        // A probe that found nothing is no trouble.
        if let Some(probe) = step.published.as_ref().map(|published| &published.probe)
            && probe["differing"].as_u64().is_some_and(|n| n > 0)
        {
            let [rows, n] = ["rows", "differing"].map(|key| probe[key].as_u64().unwrap_or(0));
            let most = probe["largest_difference"].as_f64().unwrap_or(0.0);
            add(
                "probe",
                *at,
                &format!(
                    "{n} of {rows} log-probs are served otherwise than they were trained, by up to {most:.2e} nats"
                ),
            );
        }
        let Some(update) = &step.update else { continue };
        update.report.set_aside.iter().for_each(|aside| add("set aside", *at, &aside.reason));
        update.report.warnings.iter().for_each(|text| add("warning", *at, text));
    }
    for (at, revision) in &history.rolled_back {
        let which = revision.map_or("an older revision".into(), |revision| format!("revision {revision}"));
        add("rolled back", *at, &format!("{which} serves again"));
    }
    let mut found: Vec<Trouble> = found.into_values().collect();
    found.sort_by_key(|trouble| (trouble.kind == "warning", std::cmp::Reverse(trouble.steps.1)));
    found
}

pub fn draw(html: &mut Html, history: &History) {
    let troubles = troubles(history);
    html.raw("<section id=troubles><h2>Warnings and failures</h2>");
    if troubles.is_empty() {
        html.raw("<p class=quiet>None.</p></section>");
        return;
    }
    html.raw(
        "<div class=box role=region tabindex=0 aria-label=\"warnings and failures\"><table class=words><thead><tr>",
    );
    html.raw("<th scope=col>what<th scope=col>steps<th scope=col>times<th scope=col>the last of them<tbody>");
    for Trouble { kind, text, steps: (first, last), times } in troubles.iter().take(MOST) {
        let steps = if first == last { first.to_string() } else { format!("{first} to {last}") };
        html.raw("<tr><th scope=row")
            .attribute("class", if *kind == "warning" { "plain" } else { "bad" })
            .raw(">")
            .text(kind);
        html.element("<td>", &steps, "<td>").text(&whole(*times)).raw("<td class=free>").cut(text, 500);
    }
    html.raw("</table></div>");
    if troubles.len() > MOST {
        html.element("<p class=quiet>", &(troubles.len() - MOST).to_string(), " more kinds are left out.</p>");
    }
    html.raw("</section>");
}
