//! Names the shared library, hides what its dependencies would export, and compiles the kernels that the features ask for.

#[cfg(feature = "cuda")]
#[path = "build/cuda.rs"]
mod cuda;
#[cfg(feature = "shim")]
#[path = "build/shim.rs"]
mod shim;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        // cargo sets no SONAME by itself; without one, every program would be bound to the file name it linked.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libsquire.so.0");
        // `no_mangle` functions of dependencies leave a cdylib too; only squire_ names may.
        println!("cargo:rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
    }
    #[cfg(any(feature = "cuda", feature = "shim"))]
    println!("cargo:rerun-if-changed=kernels");
    #[cfg(feature = "cuda")]
    if let Err(why) = cuda::compile() {
        // cargo shows these lines as the build's own error and fails it.
        why.lines().for_each(|line| println!("cargo::error={line}"));
    }
    #[cfg(feature = "shim")]
    shim::compile();
}

/// The files directly in `kernels` that end so, in order of name.
#[cfg(any(feature = "cuda", feature = "shim"))]
fn kernels_ending(ends: &[&str]) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir("kernels").expect("the package holds kernels/");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("kernels/ can be read").path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| ends.iter().any(|wanted| end == *wanted)));
    files.sort();
    files
}
