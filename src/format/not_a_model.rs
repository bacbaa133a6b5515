//! What is often found where a model was meant, told from its first bytes or from the names in its folder, so that a
//! refusal says what it is and what to do instead of how it fails to parse.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::path::Path;

use super::mmap::{fault_at, open_regular};
use crate::error::{Error, Fault, Result};

/// Entries of a folder that are looked at.
const MAX_ENTRIES: usize = 10_000;
/// Bytes of a file that are looked at.
const FIRST: u64 = 512;

/// What the bytes of a file are in place of its content, with the remedy; None where they may be the content.
pub(super) fn content(bytes: &[u8]) -> Option<&'static str> {
    let bytes = super::json::without_mark(&bytes[..bytes.len().min(FIRST as usize)]).trim_ascii_start();
    let begins = |word: &str| bytes.get(..word.len()).is_some_and(|b| b.eq_ignore_ascii_case(word.as_bytes()));
    if begins("version https://git-lfs") || begins("version https://hawser") {
        return Some("is a Git LFS pointer, not the content; fetch it with git lfs pull");
    }
    if begins("<!doctype html") || begins("<html") {
        return Some(
            "is an HTML page, not the content: a download link gave a web page (a log-in or an error); download it \
             again, signed in if the model asks for that",
        );
    }
    if begins("<?xml") || begins("<error><code>") {
        return Some("is an XML answer of a server, not the content; download the file again");
    }
    if begins("{\"error\"")
        || ["Entry not found", "Invalid username or password", "Not Found"].iter().any(|w| begins(w))
    {
        return Some(
            "is a server's refusal, not the content; download the file again, signed in if the model asks for that",
        );
    }
    if bytes.starts_with(b"\x1f\x8b") {
        return Some("is compressed by gzip; unpack it (gunzip), or download it again if it was cut short");
    }
    if bytes.starts_with(b"PK\x03\x04") {
        return Some(
            "is a zip archive or a PyTorch pickle, not the content; unpack it, or save the model with \
             save_pretrained(safe_serialization=True)",
        );
    }
    if bytes.starts_with(b"GGUF") {
        return Some(
            "is a GGUF file, which squire does not read; it reads the safetensors that the GGUF was made from",
        );
    }
    None
}

/// The same for a file that is too long to be read whole; an unreadable one is None.
pub(super) fn content_of(path: &Path) -> Option<&'static str> {
    let mut first = Vec::new();
    open_regular(path).ok()?.take(FIRST).read_to_end(&mut first).ok()?;
    if first.is_empty() { Some("is empty; download it again") } else { content(&first) }
}

/// Refuses a path that is not a folder. Errors: `MissingFile` for nothing, `NotAModel` for a file.
pub(super) fn check_folder(path: &Path) -> Result<()> {
    let shown = path.display();
    let at = match path.metadata() {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(fault_at(Fault::CannotOpen, path, e)),
        at => at.ok(),
    };
    let Some(at) = at else {
        if let Ok(target) = path.read_link() {
            let why = format!("{shown}: is a link to {}, which is not there", target.display());
            return Err(Error::new(Fault::MissingFile, why));
        }
        let remedy = match hub_name(&path.to_string_lossy()) {
            Some(name) => {
                let folder = name.rsplit('/').next().unwrap_or(&name);
                format!(
                    "squire loads from disk: download it first, e.g. hf download {name} --local-dir {folder} \
                     (huggingface-cli download in older versions), and give that folder"
                )
            }
            None => "give the path of a model's folder (config.json and safetensors in it)".to_string(),
        };
        return Err(Error::new(Fault::MissingFile, format!("{shown}: is no folder here; {remedy}")));
    };
    if at.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    let why = match (form_of(&ending), content_of(path)) {
        (Some((form, remedy)), _) => format!("{shown}: is {form}; {remedy}"),
        (None, Some(what)) if ending != "json" && ending != "safetensors" => format!("{shown}: {what}"),
        _ => format!("{shown}: is a file; give the folder that holds it: {}", parent.display()),
    };
    Err(Error::new(Fault::NotAModel, why))
}

/// The name of a model on the Hugging Face hub, where a path looks like one.
fn hub_name(path: &str) -> Option<String> {
    let path = ["https://huggingface.co/", "http://huggingface.co/", "huggingface.co/", "hf://"]
        .iter()
        .find_map(|start| path.strip_prefix(start))
        .unwrap_or(path);
    let parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
    let plain = |part: &&str| {
        let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.bytes().all(known)
    };
    (parts.len() >= 2 && parts[..2].iter().all(plain) && (parts.len() == 2 || parts[2] == "tree"))
        .then(|| parts[..2].join("/"))
}

/// What files of this ending hold and what to do about it, where it is a form of weights that squire does not read.
fn form_of(ending: &str) -> Option<(&'static str, &'static str)> {
    Some(match ending {
        "gguf" | "ggml" => (
            "a GGUF file, which squire does not read",
            "give the folder of the model that it was made from, with config.json and safetensors",
        ),
        "bin" | "pt" | "pth" | "ckpt" | "pkl" => (
            "a PyTorch pickle, which squire does not read",
            "load it in Python and save it with save_pretrained(folder, safe_serialization=True)",
        ),
        "onnx" => (
            "an ONNX file, which squire does not read",
            "give the folder of the model that it was made from, with config.json and safetensors",
        ),
        "mlx" | "npz" => (
            "an MLX file, which squire does not read",
            "give the folder of the model that it was made from, with config.json and safetensors",
        ),
        "h5" | "msgpack" | "tflite" => (
            "a file of another framework, which squire does not read",
            "load it in Python with transformers and save it with save_pretrained(folder, safe_serialization=True)",
        ),
        _ => return None,
    })
}

/// The refusal of a folder in which `missing` is not: what is there instead, and what to do.
pub(super) fn folder_without(dir: &Path, missing: &str) -> Error {
    let refuse = |fault, why: String| Error::new(fault, format!("{}: there is no {missing}: {why}", dir.display()));
    let mut names = BTreeSet::new();
    for entry in dir.read_dir().into_iter().flatten().take(MAX_ENTRIES).flatten() {
        names.insert(entry.file_name().to_string_lossy().into_owned());
    }
    let holds = |name: &str| names.contains(name);
    let first = |wanted: &dyn Fn(&str) -> bool| names.iter().find(|name| wanted(name)).map(String::as_str);
    if names.is_empty() {
        return refuse(
            Fault::MissingFile,
            "the folder is empty; give the folder that the model was downloaded to".into(),
        );
    }
    if holds("adapter_config.json") {
        return refuse(
            Fault::UnmergedAdapter,
            "the folder holds an adapter (adapter_config.json) and not the model; merge it into its base first: in \
             Python, load it with peft, then merge_and_unload() and save_pretrained()"
                .into(),
        );
    }
    if let Some(snapshot) = snapshot_of(dir) {
        return refuse(Fault::NotAModel, format!("the folder is a model's place in a hub cache; give {snapshot}"));
    }
    if let Some(model) = first(&|name| name.starts_with("models--")) {
        let inner = snapshot_of(&dir.join(model)).unwrap_or_else(|| dir.join(model).display().to_string());
        return refuse(Fault::NotAModel, format!("the folder is a hub cache; give one model in it, e.g. {inner}"));
    }
    if let Some(name) = first(&|name| name.ends_with(".incomplete") || name.ends_with(".part")) {
        return refuse(
            Fault::MissingFile,
            format!("{name} is a download that was broken off; download the model again"),
        );
    }
    if holds("config.json")
        && let Some(name) = first(&|name| name.ends_with(".safetensors"))
    {
        let why = format!(
            "found {name}; shards need their index (model.safetensors.index.json), a whole model is named \
             model.safetensors"
        );
        return refuse(Fault::MissingFile, format!("{why}; download the whole folder, or rename the file"));
    }
    let ending = |name: &str| name.rsplit_once('.').map_or(String::new(), |(_, e)| e.to_ascii_lowercase());
    for name in &names {
        if let Some((form, remedy)) = form_of(&ending(name)).filter(|_| name != "training_args.bin") {
            return refuse(Fault::NotAModel, format!("found {name}, {form}; {remedy}"));
        }
    }
    if !holds("config.json")
        && let Some(name) = first(&|name| dir.join(name).join("config.json").is_file())
    {
        return refuse(Fault::NotAModel, format!("a model lies one folder down; give {}", dir.join(name).display()));
    }
    let found = names.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if names.len() > 5 { " and others" } else { "" };
    refuse(Fault::MissingFile, format!("found {found}{more}; download the whole folder of the model"))
}

/// The snapshot that `dir` leads to, if it is a model's place in a hub cache (`models--owner--name`).
fn snapshot_of(dir: &Path) -> Option<String> {
    let snapshots = dir.join("snapshots");
    let newest = || {
        let mut id = String::new();
        open_regular(&dir.join("refs/main")).ok()?.take(FIRST).read_to_string(&mut id).ok()?;
        let id = id.trim();
        let plain = !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric());
        Some(snapshots.join(id)).filter(|path| plain && path.is_dir())
    };
    let any = || snapshots.read_dir().ok()?.flatten().map(|entry| entry.path()).find(|path| path.is_dir());
    newest().or_else(any).map(|path| path.display().to_string())
}
