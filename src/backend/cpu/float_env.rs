//! The floating-point environment: that of every kernel (round to nearest, denormals flushed to zero), that of every
//! other number that squire computes (round to nearest, denormals kept), and the host's. Nothing traps in the first two.
//!
//! A host may have set its own rounding mode, denormal mode or traps on the thread that calls us; without
//! this guard its choice would change bits, or kill it where 0 / 0 is asked whether it is a number. `vdpbf16ps` always
//! flushes, so the other kernel sets must flush too in order to agree with it. Flags that squire's arithmetic raises are
//! dropped with the environment: the host finds its own.

use std::cell::Cell;

/// A floating-point environment: rounding, denormals, traps, and the flags of what happened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FloatMode(u64);

impl FloatMode {
    /// That of the kernels. MXCSR: all exceptions masked, round to nearest, FTZ (bit 15) and DAZ (bit 6).
    #[cfg(target_arch = "x86_64")]
    pub const KERNELS: FloatMode = FloatMode(0x9fc0);
    /// FPCR: flush to zero (bit 24), round to nearest, no traps.
    #[cfg(target_arch = "aarch64")]
    pub const KERNELS: FloatMode = FloatMode(1 << (32 + 24));
    /// None is known.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    pub const KERNELS: FloatMode = FloatMode(0);

    /// That of a program which asks for nothing: what Rust and C compile for.
    #[cfg(target_arch = "x86_64")]
    pub const SCALARS: FloatMode = FloatMode(0x1f80);
    /// That of a program which asks for nothing: what Rust and C compile for.
    #[cfg(not(target_arch = "x86_64"))]
    pub const SCALARS: FloatMode = FloatMode(0);

    /// The calling thread's.
    #[inline]
    pub fn current() -> FloatMode {
        FloatMode(read())
    }

    /// Makes it the calling thread's.
    #[inline]
    pub fn enter(self) {
        write(self.0);
    }
}

/// Sets the environment; dropping it puts back what was there.
pub struct FloatEnv {
    saved: Cell<FloatMode>,
}

impl FloatEnv {
    /// Switches the calling thread to the kernels' environment.
    #[inline]
    pub fn set() -> FloatEnv {
        FloatEnv::of(FloatMode::KERNELS)
    }

    /// Switches the calling thread to the environment of all other numbers.
    #[inline]
    pub fn scalars() -> FloatEnv {
        FloatEnv::of(FloatMode::SCALARS)
    }

    #[inline]
    fn of(mode: FloatMode) -> FloatEnv {
        let saved = Cell::new(FloatMode::current());
        mode.enter();
        FloatEnv { saved }
    }

    /// Runs a callback of the caller's in the environment that was there before, and keeps what it makes of that.
    pub fn outside<T>(&self, f: impl FnOnce() -> T) -> T {
        let own = FloatMode::current();
        self.saved.get().enter();
        let value = f();
        self.saved.set(FloatMode::current());
        own.enter();
        value
    }
}

impl Drop for FloatEnv {
    #[inline]
    fn drop(&mut self) {
        self.saved.get().enter();
    }
}

#[inline]
fn read() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        let mut mxcsr = 0u32;
        // SAFETY: stores the control register into a live local.
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut mxcsr, options(nostack)) };
        mxcsr as u64
    }
    #[cfg(target_arch = "aarch64")]
    {
        let (fpcr, fpsr): (u64, u64);
        // SAFETY: reads the control register and that of the flags. Not marked `nomem`, so that no arithmetic is moved
        // over it through memory.
        unsafe {
            std::arch::asm!("mrs {}, fpcr", "mrs {}, fpsr", out(reg) fpcr, out(reg) fpsr, options(nostack));
        }
        fpcr << 32 | fpsr & 0xffff_ffff
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    0
}

#[inline]
fn write(value: u64) {
    #[cfg(target_arch = "x86_64")]
    {
        let mxcsr = value as u32;
        // SAFETY: loads a value that was read from the register or is one of the valid constants above. Not marked
        // `nomem`, so that no arithmetic is moved over it through memory.
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &mxcsr, options(nostack)) };
    }
    #[cfg(target_arch = "aarch64")]
    {
        let (fpcr, fpsr) = (value >> 32, value & 0xffff_ffff);
        // SAFETY: as above, for FPCR and FPSR.
        unsafe {
            std::arch::asm!("msr fpcr, {}", "msr fpsr, {}", in(reg) fpcr, in(reg) fpsr, options(nostack));
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = value;
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// Rounding and denormals, traps and flags.
    const TOWARD_ZERO: FloatMode = FloatMode(0x1f80 | 0x6000);
    const UPWARD_TRAPPING: FloatMode = FloatMode((0x1f80 & !0x0080) | 0x4000);

    #[test]
    fn the_callers_environment_is_restored_with_its_flags() {
        let before = FloatMode::current();
        TOWARD_ZERO.enter();
        {
            let _env = FloatEnv::scalars();
            assert_eq!(FloatMode::current(), FloatMode::SCALARS);
            // 1 / 3 is inexact, and so raises a flag.
            assert!(std::hint::black_box(1.0f64) / std::hint::black_box(3.0) > 0.3);
            assert_ne!(FloatMode::current(), FloatMode::SCALARS);
            let _inner = FloatEnv::set();
            assert_eq!(FloatMode::current(), FloatMode::KERNELS);
        }
        assert_eq!(FloatMode::current(), TOWARD_ZERO);
        before.enter();
    }

    #[test]
    fn a_callback_runs_in_the_callers_environment_and_may_change_it() {
        let before = FloatMode::current();
        TOWARD_ZERO.enter();
        {
            let env = FloatEnv::scalars();
            let seen = env.outside(|| {
                let seen = FloatMode::current();
                UPWARD_TRAPPING.enter();
                seen
            });
            assert_eq!((seen, FloatMode::current()), (TOWARD_ZERO, FloatMode::SCALARS));
        }
        assert_eq!(FloatMode::current(), UPWARD_TRAPPING);
        before.enter();
    }
}
