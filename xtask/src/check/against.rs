//! `cargo xtask check --against REV`: what changed in the kernels since a commit, in the figures that `check` shows.

use super::rows::{self, Depth, Row};
use crate::assembler::Scratch;
use crate::tools::Tools;
use crate::workspace;
use anyhow::{Result, bail};
use int_flash_attention_kernels::config::MODULES;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Prints what differs between the PTX of a commit, which has the files `there`, and these rows, which are of the PTX in `folder`.
pub fn print(tools: &Tools, revision: &str, there: &[String], folder: &Path, now: &[Row]) -> Result<()> {
    let scratch = Scratch::new("against")?;
    let mut changed = Vec::new();
    for module in MODULES {
        let name = format!("{}.ptx", module.name);
        let old = match there.contains(&name) {
            true => git(&["show", &format!("{revision}:host/ptx/{name}")])?,
            false => Vec::new(),
        };
        if fs::read(folder.join(&name)).unwrap_or_default() != old {
            changed.push(module.name);
            if !old.is_empty() {
                fs::write(scratch.path().join(&name), old)?;
            }
        }
    }
    let jobs: Vec<_> = rows::jobs(|_| true)
        .into_iter()
        .filter(|(module, _)| scratch.path().join(format!("{}.ptx", module.name)).is_file())
        .collect();
    let (before, refused) = rows::assemble_all(tools, scratch.path(), &jobs, Depth::Loops, |_, _, _| Ok(()))?;
    for error in refused {
        eprintln!("{revision}: {error:#}");
    }
    let gone: Vec<_> =
        there.iter().filter(|file| !MODULES.iter().any(|module| format!("{}.ptx", module.name) == **file)).collect();
    println!("\nagainst {revision}: {} of {} modules differ", changed.len(), MODULES.len());
    for file in gone {
        println!("- {file} is no module any more");
    }
    let now: Vec<&Row> = now.iter().filter(|row| changed.contains(&row.module.as_str())).collect();
    for line in differences(&before.iter().collect::<Vec<_>>(), &now) {
        println!("{line}");
    }
    Ok(())
}

/// A line for each kernel and architecture that is new, gone or other in a figure.
fn differences(before: &[&Row], now: &[&Row]) -> Vec<String> {
    fn by_name<'a>(rows: &[&'a Row]) -> BTreeMap<(&'a str, &'a str), &'a Row> {
        rows.iter().map(|row| ((row.resources.kernel.as_str(), row.arch.as_str()), *row)).collect()
    }
    let (before, now) = (by_name(before), by_name(now));
    let mut lines = Vec::new();
    for (&(kernel, arch), row) in &now {
        match before.get(&(kernel, arch)) {
            None => lines
                .push(format!("+ {kernel} {arch}: {}", figures(row).map(|(what, n)| format!("{what} {n}")).join(", "))),
            Some(old) => {
                let pairs = figures(old).into_iter().zip(figures(row));
                let mut parts: Vec<String> = pairs
                    .filter(|((_, old), (_, new))| old != new)
                    .map(|((what, old), (_, new))| format!("{what} {old} -> {new}"))
                    .collect();
                parts.extend(opcodes(old, row));
                if !parts.is_empty() {
                    lines.push(format!("  {kernel} {arch}: {}", parts.join(", ")));
                }
            }
        }
    }
    lines
        .extend(before.keys().filter(|key| !now.contains_key(*key)).map(|(kernel, arch)| format!("- {kernel} {arch}")));
    lines
}

/// What two kernels are compared by.
fn figures(row: &Row) -> [(&'static str, usize); 7] {
    [
        ("registers", row.resources.registers as usize),
        ("spills", row.spills() as usize),
        ("stack", row.resources.stack as usize),
        ("shared memory", row.plan.map_or(0, |plan| plan.shared_bytes)),
        ("CTAs", row.ctas.unwrap_or(0)),
        ("instructions", row.instructions as usize),
        ("main loop", row.main_loop.values().sum::<u32>() as usize),
    ]
}

/// Opcodes of the main loop that come more or less often.
fn opcodes(old: &Row, new: &Row) -> Vec<String> {
    let mut all: Vec<&String> = old.main_loop.keys().chain(new.main_loop.keys()).collect();
    all.sort();
    all.dedup();
    let count = |row: &Row, opcode: &String| i64::from(row.main_loop.get(opcode).copied().unwrap_or(0));
    let change = |opcode: &String| count(new, opcode) - count(old, opcode);
    all.into_iter()
        .filter(|opcode| change(opcode) != 0)
        .map(|opcode| format!("{opcode} {:+}", change(opcode)))
        .collect()
}

/// The PTX files of a commit. It is asked for before anything is assembled.
pub fn files(revision: &str) -> Result<Vec<String>> {
    if git(&["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{revision}^{{commit}}")]).is_err() {
        bail!("git knows no commit {revision}: give HEAD, a branch, a tag or a hash");
    }
    let listing = git(&["ls-tree", "--name-only", revision, "host/ptx/"])?;
    let names = String::from_utf8_lossy(&listing).into_owned();
    Ok(names.lines().filter_map(|line| line.rsplit('/').next()).map(str::to_owned).collect())
}

fn git(arguments: &[&str]) -> Result<Vec<u8>> {
    Ok(workspace::capture(Command::new("git").args(arguments).current_dir(workspace::root()))?.stdout)
}

#[cfg(test)]
mod tests {
    use super::super::ptxas::Resources;
    use super::*;

    fn row(kernel: &str, registers: u32, mma: u32) -> Row {
        Row {
            module: "m".to_owned(),
            arch: "sm_80".to_owned(),
            resources: Resources { kernel: kernel.to_owned(), registers, ..Resources::default() },
            losses: Vec::new(),
            instructions: 10,
            sass: BTreeMap::new(),
            main_loop: BTreeMap::from([("IMMA".to_owned(), mma), ("BRA".to_owned(), 1)]),
            plan: None,
            ctas: None,
            faults: Vec::new(),
        }
    }

    #[test]
    fn what_is_no_commit_is_refused_by_name() {
        for name in ["nosuch", "HEAD:host", "--all"] {
            let error = files(name).unwrap_err().to_string();
            assert_eq!(error, format!("git knows no commit {name}: give HEAD, a branch, a tag or a hash"));
        }
        assert!(!files("HEAD").unwrap().is_empty());
    }

    #[test]
    fn what_is_new_gone_or_other_has_a_line() {
        let before = [row("a", 128, 32), row("b", 128, 32), row("c", 128, 32)];
        let now = [row("a", 128, 32), row("b", 130, 30), row("d", 64, 1)];
        let lines = differences(&before.iter().collect::<Vec<_>>(), &now.iter().collect::<Vec<_>>());
        assert_eq!(
            lines,
            [
                "  b sm_80: registers 128 -> 130, main loop 33 -> 31, IMMA -2",
                "+ d sm_80: registers 64, spills 0, stack 0, shared memory 0, CTAs 0, instructions 10, main loop 2",
                "- c sm_80",
            ]
        );
    }
}
