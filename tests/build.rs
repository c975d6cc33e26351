//! Takes the decode loop out of docs/quickstart.md, for `support/quickstart.rs`, which runs it on the PTX machine.

use std::path::PathBuf;
use std::{env, fs};

/// What makes types of the library those of the module that includes the program.
const USE: &str = "use int_flash_attention::";

fn main() {
    let page = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../docs/quickstart.md");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={}", page.display());
    let text = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
    let programs = text.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next());
    let loops: Vec<&str> = programs.filter(|program| program.contains("DecodeProblem::new")).collect();
    let &[program] = &*loops else { panic!("{} programs of {} decode, not one", loops.len(), page.display()) };
    assert_eq!(program.matches(USE).count(), 1, "the decode loop of {} has one line of `{USE}`", page.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("decode_loop.rs");
    fs::write(&out, program.replace(USE, "use super::machine::")).expect("cargo's folder can be written");
}
