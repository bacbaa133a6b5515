//! The parser's expressions, with jinja2's precedences: `~` binds tighter than `+`, a sign tighter than
//! `**`, and a filter belongs to what stands before it.
#![forbid(unsafe_code)]

use super::ast::{Applied, Arguments, Binary, Call, Comparison, Const, Expr, Slot, Unary};
use super::lexer::Tok;
use super::parser::Parser;
use super::{Failure, fail_at};

type Res<T> = Result<T, Failure>;

/// How deeply brackets may be nested; jinja2's own parser gives up near here.
const MAX_BRACKETS: u32 = 80;
/// How tall an expression's tree may be; Python gives up at 200 parentheses.
const MAX_HEIGHT: u32 = 190;

/// An expression and the height of its tree.
pub struct Tree(pub Expr, pub u32);

impl Parser {
    fn grown(&self, expr: Expr, heights: impl IntoIterator<Item = u32>) -> Res<Tree> {
        let height = 1 + heights.into_iter().max().unwrap_or(0);
        if height > MAX_HEIGHT {
            return Err(fail_at(self.line(), "the expression is nested too deeply; break it up with {% set %}"));
        }
        Ok(Tree(expr, height))
    }

    /// A whole expression.
    pub fn expression(&mut self, with_conditional: bool) -> Res<Tree> {
        self.brackets += 1;
        if self.brackets > MAX_BRACKETS {
            return Err(fail_at(self.line(), "the expression is nested too deeply; break it up with {% set %}"));
        }
        let tree = if with_conditional { self.conditional() } else { self.or() };
        self.brackets -= 1;
        tree
    }

    fn conditional(&mut self) -> Res<Tree> {
        let mut line = self.line();
        let mut tree = self.or()?;
        while self.skip_name("if") {
            let test = self.or()?;
            let otherwise = if self.skip_name("else") { Some(self.expression(true)?) } else { None };
            let heights = [tree.1, test.1, otherwise.as_ref().map_or(0, |tree| tree.1)];
            let parts = (test.0, tree.0, otherwise.map(|tree| tree.0));
            tree = self.grown(Expr::Conditional(Box::new(parts), line), heights)?;
            line = self.line();
        }
        Ok(tree)
    }

    fn or(&mut self) -> Res<Tree> {
        let mut left = self.and()?;
        while self.skip_name("or") {
            let right = self.and()?;
            left = self.grown(Expr::Or(Box::new((left.0, right.0))), [left.1, right.1])?;
        }
        Ok(left)
    }

    fn and(&mut self) -> Res<Tree> {
        let mut left = self.not()?;
        while self.skip_name("and") {
            let right = self.not()?;
            left = self.grown(Expr::And(Box::new((left.0, right.0))), [left.1, right.1])?;
        }
        Ok(left)
    }

    fn not(&mut self) -> Res<Tree> {
        let mut negations = 0;
        while self.skip_name("not") {
            negations += 1;
        }
        let mut tree = self.comparison()?;
        for _ in 0..negations {
            tree = self.grown(Expr::Unary(Unary::Not, Box::new(tree.0)), [tree.1])?;
        }
        Ok(tree)
    }

    fn comparison(&mut self) -> Res<Tree> {
        let first = self.sum()?;
        let mut height = first.1;
        let mut rest = Vec::new();
        loop {
            let op = match self.tok() {
                Tok::Op("==") => Comparison::Equal,
                Tok::Op("!=") => Comparison::NotEqual,
                Tok::Op("<") => Comparison::Less,
                Tok::Op("<=") => Comparison::LessEqual,
                Tok::Op(">") => Comparison::Greater,
                Tok::Op(">=") => Comparison::GreaterEqual,
                Tok::Name(name) if &**name == "in" => Comparison::In,
                Tok::Name(name) if &**name == "not" && self.looks_at_name(1, "in") => {
                    self.next();
                    Comparison::NotIn
                }
                _ => break,
            };
            self.next();
            let right = self.sum()?;
            height = height.max(right.1);
            rest.push((op, right.0));
        }
        if rest.is_empty() {
            return Ok(first);
        }
        self.grown(Expr::Compare(Box::new(first.0), rest), [height])
    }

    fn sum(&mut self) -> Res<Tree> {
        let mut left = self.concat()?;
        loop {
            let op = match self.tok() {
                Tok::Op("+") => Binary::Add,
                Tok::Op("-") => Binary::Subtract,
                _ => return Ok(left),
            };
            self.next();
            let right = self.concat()?;
            left = self.grown(Expr::Binary(op, Box::new((left.0, right.0))), [left.1, right.1])?;
        }
    }

    fn concat(&mut self) -> Res<Tree> {
        let first = self.product()?;
        if !self.is_op("~") {
            return Ok(first);
        }
        let mut height = first.1;
        let mut parts = vec![first.0];
        while self.skip_op("~") {
            let part = self.product()?;
            height = height.max(part.1);
            parts.push(part.0);
        }
        self.grown(Expr::Concat(parts), [height])
    }

    fn product(&mut self) -> Res<Tree> {
        let mut left = self.power()?;
        loop {
            let op = match self.tok() {
                Tok::Op("*") => Binary::Multiply,
                Tok::Op("/") => Binary::Divide,
                Tok::Op("//") => Binary::FloorDivide,
                Tok::Op("%") => Binary::Modulo,
                _ => return Ok(left),
            };
            self.next();
            let right = self.power()?;
            left = self.grown(Expr::Binary(op, Box::new((left.0, right.0))), [left.1, right.1])?;
        }
    }

    fn power(&mut self) -> Res<Tree> {
        let mut left = self.unary(true)?;
        while self.skip_op("**") {
            let right = self.unary(true)?;
            left = self.grown(Expr::Binary(Binary::Power, Box::new((left.0, right.0))), [left.1, right.1])?;
        }
        Ok(left)
    }

    fn unary(&mut self, with_filter: bool) -> Res<Tree> {
        // A sign's operand takes its own subscripts; what the sign makes takes further ones.
        let mut signs = Vec::new();
        while let Tok::Op(op @ ("-" | "+")) = self.tok() {
            signs.push(if *op == "-" { Unary::Minus } else { Unary::Plus });
            self.next();
        }
        let mut tree = self.primary()?;
        tree = self.postfix(tree)?;
        for sign in signs.into_iter().rev() {
            tree = self.grown(Expr::Unary(sign, Box::new(tree.0)), [tree.1])?;
            tree = self.postfix(tree)?;
        }
        if with_filter { self.filters_and_tests(tree) } else { Ok(tree) }
    }

    /// A name, a literal, or an expression in brackets.
    pub fn primary(&mut self) -> Res<Tree> {
        let token = self.current().clone();
        let leaf = |constant| Ok(Tree(Expr::Const(constant), 1));
        match token.tok {
            Tok::Name(name) => {
                self.next();
                match &*name {
                    "true" | "True" => leaf(Const::Bool(true)),
                    "false" | "False" => leaf(Const::Bool(false)),
                    "none" | "None" => leaf(Const::None),
                    _ => Ok(Tree(Expr::Name(name, Slot::default()), 1)),
                }
            }
            Tok::Str(mut text) => {
                self.next();
                while let Tok::Str(more) = self.tok() {
                    text.push_str(more);
                    self.next();
                }
                let chars = text.chars().count();
                leaf(Const::Str(text.into(), chars))
            }
            Tok::Int(n) => {
                self.next();
                leaf(i64::try_from(&n).map_or(Const::Big(n), Const::Int))
            }
            Tok::Float(x) => {
                self.next();
                leaf(Const::Float(x))
            }
            Tok::Op("(") => {
                self.next();
                let tree = self.tuple(true, true, &[])?;
                self.expect_op(")")?;
                Ok(tree)
            }
            Tok::Op("[") => self.list(),
            Tok::Op("{") => self.dict(),
            other => Err(fail_at(token.line, format!("unexpected '{}'", other.describe()))),
        }
    }

    /// Expressions with commas between them, or a single one.
    pub fn tuple(&mut self, with_conditional: bool, bracketed: bool, ends: &[&str]) -> Res<Tree> {
        let mut items = Vec::new();
        let mut heights = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() {
                self.expect_op(",")?;
            }
            if self.ends_tuple(ends) {
                break;
            }
            let item = self.expression(with_conditional)?;
            items.push(item.0);
            heights.push(item.1);
            if !self.is_op(",") {
                break;
            }
            is_tuple = true;
        }
        if !is_tuple {
            match (items.pop(), heights.pop()) {
                (Some(item), Some(height)) => return Ok(Tree(item, height)),
                _ if bracketed => {}
                _ => {
                    let found = self.tok().describe();
                    return Err(fail_at(self.line(), format!("Expected an expression, got '{found}'")));
                }
            }
        }
        self.grown(Expr::Tuple(items), heights)
    }

    /// Whether a tuple without brackets ends here.
    pub fn ends_tuple(&self, ends: &[&str]) -> bool {
        match self.tok() {
            Tok::PrintEnd | Tok::BlockEnd | Tok::Op(")") => true,
            Tok::Name(name) => ends.contains(&&**name),
            _ => false,
        }
    }

    fn list(&mut self) -> Res<Tree> {
        self.expect_op("[")?;
        let mut items = Vec::new();
        let mut heights = Vec::new();
        while !self.is_op("]") {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.is_op("]") {
                    break;
                }
            }
            let item = self.expression(true)?;
            items.push(item.0);
            heights.push(item.1);
        }
        self.expect_op("]")?;
        self.grown(Expr::List(items), heights)
    }

    fn dict(&mut self) -> Res<Tree> {
        self.expect_op("{")?;
        let mut items = Vec::new();
        let mut heights = Vec::new();
        while !self.is_op("}") {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.is_op("}") {
                    break;
                }
            }
            let key = self.expression(true)?;
            self.expect_op(":")?;
            let value = self.expression(true)?;
            heights.push(key.1.max(value.1));
            items.push((key.0, value.0));
        }
        self.expect_op("}")?;
        self.grown(Expr::Dict(items), heights)
    }

    fn postfix(&mut self, mut tree: Tree) -> Res<Tree> {
        loop {
            tree = match self.tok() {
                Tok::Op(".") | Tok::Op("[") => self.subscript(tree)?,
                Tok::Op("(") => self.call(tree)?,
                _ => return Ok(tree),
            };
        }
    }

    fn filters_and_tests(&mut self, mut tree: Tree) -> Res<Tree> {
        loop {
            tree = match self.tok() {
                Tok::Op("|") => {
                    self.next();
                    self.filter(Some(tree))?
                }
                Tok::Op("(") => self.call(tree)?,
                Tok::Name(name) if &**name == "is" => self.test(tree)?,
                _ => return Ok(tree),
            };
        }
    }

    fn subscript(&mut self, of: Tree) -> Res<Tree> {
        let line = self.line();
        if self.skip_op(".") {
            let token = self.next();
            return match token.tok {
                Tok::Name(name) => self.grown(Expr::Attribute(Box::new(of.0), name), [of.1]),
                Tok::Int(n) => {
                    let index = i64::try_from(&n).map_or(Const::Big(n), Const::Int);
                    self.grown(Expr::Item(Box::new((of.0, Expr::Const(index)))), [of.1])
                }
                _ => Err(fail_at(token.line, "expected name or number")),
            };
        }
        self.expect_op("[")?;
        let mut items: Vec<Expr> = Vec::new();
        let mut height = of.1;
        let mut slice = None;
        while !self.is_op("]") {
            if slice.is_some() || !items.is_empty() {
                self.expect_op(",")?;
                if slice.is_some() {
                    return Err(fail_at(line, "a slice inside a tuple is not a subscript"));
                }
            }
            let mut parts = [None, None, None];
            let mut at = 0;
            let mut colon = false;
            while at < 3 && !self.is_op("]") && !self.is_op(",") {
                if at < 2 && self.skip_op(":") {
                    colon = true;
                    at += 1;
                } else {
                    let part = self.expression(true)?;
                    height = height.max(part.1);
                    parts[at] = Some(part.0);
                    if !self.is_op(":") {
                        break;
                    }
                    if at == 2 {
                        break;
                    }
                }
            }
            match (colon, parts) {
                (false, [Some(item), ..]) => items.push(item),
                (false, _) => return Err(fail_at(line, "expected subscript expression")),
                (true, parts) if items.is_empty() => slice = Some(parts),
                (true, _) => return Err(fail_at(line, "a slice inside a tuple is not a subscript")),
            }
        }
        self.expect_op("]")?;
        let expr = match (slice, items.len()) {
            (Some(parts), _) => Expr::Slice(Box::new((of.0, parts))),
            (None, 1) => Expr::Item(Box::new((of.0, items.remove(0)))),
            (None, _) => Expr::Item(Box::new((of.0, Expr::Tuple(items)))),
        };
        self.grown(expr, [height])
    }

    fn arguments(&mut self) -> Res<(Arguments, u32)> {
        let line = self.line();
        self.expect_op("(")?;
        let mut arguments = Arguments::default();
        let mut height = 0;
        let mut comma_due = false;
        let wrong = || fail_at(line, "invalid syntax for function call expression");
        while !self.is_op(")") {
            if comma_due {
                self.expect_op(",")?;
                if self.is_op(")") {
                    break;
                }
            }
            comma_due = true;
            let closed = arguments.spread.is_some() || arguments.spread_named.is_some();
            if self.skip_op("*") {
                if closed {
                    return Err(wrong());
                }
                let tree = self.expression(true)?;
                height = height.max(tree.1);
                arguments.spread = Some(Box::new(tree.0));
            } else if self.skip_op("**") {
                if arguments.spread_named.is_some() {
                    return Err(wrong());
                }
                let tree = self.expression(true)?;
                height = height.max(tree.1);
                arguments.spread_named = Some(Box::new(tree.0));
            } else if let (Tok::Name(name), true) = (self.tok().clone(), self.looks_at_op(1, "=")) {
                if arguments.spread_named.is_some() {
                    return Err(wrong());
                }
                self.next();
                self.next();
                let tree = self.expression(true)?;
                height = height.max(tree.1);
                if arguments.named.iter().any(|(other, _)| *other == name) {
                    return Err(fail_at(line, format!("keyword argument repeated: {name}")));
                }
                arguments.named.push((name, tree.0));
            } else {
                if closed || !arguments.named.is_empty() {
                    return Err(wrong());
                }
                let tree = self.expression(true)?;
                height = height.max(tree.1);
                arguments.positional.push(tree.0);
            }
        }
        self.expect_op(")")?;
        Ok((arguments, height))
    }

    fn call(&mut self, callee: Tree) -> Res<Tree> {
        let line = self.line();
        let (arguments, height) = self.arguments()?;
        let call = Call { line, callee: callee.0, arguments };
        self.grown(Expr::Call(Box::new(call)), [callee.1, height])
    }

    fn dotted_name(&mut self) -> Res<super::ast::Name> {
        let mut name = self.expect_name()?;
        while self.skip_op(".") {
            name = format!("{name}.{}", self.expect_name()?).into();
        }
        Ok(name)
    }

    /// A filter, after its `|`.
    pub fn filter(&mut self, to: Option<Tree>) -> Res<Tree> {
        let line = self.line();
        let name = self.dotted_name()?;
        let (arguments, height) = if self.is_op("(") { self.arguments()? } else { Default::default() };
        let heights = [to.as_ref().map_or(0, |tree| tree.1), height];
        let applied = Applied { line, to: to.map(|tree| tree.0), name, arguments };
        self.grown(Expr::Filter(Box::new(applied)), heights)
    }

    fn test(&mut self, of: Tree) -> Res<Tree> {
        let line = self.line();
        self.next();
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let mut height = of.1;
        let mut arguments = Arguments::default();
        let takes_one = match self.tok() {
            Tok::Name(name) => !matches!(&**name, "else" | "or" | "and"),
            Tok::Str(_) | Tok::Int(_) | Tok::Float(_) | Tok::Op("[" | "{") => true,
            _ => false,
        };
        if self.is_op("(") {
            let (given, inner) = self.arguments()?;
            arguments = given;
            height = height.max(inner);
        } else if takes_one {
            if self.looks_at_name(0, "is") {
                return Err(fail_at(self.line(), "You cannot chain multiple tests with is"));
            }
            let tree = self.primary()?;
            let tree = self.postfix(tree)?;
            height = height.max(tree.1);
            arguments.positional.push(tree.0);
        }
        let tree = self.grown(Expr::Test(Box::new(Applied { line, to: Some(of.0), name, arguments })), [height])?;
        if negated { self.grown(Expr::Unary(Unary::Not, Box::new(tree.0)), [tree.1]) } else { Ok(tree) }
    }
}
