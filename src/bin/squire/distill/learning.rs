//! Updates from a record, one after the other, until it is used up or the steps are done.
#![forbid(unsafe_code)]

use std::path::Path;

use squire::distill::{Distiller, Record};
use squire::error::Fault;
use squire::serve::Cancel;

use crate::output::Failure;
use crate::waiting::Counting;

/// What became of a record.
#[derive(Default)]
pub struct Learnt {
    /// Updates that were made.
    pub updates: u64,
    /// Episodes that they were built from.
    pub episodes: u64,
    /// The loss of the last one.
    pub loss: Option<f64>,
    /// Episodes of an earlier part of the run.
    pub known: u64,
    /// Episodes that were played under other settings.
    pub other_settings: u64,
    /// Episodes of which no token carries loss.
    pub without_loss: u64,
    /// Episodes that nobody scored, and why the first of them was not.
    pub set_aside: (u64, Option<String>),
    /// Episodes that are left since the steps are done.
    pub left: u64,
    /// What the updates warn of, each with its step.
    pub warnings: Vec<String>,
}

impl Learnt {
    fn was_set_aside(&mut self, reason: String) {
        self.set_aside.1.get_or_insert(reason);
    }
}

/// Learns from a record, and saves a checkpoint after each update where `checkpoint` is given.
pub fn learn(distiller: &Distiller, record: &Record, checkpoint: Option<&Path>) -> Result<Learnt, Failure> {
    let training = record.episodes.iter().filter(|episode| !episode.played.evaluation).count() as u64;
    let (bar, steps) = (Counting::begin(training, "episodes"), distiller.config().steps);
    let mut learnt = Learnt::default();
    let mut taken = 0;
    if distiller.step() >= steps {
        // How many it knows is told where some are taken; this one is not learnt.
        learnt.known = distiller.import(record, 1)?.known;
        distiller.discard();
    }
    loop {
        if distiller.step() >= steps {
            // What the last builds did not take.
            learnt.left = training.saturating_sub(learnt.known + taken);
            break;
        }
        taken += take_batch(distiller, record, &mut learnt, taken)?;
        if distiller.n_waiting() == 0 {
            break;
        }
        match distiller.build(0, &Cancel::default(), &mut |_, _| true) {
            Ok(mut update) => {
                distiller.apply(&mut update)?;
                distiller.publish()?;
                let report = update.report();
                learnt.updates += 1;
                learnt.episodes += report.episodes as u64;
                learnt.loss = Some(report.loss);
                learnt.warnings.extend(report.warnings.iter().map(|w| format!("update {}: {w}", update.step())));
                report.set_aside.iter().for_each(|aside| learnt.was_set_aside(aside.reason.clone()));
                // One that is asked for again after it was set aside may wait beside a whole batch; the next update takes it.
                if let Some(folder) = checkpoint.filter(|_| distiller.n_waiting() == 0) {
                    distiller.save(folder)?;
                }
                bar.note(format!("update {} of {steps}, loss {:.4}", distiller.step(), report.loss));
            }
            Err(e) if e.fault() == Fault::NothingToLearn => {
                let waiting = distiller.n_waiting() as u64;
                learnt.without_loss += waiting;
                // Those that nobody scored go too, and are counted.
                learnt.set_aside.0 += distiller.discard() as u64 - waiting;
            }
            // None is left that somebody scored.
            Err(e) if e.fault() == Fault::TeacherClosed => {
                learnt.was_set_aside(e.message().to_string());
                break;
            }
            Err(e) => return Err(e.into()),
        }
        bar.done(learnt.known + taken);
    }
    learnt.set_aside.0 += (distiller.n_set_aside() + distiller.n_waiting()) as u64;
    Ok(learnt)
}

/// Takes as many episodes as an update has; where some of them will be set aside, since only the record could score them, others in
/// their place. Says how many.
fn take_batch(distiller: &Distiller, record: &Record, learnt: &mut Learnt, before: u64) -> Result<u64, Failure> {
    let mut wanted = u64::from(distiller.config().batch_episodes);
    let mut taken = 0;
    while wanted > 0 {
        let imported = distiller.import(record, wanted)?;
        if before + taken == 0 {
            learnt.known = imported.known;
        }
        learnt.other_settings += imported.other_settings;
        taken += imported.episodes;
        // A model scores them when they are built.
        wanted = if distiller.teacher().is_some() { 0 } else { imported.unscored };
    }
    Ok(taken)
}
