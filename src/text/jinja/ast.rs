//! The tree of a template. Names are resolved to slots by `scope`.
#![forbid(unsafe_code)]

use std::sync::Arc;

use num_bigint::BigInt;

pub type Name = Arc<str>;

/// Where a name's value is kept: so many functions out, at this index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    pub out: u16,
    pub at: u16,
}

/// What happens to a slot where a scope is entered.
#[derive(Clone, Debug)]
pub enum Load {
    /// Look the name up among the variables of the template.
    Resolve(Slot, Name),
    /// Copy what an outer scope has.
    Alias(Slot, Slot),
    /// Nothing is there yet.
    Clear(Slot),
}

/// The slots of a scope: filled where it is entered, emptied where it is left.
#[derive(Debug, Default)]
pub struct Scope {
    pub loads: Vec<Load>,
    pub leave: Vec<Slot>,
}

#[derive(Debug)]
pub enum Const {
    None,
    Bool(bool),
    Int(i64),
    Big(BigInt),
    Float(f64),
    Str(Arc<str>, usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Modulo,
    Power,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    NotIn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    Plus,
    Minus,
    Not,
}

/// The arguments of a call.
#[derive(Debug, Default)]
pub struct Arguments {
    pub positional: Vec<Expr>,
    pub named: Vec<(Name, Expr)>,
    pub spread: Option<Box<Expr>>,
    pub spread_named: Option<Box<Expr>>,
}

#[derive(Debug)]
pub struct Call {
    pub line: u32,
    pub callee: Expr,
    pub arguments: Arguments,
}

/// A filter or a test.
#[derive(Debug)]
pub struct Applied {
    pub line: u32,
    /// None: the body of the filter block.
    pub to: Option<Expr>,
    pub name: Name,
    pub arguments: Arguments,
}

#[derive(Debug)]
pub enum Expr {
    Const(Const),
    Name(Name, Slot),
    Tuple(Vec<Expr>),
    List(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Unary(Unary, Box<Expr>),
    Binary(Binary, Box<(Expr, Expr)>),
    And(Box<(Expr, Expr)>),
    Or(Box<(Expr, Expr)>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    Concat(Vec<Expr>),
    /// `then if test else otherwise`: test, then, otherwise; and the line.
    Conditional(Box<(Expr, Expr, Option<Expr>)>, u32),
    Attribute(Box<Expr>, Name),
    Item(Box<(Expr, Expr)>),
    Slice(Box<(Expr, [Option<Expr>; 3])>),
    Call(Box<Call>),
    Filter(Box<Applied>),
    Test(Box<Applied>),
}

#[derive(Debug)]
pub enum Target {
    Name(Name, Slot),
    /// An attribute of a namespace.
    Attribute(Name, Slot, Name),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub struct For {
    pub target: Target,
    pub iterable: Expr,
    pub test: Option<Test>,
    pub recursive: bool,
    pub body: Vec<Stmt>,
    pub otherwise: Vec<Stmt>,
    /// Where `loop` is kept, if the body uses it.
    pub looped: Option<Slot>,
    pub scope: Scope,
    pub otherwise_scope: Scope,
    /// The slots of a recursive loop's own function.
    pub slots: usize,
}

/// The condition of a loop, which runs in a function of its own.
#[derive(Debug)]
pub struct Test {
    pub condition: Expr,
    pub target: Target,
    pub scope: Scope,
    pub slots: usize,
}

/// A macro, a call block's body or a generation block's.
#[derive(Debug)]
pub struct Macro {
    /// None: a call block.
    pub name: Option<Name>,
    pub parameters: Vec<(Name, Slot)>,
    /// The defaults of the last parameters.
    pub defaults: Vec<Expr>,
    pub body: Vec<Stmt>,
    pub caller: Option<Slot>,
    pub named: Option<Slot>,
    pub rest: Option<Slot>,
    pub accesses_caller: bool,
    pub scope: Scope,
    pub slots: usize,
}

#[derive(Debug)]
pub struct SetBlock {
    pub target: Target,
    pub filter: Option<Expr>,
    pub body: Vec<Stmt>,
    pub scope: Scope,
    pub exported: bool,
}

#[derive(Debug)]
pub struct With {
    pub bound: Vec<(Target, Expr)>,
    pub body: Vec<Stmt>,
    pub scope: Scope,
}

#[derive(Debug)]
pub struct FilterBlock {
    pub filter: Expr,
    pub body: Vec<Stmt>,
    pub scope: Scope,
}

#[derive(Debug)]
pub struct Stmt {
    pub line: u32,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    Data(String),
    Print(Vec<Expr>),
    For(Arc<For>),
    /// Conditions with their bodies, and the else.
    If(Vec<(u32, Expr, Vec<Stmt>)>, Vec<Stmt>),
    /// Whether the names become variables that blocks and macros see.
    Set(Target, Expr, bool),
    SetBlock(Box<SetBlock>),
    Macro(Arc<Macro>, Slot, bool),
    CallBlock(Arc<Macro>, Box<Call>),
    Generation(Arc<Macro>),
    FilterBlock(Box<FilterBlock>),
    With(Box<With>),
    /// The block of this index; what a scoped one takes along.
    Block {
        name: Name,
        scoped: bool,
        required: bool,
        body: Vec<Stmt>,
        index: usize,
        locals: Vec<(Name, Slot)>,
    },
    Break,
    Continue,
}

/// A block, which is a function of its own.
#[derive(Debug)]
pub struct Block {
    pub name: Name,
    pub required: bool,
    pub body: Vec<Stmt>,
    pub scope: Scope,
    pub slots: usize,
    pub reference: Option<Slot>,
    pub parent: Option<Slot>,
}
