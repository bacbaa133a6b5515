//! A heat strip: a value by step and turn index, fuller in colour where it is larger.

use super::frame::{self, BOTTOM, Caption, LEFT, TOP};
use super::html::Html;
use super::numbers::short;
use super::thin::stretches;

/// Cells at most, across and down.
const MOST_COLUMNS: usize = 80;
const MOST_ROWS: usize = 32;
/// Shades, the last for the largest values.
const SHADES: usize = 8;

/// Values by turn of each update.
pub type Rows = Vec<(u64, Vec<Option<f64>>)>;

/// Draws it, if there is a value.
pub fn draw(html: &mut Html, caption: &Caption, updates: &Rows, span: (u64, u64)) {
    let turns = updates.iter().map(|(_, values)| values.len()).max().unwrap_or(0).min(MOST_ROWS);
    let cell = |stretch: &[(u64, Vec<Option<f64>>)], turn: usize| {
        let known: Vec<f64> = stretch.iter().filter_map(|(_, values)| *values.get(turn)?).collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    };
    let columns: Vec<(u64, Vec<Option<f64>>)> = stretches(updates, MOST_COLUMNS)
        .map(|stretch| (stretch[0].0, (0..turns).map(|turn| cell(stretch, turn)).collect()))
        .collect();
    let known = || columns.iter().flat_map(|(_, cells)| cells).flatten().copied();
    let (Some(least), Some(largest)) = (known().reduce(f64::min), known().reduce(f64::max)) else { return };

    let x = frame::steps((span.0, span.1 + 1));
    let height = (BOTTOM - TOP) / turns as f64;
    let said = format!(
        "{} by step and turn index, {turns} turns. The least cell has {}, the largest {}.",
        caption.unit,
        short(least),
        short(largest)
    );
    frame::open(html, caption, &said, (span.0, span.1 + 1));
    let every = turns.div_ceil(8);
    for turn in (0..turns).step_by(every) {
        frame::label(html, "end", LEFT - 5.0, TOP + (turn as f64 + 0.5) * height + 3.5, &turn.to_string());
    }
    let mut paths = vec![String::new(); SHADES];
    for (i, (step, cells)) in columns.iter().enumerate() {
        let end = columns.get(i + 1).map_or(span.1 + 1, |(next, _)| *next);
        let (left, right) = (x.place(*step as f64), x.place(end as f64));
        for (turn, value) in cells.iter().enumerate() {
            let Some(value) = value else { continue };
            let share = if largest > least { (value - least) / (largest - least) } else { 1.0 };
            let shade = ((share * SHADES as f64) as usize).min(SHADES - 1);
            let top = TOP + turn as f64 * height;
            paths[shade].push_str(&format!("M{left:.1} {top:.1}H{right:.1}v{height:.1}H{left:.1}Z"));
        }
    }
    for (shade, path) in paths.iter().enumerate().filter(|(_, path)| !path.is_empty()) {
        html.raw("<path").attribute("class", &format!("shade h{shade}")).attribute("d", path).raw("/>");
    }
    frame::step_axis(html, &x);
    // The values again, a turn a row, for the pointer.
    for turn in 0..turns {
        html.raw("<g").attribute("data-turn", &turn.to_string());
        let of_turn = columns.iter().filter_map(|(step, cells)| Some((*step, cells[turn]?)));
        frame::data(html, of_turn);
        html.raw("/>");
    }
    html.raw("<path class=cursor")
        .attribute("d", &format!("M0 {TOP}V{BOTTOM}"))
        .raw("/></svg><ul class=legend><li>")
        .text(&short(least));
    html.raw(" <span class=shades aria-hidden=true>");
    for shade in 0..SHADES {
        html.raw("<i").attribute("class", &format!("h{shade}")).raw("></i>");
    }
    html.raw("</span> ").text(&short(largest)).raw("</li><li class=at></li></ul></figure>");
}
