//! What a step's kernels must know of its rows, in one block of device memory and one upload a step
//! (kernels/step.cuh reads it).
//!
//! The block's layout depends on its capacities alone, so a graph recorded for some capacities finds everything at the
//! same addresses when it is replayed. The host writes into one of a few pinned staging buffers in turn; a buffer is
//! written again only when the stream has passed its upload.

use super::{Address, Buffer, Cuda, Event, Pinned};
use crate::error::Result;

/// Positions in a split of attention.
pub const SPLIT: usize = 256;

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
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Draw {
    /// The draw, in [0, 1).
    pub u: f32,
    /// Divides the logits.
    pub temperature: f32,
    /// Mass to keep.
    pub top_p: f32,
    /// Ids to keep; 0: all.
    pub top_k: u32,
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
    /// Addresses of pages, timeline by timeline.
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

/// Extents of the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Rows that are launched.
    pub rows: usize,
    /// Items, and rows that items name.
    pub items: usize,
    /// Tiles.
    pub tiles: usize,
    /// Pages.
    pub pages: usize,
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

/// Plain structs whose bytes go to the device.
///
/// # Safety
/// No padding.
unsafe trait Plain: Copy {}
// SAFETY: four-byte fields only.
unsafe impl Plain for Item {}
// SAFETY: four-byte fields only.
unsafe impl Plain for Tile {}
// SAFETY: four-byte fields only.
unsafe impl Plain for Draw {}
// SAFETY: no fields.
unsafe impl Plain for u32 {}
// SAFETY: no fields.
unsafe impl Plain for i32 {}
// SAFETY: no fields.
unsafe impl Plain for u64 {}

/// Byte offsets of the block's parts.
struct Layout {
    ids: usize,
    positions: usize,
    row_pages: usize,
    draws: usize,
    items: usize,
    item_rows: usize,
    tiles: usize,
    pages: usize,
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
        let (tiles, pages) = (part(c.tiles, size_of::<Tile>()), part(c.pages, 8));
        Layout { ids, positions, row_pages, draws, items, item_rows, tiles, pages, end }
    }
}

/// The block and its staging buffers.
pub struct Step {
    device: Cuda,
    block: Buffer,
    stages: Vec<(Pinned, Event)>,
    next: usize,
}

impl Step {
    /// A block of at least `bytes`.
    pub fn new(device: &Cuda, capacity: &Capacity) -> Result<Step> {
        let bytes = Layout::of(capacity).end.next_power_of_two().max(1 << 14);
        let mut step = Step { device: device.clone(), block: device.allocate(bytes)?, stages: Vec::new(), next: 0 };
        for _ in 0..STAGES {
            let pinned = Pinned::new(device, bytes)?;
            step.stages.push((pinned, device.api().event()?));
        }
        Ok(step)
    }

    /// Whether a step of this capacity fits.
    pub fn holds(&self, capacity: &Capacity) -> bool {
        Layout::of(capacity).end <= self.block.len()
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
            pages: of(l.pages),
            items: of(l.items),
            item_rows: of(l.item_rows),
            tiles: of(l.tiles),
            draws: of(l.draws),
        }
    }

    /// Uploads a step's facts, in order with what is launched before and after.
    pub fn upload(&mut self, capacity: &Capacity, facts: &Facts) -> Result<()> {
        let l = Layout::of(capacity);
        assert!(l.end <= self.block.len() && facts.ids.len() <= capacity.rows && facts.pages.len() <= capacity.pages);
        assert!(facts.items.len() <= capacity.items && facts.item_rows.len() <= capacity.items);
        assert!(facts.tiles.len() <= capacity.tiles);
        let (stage, event) = &mut self.stages[self.next];
        self.next = (self.next + 1) % STAGES;
        // The stream passed this long ago, unless the host runs STAGES steps ahead.
        self.device.api().wait(*event)?;
        let bytes = stage.bytes_mut();
        let counts = [facts.ids.len() as u32, facts.items.len() as u32, facts.tiles.len() as u32, 0];
        put(bytes, 0, &counts);
        put(bytes, l.ids, &facts.ids);
        put(bytes, l.positions, &facts.positions);
        put(bytes, l.row_pages, &facts.row_pages);
        put(bytes, l.draws, &facts.draws);
        put(bytes, l.items, &facts.items);
        put(bytes, l.item_rows, &facts.item_rows);
        put(bytes, l.tiles, &facts.tiles);
        put(bytes, l.pages, &facts.pages);
        // Rows that are launched beyond those in use have no token and no pages.
        let spare = capacity.rows - facts.ids.len();
        put(bytes, l.ids + 4 * facts.ids.len(), &vec![0i32; spare]);
        put(bytes, l.positions + 4 * facts.ids.len(), &vec![0u32; spare]);
        let used = l.pages + 8 * facts.pages.len();
        // SAFETY: the staging buffer is not written again before the event has passed.
        unsafe { self.device.api().upload(self.block.address(), stage.as_ptr(), used)? };
        self.device.api().record(*event)
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.stages.iter().for_each(|(_, event)| self.device.api().drop_event(*event));
    }
}

fn put<T: Plain>(bytes: &mut [u8], at: usize, values: &[T]) {
    // SAFETY: `Plain` has no padding.
    let from = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
    bytes[at..at + from.len()].copy_from_slice(from);
}
