//! Where the teacher reads something else than the student, an update is what is computed by hand from what each read; where it
//! reads the same, no bit is other than without views.

#[path = "support/answering.rs"]
mod answering;
#[path = "support/by_hand.rs"]
mod by_hand;
#[path = "support/scripted.rs"]
mod scripted;

use answering::{SHORT, answer, answer_all, queue};
use by_hand::{assert_near, logits, softmax};
use scripted::*;
use serde_json::{Value, json};
use squire::backend::Compute;
use squire::backend::ops::Loss;
use squire::distill::trajectory::Trajectory;
use squire::distill::{Actor, Distiller, Episode, ForkOptions, Reason, Reply, Teacher};
use squire::error::Fault;
use squire::model::Weights;
use squire::serve::{Cancel, ServedModel};

/// What the teacher reads in place of what the student is shown.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shows {
    /// The student's, said twice or with a preface.
    More,
    /// Its first id, and later in turns nothing.
    Less,
    /// The student's in turns, else something as long.
    Other,
    /// The student's.
    Same,
}

fn instead(shows: Shows, turn: u32, students: &[i32]) -> Vec<i32> {
    match (shows, turn % 2) {
        (Shows::More, 0) => (10..24).chain(students.iter().copied()).collect(),
        (Shows::More, _) => students.iter().chain(students).copied().collect(),
        (Shows::Less, 0) => students[..1].to_vec(),
        (Shows::Less, _) => Vec::new(),
        (Shows::Other, 0) => students.iter().map(|id| (id + 1) % 60).collect(),
        _ => students.to_vec(),
    }
}

/// An episode at which it is written down besides what the teacher reads.
struct Table {
    episode: Episode,
    shows: Shows,
    /// the teacher's timeline
    theirs: Vec<i32>,
    /// where each turn starts in it
    starts: Vec<usize>,
}

impl Table {
    fn new(d: &Distiller, number: u64, shows: Shows) -> Table {
        Table { episode: d.begin(numbered(number)).unwrap(), shows, theirs: Vec::new(), starts: Vec::new() }
    }

    fn show(&mut self) {
        let (record, turn) = (self.episode.trajectory().unwrap(), self.episode.turn());
        let said = record.turns().last().map_or(&[][..], |turn| &record.ids()[turn.range.clone()]);
        let ids = observation(0, u64::from(turn), said);
        let theirs = instead(self.shows, turn, &ids);
        self.episode.observe_ids_as(&ids, &theirs).unwrap();
        self.theirs.extend(theirs);
    }

    fn answer(&mut self) {
        self.starts.push(self.theirs.len());
        let decision = self.episode.decide().unwrap();
        let mut said = self.episode.act(&options()).unwrap().collect().unwrap().0.ids;
        if decision.reason == Reason::Proposal {
            let judged = self.episode.judge(&Cancel::default()).unwrap();
            if judged.reason == Reason::ProposalReplaced {
                said = self.episode.act(&options()).unwrap().collect().unwrap().0.ids;
            }
        }
        self.episode.outcome(None, true).unwrap();
        self.theirs.extend(said);
    }

    fn turns(&mut self, n: usize) {
        for _ in 0..n {
            self.show();
            self.answer();
        }
    }

    fn end(&self) -> Trajectory {
        self.episode.end(1.0, Some(true)).unwrap();
        let record = self.episode.trajectory().unwrap();
        assert_eq!(record.teacher_ids().unwrap(), self.theirs);
        let starts: Vec<usize> = record.turns().iter().map(|turn| record.view().position(turn.range.start)).collect();
        assert_eq!(starts, self.starts);
        record
    }

    fn fork(&self, options: ForkOptions) -> Table {
        let turn = options.turn.unwrap_or(self.episode.turn()) as usize;
        // What was shown for the turn is there.
        let end = self.starts.get(turn).copied().unwrap_or(self.theirs.len());
        let (theirs, starts) = (self.theirs[..end].to_vec(), self.starts[..turn].to_vec());
        Table { episode: self.episode.fork(options).unwrap(), shows: self.shows, theirs, starts }
    }
}

fn played(d: &Distiller, n: usize, shows: Shows) -> (Vec<Table>, Vec<Trajectory>) {
    let mut tables: Vec<Table> = (0..n).map(|i| Table::new(d, i as u64, shows)).collect();
    tables.iter_mut().for_each(|table| table.turns(4));
    let records = tables.iter().map(Table::end).collect();
    (tables, records)
}

/// The gradients by hand: reverse KL of what the student said, forward KL of what the teacher did, its distribution from what it
/// read.
fn gradients_by_hand(
    student: &ServedModel,
    teacher: &ServedModel,
    tables: &[Table],
    records: &[Trajectory],
) -> Weights {
    let theirs: Vec<Vec<f32>> = tables.iter().map(|table| logits(teacher, &table.theirs).0).collect();
    let n: usize = records.iter().flat_map(|t| t.turns()).map(|turn| turn.range.len()).sum();
    let mut losses = Vec::new();
    for (i, record) in records.iter().enumerate() {
        for (turn, start) in record.turns().iter().zip(&tables[i].starts) {
            let loss = if turn.actor == Actor::Student { Loss::ReverseKl } else { Loss::ForwardKl };
            let of_turn = turn.range.clone().map(|at| (i, at, (loss, start + at - turn.range.start)));
            losses.extend(of_turn);
        }
    }
    by_hand::gradients(student, records, &losses, |i, position, p, &(loss, at)| {
        let q = softmax(&theirs[i][(at - 1) * VOCABULARY..at * VOCABULARY]);
        let said = records[i].ids()[position] as usize;
        by_hand::by_logits(loss, p, &q, said).into_iter().map(|g| g / n as f64).collect()
    })
}

fn shared() -> Value {
    json!({"preset": "guided-opd", "seed": 5, "actor": {"kind": "bernoulli", "beta": 0.5}})
}

#[test]
fn the_gradients_are_those_by_hand_of_what_each_read() {
    for (kind, shows) in
        [Kind::Dense, Kind::Moe].into_iter().flat_map(|k| [Shows::More, Shows::Less, Shows::Other].map(|s| (k, s)))
    {
        let d = distiller(kind, Compute::F32, shared());
        let (tables, records) = played(&d, 3, shows);
        let turns_of = |actor| records.iter().flat_map(|t| t.turns()).filter(|turn| turn.actor == actor).count();
        assert!(turns_of(Actor::Student) >= 3 && turns_of(Actor::Teacher) >= 3, "the draws give both");
        let longer = tables.iter().zip(&records).map(|(table, t)| table.theirs.len().cmp(&t.ids().len()));
        let wanted = match shows {
            Shows::More => std::cmp::Ordering::Greater,
            Shows::Less => std::cmp::Ordering::Less,
            _ => std::cmp::Ordering::Equal,
        };
        assert!(longer.into_iter().all(|found| found == wanted), "{shows:?}");
        let update = build(&d);
        let by_hand = gradients_by_hand(d.student(), d.teacher().unwrap(), &tables, &records);
        assert_near(update.gradients(), &by_hand, 3e-5, &format!("{kind:?} {shows:?}"));
    }
}

#[test]
fn a_teacher_acts_from_what_it_read() {
    let d = distiller(Kind::Dense, Compute::F32, json!({"preset": "guided-opd"}));
    let (tables, records) = played(&d, 2, Shows::More);
    for (table, record) in tables.iter().zip(&records) {
        let said = logits(d.teacher().unwrap(), &table.theirs).0;
        for (turn, start) in record.turns().iter().zip(&table.starts) {
            assert_eq!(turn.actor, Actor::Teacher);
            for (at, theirs) in turn.range.clone().zip(*start..) {
                let q = softmax(&said[(theirs - 1) * VOCABULARY..theirs * VOCABULARY])[record.ids()[at] as usize].ln();
                assert!((f64::from(record.logprobs()[at]) - q).abs() < 1e-4, "{at}");
            }
        }
    }
}

#[test]
fn what_a_proposal_is_replaced_by_follows_what_the_teacher_read() {
    let actor = json!({"kind": "proposal", "by": "teacher", "rate": 0.5, "window": 4, "minimum": 1});
    let document = json!({"preset": "guided-opd", "actor": actor});
    let d = distiller(Kind::Dense, Compute::F32, document);
    for shows in [Shows::Same, Shows::Less, Shows::More] {
        let (tables, records) = played(&d, 4, shows);
        let actors = |actor| records.iter().flat_map(|t| t.turns()).filter(|turn| turn.actor == actor).count();
        assert!(actors(Actor::Student) > 0 && actors(Actor::Teacher) > 0, "some are replaced");
        let by_hand = gradients_by_hand(d.student(), d.teacher().unwrap(), &tables, &records);
        assert_near(build(&d).gradients(), &by_hand, 3e-5, &format!("{shows:?}"));
    }
}

#[test]
fn a_model_is_its_own_teacher_where_it_reads_something_else() {
    for kind in [Kind::Dense, Kind::Moe] {
        let engine = engine(Compute::F32);
        let student = model(&engine, &config(kind, 32, 2), 1);
        for (shows, learns) in [(Shows::More, true), (Shows::Same, false)] {
            let d = Distiller::new(&student, Some(&student), settings(json!({"preset": "opd"}))).unwrap();
            let (tables, records) = played(&d, 2, shows);
            let update = build(&d);
            assert_eq!(update.report().loss > 0.0, learns, "{kind:?} {shows:?}");
            if learns {
                let by_hand = gradients_by_hand(&student, &student, &tables, &records);
                assert_near(update.gradients(), &by_hand, 3e-5, &format!("{kind:?}"));
            }
        }
    }
}

#[test]
fn what_is_the_same_in_the_view_changes_no_bit_and_computes_no_row_more() {
    for (kind, compute) in ALL {
        let run = |as_view: bool| {
            let d = distiller(kind, compute, half_guided());
            let mut records = Vec::new();
            for number in 0..3 {
                let mut table = Table::new(&d, number, Shows::Same);
                for turn in 0..3 {
                    if as_view {
                        table.show();
                    } else {
                        let ids = observation(0, turn, &table.episode.trajectory().map(|t| last_said(&t)).unwrap());
                        table.episode.observe_ids(&ids).unwrap();
                        table.theirs.extend(ids);
                    }
                    table.answer();
                }
                let record = table.end();
                assert!(record.view().is_the_students() && record.to_json()["views"] == json!([]));
                records.push(record);
            }
            let update = build(&d);
            let rows = d.student().engine().metrics().rows;
            (self::records(&records), update.report().loss.to_bits(), bytes(update.gradients()), rows)
        };
        assert!(run(true) == run(false), "{kind:?} {compute:?}");
    }
}

fn last_said(t: &Trajectory) -> Vec<i32> {
    t.turns().last().map_or_else(Vec::new, |turn| t.ids()[turn.range.clone()].to_vec())
}

#[test]
fn the_hosts_teacher_is_asked_for_what_it_is_shown_and_teaches_what_a_local_one_does() {
    let document = json!({"preset": "opd"});
    for shows in [Shows::More, Shows::Less] {
        let local = distiller(Kind::Dense, Compute::F32, document.clone());
        let (_, wanted) = played(&local, 2, shows);
        let (student, teacher) = pair(Kind::Dense, Compute::F32);
        let queue = queue(json!({"top_k": VOCABULARY}));
        let d = Distiller::taught(&student, Some(Teacher::Queue(queue.clone())), settings(document.clone())).unwrap();
        let (tables, found) = played(&d, 2, shows);
        assert_eq!(records(&wanted), records(&found));
        for request in queue.next(9, SHORT) {
            let i = request.asker.episode as usize;
            assert_eq!((&request.ids, request.from), (&tables[i].theirs, tables[i].starts[0]));
            // What the student read is another text.
            let right = answer(&teacher, &request);
            let n = right.ids.len();
            let mut ids = found[i].ids().to_vec();
            ids.resize(ids.len().max(n), 0);
            let wrong = Reply { ids: &ids[..n], ..right.reply() };
            assert_eq!(fault(queue.reply(request.number, wrong)), Fault::TeacherReply);
            queue.reply(request.number, right.reply()).unwrap();
        }
        let (a, b) = (build(&local), build(&d));
        assert!((a.report().loss - b.report().loss).abs() < 1e-5 * a.report().loss);
        assert_near(b.gradients(), a.gradients(), 1e-4, &format!("{shows:?}"));
        assert_eq!(answer_all(&queue, &teacher), 0, "each is asked once");
    }
}

#[test]
fn turn_weights_compare_student_and_teacher_at_the_same_action() {
    let document = json!({"preset": "opd", "turn_weights": {"rule": "gap-ratio"}});
    let local = distiller(Kind::Dense, Compute::F32, document.clone());
    played(&local, 2, Shows::More);
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    let queue = queue(json!({"top_k": VOCABULARY}));
    let d = Distiller::taught(&student, Some(Teacher::Queue(queue.clone())), settings(document)).unwrap();
    played(&d, 2, Shows::More);
    assert_eq!(answer_all(&queue, &teacher), 2);
    let (a, b) = (build(&local), build(&d));
    assert_near(b.gradients(), a.gradients(), 1e-4, "turn weights");
}

#[test]
fn a_fork_has_the_view_that_its_parent_had_there() {
    for shows in [Shows::More, Shows::Less] {
        let d = distiller(Kind::Moe, Compute::F32, shared());
        let mut parent = Table::new(&d, 7, shows);
        parent.turns(2);
        parent.show();
        parent.episode.prefill(&Cancel::default()).unwrap();
        let number = |turn| ForkOptions { episode: Some(7), turn, train_prefix: true, ..ForkOptions::default() };
        let (mut next, mut before) = (parent.fork(number(None)), parent.fork(number(Some(1))));
        parent.answer();
        next.answer();
        before.answer();
        before.turns(1);
        let update = |table: &Table| {
            let record = table.end();
            let update = build(&d);
            (self::record(&record), record.to_json()["views"].clone(), bytes(update.gradients()))
        };
        let wanted = update(&parent);
        assert!(wanted.1.as_array().is_some_and(|views| !views.is_empty()));
        assert!(update(&next) == wanted && update(&before) == wanted, "{shows:?}");
    }
}

#[test]
fn a_fork_is_shown_what_its_parent_is_not() {
    let d = distiller(Kind::Dense, Compute::F32, shared());
    let mut parent = Table::new(&d, 7, Shows::More);
    parent.turns(2);
    let mut fork = parent.fork(ForkOptions::default());
    fork.shows = Shows::Less;
    fork.turns(2);
    parent.turns(1);
    let (of_fork, of_parent) = (fork.end(), parent.end());
    let (tables, records) = ([parent, fork], [of_parent, of_fork]);
    let own = |i: usize| &records[i].turns()[2..];
    assert!(own(0).len() == 1 && own(1).len() == 2 && records[1].turns()[..2].iter().all(|turn| !turn.train));
    assert!(tables[0].theirs.len() > tables[1].theirs.len());
    assert!(build(&d).report().loss > 0.0);
}
