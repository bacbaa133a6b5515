//! Byte-pair merging: a piece of text, byte by byte, merged in the order of the merges' ranks.
//!
//! The same steps as in Hugging Face's tokenizers, stale entries of the queue included, so that the
//! same ids come out where several merges make one token. Time is n log n in a piece's length, space 24 bytes for each of
//! its bytes.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasher, Hasher};

use super::watch::Watch;
use crate::error::{Error, Fault, Result};
use crate::memory;
use crate::random::mix;

/// A merge of two tokens: the ids of its parts, and of what it makes. Its rank is its place in the list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merge {
    pub(super) left: i32,
    pub(super) right: i32,
    pub(super) made: i32,
}

/// The merging of one vocabulary.
pub(super) struct Bpe {
    /// The id of each single byte; ABSENT where the vocabulary has none.
    byte_ids: Vec<i32>,
    /// By both ids of a pair: the rank of its merge, and what that makes.
    merges: HashMap<u64, (u32, i32), PairHash>,
    /// Pieces that are one token without any merging (`ignore_merges`).
    whole: HashMap<Vec<u8>, i32>,
    /// The parts of the tokens that text may be forbidden to make.
    parts: HashMap<i32, (i32, i32)>,
}

/// Space for the merging of a piece, kept between pieces.
#[derive(Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<(u32, u32, i32)>>,
}

/// Places are 32 bits, so that a piece that fills a long text takes no more memory than it must.
#[derive(Clone, Copy)]
struct Symbol {
    /// Below 0 once it was merged into the one before.
    id: i32,
    previous: u32,
    next: u32,
}

/// No symbol.
const NONE: u32 = u32::MAX;
/// The id of a symbol that is none any more.
const MERGED: i32 = -1;
/// The id of a byte without a token: it is left out before anything is merged, as in tokenizers.
pub(super) const ABSENT: i32 = -1;
/// Symbols for which space is kept.
const KEPT: usize = 1 << 16;
/// The longest piece, in bytes.
const MAX_PIECE: usize = NONE as usize - 1;
/// Merges between two looks at the watch.
const ASK_EVERY: u32 = 1 << 16;

impl Bpe {
    /// `byte_ids` has 256 entries. `special` are the ids that [`Bpe::encode`] takes apart again.
    pub(super) fn new(byte_ids: Vec<i32>, merges: &[Merge], whole: HashMap<Vec<u8>, i32>, special: &[bool]) -> Bpe {
        let mut table = HashMap::with_capacity_and_hasher(merges.len(), PairHash::new());
        let mut parts = HashMap::new();
        for (rank, merge) in merges.iter().enumerate() {
            // The list is bounded by the file's size; of two merges of one pair the last counts.
            table.insert(pair(merge.left, merge.right), (rank as u32, merge.made));
            if special.get(merge.made as usize) == Some(&true) {
                parts.entry(merge.made).or_insert((merge.left, merge.right));
            }
        }
        Bpe { byte_ids, merges: table, whole, parts }
    }

    /// Appends the ids of a piece, at most one for each of its bytes. Unless `special` are allowed, a special token that
    /// merging made is taken apart again into the two parts of its first merge.
    ///
    /// Errors: `OutOfHostMemory`; `BadLength` for a piece of 4 GiB; `Cancelled`.
    pub(super) fn encode(
        &self,
        piece: &[u8],
        special: bool,
        scratch: &mut Scratch,
        watch: &Watch,
        ids: &mut Vec<i32>,
    ) -> Result<()> {
        if let &[byte] = piece {
            memory::reserve(ids, 1, "the ids of a text")?;
            ids.extend(Some(self.byte_ids[usize::from(byte)]).filter(|&id| id != ABSENT));
            return Ok(());
        }
        if let Some(&id) = self.whole.get(piece) {
            memory::reserve(ids, piece.len(), "the ids of a text")?;
            self.push(id, special, ids);
            return Ok(());
        }
        self.merge(piece, scratch, watch)?;
        let alive = || scratch.symbols.iter().filter(|symbol| symbol.id >= 0);
        // Of a long piece it pays to count them.
        let most = if self.parts.is_empty() && piece.len() > KEPT { alive().count() } else { piece.len() };
        memory::reserve(ids, most, "the ids of a text")?;
        for symbol in alive() {
            self.push(symbol.id, special, ids);
        }
        if piece.len() > KEPT {
            *scratch = Scratch::default();
        }
        Ok(())
    }

    fn push(&self, id: i32, special: bool, ids: &mut Vec<i32>) {
        if special || self.parts.is_empty() {
            ids.push(id);
            return;
        }
        // Parts are shorter than what they make, so this ends.
        let mut todo = vec![id];
        while let Some(id) = todo.pop() {
            match self.parts.get(&id) {
                Some(&(left, right)) => todo.extend([right, left]),
                None => ids.push(id),
            }
        }
    }

    fn merge(&self, piece: &[u8], Scratch { symbols, queue }: &mut Scratch, watch: &Watch) -> Result<()> {
        if piece.len() > MAX_PIECE {
            let why = "the text has a piece of 4 GiB that the tokenizer does not cut; give it in parts";
            return Err(Error::new(Fault::BadLength, why));
        }
        symbols.clear();
        memory::reserve(symbols, piece.len(), "the tokenizer's symbols")?;
        let known = piece.iter().map(|&byte| self.byte_ids[usize::from(byte)]).filter(|&id| id != ABSENT);
        symbols.extend((0..).zip(known).map(|(at, id): (u32, i32)| Symbol {
            id,
            previous: if at > 0 { at - 1 } else { NONE },
            next: at + 1,
        }));
        let last = symbols.len().saturating_sub(1) as u32;
        if let Some(symbol) = symbols.last_mut() {
            symbol.next = NONE;
        }
        let merge_of = |left: i32, right: i32| self.merges.get(&pair(left, right)).copied();
        queue.clear();
        let reserved = queue.try_reserve(piece.len());
        reserved.map_err(|_| memory::refused(12 * piece.len(), "the tokenizer's queue"))?;
        queue.extend((0..last).filter_map(|at| {
            let (rank, made) = merge_of(symbols[at as usize].id, symbols[at as usize + 1].id)?;
            Some(Reverse((rank, at, made)))
        }));
        let mut unasked = ASK_EVERY;
        while let Some(Reverse((_, at, made))) = queue.pop() {
            unasked -= 1;
            if unasked == 0 {
                unasked = ASK_EVERY;
                watch.check()?;
            }
            let Symbol { id, previous, next } = symbols[at as usize];
            if id < 0 || next == NONE {
                continue;
            }
            let right = symbols[next as usize];
            // What stands here now may be another pair than the one that was queued.
            if merge_of(id, right.id).is_none_or(|(_, now)| now != made) {
                continue;
            }
            symbols[next as usize].id = MERGED;
            symbols[at as usize].id = made;
            symbols[at as usize].next = right.next;
            // Two more may come for the one that went.
            if queue.capacity() - queue.len() < 2 {
                let grown = queue.try_reserve(queue.len() / 2 + 2);
                grown.map_err(|_| memory::refused(queue.len() * 18, "the tokenizer's queue"))?;
            }
            if right.next != NONE {
                symbols[right.next as usize].previous = at;
                if let Some((rank, made)) = merge_of(made, symbols[right.next as usize].id) {
                    queue.push(Reverse((rank, at, made)));
                }
            }
            if previous != NONE
                && let Some((rank, made)) = merge_of(symbols[previous as usize].id, made)
            {
                queue.push(Reverse((rank, previous, made)));
            }
        }
        Ok(())
    }
}

fn pair(left: i32, right: i32) -> u64 {
    (left as u64) << 32 | u64::from(right as u32)
}

/// Hashes a pair of ids; the seed keeps a file from choosing pairs that collide.
#[derive(Clone)]
struct PairHash {
    seed: u64,
}

impl PairHash {
    fn new() -> PairHash {
        PairHash { seed: std::hash::RandomState::new().hash_one(0) }
    }
}

impl BuildHasher for PairHash {
    type Hasher = PairHasher;

    fn build_hasher(&self) -> PairHasher {
        PairHasher(self.seed)
    }
}

struct PairHasher(u64);

impl Hasher for PairHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u64(&mut self, pair: u64) {
        self.0 = mix(self.0 ^ pair);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
