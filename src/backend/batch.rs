//! The rows of one forward pass: their tokens, their positions, and where their timelines' pages lie.
//!
//! On the CPU ops read it as it is. On a GPU it is also written to device memory once a step (`cuda::step`), and what
//! is launched depends on its *plan* alone: how many rows, how long a context, how many query columns share a page. A
//! graph recorded for a plan serves every batch of that plan.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::sync::Arc;

use super::cuda::Address;
use super::cuda::step::{Addresses, Capacity, Draw, Facts, Item, Room, Step, Tile};
use super::device::Device;
use super::host;
use super::page::{PAGE, Page};
use super::terms::{Heads, Pick, SPLIT};
pub use super::terms::{MAX_DECODE_ROWS, Plan, TILE_COLUMNS};
use crate::error::Result;

/// New rows of one timeline.
pub struct BatchSegment<'a> {
    /// Their tokens; -1 - j names what row j of the last decode step drew.
    pub ids: &'a [i32],
    /// Position of the first.
    pub start: usize,
    /// The timeline's pages, those of the new rows included.
    pub pages: &'a [Arc<Page>],
}

/// The rows of one forward pass.
pub struct Batch {
    facts: Facts,
    sharing: Sharing,
    segments: Vec<(Range<usize>, usize)>,
    plan: Plan,
    capacity: Capacity,
    step: Option<Step>,
    /// grows when the block in device memory moves
    generation: u64,
}

impl Default for Batch {
    fn default() -> Batch {
        let plan = Plan { rows: 0, context: 0, columns: 8, decodes: false };
        let (facts, sharing, segments) = (Facts::default(), Sharing::default(), Vec::new());
        Batch { facts, sharing, segments, plan, capacity: Capacity::default(), step: None, generation: 0 }
    }
}

/// What a plan of a GPU's decode step needs of the block and the table of pages.
fn capacity_of(plan: Plan) -> Capacity {
    let (items, pages) = (plan.rows * plan.context.div_ceil(SPLIT), plan.rows * plan.context.div_ceil(PAGE));
    Capacity { rows: plan.rows, items, tiles: 0, pages, decodes: true }
}

impl Batch {
    /// Bytes of a GPU that the facts of a decode step of this plan take, where nothing larger came before.
    pub fn bytes(device: &Device, plan: Plan) -> u64 {
        Room::default().with(&capacity_of(plan)).bytes().into_iter().map(|bytes| device.taken(bytes)).sum()
    }

    /// Takes the rows of some segments, and how the token after each is drawn where that is wanted.
    pub fn set(&mut self, device: &Device, segments: &[BatchSegment], draws: &[Pick], heads: Heads) -> Result<()> {
        let f = &mut self.facts;
        f.ids.clear();
        f.positions.clear();
        self.segments.clear();
        let n = segments.iter().map(|s| s.ids.len()).sum();
        host::reserve(&mut f.ids, n)?;
        host::reserve(&mut f.positions, n)?;
        host::reserve(&mut self.segments, segments.len())?;
        for s in segments {
            let first = f.ids.len();
            f.ids.extend_from_slice(s.ids);
            f.positions.extend(s.start as u32..(s.start + s.ids.len()) as u32);
            self.segments.push((first..f.ids.len(), s.start));
        }
        let longest = segments.iter().map(|s| s.start + s.ids.len()).max().unwrap_or(0);
        let decodes = n > 0 && n <= MAX_DECODE_ROWS && segments.iter().all(|s| s.ids.len() == 1);
        self.plan = Plan { rows: n, context: longest, columns: 8, decodes };
        if let Device::Cuda(cuda) = device {
            f.draws.clear();
            host::reserve(&mut f.draws, draws.len())?;
            f.draws.extend(draws.iter().map(Draw::from));
            let group = heads.group();
            list_pages(f, segments)?;
            if decodes {
                f.tiles.clear();
                let columns = list_items(f, &mut self.sharing, n, group)?;
                self.plan = Plan { columns, ..Plan::of_decode(n, longest) };
            } else {
                f.items.clear();
                f.item_rows.clear();
                list_tiles(f, &self.segments, group)?;
            }
            self.capacity = match decodes {
                true => capacity_of(self.plan),
                false => Capacity { rows: n, items: 0, tiles: f.tiles.len(), pages: f.pages.len(), decodes },
            };
            if self.step.as_ref().is_none_or(|s| !s.holds(&self.capacity)) {
                // What is there goes first, and with it the graphs over it.
                let room = self.step.take().map_or(Room::default(), |s| s.room()).with(&self.capacity);
                self.generation += 1;
                self.step = Some(Step::new(cuda, room)?);
            }
            if let Some(step) = &mut self.step {
                step.upload(&self.capacity, &self.facts)?;
            }
        }
        Ok(())
    }

    /// Bytes of a GPU that it has.
    pub fn taken(&self) -> u64 {
        self.step.as_ref().map_or(0, Step::taken)
    }

    /// Tokens, one a row in use.
    pub fn ids(&self) -> &[i32] {
        &self.facts.ids
    }

    /// Positions, one a row in use.
    pub fn positions(&self) -> &[u32] {
        &self.facts.positions
    }

    /// Each timeline's rows and the position of the first.
    pub fn segments(&self) -> &[(Range<usize>, usize)] {
        &self.segments
    }

    /// Rows in use.
    pub fn len(&self) -> usize {
        self.facts.ids.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.facts.ids.is_empty()
    }

    /// What decides which launches it needs.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// Items that a decode step of this plan has at most.
    pub fn max_items(&self) -> usize {
        self.capacity.items
    }

    /// Tiles of a prefill step.
    pub fn n_tiles(&self) -> usize {
        self.facts.tiles.len()
    }

    /// Where its facts lie on the GPU.
    pub fn addresses(&self) -> Addresses {
        self.step.as_ref().map_or(Addresses::default(), |s| s.addresses(&self.capacity))
    }

    /// Another number whenever graphs that name its addresses are void.
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// Lists the pages of all timelines; each timeline's begin at a place that moves only when their number doubles, so
/// that a step that adds a page changes one entry of what the device holds.
fn list_pages(f: &mut Facts, segments: &[BatchSegment]) -> Result<()> {
    f.pages.clear();
    f.row_pages.clear();
    for s in segments {
        let first = f.pages.len();
        let n_pages = (s.start + s.ids.len()).div_ceil(PAGE);
        let room = n_pages.next_power_of_two();
        host::reserve(&mut f.pages, room)?;
        f.pages.extend(s.pages[..n_pages].iter().map(|p| p.elements().address()));
        f.pages.resize(first + room, 0);
        host::reserve(&mut f.row_pages, s.ids.len())?;
        f.row_pages.extend(std::iter::repeat_n(first as u32, s.ids.len()));
    }
    Ok(())
}

/// Which rows of a decode step hold the same pages, split by split. Kept from step to step for its room.
#[derive(Default)]
struct Sharing {
    /// the group of each (split, row), in this order, rows without the split left out
    group_of: Vec<u32>,
    groups: Vec<Group>,
    /// groups of the split at hand by their last page
    by_page: HashMap<Address, u32, BuildHasherDefault<PageHasher>>,
    /// pages of a row's split that were held against a group's
    #[cfg(test)]
    n_compared: usize,
}

/// Rows that hold the same pages in one split.
struct Group {
    split: u32,
    /// its first row, which stands for all
    row: u32,
    n_rows: u32,
    /// where the next of its rows goes in the list of rows
    next: u32,
    /// another group of the split whose last page is the same, or NONE
    alike: u32,
}

const NONE: u32 = u32::MAX;

/// Addresses of pages are far apart and random enough to be multiplied.
#[derive(Default)]
struct PageHasher(u64);

impl Hasher for PageHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&b| self.write_u64(u64::from(b)));
    }
    fn write_u64(&mut self, x: u64) {
        // The factor of Fibonacci hashing: 2^64 by the golden ratio. The upper bits are the good ones.
        self.0 = (self.0 ^ x).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// Lists the pieces of decode attention, rows with equal pages together, in time proportional to the pieces. Returns the
/// query columns of a piece.
fn list_items(f: &mut Facts, sharing: &mut Sharing, n_rows: usize, group: usize) -> Result<usize> {
    const PAGES: usize = SPLIT / PAGE;
    let n_splits = |row: usize| (f.positions[row] as usize + 1).div_ceil(SPLIT);
    let pages = |row: usize, split: usize| {
        let end = (f.positions[row] as usize / PAGE + 1).min((split + 1) * PAGES);
        let first = f.row_pages[row] as usize;
        &f.pages[first + split * PAGES..first + end]
    };
    let most = (0..n_rows).map(n_splits).max().unwrap_or(0);
    let n_pieces = (0..n_rows).map(n_splits).sum();
    let Sharing { group_of, groups, by_page, .. } = sharing;
    group_of.clear();
    groups.clear();
    host::reserve(group_of, n_pieces)?;
    host::reserve(groups, n_pieces)?;
    by_page.clear();
    by_page.try_reserve(n_rows).map_err(|_| host::refused(16 * n_rows as u64, "the groups of a step"))?;
    for split in 0..most {
        by_page.clear();
        for row in (0..n_rows).filter(|&row| split < n_splits(row)) {
            let own = pages(row, split);
            let last = own[own.len() - 1];
            let mut at = by_page.get(&last).copied().unwrap_or(NONE);
            while at != NONE {
                #[cfg(test)]
                {
                    sharing.n_compared += own.len();
                }
                if pages(groups[at as usize].row as usize, split) == own {
                    break;
                }
                at = groups[at as usize].alike;
            }
            if at == NONE {
                at = groups.len() as u32;
                let alike = by_page.insert(last, at).unwrap_or(NONE);
                groups.push(Group { split: split as u32, row: row as u32, n_rows: 0, next: 0, alike });
            }
            groups[at as usize].n_rows += 1;
            group_of.push(at);
        }
    }
    let widest = groups.iter().map(|g| g.n_rows as usize).max().unwrap_or(1);
    let columns = (widest * group).next_power_of_two().clamp(8, 32);

    f.items.clear();
    f.item_rows.clear();
    host::reserve(&mut f.items, n_pieces)?;
    host::reserve(&mut f.item_rows, n_pieces)?;
    let mut first = 0;
    for g in groups.iter_mut() {
        g.next = first;
        let (end, step) = (first + g.n_rows, (columns / group) as u32);
        while first < end {
            let count = step.min(end - first);
            f.items.push(Item { split: g.split, first, count, unused: 0 });
            first += count;
        }
    }
    f.item_rows.resize(n_pieces, 0);
    let mut piece = 0;
    for split in 0..most {
        for row in (0..n_rows).filter(|&row| split < (f.positions[row] as usize + 1).div_ceil(SPLIT)) {
            let g = &mut groups[group_of[piece] as usize];
            f.item_rows[g.next as usize] = row as u32;
            g.next += 1;
            piece += 1;
        }
    }
    Ok(columns)
}

fn list_tiles(f: &mut Facts, segments: &[(Range<usize>, usize)], group: usize) -> Result<()> {
    f.tiles.clear();
    for (rows, start) in segments {
        let step = TILE_COLUMNS / group;
        host::reserve(&mut f.tiles, rows.len().div_ceil(step))?;
        for row in rows.clone().step_by(step) {
            let count = (rows.end - row).min(step) as u32;
            let position = (start + row - rows.start) as u32;
            f.tiles.push(Tile { row: row as u32, count, position, pages: f.row_pages[row] });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Stream, below};

    const GROUP: usize = 2;

    /// The grouping as a definition: each row is held against every group of its split.
    fn listed_by_comparing(f: &Facts, n_rows: usize) -> (Vec<Item>, Vec<u32>, usize) {
        const PAGES: usize = SPLIT / PAGE;
        let n_splits = |row: usize| (f.positions[row] as usize + 1).div_ceil(SPLIT);
        let pages = |row: usize, split: usize| {
            let end = (f.positions[row] as usize / PAGE + 1).min((split + 1) * PAGES);
            let first = f.row_pages[row] as usize;
            &f.pages[first + split * PAGES..first + end]
        };
        let mut parts: Vec<(usize, Vec<u32>)> = Vec::new();
        for split in 0..(0..n_rows).map(n_splits).max().unwrap_or(0) {
            let first = parts.len();
            for row in (0..n_rows).filter(|&row| split < n_splits(row)) {
                let same =
                    parts[first..].iter().position(|(_, rows)| pages(rows[0] as usize, split) == pages(row, split));
                match same {
                    Some(i) => parts[first + i].1.push(row as u32),
                    None => parts.push((split, vec![row as u32])),
                }
            }
        }
        let widest = parts.iter().map(|(_, rows)| rows.len()).max().unwrap_or(1);
        let columns = (widest * GROUP).next_power_of_two().clamp(8, 32);
        let (mut items, mut item_rows) = (Vec::new(), Vec::new());
        for (split, rows) in parts {
            for rows in rows.chunks(columns / GROUP) {
                let (split, first, count) = (split as u32, item_rows.len() as u32, rows.len() as u32);
                items.push(Item { split, first, count, unused: 0 });
                item_rows.extend_from_slice(rows);
            }
        }
        (items, item_rows, columns)
    }

    /// Rows of timelines that were forked from each other here and there, some from truncated ones.
    fn forks(seed: u64, n_rows: usize) -> Facts {
        let mut drawn = 0;
        let mut draw = |n: u64| {
            drawn += 1;
            below(Stream::World, &[seed, drawn], n)
        };
        let mut next = 1 << 20;
        let mut timelines: Vec<(Vec<Address>, u32)> = Vec::new();
        for _ in 0..n_rows {
            let position = draw(6 * SPLIT as u64) as u32;
            let n_pages = position as usize / PAGE + 1;
            let mut pages = match timelines.len() as u64 {
                0 => Vec::new(),
                n if draw(3) > 0 => timelines[draw(n) as usize].0.clone(),
                _ => Vec::new(),
            };
            pages.truncate(draw(n_pages as u64 + 1) as usize);
            while pages.len() < n_pages {
                next += 4096;
                pages.push(next);
            }
            // A timeline whose last page is another's though the pages before are not: never so in a cache.
            if draw(5) == 0
                && let Some((other, _)) = timelines.first()
            {
                pages[n_pages - 1] = other[other.len() - 1];
            }
            timelines.push((pages, position));
        }
        let mut f = Facts::default();
        for (pages, position) in timelines {
            f.positions.push(position);
            f.row_pages.push(f.pages.len() as u32);
            f.pages.extend(pages);
        }
        f
    }

    #[test]
    fn rows_that_hold_the_same_pages_are_listed_together_as_by_comparing_each_with_each() {
        let mut sharing = Sharing::default();
        for seed in 0..200 {
            let n_rows = 1 + seed as usize % MAX_DECODE_ROWS;
            let mut f = forks(seed, n_rows);
            let columns = list_items(&mut f, &mut sharing, n_rows, GROUP).unwrap();
            let (items, rows, wanted) = listed_by_comparing(&f, n_rows);
            assert_eq!((&f.items, &f.item_rows, columns), (&items, &rows, wanted), "seed {seed}");
        }
    }

    #[test]
    fn listing_compares_each_page_of_each_row_once_at_most() {
        for n_rows in [1, 8, 64] {
            for shared in [false, true] {
                // All rows hold one timeline's pages but for the last, or none that another holds.
                let position = 8 * SPLIT as u32 - 1;
                let n_pages = 8 * SPLIT / PAGE;
                let mut f = Facts::default();
                for row in 0..n_rows as u64 {
                    f.positions.push(position);
                    f.row_pages.push(f.pages.len() as u32);
                    let own = |page: usize| !shared || page == n_pages - 1;
                    f.pages.extend((0..n_pages).map(|p| 4096 * (1 + p as u64 + if own(p) { row << 32 } else { 0 })));
                }
                let mut sharing = Sharing::default();
                list_items(&mut f, &mut sharing, n_rows, GROUP).unwrap();
                assert!(sharing.n_compared <= n_rows * n_pages, "{} pages of {n_rows} rows", sharing.n_compared);
                assert_eq!(f.item_rows.len(), n_rows * 8);
            }
        }
    }
}
