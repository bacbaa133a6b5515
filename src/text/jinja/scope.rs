//! Names to slots. jinja2 compiles a template to Python functions, and what a name means depends on
//! that: loops and `with` share their function's variables, macros see those around them as they are
//! when called, blocks see only the context. The same functions and variables are laid out here.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use super::ast::{Applied, Arguments, Block, Expr, For, Load, Macro, Name, Scope, Slot, Stmt, Target, What};
use super::names::{self, Use};
use super::symbols::{Origin, Place, Symbols};
use super::value::Value;
use super::{Failure, fail_at, filters, globals, predicates};

type Res<T> = Result<T, Failure>;

/// The variables of a running function, and the function around it.
pub struct Cells {
    pub slots: RefCell<Vec<Option<Value>>>,
    pub outer: Option<Rc<Cells>>,
}

impl Cells {
    pub fn new(slots: usize, outer: Option<Rc<Cells>>) -> Rc<Cells> {
        Rc::new(Cells { slots: RefCell::new(vec![None; slots]), outer })
    }

    fn of(&self, slot: Slot) -> &Cells {
        let mut cells = self;
        for _ in 0..slot.out {
            if let Some(outer) = &cells.outer {
                cells = outer;
            }
        }
        cells
    }

    pub fn get(&self, slot: Slot) -> Option<Value> {
        self.of(slot).slots.borrow().get(slot.at as usize).cloned().flatten()
    }

    pub fn set(&self, slot: Slot, value: Option<Value>) {
        // What was there is dropped after the borrow has ended.
        let old =
            self.of(slot).slots.borrow_mut().get_mut(slot.at as usize).map(|place| std::mem::replace(place, value));
        drop(old);
    }
}

/// A function of the compiled template: its slots by level and name.
struct Function {
    parent: Option<usize>,
    slots: HashMap<(u16, Name), u16>,
}

#[derive(Clone)]
struct Frame {
    symbols: Rc<Symbols>,
    /// Whether what is set becomes a variable of the template.
    toplevel: bool,
    /// Within a condition, where an unknown filter is an error only as it is reached.
    soft: bool,
    in_loop: bool,
}

impl Frame {
    fn function(&self) -> usize {
        self.symbols.place.function
    }

    fn inner(&self, symbols: Symbols, in_loop: bool) -> Frame {
        Frame { symbols: Rc::new(symbols), toplevel: false, soft: false, in_loop }
    }

    fn soft(&self) -> Frame {
        Frame { soft: true, ..self.clone() }
    }
}

/// A template with its names resolved.
pub struct Program {
    pub body: Vec<Stmt>,
    pub scope: Scope,
    pub slots: usize,
    pub reference: Option<Slot>,
    pub blocks: Vec<Block>,
    /// The names looked up among the variables.
    pub variables: BTreeSet<String>,
}

#[derive(Default)]
struct Resolver {
    functions: Vec<Function>,
    variables: BTreeSet<String>,
    blocks: Vec<Block>,
    line: u32,
}

/// Resolves the names of a template.
pub fn resolve(mut body: Vec<Stmt>) -> Res<Program> {
    let mut resolver = Resolver::default();
    let function = resolver.function(None);
    let mut symbols = Symbols::root(function);
    let this: Name = "self".into();
    let refers = names::undeclared(&body, &["self"]).contains("self");
    if refers {
        symbols.parameter(&this);
    }
    symbols.body(&body);
    let frame = Frame { symbols: Rc::new(symbols), toplevel: true, soft: false, in_loop: false };
    let scope = resolver.enter(&frame.symbols);
    resolver.body(&mut body, &frame)?;
    let reference = if refers { Some(resolver.slot(&this, &frame)?) } else { None };
    let mut next = 0;
    // A block's body may have blocks of its own, which are added behind.
    while next < resolver.blocks.len() {
        resolver.block(next)?;
        next += 1;
    }
    let slots = resolver.functions[function].slots.len();
    Ok(Program { body, scope, slots, reference, blocks: resolver.blocks, variables: resolver.variables })
}

impl Resolver {
    fn function(&mut self, parent: Option<usize>) -> usize {
        self.functions.push(Function { parent, slots: HashMap::new() });
        self.functions.len() - 1
    }

    fn error<T>(&self, why: impl Into<String>) -> Res<T> {
        Err(fail_at(self.line, why))
    }

    /// The slot of a scope's name, as seen from a function.
    fn place(&mut self, name: &Name, place: Place, from: usize) -> Slot {
        let slots = &mut self.functions[place.function].slots;
        let next = slots.len() as u16;
        let at = *slots.entry((place.level, name.clone())).or_insert(next);
        let mut out = 0;
        let mut function = from;
        while function != place.function {
            match self.functions[function].parent {
                Some(parent) => function = parent,
                None => break,
            }
            out += 1;
        }
        Slot { out, at }
    }

    fn slot(&mut self, name: &Name, frame: &Frame) -> Res<Slot> {
        match frame.symbols.find(name) {
            Some(place) => Ok(self.place(name, place, frame.function())),
            None => {
                self.error(format!("Tried to resolve a name to a reference that was unknown to the frame ({name})"))
            }
        }
    }

    fn enter(&mut self, symbols: &Symbols) -> Scope {
        let function = symbols.place.function;
        let mut scope = Scope::default();
        for (name, origin) in &symbols.loads {
            let slot = self.place(name, symbols.place, function);
            scope.leave.push(slot);
            match origin {
                Origin::Parameter => {}
                Origin::Context => {
                    if !globals::exists(name) {
                        self.variables.insert(name.to_string());
                    }
                    scope.loads.push(Load::Resolve(slot, name.clone()));
                }
                Origin::Outer(place) => {
                    let from = self.place(name, *place, function);
                    scope.loads.push(Load::Alias(slot, from));
                }
                Origin::Nothing => scope.loads.push(Load::Clear(slot)),
            }
        }
        scope
    }

    fn body(&mut self, body: &mut [Stmt], frame: &Frame) -> Res<()> {
        for stmt in body {
            self.line = stmt.line;
            self.statement(stmt, frame)?;
        }
        Ok(())
    }

    fn statement(&mut self, stmt: &mut Stmt, frame: &Frame) -> Res<()> {
        match &mut stmt.what {
            What::Data(_) => {}
            What::Print(items) => self.expressions(items, frame)?,
            What::For(looped) => {
                let Some(looped) = Arc::get_mut(looped) else { return self.error("the loop is shared") };
                self.for_loop(looped, frame)?;
            }
            What::If(arms, otherwise) => {
                let soft = frame.soft();
                for (line, test, body) in arms {
                    self.line = *line;
                    self.expression(test, &soft)?;
                    self.body(body, &soft)?;
                }
                self.body(otherwise, &soft)?;
            }
            What::Set(target, value, exported) => {
                self.target(target, frame)?;
                self.expression(value, frame)?;
                *exported = frame.toplevel;
            }
            What::SetBlock(block) => {
                let mut symbols = Symbols::inner(&frame.symbols, frame.function());
                symbols.body(&block.body);
                let inner = frame.inner(symbols, frame.in_loop);
                block.scope = self.enter(&inner.symbols);
                self.body(&mut block.body, &inner)?;
                self.target(&mut block.target, frame)?;
                if let Some(filter) = &mut block.filter {
                    self.expression(filter, &inner)?;
                }
                block.exported = frame.toplevel;
            }
            What::Macro(of, slot, exported) => {
                let Some(of) = Arc::get_mut(of) else { return self.error("the macro is shared") };
                self.inner_macro(of, frame)?;
                if let Some(name) = &of.name {
                    *slot = self.slot(name, frame)?;
                }
                *exported = frame.toplevel;
            }
            What::CallBlock(of, call) => {
                let Some(of) = Arc::get_mut(of) else { return self.error("the call block is shared") };
                self.inner_macro(of, frame)?;
                self.expression(&mut call.callee, frame)?;
                self.arguments(&mut call.arguments, frame)?;
            }
            What::Generation(of) => {
                let Some(of) = Arc::get_mut(of) else { return self.error("the block is shared") };
                self.inner_macro(of, frame)?;
            }
            What::FilterBlock(block) => {
                let mut symbols = Symbols::inner(&frame.symbols, frame.function());
                symbols.body(&block.body);
                symbols.expression(&block.filter);
                let inner = frame.inner(symbols, frame.in_loop);
                block.scope = self.enter(&inner.symbols);
                self.body(&mut block.body, &inner)?;
                self.expression(&mut block.filter, &inner)?;
            }
            What::With(with) => {
                let mut symbols = Symbols::inner(&frame.symbols, frame.function());
                with.bound.iter().for_each(|(target, _)| symbols.target(target, true));
                symbols.body(&with.body);
                let inner = frame.inner(symbols, frame.in_loop);
                with.scope = self.enter(&inner.symbols);
                for (target, value) in &mut with.bound {
                    self.target(target, &inner)?;
                    self.expression(value, frame)?;
                }
                self.body(&mut with.body, &inner)?;
            }
            What::Block { name, scoped, required, body, index, locals } => {
                if self.blocks.iter().any(|block| block.name == *name) {
                    return self.error(format!("block '{name}' defined twice"));
                }
                *index = self.blocks.len();
                if *scoped {
                    for (name, place) in frame.symbols.stored() {
                        let slot = self.place(&name, place, frame.function());
                        locals.push((name, slot));
                    }
                }
                self.blocks.push(Block {
                    name: name.clone(),
                    required: *required,
                    body: std::mem::take(body),
                    scope: Scope::default(),
                    slots: 0,
                    reference: None,
                    parent: None,
                });
            }
            What::Break | What::Continue if !frame.in_loop => {
                let word = if matches!(stmt.what, What::Break) { "break" } else { "continue" };
                return self.error(format!("'{word}' outside loop"));
            }
            What::Break | What::Continue => {}
        }
        Ok(())
    }

    fn for_loop(&mut self, of: &mut For, frame: &Frame) -> Res<()> {
        let outer = frame.function();
        let function = if of.recursive { self.function(Some(outer)) } else { outer };
        let mut symbols = Symbols::inner(&frame.symbols, function);
        let looped: Name = "loop".into();
        let mut assigned = false;
        names::walk(&of.body, true, &mut |name, used| assigned |= used == Use::Store && **name == *looped);
        names::walk(&of.otherwise, true, &mut |name, used| assigned |= used == Use::Store && **name == *looped);
        assigned |= binds(&of.target, &looped);
        if assigned {
            return self.error("Can't assign to special loop variable in for-loop target");
        }
        let extended = of.recursive
            || names::undeclared(&of.body, &["loop"]).contains("loop")
            || has_scoped(&of.body)
            || has_scoped(&of.otherwise);
        if extended {
            symbols.parameter(&looped);
        }
        symbols.of_loop(of);
        if let Some(test) = &mut of.test {
            let own = self.function(Some(outer));
            let mut symbols = Symbols::inner(&frame.symbols, own);
            symbols.target(&test.target, true);
            symbols.expression(&test.condition);
            let inner = frame.inner(symbols, false);
            test.scope = self.enter(&inner.symbols);
            self.target(&mut test.target, &inner)?;
            self.expression(&mut test.condition, &inner)?;
            test.slots = self.functions[own].slots.len();
        }
        let inner = frame.inner(symbols, true);
        self.expression(&mut of.iterable, frame)?;
        of.scope = self.enter(&inner.symbols);
        self.target(&mut of.target, &inner)?;
        if extended {
            of.looped = Some(self.slot(&looped, &inner)?);
        }
        self.body(&mut of.body, &inner)?;
        if !of.otherwise.is_empty() {
            let mut symbols = Symbols::inner(&frame.symbols, function);
            symbols.body(&of.otherwise);
            let inner = frame.inner(symbols, frame.in_loop && !of.recursive);
            of.otherwise_scope = self.enter(&inner.symbols);
            self.body(&mut of.otherwise, &inner)?;
        }
        if of.recursive {
            of.slots = self.functions[function].slots.len();
        }
        Ok(())
    }

    fn inner_macro(&mut self, of: &mut Macro, frame: &Frame) -> Res<()> {
        let function = self.function(Some(frame.function()));
        let mut symbols = Symbols::inner(&frame.symbols, function);
        symbols.of_macro(of);
        let special = names::undeclared(&of.body, &["caller", "kwargs", "varargs"]);
        let is_parameter = |name: &str| of.parameters.iter().position(|(parameter, _)| &**parameter == name);
        let [caller, named, rest]: [Name; 3] = ["caller".into(), "kwargs".into(), "varargs".into()];
        let mut declared = [false; 3];
        if special.contains("caller") {
            match is_parameter("caller") {
                Some(n) if n + of.defaults.len() < of.parameters.len() => {
                    return self.error("When defining macros or call blocks the special \"caller\" argument must be omitted or be given a default.");
                }
                Some(_) => {}
                None => {
                    symbols.parameter(&caller);
                    declared[0] = true;
                }
            }
            of.accesses_caller = true;
        }
        for (n, name) in [(1, &named), (2, &rest)] {
            if special.contains(&**name) && is_parameter(name).is_none() {
                symbols.parameter(name);
                declared[n] = true;
            }
        }
        symbols.of_macro(of);
        // A second look at the parameters makes them parameters still.
        let inner = frame.inner(symbols, false);
        of.scope = self.enter(&inner.symbols);
        for (name, slot) in &mut of.parameters {
            *slot = self.slot(name, &inner)?;
        }
        if declared[0] {
            of.caller = Some(self.slot(&caller, &inner)?);
        }
        if declared[1] {
            of.named = Some(self.slot(&named, &inner)?);
        }
        if declared[2] {
            of.rest = Some(self.slot(&rest, &inner)?);
        }
        self.expressions(&mut of.defaults, &inner)?;
        self.body(&mut of.body, &inner)?;
        of.slots = self.functions[function].slots.len();
        Ok(())
    }

    fn block(&mut self, index: usize) -> Res<()> {
        let function = self.function(None);
        let mut symbols = Symbols::root(function);
        let mut body = std::mem::take(&mut self.blocks[index].body);
        let special = names::undeclared(&body, &["self", "super"]);
        let [this, parent]: [Name; 2] = ["self".into(), "super".into()];
        for name in [&this, &parent] {
            if special.contains(&**name) {
                symbols.parameter(name);
            }
        }
        symbols.body(&body);
        let frame = Frame { symbols: Rc::new(symbols), toplevel: false, soft: false, in_loop: false };
        let scope = self.enter(&frame.symbols);
        self.body(&mut body, &frame)?;
        let reference = if special.contains("self") { Some(self.slot(&this, &frame)?) } else { None };
        let parent = if special.contains("super") { Some(self.slot(&parent, &frame)?) } else { None };
        let slots = self.functions[function].slots.len();
        let block = &mut self.blocks[index];
        (block.body, block.scope, block.slots) = (body, scope, slots);
        (block.reference, block.parent) = (reference, parent);
        Ok(())
    }

    fn target(&mut self, target: &mut Target, frame: &Frame) -> Res<()> {
        match target {
            Target::Name(name, slot) | Target::Attribute(name, slot, _) => *slot = self.slot(name, frame)?,
            Target::Tuple(items) => {
                for item in items {
                    self.target(item, frame)?;
                }
            }
        }
        Ok(())
    }

    fn expressions(&mut self, items: &mut [Expr], frame: &Frame) -> Res<()> {
        items.iter_mut().try_for_each(|item| self.expression(item, frame))
    }

    fn arguments(&mut self, given: &mut Arguments, frame: &Frame) -> Res<()> {
        self.expressions(&mut given.positional, frame)?;
        for (_, value) in &mut given.named {
            self.expression(value, frame)?;
        }
        for value in given.spread.iter_mut().chain(&mut given.spread_named) {
            self.expression(value, frame)?;
        }
        Ok(())
    }

    fn applied(&mut self, applied: &mut Applied, known: bool, kind: &str, frame: &Frame) -> Res<()> {
        self.line = applied.line;
        if !known && !frame.soft {
            return self.error(format!("No {kind} named '{}'.", applied.name));
        }
        if let Some(to) = &mut applied.to {
            self.expression(to, frame)?;
        }
        self.arguments(&mut applied.arguments, frame)
    }

    fn expression(&mut self, expr: &mut Expr, frame: &Frame) -> Res<()> {
        match expr {
            Expr::Const(_) => Ok(()),
            Expr::Name(name, slot) => {
                *slot = self.slot(name, frame)?;
                Ok(())
            }
            Expr::Tuple(items) | Expr::List(items) | Expr::Concat(items) => self.expressions(items, frame),
            Expr::Dict(items) => items.iter_mut().try_for_each(|(key, value)| {
                self.expression(key, frame)?;
                self.expression(value, frame)
            }),
            Expr::Unary(_, inner) | Expr::Attribute(inner, _) => self.expression(inner, frame),
            Expr::Binary(_, both) | Expr::And(both) | Expr::Or(both) | Expr::Item(both) => {
                self.expression(&mut both.0, frame)?;
                self.expression(&mut both.1, frame)
            }
            Expr::Compare(first, rest) => {
                self.expression(first, frame)?;
                rest.iter_mut().try_for_each(|(_, value)| self.expression(value, frame))
            }
            Expr::Conditional(parts, _) => {
                let soft = frame.soft();
                self.expression(&mut parts.0, &soft)?;
                self.expression(&mut parts.1, &soft)?;
                parts.2.iter_mut().try_for_each(|value| self.expression(value, &soft))
            }
            Expr::Slice(parts) => {
                self.expression(&mut parts.0, frame)?;
                parts.1.iter_mut().flatten().try_for_each(|value| self.expression(value, frame))
            }
            Expr::Call(call) => {
                self.expression(&mut call.callee, frame)?;
                self.arguments(&mut call.arguments, frame)
            }
            Expr::Filter(applied) => {
                let known = filters::exists(&applied.name);
                self.applied(applied, known, "filter", frame)
            }
            Expr::Test(applied) => {
                let known = predicates::exists(&applied.name);
                self.applied(applied, known, "test", frame)
            }
        }
    }
}

fn binds(target: &Target, name: &Name) -> bool {
    match target {
        Target::Name(bound, _) => bound == name,
        Target::Attribute(..) => false,
        Target::Tuple(items) => items.iter().any(|item| binds(item, name)),
    }
}

fn has_scoped(body: &[Stmt]) -> bool {
    body.iter().any(|stmt| match &stmt.what {
        What::Block { scoped, body, .. } => *scoped || has_scoped(body),
        What::For(looped) => has_scoped(&looped.body) || has_scoped(&looped.otherwise),
        What::If(arms, otherwise) => arms.iter().any(|(_, _, body)| has_scoped(body)) || has_scoped(otherwise),
        What::SetBlock(block) => has_scoped(&block.body),
        What::Macro(of, ..) | What::CallBlock(of, _) | What::Generation(of) => has_scoped(&of.body),
        What::FilterBlock(block) => has_scoped(&block.body),
        What::With(with) => has_scoped(&with.body),
        _ => false,
    })
}
