//! Matrix products by cuBLASLt, where the machine has it.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};

use cudarc::cublaslt::sys;

use super::context::{Context, call};
use super::library::entry_points;
use crate::backend::cuda::api::{Address, Matmul};
use crate::error::{Error, Fault, Result};
use crate::sync::Mutex;

/// Bytes of device memory that a product may use meanwhile. One stream: one workspace is enough.
const WORKSPACE: usize = 32 << 20;
/// Plans kept. Prompts of every length make new shapes, so all are forgotten now and then.
const MOST_PLANS: usize = 1024;
/// CUBLAS_OP_T, which cudarc has in another library's part.
static TRANSPOSED: i32 = 1;
/// The oldest release whose functions are those of `Calls`.
const LEAST_VERSION: usize = 120_000;

entry_points! { Calls, sys::cublasStatus_t,
    cublasLtCreate(*mut sys::cublasLtHandle_t);
    cublasLtDestroy(sys::cublasLtHandle_t);
    cublasLtMatmul(
        sys::cublasLtHandle_t, sys::cublasLtMatmulDesc_t,
        *const c_void, *const c_void, sys::cublasLtMatrixLayout_t, *const c_void, sys::cublasLtMatrixLayout_t,
        *const c_void, *const c_void, sys::cublasLtMatrixLayout_t, *mut c_void, sys::cublasLtMatrixLayout_t,
        *const sys::cublasLtMatmulAlgo_t, *mut c_void, usize, sys::cudaStream_t
    );
    cublasLtMatmulDescCreate(*mut sys::cublasLtMatmulDesc_t, sys::cublasComputeType_t, sys::cudaDataType_t);
    cublasLtMatmulDescDestroy(sys::cublasLtMatmulDesc_t);
    cublasLtMatmulDescSetAttribute(
        sys::cublasLtMatmulDesc_t, sys::cublasLtMatmulDescAttributes_t, *const c_void, usize
    );
    cublasLtMatrixLayoutCreate(*mut sys::cublasLtMatrixLayout_t, sys::cudaDataType, u64, u64, i64);
    cublasLtMatrixLayoutDestroy(sys::cublasLtMatrixLayout_t);
    cublasLtMatmulPreferenceCreate(*mut sys::cublasLtMatmulPreference_t);
    cublasLtMatmulPreferenceDestroy(sys::cublasLtMatmulPreference_t);
    cublasLtMatmulPreferenceSetAttribute(
        sys::cublasLtMatmulPreference_t, sys::cublasLtMatmulPreferenceAttributes_t, *const c_void, usize
    );
    cublasLtMatmulAlgoGetHeuristic(
        sys::cublasLtHandle_t, sys::cublasLtMatmulDesc_t,
        sys::cublasLtMatrixLayout_t, sys::cublasLtMatrixLayout_t, sys::cublasLtMatrixLayout_t,
        sys::cublasLtMatrixLayout_t, sys::cublasLtMatmulPreference_t, c_int,
        *mut sys::cublasLtMatmulHeuristicResult_t, *mut c_int
    );
}

/// What a plan depends on: the extents, and how the matrices w, x and y are aligned.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    n: usize,
    m: usize,
    k: usize,
    y_stride: usize,
    aligned: [u32; 3],
}

impl Key {
    fn of(p: &Matmul) -> Key {
        // The library asks for no more than 256 bytes.
        let aligned = [p.w, p.x, p.y].map(|at| 1 << at.trailing_zeros().min(8));
        Key { n: p.n, m: p.m, k: p.k, y_stride: p.y_stride, aligned }
    }
}

/// The library, opened on a context.
pub(super) struct CublasLt {
    calls: Calls,
    handle: sys::cublasLtHandle_t,
    workspace: Address,
    plans: Mutex<HashMap<Key, Plan>>,
}

/// How a product of one shape is computed. The library is column-major, so it is told of y^T [m, n] = w x^T: what is
/// [rows, columns] here is [columns, rows] there.
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    w: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl CublasLt {
    /// Opens it; None where it is not there, too old, or does not start on this device: squire has a kernel of its own.
    pub fn open(context: &Context) -> Option<CublasLt> {
        // SAFETY: opening the library runs its initialisers.
        let calls = unsafe {
            if !sys::is_culib_present() {
                return None;
            }
            let version: unsafe extern "C" fn() -> usize = *sys::culib().get(b"cublasLtGetVersion\0").ok()?;
            if version() < LEAST_VERSION {
                return None;
            }
            Calls::find().ok()?
        };
        let (mut handle, mut workspace) = (std::ptr::null_mut(), 0);
        call!(context, cuMemAlloc_v2(&mut workspace, WORKSPACE)).ok()?;
        let _current = context.enter().ok()?;
        // SAFETY: a place for the result, in the context that it is for.
        if unsafe { (calls.cublasLtCreate)(&mut handle) } != 0 {
            let _ = call!(context, cuMemFree_v2(workspace));
            return None;
        }
        Some(CublasLt { calls, handle, workspace, plans: Mutex::default() })
    }

    /// Gives everything back, after all that it was asked for.
    pub fn close(self, context: &Context) {
        self.plans.lock().drain().for_each(|(_, plan)| self.forget(&plan));
        // SAFETY: made by `open`; nobody has it any more.
        unsafe { (self.calls.cublasLtDestroy)(self.handle) };
        let _ = call!(context, cuMemFree_v2(self.workspace));
    }

    /// Computes a product.
    ///
    /// # Safety
    /// The matrices are valid, the context is current, and the stream is of it.
    pub unsafe fn run(&self, p: &Matmul, stream: cudarc::driver::sys::CUstream) -> Result<()> {
        let key = Key::of(p);
        let mut plans = self.plans.lock();
        if !plans.contains_key(&key) {
            if plans.len() == MOST_PLANS {
                plans.drain().for_each(|(_, plan)| self.forget(&plan));
            }
            plans.insert(key, self.plan(&key)?);
        }
        let plan = &plans[&key];
        let (one, zero) = (1f32, 0f32);
        // SAFETY: the matrices have the extents of the plan by the caller's word; the workspace is on the same stream
        // as whoever used it before.
        let status = unsafe {
            (self.calls.cublasLtMatmul)(
                self.handle,
                plan.product,
                (&raw const one).cast(),
                p.w as *const c_void,
                plan.w,
                p.x as *const c_void,
                plan.x,
                (&raw const zero).cast(),
                p.y as *const c_void,
                plan.y,
                p.y as *mut c_void,
                plan.y,
                &plan.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                stream.cast(),
            )
        };
        checked("cublasLtMatmul", status, &key)
    }

    /// Describes the product and lets the library choose how to compute it.
    fn plan(&self, key: &Key) -> Result<Plan> {
        let null = std::ptr::null_mut::<c_void>();
        let algorithm = sys::cublasLtMatmulAlgo_t { data: [0; 8] };
        let mut plan = Plan { product: null.cast(), w: null.cast(), x: null.cast(), y: null.cast(), algorithm };
        match self.describe(&mut plan, key) {
            Ok(()) => Ok(plan),
            Err(e) => {
                self.forget(&plan);
                Err(e)
            }
        }
    }

    fn describe(&self, plan: &mut Plan, key: &Key) -> Result<()> {
        use sys::cublasLtMatmulDescAttributes_t as Product;
        let calls = &self.calls;
        let bf16 = sys::cudaDataType_t::CUDA_R_16BF;
        let (n, m, k) = (key.n as u64, key.m as u64, key.k as u64);
        // SAFETY: every result has its place, and the attribute is an int32 by the library's documentation.
        unsafe {
            let (sums, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F);
            let made = (calls.cublasLtMatmulDescCreate)(&mut plan.product, sums, scale);
            checked("cublasLtMatmulDescCreate", made, key)?;
            let which = Product::CUBLASLT_MATMUL_DESC_TRANSA;
            let set = (calls.cublasLtMatmulDescSetAttribute)(plan.product, which, (&raw const TRANSPOSED).cast(), 4);
            checked("cublasLtMatmulDescSetAttribute", set, key)?;
            let layout = calls.cublasLtMatrixLayoutCreate;
            checked("cublasLtMatrixLayoutCreate", layout(&mut plan.w, bf16, k, m, key.k as i64), key)?;
            checked("cublasLtMatrixLayoutCreate", layout(&mut plan.x, bf16, k, n, key.k as i64), key)?;
            checked("cublasLtMatrixLayoutCreate", layout(&mut plan.y, bf16, m, n, key.y_stride as i64), key)?;
        }
        let mut preference = std::ptr::null_mut();
        // SAFETY: a place for the result.
        let made = unsafe { (calls.cublasLtMatmulPreferenceCreate)(&mut preference) };
        checked("cublasLtMatmulPreferenceCreate", made, key)?;
        let chosen = self.choose(plan, key, preference);
        // SAFETY: made above.
        unsafe { (calls.cublasLtMatmulPreferenceDestroy)(preference) };
        plan.algorithm = chosen?;
        Ok(())
    }

    /// The algorithm that the library thinks fastest within the workspace and the alignment.
    fn choose(
        &self,
        plan: &Plan,
        key: &Key,
        preference: sys::cublasLtMatmulPreference_t,
    ) -> Result<sys::cublasLtMatmulAlgo_t> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let set = |which, value: *const c_void, bytes| {
            // SAFETY: the value has the bytes that its attribute has by the library's documentation.
            let status = unsafe { (self.calls.cublasLtMatmulPreferenceSetAttribute)(preference, which, value, bytes) };
            checked("cublasLtMatmulPreferenceSetAttribute", status, key)
        };
        let [w, x, y] = key.aligned;
        let workspace = WORKSPACE as u64;
        set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast(), 8)?;
        set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (&raw const w).cast(), 4)?;
        set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (&raw const x).cast(), 4)?;
        set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (&raw const y).cast(), 4)?;
        set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (&raw const y).cast(), 4)?;
        let mut best = std::mem::MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        let mut found = 0;
        // SAFETY: room for one result and for the count; the descriptions are those of the plan.
        let status = unsafe {
            (self.calls.cublasLtMatmulAlgoGetHeuristic)(
                self.handle,
                plan.product,
                plan.w,
                plan.x,
                plan.y,
                plan.y,
                preference,
                1,
                best.as_mut_ptr(),
                &mut found,
            )
        };
        checked("cublasLtMatmulAlgoGetHeuristic", status, key)?;
        if found < 1 {
            return Err(failed("cublasLtMatmulAlgoGetHeuristic found no way", key));
        }
        // SAFETY: plain words, zeroed and then filled; the rest of the result is not looked at.
        Ok(unsafe { (*best.as_ptr()).algo })
    }

    fn forget(&self, plan: &Plan) {
        // SAFETY: made by `describe`, as far as it came.
        unsafe {
            for layout in [plan.w, plan.x, plan.y].into_iter().filter(|layout| !layout.is_null()) {
                (self.calls.cublasLtMatrixLayoutDestroy)(layout);
            }
            if !plan.product.is_null() {
                (self.calls.cublasLtMatmulDescDestroy)(plan.product);
            }
        }
    }
}

/// The error of a call that did not succeed. If the device is lost, the driver's next call says so.
fn checked(call: &str, status: u32, key: &Key) -> Result<()> {
    if status == 0 { Ok(()) } else { Err(failed(&format!("{call} failed with status {status}"), key)) }
}

fn failed(what: &str, key: &Key) -> Error {
    let Key { n, m, k, y_stride, .. } = key;
    let shape = format!("[{n}, {k}] by [{m}, {k}] transposed, rows {y_stride} apart");
    Error::new(Fault::DeviceError, format!("{what} for a product of {shape}"))
}
