//! The host's side of the guided loop: many games at once, each an episode of the distiller.
//!
//! The loop owns the environment. It shows squire what was seen, asks who acts, pulls the action's text
//! from whoever generates it, and executes it. All games of a batch take their turns side by side, so
//! that the engine decodes them in the same rounds.
#![forbid(unsafe_code)]

use serde_json::json;
use squire::distill::{Actor, Distiller, Episode, EpisodeSpec, Replay};
use squire::error::Result;
use squire::serve::GenerationOptions;

use crate::demos;
use crate::expert::random_action;
use crate::world::{Game, MAX_TURNS};

/// Longest action in tokens; the longest valid one has five with its end.
const MAX_ACTION_TOKENS: usize = 8;

/// One seat: a game and its episode, until it is over.
struct Seat {
    game: Game,
    episode: Episode,
    won: Option<bool>,
}

/// How to play a batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mode {
    /// Evaluation: the student alone, at this temperature.
    pub evaluation: Option<f32>,
    /// Random turns that open each game; the player then has the usual number of turns.
    pub random_turns: usize,
    /// Games that are played side by side, so that a batch ends little by little; None: all of them.
    pub seats: Option<usize>,
}

/// Plays all games to their end; returns which were won, in order.
pub fn play(distiller: &Distiller, games: Vec<Game>, mode: Mode) -> Result<Vec<bool>> {
    let mut seats = Vec::with_capacity(games.len());
    let mut coming = games.into_iter();
    let mut options = GenerationOptions { max_tokens: MAX_ACTION_TOKENS, ..Default::default() };
    if let Some(temperature) = mode.evaluation {
        options.sampling.temperature = temperature;
    }
    loop {
        let playing = seats.iter().filter(|s: &&Seat| s.won.is_none()).count();
        let free = mode.seats.map_or(usize::MAX, |n| n - playing);
        for game in coming.by_ref().take(free) {
            seats.push(Seat::new(distiller, game, mode)?);
        }
        if seats.iter().all(|s| s.won.is_some()) {
            break;
        }
        // First start everybody's turn, then wait for each: the engine decodes all of them together.
        let mut acting = Vec::new();
        for (i, seat) in seats.iter_mut().enumerate().filter(|(_, s)| s.won.is_none()) {
            if seat.game.turns() < mode.random_turns {
                seat.episode.override_actor(Actor::Replay)?;
                let action = random_action(&seat.game, i as u64);
                seat.episode.replay(Replay::Text(&action))?;
                seat.execute(&action, false)?;
            } else if seat.episode.decide()?.actor.is_some() {
                acting.push((i, seat.episode.act(&options)?));
            } else {
                seat.end(false)?;
            }
        }
        for (i, generation) in acting {
            let (said, _) = generation.collect()?;
            seats[i].execute(&said.text, true)?;
        }
    }
    Ok(seats.into_iter().map(|s| s.won == Some(true)).collect())
}

impl Seat {
    fn new(distiller: &Distiller, mut game: Game, mode: Mode) -> Result<Seat> {
        game.max_turns += mode.random_turns;
        let spec = EpisodeSpec {
            task: game.task().to_string(),
            evaluation: mode.evaluation.is_some(),
            max_turns: Some((MAX_TURNS + mode.random_turns) as u32),
            ..Default::default()
        };
        let episode = distiller.begin(spec)?;
        episode.observe(json!([{"role": "user", "content": game.first_observation()}]))?;
        Ok(Seat { game, episode, won: None })
    }

    fn execute(&mut self, action: &str, learn: bool) -> Result<()> {
        let step = self.game.act(action);
        self.episode.outcome(None, learn)?;
        if step.done {
            return self.end(step.won);
        }
        self.episode.observe(json!([{"role": "user", "content": step.observation}]))?;
        Ok(())
    }

    fn end(&mut self, won: bool) -> Result<()> {
        self.episode.end(f64::from(u8::from(won)), Some(won))?;
        self.won = Some(won);
        Ok(())
    }
}

/// Replays a demonstration as one episode. Random turns of it carry no loss.
pub fn replay(distiller: &Distiller, demonstration: &demos::Episode) -> Result<()> {
    let episode = distiller.begin(EpisodeSpec::default())?;
    for turn in &demonstration.turns {
        episode.observe(json!([{"role": "user", "content": turn.observation}]))?;
        episode.override_actor(Actor::Replay)?;
        episode.replay(Replay::Text(&turn.action))?;
        episode.outcome(None, turn.labelled)?;
    }
    episode.end(f64::from(u8::from(demonstration.won)), Some(demonstration.won))
}

/// Share of games won.
pub fn success(won: &[bool]) -> f64 {
    won.iter().filter(|&&w| w).count() as f64 / won.len().max(1) as f64
}
