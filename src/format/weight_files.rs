//! A folder's weights: one safetensors file, or shards with an index.
//!
//! The index may name plain files of the folder and nothing else: it comes with the download. A link is the user's own,
//! so it is followed wherever it leads: hub caches are folders of links, moved to other disks and linked again.
#![forbid(unsafe_code)]

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use super::document;
use super::not_a_model;
use super::safetensors::{self, StoredTensor};
use super::tensor_names::canonical;
use crate::error::{Error, Fault, Result, brief};

/// The one file.
pub(super) const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const HEAD: &str = "lm_head.weight";

/// Every tensor of the folder by its canonical name, without the buffers of rotary frequencies that old versions of
/// transformers stored: those follow from config.json. `tied`: config.json says that the head is the embedding.
pub(super) fn read(dir: &Path, tied: bool, warnings: &mut Vec<String>) -> Result<BTreeMap<String, StoredTensor>> {
    let single = dir.join(WEIGHTS);
    let mut tensors = if single.symlink_metadata().is_ok() {
        let stored: BTreeMap<String, StoredTensor> = safetensors::read(&single)?.into_iter().collect();
        let names = canonical(stored.keys().map(String::as_str)).map_err(|e| e.within(single.display()))?;
        names.into_iter().map(|(name, stored_name)| (name, stored[stored_name].clone())).collect()
    } else {
        read_shards(dir, tied, warnings)?
    };
    tensors.retain(|name, _| !is_frequencies(name));
    Ok(tensors)
}

fn is_frequencies(name: &str) -> bool {
    name == "rotary_emb.inv_freq" || name.ends_with(".rotary_emb.inv_freq")
}

fn read_shards(dir: &Path, tied: bool, warnings: &mut Vec<String>) -> Result<BTreeMap<String, StoredTensor>> {
    let at = dir.join(INDEX);
    let shown = at.display();
    let Some(index) = document::read_object(&at, document::INDEX)? else {
        return Err(not_a_model::folder_without(dir, &format!("{WEIGHTS} or {INDEX}")));
    };
    let form = |why: String| Error::new(Fault::IndexForm, format!("{why}; download the index again")).within(&shown);
    let map = index.get("weight_map").and_then(Value::as_object);
    let map: &Map<String, Value> =
        map.ok_or_else(|| form("weight_map: wanted an object of tensors and their files, found none".into()))?;
    let mut shard_of = BTreeMap::new();
    for (name, listed) in canonical(map.keys().map(String::as_str)).map_err(|e| e.within(&shown))? {
        let shard = map[listed].as_str();
        let shard = shard.ok_or_else(|| {
            form(format!("tensor {}: wanted a file name, found {}", brief(listed), brief(&map[listed])))
        })?;
        shard_of.insert(name, shard);
    }
    let shards: BTreeSet<&str> = shard_of.values().copied().collect();
    let mut stored: Vec<(String, &str, StoredTensor)> = Vec::new();
    for shard in shards {
        let tensors = safetensors::read(&shard_path(dir, shard)?)?;
        stored.extend(tensors.into_iter().map(|(name, tensor)| (name, shard, tensor)));
    }
    let mut of_name: BTreeMap<&str, (&str, &StoredTensor)> = BTreeMap::new();
    for (name, shard, tensor) in &stored {
        match of_name.entry(name) {
            Entry::Vacant(slot) => slot.insert((shard, tensor)),
            Entry::Occupied(slot) => {
                let other = slot.get().0;
                let name = brief(name);
                let why = format!("tensor {name}: {other} and {shard} both hold it; download both again");
                return Err(Error::new(Fault::SafetensorsDuplicate, why).within(&shown));
            }
        };
    }
    let mut tensors = BTreeMap::new();
    for (name, stored_name) in canonical(of_name.keys().copied()).map_err(|e| e.within(dir.display()))? {
        let (shard, tensor) = of_name[stored_name];
        let wrong = |fault, why: String| {
            let name = brief(stored_name);
            let why = format!("tensor {name}: {shard} holds it, {why}; index and shards are not of one save");
            Err(Error::new(fault, why).within(&shown))
        };
        match shard_of.get(&name) {
            _ if is_frequencies(&name) => continue,
            None => return wrong(Fault::TensorExtra, "the index does not list it".into()),
            Some(&listed) if listed != shard => {
                return wrong(Fault::SafetensorsDuplicate, format!("the index places it in {}", brief(listed)));
            }
            Some(_) => tensors.insert(name, tensor.clone()),
        };
    }
    for (name, shard) in shard_of.iter().filter(|(name, _)| !tensors.contains_key(*name) && !is_frequencies(name)) {
        if tied && name == HEAD {
            let shard = brief(shard);
            warnings.push(format!("{INDEX}: it lists {HEAD}, which {shard} does not hold; the embedding is used"));
            continue;
        }
        let why = format!("tensor {}: {} does not hold it; download both again", brief(name), brief(shard));
        return Err(Error::new(Fault::IndexTensor, why).within(&shown));
    }
    Ok(tensors)
}

/// The path of a shard: a plain name, and nothing that leads out of the folder.
fn shard_path(dir: &Path, shard: &str) -> Result<PathBuf> {
    let refuse = |fault, why: &str| {
        let shard = brief(format_args!("{shard:?}"));
        Err(Error::new(fault, format!("shard {shard}: {why}")).within(dir.join(INDEX).display()))
    };
    let mut components = Path::new(shard).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    if !plain || shard.contains(['/', '\\', '\0']) {
        return refuse(Fault::IndexPath, "wanted the bare name of a file in the folder; do not trust this index");
    }
    let path = dir.join(shard);
    if path.symlink_metadata().is_err() {
        return refuse(Fault::MissingFile, "there is no such file in the folder; download it too");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Dtype, Shape};

    fn write(path: &Path, names: &[&str]) {
        let tensor = |name| (name, Dtype::F32, Shape::new(&[1]).unwrap(), &[0u8; 4][..]);
        safetensors::write(path, names.iter().copied().map(tensor)).unwrap();
    }

    fn names(dir: &Path) -> Vec<String> {
        read(dir, false, &mut Vec::new()).unwrap().into_keys().collect()
    }

    #[cfg(unix)]
    #[test]
    fn links_to_shards_are_followed_wherever_they_lead() {
        use std::os::unix::fs::symlink;
        let (cache, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (blobs, dir) = (cache.path().join("blobs"), cache.path().join("snapshots/abc"));
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::create_dir_all(&dir).unwrap();
        write(&blobs.join("123"), &["x"]);
        write(&disk.path().join("456"), &["y"]);
        symlink(disk.path().join("456"), blobs.join("456")).unwrap();
        symlink("../../blobs/123", dir.join("a.safetensors")).unwrap(); // as a hub cache has them
        symlink(blobs.join("456"), dir.join("b.safetensors")).unwrap(); // on another disk, by way of the cache
        std::fs::write(dir.join(INDEX), r#"{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}"#).unwrap();
        assert_eq!(names(&dir), ["x", "y"]);
        let moved = disk.path().join("home");
        symlink(cache.path(), &moved).unwrap();
        assert_eq!(names(&moved.join("snapshots/abc")), ["x", "y"]);
    }

    #[test]
    fn the_names_of_index_and_shards_need_not_have_the_same_prefix() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("a"), &["module.model.embed_tokens.weight", "module.lm_head.weight"]);
        let map = r#"{"weight_map": {"embed_tokens.weight": "a", "lm_head.weight": "a"}}"#;
        std::fs::write(dir.path().join(INDEX), map).unwrap();
        assert_eq!(names(dir.path()), [HEAD, "model.embed_tokens.weight"]);
    }

    #[test]
    fn rotary_frequencies_are_passed_over_in_a_file_and_in_shards() {
        let dir = tempfile::tempdir().unwrap();
        let stored = ["embed_tokens.weight", "layers.0.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq"];
        write(&dir.path().join("a"), &stored);
        std::fs::write(dir.path().join(INDEX), r#"{"weight_map": {"embed_tokens.weight": "a"}}"#).unwrap();
        assert_eq!(names(dir.path()), ["model.embed_tokens.weight"]);
        write(&dir.path().join(WEIGHTS), &stored);
        assert_eq!(names(dir.path()), ["model.embed_tokens.weight"]);
    }

    #[test]
    fn a_tied_head_that_the_index_lists_in_vain_is_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("a"), &["model.embed_tokens.weight"]);
        let map = r#"{"weight_map": {"model.embed_tokens.weight": "a", "lm_head.weight": "a"}}"#;
        std::fs::write(dir.path().join(INDEX), map).unwrap();
        let mut warnings = Vec::new();
        assert_eq!(read(dir.path(), true, &mut warnings).unwrap().len(), 1);
        assert!(warnings.len() == 1 && warnings[0].contains(HEAD), "{warnings:?}");
        assert_eq!(read(dir.path(), false, &mut warnings).unwrap_err().fault(), Fault::IndexTensor);
    }
}
