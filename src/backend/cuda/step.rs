//! What a step's kernels must know of its rows, in device memory: a block that is written by one upload a step, and a
//! table of page addresses of which only what changed is written (kernels/step.cuh reads both).
//!
//! The block's layout depends on its capacities alone, so a graph recorded for some capacities finds everything at the
//! same addresses when it is replayed. Steps that decode and others have a table each, so that neither overwrites what the
//! other left. The host writes into one of a few pinned staging buffers in turn; a buffer is written again only when the
//! stream has passed its upload.

use super::api::{Address, Event};
use super::device::Cuda;
use super::memory::Buffer;
use super::pinned::Pinned;
use crate::backend::host::{self, Plain};
use crate::backend::terms::{Cuts, Pick, Sampling};
use crate::error::Result;

/// Staging buffers. A step is asked for while two more at most are under way: enough to keep the device busy, and
/// whoever cancels a prompt waits for no more than these.
const STAGES: usize = 2;

/// A piece of decode attention: the positions of one split for rows that hold the same pages there.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Positions 256 split..
    pub split: u32,
    /// First of its rows in the list of rows.
    pub first: u32,
    /// Rows.
    pub count: u32,
    /// Nothing.
    pub unused: u32,
}

/// A piece of prefill attention: consecutive rows of one timeline.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// First row of the batch.
    pub row: u32,
    /// Rows.
    pub count: u32,
    /// Position of the first.
    pub position: u32,
    /// Where the timeline's pages begin in the list of pages.
    pub pages: u32,
}

/// How a row's next token is drawn.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// The draw, in [0, 1).
    pub u: f32,
    /// Divides the logits.
    pub temperature: f32,
    /// Mass to keep.
    pub top_p: f32,
    /// Ids to keep; 0: all.
    pub top_k: u32,
    /// Share of the likeliest one's probability that others keep; 0: all.
    pub min_p: f32,
    /// Mass to keep of the ids whose surprise is nearest to the entropy; 1: all.
    pub typical_p: f32,
}

impl From<&Pick<'_>> for Draw {
    fn from(pick: &Pick) -> Draw {
        let Pick { sampling: Sampling { temperature, top_k, top_p }, cuts: Cuts { min_p, typical_p }, u, .. } = *pick;
        Draw { u, temperature, top_p, top_k, min_p, typical_p }
    }
}

/// A step's facts on the host.
#[derive(Debug, Default)]
pub struct Facts {
    /// A token, or -1 - j: what draw j of the last step chose.
    pub ids: Vec<i32>,
    /// `[N]`
    pub positions: Vec<u32>,
    /// `[N]` where the row's timeline's pages begin in `pages`
    pub row_pages: Vec<u32>,
    /// Addresses of pages, timeline by timeline, with unused entries between.
    pub pages: Vec<Address>,
    /// Of a decode step.
    pub items: Vec<Item>,
    /// The rows that items name.
    pub item_rows: Vec<u32>,
    /// Of a prefill step.
    pub tiles: Vec<Tile>,
    /// One a row, where tokens are drawn.
    pub draws: Vec<Draw>,
}

/// Extents of the block and of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Rows that are launched.
    pub rows: usize,
    /// Items, and rows that items name.
    pub items: usize,
    /// Tiles.
    pub tiles: usize,
    /// Entries of the table of pages.
    pub pages: usize,
    /// Whether the table is that of steps that decode.
    pub decodes: bool,
}

/// The addresses that kernels take: `Step` of kernels/step.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Addresses {
    /// Rows, items, tiles in use.
    pub counts: Address,
    /// i32 `[N]`
    pub ids: Address,
    /// u32 `[N]`
    pub positions: Address,
    /// u32 `[N]`
    pub row_pages: Address,
    /// u64
    pub pages: Address,
    /// Items.
    pub items: Address,
    /// u32
    pub item_rows: Address,
    /// Tiles.
    pub tiles: Address,
    /// Draws `[N]`
    pub draws: Address,
}

// SAFETY: four-byte fields only, and any bits are a value of each.
unsafe impl Plain for Item {}
// SAFETY: as for `Item`.
unsafe impl Plain for Tile {}
// SAFETY: as for `Item`.
unsafe impl Plain for Draw {}

/// Byte offsets of the block's parts.
struct Layout {
    ids: usize,
    positions: usize,
    row_pages: usize,
    draws: usize,
    items: usize,
    item_rows: usize,
    tiles: usize,
    end: usize,
}

impl Layout {
    fn of(c: &Capacity) -> Layout {
        let mut end = 16;
        let mut part = |n: usize, size: usize| {
            let at = end;
            end = (end + n * size).next_multiple_of(16);
            at
        };
        let (ids, positions, row_pages) = (part(c.rows, 4), part(c.rows, 4), part(c.rows, 4));
        let draws = part(c.rows, size_of::<Draw>());
        let (items, item_rows) = (part(c.items, size_of::<Item>()), part(c.items, 4));
        let tiles = part(c.tiles, size_of::<Tile>());
        Layout { ids, positions, row_pages, draws, items, item_rows, tiles, end }
    }
}

/// A table of page addresses on the device, and what the host knows to be in it once the stream has come so far.
struct Table {
    at: Buffer,
    held: Vec<Address>,
}

/// Entries that are sent though they did not change, where that makes one copy of two.
const GAP: usize = 64;

impl Table {
    fn new(device: &Cuda, n: usize) -> Result<Table> {
        Ok(Table { at: device.allocate(8 * n)?, held: host::with_room(n)? })
    }

    /// Entries it has room for.
    fn room(&self) -> usize {
        self.at.len() / 8
    }

    /// Sends what of `pages` differs from what is there, through `staging`.
    fn update(&mut self, device: &Cuda, pages: &[Address], staging: &mut [u8]) -> Result<()> {
        // Until all is asked for, nobody knows what is there.
        let mut held = std::mem::take(&mut self.held);
        let known = held.len().min(pages.len());
        let differs = |i: usize| i >= known || held[i] != pages[i];
        let mut from = 0;
        while let Some(first) = (from..pages.len()).find(|&i| differs(i)) {
            let mut end = first + 1;
            while let Some(next) = (end..(end + GAP).min(pages.len())).find(|&i| differs(i)) {
                end = next + 1;
            }
            let bytes = &mut staging[8 * first..8 * end];
            put(bytes, 0, &pages[first..end]);
            let to = self.at.address() + 8 * first as u64;
            from = end;
            // SAFETY: the run lies inside the table, and the staging stays as it is until the step's event has passed.
            unsafe { device.upload(to, bytes.as_ptr(), bytes.len())? };
        }
        if held.len() < pages.len() {
            host::reserve(&mut held, pages.len() - known)?;
            held.resize(pages.len(), 0);
        }
        held[..pages.len()].copy_from_slice(pages);
        self.held = held;
        Ok(())
    }
}

/// The block, its tables and its staging buffers.
pub struct Step {
    device: Cuda,
    room: Room,
    block: Buffer,
    /// of steps that do not decode, and of those that do
    tables: [Table; 2],
    stages: Vec<(Pinned, Event)>,
    next: usize,
}

/// What a step has room for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Room {
    /// bytes of the block
    block: usize,
    /// entries of each table
    pages: [usize; 2],
}

impl Room {
    /// Room for a capacity, and for all that there was room for before.
    pub fn with(self, capacity: &Capacity) -> Room {
        let mut room = self;
        room.block = room.block.max(Layout::of(capacity).end.next_power_of_two().max(1 << 12));
        let table = &mut room.pages[usize::from(capacity.decodes)];
        *table = (*table).max(capacity.pages.next_power_of_two().max(1 << 8));
        room
    }

    /// Bytes of the block and of each table.
    pub fn bytes(&self) -> [usize; 3] {
        [self.block, 8 * self.pages[0], 8 * self.pages[1]]
    }
}

impl Step {
    /// A step with this room.
    pub fn new(device: &Cuda, room: Room) -> Result<Step> {
        let [others, decodes] = room.pages.map(|n| Table::new(device, n));
        let (block, tables) = (device.allocate(room.block)?, [others?, decodes?]);
        let mut step = Step { device: device.clone(), room, block, tables, stages: Vec::new(), next: 0 };
        for _ in 0..STAGES {
            let pinned = Pinned::new(device, room.block + 8 * room.pages.into_iter().max().unwrap_or(0))?;
            step.stages.push((pinned, device.api().event()?));
        }
        Ok(step)
    }

    /// Bytes of the device that it has.
    pub fn taken(&self) -> u64 {
        self.block.taken() + self.tables.iter().map(|table| table.at.taken()).sum::<u64>()
    }

    /// What it has room for.
    pub fn room(&self) -> Room {
        self.room
    }

    /// Whether a step of this capacity fits.
    pub fn holds(&self, capacity: &Capacity) -> bool {
        let table = &self.tables[usize::from(capacity.decodes)];
        Layout::of(capacity).end <= self.block.len() && capacity.pages <= table.room()
    }

    /// Where things lie for a capacity.
    pub fn addresses(&self, capacity: &Capacity) -> Addresses {
        let (at, l) = (self.block.address(), Layout::of(capacity));
        let of = |offset: usize| at + offset as u64;
        Addresses {
            counts: at,
            ids: of(l.ids),
            positions: of(l.positions),
            row_pages: of(l.row_pages),
            pages: self.tables[usize::from(capacity.decodes)].at.address(),
            items: of(l.items),
            item_rows: of(l.item_rows),
            tiles: of(l.tiles),
            draws: of(l.draws),
        }
    }

    /// Uploads a step's facts, in order with what is launched before and after.
    pub fn upload(&mut self, capacity: &Capacity, facts: &Facts) -> Result<()> {
        let l = Layout::of(capacity);
        assert!(self.holds(capacity) && facts.ids.len() <= capacity.rows && facts.pages.len() <= capacity.pages);
        assert!(facts.items.len() <= capacity.items && facts.item_rows.len() <= capacity.items);
        assert!(facts.tiles.len() <= capacity.tiles);
        let (stage, event) = &mut self.stages[self.next];
        self.next = (self.next + 1) % STAGES;
        // The stream passed this long ago, unless the host runs STAGES steps ahead.
        self.device.api().wait(*event)?;
        let (bytes, pages) = stage.bytes_mut().split_at_mut(self.block.len());
        let counts = [facts.ids.len() as u32, facts.items.len() as u32, facts.tiles.len() as u32, 0];
        put(bytes, 0, &counts);
        put(bytes, l.ids, &facts.ids);
        put(bytes, l.positions, &facts.positions);
        put(bytes, l.row_pages, &facts.row_pages);
        put(bytes, l.draws, &facts.draws);
        put(bytes, l.items, &facts.items);
        put(bytes, l.item_rows, &facts.item_rows);
        put(bytes, l.tiles, &facts.tiles);
        // Rows that are launched beyond those in use have no token and no pages.
        for part in [l.ids, l.positions] {
            bytes[part + 4 * facts.ids.len()..part + 4 * capacity.rows].fill(0);
        }
        // A step has items or tiles, which come last.
        let used = match facts.items.is_empty() {
            true => l.tiles + size_of::<Tile>() * facts.tiles.len(),
            false => l.item_rows + 4 * facts.item_rows.len(),
        };
        // SAFETY: the staging buffer is not written again before the event has passed.
        let sent = unsafe { self.device.upload(self.block.address(), bytes.as_ptr(), used) };
        let table = &mut self.tables[usize::from(capacity.decodes)];
        let sent = sent.and_then(|()| table.update(&self.device, &facts.pages, pages));
        // Also where only some was asked for: that much leaves this stage.
        self.device.api().record(*event).and(sent)
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.stages.iter().for_each(|(_, event)| self.device.api().drop_event(*event));
    }
}

/// Writes values at an offset.
pub fn put<T: Plain>(bytes: &mut [u8], at: usize, values: &[T]) {
    // SAFETY: `Plain` has no padding.
    let from = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
    bytes[at..at + from.len()].copy_from_slice(from);
}
