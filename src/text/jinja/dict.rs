//! Python's dict: in the order of insertion, with keys that are equal as Python hashes them.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use num_bigint::BigInt;

use super::value::{Value, View, nesting};
use super::{Failure, Meter, fail, number};

/// From how many entries on an index is kept.
const INDEXED: usize = 12;
/// The most parts of a tuple that is a key.
const MAX_PARTS: u32 = 4096;

/// What makes a key equal to another: 1, 1.0 and True are one key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Key {
    None,
    Undefined,
    Int(i64),
    Big(BigInt),
    Float(u64),
    Str(Arc<str>),
    Tuple(Vec<Key>),
    /// An object, by its address while it lives.
    Object(usize),
}

impl Key {
    /// The key that a value is; its hashing is paid for. Error: it cannot be hashed.
    pub fn of(value: &Value, meter: &mut Meter) -> Result<Key, Failure> {
        Key::within(value, &mut { MAX_PARTS }, meter)
    }

    /// `left` bounds tuples that hold the same tuples over and over.
    fn within(value: &Value, left: &mut u32, meter: &mut Meter) -> Result<Key, Failure> {
        *left = left.checked_sub(1).ok_or_else(|| fail("a tuple is too large to be a key"))?;
        meter.step(1)?;
        match value {
            Value::Str(text) => meter.read(text.text.len())?,
            Value::Big(n) => meter.read(n.bits() as usize / 8)?,
            _ => {}
        }
        Ok(match value {
            Value::None => Key::None,
            Value::Undefined(_) => Key::Undefined,
            Value::Bool(b) => Key::Int(*b as i64),
            Value::Int(n) => Key::Int(*n),
            Value::Big(n) => Key::Big((**n).clone()),
            Value::Float(x) if x.is_finite() && x.fract() == 0.0 => match number::int(number::truncate(*x)) {
                Value::Int(n) => Key::Int(n),
                _ => Key::Big(number::truncate(*x)),
            },
            Value::Float(x) => Key::Float(x.to_bits()),
            Value::Str(text) => Key::Str(text.text.clone()),
            Value::Tuple(list) => {
                Key::Tuple(list.items.iter().map(|item| Key::within(item, left, meter)).collect::<Result<_, _>>()?)
            }
            Value::Range(range) => Key::Object(Rc::as_ptr(range) as usize),
            Value::Iter(iter) => Key::Object(Rc::as_ptr(iter) as usize),
            Value::Object(object) => Key::Object(Rc::as_ptr(object) as *const u8 as usize),
            Value::View(View::Values, dict) => Key::Object(Rc::as_ptr(dict) as usize),
            Value::List(_) | Value::Dict(_) | Value::View(..) => {
                return Err(fail(format!("unhashable type: '{}'", value.kind())));
            }
        })
    }
}

struct Entry {
    key: Key,
    name: Value,
    value: Value,
}

/// A dictionary.
#[derive(Default)]
pub struct Dict {
    entries: Vec<Entry>,
    index: HashMap<Key, usize>,
    depth: u32,
}

impl Dict {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn depth(&self) -> u32 {
        self.depth.max(1)
    }

    fn position(&self, key: &Key) -> Option<usize> {
        if self.entries.len() < INDEXED {
            return self.entries.iter().position(|entry| entry.key == *key);
        }
        self.index.get(key).copied()
    }

    pub fn get(&self, key: &Key) -> Option<&Value> {
        self.position(key).map(|n| &self.entries[n].value)
    }

    pub fn get_str(&self, name: &Arc<str>) -> Option<&Value> {
        if self.entries.len() < INDEXED {
            let same = |entry: &&Entry| matches!(&entry.key, Key::Str(key) if **key == **name);
            return self.entries.iter().find(same).map(|entry| &entry.value);
        }
        self.get(&Key::Str(name.clone()))
    }

    /// Adds an entry, or replaces the value of one. Errors: unhashable, nested too deeply.
    pub fn insert(&mut self, name: Value, value: Value, meter: &mut Meter) -> Result<(), Failure> {
        let key = Key::of(&name, meter)?;
        self.depth = self.depth.max(nesting([&name, &value])?);
        self.put(key, name, value);
        Ok(())
    }

    /// The same for a host's value, whose nesting its own parser bounds.
    pub fn insert_given(&mut self, name: &str, value: Value) {
        let name: Arc<str> = name.into();
        self.depth = self.depth.max(1 + value.depth());
        self.put(Key::Str(name.clone()), Value::str(name), value);
    }

    fn put(&mut self, key: Key, name: Value, value: Value) {
        if let Some(n) = self.position(&key) {
            self.entries[n].value = value;
            return;
        }
        self.entries.push(Entry { key, name, value });
        let n = self.entries.len();
        if n == INDEXED {
            self.index = self.entries.iter().enumerate().map(|(n, entry)| (entry.key.clone(), n)).collect();
        } else if n > INDEXED {
            self.index.insert(self.entries[n - 1].key.clone(), n - 1);
        }
    }

    /// The entry at a position in the order of insertion.
    pub fn at(&self, n: usize) -> Option<(&Value, &Value)> {
        self.entries.get(n).map(|entry| (&entry.name, &entry.value))
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Value, &Value)> + DoubleEndedIterator {
        self.entries.iter().map(|entry| (&entry.name, &entry.value))
    }

    /// The entries with their keys, for comparisons.
    pub fn keyed(&self) -> impl Iterator<Item = (&Key, &Value)> {
        self.entries.iter().map(|entry| (&entry.key, &entry.value))
    }

    pub fn copy(&self) -> Dict {
        let entries = self.entries.iter();
        let entries = entries.map(|e| Entry { key: e.key.clone(), name: e.name.clone(), value: e.value.clone() });
        Dict { entries: entries.collect(), index: self.index.clone(), depth: self.depth }
    }
}
