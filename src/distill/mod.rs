//! Distillation: who acts in a turn, what is recorded, and which loss each token carries.
//!
//! In reading order: [`schedule`] moves a knob over the run; [`config`] holds all knobs, [`knob_table`] writes each once, [`knobs`]
//! and [`advantage`] have their values, [`preset`] the published methods and [`settings`] reads them; [`policy`] decides which
//! [`actor`] acts; [`trajectory`] records an episode; [`rewards`] and [`turn_weights`] say what its turns come to; [`batch`] turns
//! trajectories into loss weights; [`explain`] says what a run will do.
//! Over these: [`episode`] runs the host's loop against sessions, [`fork`] begins another where one stands, [`proposal`] judges what a student proposed by its [`uncertainty`], [`learner`] builds and applies updates
//! from what a [`teacher`] says, a model or the host's own behind a [`teacher_queue`], which may say turns too ([`teacher_turn`]), and reports them ([`report`], [`quantities`]), [`distiller`] holds it together, [`update`] carries a step from gradients to a
//! revision and `update_kl` measures it, [`probe`] looks whether it is served as it was trained and `rollback` goes back, [`teacher_check`] asks a teacher the same twice, [`checkpoint`] survives a crash.
#![forbid(unsafe_code)]

mod acting;
pub mod actor;
pub mod advantage;
mod asked_turn;
pub mod batch;
mod build;
pub mod checkpoint;
pub mod config;
mod conversation;
pub mod distiller;
mod document;
mod ended;
pub mod episode;
pub mod explain;
pub mod fork;
mod kept;
pub mod knob_table;
pub mod knobs;
pub mod learner;
mod lora;
mod observing;
mod packing;
pub mod policy;
pub mod preset;
pub mod probe;
pub mod proposal;
pub mod quantities;
pub mod queue_options;
pub mod record;
pub mod report;
pub mod rewards;
mod rollback;
mod room;
pub mod run_id;
pub mod schedule;
mod scoring;
pub mod settings;
mod shown;
pub mod spec;
mod spoken;
pub mod teacher;
pub mod teacher_check;
pub mod teacher_queue;
pub mod teacher_request;
pub mod teacher_turn;
mod trained;
pub mod trajectory;
pub mod turn_end;
pub mod turn_loss;
pub mod turn_weights;
pub mod uncertainty;
mod unlearnt;
mod unpublished;
pub mod update;
mod update_kl;
pub mod view;
mod weighing;
pub mod workspace;

pub use actor::Actor;
pub use config::Config;
pub use distiller::Distiller;
pub use episode::{Episode, Replay};
pub use fork::ForkOptions;
pub use policy::{Decision, Reason};
pub use probe::Probe;
pub use queue_options::QueueOptions;
pub use record::{Imported, Record, RecordOptions};
pub use report::Report;
pub use run_id::RunId;
pub use spec::EpisodeSpec;
pub use teacher::Teacher;
pub use teacher_check::CheckText;
pub use teacher_queue::TeacherQueue;
pub use teacher_request::{Asker, Reply, Request};
pub use teacher_turn::{TeacherSays, TurnWanted, Words};
pub use turn_end::TurnEnd;
pub use update::Update;
