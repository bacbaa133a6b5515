//! A chart of curves over the steps, as SVG.

use super::frame::{self, BOTTOM, Caption, Entry, LEFT, RIGHT, TOP};
use super::html::Html;
use super::numbers::short;
use super::scale::{Scale, round_range};
use super::thin::{Point, Stretch, thin};

/// Stretches that a curve is thinned to, and marks that are drawn.
const MOST: usize = 200;
const MOST_MARKS: usize = 400;

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

    /// Whether there are more points than are drawn.
    fn has_band(&self) -> bool {
        matches!(self.drawn, Drawn::Line | Drawn::Faint) && self.points.len() > MOST
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
            // Two of them may stand close to each other: the names are at different ends.
            let is_lower = self.bounds.iter().any(|(_, other)| other > value);
            let (anchor, end) = if is_lower { ("start", LEFT + 8.0) } else { ("end", RIGHT) };
            frame::label(html, anchor, end, at - 4.0, &format!("{name} {}", short(*value)));
        }
        for series in &self.series {
            draw(html, series, &Places { x: &x, y: &y });
        }
        let entries = self.series.iter().filter(|s| s.is_known());
        let legend: Vec<Entry> = entries
            .map(|s| Entry {
                style: s.style,
                faint: s.drawn == Drawn::Faint,
                name: s.name.clone(),
                last: s.known().next_back(),
            })
            .collect();
        let longest = self.series.iter().filter(|s| s.has_band()).map(|s| s.points.len()).max();
        frame::close(html, &legend, longest.map(|n| n.div_ceil(MOST)));
    }
}

/// Where values stand in a drawing.
struct Places<'a> {
    x: &'a Scale,
    y: &'a Scale,
}

impl Places<'_> {
    /// None where a logarithm has no place for the value.
    fn of(&self, step: u64, value: f64) -> Option<(f64, f64)> {
        let is_seen = value > 0.0 || !self.y.is_logarithmic();
        is_seen.then(|| (self.x.place(step as f64), self.y.place(value).clamp(TOP - 2.0, BOTTOM + 2.0)))
    }
}

fn draw(html: &mut Html, series: &Series, places: &Places) {
    match series.drawn {
        _ if !series.is_known() => {}
        Drawn::Line | Drawn::Faint => curve(html, series, places),
        Drawn::Dots | Drawn::Crosses => marks(html, series, places),
    }
}

/// A curve, as the mean of each stretch with a band from the least to the largest value where a stretch has several.
fn curve(html: &mut Html, series: &Series, places: &Places) {
    let stretches = thin(&series.points, MOST);
    if series.has_band() {
        let mut band = String::new();
        for run in stretches.split(Option::is_none).filter(|run| !run.is_empty()) {
            let along = |of: fn(&Stretch) -> f64| run.iter().flatten().filter_map(move |s| places.of(s.step, of(s)));
            let edge: Vec<_> =
                along(|s| s.largest).chain(along(|s| s.least).collect::<Vec<_>>().into_iter().rev()).collect();
            for (i, (a, b)) in edge.iter().enumerate() {
                band.push_str(&format!("{}{a:.1} {b:.1}", if i > 0 { 'L' } else { 'M' }));
            }
        }
        html.raw("<path").attribute("class", &format!("{} band", series.style)).attribute("d", &band).raw("/>");
    }
    let (mut path, mut points) = (String::new(), String::new());
    let mut joined = false;
    let place = |stretch: &Option<Stretch>| stretch.and_then(|s| places.of(s.step, s.mean));
    for (i, stretch) in stretches.iter().enumerate() {
        let Some((a, b)) = place(stretch) else {
            joined = false;
            continue;
        };
        path.push_str(&format!("{}{a:.1} {b:.1}", if joined { 'L' } else { 'M' }));
        if !joined && stretches.get(i + 1).is_none_or(|next| place(next).is_none()) {
            // One by itself has no line: a round cap makes a point of a line without a length.
            points.push_str(&format!("M{a:.1} {b:.1}h0"));
        }
        joined = true;
    }
    if !points.is_empty() {
        html.raw("<path").attribute("class", &format!("{} dot", series.style)).attribute("d", &points).raw("/>");
    }
    let class = if series.drawn == Drawn::Faint { format!("{} faint", series.style) } else { series.style.into() };
    html.raw("<path").attribute("class", &class).attribute("d", &path);
    frame::data(html, stretches.iter().flatten().map(|s| (s.step, s.mean)));
    html.raw("/>");
}

/// Points that stand for themselves: crosses, or dots joined by a line, with their intervals as whiskers.
fn marks(html: &mut Html, series: &Series, places: &Places) {
    let known: Vec<(u64, f64)> = series.known().collect();
    // The last ones where there are more than a drawing can hold.
    let known = &known[known.len().saturating_sub(MOST_MARKS)..];
    let (mut line, mut crosses, mut dots, mut whiskers) = (String::new(), String::new(), String::new(), String::new());
    for (a, b) in known.iter().filter_map(|(step, value)| places.of(*step, *value)) {
        line.push_str(&format!("{}{a:.1} {b:.1}", if line.is_empty() { 'M' } else { 'L' }));
        crosses.push_str(&format!("M{:.1} {:.1}l7 7m0-7l-7 7", a - 3.5, b - 3.5));
        dots.push_str(&format!("M{a:.1} {b:.1}h0"));
    }
    let from = known.first().map_or(0, |(step, _)| *step);
    for (step, low, high) in series.intervals.iter().filter(|(step, ..)| *step >= from) {
        let at = places.x.place(*step as f64);
        whiskers.push_str(&format!("M{at:.1} {:.1}V{:.1}", places.y.place(*low), places.y.place(*high)));
    }
    let mut add = |class: &str, path: &str, has_data: bool| {
        html.raw("<path").attribute("class", class).attribute("d", path);
        if has_data {
            frame::data(html, known.iter().copied());
        }
        html.raw("/>");
    };
    if series.drawn == Drawn::Crosses {
        return add(&format!("{} cross", series.style), &crosses, true);
    }
    add(&format!("{} whisker", series.style), &whiskers, false);
    add(series.style, &line, true);
    add(&format!("{} dot", series.style), &dots, false);
}
