//! Names the shared library and hides what its dependencies would export.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        // cargo sets no SONAME by itself; without one, every program would be bound to the file name it linked.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libsquire.so.0");
        // `no_mangle` functions of dependencies leave a cdylib too; only squire_ names may.
        println!("cargo:rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
    }
}
