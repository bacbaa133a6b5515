//! The evaluation of expressions.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use super::args::Args;
use super::ast::{Applied, Arguments, Call, Comparison, Const, Expr, Name, Slot, Unary};
use super::dict::Dict;
use super::scope::{Cells, Program};
use super::value::{Object, Text, Undefined, Value};
use super::{Failure, Meter, containers, fail, filters, globals, methods, operators, predicates, repr};

type Res<T> = Result<T, Failure>;

/// Nodes within nodes, over all calls that run: what bounds the stack.
const MAX_FRAMES: u32 = 900;

/// The variables that a template's functions look names up in.
#[derive(Default)]
pub struct Context {
    /// What the template set at its top level.
    pub set: RefCell<HashMap<Name, Value>>,
    /// What it was given.
    pub given: HashMap<Name, Value>,
}

impl Context {
    fn get(&self, name: &Name) -> Option<Value> {
        let set = self.set.borrow().get(name).cloned();
        set.or_else(|| self.given.get(name).cloned()).or_else(|| globals::named(name))
    }
}

/// A rendering that runs.
pub struct Machine<'t> {
    pub program: &'t Program,
    pub context: Rc<Context>,
    pub meter: Meter,
    /// Macro calls that run, and how many may.
    pub calls: usize,
    pub most_calls: usize,
    frames: u32,
    pub out: String,
    pub most_output: usize,
    pub line: u32,
    /// The body of the filter block that is being filtered.
    pub filtered: Option<Text>,
    /// What may be part of a cycle, to be emptied at the end.
    pub kept_cells: Vec<Rc<Cells>>,
    pub kept_objects: Vec<Rc<Object>>,
}

impl<'t> Machine<'t> {
    pub fn new(program: &'t Program, context: Context, meter: Meter, most_calls: usize, most_output: usize) -> Self {
        Machine {
            program,
            context: Rc::new(context),
            meter,
            calls: 0,
            most_calls,
            frames: 0,
            out: String::new(),
            most_output,
            line: 0,
            filtered: None,
            kept_cells: Vec::new(),
            kept_objects: Vec::new(),
        }
    }

    /// The variable of this name, as a function finds it where its scope is entered.
    pub fn resolve(&self, name: &Name) -> Option<Value> {
        self.context.get(name)
    }

    /// Goes one node deeper. Error: too deep for the stack.
    pub fn deeper(&mut self) -> Res<()> {
        self.meter.step(1)?;
        self.frames += 1;
        if self.frames > MAX_FRAMES {
            return Err(fail("maximum recursion depth exceeded: calls and expressions are nested too deeply"));
        }
        Ok(())
    }

    pub fn back(&mut self) {
        self.frames -= 1;
    }

    pub fn eval(&mut self, expr: &Expr, cells: &Rc<Cells>) -> Res<Value> {
        match expr {
            Expr::Const(constant) => {
                self.meter.step(1)?;
                Ok(constant_value(constant))
            }
            Expr::Name(name, slot) => {
                self.meter.step(1)?;
                Ok(name_value(name, *slot, cells))
            }
            _ => {
                self.deeper()?;
                let value = self.compound(expr, cells)?;
                self.back();
                Ok(value)
            }
        }
    }

    fn compound(&mut self, expr: &Expr, cells: &Rc<Cells>) -> Res<Value> {
        match expr {
            Expr::Attribute(of, name) => {
                let of = self.eval(of, cells)?;
                self.attribute(&of, name)
            }
            Expr::Item(both) => {
                let of = self.eval(&both.0, cells)?;
                let key = self.eval(&both.1, cells)?;
                self.item(&of, &key)
            }
            Expr::Binary(op, both) => {
                let left = self.eval(&both.0, cells)?;
                let right = self.eval(&both.1, cells)?;
                operators::binary(*op, &left, &right, &mut self.meter)
            }
            Expr::And(both) => {
                let left = self.eval(&both.0, cells)?;
                if left.truth() { self.eval(&both.1, cells) } else { Ok(left) }
            }
            Expr::Or(both) => {
                let left = self.eval(&both.0, cells)?;
                if left.truth() { Ok(left) } else { self.eval(&both.1, cells) }
            }
            Expr::Unary(op, of) => {
                let of = self.eval(of, cells)?;
                match op {
                    Unary::Not => Ok(Value::Bool(!of.truth())),
                    Unary::Plus => operators::signed(&of, false, &mut self.meter),
                    Unary::Minus => operators::signed(&of, true, &mut self.meter),
                }
            }
            Expr::Compare(first, rest) => self.compare(first, rest, cells),
            Expr::Call(call) => self.call_expression(call, cells),
            Expr::Filter(applied) => self.filter(applied, cells),
            Expr::Test(applied) => self.test(applied, cells),
            _ => self.literal(expr, cells),
        }
    }

    #[inline(never)]
    fn literal(&mut self, expr: &Expr, cells: &Rc<Cells>) -> Res<Value> {
        match expr {
            Expr::Const(constant) => Ok(constant_value(constant)),
            Expr::Name(name, slot) => Ok(name_value(name, *slot, cells)),
            Expr::Tuple(items) => {
                let items = self.eval_all(items, cells)?;
                Value::tuple(items)
            }
            Expr::List(items) => {
                let items = self.eval_all(items, cells)?;
                Value::list(items)
            }
            Expr::Dict(items) => {
                self.meter.elements(items.len() * 2)?;
                let mut dict = Dict::default();
                for (key, value) in items {
                    let key = self.eval(key, cells)?;
                    let value = self.eval(value, cells)?;
                    dict.insert(key, value, &mut self.meter)?;
                }
                Ok(Value::Dict(Rc::new(dict)))
            }
            Expr::Concat(items) => {
                let mut text = String::new();
                for item in items {
                    let item = self.eval(item, cells)?;
                    repr::print(&item, &mut text, &mut self.meter)?;
                }
                Ok(Value::str(text))
            }
            Expr::Conditional(parts, line) => {
                if self.eval(&parts.0, cells)?.truth() {
                    return self.eval(&parts.1, cells);
                }
                match &parts.2 {
                    Some(otherwise) => self.eval(otherwise, cells),
                    None => Ok(Value::undefined(format!(
                        "the inline if-expression on line {line} evaluated to false and no else section was defined."
                    ))),
                }
            }
            Expr::Slice(parts) => {
                let of = self.eval(&parts.0, cells)?;
                let mut bounds = [None, None, None];
                for (bound, part) in bounds.iter_mut().zip(&parts.1) {
                    if let Some(part) = part {
                        *bound = Some(self.eval(part, cells)?);
                    }
                }
                operators::slice(&of, bounds, &mut self.meter)
            }
            _ => Err(fail("an expression of unknown kind")),
        }
    }

    fn eval_all(&mut self, items: &[Expr], cells: &Rc<Cells>) -> Res<Vec<Value>> {
        self.meter.elements(items.len())?;
        items.iter().map(|item| self.eval(item, cells)).collect()
    }

    #[inline(never)]
    fn compare(&mut self, first: &Expr, rest: &[(Comparison, Expr)], cells: &Rc<Cells>) -> Res<Value> {
        let mut left = self.eval(first, cells)?;
        for (op, right) in rest {
            let right = self.eval(right, cells)?;
            if !self.holds(*op, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    /// Whether a comparison holds.
    pub fn holds(&mut self, op: Comparison, left: &Value, right: &Value) -> Res<bool> {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let meter = &mut self.meter;
        Ok(match op {
            Comparison::Equal => operators::equal(left, right, meter)?,
            Comparison::NotEqual => !operators::equal(left, right, meter)?,
            Comparison::Less => operators::order(left, right, "<", meter)? == Some(Less),
            Comparison::LessEqual => matches!(operators::order(left, right, "<=", meter)?, Some(Less | Equal)),
            Comparison::Greater => operators::order(left, right, ">", meter)? == Some(Greater),
            Comparison::GreaterEqual => matches!(operators::order(left, right, ">=", meter)?, Some(Greater | Equal)),
            Comparison::In => self.contains(right, left)?,
            Comparison::NotIn => !self.contains(right, left)?,
        })
    }

    /// `needle in hay`.
    pub fn contains(&mut self, hay: &Value, needle: &Value) -> Res<bool> {
        let Value::Iter(iter) = hay else { return operators::contains(hay, needle, &mut self.meter) };
        while let Some(item) = self.next(iter)? {
            if operators::equal(&item, needle, &mut self.meter)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// `of.name`: the attribute, else the item, else undefined.
    pub fn attribute(&mut self, of: &Value, name: &Name) -> Res<Value> {
        if let Some(value) = methods::attribute(self, of, name)? {
            return Ok(value);
        }
        match of {
            Value::Dict(dict) => {
                if let Some(value) = dict.get_str(name) {
                    return Ok(value.clone());
                }
            }
            Value::Object(object) if matches!(**object, Object::Template) => {
                if let Some(block) = self.block_named(name)? {
                    return Ok(block);
                }
            }
            Value::Undefined(undefined) => return Err(fail(undefined.message())),
            _ => {}
        }
        Ok(missing(of, Value::str(name.clone())))
    }

    /// `of[key]`: the item, else the attribute, else undefined.
    pub fn item(&mut self, of: &Value, key: &Value) -> Res<Value> {
        if let Some(value) = operators::item(of, key, &mut self.meter)? {
            return Ok(value);
        }
        if let Value::Str(name) = key {
            if let Value::Object(object) = of
                && matches!(**object, Object::Template)
                && let Some(block) = self.block_named(&name.text)?
            {
                return Ok(block);
            }
            if let Some(value) = methods::attribute(self, of, &name.text)? {
                return Ok(value);
            }
        }
        Ok(missing(of, key.clone()))
    }

    fn block_named(&mut self, name: &str) -> Res<Option<Value>> {
        self.meter.step(self.program.blocks.len() as u64 / 8)?;
        let index = self.program.blocks.iter().position(|block| &*block.name == name);
        Ok(index.map(|index| Value::object(Object::Block(index))))
    }

    /// Evaluates arguments.
    pub fn arguments(&mut self, given: &Arguments, cells: &Rc<Cells>) -> Res<Args> {
        let mut args = Args { positional: self.eval_all(&given.positional, cells)?, named: Vec::new() };
        for (name, value) in &given.named {
            args.named.push((name.clone(), self.eval(value, cells)?));
        }
        if let Some(spread) = &given.spread {
            let spread = self.eval(spread, cells)?;
            args.positional.extend(self.collect(&spread)?);
        }
        if let Some(spread) = &given.spread_named {
            let Value::Dict(dict) = self.eval(spread, cells)? else {
                return Err(fail("argument after ** must be a mapping"));
            };
            self.meter.elements(4 * dict.len())?;
            let known: HashSet<Arc<str>> = args.named.iter().map(|(name, _)| name.clone()).collect();
            for (name, value) in dict.iter() {
                let Value::Str(name) = name else { return Err(fail("keywords must be strings")) };
                self.meter.read(name.text.len())?;
                if known.contains(&name.text) {
                    return Err(fail(format!("got multiple values for keyword argument '{}'", name.text)));
                }
                args.named.push((name.text.clone(), value.clone()));
            }
        }
        Ok(args)
    }

    #[inline(never)]
    fn call_expression(&mut self, call: &Call, cells: &Rc<Cells>) -> Res<Value> {
        let callee = self.eval(&call.callee, cells)?;
        let args = self.arguments(&call.arguments, cells)?;
        let line = std::mem::replace(&mut self.line, call.line);
        let value = self.call(&callee, args).map_err(|failure| self.at_line(failure))?;
        self.line = line;
        Ok(value)
    }

    /// Gives a failure the line that runs.
    pub fn at_line(&self, failure: Failure) -> Failure {
        if failure.line == 0 { Failure { line: self.line, ..failure } } else { failure }
    }

    /// Calls a value.
    pub fn call(&mut self, callee: &Value, args: Args) -> Res<Value> {
        match callee {
            Value::Object(object) => match &**object {
                Object::Method { of, name, .. } => methods::call(self, of, name, args),
                Object::Global(global) => globals::call(self, *global, args),
                Object::Macro(of) => self.call_macro(of, args),
                Object::Loop(looped) => self.call_loop(looped, args),
                Object::Joiner { separator, used, .. } => {
                    args.plain::<0>("joiner", 0)?;
                    Ok(if used.replace(true) { separator.clone() } else { Value::str("") })
                }
                Object::Block(index) => {
                    args.plain::<0>("block", 0)?;
                    self.call_block(*index)
                }
                _ => Err(fail(format!("'{}' object is not callable", callee.kind()))),
            },
            Value::Undefined(undefined) => Err(fail(undefined.message())),
            other => Err(fail(format!("'{}' object is not callable", other.kind()))),
        }
    }

    #[inline(never)]
    fn filter(&mut self, applied: &Applied, cells: &Rc<Cells>) -> Res<Value> {
        let to = match &applied.to {
            Some(to) => self.eval(to, cells)?,
            None => self.filtered.take().map_or_else(|| Value::str(""), Value::Str),
        };
        let args = self.arguments(&applied.arguments, cells)?;
        self.line = applied.line;
        filters::apply(self, &applied.name, to, args).map_err(|failure| self.at_line(failure))
    }

    #[inline(never)]
    fn test(&mut self, applied: &Applied, cells: &Rc<Cells>) -> Res<Value> {
        let of = match &applied.to {
            Some(of) => self.eval(of, cells)?,
            None => Value::None,
        };
        let args = self.arguments(&applied.arguments, cells)?;
        self.line = applied.line;
        let held = predicates::apply(self, &applied.name, &of, args).map_err(|failure| self.at_line(failure))?;
        Ok(Value::Bool(held))
    }

    /// The length that Python's `len` gives.
    pub fn length(&mut self, of: &Value) -> Res<usize> {
        containers::length(self, of)
    }
}

fn constant_value(constant: &Const) -> Value {
    match constant {
        Const::None => Value::None,
        Const::Bool(b) => Value::Bool(*b),
        Const::Int(n) => Value::Int(*n),
        Const::Big(n) => Value::Big(Rc::new(n.clone())),
        Const::Float(x) => Value::Float(*x),
        Const::Str(text, chars) => Value::Str(Text { text: text.clone(), chars: *chars, markup: false }),
    }
}

fn name_value(name: &Arc<str>, slot: Slot, cells: &Cells) -> Value {
    cells.get(slot).unwrap_or_else(|| Value::Undefined(Rc::new(Undefined::Name(name.clone()))))
}

/// The undefined value of an attribute or item that is not there.
pub fn missing(of: &Value, name: Value) -> Value {
    Value::Undefined(Rc::new(Undefined::Missing { of: of.described(), name }))
}
