//! The program `squire` as a user meets it: results against golden values, and refusals with their exit codes.
#![cfg(feature = "cli")]

#[path = "support/program.rs"]
mod program;
#[path = "support/tiny_tokenizer.rs"]
mod tiny_tokenizer;

use std::process::{Command, Stdio};

use program::*;
use serde_json::{Value, json};
use squire::backend::KernelSet;

#[test]
fn inspect_shows_tensors_and_plan_as_json_and_as_text() {
    let dir = golden("moe_f32");
    let facts = json_of(&["inspect", text(&dir), "--json"]);
    let groups = facts["tensors"].as_array().unwrap();
    let experts = groups.iter().find(|g| g["name"] == "model.layers.*.mlp.experts.*.down_proj.weight").unwrap();
    let wanted =
        json!({"name": experts["name"], "tensors": 8, "dtype": "f32", "shape": [40, 24], "bytes": 8 * 40 * 24 * 4});
    assert_eq!(*experts, wanted);
    let bytes: u64 = groups.iter().map(|g| g["bytes"].as_u64().unwrap()).sum();
    assert_eq!(facts["plan"]["weight_bytes"], bytes);
    assert_eq!(facts["plan"]["parameters"], golden_json("moe_f32.json")["parameters"]);
    assert_eq!((&facts["tokenizer"], &facts["chat_templates"]), (&Value::Null, &json!({})));
    assert_eq!(facts["config"]["num_experts"], 8);

    let shown = squire(&["inspect", text(&dir)]);
    assert_eq!(shown.code, 0);
    for part in ["experts.*.down_proj", "8, 2 a token", "KV cache of a token"] {
        assert!(shown.out.contains(part), "{part}: {}", shown.out);
    }
}

#[test]
fn inspect_tells_the_warnings_and_counts_what_is_used() {
    let (_parent, dir) = chat_folder();
    let plan = json_of(&["inspect", text(&dir), "--json"]);
    assert_eq!(plan["warnings"], json!([]));
    // No configuration names a stop id here; the template closes turns by one all the same.
    let template = "the chat template's end of turn";
    assert_eq!(plan["stop_ids"], json!([266]));
    assert_eq!(plan["stop_ids_from"], json!([{"id": 266, "token": "<|im_end|>", "from": [template]}]));
    assert!(squire(&["inspect", text(&dir)]).out.contains(&format!("266 ({template})")));
    assert!(!squire(&["inspect", text(&dir)]).out.contains("warnings"));
    // The head that a tied folder stores as well is not counted, advice that nobody takes is told.
    let file = dir.join("model.safetensors");
    let stored: Vec<_> = squire::format::safetensors::read(&file).unwrap();
    let head = stored.iter().find(|(name, _)| name == "model.embed_tokens.weight").unwrap().1.clone();
    let all = stored.into_iter().chain([("lm_head.weight".to_string(), head)]).collect::<Vec<_>>();
    let list = all.iter().map(|(name, t)| (name.as_str(), t.dtype, t.shape, t.bytes.as_slice()));
    squire::format::safetensors::write(&file, list).unwrap();
    std::fs::write(dir.join("generation_config.json"), r#"{"top_k": -1, "temperature": 0.5}"#).unwrap();
    let facts = json_of(&["inspect", text(&dir), "--json"]);
    for key in ["parameters", "weight_bytes"] {
        assert_eq!(facts["plan"][key], plan["plan"][key], "{key}");
    }
    assert_eq!(facts["tensors"], plan["tensors"]);
    assert_eq!((facts["warnings"].as_array().unwrap().len(), &facts["plan"]["warnings"]), (1, &facts["warnings"]));
    let shown = squire(&["inspect", text(&dir)]);
    assert!(shown.code == 0 && shown.out.contains("warnings") && shown.out.contains("top_k"), "{}", shown.out);
}

#[test]
fn inspect_finds_tokenizer_and_template() {
    let (_parent, dir) = chat_folder();
    let facts = json_of(&["inspect", text(&dir), "--json"]);
    assert_eq!(facts["tokenizer"]["ids"], 273);
    assert!(facts["chat_templates"]["default"]["bytes"].as_u64().unwrap() > 1000);
    assert_eq!(facts["stop_ids"], json!([266]), "nothing names one, but the template ends turns with it");
    let from = json!([{"id": 266, "token": "<|im_end|>", "from": ["the chat template's end of turn"]}]);
    assert_eq!(facts["stop_ids_from"], from);
    let shown = squire(&["inspect", text(&dir)]).out;
    assert!(shown.contains("266 (the chat template's end of turn)"), "{shown}");
}

#[test]
fn score_gives_the_golden_log_probs() {
    let batch = golden_json("batch.json");
    let ids: Vec<i64> = batch["ids"][0].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
    let list = ids.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
    for (model, tolerance) in [("dense_f32", 1e-4), ("dense_f16", 1e-4), ("moe_f32", 1e-4)] {
        let facts =
            json_of(&["score", text(&golden(model)), "--ids", &list, "--compute", "f32", "--top-k", "3", "--json"]);
        let logprobs = facts["logprobs"].as_array().unwrap();
        assert_eq!(logprobs.len(), ids.len() - 1);
        let file = std::fs::read(golden(&format!("{model}.logits.safetensors"))).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
        let logits = tensors.tensor("logits_f32").unwrap();
        let v = logits.shape()[1];
        let bytes = logits.data();
        let positions = batch["logit_positions"][0].as_array().unwrap();
        let mut compared = 0;
        for (row, p) in positions.iter().map(|p| p.as_u64().unwrap() as usize).enumerate() {
            let Some(&next) = ids.get(p + 1) else { continue };
            let at = |i: usize| {
                let word = &bytes[4 * (row * v + i)..][..4];
                f64::from(f32::from_le_bytes(word.try_into().unwrap()))
            };
            let lse = (0..v).map(|i| at(i).exp()).sum::<f64>().ln();
            let (wanted, got) = (at(next as usize) - lse, logprobs[p].as_f64().unwrap());
            assert!((got - wanted).abs() < tolerance, "{model} {p}: {got} and not {wanted}");
            let best = (0..v).max_by(|&a, &b| at(a).total_cmp(&at(b))).unwrap();
            assert_eq!(facts["top"][p][0]["id"], best, "{model} {p}");
            compared += 1;
        }
        assert!(compared > 3);
    }
}

#[test]
fn an_adapter_is_put_on_the_model_that_is_named() {
    let (model, lora) = (golden("dense_f32"), golden("../lora"));
    let score = |adapter: Option<&str>| {
        let mut args = vec!["score", text(&model), "--ids", "5,6,7", "--compute", "f32", "--json"];
        let folder = adapter.map(|name| lora.join(name));
        args.extend(folder.iter().flat_map(|folder| ["--adapter", text(folder)]));
        json_of(&args)["logprobs"].clone()
    };
    let found = [score(None), score(Some("dense_seven")), score(Some("dense_rslora"))];
    assert!(found.iter().all(|x| x.as_array().is_some_and(|x| x.len() == 2)), "{found:?}");
    assert!(found[0] != found[1] && found[0] != found[2] && found[1] != found[2], "{found:?}");
    let foreign = lora.join("moe_attention");
    refused(&["score", text(&model), "--ids", "5,6", "--adapter", text(&foreign)], 1, "lora_A.weight: wanted");
    refused(&["score", text(&model), "--ids", "5,6", "--adapter", text(&model)], 1, "adapter_config.json");
}

#[test]
fn a_log_prob_does_not_depend_on_what_follows_or_on_threads_and_kernels() {
    let dir = golden("dense_bf16");
    let long = json_of(&["score", text(&dir), "--ids", "5,6,7,8", "--json"]);
    let short = json_of(&["score", text(&dir), "--ids", "5,6,7", "--threads", "1", "--kernels", "scalar", "--json"]);
    assert_eq!(long["logprobs"].as_array().unwrap()[..2], short["logprobs"].as_array().unwrap()[..]);
}

#[test]
fn generate_answers_through_the_template_or_continues_raw_text() {
    let (_parent, dir) = chat_folder();
    let dir = text(&dir);
    let args = ["generate", dir, "hello", "--max-tokens", "7", "--temperature", "0", "--json"];
    let answer = json_of(&args);
    assert_eq!(answer["ids"].as_array().unwrap().len(), 7);
    assert_eq!(answer["finish"], "length");
    assert_eq!(answer["chat_template"], true);
    assert_eq!(answer["prompt_ids"][0], 265, "the template begins with <|im_start|>");
    let bits = |v: &Value| (v["ids"].clone(), v["logprobs"].clone(), v["text"].clone());
    assert_eq!(
        bits(&answer),
        bits(&json_of(&[&args[..], &["--threads", "1"]].concat())),
        "the same on any thread count"
    );

    let raw = json_of(&["generate", dir, "hello", "--raw", "--max-tokens", "7", "--seed", "3", "--json"]);
    assert_eq!((&raw["chat_template"], &raw["prompt_ids"]), (&json!(false), &json!([259])));
    let sampling = json!({"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 3, "min_p": 0.0, "typical_p": 1.0,
        "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "no_repeat_ngram_size": 0,
        "logit_bias": [], "stop_strings": []});
    assert_eq!(raw["sampling"], sampling);
    assert_eq!((&raw["stop"], &raw["top_logprobs"]), (&Value::Null, &Value::Null));

    let streamed = squire(&["generate", dir, "hello", "--raw", "--max-tokens", "7", "--seed", "3"]);
    assert_eq!((streamed.code, streamed.err.as_str()), (0, ""));
    let wanted = raw["text"].as_str().unwrap();
    assert_eq!(streamed.out.strip_suffix('\n').unwrap(), wanted.strip_suffix('\n').unwrap_or(wanted));
}

#[test]
fn generate_ends_before_a_stop_string_and_tells_the_likeliest_beside_each_token() {
    let (_parent, dir) = chat_folder();
    let dir = text(&dir);
    let args = ["generate", dir, "hello", "--raw", "--temperature", "0", "--max-tokens", "20", "--json"];
    let whole = json_of(&[&args[..], &["--top-logprobs", "3"]].concat());
    for (i, top) in whole["top_logprobs"].as_array().unwrap().iter().enumerate() {
        assert_eq!((top.as_array().unwrap().len(), &top[0]["id"]), (3, &whole["ids"][i]));
        assert_eq!(top[0]["logprob"], whole["logprobs"][i]);
    }
    let said = whole["text"].as_str().unwrap();
    let stop: String = said.chars().skip(3).take(2).collect();
    let ended = json_of(&[&args[..], &["--stop", "never said", "--stop", &stop]].concat());
    let begins = said.find(&stop).unwrap();
    assert_eq!((ended["text"].as_str().unwrap(), &ended["finish"]), (&said[..begins], &json!("stop")));
    assert_eq!(ended["stop"]["byte"], begins);
    assert_eq!((&ended["stop"]["string"], &ended["stop"]["index"]), (&json!(stop), &json!(1)));
    // Without repetitions it says each token once.
    let once = json_of(
        &[&args[..], &["--no-repeat-ngram-size", "1", "--logit-bias", "104=100", "--logit-bias", "5=-1"]].concat(),
    );
    let mut ids: Vec<i64> = once["ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
    assert_eq!(ids[0], 104);
    let n = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), n);
    refused(&["generate", dir, "hello", "--top-logprobs", "3"], 2, "--json");
}

#[test]
fn generate_continues_a_prompt_several_times_each_as_its_seed_says() {
    let (_parent, dir) = chat_folder();
    let dir = text(&dir);
    let args = ["generate", dir, "hello", "--raw", "--max-tokens", "9", "--json"];
    let whole = json_of(&[&args[..], &["--seed", "5", "--n", "3", "--top-logprobs", "2"]].concat());
    let all = whole["continuations"].as_array().unwrap();
    assert_eq!((all.len(), &all[0]["seed"], whole.get("text")), (3, &json!(5), None));
    for one in all {
        let alone = json_of(&[&args[..], &["--top-logprobs", "2", "--seed", &one["seed"].to_string()]].concat());
        for key in ["ids", "logprobs", "text", "finish", "stop", "top_logprobs"] {
            assert_eq!(one[key], alone[key], "{key}");
        }
        assert_eq!((&alone["prompt_ids"], alone.get("seed")), (&whole["prompt_ids"], None));
    }
    assert!(all[0]["ids"] != all[1]["ids"] && all[1]["ids"] != all[2]["ids"]);
    let spoken = squire(&["generate", dir, "hello", "--raw", "--max-tokens", "9", "--seed", "5", "-n", "3"]);
    let line = |text: &Value| {
        let text = text.as_str().unwrap();
        if text.ends_with('\n') { text.to_string() } else { format!("{text}\n") }
    };
    let wanted: Vec<String> =
        all.iter().zip(1..).map(|(one, i)| format!("[{i} of 3]\n{}", line(&one["text"]))).collect();
    assert_eq!((spoken.code, spoken.out), (0, wanted.join("\n")));
    for n in ["0", "513", "x", "-1"] {
        refused(&["generate", dir, "hello", "-n", n], 2, "-n");
    }
}

#[test]
fn generate_ends_by_itself_when_its_time_is_up() {
    let (_parent, dir) = chat_folder();
    let args = ["generate", text(&dir), "hello", "--raw", "--max-tokens", "0", "--time-limit", "1", "--json"];
    let ended = json_of(&args);
    // A machine may be fast enough for a stop before.
    assert!(["time", "stop", "context-full"].contains(&ended["finish"].as_str().unwrap()), "{ended}");
    refused(&["generate", text(&dir), "hello", "--time-limit", "0"], 2, "--time-limit");
}

#[test]
fn a_nan_in_the_weights_is_told_and_never_answered() {
    // Of a broken merge or an overflow: every row of logits becomes NaN, of which argmax and draws would take id 0.
    let (_parent, dir) = chat_folder_with(|weights| {
        let named = weights.tensors().iter().position(|(name, _)| name == "model.layers.1.mlp.down_proj.weight");
        weights.tensors_mut()[named.expect("it has two layers")].f32_mut()[7] = f32::NAN;
    });
    for temperature in ["0", "1"] {
        let sampled = ["generate", text(&dir), "hello", "--max-tokens", "4", "--temperature", temperature];
        refused(&sampled, 1, "not finite");
        refused(&[&sampled[..], &["--json"]].concat(), 1, "not finite");
    }
    refused(&["score", text(&dir), "--ids", "5,6,7"], 1, "not finite");
}

#[test]
fn generate_draws_another_seed_each_run_and_repeats_one_that_is_given() {
    let (_parent, dir) = chat_folder();
    let dir = text(&dir);
    let run = |rest: &[&str]| {
        let answer = json_of(&[&["generate", dir, "hello", "--raw", "--max-tokens", "24", "--json"], rest].concat());
        (answer["sampling"]["seed"].as_u64().expect("the seed is told"), answer["ids"].clone())
    };
    let (first, second) = (run(&[]), run(&[]));
    assert!(first.0 != second.0 && first.1 != second.1);
    assert_eq!(run(&["--seed", &first.0.to_string()]), first);
    assert_eq!(run(&["--seed", "0"]), run(&["--seed", "0"]));
}

#[test]
fn bench_measures_the_tiny_shape() {
    let facts = json_of(&["bench", "--shape", "tiny", "--prefill", "40", "--decode", "9", "--repeats", "2", "--json"]);
    assert_eq!(
        (&facts["shape"], &facts["prefill_tokens"], &facts["decode_tokens"]),
        (&json!("tiny"), &json!(40), &json!(9))
    );
    for rate in ["prefill_tokens_per_s", "decode_tokens_per_s", "read_bandwidth_bytes_per_s", "decode_bandwidth_share"]
    {
        assert!(facts[rate].as_f64().unwrap() > 0.0, "{rate}");
    }
    assert_eq!(facts["prefill_repeats"].as_array().unwrap().len(), 2);
    assert_eq!(facts["prefix_rows"], 0, "no repeat finds what another has computed");
    assert_eq!(facts["weight_bytes"].as_u64().unwrap(), 2 * facts["parameters"].as_u64().unwrap());
    let few = json_of(&["bench", "--shape", "tiny", "--compute", "f32", "--threads", "1", "--repeats", "1", "--json"]);
    assert_eq!((&few["threads"], &few["compute"]), (&json!(1), &json!("f32")));
}

#[test]
fn bench_speaks_in_the_columns_of_llama_bench() {
    let args = ["bench", "--shape", "tiny", "--llama-bench", "--prefill", "40", "--decode", "9", "--repeats", "2"];
    assert!(squire(&["bench", "--help"]).out.contains("[default: 0 4096 16384]"));
    let ran = squire(&[&args[..], &["--depths", "0,7,64"]].concat());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let (table, build) = ran.out.split_once("\n\n").unwrap();
    assert!(build.starts_with("build: squire "), "{build}");
    let cells = |line: &str| -> Vec<String> {
        let inner = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')).unwrap();
        inner.split('|').map(|cell| cell.trim().to_string()).collect()
    };
    let lines: Vec<Vec<String>> = table.lines().map(cells).collect();
    assert_eq!(lines[0], ["model", "size", "params", "backend", "threads", "test", "t/s"]);
    assert!(lines[1].iter().all(|cell| cell.trim_end_matches(':').chars().all(|c| c == '-')), "{table}");
    let tests: Vec<&str> = lines[2..].iter().map(|line| line[5].as_str()).collect();
    assert_eq!(tests, ["pp40", "tg9", "pp40 @ d7", "tg9 @ d7", "pp40 @ d64", "tg9 @ d64"]);
    for line in &lines[2..] {
        assert_eq!((line[0].as_str(), line[3].as_str()), ("tiny BF16", "CPU"));
        let (mean, deviation) = line[6].split_once(" ± ").unwrap();
        assert!(mean.parse::<f64>().unwrap() > 0.0 && deviation.parse::<f64>().unwrap() >= 0.0, "{line:?}");
    }
    let facts = json_of(&[&args[..], &["-d", "7", "--json"]].concat());
    let tests = facts["tests"].as_array().unwrap();
    let of = |test: &Value| ["n_prompt", "n_gen", "n_depth"].map(|key| test[key].as_u64().unwrap());
    assert_eq!(tests.iter().map(of).collect::<Vec<_>>(), [[40, 0, 7], [0, 9, 7]]);
    for test in tests {
        let samples: Vec<f64> = test["samples_ts"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        assert_eq!(samples.len(), 2);
        assert!((test["avg_ts"].as_f64().unwrap() - (samples[0] + samples[1]) / 2.0).abs() < 1e-6 * samples[0]);
    }
    assert_eq!(facts["shape"], "tiny");
}

#[test]
fn bench_replays_a_transcript_that_grows() {
    let args = ["bench", "--shape", "tiny", "--replay", "--turns", "4", "--observed", "30", "--generated", "3"];
    let facts = json_of(&[&args[..], &["--repeats", "3", "--json"]].concat());
    let turns = facts["turns"].as_array().unwrap();
    let before: Vec<u64> = turns.iter().map(|turn| turn["tokens_before"].as_u64().unwrap()).collect();
    assert_eq!(before, [0, 33, 66, 99]);
    assert_eq!(facts["prefix_rows"], 0);
    let time = |turn: &Value| turn["seconds_to_first_token"].as_f64().unwrap();
    assert!(turns.iter().all(|turn| time(turn) > 0.0 && turn["samples"].as_array().unwrap().len() == 3), "{facts}");
    assert_eq!(facts["last_to_second"].as_f64().unwrap(), time(&turns[3]) / time(&turns[1]));
    let shown = squire(&[&args[..], &["--repeats", "1"]].concat());
    assert_eq!((shown.code, shown.err.as_str()), (0, ""));
    let lines: Vec<&str> = shown.out.lines().collect();
    assert!(lines.len() == 7 && lines[5].trim_start().starts_with('4') && lines[5].ends_with(" ms"), "{}", shown.out);
    assert!(lines[6].trim().starts_with("turn 4 takes "), "{}", shown.out);
}

#[test]
fn ways_to_measure_do_not_mix() {
    for (options, named) in [
        (&["--llama-bench", "--replay"][..], "--replay"),
        (&["--depths", "5"], "--llama-bench"),
        (&["--turns", "5"], "--replay"),
        (&["--replay", "--turns", "1"], "--turns"),
        (&["--replay", "--observed", "0"], "--observed"),
        (&["--llama-bench", "-d", "x"], "--depths"),
        (&["--llama-bench", "-d", "50000"], "50512"),
    ] {
        refused(&[&["bench", "--shape", "tiny"], options].concat(), 2, named);
    }
}

#[test]
fn distill_explains_the_schedule_of_guided_distillation() {
    let facts = json_of(&["distill", "--explain", "guided-opd", "--steps", "250", "--json"]);
    assert_eq!((&facts["preset"], &facts["steps"]), (&json!("guided-opd"), &json!(250)));
    let table = &facts["schedules"];
    assert_eq!(table["columns"], json!(["step", "learning_rate", "beta"]));
    assert_eq!(table["rows"].as_array().unwrap().len(), 250);
    for (step, wanted) in [(0, 1.0), (50, 0.854), (100, 0.5), (150, 0.146), (200, 0.0), (249, 0.0)] {
        let beta = table["rows"][step][2].as_f64().unwrap();
        assert!((beta - wanted).abs() < 5e-4, "step {step}: {beta}");
    }
    let knobs = facts["knobs"].as_array().unwrap();
    let actor = knobs.iter().find(|k| k["knob"] == "actor").unwrap();
    assert_eq!(actor["source"], "preset guided-opd");
    let shown = squire(&["distill", "--explain", "guided-opd"]);
    assert!(shown.code == 0 && shown.out.contains("preset guided-opd") && shown.out.contains("beta"));
}

#[test]
fn wrong_calls_exit_with_2() {
    let dir = golden("dense_f32");
    let dir = text(&dir);
    refused(&[], 2, "subcommand");
    refused(&["fly"], 2, "fly");
    refused(&["inspect"], 2, "DIR");
    refused(&["score", dir], 2, "--ids");
    refused(&["score", dir, "--ids", ""], 2, "--ids");
    refused(&["score", dir, "--ids", "5"], 2, "two or more");
    refused(&["score", dir, "--ids", "5,x"], 2, "--ids");
    refused(&["score", dir, "--ids", "5,,6"], 2, "--ids");
    refused(&["score", dir, "--ids", "5,99999999999"], 2, "--ids");
    refused(&["score", dir, "--ids", "5,259"], 2, "outside the vocabulary of 259");
    refused(&["score", dir, "--ids", "-1,5"], 2, "outside the vocabulary of 259");
    refused(&["score", dir, "--ids", "5,6", "--top-k", "260"], 2, "260");
    refused(&["score", dir, "--ids", "5,6", "--compute", "int8"], 2, "f32 and bf16");
    refused(&["score", dir, "--ids", "5,6", "--threads", "99999"], 2, "n_threads");
    refused(&["bench", "--shape", "gpt-7"], 2, "qwen3-0.6b");
    refused(&["bench", "--shape", "tiny", "--prefill", "0"], 2, "--prefill");
    refused(&["bench", "--shape", "tiny", "--decode", "99999999"], 2, "--decode");
    refused(&["bench", "--shape", "tiny", "--kernels", "neon"], 2, "avx512-bf16");
    refused(&["distill"], 2, "--explain");
    refused(&["distill", "--explain", "magic"], 2, "guided-opd");
    refused(&["distill", "--explain", "opd", "--steps", "0"], 2, "--steps");
}

#[test]
fn a_chat_keeps_what_was_said_and_renders_only_what_is_new() {
    let (_parent, dir) = chat_folder();
    let args = ["chat", text(&dir), "--max-tokens", "5", "--temperature", "0", "--system", "Be terse."];
    let json = [&args[..], &["--json"]].concat();
    let ran = squire_with(&json, "hello\nand now\n\nnever read\n");
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let answers: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 2, "an empty line ends it: {}", ran.out);
    let first = json_of(&[
        "generate",
        text(&dir),
        "hello",
        "--system",
        "Be terse.",
        "--max-tokens",
        "5",
        "--temperature",
        "0",
        "--json",
    ]);
    assert_eq!((&answers[0]["ids"], &answers[0]["finish"]), (&first["ids"], &json!("length")));
    assert_eq!(answers[0]["prompt_tokens"], first["prompt_ids"].as_array().unwrap().len());
    // The second prompt is the turn's end, one message and the next turn's beginning: no system message again.
    let wanted = "<|im_end|>\n<|im_start|>user\nand now<|im_end|>\n<|im_start|>assistant\n";
    let tokenizer = squire::text::Tokenizer::from_json(&tiny_tokenizer::tiny_tokenizer_json()).unwrap();
    let wanted = tokenizer.encode(wanted, squire::text::Control::All).len();
    assert_eq!(answers[1]["prompt_tokens"], wanted);
    let plain = squire_with(&args, "hello\n");
    assert_eq!((plain.code, plain.err.as_str()), (0, ""));
    assert_eq!(plain.out, format!("{}\n", answers[0]["text"].as_str().unwrap()));
    let again =
        squire_with(&[&json[..], &["--chat-template-kwargs", r#"{"enable_thinking": false}"#]].concat(), "hello\n");
    let answer: Value = serde_json::from_str(&again.out).unwrap();
    assert!(
        answer["prompt_tokens"].as_u64() > answers[0]["prompt_tokens"].as_u64(),
        "the empty thought is in the prompt"
    );
}

#[test]
fn a_near_miss_is_told_what_was_meant() {
    let (_parent, dir) = chat_folder();
    let dir = text(&dir);
    for (args, meant) in [
        (&["generat", dir, "hi"][..], "generate"),
        (&["inspekt", dir], "inspect"),
        (&["generate", dir, "hi", "--max-token", "5"], "--max-tokens"),
        (&["generate", dir, "hi", "--temprature", "0"], "--temperature"),
    ] {
        refused(args, 2, meant);
    }
}

#[test]
fn negative_numbers_are_values_and_not_options() {
    let (_parent, dir) = chat_folder();
    let dir = text(&dir);
    let run = |rest: &[&str]| {
        let args = [&["generate", dir, "hi", "--raw", "--seed", "1", "--json"][..], rest].concat();
        json_of(&args)["ids"].clone()
    };
    assert_eq!(run(&["--top-k", "-1", "--max-tokens", "9"]), run(&["--top-k", "0", "--max-tokens", "9"]));
    let without_end = run(&["--max-tokens", "-1"]);
    assert_eq!(without_end, run(&["--max-tokens", "0"]));
    for (option, value, named) in [
        ("--top-k", "-2", "0 or -1"),
        ("--max-tokens", "-7", "0 or -1"),
        ("--seed", "-1", "leave it out"),
        ("--temperature", "-1", "temperature"),
        ("--top-p", "-0.5", "top_p"),
        ("--min-p", "-0.5", "min_p"),
        ("--typical-p", "-1", "typical_p"),
        ("--repetition-penalty", "-1", "repetition_penalty"),
        ("--presence-penalty", "-3", "presence_penalty"),
        ("--frequency-penalty", "-3", "frequency_penalty"),
        ("--no-repeat-ngram-size", "65", "no_repeat_ngram_size"),
        ("--logit-bias", "-5", "42=-1.5"),
        ("--logit-bias", "100000=1", "logit_bias[0]"),
        ("--stop", "", "stop_strings[0]"),
        ("--threads", "-1", "--threads"),
        ("--device", "-1", "--device"),
        ("--device-budget", "-1", "--device-budget"),
    ] {
        refused(&["generate", dir, "hi", option, value], 2, named);
    }
    refused(&["score", dir, "--ids", "5,6", "--top-k", "-1"], 2, "--top-k");
}

#[test]
fn what_only_a_template_can_use_is_refused_without_one() {
    let (_parent, dir) = chat_folder();
    let dir = text(&dir);
    refused(&["generate", dir, "hi", "--raw", "--system", "x"], 2, "--system");
    refused(&["generate", dir, "hi", "--chat-template-kwargs", "{"], 2, "--chat-template-kwargs");
    refused(&["generate", dir, "hi", "--chat-template-kwargs", "[]"], 2, "chat_template_kwargs");
    refused(&["chat", text(&golden("dense_f32"))], 1, "tokenizer.json");
}

#[test]
fn wrong_sampling_values_exit_with_2() {
    let (_parent, dir) = chat_folder();
    let dir = text(&dir);
    refused(&["generate", dir, "hi", "--top-p", "0"], 2, "top_p");
    refused(&["generate", dir, "hi", "--temperature", "-1"], 2, "temperature");
    refused(&["generate", dir, "hi", "--temperature", "NaN"], 2, "temperature");
    refused(&["generate", dir, "", "--raw"], 2, "empty");
}

#[test]
fn what_cannot_be_done_exits_with_1() {
    let empty = tempfile::tempdir().unwrap();
    let nowhere = empty.path().join("nowhere");
    for args in [&["inspect"][..], &["generate", "x"], &["score", "--ids", "1,2"]] {
        for dir in [&nowhere, empty.path()] {
            let with_dir = [&args[..1], &[text(dir)], &args[1..]].concat();
            refused(&with_dir, 1, "config.json");
        }
    }
    let dir = golden("dense_f32");
    refused(&["generate", text(&dir), "hi"], 1, "tokenizer.json");
    let long = vec!["1"; 300].join(",");
    refused(&["score", text(&dir), "--ids", &long], 1, "context");
    std::fs::write(empty.path().join("config.json"), "{").unwrap();
    refused(&["inspect", text(empty.path())], 1, "config.json");
    for missing in KernelSet::ALL.into_iter().filter(|k| !k.available()) {
        refused(&["bench", "--shape", "tiny", "--kernels", missing.name()], 1, missing.name());
    }
}

/// A shape too large for any machine that runs this test would need a shape of its own; the largest known
/// one is refused where it does not fit, before anything is allocated.
#[test]
fn a_shape_that_does_not_fit_is_refused_with_needed_and_free_bytes() {
    let Ok(meminfo) = std::fs::read_to_string("/proc/meminfo") else { return };
    let line = meminfo.lines().find(|l| l.starts_with("MemAvailable:")).unwrap();
    let free: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    if free > 55_000_000 {
        println!("skipped: qwen3-30b-a3b fits this machine");
        return;
    }
    refused(&["bench", "--shape", "30b-a3b"], 1, "are free");
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    for args in [&["distill", "--explain", "opd", "--json"][..], &["inspect", text(&golden("dense_f32"))], &["--help"]]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_squire"));
        let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{args:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_a_failure() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_squire"));
    let output = command.args(["distill", "--explain", "opd"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("squire: cannot write to stdout"));
}
