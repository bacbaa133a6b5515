//! The pool over a device that only counts.

use std::collections::HashMap;

use super::*;
use crate::backend::cuda::{Cuda, CudaOptions, Event, Facts, Graph, Launch, Matmul};
use crate::random::{Stream, below};
use crate::sync::Mutex;

const MIB: u64 = 1 << 20;

/// A device with so many bytes, that hands out addresses and checks what comes back.
struct Counting {
    facts: Facts,
    total: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: Address,
    given: HashMap<Address, u64>,
    n_allocated: usize,
    n_freed: usize,
}

impl Counting {
    fn new(total: u64) -> Counting {
        Counting { facts: Facts::default(), total, state: Mutex::new(State { next: 1 << 20, ..State::default() }) }
    }

    fn taken(&self) -> u64 {
        self.state.lock().given.values().sum()
    }

    /// How often memory was asked for, and given back.
    fn asked(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.n_allocated, state.n_freed)
    }
}

impl Api for Counting {
    fn facts(&self) -> &Facts {
        &self.facts
    }
    fn memory(&self) -> Result<(u64, u64)> {
        Ok((self.total - self.taken(), self.total))
    }
    fn allocate(&self, bytes: u64) -> Result<Address> {
        let free = self.total - self.taken();
        if bytes > free {
            return Err(Error::memory(Fault::OutOfDeviceMemory, bytes, free, "the device is full"));
        }
        let mut state = self.state.lock();
        let at = state.next;
        state.next += bytes.next_multiple_of(GRAIN);
        state.given.insert(at, bytes);
        state.n_allocated += 1;
        Ok(at)
    }
    fn free(&self, at: Address) {
        let mut state = self.state.lock();
        state.n_freed += 1;
        assert!(state.given.remove(&at).is_some(), "{at} was never given, or came back twice");
    }
    fn pin(&self, _: usize) -> Result<*mut u8> {
        Err(Error::new(Fault::OutOfHostMemory, "a device that only counts pins nothing"))
    }
    fn unpin(&self, _: *mut u8) {}
    unsafe fn upload(&self, _: Address, _: *const u8, _: usize) -> Result<()> {
        Ok(())
    }
    unsafe fn download(&self, _: *mut u8, _: Address, _: usize) -> Result<()> {
        Ok(())
    }
    unsafe fn copy(&self, _: Address, _: Address, _: usize) -> Result<()> {
        Ok(())
    }
    unsafe fn fill(&self, _: Address, _: u8, _: usize) -> Result<()> {
        Ok(())
    }
    unsafe fn launch(&self, _: &Launch, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn has_matmul(&self) -> bool {
        false
    }
    unsafe fn matmul(&self, _: &Matmul) -> Result<()> {
        Ok(())
    }
    fn begin_capture(&self) -> Result<()> {
        Ok(())
    }
    fn end_capture(&self) -> Result<Graph> {
        Ok(Graph(0))
    }
    unsafe fn replay(&self, _: Graph) -> Result<()> {
        Ok(())
    }
    fn drop_graph(&self, _: Graph) {}
    fn event(&self) -> Result<Event> {
        Ok(Event(0))
    }
    fn record(&self, _: Event) -> Result<()> {
        Ok(())
    }
    fn passed(&self, _: Event) -> Result<bool> {
        Ok(true)
    }
    fn wait(&self, _: Event) -> Result<()> {
        Ok(())
    }
    fn elapsed_us(&self, _: Event, _: Event) -> Result<f32> {
        Ok(0.0)
    }
    fn drop_event(&self, _: Event) {}
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn lost(&self) -> Option<String> {
        None
    }
}

#[test]
fn pages_that_come_and_go_do_not_ask_the_device() {
    let (api, mut pool) = (Counting::new(1 << 34), Pool::new(0, true));
    let page = MIB + 3 * GRAIN;
    let pages: Vec<_> = (0..1000).map(|_| pool.take(&api, page).unwrap()).collect();
    let (n, _) = api.asked();
    assert!(n < 30, "1000 pages took {n} allocations");
    assert_eq!(pool.held(), 1000 * page);
    for &at in pages.iter().rev().take(500) {
        pool.give(&api, at, page);
    }
    let (_, freed) = api.asked();
    for _ in 0..1000 {
        let at = pool.take(&api, page).unwrap();
        pool.give(&api, at, page);
    }
    assert_eq!(api.asked(), (n, freed));
    pages.iter().take(500).for_each(|&at| pool.give(&api, at, page));
    pool.shrink(&api);
    assert_eq!((pool.held(), pool.taken, api.taken()), (0, 0, 0));
}

#[test]
fn one_page_at_the_edge_of_a_slab_keeps_its_slab() {
    let (api, mut pool) = (Counting::new(1 << 30), Pool::new(0, true));
    for _ in 0..10 {
        let at = pool.take(&api, MIB).unwrap();
        pool.give(&api, at, MIB);
    }
    assert_eq!(api.asked(), (1, 0));
}

#[test]
fn large_requests_are_the_devices_own_and_go_back_at_once() {
    let (api, mut pool) = (Counting::new(1 << 30), Pool::new(0, true));
    let bytes = LARGEST_PIECE + GRAIN;
    let at = pool.take(&api, bytes).unwrap();
    assert_eq!((api.taken(), pool.taken, pool.held()), (bytes, bytes, bytes));
    pool.give(&api, at, bytes);
    assert_eq!((api.taken(), pool.taken, pool.held()), (0, 0, 0));
}

#[test]
fn without_slabs_every_request_is_the_devices_own() {
    let (api, mut pool) = (Counting::new(1 << 30), Pool::new(0, false));
    let at = pool.take(&api, GRAIN).unwrap();
    assert_eq!((api.taken(), api.asked()), (GRAIN, (1, 0)));
    pool.give(&api, at, GRAIN);
    assert_eq!(api.taken(), 0);
}

#[test]
fn the_budget_is_reached_to_the_byte_and_never_passed() {
    let (api, mut pool) = (Counting::new(1 << 30), Pool::new(5 * MIB, true));
    // A slab of 2 MiB, another one, and the last MiB by itself.
    let pieces: Vec<_> = (0..5).map(|_| pool.take(&api, MIB).unwrap()).collect();
    assert_eq!((pool.held(), api.taken()), (5 * MIB, 5 * MIB));
    let e = pool.take(&api, GRAIN).unwrap_err();
    assert_eq!((e.fault(), e.bytes()), (Fault::DeviceBudget, Some((GRAIN, 0))));
    assert_eq!(pool.held(), 5 * MIB, "nothing was taken");
    pool.give(&api, pieces[4], MIB);
    pool.take(&api, MIB).unwrap();
}

#[test]
fn a_full_device_says_what_is_needed_and_free() {
    let (api, mut pool) = (Counting::new(3 * MIB), Pool::new(0, true));
    pool.take(&api, 2 * MIB).unwrap();
    pool.take(&api, MIB).unwrap();
    let e = pool.take(&api, MIB).unwrap_err();
    assert_eq!((e.fault(), e.bytes()), (Fault::OutOfDeviceMemory, Some((MIB, 0))));
    assert_eq!((pool.held(), pool.taken), (3 * MIB, 3 * MIB));
}

#[test]
fn an_empty_slab_makes_room_for_what_it_cannot_hold() {
    for (device, budget) in [(12 * MIB, 0), (1 << 30, 12 * MIB)] {
        let (api, mut pool) = (Counting::new(device), Pool::new(budget, true));
        let at = pool.take(&api, MIB).unwrap();
        pool.give(&api, at, MIB);
        assert_eq!((pool.taken, pool.free(device - 2 * MIB)), (2 * MIB, 12 * MIB));
        pool.take(&api, 12 * MIB).unwrap();
        assert_eq!((api.taken(), pool.taken), (12 * MIB, 12 * MIB));
    }
}

#[test]
fn pieces_never_overlap_and_nothing_leaks() {
    for seed in 0..20 {
        let (api, mut pool) = (Counting::new(400 * MIB), Pool::new(300 * MIB, true));
        let mut live: BTreeMap<Address, u64> = BTreeMap::new();
        for step in 0..2000 {
            let draw = |which, n| below(Stream::World, &[seed, step, which], n);
            if draw(0, 3) < 2 {
                let bytes = GRAIN * (1 + draw(1, [16, 4096, 50_000][draw(2, 3) as usize]));
                let Ok(at) = pool.take(&api, bytes) else { continue };
                assert_eq!(at % GRAIN, 0);
                let before = live.range(..=at).next_back().is_none_or(|(&other, &n)| other + n <= at);
                let after = live.range(at..).next().is_none_or(|(&other, _)| at + bytes <= other);
                assert!(before && after, "{bytes} bytes at {at} overlap");
                live.insert(at, bytes);
            } else if !live.is_empty() {
                let at = *live.keys().nth(draw(3, live.len() as u64) as usize).unwrap();
                let bytes = live.remove(&at).unwrap();
                pool.give(&api, at, bytes);
            }
            assert_eq!(pool.held(), live.values().sum::<u64>());
            assert_eq!(pool.taken, api.taken());
            assert!(pool.held() <= pool.taken && pool.taken <= 300 * MIB);
        }
        live.into_iter().for_each(|(at, bytes)| pool.give(&api, at, bytes));
        assert!(pool.slabs.len() <= 1, "one empty slab is kept");
        pool.shrink(&api);
        assert_eq!((pool.held(), pool.taken, api.taken()), (0, 0, 0));
    }
}

#[test]
fn views_keep_their_buffer_and_the_last_one_gives_it_back() {
    let cuda = Cuda::over(Box::new(Counting::new(1 << 30)), &CudaOptions::default());
    let view = cuda.allocate(1000).unwrap().view(256, 100);
    assert_eq!((view.len(), cuda.held()), (100, 1024));
    drop(view);
    assert_eq!(cuda.held(), 0);
    assert_eq!(cuda.free().unwrap(), 1 << 30, "an empty slab counts as free");
}
