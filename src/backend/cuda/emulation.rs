//! The host shim behind the interface: device memory is host memory with guard zones and poison, kernels run as
//! fibers (kernels/shim), and the stream is a list that runs late, as a device's does.
//!
//! Nothing asked for is done at once: it waits until something waits for it. So a staging buffer that is written too
//! early, a result that is read too early, memory that is freed too early are found. For tests only.

use std::collections::HashMap;
use std::thread::{self, ThreadId};

use super::api::{self, Address, Api, CudaOptions, Event, Facts, Graph, Launch, Matmul};
use crate::error::{Error, Fault, Result};
use crate::random::{Stream, bits};
use crate::sync::Mutex;

#[cxx::bridge(namespace = "shim")]
mod ffi {
    /// One launch, and the seed of its order.
    struct Launch<'a> {
        kernel: &'a str,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        threads: u32,
        shared: u32,
        seed: u64,
    }

    unsafe extern "C++" {
        include!("shim/bridge.hpp");

        fn launch(launch: &Launch, args: &[u8]) -> Result<()>;
        fn has_kernel(name: &str) -> bool;
    }
}

/// Bytes around each allocation that nobody may write.
const GUARD: usize = 256;
/// What memory holds that nobody wrote: NaN as bf16 and as f32, and an index far outside anything.
const POISON: u8 = 0xff;
/// Bytes of the emulated device.
const MEMORY: u64 = 2 << 30;

/// The one emulated device. It claims to overlap kernels, so that those launches are tried too.
fn facts() -> Facts {
    Facts {
        name: "host shim".into(),
        capability: 90,
        n_sms: 4,
        total_bytes: MEMORY,
        l2_bytes: 1 << 20,
        shared_bytes: 227 << 10,
        driver: 13000,
        overlaps: true,
    }
}

pub(super) fn probe() -> Vec<Facts> {
    vec![facts()]
}

pub(super) fn open(options: &CudaOptions) -> Result<Emulation> {
    if options.index > 0 {
        let why = format!("device {} is wanted, the host shim is device 0 alone", options.index);
        return Err(Error::new(Fault::NoSuchDevice, why));
    }
    Ok(Emulation { facts: facts(), state: Mutex::new(State { seed: options.seed, ..State::default() }) })
}

pub(super) struct Emulation {
    facts: Facts,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    seed: u64,
    n_launches: u64,
    queue: Vec<Work>,
    /// who records, and what so far
    capture: Option<(ThreadId, Vec<Work>)>,
    graphs: HashMap<u64, Vec<Work>>,
    /// event: the number of works asked for before its mark
    events: HashMap<u64, u64>,
    n_asked: u64,
    n_done: u64,
    next_id: u64,
    memory: HashMap<Address, Block>,
    pinned: HashMap<usize, Vec<Line>>,
    lost: Option<String>,
}

#[derive(Clone, Copy)]
#[repr(C, align(256))]
struct Line([u8; 256]);

struct Block {
    lines: Vec<Line>,
    len: usize,
}

#[derive(Clone)]
enum Work {
    Copy { to: u64, from: u64, bytes: usize },
    Fill { at: u64, byte: u8, bytes: usize },
    Launch { launch: api::Launch, args: Vec<u8> },
    Replay(u64),
}

impl Block {
    fn new(len: usize) -> Block {
        let n = (len + 2 * GUARD).div_ceil(256);
        Block { lines: vec![Line([POISON; 256]); n], len }
    }

    fn address(&self) -> Address {
        self.lines.as_ptr() as u64 + GUARD as u64
    }

    fn is_whole(&self) -> bool {
        let bytes = self.lines.iter().flat_map(|l| l.0);
        bytes.enumerate().all(|(i, b)| (GUARD..GUARD + self.len).contains(&i) || b == POISON)
    }
}

fn lost(why: &str) -> Error {
    Error::new(Fault::DeviceLost, format!("the emulated device is lost: {why}"))
}

impl State {
    fn ask(&mut self, work: Work) -> Result<()> {
        if let Some(why) = &self.lost {
            return Err(lost(why));
        }
        match &mut self.capture {
            Some((thread, recorded)) if *thread == thread::current().id() => recorded.push(work),
            _ => {
                self.queue.push(work);
                self.n_asked += 1;
            }
        }
        Ok(())
    }

    /// Who waits while he records breaks the recording off on a device.
    fn may_wait(&self) -> Result<()> {
        match &self.capture {
            Some((thread, _)) if *thread == thread::current().id() => {
                Err(Error::new(Fault::DeviceError, "a thread waits for the device while it records"))
            }
            _ => Ok(()),
        }
    }

    /// Does the work up to number `until`. What a kernel does wrong loses the device, as it would a real one.
    fn run(&mut self, until: u64) -> Result<()> {
        while self.n_done < until {
            let work = self.queue.remove(0);
            self.n_done += 1;
            if self.lost.is_none()
                && let Err(why) = self.run_one(&work)
            {
                self.lost = Some(why);
            }
        }
        self.lost.as_ref().map_or(Ok(()), |why| Err(lost(why)))
    }

    fn run_one(&mut self, work: &Work) -> std::result::Result<(), String> {
        match work {
            // SAFETY: the caller of `copy`, `upload` or `download` promised valid ranges until now.
            Work::Copy { to, from, bytes } => unsafe {
                std::ptr::copy_nonoverlapping(*from as *const u8, *to as *mut u8, *bytes);
            },
            // SAFETY: the caller of `fill` promised a valid range until now.
            Work::Fill { at, byte, bytes } => unsafe { (*at as *mut u8).write_bytes(*byte, *bytes) },
            Work::Launch { launch, args } => {
                self.n_launches += 1;
                let launch = ffi::Launch {
                    kernel: launch.kernel,
                    grid_x: launch.grid[0],
                    grid_y: launch.grid[1],
                    grid_z: launch.grid[2],
                    threads: launch.threads,
                    shared: launch.shared,
                    seed: bits(Stream::World, &[self.seed, self.n_launches]),
                };
                ffi::launch(&launch, args).map_err(|e| e.to_string())?;
                if let Some(block) = self.memory.values().find(|b| !b.is_whole()) {
                    return Err(format!("{} wrote outside a buffer of {} bytes", launch.kernel, block.len));
                }
            }
            Work::Replay(graph) => {
                let works = self.graphs.get(graph).cloned().ok_or("a graph is replayed that was dropped")?;
                works.iter().try_for_each(|w| self.run_one(w))?;
            }
        }
        Ok(())
    }

    fn run_all(&mut self) -> Result<()> {
        self.run(self.n_asked)
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

impl Api for Emulation {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn memory(&self) -> Result<(u64, u64)> {
        let held: u64 = self.state.lock().memory.values().map(|b| b.len as u64).sum();
        Ok((MEMORY - held, MEMORY))
    }

    fn allocate(&self, bytes: u64) -> Result<Address> {
        let (free, _) = self.memory()?;
        if bytes > free {
            let why = format!("{bytes} bytes of device memory are needed, {free} are free");
            return Err(Error::memory(Fault::OutOfDeviceMemory, bytes, free, why));
        }
        let block = Block::new(bytes as usize);
        let at = block.address();
        self.state.lock().memory.insert(at, block);
        Ok(at)
    }

    fn free(&self, at: Address) {
        let mut state = self.state.lock();
        // Work asked for before may still use it; its failure is told by the next wait.
        let _ = state.run_all();
        if let Some(mut block) = state.memory.remove(&at) {
            block.lines.fill(Line([POISON; 256]));
        }
    }

    fn pin(&self, bytes: usize) -> Result<*mut u8> {
        let mut lines = vec![Line([POISON; 256]); bytes.div_ceil(256)];
        let at = lines.as_mut_ptr().cast::<u8>();
        self.state.lock().pinned.insert(at as usize, lines);
        Ok(at)
    }

    fn unpin(&self, at: *mut u8) {
        let mut state = self.state.lock();
        let _ = state.run_all();
        state.pinned.remove(&(at as usize));
    }

    unsafe fn upload(&self, to: Address, from: *const u8, bytes: usize) -> Result<()> {
        self.state.lock().ask(Work::Copy { to, from: from as u64, bytes })
    }

    unsafe fn download(&self, to: *mut u8, from: Address, bytes: usize) -> Result<()> {
        self.state.lock().ask(Work::Copy { to: to as u64, from, bytes })
    }

    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        self.state.lock().ask(Work::Copy { to, from, bytes })
    }

    unsafe fn fill(&self, at: Address, byte: u8, bytes: usize) -> Result<()> {
        self.state.lock().ask(Work::Fill { at, byte, bytes })
    }

    unsafe fn launch(&self, launch: &Launch, args: &[u8]) -> Result<()> {
        if !ffi::has_kernel(launch.kernel) {
            return Err(Error::new(Fault::NoKernels, format!("there is no kernel {}", launch.kernel)));
        }
        if launch.shared > self.facts.shared_bytes {
            let why = format!("{} asks for {} bytes of shared memory", launch.kernel, launch.shared);
            return Err(Error::new(Fault::DeviceError, why));
        }
        self.state.lock().ask(Work::Launch { launch: *launch, args: args.to_vec() })
    }

    fn has_matmul(&self) -> bool {
        false
    }

    unsafe fn matmul(&self, _: &Matmul) -> Result<()> {
        Err(Error::new(Fault::DeviceError, "the host shim has no library of matrix products"))
    }

    fn begin_capture(&self) -> Result<()> {
        let mut state = self.state.lock();
        if state.capture.is_some() {
            return Err(Error::new(Fault::DeviceError, "a recording is under way"));
        }
        state.capture = Some((thread::current().id(), Vec::new()));
        Ok(())
    }

    fn end_capture(&self) -> Result<Graph> {
        let mut state = self.state.lock();
        let Some((_, recorded)) = state.capture.take() else {
            return Err(Error::new(Fault::DeviceError, "no recording was begun"));
        };
        let id = state.id();
        state.graphs.insert(id, recorded);
        Ok(Graph(id))
    }

    unsafe fn replay(&self, graph: Graph) -> Result<()> {
        self.state.lock().ask(Work::Replay(graph.0))
    }

    fn drop_graph(&self, graph: Graph) {
        let mut state = self.state.lock();
        let _ = state.run_all();
        state.graphs.remove(&graph.0);
    }

    fn event(&self) -> Result<Event> {
        let mut state = self.state.lock();
        let id = state.id();
        state.events.insert(id, 0);
        Ok(Event(id))
    }

    fn record(&self, event: Event) -> Result<()> {
        let mut state = self.state.lock();
        let mark = state.n_asked;
        state.events.insert(event.0, mark);
        Ok(())
    }

    fn passed(&self, event: Event) -> Result<bool> {
        let mut state = self.state.lock();
        state.may_wait()?;
        let mark = state.events.get(&event.0).copied().unwrap_or(0);
        // One piece of work a question, so that who asks again and again gets on.
        let next = (state.n_done + 1).min(state.n_asked);
        state.run(next)?;
        Ok(state.n_done >= mark)
    }

    fn wait(&self, event: Event) -> Result<()> {
        let mut state = self.state.lock();
        state.may_wait()?;
        let mark = state.events.get(&event.0).copied().unwrap_or(0);
        state.run(mark)
    }

    fn elapsed_us(&self, _: Event, _: Event) -> Result<f32> {
        Ok(0.0)
    }

    fn drop_event(&self, event: Event) {
        self.state.lock().events.remove(&event.0);
    }

    fn synchronize(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.may_wait()?;
        state.run_all()
    }

    fn lost(&self) -> Option<String> {
        self.state.lock().lost.as_deref().map(|why| lost(why).message().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Buffer, Cuda, KernelArgs};
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct FaultArgs {
        out: Address,
        fault: u32,
        n: u32,
    }
    // SAFETY: the struct of kernels/shim/faults.cpp.
    unsafe impl KernelArgs for FaultArgs {}

    const SHARED: usize = 64 * 4 + 64 * 16;

    fn device(seed: u64) -> Cuda {
        Cuda::open(&CudaOptions { seed, no_pool: true, ..CudaOptions::default() }).unwrap()
    }

    /// 64 words that hold 7.
    fn words(cuda: &Cuda) -> Buffer {
        let out = cuda.allocate(256).unwrap();
        out.write(&[7u32; 64].map(u32::to_ne_bytes).concat()).unwrap();
        out
    }

    fn run(cuda: &Cuda, fault: u32, n: u32, launch: impl FnOnce(&mut Launch)) -> Result<Vec<u32>> {
        let out = words(cuda);
        let mut how = Launch::new("squire_fault", [1, 1, 1], 64, SHARED);
        launch(&mut how);
        cuda.launch(how, &FaultArgs { out: out.address(), fault, n });
        let bytes = out.read()?;
        Ok(bytes.chunks_exact(4).map(|b| u32::from_ne_bytes(b.try_into().unwrap())).collect())
    }

    fn found(fault: u32, n: u32, wanted: &str) {
        let e = run(&device(1), fault, n, |_| {}).expect_err("the shim finds it");
        assert_eq!(e.fault(), Fault::DeviceLost);
        assert!(e.message().contains(wanted), "fault {fault}: {e}");
    }

    #[test]
    fn what_is_right_runs_in_every_order() {
        let wanted: Vec<u32> = (1..=64).rev().collect();
        for seed in 0..8 {
            assert_eq!(run(&device(seed), 0, 0, |_| {}).unwrap(), wanted);
            let added: Vec<u32> = wanted.iter().map(|v| v + 7).collect();
            assert_eq!(run(&device(seed), 7, 0, |_| {}).unwrap(), added);
        }
    }

    #[test]
    fn a_missing_barrier_shows_in_every_order() {
        let wanted: Vec<u32> = (1..=64).rev().collect();
        for seed in 0..8 {
            assert_ne!(run(&device(seed), 1, 0, |_| {}).unwrap(), wanted, "poison is read before it is written");
        }
    }

    #[test]
    fn divergence_and_deadlocks_are_reported() {
        found(2, 0, "barrier is divergent");
        found(3, 0, "ended before a barrier");
        found(4, 0, "warp is divergent");
        found(5, 0, "deadlocked");
    }

    #[test]
    fn a_copy_is_there_when_it_was_waited_for_and_not_before() {
        let got = run(&device(1), 6, 0, |_| {});
        // What is under way is poison; that it is never waited for is reported too.
        assert!(got.unwrap_err().message().contains("never waited for"));
        found(8, 0, "never waited for");
    }

    #[test]
    fn writes_outside_are_found() {
        found(9, (SHARED / 4) as u32, "shared memory");
        found(10, 64, "outside a buffer of 256 bytes");
        found(11, 0, "misaligned");
    }

    #[test]
    fn a_launch_must_be_what_the_kernel_is() {
        let refused = |launch: fn(&mut Launch)| run(&device(1), 0, 0, launch).unwrap_err().message().to_string();
        assert!(refused(|l| l.threads = 32).contains("made for 64"));
        assert!(refused(|l| l.shared = 64).contains("more shared memory"));
        assert!(refused(|l| l.shared = 1 << 20).contains("asks for"));
        assert!(refused(|l| l.kernel = "squire_nothing_of_the_kind").contains("no kernel"));
        let cuda = device(1);
        cuda.launch(Launch::new("squire_fault", [1, 1, 1], 64, SHARED), &Odd(0));
        assert!(cuda.finish().unwrap_err().message().contains("bytes of arguments"));
    }

    #[repr(transparent)]
    #[derive(Clone, Copy)]
    struct Odd(u64);
    // SAFETY: a number.
    unsafe impl KernelArgs for Odd {}

    #[test]
    fn the_stream_runs_late_and_in_order() {
        let cuda = device(3);
        let out = words(&cuda);
        let args = |fault| FaultArgs { out: out.address(), fault, n: 0 };
        let event = cuda.api().event().unwrap();
        cuda.launch(Launch::new("squire_fault", [1, 1, 1], 64, SHARED), &args(7));
        cuda.api().record(event).unwrap();
        cuda.api().wait(event).unwrap();
        assert!(cuda.api().passed(event).unwrap());
        let first = |bytes: Vec<u8>| u32::from_ne_bytes(bytes[..4].try_into().unwrap());
        assert_eq!(first(out.read().unwrap()), 64 + 7);
        // A graph is a list that is replayed: twice here, each reading what the one before wrote.
        cuda.api().begin_capture().unwrap();
        cuda.launch(Launch::new("squire_fault", [1, 1, 1], 64, SHARED), &args(7));
        let graph = cuda.api().end_capture().unwrap();
        assert_eq!(first(out.read().unwrap()), 64 + 7, "recording runs nothing");
        // SAFETY: `out` is alive.
        unsafe { cuda.api().replay(graph).unwrap() };
        assert_eq!(first(out.read().unwrap()), 64 + 64 + 7);
        cuda.api().drop_graph(graph);
        cuda.api().drop_event(event);
    }

    #[test]
    fn a_lost_device_stays_lost() {
        let cuda = device(1);
        assert!(run(&cuda, 2, 0, |_| {}).is_err());
        let launch = Launch::new("squire_fault", [1, 1, 1], 64, SHARED);
        cuda.launch(launch, &FaultArgs { out: 0, fault: 0, n: 0 });
        assert_eq!(cuda.finish().unwrap_err().fault(), Fault::DeviceLost);
        assert_eq!(cuda.check_present().unwrap_err().fault(), Fault::DeviceLost);
    }
}
