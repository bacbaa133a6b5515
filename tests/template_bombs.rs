//! Chat templates that mean harm, each in a process of its own with limits of time, memory and stack: they end with an
//! error or a rendering, never with the process.

#[path = "support/child.rs"]
mod child;
#[path = "support/tiny_tokenizer.rs"]
mod tiny_tokenizer;

use child::Limits;
use serde_json::{Value, json};
use squire::error::Result;
use squire::text::{ChatTemplate, Json, RenderOptions, Tokenizer, encode_chat};

/// Generous: a bomb that is held takes up to a second or two of an idle machine.
const LIMITS: Limits = Limits { seconds: 60, memory: 1024 };
/// The stack of a program's first thread, and one as small as hosts make them.
const STACKS: [usize; 2] = [8 << 20, 256 << 10];

/// What becomes of a bomb.
#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    /// It is refused: as it is read, or as it is rendered.
    Refused,
    /// It is harmless by now, and renders.
    Renders,
    /// One or the other.
    Either,
}
use End::{Either, Refused, Renders};

/// A name, the template, and what must become of it.
fn bombs() -> Vec<(String, String, End)> {
    let mut all: Vec<(String, String, End)> = Vec::new();
    let mut add = |name: &str, source: String, end: End| all.push((name.into(), source, end));
    let print = |expression: String| format!("{{{{ {expression} }}}}");
    // Chains: what is parsed or evaluated by recursion.
    for (name, unit, tail) in [
        ("minus signs", "-", "1"),
        ("plus signs", "+", "1"),
        ("nots", "not ", "1"),
        ("additions", "1+", "1"),
        ("powers", "1**", "1"),
        ("concatenations", "1~", "1"),
        ("ands", "1 and ", "1"),
        ("ors", "0 or ", "1"),
        ("comparisons", "1<", "2"),
        ("ins", "1 in ", "[1]"),
        ("conditionals", "1 if 1 else ", "1"),
        ("parentheses", "(", "1"),
        ("lists", "[", "1"),
        ("dictionaries", "{1:", "1"),
        ("calls of arguments", "f(", "1"),
        ("signs in brackets", "[-(not ", "1"),
    ] {
        for n in [190, 19_500] {
            // Those two are lists and no trees.
            let flat = ["concatenations", "comparisons"].contains(&name);
            let end = if flat {
                Renders
            } else if n == 190 {
                Either
            } else {
                Refused
            };
            add(&format!("{n} {name}"), print(format!("{}{tail}", unit.repeat(n))), end);
            let closed = match unit.as_bytes()[0] {
                b'(' => ")",
                b'[' => "]",
                b'{' => "}",
                b'f' => ")",
                _ => continue,
            };
            add(&format!("{n} closed {name}"), print(format!("{}{tail}{}", unit.repeat(n), closed.repeat(n))), Refused);
        }
    }
    for (name, head, unit) in [
        ("attributes", "messages", ".x"),
        ("numbers as attributes", "messages", ".0"),
        ("subscripts", "messages", "[0]"),
        ("slices", "messages", "[:]"),
        ("filters", "1", "|string"),
        ("filters with arguments", "1", "|default(1)"),
        ("tests", "1", " is defined"),
        ("calls", "f", "()"),
        ("methods", "''", ".strip()"),
        ("strings side by side", "''", "''"),
    ] {
        for n in [190, 19_500] {
            let end = if n == 190 || unit == "''" { Either } else { Refused };
            add(&format!("{n} {name}"), print(format!("{head}{}", unit.repeat(n))), end);
        }
    }
    for (name, open, close) in [
        ("ifs", "{% if 1 %}", "{% endif %}"),
        ("fors", "{% for x in [1] %}", "{% endfor %}"),
        ("withs", "{% with x = 1 %}", "{% endwith %}"),
        ("sets", "{% set x %}", "{% endset %}"),
        ("filter blocks", "{% filter upper %}", "{% endfilter %}"),
        ("generations", "{% generation %}", "{% endgeneration %}"),
        ("macros", "{% macro m() %}", "{% endmacro %}"),
        ("call blocks", "{% call f() %}", "{% endcall %}"),
    ] {
        for n in [200, 8_000] {
            add(&format!("{n} {name}"), format!("{}{}", open.repeat(n), close.repeat(n)), Refused);
            add(&format!("{n} open {name}"), open.repeat(n), Refused);
        }
    }
    let blocks: String = (0..2_000).map(|n| format!("{{% block b{n} %}}")).collect();
    add("blocks", blocks + &"{% endblock %}".repeat(2_000), Refused);
    let elifs = |n: usize| format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(n));
    add("elifs", elifs(19_500), Renders);
    let elses = format!("{}x{}", "{% if 0 %}{% else %}".repeat(3_000), "{% endif %}".repeat(3_000));
    add("elses", elses, Refused);
    add("a tuple of targets", format!("{{% set {}a{} = 1 %}}", "(".repeat(9_000), ")".repeat(9_000)), Refused);
    add("many statements", "{{ 1 }}".repeat(37_000), Renders);
    add("many arguments", print(format!("dict({})|length", "1,".repeat(60_000))), Refused);
    add("many names", (0..30_000).map(|n| format!("{{{{ n{n} }}}}")).collect(), Refused);
    add("scoped blocks", scoped_blocks(), Either);
    for mib in [1, 16] {
        add(&format!("{mib} MiB of text"), "x".repeat(mib << 20), Refused);
        add(&format!("{mib} MiB of statements"), "{{ 1 }}".repeat((mib << 20) / 7), Refused);
    }
    add("a long name", print("n".repeat(250_000)), Renders);
    add("a long number", print("9".repeat(250_000)), Refused);
    add("a long hexadecimal number", print(format!("0x{} % 7", "f".repeat(250_000))), Either);
    add("a long comment", format!("{{# {} #}}", "x".repeat(250_000)), Renders);
    // Cycles.
    let cycle = "{% set n = namespace() %}{% set n.s = n %}{% set n.l = [n, {'a': n}, (n,)] %}";
    for (use_of, end) in [
        ("{{ n }}", Renders),
        ("{{ n.l }}", Renders),
        ("{{ n|string|length }}", Renders),
        ("{{ n|tojson }}", Refused),
        ("{{ n.l|tojson }}", Refused),
        ("{{ n == n.s }}{{ n.l == n.s.l }}{{ n.l != [n] }}", Renders),
        ("{{ n.l < n.l }}{{ [n] in [[n]] }}", Either),
        ("{{ {n: 1} }}", Renders),
        ("{{ {(n, n.s): 1} }}", Renders),
        ("{{ n.l|unique|list }}", Either),
        ("{{ n.l|pprint }}", Either),
        ("{{ n|list }}", Refused),
        ("{{ n.l|list|length }}", Renders),
        ("{{ '%s %r'|format(n, n.l) }}", Renders),
        ("{{ '{}'.format(n.l) }}", Renders),
        ("{{ namespace(n) }}", Refused),
        ("{{ dict(a=n).copy() }}", Renders),
        ("{{ n.l|map(attribute='s')|list }}", Either),
        ("{{ n.l|sort }}", Refused),
        ("{{ n.s.s.s.s.s.s.s.s.s.s.s }}", Renders),
        ("{{ n.l|join }}", Renders),
        ("{{ n|escape }}", Renders),
    ] {
        add(&format!("a cycle in {use_of}"), format!("{cycle}{use_of}"), end);
    }
    let chain = "{% set n = namespace(x=1) %}{% for i in range(99999) %}{% set n.x = namespace(x=n.x) %}{% endfor %}";
    for use_of in ["ok", "{{ n }}", "{{ n == n.x }}", "{{ n|string|length }}"] {
        add(&format!("a chain of namespaces, {use_of}"), format!("{chain}{use_of}"), Either);
    }
    // Sizes. The host's text in `content` has a megabyte.
    let huge = "9223372036854775807";
    for (expression, end) in [
        (format!("'a'|indent({huge})"), Refused),
        (format!("content|indent({huge}, true, true)"), Refused),
        ("content|indent('x' * 1000000, true, true)".into(), Renders),
        ("('a\\n' * 1000000)|indent(1000, true, true)".into(), Refused),
        (format!("'a'|center({huge})"), Refused),
        (format!("'a'.ljust({huge})"), Refused),
        (format!("'a'.zfill({huge})"), Refused),
        (format!("('\\t' * 1000).expandtabs({huge})"), Refused),
        (format!("'a' * {huge}"), Refused),
        ("'a' * 10**12".into(), Refused),
        (format!("[1] * {huge}"), Refused),
        ("content * 1000".into(), Refused),
        ("content.replace('', content)".into(), Refused),
        ("content|replace('a', content)".into(), Refused),
        ("content.join(content)".into(), Refused),
        ("content|join(content)".into(), Refused),
        ("range(100000)|join(content)".into(), Refused),
        (format!("[1]|slice({huge})|list|length"), Refused),
        (format!("[1]|batch({huge}, 'x')|list"), Refused),
        ("content|batch(1)|list|length".into(), Either),
        (format!("content|wordwrap({huge})|length"), Either),
        ("content|wordwrap(1)|length".into(), Either),
        ("content|wordwrap(1, true, content)".into(), Refused),
        ("(content|replace('a', '-'))|wordwrap(1)|length".into(), Either),
        ("(content|replace('a', 'a '))|wordwrap(3)|length".into(), Either),
        ("'%999999999d' % 5".into(), Refused),
        ("'%.999999999f' % 5.0".into(), Refused),
        ("'%*d' % (999999999, 5)".into(), Refused),
        ("('%1000000d' * 100000) % (1,)".into(), Refused),
        (format!("'{{:{huge}}}'.format(5)"), Refused),
        ("'{:.999999999f}'.format(5.0)".into(), Refused),
        ("('{0:1000000}' * 100000).format(1)".into(), Refused),
        ("'{0[0]}'.format(content)".into(), Either),
        ("range(10**18)".into(), Refused),
        ("range(99999)|list|length".into(), Renders),
        ("10 ** (10 ** 10)".into(), Refused),
        ("2 ** 1048575 % 7".into(), Either),
        ("(2 ** 1000000) ** 1000000".into(), Refused),
        ("(7 ** 370000) * (7 ** 370000)".into(), Refused),
        ("7 ** 300000".into(), Refused),
        ("(7 ** 300000)|string".into(), Refused),
        ("'%d' % (7 ** 300000)".into(), Refused),
        ("'{:x}'.format(7 ** 300000)|length".into(), Either),
        ("(7 ** 300000) / (7 ** 299999)".into(), Either),
        ("(7 ** 300000) // (7 ** 150000) % 10".into(), Either),
        ("(7 ** 300000)|round(-100000) % 10".into(), Either),
        ("(7 ** 300000)|float".into(), Refused),
        ("1 is divisibleby(0)".into(), Refused),
        ("1 is divisibleby(0.0)".into(), Refused),
        ("1 // 0".into(), Refused),
        ("1 % 0".into(), Refused),
        ("1.0 % 0.0".into(), Refused),
        ("1 / 0".into(), Refused),
        ("0 ** -1".into(), Refused),
        ("(-9223372036854775807 - 1) // -1".into(), Renders),
        ("(-9223372036854775807 - 1) % -1".into(), Renders),
        ("(-9223372036854775807 - 1)|abs".into(), Renders),
        ("-(-9223372036854775807 - 1)".into(), Renders),
        (format!("1.5|round({huge})"), Either),
        (format!("1.5|round(-{huge})"), Either),
        (format!("5|round(-{huge})"), Either),
        (format!("1.5|round({huge}, 'ceil')"), Refused),
        (format!("'abc'[{huge}:-{huge}:-{huge}]"), Either),
        (format!("range(5)[{huge}]"), Either),
        (format!("range({huge}, -{huge}, -{huge})|list"), Either),
        (format!("range(-{huge}, {huge}, {huge})[::{huge}]|list"), Either),
        (format!("'abc'|truncate({huge})"), Renders),
        (format!("'abc'|truncate(3, true, '', {huge})"), Renders),
        (format!("'a b c'.split(' ', {huge})"), Renders),
        (format!("'abc'.find('b', -{huge}, {huge})"), Renders),
        (format!("[1, 2].index(2, -{huge}, {huge})"), Renders),
        (format!("[1]|tojson(indent={huge})"), Refused),
        ("content|tojson(ensure_ascii=true)|length".into(), Renders),
        ("[content] * 100000".into(), Refused),
        ("content|urlencode|length".into(), Renders),
        ("content|escape|length".into(), Renders),
        ("(content|replace('a', '<'))|striptags|length".into(), Either),
        ("(content|replace('a', '<!--'))|striptags|length".into(), Either),
        ("(content|replace('a', '<a>'))|striptags|length".into(), Either),
        ("content|list|sort|length".into(), Either),
        ("content|list|groupby(0)|list|length".into(), Either),
        ("range(99999)|map(attribute='.' * 1000000)|first".into(), Refused),
        ("range(99999)|sort(attribute=',' * 1000000)".into(), Refused),
        ("strftime_now('%B' * 10000000)|length".into(), Refused),
        ("strftime_now('%' )".into(), Refused),
        ("content|int(0, 36)".into(), Either),
        ("('f' * 50000000)|int(0, 16)".into(), Refused),
        ("('9' * 50000000)|float".into(), Refused),
        ("raise_exception(content)".into(), Refused),
        ("undefined_name[content].x".into(), Refused),
        ("{}[content].x".into(), Refused),
        ("1|attr(content)".into(), Renders),
        ("1 is filter(content)".into(), Refused),
        ("[1]|map(content)|list".into(), Refused),
        ("dict(**{content: 1})".into(), Renders),
        ("cycler(*range(99999)).items|length".into(), Renders),
        ("('x' * 10000000).split('x')|length".into(), Either),
        ("('x\\n' * 10000000).splitlines()|length".into(), Refused),
        ("(content ~ content)|title|length".into(), Renders),
        ("content|last".into(), Renders),
        ("content|xmlattr".into(), Refused),
        ("content|filesizeformat".into(), Refused),
        ("content|wordcount".into(), Renders),
    ] {
        add(&expression.clone(), print(expression), end);
    }
    // Work: each of these is cheap once, and done until the fuel is used.
    for (name, body) in [
        ("in", "{{ 1 if 'b' in content }}"),
        ("in a list", "{{ 1 if -1 in many }}"),
        ("keys of a dictionary", "{{ 1 if big.keys() == big.keys() }}"),
        ("items of a dictionary", "{{ 1 if big.items() == big.items() }}"),
        ("equal dictionaries", "{{ 1 if big == big2 }}"),
        ("a long key", "{{ 1 if content in big }}"),
        ("a long key, got", "{{ big.get(content) }}"),
        ("a long key, subscript", "{{ big[content] }}"),
        ("a tuple of long keys", "{{ 1 if keys in big }}"),
        ("add lists", "{% set x = many + many %}"),
        ("unique", "{{ many|unique|list|length }}"),
        ("tojson", "{{ many|tojson|length }}"),
        ("sort", "{{ many|sort|length }}"),
        ("sort strings", "{{ [content, content]|sort|length }}"),
        ("groupby", "{{ many|map('string')|groupby(0)|length }}"),
        ("sum", "{{ many|sum }}"),
        ("join", "{{ many|join|length }}"),
        ("reverse", "{{ many|reverse|list|length }}"),
        ("last of a text", "{{ content|last }}"),
        ("length of a range", "{{ range(99999)|list|length }}"),
        ("index", "{{ [many.index(99998)] }}"),
        ("count", "{{ many.count(0) }}"),
        ("spread arguments", "{{ dict(**big)|length }}"),
        ("spread arguments to a macro", "{{ m(**big) }}"),
        ("format by names", "{{ fields.format(a=1, **big)|length }}"),
        ("a method of a long text", "{{ content.upper()|length }}"),
        ("startswith", "{{ content.startswith(keys) }}"),
        ("strip", "{{ content.strip(content)|length }}"),
        ("a negative of a big integer", "{{ 1 if -(number) }}"),
        ("abs of a big integer", "{{ 1 if number|abs }}"),
        ("round of a big integer", "{{ 1 if number|round(-200000) }}"),
        ("big integers", "{{ 1 if number * number // number == number }}"),
        ("a big integer as a key", "{{ 1 if number in big }}"),
        ("floats of big digits", "{{ digits|float }}"),
        ("changed", "{{ loop.changed(*many) }}"),
        ("cycle", "{{ loop.cycle(*many) }}"),
        ("a block", "{{ self.b() }}"),
        ("parents", "{{ many|map('string')|map('string')|map('string')|list|length }}"),
        ("compare big lists", "{{ 1 if many == many2 }}"),
        ("order big lists", "{{ 1 if many < many2 }}"),
        ("slices", "{{ content[::2]|length }}"),
        ("slices of another alphabet", "{{ accents[5:-5]|length }}"),
        ("repr", "{{ [content]|string|length }}"),
    ] {
        let set = "{% macro m(a) %}{{ kwargs|length }}{% endmacro %}\
            {% set many = range(99999)|list %}{% set many2 = range(99999)|list %}\
            {% set ns = namespace(pairs=[]) %}\
            {% set big = dict(range(10000)|map('string')|batch(2)|list) %}\
            {% set big2 = dict(range(10000)|map('string')|batch(2)|list) %}\
            {% set keys = (content, content, content, content) %}\
            {% set number = 7 ** 300000 %}{% set digits = '9' * 4000 %}{% set accents = 'é' * 500000 %}\
            {% set fields = '{a}' * 1000 %}";
        let source = format!("{set}{{% block b %}}{{% endblock %}}{{% for i in range(99999) %}}{body}{{% endfor %}}");
        let looped = "{% for j in range(99999) %}{% for i in range(99999) %}";
        let source = source.replace("{% for i in range(99999) %}", looped) + "{% endfor %}";
        add(&format!("over and over: {name}"), source, Refused);
    }
    // Recursion at rendering.
    for (name, source) in [
        ("a macro", "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}"),
        ("two macros", "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}"),
        ("a default", "{% macro m(a=m()) %}{% endmacro %}{{ m() }}"),
        ("a caller", "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{{ m() }}"),
        ("a loop", "{% for x in [1] recursive %}{{ loop([x]) }}{% endfor %}"),
        ("a block", "{% block a %}{{ self.a() }}{% endblock %}"),
        ("two blocks", "{% block a %}{{ self.b() }}{% endblock %}{% block b %}{{ self.a() }}{% endblock %}"),
        ("super", "{% block a %}{{ super() }}{% endblock %}"),
        ("include", "{% include 'x' %}"),
        ("import", "{% import 'x' as y %}"),
        ("extends", "{% extends 'x' %}"),
        ("deep macros", &deep_macros()),
        (
            "iterators",
            "{% set n = namespace(x=[1]) %}{% for i in range(9999) %}{% set n.x = n.x|map('string') %}{% endfor %}{{ n.x|list }}",
        ),
        ("lists", "{% set n = namespace(x=[]) %}{% for i in range(9999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}"),
        ("methods", "{% set n = namespace(x='') %}{% for i in range(9999) %}{% set n.x = [n.x.strip] %}{% endfor %}"),
        (
            "undefined values",
            "{% set n = namespace(x=1) %}{% for i in range(9999) %}{% set n.x = {}[[n.x]] %}{% endfor %}{{ n.x.y }}",
        ),
    ] {
        add(
            &format!("recursion: {name}"),
            source.into(),
            if ["methods", "undefined values"].contains(&name) { Either } else { Refused },
        );
    }
    let joiners = "{% set j = joiner(content) %}{% for i in range(99999) %}{{ j() }}{% endfor %}";
    add("a joiner", joiners.into(), Refused);
    let cyclers = "{% set c = cycler(content, content) %}{% for i in range(99999) %}{{ c.next() }}{% endfor %}";
    add("a cycler", cyclers.into(), Refused);
    add("output", "{% for i in range(99999) %}{{ content }}{% endfor %}".into(), Refused);
    all
}

/// As many brackets as are allowed, in macros as deep as are allowed.
fn deep_macros() -> String {
    let tall = format!("{}m(n + 1){}", "(1 ~ ".repeat(70), ")".repeat(70));
    let ifs = format!("{}{{{{ {tall} }}}}{}", "{% if 1 %}".repeat(37), "{% endif %}".repeat(37));
    format!("{{% macro m(n) %}}{ifs}{{% endmacro %}}{{{{ m(0) }}}}")
}

/// Blocks that each take all variables over, in a loop.
fn scoped_blocks() -> String {
    let sets: String = (0..700).map(|n| format!("{{% set v{n} = 1 %}}")).collect();
    format!("{sets}{{% for i in range(99999) %}}{{% block b scoped %}}{{{{ i }}}}{{% endblock %}}{{% endfor %}}")
}

fn megabyte() -> Json {
    Json::Object(vec![("content".into(), Json::String("a".repeat(1 << 20)))])
}

/// Reads and renders a template; the length of the rendering.
fn set_off(source: &str) -> Result<usize> {
    let Json::Object(variables) = megabyte() else { panic!("variables are an object") };
    let options = RenderOptions { variables, ..RenderOptions::default() };
    let messages = json!([{"role": "user", "content": "hello"}]);
    ChatTemplate::compile(source)?.render(&messages, &options).map(|rendering| rendering.len())
}

#[test]
fn no_template_ends_the_process_or_takes_it_for_long() {
    if let Some(case) = child::case() {
        let (n, stack) = case.split_once(' ').unwrap();
        let source = bombs().swap_remove(n.parse().unwrap()).1;
        let before = child::peak_bytes();
        let ended = child::on_a_stack(stack.parse().unwrap(), move || set_off(&source));
        child::say(match &ended {
            Ok(bytes) => format!("rendered {bytes} bytes"),
            Err(e) => format!("refused: {e:.200}"),
        });
        child::say(format_args!("{} MB", (child::peak_bytes() - before) >> 20));
        assert!(ended.err().is_none_or(|e| e.message().len() < 800));
        return;
    }
    let (mut wrong, mut slowest) = (Vec::new(), (0.0, String::new()));
    for (n, (name, _, end)) in bombs().iter().enumerate() {
        let run =
            |stack| child::run("no_template_ends_the_process_or_takes_it_for_long", &format!("{n} {stack}"), LIMITS);
        // Side by side: what it costs a process does not depend on the other.
        let ran = std::thread::scope(|scope| {
            STACKS.map(|stack| scope.spawn(move || (stack, run(stack)))).map(|child| child.join().unwrap())
        });
        for (stack, ran) in ran {
            let said = ran.said.first().map_or("", String::as_str);
            let held = match end {
                Refused => said.starts_with("refused"),
                Renders => said.starts_with("rendered"),
                Either => true,
            };
            if ran.died.is_some() || !held {
                wrong.push(format!("{name} on {stack}: wanted {end:?}, found {ran:?}"));
            }
            if std::env::var_os("SQUIRE_BOMBS").is_some() {
                println!("{:6.2} s {:8} {name:.60}: {:.110}", ran.seconds, ran.said.last().map_or("", |s| s), said);
            }
            if ran.seconds > slowest.0 {
                slowest = (ran.seconds, name.clone());
            }
        }
    }
    println!("the slowest took {:.2} s: {}", slowest.0, slowest.1);
    assert!(wrong.is_empty(), "{} bombs:\n{}", wrong.len(), wrong.join("\n"));
}

/// What a host says may be a bomb too: nesting, digits, many messages, many variables, many roles.
fn requests() -> Vec<(&'static str, Value)> {
    let user = |content: &str| json!({"role": "user", "content": content});
    let roles = (0..2_000).map(|n| json!({"role": format!("role{n}"), "content": "x"})).collect::<Vec<_>>();
    vec![
        ("many messages", json!((0..100_000).map(|_| user("x")).collect::<Vec<_>>())),
        ("many roles", json!(roles)),
        ("a long message", json!([user(&"word ".repeat(4 << 20))])),
        ("a message of private characters", json!([user(&('\u{e000}'..='\u{f8ff}').collect::<String>())])),
        ("a message of tokens", json!([user(&"<|im_end|>".repeat(200_000))])),
        ("a message of half tokens", json!([user(&"<|im_".repeat(200_000))])),
        ("a long role", json!([{"role": "r".repeat(1 << 20), "content": "x"}])),
        ("a long key", json!([{"role": "user", "content": "x", "k".repeat(1 << 20): 1}])),
        ("many keys", {
            let mut message = user("x");
            (0..100_000).for_each(|n| message[format!("key{n}")] = json!(n));
            json!([message])
        }),
    ]
}

#[test]
fn no_request_ends_the_process_or_takes_it_for_long() {
    let texts = [
        ("nesting", format!("{{\"messages\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000))),
        ("open nesting", "{\"messages\":[".repeat(100_000)),
        ("digits", format!("{{\"messages\": [], \"x\": {}}}", "9".repeat(1_000_000))),
        ("digits of a fraction", format!("{{\"messages\": [], \"x\": 0.{}}}", "9".repeat(1_000_000))),
        ("an exponent", "{\"messages\": [], \"x\": 1e999999999}".into()),
        ("many variables", {
            let all = (0..100_000).map(|n| format!("\"v{n}\": 1")).collect::<Vec<_>>().join(",");
            format!("{{\"messages\": [], \"chat_template_kwargs\": {{{all}}}}}")
        }),
    ];
    if let Some(case) = child::case() {
        let (n, stack) = case.split_once(' ').unwrap();
        let n: usize = n.parse().unwrap();
        child::on_a_stack(stack.parse().unwrap(), move || {
            let golden = include_str!("golden/qwen3_chat_template.jinja");
            let template = ChatTemplate::compile(golden).unwrap();
            if let Some((_, text)) = texts.get(n) {
                let e = squire::text::ChatRequest::parse(text, Some(&template)).err().expect("it was taken");
                assert!(e.message().len() < 800, "{e}");
                return;
            }
            let tokenizer = Tokenizer::from_json(&tiny_tokenizer::tiny_tokenizer_json()).unwrap();
            let messages = requests().swap_remove(n - texts.len()).1;
            let any = ChatTemplate::compile("{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}").unwrap();
            for template in [&template, &any] {
                let ids = encode_chat(&tokenizer, template, &messages, &RenderOptions::default());
                assert!(ids.err().is_none_or(|e| e.message().len() < 800));
            }
        });
        return;
    }
    let names = texts.iter().map(|(name, _)| *name).chain(requests().into_iter().map(|(name, _)| name));
    for (n, name) in names.enumerate() {
        for stack in STACKS {
            let limits = Limits { seconds: 120, memory: 3072 };
            let ran = child::run("no_request_ends_the_process_or_takes_it_for_long", &format!("{n} {stack}"), limits);
            println!("{:6.2} s {name}", ran.seconds);
            assert!(ran.died.is_none(), "{name} on {stack}: {ran:?}");
        }
    }
}

#[test]
fn a_template_of_cycles_leaks_nothing() {
    if child::case().is_some() {
        let source = "{% set n = namespace() %}{% set n.s = n %}{% set n.m = messages %}{% set n.t = 'x' * 10000 ~ n %}\
            {% for x in [1, 2] %}{% set n.l = loop %}{{ loop.changed(loop, n) }}{% endfor %}\
            {% macro m(a) %}{% set n.c = caller %}{{ m }}{{ caller() }}{% endmacro %}{% call m(n) %}{{ n.l }}{% endcall %}";
        let template = ChatTemplate::compile(source).unwrap();
        let fails = ChatTemplate::compile(&format!("{source}{{{{ raise_exception('no') }}}}")).unwrap();
        let messages = Json::from(json!([{"role": "user", "content": "x".repeat(20_000)}]));
        let render = || {
            let options = RenderOptions::default();
            let ends = [template.render(&messages, &options).is_ok(), fails.render(&messages, &options).is_ok()];
            assert_eq!(ends, [true, false]);
        };
        (0..100).for_each(|_| render());
        let before = child::held_bytes();
        (0..1_000).for_each(|_| render());
        child::say(child::held_bytes().saturating_sub(before));
        return;
    }
    let ran = child::run("a_template_of_cycles_leaks_nothing", "leak", LIMITS);
    assert!(ran.died.is_none(), "{ran:?}");
    let grown: u64 = ran.said[0].parse().unwrap();
    // A kept conversation a call would be 40 MB.
    assert!(grown < 4 << 20, "{grown} bytes more after 1,000 renderings");
}

/// An expression drawn from what templates are made of, values that are large or odd among them.
fn expression(draw: &mut dyn FnMut(usize) -> usize, depth: u32) -> String {
    const VALUES: [&str; 24] = [
        "content",
        "messages",
        "many",
        "big",
        "n",
        "loop",
        "none",
        "true",
        "undefined_name",
        "''",
        "'é漢😀'",
        "'%d %s'",
        "'{0} {a}'",
        "[]",
        "{}",
        "()",
        "0",
        "-1",
        "2.5",
        "9223372036854775807",
        "10 ** 30",
        "range(99999)",
        "'inf'|float",
        "1e308",
    ];
    const FILTERS: [&str; 40] = [
        "abs",
        "batch(A)",
        "capitalize",
        "center(A)",
        "default(A)",
        "dictsort",
        "escape",
        "filesizeformat",
        "first",
        "float",
        "format(A, A)",
        "groupby(A)",
        "indent(A, true)",
        "int(A, A)",
        "join(A)",
        "last",
        "length",
        "list",
        "items|list",
        "map(A)|list",
        "map('upper')|list",
        "max",
        "min",
        "pprint",
        "reject(A)|list",
        "replace(A, A)",
        "reverse|list",
        "round(A)",
        "slice(A)|list",
        "sort",
        "string",
        "striptags",
        "sum(start=A)",
        "tojson(indent=A)",
        "trim(A)",
        "truncate(A, true, A)",
        "unique|list",
        "urlencode",
        "wordwrap(A)",
        "xmlattr",
    ];
    const METHODS: [&str; 24] = [
        ".upper()",
        ".split(A)",
        ".replace(A, A)",
        ".join(A)",
        ".format(A, a=A)",
        ".center(A, A)",
        ".zfill(A)",
        ".expandtabs(A)",
        ".count(A)",
        ".find(A, A, A)",
        ".strip(A)",
        ".splitlines(A)",
        ".startswith(A)",
        ".items()",
        ".get(A, A)",
        ".index(A)",
        ".keys()",
        "[A]",
        "[A:A]",
        "[A:A:A]",
        "[::A]",
        ".bit_length()",
        ".x",
        ".partition(A)",
    ];
    const TESTS: [&str; 10] =
        ["defined", "divisibleby(A)", "odd", "sameas(A)", "in(A)", "mapping", "iterable", "eq(A)", "lt(A)", "callable"];
    const OPERATORS: [&str; 17] =
        ["+", "-", "*", "/", "//", "%", "**", "~", "and", "or", "==", "!=", "<", ">=", "in", "not in", "if A else"];
    if depth == 0 {
        return VALUES[draw(VALUES.len())].into();
    }
    let inner = expression(draw, depth - 1);
    let shape = match draw(12) {
        0..4 => format!("({inner}|{})", FILTERS[draw(FILTERS.len())]),
        4..7 => format!("({inner}){}", METHODS[draw(METHODS.len())]),
        7..10 => format!("({inner} {} A)", OPERATORS[draw(OPERATORS.len())]),
        10 => format!("({inner} is {})", TESTS[draw(TESTS.len())]),
        _ => ["-(A)", "(not A)", "[A, A]", "(A, A)", "{A: A}", "namespace(a=A)", "dict(a=A)", "cycler(A, A)"][draw(8)]
            .into(),
    };
    let mut parts = shape.split('A');
    let mut whole = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let within = draw(depth as usize) as u32;
        whole += &expression(draw, within);
        whole += part;
    }
    whole
}

/// SQUIRE_FUZZ=N draws N expressions, SQUIRE_FUZZ_FROM where they begin.
#[test]
fn no_drawn_expression_ends_the_process_or_takes_it_for_long() {
    const TEST: &str = "no_drawn_expression_ends_the_process_or_takes_it_for_long";
    let number = |name: &str, default: u64| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (from, count) = (number("SQUIRE_FUZZ_FROM", 0), number("SQUIRE_FUZZ", 1_500));
    let source = |case: u64| {
        let mut n = 0;
        let mut draw = |below: usize| {
            n += 1;
            squire::random::below(squire::random::Stream::World, &[case, n], below.max(1) as u64) as usize
        };
        let (a, b) = (expression(&mut draw, 3), expression(&mut draw, 2));
        format!(
            "{{% set n = namespace(a=1) %}}{{% set n.s = n %}}{{% set many = range(9999)|list %}}\
             {{% set big = dict(range(1000)|map('string')|batch(2)|list) %}}\
             {{% for i in range(3) %}}{{{{ {a} }}}}{{% set n.a = {b} %}}{{{{ n.a }}}}{{% endfor %}}"
        )
    };
    if child::case().is_some() {
        for case in from..from + count {
            let source = source(case);
            let began = std::time::Instant::now();
            println!("\n> {case}: {source}");
            let ended = set_off(&source);
            if let Err(e) = &ended {
                assert!(!e.message().contains("a defect of squire"), "{e}: {source}");
            }
            let (seconds, rendered) = (began.elapsed().as_secs_f64(), ended.is_ok());
            if seconds > 1.0 {
                child::say(format_args!("slow: {seconds:.1} s, rendered {rendered}: {source}"));
            }
        }
        child::say(format_args!("done {} MB", child::peak_bytes() >> 20));
        return;
    }
    let ran = child::run(TEST, "", Limits { seconds: 120 + count / 10, memory: 2048 });
    let last = ran.said.last().map_or("", String::as_str);
    assert!(ran.died.is_none(), "{:?} {} after {last}", ran.died, ran.errors);
    println!("{last}");
    ran.said.iter().filter(|line| line.starts_with("slow")).for_each(|line| println!("{line}"));
}
