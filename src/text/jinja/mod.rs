//! Jinja, as transformers runs it: jinja2 3.1.6 is the reference for every rule here, with Python 3's
//! semantics for the values, in transformers' environment (the immutable sandbox, trimmed blocks, loop
//! controls, `{% generation %}`, a `tojson` that is `json.dumps`).
//!
//! A template is code that comes with a model and may mean harm. It reaches nothing outside. Steps cost
//! fuel, and what is made costs bytes, so that neither time nor memory is without bound; trees, calls and
//! values are nested only so deep, so that the stack is bounded too. Fuel and bytes are counted, not measured, so that a
//! template fails on every machine or on none; the caller's flag and a deadline are looked at besides. What cannot be
//! done as jinja2 does it is refused by name and never done otherwise.
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

use super::watch::Watch;
use crate::error::{Error, Fault};
use crate::memory;

/// How many different names a template may use.
const MAX_NAMES: usize = 1000;

/// Why a template does not compile or render.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The template's line, counted from 1; 0 where none is known.
    pub line: u32,
    /// What went wrong, as jinja2 or Python says it.
    pub message: String,
    /// The fault, where it is none of the template's: it was stopped, or no memory can be had.
    pub fault: Option<Fault>,
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
    fail_at(0, message)
}

fn fail_at(line: u32, message: impl Into<String>) -> Failure {
    Failure { line, message: message.into(), fault: None }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        Failure { line: 0, message: e.message().to_string(), fault: Some(e.fault()) }
    }
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

/// What is left of the limits, and who may stop the rendering.
pub struct Meter {
    fuel: u64,
    bytes: u64,
    watch: Watch,
    /// Steps until the watch is asked again.
    unasked: u64,
    /// Bytes that the system has said it has.
    granted: u64,
}

/// Steps between two looks at the watch; one takes a microsecond at most, but for few.
const ASK_EVERY: u64 = 1024;
/// How much memory is asked for at a time, in bytes. What a value takes besides its bytes is less than they are.
const GRANT: u64 = 4 << 20;

impl Meter {
    pub fn new(limits: &Limits, watch: &Watch) -> Meter {
        Meter { fuel: limits.fuel, bytes: limits.bytes, watch: watch.clone(), unasked: ASK_EVERY, granted: 0 }
    }

    /// Pays for steps. Error: no fuel is left, or the watch says stop.
    fn step(&mut self, steps: u64) -> Result<(), Failure> {
        self.unasked = self.unasked.saturating_sub(steps);
        if self.unasked == 0 {
            self.unasked = ASK_EVERY;
            self.watch.check()?;
        }
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

    /// Pays for bytes before they are made. Error: more than a rendering may make, or than the system has.
    fn take(&mut self, bytes: usize) -> Result<(), Failure> {
        match self.bytes.checked_sub(bytes as u64) {
            Some(left) => self.bytes = left,
            None => return Err(fail("it made too much: the template's values take more memory than a rendering may")),
        }
        match self.granted.checked_sub(bytes as u64) {
            Some(left) => self.granted = left,
            None => {
                memory::room_for(2 * (bytes + GRANT as usize), "chat template")?;
                self.granted = GRANT;
            }
        }
        Ok(())
    }

    /// Pays for looking a text of this length over.
    fn read(&mut self, bytes: usize) -> Result<(), Failure> {
        self.step(bytes as u64 / 64)
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

    /// Renders with these variables.
    pub fn render(&self, variables: &[(&str, Value)], limits: &Limits, watch: &Watch) -> Result<String, Failure> {
        exec::render(&self.program, variables, limits, watch)
    }

    /// The names that the template reads and does not set itself first, without those that every template
    /// has: jinja2.meta.find_undeclared_variables.
    pub fn variables(&self) -> BTreeSet<String> {
        self.program.variables.clone()
    }
}
