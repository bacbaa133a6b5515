//! Feature `shim`: the same kernel files compiled by the host's C++ compiler, with the shim that runs them.

use std::path::PathBuf;

pub fn compile() {
    let entries = std::fs::read_dir("kernels/shim").expect("the package holds kernels/shim");
    let mut sources: Vec<PathBuf> = entries.map(|entry| entry.expect("kernels/shim can be read").path()).collect();
    sources.retain(|path| path.extension().is_some_and(|end| end == "cpp"));
    sources.sort();
    sources.extend(super::kernels_ending(&["cu"]));
    println!("cargo:rerun-if-changed=src/backend/cuda/emulation.rs");
    cxx_build::bridge("src/backend/cuda/emulation.rs")
        // The compiler does not know what a .cu file is.
        .flag("-x")
        .flag("c++")
        .std("c++17")
        .opt_level(2)
        // Kernels read vectors of four words where they stored halves, as CUDA allows.
        .flag("-fno-strict-aliasing")
        // What to unroll is said to nvcc alone.
        .flag("-Wno-unknown-pragmas")
        // It does not see that what is loaded under a condition is used under the same one.
        .flag("-Wno-maybe-uninitialized")
        // Nothing here is for the users of the shared library.
        .flag("-fvisibility=hidden")
        .define("SQUIRE_SHIM", None)
        .include("kernels")
        .files(sources)
        // Kernels announce themselves by static objects, which a linker would leave out of an archive as unused.
        .link_lib_modifier("+whole-archive")
        .compile("squire_shim");
}
