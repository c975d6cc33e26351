//! `cargo xtask mutants`: one mistake at a time in the PTX that ships, to see whether the tests would notice.

mod dead;
mod equivalent;
mod host;
mod kernel;
mod kinds;
mod limits;
mod mutant;
mod ptx;

use crate::progress::LateBar;
use crate::workspace;
use anyhow::{Result, bail, ensure};
use kernel::Kernel;
use kinds::Kind;
use mutant::Mutant;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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

#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Killed(String),
    /// It does not load, so that no compiler would take it.
    Refused(String),
    Survived,
    /// It survived because no check comes by: the instruction may as well be a trap.
    Unreached,
    /// The assembler makes the same machine code of it as it is launched, it is one of `equivalent::NO_CHANGE`, no launch is so large ([`limits`]), or no thread
    /// comes to it ([`dead`]).
    Equivalent,
}

pub fn run(args: &Args) -> Result<()> {
    if let Some(step) = args.host {
        return host::run(step);
    }
    let folder = args.ptx.clone().unwrap_or_else(workspace::ptx_dir);
    let kernels = kernel::kernels(&folder, &args.kernels)?;
    ensure!(!kernels.is_empty(), "no kernel in {} is named so: {:?}", folder.display(), args.kernels);
    let mut all = mutant::mutants(&kernels, &args.kinds);
    all.retain(|mutant| args.line.is_none_or(|line| mutant.line(&kernels[mutant.kernel]) == line));
    let chosen = match args.sample {
        Some(each) => mutant::sample(&all, each, args.seed),
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
    equivalent::find_equivalents(&kernels, &chosen, &mut fates)?;
    report(&kernels, &chosen, &fates, args.verbose)
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
