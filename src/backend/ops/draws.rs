//! The tokens that one decode step draws, a row each.
//!
//! On the CPU they are there when the op returns. On a GPU they come later: `drawn` stays on the device, where the next
//! step's embedding reads it, and the records are sent to the host, which waits for them when it wants to know.

use super::{Head, Sampled, Sampling, sample_token};
use crate::backend::{Batch, Device};
use crate::error::Result;

/// Draws of one step.
#[derive(Default)]
pub struct Draws {
    sampled: Vec<Sampled>,
}

/// Draws a token for each row of the head's logits; on a GPU as the batch's step says.
pub fn sample_rows(device: &Device, draws: &mut Draws, head: &Head, wanted: &[(Sampling, f32)], _batch: &Batch) {
    let row = |(i, &(sampling, u)): (usize, &(Sampling, f32))| sample_token(device, &head.logits, i, sampling, u);
    draws.sampled = wanted.iter().enumerate().map(row).collect();
}

impl Draws {
    /// Where the drawn ids lie on the GPU; 0 where there are none.
    pub fn address(&self) -> u64 {
        0
    }

    /// Sends the first `n` draws of the step that was just launched to the host.
    pub fn send(&mut self, _device: &Device, _n: usize) -> Result<()> {
        Ok(())
    }

    /// The draws of the step that was sent first of those not yet taken, once they are there.
    pub fn take(&mut self) -> Result<Vec<Sampled>> {
        Ok(std::mem::take(&mut self.sampled))
    }
}
