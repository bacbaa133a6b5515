//! The model: its configuration.
#![forbid(unsafe_code)]

pub mod config;
mod config_fields;

pub use config::ModelConfig;
