//! The documents of a model folder from outside: parts of the input, divided by NUL, are the files.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use squire::format::ModelDir;
use squire::serve::Documents;
use squire::text::tokenizer::Control;

const FILES: [&str; 5] =
    ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "config.json"];

fuzz_target!(|data: &[u8]| {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder to write into");
        let header = br#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let weights = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
        std::fs::write(folder.path().join("model.safetensors"), weights).expect("the weights");
        folder
    });
    let mut parts = data.split(|&b| b == 0);
    for name in FILES {
        let path = folder.path().join(name);
        match parts.next() {
            Some(bytes) if !bytes.is_empty() => std::fs::write(path, bytes).expect("a file"),
            _ if name == "config.json" => std::fs::write(path, "{}").expect("a file"),
            _ => drop(std::fs::remove_file(path)),
        }
    }
    let short = |e: squire::error::Error| assert!(e.message().len() < 2000, "a message of {} bytes", e.message().len());
    let mut dir = match ModelDir::open(folder.path()) {
        Ok(dir) => dir,
        Err(e) => return short(e),
    };
    dir.generation_defaults();
    match Documents::read(&mut dir, 1 << 17) {
        Err(e) => short(e),
        Ok(documents) => {
            if let Some(tokenizer) = documents.tokenizer {
                for text in ["hello  wörld 123 <|im_end|>", "\u{1f1e6}a\u{301}\n\n  x", ""] {
                    for control in [Control::None, Control::All] {
                        let ids = tokenizer.encode(text, control);
                        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.n_ids()));
                        tokenizer.decode(&ids, true);
                    }
                }
            }
        }
    }
});
