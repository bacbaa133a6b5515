//! `squire chat`: its commands, and what is different where somebody sits at a terminal.
#![cfg(feature = "cli")]

#[path = "support/program.rs"]
mod program;
#[path = "support/tiny_tokenizer.rs"]
mod tiny_tokenizer;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use program::*;
use serde_json::{Value, json};

/// A folder to chat with, of so long a context.
fn folder(context: u32) -> (tempfile::TempDir, PathBuf) {
    let (parent, dir) = chat_folder();
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = context.into();
    fs::write(&path, config.to_string()).unwrap();
    (parent, dir)
}

/// The answers to lines of a chat, and what was told beside them.
fn chat(dir: &Path, options: &[&str], stdin: &str) -> (Vec<Value>, String) {
    let args = [&["chat", text(dir), "--json", "--max-tokens", "6"], options].concat();
    let ran = squire_with(&args, stdin);
    assert_eq!(ran.code, 0, "{}", ran.err);
    (ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), ran.err)
}

/// What makes a model say the same token ever again.
fn ever(id: i32) -> [String; 2] {
    ["--logit-bias".into(), format!("{id}=100")]
}

#[test]
fn an_undone_exchange_was_never_said() {
    let (_parent, dir) = folder(2000);
    let options = ["--seed", "5"];
    let (plain, told) = chat(&dir, &options, "one\nthree\n");
    assert_eq!((plain.len(), told.as_str()), (2, ""));
    let (undone, told) = chat(&dir, &options, "one\ntwo\n/undo\nthree\n");
    assert_eq!((&undone[0], &undone[2]), (&plain[0], &plain[1]));
    assert_eq!(told, "the last message and its answer are gone\n");
    // Back to the very beginning, and no further.
    let (all, told) = chat(&dir, &options, "one\n/undo\n/undo\none\nthree\n");
    assert_eq!(all[1..], plain);
    assert!(told.ends_with("squire: /undo: nothing was said yet\n"), "{told}");
}

#[test]
fn what_a_history_cuts_out_is_there_again_after_an_undo() {
    let (_parent, dir) = folder(2000);
    // Every answer is a thought, which goes with the next message.
    fs::write(dir.join("tokenizer_config.json"), json!({"squire_history": "strip_thinking"}).to_string()).unwrap();
    let tokenizer = squire::text::Tokenizer::from_json(&tiny_tokenizer::tiny_tokenizer_json()).unwrap();
    let think = ever(tokenizer.id_of("<think>").unwrap());
    let options = ["--seed", "5", &think[0], &think[1]];
    let stats = |lines: &str| {
        let (_, told) = chat(&dir, &options, lines);
        let (_, last) = told.rsplit_once("conversation     ").unwrap();
        last.split_once(' ').unwrap().0.parse::<usize>().unwrap()
    };
    let one = stats("one\n/stats\n");
    assert_eq!(stats("one\ntwo\n/undo\n/stats\n"), one);
    assert_eq!(stats("one\ntwo\n/undo\ntwo\n/stats\n"), stats("one\ntwo\n/stats\n"));
    // The first thought, its begin and end, is cut out of the second prompt.
    assert!(stats("one\ntwo\n/stats\n") < 2 * one);
}

#[test]
fn a_regenerated_answer_is_that_of_the_next_seed_and_takes_the_old_ones_place() {
    let (_parent, dir) = folder(2000);
    let (first, _) = chat(&dir, &["--seed", "5"], "hello\n/regenerate\nand now\n");
    let (next, _) = chat(&dir, &["--seed", "6"], "hello\nand now\n");
    assert_eq!((first[0]["seed"].as_u64(), first[1]["seed"].as_u64()), (Some(5), Some(6)));
    assert_ne!(first[0]["ids"], first[1]["ids"]);
    assert_eq!(first[1..], next);
    let (none, told) = chat(&dir, &[], "/regenerate\n");
    assert_eq!((none.len(), told.as_str()), (0, "squire: /regenerate: nothing was said yet\n"));
}

#[test]
fn a_conversation_begins_anew_with_or_without_a_system_message() {
    let (_parent, dir) = folder(2000);
    let options = ["--seed", "5", "--system", "Be terse."];
    let (plain, _) = chat(&dir, &options, "hello\n");
    let (again, told) = chat(&dir, &options, "hello\nmore\n/reset\nhello\n");
    assert_eq!((&again[0], &again[2], told.as_str()), (&plain[0], &plain[0], "a new conversation\n"));
    let (other, _) = chat(&dir, &options, "hello\n/system Be kind.\nhello\n/system\nhello\n");
    let (kind, _) = chat(&dir, &["--seed", "5", "--system", "Be kind."], "hello\n");
    let (none, _) = chat(&dir, &["--seed", "5"], "hello\n");
    assert_eq!(other, [plain[0].clone(), kind[0].clone(), none[0].clone()]);
    assert_ne!(plain[0]["prompt_tokens"], none[0]["prompt_tokens"]);
}

#[test]
fn an_option_of_sampling_is_set_and_a_wrong_one_changes_nothing() {
    let (_parent, dir) = folder(2000);
    let (all, told) = chat(
        &dir,
        &["--seed", "5"],
        "hello\n/undo\n/set max_tokens 3\nhello\n/undo\n/set max-tokens many\n/set temprature 0\n/set top_p 7\n\
         /set temperature\n/set seed 9\nhello\n",
    );
    assert_eq!(all[0]["ids"].as_array().unwrap().len(), 6);
    assert_eq!(all[0]["ids"].as_array().unwrap()[..3], all[1]["ids"].as_array().unwrap()[..]);
    assert_eq!((all[2]["ids"].as_array().unwrap().len(), all[2]["seed"].as_u64()), (3, Some(9)));
    for wanted in [
        "squire: /set: invalid value 'many' for '--max-tokens <N>'",
        "squire: /set: wanted one of max-tokens, temperature, top-k, ",
        "found \"temprature\"",
        "squire: /set: top_p must lie above 0 and at most 1, found 7",
        "squire: /set: wanted a name and a value",
    ] {
        assert!(told.contains(wanted), "{wanted}: {told}");
    }
    let (same, _) = chat(&dir, &["--seed", "9"], "/set max_tokens 3\nhello\n");
    assert_eq!(all[2], same[0]);
}

#[test]
fn an_unknown_command_is_refused_by_name_and_the_chat_goes_on() {
    let (_parent, dir) = folder(2000);
    let (all, told) = chat(&dir, &["--seed", "5"], "/halp\n/reset now\n/save\n//help\n/quit\nnever read\n");
    assert_eq!(all.len(), 1);
    for wanted in ["unknown command \"/halp\"; /help lists", "/reset: wanted nothing", "/save: wanted a file"] {
        assert!(told.contains(wanted), "{wanted}: {told}");
    }
    // The slash that is left is said.
    let (_, told) = chat(&dir, &["--seed", "5"], "/help\n");
    assert!(told.contains("/regenerate") && told.contains("//TEXT"), "{told}");
    let saved = dir.join("../saved.json");
    chat(&dir, &["--seed", "5"], &format!("//help\n/save {}\n", text(&saved)));
    assert_eq!(messages(&saved)[0], json!({"role": "user", "content": "/help"}));
}

/// The messages of a saved chat.
fn messages(path: &Path) -> Vec<Value> {
    let document: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    document["messages"].as_array().unwrap().clone()
}

#[test]
fn a_saved_chat_has_every_message_and_overwrites_nothing() {
    let (_parent, dir) = folder(2000);
    let saved = dir.join("../saved.json");
    let h = ever(104);
    let options = ["--seed", "5", "--system", "Be terse.", &h[0], &h[1]];
    let save = format!("/save {}\n", text(&saved));
    let (_, told) = chat(&dir, &options, &format!("one\ntwo\n/undo\nthree\n{save}{save}"));
    let of = |role: &str, content: &str| json!({"role": role, "content": content});
    let wanted = [
        of("system", "Be terse."),
        of("user", "one"),
        of("assistant", "hhhhhh"),
        of("user", "three"),
        of("assistant", "hhhhhh"),
    ];
    assert_eq!(messages(&saved), wanted);
    assert!(told.contains("written to ") && told.contains("exists"), "{told}");
    let (_, told) = chat(&dir, &options, "/save /nowhere/at/all\n");
    assert!(told.starts_with("squire: /save /nowhere/at/all: "), "{told}");
}

#[test]
fn stats_tell_of_the_conversation_and_the_last_answer() {
    let (_parent, dir) = folder(2000);
    let (_, told) = chat(&dir, &["--seed", "5"], "/stats\nhello\n/stats\n");
    assert!(told.contains("last answer      none") && told.contains("0 tokens, room for 2000"), "{told}");
    assert!(told.contains("last answer      6 tokens, the first after 0."), "{told}");
    assert!(told.contains("(p50, p90, p99) of 5\n"), "{told}");
}

#[test]
fn more_exchanges_than_can_be_undone_are_no_trouble() {
    let (_parent, dir) = folder(4000);
    let lines = "hi\n".repeat(40) + &"/undo\n".repeat(33);
    let (all, told) = chat(&dir, &[], &lines);
    assert_eq!((all.len(), told.matches("are gone").count()), (40, 32));
    assert!(told.ends_with("squire: /undo: the last 32 exchanges can be undone, no more\n"), "{told}");
}

#[test]
fn a_program_that_sends_messages_hears_of_a_failure_by_the_exit_code() {
    let (_parent, dir) = folder(64);
    let ran = squire_with(&["chat", text(&dir), "--max-tokens", "2"], &format!("{}\nhi\n", "long ".repeat(100)));
    assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{}", ran.err);
    assert!(ran.err.contains("there is room for 64"), "{}", ran.err);
}

#[test]
fn a_pipe_gets_every_character_as_it_was_said() {
    let (_parent, dir) = folder(2000);
    let escape = ever(27);
    let args = ["chat", text(&dir), "--max-tokens", "3", &escape[0], &escape[1]];
    assert_eq!(squire_with(&args, "hello\n").out, "\x1b\x1b\x1b\n");
    let generated = squire(&[&["generate"], &args[1..2], &["hello"], &args[2..]].concat());
    assert_eq!(generated.out, "\x1b\x1b\x1b\n");
}

/// What the editor of lines writes first, once it reads.
const PROMPT: &str = "\x1b[?2004h";

/// What a chat at a terminal writes, where what is typed comes once it is waited for; and its exit code.
fn at_a_terminal(args: &[&str], steps: &[[&str; 2]]) -> (String, i32) {
    let terminal = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/terminal.py");
    let mut command = Command::new("python3");
    command.arg(terminal).arg(env!("CARGO_BIN_EXE_squire")).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines: String = steps.iter().map(|step| format!("{}\n", json!(step))).collect();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(err, "", "{:?}", String::from_utf8_lossy(&output.stdout));
    (String::from_utf8(output.stdout).unwrap(), output.status.code().unwrap())
}

#[test]
fn ctrl_c_ends_an_answer_and_keeps_the_chat_with_what_was_said() {
    let (_parent, dir) = folder(40_000);
    let saved = dir.join("../saved.json");
    let h = ever(104);
    let args = ["chat", text(&dir), "--max-tokens", "-1", &h[0], &h[1]];
    let save = format!("/save {}\r", text(&saved));
    let (shown, code) = at_a_terminal(
        &args,
        &[
            [PROMPT, "hello\r"],
            ["hhhhhhhh", "\x03"],
            ["interrupted", ""],
            [PROMPT, "/set max-tokens 4\r"],
            [PROMPT, "more\r"],
            ["hhhh\r\n", ""],
            [PROMPT, &save],
            ["written", ""],
            [PROMPT, "\r"],
        ],
    );
    assert_eq!(code, 0, "{shown:?}");
    let messages = messages(&saved);
    let said = |i: usize| messages[i]["content"].as_str().unwrap();
    assert_eq!((messages.len(), said(0), said(2), said(3)), (4, "hello", "more", "hhhh"));
    assert!(said(1).len() >= 8 && said(1).len() < 39_000 && said(1).bytes().all(|c| c == b'h'), "{}", said(1).len());
}

#[cfg(unix)]
#[test]
fn an_interrupt_in_a_pipe_ends_the_answer_too_and_the_program_where_it_waits() {
    use std::io::Read;
    use std::os::unix::process::ExitStatusExt;
    let (_parent, dir) = folder(40_000);
    let h = ever(104);
    let mut command = Command::new(env!("CARGO_BIN_EXE_squire"));
    command.args(["chat", text(&dir), "--max-tokens", "-1", &h[0], &h[1]]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let interrupt =
        || assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    for _ in 0..2 {
        stdin.write_all(b"hello\n").unwrap();
        let mut said = [0; 1];
        stdout.read_exact(&mut said).unwrap();
        interrupt();
        let mut n = 0;
        while said == *b"h" {
            stdout.read_exact(&mut said).unwrap();
            n += 1;
        }
        assert!(said == *b"\n" && n < 19_000, "it ended by itself after {n}");
    }
    // The answer's last byte is written before it waits again.
    std::thread::sleep(std::time::Duration::from_millis(300));
    interrupt();
    assert_eq!(child.wait().unwrap().signal(), Some(2));
}

#[test]
fn ctrl_c_and_the_end_of_what_is_typed_end_a_chat_that_waits() {
    let (_parent, dir) = folder(2000);
    for typed in ["\x03", "\x04", "\r", "/quit\r"] {
        let (shown, code) = at_a_terminal(&["chat", text(&dir)], &[[PROMPT, typed]]);
        assert_eq!(code, 0, "{typed:?}: {shown:?}");
    }
}

#[test]
fn a_terminal_is_sent_nothing_that_it_would_obey() {
    let (_parent, dir) = folder(2000);
    let escape = ever(27);
    let args = ["chat", text(&dir), "--max-tokens", "3", &escape[0], &escape[1]];
    let (shown, code) = at_a_terminal(&args, &[[PROMPT, "hello\r"], ["\\u{1b}\\u{1b}\\u{1b}", ""], [PROMPT, "\x04"]]);
    assert_eq!(code, 0, "{shown:?}");
    let generate = ["generate", text(&dir), "hello", "--max-tokens", "3", &escape[0], &escape[1]];
    assert_eq!(at_a_terminal(&generate, &[]), ("\\u{1b}\\u{1b}\\u{1b}\r\n".into(), 0));
}

#[test]
fn a_failure_at_a_terminal_is_told_and_the_chat_goes_on() {
    let (_parent, dir) = folder(64);
    let long = format!("{}\r", "long ".repeat(60));
    let (shown, code) = at_a_terminal(
        &["chat", text(&dir), "--max-tokens", "2"],
        &[[PROMPT, &long], ["squire: ", ""], [PROMPT, "/stats\r"], ["0 tokens, room for 64", ""], [PROMPT, "\x04"]],
    );
    assert_eq!(code, 0, "{shown:?}");
}

#[test]
fn what_was_typed_is_offered_again_and_remembered_where_a_file_is_named() {
    let (_parent, dir) = folder(2000);
    let history = dir.join("../history");
    let args = ["chat", text(&dir), "--max-tokens", "2", "--history", text(&history)];
    let (shown, code) = at_a_terminal(&args, &[[PROMPT, "first\r"], [PROMPT, "second\r"], [PROMPT, "\x04"]]);
    assert_eq!((code, fs::read_to_string(&history).unwrap().as_str()), (0, "first\nsecond\n"), "{shown:?}");
    // Two steps back is the first line, also in another chat.
    let (shown, code) = at_a_terminal(&args, &[[PROMPT, "\x1b[A\x1b[A\r"], [PROMPT, "\x04"]]);
    assert_eq!((code, fs::read_to_string(&history).unwrap().as_str()), (0, "first\nsecond\nfirst\n"), "{shown:?}");
    #[cfg(unix)]
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&history).unwrap().permissions()) & 0o77, 0);
    let wrong = ["chat", text(&dir), "--history", text(&dir)];
    let (shown, code) = at_a_terminal(&wrong, &[]);
    assert!(code == 1 && shown.contains("squire: --history "), "{shown:?}");
}
