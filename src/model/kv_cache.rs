//! The KV cache of one timeline: reference-counted pages from a pool with a budget, copied on write.
//!
//! A fork shares all pages and costs one pointer a page; the page that both would write into is copied
//! when one of them does. Full pages are found by their ids (`prefixes`) and outlive their timelines while there is room; all
//! others return to the pool when the last timeline lets go of them.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::prefixes::{Ids, Prefixes};
use crate::backend::page::{PAGE, Page, PageShape};
use crate::backend::{Device, host};
use crate::error::{Error, Fault, Result};
use crate::sync::Mutex;

/// Where pages come from. Pages that exist never exceed the budget. Freed ones are kept for the next taker where making
/// one costs time, but no more of them than are in use, and a few.
pub struct KvPool {
    device: Device,
    shape: PageShape,
    budget: usize,
    /// idle pages that may be
    most_idle: usize,
    pages: Mutex<Pages>,
}

/// Pages that exist: those that timelines hold, those on their way to one, idle ones, and those that nobody holds.
struct Pages {
    existing: usize,
    free: Vec<Page>,
    prefixes: Prefixes,
}

impl Pages {
    fn in_use(&self) -> usize {
        self.existing - self.free.len() - self.prefixes.n_idle()
    }
}

/// Freed pages that are kept though fewer are in use: about those of a chunk of prefill.
const KEPT: usize = 16;

impl KvPool {
    /// A pool of pages of one shape that together take at most `budget_bytes`.
    pub fn new(device: &Device, shape: PageShape, budget_bytes: u64) -> Arc<KvPool> {
        KvPool::keeping(device, shape, budget_bytes, 0)
    }

    /// The same; full pages that no timeline holds any more stay for whoever asks for their ids, at most `idle_bytes` of them.
    pub fn keeping(device: &Device, shape: PageShape, budget_bytes: u64, idle_bytes: u64) -> Arc<KvPool> {
        let pages_of = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX) / shape.bytes().max(1);
        let pages = Mutex::new(Pages { existing: 0, free: Vec::new(), prefixes: Prefixes::default() });
        let (budget, most_idle) = (pages_of(budget_bytes), pages_of(idle_bytes));
        Arc::new(KvPool { device: device.clone(), shape, budget, most_idle, pages })
    }

    /// A number for new weights: what is computed under them is kept by it.
    pub fn new_root(&self) -> u64 {
        self.pages.lock().prefixes.new_root()
    }

    /// Frees what was computed under weights that are gone.
    pub fn forget(&self, root: u64) {
        let mut pages = self.pages.lock();
        let gone = pages.prefixes.forget(root);
        drop(pages);
        let n = gone.len();
        drop(gone);
        // They count until they are gone.
        self.pages.lock().existing -= n;
    }

    /// The pages' shape.
    pub fn shape(&self) -> PageShape {
        self.shape
    }

    /// Pages that timelines hold.
    pub fn pages_in_use(&self) -> usize {
        self.pages.lock().in_use()
    }

    /// Pages that no timeline holds and that are kept for whoever asks for their ids.
    pub fn pages_idle(&self) -> usize {
        self.pages.lock().prefixes.n_idle()
    }

    /// Bytes of the pages in use, of those that are idle, and of all that may exist.
    pub fn bytes(&self) -> [u64; 3] {
        let pages = self.pages.lock();
        [pages.in_use(), pages.prefixes.n_idle(), self.budget].map(|n| n as u64 * self.shape.bytes() as u64)
    }

    /// Pages that exist, in use or kept.
    pub fn pages_existing(&self) -> usize {
        self.pages.lock().existing
    }

    fn take(&self) -> Result<Page> {
        {
            let mut pages = self.pages.lock();
            if let Some(page) = pages.free.pop() {
                return Ok(page);
            }
            if pages.existing >= self.budget {
                if let Some(page) = pages.prefixes.give_up_oldest() {
                    return Ok(page);
                }
                let bytes = self.shape.bytes() as u64;
                let why = format!("the KV budget of {} pages of {bytes} bytes is used up", self.budget);
                return Err(Error::memory(Fault::KvBudget, bytes, 0, why));
            }
            pages.existing += 1;
        }
        // Made without the lock: it may take long.
        Page::new(&self.device, self.shape).inspect_err(|_| self.pages.lock().existing -= 1)
    }

    fn give_back(&self, page: Arc<Page>) {
        let mut pages = self.pages.lock();
        // Under the lock, so that what is idle is counted right.
        let page = match pages.prefixes.let_go(page) {
            Some(page) => page,
            None if pages.prefixes.n_idle() > self.most_idle => match pages.prefixes.give_up_oldest() {
                Some(page) => page,
                None => return,
            },
            None => return,
        };
        let in_use = pages.in_use() - 1;
        let most = if self.device.reuses_memory(self.shape.bytes()) { 0 } else { in_use.max(KEPT) };
        // As pages come back one by one, at most two are too many.
        let dropped = match pages.free.len() < most && pages.free.try_reserve(1).is_ok() {
            true => {
                pages.free.push(page);
                None
            }
            false => Some(page),
        };
        let spare = if pages.free.len() > most { pages.free.pop() } else { None };
        drop(pages);
        // They count until they are gone.
        let n = usize::from(dropped.is_some()) + usize::from(spare.is_some());
        drop((dropped, spare));
        self.pages.lock().existing -= n;
    }
}

/// Keys and values of positions `0..len()`.
pub struct KvCache {
    pool: Arc<KvPool>,
    pages: Vec<Arc<Page>>,
    len: usize,
    /// the nodes of the first pages, where their ids are known to the pool
    nodes: Vec<u64>,
}

impl KvCache {
    /// An empty cache.
    pub fn new(pool: &Arc<KvPool>) -> KvCache {
        KvCache { pool: pool.clone(), pages: Vec::new(), len: 0, nodes: Vec::new() }
    }

    /// Positions computed.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is computed.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pages, the last one perhaps partly filled.
    pub fn pages(&self) -> &[Arc<Page>] {
        &self.pages
    }

    /// The pages' shape.
    pub fn shape(&self) -> PageShape {
        self.pool.shape
    }

    /// A cache of the same positions that shares every page that holds one. Errors: `OutOfHostMemory` for the list of them.
    pub fn fork(&self) -> Result<KvCache> {
        // A page that is reserved but not yet written to stays this timeline's own: its next write copies nothing.
        let pages = host::collected(self.pages[..self.len.div_ceil(PAGE)].iter().cloned())?;
        let nodes = host::collected(self.nodes.iter().copied())?;
        Ok(KvCache { pool: self.pool.clone(), pages, len: self.len, nodes })
    }

    /// Forgets positions from `len` on, and every page reserved for later ones.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.nodes.truncate(self.len / PAGE);
        self.keep_pages(self.len.div_ceil(PAGE));
    }

    /// Tells the pool what its full pages were computed from: `ids`, under the weights of `root`. The pool may know them already,
    /// by another page.
    pub fn tell_ids(&mut self, root: u64, ids: &[i32]) {
        let full = self.len / PAGE;
        if self.nodes.len() >= full || self.nodes.try_reserve(full - self.nodes.len()).is_err() {
            return;
        }
        let mut pages = self.pool.pages.lock();
        for page in self.nodes.len()..full {
            let Some(own) = ids_of(ids, page) else { return };
            let before = self.nodes.last().copied().unwrap_or(root);
            self.nodes.push(pages.prefixes.add(root, before, own, &self.pages[page]));
        }
        pages.prefixes.touch(&self.nodes);
    }

    /// Takes pages that were computed from the next of `ids` under the weights of `root`, as far as they go and not beyond
    /// position `most`. Returns how many positions need no computing.
    pub fn adopt(&mut self, root: u64, ids: &[i32], most: usize) -> usize {
        let first = self.len / PAGE;
        if !self.may_adopt(most) {
            return 0;
        }
        let room = most / PAGE - first;
        if self.nodes.try_reserve(room).is_err() || self.pages.try_reserve(room).is_err() {
            return 0;
        }
        let mut found = Vec::new();
        let mut pages = self.pool.pages.lock();
        for page in first..most / PAGE {
            let before = self.nodes.last().copied().unwrap_or(root);
            if found.try_reserve(1).is_err() {
                break;
            }
            let Some((node, page)) = ids_of(ids, page).and_then(|own| pages.prefixes.find(before, own)) else { break };
            self.nodes.push(node);
            found.push(page);
        }
        if found.is_empty() {
            return 0;
        }
        pages.prefixes.touch(&self.nodes);
        drop(pages);
        // What is reserved for positions behind is asked for anew.
        self.keep_pages(first);
        let adopted = found.len() * PAGE;
        self.pages.extend(found);
        self.len += adopted;
        adopted
    }

    /// What the page that it computes next will be known by: what stands before, and its ids. None where not all of them are
    /// there, or what stands before is not known.
    pub fn next_page<'a>(&self, root: u64, ids: &'a [i32]) -> Option<(u64, &'a [i32])> {
        let page = self.len / PAGE;
        let own = ids_of(ids, page).filter(|_| self.nodes.len() == page)?;
        Some((self.nodes.last().copied().unwrap_or(root), own.as_slice()))
    }

    /// Whether it could take the next page whole, and not compute beyond position `most`.
    pub fn may_adopt(&self, most: usize) -> bool {
        self.nodes.len() * PAGE == self.len && self.len + PAGE <= most
    }

    fn keep_pages(&mut self, n: usize) {
        for page in self.pages.drain(n..) {
            self.pool.give_back(page);
        }
    }

    /// Pages that `reserve(n)` would take from the pool.
    pub fn lacking(&self, n: usize) -> usize {
        let shared = n > 0 && !self.len.is_multiple_of(PAGE) && {
            let page = &self.pages[self.len / PAGE];
            // The pool lets go of what one timeline alone holds.
            Arc::strong_count(page) > 1 + usize::from(self.pool.pages.lock().prefixes.has(page))
        };
        (self.len + n).div_ceil(PAGE).saturating_sub(self.pages.len()) + usize::from(shared)
    }

    /// Whether the budget holds `n` positions more when nobody else holds a page.
    pub fn fits_alone(&self, n: usize) -> bool {
        (self.len + n).div_ceil(PAGE) <= self.pool.budget
    }

    /// By what its pages are told from others.
    pub fn addresses(&self) -> impl Iterator<Item = usize> {
        self.pages.iter().map(|page| Arc::as_ptr(page) as usize)
    }

    /// Whether no other timeline holds some page of it.
    pub fn holds_a_page_alone(&self) -> bool {
        let pages = self.pool.pages.lock();
        self.pages.iter().any(|page| Arc::strong_count(page) == 1 + usize::from(pages.prefixes.has(page)))
    }

    /// Pages that the pool can still give.
    pub fn available(&self) -> usize {
        self.pool.budget.saturating_sub(self.pool.pages_in_use())
    }

    /// Makes room for `n` more positions and makes the pages they go to this timeline's own. On failure
    /// the positions and pages held are as before.
    pub fn reserve(&mut self, n: usize) -> Result<()> {
        let wanted = (self.len + n).div_ceil(PAGE);
        if n > 0 && !self.len.is_multiple_of(PAGE) {
            let last = self.len / PAGE;
            let is_own = Arc::get_mut(&mut self.pages[last]).is_some();
            if !is_own && !self.pool.pages.lock().prefixes.disown(&self.pages[last]) {
                let mut own = self.pool.take()?;
                own.copy_from(&self.pages[last]);
                let shared = std::mem::replace(&mut self.pages[last], Arc::new(own));
                self.pool.give_back(shared);
            }
        }
        let held = self.pages.len();
        host::reserve(&mut self.pages, wanted.saturating_sub(held))?;
        while self.pages.len() < wanted {
            match self.pool.take() {
                Ok(page) => self.pages.push(Arc::new(page)),
                Err(e) => {
                    self.keep_pages(held);
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// The pages; those of reserved positions have no other owner.
    pub fn pages_mut(&mut self) -> &mut [Arc<Page>] {
        &mut self.pages
    }

    /// Declares the reserved positions up to `len` computed.
    pub fn advance(&mut self, n: usize) {
        self.len += n;
        debug_assert!(self.pages.len() * PAGE >= self.len);
    }
}

/// The ids of a page, if all of them are there.
fn ids_of(ids: &[i32], page: usize) -> Option<&Ids> {
    ids.get(page * PAGE..)?.first_chunk()
}

impl Drop for KvCache {
    fn drop(&mut self) {
        self.truncate(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::tensor::Dtype;

    fn pool(pages: u64) -> Arc<KvPool> {
        let shape = PageShape { n_layers: 1, n_kv_heads: 1, head_dim: 4, dtype: Dtype::F32 };
        let device = Device::Cpu(Cpu::new(1, None).unwrap());
        KvPool::keeping(&device, shape, pages * shape.bytes() as u64, u64::MAX)
    }

    fn grow(kv: &mut KvCache, n: usize, mark: f32) -> Result<()> {
        kv.reserve(n)?;
        for pos in kv.len()..kv.len() + n {
            let at = kv.shape().key_offset(0, 0, pos % PAGE);
            let page = Arc::get_mut(&mut kv.pages_mut()[pos / PAGE]).unwrap();
            page.elements_mut().f32_mut()[at] = mark;
        }
        kv.advance(n);
        Ok(())
    }

    fn mark(kv: &KvCache, pos: usize) -> f32 {
        kv.pages()[pos / PAGE].elements().f32()[kv.shape().key_offset(0, 0, pos % PAGE)]
    }

    #[test]
    fn a_fork_shares_pages_and_leaves_its_parent_untouched() {
        let pool = pool(100);
        let mut parent = KvCache::new(&pool);
        grow(&mut parent, 2 * PAGE + 5, 1.0).unwrap();
        assert_eq!(pool.pages_in_use(), 3);
        let mut child = parent.fork().unwrap();
        assert_eq!(pool.pages_in_use(), 3);
        grow(&mut child, 3, 2.0).unwrap();
        assert_eq!(pool.pages_in_use(), 4, "one page was copied");
        grow(&mut parent, 3, 3.0).unwrap();
        assert_eq!(pool.pages_in_use(), 4, "the parent writes into its own page");
        assert_eq!((mark(&parent, 2 * PAGE + 5), mark(&child, 2 * PAGE + 5)), (3.0, 2.0));
        assert_eq!((mark(&parent, 7), mark(&child, 2 * PAGE + 4)), (1.0, 1.0));
        drop(parent);
        assert_eq!(pool.pages_in_use(), 3);
        drop(child);
        assert_eq!(pool.pages_in_use(), 0);
    }

    #[test]
    fn the_budget_is_a_refusal_that_changes_nothing() {
        let pool = pool(2);
        let mut kv = KvCache::new(&pool);
        grow(&mut kv, PAGE, 1.0).unwrap();
        let e = kv.reserve(2 * PAGE).unwrap_err();
        assert_eq!(e.fault(), Fault::KvBudget);
        assert_eq!(kv.len(), PAGE);
        assert_eq!(mark(&kv, 3), 1.0);
        assert_eq!(pool.pages_in_use(), 1, "what was taken before the refusal went back");
        grow(&mut kv, PAGE, 2.0).unwrap();
        kv.truncate(1);
        assert_eq!(pool.pages_in_use(), 1);
    }

    #[test]
    fn a_fork_does_not_share_pages_that_are_only_reserved() {
        let pool = pool(10);
        let mut parent = KvCache::new(&pool);
        grow(&mut parent, 5, 1.0).unwrap();
        parent.reserve(2 * PAGE).unwrap();
        let mut child = parent.fork().unwrap();
        grow(&mut child, 2 * PAGE, 2.0).unwrap();
        grow(&mut parent, 2 * PAGE, 3.0).unwrap();
        assert_eq!((mark(&parent, PAGE + 9), mark(&child, PAGE + 9)), (3.0, 2.0));
        parent.reserve(3 * PAGE).unwrap();
        parent.truncate(parent.len());
        assert_eq!(pool.pages_in_use(), 6);
    }

    #[test]
    fn truncating_a_shared_page_and_writing_again_copies_it() {
        let pool = pool(10);
        let mut a = KvCache::new(&pool);
        grow(&mut a, 2 * PAGE, 1.0).unwrap();
        let b = a.fork().unwrap();
        a.truncate(PAGE + 3);
        grow(&mut a, 2, 9.0).unwrap();
        assert_eq!((mark(&a, PAGE + 3), mark(&b, PAGE + 3)), (9.0, 1.0));
    }

    #[test]
    fn pages_that_exist_never_exceed_the_budget_however_many_threads_race_for_them() {
        const BUDGET: usize = 6;
        let pool = pool(BUDGET as u64);
        let running = std::sync::atomic::AtomicBool::new(true);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                while running.load(std::sync::atomic::Ordering::Relaxed) {
                    assert!(pool.pages_existing() <= BUDGET);
                }
            });
            let workers: Vec<_> = (0..8)
                .map(|i| {
                    let pool = &pool;
                    scope.spawn(move || {
                        for round in 0..2000 {
                            let mut kv = KvCache::new(pool);
                            match kv.reserve((1 + (i + round) % 3) * PAGE) {
                                Ok(()) => kv.advance(1),
                                Err(e) => assert_eq!(e.fault(), Fault::KvBudget),
                            }
                        }
                    })
                })
                .collect();
            workers.into_iter().for_each(|w| w.join().unwrap());
            running.store(false, std::sync::atomic::Ordering::Relaxed);
            watcher.join().unwrap();
        });
        assert_eq!(pool.pages_in_use(), 0);
        let mut kv = KvCache::new(&pool);
        kv.reserve(BUDGET * PAGE).unwrap();
        assert_eq!(pool.pages_existing(), BUDGET, "none was lost");
    }

    #[test]
    fn freed_pages_are_kept_for_the_next_taker_but_not_all_of_them() {
        let pool = pool(1000);
        let mut kv = KvCache::new(&pool);
        kv.reserve(200 * PAGE).unwrap();
        kv.truncate(0);
        assert_eq!((pool.pages_in_use(), pool.pages_existing()), (0, KEPT));
        kv.reserve(KEPT * PAGE).unwrap();
        assert_eq!(pool.pages_existing(), KEPT, "the kept ones were taken");
        let mut other = KvCache::new(&pool);
        other.reserve(100 * PAGE).unwrap();
        kv.truncate(0);
        assert_eq!((pool.pages_in_use(), pool.pages_existing()), (100, 100 + KEPT));
        drop(other);
        assert_eq!((pool.pages_in_use(), pool.pages_existing()), (0, KEPT));
    }
}
