//! What a result code of the driver means for the caller.

use crate::error::Fault;

/// The codes that are told from others (cuda.h, CUresult).
mod code {
    pub const OUT_OF_MEMORY: u32 = 2;
    pub const DEINITIALIZED: u32 = 4;
    pub const INVALID_IMAGE: u32 = 200;
    pub const NO_BINARY_FOR_GPU: u32 = 209;
    pub const INVALID_PTX: u32 = 218;
    pub const JIT_COMPILER_NOT_FOUND: u32 = 221;
    pub const UNSUPPORTED_PTX_VERSION: u32 = 222;
    pub const JIT_COMPILATION_DISABLED: u32 = 223;
    pub const ECC_UNCORRECTABLE: u32 = 214;
    pub const NVLINK_UNCORRECTABLE: u32 = 220;
    pub const CONTAINED: u32 = 226;
    pub const NOT_FOUND: u32 = 500;
    pub const ILLEGAL_ADDRESS: u32 = 700;
    pub const LAUNCH_TIMEOUT: u32 = 702;
    pub const CONTEXT_IS_DESTROYED: u32 = 709;
    pub const ASSERT: u32 = 710;
    pub const HARDWARE_STACK_ERROR: u32 = 714;
    pub const LAUNCH_FAILED: u32 = 719;
    pub const TENSOR_MEMORY_LEAK: u32 = 721;
    pub const MPS_CLIENT_TERMINATED: u32 = 810;
    pub const EXTERNAL_DEVICE: u32 = 911;
    pub const UNKNOWN: u32 = 999;
}

/// The fault of a failed call. `NoKernels` comes of loading kernels only: there is none for the device, or none of the name.
///
/// Lost is what leaves the context unusable for good: the driver answers every later call with the same code. Between
/// `HARDWARE_STACK_ERROR` and `LAUNCH_FAILED` lie only faults of a running kernel (illegal instruction, misaligned
/// address, invalid address space, invalid program counter). `UNKNOWN` counts as lost too: what failed is not known, so
/// neither is what still holds.
pub(super) fn fault(code: u32) -> Fault {
    match code {
        code::OUT_OF_MEMORY => Fault::OutOfDeviceMemory,
        code::INVALID_IMAGE
        | code::NO_BINARY_FOR_GPU
        | code::INVALID_PTX
        | code::JIT_COMPILER_NOT_FOUND
        | code::UNSUPPORTED_PTX_VERSION
        | code::JIT_COMPILATION_DISABLED
        | code::NOT_FOUND => Fault::NoKernels,
        code::DEINITIALIZED
        | code::ECC_UNCORRECTABLE
        | code::NVLINK_UNCORRECTABLE
        | code::CONTAINED
        | code::ILLEGAL_ADDRESS
        | code::LAUNCH_TIMEOUT
        | code::CONTEXT_IS_DESTROYED
        | code::ASSERT
        | code::HARDWARE_STACK_ERROR..=code::LAUNCH_FAILED
        | code::TENSOR_MEMORY_LEAK
        | code::MPS_CLIENT_TERMINATED
        | code::EXTERNAL_DEVICE
        | code::UNKNOWN => Fault::DeviceLost,
        _ => Fault::DeviceError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_fault() {
        // CUresult of cuda.h 13.0 by fault; all that is not listed is an error that the device outlives.
        let lost = [4, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911, 999];
        let no_kernels = [200, 209, 218, 221, 222, 223, 500];
        for code in 1..2000 {
            let wanted = match code {
                2 => Fault::OutOfDeviceMemory,
                code if lost.contains(&code) => Fault::DeviceLost,
                code if no_kernels.contains(&code) => Fault::NoKernels,
                _ => Fault::DeviceError,
            };
            assert_eq!(fault(code), wanted, "{code}");
        }
    }

    #[test]
    fn a_refused_launch_or_capture_does_not_lose_the_device() {
        // too many resources, too large a cooperative launch, a capture that was broken off
        for code in [1, 46, 201, 400, 600, 701, 720, 900, 901, 906] {
            assert_eq!(fault(code), Fault::DeviceError, "{code}");
        }
    }
}
