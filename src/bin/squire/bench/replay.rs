//! An agent's transcript that grows: each turn observes some tokens and generates some, and what came before stays computed. The
//! time to the first token is that from the observation to the first token that is sampled behind it, medians over the repeats
//! after an untimed one. It is to grow with what is new, and only by attention with what stands before: hence the ratio of the
//! last turn to the second, the first being where everything is new.
#![forbid(unsafe_code)]

use std::time::Instant;

use serde_json::json;
use squire::random::{Stream, below};
use squire::serve::{GenerationOptions, Next, ServedModel, Session};
use squire::text::source::Source;

use super::bed::Bed;
use super::{Args, median};
use crate::output::{Failure, Output};
use crate::waiting::Waiting;

/// Seconds to the first token of each turn.
fn times(args: &Args, model: &ServedModel, repeat: u32) -> Result<Vec<f64>, Failure> {
    let (session, vocab) = (Session::new(model)?, model.config().vocab_size as u64);
    let mut times = Vec::new();
    for turn in 0..args.turns {
        // Other ids each time: what another session has computed would be found.
        let id = |i| below(Stream::World, &[repeat.into(), turn.into(), i], vocab) as i32;
        let ids: Vec<i32> = (0..u64::from(args.observed)).map(id).collect();
        let max_tokens = args.generated as usize;
        let options = GenerationOptions { max_tokens, ignore_model_stops: true, ..GenerationOptions::default() };
        let begun = Instant::now();
        session.append(&ids, Source::Host)?;
        let generation = session.generate(options)?;
        while matches!(generation.next(None)?, Next::Timeout) {}
        times.push(begun.elapsed().as_secs_f64());
        generation.collect()?;
    }
    Ok(times)
}

pub(super) fn run(args: &Args, out: &mut Output) -> Result<(), Failure> {
    let of_turn = (args.observed + args.generated) as usize;
    let bed = Bed::make(&args.shape, &args.engine, args.turns as usize * of_turn + 1)?;
    let model = bed.model()?;
    let waiting = Waiting::begin("replaying");
    times(args, &model, 0)?;
    let all = (1..=args.repeats).map(|repeat| times(args, &model, repeat)).collect::<Result<Vec<_>, _>>()?;
    drop(waiting);
    let samples = |turn: usize| all.iter().map(|times| times[turn]).collect::<Vec<f64>>();
    let medians: Vec<f64> = (0..args.turns as usize).map(|turn| median(&samples(turn))).collect();
    let ratio = medians[medians.len() - 1] / medians[1];
    if args.json {
        let turn = |(i, &time): (usize, &f64)| {
            json!({
                "turn": i + 1, "tokens_before": i * of_turn, "seconds_to_first_token": time, "samples": samples(i),
            })
        };
        let turns: Vec<_> = medians.iter().enumerate().map(turn).collect();
        let mut facts = bed.facts(&model);
        facts.insert("observed_tokens".into(), args.observed.into());
        facts.insert("generated_tokens".into(), args.generated.into());
        facts.insert("turns".into(), turns.into());
        facts.insert("last_to_second".into(), ratio.into());
        return out.json(&facts.into());
    }
    let mut table = vec![["turn", "tokens before", "to first token"].map(String::from).to_vec()];
    let row = |(i, time): (usize, &f64)| {
        vec![(i + 1).to_string(), (i * of_turn).to_string(), format!("{:.2} ms", 1e3 * time)]
    };
    table.extend(medians.iter().enumerate().map(row));
    let compute = bed.engine.options().compute.name();
    let (name, n_threads, kernels) = (args.shape.0, bed.n_threads, bed.kernels);
    out.text(&format!("replay of {name}, {n_threads} threads, {kernels}, compute {compute}\n"))?;
    out.table(&table)?;
    out.text(&format!("  turn {} takes {ratio:.2} times what turn 2 does (medians of {})\n", args.turns, args.repeats))
}
