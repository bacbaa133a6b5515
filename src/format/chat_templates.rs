//! Where a folder keeps its chat templates, read and written back as transformers does.
//!
//! There are two layouts. Files: `chat_template.jinja` is the default, `additional_chat_templates/NAME.jinja` the
//! others. Or an entry `chat_template` of tokenizer_config.json: a text, or a list of `{name, template}`. Where there
//! is any file, the entry does not count. A template is written back where it was read, since a file that was not there
//! before would hide the entry's other templates.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::{document, durable};
use crate::error::{Error, Fault, Result};

pub(super) const CHAT_TEMPLATE: &str = "chat_template.jinja";
pub(super) const ADDITIONAL: &str = "additional_chat_templates";
/// The name of the template in `chat_template.jinja`.
const DEFAULT: &str = "default";
/// The most templates a folder may have.
const MAX_TEMPLATES: usize = 64;

/// A folder's chat templates.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatTemplates {
    /// Their texts by name; the only one of a folder is `default`.
    pub by_name: BTreeMap<String, String>,
    /// Whether they lie in files of their own.
    pub in_files: bool,
}

impl ChatTemplates {
    /// One template, to be written as `chat_template.jinja`.
    pub fn of(template: &str) -> ChatTemplates {
        ChatTemplates { by_name: [(DEFAULT.to_string(), template.to_string())].into(), in_files: true }
    }

    /// Finds a folder's templates.
    ///
    /// Errors: `TemplateForm` for a file that is not UTF-8 or too long; `TokenizerConfigForm`.
    pub(super) fn read(dir: &Path, tokenizer_config: Option<&Value>) -> Result<ChatTemplates> {
        let mut by_name = BTreeMap::new();
        if let Some(text) = read_template(&dir.join(CHAT_TEMPLATE))? {
            by_name.insert(DEFAULT.to_string(), text);
        }
        let additional = dir.join(ADDITIONAL);
        for (name, path) in template_files(&additional)? {
            if let Some(text) = read_template(&path)? {
                by_name.insert(name, text);
            }
        }
        if !by_name.is_empty() {
            return Ok(ChatTemplates { by_name, in_files: true });
        }
        Ok(ChatTemplates { by_name: entry_of(tokenizer_config)?, in_files: false })
    }

    /// Writes those that lie in files into a folder.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        for (name, text) in self.by_name.iter().filter(|_| self.in_files) {
            let path = if name == DEFAULT {
                dir.join(CHAT_TEMPLATE)
            } else {
                let additional = dir.join(ADDITIONAL);
                let cannot = |e| Error::new(Fault::CannotWrite, format!("{}: {e}", additional.display()));
                std::fs::create_dir_all(&additional).map_err(cannot)?;
                additional.join(format!("{name}.jinja"))
            };
            durable::write_file(&path, |file| file.write_all(text.as_bytes()))?;
        }
        Ok(())
    }
}

fn read_template(path: &Path) -> Result<Option<String>> {
    let Some(bytes) = document::read(path, document::TEMPLATE)? else { return Ok(None) };
    let not_text =
        |e| Error::new(Fault::TemplateForm, format!("not UTF-8: {e}; save it as UTF-8")).within(path.display());
    String::from_utf8(bytes).map(Some).map_err(not_text)
}

/// The templates of a folder `additional_chat_templates`, by name; none where there is no such folder.
fn template_files(folder: &Path) -> Result<Vec<(String, std::path::PathBuf)>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let cannot = |e| Error::new(Fault::CannotRead, format!("{}: {e}", folder.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        if let (Some(name), true) = (stem, path.extension().is_some_and(|x| x == "jinja")) {
            files.push((name.to_string(), path.clone()));
        }
        if files.len() > MAX_TEMPLATES {
            let why = format!("{}: more than the {MAX_TEMPLATES} templates allowed", folder.display());
            return Err(Error::new(Fault::TemplateForm, why));
        }
    }
    Ok(files)
}

/// The templates of tokenizer_config.json.
fn entry_of(tokenizer_config: Option<&Value>) -> Result<BTreeMap<String, String>> {
    let wrong = || {
        let why = "tokenizer_config.json: chat_template: wanted a string or a list of {name, template}";
        Error::new(Fault::TokenizerConfigForm, why)
    };
    match tokenizer_config.and_then(|c| c.get("chat_template")) {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(Value::String(template)) => Ok([(DEFAULT.to_string(), template.clone())].into()),
        Some(Value::Array(list)) if list.len() <= MAX_TEMPLATES => list
            .iter()
            .map(|entry| {
                let text = |key| Some(entry.get(key)?.as_str()?.to_string());
                text("name").zip(text("template")).ok_or_else(wrong)
            })
            .collect(),
        Some(_) => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn names(templates: &ChatTemplates) -> Vec<(&str, &str)> {
        templates.by_name.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect()
    }

    #[test]
    fn the_entry_of_tokenizer_config_is_a_text_or_a_list_with_names() {
        let dir = tempfile::tempdir().unwrap();
        let read = |config: &Value| ChatTemplates::read(dir.path(), Some(config));
        assert_eq!(ChatTemplates::read(dir.path(), None).unwrap(), ChatTemplates::default());
        assert_eq!(read(&json!({"chat_template": null})).unwrap(), ChatTemplates::default());
        assert_eq!(names(&read(&json!({"chat_template": "t"})).unwrap()), [("default", "t")]);
        let list = json!({"chat_template": [
            {"name": "tool_use", "template": "u"}, {"name": "default", "template": "d"}]});
        assert_eq!(names(&read(&list).unwrap()), [("default", "d"), ("tool_use", "u")]);
        for wrong in [json!(1), json!([{"name": "x"}]), json!(["t"]), json!({"default": "t"})] {
            let e = read(&json!({ "chat_template": wrong })).unwrap_err();
            assert_eq!(e.fault(), Fault::TokenizerConfigForm, "{wrong}");
        }
    }

    #[test]
    fn files_hide_the_entry_and_lie_where_they_lay_after_writing() {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({"chat_template": [{"name": "default", "template": "d"}, {"name": "rag", "template": "r"}]});
        let entry = ChatTemplates::read(dir.path(), Some(&config)).unwrap();
        let copy = tempfile::tempdir().unwrap();
        entry.write(copy.path()).unwrap();
        assert_eq!(std::fs::read_dir(copy.path()).unwrap().count(), 0, "a file would hide the entry");

        std::fs::create_dir(dir.path().join(ADDITIONAL)).unwrap();
        std::fs::write(dir.path().join(ADDITIONAL).join("tool_use.jinja"), "u").unwrap();
        std::fs::write(dir.path().join(ADDITIONAL).join("notes.txt"), "no template").unwrap();
        let additional = ChatTemplates::read(dir.path(), Some(&config)).unwrap();
        assert_eq!(names(&additional), [("tool_use", "u")], "as transformers: no default then");
        std::fs::write(dir.path().join(CHAT_TEMPLATE), "f").unwrap();
        let files = ChatTemplates::read(dir.path(), Some(&config)).unwrap();
        assert_eq!(names(&files), [("default", "f"), ("tool_use", "u")]);
        files.write(copy.path()).unwrap();
        assert_eq!(ChatTemplates::read(copy.path(), None).unwrap(), files);
    }

    #[test]
    fn a_template_that_is_not_text_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CHAT_TEMPLATE), b"\xff").unwrap();
        let e = ChatTemplates::read(dir.path(), None).unwrap_err();
        assert_eq!(e.fault(), Fault::TemplateForm);
        assert!(e.message().contains("UTF-8"), "{e}");
    }
}
