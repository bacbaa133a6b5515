//! A flag that asks running work to stop. Clones share it; whoever runs looks at it between steps.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The flag. Once set it stays set.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks the work to stop. From any thread; never blocks.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the work was asked to stop.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_sees_the_flag_of_the_original() {
        let cancel = Cancel::default();
        let clone = cancel.clone();
        assert!(!clone.is_set());
        cancel.set();
        assert!(clone.is_set());
    }
}
