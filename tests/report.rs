//! `squire report` as a user meets it: the page against the figures that it was made of, in a browser too; refusals; and the
//! event file as TensorBoard reads it.
#![cfg(feature = "cli")]

#[path = "support/run_folder.rs"]
mod run_folder;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use run_folder::{Lines, Made, RUN, begins, settings, write};
use serde_json::{Value, json};

/// What a run of the program left: exit code, stdout, stderr.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn report(args: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_squire")).arg("report").args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().expect("no signal"), out: text(output.stdout), err: text(output.stderr) }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The page of a folder.
fn page_of(folder: &Path) -> String {
    let ran = report(&[text(folder)]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    std::fs::read_to_string(folder.join("report.html")).unwrap()
}

/// A folder whose metrics are these lines.
fn folder_of(lines: &[Value]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut written = Lines::default();
    lines.iter().for_each(|line| written.add(line));
    std::fs::write(folder.path().join("metrics.jsonl"), written.0).unwrap();
    folder
}

fn line(kind: &str, rest: Value) -> Value {
    let mut line = json!({"kind": kind, "run": RUN, "time": 1.7959e9});
    line.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    line
}

fn said_that_it_is_skipped(why: &str) {
    // On the real standard error: a test that passes hides what it prints.
    let _ = writeln!(std::io::stderr(), "skipped, not passed: {why}");
}

/// The values of an attribute, in the order of the page.
fn attributes(page: &str, name: &str) -> Vec<String> {
    let begin = format!(" {name}=\"");
    page.split(&begin).skip(1).map(|rest| rest.split('"').next().unwrap().to_string()).collect()
}

#[test]
fn the_page_has_every_update_as_the_metrics_have_it() {
    let folder = tempfile::tempdir().unwrap();
    let updates = write(folder.path(), &Made { updates: 30, steps: 40, ..Made::default() });
    let page = page_of(folder.path());
    let losses: Vec<f64> = attributes(&page, "data-loss").iter().map(|x| x.parse().unwrap()).collect();
    let wanted: Vec<f64> = updates.iter().map(|update| update["report"]["loss"].as_f64().unwrap()).collect();
    assert_eq!(losses, wanted);
    assert_eq!(attributes(&page, "data-state"), ["running"]);
    assert!(page.contains("step 30 of 40"));
    for id in [
        "success",
        "return",
        "loss",
        "divergences",
        "by-turn",
        "update-kl",
        "learning-rate",
        "tokens",
        "turns",
        "seconds",
        "lag",
    ] {
        assert!(page.contains(&format!("<figure id=\"{id}\">")), "{id}");
    }
    assert!(page.contains("differ from their defaults") && page.contains("optimizer.learning_rate"));
}

#[test]
fn what_a_killed_process_said_is_void_where_another_goes_on() {
    let update = |step: u64, loss: f64| line("update", json!({"step": step, "report": {"loss": loss}}));
    let episode =
        |step: u64, success: bool| line("episode", json!({"step": step, "episode": step, "success": success}));
    let applied = |step: u64, kl: f64| line("applied", json!({"step": step, "update_kl": kl, "finite": true}));
    let folder = folder_of(&[
        begins(0, settings(9)),
        episode(0, true),
        update(0, 1.0),
        applied(1, 0.25),
        episode(1, false),
        update(1, 2.0),
        applied(2, 0.5),
        episode(2, false),
        update(2, 3.0),
        begins(1, settings(9)),
        episode(1, true),
        update(1, 4.0),
        applied(2, 0.125),
    ]);
    let page = page_of(folder.path());
    assert_eq!(attributes(&page, "data-loss"), ["1", "4"]);
    assert_eq!(attributes(&page, "data-update-kl"), ["0.25", "0.125"], "what made the step that is gone on from stays");
    assert!(
        page.contains("2 of 2 in the last 2 steps") && page.contains("2 updates told before that are void"),
        "{page}"
    );
}

#[test]
fn a_refused_update_stands_in_the_headline_with_its_reason() {
    let why = "the student moved by 31.5 nats a token from the revision that is served, refuse_update_kl is 2";
    let mut settings = settings(20);
    settings["optimizer"]["learning_rate"] = json!(10.0);
    let folder = folder_of(&[
        begins(0, settings),
        line(
            "update",
            json!({"step": 0, "learning_rate": 10.0, "report": {"loss": 1.5, "warnings": ["the rate is 10"]}}),
        ),
        line("applied", json!({"step": 1, "update_kl": 31.5, "finite": true})),
        line("refused", json!({"step": 1, "reason": why})),
    ]);
    let page = page_of(folder.path());
    let head = &page[..page.find("</header>").unwrap()];
    assert!(head.contains("Refused: the last update is not served") && head.contains(why), "{head}");
    assert_eq!(attributes(head, "data-state"), ["refused"]);
    // Where it is published after all it is refused no more.
    let metrics = folder.path().join("metrics.jsonl");
    let mut lines = Lines(std::fs::read_to_string(&metrics).unwrap());
    lines.add(&line("published", json!({"step": 1, "revision": 2, "probe": null})));
    std::fs::write(&metrics, lines.0).unwrap();
    assert_eq!(attributes(&page_of(folder.path()), "data-state"), ["running"]);
}

#[test]
fn what_is_new_absent_null_or_cut_off_is_no_obstacle() {
    let folder = folder_of(&[
        begins(0, Value::Null),
        line("comet", json!({"step": "elsewhere"})),
        line("episode", json!({"step": 0, "success": null, "return": null, "mood": [1]})),
        line("update", json!({"step": 0, "report": {"loss": null, "lag": null, "turns": [{"log_ratio": null}, {}]}})),
        line("update", json!({"step": 1})),
        line("failed", json!({"step": 2, "what": "build", "reason": "no token carries loss"})),
    ]);
    let metrics = folder.path().join("metrics.jsonl");
    let mut bytes = std::fs::read(&metrics).unwrap();
    bytes.extend(b"{\"kind\": \"upd\xc3");
    std::fs::write(&metrics, bytes).unwrap();
    let ran = report(&[text(folder.path())]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("the last line of metrics.jsonl is cut off: 14 bytes"), "{}", ran.err);
    let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert_eq!(attributes(&page, "data-state"), ["failed"]);
    for part in [
        "no token carries loss",
        "is cut off: 14 bytes",
        "no record.jsonl",
        "Not drawn",
        "none that this program knows",
    ] {
        assert!(page.contains(part), "{part}");
    }
}

/// A folder that is refused, with a message that names what is wrong and nothing else, and without a page.
fn refused(folder: &Path, named: &[&str]) {
    let ran = report(&[text(folder)]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{named:?}: {}", ran.err);
    assert!(ran.err.starts_with("squire: ") && ran.err.lines().count() == 1, "{}", ran.err);
    named.iter().for_each(|part| assert!(ran.err.contains(part), "{part}: {}", ran.err));
    assert!(!folder.join("report.html").exists());
}

#[test]
fn what_is_no_run_is_refused() {
    let nothing = tempfile::tempdir().unwrap();
    refused(&nothing.path().join("nowhere"), &["nowhere", "there is no such folder"]);
    refused(nothing.path(), &["metrics.jsonl", "there is no such file", "wanted the metrics of a run"]);
    std::fs::create_dir(nothing.path().join("metrics.jsonl")).unwrap();
    refused(nothing.path(), &["metrics.jsonl", "no regular file"]);
    let with = |content: &[u8]| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("metrics.jsonl"), content).unwrap();
        folder
    };
    refused(with(b"").path(), &["metrics.jsonl", "wanted a first line of kind \"run\"", "an empty file"]);
    refused(with(b"{\"kind\": \"run\"").path(), &["metrics.jsonl", "cut off"]);
    refused(with(b"\x7fELF\x02\n\x00\n").path(), &["metrics.jsonl, line 1", "wanted a JSON object"]);
    refused(with(b"{\"a\": 1}\n").path(), &["metrics.jsonl, line 1", "missing field `kind`"]);
    refused(
        folder_of(&[line("saved", json!({"step": 1}))]).path(),
        &["line 1", "wanted a first line of kind \"run\", found \"saved\""],
    );

    let broken = folder_of(&[begins(0, settings(9)), line("saved", json!({"step": 1}))]);
    let metrics = broken.path().join("metrics.jsonl");
    let mut bytes = std::fs::read(&metrics).unwrap();
    bytes.extend(b"{\"kind\": \"saved\", \"run\n{}\n");
    std::fs::write(&metrics, bytes).unwrap();
    refused(broken.path(), &["metrics.jsonl, line 3", "wanted a JSON object of a run, found at byte"]);
}

#[test]
fn a_later_version_and_a_second_run_are_refused() {
    let mut later = begins(0, settings(9));
    later["version"] = json!(2);
    later["step"] = json!({"of": "another form"});
    refused(folder_of(&[later.clone()]).path(), &["line 1", "wanted metrics of version 1 or older, found version 2"]);
    refused(folder_of(&[begins(0, settings(9)), later]).path(), &["line 2", "found version 2"]);

    let other = "ffffffffffffffffffffffffffffffff";
    let mut second = begins(0, settings(9));
    second["run"] = json!(other);
    refused(folder_of(&[begins(0, settings(9)), second.clone()]).path(), &["metrics.jsonl, line 2", RUN, other]);

    let folder = folder_of(&[begins(0, settings(9))]);
    let record = folder.path().join("record.jsonl");
    let head = |version: u64, run: &str| format!("{}\n", json!({"kind": "record", "run": run, "version": version}));
    std::fs::write(&record, head(2, RUN)).unwrap();
    refused(folder.path(), &["record.jsonl, line 1", "wanted a record of version 1 or older, found version 2"]);
    std::fs::write(&record, head(1, RUN) + &head(1, other)).unwrap();
    refused(folder.path(), &["record.jsonl, line 2", RUN, other]);
    std::fs::write(&record, head(1, RUN) + "{\n").unwrap();
    refused(folder.path(), &["record.jsonl, line 2", "wanted a JSON object"]);
}

#[test]
fn a_line_longer_than_any_is_refused() {
    let folder = folder_of(&[begins(0, settings(9))]);
    let mut file = std::fs::OpenOptions::new().append(true).open(folder.path().join("metrics.jsonl")).unwrap();
    let part = vec![b' '; 1 << 20];
    (0..65).for_each(|_| file.write_all(&part).unwrap());
    refused(folder.path(), &["metrics.jsonl, line 2", "wanted a line of at most 67108864 bytes"]);
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_old_page_whole() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &Made::default());
    let old = page_of(folder.path());
    // A file may have 8 blocks of 512 bytes, less than any page. Where the signal is not ignored the program is killed by it.
    for (ignored, code) in [("trap '' XFSZ; ", Some(1)), ("", None)] {
        let script = format!("{ignored}ulimit -f 8; exec \"$0\" report \"$1\"");
        let mut command = Command::new("sh");
        let output = command.args(["-c", &script, env!("CARGO_BIN_EXE_squire"), text(folder.path())]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), code, "{said}");
        assert!(code.is_none() || said.starts_with("squire: ") && said.contains("report.html: "), "{said}");
        assert_eq!(std::fs::read_to_string(folder.path().join("report.html")).unwrap(), old);
    }
    assert_eq!(page_of(folder.path()), old, "and the next one is written");
}

#[test]
fn the_page_goes_where_it_is_told_and_nowhere_it_cannot() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &Made::default());
    let other = folder.path().join("other.html");
    let ran = report(&[text(folder.path()), "-o", text(&other), "--json"]);
    let said: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&said["run"], &said["updates"], &said["step"]), (&json!(RUN), &json!(12), &json!(12)));
    assert_eq!(said["files"]["page"]["bytes"], other.metadata().unwrap().len());
    assert!(!folder.path().join("report.html").exists());
    let ran = report(&[text(folder.path()), "-o", text(&folder.path().join("no/such/page.html"))]);
    assert!(ran.code == 1 && ran.err.contains("no/such/"), "{}", ran.err);
}

#[test]
fn megabytes_of_text_are_cut_and_the_page_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let long = "\u{202e}long ".repeat(400_000);
    write(folder.path(), &Made { updates: 2, hostile: Some(long), ..Made::default() });
    let page = page_of(folder.path());
    assert!(page.len() < 5_000_000, "{}", page.len());
    assert!(page.contains("characters more") && page.contains("[U+202E]long") && !page.contains('\u{202e}'));
}

/// What a browser makes of a page: a value a width and colour scheme. None where there is no browser.
fn browsed(page: &Path, expression: &str) -> Option<Vec<Value>> {
    let known = ["chromium", "chromium-browser", "google-chrome"];
    let is_there =
        |name: &&&str| Command::new(**name).arg("--version").output().is_ok_and(|output| output.status.success());
    let Some(chromium) = known.iter().find(is_there) else {
        said_that_it_is_skipped("there is no chromium; .ci/run installs it");
        return None;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/report/page.py");
    let mut command = Command::new("python3");
    command.arg(script).args([chromium, text(page), expression]);
    // For people: a folder for pictures of the page.
    command.args(std::env::var("SQUIRE_PAGE_PICTURES").ok());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    Some(said.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// That a page is at peace with its browser, at every width.
fn is_sound(seen: &Value) {
    let case = format!("{} {}", seen["width"], seen["scheme"]);
    assert_eq!((&seen["errors"], &seen["requests"]), (&json!([]), &json!([])), "{case}");
    for state in ["folded", "opened"] {
        let width = |i: usize| seen[state][i].as_f64().unwrap();
        assert!(width(0) <= width(1), "{case}, {state}: {} pixels in a window of {}", width(0), width(1));
        assert_eq!(width(1), seen["width"].as_f64().unwrap());
    }
}

#[test]
fn a_browser_shows_a_run_of_a_thousand_updates() {
    let folder = tempfile::tempdir().unwrap();
    let made = Made { updates: 1000, steps: 1000, episodes: 16, turns: 12, evaluate_every: 50, ..Made::default() };
    let updates = write(folder.path(), &made);
    let began = std::time::Instant::now();
    let bytes = page_of(folder.path()).len();
    println!("a page of {bytes} bytes in {:.2} s", began.elapsed().as_secs_f64());
    assert!(bytes < 5_000_000, "{bytes}");
    let expression = "{
        rows: [...document.querySelectorAll('#updates tbody tr')].map(r => [Number(r.dataset.step), Number(r.dataset.loss)]),
        successes: [...document.querySelectorAll('#updates tbody tr')].map(r => Number(r.dataset.successes)),
        cells: [0, 500, 999].map(i => document.querySelectorAll('#updates tbody tr')[i].cells[2].textContent),
        state: document.querySelector('[data-state]').dataset.state,
        loss: Number(document.querySelector('[data-figure=loss]').dataset.value),
        episodes: document.querySelectorAll('.episode').length,
        figures: document.querySelectorAll('figure').length,
        named: [...document.querySelectorAll('svg[role=img]')].every(s => s.querySelector('title') && s.querySelector('desc').textContent.length > 20),
        scopes: [...document.querySelectorAll('th')].every(h => h.scope),
        outside: [...document.querySelectorAll('svg[data-plot] text')].filter(t => {
            const a = t.getBoundingClientRect(), b = t.closest('svg').getBoundingClientRect();
            return a.left < b.left - 1 || a.right > b.right + 1;
        }).map(t => t.closest('figure').id + ': ' + t.textContent),
        small: Math.min(...[...document.querySelectorAll('svg[data-plot] text')].map(t => t.getBoundingClientRect().height)),
    }";
    let Some(seen) = browsed(&folder.path().join("report.html"), expression) else { return };
    assert_eq!(seen.len(), 4);
    for seen in &seen {
        is_sound(seen);
        let ms = |key: &str| seen[key].as_f64().unwrap_or(f64::NAN);
        println!(
            "{} {}: first paint {:.0} ms, loaded {:.0} ms, drawn {:.0} ms",
            seen["width"],
            seen["scheme"],
            ms("paint_ms"),
            ms("load_ms"),
            ms("drawn_ms")
        );
        let found = &seen["found"];
        let wanted: Vec<Value> = updates.iter().map(|u| json!([u["step"], u["report"]["loss"]])).collect();
        assert_eq!(found["rows"].as_array().unwrap(), &wanted);
        let wanted: Vec<&Value> = updates.iter().map(|u| &u["report"]["successes"]).collect();
        assert_eq!(found["successes"].as_array().unwrap().iter().collect::<Vec<_>>(), wanted);
        for (cell, at) in found["cells"].as_array().unwrap().iter().zip([0, 500, 999]) {
            let (shown, exact) =
                (cell.as_str().unwrap().parse::<f64>().unwrap(), updates[at]["report"]["loss"].as_f64().unwrap());
            assert!((shown - exact).abs() <= 1e-3 * exact.abs().max(0.01), "{shown} and not {exact}");
        }
        assert_eq!((&found["state"], &found["loss"]), (&json!("finished"), &updates[999]["report"]["loss"]));
        assert_eq!((&found["episodes"], &found["named"], &found["scopes"]), (&json!(40), &json!(true), &json!(true)));
        assert!(found["figures"].as_u64().unwrap() >= 14, "{}", found["figures"]);
        assert_eq!(found["outside"], json!([]), "labels that stand outside of their drawings");
        assert!(found["small"].as_f64().unwrap() >= 10.0, "letters of {} pixels", found["small"]);
    }
}

#[test]
fn hostile_texts_are_inert_in_a_browser() {
    let hostile = "</pre></details></script><script>window.struck=1</script><img src=x onerror=\"window.struck=2\">\
                   <svg onload=window.struck=3>' onmouseover='window.struck=4\u{1b}[31m\u{202e}\0<!--\u{2028}]]>{{7*7}}"
        .to_string();
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &Made { hostile: Some(hostile.clone()), ..Made::default() });
    let path = folder.path().join("metrics.jsonl");
    // In every other text of the file too.
    let mut lines = Lines(std::fs::read_to_string(&path).unwrap().replace("\"beta\"", &json!(hostile).to_string()));
    let mut update = line(
        "update",
        json!({"step": 12, "schedules": {}, "report": {"warnings": [hostile], "set_aside": [{"reason": hostile}]}}),
    );
    update["schedules"][&hostile] = json!(1.0);
    lines.add(&update);
    lines.add(&line("failed", json!({"step": 12, "what": hostile, "reason": hostile})));
    lines.add(&line("published", json!({"step": 12, "revision": 3, "probe": hostile})));
    lines.add(&line("refused", json!({"step": 13, "reason": hostile})));
    std::fs::write(&path, lines.0).unwrap();
    let page = page_of(folder.path());
    assert!(!page.contains("<img") && !page.contains('\u{202e}') && !page.contains('\u{1b}'));
    assert_eq!((page.matches("<script").count(), page.matches("</script").count()), (1, 1));
    let expression = "{
        struck: window.struck ?? null, images: document.images.length, scripts: document.scripts.length,
        text: document.querySelector('.turns li:nth-child(2) pre:not(.between)').textContent,
        loaded: performance.getEntriesByType('resource').length,
    }";
    let Some(seen) = browsed(&folder.path().join("report.html"), expression) else { return };
    for seen in &seen {
        is_sound(seen);
        let found = &seen["found"];
        assert_eq!(
            (&found["struck"], &found["images"], &found["scripts"], &found["loaded"]),
            (&Value::Null, &json!(0), &json!(1), &json!(0))
        );
        assert!(
            found["text"]
                .as_str()
                .unwrap()
                .starts_with("</pre></details></script><script>window.struck=1</script><img src=x")
        );
    }
}

#[test]
fn a_probe_is_told_where_it_found_something() {
    let of = |differing: u64| {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &Made::default());
        let path = folder.path().join("metrics.jsonl");
        let mut lines = Lines(std::fs::read_to_string(&path).unwrap());
        let probe = json!({"rows": 4, "differing": differing, "largest_difference": 0.25});
        lines.add(&line("published", json!({"step": 3, "revision": 4, "probe": probe})));
        std::fs::write(&path, lines.0).unwrap();
        page_of(folder.path())
            .contains("2 of 4 log-probs are served otherwise than they were trained, by up to 2.50e-1 nats")
    };
    assert!(of(2) && !of(0));
}

/// TensorBoard's own reader, in an environment that .ci/run makes.
#[test]
fn tensorboard_reads_the_same_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let updates = write(folder.path(), &Made::default());
    let events = folder.path().join("events");
    let args = [text(folder.path()), "--tensorboard", text(&events)];
    for _ in 0..2 {
        let ran = report(&args);
        assert_eq!(ran.code, 0, "{}", ran.err);
    }
    let files: Vec<_> =
        std::fs::read_dir(&events).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(
        files.len() == 1 && files[0].starts_with("events.out.tfevents."),
        "the second takes the first one's place: {files:?}"
    );
    assert!(!folder.path().join("report.html").exists(), "the page was not asked for");

    let made: PathBuf = [env!("CARGO_MANIFEST_DIR"), "target", "tensorboard"].iter().collect();
    if !made.join("complete").exists() {
        return said_that_it_is_skipped("there is no target/tensorboard; .ci/run makes it");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/report/events.py");
    let output = Command::new(made.join("bin/python")).arg(script).arg(&events).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of_report = |key: &'static str| move |update: &Value| update["report"][key].as_f64();
    let compare = |tag: &str, of: &dyn Fn(&Value) -> Option<f64>| {
        let known = updates.iter().filter_map(|update| Some((update, of(update)? as f32)));
        let wanted: Vec<_> =
            known.map(|(update, value)| (update["step"].as_u64(), value, update["time"].as_f64())).collect();
        let read = |event: &Value| (event[0].as_u64(), event[1].as_f64().unwrap() as f32, event[2].as_f64());
        assert_eq!(found[tag].as_array().unwrap().iter().map(read).collect::<Vec<_>>(), wanted, "{tag}");
    };
    compare("loss", &of_report("loss"));
    compare("divergence/reverse_kl", &of_report("reverse_kl"));
    compare("tokens/teacher", &of_report("teacher_tokens"));
    compare("gradient_norm", &of_report("gradient_norm"));
    compare("seconds/build", &of_report("seconds"));
    compare("lag/mean", &|update| update["report"]["lag"]["mean"].as_f64());
    compare("schedule/beta", &|update| update["schedules"]["beta"].as_f64());
    for (tag, n) in [
        ("train/success", 12),
        ("train/return", 12),
        ("evaluation/success", 3),
        ("update_kl", 12),
        ("entropy/student", 12),
    ] {
        assert_eq!(found[tag].as_array().map(Vec::len), Some(n), "{tag}");
    }
    assert!(found.get("divergence/jsd").is_none(), "null is no number");
}
