//! The C interface from outside: programs in C and C++ are compiled against the headers, linked to the shared library
//! and run.
#![cfg(target_os = "linux")]

mod cc;
#[path = "support/folders.rs"]
mod folders;

#[test]
fn a_c_program_calls_every_export_that_needs_no_model() {
    for standard in ["c99", "c11"] {
        cc::compile_and_run("gcc", standard, "foundation.c");
    }
}

/// Runs a program with a student and a teacher without tokenizer, a chat model, and a folder to write into.
fn run_with_models(compiler: &str, standard: &str, source: &str) {
    let program = cc::Program::compile(compiler, standard, &cc::root().join("tests/c").join(source));
    let (chat, scratch) = (program.folder.path().join("chat"), program.folder.path().join("scratch"));
    folders::write_chat_model(&chat, 1);
    std::fs::create_dir(&scratch).expect("a folder to write into");
    program.run([folders::golden("dense_f32"), folders::golden("teacher_f32"), chat, scratch]);
}

#[test]
fn a_c_program_serves_chats_scores_and_learns_and_is_refused_out_of_order() {
    run_with_models("gcc", "c99", "api.c");
}

#[test]
fn the_hosts_rounding_mode_and_traps_change_no_bit() {
    let program = cc::Program::compile("gcc", "c11", &cc::root().join("tests/c/rounding.c"));
    let scratch = program.folder.path().join("scratch");
    std::fs::create_dir(&scratch).expect("a folder to write into");
    program.run([folders::golden("dense_f32"), folders::golden("teacher_f32"), scratch]);
}

#[test]
fn a_c_program_asks_for_what_embedders_miss() {
    let program = cc::Program::compile("gcc", "c99", &cc::root().join("tests/c/embedding.c"));
    let at = |name: &str| program.folder.path().join(name);
    folders::write_chat_model(&at("chat"), 1);
    folders::advise(&at("chat"), serde_json::json!({"temperature": 0.6, "top_k": 20, "top_p": 0.95}));
    folders::write_broken_model(&at("broken"));
    std::fs::create_dir(at("scratch")).expect("a folder to write into");
    program.run([folders::golden("dense_f32"), at("chat"), at("broken"), at("scratch")]);
}

#[test]
fn a_c_program_sets_controls_stops_at_texts_and_starts_continuations() {
    let program = cc::Program::compile("gcc", "c99", &cc::root().join("tests/c/controls.c"));
    let chat = program.folder.path().join("chat");
    folders::write_chat_model(&chat, 1);
    let advice = serde_json::json!({
        "min_p": 0.25, "repetition_penalty": 1.5, "frequency_penalty": -1.0, "no_repeat_ngram_size": 2,
    });
    folders::advise(&chat, advice);
    program.run([chat]);
}

#[cfg(unix)]
#[test]
fn a_c_program_waits_for_many_generations_at_once() {
    let program = cc::Program::compile("gcc", "gnu99", &cc::root().join("tests/c/queue.c"));
    let chat = program.folder.path().join("chat");
    folders::write_chat_model(&chat, 1);
    program.run([chat]);
}

#[test]
fn a_c_program_serves_many_adapters_of_one_base() {
    let program = cc::Program::compile("gcc", "c99", &cc::root().join("tests/c/adapters.c"));
    let scratch = program.folder.path().join("scratch");
    std::fs::create_dir(&scratch).expect("a folder to write into");
    let adapter = |name: &str| cc::root().join("tests/lora").join(name);
    let [first, second, foreign] = ["dense_seven", "dense_rslora", "moe_attention"].map(adapter);
    program.run([folders::golden("dense_f32"), first, second, foreign, scratch]);
}

#[test]
fn a_c_program_teaches_from_a_thread_of_its_own() {
    let program = cc::Program::compile("gcc", "c11", &cc::root().join("tests/c/teacher.c"));
    program.run([folders::golden("dense_f32")]);
}

#[test]
fn a_c_program_writes_a_run_down_and_learns_from_it_again() {
    let program = cc::Program::compile("gcc", "c11", &cc::root().join("tests/c/record.c"));
    let folder = program.folder.path().join("run");
    program.run([folders::golden("dense_f32"), folder]);
}

#[test]
fn a_c_program_hears_thoughts_answers_and_tool_calls_apart() {
    let program = cc::Program::compile("gcc", "c99", &cc::root().join("tests/c/parts.c"));
    let folders = ["whole", "broken", "scratch"].map(|name| program.folder.path().join(name));
    let call = "\n{\"name\": \"look\", \"arguments\": {\"at\": \"mug\"}}\n";
    let whole = ["<think>", "\nhm\n", "</think>", "\n\nOk.", "\n \n", "<tool_call>", call, "</tool_call>"];
    folders::write_reciting_model(&folders[0], &whole);
    folders::write_reciting_model(&folders[1], &["Hm", "<tool_call>", "look", "</tool_call>", "<think>", "so"]);
    program.run(folders.into_iter().chain([folders::golden("dense_f32")]));
}

#[test]
fn a_cpp_program_uses_the_wrapper() {
    for standard in ["c++17", "c++20"] {
        run_with_models("g++", standard, "wrapper.cpp");
    }
}

#[test]
fn children_of_a_busy_host_make_engines_of_their_own() {
    let program = cc::Program::compile("gcc", "c11", &cc::root().join("tests/c/forks.c"));
    program.run([folders::golden("dense_f32"), "200".into()]);
}

#[test]
#[cfg(feature = "drill")]
fn a_host_lives_on_through_panics_and_forks() {
    let program = cc::Program::compile("gcc", "c11", &cc::root().join("tests/c/drill.c"));
    let said = program.run([folders::golden("dense_f32")]);
    assert_eq!(said, "", "nothing is written");
}
