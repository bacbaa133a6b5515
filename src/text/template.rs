//! Chat templates: Jinja as transformers runs it.
//!
//! The environment is transformers' `_compile_jinja_template`: trimmed blocks, loop controls, a
//! `tojson` that is Python's `json.dumps`, `raise_exception`, `strftime_now` (UTC here, so that a
//! rendering does not depend on the machine's place), and Python's string methods. The marks
//! `{% generation %}` become blocks that are always taken.
//!
//! A template is code that comes with the model. It can reach nothing outside, its time is bounded by
//! fuel, its calls by the recursion limit, its output by a cap. Values in between are not metered by the
//! engine: a template written to do harm can still exhaust memory by doubling a string, or the stack by
//! nesting lists where a long conversation earned it the fuel. Take templates from where you would take
//! a program.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{AutoEscape, Environment, ErrorKind, Value as Jinja};
use minijinja_contrib::pycompat::unknown_method_callback;
use parking_lot::Mutex;
use serde_json::Value;

use super::chat_json;
use super::json::Json;
use super::messages::{self, Open, check_messages, message};
use crate::error::{Error, Fault, Result};

/// The longest template, in bytes; Qwen3's has 4 kB.
const MAX_SOURCE: usize = 256 << 10;
/// The longest rendering, in bytes.
const MAX_OUTPUT: usize = 64 << 20;
/// Instructions a template may run: at least, more for each JSON value it is given, and at most. Qwen3's
/// runs about 100 a message, which has three values or more.
const FUEL: (u64, u64, u64) = (100_000, 50, 5_000_000);
/// Calls within calls.
const MAX_DEPTH: usize = 100;

/// What a rendering is asked for, apart from the messages.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// Whether the beginning of an assistant turn follows.
    pub add_generation_prompt: bool,
    /// Whether the last message stays open, so that what is generated continues it.
    pub continue_final_message: bool,
    /// The tools' descriptions, a list.
    pub tools: Option<Json>,
    /// Documents for a template that retrieves, a list.
    pub documents: Option<Json>,
    /// Which of the folder's templates; None: `tool_use` where there is one and tools are given, else `default`.
    pub template: Option<String>,
    /// Further variables, such as `enable_thinking`.
    pub variables: Vec<(String, Json)>,
}

/// A folder's chat templates, compiled: one, or several with names of which a request chooses.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// by name, with their texts
    sources: BTreeMap<String, String>,
    special_tokens: Vec<(String, Json)>,
    /// whether a template (by name) has a place for a role
    roles: Mutex<HashMap<(String, String), bool>>,
}

/// The template that is taken where nothing else is asked for.
const DEFAULT: &str = "default";
/// The one that is taken where tools are given.
const TOOL_USE: &str = "tool_use";

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChatTemplate({})", self.names())
    }
}

impl ChatTemplate {
    /// Compiles a folder's only template. Error: `TemplateForm`.
    pub fn compile(source: &str) -> Result<ChatTemplate> {
        ChatTemplate::compile_all(&[(DEFAULT.to_string(), source.to_string())].into())
    }

    /// Compiles templates by name. Error: `TemplateForm`, naming the template where there are several.
    pub fn compile_all(sources: &BTreeMap<String, String>) -> Result<ChatTemplate> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| Error::new(Fault::TemplateForm, e.to_string()))?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_recursion_limit(MAX_DEPTH);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        for (name, source) in sources {
            let form = |why: String| {
                let which = if sources.len() > 1 { format!(" {name}") } else { String::new() };
                Error::new(Fault::TemplateForm, format!("chat template{which}: {why}"))
            };
            if source.len() > MAX_SOURCE {
                return Err(form(format!("{} bytes, more than the {MAX_SOURCE} allowed", source.len())));
            }
            let taken = without_generation_marks(source);
            environment.add_template_owned(name.clone(), taken).map_err(|e| form(e.to_string()))?;
        }
        Ok(ChatTemplate { environment, sources: sources.clone(), special_tokens: Vec::new(), roles: Mutex::default() })
    }

    fn names(&self) -> String {
        self.sources.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
    }

    /// The name of the template that a request is rendered by, as transformers chooses it: the one asked for, else
    /// `tool_use` where there is one and tools are given (an empty list too), else `default`.
    ///
    /// Error: `NoTemplate`, naming those that there are.
    fn choose(&self, options: &RenderOptions) -> Result<&str> {
        let known = |name: &str| self.sources.get_key_value(name).map(|(name, _)| name.as_str());
        let missing = |what: String| {
            let why = format!("{what}; the folder has {}: name one by chat_template", self.names());
            Err(Error::new(Fault::NoTemplate, why))
        };
        if let Some(asked) = &options.template {
            return known(asked).map_or_else(|| missing(format!("no chat template is named {asked:.60}")), Ok);
        }
        let for_tools = options.tools.as_ref().and_then(|_| known(TOOL_USE));
        for_tools.or_else(|| known(DEFAULT)).map_or_else(|| missing("no chat template is the default".into()), Ok)
    }

    /// Whether some template of the folder reads a variable of this name.
    pub fn reads(&self, name: &str) -> bool {
        let templates = self.sources.keys().filter_map(|t| self.environment.get_template(t).ok());
        templates.into_iter().any(|t| t.undeclared_variables(false).contains(name))
    }

    /// Gives the template the variables `bos_token`, `eos_token` and their like, which
    /// tokenizer_config.json names as texts or as objects with a `content`.
    pub fn with_special_tokens(mut self, tokenizer_config: &Value) -> ChatTemplate {
        for name in ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"] {
            let Some(token) = tokenizer_config.get(name) else { continue };
            if let Some(text) = token.as_str().or_else(|| token.get("content")?.as_str()) {
                self.special_tokens.push((name.to_string(), text.into()));
            }
        }
        // Names of the model's own, such as image_token.
        if let Some(named) = tokenizer_config.get("extra_special_tokens").and_then(Value::as_object) {
            let text = |(name, token): (&String, &Value)| {
                let text = token.as_str().or_else(|| token.get("content")?.as_str())?;
                Some((name.clone(), text.into()))
            };
            self.special_tokens.extend(named.iter().filter_map(text));
        }
        self
    }

    /// The text of the template that a request is rendered by. Error: `NoTemplate`.
    pub fn source(&self, options: &RenderOptions) -> Result<&str> {
        Ok(&self.sources[self.choose(options)?])
    }

    /// The templates' texts by name.
    pub fn sources(&self) -> &BTreeMap<String, String> {
        &self.sources
    }

    /// Renders messages (a list of objects with at least a `role`) as transformers does. Message text
    /// stands in the result as it is, control tokens and all: to make ids use `encode_chat`.
    ///
    /// Errors: `BadValue` where the messages are not such a list; `TemplateFailed` where the template
    /// raises an exception, fails, or runs too long.
    pub fn render(&self, messages: impl Into<Json>, options: &RenderOptions) -> Result<String> {
        let given = messages.into();
        let mut messages = messages::plain(check_messages(&given)?);
        let open = Open::mark(&mut messages, options, self.source(options)?)?;
        let messages = &Json::List(messages);
        let failed = |why: String| Error::new(Fault::TemplateFailed, format!("chat template: {why}"));
        let none = Json::Null;
        let prompt = Json::Bool(options.add_generation_prompt);
        let own = [
            ("messages", messages),
            ("tools", options.tools.as_ref().unwrap_or(&none)),
            ("documents", options.documents.as_ref().unwrap_or(&none)),
            ("add_generation_prompt", &prompt),
        ];
        // What the host gives wins over the special tokens, and the names above over both.
        let given = options.variables.iter().chain(&self.special_tokens).map(|(name, value)| (name.as_str(), value));
        let mut variables: BTreeMap<&str, Jinja> = BTreeMap::new();
        let mut values = 0;
        for (name, value) in own.into_iter().chain(given) {
            variables.entry(name).or_insert_with(|| {
                values += value.count();
                jinja(value)
            });
        }
        let mut environment = self.environment.clone();
        let (base, each, most) = FUEL;
        environment.set_fuel(Some(most.min(base + each * values)));
        let template = environment.get_template(self.choose(options)?).map_err(|e| failed(e.to_string()))?;
        let mut output = Capped(Vec::new());
        template.render_captured_to(variables, &mut output).map_err(|e| match e.kind() {
            ErrorKind::OutOfFuel => failed("it ran too long".into()),
            _ => failed(e.to_string()),
        })?;
        let rendering = String::from_utf8(output.0).map_err(|e| failed(e.to_string()))?;
        match open {
            Some(open) => open.cut(rendering),
            None => Ok(rendering),
        }
    }

    /// Whether the template that a request is rendered by has a place for messages of a role: it names the role, or
    /// prints the text of such a message, or refuses it by itself. Templates drop a message of a role that they do not
    /// know without a word.
    pub(super) fn knows_role(&self, role: &str, options: &RenderOptions) -> Result<bool> {
        let name = self.choose(options)?;
        let source = &self.sources[name];
        let named = [format!("'{role}'"), format!("\"{role}\"")].iter().any(|literal| source.contains(literal));
        if named && !role.is_empty() {
            return Ok(true);
        }
        let key = (name.to_string(), role.to_string());
        if let Some(&known) = self.roles.lock().get(&key) {
            return Ok(known);
        }
        let probe = "\u{e000}";
        let options = RenderOptions { template: Some(name.to_string()), ..RenderOptions::default() };
        let alone = vec![message(role, probe)];
        let behind = vec![message("user", "x"), message(role, probe)];
        let renderings = [alone, behind].map(|messages| self.render(Json::List(messages), &options));
        let known = renderings.iter().all(Result::is_err)
            || renderings.iter().flatten().any(|rendering| rendering.contains(probe));
        let mut roles = self.roles.lock();
        if roles.len() < MAX_ROLES {
            roles.insert(key, known);
        }
        Ok(known)
    }
}

/// Roles whose answer is remembered.
const MAX_ROLES: usize = 64;

/// The value as the engine has it.
fn jinja(value: &Json) -> Jinja {
    fn plain(value: &Json) -> Value {
        match value {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Bool(*b),
            Json::Int(n) => i64::try_from(n).map_or_else(|_| n.to_string().into(), Value::from),
            Json::Float(x) => Value::from(*x),
            Json::String(text) => text.as_str().into(),
            Json::List(items) => items.iter().map(plain).collect(),
            Json::Object(entries) => entries.iter().map(|(key, value)| (key.clone(), plain(value))).collect(),
        }
    }
    Jinja::from(Serde(&plain(value)))
}

/// A buffer that refuses to grow beyond the longest rendering.
struct Capped(Vec<u8>);

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other(format!("the rendering exceeds {MAX_OUTPUT} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn invalid(why: impl Into<std::borrow::Cow<'static, str>>) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, why)
}

/// `value | tojson(ensure_ascii=False, indent=None)`.
fn tojson(value: Jinja, options: Kwargs) -> std::result::Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    if ensure_ascii == Some(true) || indent.is_some_and(|indent| indent > 16) {
        return Err(invalid("tojson: ensure_ascii=True and an indent above 16 are not implemented"));
    }
    if value.is_undefined() {
        return Err(invalid("tojson: the value is undefined"));
    }
    let value = serde_json::to_value(&value).map_err(|e| invalid(format!("tojson: {e}")))?;
    Ok(chat_json::dumps(&value, indent))
}

fn raise_exception(message: String) -> std::result::Result<Jinja, minijinja::Error> {
    Err(invalid(message))
}

fn strftime_now(format: &str) -> std::result::Result<String, minijinja::Error> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()).min(253_402_300_799); // the year 9999
    strftime(format, seconds).ok_or_else(|| invalid(format!("strftime_now: {format:?} is not implemented")))
}

/// The directives of strftime that are numbers or English names; None for another.
fn strftime(format: &str, unix_seconds: u64) -> Option<String> {
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
            'd' => format!("{:02}", day + 1),
            'j' => format!("{day_of_year:03}"),
            'B' => MONTHS[month].to_string(),
            'b' => MONTHS[month][..3].to_string(),
            'A' => weekday.to_string(),
            'a' => weekday[..3].to_string(),
            'H' => format!("{:02}", second / 3600),
            'M' => format!("{:02}", second / 60 % 60),
            'S' => format!("{:02}", second % 60),
            '%' => "%".to_string(),
            _ => return None,
        };
    }
    Some(text)
}

/// Turns `{% generation %}` and `{% endgeneration %}` into `{% if true %}` and `{% endif %}`, which keeps
/// what the tags do to the white space around them.
fn without_generation_marks(source: &str) -> String {
    let mut taken = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        taken.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else { break };
        let inside = &tag[..end];
        let word = inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let instead = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        taken.push_str(&inside.replacen(word, instead, 1));
        rest = &tag[end..];
    }
    taken + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(source: &str, messages: Value) -> Result<String> {
        ChatTemplate::compile(source)?.render(messages, &RenderOptions::default())
    }

    #[test]
    fn generation_marks_are_dropped_and_their_white_space_with_them() {
        let marked = "a\n  {% generation %}\nb {%- endgeneration -%} \nc {% if true %}d{% endif %}";
        assert_eq!(render(marked, json!([])).unwrap(), "a\nbc d");
        assert_eq!(without_generation_marks("{% set generation = 1 %} {%"), "{% set generation = 1 %} {%");
    }

    #[test]
    fn a_raised_exception_carries_its_message() {
        let e = render("{{ raise_exception('no system role') }}", json!([])).unwrap_err();
        assert_eq!(e.fault(), Fault::TemplateFailed);
        assert!(e.message().contains("no system role"), "{e}");
    }

    #[test]
    fn special_tokens_are_variables() {
        let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": null});
        let template = ChatTemplate::compile("{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}").unwrap();
        let template = template.with_special_tokens(&config);
        assert_eq!(template.render(json!([]), &RenderOptions::default()).unwrap(), "<s></s>False");
    }

    #[test]
    fn messages_without_a_role_are_refused() {
        for wrong in [json!({}), json!(["x"]), json!([{"content": "x"}]), json!([{"role": 1}])] {
            assert_eq!(render("", wrong).unwrap_err().fault(), Fault::BadValue);
        }
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

    #[test]
    fn qwen3_renders_as_python_renders_it() {
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let source = std::fs::read_to_string(golden.join("qwen3_chat_template.jinja")).unwrap();
        let template = ChatTemplate::compile(&source).unwrap();
        let mut cases = 0;
        for entry in std::fs::read_dir(golden.join("chat")).unwrap() {
            let path = entry.unwrap().path();
            let mut case: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let Value::Object(mut extra) = case["options"].take() else { panic!("{path:?}") };
            let tools = extra.shift_remove("tools").filter(|tools| !tools.is_null()).map(Json::from);
            let add_generation_prompt = extra.shift_remove("add_generation_prompt") == Some(true.into());
            let variables = extra.iter().map(|(name, value)| (name.clone(), value.into())).collect();
            let options = RenderOptions { add_generation_prompt, tools, variables, ..RenderOptions::default() };
            let rendered = template.render(&case["messages"], &options).unwrap();
            assert_eq!(rendered, case["expected"].as_str().unwrap(), "{path:?}");
            cases += 1;
        }
        assert!(cases >= 13);
    }
}
