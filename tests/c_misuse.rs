//! Misuse of every call: a C program is generated from the header that passes, to each function and in each place, NULL
//! for what must be there, an object of another kind, bytes that are not UTF-8, lengths beyond memory, structs of a wrong
//! size, and an error slot that is occupied. Each call must say so and change nothing.
#![cfg(target_os = "linux")]

mod cc;
#[path = "support/folders.rs"]
mod folders;

use std::collections::BTreeSet;
use std::fmt::Write;

/// Pointers that may be NULL: (function, parameter).
const OPTIONAL: &[(&str, &str)] = &[
    ("squire_scores_row", "logprob"),
    ("squire_scores_row", "top_ids"),
    ("squire_scores_row", "top_logprobs"),
    ("squire_scores_row", "k"),
    ("squire_model_load", "cancel"),
    ("squire_score", "cancel"),
    ("squire_session_sync", "reused"),
    ("squire_session_rebase", "revision"),
    ("squire_session_use_adapter", "revision"),
    ("squire_adapter_load", "revision"),
    ("squire_adapter_merge", "revision"),
    ("squire_session_length", "length"),
    ("squire_session_length", "room"),
    ("squire_session_length", "pending"),
    ("squire_session_prefill", "cancel"),
    ("squire_session_prefill", "progress"),
    ("squire_model_sizes", "vocabulary"),
    ("squire_model_sizes", "max_context"),
    ("squire_model_sizes", "tokenizer_ids"),
    ("squire_checkpoint_probe", "step"),
    ("squire_tokenize_until", "cancel"),
    ("squire_chat_render_until", "cancel"),
    ("squire_chat_append", "added"),
    ("squire_chat_append_until", "cancel"),
    ("squire_chat_append_until", "added"),
    ("squire_chat_append_message", "cancel"),
    ("squire_chat_append_message", "added"),
    ("squire_gen_start", "options"),
    ("squire_gen_start_n", "options"),
    ("squire_gen_start_n", "cancel"),
    ("squire_distiller_create", "teacher"),
    ("squire_distiller_resume", "teacher"),
    ("squire_distiller_publish", "revision"),
    ("squire_distiller_publish_anyway", "revision"),
    ("squire_distiller_rollback", "published"),
    ("squire_distiller_record", "path"),
    ("squire_distiller_discard", "thrown_away"),
    ("squire_distiller_check_teacher", "cancel"),
    ("squire_episode_observe", "added"),
    ("squire_episode_observe_until", "cancel"),
    ("squire_episode_observe_until", "added"),
    ("squire_episode_prefill", "cancel"),
    ("squire_episode_judge", "cancel"),
    ("squire_episode_override", "decision"),
    ("squire_episode_act", "options"),
    ("squire_update_build", "cancel"),
    ("squire_update_build", "progress"),
    ("squire_update_build", "progress_user"),
    ("squire_update_gradients", "tensor_user"),
];

#[derive(Debug)]
struct Parameter {
    /// Without const and without blanks around stars: `squire_model**`.
    kind: String,
    name: String,
}

impl Parameter {
    fn is_callback(&self) -> bool {
        self.kind.ends_with("_fn")
    }

    fn is_pointer(&self) -> bool {
        self.kind.ends_with('*') || self.is_callback()
    }

    fn is_struct(&self) -> bool {
        [
            "squire_engine_options*",
            "squire_model_options*",
            "squire_gen_options*",
            "squire_event*",
            "squire_decision*",
            "squire_teacher_request*",
        ]
        .contains(&self.kind.as_str())
    }

    /// Whether it is an object that the caller hands in.
    fn is_handle(&self) -> bool {
        self.kind.starts_with("squire_") && self.kind.ends_with('*') && !self.kind.ends_with("**") && !self.is_struct()
    }

    fn is_out_handle(&self) -> bool {
        self.kind.starts_with("squire_") && self.kind.ends_with("**") && self.kind != "squire_error**"
    }

    /// Something that the call could work with; the fixture of `tests/c/fixture.h` has it.
    fn valid(&self, before: Option<&Parameter>) -> String {
        let name = self.name.as_str();
        match self.kind.as_str() {
            "squire_error**" => "&err".into(),
            "char*" => name.to_owned(),
            "int32_t*" if name == "fd" => "&whole".into(),
            "int32_t*" => "ids".into(),
            "size_t" if before.is_some_and(|b| b.kind == "char*") => format!("strlen({})", before.unwrap().name),
            "size_t" if before.is_some_and(|b| ["int32_t*", "float*"].contains(&b.kind.as_str())) => "2".into(),
            "uint64_t*" => "&number".into(),
            "float*" if name.ends_with("logprobs") => name.into(),
            "float*" => "&real".into(),
            "size_t*" => "&size".into(),
            "int32_t**" => "&some_ids".into(),
            "float**" => "&some_reals".into(),
            "squire_tensor_fn" => "take_tensor".into(),
            "squire_progress_fn" => "hear_progress".into(),
            "void*" => "NULL".into(),
            _ if self.is_struct() => format!("&a_{}", self.kind.trim_end_matches('*')),
            _ if self.is_out_handle() => format!("&{}", self.out_variable()),
            _ if self.is_handle() => format!("the_{}", self.kind.trim_end_matches('*')),
            _ => "1".into(), // a number
        }
    }

    /// The variable for an object that is made.
    fn out_variable(&self) -> String {
        format!("made_{}", self.kind.trim_end_matches('*'))
    }
}

struct Function {
    gives: String,
    name: String,
    parameters: Vec<Parameter>,
}

impl Function {
    fn gives_status(&self) -> bool {
        self.gives == "squire_status" && self.parameters.last().is_some_and(|p| p.kind == "squire_error**")
    }

    /// The call with the `i`th argument replaced.
    fn call(&self, replaced: Option<(usize, &str)>) -> String {
        let arguments = self.parameters.iter().enumerate().map(|(i, p)| match replaced {
            Some((at, with)) if at == i => with.to_owned(),
            _ => p.valid(i.checked_sub(1).map(|before| &self.parameters[before])),
        });
        format!("{}({})", self.name, arguments.collect::<Vec<_>>().join(", "))
    }
}

/// The functions of the header.
fn functions() -> Vec<Function> {
    let header = std::fs::read_to_string(cc::root().join("include/squire.h")).expect("the header is there");
    let mut text = String::new();
    let mut rest = header.as_str();
    while let Some((code, after)) = rest.split_once("/*") {
        text.push_str(code);
        rest = after.split_once("*/").expect("a comment ends").1;
    }
    text.push_str(rest);
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let text: String = lines.map(|line| format!("{} ", line.trim())).collect();
    let statements = text.split(';').map(str::trim);
    statements
        .filter(|s| s.contains("squire_") && s.ends_with(')') && !s.starts_with("typedef"))
        .map(|statement| {
            let (head, parameters) = statement.trim_end_matches(')').split_once('(').expect("a function");
            let split = |text: &str| {
                let text = text.replace("const ", " ");
                let at = text.rfind([' ', '*']).expect("type and name") + 1;
                (text[..at].replace(' ', ""), text[at..].to_owned())
            };
            let (gives, name) = split(head.trim_start_matches(r#"extern "C" {"#).trim());
            let parameters = parameters.split(',').filter(|p| p.trim() != "void");
            let parameters = parameters.map(|p| split(p.trim())).map(|(kind, name)| Parameter { kind, name });
            Function { gives, name, parameters: parameters.collect() }
        })
        .collect()
}

/// One case: what is done before, the call, the status and detail that it must give.
fn case(program: &mut String, before: &str, call: &str, status: &str, detail: &str) {
    writeln!(program, "  before();\n  {before}CASE({call}, {status}, {detail});").expect("memory");
}

fn cases(program: &mut String, f: &Function) {
    for (i, p) in f.parameters.iter().enumerate() {
        let required = !OPTIONAL.contains(&(f.name.as_str(), p.name.as_str()));
        if p.kind == "squire_error**" {
            writeln!(program, "  OCCUPIED({});", f.call(None)).expect("memory");
            continue;
        }
        if p.is_pointer() && required && p.kind != "void*" {
            case(program, "", &f.call(Some((i, "NULL"))), "SQUIRE_E_ARGUMENT", "SQUIRE_DETAIL_NULL_POINTER");
        }
        if p.is_handle() {
            let other = if p.kind == "squire_cancel*" { "the_squire_engine" } else { "the_squire_cancel" };
            let wrong = f.call(Some((i, &format!("(void *){other}"))));
            case(program, "", &wrong, "SQUIRE_E_ARGUMENT", "SQUIRE_DETAIL_WRONG_HANDLE");
        }
        if p.is_struct() {
            let name = format!("a_{}", p.kind.trim_end_matches('*'));
            for size in [0, 4, 9] {
                let before = format!("{name}.struct_size = {size};\n  ");
                case(program, &before, &f.call(None), "SQUIRE_E_ABI", "SQUIRE_DETAIL_STRUCT_SIZE");
            }
        }
        let follows_array = i > 0 && ["char*", "int32_t*"].contains(&f.parameters[i - 1].kind.as_str());
        if p.kind == "size_t" && follows_array {
            case(program, "", &f.call(Some((i, "SIZE_MAX"))), "SQUIRE_E_ARGUMENT", "SQUIRE_DETAIL_BAD_LENGTH");
        }
        if p.kind == "char*" {
            let call = f.call(Some((i, r#""\xff""#)));
            // The length is that of the text that was there: all have at least one byte.
            let call = call.replace(&format!("strlen({})", p.name), "1");
            case(program, "", &call, "SQUIRE_E_ARGUMENT", "SQUIRE_DETAIL_NOT_UTF8");
        }
        if p.kind == "int32_t*" && p.name != "fd" {
            let call = f.call(Some((i, "negative_ids")));
            case(program, "", &call, "SQUIRE_E_ARGUMENT", "SQUIRE_DETAIL_ID_OUT_OF_RANGE");
        }
    }
}

/// The C program.
fn program() -> String {
    let functions = functions();
    let mut text = String::from("#include \"fixture.h\"\n\n");
    let outs: BTreeSet<_> = functions.iter().flat_map(|f| &f.parameters).filter(|p| p.is_out_handle()).collect();
    for p in &outs {
        writeln!(text, "static {}*{};", p.kind.trim_end_matches('*'), p.out_variable()).expect("memory");
    }
    text.push_str("\nstatic void before(void) {\n  set_values();\n");
    for p in &outs {
        writeln!(text, "  {} = (void *)&number;", p.out_variable()).expect("memory");
    }
    text.push_str("}\n\nstatic int untouched(void) { return values_are_set(); }\n\n#define MADE_NOTHING (");
    for p in &outs {
        write!(text, "({0} == NULL || {0} == (void *)&number) && ", p.out_variable()).expect("memory");
    }
    text.push_str("1)\n\n");
    // A function for each: compilers grow slow, and say so, in one of all.
    let mut calls = String::new();
    for f in functions.iter().filter(|f| f.gives_status()) {
        writeln!(text, "static void refused_{}(void) {{", f.name).expect("memory");
        cases(&mut text, f);
        text.push_str("}\n\n");
        writeln!(calls, "  refused_{}();", f.name).expect("memory");
    }
    write!(text, "static void refused(void) {{\n{calls}").expect("memory");
    text.push_str("}\n\nstatic void read_as_nothing(void) {\n");
    for f in functions.iter().filter(|f| !f.gives_status() && f.parameters.iter().any(Parameter::is_pointer)) {
        let nulls = f.parameters.iter().map(|p| if p.is_pointer() { "NULL" } else { "64" });
        let call = format!("{}({})", f.name, nulls.collect::<Vec<_>>().join(", "));
        match f.gives.as_str() {
            "void" => writeln!(text, "  {call};").expect("memory"),
            gives if gives.ends_with('*') => writeln!(text, "  CHECK({call} == NULL);").expect("memory"),
            _ => writeln!(text, "  CHECK({call} == 0);").expect("memory"),
        }
    }
    text.push_str("}\n\nint main(int argc, char **argv) {\n  make_fixture(argc, argv);\n  refused();\n");
    text.push_str("  read_as_nothing();\n  end_fixture();\n  return failures;\n}\n");
    text
}

impl PartialEq for Parameter {
    fn eq(&self, other: &Parameter) -> bool {
        self.kind == other.kind
    }
}

impl Eq for Parameter {}

impl PartialOrd for Parameter {
    fn partial_cmp(&self, other: &Parameter) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Parameter {
    fn cmp(&self, other: &Parameter) -> std::cmp::Ordering {
        self.kind.cmp(&other.kind)
    }
}

#[test]
fn the_header_is_read_whole() {
    let mut names: Vec<_> = functions().into_iter().map(|f| f.name).collect();
    names.sort_unstable();
    let exports = std::fs::read_to_string(cc::root().join("tests/exports.txt")).expect("the list is there");
    assert_eq!(names, exports.lines().collect::<Vec<_>>());
}

#[test]
fn every_misuse_of_every_call_is_refused_by_name_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("misuse.c");
    let text = program();
    assert!(text.matches("CASE(").count() > 150, "{text}");
    std::fs::write(&source, text).expect("the program can be written");
    folders::write_chat_model(&folder.path().join("model"), 1);
    cc::Program::compile("gcc", "c99", &source).run([folder.path().join("model"), folder.path().join("nothing")]);
}
