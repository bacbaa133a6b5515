//! The filters on sequences.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;

use super::args::{Args, integer};
use super::ast::{Binary, Comparison};
use super::dict::Key;
use super::eval::Machine;
use super::iter::Iter;
use super::value::{List, Value, View};
use super::{Failure, Meter, fail, filters, operators, predicates, repr};

type Res<T> = Result<T, Failure>;

/// Applies one of this module's filters.
pub fn apply(machine: &mut Machine<'_>, name: &str, value: Value, args: Args) -> Res<Value> {
    match name {
        "list" => {
            args.bind::<0>(name, [], 0)?;
            let items = machine.collect(&value)?;
            Value::list(items)
        }
        "first" => {
            args.bind::<0>(name, [], 0)?;
            let iter = machine.iterate(&value)?;
            let first = machine.next(&iter)?;
            Ok(first.unwrap_or_else(|| Value::undefined("No first item, sequence was empty.")))
        }
        "last" => {
            args.bind::<0>(name, [], 0)?;
            let Some(iter) = Iter::back(&value) else {
                return Err(fail(format!("'{}' object is not reversible", value.kind())));
            };
            let last = machine.next(&iter)?;
            Ok(last.unwrap_or_else(|| Value::undefined("No last item, sequence was empty.")))
        }
        "reverse" => {
            args.bind::<0>(name, [], 0)?;
            if let Value::Str(text) = &value {
                machine.meter.take(text.text.len())?;
                return Ok(Value::like(text, text.text.chars().rev().collect::<String>()));
            }
            match Iter::back(&value) {
                Some(iter) => Ok(Value::Iter(iter)),
                None => {
                    let mut items = machine.collect(&value).map_err(|_| fail("argument must be iterable"))?;
                    items.reverse();
                    Value::list(items)
                }
            }
        }
        "join" => join(machine, &value, args),
        "sum" => sum(machine, &value, args),
        "min" | "max" => extreme(machine, name, &value, args),
        "sort" => sort(machine, &value, args),
        "dictsort" => dict_sort(machine, &value, args),
        "groupby" => group_by(machine, &value, args),
        "items" => items(&value, args),
        "unique" => unique(machine, &value, args),
        "batch" => batch(&value, args),
        "slice" => slice(&value, args),
        "map" => map(machine, &value, args),
        _ => select(machine, name, &value, args),
    }
}

/// The path of an attribute filter: `a.b.0`.
#[derive(Clone)]
struct Path(Vec<Value>);

impl Path {
    fn of(attribute: &Value, meter: &mut Meter) -> Res<Path> {
        Ok(match attribute {
            Value::None => Path(Vec::new()),
            Value::Str(text) => {
                meter.elements(2 * text.text.matches('.').count())?;
                meter.take(text.text.len())?;
                let part = |part: &str| {
                    let digits = !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit());
                    let number = if digits { super::number::parse_int(part, 10) } else { None };
                    number.unwrap_or_else(|| Value::str(part))
                };
                Path(text.text.split('.').map(part).collect())
            }
            other => Path(vec![other.clone()]),
        })
    }

    fn get(&self, machine: &mut Machine<'_>, item: &Value, default: Option<&Value>) -> Res<Value> {
        let mut item = item.clone();
        for part in &self.0 {
            item = machine.item(&item, part)?;
            if let (true, Some(default)) = (item.is_undefined(), default) {
                item = default.clone();
            }
        }
        Ok(item)
    }
}

fn attribute_or_none(machine: &mut Machine<'_>, attribute: Option<Value>) -> Res<Path> {
    Path::of(&attribute.unwrap_or(Value::None), &mut machine.meter)
}

/// A key as it is compared: strings in lower case unless their case counts.
fn folded(machine: &mut Machine<'_>, key: Value, case_sensitive: bool) -> Res<Value> {
    match &key {
        Value::Str(text) if !case_sensitive => {
            machine.meter.take(text.text.len())?;
            Ok(Value::str(text.text.to_lowercase()))
        }
        _ => Ok(key),
    }
}

fn truth(value: &Option<Value>) -> bool {
    value.as_ref().is_some_and(Value::truth)
}

/// The order of keys, stable; the keys compare by Python's `<`. Error: they do not compare.
pub fn sorted(machine: &mut Machine<'_>, keys: Vec<Value>, reverse: bool) -> Res<Vec<usize>> {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    if reverse {
        // Equal keys stay in their order all the same.
        order.reverse();
    }
    let mut width = 1;
    while width < order.len() {
        let mut merged = Vec::with_capacity(order.len());
        for run in order.chunks(2 * width) {
            let (left, right) = run.split_at(width.min(run.len()));
            let (mut l, mut r) = (0, 0);
            while l < left.len() && r < right.len() {
                let right_first = machine.holds(Comparison::Less, &keys[right[r]], &keys[left[l]])?;
                merged.push(if right_first { right[r] } else { left[l] });
                if right_first { r += 1 } else { l += 1 }
            }
            merged.extend_from_slice(&left[l..]);
            merged.extend_from_slice(&right[r..]);
        }
        order = merged;
        width *= 2;
    }
    if reverse {
        order.reverse();
    }
    Ok(order)
}

fn join(machine: &mut Machine<'_>, value: &Value, args: Args) -> Res<Value> {
    let [separator, attribute] = args.bind("join", ["d", "attribute"], 0)?;
    let path = attribute_or_none(machine, attribute)?;
    let separator = match separator {
        Some(separator) => repr::text(&separator, &mut machine.meter)?.text,
        None => "".into(),
    };
    let iter = machine.iterate(value)?;
    let mut joined = String::new();
    let mut first = true;
    while let Some(item) = machine.next(&iter)? {
        let item = path.get(machine, &item, None)?;
        if !first {
            machine.meter.take(separator.len())?;
            joined.push_str(&separator);
        }
        first = false;
        repr::print(&item, &mut joined, &mut machine.meter)?;
    }
    Ok(Value::str(joined))
}

fn sum(machine: &mut Machine<'_>, value: &Value, args: Args) -> Res<Value> {
    let [attribute, start] = args.bind("sum", ["attribute", "start"], 0)?;
    let path = attribute_or_none(machine, attribute)?;
    let mut total = start.unwrap_or(Value::Int(0));
    let iter = machine.iterate(value)?;
    if let Value::Str(_) = total {
        return Err(fail("sum() can't sum strings [use ''.join(seq) instead]"));
    }
    while let Some(item) = machine.next(&iter)? {
        let item = path.get(machine, &item, None)?;
        total = operators::binary(Binary::Add, &total, &item, &mut machine.meter)?;
    }
    Ok(total)
}

fn extreme(machine: &mut Machine<'_>, name: &str, value: &Value, args: Args) -> Res<Value> {
    let [case_sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"], 0)?;
    let path = attribute_or_none(machine, attribute)?;
    let op = if name == "max" { Comparison::Greater } else { Comparison::Less };
    let iter = machine.iterate(value)?;
    let mut best: Option<(Value, Value)> = None;
    while let Some(item) = machine.next(&iter)? {
        let key = path.get(machine, &item, None)?;
        let key = folded(machine, key, truth(&case_sensitive))?;
        let better = match &best {
            None => true,
            Some((best, _)) => machine.holds(op, &key, best)?,
        };
        if better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or_else(|| Value::undefined("No aggregated item, sequence was empty."), |(_, item)| item))
}

fn sort(machine: &mut Machine<'_>, value: &Value, args: Args) -> Res<Value> {
    let [reverse, case_sensitive, attribute] = args.bind("sort", ["reverse", "case_sensitive", "attribute"], 0)?;
    let attribute = attribute.unwrap_or(Value::None);
    let paths: Vec<Path> = match &attribute {
        Value::Str(text) => {
            machine.meter.elements(2 * text.text.matches(',').count())?;
            let paths = text.text.split(',').map(|part| Path::of(&Value::str(part), &mut machine.meter));
            paths.collect::<Res<_>>()?
        }
        other => vec![Path::of(other, &mut machine.meter)?],
    };
    let items = machine.collect(value)?;
    let mut keys = Vec::with_capacity(items.len());
    for item in &items {
        let mut key = Vec::with_capacity(paths.len());
        for path in &paths {
            let part = path.get(machine, item, None)?;
            key.push(folded(machine, part, truth(&case_sensitive))?);
        }
        machine.meter.elements(key.len())?;
        // Not a list that the template sees, so that it does not count as nesting.
        keys.push(Value::List(Rc::new(List { items: key, depth: 1, group: false })));
    }
    let reverse = reverse.as_ref().map_or(Ok(0), |reverse| integer("sort", reverse))? != 0;
    let order = sorted(machine, keys, reverse)?;
    Value::list(order.into_iter().map(|n| items[n].clone()).collect())
}

fn dict_sort(machine: &mut Machine<'_>, value: &Value, args: Args) -> Res<Value> {
    let [case_sensitive, by, reverse] = args.bind("dictsort", ["case_sensitive", "by", "reverse"], 0)?;
    let by_value = match by.as_ref().map(Value::as_str) {
        None | Some(Some("key")) => false,
        Some(Some("value")) => true,
        _ => return Err(fail("You can only sort by either \"key\" or \"value\"")),
    };
    let dict = match value {
        Value::Dict(dict) => dict,
        Value::Undefined(undefined) => return Err(fail(undefined.message())),
        other => return Err(fail(format!("'{}' object has no attribute 'items'", other.kind()))),
    };
    machine.meter.elements(dict.len() * 2)?;
    let mut keys = Vec::with_capacity(dict.len());
    let mut pairs = Vec::with_capacity(dict.len());
    for (name, item) in dict.iter() {
        let key = if by_value { item.clone() } else { name.clone() };
        keys.push(folded(machine, key, truth(&case_sensitive))?);
        pairs.push(Value::pair(name.clone(), item.clone())?);
    }
    let reverse = reverse.as_ref().map_or(Ok(0), |reverse| integer("dictsort", reverse))? != 0;
    let order = sorted(machine, keys, reverse)?;
    Value::list(order.into_iter().map(|n| pairs[n].clone()).collect())
}

fn group_by(machine: &mut Machine<'_>, value: &Value, args: Args) -> Res<Value> {
    let [attribute, default, case_sensitive] = args.bind("groupby", ["attribute", "default", "case_sensitive"], 1)?;
    let path = attribute_or_none(machine, attribute)?;
    let default = default.filter(|default| !matches!(default, Value::None));
    let items = machine.collect(value)?;
    let mut keys = Vec::with_capacity(items.len());
    for item in &items {
        let key = path.get(machine, item, default.as_ref())?;
        keys.push(folded(machine, key, truth(&case_sensitive))?);
    }
    let order = sorted(machine, keys.clone(), false)?;
    let mut groups: Vec<(usize, Vec<Value>)> = Vec::new();
    for n in order {
        match groups.last_mut() {
            Some((first, group)) if machine.holds(Comparison::Equal, &keys[*first], &keys[n])? => {
                group.push(items[n].clone());
            }
            _ => groups.push((n, vec![items[n].clone()])),
        }
    }
    let mut result = Vec::with_capacity(groups.len());
    for (first, group) in groups {
        let key = match truth(&case_sensitive) {
            true => keys[first].clone(),
            false => path.get(machine, &items[first], default.as_ref())?,
        };
        machine.meter.elements(group.len() + 2)?;
        let pair = vec![key, Value::list(group)?];
        let depth = super::value::nesting(&pair)?;
        result.push(Value::Tuple(Rc::new(List { items: pair, depth, group: true })));
    }
    Value::list(result)
}

fn items(value: &Value, args: Args) -> Res<Value> {
    args.bind::<0>("items", [], 0)?;
    let value = value.clone();
    let mut iter = None;
    let lazy = Iter::lazy(value.depth(), move |machine| {
        let source = match (&iter, &value) {
            (Some(iter), _) => Rc::clone(iter),
            (None, Value::Undefined(_)) => return Ok(None),
            (None, Value::Dict(dict)) => {
                let opened = machine.iterate(&Value::View(View::Items, dict.clone()))?;
                iter = Some(opened.clone());
                opened
            }
            _ => return Err(fail("Can only get item pairs from a mapping.")),
        };
        machine.next(&source)
    })?;
    Ok(Value::Iter(lazy))
}

/// Opens what a lazy filter reads, the first time.
fn opened(machine: &mut Machine<'_>, iter: &mut Option<Rc<Iter>>, value: &Value) -> Res<Rc<Iter>> {
    if let Some(iter) = iter {
        return Ok(iter.clone());
    }
    let opened = machine.iterate(value)?;
    *iter = Some(opened.clone());
    Ok(opened)
}

fn unique(machine: &mut Machine<'_>, value: &Value, args: Args) -> Res<Value> {
    let [case_sensitive, attribute] = args.bind("unique", ["case_sensitive", "attribute"], 0)?;
    let path = attribute_or_none(machine, attribute)?;
    let case_sensitive = truth(&case_sensitive);
    let value = value.clone();
    let mut iter = None;
    let mut seen = HashSet::new();
    let lazy = Iter::lazy(value.depth(), move |machine| {
        let source = opened(machine, &mut iter, &value)?;
        while let Some(item) = machine.next(&source)? {
            let key = path.get(machine, &item, None)?;
            let key = folded(machine, key, case_sensitive)?;
            machine.meter.elements(1)?;
            if seen.insert(Key::of(&key, &mut machine.meter)?) {
                return Ok(Some(item));
            }
        }
        Ok(None)
    })?;
    Ok(Value::Iter(lazy))
}

fn batch(value: &Value, args: Args) -> Res<Value> {
    let [count, fill] = args.bind("batch", ["linecount", "fill_with"], 1)?;
    let count = count.unwrap_or(Value::None);
    let fill = fill.filter(|fill| !matches!(fill, Value::None));
    let value = value.clone();
    let mut iter = None;
    let mut ahead = None;
    let depth = value.depth().max(fill.as_ref().map_or(0, Value::depth));
    let lazy = Iter::lazy(depth, move |machine| {
        let source = opened(machine, &mut iter, &value)?;
        let mut items: Vec<Value> = ahead.take().into_iter().collect();
        while let Some(item) = machine.next(&source)? {
            machine.meter.elements(1)?;
            if machine.holds(Comparison::Equal, &Value::from(items.len()), &count)? {
                ahead = Some(item);
                return Value::list(items).map(Some);
            }
            items.push(item);
        }
        if items.is_empty() {
            return Ok(None);
        }
        if let Some(fill) = &fill
            && machine.holds(Comparison::Less, &Value::from(items.len()), &count)?
        {
            let count = usize::try_from(integer("batch", &count)?).unwrap_or(0);
            machine.meter.elements(count)?;
            items.resize(count.max(items.len()), fill.clone());
        }
        Value::list(items).map(Some)
    })?;
    Ok(Value::Iter(lazy))
}

fn slice(value: &Value, args: Args) -> Res<Value> {
    let [slices, fill] = args.bind("slice", ["slices", "fill_with"], 1)?;
    let slices = slices.unwrap_or(Value::None);
    let fill = fill.filter(|fill| !matches!(fill, Value::None));
    let value = value.clone();
    let mut items: Option<Vec<Value>> = None;
    let (mut n, mut at) = (0, 0);
    let depth = value.depth().max(fill.as_ref().map_or(0, Value::depth));
    let lazy = Iter::lazy(depth, move |machine| {
        let items = match &mut items {
            Some(items) => items,
            None => items.insert(machine.collect(&value)?),
        };
        let count = integer("slice", &slices)?;
        if count == 0 {
            return Err(fail("integer division or modulo by zero"));
        }
        let Ok(count) = usize::try_from(count) else { return Ok(None) };
        if n >= count {
            return Ok(None);
        }
        let longer = n < items.len() % count;
        let end = at + items.len() / count + longer as usize;
        let mut part = items[at..end].to_vec();
        machine.meter.elements(part.len() + 1)?;
        if let (Some(fill), false) = (&fill, longer) {
            part.push(fill.clone());
        }
        (n, at) = (n + 1, end);
        Value::list(part).map(Some)
    })?;
    Ok(Value::Iter(lazy))
}

fn take_named(named: &mut Vec<(Arc<str>, Value)>, name: &str) -> Option<Value> {
    let at = named.iter().position(|(given, _)| &**given == name)?;
    Some(named.remove(at).1)
}

fn args_depth(args: &Args) -> u32 {
    let named = args.named.iter().map(|(_, value)| value);
    args.positional.iter().chain(named).map(Value::depth).max().unwrap_or(0)
}

/// The name of a filter or test that is given as a value.
fn callable_name(value: &Value, kind: &str) -> Res<Arc<str>> {
    match value {
        Value::Str(text) => Ok(text.text.clone()),
        Value::Undefined(undefined) => {
            let why = undefined.message();
            Err(fail(format!("No {kind} named Undefined. ({why}; did you forget to quote the callable name?)")))
        }
        other => Err(fail(format!("No {kind} named {}.", repr::plain(other).unwrap_or_else(|| other.kind().into())))),
    }
}

fn map(machine: &mut Machine<'_>, value: &Value, mut args: Args) -> Res<Value> {
    let depth = value.depth().max(args_depth(&args));
    let by_attribute = args.positional.is_empty() && args.named.iter().any(|(name, _)| &**name == "attribute");
    let value = value.clone();
    let mut iter = None;
    if !value.truth() {
        return Iter::lazy(depth, |_| Ok(None)).map(Value::Iter);
    }
    if by_attribute {
        let path = attribute_or_none(machine, take_named(&mut args.named, "attribute"))?;
        let default = take_named(&mut args.named, "default").filter(|default| !matches!(default, Value::None));
        let unknown = args.named.first().map(|(name, _)| name.clone());
        let lazy = Iter::lazy(depth, move |machine| {
            if let Some(name) = &unknown {
                return Err(fail(format!("Unexpected keyword argument {}", repr::quoted(name))));
            }
            let source = opened(machine, &mut iter, &value)?;
            match machine.next(&source)? {
                Some(item) => path.get(machine, &item, default.as_ref()).map(Some),
                None => Ok(None),
            }
        })?;
        return Ok(Value::Iter(lazy));
    }
    let name = if args.positional.is_empty() { None } else { Some(args.positional.remove(0)) };
    let lazy = Iter::lazy(depth, move |machine| {
        let Some(name) = &name else { return Err(fail("map requires a filter argument")) };
        let source = opened(machine, &mut iter, &value)?;
        match machine.next(&source)? {
            Some(item) => {
                machine.meter.elements(args.positional.len() + args.named.len())?;
                filters::apply(machine, &callable_name(name, "filter")?, item, args.clone()).map(Some)
            }
            None => Ok(None),
        }
    })?;
    Ok(Value::Iter(lazy))
}

fn select(machine: &mut Machine<'_>, name: &str, value: &Value, mut args: Args) -> Res<Value> {
    let depth = value.depth().max(args_depth(&args));
    let wanted = name.starts_with("select");
    if !value.truth() {
        return Iter::lazy(depth, |_| Ok(None)).map(Value::Iter);
    }
    let path = if name.ends_with("attr") {
        if args.positional.is_empty() { None } else { Some(Path::of(&args.positional.remove(0), &mut machine.meter)?) }
    } else {
        Some(Path(Vec::new()))
    };
    let test = if args.positional.is_empty() { None } else { Some(args.positional.remove(0)) };
    let value = value.clone();
    let mut iter = None;
    let lazy = Iter::lazy(depth, move |machine| {
        let Some(path) = &path else { return Err(fail("Missing parameter for attribute name")) };
        let source = opened(machine, &mut iter, &value)?;
        while let Some(item) = machine.next(&source)? {
            let of = path.get(machine, &item, None)?;
            let held = match &test {
                None => of.truth(),
                Some(test) => {
                    machine.meter.elements(args.positional.len() + args.named.len())?;
                    predicates::apply(machine, &callable_name(test, "test")?, &of, args.clone())?
                }
            };
            if held == wanted {
                return Ok(Some(item));
            }
        }
        Ok(None)
    })?;
    Ok(Value::Iter(lazy))
}
