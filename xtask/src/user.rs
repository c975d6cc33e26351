//! A user's projects outside the repository: they depend on the packages as they would be published, by the lines that the pages tell a user
//! to write in `Cargo.toml`, and hold the pages' programs.

use crate::{package, workspace};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The pages, and what projects with their programs are called.
const PAGES: [(&str, &str); 3] =
    [("readme", "README.md"), ("candle", "candle/README.md"), ("quickstart", "docs/quickstart.md")];

/// Programs that go by the same lines of `Cargo.toml`.
#[derive(Default)]
struct Crate {
    name: String,
    manifest: String,
    programs: Vec<Program>,
}

/// A program of a page.
struct Program {
    text: String,
    /// Whether it can do without a GPU.
    runs: bool,
}

/// Builds every program with a compiler, and runs those that need no GPU. The number of programs.
pub fn check(toolchain: &str) -> Result<usize> {
    let root = workspace::root();
    let mut crates = Vec::new();
    for (page, file) in PAGES {
        let text = fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {file}"))?;
        crates.extend(self::crates(page, &text).with_context(|| file.to_owned())?);
    }
    let project = Project::new()?;
    package::make(true)?;
    let mut patches = String::new();
    for name in package::PACKAGES {
        let folder = project.unpack(name)?;
        patches.push_str(&format!("{name} = {{ path = {folder:?} }}\n"));
    }
    let members: Vec<_> = crates.iter().map(|one| one.name.as_str()).collect();
    let manifest = format!(
        "[workspace]\nresolver = \"3\"\nmembers = {members:?}\n\n[patch.crates-io]\n{patches}\n\
         [profile.dev]\ndebug = false\n\n[profile.dev.package.int-flash-attention]\nopt-level = 2\n"
    );
    project.write("Cargo.toml", &manifest)?;
    // The versions that the tests ran with.
    fs::copy(root.join("Cargo.lock"), project.0.join("Cargo.lock"))?;
    for Crate { name, manifest, programs } in &crates {
        project.write(&format!("{name}/Cargo.toml"), manifest)?;
        for (i, program) in programs.iter().enumerate() {
            project.write(&format!("{name}/src/bin/{name}-{i}.rs"), &program.text)?;
        }
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
    let mut run = 0;
    for Crate { name, programs, .. } in &crates {
        for (i, _) in programs.iter().enumerate().filter(|(_, program)| program.runs) {
            let program = format!("{name}-{i}");
            let built = workspace::target().join("user/debug").join(&program);
            workspace::capture(&mut Command::new(built)).with_context(|| format!("the program {program}"))?;
            run += 1;
        }
    }
    ensure!(run > 0, "the pages have no program to run");
    Ok(crates.iter().map(|one| one.programs.len()).sum())
}

/// The programs of a page, by the lines of `Cargo.toml` that stand in front of them. What has no `main` is a part that must compile.
fn crates(page: &str, text: &str) -> Result<Vec<Crate>> {
    let mut found: Vec<Crate> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(tags) = line.strip_prefix("```").filter(|tags| !tags.is_empty()) else { continue };
        let mut text = lines.by_ref().take_while(|line| *line != "```").collect::<Vec<_>>().join("\n");
        if tags == "toml" {
            dependencies_are_current(&text)?;
            let name = format!("{page}-{}", found.len());
            let package = format!("[package]\nname = {name:?}\nversion = \"0.0.0\"\nedition = \"2024\"\n\n");
            found.push(Crate { manifest: package + &text, name, ..Crate::default() });
        } else if tags.starts_with("rust") {
            let runs = !tags.contains("no_run") && text.contains("fn main()");
            if !text.contains("fn main()") {
                text = format!("#![allow(dead_code)]\n{text}\nfn main() {{}}\n");
            }
            let Some(last) = found.last_mut() else { bail!("no lines of Cargo.toml stand before the first program") };
            last.programs.push(Program { text, runs });
        }
    }
    Ok(found)
}

/// Whether lines of `Cargo.toml` ask for this version of our packages, by its first two numbers.
fn dependencies_are_current(text: &str) -> Result<()> {
    let table: toml::Table = toml::from_str(text).with_context(|| text.to_owned())?;
    let dependencies = table.get("dependencies").and_then(|value| value.as_table()).context("no [dependencies]")?;
    let current = concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"));
    for (name, value) in dependencies.iter().filter(|(name, _)| package::PACKAGES.contains(&name.as_str())) {
        let asked = value.as_str().or_else(|| value.get("version")?.as_str());
        ensure!(asked == Some(current), "{name} = {value}, and this is version {current}");
    }
    Ok(())
}

/// A folder outside the repository, so that nothing of that counts; gone at the end.
struct Project(PathBuf);

impl Project {
    fn new() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("int-flash-attention-user-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self(folder))
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.0.join(name);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
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
        // The registry shows a README by itself: links to files of the repository lead nowhere from there.
        let readme = fs::read_to_string(folder.join("README.md"))?;
        let broken = readme.split("](").skip(1).find(|link| !link.starts_with("http") && !link.starts_with('#'));
        if let Some(link) = broken.and_then(|link| link.split(')').next()) {
            bail!("the README of the package {name} has a link to {link}, which is not in the package");
        }
        let manifest = fs::read_to_string(folder.join("Cargo.toml"))?;
        for key in ["description", "license", "repository", "keywords", "categories", "readme"] {
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

    const LINES: &str = "```toml\n[dependencies]\nhalf = \"2\"\n```\n";

    #[test]
    fn programs_are_found() {
        let page = format!(
            "x\n{LINES}```rust\nfn main() {{}}\n```\n```sh\nls\n```\n{LINES}```rust,no_run\nfn main() {{ b() }}\n```\n```rust\nfn part() {{}}\n```\n"
        );
        let found = crates("page", &page).unwrap();
        let seen: Vec<_> =
            found.iter().map(|one| one.programs.iter().map(|program| program.runs).collect::<Vec<_>>()).collect();
        assert_eq!(seen, [vec![true], vec![false, false]]);
        assert!(found[1].manifest.ends_with("half = \"2\""), "{}", found[1].manifest);
        assert_eq!(found[1].name, "page-1");
        assert!(found[1].programs[1].text.ends_with("fn part() {}\nfn main() {}\n"));
    }

    #[test]
    fn a_program_without_its_lines_and_old_versions_are_refused() {
        assert!(crates("page", "```rust\nfn main() {}\n```\n").is_err());
        for old in ["int-flash-attention = \"0.1\"", "candle-int-flash-attention = { version = \"0.1\" }"] {
            let refused = crates("page", &format!("```toml\n[dependencies]\n{old}\n```\n"));
            assert!(refused.is_err_and(|error| error.to_string().contains("0.1")));
        }
    }
}
