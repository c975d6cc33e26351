//! `cargo xtask mutants`: one mistake at a time in the PTX that ships, to see whether the tests would notice.

mod host;
mod kinds;
mod limits;
mod ptx;

use crate::progress::LateBar;
use crate::tools::Tools;
use crate::workspace;
use anyhow::{Context, Result, bail, ensure};
use int_flash_attention_kernels::params::AttentionParams;
use int_flash_attention_tests::battery::{self, Check};
use kinds::Kind;
use limits::Limits;
use ptx::Source;
use ptx_machine::Module;
use rayon::prelude::*;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::mem::offset_of;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

#[derive(clap::Args)]
pub struct Args {
    /// Mutants of each kind, spread over the kernels; without it all of them, which takes days
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    /// Another sample
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Only kernels whose name contains one of these
    #[arg(long = "kernel", value_name = "TEXT")]
    kernels: Vec<String>,
    /// Only what stands in this line of the module with the kernel alone, as survivors are shown
    #[arg(long, value_name = "N", requires = "kernels")]
    line: Option<usize>,
    /// Only these kinds
    #[arg(long = "kind", value_name = "KIND")]
    kinds: Vec<Kind>,
    /// A folder of PTX other than host/ptx
    #[arg(long, value_name = "DIR")]
    ptx: Option<std::path::PathBuf>,
    /// Mistakes in the source of the host's checks instead: every N-th (a build and a test run each)
    #[arg(long, value_name = "N", conflicts_with_all = ["sample", "kernels", "line", "kinds", "ptx"])]
    host: Option<usize>,
    /// Print the mutants that were killed as well, and by what
    #[arg(long)]
    verbose: bool,
}

/// Of the mutants that are not equivalent, so many have to be killed.
const REQUIRED: f64 = 0.95;
/// Warp instructions of a CTA in an unchanged kernel are far fewer.
const ENDLESS: u64 = 10_000_000;

/// Survivors that change nothing for a reason that ptxas does not see (docs/testing.md): kind, kernel, what stands there, and what
/// stands in its line, the one before and the one that its last operand, `$`, is from; `*` for anything.
const NO_CHANGE: [(Kind, &str, &str, &str); 11] = [
    // Plus or minus zero.
    (Kind::Arithmetic, "attention", ", 0f00000000", ""),
    // Whether a window has no end on the right, which decides whether the longest tiles are first.
    (Kind::Constant, "attention", "setp.ne.b64*, 4294967295", ""),
    (Kind::Predicate, "attention", "bra", "setp.ne.b64*, 4294967295"),
    (Kind::Compare, "", "setp.ne.b64*, 4294967295", ""),
    // What a sink is short of by K's offset, which the paper's scheme has not: zero of either sign.
    (Kind::Swizzle, "_paper", "xor.b32*, -2147483648", "ld.global.nc.f32"),
    // After the last block the newest group is empty, so that a wait for all but one is a wait for all.
    (Kind::Wait, "attention", "cp.async.wait_group 0", ""),
    // A warpgroup that skips a block arrives too early, and the slot waits for one that does not.
    (Kind::Barrier, "sm90a", "mbarrier.try_wait", ""),
    // The bias or mask of a key behind the last one, whose score is hidden whatever it is.
    (Kind::Constant, "_general", "mov.*, 0", "@p ld.global.nc"),
    // The place of a head, sequence or block in an array of four bytes each: 2^30 of them have more than 4 TiB of K.
    (Kind::Stride, "attention", "mul.wide.u32*, 4", ""),
    // The first of a lane's eight dims, which is compared with a head dim that is a multiple of eight.
    (Kind::Constant, "attention", "or.b32", "add.s64*\tor.b32"),
    // In the first block in which the left end of the window hides nothing from any row, its mask hides nothing.
    (Kind::Compare, "attention_sm80", "setp.lt.u32", "ld.shared.v2.u32 {$,"),
];

/// Of the parameters, those that are zero in every plan of a kernel, by where their eight bytes begin.
fn zeros(kernel: &str) -> Vec<usize> {
    // K has no offset in the paper's scheme.
    if kernel.contains("_paper") { vec![offset_of!(AttentionParams, q_bias)] } else { Vec::new() }
}

/// The kernel as it is launched: with zeros for the parameters that are always so.
fn as_launched(kernel: &str, text: &str) -> String {
    let mut out = text.to_owned();
    for zero in zeros(kernel) {
        let parameter = format!("[{kernel}_param_0+{zero}]");
        let line = |line: &str| match line.split_once(&parameter) {
            Some((load, rest)) => load.replace("ld.param", "mov") + "0" + rest,
            None => line.to_owned(),
        };
        out = out.lines().map(line).collect::<Vec<_>>().join("\n");
    }
    out
}

/// A module's text, and the module with all of its kernels, loaded when first needed.
struct Whole {
    name: String,
    source: Source,
    module: OnceLock<Result<Arc<Module>, String>>,
}

/// A kernel, its module with no other in it, and its checks, made when first needed.
struct Kernel {
    name: String,
    whole: Arc<Whole>,
    text: String,
    body: Range<usize>,
    checks: OnceLock<Result<Vec<Checked>, String>>,
}

/// A check, and whether the kernel passes it unchanged, which is asked when a mutant does not.
struct Checked {
    check: Check,
    sound: OnceLock<Result<(), String>>,
}

struct Mutant {
    kernel: usize,
    kind: Kind,
    /// What is replaced in the kernel's text, and by what.
    span: Range<usize>,
    replacement: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Killed(String),
    /// It does not load, so that no compiler would take it.
    Refused(String),
    Survived,
    /// It survived because no check comes by: the instruction may as well be a trap.
    Unreached,
    /// The assembler makes the same machine code of it as it is launched, it is one of [`NO_CHANGE`], or no launch is so large ([`limits`]).
    Equivalent,
}

pub fn run(args: &Args) -> Result<()> {
    if let Some(step) = args.host {
        return host::run(step);
    }
    let folder = args.ptx.clone().unwrap_or_else(workspace::ptx_dir);
    let kernels = kernels(&folder, &args.kernels)?;
    ensure!(!kernels.is_empty(), "no kernel in {} is named so: {:?}", folder.display(), args.kernels);
    let mut all = mutants(&kernels, &args.kinds);
    all.retain(|mutant| args.line.is_none_or(|line| mutant.line(&kernels[mutant.kernel]) == line));
    let chosen = match args.sample {
        Some(each) => sample(&all, each, args.seed),
        None => all.iter().collect(),
    };
    println!("{} of {} mutants in {} kernels", chosen.len(), all.len(), kernels.len());
    let (bar, done) = (LateBar::new("mutants"), AtomicU64::new(0));
    // a mutant may break the machine's own assertions, which is one way to be noticed
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let fates: Vec<Result<Fate>> = chosen
        .par_iter()
        .map(|mutant| {
            let fate = fate(&kernels[mutant.kernel], mutant);
            bar.update(done.fetch_add(1, Relaxed) + 1, chosen.len() as u64);
            fate
        })
        .collect();
    std::panic::set_hook(hook);
    drop(bar);
    let mut fates = fates.into_iter().collect::<Result<Vec<_>>>()?;
    find_equivalents(&kernels, &chosen, &mut fates)?;
    report(&kernels, &chosen, &fates, args.verbose)
}

/// The kernels of every module in the folder.
fn kernels(folder: &Path, patterns: &[String]) -> Result<Vec<Kernel>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "ptx"));
    files.sort();
    let mut out = Vec::new();
    for file in files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let source = Source::new(fs::read_to_string(&file)?);
        let whole = Arc::new(Whole { name, source, module: OnceLock::new() });
        for name in whole.source.kernels() {
            if !patterns.is_empty() && !patterns.iter().any(|pattern| name.contains(pattern.as_str())) {
                continue;
            }
            let (text, body) = whole.source.alone(name).with_context(|| format!("{name} has no body"))?;
            out.push(Kernel { name: name.to_owned(), whole: whole.clone(), text, body, checks: OnceLock::new() });
        }
    }
    Ok(out)
}

fn mutants(kernels: &[Kernel], kinds: &[Kind]) -> Vec<Mutant> {
    let mut out = Vec::new();
    for (index, kernel) in kernels.iter().enumerate() {
        for statement in ptx::statements(&kernel.text, kernel.body.clone()) {
            let of_statement = kinds::mutations(&statement).into_iter();
            let wanted = of_statement.filter(|(kind, _)| kinds.is_empty() || kinds.contains(kind));
            out.extend(wanted.map(|(kind, replacement)| Mutant {
                kernel: index,
                kind,
                span: statement.span.clone(),
                replacement,
            }));
        }
    }
    out
}

/// So many of each kind, spread over the kernels evenly and inside them at random.
fn sample(all: &[Mutant], each: usize, seed: u64) -> Vec<&Mutant> {
    let mix = |noise: u64| {
        let mixed = (noise ^ (noise >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
    };
    // Seeds side by side would begin one sequence at places side by side.
    let mut noise = mix(seed);
    let mut random = move || {
        noise = noise.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(noise) >> 33) as usize
    };
    let mut out = Vec::new();
    for kind in Kind::ALL {
        let mut of_kernels: BTreeMap<usize, Vec<&Mutant>> = BTreeMap::new();
        for mutant in all.iter().filter(|mutant| mutant.kind == kind) {
            of_kernels.entry(mutant.kernel).or_default().push(mutant);
        }
        let mut left: Vec<_> = of_kernels.into_values().collect();
        for _ in 0..each {
            if left.is_empty() {
                break;
            }
            // a kernel, which is not asked again before the others were
            let mut of_kernel = left.remove(random() % left.len().div_ceil(2));
            out.push(of_kernel.swap_remove(random() % of_kernel.len()));
            if !of_kernel.is_empty() {
                left.push(of_kernel);
            }
        }
    }
    out
}

impl Mutant {
    fn text(&self, kernel: &Kernel) -> String {
        let (before, after) = (&kernel.text[..self.span.start], &kernel.text[self.span.end..]);
        format!("{before}{}{after}", self.replacement)
    }

    /// Its line in the module with the kernel alone.
    fn line(&self, kernel: &Kernel) -> usize {
        kernel.text[..self.span.start].matches('\n').count() + 1
    }

    /// The line, what stands there and what would.
    fn describe(&self, kernel: &Kernel) -> String {
        let was = kernel.text[self.span.clone()].split_whitespace().collect::<Vec<_>>().join(" ");
        let is = if self.replacement.is_empty() { "nothing" } else { &self.replacement };
        let line = self.line(kernel);
        format!("{} {}:{line}: `{was}` becomes `{is}`", self.kind, kernel.name)
    }
}

/// What keeps the reasons of failures, which [`anyhow::Error`] does not let two threads have.
fn kept<T>(result: Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{error:#}"))
}

fn given<T>(kept: &Result<T, String>) -> Result<&T> {
    kept.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
}

impl Whole {
    fn module(&self) -> Result<Arc<Module>> {
        given(self.module.get_or_init(|| kept(Kernel::load(self.source.text())))).cloned()
    }
}

impl Kernel {
    fn load(text: &str) -> Result<Arc<Module>> {
        Ok(Arc::new(Module::load(text)?.with_instruction_limit(ENDLESS)))
    }

    /// This module in its own one's place, and beside it the others' kernels, which some checks run first.
    fn among_others(&self, module: Arc<Module>) -> Result<Vec<Arc<Module>>> {
        let others = self.whole.source.kernels().count() > 1;
        Ok(if others { vec![module, self.whole.module()?] } else { vec![module] })
    }

    fn checks(&self) -> Result<&Vec<Checked>> {
        let all = || Ok(battery::of(&self.name)?.into_iter().map(|check| Checked { check, sound: OnceLock::new() }));
        given(self.checks.get_or_init(|| kept(all().map(Iterator::collect))))
    }

    /// What the first check that this module does not pass says; that the kernel as it is passes that one.
    fn first_failure(&self, module: Arc<Module>) -> Result<Option<String>> {
        let modules = self.among_others(module)?;
        for Checked { check, sound } in self.checks()? {
            let failure = match catch_unwind(AssertUnwindSafe(|| check.run(&self.whole.name, &modules))) {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "an assertion of the machine".into(),
            };
            let as_it_is = || check.run(&self.whole.name, &[self.whole.module()?]);
            given(sound.get_or_init(|| kept(as_it_is()))).with_context(|| format!("{} as it is", self.name))?;
            return Ok(Some(failure));
        }
        Ok(None)
    }
}

fn fate(kernel: &Kernel, mutant: &Mutant) -> Result<Fate> {
    let module = match Kernel::load(&mutant.text(kernel)) {
        Ok(module) => module,
        Err(error) => return Ok(Fate::Refused(error.to_string())),
    };
    if let Some(by) = kernel.first_failure(module)? {
        return Ok(Fate::Killed(by));
    }
    // Whether a trap in the statement's place would pass as well.
    let trap = Mutant { replacement: "trap".to_owned(), span: mutant.span.clone(), ..*mutant };
    let Ok(trap) = Kernel::load(&trap.text(kernel)) else { return Ok(Fate::Survived) };
    Ok(if kernel.first_failure(trap)?.is_some() { Fate::Survived } else { Fate::Unreached })
}

/// Whether the host lets no launch be so large that a number loses something with its upper 32 bits, or what is turned round is a zero's sign.
fn is_within_limits(kernel: &Kernel, mutant: &Mutant) -> bool {
    let limits = Limits::new(&kernel.name, &kernel.text, kernel.body.clone());
    let own = ptx::statements(&kernel.text, mutant.span.start..mutant.span.end + 1);
    own.iter().any(|statement| match mutant.kind {
        // Of heads, sequences and blocks, as `NO_CHANGE` says of `mul.wide.u32`.
        Kind::Stride if kernel.name.starts_with("attention") && limits.is_place_of_words(statement) => true,
        Kind::Stride => limits.most(statement) <= u32::MAX.into(),
        Kind::Swizzle => statement.operands[2] == "-2147483648" && limits.is_zero(statement.operands[1]),
        _ => false,
    })
}

fn changes_nothing(kernel: &Kernel, mutant: &Mutant) -> bool {
    let text = &kernel.text[mutant.span.clone()];
    let lines = kernel.text[..mutant.span.end].rsplit('\n').take(2).map(str::len).sum::<usize>() + 1;
    let end = kernel.text[mutant.span.end..].find('\n').map_or(kernel.text.len(), |at| mutant.span.end + at);
    let around = &kernel.text[mutant.span.end.saturating_sub(lines)..end];
    let last = text.rsplit([' ', '\t']).next().unwrap_or_default();
    let from = kernel.text[..mutant.span.start].lines().rev().find(|line| ptx::defines(line, last)).unwrap_or_default();
    let around = format!("{from}\n{around}");
    let matches = |pattern: &str, text: &str| pattern.split('*').all(|piece| text.contains(piece));
    NO_CHANGE.iter().any(|&(kind, name, own, near)| {
        let near = near.replace('$', last);
        mutant.kind == kind && kernel.name.contains(name) && matches(own, text) && matches(&near, &around)
    })
}

/// Survivors of which ptxas makes what it makes of the kernel as it is.
fn find_equivalents(kernels: &[Kernel], mutants: &[&Mutant], fates: &mut [Fate]) -> Result<()> {
    let lives = |i: &usize| matches!(fates[*i], Fate::Survived | Fate::Unreached);
    let survivors: Vec<usize> = (0..fates.len()).filter(lives).collect();
    if survivors.is_empty() {
        return Ok(());
    }
    let tools = Tools::find()?;
    let work = workspace::target().join(format!("mutants-{}", std::process::id()));
    fs::create_dir_all(&work)?;
    let assembled = |name: String, text: &str| -> Result<Option<Vec<u8>>> {
        let target = text.lines().find_map(|line| line.strip_prefix(".target ")).context("no target")?.trim();
        let (source, cubin) = (work.join(format!("{name}.ptx")), work.join(format!("{name}.cubin")));
        fs::write(&source, text)?;
        let mut ptxas = Command::new(&tools.ptxas);
        let output = ptxas.arg(format!("-arch={target}")).arg("-o").args([&cubin, &source]).output()?;
        Ok(if output.status.success() { Some(fs::read(cubin)?) } else { None })
    };
    let mut originals = HashMap::new();
    for &i in &survivors {
        let index = mutants[i].kernel;
        if let Entry::Vacant(place) = originals.entry(index) {
            let text = as_launched(&kernels[index].name, &kernels[index].text);
            place.insert(assembled(format!("original-{index}"), &text)?);
        }
    }
    let before: &[Fate] = fates;
    let found = survivors.par_iter().map(|&i| {
        let kernel = &kernels[mutants[i].kernel];
        let code = assembled(format!("mutant-{i}"), &as_launched(&kernel.name, &mutants[i].text(kernel)))?;
        Ok(match code {
            None => Fate::Refused("by ptxas".into()),
            code if code == originals[&mutants[i].kernel] => Fate::Equivalent,
            _ if changes_nothing(kernel, mutants[i]) || is_within_limits(kernel, mutants[i]) => Fate::Equivalent,
            _ => before[i].clone(),
        })
    });
    let found = found.collect::<Result<Vec<_>>>();
    let _ = fs::remove_dir_all(&work);
    for (i, fate) in survivors.iter().zip(found?) {
        fates[*i] = fate;
    }
    Ok(())
}

fn report(kernels: &[Kernel], mutants: &[&Mutant], fates: &[Fate], verbose: bool) -> Result<()> {
    const COLUMNS: [&str; 5] = ["killed", "survived", "unreached", "equivalent", "refused"];
    let row = |name: &str, counts: &[usize; 5]| {
        let counts: String = counts.iter().map(|count| format!("{count:>12}")).collect();
        println!("{name:<12}{counts}");
    };
    let mut table: BTreeMap<Kind, [usize; 5]> = BTreeMap::new();
    for (mutant, fate) in mutants.iter().zip(fates) {
        let (column, by, always) = match fate {
            Fate::Killed(by) => (0, by.lines().next().unwrap_or_default(), false),
            Fate::Survived => (1, "", true),
            Fate::Unreached => (2, "", true),
            Fate::Equivalent => (3, "", false),
            Fate::Refused(by) => (4, by.as_str(), false),
        };
        table.entry(mutant.kind).or_default()[column] += 1;
        if verbose || always {
            let by = if by.is_empty() { String::new() } else { format!("\n    {by}") };
            println!("{} {}{by}", COLUMNS[column], mutant.describe(&kernels[mutant.kernel]));
        }
    }
    println!("{:<12}{}", "kind", COLUMNS.map(|column| format!("{column:>12}")).concat());
    let mut sum = [0; 5];
    for (kind, counts) in &table {
        row(&kind.to_string(), counts);
        sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    row("all", &sum);
    let [killed, survived, unreached, ..] = sum;
    let survived = survived + unreached;
    let share = killed as f64 / (killed + survived).max(1) as f64;
    println!("{:.1} % of those that are not equivalent were killed", 100.0 * share);
    if share < REQUIRED {
        bail!("at least {:.0} % of the mutants should have been killed", 100.0 * REQUIRED);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_no_plan_sets_are_zero() {
        let text = |load: &str| format!("a;\n\t{load}\nret;");
        let load = "ld.param.b64 \t%rd5, [attention_sm80_d64_paper_param_0+32];";
        let zero = "mov.b64 \t%rd5, 0;";
        assert_eq!(as_launched("attention_sm80_d64_paper", &text(load)), text(zero));
        let other = load.replace("_paper", "_default");
        assert_eq!(as_launched("attention_sm80_d64_default", &text(&other)), text(&other));
    }

    #[test]
    fn a_sample_is_spread_over_kinds_and_kernels_and_repeats() {
        let mutant = |kernel, kind, at| Mutant { kernel, kind, span: at..at + 1, replacement: String::new() };
        let kinds = [Kind::Barrier, Kind::Store];
        let all: Vec<_> = (0..600).map(|i| mutant(i % 3, kinds[i / 3 % 2], i)).collect();
        let chosen = |seed| sample(&all, 6, seed).iter().map(|mutant| mutant.span.start).collect::<Vec<_>>();
        assert_eq!(chosen(1), chosen(1));
        assert_ne!(chosen(1), chosen(2));
        for (kernel, kind) in (0..3).flat_map(|kernel| kinds.map(|kind| (kernel, kind))) {
            let sample = sample(&all, 6, 1);
            let found = sample.iter().filter(|mutant| mutant.kernel == kernel && mutant.kind == kind).count();
            assert_eq!(sample.len(), 12);
            assert!((1..=3).contains(&found), "{found} of kernel {kernel}, {kind}");
        }
    }
}
