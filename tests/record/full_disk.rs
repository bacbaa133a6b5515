//! A disk that is full, by a limit on the size of files: nothing is torn, the episode waits or the run goes on, and the reason is told.
#![cfg(target_os = "linux")]

use super::*;
use squire::error::Fault;
use std::process::Command;

/// Where a child finds its folder.
const FOLDER: &str = "SQUIRE_TEST_FULL_DISK";

fn document() -> Value {
    json!({"preset": "opd", "seed": 5, "batch_episodes": 4, "optimizer": {"learning_rate": 1e-2}})
}

/// Not a test of its own: what a child does whose files may have so many bytes.
#[test]
fn child() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let folder = Path::new(&folder);
    let d = plain(document());
    record(&d, &folder.join("run"));
    let mut ended = 0;
    loop {
        let seat = Seat::new(&d, EpisodeSpec::default());
        let episode = &seat.episode;
        episode.observe_ids(&observation(ended, 0, &[])).unwrap();
        episode.decide().unwrap();
        episode.act(&options()).unwrap().collect().unwrap();
        episode.outcome(None, true).unwrap();
        match episode.end(1.0, Some(true)) {
            Ok(()) => ended += 1,
            Err(e) => {
                assert_eq!(e.fault(), Fault::CannotWrite);
                assert!(e.message().contains("the episode has not ended, since its record cannot be written"), "{e}");
                assert_eq!(d.n_waiting(), ended as usize);
                // Whoever records no more ends it.
                d.stop_recording();
                episode.end(1.0, Some(true)).unwrap();
                assert_eq!(d.n_waiting(), ended as usize + 1);
                break;
            }
        }
    }
    // A checkpoint does not fit either, and says so.
    super::update(&d);
    d.discard();
    assert_eq!(fault(d.save(&folder.join("checkpoints"))), Fault::CannotWrite);
    println!("ended {ended}");
}

/// Not a test of its own: what a child does whose metrics grow while nothing is played.
#[test]
fn child_of_refusals() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let mut document = document();
    document["optimizer"] = json!({"learning_rate": 10.0});
    let d = plain(document);
    record(&d, &Path::new(&folder).join("run"));
    play_rewarded(&d, 0, 4);
    let mut update = build(&d);
    d.apply(&mut update).unwrap();
    for _ in 0..100 {
        assert_eq!(fault(d.publish()), Fault::UpdateTooFar);
    }
    let failed = d.metrics()["recording"]["failed"].clone();
    assert!(failed.as_str().is_some_and(|why| why.contains("metrics.jsonl")), "{failed}");
    // The run goes on, and so does its record.
    d.rollback(1).unwrap();
    play_rewarded(&d, 4, 1);
    assert_eq!(d.metrics()["recording"]["episodes"], json!(5));
    println!("ended 5");
}

/// What the child printed under a limit of so many blocks of 512 bytes; the signal of the limit is ignored, as hosts that want an
/// error do.
fn limited(child: &str, folder: &Path, blocks: u32) -> String {
    let program = std::env::current_exe().unwrap();
    let line = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" --exact full_disk::{child} --nocapture");
    let out = Command::new("sh").args(["-c", &line]).arg(program).env(FOLDER, folder).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    said
}

#[test]
fn an_episode_whose_record_cannot_be_written_has_not_ended_and_nothing_is_torn() {
    for blocks in [24, 33] {
        let folder = tempfile::tempdir().unwrap();
        let said = limited("child", folder.path(), blocks);
        let ended = said.lines().find_map(|line| line.strip_prefix("ended ")).unwrap().parse::<usize>().unwrap();
        let record = read(&folder.path().join("run"));
        assert!(ended > 2, "{ended}");
        assert_eq!((record.episodes.len(), record.cut), (ended, None));
        assert!(!lines(&folder.path().join("run"), "metrics.jsonl").is_empty());
        let checkpoints = folder.path().join("checkpoints");
        assert_eq!(Distiller::checkpoint(&checkpoints).unwrap(), None);
    }
}

#[test]
fn metrics_that_cannot_be_written_stop_nothing_and_are_not_torn() {
    let folder = tempfile::tempdir().unwrap();
    let said = limited("child_of_refusals", folder.path(), 48);
    assert!(said.contains("ended 5"), "{said}");
    let told = lines(&folder.path().join("run"), "metrics.jsonl");
    let refused = told.iter().filter(|line| line["kind"] == "refused").count();
    assert!((10..100).contains(&refused), "{refused}");
    assert_eq!(read(&folder.path().join("run")).episodes.len(), 5);
}
