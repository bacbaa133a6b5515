//! The page of a run: one HTML file that needs nothing beside it, and may load nothing.
#![forbid(unsafe_code)]

mod chart;
mod figures;
mod frame;
mod headline;
mod html;
mod numbers;
mod reader;
mod scale;
mod settings;
mod stack;
mod strip;
mod table;
mod thin;
mod troubles;

use crate::run_folder::{Chosen, History};
use html::Html;
pub use numbers::count;

/// The page as bytes. `n_episodes` are those of the record, None where there is none.
pub fn page(history: &History, chosen: &[Chosen], n_episodes: Option<usize>) -> Vec<u8> {
    let mut html = Html::default();
    html.raw("<!DOCTYPE html><html lang=en><head><meta charset=utf-8>");
    // Should a text ever become markup, it still could load nothing and send nothing.
    html.raw("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; ");
    html.raw("script-src 'unsafe-inline'; img-src data:\"><meta name=viewport content=\"width=device-width, initial-scale=1\">");
    html.raw("<meta name=color-scheme content=\"light dark\"><title>squire: run ")
        .text(&history.run.chars().take(8).collect::<String>());
    html.raw("</title><style>").raw(include_str!("page.css")).raw("</style></head><body><main>");
    headline::draw(&mut html, history);
    html.raw("<section id=charts><h2>Over the steps</h2>");
    figures::draw(&mut html, history);
    html.raw("</section>");
    troubles::draw(&mut html, history);
    table::draw(&mut html, history);
    settings::draw(&mut html, history);
    reader::draw(&mut html, chosen, n_episodes);
    html.raw("</main><script>").raw(include_str!("page.js")).raw("</script></body></html>\n");
    html.as_bytes().to_vec()
}
