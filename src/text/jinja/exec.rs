//! The execution of statements: what jinja2's compiled functions do.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::args::Args;
use super::ast::{FilterBlock, Load, Macro as MacroTree, Scope, SetBlock, Slot, Stmt, Target, What, With};
use super::dict::Dict;
use super::eval::{Context, Machine};
use super::scope::{Cells, Program};
use super::value::{Macro, Object, Text, Value};
use super::{Failure, Limits, Meter, Watch, fail, repr};

type Res<T> = Result<T, Failure>;

/// How a list of statements ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Next,
    Break,
    Continue,
}

/// Renders a program.
pub fn render(program: &Program, variables: &[(&str, Value)], limits: &Limits, watch: &Watch) -> Res<String> {
    let given = variables.iter().map(|(name, value)| ((*name).into(), value.clone())).collect();
    let context = Context { given, ..Context::default() };
    let meter = Meter::new(limits, watch);
    let mut machine = Machine::new(program, context, meter, limits.depth, limits.output);
    let cells = Cells::new(program.slots, None);
    if let Some(slot) = program.reference {
        cells.set(slot, Some(Value::object(Object::Template)));
    }
    let result = machine.enter(&program.scope, &cells).and_then(|()| machine.body(&program.body, &cells));
    let result = result.map_err(|failure| machine.at_line(failure));
    machine.kept_cells.push(cells);
    machine.break_cycles();
    result?;
    Ok(machine.out)
}

impl Machine<'_> {
    /// Empties what may hold itself, so that everything is freed, one object at a time.
    fn break_cycles(&mut self) {
        self.context.set.borrow_mut().clear();
        for cells in &self.kept_cells {
            let slots = std::mem::take(&mut *cells.slots.borrow_mut());
            drop(slots);
        }
        for object in &self.kept_objects {
            match &**object {
                Object::Namespace(attributes) => drop(attributes.take()),
                Object::Loop(looped) => {
                    drop(looped.changed.take());
                    drop((looped.before.take(), looped.current.take(), looped.after.take()));
                }
                _ => {}
            }
        }
    }

    /// Keeps an object to be emptied at the end.
    pub fn keep(&mut self, object: Object) -> Rc<Object> {
        let object = Rc::new(object);
        self.kept_objects.push(object.clone());
        object
    }

    pub fn enter(&mut self, scope: &Scope, cells: &Rc<Cells>) -> Res<()> {
        self.meter.step(scope.loads.len() as u64 / 4)?;
        for load in &scope.loads {
            match load {
                Load::Resolve(slot, name) => cells.set(*slot, self.resolve(name)),
                Load::Alias(slot, from) => cells.set(*slot, cells.get(*from)),
                Load::Clear(slot) => cells.set(*slot, None),
            }
        }
        Ok(())
    }

    pub fn leave(&mut self, scope: &Scope, cells: &Rc<Cells>) {
        for slot in &scope.leave {
            cells.set(*slot, None);
        }
    }

    pub fn body(&mut self, body: &[Stmt], cells: &Rc<Cells>) -> Res<Flow> {
        for stmt in body {
            if let What::Data(text) = &stmt.what {
                self.meter.step(1)?;
                self.write(text)?;
                continue;
            }
            self.line = stmt.line;
            self.deeper()?;
            let flow = self.statement(stmt, cells).map_err(|failure| self.at_line(failure))?;
            self.back();
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn write(&mut self, text: &str) -> Res<()> {
        self.meter.take(text.len())?;
        self.out.push_str(text);
        self.within_output()
    }

    /// Writes what a filter or call block gives, which jinja2 does not turn into text.
    fn write_text(&mut self, value: &Value) -> Res<()> {
        match value {
            Value::Str(text) => self.write(&text.text),
            other => Err(fail(format!("sequence item 0: expected str instance, {} found", other.kind()))),
        }
    }

    pub fn within_output(&self) -> Res<()> {
        if self.out.len() > self.most_output {
            return Err(fail(format!("the rendering exceeds {} bytes", self.most_output)));
        }
        Ok(())
    }

    fn statement(&mut self, stmt: &Stmt, cells: &Rc<Cells>) -> Res<Flow> {
        match &stmt.what {
            What::Data(text) => self.write(text)?,
            What::Print(items) => {
                for item in items {
                    let value = self.eval(item, cells)?;
                    repr::print(&value, &mut self.out, &mut self.meter)?;
                    self.within_output()?;
                }
            }
            What::If(arms, otherwise) => {
                for (line, test, body) in arms {
                    self.line = *line;
                    if self.eval(test, cells)?.truth() {
                        return self.body(body, cells);
                    }
                }
                return self.body(otherwise, cells);
            }
            What::For(of) => return self.for_loop(of, cells),
            What::Set(target, value, exported) => {
                self.check_namespaces(target, cells)?;
                let value = self.eval(value, cells)?;
                self.assign(target, value, cells, *exported)?;
            }
            What::Break => return Ok(Flow::Break),
            What::Continue => return Ok(Flow::Continue),
            _ => return self.rare(stmt, cells),
        }
        Ok(Flow::Next)
    }

    #[inline(never)]
    fn rare(&mut self, stmt: &Stmt, cells: &Rc<Cells>) -> Res<Flow> {
        match &stmt.what {
            What::SetBlock(block) => return self.set_block(block, cells),
            What::FilterBlock(block) => return self.filter_block(block, cells),
            What::With(with) => return self.with(with, cells),
            What::Macro(of, slot, exported) => {
                let value = self.macro_value(of, cells);
                if let (Some(name), true) = (&of.name, exported) {
                    self.context.set.borrow_mut().insert(name.clone(), value.clone());
                }
                cells.set(*slot, Some(value));
            }
            What::CallBlock(of, call) => {
                let caller = self.macro_value(of, cells);
                let callee = self.eval(&call.callee, cells)?;
                let mut args = self.arguments(&call.arguments, cells)?;
                if args.named.iter().any(|(name, _)| &**name == "caller") {
                    return Err(fail("got multiple values for keyword argument 'caller'"));
                }
                args.named.push(("caller".into(), caller));
                let value = self.call(&callee, args)?;
                self.write_text(&value)?;
            }
            What::Generation(of) => {
                let of = Macro { of: of.clone(), cells: cells.clone() };
                let value = self.call_macro(&of, Args::default())?;
                repr::print(&value, &mut self.out, &mut self.meter)?;
                self.within_output()?;
            }
            What::Block { index, scoped, locals, .. } => {
                let saved = self.context.clone();
                if *scoped {
                    self.context = Rc::new(self.derived(locals, cells)?);
                }
                self.run_block(*index)?;
                self.context = saved;
            }
            _ => return Err(fail("a statement of unknown kind")),
        }
        Ok(Flow::Next)
    }

    fn derived(&mut self, locals: &[(super::ast::Name, Slot)], cells: &Rc<Cells>) -> Res<Context> {
        self.meter.elements(2 * (self.context.given.len() + self.context.set.borrow().len() + locals.len()))?;
        let mut given: HashMap<_, _> = self.context.given.clone();
        given.extend(self.context.set.borrow().iter().map(|(name, value)| (name.clone(), value.clone())));
        given.extend(locals.iter().filter_map(|(name, slot)| Some((name.clone(), cells.get(*slot)?))));
        Ok(Context { given, ..Context::default() })
    }

    fn run_block(&mut self, index: usize) -> Res<()> {
        let program = self.program;
        let Some(block) = program.blocks.get(index) else { return Err(fail("a block that is not there")) };
        if block.required {
            return Err(fail(format!("Required block '{}' not found", block.name)));
        }
        self.called()?;
        self.meter.elements(block.slots)?;
        let cells = Cells::new(block.slots, None);
        if let Some(slot) = block.reference {
            cells.set(slot, Some(Value::object(Object::Template)));
        }
        if let Some(slot) = block.parent {
            let hint = format!("there is no parent block called {}.", repr::quoted(&block.name));
            cells.set(slot, Some(Value::undefined(hint)));
        }
        self.enter(&block.scope, &cells)?;
        self.body(&block.body, &cells)?;
        self.calls -= 1;
        Ok(())
    }

    /// `self.name()`.
    pub fn call_block(&mut self, index: usize) -> Res<Value> {
        let saved = std::mem::take(&mut self.out);
        self.run_block(index)?;
        let text = std::mem::replace(&mut self.out, saved);
        Ok(Value::str(text))
    }

    pub fn called(&mut self) -> Res<()> {
        self.calls += 1;
        if self.calls > self.most_calls {
            return Err(fail(format!(
                "maximum recursion depth exceeded: more than {} calls within calls",
                self.most_calls
            )));
        }
        Ok(())
    }

    fn macro_value(&mut self, of: &Arc<MacroTree>, cells: &Rc<Cells>) -> Value {
        // The function's variables hold the macro, and the macro them.
        if self.kept_cells.last().is_none_or(|last| !Rc::ptr_eq(last, cells)) {
            self.kept_cells.push(cells.clone());
        }
        Value::object(Object::Macro(Macro { of: of.clone(), cells: cells.clone() }))
    }

    /// Calls a macro and returns its text.
    pub fn call_macro(&mut self, called: &Macro, args: Args) -> Res<Value> {
        let of = &called.of;
        let name = of.name.as_ref().map_or_else(|| "None".into(), |name| repr::quoted(name));
        let count = of.parameters.len();
        let Args { positional, mut named } = args;
        self.meter.elements(of.slots)?;
        // Each parameter is looked for among the names given.
        self.meter.step(count as u64 * named.len() as u64 / 8)?;
        let cells = Cells::new(of.slots, Some(called.cells.clone()));
        let given = positional.len().min(count);
        for ((_, slot), value) in of.parameters.iter().zip(&positional) {
            cells.set(*slot, Some(value.clone()));
        }
        let mut found_caller = given == count && of.parameters.iter().any(|(name, _)| &**name == "caller");
        let mut take = |name: &str| {
            let at = named.iter().position(|(given, _)| &**given == name)?;
            Some(named.remove(at).1)
        };
        for (name, slot) in &of.parameters[given..] {
            found_caller |= &**name == "caller";
            cells.set(*slot, take(name));
        }
        if of.accesses_caller && !found_caller {
            // None counts as no caller.
            let caller = take("caller").filter(|caller| !matches!(caller, Value::None));
            let caller = caller.unwrap_or_else(|| Value::undefined("No caller defined"));
            if let Some(slot) = of.caller {
                cells.set(slot, Some(caller));
            }
        }
        if let Some(slot) = of.named {
            let mut rest = Dict::default();
            for (name, value) in named {
                rest.insert(Value::str(name), value, &mut self.meter)?;
            }
            cells.set(slot, Some(Value::Dict(Rc::new(rest))));
        } else if let Some((keyword, _)) = named.first() {
            if named.iter().any(|(name, _)| &**name == "caller") {
                let why = "was invoked with two values for the special caller argument. This is most likely a bug.";
                return Err(fail(format!("macro {name} {why}")));
            }
            return Err(fail(format!("macro {name} takes no keyword argument {}", repr::quoted(keyword))));
        }
        if let Some(slot) = of.rest {
            cells.set(slot, Some(Value::tuple(positional.get(count..).unwrap_or_default().to_vec())?));
        } else if positional.len() > count {
            return Err(fail(format!("macro {name} takes not more than {count} argument(s)")));
        }
        self.run_macro(of, &cells)
    }

    fn run_macro(&mut self, of: &MacroTree, cells: &Rc<Cells>) -> Res<Value> {
        self.called()?;
        let line = self.line;
        let saved = std::mem::take(&mut self.out);
        self.enter(&of.scope, cells)?;
        let first_default = of.parameters.len() - of.defaults.len();
        for (n, (name, slot)) in of.parameters.iter().enumerate() {
            if cells.get(*slot).is_some() {
                continue;
            }
            let value = match n.checked_sub(first_default) {
                Some(n) => self.eval(&of.defaults[n], cells)?,
                None => Value::undefined(format!("parameter {} was not provided", repr::quoted(name))),
            };
            cells.set(*slot, Some(value));
        }
        self.body(&of.body, cells)?;
        let text = std::mem::replace(&mut self.out, saved);
        self.line = line;
        self.calls -= 1;
        Ok(Value::str(text))
    }

    fn set_block(&mut self, block: &SetBlock, cells: &Rc<Cells>) -> Res<Flow> {
        self.enter(&block.scope, cells)?;
        let saved = std::mem::take(&mut self.out);
        let flow = self.body(&block.body, cells)?;
        let text = std::mem::replace(&mut self.out, saved);
        if flow != Flow::Next {
            return Ok(flow);
        }
        let text = Text::new(text);
        let value = match &block.filter {
            Some(filter) => {
                self.filtered = Some(text);
                self.eval(filter, cells)?
            }
            None => Value::Str(text),
        };
        self.check_namespaces(&block.target, cells)?;
        self.assign(&block.target, value, cells, block.exported)?;
        self.leave(&block.scope, cells);
        Ok(Flow::Next)
    }

    fn filter_block(&mut self, block: &FilterBlock, cells: &Rc<Cells>) -> Res<Flow> {
        self.enter(&block.scope, cells)?;
        let saved = std::mem::take(&mut self.out);
        let flow = self.body(&block.body, cells)?;
        let text = std::mem::replace(&mut self.out, saved);
        if flow != Flow::Next {
            return Ok(flow);
        }
        self.filtered = Some(Text::new(text));
        let value = self.eval(&block.filter, cells)?;
        self.write_text(&value)?;
        self.leave(&block.scope, cells);
        Ok(Flow::Next)
    }

    fn with(&mut self, with: &With, cells: &Rc<Cells>) -> Res<Flow> {
        self.enter(&with.scope, cells)?;
        for (target, value) in &with.bound {
            let value = self.eval(value, cells)?;
            self.assign(target, value, cells, false)?;
        }
        let flow = self.body(&with.body, cells)?;
        if flow == Flow::Next {
            self.leave(&with.scope, cells);
        }
        Ok(flow)
    }

    fn check_namespaces(&mut self, target: &Target, cells: &Rc<Cells>) -> Res<()> {
        match target {
            Target::Name(..) => Ok(()),
            Target::Attribute(_, slot, _) => match cells.get(*slot) {
                Some(Value::Object(object)) if matches!(*object, Object::Namespace(_)) => Ok(()),
                _ => Err(fail("cannot assign attribute on non-namespace object")),
            },
            Target::Tuple(items) => items.iter().try_for_each(|item| self.check_namespaces(item, cells)),
        }
    }

    pub fn assign(&mut self, target: &Target, value: Value, cells: &Rc<Cells>, exported: bool) -> Res<()> {
        match target {
            Target::Name(name, slot) => {
                if exported {
                    self.context.set.borrow_mut().insert(name.clone(), value.clone());
                }
                cells.set(*slot, Some(value));
                Ok(())
            }
            Target::Attribute(_, slot, attribute) => match cells.get(*slot) {
                Some(Value::Object(object)) => match &*object {
                    Object::Namespace(attributes) => {
                        self.meter.elements(1)?;
                        attributes.borrow_mut().insert(Value::str(attribute.clone()), value, &mut self.meter)
                    }
                    _ => Err(fail("cannot assign attribute on non-namespace object")),
                },
                _ => Err(fail("cannot assign attribute on non-namespace object")),
            },
            Target::Tuple(targets) => {
                let iter = match self.iterate(&value) {
                    Ok(iter) => iter,
                    Err(_) => return Err(fail(format!("cannot unpack non-iterable {} object", value.kind()))),
                };
                let wanted = targets.len();
                let mut items = Vec::with_capacity(wanted);
                while let Some(item) = self.next(&iter)? {
                    if items.len() == wanted {
                        return Err(fail(format!("too many values to unpack (expected {wanted})")));
                    }
                    items.push(item);
                }
                if items.len() < wanted {
                    let got = items.len();
                    return Err(fail(format!("not enough values to unpack (expected {wanted}, got {got})")));
                }
                for (target, item) in targets.iter().zip(items) {
                    self.assign(target, item, cells, exported)?;
                }
                Ok(())
            }
        }
    }
}
