//! Runs `cuda_builder` on one module. `cargo xtask build --codegen nvvm` writes this package into `target/nvvm/`,
//! because it depends on the rust-cuda checkout that the caller names.

use cuda_builder::{CudaBuilder, NvvmArch};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let [_, folder, package, target, out, cfgs @ ..] = args.as_slice() else {
        eprintln!("usage: nvvm-driver FOLDER PACKAGE TARGET OUT CFG...");
        return ExitCode::FAILURE;
    };
    let Ok(arch) = target.replace("sm_", "compute_").parse::<NvvmArch>() else {
        eprintln!("cuda_builder knows no target {target}");
        return ExitCode::FAILURE;
    };
    // cuda_builder sets the compiler's flags itself; a profile's flags come on top, and for this one package.
    let flags: Vec<String> = cfgs.iter().map(|cfg| format!("'--cfg', '{cfg}'")).collect();
    let flags = format!("profile.release.package.{package}.rustflags = [{}]", flags.join(", "));
    let result = CudaBuilder::new(folder)
        .arch(arch)
        // the source says where it wants a fused multiply-add, as for rustc's own backend
        .fma_contraction(false)
        .build_args(&["-Zprofile-rustflags", "--config", &flags])
        .copy_to(out)
        .build();
    match result {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
