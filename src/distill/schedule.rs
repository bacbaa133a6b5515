//! The one shared schedule: how a knob moves from `start` to `end` while training goes on. Teacher
//! share, depth cap and learning rate all use it, so a method's curriculum is data, not code.
//!
//! A clock turns the step counter into a reading t; the shape turns t into a value:
//!
//! | clock | reading at step s of S | | shape | value, x = (t - begin) / (finish - begin) held in [0, 1] |
//! |---|---|---|---|---|
//! | `"step"` | s | | `const` | start |
//! | `"fraction"` | s / S | | `linear` | start + (end - start) x |
//! | `{"units": m}` | floor(s / m) | | `cosine` | start + (end - start) (1 - cos(pi x)) / 2 |
//! | | | | `exp` | start (end / start)^x |
//! | | | | `step` | start before `finish`, end from `finish` on |
//!
//! At or before `begin` the value is exactly `start`, at or after `finish` exactly `end`, and never
//! outside the two. Where the readings and ends are whole numbers and the slope is too, `linear`
//! is exact: the product is formed before the one division. So TCOD's depth k(n) = k_start + floor(n / eta)
//! (arXiv 2604.24005) is `linear` over the clock `{"units": eta}`, which does the floor, with
//! end - start = finish - begin; if n itself counts every c-th step, the units are c * eta steps.
//!
//! In JSON a schedule is an object, `{"start": 1, "end": 0, "shape": "cosine", "finish": 0.8, "clock": "fraction"}`
//! (`begin` 0 and `clock` `"step"` may be left out), or a plain number for a constant.
//!
//! Values are the same bits on every machine: only +, -, *, / and the square root are used, which IEEE 754 rounds exactly.
#![forbid(unsafe_code)]

use super::document::{bad, fields, integer, join, name_of, number, word};
use crate::error::{Error, Fault, Result};
use serde_json::{Value, json};

/// How the value moves between its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Stays at `start`.
    Const,
    /// A straight line.
    Linear,
    /// Half a cosine wave: flat, steep, flat.
    Cosine,
    /// A constant factor per reading; both ends above 0.
    Exp,
    /// One jump, at `finish`.
    Step,
}

const SHAPES: &[(&str, Shape)] = &[
    ("const", Shape::Const),
    ("linear", Shape::Linear),
    ("cosine", Shape::Cosine),
    ("exp", Shape::Exp),
    ("step", Shape::Step),
];

/// What `begin` and `finish` count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Optimiser steps.
    Step,
    /// The share of all steps that is done, 0 to 1.
    Fraction,
    /// Whole units of that many steps.
    Units(u64),
}

/// The largest value, and the largest clock reading, that a schedule takes: far beyond use, and small
/// enough that no product or quotient here overflows.
const LARGEST: f64 = 1e12;

/// A checked schedule. Build one with [`Schedule::new`], [`Schedule::constant`] or [`Schedule::from_json`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    start: f64,
    end: f64,
    shape: Shape,
    begin: f64,
    finish: f64,
    clock: Clock,
}

impl Schedule {
    /// A schedule from `start` at reading `begin` to `end` at reading `finish` of `clock`.
    /// [`Fault::BadValue`] where a number is not finite or beyond 1e12, `finish` is not above `begin`,
    /// a reading is negative (or, on the fraction clock, above 1), the unit is 0 steps, or an end of `exp` is below 1e-12.
    pub fn new(start: f64, end: f64, shape: Shape, begin: f64, finish: f64, clock: Clock) -> Result<Schedule> {
        let refuse = |message: String| Err(Error::new(Fault::BadValue, message));
        for (name, x) in [("start", start), ("end", end), ("begin", begin), ("finish", finish)] {
            if !x.is_finite() || x.abs() > LARGEST {
                return refuse(format!("{name} must be a number of at most 1e12 in size, found {x}"));
            }
        }
        if begin < 0.0 {
            return refuse(format!("begin must be 0 or above, found {begin}"));
        }
        if finish <= begin {
            return refuse(format!("finish must be above begin, found finish {finish} and begin {begin}"));
        }
        if clock == Clock::Fraction && finish > 1.0 {
            return refuse(format!("finish must be at most 1 on the fraction clock, found {finish}"));
        }
        if matches!(clock, Clock::Units(0)) {
            return refuse("a clock's unit must be at least 1 step, found 0".to_string());
        }
        if shape == Shape::Exp && (start < 1.0 / LARGEST || end < 1.0 / LARGEST) {
            return refuse(format!("shape exp needs both ends above 0 (at least 1e-12), found {start} and {end}"));
        }
        Ok(Schedule { start, end, shape, begin, finish, clock })
    }

    /// `value` at every step; [`Fault::BadValue`] where it is not finite or beyond 1e12.
    pub fn constant(value: f64) -> Result<Schedule> {
        Schedule::new(value, value, Shape::Const, 0.0, 1.0, Clock::Step)
    }

    /// A constant that the crate itself writes down.
    pub(super) const fn fixed(value: f64) -> Schedule {
        Schedule { start: value, end: value, shape: Shape::Const, begin: 0.0, finish: 1.0, clock: Clock::Step }
    }

    /// The schedule written at `path` of a document. [`Fault::UnknownKey`] and [`Fault::BadValue`] name the path.
    pub fn from_json(value: &Value, path: &str) -> Result<Schedule> {
        let any = |value: &Value, path: &str| number(value, path, "a number", |_| true);
        if value.is_number() {
            return Schedule::constant(any(value, path)?).map_err(|e| e.within(path));
        }
        if !value.is_object() {
            return Err(bad(value, path, "a number or a schedule object"));
        }
        let map = fields(value, path, &["start", "end", "shape", "begin", "finish", "clock"])?;
        let need = |key: &str| {
            let value = map.get(key);
            value.ok_or_else(|| Error::new(Fault::BadValue, format!("{} is missing", join(path, key))))
        };
        let start = any(need("start")?, &join(path, "start"))?;
        let shape = word(need("shape")?, &join(path, "shape"), SHAPES)?;
        if shape == Shape::Const {
            if let Some(key) = map.keys().find(|key| !matches!(key.as_str(), "start" | "shape")) {
                let message = format!("{} has no meaning with shape const", join(path, key));
                return Err(Error::new(Fault::BadValue, message));
            }
            return Schedule::constant(start).map_err(|e| e.within(path));
        }
        let end = any(need("end")?, &join(path, "end"))?;
        let begin = map.get("begin").map_or(Ok(0.0), |v| any(v, &join(path, "begin")))?;
        let finish = any(need("finish")?, &join(path, "finish"))?;
        let clock = map.get("clock").map_or(Ok(Clock::Step), |v| Clock::from_json(v, &join(path, "clock")))?;
        Schedule::new(start, end, shape, begin, finish, clock).map_err(|e| e.within(path))
    }

    /// The same, and its values stay within `low..=high`.
    pub(super) fn within(value: &Value, path: &str, low: f64, high: f64) -> Result<Schedule> {
        let schedule = Schedule::from_json(value, path)?;
        let (least, most) = schedule.bounds();
        if least < low || most > high {
            let message = format!("{path} must stay within {low} to {high}, found values from {least} to {most}");
            return Err(Error::new(Fault::BadValue, message));
        }
        Ok(schedule)
    }

    /// The form that [`Schedule::from_json`] reads.
    pub fn to_json(&self) -> Value {
        match self.shape {
            Shape::Const => json!(self.start),
            shape => json!({
                "start": self.start, "end": self.end, "shape": name_of(shape, SHAPES),
                "begin": self.begin, "finish": self.finish, "clock": self.clock.to_json(),
            }),
        }
    }

    /// The smallest and the largest value it ever takes.
    pub fn bounds(&self) -> (f64, f64) {
        (self.start.min(self.end), self.start.max(self.end))
    }

    /// The value at step `step` (counted from 0) of a run of `n_steps`.
    pub fn value(&self, step: u64, n_steps: u64) -> f64 {
        let t = match self.clock {
            Clock::Step => step as f64,
            Clock::Fraction => step as f64 / n_steps.max(1) as f64,
            Clock::Units(n) => (step / n) as f64,
        };
        let (start, end) = (self.start, self.end);
        if self.shape == Shape::Const || t <= self.begin {
            return start;
        }
        if t >= self.finish {
            return end;
        }
        let (done, span) = (t - self.begin, self.finish - self.begin);
        let value = match self.shape {
            Shape::Const | Shape::Step => start,
            Shape::Linear => start + (end - start) * done / span,
            Shape::Cosine => start + (end - start) * half_cosine(done / span),
            Shape::Exp => start * power(end / start, done / span),
        };
        let (low, high) = self.bounds();
        value.clamp(low, high)
    }
}

impl Clock {
    fn from_json(value: &Value, path: &str) -> Result<Clock> {
        match value {
            Value::Object(_) => {
                let map = fields(value, path, &["units"])?;
                let units = map.get("units").unwrap_or(&Value::Null);
                Ok(Clock::Units(integer(units, &join(path, "units"), 1, LARGEST as u64)?))
            }
            Value::String(text) if text == "step" => Ok(Clock::Step),
            Value::String(text) if text == "fraction" => Ok(Clock::Fraction),
            _ => Err(bad(value, path, "\"step\", \"fraction\" or {\"units\": steps}")),
        }
    }

    fn to_json(self) -> Value {
        match self {
            Clock::Step => json!("step"),
            Clock::Fraction => json!("fraction"),
            Clock::Units(n) => json!({ "units": n }),
        }
    }
}

/// (1 - cos(pi x)) / 2 for x in [0, 1], within 4e-16: it is the square of sin(pi x / 2), whose Taylor
/// series up to the 17th power is below 1e-19 off for x up to 1/2; the other half is its mirror image.
fn half_cosine(x: f64) -> f64 {
    if x > 0.5 {
        return 1.0 - half_cosine(1.0 - x);
    }
    let y = x * std::f64::consts::FRAC_PI_2;
    let series = (1..=8).rev().fold(1.0, |sum, k| 1.0 - y * y / f64::from(2 * k * (2 * k + 1)) * sum);
    (y * series) * (y * series)
}

/// r to the power x for r > 0 and x in [0, 1), within 1e-14 relative: each binary digit of x takes in
/// one repeated square root of r. Digits below 2^-53 change nothing that f64 could hold.
fn power(r: f64, x: f64) -> f64 {
    let (mut root, mut rest, mut product) = (r, x, 1.0);
    for _ in 0..53 {
        root = root.sqrt();
        rest *= 2.0;
        if rest >= 1.0 {
            rest -= 1.0;
            product *= root;
        }
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<Schedule> {
        Schedule::from_json(&value, "x")
    }

    fn refusal(value: Value) -> String {
        let e = read(value).unwrap_err();
        assert_eq!(e.fault(), Fault::BadValue);
        e.message().to_string()
    }

    #[test]
    fn cosine_takes_the_values_derived_for_guided_distillation() {
        let beta = read(json!({"start": 1, "end": 0, "shape": "cosine", "finish": 0.8, "clock": "fraction"})).unwrap();
        // At 50 of 200 steps (1 + cos(pi / 4)) / 2 = 1/2 + sqrt(2) / 4, and its mirror image at 150.
        let eighth = 0.5 + 2f64.sqrt() / 4.0;
        for (step, wanted) in [(0, 1.0), (50, eighth), (100, 0.5), (150, 1.0 - eighth)] {
            assert!((beta.value(step, 250) - wanted).abs() < 1e-15, "step {step}: {}", beta.value(step, 250));
        }
        assert!((200..=300).all(|step| beta.value(step, 250) == 0.0));
        // The sum over a half period is 100 + 1/2, so the mean over the run is 0.402.
        let mean = (0..250).map(|step| beta.value(step, 250)).sum::<f64>() / 250.0;
        assert!((mean - 0.402).abs() < 1e-12, "{mean}");
    }

    #[test]
    fn half_cosine_and_power_agree_with_the_mathematics_library() {
        for i in 0..=1000 {
            let x = f64::from(i) / 1000.0;
            let wanted = (1.0 - (std::f64::consts::PI * x).cos()) / 2.0;
            assert!((half_cosine(x) - wanted).abs() < 4e-16, "{x}");
            for r in [1e-24, 0.01, 0.999, 1.0, 3.0, 1e24f64] {
                let x = x * 0.999;
                assert!((power(r, x) / r.powf(x) - 1.0).abs() < 2e-14, "{r} {x}");
            }
        }
    }

    #[test]
    fn units_clock_gives_tcod_depth_exactly() {
        for (eta, n) in [(2, 1000.0), (4, 29.0), (6, 1000.0), (7, 999.0)] {
            let depth = Schedule::new(1.0, 1.0 + n, Shape::Linear, 0.0, n, Clock::Units(eta)).unwrap();
            for step in 0..5000 {
                let wanted = (1 + step / eta).min(1 + n as u64);
                assert_eq!(depth.value(step, 250), wanted as f64, "eta {eta} step {step}");
            }
        }
    }

    #[test]
    fn shapes_hold_their_ends_outside_and_their_formula_inside() {
        let at = |shape: &str, step| {
            let value = json!({"start": 4, "end": 1, "shape": shape, "begin": 10, "finish": 20});
            read(value).unwrap().value(step, 100)
        };
        for shape in ["linear", "cosine", "exp", "step"] {
            assert_eq!((at(shape, 0), at(shape, 10)), (4.0, 4.0), "{shape}");
            assert_eq!((at(shape, 20), at(shape, u64::MAX)), (1.0, 1.0), "{shape}");
        }
        assert_eq!(at("linear", 15), 2.5);
        assert_eq!(at("linear", 12), 3.4);
        assert!((at("exp", 15) - 2.0).abs() < 1e-14);
        assert_eq!((at("step", 19), at("step", 20)), (4.0, 1.0));
    }

    #[test]
    fn values_stay_between_the_ends() {
        for (i, &(_, shape)) in SHAPES.iter().enumerate() {
            let s = Schedule::new(0.1, 0.7 + i as f64 / 7.0, shape, 0.0, 0.3, Clock::Fraction).unwrap();
            let (low, high) = s.bounds();
            assert!((0..2000).all(|step| (low..=high).contains(&s.value(step, 1999))), "{shape:?}");
        }
    }

    #[test]
    fn no_step_or_length_of_run_makes_it_fail() {
        for clock in [Clock::Step, Clock::Fraction, Clock::Units(u64::MAX)] {
            let s = Schedule::new(-LARGEST, LARGEST, Shape::Linear, 0.0, 1e-300, clock).unwrap();
            for (step, n) in [(0, 0), (u64::MAX, 0), (u64::MAX, u64::MAX), (1, u64::MAX)] {
                assert!(s.value(step, n).is_finite());
            }
        }
    }

    #[test]
    fn a_plain_number_is_a_constant() {
        let s = read(json!(0.25)).unwrap();
        assert_eq!((s.value(0, 10), s.value(99, 10), s.bounds()), (0.25, 0.25, (0.25, 0.25)));
        assert_eq!(read(json!({"start": 0.25, "shape": "const"})).unwrap(), s);
    }

    #[test]
    fn writing_then_reading_gives_the_same_schedule() {
        for &(name, shape) in SHAPES {
            for clock in [Clock::Step, Clock::Fraction, Clock::Units(6)] {
                let s = match shape {
                    Shape::Const => Schedule::constant(0.3).unwrap(),
                    shape => Schedule::new(0.1, 0.7, shape, 0.2, 0.9, clock).unwrap(),
                };
                assert_eq!(read(s.to_json()).unwrap(), s, "{name}");
            }
        }
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let e = read(json!({"start": 1, "shape": "const", "stop": 3})).unwrap_err();
        assert_eq!(e.fault(), Fault::UnknownKey);
        assert!(e.message().starts_with("unknown key `x.stop`"), "{e}");
        let e = read(json!({"start": 1, "end": 2, "shape": "linear", "finish": 3, "clock": {"unit": 3}})).unwrap_err();
        assert!(e.message().starts_with("unknown key `x.clock.unit`"), "{e}");
    }

    #[test]
    fn exp_through_zero_is_refused() {
        let message = refusal(json!({"start": 1, "end": 0, "shape": "exp", "finish": 5}));
        assert_eq!(message, "x: shape exp needs both ends above 0 (at least 1e-12), found 1 and 0");
    }

    #[test]
    fn finish_at_or_before_begin_is_refused() {
        let message = refusal(json!({"start": 1, "end": 0, "shape": "linear", "begin": 5, "finish": 5}));
        assert_eq!(message, "x: finish must be above begin, found finish 5 and begin 5");
    }

    #[test]
    fn a_fraction_beyond_the_run_is_refused() {
        let message = refusal(json!({"start": 1, "end": 0, "shape": "linear", "finish": 200, "clock": "fraction"}));
        assert_eq!(message, "x: finish must be at most 1 on the fraction clock, found 200");
    }

    #[test]
    fn numbers_that_are_not_finite_or_far_too_large_are_refused() {
        let new = |start, begin, finish| Schedule::new(start, 1.0, Shape::Linear, begin, finish, Clock::Step);
        for s in [new(f64::NAN, 0.0, 1.0), new(f64::INFINITY, 0.0, 1.0), new(1e13, 0.0, 1.0), new(1.0, 0.0, f64::NAN)] {
            assert_eq!(s.unwrap_err().fault(), Fault::BadValue);
        }
        assert!(new(1.0, -1.0, 1.0).unwrap_err().message().starts_with("begin must be 0 or above"));
        assert!(Schedule::constant(f64::NAN).is_err());
        assert!(refusal(json!(1e300)).starts_with("x: start must be a number of at most 1e12"));
    }

    #[test]
    fn missing_wrong_and_meaningless_parts_are_refused_by_path() {
        assert_eq!(refusal(json!({"shape": "linear"})), "x.start is missing");
        assert_eq!(refusal(json!({"start": 1})), "x.shape is missing");
        assert_eq!(refusal(json!({"start": 1, "shape": "cosine", "end": 0})), "x.finish is missing");
        assert_eq!(refusal(json!({"start": 1, "shape": "const", "end": 0})), "x.end has no meaning with shape const");
        assert_eq!(refusal(json!("1")), "x must be a number or a schedule object, found \"1\"");
        assert!(refusal(json!({"start": 1, "shape": "sine"})).starts_with("x.shape must be one of const, linear"));
        let linear = |clock: Value| json!({"start": 1, "end": 0, "shape": "linear", "finish": 1, "clock": clock});
        assert!(refusal(linear(json!("epoch"))).starts_with("x.clock must be \"step\""));
        assert!(refusal(linear(json!({"units": 0}))).starts_with("x.clock.units must be a whole number from 1"));
        assert!(refusal(linear(json!({}))).starts_with("x.clock.units must be a whole number"));
        assert!(Schedule::new(1.0, 0.0, Shape::Linear, 0.0, 1.0, Clock::Units(0)).is_err());
    }
}
