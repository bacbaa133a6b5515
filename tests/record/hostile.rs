//! Records that are broken, or made to be.

use super::*;
use squire::error::Fault;

/// A record of two episodes, the first of two turns with a view, and its lines.
fn sound() -> (tempfile::TempDir, Vec<Value>) {
    let folder = tempfile::tempdir().unwrap();
    let d = plain(json!({"preset": "opd", "seed": 5}));
    record(&d, folder.path());
    let episode = d.begin(numbered(0)).unwrap();
    for turn in 0..2 {
        let shown = observation(0, turn, &[]);
        episode.observe_ids_as(&shown, &[&[7, 8], &shown[..]].concat()).unwrap();
        episode.decide().unwrap();
        episode.act(&options()).unwrap().collect().unwrap();
        episode.outcome(Some(0.1), true).unwrap();
    }
    episode.end(1.0, None).unwrap();
    play_rewarded(&d, 1, 1);
    let lines = lines(folder.path(), "record.jsonl");
    (folder, lines)
}

fn write(folder: &Path, lines: &[Value]) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(folder.join("record.jsonl"), text).unwrap();
}

#[test]
fn a_sound_one_is_read_and_what_a_later_squire_may_add_is_no_hindrance() {
    let (folder, lines) = sound();
    write(folder.path(), &lines);
    assert_eq!(read(folder.path()).episodes.len(), 2);
    let mut more = lines.clone();
    more[1]["colour"] = json!("red");
    more[1]["turns"][0]["reason"] = json!("a reason of tomorrow");
    more.push(json!({"kind": "weather", "run": lines[0]["run"], "sun": true}));
    write(folder.path(), &more);
    assert_eq!(read(folder.path()).episodes.len(), 2);
}

#[test]
fn contradictions_are_refused_by_line_and_place() {
    type Change = fn(&mut Value);
    let of_header: &[(Change, Fault, &str)] = &[
        (
            |l| l["version"] = json!(2),
            Fault::RecordVersion,
            "line 1: the record is of version 2, this squire reads up to 1",
        ),
        (|l| l["rows"] = json!(0), Fault::RecordForm, "line 1: rows: wanted a number from 1 to"),
        (|l| l["kind"] = json!("weather"), Fault::RecordForm, "line 2: wanted a line of kind \"record\" of run"),
        (|l| l["run"] = json!("x"), Fault::RecordForm, "expected 32 hexadecimal digits"),
        (|l| *l = json!([1]), Fault::RecordForm, "line 1: "),
    ];
    let of_episode: &[(Change, &str)] = &[
        (|l| *l = json!([1]), "line 2: "),
        (|l| l["ids"][3] = json!(64), "episode 0: ids[3]: wanted one of 64 ids, found 64"),
        (|l| l["ids"][3] = json!(-1), "ids[3]: wanted one of 64 ids, found -1"),
        (|l| l["ids"][3] = json!(1e300), "line 2: "),
        (|l| l["episode"] = json!(u64::MAX), "wanted a number and a step of at most"),
        (|l| l["step"] = json!(1u64 << 63), "wanted a number and a step of at most"),
        (|l| l["sources"][0][1] = json!(1), "sources"),
        (|l| l["sources"][0][1] = json!(1u64 << 60), "sources: they are of more than the"),
        (|l| l["sources"][0][0] = json!("ghost"), "sources: wanted host, glue, student, teacher or replay"),
        (|l| l["sources"][0][0] = json!("student"), "turns[0]: context must come from host or glue"),
        (|l| l["turns"][0]["actor"] = json!("teacher"), "is of the source student, the actor is the teacher"),
        (|l| l["turns"][0]["actor"] = json!("god"), "turns[0]: actor: wanted student, teacher or replay, found god"),
        (|l| l["turns"][1]["start"] = json!(0), "turns[1]: wanted tokens from"),
        (|l| l["turns"][1]["end"] = json!(9999), "turns[1]: wanted tokens from"),
        (|l| l["turns"][0]["logprobs"] = json!(vec![-1; 9]), "turns[0]: the student's turn of"),
        (|l| l["turns"][0]["logprobs"][0] = json!(2.0), "must be a number of at most 0, found 2"),
        (|l| l["turns"][0]["logprobs"][0] = json!(null), "line 2: "),
        (|l| l["turns"][0]["reward"] = json!(1e10), "a reward must be a number from -1e9 to 1e9"),
        (|l| l["score"] = json!(-1e300), "a score must be a number"),
        (|l| l["views"][0]["end"] = json!(9999), "views[0]: wanted a part between two turns"),
        (|l| l["views"][0]["end"] = l["turns"][0]["end"].clone(), "views[0]: wanted a part between two turns"),
        (|l| l["views"][0]["ids"][0] = json!(64), "views[0]: wanted one of 64 ids, found 64"),
        (|l| _ = l.as_object_mut().unwrap().remove("turns"), "missing field `turns`"),
    ];
    let (folder, sound) = sound();
    let of_episode = of_episode.iter().map(|&(change, said)| (1, change, Fault::RecordForm, said));
    let of_header = of_header.iter().map(|&(change, fault, said)| (0, change, fault, said));
    for (at, change, fault, said) in of_header.chain(of_episode) {
        let mut lines = sound.clone();
        change(&mut lines[at]);
        write(folder.path(), &lines);
        let e = Record::read(folder.path()).unwrap_err();
        assert!(e.fault() == fault && e.message().contains(said), "wanted {said:?}, found {e}");
        assert!(e.message().contains("record.jsonl: line "), "{e}");
    }
}

#[test]
fn what_the_teacher_said_is_checked_too() {
    let (folder, lines) = sound();
    let start = lines[1]["turns"][0]["start"].clone();
    let said = |key: &str, value: Value| {
        let mut line = json!({
            "kind": "teacher", "run": lines[0]["run"], "episode": 0, "step": 0, "positions": [start], "logprobs": [-0.5], "top_k": 2,
            "top_ids": [3, 4], "top_logprobs": [-0.9, -1.0],
        });
        line[key] = value;
        let mut all = lines.clone();
        all.push(line);
        write(folder.path(), &all);
        Record::read(folder.path()).map(|record| record.episodes[0].said.is_some()).map_err(|e| e.message().to_string())
    };
    assert_eq!(said("episode", json!(0)), Ok(true));
    // Of an episode that is not there, or of another step: it is left out and counted.
    assert_eq!((said("episode", json!(77)), said("step", json!(1))), (Ok(false), Ok(false)));
    assert_eq!(read(folder.path()).unattached, 1);
    for (key, value, wanted) in [
        ("positions", json!([0]), "positions[0]: wanted tokens of turns in ascending order, found 0"),
        ("positions", json!([u64::MAX]), "positions[0]: wanted tokens of turns in ascending order"),
        ("positions", json!([]), "logprobs: wanted 0 places with top_k 2, found 1 numbers"),
        ("top_k", json!(3), "top_ids: wanted 1 places with top_k 3, found 2 numbers"),
        ("top_k", json!(u64::MAX), "top_ids: wanted 1 places"),
        ("logprobs", json!([0.5]), "wanted log-probs, found 0.5"),
        ("top_ids", json!([3, 3]), "top_ids: wanted different ids below 64 in a place, found 3"),
        ("top_ids", json!([3, 64]), "top_ids: wanted different ids below 64 in a place, found 64"),
    ] {
        let e = said(key, value).unwrap_err();
        assert!(e.contains(wanted), "wanted {wanted:?}, found {e:?}");
    }
}

#[test]
fn a_record_that_is_cut_anywhere_is_read_up_to_its_last_whole_episode() {
    let (folder, _) = sound();
    let path = folder.path().join("record.jsonl");
    let whole = std::fs::read(&path).unwrap();
    let ends: Vec<usize> = (0..whole.len()).filter(|&i| whole[i] == b'\n').map(|i| i + 1).collect();
    for cut in (1..=whole.len()).step_by(7).chain(ends.iter().copied()) {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let record = read(folder.path());
        let n = ends.iter().filter(|&&end| end <= cut).count();
        assert_eq!(record.episodes.len(), n.saturating_sub(1), "cut at {cut}");
        let rest = cut - ends.iter().copied().filter(|&end| end <= cut).max().unwrap_or(0);
        assert_eq!(record.cut, (rest > 0).then_some(rest as u64), "cut at {cut}");
    }
}

#[test]
fn what_is_there_instead_of_a_record_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let refused = || {
        let e = Record::read(folder.path()).unwrap_err();
        (e.fault(), e.message().to_string())
    };
    assert_eq!(refused().0, Fault::MissingFile);
    let path = folder.path().join("record.jsonl");
    std::fs::write(&path, "").unwrap();
    let (fault, said) = refused();
    assert!(fault == Fault::RecordForm && said.ends_with("wanted a record of squire, found an empty file"), "{said}");
    std::fs::write(&path, "\u{1b}[31m\n").unwrap();
    let (fault, said) = refused();
    assert!(fault == Fault::RecordForm && !said.contains('\u{1b}'), "{said}");
}

#[test]
fn texts_of_the_hosts_come_back_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let d = plain(json!({"preset": "opd", "seed": 5}));
    record(&d, folder.path());
    let task = "<script>\u{1b}[31m\u{202e}\n\"\\\u{0}".to_string();
    let spec = EpisodeSpec { task: task.clone(), group: "g".into(), ..Default::default() };
    Seat::new(&d, spec).play(1);
    assert_eq!(read(folder.path()).episodes[0].played.task, task);
    assert_eq!(lines(folder.path(), "record.jsonl").len(), 2, "a line feed in a text ends no line");
}
