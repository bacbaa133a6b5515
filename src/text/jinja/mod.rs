//! Jinja, as transformers runs it: jinja2 3.1.6 is the reference for every rule here, with Python 3's
//! semantics for the values, in transformers' environment (the immutable sandbox, trimmed blocks, loop
//! controls, `{% generation %}`, a `tojson` that is `json.dumps`).
//!
//! A template is code that comes with a model and may mean harm. It reaches nothing outside. Steps cost
//! fuel, and what is made costs bytes, so that neither time nor memory is without bound; trees, calls and
//! values are nested only so deep, so that the stack is bounded too. What cannot be done as jinja2 does
//! it is refused by name and never done otherwise.
#![forbid(unsafe_code)]

mod args;
mod ast;
mod containers;
mod dict;
mod eval;
mod exec;
mod expressions;
mod filters;
mod format;
mod globals;
mod iter;
mod json;
mod lexer;
mod loops;
mod markup;
mod methods;
mod names;
mod number;
mod operators;
mod parser;
mod percent;
mod predicates;
mod repr;
mod scope;
mod sequences;
mod strings;
mod symbols;
#[cfg(test)]
mod tests;
mod texts;
mod value;

use std::collections::{BTreeSet, HashSet};

pub use value::Value;

/// How many different names a template may use.
const MAX_NAMES: usize = 1000;

/// Why a template does not compile or render.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The template's line, counted from 1; 0 where none is known.
    pub line: u32,
    /// What went wrong, as jinja2 or Python says it.
    pub message: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => f.write_str(&self.message),
            line => write!(f, "line {line}: {}", self.message),
        }
    }
}

fn fail(message: impl Into<String>) -> Failure {
    Failure { line: 0, message: message.into() }
}

fn fail_at(line: u32, message: impl Into<String>) -> Failure {
    Failure { line, message: message.into() }
}

/// What a rendering may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Steps: nodes evaluated, items visited.
    pub fuel: u64,
    /// Bytes of all values made, those dropped again included.
    pub bytes: u64,
    /// Macro calls within macro calls.
    pub depth: usize,
    /// Bytes of the rendering.
    pub output: usize,
}

/// What is left of the limits.
pub struct Meter {
    fuel: u64,
    bytes: u64,
}

impl Meter {
    /// Pays for steps. Error: no fuel is left.
    fn step(&mut self, steps: u64) -> Result<(), Failure> {
        match self.fuel.checked_sub(steps) {
            Some(left) => {
                self.fuel = left;
                Ok(())
            }
            None => {
                self.fuel = 0;
                Err(fail("it ran too long: the template takes more steps than a rendering may"))
            }
        }
    }

    /// Pays for bytes made. Error: more than a rendering may make.
    fn take(&mut self, bytes: usize) -> Result<(), Failure> {
        match self.bytes.checked_sub(bytes as u64) {
            Some(left) => {
                self.bytes = left;
                Ok(())
            }
            None => Err(fail("it made too much: the template's values take more memory than a rendering may")),
        }
    }

    /// Pays for items of a list.
    fn elements(&mut self, count: usize) -> Result<(), Failure> {
        self.step(count as u64)?;
        self.take(count.saturating_mul(std::mem::size_of::<Value>()))
    }
}

/// A compiled template.
pub struct Template {
    program: scope::Program,
}

impl Template {
    /// Compiles a template's source.
    pub fn compile(source: &str) -> Result<Template, Failure> {
        let tokens = lexer::tokens(source)?;
        let names = tokens.iter().filter_map(|token| match &token.tok {
            lexer::Tok::Name(name) => Some(name),
            _ => None,
        });
        if names.collect::<HashSet<_>>().len() > MAX_NAMES {
            return Err(fail(format!("the template uses more than {MAX_NAMES} different names")));
        }
        Ok(Template { program: scope::resolve(parser::parse(tokens)?)? })
    }

    /// Renders with these variables; the text is appended.
    pub fn render(&self, variables: &[(&str, Value)], limits: &Limits, out: &mut String) -> Result<(), Failure> {
        exec::render(&self.program, variables, limits, out)
    }

    /// The names that the template reads and does not set itself first, without those that every template
    /// has: jinja2.meta.find_undeclared_variables.
    pub fn variables(&self) -> BTreeSet<String> {
        self.program.variables.clone()
    }
}
