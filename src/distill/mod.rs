//! Distillation: who acts in a turn, what is recorded, and which loss each token carries.
//!
//! In reading order: [`schedule`] moves a knob over the run; [`config`] holds all knobs, [`knobs`] their
//! values and [`preset`] the published methods; [`policy`] decides which [`actor`] acts; [`trajectory`]
//! records an episode; [`batch`] turns trajectories into loss weights; [`explain`] says what a run will do.
//! Over these: [`episode`] runs the host's loop against sessions, [`fork`] begins another where one stands, [`learner`] builds and applies updates
//! from what a [`teacher`] says, a model or the host's own behind a [`teacher_queue`], and reports them ([`report`]), [`distiller`] holds it together, [`update`] carries a step from gradients to a
//! revision and `update_kl` measures it, [`checkpoint`] survives a crash.
#![forbid(unsafe_code)]

pub mod actor;
pub mod batch;
mod build;
pub mod checkpoint;
pub mod config;
pub mod distiller;
mod document;
mod ended;
pub mod episode;
pub mod explain;
pub mod fork;
pub mod knobs;
pub mod learner;
mod lora;
mod packing;
pub mod policy;
pub mod preset;
pub mod report;
mod room;
pub mod schedule;
mod scoring;
pub mod spec;
pub mod teacher;
pub mod teacher_queue;
mod trained;
pub mod trajectory;
pub mod turn_loss;
mod unpublished;
pub mod update;
mod update_kl;
pub mod workspace;

pub use actor::Actor;
pub use config::Config;
pub use distiller::Distiller;
pub use episode::{Episode, Replay};
pub use fork::ForkOptions;
pub use policy::{Decision, Reason};
pub use report::Report;
pub use spec::EpisodeSpec;
pub use teacher::Teacher;
pub use teacher_queue::{QueueOptions, Reply, Request, TeacherQueue};
pub use update::Update;
