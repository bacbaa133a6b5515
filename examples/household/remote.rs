//! A teacher in another process: the requests of its queue are answered from a server that speaks as SGLang's /generate
//! does, such as `queue_teacher.py` beside this file.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use squire::backend::ops::Sampling;
use squire::distill::{QueueOptions, Reply, Request, TeacherQueue, TeacherSays, TurnWanted, Words};
use squire::error::{Error, Fault, Result};

/// Most likely ids of a place that the teacher gives; all others are one event of the loss.
const TOP_K: usize = 32;

/// How long a piece of an answer may take; below the queue's deadline, so that the episode hears why.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer of an episode is some hundred kilobytes.
const LONGEST_ANSWER: u64 = 64 << 20;

/// Threads that answer until this is dropped, which closes the teacher.
pub struct Remote {
    pub queue: TeacherQueue,
    threads: Vec<JoinHandle<()>>,
}

impl Remote {
    /// `url` is `http://host:port`. The vocabulary is compared with that of the server's tokenizer: the shipped teacher's.
    pub fn new(url: &str, n_threads: usize) -> Result<Remote> {
        let wrong = || Error::new(Fault::BadOption, format!("--teacher-url: wanted http://host:port, found {url}"));
        let address = url.strip_prefix("http://").ok_or_else(wrong)?.trim_end_matches('/').to_string();
        let tokenizer = crate::models::shipped("teacher").join("tokenizer.json");
        let options = json!({"top_k": TOP_K, "acts": true, "vocabulary": {"tokenizer": tokenizer}});
        let queue = TeacherQueue::new(QueueOptions::from_json(&options.to_string())?);
        let answering = || {
            let (queue, address) = (queue.clone(), address.clone());
            std::thread::spawn(move || answer_all(&queue, &address))
        };
        Ok(Remote { threads: (0..n_threads).map(|_| answering()).collect(), queue })
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.queue.close();
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

fn answer_all(queue: &TeacherQueue, address: &str) {
    while !queue.is_closed() {
        for request in queue.next(1, Duration::from_secs(3600)) {
            let replied = match &request.turn {
                Some(turn) => said(address, &request.ids, turn).and_then(|(ids, cut_off)| {
                    let says = TeacherSays { what: Words::Ids(&ids, &[]), cut_off };
                    queue.say(request.number, says).map_err(|e| e.to_string())
                }),
                None => scored(address, &request).and_then(|places| reply(queue, request.number, &places)),
            };
            // Where nobody wants to hear it any more, nobody is told.
            if let Err(why) = replied {
                eprintln!("household: the teacher's request {}: {why}", request.number);
                queue.fail(request.number, &why).ok();
            }
        }
    }
}

fn reply(queue: &TeacherQueue, number: u64, places: &[Place]) -> std::result::Result<(), String> {
    let (top_ids, top_logprobs): (Vec<i32>, Vec<f32>) = places.iter().flat_map(|p| p.top.clone()).unzip();
    let reply = Reply {
        ids: &places.iter().map(|p| p.id).collect::<Vec<_>>(),
        logprobs: &places.iter().map(|p| p.logprob).collect::<Vec<_>>(),
        top_ids: &top_ids,
        top_logprobs: &top_logprobs,
    };
    queue.reply(number, reply).map_err(|e| e.to_string())
}

struct Place {
    id: i32,
    logprob: f32,
    top: Vec<(i32, f32)>,
}

/// What the server says next, what ends it included, and whether it was cut off before it had said all that was wanted. Whether it fits is for the queue to say.
fn said(address: &str, ids: &[i32], turn: &TurnWanted) -> std::result::Result<(Vec<i32>, bool), String> {
    let Sampling { temperature, top_k, top_p } = turn.sampling;
    let asked = json!({
        "input_ids": ids, "sampling_params": {
            "max_new_tokens": turn.max_tokens, "temperature": temperature, "top_p": top_p,
            "top_k": if top_k == 0 { -1 } else { i64::from(top_k) },
            "sampling_seed": turn.seed, "stop_token_ids": turn.stop_ids,
        },
    });
    let answer = post(address, "/generate", &asked).map_err(|e| format!("{address}: {e}"))?;
    let id = |id: &Value| id.as_i64().and_then(|id| i32::try_from(id).ok());
    let said: Option<Vec<i32>> = answer["output_ids"].as_array().and_then(|said| said.iter().map(id).collect());
    let is_cut =
        |said: &[i32]| answer["meta_info"]["finish_reason"]["type"] == "length" && said.len() < turn.max_tokens;
    said.map(|said| {
        let cut = is_cut(&said);
        (said, cut)
    })
    .ok_or_else(|| format!("{address}: not as SGLang answers: {:.200}", answer.to_string()))
}

/// What the server says of `request.ids[request.from..]`. Whether it fits is for the queue to say.
fn scored(address: &str, request: &Request) -> std::result::Result<Vec<Place>, String> {
    // From one place earlier: the first that is told has no number.
    let asked = json!({
        "input_ids": request.ids, "sampling_params": {"max_new_tokens": 0, "temperature": 1.0}, "return_logprob": true,
        "logprob_start_len": request.from - 1, "top_logprobs_num": request.top_k,
    });
    let answer = post(address, "/generate", &asked).map_err(|e| format!("{address}: {e}"))?;
    let pair = |entry: &Value| Some((i32::try_from(entry[1].as_i64()?).ok()?, entry[0].as_f64()? as f32));
    let place = |(said, top): (&Value, &Value)| {
        let (id, logprob) = pair(said)?;
        Some(Place { id, logprob, top: top.as_array()?.iter().map(pair).collect::<Option<_>>()? })
    };
    let list = |key: &str| answer["meta_info"][key].as_array();
    let places = list("input_token_logprobs").zip(list("input_top_logprobs")).and_then(|(said, top)| {
        let whole = said.len() == top.len();
        whole.then(|| said.iter().zip(top).skip(1).map(place).collect::<Option<Vec<_>>>()).flatten()
    });
    places.ok_or_else(|| format!("{address}: not as SGLang answers: {:.200}", answer.to_string()))
}

fn post(address: &str, path: &str, document: &Value) -> std::io::Result<Value> {
    let body = document.to_string();
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let head = format!("POST {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\n");
    stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes())?;
    let mut answer = Vec::new();
    stream.take(LONGEST_ANSWER).read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(answer.len());
    let (head, body) = (String::from_utf8_lossy(&answer[..end]), answer.get(end + 4..).unwrap_or_default());
    if head.split(' ').nth(1) != Some("200") {
        return Err(std::io::Error::other(format!("{:.200}", head)));
    }
    Ok(serde_json::from_slice(body)?)
}
