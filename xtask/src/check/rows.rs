//! Kernels on architectures: what ptxas says of each, its instructions, and how many of its CTAs a multiprocessor holds.

use super::occupancy::{CLASSES, Class, Cta};
use super::ptxas::{self, Resources};
use super::sass;
use crate::assembler::{Assembled, Scratch, assemble};
use crate::tools::Tools;
use crate::workspace;
use anyhow::{Result, bail};
use int_flash_attention_kernels::config::decode::{DECODE, DecodeVariant};
use int_flash_attention_kernels::config::short::{SHORT, ShortVariant};
use int_flash_attention_kernels::config::{ATTENTION, BASELINE, MODULES, Module};
use int_flash_attention_kernels::layout::KV_BLOCK;
use rayon::prelude::*;
use serde::Serialize;
use std::path::Path;
use std::process::Command;

/// One kernel on one architecture.
#[derive(Clone, Serialize)]
pub struct Row {
    pub module: String,
    pub arch: String,
    #[serde(flatten)]
    pub resources: Resources,
    /// What ptxas says it could not make fast.
    pub losses: Vec<String>,
    pub instructions: u32,
    pub sass: sass::Counts,
    /// Instructions of the main loop alone.
    pub main_loop: sass::Counts,
    /// How its row launches it; the quantization kernels' launches depend on the head dim and have none.
    pub plan: Option<Plan>,
    /// CTAs that a multiprocessor of this architecture's class holds.
    pub ctas: Option<usize>,
    /// What breaks a rule; empty where all is well.
    pub faults: Vec<String>,
}

/// What the variant table says of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub threads: usize,
    /// Dynamic shared memory.
    pub shared_bytes: usize,
    /// CTAs that a multiprocessor should hold on each class of GPUs, 0 where the kernel is not for it.
    pub ctas: [usize; CLASSES.len()],
}

impl Plan {
    /// That of a kernel in the tables of attention.
    fn of(entry: &str) -> Option<Self> {
        let attention = ATTENTION.iter().map(|v| (v.name, v.threads, v.shared_bytes, v.ctas));
        let baseline = BASELINE.iter().map(|v| (v.name, v.threads, v.shared_bytes, v.ctas));
        let short = SHORT.iter().map(|v| (v.name, 32 * v.most_warps, short_shared(v), short_ctas(v)));
        let decode = DECODE.iter().map(|v| (v.name, v.threads, v.shared_bytes, decode_ctas(v)));
        let all = attention.chain(baseline).chain(short).chain(decode);
        let (_, threads, shared_bytes, ctas) = all.into_iter().find(|(name, ..)| *name == entry)?;
        Some(Self { threads, shared_bytes, ctas })
    }
}

/// Shared memory of a kernel for short K and V, of one block of keys: with more, an SM holds fewer CTAs.
fn short_shared(variant: &ShortVariant) -> usize {
    variant.shared_bytes(variant.most_warps, KV_BLOCK)
}

/// CTAs of a kernel for short K and V that a multiprocessor of each class holds.
fn short_ctas(variant: &ShortVariant) -> [usize; CLASSES.len()] {
    CLASSES.map(|class| variant.min_ctas.min(((class.kib + 1) << 10) / (short_shared(variant) + (1 << 10))))
}

/// CTAs of a decode kernel that a multiprocessor of each class holds.
fn decode_ctas(variant: &DecodeVariant) -> [usize; CLASSES.len()] {
    CLASSES.map(|class| variant.ctas((class.kib + 1) << 10))
}

impl Row {
    /// CTAs that a multiprocessor of a class would hold with this code.
    pub fn ctas_on(&self, class: &Class) -> Option<usize> {
        let plan = self.plan?;
        let shared = plan.shared_bytes + self.resources.static_shared as usize;
        Some(class.holds(Cta { threads: plan.threads, registers: self.resources.registers as usize, shared }))
    }

    /// CTAs that the row plans on its architecture; 0 where another kernel is taken there.
    pub fn planned(&self) -> Option<usize> {
        let class = CLASSES.iter().position(|class| class.architectures.contains(&self.arch.as_str()))?;
        self.plan.map(|plan| plan.ctas[class])
    }

    /// The class of its architecture.
    pub fn class(&self) -> Option<&'static Class> {
        CLASSES.iter().find(|class| class.architectures.contains(&self.arch.as_str()))
    }

    /// Bytes of spills, both ways.
    pub fn spills(&self) -> u32 {
        self.resources.spill_stores + self.resources.spill_loads
    }
}

/// Modules and architectures that ptxas is asked for.
pub fn jobs(architecture: impl Fn(&str) -> bool) -> Vec<(&'static Module, &'static str)> {
    let of_module =
        |module: &'static Module| module.architectures().map(move |architecture| (module, architecture.name));
    MODULES.iter().flat_map(of_module).filter(|(_, name)| architecture(name)).collect()
}

/// The rows of these modules, whose PTX is in a folder, and what did not assemble. `look` sees the machine code of each.
pub fn assemble_all(
    tools: &Tools,
    folder: &Path,
    jobs: &[(&'static Module, &'static str)],
    look: impl Fn(&Module, &str, &Assembled) -> Result<()> + Sync,
) -> Result<(Vec<Row>, Vec<anyhow::Error>)> {
    let scratch = Scratch::new("check")?;
    let one = |&(module, arch): &(&'static Module, &'static str)| {
        let ptx = folder.join(format!("{}.ptx", module.name));
        let assembled = assemble(&tools.ptxas, &ptx, arch, &scratch)?;
        look(module, arch, &assembled)?;
        rows(tools, &ptx, module.name, arch, &assembled)
    };
    let outcome: Vec<Result<Vec<Row>>> = jobs.par_iter().map(one).collect();
    let (mut rows, mut refused) = (Vec::new(), Vec::new());
    for module in outcome {
        match module {
            Ok(module) => rows.extend(module),
            Err(error) => refused.push(error),
        }
    }
    Ok((rows, refused))
}

/// A module's kernels.
fn rows(tools: &Tools, ptx: &Path, module: &str, arch: &str, assembled: &Assembled) -> Result<Vec<Row>> {
    let resources = ptxas::parse(&assembled.report);
    let losses = ptxas::losses(&assembled.report);
    if resources.is_empty() {
        bail!("{} has no kernel", workspace::shown(ptx));
    }
    if let Some((_, loss)) = losses.iter().find(|(named, _)| !resources.iter().any(|r| r.kernel == *named)) {
        bail!("{} for {arch}: ptxas says of no kernel in particular: {loss}", workspace::shown(ptx));
    }
    let listing = workspace::capture(Command::new(&tools.nvdisasm).arg("-c").arg(&assembled.file))?;
    let mut kernels = sass::read(&String::from_utf8_lossy(&listing.stdout));
    let row = |resources: Resources| {
        let of_kernel = losses.iter().filter(|(kernel, _)| *kernel == resources.kernel);
        let losses = of_kernel.map(|(_, loss)| loss.clone()).collect();
        let kernel = kernels.remove(&resources.kernel).unwrap_or_default();
        let sass = kernel.counts();
        let mut row = Row {
            module: module.to_owned(),
            arch: arch.to_owned(),
            plan: Plan::of(&resources.kernel),
            resources,
            losses,
            instructions: sass.values().sum(),
            sass,
            main_loop: kernel.main_loop(),
            ctas: None,
            faults: Vec::new(),
        };
        row.ctas = row.class().and_then(|class| row.ctas_on(class));
        row
    };
    Ok(resources.into_iter().map(row).collect())
}
