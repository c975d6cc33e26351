//! Whether everything that the workspace is built from may be used, by the rules in `deny.toml`.

use crate::workspace;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use std::process::Command;

/// cargo-deny's rules.
const RULES: &str = include_str!("../../deny.toml");

/// What is read here of the rules.
#[derive(Deserialize)]
struct Rules {
    licenses: Licences,
}

#[derive(Deserialize)]
struct Licences {
    allow: Vec<String>,
}

/// Whether `cargo deny` is a command.
pub fn installed() -> bool {
    cargo(&["deny", "--version"]).output().is_ok_and(|output| output.status.success())
}

/// Licences, versions and where packages are from, by cargo-deny, which needs no network for these.
pub fn check() -> Result<()> {
    workspace::capture(&mut cargo(&["deny", "--locked", "check", "licenses", "bans", "sources"])).map(|_| ())
}

/// A copy of RustSec's database as it is today.
pub fn fetch_advisories() -> Result<()> {
    workspace::capture(&mut cargo(&["deny", "fetch", "db"])).map(|_| ())
}

/// Whether there is an advisory for any package, by such a copy.
pub fn check_advisories() -> Result<()> {
    workspace::capture(&mut cargo(&["deny", "--locked", "check", "advisories"])).map(|_| ())
}

/// Where cargo-deny is not installed: whether the licences of all packages, with all features and on every system, are allowed. The number of
/// packages.
pub fn licences() -> Result<usize> {
    let Rules { licenses: Licences { allow } } = toml::from_str(RULES).context("deny.toml")?;
    let mut command = cargo(&["metadata", "--format-version", "1", "--all-features", "--locked"]);
    let metadata: Value = serde_json::from_slice(&workspace::capture(&mut command)?.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let licence = |package: &Value| package["license"].as_str().unwrap_or("none").to_owned();
    let refused: Vec<String> = packages
        .iter()
        .filter(|package| !allows(&allow, &licence(package)))
        .map(|package| format!("{} {}: {}", package["name"], package["version"], licence(package)))
        .collect();
    ensure!(refused.is_empty(), "licences that deny.toml does not allow: {}", refused.join("; "));
    Ok(packages.len())
}

/// Whether an expression of licences leaves an allowed choice. (`/` is an old spelling of `OR`; no crate here nests parentheses.)
fn allows(allowed: &[String], expression: &str) -> bool {
    let expression = expression.replace(['(', ')'], "").replace('/', " OR ");
    expression.split(" AND ").all(|part| part.split(" OR ").any(|one| allowed.iter().any(|name| name == one.trim())))
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(workspace::root());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_read() {
        let allowed = ["MIT", "Apache-2.0", "Unicode-3.0"].map(str::to_owned);
        for good in
            ["MIT", "MIT OR Apache-2.0", "MIT/Apache-2.0", "(MIT OR Apache-2.0) AND Unicode-3.0", "GPL-3.0 OR MIT"]
        {
            assert!(allows(&allowed, good), "{good}");
        }
        for bad in ["GPL-3.0", "none", "MIT AND GPL-3.0", "SSPL-1.0 OR GPL-2.0"] {
            assert!(!allows(&allowed, bad), "{bad}");
        }
    }

    #[test]
    fn the_rules_name_licences() {
        let Rules { licenses } = toml::from_str(RULES).unwrap();
        assert!(licenses.allow.iter().any(|name| name == "MIT"), "{:?}", licenses.allow);
    }
}
