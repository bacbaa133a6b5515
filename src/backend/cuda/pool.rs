//! Device memory by the piece: small requests are carved from slabs, large ones are the device's own.
//!
//! Pages are taken and dropped one by one while decoding, and asking the device each time would take longer than a
//! step's kernels. A piece that is given back is free at once for the next request: what is launched later runs later,
//! on the one stream. Only giving a slab back to the device waits.
#![cfg_attr(not(test), forbid(unsafe_code))]

use std::collections::BTreeMap;

use super::api::{Address, Api};
use crate::error::{Error, Fault, Result, Status};

/// Every piece is a multiple of it, and so aligned to it.
const GRAIN: u64 = 256;
/// The largest request that is carved from a slab.
pub(super) const LARGEST_PIECE: u64 = 8 << 20;
/// The first slab; each next one is as large as all before, so that little is held for a small model.
const FIRST_SLAB: u64 = 2 << 20;
/// The largest slab.
const LARGEST_SLAB: u64 = 64 << 20;

/// The memory of one device under its budget.
pub(super) struct Pool {
    budget: u64,
    slabs: BTreeMap<Address, Slab>,
    /// whether there are slabs at all
    carves: bool,
    /// bytes taken from the device
    taken: u64,
    /// bytes that somebody has
    held: u64,
}

/// One allocation of the device, and what of it is free: offset and bytes of each hole. Holes do not touch.
struct Slab {
    bytes: u64,
    holes: BTreeMap<u64, u64>,
}

impl Slab {
    fn is_empty(&self) -> bool {
        self.holes.get(&0) == Some(&self.bytes)
    }

    /// The first hole that is large enough, less its end.
    fn carve(&mut self, bytes: u64) -> Option<u64> {
        let (&at, &hole) = self.holes.iter().find(|&(_, &hole)| hole >= bytes)?;
        self.holes.remove(&at);
        if hole > bytes {
            self.holes.insert(at + bytes, hole - bytes);
        }
        Some(at)
    }

    /// Makes a piece a hole again, one with the holes that it touches.
    fn mend(&mut self, at: u64, bytes: u64) {
        let (mut from, mut to) = (at, at + bytes);
        if let Some(after) = self.holes.remove(&to) {
            to += after;
        }
        if let Some((&before, &hole)) = self.holes.range(..from).next_back()
            && before + hole == from
        {
            self.holes.remove(&before);
            from = before;
        }
        self.holes.insert(from, to - from);
    }
}

impl Pool {
    /// A pool that takes no more than `budget` bytes of the device; 0: as much as there is.
    pub fn new(budget: u64, carves: bool) -> Pool {
        let budget = if budget == 0 { u64::MAX } else { budget };
        Pool { budget, slabs: BTreeMap::new(), carves, taken: 0, held: 0 }
    }

    /// Bytes that somebody has.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Bytes that could still be taken where the device has `free`. What is free within a slab in use does not count:
    /// it may not be in one piece.
    pub fn free(&self, free: u64) -> u64 {
        let spare: u64 = self.slabs.values().filter(|slab| slab.is_empty()).map(|slab| slab.bytes).sum();
        free.min(self.budget - self.taken).saturating_add(spare)
    }

    /// What is taken for a request of so many bytes.
    pub fn whole(bytes: usize) -> u64 {
        (bytes.max(1) as u64).next_multiple_of(GRAIN)
    }

    /// A piece of `bytes`, which `whole` gave. Where neither budget nor device has room, nothing is taken.
    pub fn take(&mut self, api: &dyn Api, bytes: u64) -> Result<Address> {
        let at = match self.carve(api, bytes)? {
            Some(at) => at,
            None => self.draw(api, bytes).or_else(|e| {
                if !lacks_room(&e) || !self.shrink(api) {
                    return Err(e);
                }
                self.draw(api, bytes)
            })?,
        };
        self.held += bytes;
        Ok(at)
    }

    /// Gives a piece back.
    pub fn give(&mut self, api: &dyn Api, at: Address, bytes: u64) {
        self.held -= bytes;
        let within = self.slabs.range_mut(..=at).next_back().filter(|(from, slab)| at < **from + slab.bytes);
        let Some((&from, slab)) = within else {
            api.free(at);
            self.taken -= bytes;
            return;
        };
        slab.mend(at - from, bytes);
        // One empty slab is kept: a page that comes and goes must not make the device wait each time.
        if slab.is_empty() && self.slabs.iter().any(|(&other, slab)| other != from && slab.is_empty()) {
            self.release(api, from);
        }
    }

    /// Gives all empty slabs back to the device; says whether there was one.
    pub fn shrink(&mut self, api: &dyn Api) -> bool {
        let empty: Vec<_> = self.slabs.iter().filter(|(_, slab)| slab.is_empty()).map(|(&at, _)| at).collect();
        empty.iter().for_each(|&at| self.release(api, at));
        !empty.is_empty()
    }

    fn release(&mut self, api: &dyn Api, at: Address) {
        if let Some(slab) = self.slabs.remove(&at) {
            api.free(at);
            self.taken -= slab.bytes;
        }
    }

    /// A piece of a slab, if it is small; of a new slab, if there is room for one.
    fn carve(&mut self, api: &dyn Api, bytes: u64) -> Result<Option<Address>> {
        if !self.carves || bytes > LARGEST_PIECE {
            return Ok(None);
        }
        if let Some(at) = self.slabs.iter_mut().find_map(|(from, slab)| Some(from + slab.carve(bytes)?)) {
            return Ok(Some(at));
        }
        let all: u64 = self.slabs.values().map(|slab| slab.bytes).sum();
        let slab = all.clamp(FIRST_SLAB, LARGEST_SLAB).max(bytes);
        match self.draw(api, slab) {
            Ok(at) => {
                let mut new = Slab { bytes: slab, holes: BTreeMap::from([(0, slab)]) };
                let offset = new.carve(bytes);
                self.slabs.insert(at, new);
                Ok(offset.map(|offset| at + offset))
            }
            // The piece alone may still fit.
            Err(e) if lacks_room(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Takes memory from the device, within the budget.
    fn draw(&mut self, api: &dyn Api, bytes: u64) -> Result<Address> {
        let free = self.budget - self.taken;
        if bytes > free {
            let budget = self.budget;
            let why = format!("{bytes} bytes of device memory are needed, of the budget of {budget} are {free} free");
            return Err(Error::memory(Fault::DeviceBudget, bytes, free, why));
        }
        let at = api.allocate(bytes)?;
        self.taken += bytes;
        Ok(at)
    }
}

/// Whether with less held the same request might succeed.
fn lacks_room(e: &Error) -> bool {
    matches!(e.status(), Status::DeviceMemory | Status::Budget)
}

#[cfg(test)]
#[path = "pool_claims.rs"]
mod claims;
