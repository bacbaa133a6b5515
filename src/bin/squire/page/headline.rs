//! The head of the page: which run, how far, in which state, and what was refused.

use super::figures::WINDOW;
use super::html::Html;
use super::numbers::{count, date, duration, percent, short, whole, wilson};
use crate::run_folder::{History, State, Step};

/// A fact: its name, a large figure, and a word on it.
fn fact(html: &mut Html, key: &'static str, name: &str, value: &str, exact: Option<f64>, about: &str) {
    html.raw("<div class=fact").attribute("data-figure", key).figure("data-value", exact).raw("><dt>").text(name);
    html.raw("</dt><dd>").text(value).raw("</dd>");
    if !about.is_empty() {
        html.element("<dd class=quiet>", about, "</dd>");
    }
    html.raw("</div>");
}

pub fn draw(html: &mut Html, history: &History) {
    html.element("<header><p class=quiet>Run ", &history.run, "</p><h1>");
    let applied = history.applied();
    let (state, class, said) = match history.state() {
        State::Finished => ("finished", "good", "Finished".to_string()),
        State::Running => ("running", "plain", "Running, or stopped without a word".to_string()),
        State::Refused(_) => ("refused", "bad", "Refused: the last update is not served".to_string()),
        State::Failed(what, _) => {
            ("failed", "bad", format!("Failed to {}", if what.is_empty() { "go on" } else { &what }))
        }
    };
    html.raw("<span").attribute("class", class).attribute("data-state", state).raw(">").text(&said).raw("</span>");
    let of = history.wanted().map_or(String::new(), |wanted| format!(" of {}", whole(wanted)));
    html.raw("<small>").text(&format!("step {}{of}", whole(applied))).raw("</small></h1>");
    if let State::Refused(why) | State::Failed(_, why) = history.state() {
        html.raw("<p class=\"why bad\" data-figure=reason>").cut(&why, 600).raw("</p>");
    }

    html.raw("<dl class=facts>");
    let trained = |(_, step): &(&u64, &Step)| step.training.judged > 0;
    let last: Vec<_> =
        history.steps.iter().rev().filter(trained).take(WINDOW).map(|(_, step)| &step.training).collect();
    let (won, n) = last.iter().fold((0, 0), |(won, n), played| (won + played.successes, n + played.judged));
    if n > 0 {
        let about = format!("{} of {} in the last {}", whole(won), whole(n), count(last.len() as u64, "step"));
        fact(
            html,
            "success",
            "Success in training",
            &percent(won as f64 / n as f64),
            Some(won as f64 / n as f64),
            &about,
        );
    }
    let evaluated = history.steps.iter().rev().find(|(_, step)| step.evaluation.judged > 0);
    if let Some((at, Step { evaluation, .. })) = evaluated {
        let interval = wilson(evaluation.successes, evaluation.judged);
        let interval = interval.map_or(String::new(), |(a, b)| format!("; 95 %: {} to {}", percent(a), percent(b)));
        let about = format!("{} of {} at step {at}{interval}", whole(evaluation.successes), whole(evaluation.judged));
        let share = evaluation.success();
        fact(html, "evaluation", "Success in evaluation", &percent(share.unwrap_or(0.0)), share, &about);
    }
    if let Some((at, step, update)) = history.updates().last() {
        if let Some(loss) = update.report.loss {
            fact(html, "loss", "Loss", &short(loss), Some(loss), &format!("nats a token, step {at}"));
        }
        if let Some(kl) = step.update_kl() {
            fact(html, "update-kl", "KL of the update", &short(kl), Some(kl), &format!("nats a token, step {at}"));
        }
    }
    let refused: Vec<_> = history.steps.iter().filter(|(_, step)| step.refused.is_some()).collect();
    let about = refused.last().map_or(String::new(), |(at, _)| format!("the last was built at step {at}"));
    fact(html, "refused", "Refused updates", &whole(refused.len() as u64), Some(refused.len() as f64), &about);
    let (training, evaluation) = history.episodes();
    let about = format!("{} of evaluation beside them", whole(evaluation));
    fact(html, "episodes", "Episodes", &whole(training), Some(training as f64), &about);
    let (first, last) = history.times;
    let took = format!("{} to its last line", duration((last - first).max(0.0)));
    fact(html, "time", "Last written", &date(last), Some(last), &took);
    html.raw("</dl>");

    let mut about = Vec::new();
    if let Some(parameters) = history.student.parameters {
        let of = |name: &str, n: Option<f64>| n.map_or(String::new(), |n| format!(", {name} {}", short(n)));
        let shape = of("layers", history.student.layers) + &of("hidden size", history.student.hidden_size);
        about.push(format!("student of {} parameters{shape}", short(parameters)));
    }
    if !history.squire.is_empty() {
        about.push(format!("squire {}", history.squire));
    }
    about.extend(history.saved.map(|step| format!("last checkpoint at step {step}")));
    if !history.resumed.is_empty() {
        let at: Vec<String> = history.resumed.iter().rev().take(8).rev().map(u64::to_string).collect();
        about.push(format!(
            "resumed at step {}; {} told before that are void",
            at.join(", "),
            count(history.void, "update")
        ));
    }
    html.element("<p class=quiet>", &about.join(" · "), "</p>");
    for note in &history.notes {
        html.element("<p class=note>Note: ", note, "</p>");
    }
    html.raw("</header>");
}
