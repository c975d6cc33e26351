//! NCCL, opened at run time: where it is, and its functions.
//!
//! (`cudarc` has bindings, but looks for `libnccl.so` and no other name, which NVIDIA's packages for Python do not install, and panics.)

use crate::error::Result;
use crate::ranks::RanksError;
use libloading::Library;
use std::env;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// NCCL's file, in all of version 2.
const FILE: &str = "libnccl.so.2";
/// The environment variable that names it.
const VARIABLE: &str = "INT_FLASH_NCCL";

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId(pub(super) [u8; 128]);

/// `ncclComm_t`.
pub(super) type Comm = *mut c_void;

/// `ncclUint8`.
pub(super) const BYTES: c_int = 1;

macro_rules! functions {
    ($($name:ident = $symbol:literal ($($argument:ty),*);)*) => {
        /// NCCL's functions (nccl.h); each returns an `ncclResult_t`.
        pub(super) struct Functions {
            get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> c_int,)*
        }

        impl Functions {
            fn of(library: &'static Library) -> std::result::Result<Self, libloading::Error> {
                // SAFETY: the signatures are nccl.h's, of all of version 2; the library is never closed.
                unsafe {
                    Ok(Self {
                        get_error_string: *library.get(b"ncclGetErrorString")?,
                        $($name: *library.get($symbol)?,)*
                    })
                }
            }
        }
    };
}

functions! {
    get_unique_id = b"ncclGetUniqueId" (*mut UniqueId);
    init_rank = b"ncclCommInitRank" (*mut Comm, c_int, UniqueId, c_int);
    destroy = b"ncclCommDestroy" (Comm);
    group_start = b"ncclGroupStart" ();
    group_end = b"ncclGroupEnd" ();
    send = b"ncclSend" (*const c_void, usize, c_int, c_int, Comm, *mut c_void);
    receive = b"ncclRecv" (*mut c_void, usize, c_int, c_int, Comm, *mut c_void);
}

impl Functions {
    /// The functions, of a library that is looked for once.
    pub(super) fn get() -> Result<&'static Self> {
        static FOUND: OnceLock<std::result::Result<Functions, RanksError>> = OnceLock::new();
        let found = FOUND.get_or_init(|| open(&places(env::var_os(VARIABLE).as_deref())));
        found.as_ref().map_err(|error| error.clone().into())
    }

    pub(super) fn check(&self, call: &'static str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the function returns a string that stays, for any number.
        let text = unsafe { CStr::from_ptr((self.get_error_string)(code)) }.to_string_lossy().into_owned();
        Err(RanksError::Nccl { call, code, text }.into())
    }
}

/// Opens the first of these that is one.
fn open(places: &[PathBuf]) -> std::result::Result<Functions, RanksError> {
    let mut tried = Vec::new();
    for place in places {
        // SAFETY: NCCL's initializers have no preconditions.
        let opened = unsafe { Library::new(place) }.and_then(|library| Functions::of(Box::leak(Box::new(library))));
        match opened {
            Ok(functions) => return Ok(functions),
            Err(error) => tried.push(format!("{}: {error}", place.display())),
        }
    }
    Err(RanksError::NoNccl { tried })
}

/// The file that the environment names, and no other; else the loader's, then those of packages for Python.
fn places(named: Option<&OsStr>) -> Vec<PathBuf> {
    match named {
        Some(file) => vec![file.into()],
        None => std::iter::once(FILE.into()).chain(site_packages().into_iter().filter_map(of_packages)).collect(),
    }
}

/// Where NVIDIA's package has the library, as PyTorch's installation brings it.
fn of_packages(folder: PathBuf) -> Option<PathBuf> {
    let file = folder.join("nvidia/nccl/lib").join(FILE);
    file.exists().then_some(file)
}

/// The folders of packages for Python: those that `PYTHONPATH` names, and those beside each `bin` of `PATH`, the active environment's first.
fn site_packages() -> Vec<PathBuf> {
    let paths =
        |variable| env::var_os(variable).map(|all| env::split_paths(&all).collect::<Vec<_>>()).unwrap_or_default();
    let mut prefixes: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os).map(Into::into).collect();
    prefixes.extend(paths("PATH").iter().filter_map(|bin| bin.parent()).map(Path::to_owned));
    prefixes.extend(env::var_os("HOME").map(|home| Path::new(&home).join(".local")));
    let mut folders = paths("PYTHONPATH");
    for lib in prefixes.into_iter().map(|prefix| prefix.join("lib")) {
        let Ok(entries) = lib.read_dir() else { continue };
        let mut pythons: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
        pythons.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3")));
        pythons.sort();
        folders
            .extend(pythons.iter().flat_map(|python| ["site-packages", "dist-packages"].map(|name| python.join(name))));
    }
    folders.dedup();
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let error = open(&places(Some(OsStr::new("/nowhere/libnccl.so.2")))).err().unwrap().to_string();
        for part in ["/nowhere/libnccl.so.2", "INT_FLASH_NCCL", "nvidia-nccl-cu12"] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(places(None)[0], Path::new(FILE));
    }

    #[test]
    fn a_library_without_the_functions_is_no_nccl() {
        // Any library does; the C library is one of every process.
        let error = open(&[PathBuf::from("libc.so.6")]).err().unwrap().to_string();
        assert!(error.contains("libc.so.6") && error.contains("nccl"), "{error}");
    }

    #[test]
    fn packages_for_python_are_looked_into() {
        let folder = env::temp_dir().join(format!("int-flash-nccl-{}", std::process::id()));
        let lib = folder.join("nvidia/nccl/lib");
        std::fs::create_dir_all(&lib).unwrap();
        assert_eq!(of_packages(folder.clone()), None);
        std::fs::write(lib.join(FILE), []).unwrap();
        assert_eq!(of_packages(folder.clone()), Some(lib.join(FILE)));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
