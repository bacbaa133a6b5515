//! The functions that every template has.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::args::{Args, integer};
use super::dict::Dict;
use super::eval::Machine;
use super::value::{Global, Object, Range, Value, nesting};
use super::{Failure, fail, repr};

type Res<T> = Result<T, Failure>;

/// The longest range of jinja2's sandbox.
const MAX_RANGE: u64 = 100_000;

const ALL: [(&str, Global); 8] = [
    ("range", Global::Range),
    ("dict", Global::Dict),
    ("lipsum", Global::Lipsum),
    ("cycler", Global::Cycler),
    ("joiner", Global::Joiner),
    ("namespace", Global::Namespace),
    ("raise_exception", Global::RaiseException),
    ("strftime_now", Global::StrftimeNow),
];

/// Whether every template has something of this name.
pub fn exists(name: &str) -> bool {
    ALL.iter().any(|(known, _)| *known == name)
}

/// The function of this name.
pub fn named(name: &str) -> Option<Value> {
    let (_, global) = ALL.iter().find(|(known, _)| *known == name)?;
    Some(Value::object(Object::Global(*global)))
}

/// A function's name.
pub fn name(global: Global) -> &'static str {
    ALL.iter().find(|(_, known)| *known == global).map_or("", |(name, _)| name)
}

/// Calls a function.
pub fn call(machine: &mut Machine<'_>, global: Global, args: Args) -> Res<Value> {
    match global {
        Global::Range => range(args),
        Global::Dict => Ok(Value::Dict(Rc::new(dict(machine, args)?))),
        Global::Namespace => {
            let attributes = dict(machine, args)?;
            machine.meter.elements(4)?;
            Ok(Value::Object(machine.keep(Object::Namespace(RefCell::new(attributes)))))
        }
        Global::Cycler => {
            if !args.named.is_empty() {
                return Err(fail("cycler() got an unexpected keyword argument"));
            }
            if args.positional.is_empty() {
                return Err(fail("at least one item has to be provided"));
            }
            let depth = nesting(&args.positional)?;
            Ok(Value::object(Object::Cycler { items: args.positional, at: Cell::new(0), depth }))
        }
        Global::Joiner => {
            let [separator] = args.bind("joiner", ["sep"], 0)?;
            let separator = separator.unwrap_or_else(|| Value::str(", "));
            let depth = nesting([&separator])?;
            Ok(Value::object(Object::Joiner { separator, used: Cell::new(false), depth }))
        }
        Global::Lipsum => Err(fail("lipsum() is not supported in chat templates: its text is random")),
        Global::RaiseException => {
            let [message] = args.bind("raise_exception", ["message"], 1)?;
            let text = match message {
                None | Some(Value::None) => "None".to_string(),
                Some(message) => repr::text(&message, &mut machine.meter)?.text.to_string(),
            };
            Err(fail(text))
        }
        Global::StrftimeNow => {
            let [format] = args.bind("strftime_now", ["format"], 1)?;
            let Some(Value::Str(format)) = format else { return Err(fail("strftime_now wants a format")) };
            machine.meter.step(format.text.len() as u64 / 2)?;
            machine.meter.take(format.text.len().saturating_mul(5))?; // %B is September at most
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
            let latest = 253_402_300_799; // the year 9999
            let text = strftime(&format.text, now.min(latest)).ok_or_else(|| {
                let directives = "%Y %y %m %d %e %j %B %b %A %a %H %I %M %S %p %F %T %D";
                fail(format!("strftime_now: {} is not supported; there are {directives}", repr::quoted(&format.text)))
            })?;
            Ok(Value::str(text))
        }
    }
}

fn range(args: Args) -> Res<Value> {
    let [first, second, third] = args.plain("range", 1)?;
    let number = |value: &Value| integer("range", value);
    let first = number(&first.unwrap_or(Value::None))?;
    let (start, stop) = match &second {
        Some(second) => (first, number(second)?),
        None => (0, first),
    };
    let step = third.as_ref().map_or(Ok(1), number)?;
    if step == 0 {
        return Err(fail("range() arg 3 must not be zero"));
    }
    let range = Range { start, stop, step };
    if range.len() > MAX_RANGE {
        return Err(fail(format!("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE}).")));
    }
    Ok(Value::Range(Rc::new(range)))
}

/// `dict(...)`.
fn dict(machine: &mut Machine<'_>, args: Args) -> Res<Dict> {
    if args.positional.len() > 1 {
        return Err(fail(format!("dict expected at most 1 argument, got {}", args.positional.len())));
    }
    let mut dict = match args.positional.first() {
        Some(Value::Dict(from)) => {
            machine.meter.elements(2 * from.len())?;
            from.copy()
        }
        Some(pairs) => {
            let mut dict = Dict::default();
            for pair in machine.collect(pairs)? {
                let pair = machine.collect(&pair)?;
                let [key, value] = &pair[..] else {
                    return Err(fail(format!(
                        "dictionary update sequence element has length {}; 2 is required",
                        pair.len()
                    )));
                };
                dict.insert(key.clone(), value.clone(), &mut machine.meter)?;
            }
            dict
        }
        None => Dict::default(),
    };
    for (name, value) in args.named {
        machine.meter.elements(2)?;
        dict.insert(Value::str(name), value, &mut machine.meter)?;
    }
    Ok(dict)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// The directives of strftime that are numbers or English names; None for another.
pub fn strftime(format: &str, unix_seconds: u64) -> Option<String> {
    let (mut day, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let weekday = DAYS[(day % 7) as usize]; // 1 January 1970 was a Thursday
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while day >= 365 + leap(year) as u64 {
        day -= 365 + leap(year) as u64;
        year += 1;
    }
    let day_of_year = day + 1;
    let lengths = [31, 28 + leap(year) as u64, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let (day, hour) = (day + 1, second / 3600);
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        text += &match chars.next()? {
            'Y' => year.to_string(),
            'y' => format!("{:02}", year % 100),
            'm' => format!("{:02}", month + 1),
            'd' => format!("{day:02}"),
            'e' => format!("{day:2}"),
            'j' => format!("{day_of_year:03}"),
            'B' => MONTHS[month].to_string(),
            'b' => MONTHS[month][..3].to_string(),
            'A' => weekday.to_string(),
            'a' => weekday[..3].to_string(),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_string(),
            'M' => format!("{:02}", second / 60 % 60),
            'S' => format!("{:02}", second % 60),
            'F' => format!("{year}-{:02}-{day:02}", month + 1),
            'T' => format!("{hour:02}:{:02}:{:02}", second / 60 % 60, second % 60),
            'D' => format!("{:02}/{day:02}/{:02}", month + 1, year % 100),
            '%' => "%".to_string(),
            _ => return None,
        };
    }
    Some(text)
}
