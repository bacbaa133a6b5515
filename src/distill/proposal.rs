//! Guidance on demand: the student proposes a turn, and where that is uncertain the teacher takes it in its place (UOPD; the
//! student's own uncertainty in the teacher's place is squire's, and experimental).
//!
//! A proposal's uncertainty is the mean -ln of its tokens' probabilities, nats, by the teacher or by the student that drew
//! them. `uncertainty` has the rule. The window is the distiller's, and a checkpoint keeps it: which proposals stand in it depends
//! on the order in which episodes are played.
#![forbid(unsafe_code)]

use super::actor::Actor;
use super::episode::{Episode, Phase, Sessions, State, out_of_order};
use super::knobs::{ActorPolicy, By};
use super::policy::{Decision, Reason};
use crate::backend::cpu::FloatEnv;
use crate::error::{Error, Fault, Result};
use crate::serve::Cancel;

impl Episode {
    /// Says whether what the student proposed for this turn stands, once it has spoken: the student's turn, whose outcome is
    /// due then, or the teacher's, which acts in its place while the proposal is dropped. Asked again it answers the same. Where the
    /// teacher is the judge it computes the proposal, and the call blocks.
    ///
    /// Errors: `OutOfOrder` where nothing was proposed; `SessionBusy` while the student speaks; what scoring fails with, and the
    /// proposal may be judged again.
    pub fn judge(&self, cancel: &Cancel) -> Result<Decision> {
        let mut state = self.state.lock();
        let decision = match state.phase()? {
            Phase::Acting(d) if d.reason == Reason::Proposal => d,
            Phase::Acting(d) if d.reason == Reason::ProposalStands => return Ok(d),
            Phase::Decided(d) if d.reason == Reason::ProposalReplaced => return Ok(d),
            phase => return Err(out_of_order("judge", phase)),
        };
        let config = self.distiller.config();
        let ActorPolicy::Proposal(settings) = config.actor else {
            return Err(out_of_order("judge", Phase::Acting(decision)));
        };
        let uncertainty = uncertainty(&state, settings.by, cancel)?;
        let _floats = FloatEnv::scalars();
        let rate = settings.rate.value(state.trajectory.heading.step, config.steps);
        let is_replaced = self.distiller.judge(&settings, rate, uncertainty);
        let loss = |actor| config.loss_of(actor).kind.is_some();
        let (actor, reason) = match is_replaced {
            true => (Actor::Teacher, Reason::ProposalReplaced),
            false => (Actor::Student, Reason::ProposalStands),
        };
        let decision = Decision { actor: Some(actor), reason, train_on_this: loss(actor), ..decision };
        if is_replaced {
            state.discard_turn()?;
        }
        state.phase = if is_replaced { Phase::Decided(decision) } else { Phase::Acting(decision) };
        Ok(decision)
    }
}

/// The mean -ln of the probabilities of what the student said in the turn under way.
fn uncertainty(state: &State, by: By, cancel: &Cancel) -> Result<f64> {
    let (tokens, start) = state.timeline()?;
    let said = &tokens[start..];
    let logprobs: Vec<f32> = match (by, state.sessions()?) {
        (By::Student, _) => said.iter().map(|token| token.logprob).collect(),
        (By::Teacher, Sessions { teacher: None, .. }) => {
            return Err(Error::new(Fault::TeacherFailed, "the episode has no teacher to judge the proposal"));
        }
        (By::Teacher, Sessions { teacher: Some(teacher), .. }) => {
            let ids: Vec<i32> = said.iter().map(|token| token.id).collect();
            let before = state.shown.tokens(&tokens[..start])?;
            teacher.append_tokens(&before[teacher.len()?.min(before.len())..])?;
            let scored = teacher.score(&ids, 0, cancel);
            // Whoever takes the turn, the teacher's timeline gets it from there with who wrote it. The row before it goes too: it was
            // computed when nobody knew that what follows is an action, and its hidden state was not kept.
            if teacher.len()? >= before.len() {
                teacher.truncate(before.len() - 1)?;
            }
            scored?.into_iter().map(|row| row.logprob).collect()
        }
    };
    let sum: f64 = logprobs.iter().map(|&logprob| -f64::from(logprob)).sum();
    match sum / logprobs.len() as f64 {
        mean if mean.is_finite() => Ok(mean),
        mean => Err(Error::new(Fault::NotFinite, format!("the proposal's uncertainty is {mean}"))),
    }
}
