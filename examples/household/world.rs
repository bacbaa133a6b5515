//! The household: a small text game in which one object is to be brought somewhere, or changed first.
//!
//! A room has six storages (some closed) with five objects in them, and four appliances that are always
//! there. The task names one object and what is wanted; where the object lies is not said, so it must be
//! looked for. A game is a pure function of its split and seed. One in five (object, place) pairs is held
//! out of training: object `i` and storage `j` with `(3 i + 7 j) mod 5 == 0`, so that every object and
//! every storage stays in training, and only their combination is new. The genre is that of ALFWorld
//! (Shridhar and others, 2021), cut down until every name is one word.
//!
//! Every text starts with a space. Then each word carries its own leading space, and is one token of the
//! vocabulary in `words.rs`, whatever stands before it.
#![forbid(unsafe_code)]

use squire::random::{Stream, below};

/// All places by index: twelve storages, then the four appliances.
pub const PLACES: [&str; 16] = [
    "shelf",
    "cabinet",
    "drawer",
    "bed",
    "table",
    "safe",
    "desk",
    "sofa",
    "basket",
    "cupboard",
    "dresser",
    "counter",
    "sink",
    "microwave",
    "fridge",
    "lamp",
];
/// Places below this index are storages, the others appliances.
pub const N_STORAGES: usize = 12;
/// Storages that are closed when a game starts.
const CLOSED: [&str; 5] = ["cabinet", "drawer", "safe", "cupboard", "dresser"];

/// All objects by index: four dishes, five foods, five things.
pub const OBJECTS: [&str; 14] = [
    "mug", "plate", "bowl", "cup", "apple", "potato", "tomato", "egg", "bread", "book", "pen", "key", "phone", "watch",
];
/// Objects below this index can be cleaned, heated and cooled.
pub const N_KITCHEN: usize = 9;

/// Storages listed in a room.
pub const ROOM_LEN: usize = 6;
/// Objects in a room.
const N_OBJECTS: usize = 5;
/// A game that is not won after so many turns is lost.
pub const MAX_TURNS: usize = 20;
/// So many actions in a row that do nothing lose the game.
pub const MAX_FAILURES: usize = 3;
/// No valid action is longer than this many bytes.
const MAX_ACTION_BYTES: usize = 64;

/// Which games: what a split holds is disjoint from what the others hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Games to learn from.
    Train = 0,
    /// Other games with the same (object, place) pairs as in `Train`.
    Validation = 1,
    /// Games whose (object, place) pair never occurs as a task of `Train`.
    Unseen = 2,
}

/// What the task asks to be done with the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Put it somewhere.
    Put,
    /// Clean it in the sink, then put it somewhere.
    Clean,
    /// Heat it in the microwave, then put it somewhere.
    Heat,
    /// Cool it in the fridge, then put it somewhere.
    Cool,
    /// Look at it by the lamp.
    Examine,
}

impl Wish {
    const ALL: [Wish; 5] = [Wish::Put, Wish::Clean, Wish::Heat, Wish::Cool, Wish::Examine];
    /// The wishes that an appliance fulfils, in the order of the appliances.
    pub const WITH_APPLIANCE: [Wish; 4] = [Wish::Clean, Wish::Heat, Wish::Cool, Wish::Examine];

    /// The appliance that is needed, as an index of [`PLACES`].
    pub fn appliance(self) -> Option<usize> {
        Wish::WITH_APPLIANCE.iter().position(|&wish| wish == self).map(|k| N_STORAGES + k)
    }

    /// The word of the action.
    pub fn verb(self) -> &'static str {
        match self {
            Wish::Put => "put",
            Wish::Clean => "clean",
            Wish::Heat => "heat",
            Wish::Cool => "cool",
            Wish::Examine => "examine",
        }
    }

    /// The word for an object on which the action was done.
    fn result(self) -> &'static str {
        match self {
            Wish::Put => "put",
            Wish::Clean => "clean",
            Wish::Heat => "hot",
            Wish::Cool => "cold",
            Wish::Examine => "examined",
        }
    }

    fn suits(self, object: usize) -> bool {
        object < N_KITCHEN || matches!(self, Wish::Put | Wish::Examine)
    }
}

/// A task. `place` is the target; for [`Wish::Examine`], where the object lies at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goal {
    pub wish: Wish,
    pub object: usize,
    pub place: usize,
}

impl Goal {
    /// Whether this task's (object, place) pair is kept out of training.
    pub fn is_held_out(&self) -> bool {
        (3 * self.object + 7 * self.place).is_multiple_of(5)
    }
}

/// What an action led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What the player is told; starts with a space.
    pub observation: String,
    /// Whether the game has ended.
    pub done: bool,
    /// Whether it has ended well.
    pub won: bool,
}

/// One game under way. Places and objects are indices of [`PLACES`] and [`OBJECTS`].
#[derive(Clone, Debug)]
pub struct Game {
    task: String,
    pub(crate) goal: Goal,
    /// The storages, in the order in which the first observation lists them.
    pub(crate) room: [usize; ROOM_LEN],
    /// What lies in each storage, in the order in which it came there.
    pub(crate) contents: [Vec<usize>; N_STORAGES],
    pub(crate) closed: [bool; N_STORAGES],
    pub(crate) here: Option<usize>,
    pub(crate) hand: Option<usize>,
    /// The storage visited last, as a position in `room`.
    pub(crate) last_visited: Option<usize>,
    /// What was last done to each object: cleaned, heated or cooled.
    pub(crate) treatments: [Option<Wish>; OBJECTS.len()],
    turns: usize,
    pub(crate) max_turns: usize,
    failures: usize,
    outcome: Option<bool>,
}

/// Draws of one key, counted.
pub(crate) struct Draws {
    key: [u64; 3],
    count: u64,
}

impl Draws {
    pub(crate) fn new(key: [u64; 3]) -> Draws {
        Draws { key, count: 0 }
    }

    /// A number below `n` (n > 0).
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.count += 1;
        below(Stream::World, &[self.key[0], self.key[1], self.key[2], self.count], n as u64) as usize
    }

    /// One entry of a list that is not empty.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// `N` different numbers below `n` (`N <= n`), in random order.
    fn distinct<const N: usize>(&mut self, n: usize) -> [usize; N] {
        let mut all: Vec<usize> = (0..n).collect();
        std::array::from_fn(|_| all.swap_remove(self.below(all.len())))
    }
}

impl Game {
    /// The game number `seed` of a split.
    pub fn new(split: Split, seed: u64) -> Game {
        // A layout may hold no task of the split; then the next one of the same seed is drawn. Most
        // layouts hold one, so the loop ends after a few rounds.
        let mut attempt = 0;
        loop {
            if let Some(game) = Game::draw(split, Draws::new([split as u64, seed, attempt])) {
                return game;
            }
            attempt += 1;
        }
    }

    fn draw(split: Split, mut draws: Draws) -> Option<Game> {
        let wish = draws.pick(&Wish::ALL);
        let room: [usize; ROOM_LEN] = draws.distinct(N_STORAGES);
        let objects: [usize; N_OBJECTS] = draws.distinct(OBJECTS.len());
        let lies_in: [usize; N_OBJECTS] = std::array::from_fn(|_| draws.pick(&room));
        let mut goals = Vec::new();
        for (&object, &lies) in objects.iter().zip(&lies_in) {
            for &place in &room {
                let goal = Goal { wish, object, place };
                let right_place = (place == lies) == (wish == Wish::Examine);
                if right_place && wish.suits(object) && goal.is_held_out() == (split == Split::Unseen) {
                    goals.push(goal);
                }
            }
        }
        if goals.is_empty() {
            return None;
        }
        let goal = draws.pick(&goals);
        let mut contents: [Vec<usize>; N_STORAGES] = Default::default();
        for (&object, &lies) in objects.iter().zip(&lies_in) {
            contents[lies].push(object);
        }
        let (x, r) = (OBJECTS[goal.object], PLACES[goal.place]);
        let task = match wish {
            Wish::Put => format!("put {x} in {r}"),
            Wish::Clean | Wish::Heat | Wish::Cool => format!("put {} {x} in {r}", wish.result()),
            Wish::Examine => format!("examine {x} with lamp"),
        };
        Some(Game {
            task,
            goal,
            room,
            contents,
            closed: std::array::from_fn(|place| CLOSED.contains(&PLACES[place])),
            here: None,
            hand: None,
            last_visited: None,
            treatments: [None; OBJECTS.len()],
            turns: 0,
            max_turns: MAX_TURNS,
            failures: 0,
            outcome: None,
        })
    }

    /// The task in words, without a leading space.
    pub fn task(&self) -> &str {
        &self.task
    }

    /// Turns played.
    pub fn turns(&self) -> usize {
        self.turns
    }

    /// What the player is told at the start: the storages and the task.
    pub fn first_observation(&self) -> String {
        let mut text = String::from(" you see");
        for &place in &self.room {
            text.push(' ');
            text.push_str(PLACES[place]);
        }
        text + " . task " + &self.task
    }

    /// Plays one turn. Any text is an action; one that is not understood or not possible does nothing,
    /// and so does every action after the end.
    pub fn act(&mut self, action: &str) -> Step {
        if self.outcome.is_none() {
            self.turns += 1;
            let told = self.try_action(action);
            self.failures = if told.is_none() { self.failures + 1 } else { 0 };
            if self.outcome.is_none() && (self.turns >= self.max_turns || self.failures == MAX_FAILURES) {
                self.outcome = Some(false);
            }
            if let Some(observation) = told {
                return self.step(observation);
            }
        }
        self.step(" nothing happens".into())
    }

    fn step(&self, observation: String) -> Step {
        Step { observation, done: self.outcome.is_some(), won: self.outcome == Some(true) }
    }

    fn try_action(&mut self, action: &str) -> Option<String> {
        if action.len() > MAX_ACTION_BYTES {
            return None;
        }
        let words: Vec<&str> = action.split_ascii_whitespace().collect();
        match words[..] {
            ["go", "to", r] => self.go(place(r)?),
            ["open", r] => self.open(place(r)?),
            ["take", x, "from", r] => self.take(object(x)?, place(r)?),
            ["put", x, "in", r] => self.put(object(x)?, place(r)?),
            [verb, x, "with", a] => self.treat(verb, object(x)?, place(a)?),
            _ => None,
        }
    }

    fn go(&mut self, place: usize) -> Option<String> {
        let listed = self.room.iter().position(|&r| r == place);
        if place < N_STORAGES {
            listed?;
            self.last_visited = listed;
        }
        self.here = Some(place);
        Some(self.show(place))
    }

    fn open(&mut self, place: usize) -> Option<String> {
        if self.here != Some(place) || !self.is_closed(place) {
            return None;
        }
        self.closed[place] = false;
        Some(self.show(place))
    }

    fn take(&mut self, object: usize, place: usize) -> Option<String> {
        if self.hand.is_some() {
            return None;
        }
        let at = self.visible(place)?.iter().position(|&x| x == object)?;
        self.contents[place].remove(at);
        self.hand = Some(object);
        Some(format!(" you hold {}", OBJECTS[object]))
    }

    fn put(&mut self, object: usize, place: usize) -> Option<String> {
        self.visible(place)?;
        if self.hand != Some(object) || place >= N_STORAGES {
            return None;
        }
        self.hand = None;
        self.contents[place].push(object);
        if self.goal.wish != Wish::Examine && (self.goal.object, self.goal.place) == (object, place) && self.is_ready()
        {
            self.outcome = Some(true);
        }
        Some(self.show(place))
    }

    fn treat(&mut self, verb: &str, object: usize, appliance: usize) -> Option<String> {
        let wish = Wish::WITH_APPLIANCE.into_iter().find(|wish| wish.verb() == verb)?;
        let at_appliance = wish.appliance() == Some(appliance) && self.here == Some(appliance);
        if !at_appliance || self.hand != Some(object) || !wish.suits(object) {
            return None;
        }
        if wish != Wish::Examine {
            self.treatments[object] = Some(wish);
        } else if self.goal.wish == Wish::Examine && self.goal.object == object {
            self.outcome = Some(true);
        }
        Some(format!(" {} is {}", OBJECTS[object], wish.result()))
    }

    /// Whether nothing more must be done to the task's object before it is put down.
    pub(crate) fn is_ready(&self) -> bool {
        self.goal.wish == Wish::Put || self.treatments[self.goal.object] == Some(self.goal.wish)
    }

    pub(crate) fn is_closed(&self, place: usize) -> bool {
        self.closed.get(place).is_some_and(|&closed| closed)
    }

    /// What lies in a place, where the player stands before it and it is open. Nothing lies in appliances.
    pub(crate) fn visible(&self, place: usize) -> Option<&[usize]> {
        let is_visible = self.here == Some(place) && !self.is_closed(place);
        is_visible.then(|| self.contents.get(place).map_or(&[][..], Vec::as_slice))
    }

    fn show(&self, place: usize) -> String {
        let name = PLACES[place];
        match self.visible(place) {
            None => format!(" {name} is closed"),
            Some([]) => format!(" {name} is empty"),
            Some(objects) => objects.iter().fold(format!(" {name} has"), |text, &x| text + " " + OBJECTS[x]),
        }
    }
}

fn place(word: &str) -> Option<usize> {
    PLACES.iter().position(|&name| name == word)
}

fn object(word: &str) -> Option<usize> {
    OBJECTS.iter().position(|&name| name == word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Everything that makes a game: room, order, places of the objects, task.
    fn layout(game: &Game) -> String {
        format!("{} {:?}", game.first_observation(), game.contents)
    }

    #[test]
    fn a_game_is_a_pure_function_of_split_and_seed() {
        for seed in [0, 1, 77, u64::MAX] {
            for split in [Split::Train, Split::Validation, Split::Unseen] {
                assert_eq!(layout(&Game::new(split, seed)), layout(&Game::new(split, seed)));
            }
        }
    }

    #[test]
    fn ten_thousand_training_seeds_give_ten_thousand_games_and_no_validation_game() {
        let train: HashSet<String> = (0..10_000).map(|seed| layout(&Game::new(Split::Train, seed))).collect();
        assert_eq!(train.len(), 10_000);
        assert!((0..1_000).all(|seed| !train.contains(&layout(&Game::new(Split::Validation, seed)))));
    }

    #[test]
    fn held_out_pairs_are_never_a_task_of_train_or_validation_and_always_one_of_unseen() {
        let mut pairs = [HashSet::new(), HashSet::new(), HashSet::new()];
        for seed in 0..10_000 {
            for split in [Split::Train, Split::Validation, Split::Unseen] {
                let goal = Game::new(split, seed).goal;
                assert_eq!(goal.is_held_out(), split == Split::Unseen, "{split:?} {seed} {goal:?}");
                pairs[split as usize].insert((goal.object, goal.place));
            }
        }
        // Every pair of 14 objects and 12 storages is used; one in five is held out.
        let [train, validation, unseen] = pairs;
        assert_eq!(train, validation);
        assert_eq!(train.len() + unseen.len(), 14 * 12);
        assert_eq!(unseen.len(), 34);
    }

    #[test]
    fn every_object_and_storage_is_trained_in_every_role() {
        let goals: Vec<Goal> = (0..10_000).map(|seed| Game::new(Split::Train, seed).goal).collect();
        for wish in Wish::ALL {
            let of_wish: Vec<&Goal> = goals.iter().filter(|goal| goal.wish == wish).collect();
            assert!((1_700..2_300).contains(&of_wish.len()), "{wish:?}: {}", of_wish.len());
            assert!((0..N_STORAGES).all(|place| of_wish.iter().any(|goal| goal.place == place)));
            assert!((0..14).all(|x| of_wish.iter().any(|goal| goal.object == x) == wish.suits(x)));
        }
    }

    #[test]
    fn no_game_is_won_before_it_starts() {
        for seed in 0..2_000 {
            let game = Game::new(Split::Train, seed);
            let lies = game.contents[game.goal.place].contains(&game.goal.object);
            assert_eq!(lies, game.goal.wish == Wish::Examine);
        }
    }

    /// A game in a known layout: a mug in the closed safe, a watch on the table, the rest empty.
    fn known(wish: Wish) -> Game {
        let mut game = Game::new(Split::Train, 3);
        game.goal = Goal { wish, object: 0, place: 4 };
        game.room = [5, 4, 0, 1, 2, 3];
        game.contents = Default::default();
        game.contents[5].push(0);
        game.contents[4].push(13);
        game
    }

    fn play(game: &mut Game, action: &str, observation: &str, won: bool) {
        let step = game.act(action);
        assert_eq!((step.observation.as_str(), step.won), (observation, won), "{action}");
    }

    #[test]
    fn the_rules_hold_in_a_known_room() {
        let mut game = known(Wish::Heat);
        play(&mut game, "go to safe", " safe is closed", false);
        play(&mut game, "take mug from safe", " nothing happens", false);
        play(&mut game, "open safe", " safe has mug", false);
        play(&mut game, "open safe", " nothing happens", false);
        play(&mut game, "take mug from safe", " you hold mug", false);
        play(&mut game, "go to table", " table has watch", false);
        play(&mut game, "take watch from table", " nothing happens", false);
        play(&mut game, "put mug in table", " table has watch mug", false);
        play(&mut game, "take mug from table", " you hold mug", false);
        play(&mut game, "go to microwave", " microwave is empty", false);
        play(&mut game, "put mug in microwave", " nothing happens", false);
        play(&mut game, "heat mug with microwave", " mug is hot", false);
        play(&mut game, "go to fridge", " fridge is empty", false);
        play(&mut game, "heat mug with fridge", " nothing happens", false);
        play(&mut game, "cool mug with fridge", " mug is cold", false);
        play(&mut game, "go to microwave", " microwave is empty", false);
        play(&mut game, "heat mug with microwave", " mug is hot", false);
        play(&mut game, "go to counter", " nothing happens", false);
        play(&mut game, "go to table", " table has watch", false);
        play(&mut game, "put mug in table", " table has watch mug", true);
        assert_eq!(game.turns(), 20);
        play(&mut game, "go to table", " nothing happens", true);
        assert_eq!(game.turns(), 20);
    }

    #[test]
    fn examining_the_wrong_object_does_not_win_and_a_watch_cannot_be_cleaned() {
        let mut game = known(Wish::Examine);
        play(&mut game, "go to table", " table has watch", false);
        play(&mut game, "take watch from table", " you hold watch", false);
        play(&mut game, "go to sink", " sink is empty", false);
        play(&mut game, "clean watch with sink", " nothing happens", false);
        play(&mut game, "go to lamp", " lamp is empty", false);
        play(&mut game, "examine watch with lamp", " watch is examined", false);
        play(&mut game, "go to table", " table is empty", false);
        play(&mut game, "put watch in table", " table has watch", false);
        play(&mut game, "go to safe", " safe is closed", false);
        play(&mut game, "open safe", " safe has mug", false);
        play(&mut game, "take mug from safe", " you hold mug", false);
        play(&mut game, "go to lamp", " lamp is empty", false);
        play(&mut game, "examine mug with lamp", " mug is examined", true);
    }

    #[test]
    fn three_vain_actions_in_a_row_lose_and_so_do_twenty_turns() {
        let mut game = known(Wish::Put);
        assert!(!game.act("").done);
        assert!(!game.act("dance").done);
        assert!(!game.act("go to table").done);
        assert!(!game.act("open table").done);
        assert!(!game.act("put mug in table").done);
        let step = game.act("take mug from table");
        assert!(step.done && !step.won);

        let mut game = known(Wish::Put);
        for _ in 0..MAX_TURNS - 1 {
            assert!(!game.act("go to table").done);
        }
        let step = game.act("go to table");
        assert!(step.done && !step.won);
    }

    #[test]
    fn hostile_actions_do_nothing() {
        let long = "go to table ".repeat(1 << 16);
        let padded = format!("go to table{}", " ".repeat(1 << 20));
        for action in [
            "",
            " ",
            "\0",
            "go",
            "go to",
            "go to ",
            "go to tables",
            "GO TO TABLE",
            "go to table now",
            "go\u{a0}to\u{3000}table",
            "ｇｏ to table",
            "put put in put",
            "put mug with table",
            "with with with with",
            "\u{1f9c6}\u{200d}\u{202e}",
            "<|im_end|>",
            "take mug from \u{0}",
            &long,
            &padded,
        ] {
            let mut game = known(Wish::Put);
            let before = layout(&game);
            assert_eq!(game.act(action).observation, " nothing happens");
            assert_eq!((layout(&game), game.turns()), (before, 1));
        }
    }
}
