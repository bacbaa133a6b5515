//! The CUDA driver on a machine without a GPU: what is said where there is no driver, a stub, too old a one or no
//! device, and every call of the interface over a made-up driver (`tests/c/fake_driver.c`), the failing ones too.
//!
//! A driver is loaded once in a process, so each case is this test program again, as `scene` under its own libraries.
#![cfg(all(target_os = "linux", feature = "cuda", not(feature = "shim")))]

mod cc;

use std::path::Path;
use std::process::Command;

use squire::backend::batch::Plan;
use squire::backend::cuda::{Cuda, CudaOptions, Graphs, KernelArgs, Launch, Pinned};
use squire::backend::{Compute, Device};
use squire::error::Fault;
use squire::serve::{DeviceChoice, Engine, EngineOptions};
use tempfile::TempDir;

/// A folder with the made-up driver, and a cuBLASLt that nothing can be found in: the machine's own stays out.
fn fake() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let compile = |source: &Path, library: &str| {
        let flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-O1", "-x", "c"];
        cc::run(Command::new("gcc").args(flags).arg(source).arg("-o").arg(folder.path().join(library)));
    };
    compile(&cc::root().join("tests/c/fake_driver.c"), "libcuda.so");
    compile(Path::new("/dev/null"), "libcublasLt.so");
    folder
}

/// Runs a scene of this program, and gives the calls that the driver heard.
fn play(scene: &str, libraries: &Path, settings: &[(&str, &str)]) -> Vec<String> {
    let heard = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "scene", "--nocapture"]).env("SQUIRE_SCENE", scene).env("LD_LIBRARY_PATH", libraries);
    command.env("FAKE_CALLS", heard.path()).envs(settings.iter().copied());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{scene} with {settings:?}: {said}");
    std::fs::read_to_string(heard.path()).unwrap().lines().map(String::from).collect()
}

/// Runs nothing, unless `play` runs it.
#[test]
fn scene() {
    let Ok(scene) = std::env::var("SQUIRE_SCENE") else { return };
    let (name, words) = scene.split_once(": ").unwrap_or((&scene, ""));
    match name {
        "refused" => refused(words),
        "beyond" => beyond(),
        "calls" => calls(),
        "launches" => launches(),
        "lost" => lost(),
        "full" => full(),
        "engine" => engine(),
        other => panic!("no scene {other}"),
    }
}

fn open() -> Cuda {
    Cuda::open(&CudaOptions::default()).unwrap()
}

/// Opening fails with the fault of the number, and the words.
fn refused(wanted: &str) {
    let (code, words) = wanted.split_once(' ').unwrap();
    let code: i32 = code.parse().unwrap();
    let e = Cuda::open(&CudaOptions::default()).err().expect("must be refused");
    assert!(e.fault() as i32 == code && e.message().contains(words), "{e:?}");
    if e.fault() == Fault::NoDevice {
        let probed = Cuda::probe().unwrap_err();
        assert_eq!((probed.fault(), probed.message()), (e.fault(), e.message()));
    }
}

#[test]
fn a_machine_without_a_usable_device_is_told_which_and_what_to_do() {
    let (fake, nothing) = (fake(), tempfile::tempdir().unwrap());
    let cases: [(&str, &[(&str, &str)]); 8] = [
        ("512 too old: it speaks CUDA 12.4, squire's kernels need 13.0", &[("FAKE_VERSION", "12040")]),
        ("512 too old: it speaks CUDA 11.0", &[("FAKE_VERSION", "11000")]),
        ("512 stub", &[("FAKE_INIT", "34")]),
        ("512 does not start: cuInit failed with CUDA_ERROR (3, words)", &[("FAKE_INIT", "3")]),
        ("512 finds no device", &[("FAKE_INIT", "100")]),
        ("512 finds no device", &[("FAKE_DEVICES", "0")]),
        ("513 Fake 0, compute capability 7.5: it needs 8.0 or later", &[("FAKE_CAPABILITY", "75")]),
        ("513 no kernels for Fake 0, compute capability 9.0", &[("FAKE_FAIL", "cuModuleLoadData=209")]),
    ];
    for (words, settings) in cases {
        play(&format!("refused: {words}"), fake.path(), settings);
    }
    // A library of the name that is no driver, one that lacks a function, and none at all.
    let compile = |source: &str| {
        let (file, library) = (nothing.path().join("other.c"), nothing.path().join("libcuda.so"));
        std::fs::write(&file, source).unwrap();
        cc::run(Command::new("gcc").args(["-shared", "-fPIC"]).arg(file).arg("-o").arg(library));
    };
    compile("int x;");
    play("refused: 512 no NVIDIA driver: it has no cuDriverGetVersion", nothing.path(), &[]);
    compile("int cuDriverGetVersion(int *v) { *v = 13000; return 0; }");
    play("refused: 512 has no function cuInit", nothing.path(), &[]);
}

#[test]
fn without_a_driver_nothing_panics_and_the_library_is_named() {
    let driver =
        ["", ".1"].iter().any(|end| Path::new("/usr/lib/x86_64-linux-gnu").join(format!("libcuda.so{end}")).exists());
    if !driver {
        let nothing = tempfile::tempdir().unwrap();
        play("refused: 512 libcuda.so.1 cannot be loaded", nothing.path(), &[]);
    }
}

fn beyond() {
    let names: Vec<_> = Cuda::probe().unwrap().into_iter().map(|facts| facts.name).collect();
    assert_eq!(names, ["Fake 0", "Fake 1"]);
    let e = Cuda::open(&CudaOptions { index: 2, ..CudaOptions::default() }).err().unwrap();
    assert_eq!(
        (e.fault(), e.message()),
        (Fault::NoSuchDevice, "device 2 is wanted, the driver finds 2, counted from 0")
    );
}

#[test]
fn a_device_that_is_not_there_is_refused_and_probing_makes_no_context() {
    assert_eq!(play("beyond", fake().path(), &[("FAKE_DEVICES", "2")]), [""; 0]);
}

fn calls() {
    let cuda = open();
    let facts = cuda.facts();
    assert_eq!((facts.capability, facts.shared_bytes, facts.driver), (90, 232_448, 13000));
    assert!(facts.overlaps && !cuda.api().has_matmul());
    let bytes: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
    let buffer = cuda.allocate(bytes.len()).unwrap();
    buffer.write(&bytes).unwrap();
    assert_eq!(buffer.read().unwrap(), bytes);
    let twin = cuda.allocate(1000).unwrap();
    // SAFETY: both buffers live, and hold the bytes that are copied and filled.
    unsafe {
        cuda.api().copy(twin.address(), buffer.address() + 5, 1000).unwrap();
        cuda.api().fill(twin.address(), 7, 500).unwrap();
    }
    let read = twin.read().unwrap();
    assert!(read[..500].iter().all(|&byte| byte == 7) && read[500..] == bytes[505..1005]);

    let api = cuda.api();
    let (from, to) = (api.event().unwrap(), api.event().unwrap());
    api.record(from).unwrap();
    api.record(to).unwrap();
    api.wait(to).unwrap();
    assert!(api.passed(to).unwrap());
    assert_eq!(api.elapsed_us(from, to).unwrap(), 1500.0);
    [from, to].into_iter().for_each(|event| api.drop_event(event));
    // From another thread, where no context is current yet.
    std::thread::scope(|scope| {
        scope.spawn(|| cuda.finish().unwrap());
    });
    drop((buffer, twin));
    assert_eq!(cuda.held(), 0);
}

#[test]
fn what_is_written_is_read_and_all_is_given_back_in_order() {
    let heard = play("calls", fake().path(), &[]);
    let count = |name: &str| heard.iter().filter(|call| call.split(' ').next() == Some(name)).count();
    assert_eq!(count("cuMemAlloc_v2"), 1, "small buffers share a slab");
    for (taken, given) in [
        ("cuMemAlloc_v2", "cuMemFree_v2"),
        ("cuMemHostAlloc", "cuMemFreeHost"),
        ("cuEventCreate", "cuEventDestroy_v2"),
        ("cuStreamCreate", "cuStreamDestroy_v2"),
        ("cuModuleLoadData", "cuModuleUnload"),
        ("cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease_v2"),
    ] {
        assert_eq!(count(taken), count(given), "{taken}");
    }
    // One module for each file of kernels.
    let mut last: Vec<_> = heard.iter().map(String::as_str).collect();
    last.dedup_by(|a, b| a == b && *a == "cuModuleUnload");
    let end = last.split_off(last.len() - 6);
    let streams = ["cuStreamDestroy_v2"; 2];
    let wanted = ["cuMemFree_v2", "cuStreamSynchronize", "cuModuleUnload", streams[0], streams[1]];
    assert_eq!(end, [&wanted[..], &["cuDevicePrimaryCtxRelease_v2"]].concat());
    let freed = heard.iter().position(|call| call == "cuMemFree_v2").unwrap();
    assert_eq!(heard[freed - 1], "cuStreamSynchronize", "memory goes back after a wait");
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Args {
    number: i32,
    more: [i32; 3],
}

// SAFETY: sixteen bytes, all initialised; the made-up driver reads the first four.
unsafe impl KernelArgs for Args {}

#[repr(C)]
#[derive(Clone, Copy)]
struct Short(i32);

// SAFETY: four initialised bytes, fewer than the kernel takes, which is what is to be refused.
unsafe impl KernelArgs for Short {}

fn launches() {
    let cuda = open();
    let args = Args { number: 41, more: [0; 3] };
    cuda.launch(Launch::new("known", [2, 3, 4], 128, 1024), &args);
    cuda.launch(Launch::new("known", [1, 1, 1], 32, 100 << 10), &args);
    cuda.launch(Launch::new("known", [1, 1, 1], 32, 60 << 10), &args);
    cuda.launch(Launch { cooperative: true, cluster: 8, ..Launch::new("known", [8, 1, 1], 32, 0) }, &args);
    cuda.launch(Launch::new("known", [0, 1, 1], 32, 0), &args);
    cuda.finish().unwrap();
    cuda.launch(Launch::new("unknown", [1, 1, 1], 32, 0), &args);
    let e = cuda.check().unwrap_err();
    assert_eq!(e.fault(), Fault::NoKernels);
    assert!(e.message().starts_with("kernel unknown: cuModuleGetFunction failed with"), "{e}");
    cuda.launch(Launch::new("known", [1, 1, 1], 32, 0), &Short(1));
    let e = cuda.check().unwrap_err();
    assert_eq!((e.fault(), e.message()), (Fault::DeviceError, "kernel known takes 16 bytes, was given 4"));

    let plan = Plan { rows: 1, context: 512, columns: 8, decodes: true };
    let mut graphs = Graphs::default();
    let large = cuda.allocate(16 << 20).unwrap();
    let record = || {
        cuda.launch(Launch::new("known", [5, 1, 1], 32, 0), &args);
        // Freed while calls are recorded: the wait comes after the recording.
        drop(large);
        Ok(())
    };
    cuda.replay(&mut graphs, (1, plan), record).unwrap();
    cuda.replay(&mut graphs, (1, plan), || unreachable!("it is known")).unwrap();
    let failing = || {
        cuda.launch(Launch::new("unknown", [1, 1, 1], 32, 0), &args);
        Ok(())
    };
    let other = (1, Plan { rows: 2, ..plan });
    assert_eq!(cuda.replay(&mut graphs, other, failing).unwrap_err().fault(), Fault::NoKernels);
    assert_eq!(graphs.len(), 1, "a recording that failed is not kept");
}

#[test]
fn launches_carry_their_attributes_and_recordings_are_replayed() {
    let heard = play("launches", fake().path(), &[]);
    let of = |name: &str| heard.iter().filter(|call| call.starts_with(name)).map(String::as_str).collect::<Vec<_>>();
    let wanted = [
        "cuLaunchKernelEx 2,3,4 x 128,1,1 shared 1024 args 41 attribute 6=1",
        "cuLaunchKernelEx 1,1,1 x 32,1,1 shared 102400 args 41 attribute 6=1",
        "cuLaunchKernelEx 1,1,1 x 32,1,1 shared 61440 args 41 attribute 6=1",
        "cuLaunchKernelEx 8,1,1 x 32,1,1 shared 0 args 41 attribute 2=1 attribute 4=8",
        "cuLaunchKernelEx 5,1,1 x 32,1,1 shared 0 args 41 attribute 6=1",
    ];
    assert_eq!(of("cuLaunchKernelEx"), wanted);
    assert_eq!(of("cuFuncSetAttribute"), ["cuFuncSetAttribute 8 102400"], "raised once, and never lowered");
    let n_modules = of("cuModuleLoadData").len();
    let lookups = 1 + 2 * n_modules;
    assert_eq!(
        of("cuModuleGetFunction").len(),
        lookups,
        "a kernel is looked up once; one that is not there, each time"
    );
    assert_eq!(of("cuGraphLaunch").len(), 2);
    assert_eq!(of("cuGraphInstantiateWithFlags").len(), of("cuGraphExecDestroy").len());
    assert_eq!(of("cuGraphInstantiateWithFlags").len(), of("cuGraphDestroy").len());
    let begun = heard.iter().position(|call| call == "cuStreamBeginCapture_v2").unwrap();
    let recorded: Vec<_> = heard[begun + 1..].iter().take(4).map(|call| call.split(' ').next().unwrap()).collect();
    assert_eq!(recorded, ["cuLaunchKernelEx", "cuStreamEndCapture", "cuStreamSynchronize", "cuMemFree_v2"]);
}

fn lost() {
    let (cuda, other) = (open(), open());
    let buffer = cuda.allocate(1000).unwrap();
    let pinned = Pinned::new(&cuda, 64).unwrap();
    for _ in 0..2 {
        // The second time, and everything after it, is answered at once.
        let e = cuda.api().synchronize().unwrap_err();
        assert_eq!(e.fault(), Fault::DeviceLost);
        let wanted = "cuStreamSynchronize failed with CUDA_ERROR_ILLEGAL_ADDRESS (700, words); the device is lost";
        assert!(e.message().starts_with(wanted), "{e}");
    }
    assert_eq!(cuda.api().memory().unwrap_err().fault(), Fault::DeviceLost);
    assert_eq!(cuda.allocate(100 << 20).unwrap_err().fault(), Fault::DeviceLost);
    cuda.launch(Launch::new("known", [1, 1, 1], 32, 0), &Args { number: 1, more: [0; 3] });
    for _ in 0..2 {
        assert_eq!(cuda.check().unwrap_err().fault(), Fault::DeviceLost, "for good");
    }
    drop((buffer, pinned));
    assert_eq!(cuda.held(), 0);
    other.api().memory().expect("another engine's device is told by its own calls");
}

#[test]
fn a_lost_device_refuses_everything_and_lets_go() {
    let heard = play("lost", fake().path(), &[("FAKE_FAIL", "cuStreamSynchronize=700")]);
    let count = |name: &str| heard.iter().filter(|call| *call == name).count();
    assert_eq!(count("cuLaunchKernelEx"), 0, "nothing is asked of it any more");
    assert_eq!(count("cuDevicePrimaryCtxRetain"), count("cuDevicePrimaryCtxRelease_v2"));
    // Once to lose it, and once at the end of either handle.
    assert_eq!(count("cuStreamSynchronize"), 3);
}

fn full() {
    let cuda = open();
    let e = cuda.allocate(3 << 20).unwrap_err();
    assert_eq!((e.fault(), e.bytes()), (Fault::OutOfDeviceMemory, Some((3 << 20, 1 << 20))));
    assert!(e.message().contains("3145728 bytes of device memory are needed, 1048576 are free"), "{e}");
    // A slab has no room, a piece by itself has.
    let piece = cuda.allocate(1 << 20).unwrap();
    assert_eq!((cuda.free().unwrap(), cuda.held()), (0, 1 << 20));
    drop(piece);
    assert_eq!((cuda.free().unwrap(), cuda.held()), (1 << 20, 0));
}

#[test]
fn a_full_device_says_what_is_needed_and_free() {
    play("full", fake().path(), &[("FAKE_MEMORY", "1048576")]);
}

fn engine() {
    let options = |device, compute| EngineOptions { device, compute, n_threads: 1, ..EngineOptions::default() };
    let on = |device, compute| Engine::new(options(device, compute));
    let cuda = DeviceChoice::Cuda { index: 0 };
    assert!(matches!(on(cuda, Compute::Bf16).unwrap().device(), Device::Cuda(_)));
    assert!(matches!(on(DeviceChoice::Best, Compute::Bf16).unwrap().device(), Device::Cuda(_)));
    assert!(matches!(on(DeviceChoice::Best, Compute::F32).unwrap().device(), Device::Cpu(_)));
    assert!(matches!(on(DeviceChoice::Cpu, Compute::Bf16).unwrap().device(), Device::Cpu(_)));
    let e = on(cuda, Compute::F32).err().unwrap();
    assert_eq!(e.fault(), Fault::UnsupportedBackend);
    assert!(e.message().starts_with("the cuda backend computes in bf16"), "{e}");
    assert_eq!(on(DeviceChoice::Cuda { index: 9 }, Compute::Bf16).err().unwrap().fault(), Fault::NoSuchDevice);
    let budget = EngineOptions { device_budget: 1 << 20, ..options(cuda, Compute::Bf16) };
    let engine = Engine::new(budget).unwrap();
    let Device::Cuda(cuda) = engine.device() else { unreachable!("asked for by name") };
    assert_eq!(cuda.allocate((1 << 20) + 1).unwrap_err().fault(), Fault::DeviceBudget);
}

#[test]
fn an_engine_computes_where_its_options_say() {
    play("engine", fake().path(), &[]);
}

#[test]
fn a_c_program_is_refused_a_gpu_and_falls_back() {
    let program = cc::Program::compile("gcc", "c99", &cc::root().join("tests/c/cuda.c"));
    let fake = fake();
    for (setting, words) in
        [(("FAKE_INIT", "34"), "stub"), (("FAKE_VERSION", "11000"), "too old"), (("FAKE_DEVICES", "0"), "no device")]
    {
        let mut command = Command::new(program.folder.path().join("program"));
        cc::run(command.args([words, "512"]).env("LD_LIBRARY_PATH", fake.path()).env(setting.0, setting.1));
    }
}

#[test]
#[cfg(feature = "cli")]
fn the_program_is_refused_a_gpu_with_its_reason() {
    let fake = fake();
    let run = |arguments: &[&str], settings: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_squire"));
        let model = cc::root().join("tests/golden/dense_bf16");
        command.arg("score").arg(model).args(["--ids", "1,2,3"]).args(arguments);
        let output = command.env("LD_LIBRARY_PATH", fake.path()).envs(settings.iter().copied()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run(&["--backend", "cuda"], &[("FAKE_INIT", "34")]);
    assert!(code == Some(1) && said.contains("stub"), "{said}");
    let (code, said) = run(&["--backend", "cuda", "--device", "3"], &[]);
    assert!(code == Some(2) && said.contains("device 3 is wanted, the driver finds 1"), "{said}");
    let (code, said) = run(&["--device", "3"], &[]);
    assert!(code == Some(2) && said.contains("--device 3 needs --backend cuda"), "{said}");
}
