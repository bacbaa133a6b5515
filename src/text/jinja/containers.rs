//! The methods of lists, tuples, dictionaries and numbers, and the attributes of objects.
#![forbid(unsafe_code)]

use std::rc::Rc;
use std::sync::Arc;

use super::args::{Args, integer_or};
use super::ast::Comparison;
use super::dict::Key;
use super::eval::Machine;
use super::value::{Global, Loop, Object, Undefined, Value, View};
use super::{Failure, fail, methods, operators};

type Res<T> = Result<T, Failure>;

/// `len(of)`.
pub fn length(machine: &mut Machine<'_>, of: &Value) -> Res<usize> {
    Ok(match of {
        Value::Str(text) => text.chars,
        Value::List(list) | Value::Tuple(list) => list.items.len(),
        Value::Dict(dict) | Value::View(_, dict) => dict.len(),
        Value::Range(range) => range.len() as usize,
        Value::Undefined(_) => 0,
        Value::Object(object) => match &**object {
            Object::Loop(looped) => loop_length(machine, looped)?,
            _ => return Err(fail(format!("object of type '{}' has no len()", of.kind()))),
        },
        other => return Err(fail(format!("object of type '{}' has no len()", other.kind()))),
    })
}

/// Calls a method of what is not a string.
pub fn call(machine: &mut Machine<'_>, of: &Value, name: &'static str, args: Args) -> Res<Value> {
    machine.meter.step(1)?;
    match (of, name) {
        (Value::Dict(dict), "get") => {
            let [key, default] = args.plain(name, 1)?;
            let key = key.unwrap_or(Value::None);
            let found = match &key {
                Value::Str(key) => {
                    machine.meter.read(key.text.len())?;
                    dict.get_str(&key.text)
                }
                key => dict.get(&Key::of(key, &mut machine.meter)?),
            };
            Ok(found.cloned().or(default).unwrap_or(Value::None))
        }
        (Value::Dict(dict), "items" | "keys" | "values") => {
            args.plain::<0>(name, 0)?;
            let view = match name {
                "items" => View::Items,
                "keys" => View::Keys,
                _ => View::Values,
            };
            Ok(Value::View(view, dict.clone()))
        }
        (Value::Dict(_) | Value::List(_), "copy") => {
            args.plain::<0>(name, 0)?;
            // Nothing changes a list or dictionary, so that it is its own copy.
            Ok(of.clone())
        }
        (Value::List(_) | Value::Tuple(_) | Value::Range(_), "count" | "index") => {
            let [needle, start, stop] = args.plain(name, 1)?;
            let items = machine.collect(of)?;
            find(machine, name, items, &needle.unwrap_or(Value::None), &start, &stop)
        }
        (Value::Int(_) | Value::Big(_) | Value::Bool(_) | Value::Float(_), "conjugate") => {
            args.plain::<0>(name, 0)?;
            operators::signed(of, false, &mut machine.meter)
        }
        (Value::Int(_) | Value::Bool(_), "bit_length") => {
            args.plain::<0>(name, 0)?;
            let n = operators::index(of).and_then(Result::ok).unwrap_or(0);
            Ok(Value::Int((64 - n.unsigned_abs().leading_zeros()) as i64))
        }
        (Value::Big(n), "bit_length") => {
            args.plain::<0>(name, 0)?;
            Ok(Value::Int(n.bits() as i64))
        }
        (Value::Float(x), "is_integer") => {
            args.plain::<0>(name, 0)?;
            Ok(Value::Bool(x.fract() == 0.0))
        }
        (Value::Object(object), _) => object_call(machine, object, name, args),
        _ => Err(fail(format!("the method {name} of {} is not supported in chat templates", of.kind()))),
    }
}

fn find(
    machine: &mut Machine<'_>,
    name: &str,
    items: Vec<Value>,
    needle: &Value,
    start: &Option<Value>,
    stop: &Option<Value>,
) -> Res<Value> {
    if name == "count" {
        if start.is_some() {
            return Err(fail("count() takes exactly one argument"));
        }
        let mut count = 0;
        for item in &items {
            count += machine.holds(Comparison::Equal, item, needle)? as i64;
        }
        return Ok(Value::Int(count));
    }
    let length = items.len() as i64;
    let clamp = |n: i64| (if n < 0 { n.saturating_add(length).max(0) } else { n }) as usize;
    let start = clamp(integer_or("index", start, 0)?);
    let stop = clamp(integer_or("index", stop, i64::MAX)?);
    for (n, item) in items.iter().enumerate().skip(start).take_while(|(n, _)| *n < stop) {
        if machine.holds(Comparison::Equal, item, needle)? {
            return Ok(Value::from(n));
        }
    }
    Err(fail("the value is not in the list"))
}

fn hidden(of: &Value, name: &Arc<str>) -> Value {
    Value::Undefined(Rc::new(Undefined::Unsafe { of: of.kind().into(), name: name.clone() }))
}

fn bound(of: &Value, name: &'static str) -> Res<Option<Value>> {
    Ok(Some(Value::object(Object::Method { of: of.clone(), name, depth: of.depth() + 1 })))
}

/// An attribute of an object of jinja2's own.
pub fn object_attribute(
    machine: &mut Machine<'_>,
    of: &Value,
    object: &Rc<Object>,
    name: &Arc<str>,
) -> Res<Option<Value>> {
    Ok(match &**object {
        Object::Namespace(attributes) => {
            let value = attributes.borrow().get_str(name).cloned();
            value.map(|value| if name.starts_with('_') { hidden(of, name) } else { value })
        }
        Object::Loop(looped) => return loop_attribute(machine, of, looped, name),
        Object::Cycler { items, at, .. } => match &**name {
            "items" => {
                machine.meter.elements(items.len())?;
                Some(Value::tuple(items.clone())?)
            }
            "pos" => Some(Value::from(at.get())),
            "current" => items.get(at.get()).cloned(),
            "next" => return bound(of, "next"),
            "reset" => return bound(of, "reset"),
            _ => None,
        },
        Object::Joiner { separator, used, .. } => match &**name {
            "sep" => Some(separator.clone()),
            "used" => Some(Value::Bool(used.get())),
            _ => None,
        },
        Object::Macro(of) => match &**name {
            "name" => Some(of.of.name.as_ref().map_or(Value::None, |name| Value::str(name.clone()))),
            "arguments" => {
                machine.meter.elements(2 * of.of.parameters.len())?;
                Some(Value::tuple(of.of.parameters.iter().map(|(name, _)| Value::str(name.clone())).collect())?)
            }
            "catch_kwargs" => Some(Value::Bool(of.of.named.is_some())),
            "catch_varargs" => Some(Value::Bool(of.of.rest.is_some())),
            "caller" => Some(Value::Bool(of.of.accesses_caller)),
            "explicit_caller" => Some(Value::Bool(of.of.parameters.iter().any(|(name, _)| &**name == "caller"))),
            _ => None,
        },
        Object::Global(Global::Dict)
            if matches!(&**name, "fromkeys" | "get" | "items" | "keys" | "values" | "copy") =>
        {
            return Err(methods::of_type(Global::Dict, name));
        }
        Object::Global(_) | Object::Method { .. } | Object::Template | Object::Block(_) => None,
    })
}

fn object_call(machine: &mut Machine<'_>, object: &Rc<Object>, name: &'static str, args: Args) -> Res<Value> {
    match (&**object, name) {
        (Object::Cycler { items, at, .. }, "next") => {
            args.plain::<0>(name, 0)?;
            let value = items.get(at.get()).cloned().unwrap_or(Value::None);
            at.set((at.get() + 1) % items.len().max(1));
            Ok(value)
        }
        (Object::Cycler { at, .. }, "reset") => {
            args.plain::<0>(name, 0)?;
            at.set(0);
            Ok(Value::None)
        }
        (Object::Loop(looped), "cycle") => {
            if !args.named.is_empty() {
                return Err(fail("cycle() got an unexpected keyword argument"));
            }
            let count = args.positional.len() as i64;
            if count == 0 {
                return Err(fail("no items for cycling given"));
            }
            Ok(args.positional[looped.index0.get().rem_euclid(count) as usize].clone())
        }
        (Object::Loop(looped), "changed") => {
            if !args.named.is_empty() {
                return Err(fail("changed() got an unexpected keyword argument"));
            }
            machine.meter.elements(args.positional.len())?;
            let last = looped.changed.borrow().clone();
            let same = match &last {
                Some(last) if last.len() == args.positional.len() => {
                    let mut same = true;
                    for (a, b) in last.iter().zip(&args.positional) {
                        same = same && (operators::same(a, b) || machine.holds(Comparison::Equal, a, b)?);
                    }
                    same
                }
                _ => false,
            };
            if !same {
                machine.kept_objects.push(object.clone());
                let old = looped.changed.replace(Some(args.positional));
                drop(old);
            }
            Ok(Value::Bool(!same))
        }
        _ => Err(fail(format!("'{name}' cannot be called"))),
    }
}

fn peek(machine: &mut Machine<'_>, looped: &Loop) -> Res<Option<Value>> {
    if looped.after.borrow().is_none() {
        let next = machine.next(&looped.source)?;
        *looped.after.borrow_mut() = next;
    }
    Ok(looped.after.borrow().clone())
}

fn loop_length(machine: &mut Machine<'_>, looped: &Loop) -> Res<usize> {
    if let Some(length) = looped.length.get() {
        return Ok(length);
    }
    let rest = machine.collect(&Value::Iter(looped.source.clone()))?;
    let length = rest.len() + (looped.index0.get() + 1) as usize + looped.after.borrow().is_some() as usize;
    looped.source.refill(rest);
    looped.length.set(Some(length));
    Ok(length)
}

fn loop_attribute(machine: &mut Machine<'_>, of: &Value, looped: &Loop, name: &Arc<str>) -> Res<Option<Value>> {
    let index0 = looped.index0.get();
    Ok(Some(match &**name {
        "index" => Value::Int(index0 + 1),
        "index0" => Value::Int(index0),
        "first" => Value::Bool(index0 == 0),
        "last" => Value::Bool(peek(machine, looped)?.is_none()),
        "length" => Value::from(loop_length(machine, looped)?),
        "revindex" => Value::Int(loop_length(machine, looped)? as i64 - index0),
        "revindex0" => Value::Int(loop_length(machine, looped)? as i64 - index0 - 1),
        "depth" => Value::from(looped.depth0 + 1),
        "depth0" => Value::from(looped.depth0),
        "previtem" if index0 == 0 => Value::undefined("there is no previous item"),
        "previtem" => looped.before.borrow().clone().unwrap_or(Value::None),
        "nextitem" => match peek(machine, looped)? {
            Some(item) => item,
            None => Value::undefined("there is no next item"),
        },
        "cycle" => return bound(of, "cycle"),
        "changed" => return bound(of, "changed"),
        _ => return Ok(None),
    }))
}
