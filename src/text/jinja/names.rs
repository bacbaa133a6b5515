//! A walk over the names of a tree, in the order in which jinja2 visits them.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use super::ast::{Arguments, Expr, Macro, Name, Stmt, Target, What};

/// What a name is there for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Load,
    Store,
    Parameter,
}

/// Calls `f` for every name; blocks are visited only `into_blocks`.
pub fn walk(body: &[Stmt], into_blocks: bool, f: &mut dyn FnMut(&Name, Use)) {
    for stmt in body {
        statement(stmt, into_blocks, f);
    }
}

/// Those of the names that are read before the tree sets them itself.
pub fn undeclared(body: &[Stmt], names: &[&'static str]) -> BTreeSet<&'static str> {
    let mut open: BTreeSet<&'static str> = names.iter().copied().collect();
    let mut found = BTreeSet::new();
    walk(body, false, &mut |name, used| match (open.get(&**name).copied(), used) {
        (Some(name), Use::Load) => drop(found.insert(name)),
        (Some(name), _) => drop(open.remove(name)),
        (None, _) => {}
    });
    found
}

fn statement(stmt: &Stmt, into_blocks: bool, f: &mut dyn FnMut(&Name, Use)) {
    match &stmt.what {
        What::Data(_) | What::Break | What::Continue => {}
        What::Print(items) => items.iter().for_each(|item| expression(item, f)),
        What::For(looped) => {
            target(&looped.target, Use::Store, f);
            expression(&looped.iterable, f);
            walk(&looped.body, into_blocks, f);
            walk(&looped.otherwise, into_blocks, f);
            if let Some(test) = &looped.test {
                expression(&test.condition, f);
            }
        }
        What::If(arms, otherwise) => {
            for (_, test, body) in arms {
                expression(test, f);
                walk(body, into_blocks, f);
            }
            walk(otherwise, into_blocks, f);
        }
        What::Set(to, value, _) => {
            target(to, Use::Store, f);
            expression(value, f);
        }
        What::SetBlock(block) => {
            target(&block.target, Use::Store, f);
            block.filter.iter().for_each(|filter| expression(filter, f));
            walk(&block.body, into_blocks, f);
        }
        What::Macro(of, ..) | What::Generation(of) => inner_macro(of, into_blocks, f),
        What::CallBlock(of, call) => {
            expression(&call.callee, f);
            arguments(&call.arguments, f);
            inner_macro(of, into_blocks, f);
        }
        What::FilterBlock(block) => {
            walk(&block.body, into_blocks, f);
            expression(&block.filter, f);
        }
        What::With(with) => {
            with.bound.iter().for_each(|(to, _)| target(to, Use::Parameter, f));
            with.bound.iter().for_each(|(_, value)| expression(value, f));
            walk(&with.body, into_blocks, f);
        }
        What::Block { body, .. } => {
            if into_blocks {
                walk(body, into_blocks, f);
            }
        }
    }
}

fn inner_macro(of: &Macro, into_blocks: bool, f: &mut dyn FnMut(&Name, Use)) {
    of.parameters.iter().for_each(|(name, _)| f(name, Use::Parameter));
    of.defaults.iter().for_each(|default| expression(default, f));
    walk(&of.body, into_blocks, f);
}

fn target(of: &Target, used: Use, f: &mut dyn FnMut(&Name, Use)) {
    match of {
        Target::Name(name, _) => f(name, used),
        // Not a name of its own in jinja2's tree.
        Target::Attribute(..) => {}
        Target::Tuple(items) => items.iter().for_each(|item| target(item, used, f)),
    }
}

fn arguments(of: &Arguments, f: &mut dyn FnMut(&Name, Use)) {
    of.positional.iter().for_each(|value| expression(value, f));
    of.named.iter().for_each(|(_, value)| expression(value, f));
    of.spread.iter().for_each(|value| expression(value, f));
    of.spread_named.iter().for_each(|value| expression(value, f));
}

/// Calls `f` for the names that an expression reads.
pub fn expression(of: &Expr, f: &mut dyn FnMut(&Name, Use)) {
    match of {
        Expr::Const(_) => {}
        Expr::Name(name, _) => f(name, Use::Load),
        Expr::Tuple(items) | Expr::List(items) | Expr::Concat(items) => {
            items.iter().for_each(|item| expression(item, f));
        }
        Expr::Dict(items) => items.iter().for_each(|(key, value)| {
            expression(key, f);
            expression(value, f);
        }),
        Expr::Unary(_, inner) | Expr::Attribute(inner, _) => expression(inner, f),
        Expr::Binary(_, both) | Expr::And(both) | Expr::Or(both) | Expr::Item(both) => {
            expression(&both.0, f);
            expression(&both.1, f);
        }
        Expr::Compare(first, rest) => {
            expression(first, f);
            rest.iter().for_each(|(_, value)| expression(value, f));
        }
        Expr::Conditional(parts, _) => {
            expression(&parts.0, f);
            expression(&parts.1, f);
            parts.2.iter().for_each(|value| expression(value, f));
        }
        Expr::Slice(parts) => {
            expression(&parts.0, f);
            parts.1.iter().flatten().for_each(|value| expression(value, f));
        }
        Expr::Call(call) => {
            expression(&call.callee, f);
            arguments(&call.arguments, f);
        }
        Expr::Filter(applied) | Expr::Test(applied) => {
            applied.to.iter().for_each(|value| expression(value, f));
            arguments(&applied.arguments, f);
        }
    }
}
