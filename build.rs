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
        #[cfg(unix)]
        if let Err(why) = link_soname() {
            println!("cargo:warning=programs linked with -lsquire will not start: no libsquire.so.0 beside it: {why}");
        }
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

/// Puts a link of the library's SONAME where cargo will put the library: a program that was linked with -lsquire asks for
/// that name when it starts.
#[cfg(unix)]
fn link_soname() -> std::io::Result<()> {
    // PROFILE/build/squire-HASH/out
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo names it to build scripts"));
    let profile = out.ancestors().nth(3).expect("cargo's folders lie so deep");
    let (link, name) = (profile.join("libsquire.so.0"), std::path::Path::new("libsquire.so"));
    if std::fs::read_link(&link).is_ok_and(|to| to == name) {
        return Ok(());
    }
    match std::fs::remove_file(&link) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => std::os::unix::fs::symlink(name, &link),
    }
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
