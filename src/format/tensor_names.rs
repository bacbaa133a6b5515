//! The names of a folder's tensors, brought to the one form that the model asks for: `model.embed_tokens.weight`,
//! `model.layers.0. ...`, `model.norm.weight`, `lm_head.weight`.
//!
//! Tools that wrap a model put their own words before or between: `module.` (DistributedDataParallel), `_orig_mod.`
//! (torch.compile), `base_model.model.` (PEFT), `model.language_model.` (the text part of a vision model); and
//! `AutoModel.save_pretrained` leaves `model.` out. Whatever stands before `embed_tokens.weight` is taken for the prefix
//! of all, so a prefix that nobody has thought of is understood as well.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::error::{Error, Fault, Result, brief};

/// Words that wrappers put anywhere in a name.
const WRAPPERS: [&str; 4] = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// Words of an adapter that was not merged into its base.
const ADAPTERS: [&str; 7] = [
    "base_layer",
    "lora_A",
    "lora_B",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "modules_to_save",
];
const EMBEDDING: &str = "embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Every name of `names` with the name that the model asks for, sorted by the latter.
///
/// Errors: `UnmergedAdapter` where the tensors are those of an adapter; `TensorNames` where two names become one, or
/// where there are two embeddings.
pub(super) fn canonical<'a>(names: impl Iterator<Item = &'a str>) -> Result<BTreeMap<String, &'a str>> {
    let mut plain: Vec<(String, &str)> = Vec::new();
    for name in names {
        if let Some(word) = name.split('.').find(|part| ADAPTERS.contains(part)) {
            let why = format!(
                "tensor {}: \"{word}\" belongs to an adapter (LoRA) that is not merged; merge it first: in Python, \
                 load it with peft, then merge_and_unload() and save_pretrained()",
                brief(name)
            );
            return Err(Error::new(Fault::UnmergedAdapter, why));
        }
        let parts: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
        plain.push((parts.join("."), name));
    }
    let prefix = prefix_of(&plain)?;
    let mut all = BTreeMap::new();
    for (plain, name) in plain {
        let canonical = match &prefix {
            Some(prefix) => in_place_of(prefix, &plain),
            None => plain,
        };
        match all.entry(canonical) {
            Entry::Vacant(slot) => slot.insert(name),
            Entry::Occupied(slot) => {
                let why = format!(
                    "tensors {} and {} are both {} without the prefixes of wrappers; keep one of them",
                    brief(slot.get()),
                    brief(name),
                    brief(slot.key())
                );
                return Err(Error::new(Fault::TensorNames, why));
            }
        };
    }
    Ok(all)
}

/// What stands before `embed_tokens.weight`; None without an embedding.
fn prefix_of(plain: &[(String, &str)]) -> Result<Option<String>> {
    let mut found: Option<(&str, &str)> = None;
    for (plain, name) in plain {
        let Some(prefix) = plain.strip_suffix(EMBEDDING).filter(|p| p.is_empty() || p.ends_with('.')) else { continue };
        match found {
            Some((other, first)) if other != prefix => {
                let why = format!(
                    "tensors {} and {} are two embeddings, so these are the weights of two models; save the \
                     one that is to be served alone",
                    brief(first),
                    brief(name)
                );
                return Err(Error::new(Fault::TensorNames, why));
            }
            _ => found = Some((prefix, name)),
        }
    }
    Ok(found.map(|(prefix, _)| prefix.to_string()))
}

/// `name` with `model.` in place of `prefix`, or the head, which may stand anywhere on the way to the prefix.
fn in_place_of(prefix: &str, name: &str) -> String {
    let outer = name.strip_suffix(HEAD);
    if outer.is_some_and(|outer| prefix.starts_with(outer) && (outer.is_empty() || outer.ends_with('.'))) {
        return HEAD.to_string();
    }
    name.strip_prefix(prefix).map_or_else(|| name.to_string(), |rest| format!("model.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: [&str; 4] =
        ["model.embed_tokens.weight", "model.layers.0.mlp.gate.weight", "model.norm.weight", "lm_head.weight"];

    fn names(list: &[String]) -> Result<Vec<String>> {
        Ok(canonical(list.iter().map(String::as_str))?.into_keys().collect())
    }

    #[test]
    fn one_prefix_is_taken_off_or_put_on() {
        let mut wanted = PLAIN.map(String::from).to_vec();
        wanted.sort();
        for (inner, head) in [
            ("model.", ""),
            ("", ""),
            ("module.model.", "module."),
            ("_orig_mod.model.", "_orig_mod."),
            ("module._orig_mod.", "module._orig_mod."),
            ("base_model.model.model.", "base_model.model."),
            ("base_model.model.", "base_model."),
            ("model.language_model.", ""),
            ("language_model.model.", "language_model."),
            ("language_model.", ""),
            ("model._orig_mod.", ""),
            ("_fsdp_wrapped_module.model.", "_fsdp_wrapped_module."),
            ("student.net.model.", "student.net."),
        ] {
            let list: Vec<String> = PLAIN
                .iter()
                .map(|name| match name.strip_prefix("model.") {
                    Some(rest) => format!("{inner}{rest}"),
                    None => format!("{head}{name}"),
                })
                .collect();
            assert_eq!(names(&list).unwrap(), wanted, "{inner}");
        }
        let each = ["model.layers.0._orig_mod.mlp.gate.weight".to_string(), PLAIN[0].to_string()];
        assert_eq!(names(&each).unwrap()[1], "model.layers.0.mlp.gate.weight");
    }

    #[test]
    fn what_stands_outside_of_the_prefix_keeps_its_name() {
        let list = ["model.language_model.embed_tokens.weight", "model.visual.merger.weight", "score.weight"];
        let list = list.map(String::from);
        assert_eq!(names(&list).unwrap(), ["model.embed_tokens.weight", "model.visual.merger.weight", "score.weight"]);
    }

    #[test]
    fn two_names_that_become_one_and_two_embeddings_are_refused_naming_both() {
        for (a, b) in [
            ("model.norm.weight", "module.model.norm.weight"),
            ("lm_head.weight", "model.lm_head.weight"),
            ("model.embed_tokens.weight", "embed_tokens.weight"),
            ("model.embed_tokens.weight", "_orig_mod.model.embed_tokens.weight"),
        ] {
            let e = names(&["model.embed_tokens.weight", a, b].map(String::from)[usize::from(a.contains("embed"))..])
                .unwrap_err();
            assert_eq!(e.fault(), Fault::TensorNames);
            assert!(e.message().contains(a) && e.message().contains(b), "{e}");
        }
    }

    #[test]
    fn an_adapter_that_is_not_merged_is_refused_with_the_remedy() {
        for name in [
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
            "base_model.model.lm_head.modules_to_save.default.weight",
        ] {
            let e = names(&[name.to_string()]).unwrap_err();
            assert_eq!(e.fault(), Fault::UnmergedAdapter);
            assert!(e.message().contains(name) && e.message().contains("merge_and_unload"), "{e}");
        }
    }
}
