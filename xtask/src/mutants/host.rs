//! Mistakes in the host's checks: lines of their source, one at a time, in a copy of the repository.

use crate::workspace;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where sizes, strides and lengths are checked, and results compared.
const FILES: [&str; 14] = [
    "host/src/shape.rs",
    "host/src/problem/mod.rs",
    "host/src/problem/packed.rs",
    "host/src/problem/score.rs",
    "host/src/problem/window.rs",
    "host/src/quantized.rs",
    "host/src/scores.rs",
    "host/src/cache/mod.rs",
    "host/src/cache/append.rs",
    "host/src/cache/gather.rs",
    "host/src/cache/tables.rs",
    "host/src/decode/mod.rs",
    "host/src/prefill.rs",
    "host/src/reference/compare.rs",
];

/// What is replaced, and by what.
const RULES: [(&str, &str); 10] = [
    (" < ", " <= "),
    (" > ", " >= "),
    (" <= ", " < "),
    (" != ", " == "),
    (" == ", " != "),
    (" && ", " || "),
    (" || ", " && "),
    (" += ", " = "),
    (" - 1)", ")"),
    (" * 4 ", " * 2 "),
];

/// A line of a file, as it is and as it becomes.
struct Mutant {
    file: &'static str,
    line: usize,
    is: String,
}

/// Every `step`-th of all.
pub fn run(step: usize) -> Result<()> {
    let copy = workspace::target().join("mutants/host");
    copy_repository(&copy)?;
    let mut all = Vec::new();
    for file in FILES {
        let text = fs::read_to_string(workspace::root().join(file)).with_context(|| format!("cannot read {file}"))?;
        all.extend(mutants(file, &text));
    }
    let chosen: Vec<_> = all.iter().step_by(step.max(1)).collect();
    println!("{} of {} mutants of the host's checks", chosen.len(), all.len());
    let (mut killed, mut survived, mut refused) = (0, 0, 0);
    for mutant in chosen {
        let path = copy.join(mutant.file);
        let text = fs::read_to_string(workspace::root().join(mutant.file))?;
        let lines = text.lines().enumerate();
        let changed = lines.map(|(i, line)| format!("{}\n", if i + 1 == mutant.line { &mutant.is } else { line }));
        fs::write(&path, changed.collect::<String>())?;
        if !passes(&copy, &["--no-run"])? {
            refused += 1;
        } else if passes(&copy, &[])? {
            survived += 1;
            println!("survived {}:{}: `{}`", mutant.file, mutant.line, mutant.is.trim());
        } else {
            killed += 1;
        }
        fs::write(&path, text)?;
    }
    println!("{killed} killed, {survived} survived, {refused} refused");
    Ok(())
}

fn mutants(file: &'static str, text: &str) -> Vec<Mutant> {
    let mut out = Vec::new();
    let code = text.lines().enumerate().take_while(|(_, line)| !line.contains("#[cfg(test)]"));
    for (i, line) in code.filter(|(_, line)| !line.trim_start().starts_with("//")) {
        let found = RULES.into_iter().filter(|(from, _)| line.contains(from));
        let mut changed: Vec<_> = found.map(|(from, to)| line.replacen(from, to, 1)).collect();
        let trimmed = line.trim();
        // a check whose result is nothing
        if trimmed.ends_with(")?;") && !trimmed.contains('=') {
            changed.push(String::new());
        }
        out.extend(changed.into_iter().map(|is| Mutant { file, line: i + 1, is }));
    }
    out
}

/// Whether the library's tests of its checks pass in the copy.
fn passes(copy: &Path, more: &[&str]) -> Result<bool> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(copy).env("CARGO_TARGET_DIR", workspace::target().join("mutants/target"));
    command
        .args(["test", "--quiet", "--package", "int-flash-attention", "--lib", "--test", "checks", "--test", "edges"])
        .args(more);
    Ok(command.output().context("cannot start cargo")?.status.success())
}

/// The files that git knows, where they are not there yet or others.
fn copy_repository(to: &Path) -> Result<()> {
    let listed = workspace::capture(Command::new("git").args(["ls-files", "-z"]).current_dir(workspace::root()))?;
    for name in listed.stdout.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let name = PathBuf::from(String::from_utf8_lossy(name).into_owned());
        let (from, to) = (workspace::root().join(&name), to.join(&name));
        let bytes = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        if fs::read(&to).is_ok_and(|there| there == bytes) {
            continue;
        }
        fs::create_dir_all(to.parent().context("a file has a folder")?)?;
        fs::write(&to, bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_code_are_changed_one_at_a_time() {
        let text = "// a < b\nif a < b && c {\n    check(x)?;\n    let y = check(x)?;\n}\n#[cfg(test)]\na < b\n";
        let found: Vec<_> = mutants("host/src/shape.rs", text).into_iter().map(|m| (m.line, m.is)).collect();
        let want = [(2, "if a <= b && c {"), (2, "if a < b || c {"), (3, "")];
        assert_eq!(found, want.map(|(line, is)| (line, is.to_owned())));
    }
}
