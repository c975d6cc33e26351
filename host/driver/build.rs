//! Satisfies `-lcuda`, which cust's build script asks for, with an empty archive: the functions are in this crate.

use std::{env, fs, path::Path};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUST").is_none() || env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    // What `ar` writes for an archive without members. With a toolkit's stub library on the search path as well, either
    // may be found: the stub is not needed by then (`--as-needed`), since this crate has defined every function.
    fs::write(Path::new(&out).join("libcuda.a"), "!<arch>\n").expect("OUT_DIR can be written");
    println!("cargo:rustc-link-search=native={out}");
}
