//! Chat templates: Jinja as transformers runs it.
//!
//! The engine is `jinja`, with jinja2's semantics in transformers' environment; `strftime_now` is UTC here,
//! so that a rendering does not depend on the machine's place.
//!
//! A template is code that comes with the model. It can reach nothing outside, its time is bounded by
//! fuel, its memory by the bytes it may make, its calls by a depth, its output by a cap; it is compiled and rendered on
//! a thread of its own, so that neither its depth nor a panic reaches the caller.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::aside::aside;
use super::history::History;
use super::jinja::{self, Limits, Template};
use super::json::Json;
use super::messages::{self, Open, check_messages, message};
use super::watch::Watch;
use crate::error::{Error, Fault, Result};
use crate::memory;
use crate::sync::Mutex;

/// The longest template, in bytes; Qwen3's has 4 kB.
const MAX_SOURCE: usize = 256 << 10;
/// The longest rendering, in bytes.
const MAX_OUTPUT: usize = 64 << 20;
/// Steps a template may take: at least, more for each JSON value it is given, and at most. Qwen3's takes
/// about 300 a message, which has three values or more.
const FUEL: (u64, u64, u64) = (2_000_000, 1_000, 100_000_000);
/// Bytes of all values that a template may make, those dropped again included: at least, more for each byte it is given,
/// and at most. Qwen3's makes three for each.
const BYTES: (u64, u64, u64) = (64 << 20, 32, 1 << 30);
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
    /// What of earlier turns' thoughts stays; None: as the model that is served has it.
    pub history: Option<History>,
    /// Further variables, such as `enable_thinking`.
    pub variables: Vec<(String, Json)>,
    /// What may stop the rendering; a deadline is set where the request begins.
    pub watch: Watch,
}

/// A folder's chat templates, compiled: one, or several with names of which a request chooses.
pub struct ChatTemplate {
    /// by name
    templates: BTreeMap<String, Template>,
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
        let mut templates = BTreeMap::new();
        for (name, source) in sources {
            let form = |why: String| {
                let which = if sources.len() > 1 { format!(" {name}") } else { String::new() };
                Error::new(Fault::TemplateForm, format!("chat template{which}: {why}"))
            };
            if source.len() > MAX_SOURCE {
                return Err(form(format!("{} bytes, more than the {MAX_SOURCE} allowed", source.len())));
            }
            let template = aside(|| Template::compile(source))?;
            templates.insert(name.clone(), template.map_err(|e| form(e.to_string()))?);
        }
        Ok(ChatTemplate { templates, sources: sources.clone(), special_tokens: Vec::new(), roles: Mutex::default() })
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
        self.templates.values().any(|template| template.variables().contains(name))
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
    /// raises an exception, fails, or does more than a rendering may; `Cancelled`; `OutOfHostMemory`.
    pub fn render(&self, messages: impl Into<Json>, options: &RenderOptions) -> Result<String> {
        let given = messages.into();
        let mut messages = messages::plain(check_messages(&given)?);
        let open = Open::mark(&mut messages, options, self.source(options)?)?;
        let messages = &Json::List(messages);
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
        let mut variables: Vec<(&str, &Json)> = Vec::new();
        for (name, value) in own.into_iter().chain(given) {
            if variables.iter().all(|(known, _)| *known != name) {
                variables.push((name, value));
            }
        }
        let bounded = |(base, each, most): (u64, u64, u64), n: u64| most.min(base + each * n);
        let values = variables.iter().map(|(_, value)| value.count()).sum();
        let mut bytes = 0;
        variables.iter().for_each(|(_, value)| value.texts(&mut |text| bytes += text.len()));
        let limits = Limits {
            fuel: bounded(FUEL, values),
            bytes: bounded(BYTES, bytes as u64),
            depth: MAX_DEPTH,
            output: MAX_OUTPUT,
        };
        // The values are made of them once more.
        memory::room_for(2 * bytes + values as usize * VALUE, "chat template: the variables")?;
        let template = &self.templates[self.choose(options)?];
        let watch = options.watch.begun();
        let rendering = aside(|| {
            #[cfg(any(test, feature = "drill"))]
            assert!(!self.sources.values().any(|source| source.contains("{# drill: panic #}")), "a drill");
            let variables: Vec<(&str, jinja::Value)> =
                variables.iter().map(|(name, value)| (*name, jinja::Value::from(*value))).collect();
            template.render(&variables, &limits, &watch)
        })?;
        let rendering = rendering.map_err(|e| match e.fault {
            Some(Fault::Cancelled) => Error::new(Fault::Cancelled, e.message),
            fault => Error::new(fault.unwrap_or(Fault::TemplateFailed), format!("chat template: {e}")),
        })?;
        match open {
            Some(open) => open.cut(rendering),
            None => Ok(rendering),
        }
    }

    /// Whether the template that a request is rendered by has a place for messages of a role: it names the role, or
    /// prints the text of such a message, or refuses it by itself. Templates drop a message of a role that they do not
    /// know without a word.
    pub(super) fn knows_role(&self, role: &str, options: &RenderOptions, watch: &Watch) -> Result<bool> {
        let name = self.choose(options)?;
        let source = &self.sources[name];
        let named = [format!("'{role}'"), format!("\"{role}\"")].iter().any(|literal| source.contains(literal));
        // Other words stand in templates for other reasons: 'function' is a key of a tool.
        if named && ["system", "user", "assistant", "tool"].contains(&role) {
            return Ok(true);
        }
        let key = (name.to_string(), role.to_string());
        if let Some(&known) = self.roles.lock().get(&key) {
            return Ok(known);
        }
        let probe = "\u{e000}";
        let watch = watch.clone();
        let options = RenderOptions { template: Some(name.to_string()), watch, ..RenderOptions::default() };
        // Some templates print a text, some a list of blocks; some want a user first.
        let block = Json::List(vec![Json::Object(vec![("type".into(), "text".into()), ("text".into(), probe.into())])]);
        let blocks = Json::Object(vec![("role".into(), role.into()), ("content".into(), block)]);
        let renderings: Vec<Result<String>> = [message(role, probe), blocks]
            .into_iter()
            .flat_map(|probing| [vec![probing.clone()], vec![message("user", "x"), probing]])
            .map(|messages| self.render(Json::List(messages), &options))
            .collect();
        options.watch.check()?;
        if let Some(Err(e)) = renderings.iter().find(|r| matches!(r, Err(e) if e.fault() == Fault::OutOfHostMemory)) {
            // That says nothing of the role, and is not remembered.
            return Err(e.again());
        }
        let known = renderings.iter().all(Result::is_err)
            || renderings.iter().flatten().any(|rendering| rendering.contains(probe));
        if role.len() <= MAX_ROLE {
            let mut roles = self.roles.lock();
            if roles.len() >= MAX_ROLES {
                roles.clear();
            }
            roles.insert(key, known);
        }
        Ok(known)
    }
}

/// What a value of a template takes besides its text, in bytes, its key in an object included.
const VALUE: usize = 256;
/// The longest role, in bytes, whose answer is remembered: whatever a host's users call themselves must not stay.
const MAX_ROLE: usize = 64;
/// Roles whose answer is remembered.
const MAX_ROLES: usize = 64;

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
    }

    #[test]
    fn a_raised_exception_carries_its_message() {
        let e = render("{{ raise_exception('no system role') }}", json!([])).unwrap_err();
        assert_eq!(e.fault(), Fault::TemplateFailed);
        assert!(e.message().contains("no system role"), "{e}");
    }

    #[test]
    fn no_long_role_is_remembered_and_short_ones_make_room_for_others() {
        let template = ChatTemplate::compile("{% for m in messages %}{{ m.content }}{% endfor %}").unwrap();
        let known = |role: &str| template.knows_role(role, &RenderOptions::default(), &Watch::default()).unwrap();
        for n in 0..2 * MAX_ROLES {
            assert!(known(&format!("{n}{}", "x".repeat(MAX_ROLE))) && known(&n.to_string()));
            assert!(template.roles.lock().keys().all(|(_, role)| role.len() <= MAX_ROLE));
            assert!(template.roles.lock().len() <= MAX_ROLES);
        }
        assert!(template.roles.lock().contains_key(&("default".into(), (2 * MAX_ROLES - 1).to_string())));
    }

    #[test]
    fn a_panic_in_a_template_is_an_error_and_the_template_is_as_good_as_before() {
        let template = ChatTemplate::compile("{# drill: panic #}").unwrap();
        for _ in 0..2 {
            let e = template.render(json!([]), &RenderOptions::default()).unwrap_err();
            assert_eq!(e.fault(), Fault::TemplateFailed);
            assert!(e.message().contains("a drill"), "{e}");
        }
        assert!(
            template.knows_role("critic", &RenderOptions::default(), &Watch::default()).unwrap(),
            "no lock is poisoned"
        );
    }

    #[test]
    fn a_flag_stops_a_rendering_and_a_deadline_does() {
        let busy = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        let template = ChatTemplate::compile(busy).unwrap();
        let options = |watch| RenderOptions { watch, ..RenderOptions::default() };
        let e = template.render(json!([]), &options(Watch::on(|| true))).unwrap_err();
        assert_eq!((e.fault(), e.message()), (Fault::Cancelled, "the call was cancelled"));
        let e = template.render(json!([]), &options(Watch::over())).unwrap_err();
        assert_eq!(e.fault(), Fault::TemplateFailed);
        assert!(e.message().contains("seconds"), "{e}");
        let short = ChatTemplate::compile("ok").unwrap();
        assert_eq!(short.render(json!([]), &options(Watch::on(|| true))).unwrap(), "ok", "done before it was asked");
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
