//! The documents of a folder: read whole, and only so far as such a document goes.
//!
//! Each kind has a bound on its bytes and one on its values, some times what the largest real one has: what a parsed
//! document takes is decided by its values more than by its bytes, and by nothing else. What is no regular file, or is too
//! long, is refused before any of it is read; a file that grows meanwhile is refused as it passes its bound.
#![forbid(unsafe_code)]

use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::mmap::{fault_at, open_regular};
use super::{json, not_a_model};
use crate::error::{Error, Fault, Result};
use crate::memory;

/// A kind of document.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    /// The fault of one that is broken or too long.
    pub(crate) fault: Fault,
    /// The most bytes.
    pub(crate) bytes: usize,
    /// The most values, where it is JSON.
    pub(crate) values: usize,
}

/// config.json: some kilobytes, with the labels of a classifier or the layers of a quantisation a hundred.
pub(super) const CONFIG: Kind = Kind { fault: Fault::ConfigForm, bytes: 1 << 20, values: 1 << 16 };
/// generation_config.json: a kilobyte.
pub(super) const GENERATION_CONFIG: Kind = Kind { fault: Fault::GenerationConfigForm, ..CONFIG };
/// tokenizer_config.json: it lists added tokens once more; of a model with 32,768 picture tokens it has 6 MB.
pub(super) const TOKENIZER_CONFIG: Kind = Kind { fault: Fault::TokenizerConfigForm, bytes: 16 << 20, values: 1 << 19 };
/// The index of shards: 9 MB where there are 90,000 tensors.
pub(super) const INDEX: Kind = Kind { fault: Fault::IndexForm, bytes: 32 << 20, values: 1 << 19 };
/// tokenizer.json: 11 MB of Qwen3, 33 MB of 262,144 tokens. Its values are counted where it is parsed.
pub(crate) const TOKENIZER: Kind = Kind { fault: Fault::TokenizerForm, bytes: 64 << 20, values: usize::MAX };
/// A chat template: 4 kB of Qwen3, tens of others. How long one may be is decided where it is compiled.
pub(super) const TEMPLATE: Kind = Kind { fault: Fault::TemplateForm, bytes: 1 << 20, values: 0 };

/// Reads a document, or None where there is none.
///
/// Errors: `CannotOpen` for what is no regular file; the kind's fault for one too long; `NotTheContent` for what a broken
/// download left; `MissingFile` for a link to nothing; `CannotRead`; `OutOfHostMemory`.
pub(crate) fn read(path: &Path, kind: Kind) -> Result<Option<Vec<u8>>> {
    let file = match open_regular(path) {
        Err(e) if e.fault() == Fault::MissingFile && path.symlink_metadata().is_err() => return Ok(None),
        file => file?,
    };
    let length = file.metadata().map_err(|e| fault_at(Fault::CannotRead, path, e))?.len();
    let too_long = || {
        let why = format!("longer than {} bytes, so no such document; download it again", kind.bytes);
        Error::new(kind.fault, why).within(path.display())
    };
    if length > kind.bytes as u64 {
        return Err(too_long());
    }
    let what = path.file_name().unwrap_or_default().to_string_lossy();
    // A byte more tells a file that has grown.
    let mut bytes = memory::reserved(length as usize + 1, &what)?;
    file.take(length + 1).read_to_end(&mut bytes).map_err(|e| fault_at(Fault::CannotRead, path, e))?;
    if bytes.len() as u64 > length {
        let why = "it grew while it was read; wait until it is written";
        return Err(Error::new(kind.fault, why).within(path.display()));
    }
    match not_a_model::content(&bytes) {
        None => Ok(Some(bytes)),
        Some(what) => Err(Error::new(Fault::NotTheContent, what).within(path.display())),
    }
}

/// Reads a JSON object, or None where there is no such file.
pub(super) fn read_object(path: &Path, kind: Kind) -> Result<Option<Value>> {
    let Some(bytes) = read(path, kind)? else { return Ok(None) };
    if bytes.trim_ascii().is_empty() {
        return Err(empty(path));
    }
    object(&bytes, kind).map(Some).map_err(|e| e.within(path.display()))
}

/// Reads an object out of its bytes.
///
/// Errors: the kind's fault; `OutOfHostMemory`.
pub(crate) fn object(bytes: &[u8], kind: Kind) -> Result<Value> {
    let refuse = |why: String| Err(Error::new(kind.fault, why));
    let values = memory::json_values(bytes);
    if values > kind.values {
        return refuse(format!("more than {} values, so no such document; download it again", kind.values));
    }
    memory::room_for(memory::json_bytes(bytes.len(), values), "a JSON document")?;
    match json::read(bytes) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => refuse("wanted a JSON object, found another value; download the file again".into()),
        Err(e) => refuse(format!("wanted JSON, found what does not parse ({e}); mend the file or download it again")),
    }
}

/// The refusal of an empty file.
pub(super) fn empty(path: &Path) -> Error {
    Error::new(Fault::NotTheContent, "is empty; download it again").within(path.display())
}
