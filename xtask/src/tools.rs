//! `ptxas`, `nvdisasm` and libNVVM: from the environment where they are there, else from PyPI into `target/cuda-tools/`.

use crate::workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version that the figures in `docs/` were taken with.
const WHEEL_VERSION: &str = "13.5.37";

/// A program's package on PyPI, and what its wheels of that version are.
struct Wheel {
    package: &'static str,
    /// SHA-256, for x86_64 and aarch64.
    hashes: [&'static str; 2],
}

const NVCC: Wheel = Wheel {
    package: "nvidia-cuda-nvcc",
    hashes: [
        "f5c4f7ead5d964fb4af42bbf1e6d3ec3c1e6e9d83b53749f691d387e7fcaa3a7",
        "588eda18eb5076ae859fe272844b526459228af22df0b117f54eec3aa82bc9c8",
    ],
};

const NVDISASM: Wheel = Wheel {
    package: "nvidia-cuda-nvdisasm",
    hashes: [
        "d3fdbdd49fa53e2e4aacd3db8259d052bd2b049ececdcb69e92e083c6728e7ca",
        "a3a8248074edb9fba63b74c38a5416b712a91ab09e70b8ab37186c3d293fc605",
    ],
};

/// libNVVM. From 13.5 on it reads the LLVM IR of the pinned rustc.
const NVVM: Wheel = Wheel {
    package: "nvidia-nvvm",
    hashes: [
        "c41bfa362e407405163f103c2229f0765f8cc2ed7d148b754dc77f228bf7e070",
        "b659bd3115b7ac7ec8931e67d0e2c0dd09cd35b08a6a7372df6f8f22c67da80a",
    ],
};

impl Wheel {
    /// The line of a requirements file that pip takes nothing else for.
    fn requirement(&self) -> String {
        let hashes = self.hashes.map(|hash| format!(" --hash=sha256:{hash}"));
        format!("{}=={WHEEL_VERSION}{}\n", self.package, hashes.concat())
    }
}

/// Paths of the two programs.
pub struct Tools {
    pub ptxas: PathBuf,
    pub nvdisasm: PathBuf,
}

impl Tools {
    /// Looks in `$PTXAS` / `$NVDISASM`, `$CUDA_PATH/bin`, `$PATH`, `target/cuda-tools/`, then downloads.
    pub fn find() -> Result<Self> {
        Ok(Self { ptxas: find("ptxas", "PTXAS", &NVCC)?, nvdisasm: find("nvdisasm", "NVDISASM", &NVDISASM)? })
    }

    /// `ptxas --version`'s last line.
    pub fn version(&self) -> Result<String> {
        ptxas_version(&self.ptxas)
    }
}

/// `ptxas --version`'s last line.
pub fn ptxas_version(ptxas: &Path) -> Result<String> {
    let output = workspace::capture(Command::new(ptxas).arg("--version"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().last().unwrap_or_default().to_owned())
}

/// ptxas of the pinned version, whatever else the machine has: machine code comes out the same everywhere.
pub fn pinned_ptxas() -> Result<PathBuf> {
    pinned("ptxas", &NVCC)
}

/// libNVVM of the pinned version.
pub fn pinned_libnvvm() -> Result<PathBuf> {
    pinned("libnvvm.so.4", &NVVM)
}

/// A file of a wheel, fetched where it is not kept yet.
fn pinned(file: &str, wheel: &Wheel) -> Result<PathBuf> {
    let kept = kept();
    if !kept.join(file).is_file() {
        eprintln!("fetching the wheel {} {WHEEL_VERSION} (once)", wheel.package);
        download(file, wheel, &kept).with_context(|| {
            format!("cannot get {file} of version {WHEEL_VERSION}; `python3 -m pip` has to reach PyPI")
        })?;
    }
    Ok(kept.join(file))
}

/// Where the programs of the pinned version are kept.
fn kept() -> PathBuf {
    workspace::target().join("cuda-tools").join(WHEEL_VERSION)
}

fn find(program: &str, variable: &str, wheel: &Wheel) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable).map(PathBuf::from) {
        if !path.is_file() {
            bail!("{variable} is set to {}, which is no file", path.display());
        }
        return Ok(path);
    }
    let cuda = std::env::var_os("CUDA_PATH").map(|dir| PathBuf::from(dir).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let kept = kept();
    let places = cuda.into_iter().chain(std::env::split_paths(&path)).chain([kept.clone()]);
    if let Some(found) = places.map(|dir| dir.join(program)).find(|file| file.is_file()) {
        return Ok(found);
    }
    eprintln!("{program} is not in CUDA_PATH or PATH; fetching the wheel {} {WHEEL_VERSION} (once)", wheel.package);
    download(program, wheel, &kept).with_context(|| {
        format!("cannot get {program}; install the CUDA toolkit, or set {variable} to its path, or make `python3 -m pip` reach PyPI")
    })?;
    Ok(kept.join(program))
}

/// Fetches the wheel with pip, which knows the machine's mirrors and refuses a wheel of another hash, and unpacks the one program.
fn download(program: &str, wheel: &Wheel, into: &Path) -> Result<()> {
    let fetched = into.join(format!("wheel-{program}-{}", std::process::id()));
    fs::create_dir_all(&fetched)?;
    let result = (|| {
        let requirements = fetched.join("requirements.txt");
        fs::write(&requirements, wheel.requirement())?;
        let mut pip = Command::new("python3");
        pip.args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
            "--dest",
        ]);
        workspace::capture(pip.arg(&fetched).arg("--requirement").arg(&requirements))?;
        let file =
            fs::read_dir(&fetched)?.flatten().map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "whl"));
        unpack(&file.context("pip downloaded no wheel")?, program, into)
    })();
    let _ = fs::remove_dir_all(&fetched);
    result
}

fn unpack(wheel: &Path, program: &str, into: &Path) -> Result<()> {
    let mut archive = zip::ZipArchive::new(fs::File::open(wheel)?)?;
    let suffix = format!("/{program}");
    let name = archive.file_names().flatten().find(|name| name.ends_with(&suffix)).map(|name| name.into_owned());
    let name = name.with_context(|| format!("{} holds no {program}", wheel.display()))?;
    let part = into.join(format!(".{program}.{}.part", std::process::id()));
    io::copy(&mut archive.by_name(&name)?, &mut fs::File::create(&part)?)?;
    fs::set_permissions(&part, fs::Permissions::from_mode(0o755))?;
    fs::rename(&part, into.join(program))?;
    Ok(())
}
