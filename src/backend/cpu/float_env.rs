//! The floating-point environment of every kernel: round to nearest, denormals flushed to zero.
//!
//! A host may have set its own rounding mode or denormal mode on the thread that calls us; without
//! this guard its choice would change bits. `vdpbf16ps` always flushes, so the other kernel sets must
//! flush too in order to agree with it.

/// Sets the environment; dropping it puts back what was there.
pub struct FloatEnv {
    saved: u64,
}

/// MXCSR: all exceptions masked, round to nearest, FTZ (bit 15) and DAZ (bit 6).
#[cfg(target_arch = "x86_64")]
const KERNEL_MXCSR: u32 = 0x9fc0;
/// FPCR: flush to zero (bit 24), round to nearest, no traps.
#[cfg(target_arch = "aarch64")]
const KERNEL_FPCR: u64 = 1 << 24;

impl FloatEnv {
    /// Switches the calling thread to the kernels' environment.
    #[inline]
    pub fn set() -> FloatEnv {
        let saved = read();
        write(KERNEL);
        FloatEnv { saved }
    }
}

impl Drop for FloatEnv {
    #[inline]
    fn drop(&mut self) {
        write(self.saved);
    }
}

#[cfg(target_arch = "x86_64")]
const KERNEL: u64 = KERNEL_MXCSR as u64;
#[cfg(target_arch = "aarch64")]
const KERNEL: u64 = KERNEL_FPCR;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const KERNEL: u64 = 0;

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
        let fpcr: u64;
        // SAFETY: reads a control register.
        unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) fpcr, options(nomem, nostack)) };
        fpcr
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    0
}

#[inline]
fn write(value: u64) {
    #[cfg(target_arch = "x86_64")]
    {
        let mxcsr = value as u32;
        // SAFETY: loads a value that was read from the register or is the valid constant above. Not marked
        // `nomem`, so that no arithmetic is moved over it through memory.
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &mxcsr, options(nostack)) };
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above, for FPCR.
    unsafe {
        std::arch::asm!("msr fpcr, {}", in(reg) value, options(nostack))
    };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = value;
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_callers_environment_is_restored() {
        let before = read();
        let toward_zero = (before & !0x6000) | 0x6000;
        write(toward_zero);
        {
            let _env = FloatEnv::set();
            assert_eq!(read() & 0xffc0, KERNEL & 0xffc0);
        }
        assert_eq!(read() & 0xffc0, toward_zero & 0xffc0);
        write(before);
    }
}
