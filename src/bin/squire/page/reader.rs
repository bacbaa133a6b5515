//! Episodes to read, turn by turn, within a budget of bytes.

use super::html::Html;
use super::numbers::{short, whole};
use crate::run_folder::{Chosen, Episode};

/// Bytes that all episodes may take in the page, and turns that are shown of one.
const BUDGET: usize = 1_600_000;
const MOST_TURNS: usize = 200;
/// Characters of a text: never more, and never fewer where it has them.
const LONGEST: usize = 6000;
const SHORTEST: usize = 120;

pub fn draw(html: &mut Html, chosen: &[Chosen], n_episodes: Option<usize>) {
    html.raw("<section id=episodes><h2>Episodes to read</h2><p class=quiet>");
    match n_episodes {
        None => html.raw("The folder has no record.jsonl, so there is nothing to read.</p>"),
        Some(n) => {
            let count = format!("{} of {} of the record", chosen.len(), whole(n as u64));
            html.text(&count).raw(": the first and the last, those of the highest and the lowest return, evaluations, and some spread over the run. What was said is in a box that names who said it; what stands between, the host's and the template's, is grey.</p>")
        }
    };
    let mut left = BUDGET;
    for (i, Chosen { episode, why }) in chosen.iter().enumerate() {
        let before = html.len();
        one(html, episode, why, left / (chosen.len() - i));
        left = left.saturating_sub(html.len() - before);
    }
    html.raw("</section>");
}

/// An episode in about so many bytes.
fn one(html: &mut Html, episode: &Episode, why: &[&'static str], budget: usize) {
    let gain = episode.score.unwrap_or(0.0) + episode.turns.iter().filter_map(|turn| turn.reward).sum::<f64>();
    let verdict = match episode.success {
        Some(true) => "success",
        Some(false) => "no success",
        None => "not judged",
    };
    html.raw("<details class=episode")
        .attribute("data-episode", &episode.episode.to_string())
        .raw("><summary><b>Episode ");
    html.text(&episode.episode.to_string())
        .raw("</b> <span class=tag>step ")
        .text(&episode.step.to_string())
        .raw("</span>");
    if episode.evaluation {
        html.raw(" <span class=tag>evaluation</span>");
    }
    html.element(" <span class=tag>", verdict, "</span> <span class=tag>return ")
        .text(&short(gain))
        .raw("</span> <bdi class=task>");
    html.cut(episode.task.as_deref().unwrap_or(""), 120)
        .raw("</bdi><span class=quiet>")
        .text(&why.join(", "))
        .raw("</span></summary>");
    let mut facts = vec![format!("score {}", episode.score.map_or("none".into(), short))];
    facts.extend(episode.revision.map(|revision| format!("played by revision {revision}")));
    facts.extend(
        episode.forked_from.as_ref().map(|fork| format!("forked from episode {} at turn {}", fork.episode, fork.turn)),
    );
    html.element("<p class=quiet>", &facts.join(" · "), "</p><ol class=turns start=0>");

    let shown = &episode.turns[..episode.turns.len().min(MOST_TURNS)];
    // Short texts leave what they do not need to the long ones.
    let texts = shown.iter().flat_map(|turn| [&turn.before, &turn.text]).chain([&episode.rest]);
    let mut lengths: Vec<usize> = texts.flatten().map(String::len).collect();
    lengths.sort_unstable();
    let longest = share(&lengths, budget.saturating_sub(400 * shown.len())).clamp(SHORTEST, LONGEST);
    for turn in shown {
        html.raw("<li>");
        aside(html, turn.before.as_deref(), longest);
        let style = ["student", "teacher", "replay"].into_iter().find(|name| *name == turn.actor).unwrap_or("other");
        html.raw("<div")
            .attribute("class", &format!("turn {style}"))
            .raw("><p><b class=actor>")
            .cut(&turn.actor, 40)
            .raw("</b> ");
        let mut facts = Vec::new();
        facts.extend(turn.reward.map(|reward| format!("reward {}", short(reward))));
        facts.push(format!("{} tokens", whole(turn.end.saturating_sub(turn.start))));
        facts.extend(turn.probability.map(|p| format!("probability {}", short(p))));
        facts.extend(turn.train.then(|| "trained on".to_string()));
        let by = turn.ended_by.as_ref().map(|by| by.chars().take(20).collect::<String>().replace('_', " "));
        facts.extend(turn.truncated.then(|| by.map_or("cut off".into(), |by| format!("cut off by {by}"))));
        html.element("<span class=quiet>", &facts.join(" · "), "");
        if let Some(reason) = turn.reason.as_deref().filter(|reason| !reason.is_empty()) {
            html.raw(" · reason: <bdi>").cut(reason, 300).raw("</bdi>");
        }
        html.raw("</span></p>");
        match &turn.text {
            Some(text) => html.raw("<pre dir=auto>").cut(text, longest).raw("</pre>"),
            None => html.raw("<p class=quiet>No text was recorded.</p>"),
        };
        html.raw("</div></li>");
    }
    html.raw("</ol>");
    aside(html, episode.rest.as_deref(), longest);
    if episode.turns.len() > MOST_TURNS {
        html.element(
            "<p class=quiet>",
            &(episode.turns.len() - MOST_TURNS).to_string(),
            " more turns are left out.</p>",
        );
    }
    html.raw("</details>");
}

/// What stands between turns.
fn aside(html: &mut Html, text: Option<&str>, longest: usize) {
    if let Some(text) = text.filter(|text| !text.is_empty()) {
        html.raw("<pre class=between dir=auto>").cut(text, longest).raw("</pre>");
    }
}

/// The length to which texts are cut so that they take `budget` together, given their lengths in order.
fn share(lengths: &[usize], budget: usize) -> usize {
    let mut left = budget;
    for (i, length) in lengths.iter().enumerate() {
        let each = left / (lengths.len() - i);
        if *length > each {
            return each;
        }
        left -= length;
    }
    usize::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_texts_leave_their_room_to_long_ones() {
        assert_eq!(share(&[10, 20, 1000], 130), 100);
        assert_eq!(share(&[10, 20], 130), usize::MAX);
        assert_eq!(share(&[1000, 1000], 130), 65);
        assert_eq!(share(&[], 0), usize::MAX);
    }
}
