//! Finds the built library, and runs the C tools that the tests of the C interface need.
#![allow(dead_code)] // each test program uses its part

use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the package.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The shared library that cargo built along with this test.
pub fn library() -> PathBuf {
    let test = std::env::current_exe().expect("the test knows its own path");
    // Beside the test, in `deps`: the copy one folder up is refreshed by `cargo build` alone.
    let library = test.with_file_name("libsquire.so");
    assert!(library.exists(), "{} was not built", library.display());
    library
}

/// Runs a tool to its end and gives its standard output; panics with what it said if it fails or complains.
pub fn run(command: &mut Command) -> String {
    // cargo points it at the profile's folder, where a library of an earlier build may lie under the SONAME.
    if !command.get_envs().any(|(name, _)| name == "LD_LIBRARY_PATH") {
        command.env_remove("LD_LIBRARY_PATH");
    }
    let output = command.output().unwrap_or_else(|e| panic!("{command:?} cannot be run: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{command:?} ended with {}:\n{said}", output.status);
    String::from_utf8(output.stdout).expect("tools print UTF-8")
}

/// The flags under which the header must be silent.
pub const STRICT: [&str; 5] = ["-Wall", "-Wextra", "-Wpadded", "-pedantic", "-Werror"];

/// The sanitizer that the tests are asked to compile their programs under: `SQUIRE_SANITIZE=address,undefined`.
fn sanitizer() -> Option<String> {
    std::env::var("SQUIRE_SANITIZE").ok().map(|names| format!("-fsanitize={names}"))
}

/// A program with the folder it lies in, which goes when the value does.
pub struct Program {
    /// The folder; tests may write into it.
    pub folder: tempfile::TempDir,
    path: PathBuf,
}

impl Program {
    /// Compiles one source file and links it to the shared library by its SONAME.
    pub fn compile(compiler: &str, standard: &str, source: &Path) -> Program {
        let folder = tempfile::tempdir().expect("a folder for the program");
        std::os::unix::fs::symlink(library(), folder.path().join("libsquire.so.0")).expect("a link to the library");
        let path = folder.path().join("program");
        run(Command::new(compiler)
            .arg(format!("-std={standard}"))
            .args(STRICT)
            .args(if cfg!(feature = "drill") { &["-DSQUIRE_DRILL"][..] } else { &[] })
            .args(if cfg!(any(feature = "cuda", feature = "shim")) { &["-DSQUIRE_CUDA"][..] } else { &[] })
            .args(sanitizer())
            .args(["-D_POSIX_C_SOURCE=200809L", "-pthread", "-g", "-O1", "-I"])
            .arg(root().join("include"))
            .arg("-I")
            .arg(root().join("tests/c"))
            .arg(source)
            .arg("-o")
            .arg(&path)
            .arg(folder.path().join("libsquire.so.0"))
            .arg("-lm")
            .arg(format!("-Wl,-rpath,{}", folder.path().display())));
        Program { folder, path }
    }

    /// Runs it and gives its standard output; panics if it fails or complains.
    pub fn run<I: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> String {
        run(Command::new(&self.path).args(arguments))
    }
}

/// Compiles a program of `tests/c` and runs it.
pub fn compile_and_run(compiler: &str, standard: &str, source: &str) -> String {
    Program::compile(compiler, standard, &root().join("tests/c").join(source)).run([""; 0])
}
