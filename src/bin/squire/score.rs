//! `squire score`: the log-prob of each given token after the first, given all before it.
#![forbid(unsafe_code)]

use serde_json::json;
use squire::serve::Cancel;
use squire::text::source::Source;

use crate::options::{EngineArgs, ModelArgs};
use crate::output::{Failure, Output};
use crate::waiting::Waiting;

/// Score token ids: one log-prob, in nats, for each id after the first
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The ids, two or more, with commas between them
    #[arg(long, value_name = "IDS", required = true, value_delimiter = ',', allow_hyphen_values = true)]
    ids: Vec<i32>,
    /// Also give the K likeliest tokens at each position
    #[arg(long, value_name = "K", default_value_t = 0, allow_negative_numbers = true)]
    top_k: usize,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut Output) -> Result<(), Failure> {
    let [first, rest @ ..] = args.ids.as_slice() else {
        return Err(Failure::Usage("--ids: wanted two or more ids, found none".into()));
    };
    if rest.is_empty() {
        return Err(Failure::Usage("--ids: wanted two or more ids, found 1; the first one has no log-prob".into()));
    }
    let waiting = Waiting::begin("scoring");
    let (_, session) = args.model.load(&args.engine)?;
    session.append(&[*first], Source::Host)?;
    let rows = session.score(rest, args.top_k, &Cancel::default())?;
    drop(waiting);
    let sum: f64 = rows.iter().map(|r| f64::from(r.logprob)).sum();
    if args.json {
        let mut report = json!({
            "ids": args.ids,
            "logprobs": rows.iter().map(|r| r.logprob).collect::<Vec<_>>(),
            "sum": sum,
            "compute": args.engine.compute.name(),
        });
        if args.top_k > 0 {
            let top = |list: &[(i32, f32)]| list.iter().map(|(id, p)| json!({"id": id, "logprob": p})).collect();
            report["top"] = rows.iter().map(|r| top(&r.top)).collect::<Vec<serde_json::Value>>().into();
        }
        return out.json(&report);
    }
    let mut table =
        vec![["position", "id", "log-prob", if args.top_k > 0 { "likeliest" } else { "" }].map(String::from).to_vec()];
    for (i, (id, row)) in rest.iter().zip(&rows).enumerate() {
        let top: Vec<String> = row.top.iter().map(|(id, p)| format!("{id} {p:.4}")).collect();
        table.push(vec![(i + 1).to_string(), id.to_string(), format!("{:.6}", row.logprob), top.join(", ")]);
    }
    out.table(&table)?;
    out.text(&format!("  sum of {} log-probs: {sum:.6} nats\n", rows.len()))
}
