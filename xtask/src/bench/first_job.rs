//! `cargo xtask bench --first-job`: what a process waits for before its first result, with an empty driver cache.

use super::timing::{Spread, spread};
use crate::workspace;
use anyhow::{Context, Result, bail, ensure};
use half::f16;
use int_flash_attention::{
    AttentionOutput, AttentionProblem, DType, Gpu, JobPath, QuantizeLayouts, StreamRef, TensorLayout, Window,
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Processes for each figure.
const RUNS: usize = 5;

/// What one process measured, in milliseconds.
#[derive(Debug, Deserialize, Serialize)]
pub struct Once {
    /// Making the context.
    context: f64,
    /// The plan, which loads a module for the quantization and one for the attention.
    plan: f64,
    /// Memory, copies, launches and the wait for the result.
    job: f64,
    /// The modules and the architecture of their machine code; none where the driver compiled PTX.
    modules: Vec<(String, Option<String>)>,
}

impl Once {
    fn beyond_context(&self) -> f64 {
        self.plan + self.job
    }
}

/// Figures of a head dim and a form of the kernels.
#[derive(Debug, Serialize)]
struct Figure {
    head_dim: usize,
    causal: bool,
    /// `machine code` or `PTX`.
    form: &'static str,
    modules: Vec<(String, Option<String>)>,
    context_ms: Spread,
    plan_ms: Spread,
    job_ms: Spread,
    /// All but the context.
    beyond_context_ms: Spread,
}

#[derive(Serialize)]
struct Report {
    device: String,
    cuda: u32,
    runs: usize,
    figures: Vec<Figure>,
}

/// Starts processes that do one job each, with machine code and with PTX, and shows how long each part took.
pub fn run(device: usize, head_dims: &[usize], ptx: Option<&Path>, json: Option<&Path>) -> Result<()> {
    // No context of this process is there while the others measure.
    let (name, cuda) = Gpu::new(device).and_then(|gpu| Ok((gpu.name().to_owned(), gpu.driver_version()?)))?;
    let folder = ptx.map_or_else(workspace::ptx_dir, PathBuf::from);
    let mut figures = Vec::new();
    for (&head_dim, causal) in head_dims.iter().flat_map(|dim| [(dim, false), (dim, true)]) {
        for (form, folder) in [("machine code", None), ("PTX", Some(folder.as_path()))] {
            let runs = (0..RUNS).map(|_| child(device, head_dim, causal, folder)).collect::<Result<Vec<_>>>()?;
            if folder.is_none() && runs[0].modules.iter().any(|(_, architecture)| architecture.is_none()) {
                eprintln!(
                    "SKIPPED: head_dim {head_dim}: this build has no machine code for {name}, or the driver refuses it"
                );
                continue;
            }
            let of = |part: fn(&Once) -> f64| spread(runs.iter().map(part).collect());
            let figure = Figure {
                head_dim,
                causal,
                form,
                modules: runs[0].modules.clone(),
                context_ms: of(|once| once.context),
                plan_ms: of(|once| once.plan),
                job_ms: of(|once| once.job),
                beyond_context_ms: of(Once::beyond_context),
            };
            println!(
                "head_dim {head_dim:3}{} {form:12} context {:.1} ms; plan {:.1}, job {:.1}, together {:.1} ms ({:.1} to {:.1})",
                if causal { " causal" } else { "       " },
                figure.context_ms.median,
                figure.plan_ms.median,
                figure.job_ms.median,
                figure.beyond_context_ms.median,
                figure.beyond_context_ms.least,
                figure.beyond_context_ms.most,
            );
            figures.push(figure);
        }
    }
    let report = Report { device: name, cuda, runs: RUNS, figures };
    if let Some(file) = json {
        workspace::write_atomically(file, &serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}

/// One process, which finds nothing that an earlier one compiled.
fn child(device: usize, head_dim: usize, causal: bool, folder: Option<&Path>) -> Result<Once> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench", "--first-job-once", "--device", &device.to_string()]);
    command.args(["--head-dim", &head_dim.to_string(), "--causal", &u8::from(causal).to_string()]);
    if let Some(folder) = folder {
        command.arg("--ptx").arg(folder);
    }
    let output = workspace::capture(command.env("CUDA_CACHE_DISABLE", "1"))?;
    serde_json::from_slice(&output.stdout).context("the child process did not write its figures")
}

/// The one job of a child process: B = 1, 8 heads, 1024 tokens, float16 in and out. Its figures go to stdout.
pub fn once(device: usize, head_dim: usize, causal: bool, folder: Option<&Path>) -> Result<()> {
    let problem = AttentionProblem::new(1, 8, 8, 1024, 1024, head_dim).with_window(if causal {
        Window::CAUSAL
    } else {
        Window::FULL
    });
    let layout = TensorLayout::bhnd(problem.q_shape());
    let values = super::data::values(1, 0, layout.span());
    let mut start = Instant::now();
    let mut lap = || {
        let now = Instant::now();
        (now - std::mem::replace(&mut start, now)).as_secs_f64() * 1e3
    };
    let gpu = match folder {
        // SAFETY: what the folder is for is said where it is asked for.
        Some(folder) => unsafe { Gpu::with_ptx(device, folder) }?,
        None => Gpu::new(device)?,
    };
    let context = lap();
    let layouts = QuantizeLayouts { q: layout, k: layout, v: layout, dtype: DType::F16 };
    let output = AttentionOutput { layout, dtype: DType::F16, lse: false };
    let plan = gpu.plan_job_of(JobPath::Quantized, &problem, &layouts, &output)?;
    let planned = lap();
    let mut workspace = gpu.alloc::<u8>(plan.workspace_bytes())?;
    let mut o = gpu.alloc::<f16>(layout.span())?;
    let x = gpu.upload(&values)?;
    let stream = StreamRef::DEFAULT;
    plan.launch(stream, [(&x).into(), (&x).into(), (&x).into()], workspace.slice_mut(), (&mut o).into(), None)?;
    let result = o.to_vec()?;
    let job = lap();
    if result.iter().all(|x| *x == f16::ZERO) || result.iter().any(|x| !x.is_finite()) {
        bail!("the job's result is not one");
    }
    let modules: Vec<_> =
        gpu.loaded_modules().into_iter().map(|(name, form)| (name.to_owned(), form.map(str::to_owned))).collect();
    ensure!(modules.len() == 2, "a job of two kernels loaded {} modules", modules.len());
    println!("{}", serde_json::to_string(&Once { context, plan: planned, job, modules })?);
    Ok(())
}
