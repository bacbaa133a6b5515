//! The engine: its options, its life, its counters, and what the machine offers.

use std::ffi::c_void;
use std::mem::offset_of;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::callbacks::{Log, squire_log_fn};
use super::error::squire_error;
use super::guard::{Outcome, guard, guard_out};
use super::handle::{self, Object};
use super::options::{self, Versioned};
use super::status::squire_status;
use super::text::{CText, squire_text};
use super::version::SQUIRE_ABI;
use crate::backend::cuda::{Cuda, Facts};
use crate::backend::{Compute, KernelSet};
use crate::error::{Error, Fault, Result};
use crate::serve::{self, DeviceChoice, Engine, EngineOptions};

/// A device, the models on it and the thread that steps them. Shared: see squire_engine_retain.
pub struct squire_engine {
    _opaque: [u8; 0],
}

impl Object for squire_engine {
    type Body = Engine;
    const TAG: [u8; 8] = *b"sq engin";
    const NAME: &'static str = "squire_engine";
}

/// backend: the processor.
pub const SQUIRE_BACKEND_CPU: i32 = 0;
/// backend: an NVIDIA GPU; SQUIRE_E_UNSUPPORTED in a build or on a machine without it. It computes in bf16.
pub const SQUIRE_BACKEND_CUDA: i32 = 1;
/// backend: the first NVIDIA GPU if this build and machine can use it, else the processor; the log says why.
pub const SQUIRE_BACKEND_BEST: i32 = 2;

/// kernels: the fastest set of this machine. All sets give the same results to the bit.
pub const SQUIRE_KERNELS_BEST: i32 = 0;
/// kernels: plain code, runs everywhere.
pub const SQUIRE_KERNELS_SCALAR: i32 = 1;
/// kernels: AVX2, FMA and F16C.
pub const SQUIRE_KERNELS_AVX2: i32 = 2;
/// kernels: AVX-512 F, BW, DQ and VL.
pub const SQUIRE_KERNELS_AVX512: i32 = 3;
/// kernels: the same and AVX512-BF16.
pub const SQUIRE_KERNELS_AVX512_BF16: i32 = 4;

/// compute: activations are not rounded.
pub const SQUIRE_COMPUTE_F32: i32 = 0;
/// compute: activations are rounded to bf16 between operations.
pub const SQUIRE_COMPUTE_BF16: i32 = 1;

/// drive: a thread of the engine's own works whenever there is work.
pub const SQUIRE_DRIVE_THREAD: i32 = 0;
/// drive: nothing runs but inside calls: squire_engine_step, and calls that wait, which step meanwhile.
pub const SQUIRE_DRIVE_CALLER: i32 = 1;

/// How to make an engine. Set up by squire_engine_options_init.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct squire_engine_options {
    /// Set by _init.
    pub struct_size: u32,
    /// Set by _init.
    pub abi: u32,
    /// One of SQUIRE_BACKEND_...; cpu.
    pub backend: i32,
    /// One of SQUIRE_KERNELS_...; best.
    pub kernels: i32,
    /// One of SQUIRE_COMPUTE_...; bf16.
    pub compute: i32,
    /// One of SQUIRE_DRIVE_...; thread.
    pub drive: i32,
    /// Threads that compute, the engine's own included; 0, the default: one a core.
    pub threads: i32,
    /// Sessions that may exist; 1024. An episode takes one, and one more if a teacher follows it.
    pub max_sessions: i32,
    /// Tokens of one forward pass; 512. A prompt is computed in chunks of at most this size.
    pub max_batch_tokens: i32,
    /// The most detailed level that log is to hear; 2, info.
    pub log_level: i32,
    /// Bytes that the models' weights and the updates of their distillers may take together; 0, the default: no limit. Looked
    /// at when a model is loaded, a distiller is made, and before an update is built. What a distiller holds counts until it
    /// is released: masters, moments, gradients and activations (its settings may bound them further by training_budget). It
    /// counts no KV cache and no activations of serving.
    pub host_budget: u64,
    /// Bytes that each model's KV cache may take; 4 GiB. Where sessions together need more, the work that came first has
    /// them: sessions at rest give up theirs and compute again when they are used, younger work waits. On the processor
    /// results do not change.
    pub kv_budget: u64,
    /// Takes the log lines; NULL, the default: nobody.
    pub log: squire_log_fn,
    /// Handed to log. It must stay valid until the engine and all that was made from it are gone.
    pub log_user: *mut c_void,
    /// Which GPU, counted from 0, the default; for backend cuda only.
    pub device_index: i32,
    /// Must be 0.
    pub reserved: u32,
    /// Bytes of device memory that the engine may take in all; 0, the default: whatever is free. No matter on the
    /// processor.
    pub device_budget: u64,
    /// Milliseconds that a prompt may keep sessions that decode waiting in one forward pass, as measured; 10. Longer gets a
    /// prompt done sooner, shorter makes tokens come more evenly. Where a pass without a prompt takes longer than that, the
    /// prompt may as much as double it. 0: as long as max_batch_tokens take. For the processor.
    pub prefill_slice_ms: i32,
    /// Milliseconds that an update that is being built or applied may keep sessions waiting at a time; 20. It then gives way
    /// for one round of forward passes and goes on. Longer gets an update done sooner while sessions are served, shorter makes their
    /// tokens come more evenly; without sessions at work nothing waits. 0: the default. -1: until the update is done. For the
    /// processor.
    pub learning_slice_ms: i32,
    /// Bytes of kv_budget that each model's pages may take that no session holds; 1 GiB. They are kept for sessions that come with
    /// the same ids under the same weights, and those that were asked for the longest ago go first. Sessions that exist share
    /// what they have in common in any case.
    pub prefix_budget: u64,
}

// SAFETY: numbers, a nullable function and a pointer; the sizes are checked where the header is compiled.
unsafe impl Versioned for squire_engine_options {
    const NAME: &'static str = "squire_engine_options";
    const FIRST_SIZE: usize = offset_of!(squire_engine_options, device_index);

    fn defaults() -> squire_engine_options {
        let defaults = EngineOptions::default();
        squire_engine_options {
            struct_size: size_of::<squire_engine_options>() as u32,
            abi: SQUIRE_ABI,
            backend: SQUIRE_BACKEND_CPU,
            kernels: SQUIRE_KERNELS_BEST,
            compute: if defaults.compute == Compute::F32 { SQUIRE_COMPUTE_F32 } else { SQUIRE_COMPUTE_BF16 },
            drive: SQUIRE_DRIVE_THREAD,
            threads: defaults.n_threads as i32,
            max_sessions: defaults.max_sessions as i32,
            max_batch_tokens: defaults.max_batch_tokens as i32,
            log_level: serve::Level::Info as i32,
            host_budget: defaults.host_budget,
            kv_budget: defaults.kv_budget,
            log: None,
            log_user: std::ptr::null_mut(),
            device_index: 0,
            reserved: 0,
            device_budget: defaults.device_budget,
            prefill_slice_ms: defaults.prefill_slice.map_or(0, |slice| slice.as_millis() as i32),
            learning_slice_ms: defaults.learning_slice.map_or(-1, |slice| slice.as_millis() as i32),
            prefix_budget: defaults.prefix_budget,
        }
    }
}

/// A slice of so many milliseconds; None for 0.
fn slice(ms: i32, name: &str) -> Result<Option<Duration>> {
    let ms = options::count(ms, name)?;
    Ok((ms > 0).then(|| Duration::from_millis(ms as u64)))
}

impl squire_engine_options {
    fn convert(&self) -> Result<EngineOptions> {
        options::check_abi(self.abi)?;
        let index = options::count(self.device_index, "device_index")?;
        let backends = [
            (SQUIRE_BACKEND_CPU, DeviceChoice::Cpu),
            (SQUIRE_BACKEND_CUDA, DeviceChoice::Cuda { index }),
            (SQUIRE_BACKEND_BEST, DeviceChoice::Best),
        ];
        let device = options::choice(self.backend, "backend", &backends)?;
        if index != 0 && device != (DeviceChoice::Cuda { index }) {
            let why = format!("device_index is {index}, which only backend cuda takes");
            return Err(Error::new(Fault::BadOption, why));
        }
        options::flags(self.reserved, "reserved", 0)?;
        let kernels = [
            (SQUIRE_KERNELS_BEST, None),
            (SQUIRE_KERNELS_SCALAR, Some(KernelSet::Scalar)),
            (SQUIRE_KERNELS_AVX2, Some(KernelSet::Avx2)),
            (SQUIRE_KERNELS_AVX512, Some(KernelSet::Avx512)),
            (SQUIRE_KERNELS_AVX512_BF16, Some(KernelSet::Avx512Bf16)),
        ];
        let computes = [(SQUIRE_COMPUTE_F32, Compute::F32), (SQUIRE_COMPUTE_BF16, Compute::Bf16)];
        let drives = [(SQUIRE_DRIVE_THREAD, false), (SQUIRE_DRIVE_CALLER, true)];
        // SAFETY: that the host's function may be called with its pointer is the contract of the field.
        let log = unsafe { Log::new(self.log, self.log_user, self.log_level) };
        let line = move |level, target: &str, message: &str| log.line(level as i32, target, message);
        Ok(EngineOptions {
            device,
            n_threads: options::count(self.threads, "threads")?,
            kernels: options::choice(self.kernels, "kernels", &kernels)?,
            compute: options::choice(self.compute, "compute", &computes)?,
            host_budget: self.host_budget,
            device_budget: self.device_budget,
            kv_budget: self.kv_budget,
            prefix_budget: self.prefix_budget,
            max_sessions: options::count(self.max_sessions, "max_sessions")?,
            max_batch_tokens: options::count(self.max_batch_tokens, "max_batch_tokens")?,
            prefill_slice: slice(self.prefill_slice_ms, "prefill_slice_ms")?,
            learning_slice: match self.learning_slice_ms {
                // Of a program that knows the field as one that must be 0.
                0 => EngineOptions::default().learning_slice,
                -1 => None,
                ms => slice(ms, "learning_slice_ms")?,
            },
            caller_driven: options::choice(self.drive, "drive", &drives)?,
            log: self.log.map(|_| serve::Log(Arc::new(line))),
        })
    }
}

/// Sets up the options: squire_engine_options_init(&o, sizeof o, SQUIRE_ABI). NULL, and a size that no struct has, does
/// nothing. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_engine_options_init(options: *mut squire_engine_options, size: usize, abi: u32) {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        options::init(options, size);
        if !options.is_null() && (8..=options::LARGEST).contains(&size) {
            (&raw mut (*options).abi).write_unaligned(abi);
        }
    }
}

/// Makes an engine and starts its threads. The log callback, if there is one, is called from any thread from now on
/// until the engine and all that was made from it are gone. SQUIRE_E_ABI for another major or a wrong struct_size,
/// SQUIRE_E_UNSUPPORTED for a backend or kernel set that this build or machine lacks, SQUIRE_E_ARGUMENT for values out
/// of range and a device that is not there, SQUIRE_E_HOST_MEMORY if threads cannot be started, SQUIRE_E_DEVICE,
/// SQUIRE_E_DEVICE_LOST and SQUIRE_E_DEVICE_MEMORY if the GPU fails or is full. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_engine_create(
    options: *const squire_engine_options,
    out: *mut *mut squire_engine,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe { guard_out(out, err, |_| Engine::new(options::read(options)?.convert()?)) }
}

/// Adds a reference and gives the same pointer; NULL for NULL. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_engine_retain(engine: *mut squire_engine) -> *mut squire_engine {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::retain(engine) }
}

/// Drops a reference. The engine ends with the last of its references, models, sessions and generations, and waits for
/// its threads then. NULL is allowed. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_engine_release(engine: *mut squire_engine) {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::release(engine) }
}

/// Runs one round of an engine that the caller drives: one batched forward pass over all sessions with work. Answers
/// SQUIRE_OK if it ran one and SQUIRE_END if there was nothing to do. SQUIRE_E_STATE on an engine with a thread of its
/// own; SQUIRE_E_PANIC if the round failed by a defect, and SQUIRE_E_POISONED ever after. Any thread; rounds do not
/// overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_engine_step(engine: *mut squire_engine, err: *mut *mut squire_error) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe { guard(err, |call| Ok(if call.shared(engine)?.step()? { Outcome::Done } else { Outcome::End })) }
}

/// The same for about budget_us microseconds, for hosts that owe their time to somebody else, such as a frame: runs rounds until
/// the budget is used up, nothing is left, or all that is left waits for KV pages. At least one, so that nobody starves, and
/// another only where it ends within the budget by how long rounds took before; a prompt gets as many rows a round as fit, on the
/// processor. SQUIRE_OK where work is left and SQUIRE_END where none is. What is computed is the same to the bit on the
/// processor. Errors as squire_engine_step. Any thread. Since 0.11.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_engine_step_for(
    engine: *mut squire_engine,
    budget_us: u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let is_left = call.shared(engine)?.step_for(Duration::from_micros(budget_us))?;
            Ok(if is_left { Outcome::Done } else { Outcome::End })
        })
    }
}

/// The engine's counters as a JSON object, whole numbers but for the last three: sessions (that exist), rounds, rows
/// (tokens that went through a forward pass), sampled (tokens), prefix_hits and prefix_rows (times that work found pages
/// that others had computed, and rows of them), evicted (sessions at rest whose KV pages others needed), preempted (work
/// whose KV pages older work needed), prefix_breaks (times that tokens which stood in a session were taken out or
/// replaced: thoughts by the history, or by squire_session_sync), weight_bytes (read by forward passes),
/// round_weight_bytes (of those, by the rounds), weight_bytes_per_round; kv_in_use_bytes, kv_idle_bytes and kv_budget_bytes
/// (KV pages of all models); tokens_per_second (the last ten seconds); time_to_first_token_seconds and inter_token_seconds,
/// objects of count, sum, p50, p90 and p99, where a percentile is at most 6.25 % too large and null where nothing was
/// measured. docs/metrics.md says how each is computed. Keys may be added. It waits for no work. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_engine_metrics(
    engine: *const squire_engine,
    out: *mut *mut squire_text,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let metrics = json!(call.shared(engine)?.metrics());
            Ok(CText::new(&metrics.to_string()))
        })
    }
}

/// The same in the text format that Prometheus reads (version 0.0.4): a counter is squire_NAME_total, everything else
/// squire_NAME; times are histograms in seconds. To be answered with the content type "text/plain; version=0.0.4". It waits
/// for no work. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_engine_metrics_text(
    engine: *const squire_engine,
    out: *mut *mut squire_text,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe { guard_out(out, err, |call| Ok(CText::new(&call.shared(engine)?.metrics().prometheus()))) }
}

/// What this machine offers to this build, as a JSON object: backends, a list of objects with name. The cpu's has
/// kernel_sets (slowest first), best_kernel_set and cores. That of cuda, in a build with it, has devices, a list in the
/// order of device_index, each with name, compute_capability ("9.0"), memory_bytes and driver ("13.0"), or unavailable
/// with the reason. Makes no engine and touches no device. Keys may be added. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_device_probe(out: *mut *mut squire_text, err: *mut *mut squire_error) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |_| {
            let mut backends = vec![cpu()];
            backends.extend(Cuda::BUILT.then(cuda));
            let probe = json!({ "backends": backends });
            Ok(CText::new(&probe.to_string()))
        })
    }
}

/// What the processor offers.
fn cpu() -> Value {
    let sets: Vec<_> = KernelSet::ALL.into_iter().filter(|set| set.available()).map(KernelSet::name).collect();
    json!({
        "name": "cpu",
        "kernel_sets": sets,
        "best_kernel_set": KernelSet::best().name(),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
    })
}

/// The GPUs, or why there is none.
fn cuda() -> Value {
    let device = |facts: &Facts| {
        json!({
            "name": facts.name,
            "compute_capability": format!("{}.{}", facts.capability / 10, facts.capability % 10),
            "memory_bytes": facts.total_bytes,
            "driver": format!("{}.{}", facts.driver / 1000, facts.driver % 1000 / 10),
        })
    };
    match Cuda::probe() {
        Ok(found) => json!({ "name": "cuda", "devices": found.iter().map(device).collect::<Vec<_>>() }),
        Err(why) => json!({ "name": "cuda", "unavailable": why.message() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_of_learning_is_as_asked_and_0_is_the_default() {
        let of = |ms| {
            let options = squire_engine_options { learning_slice_ms: ms, ..squire_engine_options::defaults() };
            options.convert().map(|o| o.learning_slice)
        };
        let default = EngineOptions::default().learning_slice;
        assert_eq!(squire_engine_options::defaults().learning_slice_ms, 20);
        assert_eq!(default, Some(Duration::from_millis(20)));
        // 0 is what the field had to be when it was reserved.
        assert_eq!(of(0).unwrap(), default);
        assert_eq!((of(5).unwrap(), of(-1).unwrap()), (Some(Duration::from_millis(5)), None));
        let refused = of(-2).unwrap_err();
        assert!(refused.message().contains("learning_slice_ms"), "{refused}");
    }
}
