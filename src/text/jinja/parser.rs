//! Tokens into statements.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::ast::{Call, Expr, FilterBlock, For, Macro, Name, Scope, SetBlock, Slot, Stmt, Target, Test, What, With};
use super::lexer::{Tok, Token};
use super::{Failure, fail_at};

type Res<T> = Result<T, Failure>;
/// Parameters, and the defaults of the last of them.
type Signature = (Vec<(Name, Slot)>, Vec<Expr>);

/// How deeply statements may be nested; Python gives up at 100 indents, and at 20 loops.
const MAX_STATEMENTS: u32 = 40;

pub struct Parser {
    tokens: Vec<Token>,
    at: usize,
    pub brackets: u32,
    statements: u32,
    /// The tags that are open, for error messages.
    open: Vec<Name>,
}

/// The statements of a whole template.
pub fn parse(tokens: Vec<Token>) -> Res<Vec<Stmt>> {
    let mut parser = Parser { tokens, at: 0, brackets: 0, statements: 0, open: Vec::new() };
    parser.body(&[])
}

impl Parser {
    pub fn current(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    pub fn tok(&self) -> &Tok {
        &self.current().tok
    }

    pub fn line(&self) -> u32 {
        self.current().line
    }

    pub fn next(&mut self) -> Token {
        let token = self.current().clone();
        self.at += 1;
        token
    }

    fn look(&self, n: usize) -> &Tok {
        &self.tokens[(self.at + n).min(self.tokens.len() - 1)].tok
    }

    pub fn looks_at_name(&self, n: usize, name: &str) -> bool {
        matches!(self.look(n), Tok::Name(found) if &**found == name)
    }

    pub fn looks_at_op(&self, n: usize, op: &str) -> bool {
        matches!(self.look(n), Tok::Op(found) if *found == op)
    }

    pub fn is_op(&self, op: &str) -> bool {
        self.looks_at_op(0, op)
    }

    pub fn skip_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        self.at += found as usize;
        found
    }

    pub fn skip_name(&mut self, name: &str) -> bool {
        let found = self.looks_at_name(0, name);
        self.at += found as usize;
        found
    }

    fn unexpected<T>(&self, wanted: &str) -> Res<T> {
        Err(fail_at(
            self.line(),
            match self.tok() {
                Tok::End => format!("unexpected end of template, expected '{wanted}'."),
                found => format!("expected token '{wanted}', got '{}'", found.describe()),
            },
        ))
    }

    pub fn expect_op(&mut self, op: &str) -> Res<()> {
        if self.skip_op(op) { Ok(()) } else { self.unexpected(op) }
    }

    pub fn expect_name(&mut self) -> Res<Name> {
        match self.tok().clone() {
            Tok::Name(name) => {
                self.next();
                Ok(name)
            }
            _ => self.unexpected("name"),
        }
    }

    fn expect(&mut self, tok: Tok) -> Res<()> {
        if *self.tok() == tok {
            self.next();
            return Ok(());
        }
        self.unexpected(&tok.describe())
    }

    /// Statements up to a tag with one of these names, which is left to be read.
    fn body(&mut self, ends: &[&str]) -> Res<Vec<Stmt>> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            match self.tok().clone() {
                Tok::End if ends.is_empty() => return Ok(body),
                Tok::End => {
                    let looking = ends.iter().map(|end| format!("'{end}'")).collect::<Vec<_>>().join(" or ");
                    let open = self.open.last().map_or(String::new(), |tag| {
                        format!(" The innermost block that needs to be closed is '{tag}'.")
                    });
                    let why = "Unexpected end of template. Jinja was looking for the following tags:";
                    return Err(fail_at(line, format!("{why} {looking}.{open}")));
                }
                Tok::Data(text) => {
                    self.next();
                    body.push(Stmt { line, what: What::Data(text) });
                }
                Tok::PrintBegin => {
                    self.next();
                    let expr = self.tuple(true, false, &[])?;
                    self.expect(Tok::PrintEnd)?;
                    body.push(Stmt { line, what: What::Print(vec![expr.0]) });
                }
                Tok::BlockBegin => {
                    self.next();
                    if let Tok::Name(name) = self.tok()
                        && ends.contains(&&**name)
                    {
                        return Ok(body);
                    }
                    let what = self.statement()?;
                    self.expect(Tok::BlockEnd)?;
                    body.push(Stmt { line, what });
                }
                other => return Err(fail_at(line, format!("unexpected '{}'", other.describe()))),
            }
        }
    }

    /// The body of a statement, after its tag's head.
    fn inner(&mut self, ends: &[&str]) -> Res<Vec<Stmt>> {
        self.skip_op(":");
        self.expect(Tok::BlockEnd)?;
        self.statements += 1;
        if self.statements > MAX_STATEMENTS {
            return Err(fail_at(self.line(), format!("statements are nested more than {MAX_STATEMENTS} deep")));
        }
        let body = self.body(ends);
        self.statements -= 1;
        body
    }

    /// The same, and its end tag's name.
    fn inner_to(&mut self, end: &str) -> Res<Vec<Stmt>> {
        let body = self.inner(&[end])?;
        self.next();
        Ok(body)
    }

    fn statement(&mut self) -> Res<What> {
        let line = self.line();
        let Tok::Name(tag) = self.tok().clone() else { return Err(fail_at(line, "tag name expected")) };
        self.next();
        self.open.push(tag.clone());
        let what = match &*tag {
            "for" => self.for_loop()?,
            "if" => self.condition(line)?,
            "set" => self.set()?,
            "macro" => {
                let name = self.expect_name()?;
                assignable(&name, line)?;
                let of = self.macro_of(Some(name), true, "endmacro")?;
                What::Macro(Arc::new(of), Slot::default(), false)
            }
            "call" => self.call_block(line)?,
            "filter" => self.filter_block()?,
            "with" => self.with()?,
            "block" => self.block()?,
            "print" => {
                let mut items = Vec::new();
                while *self.tok() != Tok::BlockEnd {
                    if !items.is_empty() {
                        self.expect_op(",")?;
                    }
                    items.push(self.expression(true)?.0);
                }
                What::Print(items)
            }
            "generation" => What::Generation(Arc::new(self.macro_of(None, false, "endgeneration")?)),
            "break" => What::Break,
            "continue" => What::Continue,
            "include" | "import" | "from" | "extends" => {
                let why = format!(
                    "{{% {tag} %}} is not supported: a chat template stands alone; put the text of the other template in its place"
                );
                return Err(fail_at(line, why));
            }
            "autoescape" | "trans" | "do" | "debug" => {
                return Err(fail_at(line, format!("{{% {tag} %}} is not supported in chat templates")));
            }
            _ => {
                let nested = if tag.starts_with("end") || matches!(&*tag, "else" | "elif") {
                    " A block is closed or continued that is not open here."
                } else {
                    ""
                };
                return Err(fail_at(line, format!("Encountered unknown tag '{tag}'.{nested}")));
            }
        };
        self.open.pop();
        Ok(what)
    }

    fn for_loop(&mut self) -> Res<What> {
        let target_at = self.at;
        let target = self.targets(&["in"], false)?;
        if !self.skip_name("in") {
            return self.unexpected("in");
        }
        let iterable = self.tuple(false, false, &["recursive"])?.0;
        let test = if self.skip_name("if") {
            let condition = self.expression(true)?.0;
            // The condition's function binds the same names again.
            let resume = std::mem::replace(&mut self.at, target_at);
            let target = self.targets(&["in"], false)?;
            self.at = resume;
            Some(Test { condition, target, scope: Scope::default(), slots: 0 })
        } else {
            None
        };
        let recursive = self.skip_name("recursive");
        let body = self.inner(&["endfor", "else"])?;
        let otherwise = match self.next().tok {
            Tok::Name(name) if &*name == "else" => self.inner_to("endfor")?,
            _ => Vec::new(),
        };
        let (scope, otherwise_scope) = (Scope::default(), Scope::default());
        let looped = None;
        Ok(What::For(Arc::new(For {
            target,
            iterable,
            test,
            recursive,
            body,
            otherwise,
            looped,
            scope,
            otherwise_scope,
            slots: 0,
        })))
    }

    fn condition(&mut self, line: u32) -> Res<What> {
        let mut arms = Vec::new();
        let mut line = line;
        loop {
            let test = self.tuple(false, false, &[])?.0;
            let body = self.inner(&["elif", "else", "endif"])?;
            arms.push((line, test, body));
            line = self.line();
            match self.next().tok {
                Tok::Name(name) if &*name == "elif" => {}
                Tok::Name(name) if &*name == "else" => return Ok(What::If(arms, self.inner_to("endif")?)),
                _ => return Ok(What::If(arms, Vec::new())),
            }
        }
    }

    fn set(&mut self) -> Res<What> {
        let target = self.targets(&[], true)?;
        if self.skip_op("=") {
            return Ok(What::Set(target, self.tuple(true, false, &[])?.0, false));
        }
        let mut filter = None;
        while self.skip_op("|") {
            filter = Some(self.filter(filter)?);
        }
        let body = self.inner_to("endset")?;
        let filter = filter.map(|tree| tree.0);
        Ok(What::SetBlock(Box::new(SetBlock { target, filter, body, scope: Scope::default(), exported: false })))
    }

    fn with(&mut self) -> Res<What> {
        let mut bound = Vec::new();
        while *self.tok() != Tok::BlockEnd {
            if !bound.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.targets(&[], false)?;
            self.expect_op("=")?;
            bound.push((target, self.expression(true)?.0));
        }
        let body = self.inner_to("endwith")?;
        Ok(What::With(Box::new(With { bound, body, scope: Scope::default() })))
    }

    fn call_block(&mut self, line: u32) -> Res<What> {
        // The body comes after the call, so the signature is read first and kept.
        let (parameters, defaults) = if self.is_op("(") { self.signature()? } else { Default::default() };
        let Expr::Call(call) = self.expression(true)?.0 else { return Err(fail_at(line, "expected call")) };
        let body = self.inner_to("endcall")?;
        Ok(What::CallBlock(Arc::new(new_macro(None, parameters, defaults, body)), call as Box<Call>))
    }

    fn macro_of(&mut self, name: Option<Name>, signed: bool, end: &str) -> Res<Macro> {
        let (parameters, defaults) = if signed { self.signature()? } else { Default::default() };
        let body = self.inner_to(end)?;
        Ok(new_macro(name, parameters, defaults, body))
    }

    fn signature(&mut self) -> Res<Signature> {
        let mut parameters: Vec<(Name, Slot)> = Vec::new();
        let mut defaults = Vec::new();
        self.expect_op("(")?;
        while !self.is_op(")") {
            if !parameters.is_empty() {
                self.expect_op(",")?;
            }
            let line = self.line();
            let name = self.expect_name()?;
            assignable(&name, line)?;
            if parameters.iter().any(|(other, _)| *other == name) {
                return Err(fail_at(line, format!("duplicate argument '{name}' in function definition")));
            }
            if self.skip_op("=") {
                defaults.push(self.expression(true)?.0);
            } else if !defaults.is_empty() {
                return Err(fail_at(line, "non-default argument follows default argument"));
            }
            parameters.push((name, Slot::default()));
        }
        self.expect_op(")")?;
        Ok((parameters, defaults))
    }

    fn filter_block(&mut self) -> Res<What> {
        let mut filter = self.filter(None)?;
        while self.skip_op("|") {
            filter = self.filter(Some(filter))?;
        }
        let body = self.inner_to("endfilter")?;
        Ok(What::FilterBlock(Box::new(FilterBlock { filter: filter.0, body, scope: Scope::default() })))
    }

    fn block(&mut self) -> Res<What> {
        let name = self.expect_name()?;
        let scoped = self.skip_name("scoped");
        let required = self.skip_name("required");
        let line = self.line();
        if self.is_op("-") {
            return Err(fail_at(
                line,
                "Block names in Jinja have to be valid Python identifiers and may not contain hyphens, use an underscore instead.",
            ));
        }
        let body = self.inner_to("endblock")?;
        let blank = |stmt: &Stmt| matches!(&stmt.what, What::Data(text) if text.chars().all(super::strings::is_space));
        if required && !body.iter().all(blank) {
            return Err(fail_at(line, "Required blocks can only contain comments or whitespace"));
        }
        self.skip_name(&name);
        Ok(What::Block { name, scoped, required, body, index: 0, locals: Vec::new() })
    }

    /// What is assigned to: names, and tuples of them.
    fn targets(&mut self, ends: &[&str], with_attributes: bool) -> Res<Target> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() {
                self.expect_op(",")?;
            }
            if self.ends_tuple(ends) {
                break;
            }
            items.push(self.target(with_attributes)?);
            if !self.is_op(",") {
                break;
            }
            is_tuple = true;
        }
        if !is_tuple {
            return match items.pop() {
                Some(target) => Ok(target),
                None => {
                    let found = self.tok().describe();
                    Err(fail_at(self.line(), format!("Expected an expression, got '{found}'")))
                }
            };
        }
        Ok(Target::Tuple(items))
    }

    fn target(&mut self, with_attributes: bool) -> Res<Target> {
        let line = self.line();
        if let Tok::Name(name) = self.tok().clone() {
            self.next();
            assignable(&name, line)?;
            if with_attributes && self.skip_op(".") {
                return Ok(Target::Attribute(name, Slot::default(), self.expect_name()?));
            }
            return Ok(Target::Name(name, Slot::default()));
        }
        if self.is_op("(") {
            self.brackets += 1;
            if self.brackets > 20 {
                return Err(fail_at(line, "the target is nested too deeply"));
            }
            self.next();
            // Within brackets a namespace's attribute is an expression, to which nothing is assigned.
            let target = if self.is_op(")") { Target::Tuple(Vec::new()) } else { self.targets(&[], false)? };
            self.expect_op(")")?;
            self.brackets -= 1;
            return Ok(target);
        }
        let found = self.tok().describe();
        Err(fail_at(line, format!("can't assign to '{found}'")))
    }
}

fn assignable(name: &str, line: u32) -> Res<()> {
    match name {
        "true" | "false" | "none" | "True" | "False" | "None" => {
            Err(fail_at(line, format!("can't assign to '{name}'")))
        }
        _ => Ok(()),
    }
}

fn new_macro(name: Option<Name>, parameters: Vec<(Name, Slot)>, defaults: Vec<Expr>, body: Vec<Stmt>) -> Macro {
    Macro {
        name,
        parameters,
        defaults,
        body,
        caller: None,
        named: None,
        rest: None,
        accesses_caller: false,
        scope: Scope::default(),
        slots: 0,
    }
}
