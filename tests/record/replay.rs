//! Learning from a record.

use super::answering::{answer_all, queue};
use super::by_hand::{logits, softmax};
use super::*;
use squire::backend::Compute;
use squire::distill::preset::PRESETS;
use squire::distill::trajectory::Trajectory;
use squire::distill::{ForkOptions, Imported, Teacher};
use squire::error::Fault;
use squire::serve::ServedModel;

/// All of an episode as bits.
fn all_of(t: &Trajectory) -> impl PartialEq + std::fmt::Debug + use<> {
    let bits = |list: &[f32]| list.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let turns: Vec<_> = t.turns().iter().map(|turn| (turn.clone(), turn.reward.map(f64::to_bits))).collect();
    let heading = t.heading.clone();
    (
        (heading, t.ids().to_vec(), t.sources().to_vec(), bits(t.logprobs()), bits(t.sampled_logprobs())),
        (turns, t.view().clone(), t.outcome()),
    )
}

/// The bytes of tensors by name.
type Tensors = Vec<(String, Vec<u8>)>;

/// Gradients, the weights after the step, and the loss of `n` updates.
fn updates(d: &Distiller, n: usize) -> Vec<(Tensors, Tensors, f64)> {
    let one = |_| {
        let mut update = build(d);
        let gradients = bytes(update.gradients());
        d.apply(&mut update).unwrap();
        d.publish().unwrap();
        (gradients, served(d.student()), update.report().loss)
    };
    (0..n).map(one).collect()
}

/// What new sessions get, an adapter too.
fn served(model: &ServedModel) -> Tensors {
    let current = model.current();
    let adapter = current.adapter().map(|adapter| adapter.tensors());
    let adapter = adapter.into_iter().flatten().map(|(name, t)| (name, t.bytes().to_vec()));
    weight_bytes(model).into_iter().chain(adapter).collect()
}

/// Three batches are played over two updates, so that the last two lag, and are learnt; then the same from the record.
fn replays(name: &str, compute: Compute, document: Value) {
    let folder = tempfile::tempdir().unwrap();
    let d = distiller(Kind::Dense, compute, document.clone());
    record(&d, folder.path());
    play_rewarded(&d, 0, 8);
    let mut wanted = updates(&d, 1);
    let mut played = play_rewarded(&d, 8, 8);
    played.extend(play_rewarded(&d, 16, 8));
    wanted.extend(updates(&d, 2));
    assert!(wanted.iter().all(|(gradients, ..)| gradients.iter().any(|(_, g)| g.iter().any(|&b| b != 0))), "{name}");

    let record = read(folder.path());
    assert_eq!((record.episodes.len(), record.superseded, record.cut), (24, 0, None), "{name}");
    let again = distiller(Kind::Dense, compute, document);
    let config = again.config();
    for (recorded, played) in record.episodes[8..].iter().zip(&played) {
        let back = recorded.played.trajectory(recorded.rows, |actor, step| config.loss_at(actor, step)).unwrap();
        assert_eq!(all_of(&back), all_of(played), "{name}");
    }
    let imported = again.import(&record, 0).unwrap();
    assert_eq!((imported.episodes, imported.known, imported.other_settings), (24, 0, 0), "{name}");
    let found = updates(&again, 3);
    for (step, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
        assert!(found.2.to_bits() == wanted.2.to_bits(), "{name}: loss of step {step}: {} and {}", found.2, wanted.2);
        assert!(found.0 == wanted.0, "{name}: gradients of step {step}");
        assert!(found.1 == wanted.1, "{name}: weights after step {step}");
    }
}

#[test]
fn every_presets_updates_from_the_record_are_the_updates() {
    for preset in PRESETS {
        replays(preset.name, Compute::F32, super::preset(preset.name));
    }
}

#[test]
fn an_adapters_and_bf16s_updates_from_the_record_are_the_updates() {
    let mut document = super::preset("guided-opd");
    replays("bf16", Compute::Bf16, document.clone());
    document["lora"] = json!({"rank": 4, "alpha": 8});
    replays("lora", Compute::F32, document);
}

#[test]
fn what_the_hosts_teacher_said_is_learnt_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let (student, model) = pair(Kind::Dense, Compute::F32);
    let q = queue(json!({"top_k": 8}));
    let document = json!({"preset": "opd", "seed": 5, "batch_episodes": 4, "optimizer": {"learning_rate": 1e-2}});
    let d = Distiller::taught(&student, Some(Teacher::Queue(q.clone())), settings(document.clone())).unwrap();
    record(&d, folder.path());
    play_rewarded(&d, 0, 4);
    answer_all(&q, &model);
    let wanted = updates(&d, 1);

    // Nobody answers: all that is needed was written down.
    let closed = queue(json!({"top_k": 8}));
    closed.close();
    let (student, _) = pair(Kind::Dense, Compute::F32);
    let again = Distiller::taught(&student, Some(Teacher::Queue(closed)), settings(document.clone())).unwrap();
    let imported = again.import(&read(folder.path()), 0).unwrap();
    assert_eq!(imported, Imported { episodes: 4, ..Default::default() });
    assert!(updates(&again, 1) == wanted);

    // One that is asked for other likely ids is asked anew, and a teacher that is a model speaks for itself.
    let other = queue(json!({"top_k": 4}));
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    let again = Distiller::taught(&student, Some(Teacher::Queue(other.clone())), settings(document.clone())).unwrap();
    assert_eq!(again.import(&read(folder.path()), 0).unwrap().unscored, 4);
    let answering = std::thread::spawn({
        let (other, model) = (other.clone(), model.clone());
        move || (0..200).map(|_| answer_all(&other, &model)).take_while(|_| !other.is_closed()).sum::<usize>()
    });
    assert!(updates(&again, 1) != wanted);
    other.close();
    assert_eq!(answering.join().unwrap(), 4);
    let again = Distiller::new(&student, Some(&teacher), settings(document)).unwrap();
    assert_eq!(again.import(&read(folder.path()), 0).unwrap().unscored, 4);
    build(&again);
}

#[test]
fn what_a_model_says_is_written_with_the_update_that_computes_it() {
    let folder = tempfile::tempdir().unwrap();
    let (student, model) = pair(Kind::Dense, Compute::F32);
    let document = json!({
        "preset": "guided-opd", "actor": {"kind": "bernoulli", "beta": 0.4}, "seed": 5, "batch_episodes": 3,
        "teacher_turns": {"kernel": "cross-entropy"},
    });
    let d = Distiller::new(&student, Some(&model), settings(document)).unwrap();
    record(&d, folder.path());
    play_rewarded(&d, 0, 3);
    let of_teacher = |folder: &Path| lines(folder, "record.jsonl").iter().filter(|l| l["kind"] == "teacher").count();
    assert_eq!(of_teacher(folder.path()), 0);
    // An update that nobody takes is built again; what was said is written once.
    drop(build(&d));
    assert_eq!(of_teacher(folder.path()), 3);
    let mut places = 0;
    for episode in &read(folder.path()).episodes {
        let said = episode.said.as_ref().unwrap();
        assert_eq!((said.by.as_str(), said.top_k, said.top_ids.len()), ("model", 0, 0));
        let asked = episode.played.turns.iter().filter(|turn| turn.train && turn.kernel == "reverse-kl");
        assert_eq!(said.positions, asked.flat_map(|turn| turn.start..turn.end).collect::<Vec<_>>());
        let logits = logits(&model, &episode.played.ids).0;
        for (&at, &found) in said.positions.iter().zip(&said.logprobs) {
            let q = softmax(&logits[(at - 1) * VOCABULARY..at * VOCABULARY]);
            let wanted = q[episode.played.ids[at] as usize].ln();
            assert!((f64::from(found) - wanted).abs() < 1e-4, "token {at}: {found} and {wanted}");
            places += 1;
        }
    }
    assert!(places > 10, "{places}");
}

#[test]
fn privileged_views_and_forks_come_back_with_their_bits() {
    let folder = tempfile::tempdir().unwrap();
    let document = json!({"preset": "opd", "seed": 5, "batch_episodes": 3, "optimizer": {"learning_rate": 1e-2}});
    let d = plain(document.clone());
    record(&d, folder.path());
    let act = |episode: &squire::distill::Episode| {
        episode.decide().unwrap();
        episode.act(&options()).unwrap().collect().unwrap();
        episode.outcome(None, true).unwrap();
    };
    let shown = |episode: &squire::distill::Episode, turn: u64| {
        let own = observation(3, turn, &[]);
        let theirs: Vec<i32> = (10..14).chain(own.iter().copied()).collect();
        episode.observe_ids_as(&own, &theirs).unwrap();
    };
    let parent = d.begin(numbered(0)).unwrap();
    shown(&parent, 0);
    act(&parent);
    shown(&parent, 1);
    act(&parent);
    let of = |episode, train_prefix| ForkOptions {
        episode: Some(episode),
        turn: Some(1),
        train_prefix,
        ..Default::default()
    };
    let forks = [parent.fork(of(1, true)).unwrap(), parent.fork(of(2, false)).unwrap()];
    forks.iter().for_each(act);
    for (episode, score) in [(&parent, 1.0), (&forks[0], 0.0), (&forks[1], 0.5)] {
        episode.end(score, None).unwrap();
    }
    let wanted = updates(&d, 1);

    let record = read(folder.path());
    assert!(record.episodes.iter().all(|e| !e.played.views.is_empty()));
    assert_eq!(record.episodes[1].played.forked_from.map(|f| (f.episode, f.turn)), Some((0, 1)));
    let again = plain(document);
    again.import(&record, 0).unwrap();
    assert!(updates(&again, 1) == wanted);
}

#[test]
fn nothing_counts_twice() {
    let folder = tempfile::tempdir().unwrap();
    let document = json!({"preset": "opd", "seed": 5, "batch_episodes": 2, "steps": 9});
    let d = plain(document.clone());
    record(&d, folder.path());
    play_rewarded(&d, 0, 5);
    let evaluation = EpisodeSpec { evaluation: true, ..Default::default() };
    Seat::new(&d, evaluation).play(1);

    // The file twice is the file once.
    let file = folder.path().join("record.jsonl");
    let once = std::fs::read(&file).unwrap();
    let twice = folder.path().join("twice.jsonl");
    std::fs::write(&twice, [&once[..], &once[..]].concat()).unwrap();
    let record = read(&twice);
    assert_eq!((record.episodes.len(), record.superseded), (6, 6));

    let again = plain(document.clone());
    let first = again.import(&record, 2).unwrap();
    assert_eq!(first, Imported { episodes: 2, evaluations: 1, left: 3, unscored: 2, ..Default::default() });
    let second = again.import(&record, 0).unwrap();
    assert_eq!(second, Imported { episodes: 3, evaluations: 1, known: 2, unscored: 3, ..Default::default() });
    assert_eq!((again.import(&record, 0).unwrap().episodes, again.n_waiting()), (0, 5));

    // Nor after a checkpoint: what was learnt before is known.
    let checkpoints = tempfile::tempdir().unwrap();
    let d = plain(document.clone());
    d.import(&record, 2).unwrap();
    updates(&d, 1);
    d.save(checkpoints.path()).unwrap();
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    let resumed = Distiller::resume(&student, Some(&teacher), settings(document.clone()), checkpoints.path()).unwrap();
    let rest = resumed.import(&record, 0).unwrap();
    assert_eq!((rest.episodes, rest.known), (3, 2));

    // A run knows its own by their numbers: those that no update has had wait again.
    let d = plain(document.clone());
    let folder = tempfile::tempdir().unwrap();
    super::record(&d, folder.path());
    play_rewarded(&d, 0, 2);
    updates(&d, 1);
    d.save(checkpoints.path().join("own").as_path()).unwrap();
    play_rewarded(&d, 2, 2);
    let wanted = updates(&d, 1);
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    drop(d);
    let own = checkpoints.path().join("own");
    let resumed = Distiller::resume(&student, Some(&teacher), settings(document), &own).unwrap();
    super::record(&resumed, folder.path());
    let rest = resumed.import(&read(folder.path()), 0).unwrap();
    assert_eq!((rest.episodes, rest.known), (2, 2));
    assert!(updates(&resumed, 1) == wanted, "the run goes on with what was played before it was killed");
    assert_eq!(play_rewarded(&resumed, 4, 1)[0].heading.episode, 4);
}

#[test]
fn what_was_open_at_a_checkpoint_and_ended_after_it_waits_again() {
    let document = json!({"preset": "opd", "seed": 5, "batch_episodes": 2, "steps": 9, "max_staleness": 4});
    let (folder, checkpoints) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let d = plain(document.clone());
    record(&d, folder.path());
    play_rewarded(&d, 0, 2);
    let [ended, forked, given_up] = [2, 3, 4].map(|n| Seat::new(&d, numbered(n)));
    updates(&d, 1);
    d.save(checkpoints.path()).unwrap();
    let number = |n| ForkOptions { episode: Some(n), ..Default::default() };
    let fork = forked.episode.fork(number(9)).unwrap();
    d.save(checkpoints.path()).unwrap();
    fork.end(0.5, None).unwrap();
    ended.play(2);
    drop(given_up);
    drop((forked, d));

    let resume = || {
        let (student, teacher) = pair(Kind::Dense, Compute::F32);
        Distiller::resume(&student, Some(&teacher), settings(document.clone()), checkpoints.path()).unwrap()
    };
    // Whoever saves before it imports loses none of them.
    let d = resume();
    d.save(checkpoints.path()).unwrap();
    drop(d);
    let d = resume();
    let record = read(folder.path());
    let imported = d.import(&record, 0).unwrap();
    assert_eq!((imported.episodes, imported.known), (2, 2), "the fork too, which has no turns");
    assert_eq!(d.import(&record, 0).unwrap().known, 4);
    updates(&d, 1);
    d.save(checkpoints.path()).unwrap();
    assert_eq!(resume().import(&record, 0).unwrap(), Imported { known: 4, ..Default::default() });
}

#[test]
fn evaluations_and_updates_that_nobody_applied_lose_no_episode() {
    let document = json!({"preset": "opd", "seed": 5, "batch_episodes": 2, "steps": 9, "max_staleness": 4});
    let (folder, checkpoints) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let resume = || {
        let (student, teacher) = pair(Kind::Dense, Compute::F32);
        Distiller::resume(&student, Some(&teacher), settings(document.clone()), checkpoints.path()).unwrap()
    };
    let d = plain(document.clone());
    record(&d, folder.path());
    let open = Seat::new(&d, numbered(0));
    // An evaluation has the same number, and is another episode.
    let evaluation = EpisodeSpec { evaluation: true, ..Default::default() };
    Seat::new(&d, evaluation).play(1);
    d.save(checkpoints.path()).unwrap();
    open.play(1);
    drop(d);
    let d = resume();
    let imported = d.import(&read(folder.path()), 0).unwrap();
    assert_eq!((imported.episodes, imported.known), (1, 0));
    // What an update was built from is learnt when it is applied.
    record(&d, folder.path());
    Seat::new(&d, numbered(1)).play(1);
    let update = build(&d);
    d.save(checkpoints.path()).unwrap();
    drop((update, d));
    let d = resume();
    let imported = d.import(&read(folder.path()), 0).unwrap();
    assert_eq!((imported.episodes, imported.known), (2, 0));
    super::update(&d);
    d.save(checkpoints.path()).unwrap();
    assert_eq!(resume().import(&read(folder.path()), 0).unwrap().known, 2);
}

#[test]
fn one_that_is_played_again_under_its_number_counts_alone() {
    let document = json!({"preset": "opd", "seed": 5, "batch_episodes": 1, "steps": 9});
    let (folder, checkpoints) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let d = plain(document.clone());
    record(&d, folder.path());
    let open = Seat::new(&d, numbered(0));
    d.save(checkpoints.path()).unwrap();
    open.play(1);
    drop(d);
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    let d = Distiller::resume(&student, Some(&teacher), settings(document), checkpoints.path()).unwrap();
    let again = Seat::new(&d, numbered(0));
    assert_eq!(d.import(&read(folder.path()), 0).unwrap(), Imported { known: 1, ..Default::default() });
    again.play(1);
    assert_eq!(d.n_waiting(), 1);
}

#[test]
fn a_record_is_learnt_by_another_method_than_it_was_played_under() {
    let folder = tempfile::tempdir().unwrap();
    let d = plain(super::preset("sft"));
    record(&d, folder.path());
    play_rewarded(&d, 0, 8);
    let again = plain(json!({"preset": "opd", "replay_turns": {"kernel": "forward-kl"}, "batch_episodes": 8}));
    let imported = again.import(&read(folder.path()), 0).unwrap();
    assert_eq!((imported.episodes, imported.other_settings), (8, 8));
    assert!(build(&again).report().forward_kl.is_some());
}

#[test]
fn a_record_of_another_vocabulary_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let d = plain(super::preset("opd"));
    record(&d, folder.path());
    play_rewarded(&d, 0, 1);
    let path = folder.path().join("record.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let other = |from: &str, to: &str| {
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let e = plain(super::preset("opd")).import(&read(folder.path()), 0).unwrap_err();
        assert_eq!(e.fault(), Fault::RecordMismatch);
        e.message().to_string()
    };
    let said = other("\"rows\":64", "\"rows\":65");
    assert!(said.ends_with("wanted no tokenizer and 64 ids, found no tokenizer and 65 ids"), "{said}");
    let said = other("\"vocabulary\":null", "\"vocabulary\":\"0123456789abcdef\"");
    assert!(said.ends_with("wanted no tokenizer and 64 ids, found the fingerprint 0123456789abcdef"), "{said}");
}

#[test]
fn a_record_that_begins_after_an_episode_ended_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (student, model) = pair(Kind::Dense, Compute::F32);
    let q = queue(json!({"top_k": 8}));
    let document = json!({"preset": "opd", "seed": 5, "batch_episodes": 4, "optimizer": {"learning_rate": 1e-2}});
    let d = Distiller::taught(&student, Some(Teacher::Queue(q.clone())), settings(document)).unwrap();
    play_rewarded(&d, 0, 2);
    record(&d, folder.path());
    play_rewarded(&d, 2, 2);
    answer_all(&q, &model);
    build(&d);
    let record = read(folder.path());
    assert_eq!((record.episodes.len(), record.unattached), (2, 2));
    assert!(record.episodes.iter().all(|e| e.said.is_some()));
}

#[test]
fn hosts_that_number_alike_in_every_update_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let document = json!({"preset": "opd", "seed": 5, "batch_episodes": 2, "optimizer": {"learning_rate": 1e-2}});
    let d = plain(document.clone());
    record(&d, folder.path());
    let mut wanted = Vec::new();
    for _ in 0..3 {
        (0..2).for_each(|number| drop(Seat::new(&d, numbered(number)).play(2)));
        wanted.extend(updates(&d, 1));
    }
    let record = read(folder.path());
    assert_eq!((record.episodes.len(), record.superseded), (6, 0));
    let again = plain(document);
    let mut found = Vec::new();
    for _ in 0..3 {
        assert_eq!(again.import(&record, 2).unwrap().episodes, 2);
        found.extend(updates(&again, 1));
    }
    assert!(found == wanted);
    assert_eq!(again.import(&record, 0).unwrap(), Imported { known: 6, ..Default::default() });
}

#[test]
fn the_students_mass_in_the_teachers_top_ids_is_what_the_record_comes_to() {
    let folder = tempfile::tempdir().unwrap();
    let (student, model) = pair(Kind::Dense, Compute::F32);
    let q = queue(json!({"top_k": 3}));
    let document = json!({"preset": "opd", "seed": 5, "batch_episodes": 3});
    let d = Distiller::taught(&student, Some(Teacher::Queue(q.clone())), settings(document)).unwrap();
    record(&d, folder.path());
    play_rewarded(&d, 0, 3);
    answer_all(&q, &model);
    let found = build(&d).report().quantities.teacher_mass.unwrap();
    let (mut sum, mut n) = (0.0, 0.0);
    for episode in &read(folder.path()).episodes {
        let (logits, said) = (logits(&student, &episode.played.ids).0, episode.said.as_ref().unwrap());
        for (at, top) in said.positions.iter().zip(said.top_ids.chunks(3)) {
            let p = softmax(&logits[(at - 1) * VOCABULARY..at * VOCABULARY]);
            sum += top.iter().map(|&id| p[id as usize]).sum::<f64>();
            n += 1.0;
        }
    }
    assert!(n > 10.0 && (found - sum / n).abs() < 1e-5 && found < 0.9, "{found} and {} of {n}", sum / n);
}

#[test]
fn an_imported_episode_is_compared_with_no_revision_of_the_same_number() {
    // Of a run that was killed after a revision that no checkpoint has: under its number the resumed run serves other weights.
    let folder = tempfile::tempdir().unwrap();
    let d = plain(json!({"preset": "opd", "seed": 5, "batch_episodes": 2}));
    record(&d, folder.path());
    play_rewarded(&d, 0, 2);
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    student.restore(wide(&student, 77), 1);
    let other = Distiller::new(&student, Some(&teacher), d.config().clone()).unwrap();
    other.import(&read(folder.path()), 0).unwrap();
    let update = build(&other);
    assert_eq!((update.report().compared, update.report().differing), (0, 0));
    assert!(build(&d).report().compared > 0);
}
