//! Turns a code generator's PTX into the text that ships: no comments, no debug information, launch bounds added, and the PTX
//! version raised to what the inline assembly needs, of which a code generator knows nothing.
//!
//! Neither code generator has an attribute for `.maxntid` and `.minnctapersm`, so they are written into the text, where
//! both ptxas and the driver honour them.

use anyhow::{Context, Result, bail};
use int_flash_attention_kernels::config::Module;
use std::fmt::Write;

/// What the launch of an entry promises; ptxas divides the register file by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchBounds {
    /// Threads of a block (`.maxntid`).
    pub threads: usize,
    /// Blocks that a multiprocessor should hold at once (`.minnctapersm`); 0 leaves it to ptxas.
    pub min_ctas: usize,
    /// Registers of a thread at most, in place of that (`.maxnreg`); 0 where there is no such limit.
    pub registers: usize,
}

/// Normalises a module's PTX and gives each entry the bounds that `bounds` returns for its name.
pub fn normalise(ptx: &str, module: &Module, bounds: impl Fn(&str) -> Option<LaunchBounds>) -> Result<String> {
    let Module { name: module, ptx: least, .. } = *module;
    let mut out = format!("// int-flash-attention, module {module}; written by `cargo xtask build`, do not edit\n");
    let mut entry: Option<&str> = None;
    for line in ptx.lines() {
        let line = strip_comment(line).trim_end();
        let text = line.trim_start();
        if text.is_empty() || is_debug(text) {
            continue;
        }
        if text.starts_with(".section") {
            bail!("module {module}: the code generator wrote debug sections; they would vary from machine to machine");
        }
        if let Some(name) = entry_name(text) {
            entry = Some(name);
        }
        match text.strip_prefix(".version ") {
            Some(given) => {
                let (major, minor) = version(given)
                    .with_context(|| format!("module {module}: {given:?} is not a PTX version"))?
                    .max(least);
                let _ = writeln!(out, ".version {major}.{minor}");
            }
            None => {
                let _ = writeln!(out, "{line}");
            }
        }
        if let (Some(name), true) = (entry, text.ends_with(')')) {
            let bounds =
                bounds(name).with_context(|| format!("module {module}: the variant table has no kernel {name}"))?;
            let _ = writeln!(out, ".maxntid {}", bounds.threads);
            if bounds.registers > 0 {
                let _ = writeln!(out, ".maxnreg {}", bounds.registers);
            } else if bounds.min_ctas > 0 {
                let _ = writeln!(out, ".minnctapersm {}", bounds.min_ctas);
            }
            entry = None;
        }
    }
    if let Some(name) = entry {
        bail!("module {module}: the parameter list of {name} does not end");
    }
    Ok(out)
}

/// PTX that was compiled for a newer architecture than its module is for, with the module's target and version in its header. What the
/// module's own architecture does not have, ptxas refuses.
pub fn retarget(ptx: &str, module: &Module) -> Result<String> {
    let (mut versions, mut targets) = (0, 0);
    let mut out = String::with_capacity(ptx.len());
    for line in ptx.lines() {
        if line.starts_with(".version ") {
            versions += 1;
            let (major, minor) = module.ptx;
            let _ = writeln!(out, ".version {major}.{minor}");
        } else if line.starts_with(".target ") {
            targets += 1;
            let _ = writeln!(out, ".target {}", module.target);
        } else {
            let _ = writeln!(out, "{line}");
        }
    }
    if (versions, targets) != (1, 1) {
        bail!(
            "module {}: {versions} lines with a version and {targets} with a target; one of each is a header",
            module.name
        );
    }
    Ok(out)
}

/// Major and minor of `8.4`.
fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The entries of a module, in the order of the text.
pub fn entries(ptx: &str) -> impl Iterator<Item = &str> {
    ptx.lines().filter_map(|line| entry_name(line.trim_start()))
}

/// The first line in which two texts differ, numbered from 1, with both sides.
pub fn first_difference(committed: &str, built: &str) -> Option<(usize, String, String)> {
    let (mut a, mut b) = (committed.lines(), built.lines());
    for number in 1.. {
        match (a.next(), b.next()) {
            (None, None) => return None,
            (x, y) if x == y => {}
            (x, y) => {
                let shown = |line: Option<&str>| line.map_or("end of file".to_owned(), |l| format!("`{}`", l.trim()));
                return Some((number, shown(x), shown(y)));
            }
        }
    }
    None
}

fn entry_name(text: &str) -> Option<&str> {
    let rest = text.strip_prefix(".visible .entry ").or_else(|| text.strip_prefix(".entry "))?;
    rest.split(['(', ' ']).next()
}

/// `//` starts a comment unless it stands in a quoted string.
fn strip_comment(line: &str) -> &str {
    let mut quoted = false;
    for (at, c) in line.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '/' if !quoted && line[at..].starts_with("//") => return &line[..at],
            _ => {}
        }
    }
    line
}

fn is_debug(text: &str) -> bool {
    text.starts_with(".loc") && text[4..].starts_with([' ', '\t']) || text.starts_with(".file")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: &str = "//\n// Generated by LLVM NVPTX Back-End\n//\n\n.version 7.0\n.target sm_80\n.address_size 64\n\n\t// .globl\tfoo\n\n\
        .visible .entry foo(\n\t.param .u64 .ptr .align 1 foo_param_0,\n\t.param .u32 foo_param_1\n)\n{\n\t.loc 1 2 3\n\t\
        // begin inline asm\n\tadd.u32 %r1, %r1, %r2; // x\n\tret;\n\n}\n";

    const M: Module = Module { name: "m", part: "p", target: "sm_80", ptx: (7, 0) };

    fn bounds(name: &str) -> Option<LaunchBounds> {
        (name == "foo").then_some(LaunchBounds { threads: 128, min_ctas: 2, registers: 0 })
    }

    #[test]
    fn comments_go_and_bounds_come() {
        let text = normalise(RAW, &M, bounds).unwrap();
        assert_eq!(
            text,
            "// int-flash-attention, module m; written by `cargo xtask build`, do not edit\n.version 7.0\n.target sm_80\n\
             .address_size 64\n.visible .entry foo(\n\t.param .u64 .ptr .align 1 foo_param_0,\n\t.param .u32 foo_param_1\n)\n\
             .maxntid 128\n.minnctapersm 2\n{\n\tadd.u32 %r1, %r1, %r2;\n\tret;\n}\n"
        );
        assert_eq!(entries(&text).collect::<Vec<_>>(), ["foo"]);
    }

    #[test]
    fn an_entry_without_bounds_is_an_error() {
        assert!(normalise(RAW, &M, |_| None).unwrap_err().to_string().contains("foo"));
    }

    #[test]
    fn the_version_is_raised_and_never_lowered() {
        let version = |least| {
            let text = normalise(RAW, &Module { ptx: least, ..M }, bounds).unwrap();
            text.lines().nth(1).unwrap().to_owned()
        };
        assert_eq!([version((6, 9)), version((8, 4))], [".version 7.0", ".version 8.4"]);
        assert!(normalise(".version x\n", &M, bounds).is_err());
    }

    #[test]
    fn a_header_is_set_back() {
        let newer = RAW.replace(".version 7.0", ".version 9.5").replace(".target sm_80", ".target sm_100");
        assert_eq!(retarget(&newer, &M).unwrap(), RAW);
        let hopper = retarget(&newer, &Module { target: "sm_90a", ptx: (8, 4), ..M }).unwrap();
        assert!(hopper.contains(".version 8.4\n.target sm_90a\n"));
        assert!(retarget("ret;\n", &M).is_err());
    }

    #[test]
    fn the_first_difference_is_named() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), Some((2, "`b`".into(), "`c`".into())));
        assert_eq!(first_difference("a\n", "a\nc\n"), Some((2, "end of file".into(), "`c`".into())));
    }
}
