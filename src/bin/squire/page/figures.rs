//! Which drawings a page has, and of what.

use super::chart::{Chart, Drawn, Range, Series};
use super::frame::Caption;
use super::html::Html;
use super::numbers::wilson;
use super::stack::{self, Layer};
use super::strip;
use super::thin::{Point, moving_mean};
use crate::run_folder::{History, Report, Step, Update};

/// Steps of a moving mean.
pub const WINDOW: usize = 20;
/// Styles of curves that are nobody's in particular; styles differ in their dashes too.
const STYLES: [&str; 7] = ["c0", "c1", "c2", "c3", "c4", "c5", "c6"];

/// A number of an update's report.
type OfReport = fn(&Report) -> Option<f64>;

/// The losses of a report by their names.
pub const DIVERGENCES: [(&str, OfReport); 7] = [
    ("reverse KL", |r| r.reverse_kl),
    ("forward KL", |r| r.forward_kl),
    ("Jensen-Shannon", |r| r.jsd),
    ("cross-entropy", |r| r.cross_entropy),
    ("sampled reverse KL", |r| r.sampled_reverse_kl),
    ("k2", |r| r.k2),
    ("weighted k3", |r| r.weighted_k3),
];

/// A number of an update.
pub type Cell = fn(&Step, &Update) -> Option<f64>;

/// First and last step of the run.
fn span(history: &History) -> (u64, u64) {
    let first = history.steps.keys().next().copied().unwrap_or(0);
    let last = history.steps.keys().next_back().copied().unwrap_or(0);
    (first, last.max(first.saturating_add(1)))
}

fn caption(id: &'static str, title: &str, unit: &'static str, about: &'static str) -> Caption {
    Caption { id, title: title.into(), unit, about }
}

/// A number of each update.
fn of_updates(history: &History, value: impl Fn(&Step, &Update) -> Option<f64>) -> Vec<Point> {
    history.updates().map(|(at, step, update)| (at, value(step, update))).collect()
}

fn of_reports(history: &History, value: impl Fn(&Report) -> Option<f64>) -> Vec<Point> {
    of_updates(history, |_, update| value(&update.report))
}

fn chart(caption: Caption, range: Range, series: Vec<Series>) -> Chart {
    Chart { caption, range, series, bounds: Vec::new() }
}

/// A value of the training episodes of each step, with its moving mean.
fn with_mean(history: &History, name: &str, sums: impl Fn(&Step) -> (f64, u64)) -> Vec<Series> {
    let sums: Vec<(u64, f64, f64)> = history
        .steps
        .iter()
        .filter(|(_, step)| step.training.episodes > 0)
        .map(|(at, step)| {
            let (sum, n) = sums(step);
            (*at, sum, n as f64)
        })
        .collect();
    let points = sums.iter().map(|(at, sum, n)| (*at, (*n > 0.0).then(|| sum / n))).collect();
    let faint = Series { drawn: Drawn::Faint, ..Series::line(name, "c0", points) };
    vec![faint, Series::line(format!("mean of {WINDOW} steps"), "c0", moving_mean(&sums, WINDOW))]
}

fn success(history: &History) -> Chart {
    let mut series = with_mean(history, "training", |step| (step.training.successes as f64, step.training.judged));
    let evaluated = || history.steps.iter().filter(|(_, step)| step.evaluation.judged > 0);
    series.push(Series {
        name: "evaluation".into(),
        style: "c1",
        drawn: Drawn::Dots,
        points: evaluated().map(|(at, step)| (*at, step.evaluation.success())).collect(),
        intervals: evaluated()
            .filter_map(|(at, step)| {
                let (low, high) = wilson(step.evaluation.successes, step.evaluation.judged)?;
                Some((*at, low, high))
            })
            .collect(),
    });
    let about = "Of the episodes begun at a step; whiskers are 95 % intervals by Wilson.";
    chart(caption("success", "Success", "share of episodes", about), Range::Share, series)
}

fn gain(history: &History) -> Chart {
    let mut series = with_mean(history, "training", |step| step.training.returns);
    let evaluated = history.steps.iter().filter(|(_, step)| step.evaluation.returns.1 > 0);
    series.push(Series {
        drawn: Drawn::Dots,
        ..Series::line("evaluation", "c1", evaluated.map(|(at, step)| (*at, step.evaluation.mean_return())).collect())
    });
    let about = "Mean of rewards and score of the episodes begun at a step.";
    chart(caption("return", "Return", "return an episode", about), Range::FromZero, series)
}

fn divergences(history: &History) -> Chart {
    let series =
        DIVERGENCES.iter().zip(STYLES).map(|((name, of), style)| Series::line(*name, style, of_reports(history, of)));
    let series = series.filter(Series::is_known).collect();
    let about = "Each over the trained tokens that carry it.";
    chart(caption("divergences", "Divergences", "nats a token", about), Range::FromZero, series)
}

fn update_kl(history: &History) -> Chart {
    let refused = of_updates(history, |step, _| step.refused.as_ref().and(step.update_kl()));
    let crosses = Series { drawn: Drawn::Crosses, ..Series::line("refused", "refused", refused) };
    let mut series = vec![Series::line("update KL", "c0", of_updates(history, |step, _| step.update_kl()))];
    series.extend(crosses.is_known().then_some(crosses));
    let bound = |knob: &'static str, name: &str| {
        history.setting(knob).filter(|bound| *bound > 0.0).map(|bound| (name.to_string(), bound))
    };
    let about = "How far a step moved the student from what it served.";
    let caption = caption("update-kl", "KL of an update", "nats a token", about);
    let bounds = [bound("max_update_kl", "warned beyond"), bound("refuse_update_kl", "refused beyond")];
    Chart { bounds: bounds.into_iter().flatten().collect(), ..chart(caption, Range::Decades, series) }
}

/// One drawing of each schedule, since their units differ.
fn schedules(history: &History) -> Vec<Chart> {
    const IDS: [&str; 8] = ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7"];
    let mut names: Vec<&String> = history.updates().flat_map(|(_, _, update)| update.schedules.keys()).collect();
    names.sort();
    names.dedup();
    let of = |name: &String, id: &'static str| {
        let points = of_updates(history, |_, update| update.schedules.get(name).copied().flatten());
        let about = "A schedule's value at each step.";
        let title = if name == "beta" {
            "Beta, the teacher's share of turns".to_string()
        } else {
            format!("Schedule: {}", first(name))
        };
        chart(
            Caption { title, ..caption(id, "", "value", about) },
            Range::FromZero,
            vec![Series::line(first(name), "c0", points)],
        )
    };
    let mut charts: Vec<Chart> = names.into_iter().zip(IDS).map(|(name, id)| of(name, id)).collect();
    let rate = of_updates(history, |_, update| update.learning_rate);
    let about = "The optimiser's, its warm-up included.";
    let caption = caption("learning-rate", "Learning rate", "rate", about);
    charts.push(chart(caption, Range::FromZero, vec![Series::line("learning rate", "c0", rate)]));
    charts
}

/// A name as long as a heading may be.
fn first(name: &str) -> String {
    name.chars().take(40).collect()
}

fn several(history: &History, caption: Caption, range: Range, parts: &[(&str, Cell)]) -> Chart {
    let series =
        parts.iter().zip(STYLES).map(|((name, of), style)| Series::line(*name, style, of_updates(history, of)));
    chart(caption, range, series.filter(Series::is_known).collect())
}

/// Amounts by actor.
fn layers(history: &History, of: fn(&Report) -> [Option<f64>; 3]) -> Vec<Layer> {
    let layer = |(i, name): (usize, &'static str)| Layer {
        name,
        style: name,
        amounts: history.updates().map(|(at, _, update)| (at, of(&update.report)[i].unwrap_or(0.0))).collect(),
    };
    let layers = ["student", "teacher", "replay"].into_iter().enumerate().map(layer);
    layers.filter(|layer| layer.amounts.iter().any(|(_, amount)| *amount > 0.0)).collect()
}

/// A drawing of one kind or another.
enum Figure {
    Chart(Chart),
    Stack(Caption, Vec<Layer>),
    Strip(Caption, strip::Rows),
}

impl Figure {
    /// Draws it; its title, where there is nothing to draw.
    fn draw(self, html: &mut Html, span: (u64, u64)) -> Option<String> {
        match self {
            Figure::Chart(chart) if chart.is_known() => chart.draw(html, span),
            Figure::Stack(caption, layers) if !layers.is_empty() => stack::draw(html, &caption, &layers, span),
            Figure::Strip(caption, rows) if is_known(&rows) => strip::draw(html, &caption, &rows, span),
            Figure::Chart(Chart { caption, .. }) | Figure::Stack(caption, _) | Figure::Strip(caption, _) => {
                return Some(caption.title);
            }
        }
        None
    }
}

fn is_known(rows: &strip::Rows) -> bool {
    rows.iter().any(|(_, values)| values.iter().any(Option::is_some))
}

/// The log-ratio by turn, or in older files the loss.
fn by_turn(history: &History) -> Figure {
    let rows = |of: fn(&Report) -> Vec<Option<f64>>| -> strip::Rows {
        history.updates().map(|(at, _, update)| (at, of(&update.report))).collect()
    };
    let ratios = rows(|report| report.turns.iter().map(|turn| turn.log_ratio).collect());
    let losses = rows(|report| report.loss_by_turn.clone());
    if !is_known(&ratios) && is_known(&losses) {
        let about = "Mean loss of the trained tokens at each turn of an episode; fuller is more.";
        return Figure::Strip(caption("by-turn", "Loss by turn", "turn index; nats a token", about), losses);
    }
    let about = "Mean |ln p - ln q| of the trained tokens at each turn of an episode; fuller is farther apart.";
    Figure::Strip(caption("by-turn", "Log-ratio by turn", "turn index; nats a token", about), ratios)
}

/// All drawings, in the order of the page.
fn figures(history: &History) -> Vec<Figure> {
    let of = |id, title, unit, about, range, parts: &[(&str, Cell)]| {
        Figure::Chart(several(history, caption(id, title, unit, about), range, parts))
    };
    let zero = Range::FromZero;
    let mut figures = vec![Figure::Chart(success(history)), Figure::Chart(gain(history))];
    let about = "The weighted loss that was differentiated.";
    figures.push(of("loss", "Loss", "weighted, nats a token", about, zero, &[("loss", |_, u| u.report.loss)]));
    figures.extend([Figure::Chart(divergences(history)), by_turn(history), Figure::Chart(update_kl(history))]);
    figures.extend(schedules(history).into_iter().map(Figure::Chart));

    let about = "Tokens of the batch by who said them.";
    let tokens = layers(history, |r| [r.student_tokens, r.teacher_tokens, r.replay_tokens]);
    figures.push(Figure::Stack(caption("tokens", "Tokens by actor", "tokens an update", about), tokens));
    let about = "Turns of the batch by who took them.";
    let turns = layers(history, |r| [r.student_turns, r.teacher_turns, r.replay_turns]);
    figures.push(Figure::Stack(caption("turns", "Turns by actor", "turns an update", about), turns));

    let about = "Mean tokens of a turn of the student's.";
    let parts: &[(&str, Cell)] = &[("response length", |_, u| u.report.response_length)];
    figures.push(of("response-length", "Response length", "tokens a turn", about, zero, parts));
    let parts: &[(&str, Cell)] = &[("gradient norm", |_, u| u.report.gradient_norm)];
    figures.push(of("gradient-norm", "Gradient norm", "norm", "Before it is clipped.", Range::Decades, parts));
    let parts: &[(&str, Cell)] = &[("student", |_, u| u.report.entropy), ("teacher", |_, u| u.report.teacher_entropy)];
    figures.push(of("entropy", "Entropy", "nats a token", "Mean over the trained tokens.", zero, parts));
    let about = "Wall time of an update; the wait for the teacher is part of the build.";
    let parts: &[(&str, Cell)] = &[
        ("build", |_, u| u.report.seconds),
        ("of it the teacher's", |_, u| u.report.teacher_seconds),
        ("apply", |step, _| step.applied.as_ref()?.seconds),
    ];
    figures.push(of("seconds", "Seconds", "seconds an update", about, zero, parts));
    let about = "Revisions that a batch's episodes lag behind the one that is served.";
    let parts: &[(&str, Cell)] = &[("mean", |_, u| u.report.lag?.mean), ("largest", |_, u| u.report.lag?.largest)];
    figures.push(of("lag", "Lag", "revisions", about, zero, parts));
    figures
}

/// Draws all of them; what there is nothing of is named at the end.
pub fn draw(html: &mut Html, history: &History) {
    let span = span(history);
    html.raw("<div class=charts>");
    let absent: Vec<String> = figures(history).into_iter().filter_map(|figure| figure.draw(html, span)).collect();
    html.raw("</div>");
    if !absent.is_empty() {
        html.element("<p class=quiet>Not drawn, since the file says nothing of it: ", &absent.join(", "), ".</p>");
    }
}
