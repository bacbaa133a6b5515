//! Adapters of a served model: loaded under a name, many at once, swapped while sessions run, merged, saved.
//!
//! A name stands for the newest generation that was loaded under it. Sessions made afterwards get that one, sessions under
//! way keep theirs, and nothing that was computed under one generation is used under another.
#![forbid(unsafe_code)]

use std::path::Path;

use serde_json::Value;

use super::log::Level;
use super::model::ServedModel;
use super::revision::{Bound, Revision, Upon};
use crate::error::{Error, Fault, Result, brief};
use crate::model::{Adapter, Parameters, Weights, read_adapter, write_adapter};

/// Bytes that an adapter's name may have.
const MAX_NAME: usize = 256;

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_control) {
        let why = format!(
            "an adapter's name: wanted 1 to {MAX_NAME} bytes without control characters, found {} bytes: {}",
            name.len(),
            brief(name)
        );
        return Err(Error::new(Fault::BadValue, why));
    }
    Ok(())
}

fn none() -> Error {
    Error::new(Fault::UnknownAdapter, "the current revision has no adapter; train one, or name one")
}

impl ServedModel {
    /// Refuses an adapter that is not one of this model, and any on a device that does not compute them.
    pub(super) fn check_adapter(&self, adapter: &Adapter) -> Result<()> {
        self.check_device()?;
        adapter.check(self.config())
    }

    fn check_device(&self) -> Result<()> {
        if self.model().device.trains() {
            return Ok(());
        }
        let why = "adapters are computed by the cpu backend alone; merge it first, or load the model there";
        Err(Error::new(Fault::UnsupportedBackend, why))
    }

    /// Loads a folder that PEFT or squire wrote as the adapter of that name, over the current base weights; one of the
    /// same name is replaced for sessions that are made afterwards. Returns the number of its revision. Errors: those of
    /// [`read_adapter`]; `BadValue` for an empty or long name; `HostBudget`; `UnsupportedBackend` on a GPU. On an error
    /// nothing has changed.
    pub fn load_adapter(&self, name: &str, path: &Path) -> Result<u64> {
        self.check_device()?;
        check_name(name)?;
        let base = self.bind();
        let adapter = read_adapter(path, self.config(), &base.weights)?;
        self.name_adapter(name, adapter, &base)
    }

    /// The same of an adapter in memory.
    pub fn add_adapter(&self, name: &str, adapter: Adapter) -> Result<u64> {
        check_name(name)?;
        self.name_adapter(name, adapter, &self.bind())
    }

    /// Over the base that it was held against, and no other.
    fn name_adapter(&self, name: &str, adapter: Adapter, base: &Revision) -> Result<u64> {
        self.check_adapter(&adapter)?;
        self.engine().check_budget(adapter.bytes())?;
        let (rank, bytes) = (adapter.lora.rank, adapter.bytes());
        let number = self.0.lineage.name(name, adapter, &base.weights)?;
        let what = format!("adapter {name} of rank {rank} in {bytes} bytes is revision {number}");
        self.engine().log(Level::Info, "model", &what);
        Ok(number)
    }

    /// Forgets the adapter of that name; sessions on it keep it. `UnknownAdapter` where there is none.
    pub fn unload_adapter(&self, name: &str) -> Result<()> {
        self.0.lineage.forget(name)
    }

    /// Refuses a name by which no session can be made; the errors of [`Session::with_adapter`](super::Session::with_adapter).
    pub fn check_named(&self, name: &str) -> Result<()> {
        self.0.lineage.bind_named(name).map(drop)
    }

    /// The adapters by name, each with its revision and what it is.
    pub fn adapters(&self) -> Value {
        let all = self.0.lineage.names().into_iter().map(|(name, revision)| {
            let mut facts = revision.adapter().map_or(Value::Null, Adapter::describe);
            facts["revision"] = revision.number.into();
            (name, facts)
        });
        Value::Object(all.collect())
    }

    /// Writes an adapter as a folder that PEFT and [`ServedModel::load_adapter`] read: the named one, or with None that of
    /// the current revision. `UnknownAdapter` where there is none.
    pub fn save_adapter(&self, name: Option<&str>, path: &Path) -> Result<()> {
        let revision = self.adapted(name)?;
        let adapter = revision.adapter().ok_or_else(none)?;
        write_adapter(path, adapter, self.config(), &revision.weights)
    }

    /// The revision of the named adapter, or with None the current one, which may have none.
    fn adapted(&self, name: Option<&str>) -> Result<Bound> {
        name.map_or_else(|| Ok(self.bind()), |name| self.0.lineage.bind_named(name))
    }

    /// Folds an adapter into the base weights and publishes the result as [`ServedModel::publish`] does: the named one, or
    /// with None that of the current revision. `AdapterMismatch`, and nothing has changed, where somebody published
    /// meanwhile: that would be lost. `NotFinite` where the sum overflows the base's dtype.
    pub fn merge_adapter(&self, name: Option<&str>, limit: usize) -> Result<u64> {
        self.check_room(limit)?;
        let current = self.current();
        let revision = self.adapted(name)?;
        let merged = self.merged(&revision.weights, revision.adapter().ok_or_else(none)?)?;
        drop(revision);
        let merged = Parameters::Weights(merged);
        self.publish_upon(merged, Upon::Revision(&current), limit).map_err(|refused| refused.1)
    }

    pub(super) fn merged(&self, base: &Weights, adapter: &Adapter) -> Result<Weights> {
        self.engine().check_budget(base.bytes())?;
        adapter.merged(self.config(), &self.model().device, base)
    }
}
