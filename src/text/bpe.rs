//! Byte-pair merging: a piece of text, byte by byte, merged in the order of the merges' ranks.
//!
//! The same steps as in Hugging Face's tokenizers, stale entries of the queue included, so that the
//! same ids come out where several merges make one token. Time is n log n in a piece's length.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasher, Hasher};

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
    /// The id of each single byte.
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
    queue: BinaryHeap<Reverse<(u32, usize, i32)>>,
}

#[derive(Clone, Copy)]
struct Symbol {
    id: i32,
    /// False once it was merged into the one before.
    alive: bool,
    previous: usize,
    next: usize,
}

/// No symbol.
const NONE: usize = usize::MAX;

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

    /// Appends the ids of a piece. Unless `special` are allowed, a special token that merging made is
    /// taken apart again into the two parts of its first merge.
    pub(super) fn encode(&self, piece: &[u8], special: bool, scratch: &mut Scratch, ids: &mut Vec<i32>) {
        if let &[byte] = piece {
            ids.push(self.byte_ids[usize::from(byte)]);
            return;
        }
        if let Some(&id) = self.whole.get(piece) {
            self.push(id, special, ids);
            return;
        }
        self.merge(piece, scratch);
        for symbol in scratch.symbols.iter().filter(|symbol| symbol.alive) {
            self.push(symbol.id, special, ids);
        }
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

    fn merge(&self, piece: &[u8], Scratch { symbols, queue }: &mut Scratch) {
        symbols.clear();
        let last = piece.len().saturating_sub(1);
        symbols.extend(piece.iter().enumerate().map(|(at, &byte)| Symbol {
            id: self.byte_ids[usize::from(byte)],
            alive: true,
            previous: at.wrapping_sub(1),
            next: if at < last { at + 1 } else { NONE },
        }));
        let merge_of = |left: i32, right: i32| self.merges.get(&pair(left, right)).copied();
        queue.clear();
        for at in 0..last {
            if let Some((rank, made)) = merge_of(symbols[at].id, symbols[at + 1].id) {
                queue.push(Reverse((rank, at, made)));
            }
        }
        while let Some(Reverse((_, at, made))) = queue.pop() {
            let Symbol { id, alive, previous, next } = symbols[at];
            if !alive || next == NONE {
                continue;
            }
            let right = symbols[next];
            // What stands here now may be another pair than the one that was queued.
            if merge_of(id, right.id).is_none_or(|(_, now)| now != made) {
                continue;
            }
            symbols[next].alive = false;
            symbols[at].id = made;
            symbols[at].next = right.next;
            if right.next != NONE {
                symbols[right.next].previous = at;
                if let Some((rank, made)) = merge_of(made, symbols[right.next].id) {
                    queue.push(Reverse((rank, at, made)));
                }
            }
            if previous != NONE
                && let Some((rank, made)) = merge_of(symbols[previous].id, made)
            {
                queue.push(Reverse((rank, previous, made)));
            }
        }
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
