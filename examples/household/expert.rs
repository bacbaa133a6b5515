//! The expert: a rule that wins from every state of the household, and the random actions that disturb it.
//!
//! It is reactive: it looks at the task, the hand, what is visible here and which storage was visited
//! last, and at nothing else. A rule with a memory (return to where the object was once seen) plays a
//! little shorter, but a small model cannot learn it off the beaten path.
#![forbid(unsafe_code)]

use crate::world::{Draws, Game, N_STORAGES, OBJECTS, PLACES, ROOM_LEN, Wish};

/// Sets the draws of disturbing actions apart from those of the games.
const DISTURB: u64 = 0x6469_7374;

const APPLIANCES: [usize; PLACES.len() - N_STORAGES] = [12, 13, 14, 15];

/// The action that the expert plays in this state; starts with a space, like all texts of the game.
pub fn expert(game: &Game) -> String {
    let goal = game.goal;
    match game.hand {
        Some(object) if object == goal.object && !game.is_ready() => {
            // Every wish but `Put` has an appliance, and for `Put` the object is always ready.
            let appliance = goal.wish.appliance().unwrap_or(goal.place);
            if game.here == Some(appliance) { treat(goal.wish, object, appliance) } else { go(appliance) }
        }
        Some(object) if object == goal.object => {
            if game.here == Some(goal.place) {
                put(game, object, goal.place)
            } else {
                go(goal.place)
            }
        }
        Some(object) => match game.here {
            Some(here) if here < N_STORAGES => put(game, object, here),
            _ => go(game.room[0]),
        },
        None => {
            if let Some(here) = game.here {
                if game.visible(here).is_some_and(|objects| objects.contains(&goal.object)) {
                    return take(goal.object, here);
                }
                if game.is_closed(here) {
                    return open(here);
                }
            }
            go(game.room[game.last_visited.map_or(0, |last| (last + 1) % ROOM_LEN)])
        }
    }
}

/// A grammatical action for a disturbed state, a pure function of game and `draw`: four times in five one
/// that is possible here, wise or not, else any.
pub fn random_action(game: &Game, draw: u64) -> String {
    let mut draws = Draws::new([DISTURB, draw, game.turns() as u64]);
    let mut possible = vec![go(draws.pick(&game.room)), go(draws.pick(&APPLIANCES))];
    if let Some(here) = game.here {
        match (game.hand, game.visible(here)) {
            (_, None) => possible.push(open(here)),
            (None, Some(objects)) => possible.extend(objects.iter().map(|&object| take(object, here))),
            (Some(object), Some(_)) if here < N_STORAGES => possible.push(put(game, object, here)),
            (Some(object), Some(_)) => possible.push(treat(Wish::WITH_APPLIANCE[here - N_STORAGES], object, here)),
        }
    }
    if draws.below(5) > 0 {
        return possible.swap_remove(draws.below(possible.len()));
    }
    let (object, place) = (draws.below(OBJECTS.len()), draws.below(PLACES.len()));
    match draws.below(5) {
        0 => go(place),
        1 => open(place),
        2 => take(object, place),
        3 => put(game, object, place),
        _ => treat(draws.pick(&Wish::WITH_APPLIANCE), object, draws.pick(&APPLIANCES)),
    }
}

fn go(place: usize) -> String {
    format!(" go to {}", PLACES[place])
}

fn open(place: usize) -> String {
    format!(" open {}", PLACES[place])
}

fn take(object: usize, place: usize) -> String {
    format!(" take {} from {}", OBJECTS[object], PLACES[place])
}

/// Puts the object down, or opens the place for it.
fn put(game: &Game, object: usize, place: usize) -> String {
    if game.is_closed(place) { open(place) } else { format!(" put {} in {}", OBJECTS[object], PLACES[place]) }
}

fn treat(wish: Wish, object: usize, appliance: usize) -> String {
    format!(" {} {} with {}", wish.verb(), OBJECTS[object], PLACES[appliance])
}

#[cfg(test)]
mod tests {
    use super::*;
    use squire::random::{Stream, uniform};

    use crate::world::{MAX_TURNS, Split};

    #[test]
    fn the_expert_wins_a_thousand_clean_games_of_each_split() {
        for split in [Split::Train, Split::Validation, Split::Unseen] {
            let mut turns: Vec<usize> = Vec::new();
            for seed in 0..1_000 {
                let mut game = Game::new(split, seed);
                loop {
                    let step = game.act(&expert(&game));
                    assert_ne!(step.observation, " nothing happens", "{split:?} {seed}");
                    if step.done {
                        assert!(step.won, "{split:?} {seed}");
                        break;
                    }
                }
                turns.push(game.turns());
            }
            turns.sort_unstable();
            let mean = turns.iter().sum::<usize>() as f64 / 1_000.0;
            println!(
                "{split:?}: mean {mean:.2} turns, 10 % {} 50 % {} 90 % {} most {}",
                turns[100], turns[500], turns[900], turns[999]
            );
            assert!((8.0..10.5).contains(&mean));
        }
    }

    #[test]
    fn the_expert_wins_from_every_state_that_random_play_reaches() {
        // At most 21 turns: go to a storage, open it and put down what is in the hand; go to six storages
        // and open them; take the object; go and treat it; go, open and put it down.
        let mut most = 0;
        for seed in 0..5_000 {
            let mut game = Game::new(Split::Unseen, seed);
            game.max_turns = usize::MAX;
            let disturbed = seed % 16;
            if (0..disturbed).any(|turn| game.act(&random_action(&game, seed * 16 + turn)).done) {
                continue;
            }
            loop {
                let step = game.act(&expert(&game));
                assert_ne!(step.observation, " nothing happens", "{seed}");
                if step.done {
                    assert!(step.won);
                    break;
                }
            }
            most = most.max(game.turns() - disturbed as usize);
        }
        println!("most turns from a disturbed state: {most}");
        assert!(most <= 21);
    }

    #[test]
    fn with_a_fifth_of_the_turns_random_the_expert_wins_19_of_20_games_within_24_turns() {
        for split in [Split::Train, Split::Validation, Split::Unseen] {
            let mut won = [0; 2];
            for seed in 0..2_000 {
                for (won, max_turns) in won.iter_mut().zip([MAX_TURNS, 24]) {
                    let mut game = Game::new(split, seed);
                    game.max_turns = max_turns;
                    loop {
                        let is_random = uniform(Stream::World, &[9, seed, game.turns() as u64]) < 0.2;
                        let step = game.act(&if is_random { random_action(&game, seed) } else { expert(&game) });
                        if step.done {
                            *won += usize::from(step.won);
                            break;
                        }
                    }
                }
            }
            println!("{split:?}: of 2000 games {} won in {MAX_TURNS} turns, {} in 24", won[0], won[1]);
            assert!(won[0] >= 1_800 && won[1] >= 1_900);
        }
    }

    #[test]
    fn random_actions_are_deterministic_and_most_do_something() {
        let (mut total, mut vain) = (0, 0);
        for seed in 0..2_000 {
            let mut game = Game::new(Split::Train, seed);
            for turn in 0..8 {
                let action = random_action(&game, turn);
                assert_eq!(action, random_action(&game, turn));
                total += 1;
                vain += usize::from(game.clone().act(&action).observation == " nothing happens");
                if game.act(&expert(&game)).done {
                    break;
                }
            }
        }
        println!("{vain} of {total} random actions do nothing");
        assert!(vain * 3 < total);
    }
}
