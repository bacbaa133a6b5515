//! The CPU device: a thread pool, and kernels written once over sixteen lanes for four instruction sets.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod dot;
mod float_env;
pub mod lanes;
pub mod math;
pub mod outer;
pub mod packed;
mod pool;
mod scalar;
mod scratch;
mod turns;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use float_env::{FloatEnv, FloatMode};
pub use lanes::Lanes;
pub use pool::{Pool, worker};
pub use scalar::Scalar;
pub use scratch::Scratch;
pub use turns::{Round, SLICE, Work};

use super::host::Plain;
use crate::error::{Error, Fault, Result};
use scratch::Spare;

/// The instruction sets that kernels exist for. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelSet {
    /// Plain code; runs everywhere.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// The same and AVX512-BF16.
    Avx512Bf16,
}

impl KernelSet {
    /// All sets, slowest first.
    pub const ALL: [KernelSet; 4] = [KernelSet::Scalar, KernelSet::Avx2, KernelSet::Avx512, KernelSet::Avx512Bf16];

    /// Whether this machine can run the set.
    pub fn available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = || {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            };
            let avx512 = || {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            };
            match self {
                KernelSet::Scalar => true,
                KernelSet::Avx2 => avx2(),
                KernelSet::Avx512 => avx2() && avx512(),
                KernelSet::Avx512Bf16 => avx2() && avx512() && is_x86_feature_detected!("avx512bf16"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == KernelSet::Scalar
        }
    }

    /// The fastest set of this machine.
    pub fn best() -> KernelSet {
        Self::ALL.into_iter().rev().find(|s| s.available()).unwrap_or(KernelSet::Scalar)
    }

    /// Whether sixteen lanes take so many of its registers that products of many rows are made with packed weights
    /// (`packed`). The scalar set, which judges the others, always goes the other way.
    pub fn packs(self) -> bool {
        self == KernelSet::Avx2
    }

    /// The set's name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            KernelSet::Scalar => "scalar",
            KernelSet::Avx2 => "avx2",
            KernelSet::Avx512 => "avx512",
            KernelSet::Avx512Bf16 => "avx512-bf16",
        }
    }
}

impl fmt::Display for KernelSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A kernel: numbered tasks that write disjoint outputs, written once over the lanes.
pub trait Kernel: Sync {
    /// Computes one task. Mark the implementation `#[inline(always)]`, so that it is compiled for the set.
    ///
    /// # Safety
    /// The contract of [`Lanes`] for `V`; each index runs once.
    unsafe fn task<V: Lanes>(&self, index: usize);
}

/// A CPU as a device. Cheap to clone; clones share the pool.
#[derive(Clone)]
pub struct Cpu {
    pool: Arc<Pool>,
    kernels: KernelSet,
    weight_bytes: Arc<AtomicU64>,
    spare: Spare,
}

impl Cpu {
    /// A device with `n_threads` threads (0: the machine's parallelism) and the given kernel set (None: the best).
    pub fn new(n_threads: usize, kernels: Option<KernelSet>) -> Result<Cpu> {
        let kernels = kernels.unwrap_or_else(KernelSet::best);
        if !kernels.available() {
            return Err(Error::new(
                Fault::UnsupportedKernelSet,
                format!("this machine has no {kernels} instructions; the best set here is {}", KernelSet::best()),
            ));
        }
        let n_threads = match n_threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        };
        let pool = Pool::new(n_threads)
            .map_err(|e| Error::new(Fault::OutOfHostMemory, format!("cannot start {n_threads} threads: {e}")))?;
        Ok(Cpu { pool: Arc::new(pool), kernels, weight_bytes: Arc::default(), spare: Spare::default() })
    }

    /// The kernel set in use.
    pub fn kernels(&self) -> KernelSet {
        self.kernels
    }

    /// Number of threads that compute.
    pub fn n_threads(&self) -> usize {
        self.pool.n_threads()
    }

    /// Counts bytes of weights that a product reads.
    pub fn count_weight_bytes(&self, bytes: usize) {
        self.weight_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes of weights that products have read so far.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes.load(Ordering::Relaxed)
    }

    /// `n` elements of any value for the time that an op runs. Errors: `OutOfHostMemory`.
    pub fn scratch<T: Plain>(&self, n: usize) -> Result<Scratch<T>> {
        self.spare.take(n)
    }

    /// What scratch of `bytes` takes of host memory.
    pub fn scratch_bytes(bytes: usize) -> u64 {
        Spare::bytes(bytes) as u64
    }

    /// Bytes of scratch that are kept for the next op.
    pub fn scratch_held(&self) -> u64 {
        self.spare.held()
    }

    /// Gives the scratch that nobody uses back to the system.
    pub fn release_scratch(&self) {
        self.spare.clear();
    }

    /// Waits for a turn to compute a round in, which somebody waits for (`turns`).
    pub fn round(&self) -> Round<'_> {
        self.pool.round()
    }

    /// From here on, until the guard goes, what the thread launches gives way to rounds.
    pub fn work_that_waits(&self) -> Work<'_> {
        self.pool.work_that_waits()
    }

    /// Calls `f` as a thread that is at no such work.
    pub fn at_rest<T>(&self, f: impl FnOnce() -> T) -> T {
        self.pool.at_rest(f)
    }

    /// Calls `f` as work that waits for the rounds of `other`, where that is another device; a thread that is at such work
    /// here is at rest meanwhile.
    pub fn working_on<T>(&self, other: &Cpu, f: impl FnOnce() -> T) -> T {
        if Arc::ptr_eq(&self.pool, &other.pool) {
            return f();
        }
        self.at_rest(|| {
            let _waits = other.work_that_waits();
            f()
        })
    }

    /// How long such work may keep a round waiting at a time; None: until it is done.
    pub fn set_slice(&self, slice: Option<Duration>) {
        self.pool.set_slice(slice);
    }

    /// Runs a kernel's tasks and returns when all are done.
    pub fn launch<K: Kernel>(&self, n_tasks: usize, kernel: &K) {
        // One way for all sets: a task by the set that `new` found available, and each index once, as the pool promises.
        let task: unsafe fn(&K, usize) = match self.kernels {
            KernelSet::Scalar => run_scalar,
            #[cfg(target_arch = "x86_64")]
            KernelSet::Avx2 => run_avx2,
            #[cfg(target_arch = "x86_64")]
            KernelSet::Avx512 => run_avx512,
            #[cfg(target_arch = "x86_64")]
            KernelSet::Avx512Bf16 => run_avx512_bf16,
            #[cfg(not(target_arch = "x86_64"))]
            _ => run_scalar,
        };
        // SAFETY: `new` checked that the machine has the set's instructions; the pool runs each index once, under the
        // kernels' floating-point environment.
        self.pool.run(n_tasks, &|i| unsafe { task(kernel, i) });
    }
}

unsafe fn run_scalar<K: Kernel>(kernel: &K, i: usize) {
    // SAFETY: the caller's; plain code needs no instructions of its own.
    unsafe { kernel.task::<Scalar>(i) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_avx2<K: Kernel>(kernel: &K, i: usize) {
    // SAFETY: the caller's, and the instructions are those that this function is compiled for.
    unsafe { kernel.task::<avx2::Avx2>(i) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn run_avx512<K: Kernel>(kernel: &K, i: usize) {
    // SAFETY: as in `run_avx2`.
    unsafe { kernel.task::<avx512::Avx512>(i) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn run_avx512_bf16<K: Kernel>(kernel: &K, i: usize) {
    // SAFETY: as in `run_avx2`.
    unsafe { kernel.task::<avx512::Avx512Bf16>(i) }
}

/// A mutable buffer that tasks of one kernel write in disjoint parts.
#[derive(Clone, Copy)]
pub struct Shared<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: tasks write disjoint parts (the contract of `Kernel::task`), and the borrow in `new` outlives the launch.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    /// Shares a slice among the tasks of one launch.
    pub fn new(slice: &mut [T]) -> Shared<T> {
        Shared { start: slice.as_mut_ptr(), len: slice.len() }
    }

    /// Its elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A pointer to element `i`, for the rest of the buffer.
    ///
    /// # Safety
    /// The buffer lives, and no other task touches what is written through the pointer.
    #[inline(always)]
    pub unsafe fn at(&self, i: usize) -> *mut T {
        debug_assert!(i <= self.len, "element {i} of {}", self.len);
        // SAFETY: the caller's: the buffer lives, and `i` lies inside it or at its end.
        unsafe { self.start.add(i) }
    }

    /// `n` elements from `i`.
    ///
    /// # Safety
    /// As for `at`.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // disjointness between tasks is the contract
    pub unsafe fn slice(&self, i: usize, n: usize) -> &mut [T] {
        debug_assert!(i + n <= self.len, "elements {i}..{} of {}", i + n, self.len);
        // SAFETY: the caller's: the elements lie inside a live buffer, and no other task touches them.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(i), n) }
    }
}

/// Cuts `n` items into pieces of `size` and gives piece `i` as a range.
#[inline(always)]
pub fn piece(i: usize, size: usize, n: usize) -> std::ops::Range<usize> {
    (i * size).min(n)..((i + 1) * size).min(n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Stream, bits};

    /// Runs one lane operation over many random bit patterns and gives the resulting bits.
    struct EveryOperation {
        out: Shared<u32>,
    }

    const OUTPUTS: usize = 16 * 14;

    impl Kernel for EveryOperation {
        #[inline(always)]
        unsafe fn task<V: Lanes>(&self, index: usize) {
            // SAFETY: the caller's; pointers are to local arrays of all lanes, and each task writes elements of its own.
            unsafe {
                let word = |k: u64, i: u64| bits(Stream::World, &[index as u64, k, i]);
                // Numbers of all sizes, many near the denormal border.
                let number = |k: u64| -> [f32; 16] {
                    std::array::from_fn(|i| {
                        let w = word(k, i as u64);
                        let exponent = match w % 3 {
                            0 => 1 + (w >> 32) as u32 % 60,
                            1 => 100 + (w >> 32) as u32 % 54,
                            _ => 127,
                        };
                        f32::from_bits((w as u32 & 0x807f_ffff) | (exponent << 23))
                    })
                };
                let (a, b, c) = (number(0), number(1), number(2));
                let (va, vb, vc) = (V::load(a.as_ptr()), V::load(b.as_ptr()), V::load(c.as_ptr()));
                let pairs = |k: u64| -> [u16; 32] {
                    std::array::from_fn(|i| {
                        let w = word(k, i as u64);
                        ((w as u16) & 0x807f) | ((40 + (w >> 32) as u16 % 100) << 7)
                    })
                };
                let (pa, pb) = (pairs(3), pairs(4));
                let half: [u16; 16] = std::array::from_fn(|i| word(5, i as u64) as u16 & 0xfbff);
                let out = self.out.slice(index * OUTPUTS, OUTPUTS);
                let mut put = |k: usize, v: V| {
                    let mut x = [0.0f32; 16];
                    v.store(x.as_mut_ptr());
                    // Adding zero makes -0 and +0 one: the sign of a flushed zero is not contract.
                    for i in 0..16 {
                        out[16 * k + i] = (x[i] + 0.0).to_bits();
                    }
                };
                put(0, va.add(vb));
                put(1, va.mul(vb));
                put(2, va.div(vb));
                put(3, va.fma(vb, vc));
                put(4, va.max(vb));
                put(5, va.min(vb));
                put(6, va.round_bf16());
                put(7, V::dot_pairs(va, V::load_pairs(pa.as_ptr()), V::load_pairs(pb.as_ptr())));
                put(8, V::dot_pairs(V::zero(), V::load_pairs_tail(pa.as_ptr(), 11), V::load_pairs(pb.as_ptr())));
                put(9, math::exp(va));
                put(10, V::load_f16(half.as_ptr()));
                put(11, V::splat(va.reduce_add()));
                let each =
                    V::reduce_add_each([va, vb, vc, va.add(vb), vb.sub(vc), va.mul(vb), vc.mul(vb), va.sub(vb), vb]);
                let mut sums = [0.0f32; 16];
                sums[..9].copy_from_slice(&each);
                put(12, V::load(sums.as_ptr()));
                put(13, va.mul(va).sqrt());
            }
        }
    }

    #[test]
    fn every_kernel_set_gives_the_bits_of_the_scalar_one() {
        const N: usize = 20_000;
        let run = |set| {
            let mut out = vec![0u32; N * OUTPUTS];
            let cpu = Cpu::new(2, Some(set)).unwrap();
            cpu.launch(N, &EveryOperation { out: Shared::new(&mut out) });
            out
        };
        let judge = run(KernelSet::Scalar);
        for set in KernelSet::ALL {
            if !set.available() {
                println!("skipped: this machine has no {set}");
                continue;
            }
            let got = run(set);
            if let Some(i) = (0..got.len()).find(|&i| got[i] != judge[i]) {
                let (op, lane) = (i % OUTPUTS / 16, i % 16);
                panic!("{set}: operation {op}, lane {lane}: {:#010x} and not {:#010x}", got[i], judge[i]);
            }
        }
    }

    #[test]
    fn a_missing_kernel_set_is_refused_by_name() {
        for set in KernelSet::ALL {
            match Cpu::new(1, Some(set)) {
                Ok(cpu) => assert!(set.available() && cpu.kernels() == set),
                Err(e) => assert_eq!(e.fault(), Fault::UnsupportedKernelSet),
            }
        }
    }

    #[test]
    fn work_on_another_device_keeps_no_round_waiting_here_and_gives_way_there() {
        let (own, other) = (Cpu::new(1, None).unwrap(), Cpu::new(1, None).unwrap());
        // Work that has begun keeps rounds waiting for ever.
        own.set_slice(None);
        other.set_slice(Some(Duration::from_millis(1)));
        let _work = own.work_that_waits();
        own.pool.run(1, &|_| {});
        let round_of = |cpu: &Cpu| std::thread::scope(|s| s.spawn(|| drop(cpu.round())).join().unwrap());
        own.working_on(&other, || {
            other.pool.run(1, &|_| {});
            round_of(&own);
            round_of(&other);
        });
    }
}
