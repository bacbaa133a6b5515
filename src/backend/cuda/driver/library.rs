//! The driver library, found at run time: its entry points, and whether it can be used at all.
//!
//! cudarc's own functions panic where the library or a symbol is missing, and their results are an enum, which a newer
//! driver's codes would overrun. So the entry points are looked up here, all at once, with plain numbers as results;
//! cudarc gives the library, the types, and the signatures that these are compared with.

use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys;

use crate::error::{Error, Fault, Result};

/// What the driver must speak: the kernels are cubins and PTX of the CUDA 13.0 toolkit, and a driver takes such images
/// from toolkits of its own major release and older ones only. The entry points themselves are all older (12.8).
pub(super) const LEAST_DRIVER: u32 = 13000;

/// A table of functions of a library that give a status code.
macro_rules! entry_points {
    ($table:ident, $status:ty, $($name:ident($($argument:ty),*);)+) => {
        #[allow(non_snake_case)]
        pub(super) struct $table {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> u32,)+
        }

        impl $table {
            /// Looks them up in cudarc's library; the name of one that is missing.
            ///
            /// # Safety
            /// The library is there.
            unsafe fn find() -> std::result::Result<$table, &'static str> {
                // SAFETY: passed on; the signatures are compared below.
                unsafe {
                    let library = sys::culib();
                    Ok($table {
                        $($name: *library
                            .get(concat!(stringify!($name), "\0").as_bytes())
                            .map_err(|_| stringify!($name))?,)+
                    })
                }
            }
        }

        $(const _: unsafe fn($($argument),*) -> $status = sys::$name;)+
    };
}
pub(super) use entry_points;

entry_points! { Calls, sys::CUresult,
    cuInit(c_uint);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut sys::CUdevice, c_int);
    cuDeviceGetName(*mut c_char, c_int, sys::CUdevice);
    cuDeviceTotalMem_v2(*mut usize, sys::CUdevice);
    cuDeviceGetAttribute(*mut c_int, sys::CUdevice_attribute, sys::CUdevice);
    cuDevicePrimaryCtxRetain(*mut sys::CUcontext, sys::CUdevice);
    cuDevicePrimaryCtxRelease_v2(sys::CUdevice);
    cuCtxGetCurrent(*mut sys::CUcontext);
    cuCtxSetCurrent(sys::CUcontext);
    cuModuleLoadData(*mut sys::CUmodule, *const c_void);
    cuModuleUnload(sys::CUmodule);
    cuModuleGetFunction(*mut sys::CUfunction, sys::CUmodule, *const c_char);
    cuFuncLoad(sys::CUfunction);
    cuFuncGetParamInfo(sys::CUfunction, usize, *mut usize, *mut usize);
    cuFuncSetAttribute(sys::CUfunction, sys::CUfunction_attribute, c_int);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemAlloc_v2(*mut sys::CUdeviceptr, usize);
    cuMemFree_v2(sys::CUdeviceptr);
    cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    cuMemFreeHost(*mut c_void);
    cuMemcpyHtoDAsync_v2(sys::CUdeviceptr, *const c_void, usize, sys::CUstream);
    cuMemcpyDtoHAsync_v2(*mut c_void, sys::CUdeviceptr, usize, sys::CUstream);
    cuMemcpyDtoDAsync_v2(sys::CUdeviceptr, sys::CUdeviceptr, usize, sys::CUstream);
    cuMemsetD8Async(sys::CUdeviceptr, c_uchar, usize, sys::CUstream);
    cuLaunchKernelEx(*const sys::CUlaunchConfig, sys::CUfunction, *mut *mut c_void, *mut *mut c_void);
    cuStreamCreate(*mut sys::CUstream, c_uint);
    cuStreamDestroy_v2(sys::CUstream);
    cuStreamSynchronize(sys::CUstream);
    cuStreamBeginCapture_v2(sys::CUstream, sys::CUstreamCaptureMode);
    cuStreamEndCapture(sys::CUstream, *mut sys::CUgraph);
    cuThreadExchangeStreamCaptureMode(*mut sys::CUstreamCaptureMode);
    cuGraphInstantiateWithFlags(*mut sys::CUgraphExec, sys::CUgraph, c_ulonglong);
    cuGraphDestroy(sys::CUgraph);
    cuGraphLaunch(sys::CUgraphExec, sys::CUstream);
    cuGraphExecDestroy(sys::CUgraphExec);
    cuEventCreate(*mut sys::CUevent, c_uint);
    cuEventRecord(sys::CUevent, sys::CUstream);
    cuEventQuery(sys::CUevent);
    cuEventSynchronize(sys::CUevent);
    cuEventElapsedTime_v2(*mut f32, sys::CUevent, sys::CUevent);
    cuEventDestroy_v2(sys::CUevent);
}

/// The initialised driver.
pub(super) struct Library {
    pub calls: Calls,
    /// What it speaks, 13000 for CUDA 13.0.
    pub version: u32,
}

/// The driver, initialised once in a process, or why it cannot be used (`NoDevice`).
pub(super) fn library() -> Result<&'static Library> {
    static LIBRARY: OnceLock<std::result::Result<Library, String>> = OnceLock::new();
    LIBRARY.get_or_init(initialise).as_ref().map_err(|why| Error::new(Fault::NoDevice, why.clone()))
}

fn initialise() -> std::result::Result<Library, String> {
    // SAFETY: opening the driver library runs its initialisers, as any program that uses CUDA does.
    if !unsafe { sys::is_culib_present() } {
        let why = "the driver library libcuda.so.1 cannot be loaded";
        return Err(format!("no NVIDIA driver: {why}; install the driver, or use the cpu backend"));
    }
    // SAFETY: a version query needs nothing, and comes first because too old a driver may lack what follows.
    let version = unsafe {
        let mut version = 0;
        let get: unsafe extern "C" fn(*mut c_int) -> u32 = match sys::culib().get(b"cuDriverGetVersion\0") {
            Ok(get) => *get,
            Err(_) => {
                return Err("the library found as libcuda is no NVIDIA driver: it has no cuDriverGetVersion".into());
            }
        };
        match get(&mut version) {
            0 => version as u32,
            code => return Err(unusable("cuDriverGetVersion", code)),
        }
    };
    if version < LEAST_DRIVER {
        let (found, wanted) = (spoken(version), spoken(LEAST_DRIVER));
        let why = format!("the NVIDIA driver is too old: it speaks CUDA {found}, squire's kernels need {wanted}");
        return Err(format!("{why}; install driver 580 or later, or use the cpu backend"));
    }
    // SAFETY: the library is there.
    let calls = unsafe { Calls::find() }.map_err(|name| format!("the NVIDIA driver has no function {name}"))?;
    // SAFETY: the first call, as the driver wants it.
    match unsafe { (calls.cuInit)(0) } {
        0 => Ok(Library { calls, version }),
        code => Err(unusable("cuInit", code)),
    }
}

/// Why a driver that is there does not start.
fn unusable(call: &str, code: u32) -> String {
    match code {
        34 => "the driver library found is the toolkit's stub, not a driver: \
               take the stubs folder out of LD_LIBRARY_PATH, or use the cpu backend"
            .to_string(),
        100 => {
            "the NVIDIA driver finds no device (CUDA_ERROR_NO_DEVICE; is CUDA_VISIBLE_DEVICES set to hide it?)".into()
        }
        _ => format!("the NVIDIA driver does not start: {call} failed with {}", describe(code)),
    }
}

/// 12040 as 12.4.
pub(super) fn spoken(version: u32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// A result code with the name and the words that the driver has for it, if it is there.
pub(super) fn describe(code: u32) -> String {
    type Say = unsafe extern "C" fn(u32, *mut *const c_char) -> u32;
    let say = |function: &[u8]| {
        // SAFETY: called only with a library at hand; the signatures are cuda.h's with the enum as its number, and the
        // texts are constants of the driver.
        unsafe {
            let say = *sys::culib().get::<Say>(function).ok()?;
            let mut text = std::ptr::null();
            (say(code, &mut text) == 0 && !text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    };
    match (say(b"cuGetErrorName\0"), say(b"cuGetErrorString\0")) {
        (Some(name), Some(words)) => format!("{name} ({code}, {words})"),
        _ => format!("CUDA error {code}"),
    }
}
