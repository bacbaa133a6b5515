//! One row an episode: what is of its tokens and turns are lists.
#![forbid(unsafe_code)]

use super::leaf::{Column, Double, Float, Form, Leaf, Number, Shape, Text, Truth, Whole, columns};
use super::per_token::{Tokens, text};

columns! {
    /// The columns.
    Episodes {
        run: Text One,
        episode: Number One,
        step: Number One,
        task: Text One,
        group: Text One,
        panel: Text One,
        task_seed: Number Maybe,
        seed: Number One,
        revision: Number One,
        evaluation: Truth One,
        forked_from_episode: Number Maybe,
        forked_from_turn: Whole Maybe,
        settings: Text One,
        score: Double One,
        success: Truth Maybe,
        ids: Whole List,
        source: Text List,
        turn: Whole List,
        mask: Truth List,
        logprob: Float ListOfMaybe,
        sampled_logprob: Float ListOfMaybe,
        teacher_logprob: Float ListOfMaybe,
        teacher_top_ids: Whole ListOfMaybeLists,
        teacher_top_logprobs: Float ListOfMaybeLists,
        actor: Text List,
        reward: Double ListOfMaybe,
        text: Text ListOfMaybe,
    }
}

impl Form for Episodes {
    const ROW: &str = "episode";

    fn columns(&mut self) -> Vec<&mut dyn Column> {
        self.all()
    }

    fn add(&mut self, tokens: &Tokens<'_>) -> usize {
        let played = tokens.played;
        self.run.one(text(&played.run.to_string()));
        self.episode.one(played.episode as i64);
        self.step.one(played.step as i64);
        self.task.one(text(&played.task));
        self.group.one(text(&played.group));
        self.panel.one(text(&played.panel));
        self.task_seed.maybe(played.task_seed.map(|seed| seed as i64));
        self.seed.one(played.seed as i64);
        self.revision.one(played.revision as i64);
        self.evaluation.one(played.evaluation);
        self.forked_from_episode.maybe(played.forked_from.map(|from| from.episode as i64));
        self.forked_from_turn.maybe(played.forked_from.map(|from| from.turn as i32));
        self.settings.one(text(&played.settings));
        self.score.one(played.score);
        self.success.maybe(played.success);
        self.ids.list(played.ids.iter().copied());
        self.source.list(tokens.source.iter().cloned());
        self.turn.list(tokens.turn.iter().copied());
        self.mask.list(tokens.mask.iter().copied());
        self.logprob.list_of_maybe(tokens.logprob.iter().copied());
        self.sampled_logprob.list_of_maybe(tokens.sampled_logprob.iter().copied());
        self.teacher_logprob.list_of_maybe(tokens.teacher_logprob.iter().copied());
        self.teacher_top_ids.list_of_maybe_lists(tokens.teacher_top_ids.iter().copied());
        self.teacher_top_logprobs.list_of_maybe_lists(tokens.teacher_top_logprobs.iter().copied());
        self.actor.list(played.turns.iter().map(|turn| text(&turn.actor)));
        self.reward.list_of_maybe(played.turns.iter().map(|turn| turn.reward));
        self.text.list_of_maybe(played.turns.iter().map(|turn| turn.text.as_deref().map(text)));
        1
    }
}
