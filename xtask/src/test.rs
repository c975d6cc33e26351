//! `cargo xtask test`: everything that can be known without looking at a figure.

use crate::{candle, deny, user, workspace};
use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime};

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, value_name = "STEP", help = help(), value_parser = PossibleValuesParser::new(names()))]
    only: Vec<String>,
}

/// What happened: steps and, in the step `tests`, each test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

type Step = fn() -> Result<Tally>;

const STEPS: [(&str, Step); 14] = [
    ("fmt", || cargo(&["fmt", "--all", "--check"])),
    ("clippy", clippy),
    ("device-clippy", device_clippy),
    ("doc", doc),
    ("build", || xtask(&["build", "--check"])),
    ("check", check),
    ("package", || assembled(&["package", "--allow-dirty", "--checked"])),
    ("tests", || tests(&["--no-fail-fast"], &[])),
    ("candle", candle),
    ("mutants", || xtask(&["mutants", "--sample", "4", "--seed", "1"])),
    ("nvvm", nvvm),
    ("oldest", oldest),
    ("deny", deny),
    ("user", user),
];

/// Steps that run only where they are asked for by name: what takes minutes and says little that the others do not.
const ON_REQUEST: [(&str, Step); 1] = [("libnvvm", libnvvm)];

/// All steps.
fn names() -> impl Iterator<Item = &'static str> {
    STEPS.iter().chain(&ON_REQUEST).map(|(name, _)| *name)
}

/// What `--help` says of steps, before it lists them.
fn help() -> String {
    format!("Run these steps only; without it all but {}", ON_REQUEST.map(|(name, _)| name).join(", "))
}

pub fn run(args: &Args) -> Result<()> {
    let mut total = Tally::default();
    let mut failed = Vec::new();
    for (i, (name, step)) in STEPS.into_iter().chain(ON_REQUEST).enumerate() {
        let asked = args.only.iter().any(|only| only == name);
        if !asked && (!args.only.is_empty() || i >= STEPS.len()) {
            continue;
        }
        println!("==> {name}");
        let start = Instant::now();
        let tally = step().unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            Tally { failed: 1, ..Tally::default() }
        });
        println!("<== {name}: {} in {:.0} s", shown(tally), start.elapsed().as_secs_f64());
        if tally.failed > 0 {
            failed.push(name);
        }
        total.add(tally);
    }
    if !failed.is_empty() {
        eprintln!("error: these steps failed: {}", failed.join(", "));
    }
    println!("{}", shown(total));
    if total.failed > 0 {
        // the totals stay the last line
        std::process::exit(1);
    }
    Ok(())
}

fn shown(tally: Tally) -> String {
    format!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped)
}

const PASSED: Tally = Tally { passed: 1, failed: 0, skipped: 0 };

fn cargo_command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace::root());
    command
}

/// A command that looks at packages without making code of them.
fn looks(args: &[&str]) -> Command {
    let mut command = cargo_command();
    command.args(args).arg("--quiet").env("CARGO_TARGET_DIR", candle::looks_dir());
    command
}

/// One cargo command that passes or fails.
fn cargo(args: &[&str]) -> Result<Tally> {
    succeed(cargo_command().args(args))
}

/// One command of this program.
fn xtask(args: &[&str]) -> Result<Tally> {
    succeed(Command::new(std::env::current_exe()?).args(args).current_dir(workspace::root()))
}

fn succeed(command: &mut Command) -> Result<Tally> {
    let status = command.status().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(PASSED)
}

/// Lints of everything, and of the library as small as it can be built. The tests of the workspace turn the library's features on: with
/// all features of all packages candle's CUDA side would need nvcc.
fn clippy() -> Result<Tally> {
    succeed(looks(&["clippy", "--workspace", "--all-targets"]).args(["--", "-D", "warnings"]))?;
    let smallest = ["clippy", "--package", "int-flash-attention", "--all-targets", "--no-default-features"];
    succeed(looks(&smallest).args(["--", "-D", "warnings"]))
}

/// The documentation, the library's with the features that docs.rs shows.
fn doc() -> Result<Tally> {
    let features = "int-flash-attention/cudarc,int-flash-attention/cust,int-flash-attention/nccl";
    let arguments = ["doc", "--workspace", "--no-deps", "--features", features];
    succeed(looks(&arguments).env("RUSTDOCFLAGS", "-D warnings"))
}

/// A command that needs the pinned ptxas; where that cannot be fetched this says so and counts as skipped.
fn assembled(args: &[&str]) -> Result<Tally> {
    if let Err(error) = crate::tools::pinned_ptxas() {
        println!("SKIPPED: whether the machine code is what ptxas makes of the PTX is not known: {error:#}");
        return Ok(Tally { skipped: 1, ..Tally::default() });
    }
    xtask(args)
}

/// Every module through ptxas, whose machine code is kept for what follows where the ptxas is the pinned one.
fn check() -> Result<Tally> {
    match assembled(&["check", "--machine-code"])? {
        Tally { skipped: 0, .. } => Ok(PASSED),
        skipped => {
            let mut tally = xtask(&["check"])?;
            tally.add(skipped);
            Ok(tally)
        }
    }
}

/// Lints of the device code, which the host build does not see: all modules at once, so that what none of them uses is found.
///
/// Allowed are clippy's own: what they would rewrite is chosen for the instructions that it becomes, and loops over register tiles
/// index several arrays and must unroll, which iterators hide. The compiler's warnings count.
fn device_clippy() -> Result<Tally> {
    let mut command = cargo_command();
    command.args(["clippy", "--quiet", "--package", "int-flash-attention-kernels", "--lib"]);
    command.args(["--target", "nvptx64-nvidia-cuda", "--", "-D", "warnings", "-A", "clippy::all"]);
    // The last family's target has the instructions of all.
    let mut flags = vec!["-Ctarget-cpu=sm_90a".to_owned()];
    for module in crate::build::modules() {
        flags.push(format!("--check-cfg=cfg({})", module.name));
        flags.extend(crate::build::cfgs(&module).map(|cfg| format!("--cfg={cfg}")));
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    command.env("CARGO_TARGET_DIR", workspace::target().join("device-clippy"));
    succeed(&mut command)
}

/// Tests of the workspace. One that cannot run here, without a GPU or a model, reports itself ignored: that counts as skipped, and why is said
/// once more at the end, where it is not lost among the others.
fn tests(args: &[&str], env: &[(&str, &Path)]) -> Result<Tally> {
    let mut command = cargo_command();
    command.args(["test", "--workspace"]).args(args).envs(env.iter().copied());
    command.env("INT_FLASH_XTASK", std::env::current_exe()?).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start cargo test")?;
    let (mut tally, mut skipped) = (Tally::default(), Vec::new());
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let line = line?;
        println!("{line}");
        if let Some(found) = parse_result(&line) {
            tally.add(found);
        }
        skipped.extend(parse_ignored(&line).map(|(name, why)| format!("SKIPPED: {name}: {why}")));
    }
    skipped.iter().for_each(|line| println!("{line}"));
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        bail!("cargo test ended with {status}");
    }
    Ok(tally)
}

/// `test result: ok. 8 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; ...`
fn parse_result(line: &str) -> Option<Tally> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let count = |what: &str| {
        let part = counts.split(';').find(|part| part.trim_end().ends_with(what))?;
        part.split_whitespace().next()?.parse().ok()
    };
    Some(Tally { passed: count("passed")?, failed: count("failed")?, skipped: count("ignored")? })
}

/// The name of an ignored test and why it is: `test NAME ... ignored (WHY)` of libtest-mimic, `test NAME ... ignored, WHY` of Rust's own harness.
fn parse_ignored(line: &str) -> Option<(&str, &str)> {
    let (name, why) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
    let why = why.strip_prefix(", ").or_else(|| why.strip_prefix(" (")?.strip_suffix(')'))?;
    Some((name.trim_end(), why))
}

/// The types of the CUDA side of the package for candle.
fn candle() -> Result<Tally> {
    candle::check_cuda()?;
    Ok(PASSED)
}

/// What the workspace is built from. Without cargo-deny the licences alone are looked at, and without a database of advisories all else;
/// what is not looked at is said, and counts as skipped.
fn deny() -> Result<Tally> {
    let skipped = |why: &str| {
        println!("SKIPPED: {why}");
        Tally { skipped: 1, ..PASSED }
    };
    if !deny::installed() {
        println!("{} packages, all under licences that are allowed", deny::licences()?);
        return Ok(skipped(
            "without cargo-deny (`cargo install cargo-deny --locked`) no look at advisories, yanked versions and sources",
        ));
    }
    deny::check()?;
    if let Err(error) = deny::fetch_advisories() {
        return Ok(skipped(&format!("advisories are not known: {error:#}")));
    }
    deny::check_advisories()?;
    Ok(PASSED)
}

/// The READMEs' programs in a project that depends on the packages, on the oldest stable compiler that candle's package promises, or else on the
/// stable one; where neither is installed this says so and counts as skipped.
fn user() -> Result<Tally> {
    let oldest = candle::oldest_rust()?;
    let Some(toolchain) = [oldest.as_str(), "stable"].into_iter().find(|toolchain| has(toolchain)) else {
        println!(
            "SKIPPED: neither Rust {oldest} nor stable is installed, so whether the READMEs' programs build is not known"
        );
        return Ok(Tally { skipped: 1, ..Tally::default() });
    };
    println!("{} programs of the READMEs build on Rust {toolchain}", user::check(toolchain)?);
    Ok(PASSED)
}

/// Whether a toolchain is installed.
fn has(toolchain: &str) -> bool {
    let installed = Command::new("rustup").args(["run", toolchain, "rustc", "--version"]).output();
    installed.is_ok_and(|output| output.status.success())
}

/// A second compiler's opinion: every module through libNVVM assembles, and its kernels give the reference's results on
/// the PTX machine. Where the wheel cannot be fetched this says so and counts as skipped.
fn libnvvm() -> Result<Tally> {
    if let Err(error) = crate::tools::pinned_libnvvm() {
        println!("SKIPPED: whether the kernels are the same from libNVVM is not known: {error:#}");
        return Ok(Tally { skipped: 1, ..Tally::default() });
    }
    let folder = crate::build::libnvvm_dir();
    let mut tally = xtask(&["build", "--codegen", "libnvvm"])?;
    let mut sweep = Command::new(std::env::current_exe()?);
    tally.add(succeed(sweep.args(["sweep", "--ptx"]).arg(&folder))?);
    tally.add(on_machine(&folder, &["--", "--skip", "generated"])?);
    Ok(tally)
}

/// What `build --codegen nvvm` wrote, where it has: ptxas and the PTX machine on it.
fn nvvm() -> Result<Tally> {
    let folder = crate::build::nvvm_dir();
    if let Some(why) = not_current(&folder)? {
        println!("SKIPPED: {} {why}; `cargo xtask build --codegen nvvm` writes it", workspace::shown(&folder));
        return Ok(Tally { skipped: 1, ..Tally::default() });
    }
    // its spills are a reason to ship the other set, not to refuse this one
    let mut check = Command::new(std::env::current_exe()?);
    let mut tally = succeed(check.args(["check", "--allow-spills", "--ptx"]).arg(&folder))?;
    tally.add(on_machine(&folder, &[])?);
    Ok(tally)
}

/// The tests on the PTX machine that between them launch every kernel, of the PTX in a folder.
fn on_machine(folder: &Path, arguments: &[&str]) -> Result<Tally> {
    let programs = ["machine", "scores", "quantize", "short", "decode", "cache", "narrow", "packed", "prefill"];
    let programs = programs.into_iter().flat_map(|name| ["--test", name]);
    let args: Vec<_> = programs.chain(arguments.iter().copied()).collect();
    tests(&args, &[("INT_FLASH_PTX_DIR", folder)])
}

/// Why a folder does not hold the PTX of the kernels as they are now.
fn not_current(folder: &Path) -> Result<Option<&'static str>> {
    let written: Vec<_> =
        crate::build::modules().iter().map(|m| fs::metadata(folder.join(format!("{}.ptx", m.name)))).collect();
    if written.iter().any(std::result::Result::is_err) {
        return Ok(Some("is not there, or not whole"));
    }
    let mut oldest = SystemTime::now();
    for file in written {
        oldest = oldest.min(file?.modified()?);
    }
    let stale = newest(&workspace::root().join("kernels-gpu/src"))? > oldest;
    Ok(stale.then_some("is older than the kernels' source"))
}

/// When the youngest file below a folder was written.
fn newest(folder: &Path) -> Result<SystemTime> {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let time =
            if entry.file_type()?.is_dir() { self::newest(&entry.path())? } else { entry.metadata()?.modified()? };
        newest = newest.max(time);
    }
    Ok(newest)
}

/// The library must build on the oldest compiler that its manifest promises (`user` builds the package for candle on the oldest of its own).
/// A compiler that is not installed is named and counts as skipped.
fn oldest() -> Result<Tally> {
    let toolchain = env!("CARGO_PKG_RUST_VERSION");
    if !has(toolchain) {
        println!("SKIPPED: Rust {toolchain} is not installed, so whether the library builds on it is not known");
        return Ok(Tally { skipped: 1, ..Tally::default() });
    }
    for features in ["--all-features", "--no-default-features"] {
        let mut command = Command::new("rustup");
        command.args(["run", toolchain, "cargo", "check", "--quiet", "--package", "int-flash-attention", features]);
        command.env("CARGO_TARGET_DIR", workspace::target().join(toolchain));
        succeed(command.env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN").current_dir(workspace::root()))?;
    }
    Ok(PASSED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn result_lines_are_counted() {
        let line = "test result: FAILED. 8 passed; 2 failed; 3 ignored; 0 measured; 1 filtered out; finished in 0.00s";
        assert_eq!(parse_result(line), Some(Tally { passed: 8, failed: 2, skipped: 3 }));
        assert_eq!(parse_result("test a ... ok"), None);
    }

    #[test]
    fn reasons_of_ignored_tests_are_found() {
        for line in ["test a::b   ... ignored (no GPU (or driver))", "test a::b ... ignored, no GPU (or driver)"] {
            assert_eq!(parse_ignored(line), Some(("a::b", "no GPU (or driver)")), "{line}");
        }
        for line in ["test a ... ignored", "test a ... ok", "a ... ignored, b"] {
            assert_eq!(parse_ignored(line), None, "{line}");
        }
    }

    #[test]
    fn every_step_has_a_row_in_the_docs() {
        let page = fs::read_to_string(workspace::root().join("docs/testing.md")).unwrap();
        let table = page.lines().skip_while(|line| *line != "| step | what it finds |").skip(2);
        let cells = table.map_while(|line| line.strip_prefix("| ")?.split(" | ").next());
        let mut documented: Vec<_> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
        let mut steps: Vec<_> = names().collect();
        documented.sort_unstable();
        steps.sort_unstable();
        assert_eq!(documented, steps);
    }

    #[derive(clap::Parser)]
    struct Alone {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn steps_are_those_of_the_tables() {
        let only = |step: &str| Alone::try_parse_from(["test", "--only", step]).map(|alone| alone.args.only);
        for (name, _) in STEPS.iter().chain(&ON_REQUEST) {
            assert_eq!(only(name).unwrap(), [*name]);
        }
        let Err(error) = only("nosuch") else { panic!("a step that there is not") };
        let all: Vec<_> = names().collect();
        assert!(error.to_string().contains(&format!("[possible values: {}]", all.join(", "))), "{error}");
    }
}
