//! CUDA's headers, libNVVM and libdevice. No driver, no runtime library, no nvcc.

use super::{Checked, Machine};
use crate::build::nvvm::form::Form;
use std::fs;
use std::path::{Path, PathBuf};

const VARIABLES: [&str; 3] = ["CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"];
const FOLDERS: [&str; 3] = ["/usr/lib/cuda", "/usr/local/cuda", "/opt/cuda"];
const INSTALL: &str = "install the CUDA toolkit, or lay wheels of PyPI out as one folder (docs/codegen.md says how), \
    and set CUDA_PATH";
const FILES: [(&str, &str); 5] = [
    ("CUDA headers", "include/cuda_runtime_api.h"),
    ("libNVVM's header", "nvvm/include/nvvm.h"),
    ("libNVVM", "nvvm/lib64/libnvvm.so"),
    ("libNVVM under the name that the loader looks for (a link to libnvvm.so will do)", "nvvm/lib64/libnvvm.so.4"),
    ("libdevice", "nvvm/libdevice/libdevice.10.bc"),
];

/// The first folder with a `cuda.h`, as rust-cuda's build script looks for it; then all that it lacks.
pub fn find(machine: &Machine, form: Form) -> Checked<PathBuf> {
    let given = VARIABLES.iter().filter_map(|name| machine.path_variable(name));
    let mut places = given.chain(FOLDERS.map(|folder| machine.system(folder)));
    let Some(root) = places.find(|folder| folder.join("include/cuda.h").is_file()) else {
        return Err(vec![format!(
            "CUDA headers, libNVVM, libdevice: no folder of {} or {} has include/cuda.h; {INSTALL}",
            VARIABLES.join(", "),
            FOLDERS.join(", ")
        )]);
    };
    let shown = root.display();
    let lacking = FILES.into_iter().filter(|(_, file)| !root.join(file).exists());
    let mut missing: Vec<_> = lacking.map(|(what, file)| format!("{what}: {shown} has no {file}")).collect();
    let oldest = form.oldest_cuda();
    match version(&root) {
        Some(version) if version >= oldest => {}
        Some(version) => missing.push(format!("CUDA headers: {shown} is of version {version}, older than {oldest}")),
        None => missing.push(format!("CUDA headers: {shown} has an include/cuda.h without CUDA_VERSION")),
    }
    if !missing.is_empty() {
        return Err(missing);
    }
    root.canonicalize().map_err(|error| vec![format!("CUDA: {}: {error}", root.display())])
}

/// 12090 for 12.9.
fn version(root: &Path) -> Option<u32> {
    let header = fs::read_to_string(root.join("include/cuda.h")).ok()?;
    let line = header.lines().find(|line| line.starts_with("#define CUDA_VERSION"))?;
    line.split_whitespace().last()?.parse().ok()
}
