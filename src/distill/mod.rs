//! Distillation: who acts in a turn, what is recorded, and which loss each token carries.
//!
//! In reading order: [`schedule`] moves a knob over the run; [`config`] holds all knobs, [`knobs`] their
//! values and [`preset`] the published methods; [`policy`] decides which [`actor`] acts; [`trajectory`]
//! records an episode; [`batch`] turns trajectories into loss weights; [`explain`] says what a run will do.
#![forbid(unsafe_code)]

pub mod actor;
pub mod batch;
pub mod config;
mod document;
pub mod explain;
pub mod knobs;
pub mod policy;
pub mod preset;
pub mod schedule;
pub mod trajectory;
