//! Pages of KV by what they were computed from: a tree whose roots are revisions of the weights, and whose links are the ids of a
//! page. Who asks for ids that somebody has computed under the same weights finds their pages, compared id by id.
//!
//! The tree holds a page beside the timelines that do. One that no timeline holds is idle: it stays for whoever asks for its ids
//! next, until others need its memory or there are more of them than may be; the one that was asked for the longest ago goes
//! first, and of one timeline's the last.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::backend::page::{PAGE, Page};

/// The ids of a page.
pub(super) type Ids = [i32; PAGE];

/// What a page was computed from: everything before it, and its own ids.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Link {
    /// the node before it, or the root
    before: u64,
    ids: Ids,
}

struct Node {
    page: Arc<Page>,
    link: Link,
    root: u64,
    /// when it was asked for
    used: u64,
}

/// The tree.
#[derive(Default)]
pub(super) struct Prefixes {
    nodes: HashMap<u64, Node>,
    by_link: HashMap<Link, u64>,
    /// the node of each page, by its address
    by_page: HashMap<usize, u64>,
    /// nodes whose page no timeline holds, by when they were asked for
    idle: BTreeMap<u64, u64>,
    /// of nodes and roots
    last_number: u64,
    clock: u64,
}

fn address(page: &Arc<Page>) -> usize {
    Arc::as_ptr(page) as usize
}

impl Prefixes {
    /// A number for new weights, whose pages are nobody else's.
    pub(super) fn new_root(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Pages that no timeline holds.
    pub(super) fn n_idle(&self) -> usize {
        self.idle.len()
    }

    /// Whether the tree holds the page too.
    pub(super) fn has(&self, page: &Arc<Page>) -> bool {
        self.by_page.contains_key(&address(page))
    }

    /// The node of these ids behind `before`, with one hold on its page more.
    pub(super) fn find(&mut self, before: u64, ids: &Ids) -> Option<(u64, Arc<Page>)> {
        let number = *self.by_link.get(&Link { before, ids: *ids })?;
        let Node { page, used, .. } = self.nodes.get(&number)?;
        self.idle.remove(used);
        Some((number, page.clone()))
    }

    /// Notes that the nodes of a timeline, in order, were asked for now. A node whose page is another than the timeline's may be
    /// idle.
    pub(super) fn touch(&mut self, nodes: &[u64]) {
        for number in nodes.iter().rev() {
            if let Some(node) = self.nodes.get_mut(number) {
                self.clock += 1;
                if self.idle.remove(&node.used).is_some() {
                    self.idle.insert(self.clock, *number);
                }
                node.used = self.clock;
            }
        }
    }

    /// Holds a timeline's page under its ids behind `before`. Where these ids are there already it is another page's node.
    pub(super) fn add(&mut self, root: u64, before: u64, ids: &Ids, page: &Arc<Page>) -> u64 {
        let link = Link { before, ids: *ids };
        if let Some(&number) = self.by_link.get(&link) {
            return number;
        }
        let number = self.new_root();
        self.clock += 1;
        self.by_link.insert(link, number);
        self.by_page.insert(address(page), number);
        self.nodes.insert(number, Node { page: page.clone(), link, root, used: self.clock });
        number
    }

    /// A timeline lets go of a page. The page comes back where nobody else holds it.
    pub(super) fn let_go(&mut self, page: Arc<Page>) -> Option<Page> {
        let node = self.by_page.get(&address(&page)).and_then(|number| Some((*number, self.nodes.get(number)?.used)));
        // The tree's own hold, and the one that goes.
        if let Some((number, used)) = node.filter(|_| Arc::strong_count(&page) == 2) {
            self.idle.insert(used, number);
        }
        Arc::into_inner(page)
    }

    /// Lets go of a page that one timeline holds beside the tree, so that it may write into it; whether it may.
    pub(super) fn disown(&mut self, page: &Arc<Page>) -> bool {
        let number = self.by_page.get(&address(page)).copied();
        let Some(number) = number.filter(|_| Arc::strong_count(page) == 2) else { return false };
        self.remove(number).is_some()
    }

    fn remove(&mut self, number: u64) -> Option<Arc<Page>> {
        let Node { page, link, used, .. } = self.nodes.remove(&number)?;
        self.by_link.remove(&link);
        self.by_page.remove(&address(&page));
        self.idle.remove(&used);
        Some(page)
    }

    /// Gives up the idle page that was asked for the longest ago.
    pub(super) fn give_up_oldest(&mut self) -> Option<Page> {
        let (_, &oldest) = self.idle.first_key_value()?;
        self.remove(oldest).and_then(Arc::into_inner)
    }

    /// Gives up all that was computed under weights that are gone. Pages that nobody holds come back.
    pub(super) fn forget(&mut self, root: u64) -> Vec<Page> {
        let of_root = self.nodes.iter().filter(|(_, node)| node.root == root).map(|(number, _)| *number);
        let of_root: Vec<u64> = of_root.collect();
        of_root.into_iter().filter_map(|number| self.remove(number).and_then(Arc::into_inner)).collect()
    }
}
