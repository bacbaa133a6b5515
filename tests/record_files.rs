//! `squire record`: what it tells of a record, and the Parquet that it writes, read back by pyarrow and held against the record
//! number by number.
#![cfg(feature = "cli")]

#[path = "support/answering.rs"]
mod answering;
#[path = "support/folders.rs"]
mod folders;
#[path = "support/recorded.rs"]
mod recorded;
#[path = "support/run_folder.rs"]
mod run_folder;
#[path = "support/scripted.rs"]
mod scripted;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use recorded::*;
use run_folder::Draws;
use serde_json::{Value, json};

const RUN: &str = "0123456789abcdef0123456789abcdef";

/// Has pyarrow compare a file with its records, and gives the rows, values and row groups that it compared; None where it cannot be
/// had.
fn compared(path: &Path, row: &str, records: &[&Path]) -> Option<[u64; 3]> {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/parquet");
    if !venv.join("complete").exists() {
        // On the real standard error: a test that passes hides what it prints.
        let why = "skipped, not passed: there is no pyarrow in target/parquet (.ci/run installs it)";
        let _ = writeln!(std::io::stderr(), "{why}");
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parquet/compare.py");
    let output = Command::new(venv.join("bin/python")).arg(script).arg(path).arg(row).args(records).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{row}: {err}");
    let numbers: Vec<u64> = out.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
    Some(numbers.try_into().unwrap())
}

/// A log-prob of any size: bits drawn, zeros of both signs and the smallest ones too.
fn logprob(draws: &mut Draws) -> f32 {
    match (draws.unit() * 8.0) as u32 {
        0 => [0.0, -0.0, -f32::MIN_POSITIVE, -f32::from_bits(1), -1000.0][(draws.unit() * 5.0) as usize],
        1 => -f32::from_bits((draws.unit() * f64::from(1.0_f32.to_bits())) as u32),
        _ => -(draws.unit() * 20.0) as f32,
    }
}

/// Writes a record of `n` episodes that are made up, of `turns` turns each.
fn made_up(path: &Path, n: u64, turns: u64) {
    let mut draws = Draws(7);
    let mut lines = vec![json!({
        "kind": "record", "run": RUN, "version": 1, "vocabulary": null, "rows": 500, "settings": {"steps": 3, "note": "\u{fc}"},
        "fingerprint": "00112233445566aa", "squire": "0.1.0",
    })];
    for number in 0..n {
        let (mut ids, mut sources, mut list, mut positions) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut said, mut top_ids, mut top) = (Vec::new(), Vec::new(), Vec::new());
        let top_k = number % 3;
        for turn in 0..turns {
            let (before, len) = (1 + (draws.unit() * 9.0) as usize, 1 + (draws.unit() * 40.0) as usize);
            let actor = ["student", "teacher", "replay"][(draws.unit() * 3.0) as usize];
            let start = ids.len() + before;
            ids.extend((0..before + len).map(|_| (draws.unit() * 500.0) as i32));
            sources.extend([json!(["host", before - 1]), json!(["glue", 1]), json!([actor, len])]);
            let is_sampled = actor == "student" || (actor == "teacher" && draws.unit() < 0.5);
            let known: Vec<f32> = (0..len).filter(|_| is_sampled).map(|_| logprob(&mut draws)).collect();
            let drawn: Vec<f32> = (0..len).filter(|_| is_sampled).map(|_| logprob(&mut draws)).collect();
            if draws.unit() < 0.5 {
                for at in start..start + len {
                    positions.push(at);
                    said.push(logprob(&mut draws));
                    top_ids.extend((0..top_k).map(|i| at as u64 % 400 + i));
                    top.extend((0..top_k).map(|_| logprob(&mut draws)));
                }
            }
            let mut line = json!({
                "actor": actor, "start": start, "end": start + len, "reason": "", "probability": 0.5, "horizon": 1,
                "reward": if turn % 2 == 0 { json!(draws.unit() * 1e-3) } else { Value::Null }, "kernel": "reverse-kl",
                "weight": 1.0, "train": turn % 3 != 0, "learnable": true, "left_out": false, "logprobs": known,
                "sampled_logprobs": drawn,
            });
            if turn % 4 > 0 {
                line["text"] = json!(["", "a \u{1f600} b", "\u{0}\"x\""][turn as usize % 4 - 1]);
            }
            list.push(line);
        }
        lines.push(json!({
            "kind": "episode", "run": RUN, "episode": number, "step": number / 2, "task": format!("t{number}"), "group": "",
            "panel": "p", "task_seed": ([Value::Null, json!(u64::MAX), json!(3)][number as usize % 3]), "seed": u64::MAX - 1,
            "revision": 1, "evaluation": number % 5 == 4, "settings": "00112233445566aa", "score": draws.unit(),
            "forked_from": if number % 4 == 3 { json!({"episode": number - 1, "turn": 2}) } else { Value::Null },
            "success": ([Value::Null, json!(true), json!(false)][number as usize % 3]), "ids": ids, "sources": sources,
            "turns": list, "views": [],
        }));
        // Evaluations are not scored.
        if number % 4 != 2 && number % 5 != 4 {
            lines.push(json!({
                "kind": "teacher", "run": RUN, "episode": number, "step": number / 2, "positions": positions, "logprobs": said, "top_k": top_k,
                "top_ids": top_ids, "top_logprobs": top,
            }));
        }
    }
    // One that nothing happened in.
    lines.push(json!({
        "kind": "episode", "run": RUN, "episode": n, "step": 0, "task": "", "seed": 0, "revision": 1, "evaluation": false,
        "settings": "", "score": 0.0, "success": null, "ids": [], "sources": [], "turns": [],
    }));
    fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}

#[test]
fn every_number_of_a_played_record_is_in_the_file() {
    let of = recorded(Taught::Host(8), steps(2, json!({})), 2);
    let (out, record) = (of.root.path().join("out.parquet"), of.run.join("record.jsonl"));
    let told = json_of(&["record", "parquet", text(&of.run), "-o", text(&out), "--json"]);
    assert_eq!((&told["rows"], &told["row"], &told["row_groups"]), (&json!(7), &json!("episode"), &json!(1)), "{told}");
    assert_eq!(told["bytes"], fs::metadata(&out).unwrap().len());
    if let Some([rows, values, _]) = compared(&out, "episode", &[&record]) {
        assert!(rows == 7 && values > 1000, "{values}");
    }
    // The same twice is the same once.
    let told = json_of(&["record", "parquet", text(&of.run), text(&record), "--tokens", "-o", text(&out), "--json"]);
    assert_eq!((&told["record"]["again"], &told["row"]), (&json!(7), &json!("token")), "{told}");
    if let Some([rows, ..]) = compared(&out, "token", &[&record]) {
        assert_eq!(told["rows"], rows);
    }
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_old_file_whole() {
    let root = tempfile::tempdir().unwrap();
    let [record, out] = ["record.jsonl", "out.parquet"].map(|name| root.path().join(name));
    made_up(&record, 30, 9);
    let args = ["record", "parquet", text(&record), "-o", text(&out), "--json"];
    let size = json_of(&args)["bytes"].as_u64().unwrap();
    assert!(size > 8192, "{size}");
    let old = fs::read(&out).unwrap();
    // A file may have 8 blocks of 512 bytes. Where the signal is not ignored the program is killed by it.
    for (ignored, code) in [("trap '' XFSZ; ", Some(1)), ("", None)] {
        let script = format!("{ignored}ulimit -f 8; exec \"$@\"");
        let mut command = Command::new("sh");
        let output = command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_squire")]).args(args).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), code, "{said}");
        assert!(code.is_none() || (said.starts_with("squire: ") && said.contains("out.parquet: ")), "{said}");
        assert_eq!(fs::read(&out).unwrap(), old);
    }
    json_of(&args);
    assert_eq!(fs::read(&out).unwrap(), old, "and the next one is written");
}

#[test]
fn nulls_extremes_and_row_groups_come_back_as_they_were() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let [few, many, out]: [PathBuf; 3] = ["few.jsonl", "many.jsonl", "out.parquet"].map(at);
    made_up(&few, 9, 7);
    for (row, flag) in [("episode", None), ("token", Some("--tokens"))] {
        let words = ["record", "parquet", text(&few), "-o", text(&out)];
        let shown = squire(&words).args(flag).output().unwrap();
        assert!(shown.status.success() && shown.stderr.is_empty(), "{shown:?}");
        assert!(String::from_utf8(shown.stdout).unwrap().contains(&format!("one a {row}")));
        compared(&out, row, &[&few]);
    }
    made_up(&many, 60, 180);
    let told = json_of(&["record", "parquet", text(&many), "-o", text(&out), "--json"]);
    assert!(told["row_groups"].as_u64().unwrap() > 1, "{told}");
    if let Some([rows, _, groups]) = compared(&out, "episode", &[&many]) {
        assert_eq!((rows, &json!(groups)), (61, &told["row_groups"]));
    }
}

#[test]
fn info_counts_what_a_record_holds() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("record.jsonl");
    made_up(&path, 9, 3);
    let text_of = fs::read_to_string(&path).unwrap();
    // An episode once more, and a line that is not finished.
    let again = text_of.lines().nth(1).unwrap();
    fs::write(&path, format!("{text_of}{again}\n{{\"kind\"")).unwrap();
    let facts = json_of(&["record", "info", text(root.path()), "--json"]);
    assert_eq!((&facts["episodes"], &facts["evaluations"], &facts["turns"]), (&json!(10), &json!(1), &json!(27)));
    assert_eq!((&facts["superseded"], &facts["cut"]), (&json!(1), &json!(7)), "{facts}");
    let lines: Vec<Value> = text_of.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for source in ["host", "glue", "student", "teacher", "replay"] {
        let sources = lines.iter().filter_map(|line| line["sources"].as_array()).flatten();
        let n: u64 = sources.filter(|run| run[0] == source).map(|run| run[1].as_u64().unwrap()).sum();
        assert_eq!(facts["tokens"][source], n, "{source}");
    }
    assert_eq!((&facts["runs"][0]["run"], &facts["runs"][0]["rows"]), (&json!(RUN), &json!(500)));
    let shown = squire(&["record", "info", text(&path)]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    for part in ["10, 1 of them evaluations", "superseded", &format!("run {RUN}"), "no tokenizer, 500 ids", "replay"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

#[test]
fn what_is_no_record_or_no_place_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let [record, other, out, empty]: [PathBuf; 4] = ["a.jsonl", "b.jsonl", "out.parquet", "empty.jsonl"].map(at);
    made_up(&record, 2, 2);
    let lines = fs::read_to_string(&record).unwrap();
    fs::write(&other, lines.replace(RUN, &"f".repeat(32)).replace("\"rows\":500", "\"rows\":501")).unwrap();
    fs::write(&empty, "").unwrap();
    let parquet = |records: &[&Path], out: &Path, code: i32, named: &str| {
        let mut words = vec!["record", "parquet", "-o", text(out)];
        words.extend(records.iter().map(|path| text(path)));
        refused(&words, code, named);
    };
    parquet(
        &[&record, &other],
        &out,
        1,
        "the records are of different vocabularies: no tokenizer and 500 ids in run 0123",
    );
    fs::write(&other, lines.replace("\"rows\":500", "\"rows\":501")).unwrap();
    parquet(&[&record, &other], &out, 1, "has another vocabulary in a record before it");
    parquet(&[&empty], &out, 1, "found an empty file");
    parquet(&[&at("nowhere")], &out, 1, "nowhere");
    parquet(&[&record], &record, 2, "is a record that is to be read");
    parquet(&[&record], &at("no/folder.parquet"), 1, "folder.parquet");
    fs::write(&other, lines.replace("\"version\":1", "\"version\":7")).unwrap();
    parquet(&[&other], &out, 1, "the record is of version 7");
    fs::write(&other, lines.replace("\"ids\":[", "\"ids\":[-4,")).unwrap();
    parquet(&[&other], &out, 1, "line 2: episode 0: ids[0]");
    // What began and had no line whole.
    fs::write(&other, "{\"kind\":").unwrap();
    parquet(&[&other], &out, 1, "wanted a record with the line of a run, found none");
    assert!(!out.exists(), "what is refused writes nothing");
    assert_eq!(fs::read_to_string(&record).unwrap(), lines);
    refused(&["record", "info", text(&empty)], 1, "found an empty file");
    refused(&["record"], 2, "subcommand");
    refused(&["record", "parquet", text(&record)], 2, "--output");
    refused(&["record", "info"], 2, "FILE-OR-FOLDER");
}
