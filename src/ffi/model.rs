//! Models: planning, loading, saving, what they are, and text to ids and back.

use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;
use std::path::PathBuf;

use super::callbacks::{Progress, squire_progress_fn};
use super::cancel::{self, squire_cancel};
use super::engine::squire_engine;
use super::error::squire_error;
use super::guard::{Outcome, guard, guard_out};
use super::handle::{self, Object};
use super::input;
use super::options::{self, Versioned};
use super::output::Slot;
use super::status::squire_status;
use super::text::{CText, squire_text};
use super::tokens::squire_tokens;
use crate::error::{Error, Fault, Result};
use crate::serve::{LoadOptions, ServedModel};
use crate::text::{Control, History, Room};

/// A lineage of weight revisions with one tokenizer and one chat template. Shared: see squire_model_retain.
pub struct squire_model {
    _opaque: [u8; 0],
}

impl Object for squire_model {
    type Body = ServedModel;
    const TAG: [u8; 8] = *b"sq model";
    const NAME: &'static str = "squire_model";
}

/// Of squire_model_options: copy the weights. Without it they are mapped, and the files must not be truncated while the
/// model lives.
pub const SQUIRE_MODEL_COPY: u32 = 1;

/// Of squire_tokenize: added tokens such as <|im_end|> in the text become control. Never for text that comes from
/// outside; without it they are plain text.
pub const SQUIRE_TOKENIZE_CONTROL: u32 = 1;

/// Of squire_detokenize: special tokens give no text.
pub const SQUIRE_DETOKENIZE_SKIP_SPECIAL: u32 = 1;

/// How to load a model. Set up by squire_model_options_init.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct squire_model_options {
    /// Set by _init.
    pub struct_size: u32,
    /// SQUIRE_MODEL_COPY or 0.
    pub flags: u32,
    /// Tokens that a session may hold; 0, the default: the model's own limit.
    pub max_context: u64,
    /// The folder, in the form of Hugging Face: config.json, safetensors, and if there is one tokenizer.json.
    pub path: *const c_char,
    /// Bytes of path.
    pub path_len: usize,
    /// Hears of the loading (phase "weights", in bytes) on the calling thread; may be NULL.
    pub progress: squire_progress_fn,
    /// Handed to progress.
    pub progress_user: *mut c_void,
}

// SAFETY: numbers, a nullable function and pointers; the sizes are checked where the header is compiled.
unsafe impl Versioned for squire_model_options {
    const NAME: &'static str = "squire_model_options";
    const FIRST_SIZE: usize = size_of::<squire_model_options>();

    fn defaults() -> squire_model_options {
        squire_model_options {
            struct_size: size_of::<squire_model_options>() as u32,
            flags: 0,
            max_context: 0,
            path: std::ptr::null(),
            path_len: 0,
            progress: None,
            progress_user: std::ptr::null_mut(),
        }
    }
}

impl squire_model_options {
    /// # Safety
    /// The path is readable for its length.
    unsafe fn convert(&self) -> Result<(PathBuf, LoadOptions)> {
        // SAFETY: passed on.
        let path = unsafe { input::path(self.path, self.path_len, "path") }?.to_owned();
        let copy = options::flags(self.flags, "flags", SQUIRE_MODEL_COPY)? & SQUIRE_MODEL_COPY != 0;
        let max_context = usize::try_from(self.max_context).map_err(|_| {
            Error::new(Fault::BadOption, format!("max_context is {}, more than memory can hold", self.max_context))
        })?;
        Ok((path, LoadOptions { max_context, copy }))
    }
}

/// Sets up the options: squire_model_options_init(&o, sizeof o). NULL, and a size that no struct has, does nothing. Any
/// thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_model_options_init(options: *mut squire_model_options, size: usize) {
    // SAFETY: the conventions at the head of the header.
    unsafe { options::init(options, size) }
}

/// What a model folder would need, as a JSON object, before anything is allocated: parameters, and in bytes
/// weight_bytes, kv_bytes_per_token, kv_bytes_per_full_session, activation_bytes, logit_bytes, training_bytes; of the
/// tensors that the model uses. warnings: what is not as it should be in the folder and was understood all the same.
/// Reads the folder's documents and the headers of its weights, and compares an output projection with the embedding
/// where config.json says that they are one. Keys may be added. Errors as squire_model_load. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_model_plan(
    engine: *const squire_engine,
    options: *const squire_model_options,
    out: *mut *mut squire_text,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let engine = call.shared(engine)?;
            let (path, load) = options::read(options)?.convert()?;
            Ok(CText::new(&engine.plan(&path, load)?.to_string()))
        })
    }
}

/// Loads a model folder. What is not as it should be in it and was understood all the same is logged as a warning and
/// stands in squire_model_info. Blocks; stops with SQUIRE_CANCELLED between tensors when cancel (may be NULL) is set or
/// progress asks for it. SQUIRE_E_IO for files that cannot be read, SQUIRE_E_FORMAT and SQUIRE_E_MISMATCH for files
/// that are broken or contradict each other, SQUIRE_E_UNSUPPORTED for models that squire does not serve,
/// SQUIRE_E_BUDGET beyond host_budget. The model keeps the engine alive. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_model_load(
    engine: *mut squire_engine,
    options: *const squire_model_options,
    cancel: *const squire_cancel,
    out: *mut *mut squire_model,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let engine = call.shared(engine)?;
            let options = options::read(options)?;
            let (path, load) = options.convert()?;
            let cancel = call.optional(cancel)?.map(|c| c.clone()).unwrap_or_default();
            let progress = Progress::new(options.progress, options.progress_user);
            let mut tell = |done, all| progress.tell("weights", done, all) == ControlFlow::Continue(());
            engine.load_watched(&path, load, &cancel, &mut tell)
        })
    }
}

/// Adds a reference and gives the same pointer; NULL for NULL. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_model_retain(model: *mut squire_model) -> *mut squire_model {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::retain(model) }
}

/// Drops a reference. The weights go with the last reference, session and distiller that use them. NULL is allowed. Any
/// thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_model_release(model: *mut squire_model) {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::release(model) }
}

/// The revision of the weights that new sessions get, in *revision: 1 as loaded, one more with every publish. Never
/// waits for device work. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_model_revision(
    model: *const squire_model,
    revision: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let model = call.shared(model)?;
            let revision = Slot::required(revision, "revision")?;
            revision.set(model.current().number);
            Ok(Outcome::Done)
        })
    }
}

/// What the model is, as a JSON object: config, parameters, weight_bytes, weight_dtype, compute, max_context,
/// kv_bytes_per_token, kv_pages_in_use, kv_pages_idle, revision, revisions_alive, adapter (of the current revision: rank, alpha, rslora,
/// targets, parameters, bytes; or null), adapters (the same of each that has a name, with its revision), tokenizer and chat_template (whether there is one),
/// chat_templates (their names), history (as squire_model_set_history names it), stop_ids,
/// stop_ids_from (a list of {"id", "token": its text, "from": the documents that name it}),
/// generation_defaults (temperature, top_k, top_p and every other control: how squire_gen_start samples where it is not told), warnings (of
/// loading). Keys may be added. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_model_info(
    model: *const squire_model,
    out: *mut *mut squire_text,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe { guard_out(out, err, |call| Ok(CText::new(&call.shared(model)?.info().to_string()))) }
}

/// How large the model is: *vocabulary (ids from 0 that it takes and says), *max_context (tokens that a session may hold)
/// and *tokenizer_ids (ids that its tokenizer gives meaning to, from 0; 0 without a tokenizer). Each out-parameter may be
/// NULL if not wanted. Never waits. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_model_sizes(
    model: *const squire_model,
    vocabulary: *mut u64,
    max_context: *mut u64,
    tokenizer_ids: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let model = call.shared(model)?;
            let vocabulary = Slot::optional(vocabulary, "vocabulary")?;
            let max_context = Slot::optional(max_context, "max_context")?;
            let tokenizer_ids = Slot::optional(tokenizer_ids, "tokenizer_ids")?;
            vocabulary.set(model.config().vocab_size as u64);
            max_context.set(model.model().max_context() as u64);
            tokenizer_ids.set(model.tokenizer().map_or(0, |tokenizer| tokenizer.n_ids() as u64));
            Ok(Outcome::Done)
        })
    }
}

/// The ids that end a generation, unless SQUIRE_GEN_IGNORE_MODEL_STOPS is set. Never waits. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_model_stop_ids(
    model: *const squire_model,
    out: *mut *mut squire_tokens,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe { guard_out(out, err, |call| Ok(call.shared(model)?.stop_ids().into())) }
}

/// Says what of the thoughts of earlier turns stays in conversations, where a request does not: "keep", the default,
/// all of them; "strip_thinking", none behind which a message comes; "tool_cycle", those since the last message of a
/// user. squire_model_save writes it into tokenizer_config.json (squire_history), and squire_model_load reads it there;
/// squire_model_info tells it. Counts from the next request on. SQUIRE_E_ARGUMENT (detail BAD_VALUE) for another name.
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_model_set_history(
    model: *mut squire_model,
    history: *const c_char,
    history_len: usize,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let model = call.shared(model)?;
            model.set_history(History::named(input::text(history, history_len, "history")?)?);
            Ok(Outcome::Done)
        })
    }
}

/// Writes the current revision as a Hugging Face folder that loads again, with the tokenizer and template that the model
/// came with. Where it has an adapter that is merged, as squire_adapter_merge does, which takes the memory of the base once
/// more (SQUIRE_E_BUDGET beyond host_budget); squire_adapter_save writes the adapter alone. It is written aside and moved into place, which holds the old folder or the new one at every moment; one that
/// is there already is replaced if it is empty or holds what squire_model_save writes and nothing else: config.json,
/// model.safetensors, the documents of tokenizer and template, no links, no other folders. Else SQUIRE_E_IO, as for what cannot be written. What a save
/// that was killed has left beside the place goes with the next one. Blocks. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_model_save(
    model: *const squire_model,
    path: *const c_char,
    path_len: usize,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let model = call.shared(model)?;
            model.save(input::path(path, path_len, "path")?)?;
            Ok(Outcome::Done)
        })
    }
}

/// The ids of a text, of any length: besides them it takes up to 24 bytes of memory for each byte of the longest piece that
/// the tokenizer does not cut, such as a word. flags: SQUIRE_TOKENIZE_CONTROL or 0. SQUIRE_E_IO (detail MISSING_FILE) if the
/// model has no tokenizer, SQUIRE_E_HOST_MEMORY. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_tokenize(
    model: *const squire_model,
    text: *const c_char,
    text_len: usize,
    flags: u32,
    out: *mut *mut squire_tokens,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: passed on.
    unsafe { squire_tokenize_until(model, text, text_len, flags, std::ptr::null(), out, err) }
}

/// squire_tokenize that cancel (may be NULL) stops from another thread: SQUIRE_CANCELLED, within milliseconds while tokens are
/// made; a tokenizer's normal form and added tokens are seen to as a whole first, a second or so for 50 MB. For text that may
/// be large: one word of 50 MB takes most of a minute.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_tokenize_until(
    model: *const squire_model,
    text: *const c_char,
    text_len: usize,
    flags: u32,
    cancel: *const squire_cancel,
    out: *mut *mut squire_tokens,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let model = call.shared(model)?;
            let text = input::text(text, text_len, "text")?;
            let control = options::flags(flags, "flags", SQUIRE_TOKENIZE_CONTROL)? & SQUIRE_TOKENIZE_CONTROL != 0;
            let control = if control { Control::All } else { Control::None };
            let mut ids = Vec::new();
            let room = Room { ids: usize::MAX, watch: &cancel::watch(call, cancel)? };
            model.tokenizer()?.encode_within(text, control, room, &mut ids)?;
            Ok(ids.into())
        })
    }
}

/// The text of ids; bytes that are not UTF-8 become U+FFFD. flags: SQUIRE_DETOKENIZE_SKIP_SPECIAL or 0.
/// SQUIRE_E_ARGUMENT for ids outside the vocabulary, SQUIRE_E_IO (detail MISSING_FILE) if the model has no tokenizer.
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_detokenize(
    model: *const squire_model,
    ids: *const i32,
    ids_len: usize,
    flags: u32,
    out: *mut *mut squire_text,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let model = call.shared(model)?;
            let ids = input::ids(ids, ids_len, "ids")?;
            let skip = options::flags(flags, "flags", SQUIRE_DETOKENIZE_SKIP_SPECIAL)?;
            model.check_ids(ids)?;
            let text = model.tokenizer()?.decode(ids, skip & SQUIRE_DETOKENIZE_SKIP_SPECIAL != 0);
            Ok(CText::new(&text))
        })
    }
}
