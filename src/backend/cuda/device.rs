//! An opened device: launches, failures, graphs.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, ThreadId};

use super::api::{Address, Api, CudaOptions, Facts, Graph, Launch};
#[cfg(all(feature = "cuda", not(feature = "shim")))]
use super::driver;
#[cfg(feature = "shim")]
use super::emulation;
use super::pool::Pool;
use super::staging::Spare;
use crate::backend::terms::Plan;
use crate::error::{Error, Fault, Result};
use crate::sync::{Mutex, MutexGuard};

/// An opened device. Cheap to clone; clones are the same device with the same stream.
#[derive(Clone)]
pub struct Cuda(Arc<Inner>);

struct Inner {
    api: Box<dyn Api>,
    overlap: bool,
    pool: Mutex<Pool>,
    staging: Spare,
    counts: Counts,
    failures: Mutex<Failures>,
}

/// What went to the device and what was page-locked for it, since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Times that host memory was page-locked.
    pub pins: u64,
    /// Bytes of it.
    pub pinned_bytes: u64,
    /// Copies to the device.
    pub uploads: u64,
    /// Bytes of them.
    pub uploaded_bytes: u64,
}

#[derive(Default)]
struct Counts {
    pins: AtomicU64,
    pinned_bytes: AtomicU64,
    uploads: AtomicU64,
    uploaded_bytes: AtomicU64,
}

/// What went wrong and was not told yet.
#[derive(Default)]
struct Failures {
    lost: Option<String>,
    /// the first of each thread
    of: HashMap<ThreadId, (Fault, String)>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.staging.release(&*self.api);
        self.pool.get_mut().shrink(&*self.api);
    }
}

/// A struct that a kernel takes by value.
///
/// # Safety
/// `repr(C)`, field by field the kernel's own struct, without padding bytes that are not initialised.
pub unsafe trait KernelArgs: Copy {}

impl Cuda {
    /// Whether this build has it.
    pub const BUILT: bool = cfg!(any(feature = "cuda", feature = "shim"));

    /// Opens a device. Errors: `UnsupportedBackend` in a build without CUDA, `NoDevice` where the machine has no usable
    /// one, `NoKernels` where this build has none for it, `NoSuchDevice` for an index that is not there.
    pub fn open(options: &CudaOptions) -> Result<Cuda> {
        #[cfg(feature = "shim")]
        return emulation::open(options).map(|api| Cuda::over(Box::new(api), options));
        #[cfg(all(feature = "cuda", not(feature = "shim")))]
        return driver::open(options).map(|api| Cuda::over(Box::new(api), options));
        #[cfg(not(any(feature = "cuda", feature = "shim")))]
        {
            let why = format!("this build of squire has no cuda backend (device {})", options.index);
            Err(Error::new(Fault::UnsupportedBackend, why))
        }
    }

    /// What this build finds on this machine: each usable device, or why there is none. Makes no context.
    pub fn probe() -> Result<Vec<Facts>> {
        #[cfg(feature = "shim")]
        return Ok(emulation::probe());
        #[cfg(all(feature = "cuda", not(feature = "shim")))]
        return driver::probe();
        #[cfg(not(any(feature = "cuda", feature = "shim")))]
        Err(Error::new(Fault::UnsupportedBackend, "this build of squire has no cuda backend"))
    }

    /// A device over any implementation.
    pub fn over(api: Box<dyn Api>, options: &CudaOptions) -> Cuda {
        let overlap = api.facts().overlaps && !options.no_overlap;
        Cuda(Arc::new(Inner {
            api,
            overlap,
            pool: Mutex::new(Pool::new(options.budget, !options.no_pool)),
            staging: Spare::default(),
            counts: Counts::default(),
            failures: Mutex::default(),
        }))
    }

    /// What it is.
    pub fn facts(&self) -> &Facts {
        self.0.api.facts()
    }

    /// The raw calls.
    pub fn api(&self) -> &dyn Api {
        &*self.0.api
    }

    /// The memory under its budget.
    pub(super) fn pool(&self) -> MutexGuard<'_, Pool> {
        self.0.pool.lock()
    }

    /// Page-locked buffers that no copy goes through now.
    pub(super) fn staging(&self) -> &Spare {
        &self.0.staging
    }

    /// Page-locked host memory, aligned to 64 bytes. `Api::unpin` gives it back.
    pub(super) fn pin(&self, bytes: usize) -> Result<*mut u8> {
        let at = self.0.api.pin(bytes)?;
        self.0.counts.pins.fetch_add(1, Ordering::Relaxed);
        self.0.counts.pinned_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(at)
    }

    /// Copies to the device, in order with what is launched.
    ///
    /// # Safety
    /// Both ranges are valid; `from` is pinned and stays as it is until the stream has passed this point.
    pub(super) unsafe fn upload(&self, to: Address, from: *const u8, bytes: usize) -> Result<()> {
        self.0.counts.uploads.fetch_add(1, Ordering::Relaxed);
        self.0.counts.uploaded_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { self.0.api.upload(to, from, bytes) }
    }

    /// What went to the device so far.
    pub fn traffic(&self) -> Traffic {
        let (c, read) = (&self.0.counts, |n: &AtomicU64| n.load(Ordering::Relaxed));
        Traffic {
            pins: read(&c.pins),
            pinned_bytes: read(&c.pinned_bytes),
            uploads: read(&c.uploads),
            uploaded_bytes: read(&c.uploaded_bytes),
        }
    }

    /// Whether two handles are one device.
    pub fn is(&self, other: &Cuda) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Bytes of device memory held.
    pub fn held(&self) -> u64 {
        self.0.pool.lock().held()
    }

    /// Bytes that could still be allocated, within the budget and the device.
    pub fn free(&self) -> Result<u64> {
        let (free, _) = self.0.api.memory()?;
        Ok(self.0.pool.lock().free(free))
    }

    /// Launches a kernel on its arguments. A failure is kept for `check`. `overlap` says that the kernel waits by itself
    /// for its predecessor (every kernel of squire does).
    pub fn launch<A: KernelArgs>(&self, launch: Launch, args: &A) {
        let launch = Launch { overlap: self.0.overlap && launch.cluster == 1 && !launch.cooperative, ..launch };
        if launch.grid.contains(&0) {
            return;
        }
        // SAFETY: `KernelArgs` promises plain initialised bytes.
        let bytes = unsafe { std::slice::from_raw_parts((args as *const A).cast::<u8>(), size_of::<A>()) };
        // SAFETY: ops pass addresses of live tensors, and a tensor's memory waits for the stream before it goes.
        self.keep(unsafe { self.0.api.launch(&launch, bytes) });
    }

    /// Keeps a failure for `check`; the first one counts.
    pub fn keep(&self, result: Result<()>) {
        let Err(e) = result else { return };
        let (mut failures, message) = (self.0.failures.lock(), e.message().to_string());
        match e.fault() {
            Fault::DeviceLost => drop(failures.lost.get_or_insert(message)),
            fault => drop(failures.of.entry(thread::current().id()).or_insert((fault, message))),
        }
    }

    /// This thread's first failure since its last `check`. That of a lost device is everybody's and stays.
    pub fn check(&self) -> Result<()> {
        let failure = self.0.failures.lock().of.remove(&thread::current().id());
        self.check_present()?;
        failure.map_or(Ok(()), |(fault, message)| Err(Error::new(fault, message)))
    }

    /// Refuses, with `DeviceLost`, once the device is gone.
    pub fn check_present(&self) -> Result<()> {
        let lost = self.0.failures.lock().lost.clone().or_else(|| self.0.api.lost());
        lost.map_or(Ok(()), |message| Err(Error::new(Fault::DeviceLost, message)))
    }

    /// Waits for all that was launched and tells the first failure.
    pub fn finish(&self) -> Result<()> {
        self.keep(self.0.api.synchronize());
        self.check()
    }

    /// Runs what `record` launches: by replaying the graph of `key` if there is one, else by recording it first.
    /// Everything that differs between runs of one key must lie in device memory.
    pub fn replay(&self, graphs: &mut Graphs, key: GraphKey, record: impl FnOnce() -> Result<()>) -> Result<()> {
        graphs.device.get_or_insert_with(|| self.clone());
        let graph = match graphs.known.get(&key) {
            Some(&graph) => graph,
            None => {
                self.check()?;
                let recording = Recording::begin(self.api())?;
                // The recording ends also where this panics or fails.
                record()?;
                self.check()?;
                let graph = recording.end()?;
                graphs.known.insert(key, graph);
                graph
            }
        };
        // SAFETY: whoever owns the graphs clears them before it lets go of memory that they name.
        unsafe { self.0.api.replay(graph) }
    }
}

/// A recording under way; dropped before its end, it is forgotten.
struct Recording<'a>(Option<&'a dyn Api>);

impl<'a> Recording<'a> {
    fn begin(api: &'a dyn Api) -> Result<Recording<'a>> {
        api.begin_capture().map(|()| Recording(Some(api)))
    }

    fn end(mut self) -> Result<Graph> {
        self.0.take().expect("a recording ends once").end_capture()
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if let Some(api) = self.0.take() {
            api.end_capture().into_iter().for_each(|graph| api.drop_graph(graph));
        }
    }
}

/// What a graph was recorded for: which weights, and the plan of the batch.
pub type GraphKey = (Address, Plan);

/// Graphs over one set of buffers. Cleared when one of them moves.
#[derive(Default)]
pub struct Graphs {
    device: Option<Cuda>,
    known: HashMap<GraphKey, Graph>,
}

impl Graphs {
    /// Forgets all graphs.
    pub fn clear(&mut self) {
        let Some(device) = &self.device else { return };
        self.known.drain().for_each(|(_, graph)| device.api().drop_graph(graph));
    }

    /// Graphs recorded.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether none is recorded.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

impl Drop for Graphs {
    fn drop(&mut self) {
        self.clear();
    }
}
