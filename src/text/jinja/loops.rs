//! The execution of loops.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::args::Args;
use super::ast::{For, Target};
use super::eval::Machine;
use super::exec::Flow;
use super::iter::Iter;
use super::scope::Cells;
use super::value::{Loop, Object, Value};
use super::{Failure, fail, repr};

type Res<T> = Result<T, Failure>;

impl Machine<'_> {
    pub fn for_loop(&mut self, of: &Arc<For>, cells: &Rc<Cells>) -> Res<Flow> {
        let iterable = self.eval(&of.iterable, cells)?;
        if of.recursive {
            let text = self.recursive_loop(of, cells.clone(), &iterable, 0)?;
            repr::print(&text, &mut self.out, &mut self.meter)?;
            self.within_output()?;
            return Ok(Flow::Next);
        }
        self.run_loop(of, cells, cells, &iterable, 0)
    }

    /// A recursive loop's function: its text.
    fn recursive_loop(&mut self, of: &Arc<For>, outer: Rc<Cells>, iterable: &Value, depth0: usize) -> Res<Value> {
        self.called()?;
        self.meter.elements(of.slots)?;
        let cells = Cells::new(of.slots, Some(outer.clone()));
        let saved = std::mem::take(&mut self.out);
        self.run_loop(of, &cells, &outer, iterable, depth0)?;
        let text = std::mem::replace(&mut self.out, saved);
        self.calls -= 1;
        Ok(Value::str(text))
    }

    /// `loop(iterable)`.
    pub fn call_loop(&mut self, looped: &Loop, args: Args) -> Res<Value> {
        let [iterable] = args.bind("loop", ["iterable"], 1)?;
        if !looped.of.recursive {
            return Err(fail("The loop must have the 'recursive' marker to be called recursively."));
        }
        let line = self.line;
        let of = looped.of.clone();
        let text =
            self.recursive_loop(&of, looped.cells.clone(), &iterable.unwrap_or(Value::None), looped.depth0 + 1)?;
        self.line = line;
        Ok(text)
    }

    /// The items of a loop: its iterable's, or those of them that its condition lets through.
    fn loop_source(&mut self, of: &Arc<For>, outer: &Rc<Cells>, iterable: &Value) -> Res<Rc<Iter>> {
        let iter = self.iterate(iterable)?;
        if of.test.is_none() {
            return Ok(iter);
        }
        let of = of.clone();
        let outer = outer.clone();
        let mut cells: Option<Rc<Cells>> = None;
        Iter::lazy(iter.depth, move |machine| {
            let Some(test) = &of.test else { return Ok(None) };
            let cells = match &mut cells {
                Some(cells) => cells,
                none => {
                    let new = Cells::new(test.slots, Some(outer.clone()));
                    machine.enter(&test.scope, &new)?;
                    none.insert(new)
                }
            };
            while let Some(item) = machine.next(&iter)? {
                machine.assign(&test.target, item.clone(), cells, false)?;
                if machine.eval(&test.condition, cells)?.truth() {
                    return repacked(&test.target, &item, cells).map(Some);
                }
            }
            Ok(None)
        })
    }

    fn run_loop(
        &mut self,
        of: &Arc<For>,
        cells: &Rc<Cells>,
        outer: &Rc<Cells>,
        iterable: &Value,
        depth0: usize,
    ) -> Res<Flow> {
        let source = self.loop_source(of, outer, iterable)?;
        let looped = match of.looped {
            None => None,
            Some(_) => {
                let length = if of.test.is_some() { None } else { self.length(iterable).ok() };
                Some(Rc::new(Object::Loop(Loop {
                    of: of.clone(),
                    depth: source.depth + 1,
                    source: source.clone(),
                    length: Cell::new(length),
                    index0: Cell::new(-1),
                    depth0,
                    after: RefCell::new(None),
                    current: RefCell::new(None),
                    before: RefCell::new(None),
                    changed: RefCell::new(None),
                    cells: outer.clone(),
                })))
            }
        };
        let mut unbroken = true;
        loop {
            let item = match looped.as_deref() {
                Some(Object::Loop(looped)) => self.advance(looped)?,
                _ => self.next(&source)?,
            };
            let Some(item) = item else { break };
            self.assign(&of.target, item, cells, false)?;
            if let (Some(slot), Some(looped)) = (of.looped, &looped) {
                cells.set(slot, Some(Value::Object(looped.clone())));
            }
            self.enter(&of.scope, cells)?;
            match self.body(&of.body, cells)? {
                Flow::Next => unbroken = false,
                Flow::Continue => {}
                Flow::Break => break,
            }
        }
        if !of.recursive || !of.otherwise.is_empty() {
            self.leave(&of.scope, cells);
        }
        // Who keeps the loop may have made it part of a cycle.
        if let Some(looped) = looped.filter(|looped| Rc::strong_count(looped) > 1) {
            self.kept_objects.push(looped);
        }
        // jinja2 marks the loop as run at the end of a body, which continue and break do not reach.
        if unbroken && !of.otherwise.is_empty() {
            self.enter(&of.otherwise_scope, cells)?;
            let flow = self.body(&of.otherwise, cells)?;
            self.leave(&of.otherwise_scope, cells);
            return Ok(flow);
        }
        Ok(Flow::Next)
    }

    fn advance(&mut self, looped: &Loop) -> Res<Option<Value>> {
        let ahead = looped.after.take();
        let item = match ahead {
            Some(item) => Some(item),
            None => self.next(&looped.source)?,
        };
        if let Some(item) = &item {
            looped.index0.set(looped.index0.get() + 1);
            let current = looped.current.replace(Some(item.clone()));
            *looped.before.borrow_mut() = current;
        }
        Ok(item)
    }
}

/// The item as a loop's condition hands it on: what was unpacked, as a tuple again.
fn repacked(target: &Target, item: &Value, cells: &Cells) -> Res<Value> {
    match target {
        Target::Name(_, slot) => Ok(cells.get(*slot).unwrap_or_else(|| item.clone())),
        Target::Attribute(..) => Ok(item.clone()),
        Target::Tuple(items) => Value::tuple(items.iter().map(|part| repacked(part, item, cells)).collect::<Res<_>>()?),
    }
}
