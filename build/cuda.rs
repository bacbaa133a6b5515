//! Feature `cuda`: every kernels/NAME.cu becomes one fatbin, and `OUT_DIR/kernels.rs` embeds them all.
//!
//! One module a file, not one for all: the files compile side by side, and one that did not change is not compiled again.

use std::collections::HashSet;
use std::env;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// A driver compiles PTX up to its own release and no newer, and 13.0 is the oldest driver that squire serves.
const RELEASE: &str = "release 13.0,";

const HOW_TO_GET_IT: &str = concat!(
    "Feature `cuda` compiles kernels with nvcc of CUDA 13.0. Install it into a virtual environment:\n",
    "    python3 -m venv cuda13\n",
    "    cuda13/bin/pip install -r '",
    env!("CARGO_MANIFEST_DIR"),
    "/kernels/requirements.txt'\n",
    "    export PATH=\"$(echo $PWD/cuda13/lib/python3*/site-packages/nvidia/cu13/bin):$PATH\"\n",
    "A toolkit 13.0 installed otherwise serves as well: put nvcc on PATH, or name it by NVCC, CUDA_HOME or CUDA_PATH.",
);

struct Recipe {
    nvcc: PathBuf,
    /// before the file's own name
    arguments: Vec<String>,
    /// of everything but the file itself: the compiler, the arguments, the headers
    hash: DefaultHasher,
    out: PathBuf,
}

pub fn compile() -> Result<(), String> {
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH", "SQUIRE_CUDA_ARCHS"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let (nvcc, version) = find_nvcc()?;
    let (flags, targets) = settings()?;
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));

    let mut arguments = flags;
    arguments.extend(["-I", "kernels", "-fatbin"].map(String::from));
    arguments.extend(targets.iter().map(|target| target.generate.clone()));
    let mut hash = DefaultHasher::new();
    (&version, &arguments).hash(&mut hash);
    for header in super::kernels_ending(&["cuh", "h", "hpp"]) {
        (&header, read(&header)?).hash(&mut hash);
    }
    let recipe = Recipe { nvcc, arguments, hash, out };

    let sources = super::kernels_ending(&["cu"]);
    let fatbins = compile_all(&recipe, &sources)?;
    forget_others(&recipe.out, &fatbins)?;
    let modules: Vec<_> = sources.iter().map(|source| stem(source)).zip(&fatbins).collect();
    write_list(&recipe.out.join("kernels.rs"), &modules, &targets)
}

/// nvcc and what it says of itself: from NVCC, else PATH, else CUDA_HOME or CUDA_PATH.
fn find_nvcc() -> Result<(PathBuf, String), String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join("nvcc"));
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let nvcc = match env::var_os("NVCC") {
        Some(named) => PathBuf::from(named),
        None => on_path
            .chain(homes.map(|home| Path::new(&home).join("bin/nvcc")))
            .find(|candidate| candidate.is_file())
            .ok_or_else(|| format!("there is no nvcc on PATH.\n{HOW_TO_GET_IT}"))?,
    };
    let asked = Command::new(&nvcc).arg("--version").output();
    let answer = asked.map_err(|why| format!("{} does not run: {why}.\n{HOW_TO_GET_IT}", nvcc.display()))?;
    let version = String::from_utf8_lossy(&answer.stdout).into_owned();
    if version.contains(RELEASE) {
        Ok((nvcc, version))
    } else {
        let said = version.lines().find(|line| line.contains("release")).unwrap_or("nothing of a release");
        Err(format!("{} is not of CUDA 13.0; it says: {said}.\n{HOW_TO_GET_IT}", nvcc.display()))
    }
}

struct Target {
    /// `sm_90a` or, for PTX, `compute_80`
    name: String,
    generate: String,
}

/// The flags and targets of kernels/nvcc.txt; SQUIRE_CUDA_ARCHS names other targets, as in `80,90a,compute_80`.
fn settings() -> Result<(Vec<String>, Vec<Target>), String> {
    let file = "kernels/nvcc.txt";
    let text = std::fs::read_to_string(file).map_err(|why| format!("{file}: {why}"))?;
    let words = |key| {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(key));
        lines.next().map(|rest| rest.trim().to_owned()).ok_or_else(|| format!("{file}: no line `{key}`"))
    };
    let flags = words("flags")?.split_whitespace().map(String::from).collect();
    let wanted = env::var("SQUIRE_CUDA_ARCHS").ok().filter(|list| !list.trim().is_empty());
    let list = wanted.map_or_else(|| words("targets"), Ok)?;
    let targets = list.split([',', ' ']).filter(|word| !word.is_empty()).map(target).collect::<Result<_, _>>()?;
    Ok((flags, targets))
}

fn target(word: &str) -> Result<Target, String> {
    let number = word.strip_prefix("sm_").or(word.strip_prefix("compute_")).unwrap_or(word);
    let digits = number.strip_suffix(['a', 'f']).unwrap_or(number);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("{word:?} is no CUDA target; write 90a for a cubin of sm_90a, compute_80 for PTX"));
    }
    let name = if word.starts_with("compute_") { word.to_owned() } else { format!("sm_{number}") };
    let generate = format!("-gencode=arch=compute_{number},code={name}");
    Ok(Target { name, generate })
}

/// As many files at once as cargo allows. The fatbins, in the order of the sources, or every failure.
fn compile_all(recipe: &Recipe, sources: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let next = Mutex::new(sources.iter().enumerate());
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..sources.len().min(jobs) {
            scope.spawn(|| {
                while let Some((at, source)) = { next.lock().expect("no thread panicked").next() } {
                    let result = compile_one(recipe, source);
                    done.lock().expect("no thread panicked").push((at, result));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no thread panicked");
    done.sort_by_key(|(at, _)| *at);
    let (good, bad): (Vec<_>, Vec<_>) = done.into_iter().map(|(_, result)| result).partition(Result::is_ok);
    if bad.is_empty() {
        Ok(good.into_iter().flatten().collect())
    } else {
        Err(bad.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("\n"))
    }
}

/// The name holds the hash of all that decides the content, so a file that is there already is right.
fn compile_one(recipe: &Recipe, source: &Path) -> Result<PathBuf, String> {
    let mut hash = recipe.hash.clone();
    read(source)?.hash(&mut hash);
    let fatbin = recipe.out.join(format!("{}-{:016x}.fatbin", stem(source), hash.finish()));
    if fatbin.exists() {
        return Ok(fatbin);
    }
    let part = fatbin.with_extension("part");
    let mut nvcc = Command::new(&recipe.nvcc);
    nvcc.args(&recipe.arguments).arg(source).arg("-o").arg(&part);
    let run = nvcc.output().map_err(|why| format!("{}: {why}", recipe.nvcc.display()))?;
    if !run.status.success() {
        let said = [run.stdout, run.stderr].concat();
        return Err(format!("nvcc refused {}:\n{}", source.display(), String::from_utf8_lossy(&said)));
    }
    // Renamed when whole, so that a build cut off half way leaves nothing that looks finished.
    std::fs::rename(&part, &fatbin).map_err(|why| format!("{}: {why}", fatbin.display()))?;
    Ok(fatbin)
}

fn forget_others(out: &Path, fatbins: &[PathBuf]) -> Result<(), String> {
    let kept: HashSet<_> = fatbins.iter().collect();
    let entries = std::fs::read_dir(out).map_err(|why| format!("{}: {why}", out.display()))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|end| end == "fatbin" || end == "part") && !kept.contains(&path) {
            std::fs::remove_file(&path).map_err(|why| format!("{}: {why}", path.display()))?;
        }
    }
    Ok(())
}

/// `OUT_DIR/kernels.rs`, which backend/cuda/driver.rs includes.
fn write_list(file: &Path, modules: &[(String, &PathBuf)], targets: &[Target]) -> Result<(), String> {
    let module =
        |(name, fatbin): &(String, &PathBuf)| format!("    ({name:?}, &Image(*include_bytes!({fatbin:?})).0),\n");
    let names: Vec<_> = targets.iter().map(|target| target.name.as_str()).collect();
    let text = format!(
        "/// The driver reads an image in words, which bytes alone are not aligned for.\n\
         #[repr(C, align(16))]\nstruct Image<B>(B);\n\n\
         /// One fatbin for each kernel file: the file's stem, the image.\n\
         pub static MODULES: &[(&str, &[u8])] = &[\n{}];\n\n\
         /// What every fatbin holds: cubins (`sm_`) and PTX (`compute_`).\n\
         pub const ARCHS: &[&str] = &{names:?};\n",
        modules.iter().map(module).collect::<String>(),
    );
    std::fs::write(file, text).map_err(|why| format!("{}: {why}", file.display()))
}

fn stem(path: &Path) -> String {
    path.file_stem().expect("a file of kernels/").to_string_lossy().into_owned()
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|why| format!("{}: {why}", path.display()))
}
