//! What squire asks of a GPU: memory, one stream in order, launches, graphs, events.
//!
//! Two implementations stand behind it: the CUDA driver (`driver`, feature `cuda`) and the host shim that runs the same
//! kernel sources on the processor (`emulation`, feature `shim`, tests only). Every call is in order on one stream, and
//! the host waits only where a call says so. Kernels are named, and take one `repr(C)` struct by value.

use crate::error::Result;

/// A place in device memory, in bytes.
pub type Address = u64;

/// How to open a device.
#[derive(Clone, Debug, Default)]
pub struct CudaOptions {
    /// Which of the machine's devices.
    pub index: usize,
    /// Bytes of device memory that may be taken; 0: whatever is free.
    pub budget: u64,
    /// Launch every kernel after its predecessor's end, though the device could overlap them: the judge of overlapping.
    pub no_overlap: bool,
    /// Take every buffer from the device by itself, so that the shim's guards stand between any two.
    pub no_pool: bool,
    /// The shim's order of threads and blocks; a device takes no notice.
    pub seed: u64,
}

/// What is known of a device.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The product's name.
    pub name: String,
    /// Compute capability, 90 for 9.0.
    pub capability: u32,
    /// Streaming multiprocessors.
    pub n_sms: u32,
    /// Bytes of memory in all.
    pub total_bytes: u64,
    /// Bytes of L2 cache.
    pub l2_bytes: u64,
    /// Bytes of shared memory that one block may ask for.
    pub shared_bytes: u32,
    /// What the driver speaks, 13000 for CUDA 13.0.
    pub driver: u32,
    /// Whether a kernel may begin before its predecessor ends (programmatic dependent launch, 9.0 and later).
    pub overlaps: bool,
}

/// One launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The kernel's exported name.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory; kernels have no other.
    pub shared: u32,
    /// May begin before its predecessor ends; it waits by itself before it reads what that wrote.
    pub overlap: bool,
    /// Blocks of a cluster; 1: none.
    pub cluster: u32,
    /// All blocks must be resident at once.
    pub cooperative: bool,
}

impl Launch {
    /// A plain launch.
    pub fn new(kernel: &'static str, grid: [u32; 3], threads: u32, shared: usize) -> Launch {
        Launch { kernel, grid, threads, shared: shared as u32, overlap: false, cluster: 1, cooperative: false }
    }
}

/// A recorded list of launches and copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Graph(pub u64);

/// A mark in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event(pub u64);

/// y [n, m] = x [n, k] w [m, k]^T, all bf16 row-major, f32 accumulation, one rounding.
#[derive(Clone, Copy, Debug)]
pub struct Matmul {
    /// [n, m] bf16
    pub y: Address,
    /// [n, k] bf16
    pub x: Address,
    /// [m, k] bf16
    pub w: Address,
    /// rows of x
    pub n: usize,
    /// rows of w
    pub m: usize,
    /// columns of both
    pub k: usize,
    /// elements between rows of y, at least m
    pub y_stride: usize,
}

/// A device. Errors: `OutOfDeviceMemory` with needed and free bytes, `DeviceLost` where nothing will work again,
/// `DeviceError` for anything else.
pub trait Api: Send + Sync {
    /// What it is.
    fn facts(&self) -> &Facts;
    /// (free, total) bytes.
    fn memory(&self) -> Result<(u64, u64)>;
    /// Device memory, aligned to 256 bytes. Contents are undefined.
    fn allocate(&self, bytes: u64) -> Result<Address>;
    /// Gives it back; waits for the stream first.
    fn free(&self, at: Address);
    /// Page-locked host memory, aligned to 64 bytes.
    fn pin(&self, bytes: usize) -> Result<*mut u8>;
    /// Gives it back; waits for the stream first.
    fn unpin(&self, at: *mut u8);

    /// Copies to the device.
    ///
    /// # Safety
    /// Both ranges are valid; `from` is pinned and stays as it is until the stream has passed this point.
    unsafe fn upload(&self, to: Address, from: *const u8, bytes: usize) -> Result<()>;
    /// Copies to the host.
    ///
    /// # Safety
    /// Both ranges are valid; `to` is pinned and is not touched until the stream has passed this point.
    unsafe fn download(&self, to: *mut u8, from: Address, bytes: usize) -> Result<()>;
    /// Copies within the device.
    ///
    /// # Safety
    /// Both ranges are valid and apart.
    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()>;
    /// Sets bytes.
    ///
    /// # Safety
    /// The range is valid.
    unsafe fn fill(&self, at: Address, byte: u8, bytes: usize) -> Result<()>;
    /// Launches a kernel on the struct of its arguments.
    ///
    /// # Safety
    /// `args` is the kernel's struct, and every address in it is valid for what the kernel does.
    unsafe fn launch(&self, launch: &Launch, args: &[u8]) -> Result<()>;

    /// Whether `matmul` is served by a library (cuBLASLt); where not, squire's own kernel is used.
    fn has_matmul(&self) -> bool;
    /// A matrix product by the library.
    ///
    /// # Safety
    /// The matrices are valid; `has_matmul` said yes.
    unsafe fn matmul(&self, matmul: &Matmul) -> Result<()>;

    /// From here on what this thread asks for is recorded instead of run; it must not wait meanwhile. What other threads
    /// ask for (they load and save models) goes to the stream as ever.
    fn begin_capture(&self) -> Result<()>;
    /// Ends this thread's recording. After an error in between nothing was recorded.
    fn end_capture(&self) -> Result<Graph>;
    /// Runs a recording.
    ///
    /// # Safety
    /// All addresses in it are still valid.
    unsafe fn replay(&self, graph: Graph) -> Result<()>;
    /// Forgets a recording; waits for the stream first.
    fn drop_graph(&self, graph: Graph);

    /// A new event.
    fn event(&self) -> Result<Event>;
    /// Marks the stream's present end.
    fn record(&self, event: Event) -> Result<()>;
    /// Whether the stream has passed the mark.
    fn passed(&self, event: Event) -> Result<bool>;
    /// Waits until it has.
    fn wait(&self, event: Event) -> Result<()>;
    /// Microseconds between two passed marks.
    fn elapsed_us(&self, from: Event, to: Event) -> Result<f32>;
    /// Forgets an event.
    fn drop_event(&self, event: Event);
    /// Waits for all that was asked.
    fn synchronize(&self) -> Result<()>;
    /// Why nothing will work again, once that is so.
    fn lost(&self) -> Option<String>;
}
