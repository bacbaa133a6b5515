//! Which episodes of records a distiller has taken, so that none counts twice, also after it is resumed.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::distill::run_id::RunId;

/// The most episodes that a checkpoint may name: far beyond a run, and what fits memory.
const MOST: u64 = 1 << 24;

/// An episode among the trained ones: run, step and number.
pub(in crate::distill) type Identity = (RunId, u64, u64);

/// Episodes by run, step and number.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::distill) struct Known(BTreeSet<Identity>);

impl Known {
    pub(in crate::distill) fn has(&self, identity: &Identity) -> bool {
        self.0.contains(identity)
    }

    pub(in crate::distill) fn add(&mut self, identity: Identity) {
        self.0.insert(identity);
    }

    pub(in crate::distill) fn remove(&mut self, identity: &Identity) {
        self.0.remove(identity);
    }

    pub(in crate::distill) fn iter(&self) -> impl Iterator<Item = &Identity> {
        self.0.iter()
    }

    /// Without those that `forgets` names.
    pub(in crate::distill) fn forget(&mut self, forgets: impl Fn(&Identity) -> bool) {
        self.0.retain(|identity| !forgets(identity));
    }

    pub(in crate::distill) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Ranges of numbers, `run:step:first-last`, with a blank between two.
    pub(in crate::distill) fn to_text(&self) -> String {
        let (all, mut text) = (self.0.iter().collect::<Vec<_>>(), String::new());
        for range in all.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1) && a.2 + 1 == b.2) {
            let (run, step, first) = range[0];
            let blank = if text.is_empty() { "" } else { " " };
            // A text takes whatever is written into it.
            let _ = write!(text, "{blank}{run}:{step}:{first}-{}", first + (range.len() as u64 - 1));
        }
        text
    }

    /// Reads the same; None where it is not of this form.
    pub(in crate::distill) fn from_text(text: &str) -> Option<Known> {
        let (mut known, mut n) = (Known::default(), 0u64);
        for range in text.split_ascii_whitespace() {
            let mut parts = range.split(':');
            let (run, step, numbers) = (RunId::parse(parts.next()?)?, parts.next()?.parse().ok()?, parts.next()?);
            let (first, last) = numbers.split_once('-')?;
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            n = n.checked_add(last.checked_sub(first)?)?.checked_add(1)?;
            if n > MOST {
                return None;
            }
            known.0.extend((first..=last).map(|episode| (run, step, episode)));
        }
        Some(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_come_back() {
        let mut known = Known::default();
        for (run, step, episode) in [(1, 0, 3), (1, 0, 4), (1, 0, 5), (1, 0, 9), (1, 2, 10), (2, 0, 0)] {
            known.add((RunId(run), step, episode));
        }
        let (one, two) = (RunId(1), RunId(2));
        assert_eq!(known.to_text(), format!("{one}:0:3-5 {one}:0:9-9 {one}:2:10-10 {two}:0:0-0"));
        assert_eq!(Known::from_text(&known.to_text()), Some(known));
        assert_eq!(Known::from_text(""), Some(Known::default()));
        for wrong in ["x", "1:0:3-5", &format!("{one}:0:5-3"), &format!("{one}:0"), &format!("{one}:0:0-4294967295")] {
            assert_eq!(Known::from_text(wrong), None, "{wrong}");
        }
    }
}
