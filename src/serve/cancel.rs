//! A flag that a caller sets from any thread to stop a blocking call or a generation.
#![forbid(unsafe_code)]

use crate::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// A shared flag. Clones are the same flag; once set it stays set.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
    /// flags that count as this one too
    outer: Vec<Cancel>,
}

impl Cancel {
    /// Asks whoever watches the flag to stop at the next whole token.
    pub fn set(&self) {
        self.flag.store(true, Ordering::Release);
    }

    /// Whether it was set.
    pub fn is_set(&self) -> bool {
        self.flag.load(Ordering::Acquire) || self.outer.iter().any(Cancel::is_set)
    }

    /// A flag that is set with this one, and that set alone leaves this one as it is.
    pub(crate) fn inner(&self) -> Cancel {
        Cancel { flag: Arc::default(), outer: vec![self.clone()] }
    }

    /// A flag that is set with this one and with another.
    pub(crate) fn or(&self, other: &Cancel) -> Cancel {
        Cancel { flag: Arc::default(), outer: vec![self.clone(), other.clone()] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inner_flag_hears_of_the_outer_one_and_not_the_other_way_round() {
        let outer = Cancel::default();
        let (first, second, third) = (outer.inner(), outer.inner(), Cancel::default());
        first.set();
        assert!(first.is_set() && !outer.is_set() && !second.is_set());
        let either = second.or(&third);
        assert!(!either.is_set());
        outer.set();
        assert!(second.is_set() && either.is_set() && !third.is_set());
    }
}
