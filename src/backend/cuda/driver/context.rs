//! The primary context of a device: current while a call is made, and lost once the driver says so.

use std::sync::OnceLock;

use cudarc::driver::sys;

use super::super::failure::fault;
use super::library::{Calls, Library, describe};
use crate::error::{Error, Fault, Result};

/// The primary context of a device, shared with whatever else in the process uses it.
pub(super) struct Context {
    library: &'static Library,
    device: sys::CUdevice,
    handle: sys::CUcontext,
    lost: OnceLock<String>,
}

// SAFETY: a context may be used from any thread, by several at once.
unsafe impl Send for Context {}
// SAFETY: the same.
unsafe impl Sync for Context {}

impl Context {
    /// Retains it.
    pub fn retain(library: &'static Library, device: sys::CUdevice) -> Result<Context> {
        let mut context = Context { library, device, handle: std::ptr::null_mut(), lost: OnceLock::new() };
        let mut handle = std::ptr::null_mut();
        // SAFETY: the device is one that the driver gave.
        let code = unsafe { (library.calls.cuDevicePrimaryCtxRetain)(&mut handle, device) };
        context.check("cuDevicePrimaryCtxRetain", code)?;
        context.handle = handle;
        Ok(context)
    }

    pub fn calls(&self) -> &'static Calls {
        &self.library.calls
    }

    /// Why it is lost, once it is.
    pub fn lost(&self) -> Option<String> {
        self.lost.get().cloned()
    }

    /// Makes it the thread's current one until the result goes. Refused once the device is lost.
    pub fn enter(&self) -> Result<Current> {
        match self.lost.get() {
            None => self.enter_anyway(),
            Some(why) => Err(Error::new(Fault::DeviceLost, why.clone())),
        }
    }

    /// The same for what gives back, which is tried on a lost device too.
    pub fn enter_anyway(&self) -> Result<Current> {
        let mut before = std::ptr::null_mut();
        // SAFETY: plain calls with a place for the result and a retained context.
        let code = unsafe {
            match (self.calls().cuCtxGetCurrent)(&mut before) {
                0 if before != self.handle => (self.calls().cuCtxSetCurrent)(self.handle),
                code => code,
            }
        };
        self.check("cuCtxSetCurrent", code)?;
        Ok(Current { calls: self.calls(), foreign: (before != self.handle && !before.is_null()).then_some(before) })
    }

    /// The error of a call that did not give 0.
    pub fn check(&self, call: &str, code: u32) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let fault = fault(code);
        let mut why = format!("{call} failed with {}", describe(code));
        if fault == Fault::DeviceLost {
            why.push_str("; the device is lost to this process, which has to release the engine");
            return Err(Error::new(fault, self.lost.get_or_init(|| why).clone()));
        }
        if fault == Fault::OutOfDeviceMemory {
            let (mut free, mut total) = (0, 0);
            // SAFETY: places for both results. Where this fails too, nothing is known to be free.
            unsafe { (self.calls().cuMemGetInfo_v2)(&mut free, &mut total) };
            return Err(Error::memory(fault, 0, free as u64, why));
        }
        Err(Error::new(fault, why))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: retained once, released once.
            unsafe { (self.calls().cuDevicePrimaryCtxRelease_v2)(self.device) };
        }
    }
}

/// While it lives, the context is current. A host's own context comes back after it; where the thread had none, ours
/// stays, so that squire's threads switch once and not at each call.
pub(super) struct Current {
    calls: &'static Calls,
    foreign: Option<sys::CUcontext>,
}

impl Drop for Current {
    fn drop(&mut self) {
        if let Some(foreign) = self.foreign {
            // SAFETY: it was current before.
            unsafe { (self.calls.cuCtxSetCurrent)(foreign) };
        }
    }
}

/// One call in the context: made current, checked, and named if it fails.
macro_rules! call {
    ($context:expr, $name:ident($($argument:expr),*)) => {{
        let context: &Context = &$context;
        context.enter().and_then(|_current| {
            // SAFETY: the handles are this driver's own, results have their places, and addresses are valid by the
            // contract of the interface.
            let code = unsafe { (context.calls().$name)($($argument),*) };
            context.check(stringify!($name), code)
        })
    }};
}
pub(super) use call;
