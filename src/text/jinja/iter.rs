//! Iterators. What Python makes lazily (`map`, `select`, a loop's condition) is read lazily here too:
//! errors and effects come as late as there, and a second reading finds nothing.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::rc::Rc;

use super::dict::Dict;
use super::eval::Machine;
use super::value::{List, MAX_NESTING, Object, Range, Text, Value, View};
use super::{Failure, fail};

type Res<T> = Result<T, Failure>;

/// What a lazy iterator does to get its next item.
type Step = Box<dyn FnMut(&mut Machine<'_>) -> Res<Option<Value>>>;

enum State {
    Done,
    List(Rc<List>, usize),
    ListBack(Rc<List>, usize),
    Chars(Text, usize),
    CharsBack(Text, usize),
    Range(Range, u64),
    RangeBack(Range, u64),
    Entries(View, Rc<Dict>, usize),
    EntriesBack(View, Rc<Dict>, usize),
    Lazy(Step),
}

/// A Python iterator.
pub struct Iter {
    state: RefCell<State>,
    /// The name of its type in Python.
    pub kind: &'static str,
    pub depth: u32,
}

fn entry(view: View, dict: &Dict, n: usize) -> Res<Option<Value>> {
    dict.at(n)
        .map(|(key, value)| match view {
            View::Keys => Ok(key.clone()),
            View::Values => Ok(value.clone()),
            View::Items => Value::pair(key.clone(), value.clone()),
        })
        .transpose()
}

fn character(c: char) -> Value {
    let mut buffer = [0; 4];
    Value::Str(Text { text: (&*c.encode_utf8(&mut buffer)).into(), chars: 1, markup: false })
}

impl Iter {
    fn of(state: State, kind: &'static str, depth: u32) -> Rc<Iter> {
        Rc::new(Iter { state: RefCell::new(state), kind, depth })
    }

    /// A lazy iterator over something nested this deeply. Error: too many iterators over iterators.
    pub fn lazy(depth: u32, step: impl FnMut(&mut Machine<'_>) -> Res<Option<Value>> + 'static) -> Res<Rc<Iter>> {
        if depth >= MAX_NESTING {
            return Err(fail(format!(
                "iterators over iterators are nested more than {MAX_NESTING} deep; use |list between"
            )));
        }
        Ok(Iter::of(State::Lazy(Box::new(step)), "generator", depth + 1))
    }

    /// `reversed(value)`; None where Python refuses.
    pub fn back(value: &Value) -> Option<Rc<Iter>> {
        let (state, kind) = match value {
            Value::List(list) => (State::ListBack(list.clone(), list.items.len()), "list_reverseiterator"),
            Value::Tuple(list) => (State::ListBack(list.clone(), list.items.len()), "reversed"),
            Value::Range(range) => (State::RangeBack(**range, range.len()), "range_iterator"),
            Value::Dict(dict) => (State::EntriesBack(View::Keys, dict.clone(), dict.len()), "dict_reversekeyiterator"),
            Value::View(view, dict) => (State::EntriesBack(*view, dict.clone(), dict.len()), "dict_reverseiterator"),
            Value::Undefined(_) => (State::Done, "reversed"),
            Value::Str(text) => (State::CharsBack(text.clone(), text.text.len()), "reversed"),
            _ => return None,
        };
        Some(Iter::of(state, kind, value.depth()))
    }

    /// Puts items back that were read ahead.
    pub fn refill(&self, items: Vec<Value>) {
        let list = Rc::new(List { items, depth: self.depth, group: false });
        if let Ok(mut state) = self.state.try_borrow_mut() {
            *state = State::List(list, 0);
        }
    }

    /// The length where it is known without reading.
    fn known(&self) -> Option<usize> {
        match &*self.state.borrow() {
            State::List(list, n) => Some(list.items.len() - n),
            _ => None,
        }
    }
}

impl Machine<'_> {
    /// `iter(value)`. Error: not iterable.
    pub fn iterate(&mut self, value: &Value) -> Res<Rc<Iter>> {
        let (state, kind) = match value {
            Value::List(list) => (State::List(list.clone(), 0), "list_iterator"),
            Value::Tuple(list) => (State::List(list.clone(), 0), "tuple_iterator"),
            Value::Str(text) => (State::Chars(text.clone(), 0), "str_iterator"),
            Value::Range(range) => (State::Range(**range, 0), "range_iterator"),
            Value::Dict(dict) => (State::Entries(View::Keys, dict.clone(), 0), "dict_keyiterator"),
            Value::View(view, dict) => (State::Entries(*view, dict.clone(), 0), "dict_iterator"),
            Value::Undefined(_) => (State::Done, "generator"),
            Value::Iter(iter) => return Ok(iter.clone()),
            Value::Object(object) if matches!(**object, Object::Loop(_)) => {
                return Err(fail("iterating over loop itself is not supported here"));
            }
            other => return Err(fail(format!("'{}' object is not iterable", other.kind()))),
        };
        Ok(Iter::of(state, kind, value.depth()))
    }

    /// The next item.
    pub fn next(&mut self, iter: &Iter) -> Res<Option<Value>> {
        self.meter.step(1)?;
        let Ok(mut state) = iter.state.try_borrow_mut() else { return Err(fail("generator already executing")) };
        let item = match &mut *state {
            State::Done => None,
            State::List(list, n) => {
                *n += 1;
                list.items.get(*n - 1).cloned()
            }
            State::ListBack(list, n) if *n > 0 => {
                *n -= 1;
                list.items.get(*n).cloned()
            }
            State::Chars(text, n) => text.text[*n..].chars().next().map(|c| {
                *n += c.len_utf8();
                character(c)
            }),
            State::CharsBack(text, n) => text.text[..*n].chars().next_back().map(|c| {
                *n -= c.len_utf8();
                character(c)
            }),
            State::Range(range, n) if *n < range.len() => {
                *n += 1;
                Some(range.get(*n - 1))
            }
            State::RangeBack(range, n) if *n > 0 => {
                *n -= 1;
                Some(range.get(*n))
            }
            State::Entries(view, dict, n) => {
                *n += 1;
                entry(*view, dict, *n - 1)?
            }
            State::EntriesBack(view, dict, n) if *n > 0 => {
                *n -= 1;
                entry(*view, dict, *n)?
            }
            State::ListBack(..) | State::Range(..) | State::RangeBack(..) | State::EntriesBack(..) => None,
            State::Lazy(step) => {
                self.deeper()?;
                let item = step(self)?;
                self.back();
                item
            }
        };
        if item.is_none() {
            *state = State::Done;
        }
        Ok(item)
    }

    /// `list(value)`.
    pub fn collect(&mut self, value: &Value) -> Res<Vec<Value>> {
        if let Value::List(list) | Value::Tuple(list) = value {
            self.meter.elements(list.items.len())?;
            return Ok(list.items.clone());
        }
        let iter = self.iterate(value)?;
        let mut items = Vec::with_capacity(iter.known().unwrap_or(0));
        while let Some(item) = self.next(&iter)? {
            self.meter.elements(1)?;
            items.push(item);
        }
        Ok(items)
    }
}
