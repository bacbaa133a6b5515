//! A chart of amounts on top of each other: who said how much.

use super::frame::{self, BOTTOM, Caption, Entry, TOP};
use super::html::Html;
use super::numbers::short;
use super::scale::{Scale, round_range};
use super::thin::stretches;

/// Columns at most; each is the mean of the updates that it stands for.
const MOST: usize = 90;

/// One amount of each update.
pub struct Layer {
    pub name: &'static str,
    pub style: &'static str,
    pub amounts: Vec<(u64, f64)>,
}

/// The means of each stretch of a layer, by its first step.
fn columns(layer: &Layer) -> Vec<(u64, f64)> {
    let mean = |stretch: &[(u64, f64)]| {
        (stretch[0].0, stretch.iter().map(|(_, amount)| amount).sum::<f64>() / stretch.len() as f64)
    };
    stretches(&layer.amounts, MOST).map(mean).collect()
}

/// Draws layers, the first at the bottom. All have the same steps, each after the one before.
pub fn draw(html: &mut Html, caption: &Caption, layers: &[Layer], span: (u64, u64)) {
    let columns: Vec<Vec<(u64, f64)>> = layers.iter().map(columns).collect();
    let n = columns.first().map_or(0, Vec::len);
    let total = |i: usize| columns.iter().map(|layer| layer[i].1).sum::<f64>();
    let highest = (0..n).map(total).fold(0.0, f64::max);
    // A column is as wide as the steps that it stands for, so the last one needs room of its own.
    let x = frame::steps((span.0, span.1 + 1));
    let y = Scale::linear(round_range(0.0, highest), (BOTTOM, TOP));
    let mut said = format!("{} by step, stacked.", caption.unit);
    for (layer, columns) in layers.iter().zip(&columns) {
        if let (Some(first), Some(last)) = (columns.first(), columns.last()) {
            said.push_str(&format!(" {}: {} at first, {} at last.", layer.name, short(first.1), short(last.1)));
        }
    }
    frame::open(html, caption, &said, (span.0, span.1 + 1));
    frame::axes(html, &x, &y);
    let mut below = vec![0.0; n];
    for (layer, columns) in layers.iter().zip(&columns) {
        let mut path = String::new();
        for (i, (step, amount)) in columns.iter().enumerate().filter(|(_, (_, amount))| *amount > 0.0) {
            let end = columns.get(i + 1).map_or(span.1 + 1, |(next, _)| *next);
            let (left, right) = (x.place(*step as f64), x.place(end as f64));
            let (low, high) = (y.place(below[i]), y.place(below[i] + amount));
            path.push_str(&format!("M{left:.1} {low:.1}V{high:.1}H{right:.1}V{low:.1}Z"));
            below[i] += amount;
        }
        html.raw("<path").attribute("class", &format!("{} area", layer.style)).attribute("d", &path);
        frame::data(html, columns.iter().copied());
        html.raw("/>");
    }
    let entry = |layer: &Layer| Entry {
        style: layer.style,
        faint: false,
        name: layer.name.into(),
        last: layer.amounts.last().copied(),
    };
    frame::close(html, &layers.iter().map(entry).collect::<Vec<_>>(), None);
}
