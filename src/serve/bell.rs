//! Who has something to tell, for somebody who waits for many: a list of numbers in the order in which they rang, and where the
//! platform has one a descriptor that is readable while the list is not empty.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Condvar, Mutex};

/// The list.
#[derive(Default)]
pub(super) struct Bell {
    state: Mutex<State>,
    rang: Condvar,
}

#[derive(Default)]
struct State {
    ready: VecDeque<u64>,
    is_closed: bool,
    wire: Option<wire::Wire>,
}

/// One that rings, under its number. While it is in the list it is there once.
pub(super) struct Rings {
    bell: Arc<Bell>,
    number: u64,
    is_in: AtomicBool,
}

impl Rings {
    pub(super) fn new(bell: &Arc<Bell>, number: u64) -> Arc<Rings> {
        Arc::new(Rings { bell: bell.clone(), number, is_in: AtomicBool::new(false) })
    }

    /// Puts it at the list's end, unless it is in.
    pub(super) fn ring(&self) {
        if !self.is_in.swap(true, Ordering::SeqCst) {
            let mut state = self.bell.state.lock();
            state.ready.push_back(self.number);
            if let (1, Some(wire)) = (state.ready.len(), &mut state.wire) {
                wire.raise();
            }
            drop(state);
            self.bell.rang.notify_all();
        }
    }

    /// It was taken from the list; what happens from now on rings again.
    pub(super) fn taken(&self) {
        self.is_in.store(false, Ordering::SeqCst);
    }
}

impl Bell {
    /// The first of the list.
    pub(super) fn take(&self) -> Option<u64> {
        let mut state = self.state.lock();
        let first = state.ready.pop_front();
        if let (true, Some(wire)) = (state.ready.is_empty(), &mut state.wire) {
            wire.lower();
        }
        first
    }

    /// Nobody is to wait any more.
    pub(super) fn close(&self) {
        self.state.lock().is_closed = true;
        self.rang.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().is_closed
    }

    /// Waits until somebody rings, the bell is closed, or `deadline` is past.
    pub(super) fn wait(&self, deadline: Option<Instant>) {
        let mut state = self.state.lock();
        while state.ready.is_empty() && !state.is_closed {
            match deadline {
                None => self.rang.wait(&mut state),
                Some(deadline) => {
                    if self.rang.wait_until(&mut state, deadline) {
                        return;
                    }
                }
            }
        }
    }

    /// The descriptor, made when it is first asked for. None where the platform has none, or no more of them.
    #[cfg(unix)]
    pub(super) fn descriptor(&self) -> Option<std::os::fd::RawFd> {
        let mut state = self.state.lock();
        if state.wire.is_none() {
            let mut wire = wire::Wire::new()?;
            if !state.ready.is_empty() {
                wire.raise();
            }
            state.wire = Some(wire);
        }
        state.wire.as_ref().map(wire::Wire::descriptor)
    }
}

#[cfg(unix)]
mod wire {
    use std::io::{Read, Write};
    use std::os::fd::{AsRawFd, RawFd};
    use std::os::unix::net::UnixStream;

    /// Two ends of a wire: a byte in it while somebody is in the list.
    pub(super) struct Wire {
        near: UnixStream,
        far: UnixStream,
        is_up: bool,
    }

    impl Wire {
        pub(super) fn new() -> Option<Wire> {
            let (near, far) = UnixStream::pair().ok()?;
            near.set_nonblocking(true).and_then(|()| far.set_nonblocking(true)).ok()?;
            Some(Wire { near, far, is_up: false })
        }

        pub(super) fn raise(&mut self) {
            // One byte at a time always finds room.
            self.is_up = self.is_up || self.near.write(&[1]).is_ok();
        }

        pub(super) fn lower(&mut self) {
            if self.is_up {
                // A host that has read the byte itself has lowered it.
                let _ = self.far.read(&mut [0]);
                self.is_up = false;
            }
        }

        pub(super) fn descriptor(&self) -> RawFd {
            self.far.as_raw_fd()
        }
    }
}

#[cfg(not(unix))]
mod wire {
    /// There is none.
    pub(super) enum Wire {}

    impl Wire {
        pub(super) fn raise(&mut self) {}
        pub(super) fn lower(&mut self) {}
    }
}
