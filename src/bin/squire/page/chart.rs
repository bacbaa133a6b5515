//! A chart of curves over the steps, as SVG.

use super::frame::{self, BOTTOM, Caption, Entry, LEFT, RIGHT, TOP};
use super::html::Html;
use super::numbers::short;
use super::scale::{Scale, round_range};
use super::thin::{Point, thin};

/// Points that a curve is thinned to.
const MOST: usize = 400;

/// How a series is drawn.
#[derive(Clone, Copy, PartialEq)]
pub enum Drawn {
    Line,
    /// behind the others, as what they are the mean of
    Faint,
    /// points joined by a line, each with its interval
    Dots,
    /// crosses alone
    Crosses,
}

/// A series of a chart.
pub struct Series {
    pub name: String,
    /// class of its colour and dashes
    pub style: &'static str,
    pub drawn: Drawn,
    pub points: Vec<Point>,
    /// of each point, where it has one
    pub intervals: Vec<(u64, f64, f64)>,
}

impl Series {
    /// A plain curve.
    pub fn line(name: impl Into<String>, style: &'static str, points: Vec<Point>) -> Series {
        Series { name: name.into(), style, drawn: Drawn::Line, points, intervals: Vec::new() }
    }

    fn known(&self) -> impl DoubleEndedIterator<Item = (u64, f64)> {
        self.points.iter().filter_map(|(step, value)| Some((*step, (*value)?)))
    }

    /// Whether it has a value at all.
    pub fn is_known(&self) -> bool {
        self.known().next().is_some()
    }
}

/// What the axis of values shows.
#[derive(Clone, Copy)]
pub enum Range {
    /// from 0 to 1
    Share,
    /// from 0, or below where there are such values
    FromZero,
    /// what there is, by the logarithm where it spans two decades and more
    Decades,
}

/// A chart.
pub struct Chart {
    pub caption: Caption,
    pub range: Range,
    pub series: Vec<Series>,
    /// Horizontal lines with their names.
    pub bounds: Vec<(String, f64)>,
}

impl Chart {
    /// Whether there is anything to draw.
    pub fn is_known(&self) -> bool {
        self.series.iter().any(Series::is_known)
    }

    fn scale(&self) -> Scale {
        let values = || {
            let intervals = self.series.iter().flat_map(|s| &s.intervals).flat_map(|(_, low, high)| [*low, *high]);
            let known = self.series.iter().flat_map(Series::known).map(|(_, value)| value);
            known.chain(intervals).chain(self.bounds.iter().map(|(_, value)| *value))
        };
        let (low, high) = values().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
        let positive = values().filter(|x| *x > 0.0).fold(f64::INFINITY, f64::min);
        let pixels = (BOTTOM, TOP);
        match self.range {
            Range::Share => Scale::linear((0.0, 1.0), pixels),
            Range::Decades if low >= 0.0 && positive.is_finite() && high >= 100.0 * positive => {
                Scale::logarithmic((positive, high), pixels)
            }
            _ => Scale::linear(round_range(low.min(0.0), high.max(0.0)), pixels),
        }
    }

    /// What it shows, in words.
    fn said(&self) -> String {
        let mut said = format!("{} by step.", self.caption.unit);
        for series in &self.series {
            let known: Vec<_> = series.known().collect();
            let (Some(first), Some(last)) = (known.first(), known.last()) else { continue };
            let extreme = |f: fn(f64, f64) -> f64| known.iter().map(|(_, value)| *value).reduce(f).unwrap_or(first.1);
            said.push_str(&format!(
                " {}: {} at step {}, {} at step {}, least {}, largest {}.",
                series.name,
                short(first.1),
                first.0,
                short(last.1),
                last.0,
                short(extreme(f64::min)),
                short(extreme(f64::max))
            ));
        }
        self.bounds.iter().for_each(|(name, value)| said.push_str(&format!(" {name}: {}.", short(*value))));
        said
    }

    /// Draws it over the steps from `first` to `last`.
    pub fn draw(&self, html: &mut Html, span: (u64, u64)) {
        let (x, y) = (frame::steps(span), self.scale());
        frame::open(html, &self.caption, &self.said(), span);
        frame::axes(html, &x, &y);
        for (name, value) in &self.bounds {
            let at = y.place(*value);
            html.raw("<path class=bound").attribute("d", &format!("M{LEFT} {at:.1}H{RIGHT}")).raw("/>");
            frame::label(html, "end", RIGHT, at - 3.0, name);
        }
        for series in &self.series {
            draw(html, series, &x, &y);
        }
        let entries = self.series.iter().filter(|s| s.is_known());
        let legend: Vec<Entry> =
            entries.map(|s| Entry { style: s.style, name: s.name.clone(), last: s.known().next_back() }).collect();
        frame::close(html, &legend);
    }
}

fn draw(html: &mut Html, series: &Series, x: &Scale, y: &Scale) {
    let points = thin(&series.points, MOST);
    // A logarithm has no place for zero: it is left out, as a gap.
    let seen = |value: Option<f64>| value.filter(|value| *value > 0.0 || !y.is_logarithmic());
    let place = |step: u64, value: f64| (x.place(step as f64), y.place(value).clamp(TOP - 2.0, BOTTOM + 2.0));
    let known: Vec<(u64, f64)> = points.iter().filter_map(|(step, value)| Some((*step, (*value)?))).collect();
    if known.is_empty() {
        return;
    }
    let mut path = String::new();
    match series.drawn {
        Drawn::Crosses => {
            for (step, value) in known.iter().filter(|(_, value)| seen(Some(*value)).is_some()) {
                let (a, b) = place(*step, *value);
                path.push_str(&format!("M{:.1} {:.1}l7 7m0-7l-7 7", a - 3.5, b - 3.5));
            }
        }
        _ => {
            let mut joined = false;
            for (i, (step, value)) in points.iter().enumerate() {
                let Some(value) = seen(*value) else {
                    // Evaluations are far apart, and what lies between is no gap.
                    joined &= series.drawn == Drawn::Dots;
                    continue;
                };
                let (a, b) = place(*step, value);
                path.push_str(&format!("{}{a:.1} {b:.1}", if joined { 'L' } else { 'M' }));
                let alone = !joined && points.get(i + 1).is_none_or(|(_, next)| seen(*next).is_none());
                // A round cap makes a point of a line without a length.
                path.push_str(if alone { "h0" } else { "" });
                joined = true;
            }
        }
    }
    let class = match series.drawn {
        Drawn::Line | Drawn::Dots => series.style.to_string(),
        Drawn::Faint => format!("{} faint", series.style),
        Drawn::Crosses => format!("{} cross", series.style),
    };
    html.raw("<path").attribute("class", &class).attribute("d", &path);
    frame::data(html, known.iter().copied());
    html.raw("/>");
    if series.drawn == Drawn::Dots {
        dots(html, series, &known, x, y);
    }
}

/// The points themselves, with their intervals as whiskers.
fn dots(html: &mut Html, series: &Series, known: &[(u64, f64)], x: &Scale, y: &Scale) {
    let mut whiskers = String::new();
    let shown = |step: &u64| known.iter().any(|(known, _)| known == step);
    for (step, low, high) in series.intervals.iter().filter(|(step, ..)| shown(step)) {
        let (at, low, high) = (x.place(*step as f64), y.place(*low), y.place(*high));
        whiskers.push_str(&format!("M{at:.1} {low:.1}V{high:.1}"));
    }
    html.raw("<path").attribute("class", &format!("{} whisker", series.style)).attribute("d", &whiskers).raw("/>");
    let mut path = String::new();
    for (step, value) in known {
        path.push_str(&format!("M{:.1} {:.1}h0", x.place(*step as f64), y.place(*value)));
    }
    html.raw("<path").attribute("class", &format!("{} dot", series.style)).attribute("d", &path).raw("/>");
}
