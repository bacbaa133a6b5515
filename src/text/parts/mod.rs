//! What a model says, told apart while it is said: its thought, its answer, its tool calls.
//!
//! A model of Qwen3's kind writes `<think>`, a thought, `</think>`, an answer, and calls of tools between `<tool_call>`
//! and `</tool_call>`. [`PartStream`] takes sampled ids and gives [`Part`]s: thought and answer as early as they are
//! certain, a call whole, once it has ended and was checked. What cannot be read as a call is given as text with the
//! reason, so that nothing that was said is lost. The raw text and ids of the generation stay as they are beside it.
//!
//! *Marks.* Where the vocabulary has a mark as an added token, that very id is the mark and text that spells it is text.
//! Where it has none, spelled marks count: opening ones at the start of a line, closing ones where they close something.
//!
//! *White space.* Templates write line ends around marks, and these are part of no text here: those at both ends of a
//! thought, those between a thought and the answer, one before a call, white space between calls.
//!
//! *The beginning.* A generation prompt may have opened a thought, or closed an empty one, and a generation may go on where
//! another stopped. A stream is therefore shown what stands of the turn before it begins.
//!
//! | file | holds |
//! |---|---|
//! | `part` | what is told apart |
//! | `mark` | the four marks |
//! | `parser` | text and marks to parts |
//! | `stream` | ids to text and marks |
//! | `call` | the text of a call to name and arguments: Qwen3's JSON |
//! | `coder` | the same of Qwen3-Coder's XML |
//! | `tools` | what tools say of the types of their parameters |
#![forbid(unsafe_code)]

mod call;
mod coder;
mod mark;
mod parser;
mod part;
mod stream;
mod tools;

pub use mark::Mark;
pub use parser::PartParser;
pub use part::{Part, ToolCall, joined};
pub use stream::PartStream;
pub(crate) use stream::open_turn;
pub use tools::Tools;
