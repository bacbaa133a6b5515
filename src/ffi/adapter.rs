//! Adapters (LoRA) of a model: loaded under names, many at once, saved as PEFT does, merged.

use std::ffi::c_char;

use super::error::squire_error;
use super::guard::{Outcome, guard, guard_out};
use super::input;
use super::model::squire_model;
use super::output::Slot;
use super::session::squire_session;
use super::status::squire_status;
use crate::error::Result;
use crate::serve::Session;

/// A name, or None for NULL.
///
/// # Safety
/// As [`input::text`].
pub(crate) unsafe fn optional_name<'a>(name: *const c_char, len: usize, what: &str) -> Result<Option<&'a str>> {
    if name.is_null() && len == 0 {
        return Ok(None);
    }
    // SAFETY: passed on.
    unsafe { input::text(name, len, what) }.map(Some)
}

/// Loads an adapter over the model's current base weights, under a name of 1 to 256 bytes: a folder in the form of PEFT
/// (adapter_config.json, adapter_model.safetensors), of LoRA on the projections q_proj, k_proj, v_proj, o_proj, gate_proj,
/// up_proj, down_proj. Many may be loaded at once, and rows of all of them run in one pass over the base. A name that is
/// there already stands for the new one from then on; sessions on the old one keep it. *revision, unless revision is NULL,
/// gets the number of its revision, which events and traces name: from 1000000001 on, while what is published counts from 1.
/// A name has no control characters. What the adapter's dropout was in training has no meaning
/// here. SQUIRE_E_IO for files that cannot be read, SQUIRE_E_FORMAT (ADAPTER_FORM) for a configuration that is broken,
/// SQUIRE_E_UNSUPPORTED for what squire does not compute (UNSUPPORTED_ADAPTER) and for a model on a GPU
/// (UNSUPPORTED_BACKEND), SQUIRE_E_MISMATCH (ADAPTER_MISMATCH, TENSOR_MISSING, TENSOR_EXTRA, TENSOR_SHAPE) for an adapter of
/// another model, rank or target or, where squire wrote it, of other base weights, SQUIRE_E_FORMAT (TENSOR_NAMES) for two names
/// of one tensor, SQUIRE_E_DIVERGED (NOT_FINITE) for numbers that are none, SQUIRE_E_BUDGET beyond host_budget. A call that
/// fails changes nothing. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_adapter_load(
    model: *mut squire_model,
    name: *const c_char,
    name_len: usize,
    path: *const c_char,
    path_len: usize,
    revision: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let model = call.shared(model)?;
            let (name, path) = (input::text(name, name_len, "name")?, input::path(path, path_len, "path")?);
            let revision = Slot::optional(revision, "revision")?;
            revision.set(model.load_adapter(name, path)?);
            Ok(Outcome::Done)
        })
    }
}

/// Forgets the adapter of that name; sessions on it keep it, and its memory goes with the last of them. SQUIRE_E_ARGUMENT
/// (UNKNOWN_ADAPTER) where there is none. squire_model_info lists those that are loaded. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_adapter_unload(
    model: *mut squire_model,
    name: *const c_char,
    name_len: usize,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            call.shared(model)?.unload_adapter(input::text(name, name_len, "name")?)?;
            Ok(Outcome::Done)
        })
    }
}

/// Writes an adapter as a folder that PEFT and squire_adapter_load read: the one of that name, or for a NULL name that of
/// the model's current revision, which a distiller trained. The folder appears whole or not at all; one that is there
/// already is replaced if it is empty or holds an adapter and nothing else, else SQUIRE_E_IO. SQUIRE_E_ARGUMENT
/// (UNKNOWN_ADAPTER) where there is no such adapter. Blocks. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_adapter_save(
    model: *const squire_model,
    name: *const c_char,
    name_len: usize,
    path: *const c_char,
    path_len: usize,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let model = call.shared(model)?;
            let name = optional_name(name, name_len, "name")?;
            model.save_adapter(name, input::path(path, path_len, "path")?)?;
            Ok(Outcome::Done)
        })
    }
}

/// Folds an adapter into the base weights, W + s B A rounded to the dtype of W, and makes the result the revision that new
/// sessions get, whose number goes to *revision unless revision is NULL: the adapter of that name, or for a NULL name that
/// of the current revision. The merged model is a model of its own, near the adapted one and not bit for bit the same.
/// Adapters that were loaded belong to the base before: new sessions cannot use them (ADAPTER_MISMATCH) until they are
/// loaded again, sessions on them keep them. SQUIRE_E_ARGUMENT (UNKNOWN_ADAPTER), SQUIRE_E_BUDGET beyond host_budget,
/// SQUIRE_E_DIVERGED (NOT_FINITE) where the sum is beyond the base's dtype, and SQUIRE_E_MISMATCH (ADAPTER_MISMATCH), with
/// nothing changed, where somebody published while it was computed. Blocks. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_adapter_merge(
    model: *mut squire_model,
    name: *const c_char,
    name_len: usize,
    revision: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let model = call.shared(model)?;
            let name = optional_name(name, name_len, "name")?;
            let revision = Slot::optional(revision, "revision")?;
            revision.set(model.merge_adapter(name, usize::MAX)?);
            Ok(Outcome::Done)
        })
    }
}

/// Makes an empty session on the newest generation of the adapter of that name, which it keeps until squire_session_rebase
/// (to the newest of the same name) or squire_session_use_adapter. SQUIRE_E_ARGUMENT (UNKNOWN_ADAPTER) where none of that
/// name is loaded, SQUIRE_E_MISMATCH (ADAPTER_MISMATCH) where other base weights were published since, SQUIRE_E_BUDGET if
/// max_sessions exist. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_session_create_on(
    model: *mut squire_model,
    adapter: *const c_char,
    adapter_len: usize,
    out: *mut *mut squire_session,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let model = call.shared(model)?;
            Session::with_adapter(&model, input::text(adapter, adapter_len, "adapter")?)
        })
    }
}

/// Moves the session to the newest generation of an adapter, or for a NULL adapter to the model's current revision; the
/// number of where it is then goes to *revision unless revision is NULL. The ids stay; what was computed under other
/// weights is computed again when it is needed. Errors as squire_session_create_on, after which the session is where it was;
/// SQUIRE_E_BUSY while a generation runs. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_session_use_adapter(
    session: *mut squire_session,
    adapter: *const c_char,
    adapter_len: usize,
    revision: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let session = call.subject(session)?;
            let adapter = optional_name(adapter, adapter_len, "adapter")?;
            let revision = Slot::optional(revision, "revision")?;
            revision.set(session.use_adapter(adapter)?);
            Ok(Outcome::Done)
        })
    }
}
