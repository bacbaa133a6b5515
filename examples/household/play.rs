//! The host's side of the guided loop: many games at once, each an episode of the distiller.
//!
//! The loop owns the environment. It shows squire what was seen, asks who acts, pulls the action's text
//! from whoever generates it, and executes it. All games of a batch take their turns side by side, so
//! that the engine decodes them in the same rounds. What a method may ask of a host is here: turns of a demonstration, proposals
//! that are judged, and forks in which the teacher labels what the student is about to do.
#![forbid(unsafe_code)]

use serde_json::json;
use squire::distill::{Actor, Decision, Distiller, Episode, EpisodeSpec, ForkOptions, Reason, Replay};
use squire::error::Result;
use squire::serve::{Cancel, GenerationOptions};

use crate::demos;
use crate::expert::random_action;
use crate::world::{Game, MAX_TURNS};

/// Longest action in tokens; the longest valid one has five with its end.
const MAX_ACTION_TOKENS: usize = 8;

/// One seat: a game and its episode, until it is over.
struct Seat {
    game: Game,
    episode: Episode,
    /// actions to be replayed where the method says so
    demonstration: Vec<String>,
    won: Option<bool>,
}

/// How to play a batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mode {
    /// Evaluation: the student alone, at this temperature.
    pub evaluation: Option<f32>,
    /// Random turns that open each game; the player then has the usual number of turns.
    pub random_turns: usize,
    /// Whether the teacher labels every turn that the student acts: a fork in which it acts is learnt beside it.
    pub labels: bool,
    /// Games that are played side by side, so that a batch ends little by little; None: all of them.
    pub seats: Option<usize>,
}

/// Plays all games to their end; returns which were won, in order.
pub fn play(distiller: &Distiller, games: Vec<Game>, mode: Mode) -> Result<Vec<bool>> {
    play_as(distiller, games.into_iter().map(|game| (game, EpisodeSpec::default())).collect(), mode)
}

/// The same with what each game's episode is to be beyond its task and its turns: a group, a demonstration.
pub fn play_as(distiller: &Distiller, games: Vec<(Game, EpisodeSpec)>, mode: Mode) -> Result<Vec<bool>> {
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
        let (mut acting, mut labels) = (Vec::new(), Vec::new());
        for (i, seat) in seats.iter_mut().enumerate().filter(|(_, s)| s.won.is_none()) {
            if seat.game.turns() < mode.random_turns {
                seat.episode.override_actor(Actor::Replay)?;
                let action = random_action(&seat.game, i as u64);
                seat.episode.replay(Replay::Text(&action))?;
                seat.execute(&action, false)?;
                continue;
            }
            let decision = seat.episode.decide()?;
            match decision.actor {
                None => seat.end(false)?,
                Some(Actor::Replay) => {
                    let action = seat.demonstration[seat.game.turns()].clone();
                    seat.episode.replay(Replay::Stored)?;
                    seat.execute(&action, true)?;
                }
                Some(actor) => {
                    if mode.labels && actor == Actor::Student {
                        let fork = seat.episode.fork(ForkOptions::default())?;
                        fork.override_actor(Actor::Teacher)?;
                        let said = fork.act(&options)?;
                        labels.push((fork, said));
                    }
                    acting.push((i, decision, seat.episode.act(&options)?));
                }
            }
        }
        let mut again = Vec::new();
        for (i, decision, generation) in acting {
            let (said, _) = generation.collect()?;
            match seats[i].is_replaced(decision)? {
                true => again.push((i, seats[i].episode.act(&options)?)),
                false => seats[i].execute(&said.text, true)?,
            }
        }
        for (i, generation) in again {
            let (said, _) = generation.collect()?;
            seats[i].execute(&said.text, true)?;
        }
        for (fork, generation) in labels {
            generation.collect()?;
            fork.outcome(None, true)?;
            fork.end(0.0, None)?;
        }
    }
    Ok(seats.into_iter().map(|s| s.won == Some(true)).collect())
}

impl Seat {
    fn new(distiller: &Distiller, (mut game, spec): (Game, EpisodeSpec), mode: Mode) -> Result<Seat> {
        game.max_turns += mode.random_turns;
        let spec = EpisodeSpec {
            task: game.task().to_string(),
            evaluation: mode.evaluation.is_some(),
            max_turns: Some((MAX_TURNS + mode.random_turns) as u32),
            ..spec
        };
        let demonstration = spec.demonstration.clone().unwrap_or_default();
        let episode = distiller.begin(spec)?;
        episode.observe(json!([{"role": "user", "content": game.first_observation()}]))?;
        Ok(Seat { game, episode, demonstration, won: None })
    }

    /// Whether what the student said was a proposal, and the teacher takes the turn.
    fn is_replaced(&self, decision: Decision) -> Result<bool> {
        if decision.reason != Reason::Proposal {
            return Ok(false);
        }
        Ok(self.episode.judge(&Cancel::default())?.actor == Some(Actor::Teacher))
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
