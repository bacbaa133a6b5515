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

#[test]
fn a_c_program_serves_chats_scores_and_learns_and_is_refused_out_of_order() {
    let program = cc::Program::compile("gcc", "c99", &cc::root().join("tests/c/api.c"));
    let (chat, scratch) = (program.folder.path().join("chat"), program.folder.path().join("scratch"));
    folders::write_chat_model(&chat, 1);
    std::fs::create_dir(&scratch).expect("a folder to write into");
    program.run([folders::golden("dense_f32"), folders::golden("teacher_f32"), chat, scratch]);
}

#[test]
fn a_cpp_program_uses_the_wrapper() {
    for standard in ["c++17", "c++20"] {
        cc::compile_and_run("g++", standard, "wrapper.cpp");
    }
}

#[test]
#[cfg(feature = "drill")]
fn a_host_lives_on_through_panics_and_forks() {
    let said = cc::compile_and_run("gcc", "c11", "drill.c");
    assert_eq!(said, "", "nothing is written");
}
