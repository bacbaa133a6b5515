//! The table of every update. Cells are left open, as HTML allows, since a run has thousands of them.

use super::figures::{Cell, DIVERGENCES};
use super::html::Html;
use super::numbers::{short, whole};
use crate::run_folder::{History, Step};

/// What is said of an update beside its step, revision and outcome.
fn columns(history: &History) -> Vec<(&'static str, Cell)> {
    let divergences: [Cell; 7] = [
        |_, u| u.report.reverse_kl,
        |_, u| u.report.forward_kl,
        |_, u| u.report.jsd,
        |_, u| u.report.cross_entropy,
        |_, u| u.report.sampled_reverse_kl,
        |_, u| u.report.k2,
        |_, u| u.report.weighted_k3,
    ];
    let mut columns: Vec<(&'static str, Cell)> = vec![("loss", |_, u| u.report.loss)];
    columns.extend(DIVERGENCES.iter().map(|(name, _)| *name).zip(divergences));
    columns.extend([
        ("update KL", (|step, _| step.update_kl()) as Cell),
        ("gradient norm", |_, u| u.report.gradient_norm),
        ("episodes", |_, u| u.report.episodes),
        ("successes", |_, u| u.report.successes),
        ("student tokens", |_, u| u.report.student_tokens),
        ("teacher tokens", |_, u| u.report.teacher_tokens),
        ("replay tokens", |_, u| u.report.replay_tokens),
        ("seconds", |_, u| u.report.seconds),
    ]);
    columns.retain(|(_, cell)| history.updates().any(|(_, step, update)| cell(step, update).is_some()));
    columns
}

pub fn draw(html: &mut Html, history: &History) {
    let columns = columns(history);
    let n = history.updates().count();
    html.raw("<section id=updates><h2>Every update <small>").text(&whole(n as u64)).raw("</small></h2>");
    if n == 0 {
        html.raw("<p class=quiet>None was built yet.</p></section>");
        return;
    }
    html.raw("<div class=box role=region tabindex=0 aria-label=\"every update\"><table><thead><tr><th scope=col>step");
    html.raw("<th scope=col>revision");
    columns.iter().for_each(|(name, _)| {
        html.raw("<th scope=col>").text(name);
    });
    html.raw("<th scope=col class=word>outcome<tbody>");
    for (at, step, update) in history.updates() {
        html.raw("<tr").attribute("data-step", &at.to_string()).figure("data-loss", update.report.loss);
        html.figure("data-update-kl", step.update_kl()).figure("data-successes", update.report.successes);
        html.raw("><th scope=row>").text(&at.to_string()).raw("<td>");
        let revision = step.published.as_ref().and_then(|published| published.revision);
        html.text(&revision.map_or(String::new(), |revision| revision.to_string()));
        for (_, cell) in &columns {
            html.raw("<td>").text(&cell(step, update).map_or(String::new(), short));
        }
        outcome(html, step);
    }
    html.raw("</table></div></section>");
}

fn outcome(html: &mut Html, step: &Step) {
    match (&step.refused, &step.published, &step.applied, &step.failed) {
        (Some(why), ..) => html.raw("<td class=\"word bad\">refused: ").cut(why, 160),
        (_, _, _, Some((what, why))) => {
            html.raw("<td class=\"word bad\">failed to ").text(what).raw(": ").cut(why, 160)
        }
        (_, Some(_), ..) => html.raw("<td class=word>published"),
        (_, _, Some(applied), _) if applied.finite == Some(false) => {
            html.raw("<td class=\"word bad\">applied, not finite")
        }
        (_, _, Some(_), _) => html.raw("<td class=word>applied"),
        _ => html.raw("<td class=word>built"),
    };
}
