//! A case of a test in a process of its own, under limits: the test binary runs itself again.
//!
//! A test that begins with `if let Some(case) = child::case() { ...; return }` is the child's program too; the parent
//! calls [`run`] with that test's own name. What the child finds it prints, a line each that begins with `> `.
#![allow(dead_code)] // each test file uses its part

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a child may use.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Wall-clock time; a child that takes longer is killed.
    pub seconds: u64,
    /// Address space in MiB; 0: as much as there is.
    pub memory: u64,
}

/// How a child ended.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Why it is no success: a signal, an exit code, or the time. None for success.
    pub died: Option<String>,
    /// The lines that it said.
    pub said: Vec<String>,
    /// What it wrote on the standard error stream.
    pub errors: String,
    /// How long it took.
    pub seconds: f64,
}

const CASE: &str = "SQUIRE_TEST_CASE";

/// The case that this process is a child for.
pub fn case() -> Option<String> {
    std::env::var(CASE).ok()
}

/// Says a line to the parent.
pub fn say(line: impl std::fmt::Display) {
    println!("\n> {line}");
}

/// The most memory that this process has held, in bytes; 0 where the system does not say.
pub fn peak_bytes() -> u64 {
    status_line("VmHWM:")
}

/// The memory that this process holds now, in bytes; 0 where the system does not say.
pub fn held_bytes() -> u64 {
    status_line("VmRSS:")
}

fn status_line(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Runs the test of this binary named `test` as a child for a case.
pub fn run(test: &str, case: &str, limits: Limits) -> Ran {
    let limit =
        if limits.memory > 0 { format!("ulimit -v {} || exit 99; ", limits.memory << 10) } else { String::new() };
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{limit}exec \"$0\" \"$@\"")]).arg(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--include-ignored", "--test-threads=1"]);
    command.env(CASE, case).env_remove("RUST_BACKTRACE").stdin(Stdio::null());
    let began = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = out.read_to_string(&mut text);
        text
    });
    let errors = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = err.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let died = loop {
        match child.try_wait().unwrap() {
            Some(status) if status.success() => break None,
            Some(status) => break Some(status.to_string()),
            None if began.elapsed() > Duration::from_secs(limits.seconds) => {
                child.kill().unwrap();
                child.wait().unwrap();
                break Some(format!("took more than {} s", limits.seconds));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    let said = reader.join().unwrap();
    let said = said.lines().filter_map(|line| line.strip_prefix("> ").map(String::from)).collect();
    Ran { died, said, errors: errors.join().unwrap(), seconds }
}

/// Runs `f` on a thread with this stack, in bytes.
pub fn on_a_stack<T: Send + 'static>(bytes: usize, f: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::Builder::new().stack_size(bytes).spawn(f).unwrap().join().unwrap()
}
