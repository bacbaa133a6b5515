//! The engine against jinja2's recorded answers, and against templates that mean harm.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde_json::Value as Document;

use super::globals::strftime;
use super::{Failure, Limits, Template, Value};
use crate::text::json::Json;
use crate::text::watch::Watch;

const LIMITS: Limits = Limits { fuel: 20_000_000, bytes: 512 << 20, depth: 100, output: 64 << 20 };

fn render_with(source: &str, variables: &Json, limits: &Limits) -> Result<String, Failure> {
    let Json::Object(entries) = variables else { panic!("variables are an object") };
    let given: Vec<(&str, Value)> = entries.iter().map(|(name, value)| (name.as_str(), Value::from(value))).collect();
    Template::compile(source)?.render(&given, limits, &Watch::default())
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

/// Runs on a thread with the smallest stack that callers have.
fn on_a_small_stack(run: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(2 << 20).spawn(run).unwrap().join().unwrap();
}

#[test]
fn templates_that_would_eat_time_or_memory_end_with_an_error() {
    let limits = Limits { fuel: 5_000_000, bytes: 256 << 20, ..LIMITS };
    let doubling = |value: &str| {
        format!(
            "{{% set ns = namespace(x={value}) %}}{{% for i in range(99) %}}{{% set ns.x = ns.x + ns.x %}}{{% endfor %}}{{{{ ns.x }}}}"
        )
    };
    let nested = "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
    let templates = [
        doubling("'a'"),
        doubling("[1]"),
        doubling("(1,)"),
        "{{ 'a' * 10**9 }}".into(),
        "{{ [0] * 10**9 }}".into(),
        "{{ 10**(10**10) }}".into(),
        "{{ 2**(2**40) }}".into(),
        "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x % 7 }}".into(),
        "{{ '%1000000000d' % 5 }}".into(),
        "{{ '%.1000000000f' % 5.0 }}".into(),
        "{{ '%*d' % (1000000000, 5) }}".into(),
        "{{ '{:1000000000}'.format(5) }}".into(),
        "{{ '{:.1000000000f}'.format(5.0) }}".into(),
        "{{ 'a'.center(10**9) }}".into(),
        "{{ 'a'.ljust(10**12) }}".into(),
        "{{ 'a'|center(10**9) }}".into(),
        "{{ '1'.zfill(10**9) }}".into(),
        "{{ 'a\n'|indent(10**9) }}".into(),
        "{{ ('a\n' * 10000)|indent(100000, true, true) }}".into(),
        "{{ ('\t' * 100000).expandtabs(100000) }}".into(),
        "{{ ('a' * 100000).replace('', 'b' * 100000) }}".into(),
        "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}".into(),
        "{{ ('b' * 100000).join('a' * 100000) }}".into(),
        "{{ range(100000)|join('b' * 100000) }}".into(),
        "{{ [1]|batch(10**9, 'x')|list }}".into(),
        "{{ [1]|slice(10**9)|list|length }}".into(),
        "{{ [1]|tojson(indent=10**9) }}".into(),
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}".into(),
        "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}".into(),
        "{% for a in range(100000) %}{{ range(100000)|sum }}{% endfor %}".into(),
        "{% for a in range(100000) %}{{ 99999999 in range(100000) }}{% endfor %}".into(),
        format!("{nested}{{{{ ns.x }}}}"),
        format!("{nested}{{{{ ns.x|tojson }}}}"),
        format!("{nested}{{{{ ns.x == [ns.x[0], ns.x[1]] and ns.x[0] < ns.x[1] }}}}"),
        "{% set ns = namespace(x=(1,)) %}{% for i in range(99) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}".into(),
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}".into(),
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}".into(),
        "{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}".into(),
        "{% macro m(n) %}{% if n < 60 %}{{ m(n + 1) }}{{ m(n + 1) }}{% endif %}{% endmacro %}{{ m(0) }}".into(),
        "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}".into(),
        "{% block a %}{{ self.a() }}{% endblock %}".into(),
        "{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}".into(),
        "{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}".into(),
        "{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = ns.x|map('string') %}{% endfor %}{{ ns.x|list }}".into(),
        "{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = ns.x|batch(1) %}{% endfor %}".into(),
        "{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = [ns.x.index] %}{% endfor %}".into(),
        "{% set ns = namespace(x=1) %}{% for i in range(100000) %}{% set ns.x = cycler(ns.x) %}{% endfor %}".into(),
        "{% set ns = namespace(x=1) %}{% for i in range(100000) %}{% set ns.x = joiner(ns.x) %}{% endfor %}".into(),
        "{% set ns = namespace(x=1) %}{% for i in range(100000) %}{% for j in [ns.x] %}{% set ns.x = loop %}{% endfor %}{% endfor %}".into(),
    ];
    for source in templates {
        on_a_small_stack(move || {
            let result = render_with(&source, &Json::Object(Vec::new()), &limits);
            let shown = |text: String| format!("{} bytes", text.len());
            assert!(result.is_err(), "{source}: {:?}", result.map(shown));
        });
    }
}

#[test]
fn cycles_and_chains_of_objects_are_freed_without_recursion() {
    let templates = [
        "{% set ns = namespace(x=1) %}{% for i in range(50000) %}{% set ns2 = namespace(x=ns.x) %}{% set ns.x = ns2 %}{% endfor %}ok",
        "{% set ns = namespace() %}{% set ns.me = ns %}{% for x in [1] %}{{ loop.changed(loop) }}{% set ns.l = loop %}{% endfor %}ok",
        "{% for i in range(1000) %}{% macro m() %}{{ m }}{% endmacro %}{% set n = m %}{% endfor %}ok",
        "{% macro m(n) %}{% macro k() %}{{ k }}{% endmacro %}{{ k }}{% if n %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(50) }}ok",
        "{% set ns = namespace() %}{% macro m(f) %}{% set ns.f = caller %}{% endmacro %}{% for i in range(1000) %}{% call m(ns.f) %}{{ i }}{% endcall %}{% endfor %}ok",
    ];
    for source in templates {
        on_a_small_stack(move || assert!(render(source).unwrap().ends_with("ok"), "{source}"));
    }
}

#[test]
fn nesting_of_the_source_is_bounded_and_not_by_the_stack() {
    let deep = |open: &str, close: &str, n: usize| format!("{}1{}", open.repeat(n), close.repeat(n));
    let sources = [
        format!("{{{{ {} }}}}", deep("(", ")", 10_000)),
        format!("{{{{ {} }}}}", deep("[", "]", 10_000)),
        format!("{{{{ {} }}}}", deep("{1:", "}", 10_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(50_000)),
        format!("{{{{ {}1 }}}}", "-".repeat(50_000)),
        format!("{{{{ 1{} }}}}", " + 1".repeat(50_000)),
        format!("{{{{ 1{} }}}}", "|string".repeat(20_000)),
        format!("{{{{ x{} }}}}", ".x".repeat(50_000)),
        format!("{{{{ x{} }}}}", "[0]".repeat(50_000)),
        format!("{{{{ {}1 }}}}", "1 if 1 else ".repeat(10_000)),
        format!("{{{{ 1{} }}}}", " if 1".repeat(10_000)),
        "{% if 1 %}".repeat(20_000),
        "{% for x in y %}".repeat(10_000),
        format!("{{% set {} = 1 %}}", deep("(", ")", 10_000).replace('1', "a")),
        format!("{{{{ {}1 }}}}", "[not -".repeat(70)),
    ];
    for source in sources {
        on_a_small_stack(move || assert!(Template::compile(&source).is_err(), "{source:.80}"));
    }
    // As deep as is allowed, in calls as deep as are allowed.
    let tall = deep("(1 + ", ")", 70);
    let source = format!(
        "{{% macro m(n) %}}{{% if n %}}{{{{ {} }}}}{{% endif %}}{{% endmacro %}}{{{{ m(90) }}}}",
        tall.replacen("1)", "m(n - 1)|length)", 1)
    );
    on_a_small_stack(move || drop(render(&source)));
    let statements = format!("{}{{{{ m(n - 1) }}}}{}", "{% if n %}".repeat(38), "{% endif %}".repeat(38));
    let source = format!("{{% macro m(n) %}}{statements}{{% endmacro %}}{{{{ m(90) }}}}");
    on_a_small_stack(move || drop(render(&source)));
    let many: String = (0..2000).map(|n| format!("{{{{ name{n} }}}}")).collect();
    assert!(Template::compile(&many).is_err());
}

#[test]
fn macros_recurse_as_deep_as_templates_need() {
    let source =
        "{% macro m(n) %}{% if n %}{% for x in [n] %}{{ m(x - 1) }}.{% endfor %}{% endif %}{% endmacro %}{{ m(60) }}";
    on_a_small_stack(move || assert_eq!(render(source).unwrap(), ".".repeat(60)));
}

#[test]
fn long_conversations_render_quickly() {
    let message = |n: usize| {
        let role = if n.is_multiple_of(2) { "user" } else { "assistant" };
        Json::Object(vec![
            ("role".into(), Json::String(role.into())),
            ("content".into(), Json::String(format!("number {n} é"))),
        ])
    };
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen3_chat_template.jinja");
    let source = std::fs::read_to_string(golden).unwrap();
    let messages = Json::List((0..20_001).map(message).collect());
    let variables = Json::Object(vec![("messages".into(), messages)]);
    let limits = Limits { fuel: 20_000_000, ..LIMITS };
    let began = std::time::Instant::now();
    let text = render_with(&source, &variables, &limits).unwrap();
    assert!(text.len() > 800_000, "{}", text.len());
    let long = Json::Object(vec![
        ("role".into(), Json::String("user".into())),
        ("content".into(), Json::String("é ".repeat(400_000))),
    ]);
    let variables = Json::Object(vec![("messages".into(), Json::List(vec![long]))]);
    assert!(render_with(&source, &variables, &limits).unwrap().len() > 1_000_000);
    // Ten times what it takes, for a machine that does other things too.
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
}

#[test]
fn failures_carry_the_line_and_what_failed() {
    let cases = [
        ("a\n{{ missing.x }}", 2, "'missing' is undefined"),
        ("a\n\n{% for x in 5 %}{% endfor %}", 3, "'int' object is not iterable"),
        ("{{ 1\n + 'a' }}", 1, "unsupported operand"),
        ("\n{% if x", 2, "expected"),
        ("\n{{ 1|nofilter }}", 2, "No filter named"),
        ("{% set d = {} %}\n{{ d.x.y }}", 2, "'dict object' has no attribute 'x'"),
        ("\n{{ raise_exception('no system role') }}", 2, "no system role"),
        ("{% include 'x' %}", 1, "include"),
        ("{% macro m() %}\n{{ 1 / 0 }}{% endmacro %}\n\n{{ m() }}", 2, "division by zero"),
        ("{{ [].append(1) }}", 1, "unsafe"),
    ];
    for (source, line, message) in cases {
        let failure = render(source).unwrap_err();
        assert_eq!(failure.line, line, "{source:?}: {failure}");
        assert!(failure.message.contains(message), "{source:?}: {failure}");
    }
}

#[test]
fn variables_are_those_that_the_template_reads_and_does_not_set_first() {
    let cases = [
        ("{{ a }}{% set b = c %}{{ b }}{{ range(1) }}", "a c"),
        ("{% for x in xs if x > y %}{{ x }}{{ loop.index }}{{ z }}{% endfor %}{{ x }}", "x xs y z"),
        ("{% if t %}{% set k = 1 %}{% endif %}{{ k }}", "k t"),
        ("{% macro m(p) %}{{ p }}{{ q }}{{ caller() }}{% endmacro %}{{ m(1) }}", "q"),
        ("{% with w = v %}{{ w }}{% endwith %}{% block b %}{{ inner }}{% endblock %}", "inner v"),
        ("{% set tools = tools or [] %}{{ tools }}", "tools"),
    ];
    for (source, names) in cases {
        let variables = Template::compile(source).unwrap().variables();
        let found = variables.into_iter().collect::<Vec<_>>().join(" ");
        assert_eq!(found, names, "{source}");
    }
}
