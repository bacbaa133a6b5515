//! Sequences of calls of the C interface in any order, each pair of bytes a call and what it is given, on a tiny model that the
//! caller drives. Nothing may panic, poison or be lost.
#![no_main]

use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use squire::ffi::engine::*;
use squire::ffi::error::*;
use squire::ffi::event::*;
use squire::ffi::generation::*;
use squire::ffi::model::*;
use squire::ffi::score::*;
use squire::ffi::scores::*;
use squire::ffi::session::*;
use squire::ffi::text::*;
use squire::ffi::tokens::*;
use squire::ffi::version::SQUIRE_ABI;

struct Shared {
    engine: *mut squire_engine,
    model: *mut squire_model,
}

// SAFETY: handles may be used from any thread.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    // SAFETY: option structs of plain data, set up by their own calls, and out-parameters that are locals.
    SHARED.get_or_init(|| unsafe {
        let mut options = std::mem::zeroed::<squire_engine_options>();
        squire_engine_options_init(&mut options, size_of_val(&options), SQUIRE_ABI);
        (options.drive, options.max_sessions, options.threads) = (SQUIRE_DRIVE_CALLER, 6, 1);
        options.kv_budget = 1 << 16;
        let mut engine = null_mut();
        assert_eq!(squire_engine_create(&options, &mut engine, null_mut()), 0);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../golden/dense_f32");
        let mut load = std::mem::zeroed::<squire_model_options>();
        squire_model_options_init(&mut load, size_of_val(&load));
        (load.path, load.path_len) = (path.as_ptr().cast(), path.len());
        let mut model = null_mut();
        assert_eq!(squire_model_load(engine, &load, null(), &mut model, null_mut()), 0);
        Shared { engine, model }
    })
}

// SAFETY: handles are NULL or alive, arrays live as long as their calls, and out-parameters are locals.
fuzz_target!(|data: &[u8]| unsafe {
    let Shared { engine, model } = shared();
    let (mut sessions, mut gens) = ([null_mut::<squire_session>(); 4], [null_mut::<squire_gen>(); 3]);
    let mut event = std::mem::zeroed::<squire_event>();
    squire_event_init(&mut event, size_of_val(&event));
    for pair in data.chunks_exact(2).take(200) {
        let (s, g, n) = (pair[1] as usize % 4, pair[1] as usize % 3, pair[1]);
        let ids: Vec<i32> = (0..n as i32 % 40).map(|i| i * 3 % 40 - i32::from(n == 77)).collect();
        let mut error: *mut squire_error = null_mut();
        let e = &mut error;
        let (mut number, mut signed) = (0u64, 0i32);
        let status = match pair[0] % 20 {
            0 if sessions[s].is_null() => squire_session_create(*model, &mut sessions[s], e),
            1 => {
                squire_session_release(std::mem::replace(&mut sessions[s], null_mut()));
                0
            }
            2 => squire_session_append(sessions[s], ids.as_ptr(), ids.len(), e),
            3 => squire_session_sync(sessions[s], ids.as_ptr(), ids.len(), &mut number, e),
            4 => squire_session_truncate(sessions[s], u64::from(n) % 50, e),
            5 if sessions[(s + 1) % 4].is_null() => {
                let mut fork = null_mut();
                let status = squire_session_fork(sessions[s], &mut fork, e);
                sessions[(s + 1) % 4] = fork;
                status
            }
            6 if gens[g].is_null() => {
                let mut options = std::mem::zeroed::<squire_gen_options>();
                squire_gen_options_init(&mut options, size_of_val(&options));
                options.max_tokens = i32::from(n % 9) - 1;
                options.flags = u32::from(n % 4);
                squire_gen_start(sessions[s], &options, &mut gens[g], e)
            }
            7 | 8 => squire_gen_next(gens[g], i32::from(n % 3) - 1, &mut event, e),
            9 => {
                squire_gen_cancel(gens[g]);
                0
            }
            10 => {
                squire_gen_release(std::mem::replace(&mut gens[g], null_mut()));
                0
            }
            11 | 12 => squire_engine_step(*engine, e),
            13 => {
                let mut scores = null_mut();
                let status =
                    squire_score(sessions[s], ids.as_ptr(), ids.len(), i32::from(n % 5), null(), &mut scores, e);
                squire_scores_release(scores);
                status
            }
            14 => squire_session_prefill(sessions[s], null(), None, null_mut(), e),
            15 => squire_session_rebase(sessions[s], &mut number, e),
            16 => {
                let mut tokens = null_mut();
                let status = squire_session_tokens(sessions[s], &mut tokens, e);
                squire_tokens_release(tokens);
                status
            }
            17 => {
                let mut text = null_mut();
                let status = squire_engine_metrics(*engine, &mut text, e);
                squire_text_release(text);
                status
            }
            18 => squire_gen_seed(gens[g], &mut number, e),
            // A handle of another kind, and an error slot that is not empty.
            19 => squire_session_truncate(gens[g].cast(), 0, e),
            _ => 0,
        };
        signed += status;
        if !error.is_null() {
            let status = squire_error_status(error);
            assert!(status != squire::ffi::status::SQUIRE_E_PANIC && status != squire::ffi::status::SQUIRE_E_POISONED);
            squire_error_release(error);
        }
        std::hint::black_box(signed);
    }
    gens.into_iter().for_each(|g| squire_gen_release(g));
    sessions.into_iter().for_each(|s| squire_session_release(s));
    let mut text = null_mut();
    assert_eq!(squire_engine_metrics(*engine, &mut text, null_mut()), 0);
    let metrics = std::ffi::CStr::from_ptr(squire_text_data(text, null_mut())).to_string_lossy().into_owned();
    squire_text_release(text);
    assert!(metrics.contains("\"sessions\":0"), "{metrics}");
});
