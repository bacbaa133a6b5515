//! The engine against jinja2's recorded answers, and against templates that mean harm.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde_json::Value as Document;

use super::globals::strftime;
use super::{Failure, Limits, Template, Value};
use crate::text::json::Json;

const LIMITS: Limits = Limits { fuel: 20_000_000, bytes: 512 << 20, depth: 100, output: 64 << 20 };

fn render_with(source: &str, variables: &Json, limits: &Limits) -> Result<String, Failure> {
    let Json::Object(entries) = variables else { panic!("variables are an object") };
    let given: Vec<(&str, Value)> = entries.iter().map(|(name, value)| (name.as_str(), Value::from(value))).collect();
    let mut out = String::new();
    Template::compile(source)?.render(&given, limits, &mut out)?;
    Ok(out)
}

fn render(source: &str) -> Result<String, Failure> {
    render_with(source, &Json::Object(Vec::new()), &LIMITS)
}

/// Where recorded answers are; another file may be named, as a fuzzer does.
fn answers() -> PathBuf {
    let kept = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/jinja/answers.json");
    std::env::var_os("SQUIRE_JINJA_ANSWERS").map_or_else(kept, PathBuf::from)
}

#[test]
fn every_recorded_answer_of_jinja2_is_given_byte_for_byte() {
    let text = std::fs::read_to_string(answers()).unwrap();
    let Json::Object(document) = Json::parse(&text).unwrap() else { panic!("the answers are an object") };
    let field = |name: &str| &document.iter().find(|(key, _)| key == name).unwrap().1;
    let shared = field("variables");
    let mut wrong = Vec::new();
    let cases = field("cases").as_list().unwrap();
    for case in cases {
        let source = case.get("source").and_then(Json::as_str).unwrap();
        let got = render_with(source, case.get("variables").unwrap_or(shared), &LIMITS);
        let text = |name: &str| case.get(name).and_then(Json::as_str);
        let right = match (&got, text("output"), text("refused")) {
            (Err(failure), _, Some(why)) => failure.message.contains(why),
            (Ok(got), Some(output), None) => got == output,
            (Err(_), None, None) => true,
            _ => false,
        };
        if !right {
            let want = text("output").or(text("error")).unwrap_or_default();
            wrong.push(format!("{source:?}\n    want {want:?}\n    got  {:?}", got.map_err(|e| e.to_string())));
        }
    }
    let shown = wrong.iter().take(60).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} of {} cases differ:\n{shown}", wrong.len(), cases.len());
    assert!(cases.len() >= 800, "only {} cases", cases.len());
}

#[test]
fn qwen3_renders_as_transformers_renders_it() {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let source = std::fs::read_to_string(golden.join("qwen3_chat_template.jinja")).unwrap();
    let mut cases = 0;
    for entry in std::fs::read_dir(golden.join("chat")).unwrap() {
        let case: Document = serde_json::from_slice(&std::fs::read(entry.unwrap().path()).unwrap()).unwrap();
        let mut variables = case["options"].clone();
        variables["messages"] = case["messages"].clone();
        let got = render_with(&source, &Json::from(&variables), &LIMITS).unwrap();
        assert_eq!(got, case["expected"].as_str().unwrap());
        cases += 1;
    }
    assert!(cases >= 13);
}

#[test]
fn dates_are_right_across_leap_years() {
    let format = "%Y-%m-%d %H:%M:%S %j %a %d %b %y %A %B %%";
    assert_eq!(strftime(format, 0).unwrap(), "1970-01-01 00:00:00 001 Thu 01 Jan 70 Thursday January %");
    let leap_day = strftime(format, 951_868_799).unwrap();
    assert_eq!(leap_day, "2000-02-29 23:59:59 060 Tue 29 Feb 00 Tuesday February %");
    assert_eq!(strftime("%Y %j", 1_735_689_599).unwrap(), "2024 366");
    assert_eq!(strftime("%Q", 0), None);
    assert_eq!(strftime("%", 0), None);
}
