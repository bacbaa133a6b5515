//! `squire distill run`: a student that learns from a record is the student that learnt as it was played, bit for bit; also where
//! it is killed in between. And what is refused.
#![cfg(feature = "cli")]

#[path = "support/answering.rs"]
mod answering;
#[path = "support/folders.rs"]
mod folders;
#[path = "support/recorded.rs"]
mod recorded;
#[path = "support/scripted.rs"]
mod scripted;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use recorded::*;
use serde_json::{Value, json};

const COMPUTE: [&str; 4] = ["--compute", "f32", "--threads", "1"];

/// The words of a run from this record.
fn words<'a>(of: &'a Recorded, record: &'a Path, out: &'a Path) -> Vec<&'a str> {
    let mut words =
        vec!["distill", "run", "--record", text(record), "--student", text(&of.student), "--out", text(out)];
    words.extend(COMPUTE);
    words
}

/// The bytes of the weights of a folder, a model's or an adapter's.
fn weights(folder: &Path) -> Vec<u8> {
    let model = folder.join("model.safetensors");
    fs::read(if model.exists() { model } else { folder.join("adapter_model.safetensors") }).unwrap()
}

#[test]
fn a_record_gives_the_student_that_learnt_as_it_was_played() {
    let half = json!({"preset": "guided-opd", "actor": {"kind": "bernoulli", "beta": 0.5}});
    let adapter = json!({"lora": {"rank": 3, "alpha": 6.0}});
    for (taught, more) in [
        (Taught::Model, half),
        (Taught::Model, adapter.clone()),
        (Taught::Host(8), json!({})),
        (Taught::Host(8), adapter),
    ] {
        let of = recorded(taught, steps(3, more.clone()), 3);
        let out = of.root.path().join("out");
        let mut args = words(&of, &of.run, &out);
        if taught == Taught::Model {
            args.extend(["--teacher", text(&of.teacher)]);
        }
        let metrics = of.root.path().join("metrics");
        args.extend(["--metrics", text(&metrics), "--json"]);
        let told = json_of(&args);
        assert_eq!(weights(&out), weights(&of.learnt), "{taught:?} {more}");
        assert_ne!(weights(&out), if more.get("lora").is_some() { Vec::new() } else { weights(&of.student) });
        assert_eq!((&told["updates"], &told["episodes"], &told["step"]), (&json!(3), &json!(9), &json!(3)), "{told}");
        assert_eq!((&told["other_settings"], &told["left"], &told["set_aside"]), (&json!(0), &json!(0), &json!(0)));
        assert_eq!(told["record"]["evaluations"], 1);
        let events = fs::read_to_string(metrics.join("metrics.jsonl")).unwrap();
        assert_eq!(events.lines().filter(|line| line.contains("\"kind\":\"update\"")).count(), 3);
    }
}

#[test]
fn what_a_model_said_of_each_token_teaches_without_it() {
    let sampled = |kernel: &str| json!({"student_turns": {"kernel": kernel}});
    let of = recorded(Taught::Model, steps(3, sampled("sampled-reverse-kl")), 3);
    let out = of.root.path().join("out");
    let told = json_of(&[&words(&of, &of.run, &out)[..], &["--json"]].concat());
    assert_eq!((&told["updates"], &told["episodes"]), (&json!(3), &json!(9)), "{told}");
    assert_eq!(weights(&out), weights(&of.learnt));
    assert_ne!(weights(&out), weights(&of.student));
    // A divergence asks for more than that.
    let of = recorded(Taught::Model, steps(1, sampled("reverse-kl")), 1);
    let out = of.root.path().join("out");
    let why = "student_turns.kernel: reverse-kl asks for a teacher's scores; the record has the log-probs of what was said alone";
    refused(&words(&of, &of.run, &out), 2, why);
    assert!(!out.exists());
}

#[test]
fn records_are_put_together_and_the_later_one_counts() {
    let of = recorded(Taught::Host(8), steps(2, json!({})), 2);
    let (out, changed) = (of.root.path().join("out"), of.root.path().join("changed.jsonl"));
    // The same once more changes nothing; one that says otherwise counts where it comes last.
    let mut args = words(&of, &of.run, &out);
    args.insert(4, text(&of.run));
    args.push("--json");
    let told = json_of(&args);
    assert_eq!((&told["record"]["again"], &told["record"]["differing"]), (&json!(7), &json!(0)), "{told}");
    assert_eq!(weights(&out), weights(&of.learnt));
    let lines = lines_of(&of);
    let other = |line: &Value| {
        let mut line = line.clone();
        if line["kind"] == "episode" && line["episode"] == 1 && line["evaluation"] == false {
            line["score"] = json!(-3.5);
        }
        line
    };
    write_lines(&changed, &lines.iter().map(other).collect::<Vec<_>>());
    let mut args = words(&of, &of.run, &out);
    args.insert(4, text(&changed));
    let said = squire(&args).output().unwrap();
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains("7 episodes stand in more than one record and count once; 1 of them differ"), "{said}");
}

#[test]
fn what_nobody_scored_is_set_aside_and_others_take_its_place() {
    let of = recorded(Taught::Host(8), steps(3, json!({})), 3);
    let (out, record) = (of.root.path().join("out"), of.root.path().join("record.jsonl"));
    let mut lines = lines_of(&of);
    lines.retain(|line| line["kind"] != "teacher" || ![1, 5].contains(&line["episode"].as_u64().unwrap()));
    write_lines(&record, &lines);
    let mut args = words(&of, &record, &out);
    // They lag where fewer are learnt at a time.
    let document = of.root.path().join("settings.json");
    fs::write(&document, steps(3, json!({"max_staleness": 3})).to_string()).unwrap();
    args.insert(2, text(&document));
    args.push("--json");
    let told = json_of(&args);
    assert_eq!((&told["set_aside"], &told["episodes"], &told["updates"]), (&json!(2), &json!(7), &json!(3)), "{told}");
    assert!(told["notes"][0].as_str().unwrap().contains("2 episodes are set aside"), "{told}");
    assert_eq!(told["other_settings"], 9, "{told}");
    lines.retain(|line| line["kind"] != "teacher");
    write_lines(&record, &lines);
    refused(&words(&of, &record, &out), 2, "student_turns.kernel: reverse-kl asks for a teacher's scores");
}

#[test]
fn a_run_that_is_killed_goes_on_to_the_same_bytes() {
    let of = recorded(Taught::Host(4), steps(9, json!({})), 3);
    let at = |name: &str| of.root.path().join(name);
    let [whole, broken, checkpoint, metrics, document] = ["whole", "broken", "ckpt", "metrics", "one.json"].map(at);
    let more = json!({"batch_episodes": 1, "max_staleness": 9});
    fs::write(&document, steps(9, more).to_string()).unwrap();
    let mut args = words(&of, &of.run, &whole);
    args.insert(2, text(&document));
    assert_eq!(json_of(&[&args[..], &["--json"]].concat())["updates"], 9);
    let mut args = words(&of, &of.run, &broken);
    args.insert(2, text(&document));
    args.extend(["--checkpoint", text(&checkpoint), "--metrics", text(&metrics), "--json"]);
    let newest = || squire::distill::Distiller::checkpoint(&checkpoint).ok().flatten().unwrap_or(0);
    let mut child = squire(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while newest() < 2 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().code(), None, "it was killed amid its work");
    assert!(!broken.exists());
    let told = json_of(&args);
    let resumed = told["resumed_at"].as_u64().unwrap();
    assert!((2..9).contains(&resumed), "{told}");
    assert_eq!((&told["step"], &told["known"]), (&json!(9), &json!(resumed)), "{told}");
    assert_eq!(weights(&broken), weights(&whole));
    // Once more, there is nothing to do but to write the student.
    fs::remove_dir_all(&broken).unwrap();
    let told = json_of(&args);
    assert_eq!((&told["updates"], &told["known"], &told["left"]), (&json!(0), &json!(9), &json!(0)), "{told}");
    assert_eq!(weights(&broken), weights(&whole));
}

#[test]
fn steps_end_a_run_and_what_is_left_is_told() {
    let of = recorded(Taught::Host(4), steps(3, json!({})), 3);
    let out = of.root.path().join("out");
    let mut args = words(&of, &of.run, &out);
    args.extend(["--steps", "1", "--json"]);
    let told = json_of(&args);
    assert_eq!((&told["updates"], &told["left"], &told["steps"]), (&json!(1), &json!(6), &json!(1)), "{told}");
    args.pop();
    let shown = squire(&args).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("1 of 1") && shown.contains("3 of 9, 0 learnt before, 6 left"), "{shown}");
}

/// The lines of a run's record.
fn lines_of(of: &Recorded) -> Vec<Value> {
    let text = fs::read_to_string(of.run.join("record.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn write_lines(path: &Path, lines: &[Value]) {
    fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}

#[test]
fn what_cannot_be_learnt_from_is_refused_by_name() {
    let of = recorded(Taught::Host(4), steps(2, json!({})), 1);
    let (out, lines) = (of.root.path().join("out"), lines_of(&of));
    let file = |name: &str, change: &dyn Fn(&mut Vec<Value>)| -> PathBuf {
        let (path, mut lines) = (of.root.path().join(name), lines.clone());
        change(&mut lines);
        write_lines(&path, &lines);
        path
    };
    let of_record = |path: &Path, code: i32, named: &str| refused(&words(&of, path, &out), code, named);
    of_record(&of.root.path().join("nowhere"), 1, "nowhere");
    let foreign = file("foreign", &|lines| lines[0]["vocabulary"] = json!("00112233aabbccdd"));
    of_record(&foreign, 1, "is of another vocabulary: wanted the fingerprint");
    of_record(&file("later", &|lines| lines[0]["version"] = json!(2)), 1, "line 1: the record is of version 2");
    of_record(&file("broken", &|lines| lines[2]["ids"] = json!("none")), 1, "line 3: ");
    of_record(&file("empty", &|lines| lines.clear()), 1, "found an empty file");
    of_record(&file("begun", &|lines| lines.truncate(1)), 1, "there is nothing to learn");
    let evaluations =
        file("evaluations", &|lines| lines.retain(|line| line["kind"] == "record" || line["evaluation"] == true));
    of_record(&evaluations, 1, "found 1 evaluations alone");
    // Where no token carries loss.
    let document = of.root.path().join("settings.json");
    let with = |settings: Value, code: i32, named: &str| {
        fs::write(&document, settings.to_string()).unwrap();
        let mut args = words(&of, &of.run, &out);
        args.insert(2, text(&document));
        refused(&args, code, named);
    };
    with(json!({"preset": "sft"}), 1, "of 3 episodes none has a token that carries loss");
    with(json!({"preset": "magic"}), 2, "settings.json");
    with(json!({"preset": "opd", "stepz": 4}), 2, "stepz");
    with(
        json!({"preset": "opd", "lora": {"rank": 2, "alpha": 2}, "steps": 1, "teacher_adapter": "x"}),
        2,
        "teacher_adapter",
    );
    // Two runs under two settings, and no document.
    let other = recorded(Taught::Host(4), steps(4, json!({})), 1);
    let mut args = words(&of, &of.run, &out);
    args.insert(4, text(&other.run));
    refused(&args, 2, "the records were played under different settings");
    // One run that was resumed under others.
    let resumed = file("resumed", &|lines| {
        let last = lines.iter_mut().rfind(|line| line["kind"] == "episode").unwrap();
        last["settings"] = json!("00112233aabbccdd");
    });
    of_record(&resumed, 2, "and has episodes of others: 00112233aabbccdd in episode");
    assert!(!out.exists(), "what is refused writes nothing");
    // Places that hold something else.
    let full = of.root.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("diary.txt"), "dear").unwrap();
    refused(&words(&of, &of.run, &full), 1, "diary.txt: not a file of a model folder");
    assert_eq!(fs::read_to_string(full.join("diary.txt")).unwrap(), "dear");
    let mut args = words(&of, &of.run, &out);
    args.extend(["--metrics", text(&of.run)]);
    refused(&args, 1, "choose another folder");
    let mut args = words(&of, &of.run, &out);
    let nobody = of.root.path().join("nobody");
    args.extend(["--teacher", text(&nobody)]);
    refused(&args, 1, "nobody");
    // Words that are missing.
    refused(&["distill", "run"], 2, "--record");
    refused(&["distill", "run", "--explain", "opd"], 2, "--explain");
    refused(&["distill", "--explain", "opd", "run"], 2, "run");
}

#[cfg(target_os = "linux")]
#[test]
fn a_terminal_is_shown_how_far_it_is() {
    let of = recorded(Taught::Host(4), steps(3, json!({})), 3);
    let out = of.root.path().join("out");
    let terminal = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/terminal.py");
    let mut command = std::process::Command::new("python3");
    command.arg(terminal).arg(env!("CARGO_BIN_EXE_squire")).args(words(&of, &of.run, &out));
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    // Bars are painted over: the bytes have all of them.
    for wanted in ["episodes", "0/9", "update 1 of 3, loss ", "9/9", "update 3 of 3, loss "] {
        assert!(said.contains(wanted), "{wanted}: {said:?}");
    }
    // What is left in the end is the result alone.
    let last = said.rsplit("\u{1b}[2K").next().unwrap();
    assert!(last.contains("updates   3") && !last.contains("9/9"), "{last:?}");
}
