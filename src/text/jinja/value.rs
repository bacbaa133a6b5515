//! The values of a template, with Python's semantics.
//!
//! Strings, lists and dictionaries are shared and immutable, as in transformers' immutable sandbox, so
//! that copies are cheap and no list contains itself. Only namespaces, loops, cyclers and joiners change.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use num_bigint::BigInt;

use super::dict::Dict;
use super::iter::Iter;
use super::scope::Cells;
use super::{Failure, ast, fail};

/// How deeply values may be nested: dropping, comparing and printing them recurse.
pub const MAX_NESTING: u32 = 150;

/// A value.
#[derive(Clone)]
pub enum Value {
    Undefined(Rc<Undefined>),
    None,
    Bool(bool),
    /// An integer that fits; never one that is in `Big`.
    Int(i64),
    Big(Rc<BigInt>),
    Float(f64),
    Str(Text),
    List(Rc<List>),
    Tuple(Rc<List>),
    Dict(Rc<Dict>),
    Range(Rc<Range>),
    View(View, Rc<Dict>),
    Iter(Rc<Iter>),
    Object(Rc<Object>),
}

/// A string; its length in characters is known.
#[derive(Clone)]
pub struct Text {
    pub text: Arc<str>,
    pub chars: usize,
    /// Whether it is markupsafe's Markup, which `escape` and `safe` make.
    pub markup: bool,
}

impl Text {
    pub fn new(text: impl Into<Arc<str>>) -> Text {
        let text = text.into();
        let chars = text.chars().count();
        Text { text, chars, markup: false }
    }

    /// Whether every character is one byte.
    pub fn is_ascii(&self) -> bool {
        self.chars == self.text.len()
    }
}

/// The items of a list or tuple.
pub struct List {
    pub items: Vec<Value>,
    pub depth: u32,
    /// A pair of `groupby`, which has the attributes `grouper` and `list`.
    pub group: bool,
}

/// What a dictionary's `keys()`, `values()` and `items()` give.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum View {
    Keys,
    Values,
    Items,
}

/// Python's range.
#[derive(Clone, Copy)]
pub struct Range {
    pub start: i64,
    pub stop: i64,
    pub step: i64,
}

impl Range {
    pub fn len(&self) -> u64 {
        let (start, stop, step) = (self.start as i128, self.stop as i128, self.step as i128);
        let span = if step > 0 { stop - start } else { start - stop };
        if span <= 0 { 0 } else { ((span - 1) / step.abs() + 1) as u64 }
    }

    pub fn get(&self, n: u64) -> Value {
        Value::Int(self.start + n as i64 * self.step)
    }
}

/// Why a value is undefined.
pub enum Undefined {
    /// No variable of this name.
    Name(Arc<str>),
    /// An object of this type has no such attribute or item.
    Missing {
        of: String,
        name: Value,
    },
    /// The sandbox hides the attribute.
    Unsafe {
        of: String,
        name: Arc<str>,
    },
    Hint(String),
}

impl Undefined {
    /// The message of jinja2's UndefinedError.
    pub fn message(&self) -> String {
        match self {
            Undefined::Name(name) => format!("{} is undefined", super::repr::quoted(name)),
            Undefined::Missing { of, name: Value::Str(name) } => {
                format!("'{of}' has no attribute {}", super::repr::quoted(&name.text))
            }
            Undefined::Missing { of, name } => match super::repr::plain(name) {
                Some(name) => format!("{of} has no element {name}"),
                None => format!("{of} has no such element"),
            },
            Undefined::Unsafe { of, name } => {
                format!("access to attribute {} of '{of}' object is unsafe.", super::repr::quoted(name))
            }
            Undefined::Hint(hint) => hint.clone(),
        }
    }
}

/// Objects with an identity.
pub enum Object {
    Namespace(RefCell<Dict>),
    Cycler {
        items: Vec<Value>,
        at: Cell<usize>,
        depth: u32,
    },
    Joiner {
        separator: Value,
        used: Cell<bool>,
        depth: u32,
    },
    Loop(Loop),
    Macro(Macro),
    /// A method of a value, not yet called.
    Method {
        of: Value,
        name: &'static str,
        depth: u32,
    },
    Global(Global),
    /// `self`, and a block of it.
    Template,
    Block(usize),
}

/// The functions that every template has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Global {
    Range,
    Dict,
    Lipsum,
    Cycler,
    Joiner,
    Namespace,
    RaiseException,
    StrftimeNow,
}

/// `loop`.
pub struct Loop {
    pub of: Arc<ast::For>,
    pub source: Rc<Iter>,
    /// The whole length, where the iterable has one without being read.
    pub length: Cell<Option<usize>>,
    /// Counts from 0; -1 before the first item.
    pub index0: Cell<i64>,
    pub depth0: usize,
    pub after: RefCell<Option<Value>>,
    pub current: RefCell<Option<Value>>,
    pub before: RefCell<Option<Value>>,
    pub changed: RefCell<Option<Vec<Value>>>,
    /// Where a recursive loop's body finds its names.
    pub cells: Rc<Cells>,
    pub depth: u32,
}

/// A macro, or the body of a call block.
pub struct Macro {
    pub of: Arc<ast::Macro>,
    pub cells: Rc<Cells>,
}

impl Value {
    pub fn str(text: impl Into<Arc<str>>) -> Value {
        Value::Str(Text::new(text))
    }

    /// A string that is Markup where `of` is.
    pub fn like(of: &Text, text: impl Into<Arc<str>>) -> Value {
        Value::Str(Text { markup: of.markup, ..Text::new(text) })
    }

    pub fn list(items: Vec<Value>) -> Result<Value, Failure> {
        Ok(Value::List(Rc::new(List { depth: nesting(&items)?, items, group: false })))
    }

    /// A host's list, whose nesting its own parser bounds.
    pub fn given_list(items: Vec<Value>) -> Value {
        let depth = 1 + items.iter().map(Value::depth).max().unwrap_or(0);
        Value::List(Rc::new(List { items, depth, group: false }))
    }

    pub fn tuple(items: Vec<Value>) -> Result<Value, Failure> {
        Ok(Value::Tuple(Rc::new(List { depth: nesting(&items)?, items, group: false })))
    }

    pub fn pair(a: Value, b: Value) -> Result<Value, Failure> {
        Value::tuple(vec![a, b])
    }

    pub fn undefined(hint: impl Into<String>) -> Value {
        Value::Undefined(Rc::new(Undefined::Hint(hint.into())))
    }

    pub fn object(object: Object) -> Value {
        Value::Object(Rc::new(object))
    }

    /// How deeply values are nested within this one.
    pub fn depth(&self) -> u32 {
        match self {
            Value::List(list) | Value::Tuple(list) => list.depth,
            Value::Dict(dict) | Value::View(_, dict) => dict.depth(),
            Value::Iter(iter) => iter.depth,
            Value::Undefined(undefined) => match &**undefined {
                Undefined::Missing { name, .. } => name.depth() + 1,
                _ => 0,
            },
            Value::Object(object) => match &**object {
                Object::Cycler { depth, .. } | Object::Joiner { depth, .. } | Object::Method { depth, .. } => *depth,
                Object::Loop(looped) => looped.depth,
                _ => 0,
            },
            _ => 0,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) => Some(&text.text),
            _ => None,
        }
    }

    pub fn is_undefined(&self) -> bool {
        matches!(self, Value::Undefined(_))
    }

    /// Python's `bool(value)`.
    pub fn truth(&self) -> bool {
        match self {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(b) => *b,
            Value::Int(n) => *n != 0,
            Value::Float(x) => *x != 0.0,
            Value::Str(text) => !text.text.is_empty(),
            Value::List(list) | Value::Tuple(list) => !list.items.is_empty(),
            Value::Dict(dict) | Value::View(_, dict) => dict.len() > 0,
            Value::Range(range) => range.len() > 0,
            // A loop has a length, and while it runs it is not empty.
            Value::Big(_) | Value::Iter(_) | Value::Object(_) => true,
        }
    }

    /// The name of the value's type in Python.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Undefined(_) => "Undefined",
            Value::None => "NoneType",
            Value::Bool(_) => "bool",
            Value::Int(_) | Value::Big(_) => "int",
            Value::Float(_) => "float",
            Value::Str(text) if text.markup => "Markup",
            Value::Str(_) => "str",
            Value::List(_) => "list",
            Value::Tuple(_) => "tuple",
            Value::Dict(_) => "dict",
            Value::Range(_) => "range",
            Value::View(View::Keys, _) => "dict_keys",
            Value::View(View::Values, _) => "dict_values",
            Value::View(View::Items, _) => "dict_items",
            Value::Iter(iter) => iter.kind,
            Value::Object(object) => match &**object {
                Object::Namespace(_) => "Namespace",
                Object::Cycler { .. } => "Cycler",
                Object::Joiner { .. } => "Joiner",
                Object::Loop(_) => "LoopContext",
                Object::Macro(_) => "Macro",
                Object::Method { .. } => "builtin_function_or_method",
                Object::Global(Global::Dict | Global::Cycler | Global::Joiner | Global::Namespace) => "type",
                Object::Global(_) => "function",
                Object::Template => "TemplateReference",
                Object::Block(_) => "BlockReference",
            },
        }
    }

    /// The type as jinja2's messages name it.
    pub fn described(&self) -> String {
        match self {
            Value::None => "None".into(),
            Value::Object(object) => match &**object {
                Object::Namespace(_) | Object::Cycler { .. } | Object::Joiner { .. } => {
                    format!("jinja2.utils.{} object", self.kind())
                }
                Object::Loop(_) | Object::Macro(_) | Object::Template | Object::Block(_) => {
                    format!("jinja2.runtime.{} object", self.kind())
                }
                _ => format!("{} object", self.kind()),
            },
            Value::Str(text) if text.markup => "markupsafe.Markup object".into(),
            _ => format!("{} object", self.kind()),
        }
    }
}

/// The depth of a container of these values. Error: too deep.
pub fn nesting<'a>(items: impl IntoIterator<Item = &'a Value>) -> Result<u32, Failure> {
    let depth = 1 + items.into_iter().map(Value::depth).max().unwrap_or(0);
    if depth > MAX_NESTING {
        return Err(fail(format!(
            "values are nested more than {MAX_NESTING} deep; a template may not nest them further"
        )));
    }
    Ok(depth)
}

impl From<bool> for Value {
    fn from(b: bool) -> Value {
        Value::Bool(b)
    }
}

impl From<usize> for Value {
    fn from(n: usize) -> Value {
        Value::Int(n as i64)
    }
}

impl From<Text> for Value {
    fn from(text: Text) -> Value {
        Value::Str(text)
    }
}
