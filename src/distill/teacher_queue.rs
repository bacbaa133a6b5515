//! A teacher in the host's own code: requests wait in a queue, any thread takes them and answers, over any transport.
//!
//! An episode asks for the teacher's turn where it is the teacher's to act. One that ended asks for the log-probs of the tokens
//! that it is to learn, at temperature 1 on raw logits: of the ids that stand there, and of the teacher's `top_k` most likely ids
//! in each place. An answer that does not fit leaves the request open for a better one.
//!
//! Deadlines run while somebody waits, a build or whoever pulls a turn: from when a request was taken, or where nobody took it,
//! from when the queue last moved. One that is past is withdrawn. Then a turn has failed; an episode that was to be scored is set
//! aside, and asked about anew for the next build. Nothing here has a thread of its own.
//!
//! What ended is let go of without the lock: with a turn's place may go the last of a model, whose engine tells the host's log.
//!
//! Closed, a queue takes no more requests, for ever: whoever waits for one, on either side, is told so at once.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};

use super::queue_options::{QueueOptions, Vocabulary};
use super::teacher_request::{Asker, Reply, Request, Said, said};
use super::teacher_turn::{Place, TeacherSays, Told, TurnWanted, Words, said_turn};
use crate::backend::host;
use crate::error::{Error, Fault, Result};
use crate::serve::Finish;
use crate::sync::{Condvar, Mutex};

/// How many requests that are done are remembered, to say of a late reply what became of its own.
const REMEMBERED: usize = 4096;

/// A teacher behind a queue. Cheap to clone; clones are the same one.
#[derive(Clone)]
pub struct TeacherQueue(Arc<Inner>);

struct Inner {
    options: QueueOptions,
    state: Mutex<State>,
    asked: Condvar,
}

#[derive(Default)]
struct State {
    last: u64,
    /// when the last request was handed out
    moved: Option<Instant>,
    waiting: VecDeque<u64>,
    open: HashMap<u64, Open>,
    done: VecDeque<(u64, Done)>,
    closed: bool,
}

struct Open {
    request: Arc<Request>,
    waits: Waits,
    asked: Instant,
    taken: Option<Instant>,
}

/// Who waits for an answer.
#[derive(Clone)]
enum Waits {
    /// For scores, of which these positions are kept.
    Scores(Arc<Vec<usize>>, Sender<Result<Said>>),
    /// For a turn, and where it is to stand.
    Turn(Told, Arc<Place>),
}

impl Waits {
    fn refuse(&self, why: Error) {
        match self {
            // Whoever waits may be gone.
            Waits::Scores(_, answer) => drop(answer.send(Err(why))),
            Waits::Turn(told, _) => told.feed.end(Err(why)),
        }
    }
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq)]
enum Done {
    Answered,
    Failed,
    TooLate,
    TimeUp,
    Withdrawn,
    Closed,
}

fn closed() -> Error {
    Error::new(
        Fault::TeacherClosed,
        "the teacher is closed: it takes no more requests; make another, and a distiller of it",
    )
}

impl State {
    fn end(&mut self, number: u64, how: Done) -> Option<Open> {
        let open = self.open.remove(&number)?;
        if self.done.len() == REMEMBERED {
            self.done.pop_front();
        }
        self.done.push_back((number, how));
        self.waiting.retain(|&waiting| waiting != number);
        Some(open)
    }

    /// Ends a request whose time is up, and says so. `since`: when its asker began to wait.
    fn late(&mut self, number: u64, since: Instant, deadline: Duration) -> Option<(Open, Error)> {
        let open = self.open.get(&number)?;
        // Who takes one after another keeps those behind alive.
        let untaken = since.max(open.asked).max(self.moved.unwrap_or(open.asked));
        if open.taken.unwrap_or(untaken).elapsed() < deadline {
            return None;
        }
        let what = if open.taken.is_some() { "was taken and not answered" } else { "was taken by nobody" };
        let why = format!("the teacher's request {number} {what} within {} ms", deadline.as_millis());
        Some((self.end(number, Done::TooLate)?, Error::new(Fault::TeacherSilent, why)))
    }

    /// Why a request of this number takes no answer.
    fn not_open(&self, number: u64) -> Error {
        let done = self.done.iter().find(|(known, _)| *known == number).map(|(_, how)| *how);
        let why = match done {
            _ if number == 0 || number > self.last => "there never was one of this number",
            Some(Done::Answered) => "it was answered already",
            Some(Done::Failed) => "it was said to have failed already",
            Some(Done::TooLate) => "its deadline passed, and the episode does without it",
            Some(Done::TimeUp) => "the time limit of its turn is over",
            Some(Done::Withdrawn) => "nobody wants the answer any more: its episode was thrown away",
            Some(Done::Closed) => "the teacher was closed before anybody took it",
            None => "it ended long ago",
        };
        Error::new(Fault::TeacherRequest, format!("request {number}: {why}"))
    }
}

impl TeacherQueue {
    /// A queue that nobody has asked yet.
    pub fn new(options: QueueOptions) -> TeacherQueue {
        TeacherQueue(Arc::new(Inner { options, state: Mutex::default(), asked: Condvar::new() }))
    }

    /// What it was made with.
    pub fn options(&self) -> &QueueOptions {
        &self.0.options
    }

    /// Requests that wait for somebody to take them.
    pub fn n_waiting(&self) -> usize {
        self.0.state.lock().waiting.len()
    }

    /// Whether it takes no more requests.
    pub fn is_closed(&self) -> bool {
        self.0.state.lock().closed
    }

    /// Takes no more requests from now on. Those that wait are refused, and whoever waits for one has none; those that were
    /// taken may still be answered. A second time it does nothing.
    pub fn close(&self) {
        let mut state = self.0.state.lock();
        state.closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        let ended: Vec<Open> = waiting.into_iter().filter_map(|number| state.end(number, Done::Closed)).collect();
        ended.iter().for_each(|open| open.waits.refuse(closed()));
        drop(state);
        self.0.asked.notify_all();
    }

    /// Takes up to `most` requests, in the order in which they were asked; none where none comes within `timeout`, or it is
    /// closed.
    pub fn next(&self, most: usize, timeout: Duration) -> Vec<Arc<Request>> {
        let until = Instant::now() + timeout.min(Duration::from_secs(86_400));
        let mut state = self.0.state.lock();
        while state.waiting.is_empty() && !state.closed {
            if self.0.asked.wait_until(&mut state, until) {
                break;
            }
        }
        let State { waiting, open, moved, .. } = &mut *state;
        let (n, now) = (waiting.len().min(most), Instant::now());
        if n > 0 {
            *moved = Some(now);
        }
        let take = |number| {
            let open = open.get_mut(&number)?;
            open.taken = Some(now);
            Some(open.request.clone())
        };
        waiting.drain(..n).filter_map(take).collect()
    }

    /// Answers a request for scores. Errors: `TeacherRequest` where none of this number is open; `TeacherReply` where the answer
    /// does not fit or a turn is wanted, and the request stays open.
    pub fn reply(&self, number: u64, reply: Reply) -> Result<()> {
        let (request, waits) = self.open(number)?;
        let Waits::Scores(positions, answer) = waits else {
            let why = format!("request {number}: a turn is wanted and not scores; say it");
            return Err(Error::new(Fault::TeacherReply, why));
        };
        // Without the lock: a long answer keeps no other waiting.
        let said = said(&request, &positions, reply).map_err(|e| e.within(format!("request {number}")))?;
        // Whoever waits may be gone.
        self.end_with(number, Done::Answered, |_| drop(answer.send(Ok(said))))
    }

    /// Answers a request for a turn. Errors as [`TeacherQueue::reply`].
    pub fn say(&self, number: u64, says: TeacherSays) -> Result<()> {
        let (request, waits) = self.open(number)?;
        let (Waits::Turn(told, place), Some(wanted)) = (waits, &request.turn) else {
            let why = format!("request {number}: scores are wanted and no turn; reply with them");
            return Err(Error::new(Fault::TeacherReply, why));
        };
        if wanted.is_late() {
            self.time_is_up(number);
            return Err(self.0.state.lock().not_open(number));
        }
        let by_text = self.0.options.vocabulary == Vocabulary::Another;
        let turn = said_turn((wanted, &place), request.vocabulary, says, by_text)
            .map_err(|e| e.within(format!("request {number}")))?;
        let from_text = matches!(says.what, Words::Text(_));
        let text = place.spoken.until(&wanted.stop_strings)?;
        self.end_with(number, Done::Answered, |_| told.say(turn, text, place.position, from_text))
    }

    fn open(&self, number: u64) -> Result<(Arc<Request>, Waits)> {
        let state = self.0.state.lock();
        let open = state.open.get(&number).ok_or_else(|| state.not_open(number))?;
        Ok((open.request.clone(), open.waits.clone()))
    }

    /// Says that a request cannot be answered. Errors: `TeacherRequest` where none of this number is open.
    pub fn fail(&self, number: u64, why: &str) -> Result<()> {
        self.end_with(number, Done::Failed, |waits| {
            let why: String = why.chars().take(1000).collect();
            waits.refuse(Error::new(Fault::TeacherFailed, format!("the teacher failed: {why}")));
        })
    }

    /// Ends a request and tells whoever waits. Under the lock: an asker that finds its request gone finds the answer. Errors:
    /// `TeacherRequest` where none of this number is open.
    fn end_with(&self, number: u64, how: Done, tell: impl FnOnce(&Waits)) -> Result<()> {
        let mut state = self.0.state.lock();
        let ended = state.end(number, how).ok_or_else(|| state.not_open(number))?;
        tell(&ended.waits);
        drop(state);
        drop(ended);
        Ok(())
    }

    /// Asks for the log-probs of the tokens at some positions, ascending and none 0. Errors: `TeacherClosed`.
    pub(super) fn ask(&self, asker: Asker, ids: &[i32], positions: &[usize], vocabulary: usize) -> Result<Ask> {
        let (from, end) = (positions.first().copied().unwrap_or(1), positions.last().map_or(1, |last| last + 1));
        let (answer, said) = bounded(1);
        let ids = host::collected(ids[..end].iter().copied())?;
        let waits = Waits::Scores(Arc::new(host::collected(positions.iter().copied())?), answer);
        let top_k = (self.0.options.top_k as usize).min(vocabulary);
        let number = self.put(|number| Request { number, asker, ids, from, top_k, vocabulary, turn: None }, waits)?;
        Ok(Ask { queue: self.clone(), number, said })
    }

    /// Asks for the turn that follows `ids`; its number, and where it will be told. Errors: `TeacherClosed`.
    pub(super) fn ask_turn(
        &self,
        asker: Asker,
        (ids, vocabulary): (Vec<i32>, usize),
        (turn, place): (TurnWanted, Place),
    ) -> Result<(u64, Told)> {
        let (told, from) = (Told::default(), ids.len());
        let waits = Waits::Turn(told.clone(), Arc::new(place));
        let request = |number| Request { number, asker, ids, from, top_k: 0, vocabulary, turn: Some(turn) };
        Ok((self.put(request, waits)?, told))
    }

    /// Ends a turn's request whose time is up. `since`: when its asker began to wait.
    pub(super) fn look(&self, number: u64, since: Instant) {
        let mut state = self.0.state.lock();
        let Some((ended, late)) = state.late(number, since, self.0.options.deadline) else { return };
        ended.waits.refuse(late);
        drop(state);
        drop(ended);
    }

    /// Ends a turn's request whose time limit is over, with nothing said.
    pub(super) fn time_is_up(&self, number: u64) {
        // Where it has ended already nothing is to do.
        let _ = self.end_with(number, Done::TimeUp, |waits| {
            if let Waits::Turn(told, _) = waits {
                told.feed.end(Ok(Finish::Time));
            }
        });
    }

    /// Ends a turn's request that nobody waits for any more.
    pub(super) fn withdraw(&self, number: u64) {
        // Where it has ended already nothing is to do.
        let _ = self.end_with(number, Done::Withdrawn, |waits| {
            if let Waits::Turn(told, _) = waits {
                told.feed.end(Ok(Finish::Cancelled));
            }
        });
    }

    /// Puts a request at the queue's end and gives its number. Errors: `TeacherClosed`.
    fn put(&self, request: impl FnOnce(u64) -> Request, waits: Waits) -> Result<u64> {
        let mut state = self.0.state.lock();
        if state.closed {
            return Err(closed());
        }
        state.last += 1;
        let number = state.last;
        let request = Arc::new(request(number));
        state.open.insert(number, Open { request, waits, asked: Instant::now(), taken: None });
        state.waiting.push_back(number);
        drop(state);
        self.0.asked.notify_all();
        Ok(number)
    }
}

/// A request of an episode's; dropped, it is withdrawn.
pub(super) struct Ask {
    queue: TeacherQueue,
    number: u64,
    said: Receiver<Result<Said>>,
}

impl Ask {
    /// The answer, None where it is still to come. `waited_since`: when the caller began to wait.
    pub(super) fn wait(&self, slice: Duration, waited_since: Instant) -> Result<Option<Said>> {
        if let Ok(answer) = self.said.recv_timeout(slice) {
            return answer.map(Some);
        }
        let mut state = self.queue.0.state.lock();
        if !state.open.contains_key(&self.number) {
            drop(state);
            // It came in this moment.
            return self.said.try_recv().ok().transpose();
        }
        state.late(self.number, waited_since, self.queue.0.options.deadline).map_or(Ok(None), |(_, late)| Err(late))
    }
}

impl Drop for Ask {
    fn drop(&mut self) {
        self.queue.0.state.lock().end(self.number, Done::Withdrawn);
    }
}
