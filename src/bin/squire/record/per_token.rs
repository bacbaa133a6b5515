//! An episode of a record, looked at token by token.
#![forbid(unsafe_code)]

use parquet::data_type::ByteArray;
use squire::distill::record::RecordedEpisode;
use squire::distill::record::line::EpisodeLine;

/// An episode, with what each of its tokens has.
pub struct Tokens<'a> {
    pub played: &'a EpisodeLine,
    /// who put it there
    pub source: Vec<ByteArray>,
    /// its turn; -1 outside of turns
    pub turn: Vec<i32>,
    /// whether it carries loss
    pub mask: Vec<bool>,
    pub logprob: Vec<Option<f32>>,
    pub sampled_logprob: Vec<Option<f32>>,
    pub teacher_logprob: Vec<Option<f32>>,
    /// None where the teacher gave none
    pub teacher_top_ids: Vec<Option<&'a [i32]>>,
    pub teacher_top_logprobs: Vec<Option<&'a [f32]>>,
}

impl<'a> Tokens<'a> {
    /// Of an episode that was read, so that its parts fit each other.
    pub fn of(episode: &'a RecordedEpisode) -> Tokens<'a> {
        let RecordedEpisode { played, said, .. } = episode;
        let n = played.ids.len();
        let mut tokens = Tokens {
            played,
            source: Vec::with_capacity(n),
            turn: vec![-1; n],
            mask: vec![false; n],
            logprob: vec![None; n],
            sampled_logprob: vec![None; n],
            teacher_logprob: vec![None; n],
            teacher_top_ids: vec![None; n],
            teacher_top_logprobs: vec![None; n],
        };
        for (name, len) in &played.sources {
            tokens.source.resize(tokens.source.len() + len, ByteArray::from(name.as_str()));
        }
        for (index, turn) in played.turns.iter().enumerate() {
            tokens.turn[turn.start..turn.end].fill(index as i32);
            tokens.mask[turn.start..turn.end].fill(turn.train);
            for (to, from) in
                [(&mut tokens.logprob, &turn.logprobs), (&mut tokens.sampled_logprob, &turn.sampled_logprobs)]
            {
                to[turn.start..].iter_mut().zip(from).for_each(|(to, &x)| *to = Some(x));
            }
        }
        if let Some(said) = said {
            for (i, &at) in said.positions.iter().enumerate() {
                tokens.teacher_logprob[at] = Some(said.logprobs[i]);
                if said.top_k > 0 {
                    let place = i * said.top_k..(i + 1) * said.top_k;
                    tokens.teacher_top_ids[at] = Some(&said.top_ids[place.clone()]);
                    tokens.teacher_top_logprobs[at] = Some(&said.top_logprobs[place]);
                }
            }
        }
        tokens
    }
}

/// Text as a column has it.
pub fn text(of: &str) -> ByteArray {
    ByteArray::from(of)
}
