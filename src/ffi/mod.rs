//! The C boundary: pointers, panics, ownership, UTF-8. It converts and decides nothing.
//!
//! `include/squire.h` is written from these files, one section a file, by `SQUIRE_WRITE_HEADER=1 cargo test --test
//! header`; the same test without the variable fails if they differ. Every export is written out by hand, since the
//! header's generator does not expand macros. The contract of every pointer stands once, at the head of the header.
//!
//! | file | holds |
//! |---|---|
//! | `within` | what a thread is in: a call, with quiet panics and squire's floats, or a callback of the host's |
//! | `guard` | the frame around every call: panics to errors, error slot |
//! | `handle` | objects behind opaque pointers: kinds, references, poison |
//! | `input`, `output`, `options` | arrays and text in; plain values out; structs that may grow |
//! | `callbacks` | `squire_log_fn`, `squire_progress_fn` |
//! | `status`, `error` | `squire_status_name`; `squire_error_status`, `_detail`, `_message`, `_json`, `_release` |
//! | `version` | `squire_abi_version`, `squire_version`, `squire_build_json` |
//! | `text`, `tokens`, `scores` | results: `squire_text_data`, `squire_tokens_data`, `squire_scores_row`, and `_release` |
//! | `cancel` | `squire_cancel_create`, `_set`, `_retain`, `_release` |
//! | `drill` | test builds only: entries that panic on purpose |
//!
//! The rest of the surface stands in files of the same names as the floors below have:
//!
//! | file | holds |
//! |---|---|
//! | `engine` | `squire_engine_options_init`; `squire_engine_create`, `_retain`, `_release`, `_step`, `_step_for`, `_metrics`, `_metrics_text`; `squire_device_probe` |
//! | `model` | `squire_model_options_init`; `squire_model_plan`, `_load`, `_retain`, `_release`, `_revision`, `_info`, `_sizes`, `_stop_ids`, `_set_history`, `_save`; `squire_tokenize`, `_until`, `squire_detokenize` |
//! | `chat` | `squire_chat_render`, `_render_until`, `_append`, `_append_until`, `_append_message` |
//! | `session` | `squire_session_create`, `_retain`, `_release`, `_sync`, `_append`, `_truncate`, `_fork`, `_rebase`, `_length`, `_prefill`, `_tokens`, `_trace` |
//! | `adapter` | `squire_adapter_load`, `_unload`, `_save`, `_merge`; `squire_session_create_on`, `_use_adapter` |
//! | `gen_options` | `squire_gen_options_init`, `_for` |
//! | `event` | `squire_event_init` |
//! | `generation` | `squire_gen_start`, `_start_n`, `_seed`, `_next`, `_cancel`, `_retain`, `_release` |
//! | `queue` | `squire_queue_create`, `_add`, `_next`, `_fd`, `_release` |
//! | `score` | `squire_score` |
//! | `distiller` | experimental: `squire_distiller_explain`, `_create`, `_resume`, `_save`, `_publish`, `_publish_anyway`, `_rollback`, `_discard`, `_check_teacher`, `_number`, `_metrics`, `_release`; `squire_checkpoint_probe` |
//! | `teacher` | experimental: `squire_teacher_create`, `_retain`, `_release`, `_next`, `_reply`, `_say`, `_say_text`, `_fail`, `_close`; `squire_teacher_batch_request`, `_release`; `squire_teacher_request_init`; `squire_distiller_create_taught`, `_resume_taught` |
//! | `episode` | experimental: `squire_decision_init`; `squire_episode_begin`, `_fork`, `_prefill`, `_observe`, `_observe_until`, `_observe_ids`, `_observe_view_ids`, `_decide`, `_judge`, `_override`, `_act`, `_replay_ids`, `_replay_text`, `_replay_stored`, `_outcome`, `_end`, `_trace`, `_release` |
//! | `record` | experimental: `squire_distiller_record`, `_import`; `squire_record_open`, `_info`, `_count`, `_episode`, `_release`; `squire_episode_trajectory`; `squire_trajectory_ids`, `_sources`, `_logprobs`, `_sampled_logprobs`, `_teacher_logprobs`, `_teacher_top_ids`, `_teacher_top_logprobs`, `_json`, `_release` |
//! | `update` | experimental: `squire_tensor_fn`; `squire_update_build`, `_report`, `_gradients`, `_apply`, `_release` |
#![allow(non_camel_case_types)] // the types carry the header's names
#![allow(clippy::missing_safety_doc)] // said once for all calls, at the head of the header

pub mod adapter;
pub mod callbacks;
pub mod cancel;
pub mod chat;
pub mod distiller;
#[cfg(feature = "drill")]
pub mod drill;
pub mod engine;
pub mod episode;
pub mod error;
pub mod event;
pub mod gen_options;
pub mod generation;
mod guard;
mod handle;
mod input;
pub mod model;
mod options;
mod output;
pub mod queue;
pub mod record;
pub mod score;
pub mod scores;
pub mod session;
pub mod status;
pub mod teacher;
pub mod text;
pub mod tokens;
pub mod update;
pub mod version;
mod within;
