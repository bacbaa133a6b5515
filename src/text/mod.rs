//! Text: the tokenizer, ids back into text, the chat template, and who wrote what.
#![forbid(unsafe_code)]

mod added_tokens;
mod aside;
mod bpe;
mod byte_level;
pub mod chat;
pub mod history;
mod jinja;
mod json;
mod json_text;
mod messages;
mod normalizer;
pub mod parts;
mod pattern;
mod pre_tokenizer;
mod reading;
pub mod request;
pub mod source;
mod stops;
pub mod stream;
mod template;
pub mod tokenizer;
mod turn;
mod until_stop;
mod watch;

pub use chat::{After, ChatTemplate, RenderOptions, encode_append, encode_append_within, encode_chat, notices};
pub use history::History;
pub use json::Json;
pub use parts::{Part, PartStream, ToolCall};
pub use request::ChatRequest;
pub use stops::{MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS, check_stop_strings};
pub use stream::TextStream;
pub use tokenizer::{Control, Room, Tokenizer};
pub use turn::{end_of_turn, generation_prompt, unsaid};
pub use until_stop::{StopFound, TextUntilStop};
pub use watch::Watch;

#[cfg(test)]
#[path = "../../tests/support/tiny_tokenizer.rs"]
pub(crate) mod tiny_tokenizer;
