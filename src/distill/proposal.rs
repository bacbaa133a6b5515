//! Guidance on demand: the student proposes a turn, and where that is uncertain the teacher takes it in its place (UOPD; the
//! student's own uncertainty in the teacher's place is squire's, and experimental).
//!
//! A proposal's uncertainty is the mean -ln of its tokens' probabilities, nats, by the teacher or by the student that drew
//! them. `uncertainty` has the rule. The window is the distiller's, and a checkpoint keeps it: which proposals stand in it depends
//! on the order in which episodes are played.
#![forbid(unsafe_code)]

use std::time::Instant;

use super::actor::Actor;
use super::episode::{Episode, Phase, out_of_order};
use super::knobs::{ActorPolicy, By};
use super::policy::{Decision, Reason};
use super::scoring::Asked;
use super::teacher_request::Asker;
use super::trajectory::Heading;
use crate::backend::cpu::FloatEnv;
use crate::error::{Error, Fault, Result};
use crate::serve::Cancel;

impl Episode {
    /// Says whether what the student proposed for this turn stands, once it has spoken: the student's turn, whose outcome is
    /// due then, or the teacher's, which acts in its place while the proposal is dropped. Asked again it answers the same. Where
    /// the teacher is the judge it computes the proposal, and the call blocks; calls that go on with the episode are out of
    /// order meanwhile. Where the teacher's tokens are spent the proposal stands.
    ///
    /// Errors: `OutOfOrder` where nothing was proposed, another call judges, or the student was cancelled or failed before it
    /// had finished; `SessionBusy` while the student speaks; `NotFinite` where the judge's log-probs are no numbers; what
    /// scoring fails with. The proposal may be judged again, or the host overrides it.
    pub fn judge(&self, cancel: &Cancel) -> Result<Decision> {
        let mut state = self.state.lock();
        let decision = match state.phase()? {
            Phase::Acting(d) if d.reason == Reason::Proposal && !state.was_stopped() => d,
            Phase::Acting(d)
                if matches!(d.reason, Reason::ProposalStands | Reason::TeacherSpent | Reason::TeacherFailed) =>
            {
                return Ok(d);
            }
            Phase::Decided(d) if d.reason == Reason::ProposalReplaced => return Ok(d),
            phase => return Err(out_of_order("judge", phase)),
        };
        let config = self.distiller.config();
        let ActorPolicy::Proposal(settings) = config.actor else {
            return Err(out_of_order("judge", Phase::Acting(decision)));
        };
        if self.distiller.teacher_spent() {
            let decision = Decision { reason: Reason::TeacherSpent, ..decision };
            state.phase = Phase::Acting(decision);
            return Ok(decision);
        }
        let (tokens, start) = state.timeline()?;
        let said = &tokens[start..];
        let logprobs: Vec<f32> = match settings.by {
            By::Student => said.iter().map(|token| token.logprob).collect(),
            By::Teacher if self.distiller.teacher_queue().is_some() => {
                let ids: Vec<i32> = state.shown.tokens(&tokens)?.iter().map(|token| token.id).collect();
                let positions = (start..tokens.len()).map(|at| state.shown.view.position(at)).collect();
                let asked = self.ask_scores(&state.trajectory.heading, &ids, positions);
                // Nobody else has this turn meanwhile, and who only looks is not kept waiting.
                state.phase = Phase::Judging(decision);
                drop(state);
                let said = asked.and_then(|mut asked| asked.said(Instant::now(), &mut || !cancel.is_set()));
                state = self.state.lock();
                state.phase = Phase::Acting(decision);
                said.map_err(judged)?.logprobs
            }
            By::Teacher => {
                let none = || Error::new(Fault::TeacherFailed, "the episode has no teacher to judge the proposal");
                let teacher = state.sessions()?.teacher.as_ref().ok_or_else(none)?;
                let ids: Vec<i32> = said.iter().map(|token| token.id).collect();
                // What it reads may not be what the student read.
                let before = state.shown.tokens(&tokens[..start])?;
                teacher.append_tokens(&before[teacher.len()?.min(before.len())..])?;
                let (engine, answer) = (teacher.model().engine().clone(), teacher.start_score(&ids, 0, cancel)?);
                // Nobody else has this turn meanwhile, and who only looks is not kept waiting.
                state.phase = Phase::Judging(decision);
                drop(state);
                let scored = engine.wait(&answer);
                state = self.state.lock();
                state.phase = Phase::Acting(decision);
                let teacher = state.sessions()?.teacher.as_ref().ok_or_else(none)?;
                // Whoever takes the turn, the teacher's timeline gets it with who wrote it. The row before predicts its first token,
                // and its hidden state is kept when that is known to be an action's: it is computed again.
                teacher.truncate(before.len().saturating_sub(1))?;
                scored??.into_iter().map(|row| row.logprob).collect()
            }
        };
        let _floats = FloatEnv::scalars();
        let uncertainty = mean_surprise(&logprobs)?;
        let rate = settings.rate.value(state.trajectory.heading.step, config.steps);
        let is_replaced = self.distiller.is_replaced(&settings, rate, uncertainty);
        let loss = |actor| config.loss_of(actor).kind.is_some();
        let (actor, reason) = match is_replaced {
            true => (Actor::Teacher, Reason::ProposalReplaced),
            false => (Actor::Student, Reason::ProposalStands),
        };
        let decision = Decision { actor: Some(actor), reason, train_on_this: loss(actor), ..decision };
        if is_replaced {
            state.discard_turn()?;
        }
        self.distiller.was_judged(&settings, uncertainty);
        state.phase = if is_replaced { Phase::Decided(decision) } else { Phase::Acting(decision) };
        Ok(decision)
    }

    /// The host's teacher, about to be asked about some positions.
    fn ask_scores(&self, heading: &Heading, ids: &[i32], positions: Vec<usize>) -> Result<Asked> {
        let none = || Error::new(Fault::TeacherFailed, "the episode has no teacher to judge the proposal");
        let queue = self.distiller.teacher_queue().ok_or_else(none)?;
        let &Heading { episode, step, revision, .. } = heading;
        let asker = Asker { distiller: self.distiller.number(), episode, step, revision };
        let engine = self.distiller.student().engine();
        Asked::new(queue, engine, asker, ids, positions, self.distiller.vocabulary())
    }
}

/// A judgement that its caller stopped is no update.
fn judged(e: Error) -> Error {
    if e.fault() == Fault::Cancelled { Error::new(Fault::Cancelled, "the judgement was cancelled") } else { e }
}

/// The mean -ln of probabilities.
fn mean_surprise(logprobs: &[f32]) -> Result<f64> {
    let sum: f64 = logprobs.iter().map(|&logprob| -f64::from(logprob)).sum();
    match sum / logprobs.len() as f64 {
        mean if mean.is_finite() => Ok(mean),
        mean => Err(Error::new(Fault::NotFinite, format!("the proposal's uncertainty is {mean}"))),
    }
}
