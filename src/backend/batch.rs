//! The rows of one forward pass: their tokens, their positions, and where their timelines' pages lie.
//!
//! On the CPU ops read it as it is. On a GPU it is also written to device memory once a step (`cuda::step`), and what
//! is launched depends on its *plan* alone: how many rows, how long a context, how many query columns share a page. A
//! graph recorded for a plan serves every batch of that plan.

use std::ops::Range;
use std::sync::Arc;

use super::Device;
use super::cuda::step::{Addresses, Capacity, Draw, Facts, Item, SPLIT, Step, Tile};
use super::ops::{Heads, Sampling};
use super::page::{PAGE, Page};
use crate::error::Result;

/// The most rows that decode together, and that the decode forms of the products take.
pub const MAX_DECODE_ROWS: usize = 64;

/// Query columns of one prefill tile on a GPU: rows times the heads that share keys.
pub const TILE_COLUMNS: usize = 64;

/// New rows of one timeline.
pub struct BatchSegment<'a> {
    /// Their tokens; -1 - j names what row j of the last decode step drew.
    pub ids: &'a [i32],
    /// Position of the first.
    pub start: usize,
    /// The timeline's pages, those of the new rows included.
    pub pages: &'a [Arc<Page>],
}

/// What decides which launches a batch needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    /// Rows that ops work on: those in use, on a GPU rounded up where they decode.
    pub rows: usize,
    /// Positions that attention reaches at most, rounded up.
    pub context: usize,
    /// Query columns that share what is read of a page: 8, 16 or 32.
    pub columns: usize,
    /// Whether each row is the newest position of a timeline of its own.
    pub decodes: bool,
}

impl Plan {
    /// One step of `n` rows on a GPU, of which the longest reaches `context` positions.
    pub fn of_decode(n: usize, context: usize) -> Plan {
        Plan { rows: n.next_power_of_two(), context: context_bucket(context), columns: 8, decodes: true }
    }
}

/// The rows of one forward pass.
pub struct Batch {
    facts: Facts,
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
        let capacity = Capacity { rows: 0, items: 0, tiles: 0, pages: 0 };
        Batch { facts: Facts::default(), segments: Vec::new(), plan, capacity, step: None, generation: 0 }
    }
}

impl Batch {
    /// Takes the rows of some segments, and how the token after each is drawn where that is wanted.
    pub fn set(
        &mut self,
        device: &Device,
        segments: &[BatchSegment],
        draws: &[(Sampling, f32)],
        heads: Heads,
    ) -> Result<()> {
        let f = &mut self.facts;
        f.ids.clear();
        f.positions.clear();
        self.segments.clear();
        for s in segments {
            let first = f.ids.len();
            f.ids.extend_from_slice(s.ids);
            f.positions.extend(s.start as u32..(s.start + s.ids.len()) as u32);
            self.segments.push((first..f.ids.len(), s.start));
        }
        let n = f.ids.len();
        let longest = segments.iter().map(|s| s.start + s.ids.len()).max().unwrap_or(0);
        let decodes = n > 0 && n <= MAX_DECODE_ROWS && segments.iter().all(|s| s.ids.len() == 1);
        self.plan = Plan { rows: n, context: longest, columns: 8, decodes };
        if let Device::Cuda(cuda) = device {
            f.draws.clear();
            f.draws.extend(draws.iter().map(|(s, u)| Draw {
                u: *u,
                temperature: s.temperature,
                top_p: s.top_p,
                top_k: s.top_k,
            }));
            let group = heads.n_heads / heads.n_kv_heads;
            list_pages(f, segments);
            f.items.clear();
            f.item_rows.clear();
            f.tiles.clear();
            if decodes {
                let columns = list_items(f, segments, group);
                self.plan = Plan { columns, ..Plan::of_decode(n, longest) };
            } else {
                list_tiles(f, &self.segments, group);
            }
            let plan = self.plan;
            let items = if decodes { plan.rows * plan.context.div_ceil(SPLIT) } else { 0 };
            let pages = if decodes { plan.rows * plan.context.div_ceil(PAGE) } else { f.pages.len() };
            self.capacity = Capacity { rows: plan.rows, items, tiles: f.tiles.len(), pages };
            if self.step.as_ref().is_none_or(|s| !s.holds(&self.capacity)) {
                self.step = Some(Step::new(cuda, &self.capacity)?);
                self.generation += 1;
            }
            if let Some(step) = &mut self.step {
                step.upload(&self.capacity, &self.facts)?;
            }
        }
        Ok(())
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

/// 1k, 4k, 16k, ...: the context of a recorded decode step.
fn context_bucket(context: usize) -> usize {
    let mut bucket = 1024;
    while bucket < context {
        bucket *= 4;
    }
    bucket
}

fn list_pages(f: &mut Facts, segments: &[BatchSegment]) {
    f.pages.clear();
    f.row_pages.clear();
    for s in segments {
        let first = f.pages.len() as u32;
        let n_pages = (s.start + s.ids.len()).div_ceil(PAGE);
        f.pages.extend(s.pages[..n_pages].iter().map(|p| p.elements().address()));
        f.row_pages.extend(std::iter::repeat_n(first, s.ids.len()));
    }
}

/// Lists the pieces of decode attention, rows with equal pages together. Returns the query columns of a piece.
fn list_items(f: &mut Facts, segments: &[BatchSegment], group: usize) -> usize {
    const PAGES: usize = SPLIT / PAGE;
    let n_splits = |row: usize| (f.positions[row] as usize + 1).div_ceil(SPLIT);
    let pages = |row: usize, split: usize| {
        let end = (f.positions[row] as usize / PAGE + 1).min((split + 1) * PAGES);
        let first = f.row_pages[row] as usize;
        &f.pages[first + split * PAGES..first + end]
    };
    let most = (0..segments.len()).map(n_splits).max().unwrap_or(0);
    let mut parts: Vec<(usize, Vec<u32>)> = Vec::new();
    for split in 0..most {
        let first = parts.len();
        for row in (0..segments.len()).filter(|&row| split < n_splits(row)) {
            let same = parts[first..].iter().position(|(_, rows)| pages(rows[0] as usize, split) == pages(row, split));
            match same {
                Some(i) => parts[first + i].1.push(row as u32),
                None => parts.push((split, vec![row as u32])),
            }
        }
    }
    let widest = parts.iter().map(|(_, rows)| rows.len()).max().unwrap_or(1);
    let columns = (widest * group).next_power_of_two().clamp(8, 32);
    for (split, rows) in parts {
        for rows in rows.chunks(columns / group) {
            let (split, first, count) = (split as u32, f.item_rows.len() as u32, rows.len() as u32);
            f.items.push(Item { split, first, count, unused: 0 });
            f.item_rows.extend_from_slice(rows);
        }
    }
    columns
}

fn list_tiles(f: &mut Facts, segments: &[(Range<usize>, usize)], group: usize) {
    for (rows, start) in segments {
        for row in rows.clone().step_by(TILE_COLUMNS / group) {
            let count = (rows.end - row).min(TILE_COLUMNS / group) as u32;
            let position = (start + row - rows.start) as u32;
            f.tiles.push(Tile { row: row as u32, count, position, pages: f.row_pages[row] });
        }
    }
}
