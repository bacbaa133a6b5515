//! One row a token, with what tells its episode.
#![forbid(unsafe_code)]

use super::leaf::{Column, Float, Form, Leaf, Number, Shape, Text, Truth, Whole, columns};
use super::per_token::{Tokens as OfEpisode, text};

columns! {
    /// The columns.
    Tokens {
        run: Text One,
        episode: Number One,
        step: Number One,
        task: Text One,
        evaluation: Truth One,
        position: Whole One,
        id: Whole One,
        source: Text One,
        turn: Whole One,
        actor: Text Maybe,
        mask: Truth One,
        logprob: Float Maybe,
        sampled_logprob: Float Maybe,
        teacher_logprob: Float Maybe,
        teacher_top_ids: Whole MaybeList,
        teacher_top_logprobs: Float MaybeList,
    }
}

impl Form for Tokens {
    const ROW: &str = "token";

    fn columns(&mut self) -> Vec<&mut dyn Column> {
        self.all()
    }

    fn add(&mut self, tokens: &OfEpisode<'_>) -> usize {
        let played = tokens.played;
        let (run, task) = (text(&played.run.to_string()), text(&played.task));
        let actors: Vec<_> = played.turns.iter().map(|turn| text(&turn.actor)).collect();
        for (at, &id) in played.ids.iter().enumerate() {
            self.run.one(run.clone());
            self.episode.one(played.episode as i64);
            self.step.one(played.step as i64);
            self.task.one(task.clone());
            self.evaluation.one(played.evaluation);
            self.position.one(at as i32);
            self.id.one(id);
            self.source.one(tokens.source[at].clone());
            self.turn.one(tokens.turn[at]);
            self.actor.maybe(usize::try_from(tokens.turn[at]).ok().map(|turn| actors[turn].clone()));
            self.mask.one(tokens.mask[at]);
            self.logprob.maybe(tokens.logprob[at]);
            self.sampled_logprob.maybe(tokens.sampled_logprob[at]);
            self.teacher_logprob.maybe(tokens.teacher_logprob[at]);
            self.teacher_top_ids.maybe_list(tokens.teacher_top_ids[at]);
            self.teacher_top_logprobs.maybe_list(tokens.teacher_top_logprobs[at]);
        }
        played.ids.len()
    }
}
