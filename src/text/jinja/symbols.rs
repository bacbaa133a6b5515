//! Which names a scope has of its own, and where their values come from: jinja2's `idtracking`.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::rc::Rc;

use super::ast::{Expr, For, Macro, Name, Stmt, Target, What};
use super::names;

/// Where a scope's name gets its value from as the scope is entered.
#[derive(Clone)]
pub enum Origin {
    /// The scope's own statement fills it.
    Parameter,
    /// The variables of the template.
    Context,
    /// The scope of this level that has the name already.
    Outer(Place),
    Nothing,
}

/// A scope's level, and the function whose slots it uses.
#[derive(Clone, Copy)]
pub struct Place {
    pub level: u16,
    pub function: usize,
}

/// The names of one scope.
#[derive(Clone)]
pub struct Symbols {
    pub place: Place,
    parent: Option<Rc<Symbols>>,
    /// The names that have a slot here, in order.
    pub loads: Vec<(Name, Origin)>,
    stores: BTreeSet<Name>,
}

impl Symbols {
    pub fn root(function: usize) -> Symbols {
        Symbols { place: Place { level: 0, function }, parent: None, loads: Vec::new(), stores: BTreeSet::new() }
    }

    pub fn inner(parent: &Rc<Symbols>, function: usize) -> Symbols {
        let place = Place { level: parent.place.level + 1, function };
        Symbols { place, parent: Some(parent.clone()), loads: Vec::new(), stores: BTreeSet::new() }
    }

    fn own(&self, name: &Name) -> Option<usize> {
        self.loads.iter().position(|(own, _)| own == name)
    }

    fn define(&mut self, name: &Name, origin: Origin) {
        match self.own(name) {
            Some(n) => self.loads[n].1 = origin,
            None => self.loads.push((name.clone(), origin)),
        }
    }

    /// The scope that has the name, this one or one around it.
    pub fn find(&self, name: &Name) -> Option<Place> {
        let mut at = Some(self);
        while let Some(symbols) = at {
            if symbols.own(name).is_some() {
                return Some(symbols.place);
            }
            at = symbols.parent.as_deref();
        }
        None
    }

    fn outer(&self, name: &Name) -> Option<Place> {
        self.parent.as_ref().and_then(|parent| parent.find(name))
    }

    fn load(&mut self, name: &Name) {
        if self.find(name).is_none() {
            self.define(name, Origin::Context);
        }
    }

    fn store(&mut self, name: &Name) {
        self.stores.insert(name.clone());
        if self.own(name).is_none() {
            let origin = self.outer(name).map_or(Origin::Nothing, Origin::Outer);
            self.define(name, origin);
        }
    }

    pub fn parameter(&mut self, name: &Name) {
        self.stores.insert(name.clone());
        self.define(name, Origin::Parameter);
    }

    /// Everything that this scope and those around it set, with the scope that has it.
    pub fn stored(&self) -> Vec<(Name, Place)> {
        let mut stored: Vec<(Name, Place)> = Vec::new();
        let mut at = Some(self);
        while let Some(symbols) = at {
            for name in &symbols.stores {
                if !stored.iter().any(|(other, _)| other == name) {
                    stored.extend(self.find(name).map(|place| (name.clone(), place)));
                }
            }
            at = symbols.parent.as_deref();
        }
        stored
    }

    fn merge(&mut self, branches: [Symbols; 3]) {
        let mut stores: BTreeSet<Name> = branches.iter().flat_map(|branch| branch.stores.iter().cloned()).collect();
        stores.retain(|name| !self.stores.contains(name));
        for branch in branches {
            for (name, origin) in branch.loads {
                self.define(&name, origin);
            }
            self.stores.extend(branch.stores);
        }
        for name in stores {
            // Not every branch sets it, so that what was there before may remain.
            let origin = self.outer(&name).map_or(Origin::Context, Origin::Outer);
            self.define(&name, origin);
        }
    }

    pub fn body(&mut self, body: &[Stmt]) {
        for stmt in body {
            self.statement(stmt);
        }
    }

    pub fn expression(&mut self, expr: &Expr) {
        names::expression(expr, &mut |name, _| self.load(name));
    }

    pub fn target(&mut self, target: &Target, parameter: bool) {
        match target {
            Target::Name(name, _) if parameter => self.parameter(name),
            Target::Name(name, _) => self.store(name),
            Target::Attribute(name, ..) => self.load(name),
            Target::Tuple(items) => items.iter().for_each(|item| self.target(item, parameter)),
        }
    }

    /// The names of a macro's own scope.
    pub fn of_macro(&mut self, of: &Macro) {
        of.parameters.iter().for_each(|(name, _)| self.parameter(name));
        of.defaults.iter().for_each(|default| self.expression(default));
        self.body(&of.body);
    }

    /// The names of a loop's own scope.
    pub fn of_loop(&mut self, of: &For) {
        self.target(&of.target, true);
        self.body(&of.body);
    }

    fn statement(&mut self, stmt: &Stmt) {
        match &stmt.what {
            What::Data(_) | What::Break | What::Continue | What::Generation(_) | What::Block { .. } => {}
            What::Print(items) => items.iter().for_each(|item| self.expression(item)),
            What::For(looped) => self.expression(&looped.iterable),
            What::If(arms, otherwise) => self.condition(arms, otherwise),
            What::Set(target, value, _) => {
                self.expression(value);
                self.target(target, false);
            }
            What::SetBlock(block) => self.target(&block.target, false),
            What::Macro(of, ..) => {
                if let Some(name) = &of.name {
                    self.store(name);
                }
            }
            What::CallBlock(_, call) => {
                names::expression(&call.callee, &mut |name, _| self.load(name));
                let given = &call.arguments;
                given.positional.iter().for_each(|value| self.expression(value));
                given.named.iter().for_each(|(_, value)| self.expression(value));
                given.spread.iter().for_each(|value| self.expression(value));
                given.spread_named.iter().for_each(|value| self.expression(value));
            }
            What::FilterBlock(block) => self.expression(&block.filter),
            What::With(with) => with.bound.iter().for_each(|(_, value)| self.expression(value)),
        }
    }

    fn condition(&mut self, arms: &[(u32, Expr, Vec<Stmt>)], otherwise: &[Stmt]) {
        let Some(((_, test, body), elifs)) = arms.split_first() else { return };
        self.expression(test);
        let mut first = self.clone();
        first.body(body);
        let mut second = self.clone();
        for arm in elifs {
            second.condition(std::slice::from_ref(arm), &[]);
        }
        let mut third = self.clone();
        third.body(otherwise);
        self.merge([first, second, third]);
    }
}
