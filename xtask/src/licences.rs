//! The licences of what the published packages depend on.

use crate::workspace;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::HashSet;
use std::process::Command;

/// Those that go together with MIT or Apache-2.0 without conditions of their own for who uses a program.
const ALLOWED: [&str; 11] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Whether every package that a published one needs, with any of its features and on any system, may be used under allowed licences.
pub fn check() -> Result<usize> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["metadata", "--format-version", "1", "--all-features", "--locked"]).current_dir(workspace::root());
    let metadata: Value = serde_json::from_slice(&workspace::capture(&mut command)?.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let nodes = metadata["resolve"]["nodes"].as_array().context("cargo metadata has no dependencies")?;
    // `"publish": []` is what `publish = false` becomes.
    let published = packages.iter().filter(|package| package["source"].is_null() && package["publish"].is_null());
    let mut waiting: Vec<&str> = published.filter_map(|package| package["id"].as_str()).collect();
    let mut seen = HashSet::new();
    let mut refused = Vec::new();
    while let Some(id) = waiting.pop() {
        if !seen.insert(id) {
            continue;
        }
        let package = packages.iter().find(|package| package["id"] == id).context("a package is missing")?;
        let licence = package["license"].as_str().unwrap_or("none");
        if !allows(licence) {
            refused.push(format!("{} {}: {licence}", package["name"], package["version"]));
        }
        let node = nodes.iter().find(|node| node["id"] == id).context("a package is missing")?;
        let needed = node["deps"].as_array().into_iter().flatten().filter(|dep| {
            // A dependency of tests alone is not in what users build.
            dep["dep_kinds"].as_array().is_none_or(|kinds| kinds.iter().any(|kind| kind["kind"] != "dev"))
        });
        waiting.extend(needed.filter_map(|dep| dep["pkg"].as_str()));
    }
    ensure!(refused.is_empty(), "licences that are not allowed: {}", refused.join("; "));
    Ok(seen.len())
}

/// Whether an expression of licences leaves an allowed choice. (`/` is an old spelling of `OR`; no crate here nests parentheses.)
fn allows(expression: &str) -> bool {
    let expression = expression.replace(['(', ')'], "").replace('/', " OR ");
    expression.split(" AND ").all(|part| part.split(" OR ").any(|one| ALLOWED.contains(&one.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_read() {
        for good in
            ["MIT", "MIT OR Apache-2.0", "MIT/Apache-2.0", "(MIT OR Apache-2.0) AND Unicode-3.0", "GPL-3.0 OR MIT"]
        {
            assert!(allows(good), "{good}");
        }
        for bad in ["GPL-3.0", "none", "MIT AND GPL-3.0", "SSPL-1.0 OR GPL-2.0"] {
            assert!(!allows(bad), "{bad}");
        }
    }
}
