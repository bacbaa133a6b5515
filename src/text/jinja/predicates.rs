//! The tests: what stands behind `is`.
#![forbid(unsafe_code)]

use super::args::Args;
use super::ast::{Binary, Comparison};
use super::eval::Machine;
use super::value::{Object, Value};
use super::{Failure, fail, filters, operators, repr, strings};

type Res<T> = Result<T, Failure>;

const NAMES: [&str; 39] = [
    "odd",
    "even",
    "divisibleby",
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "lower",
    "upper",
    "string",
    "mapping",
    "number",
    "sequence",
    "iterable",
    "callable",
    "sameas",
    "escaped",
    "in",
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    "ge",
    ">=",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
];

/// Whether there is a test of this name.
pub fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

fn comparison(name: &str) -> Option<Comparison> {
    Some(match name {
        "==" | "eq" | "equalto" => Comparison::Equal,
        "!=" | "ne" => Comparison::NotEqual,
        ">" | "gt" | "greaterthan" => Comparison::Greater,
        ">=" | "ge" => Comparison::GreaterEqual,
        "<" | "lt" | "lessthan" => Comparison::Less,
        "<=" | "le" => Comparison::LessEqual,
        _ => return None,
    })
}

/// Whether `value is name(args)` holds.
pub fn apply(machine: &mut Machine<'_>, name: &str, value: &Value, args: Args) -> Res<bool> {
    machine.meter.step(1)?;
    if let Some(op) = comparison(name) {
        let [other] = args.plain(name, 1)?;
        return machine.holds(op, value, &other.unwrap_or(Value::None));
    }
    match name {
        "divisibleby" => {
            let [by] = args.bind(name, ["num"], 1)?;
            let rest = operators::binary(Binary::Modulo, value, &by.unwrap_or(Value::None), &mut machine.meter)?;
            return operators::equal(&rest, &Value::Int(0), &mut machine.meter);
        }
        "sameas" => {
            let [other] = args.bind(name, ["other"], 1)?;
            return Ok(operators::same(value, &other.unwrap_or(Value::None)));
        }
        "in" => {
            let [hay] = args.bind(name, ["seq"], 1)?;
            return machine.contains(&hay.unwrap_or(Value::None), value);
        }
        _ if !exists(name) => return Err(fail(format!("No test named {}.", repr::quoted(name)))),
        _ => {}
    }
    args.plain::<0>(name, 0)?;
    Ok(match name {
        "odd" | "even" => {
            let rest = operators::binary(Binary::Modulo, value, &Value::Int(2), &mut machine.meter)?;
            operators::equal(&rest, &Value::Int((name == "odd") as i64), &mut machine.meter)?
        }
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "filter" | "test" => {
            // The name is looked up in a dictionary, so that it must be hashable.
            super::dict::Key::of(value, &mut machine.meter)?;
            let known = if name == "filter" { filters::exists } else { exists };
            value.as_str().is_some_and(known)
        }
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "false" => matches!(value, Value::Bool(false)),
        "true" => matches!(value, Value::Bool(true)),
        "integer" => matches!(value, Value::Int(_) | Value::Big(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Bool(_) | Value::Int(_) | Value::Big(_) | Value::Float(_)),
        "string" => matches!(value, Value::Str(_)),
        "escaped" => matches!(value, Value::Str(text) if text.markup),
        "mapping" => matches!(value, Value::Dict(_)),
        "lower" => strings::is_lower(&repr::text(value, &mut machine.meter)?.text),
        "upper" => strings::is_upper(&repr::text(value, &mut machine.meter)?.text),
        "sequence" => matches!(
            value,
            Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Dict(_) | Value::Range(_) | Value::Undefined(_)
        ),
        "iterable" => match value {
            Value::Object(object) => matches!(**object, Object::Loop(_)),
            Value::None | Value::Bool(_) | Value::Int(_) | Value::Big(_) | Value::Float(_) => false,
            _ => true,
        },
        _ => match value {
            Value::Undefined(_) => true,
            Value::Object(object) => match &**object {
                Object::Macro(_)
                | Object::Method { .. }
                | Object::Loop(_)
                | Object::Joiner { .. }
                | Object::Block(_) => true,
                Object::Global(_) => true,
                Object::Namespace(_) | Object::Cycler { .. } | Object::Template => false,
            },
            _ => false,
        },
    })
}
