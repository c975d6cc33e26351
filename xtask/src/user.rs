//! A user's project outside the repository: it depends on the packages as they would be published, and holds the README's programs.

use crate::{package, workspace};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The project's dependencies on everything else, as a README tells a user to write them.
const OTHERS: &str = r#"
candle-core = "0.11.1"
cudarc = { version = "0.19.10", default-features = false, features = ["std", "driver", "f16", "fallback-dynamic-loading", "cuda-12080"] }
cust = "0.3.2"
half = "2"
"#;

/// A program of a README.
struct Snippet {
    name: String,
    text: String,
    /// Whether it can do without a GPU.
    runs: bool,
}

/// Builds every program with a compiler, and runs those that need no GPU. The number of programs.
pub fn check(toolchain: &str) -> Result<usize> {
    let root = workspace::root();
    let mut snippets = snippets("library", &fs::read_to_string(root.join("README.md"))?);
    snippets.extend(self::snippets("candle", &fs::read_to_string(root.join("candle/README.md"))?));
    ensure!(snippets.iter().any(|snippet| snippet.runs), "the READMEs have no program to run");
    let project = Project::new()?;
    package::make(true)?;
    let mut patches = String::new();
    for name in package::PACKAGES {
        let folder = project.unpack(name)?;
        patches.push_str(&format!("{name} = {{ path = {folder:?} }}\n"));
    }
    let version = env!("CARGO_PKG_VERSION");
    let manifest = format!(
        "[package]\nname = \"user\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[dependencies]\n\
         int-flash-attention = {{ version = \"{version}\", features = [\"cudarc\", \"cust\"] }}\n\
         candle-int-flash-attention = \"{version}\"{OTHERS}\n[patch.crates-io]\n{patches}\n\
         [profile.dev]\ndebug = false\n\n[profile.dev.package.int-flash-attention]\nopt-level = 2\n\n[workspace]\n"
    );
    project.write("Cargo.toml", &manifest)?;
    // The versions that the tests ran with.
    fs::copy(root.join("Cargo.lock"), project.0.join("Cargo.lock"))?;
    for Snippet { name, text, .. } in &snippets {
        project.write(&format!("src/bin/{name}.rs"), text)?;
    }
    let cargo = |arguments: &[&str]| {
        let mut command = Command::new("rustup");
        command.args(["run", toolchain, "cargo"]).args(arguments).arg("--quiet").current_dir(&project.0);
        // What the README says for cust, where no CUDA toolkit is installed.
        command.env("CUDA_LIBRARY_PATH", "/").env("CARGO_TARGET_DIR", workspace::target().join("user"));
        command.env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN");
        workspace::capture(&mut command)
    };
    cargo(&["build", "--bins"])?;
    for Snippet { name, .. } in snippets.iter().filter(|snippet| snippet.runs) {
        cargo(&["run", "--bin", name]).with_context(|| format!("the README's program {name}"))?;
    }
    Ok(snippets.len())
}

/// The Rust programs of a page. Rustdoc's hidden lines are part of them, and what has no `main` is a part that must compile.
fn snippets(page: &str, text: &str) -> Vec<Snippet> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(tags) = line.strip_prefix("```rust") else { continue };
        let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let mut text = body.iter().map(|line| line.strip_prefix("# ").unwrap_or(line)).collect::<Vec<_>>().join("\n");
        let runs = !tags.contains("no_run") && text.contains("fn main()");
        if !text.contains("fn main()") {
            text.insert_str(0, "#![allow(dead_code)]\n");
            text.push_str("\nfn main() {}\n");
        }
        found.push(Snippet { name: format!("{page}_{}", found.len() + 1), text, runs });
    }
    found
}

/// A folder outside the repository, so that nothing of that counts; gone at the end.
struct Project(PathBuf);

impl Project {
    fn new() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("int-flash-attention-user-{}", std::process::id()));
        fs::create_dir_all(folder.join("src/bin")).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self(folder))
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.0.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// A package's files, as its users get them; whether it has what every package needs.
    fn unpack(&self, name: &str) -> Result<PathBuf> {
        workspace::capture(Command::new("tar").arg("-xzf").arg(package::file(name)).arg("-C").arg(&self.0))?;
        let folder = self.0.join(format!("{name}-{}", env!("CARGO_PKG_VERSION")));
        for needed in ["README.md", "LICENSE-MIT", "LICENSE-APACHE"] {
            let whole = fs::metadata(folder.join(needed)).is_ok_and(|file| file.is_file() && file.len() > 0);
            ensure!(whole, "the package {name} has no {needed}");
        }
        for key in ["description", "license", "repository", "keywords", "categories", "readme"] {
            let manifest = fs::read_to_string(folder.join("Cargo.toml"))?;
            let there = manifest.lines().any(|line| line.starts_with(&format!("{key} = ")));
            ensure!(there, "the package {name} says no {key}");
        }
        Ok(folder)
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        // What is left behind is in the system's folder for such things.
        let _ = fs::remove_dir_all(Path::new(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found() {
        let page = "x\n```rust\nfn main() {}\n```\n```sh\nls\n```\n```rust,no_run\n# use a::b;\nfn main() { b() }\n```\n```rust\nfn part() {}\n```\n";
        let found = snippets("page", page);
        let seen: Vec<_> = found.iter().map(|snippet| (snippet.name.as_str(), snippet.runs)).collect();
        assert_eq!(seen, [("page_1", true), ("page_2", false), ("page_3", false)]);
        assert_eq!(found[1].text, "use a::b;\nfn main() { b() }");
        assert!(found[2].text.ends_with("fn part() {}\nfn main() {}\n"));
    }
}
