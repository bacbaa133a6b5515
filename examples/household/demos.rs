//! Demonstrations: the expert plays, at times disturbed, and says at each turn what to do.
//!
//! A disturbed turn is executed but not labelled: nobody should learn to make the mistake, only to get
//! out of it. A teacher trained on such games keeps its head where a student's own mistakes lead.
#![forbid(unsafe_code)]

use squire::random::{Stream, uniform};

use crate::expert::{expert, random_action};
use crate::world::{Game, Split};

/// Sets the draws of demonstrations apart from those of the games.
const DEMONSTRATE: u64 = 0x6465_6d6f;

/// One turn: what was told, what was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// What the player was told before acting.
    pub observation: String,
    /// What was executed.
    pub action: String,
    /// Whether the action is the expert's, so that it may be learnt from.
    pub labelled: bool,
}

/// One game from its first observation to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Episode {
    pub turns: Vec<Turn>,
    pub won: bool,
}

/// The game `seed` of a split, played by the expert; each turn is replaced by a random action with the
/// probability `noise`. A pure function of its arguments.
pub fn demonstration(split: Split, seed: u64, noise: f32) -> Episode {
    let mut game = Game::new(split, seed);
    let mut observation = game.first_observation();
    let mut turns = Vec::new();
    loop {
        let labelled = uniform(Stream::World, &[DEMONSTRATE, split as u64, seed, game.turns() as u64]) >= noise;
        let action = if labelled { expert(&game) } else { random_action(&game, seed) };
        let step = game.act(&action);
        turns.push(Turn { observation: std::mem::replace(&mut observation, step.observation), action, labelled });
        if step.done {
            return Episode { turns, won: step.won };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demonstration_is_a_pure_function_of_its_arguments() {
        for seed in 0..50 {
            assert_eq!(demonstration(Split::Train, seed, 0.2), demonstration(Split::Train, seed, 0.2));
        }
        assert_ne!(demonstration(Split::Train, 0, 0.0), demonstration(Split::Validation, 0, 0.0));
    }

    #[test]
    fn without_noise_every_turn_is_labelled_and_every_game_won() {
        for seed in 0..500 {
            let episode = demonstration(Split::Train, seed, 0.0);
            assert!(episode.won && episode.turns.iter().all(|turn| turn.labelled));
        }
    }

    #[test]
    fn labels_are_the_experts_actions_in_the_state_that_was_reached() {
        for seed in 0..200 {
            let episode = demonstration(Split::Train, seed, 0.3);
            let mut game = Game::new(Split::Train, seed);
            let mut observation = game.first_observation();
            for turn in &episode.turns {
                assert_eq!(turn.observation, observation);
                assert!(!turn.labelled || turn.action == expert(&game));
                observation = game.act(&turn.action).observation;
            }
        }
    }

    #[test]
    fn noise_is_the_share_of_turns_without_a_label() {
        let episodes: Vec<Episode> = (0..2_000).map(|seed| demonstration(Split::Train, seed, 0.2)).collect();
        let turns: usize = episodes.iter().map(|episode| episode.turns.len()).sum();
        let random = episodes.iter().flat_map(|episode| &episode.turns).filter(|turn| !turn.labelled).count();
        assert!((0.19..0.21).contains(&(random as f64 / turns as f64)), "{random} of {turns}");
    }
}
