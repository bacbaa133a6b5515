//! What all drawings have in common: the figure with its heading, axes with units, a legend that says the last values (or
//! those under the pointer), and what a reader is told who cannot see it.

use super::html::Html;
use super::numbers::short;
use super::scale::Scale;

/// Pixels of a drawing. It is about as wide as a telephone, so that letters keep their size there.
pub const WIDTH: f64 = 360.0;
pub const HEIGHT: f64 = 200.0;
pub const LEFT: f64 = 46.0;
pub const RIGHT: f64 = WIDTH - 10.0;
pub const TOP: f64 = 22.0;
pub const BOTTOM: f64 = HEIGHT - 34.0;

/// Heading and explanation of a drawing.
pub struct Caption {
    pub id: &'static str,
    pub title: String,
    pub unit: &'static str,
    pub about: &'static str,
}

/// A line of the legend: a style, a name, and the last value with its step.
pub struct Entry {
    pub style: &'static str,
    pub faint: bool,
    pub name: String,
    pub last: Option<(u64, f64)>,
}

/// The axis of steps.
pub fn steps((first, last): (u64, u64)) -> Scale {
    Scale::linear((first as f64, last as f64), (LEFT, RIGHT))
}

/// Opens a figure and its drawing. `said` is what the drawing shows, in words.
pub fn open(html: &mut Html, caption: &Caption, said: &str, (first, last): (u64, u64)) {
    html.raw("<figure").attribute("id", caption.id).raw("><figcaption><h3>").text(&caption.title);
    html.raw("</h3><p>").text(caption.about).raw("</p></figcaption>");
    html.raw("<svg role=img tabindex=0").attribute("viewBox", &format!("0 0 {WIDTH} {HEIGHT}"));
    let labels = format!("{0}-title {0}-desc", caption.id);
    html.attribute("aria-labelledby", &labels);
    html.attribute("data-plot", &format!("{LEFT} {RIGHT} {first} {last}"));
    html.raw("><title").attribute("id", &format!("{}-title", caption.id)).raw(">").text(&caption.title);
    html.raw("</title><desc").attribute("id", &format!("{}-desc", caption.id)).raw(">").text(said).raw("</desc>");
    html.raw("<text class=unit y=12").attribute("x", "2").raw(">").text(caption.unit).raw("</text>");
}

/// Lines and numbers of both axes.
pub fn axes(html: &mut Html, x: &Scale, y: &Scale) {
    for tick in y.ticks(5) {
        let at = format!("{:.1}", y.place(tick));
        html.raw("<path class=grid").attribute("d", &format!("M{LEFT} {at}H{RIGHT}")).raw("/>");
        label(html, "end", LEFT - 5.0, y.place(tick) + 3.5, &short(tick));
    }
    step_axis(html, x);
}

/// Numbers of the axis of steps alone.
pub fn step_axis(html: &mut Html, x: &Scale) {
    // A step is a whole number, and one that stands at the right end would be cut.
    for tick in x.ticks(5).into_iter().filter(|tick| tick.fract() == 0.0 && *tick >= 0.0) {
        let at = x.place(tick);
        html.raw("<path class=grid").attribute("d", &format!("M{at:.1} {BOTTOM}v4")).raw("/>");
        label(html, if at > RIGHT - 12.0 { "end" } else { "middle" }, at.min(WIDTH - 2.0), BOTTOM + 15.0, &short(tick));
    }
    label(html, "middle", (LEFT + RIGHT) / 2.0, HEIGHT - 4.0, "step");
}

/// A number or a word of an axis.
pub fn label(html: &mut Html, anchor: &str, x: f64, y: f64, text: &str) {
    html.raw("<text").attribute("text-anchor", anchor).attribute("x", &format!("{x:.1}"));
    html.attribute("y", &format!("{y:.1}")).raw(">").text(text).raw("</text>");
}

/// Ends the drawing and the figure. Where curves are means of several steps, `of` says of how many.
pub fn close(html: &mut Html, legend: &[Entry], of: Option<usize>) {
    html.raw("<path class=cursor").attribute("d", &format!("M0 {TOP}V{BOTTOM}")).raw("/></svg><ul class=legend>");
    for entry in legend {
        html.raw("<li><svg class=key aria-hidden=true viewBox=\"0 0 20 8\"><path d=\"M0 4h20\"")
            .attribute("class", &format!("{}{}", entry.style, if entry.faint { " faint" } else { "" }));
        html.raw("/></svg>").text(&entry.name).raw(" <b");
        let last = entry.last.map(|(_, value)| short(value)).unwrap_or_default();
        html.raw(">").text(&last).raw("</b></li>");
    }
    if let Some(n) = of {
        html.element("<li>curve: mean, band: least to largest of ", &n.to_string(), " steps</li>");
    }
    html.raw("<li class=at></li></ul></figure>");
}

/// The values of a curve, for the pointer.
pub fn data(html: &mut Html, points: impl Iterator<Item = (u64, f64)>) {
    let mut text = String::new();
    for (step, value) in points {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&format!("{step} {}", short(value)));
    }
    html.attribute("data-p", &text);
}
