//! Other languages over the C interface give the ids that the Rust interface gives.
#![cfg(target_os = "linux")]

mod cc;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use squire::backend::Compute;
use squire::backend::ops::Sampling;
use squire::serve::{Engine, EngineOptions, GenerationOptions, LoadOptions, Session};

const PROMPT: [i32; 4] = [5, 6, 7, 8];

/// Whether a tool is there. If not, says so on the real standard error: the test then proves nothing.
fn have(tool: &str, version: &str) -> bool {
    let found = Command::new(tool).arg(version).output().is_ok_and(|output| output.status.success());
    if !found {
        let _ = writeln!(std::io::stderr(), "skipped, not passed: {tool} is not on the path");
    }
    found
}

/// The folder that all of them load.
fn model() -> PathBuf {
    cc::root().join("tests/golden/dense_f32")
}

/// Eight greedy tokens by the Rust interface, printed as the programs print them.
fn expected() -> String {
    let engine = Engine::new(EngineOptions { compute: Compute::F32, ..EngineOptions::default() }).expect("an engine");
    let model = engine.load(&model(), LoadOptions::default()).expect("the model loads");
    let session = Session::new(&model).expect("a session");
    session.sync(&PROMPT).expect("the ids are known");
    let sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 };
    let options = GenerationOptions { max_tokens: 8, sampling, ..GenerationOptions::default() };
    let (chunk, _) = session.generate(options).expect("it starts").collect().expect("it ends");
    assert_eq!(chunk.ids.len(), 8);
    chunk.ids.iter().map(i32::to_string).collect::<Vec<_>>().join(" ") + "\n"
}

#[test]
fn python_gives_the_ids_that_rust_gives() {
    if have("python3", "--version") {
        let mut python = Command::new("python3");
        python.arg(cc::root().join("bindings/python/smoke.py")).arg(cc::library()).arg(model());
        assert_eq!(cc::run(python.args(PROMPT.map(|id| id.to_string()))), expected());
    }
}

#[test]
fn a_server_that_scores_teaches_through_python_and_one_that_lies_does_not() {
    if have("python3", "--version") {
        let mut python = Command::new("python3");
        python.arg(cc::root().join("bindings/python/test_squire_teachers.py")).arg(cc::library()).arg(model());
        assert_eq!(cc::run(&mut python), "ok\n");
    }
}

#[test]
fn a_request_to_a_teacher_lies_in_memory_as_the_header_says() {
    if !have("python3", "--version") {
        return;
    }
    let told = "import sys; sys.path.insert(0, sys.argv[1]); from squire_teachers import Request as R\n\
                print(*[(getattr(R, f[0]).offset, getattr(R, f[0]).size) for f in R._fields_])";
    let mut python = Command::new("python3");
    let python = cc::run(python.args(["-B", "-c", told]).arg(cc::root().join("bindings/python")));
    let fields: Vec<_> =
        fields_of_the_header().into_iter().filter(|(name, _)| name == "squire_teacher_request").collect();
    let print = |(name, field): &(String, String)| {
        format!("  printf(\"(%zu, %zu) \", offsetof({name}, {field}), sizeof((({name} *)0)->{field}));\n")
    };
    let lines: String = fields.iter().map(print).collect();
    let folder = tempfile::tempdir().expect("a folder for the program");
    let source = folder.path().join("layout.c");
    let head = "#include <stddef.h>\n#include <stdio.h>\n#define SQUIRE_EXPERIMENTAL\n#include \"squire.h\"\n";
    let text = format!("{head}int main(void) {{\n{lines}  return 0;\n}}\n");
    std::fs::write(&source, text).expect("the source can be written");
    let header = cc::Program::compile("gcc", "c99", &source).run([""; 0]);
    assert!(fields.len() == 25 && python.trim() == header.trim(), "{python}{header}");
}

/// (struct, field) of the structs of the header that begin with `struct_size`, in its order.
fn fields_of_the_header() -> Vec<(String, String)> {
    let header = std::fs::read_to_string(cc::root().join("include/squire.h")).expect("the header is there");
    let mut fields = Vec::new();
    for body in header.split("typedef struct {").skip(1) {
        let (body, rest) = body.split_once("\n} ").expect("a struct ends");
        let name = rest.split(';').next().expect("a struct has a name");
        let code = body.lines().filter(|line| line.ends_with(';'));
        fields.extend(code.map(|line| {
            let field = line.trim_end_matches(';').rsplit([' ', '*']).next().expect("type and name");
            (name.to_owned(), field.to_owned())
        }));
    }
    fields
}

#[test]
fn the_structs_and_the_abi_that_python_knows_are_the_headers() {
    if !have("python3", "--version") {
        return;
    }
    let python = cc::run(Command::new("python3").arg(cc::root().join("bindings/python/smoke.py")).arg("layout"));
    let mut wanted = String::from("  printf(\"abi %u\\n\", SQUIRE_ABI);\n");
    let (mut last, mut n) = (String::new(), 0);
    for (name, field) in fields_of_the_header() {
        // Those of episodes and teachers, and what options point to, are not among what the program uses.
        let unused = ["squire_decision", "squire_teacher_request", "squire_logit_bias", "squire_stop_string"];
        if unused.contains(&name.as_str()) {
            continue;
        }
        if name != last {
            writeln!(wanted, "  printf(\"{name} %zu\\n\", sizeof({name}));").expect("memory");
        }
        let (offset, size) = (format!("offsetof({name}, {field})"), format!("sizeof(({name} *)0)->{field}"));
        writeln!(wanted, "  printf(\"{name}.{field} %zu %zu\\n\", {offset}, {size});").expect("memory");
        (last, n) = (name, n + 1);
    }
    assert!(n > 40, "{wanted}");
    let folder = tempfile::tempdir().expect("a folder for the program");
    let source = folder.path().join("layout.c");
    let text = format!("#include <stdio.h>\n#include \"squire.h\"\nint main(void) {{\n{wanted}  return 0;\n}}\n");
    std::fs::write(&source, text).expect("the source can be written");
    let header = cc::Program::compile("gcc", "c99", &source).run([""; 0]);
    assert_eq!(python, header);
}

#[test]
fn go_gives_the_ids_that_rust_gives() {
    if have("go", "version") {
        let folder = tempfile::tempdir().expect("a folder for the program");
        for name in ["libsquire.so", "libsquire.so.0"] {
            std::os::unix::fs::symlink(cc::library(), folder.path().join(name)).expect("a link to the library");
        }
        let program = folder.path().join("smoke");
        let mut go = Command::new("go");
        go.current_dir(cc::root().join("bindings/go/smoke")).args(["build", "-o"]).arg(&program).arg(".");
        cc::run(go.env("CGO_LDFLAGS", format!("-L{}", folder.path().display())).env("GOWORK", "off"));
        let mut smoke = Command::new(program);
        smoke.env("LD_LIBRARY_PATH", folder.path()).arg(model());
        assert_eq!(cc::run(smoke.args(PROMPT.map(|id| id.to_string()))), expected());
    }
}
