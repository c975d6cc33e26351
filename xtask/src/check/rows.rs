//! Kernels on architectures: what ptxas says of each, its instructions, and how many of its CTAs a multiprocessor holds.

use super::occupancy::{CLASSES, Class, Cta};
use super::ptxas::{self, Resources};
use super::{cubin, sass};
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
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
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
    /// Instructions of the main loop alone, where they were asked for.
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

/// How much there is to know of instructions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// How many there are of each in a kernel: a listing an architecture.
    Counts,
    /// Those of its main loop as well: a listing a module.
    Loops,
}

/// A module that ptxas has assembled for an architecture.
type Made = (&'static Module, &'static str, Assembled);

/// The rows of these modules, whose PTX is in a folder, and what did not assemble. `look` sees the machine code of each.
pub fn assemble_all(
    tools: &Tools,
    folder: &Path,
    jobs: &[(&'static Module, &'static str)],
    depth: Depth,
    look: impl Fn(&Module, &str, &Assembled) -> Result<()> + Sync,
) -> Result<(Vec<Row>, Vec<anyhow::Error>)> {
    let scratch = Scratch::new("check")?;
    let ptx = |module: &Module| folder.join(format!("{}.ptx", module.name));
    let one = |&(module, arch): &(&'static Module, &'static str)| -> Result<Made> {
        let assembled = assemble(&tools.ptxas, &ptx(module), arch, &scratch)?;
        look(module, arch, &assembled)?;
        Ok((module, arch, assembled))
    };
    let (mut made, mut refused) = (Vec::new(), Vec::new());
    for outcome in jobs.par_iter().map(one).collect::<Vec<_>>() {
        match outcome {
            Ok(module) => made.push(module),
            Err(error) => refused.push(error),
        }
    }
    let listed: Vec<Listed> = match depth {
        Depth::Loops => made.par_iter().map(|(_, _, assembled)| with_loops(tools, assembled)).collect::<Result<_>>()?,
        Depth::Counts => counted(tools, &made, &scratch)?,
    };
    let mut rows = Vec::new();
    for ((module, arch, assembled), listed) in made.iter().zip(listed) {
        match self::rows(&ptx(module), module.name, arch, assembled, listed) {
            Ok(module) => rows.extend(module),
            Err(error) => refused.push(error),
        }
    }
    Ok((rows, refused))
}

/// A module's kernels, each with its instructions and those of its main loop.
type Listed = BTreeMap<String, (sass::Counts, sass::Counts)>;

fn with_loops(tools: &Tools, assembled: &Assembled) -> Result<Listed> {
    let listing = workspace::capture(Command::new(&tools.nvdisasm).arg("-c").arg(&assembled.file))?;
    let kernels = sass::read(&String::from_utf8_lossy(&listing.stdout));
    Ok(kernels.into_iter().map(|(name, kernel)| (name, (kernel.counts(), kernel.main_loop()))).collect())
}

/// Of all modules, without loops: the code of all that are for one architecture in one file.
fn counted(tools: &Tools, made: &[Made], scratch: &Scratch) -> Result<Vec<Listed>> {
    let architectures: BTreeSet<&str> = made.iter().map(|(_, arch, _)| *arch).collect();
    let of_architecture = |arch: &&str| -> Result<Vec<(usize, String, sass::Counts)>> {
        let (mut code, mut ends, mut kernels) = (Vec::new(), Vec::new(), Vec::new());
        for (index, (_, _, assembled)) in made.iter().enumerate().filter(|(_, (_, of, _))| of == arch) {
            for (name, bytes) in cubin::kernels(&assembled.cubin)? {
                code.extend(bytes);
                ends.push(code.len());
                kernels.push((index, name));
            }
        }
        let file = scratch.path().join(format!("{arch}.bin"));
        fs::write(&file, code)?;
        // `sm_90a` is `SM90a` there.
        let mut command = Command::new(&tools.nvdisasm);
        command.arg("--binary").arg(arch.replace("sm_", "SM")).arg(&file);
        let counts = sass::count_all(&String::from_utf8_lossy(&workspace::capture(&mut command)?.stdout), &ends);
        Ok(kernels.into_iter().zip(counts).map(|((index, name), counts)| (index, name, counts)).collect())
    };
    let counts: Vec<_> = architectures.par_iter().map(of_architecture).collect::<Result<_>>()?;
    let mut listed = vec![Listed::new(); made.len()];
    for (index, name, counts) in counts.into_iter().flatten() {
        listed[index].insert(name, (counts, sass::Counts::new()));
    }
    Ok(listed)
}

/// A module's kernels.
fn rows(ptx: &Path, module: &str, arch: &str, assembled: &Assembled, mut listed: Listed) -> Result<Vec<Row>> {
    let resources = ptxas::parse(&assembled.report);
    let losses = ptxas::losses(&assembled.report);
    if resources.is_empty() {
        bail!("{} has no kernel", workspace::shown(ptx));
    }
    if let Some((_, loss)) = losses.iter().find(|(named, _)| !resources.iter().any(|r| r.kernel == *named)) {
        bail!("{} for {arch}: ptxas says of no kernel in particular: {loss}", workspace::shown(ptx));
    }
    let row = |resources: Resources| {
        let of_kernel = losses.iter().filter(|(kernel, _)| *kernel == resources.kernel);
        let losses = of_kernel.map(|(_, loss)| loss.clone()).collect();
        let (sass, main_loop) = listed.remove(&resources.kernel).unwrap_or_default();
        let mut row = Row {
            module: module.to_owned(),
            arch: arch.to_owned(),
            plan: Plan::of(&resources.kernel),
            resources,
            losses,
            instructions: sass.values().sum(),
            sass,
            main_loop,
            ctas: None,
            faults: Vec::new(),
        };
        row.ctas = row.class().and_then(|class| row.ctas_on(class));
        row
    };
    Ok(resources.into_iter().map(row).collect())
}
