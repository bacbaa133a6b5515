//! The CUDA driver behind the interface: one primary context, one stream, a module for each kernel file.
//!
//! A failed call is an error and never a panic: the library, its version and each entry point are looked at before
//! first use (`library`). What a code means stands in `super::failure`.

mod context;
mod cublaslt;
mod library;

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int, c_void};
use std::thread::{self, ThreadId};

use cudarc::driver::sys;
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::sys::CUlaunchAttributeID as LaunchAttribute;

use super::api::{Address, Api, CudaOptions, Event, Facts, Graph, Launch, Matmul};
use crate::error::{Error, Fault, Result};
use crate::sync::Mutex;
use context::{Context, call};
use cublaslt::CublasLt;
use library::{Library, describe, library};

/// The least compute capability: the oldest that the kernels are compiled for, and that has bf16 tensor cores.
const LEAST_CAPABILITY: u32 = 80;
/// Dynamic shared memory that a kernel may use without being told so before.
const PLAIN_SHARED: u32 = 48 << 10;
/// The answer of an event that the stream has not passed.
const NOT_READY: u32 = 600;

// All kernels for all architectures, a fatbin a file: MODULES, and ARCHS, what each holds.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Every device, in the driver's order.
pub(super) fn probe() -> Result<Vec<Facts>> {
    let library = library()?;
    (0..count(library)?).map(|index| facts(library, device(library, index)?)).collect()
}

/// Opens a device.
pub(super) fn open(options: &CudaOptions) -> Result<Driver> {
    let library = library()?;
    let (index, count) = (options.index, count(library)?);
    if index >= count {
        let why = format!("device {index} is wanted, the driver finds {count}, counted from 0");
        return Err(Error::new(Fault::NoSuchDevice, why));
    }
    let device = device(library, index)?;
    let facts = facts(library, device)?;
    Driver::open(library, device, facts).map_err(|e| e.within(format!("device {index}")))
}

/// The number of devices, at least one.
fn count(library: &Library) -> Result<usize> {
    let mut count = 0;
    // SAFETY: a place for the result.
    known("cuDeviceGetCount", unsafe { (library.calls.cuDeviceGetCount)(&mut count) })?;
    if count < 1 {
        let why = "the NVIDIA driver finds no device; is CUDA_VISIBLE_DEVICES set to hide it?";
        return Err(Error::new(Fault::NoDevice, why));
    }
    Ok(count as usize)
}

/// A call that needs no context: where it fails, the device cannot be used.
fn known(call: &str, code: u32) -> Result<()> {
    match code {
        0 => Ok(()),
        code => Err(Error::new(Fault::NoDevice, format!("{call} failed with {}", describe(code)))),
    }
}

fn device(library: &Library, index: usize) -> Result<sys::CUdevice> {
    let mut device = 0;
    // SAFETY: a place for the result.
    known("cuDeviceGet", unsafe { (library.calls.cuDeviceGet)(&mut device, index as c_int) })?;
    Ok(device)
}

fn facts(library: &Library, device: sys::CUdevice) -> Result<Facts> {
    let calls = &library.calls;
    let attribute = |which: Attribute| {
        let mut value = 0;
        // SAFETY: a place for the result.
        known("cuDeviceGetAttribute", unsafe { (calls.cuDeviceGetAttribute)(&mut value, which, device) })?;
        Ok::<u32, Error>(value.max(0) as u32)
    };
    let (mut name, mut total) = ([0u8; 256], 0);
    // SAFETY: a place for each result, the name's of the length given, less the NUL that it keeps.
    unsafe {
        known("cuDeviceGetName", (calls.cuDeviceGetName)(name.as_mut_ptr().cast(), name.len() as c_int - 1, device))?;
        known("cuDeviceTotalMem", (calls.cuDeviceTotalMem_v2)(&mut total, device))?;
    }
    let name = CStr::from_bytes_until_nul(&name).map_or("".into(), |name| name.to_string_lossy().into_owned());
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let capability = 10 * major + attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(Facts {
        name,
        capability,
        n_sms: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        total_bytes: total as u64,
        l2_bytes: u64::from(attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
        shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        driver: library.version,
        overlaps: capability >= 90 && compiled_for(ARCHS, capability),
    })
}

/// Whether one of the images serves the capability as it is. Else the driver compiles the PTX of 8.0, which waits for no
/// predecessor, so such kernels must not overlap.
fn compiled_for(archs: &[&str], capability: u32) -> bool {
    archs.iter().filter_map(|arch| arch.strip_prefix("sm_")).any(|arch| match arch.strip_suffix('a') {
        Some(exact) => exact.parse() == Ok(capability),
        None => arch.parse::<u32>().is_ok_and(|least| least / 10 == capability / 10 && least <= capability),
    })
}

/// An opened device.
pub(super) struct Driver {
    facts: Facts,
    stream: sys::CUstream,
    /// What is recorded goes here, so that whoever uses the stream meanwhile is neither recorded nor in the way.
    recorder: sys::CUstream,
    /// As modules and not as libraries of the driver: a module picks its image when it is loaded, so a device without
    /// one is refused when it is opened and not at the first launch.
    modules: Vec<sys::CUmodule>,
    kernels: Mutex<HashMap<&'static str, Kernel>>,
    recording: Mutex<Option<Recording>>,
    matmul: Option<CublasLt>,
    context: Context,
}

/// Calls of one thread that are recorded.
struct Recording {
    thread: ThreadId,
    /// what that thread frees; it may not wait for anything before the end
    later: Vec<Address>,
}

impl Recording {
    fn is_here(&self) -> bool {
        self.thread == thread::current().id()
    }
}

// SAFETY: the driver's handles may be used from any thread, and its calls by several at once.
unsafe impl Send for Driver {}
// SAFETY: the same.
unsafe impl Sync for Driver {}

#[derive(Clone, Copy)]
struct Kernel {
    function: sys::CUfunction,
    /// bytes of its struct of arguments
    args: usize,
    /// bytes of dynamic shared memory that it may use
    shared: u32,
}

impl Driver {
    fn open(library: &'static Library, device: sys::CUdevice, facts: Facts) -> Result<Driver> {
        let what = format!("{}, compute capability {}.{}", facts.name, facts.capability / 10, facts.capability % 10);
        if facts.capability < LEAST_CAPABILITY {
            let why = format!("squire has no kernels for {what}: it needs 8.0 or later; use the cpu backend");
            return Err(Error::new(Fault::NoKernels, why));
        }
        let mut driver = Driver {
            facts,
            stream: std::ptr::null_mut(),
            recorder: std::ptr::null_mut(),
            modules: Vec::with_capacity(MODULES.len()),
            kernels: Mutex::default(),
            recording: Mutex::default(),
            matmul: None,
            context: Context::retain(library, device)?,
        };
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        call!(driver.context, cuStreamCreate(&mut driver.stream, flags))?;
        call!(driver.context, cuStreamCreate(&mut driver.recorder, flags))?;
        for (file, image) in MODULES {
            let mut module = std::ptr::null_mut();
            call!(driver.context, cuModuleLoadData(&mut module, image.as_ptr().cast())).map_err(|e| {
                let why = format!("this build of squire has no kernels for {what} ({file}: {})", ARCHS.join(", "));
                if e.fault() == Fault::NoKernels { e.within(why) } else { e }
            })?;
            driver.modules.push(module);
        }
        driver.matmul = CublasLt::open(&driver.context);
        Ok(driver)
    }

    /// Where this thread's calls go.
    fn stream(&self) -> sys::CUstream {
        let records = self.recording.lock().as_ref().is_some_and(Recording::is_here);
        if records { self.recorder } else { self.stream }
    }

    /// Does what a recording by this thread would otherwise forbid, and what leaves the stream alone.
    fn beside_recording<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        call!(self.context, cuThreadExchangeStreamCaptureMode(&mut mode))?;
        let done = work();
        call!(self.context, cuThreadExchangeStreamCaptureMode(&mut mode))?;
        done
    }

    /// A kernel by name, allowed `shared` bytes of shared memory.
    fn kernel(&self, name: &'static str, shared: u32) -> Result<Kernel> {
        let mut kernels = self.kernels.lock();
        let known = kernels.get(name).copied();
        if let Some(kernel) = known.filter(|kernel| shared <= kernel.shared) {
            return Ok(kernel);
        }
        let kernel = self.beside_recording(|| {
            let mut kernel = match known {
                Some(kernel) => kernel,
                None => self.find_kernel(name)?,
            };
            if shared > kernel.shared {
                let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                call!(self.context, cuFuncSetAttribute(kernel.function, most, shared as c_int))?;
                kernel.shared = shared;
            }
            Ok(kernel)
        });
        let kernel = kernel.map_err(|e| e.within(format!("kernel {name}")))?;
        kernels.insert(name, kernel);
        Ok(kernel)
    }

    fn find_kernel(&self, name: &str) -> Result<Kernel> {
        let symbol = CString::new(name).map_err(|_| Error::new(Fault::NoKernels, "its name holds a NUL"))?;
        let (mut function, mut offset, mut args) = (std::ptr::null_mut(), 0, 0);
        let mut found = Err(Error::new(Fault::NoKernels, "there is no kernel of that name"));
        for module in &self.modules {
            found = call!(self.context, cuModuleGetFunction(&mut function, *module, symbol.as_ptr()));
            // In another file, perhaps.
            if !found.as_ref().is_err_and(|e| e.fault() == Fault::NoKernels) {
                break;
            }
        }
        found?;
        // Now, and not in the middle of what its first launch would be timed with.
        call!(self.context, cuFuncLoad(function))?;
        call!(self.context, cuFuncGetParamInfo(function, 0, &mut offset, &mut args))?;
        Ok(Kernel { function, args, shared: PLAIN_SHARED })
    }

    /// Frees after everything asked for so far.
    fn free_now(&self, at: Address) {
        // A lost device has nothing to wait for and keeps what it has; the context's end frees it.
        if self.synchronize().is_ok() {
            let _ = call!(self.context, cuMemFree_v2(at));
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // On a lost device each of these fails, and that is all they can do.
        let Ok(_current) = self.context.enter_anyway() else { return };
        let calls = self.context.calls();
        // SAFETY: made by `open`, and nobody has them any more.
        unsafe {
            if !self.stream.is_null() {
                (calls.cuStreamSynchronize)(self.stream);
            }
            if let Some(matmul) = self.matmul.take() {
                matmul.close(&self.context);
            }
            for module in self.modules.drain(..) {
                (calls.cuModuleUnload)(module);
            }
            if !self.stream.is_null() {
                (calls.cuStreamDestroy_v2)(self.stream);
            }
            if !self.recorder.is_null() {
                (calls.cuStreamDestroy_v2)(self.recorder);
            }
        }
    }
}

/// A launch attribute.
fn attribute(id: LaunchAttribute, set: impl FnOnce(&mut sys::CUlaunchAttributeValue)) -> sys::CUlaunchAttribute {
    let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
    set(&mut value);
    sys::CUlaunchAttribute { id, pad: [0; 4], value }
}

impl Api for Driver {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn memory(&self) -> Result<(u64, u64)> {
        let (mut free, mut total) = (0, 0);
        call!(self.context, cuMemGetInfo_v2(&mut free, &mut total))?;
        Ok((free as u64, total as u64))
    }

    fn allocate(&self, bytes: u64) -> Result<Address> {
        let mut at = 0;
        let taken = self.beside_recording(|| call!(self.context, cuMemAlloc_v2(&mut at, bytes as usize)));
        match taken {
            Ok(()) => Ok(at),
            Err(e) if e.fault() == Fault::OutOfDeviceMemory => {
                let free = e.bytes().map_or(0, |(_, free)| free);
                let why = format!("{bytes} bytes of device memory are needed, {free} are free: {e}");
                Err(Error::memory(Fault::OutOfDeviceMemory, bytes, free, why))
            }
            Err(e) => Err(e),
        }
    }

    fn free(&self, at: Address) {
        if let Some(recording) = self.recording.lock().as_mut().filter(|recording| recording.is_here()) {
            return recording.later.push(at);
        }
        self.free_now(at);
    }

    fn pin(&self, bytes: usize) -> Result<*mut u8> {
        let mut at = std::ptr::null_mut();
        match self.beside_recording(|| call!(self.context, cuMemHostAlloc(&mut at, bytes, 0))) {
            Ok(()) => Ok(at.cast()),
            Err(e) if e.fault() == Fault::OutOfDeviceMemory => {
                let why = format!("{bytes} bytes of page-locked host memory cannot be had: {e}");
                Err(Error::memory(Fault::OutOfHostMemory, bytes as u64, 0, why))
            }
            Err(e) => Err(e),
        }
    }

    fn unpin(&self, at: *mut u8) {
        if self.synchronize().is_ok() {
            let _ = call!(self.context, cuMemFreeHost(at.cast()));
        }
    }

    unsafe fn upload(&self, to: Address, from: *const u8, bytes: usize) -> Result<()> {
        call!(self.context, cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, self.stream()))
    }

    unsafe fn download(&self, to: *mut u8, from: Address, bytes: usize) -> Result<()> {
        call!(self.context, cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, self.stream()))
    }

    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        call!(self.context, cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream()))
    }

    unsafe fn fill(&self, at: Address, byte: u8, bytes: usize) -> Result<()> {
        call!(self.context, cuMemsetD8Async(at, byte, bytes, self.stream()))
    }

    unsafe fn launch(&self, launch: &Launch, args: &[u8]) -> Result<()> {
        let kernel = self.kernel(launch.kernel, launch.shared)?;
        if kernel.args != args.len() {
            let why = format!("kernel {} takes {} bytes, was given {}", launch.kernel, kernel.args, args.len());
            return Err(Error::new(Fault::DeviceError, why));
        }
        let mut attributes = Vec::with_capacity(3);
        if launch.overlap {
            let id = LaunchAttribute::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attributes.push(attribute(id, |value| value.programmaticStreamSerializationAllowed = 1));
        }
        if launch.cooperative {
            attributes.push(attribute(LaunchAttribute::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, |value| value.cooperative = 1));
        }
        if launch.cluster > 1 {
            let extents = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: launch.cluster, y: 1, z: 1 };
            let id = LaunchAttribute::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            attributes.push(attribute(id, |value| value.clusterDim = extents));
        }
        let [x, y, z] = launch.grid;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared,
            hStream: self.stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // The driver copies the struct before it returns.
        let mut params = [args.as_ptr().cast_mut().cast::<c_void>()];
        let done =
            call!(self.context, cuLaunchKernelEx(&config, kernel.function, params.as_mut_ptr(), std::ptr::null_mut()));
        done.map_err(|e| e.within(format!("kernel {}", launch.kernel)))
    }

    fn has_matmul(&self) -> bool {
        self.matmul.is_some()
    }

    unsafe fn matmul(&self, matmul: &Matmul) -> Result<()> {
        let library = self.matmul.as_ref();
        let library = library.ok_or_else(|| Error::new(Fault::DeviceError, "there is no cuBLASLt"))?;
        let _current = self.context.enter()?;
        // SAFETY: passed on; the stream is this context's.
        unsafe { library.run(matmul, self.stream()) }
    }

    fn begin_capture(&self) -> Result<()> {
        let mut recording = self.recording.lock();
        if recording.is_some() {
            return Err(Error::new(Fault::DeviceError, "a recording is under way"));
        }
        // Of this thread only: what others do meanwhile is no concern of this recording.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        call!(self.context, cuStreamBeginCapture_v2(self.recorder, mode))?;
        *recording = Some(Recording { thread: thread::current().id(), later: Vec::new() });
        Ok(())
    }

    fn end_capture(&self) -> Result<Graph> {
        let mut graph = std::ptr::null_mut();
        // Also where a call in between failed: this is what makes the recorder usable again.
        let ended = call!(self.context, cuStreamEndCapture(self.recorder, &mut graph));
        let later = self.recording.lock().take().map(|recording| recording.later);
        later.into_iter().flatten().for_each(|at| self.free_now(at));
        ended?;
        let mut ready = std::ptr::null_mut();
        let made = call!(self.context, cuGraphInstantiateWithFlags(&mut ready, graph, 0));
        let _ = call!(self.context, cuGraphDestroy(graph));
        made.map(|()| Graph(ready as u64))
    }

    unsafe fn replay(&self, graph: Graph) -> Result<()> {
        call!(self.context, cuGraphLaunch(graph.0 as sys::CUgraphExec, self.stream))
    }

    fn drop_graph(&self, graph: Graph) {
        if self.synchronize().is_ok() {
            let _ = call!(self.context, cuGraphExecDestroy(graph.0 as sys::CUgraphExec));
        }
    }

    fn event(&self) -> Result<Event> {
        let mut event = std::ptr::null_mut();
        call!(self.context, cuEventCreate(&mut event, sys::CUevent_flags::CU_EVENT_DEFAULT as u32))?;
        Ok(Event(event as u64))
    }

    fn record(&self, event: Event) -> Result<()> {
        call!(self.context, cuEventRecord(event.0 as sys::CUevent, self.stream()))
    }

    fn passed(&self, event: Event) -> Result<bool> {
        let _current = self.context.enter()?;
        // SAFETY: an event of this context.
        match unsafe { (self.context.calls().cuEventQuery)(event.0 as sys::CUevent) } {
            NOT_READY => Ok(false),
            code => self.context.check("cuEventQuery", code).map(|()| true),
        }
    }

    fn wait(&self, event: Event) -> Result<()> {
        call!(self.context, cuEventSynchronize(event.0 as sys::CUevent))
    }

    fn elapsed_us(&self, from: Event, to: Event) -> Result<f32> {
        let mut milliseconds = 0.0;
        call!(self.context, cuEventElapsedTime_v2(&mut milliseconds, from.0 as sys::CUevent, to.0 as sys::CUevent))?;
        Ok(milliseconds * 1e3)
    }

    fn drop_event(&self, event: Event) {
        let _ = call!(self.context, cuEventDestroy_v2(event.0 as sys::CUevent));
    }

    fn synchronize(&self) -> Result<()> {
        call!(self.context, cuStreamSynchronize(self.stream))
    }

    fn lost(&self) -> Option<String> {
        self.context.lost()
    }
}
