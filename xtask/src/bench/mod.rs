//! `cargo xtask bench`: speed on this machine's GPU, each figure from launches whose output was checked.

mod append;
mod case;
mod compare;
mod data;
mod decode;
mod first_job;
mod packed;
mod plot;
mod prefill;
mod quantize;
mod ranks;
mod report;
mod scores;
mod shapes;
mod step;
mod timing;

use crate::workspace;
use anyhow::{Result, bail};
use case::{Case, Timed};
use int_flash_attention::driver::DeviceAttribute;
use int_flash_attention::{AttentionProblem, DType, Family, Gpu, Scheme, Window};
use int_flash_attention_tests::case::variant_of;
use report::{Report, Row};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use timing::Spread;

#[derive(clap::Args)]
pub struct Args {
    /// Head dims
    #[arg(long, value_delimiter = ',', default_value = "64,128")]
    head_dim: Vec<usize>,
    /// Sequence lengths, of queries and keys
    #[arg(long, value_delimiter = ',', default_value = "512,1024,2048,4096,8192,16384")]
    seqlen: Vec<usize>,
    /// Masks: 0 (none), 1 (causal) or both
    #[arg(long, value_delimiter = ',', default_value = "0,1", value_parser = clap::value_parser!(u8).range(0..=1))]
    causal: Vec<u8>,
    /// Windows in place of these masks, LEFT,RIGHT each: how many keys, or inf
    #[arg(long, value_name = "LEFT,RIGHT", allow_hyphen_values = true)]
    window: Vec<Window>,
    /// Batch
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Heads, of queries and keys
    #[arg(long, default_value_t = 32)]
    heads: usize,
    /// Packs of sequences of unlike lengths in place of all that; --sdpa has rows with `name`, `what` and `t`, then
    #[arg(long, conflicts_with_all = ["plot", "compare", "first_job"])]
    packed: bool,
    /// Lengths 1024 and 4096 only, no causal mask
    #[arg(long)]
    quick: bool,
    /// INT8 kernels: sm_80, sm_90a or both; without it all that the GPU runs
    #[arg(long, value_delimiter = ',', value_parser = family)]
    family: Vec<Family>,
    /// The kernels of sm_80 as on a GPU with so many KiB of shared memory a CTA (99, 163): its kernels, and no more CTAs an SM than there
    #[arg(long, value_name = "KIB", conflicts_with = "family")]
    shared_memory: Option<usize>,
    /// Which GPU
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// Measure the PTX in this folder, which `cargo xtask build` wrote, instead of what is embedded
    #[arg(long, value_name = "DIR")]
    ptx: Option<PathBuf>,
    /// Write all figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Put the figures that a PyTorch script wrote in the same run beside these
    #[arg(long, value_name = "FILE")]
    sdpa: Option<PathBuf>,
    /// Draw the figures as an SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Measure nothing: compare two files that --json wrote, the one before and the one after
    #[arg(long, num_args = 2, value_names = ["BEFORE", "AFTER"])]
    compare: Option<Vec<PathBuf>>,
    /// Measure whole jobs on shapes of real work: all, or those whose names contain one of these words; a word BATCHxHEADSxQUERIESxKEYSxDIM is a
    /// shape itself
    #[arg(long, value_name = "WORD", num_args = 0.., value_delimiter = ',', conflicts_with_all = ["sdpa", "plot", "compare"])]
    shapes: Option<Vec<String>>,
    /// With --shapes: put the figures for the same names that another program wrote beside these
    #[arg(long, value_name = "FILE", requires = "shapes")]
    peers: Option<PathBuf>,
    /// Measure what a process waits for before its first result, with machine code and with PTX, nothing being cached
    #[arg(long, conflicts_with_all = ["sdpa", "plot", "compare"])]
    first_job: bool,
    /// Measure decode on a paged cache: the rows whose name has this in it, or all
    #[arg(long, value_name = "WORD", num_args = 0..=1, default_missing_value = "", conflicts_with_all = ["sdpa", "plot", "compare", "first_job"])]
    decode: Option<String>,
    /// With --decode: CTAs and the fewest blocks of keys of one, in place of the plan's own
    #[arg(long, value_name = "N", num_args = 2, requires = "decode")]
    decode_workers: Option<Vec<usize>>,
    /// Measure appends to a paged cache: the rows whose name has this in it, or all
    #[arg(long, value_name = "WORD", num_args = 0..=1, default_missing_value = "", conflicts_with_all = ["sdpa", "plot", "compare", "first_job", "decode"])]
    append: Option<String>,
    /// Measure chunks of new tokens on a paged cache, beside operands: the rows whose name has this in it, or all
    #[arg(long, value_name = "WORD", num_args = 0..=1, default_missing_value = "", conflicts_with_all = ["sdpa", "plot", "compare", "first_job", "decode", "append"])]
    prefill: Option<String>,
    /// Measure what changed scores cost: softcap, ALiBi, masks, biases and sinks
    #[arg(long, conflicts_with_all = ["sdpa", "plot", "compare", "first_job", "decode", "append", "json"])]
    scores: bool,
    /// Measure quantization alone, of these element types or of all: f16, bf16, f32
    #[arg(long, value_name = "DTYPE", num_args = 0.., value_delimiter = ',', conflicts_with_all = ["sdpa", "plot", "compare", "first_job", "decode", "append", "scores"])]
    quantize: Option<Vec<DType>>,
    /// Measure attention over so many GPUs, beside one
    #[arg(long, value_name = "N", conflicts_with_all = ["sdpa", "plot", "compare", "first_job", "decode", "append", "scores", "ptx"])]
    ranks: Option<usize>,
    /// With --ranks: what carries the bytes
    #[arg(long, value_enum, default_value = "peers", requires = "ranks")]
    engine: ranks::Engine,
    /// A process that --first-job starts
    #[arg(long, hide = true)]
    first_job_once: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if let Some([before, after]) = args.compare.as_deref() {
        return compare::run(before, after);
    }
    if args.first_job_once {
        return first_job::once(args.device, args.head_dim[0], args.causal == [1], args.ptx.as_deref());
    }
    if args.first_job {
        return first_job::run(args.device, &args.head_dim, args.ptx.as_deref(), args.json.as_deref());
    }
    let sdpa = if args.packed { None } else { args.sdpa.as_deref().map(report::read_sdpa).transpose()? };
    if let Some(count) = args.ranks {
        let gpus = (0..count.max(1)).map(Gpu::new).collect::<Result<Vec<_>, _>>()?;
        return ranks::run(&gpus, args.engine, args.json.as_deref());
    }
    let gpu = match &args.ptx {
        // SAFETY: what the folder is for is said where it is asked for.
        Some(folder) => unsafe { Gpu::with_ptx(args.device, folder) }?,
        None => Gpu::new(args.device)?,
    };
    if let Some(words) = &args.shapes {
        return shapes::run(&gpu, words, args.peers.as_deref(), args.json.as_deref());
    }
    if let Some(only) = &args.decode {
        let workers = args.decode_workers.as_ref().map(|numbers| (numbers[0], numbers[1]));
        return decode::run(&gpu, only, workers, args.json.as_deref());
    }
    if let Some(only) = &args.append {
        return append::run(&gpu, only, args.json.as_deref());
    }
    if let Some(only) = &args.prefill {
        return prefill::run(&gpu, only, args.json.as_deref());
    }
    if args.scores {
        return scores::run(&gpu);
    }
    let families = if args.shared_memory.is_some() { vec![Family::Sm80] } else { args.family.clone() };
    let mut bench = Bench::new(gpu, &families)?;
    bench.shared_bytes = args.shared_memory.map(|kib| kib << 10);
    if args.packed {
        return packed::run(&bench, args.json.as_deref(), args.sdpa.as_deref());
    }
    if let Some(dtypes) = &args.quantize {
        let dtypes = if dtypes.is_empty() { &[DType::F16, DType::BF16, DType::F32] } else { &dtypes[..] };
        let shapes = ([args.batch, args.heads], &args.head_dim[..], &args.seqlen[..]);
        return quantize::run(&bench, shapes, dtypes, args.json.as_deref());
    }
    let version = bench.gpu.driver_version()?;
    let mut report = Report {
        device: bench.gpu.name().to_owned(),
        driver: format!("CUDA {}.{}", version / 1000, version % 1000 / 10),
        batch: args.batch,
        heads: args.heads,
        launch_us: None,
        rows: Vec::new(),
    };
    report.rows.extend(bench.copy_bandwidth()?);
    report.launch_us = Some(bench.launch_cost()?);
    let (seqlens, windows) =
        if args.quick { (vec![1024, 4096], vec![Window::FULL]) } else { (args.seqlen.clone(), args.windows()) };
    for &head_dim in &args.head_dim {
        for &window in &windows {
            for &seqlen in &seqlens {
                let problem = AttentionProblem::new(args.batch, args.heads, args.heads, seqlen, seqlen, head_dim)
                    .with_window(window);
                eprintln!("head_dim {head_dim} seqlen {seqlen}{}", crate::attention::shown(window));
                report.rows.extend(bench.shape(problem)?);
            }
        }
    }
    report.rows.extend(sdpa.unwrap_or_default());
    report::print(&report);
    if let Some(file) = &args.json {
        workspace::write_atomically(file, &serde_json::to_vec_pretty(&report)?)?;
    }
    if let Some(file) = &args.plot {
        workspace::write_atomically(file, plot::svg(&report).as_bytes())?;
    }
    Ok(())
}

impl Args {
    /// What is measured, the causal mask before windows that are a part of it: `--window` is beside the kernel's time with that.
    fn windows(&self) -> Vec<Window> {
        if self.window.is_empty() {
            return self.causal.iter().map(|&causal| if causal == 1 { Window::CAUSAL } else { Window::FULL }).collect();
        }
        let mut windows = Vec::new();
        for window in &self.window {
            let whole = if window.right == Some(0) { Window::CAUSAL } else { Window::FULL };
            windows.extend([whole, *window]);
        }
        report::unique(windows.into_iter())
    }
}

/// A family by its name.
fn family(name: &str) -> Result<Family, String> {
    let found = Family::ALL.into_iter().find(|family| family.to_string() == name);
    found.ok_or_else(|| format!("it is one of {}", Family::ALL.map(|family| family.to_string()).join(", ")))
}

/// A GPU to measure.
pub struct Bench {
    gpu: Gpu,
    /// Of INT8 kernels, the GPU's own first.
    families: Vec<Family>,
    /// Bytes that the copies of a problem exceed together.
    cache: usize,
    run: u64,
    /// As on a GPU on which a CTA may have so many bytes of shared memory.
    shared_bytes: Option<usize>,
}

impl Bench {
    /// With the INT8 kernels of these families, or of all that the GPU runs where none is named.
    pub fn new(gpu: Gpu, families: &[Family]) -> Result<Self> {
        let runs = gpu.families();
        if let Some(family) = families.iter().find(|family| !runs.contains(family)) {
            bail!("{gpu:?} does not run the kernels for {family}");
        }
        Ok(Self {
            families: runs.into_iter().filter(|family| families.is_empty() || families.contains(family)).collect(),
            cache: 2 * gpu.attribute(DeviceAttribute::L2CacheSize)? as usize,
            // other values every time, so that no run is tuned to one input
            run: SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64,
            gpu,
            shared_bytes: None,
        })
    }

    /// All figures of one shape and mask.
    pub fn shape(&self, problem: AttentionProblem) -> Result<Vec<Row>> {
        problem.check()?;
        let mut rows = Vec::new();
        for scheme in [Scheme::Default, Scheme::Paper] {
            let problem = problem.with_scheme(scheme);
            let has = |family: &Family| variant_of(*family, &problem).is_some();
            let families: Vec<Family> = self.families.iter().copied().filter(has).collect();
            // What the library takes by itself goes by the plain name.
            let pays =
                |family: &Family| variant_of(*family, &problem).is_some_and(|v| problem.seqlen_kv >= v.from_keys);
            let chosen = self.gpu.families().into_iter().find(pays);
            if families.is_empty() {
                continue;
            }
            let mut case = Case::new(&self.gpu, problem, &families, self.shared_bytes, self.cache, self.run)?;
            if scheme == Scheme::Default {
                if case.has_float16() {
                    rows.push(speed("f16", &problem, self.time(&mut case, Timed::Float16, Case::float16)?));
                }
                if problem.window == Window::FULL {
                    rows.push(traffic("quantize", &problem, self.time(&mut case, Timed::Quantize, Case::quantize)?, 9));
                    rows.push(traffic(
                        "dequantize",
                        &problem,
                        self.time(&mut case, Timed::Dequantize, Case::dequantize)?,
                        3,
                    ));
                }
            }
            for (plan, &family) in families.iter().enumerate() {
                let suffix = if Some(family) == chosen { String::new() } else { format!("-{family}") };
                let timed = case.timed(plan);
                let int8 = self.time(&mut case, timed, |case, copy| case.attention(plan, copy))?;
                let row = speed(&format!("int8-{scheme}{suffix}"), &problem, int8);
                rows.push(Row { family: Some(family.to_string()), ..row });
                let job = self.time(&mut case, timed, |case, copy| {
                    case.quantize(copy)?;
                    case.attention(plan, copy)
                })?;
                let row = speed(&format!("job-{scheme}{suffix}"), &problem, job);
                rows.push(Row { family: Some(family.to_string()), ..row });
            }
        }
        Ok(rows)
    }

    /// Times and the check of the last launches' outputs.
    fn time(
        &self,
        case: &mut Case,
        what: Timed,
        launch: impl Fn(&mut Case, usize) -> Result<()>,
    ) -> Result<(Spread, f64)> {
        let copies = case.copies();
        for copy in 0..copies {
            case.poison(copy)?;
        }
        let mut last = 0;
        let times = timing::launch_ms(&self.gpu, |number| {
            last = number % copies;
            launch(case, last)
        })?;
        Ok((times, case.check(last, what)?))
    }

    /// Bytes read plus written by a copy of 1 GiB inside the GPU's memory; nothing where that does not fit.
    fn copy_bandwidth(&self) -> Result<Option<Row>> {
        const BYTES: usize = 1 << 30;
        if self.gpu.memory()?.0 < 3 * BYTES {
            return Ok(None);
        }
        let times = timing::copy_ms(&self.gpu, BYTES)?;
        let rate = 2.0 * BYTES as f64 / times.median * 1e-9;
        let ms = times.median;
        Ok(Some(Row { what: "copy".into(), ms, spread: Some(times), tb_per_s: Some(rate), ..Row::default() }))
    }

    /// Host time of one attention launch.
    fn launch_cost(&self) -> Result<f64> {
        let problem = AttentionProblem::new(1, 2, 2, 128, 128, 64);
        let mut case = Case::new(&self.gpu, problem, &self.families[..1], self.shared_bytes, 0, self.run)?;
        timing::median_call_us(&self.gpu, || case.attention(0, 0))
    }
}

fn row(what: &str, problem: &AttentionProblem, (times, error_of_bound): (Spread, f64)) -> Row {
    let AttentionProblem { head_dim, seqlen_q: seqlen, window, .. } = *problem;
    let (causal, error_of_bound) = (window == Window::CAUSAL, Some(error_of_bound));
    let (ms, spread) = (times.median, Some(times));
    let window = (!causal && window != Window::FULL).then(|| window.to_string());
    Row { what: what.into(), head_dim, seqlen, causal, window, ms, spread, error_of_bound, ..Row::default() }
}

/// 4 * batch * heads * head_dim operations for each pair of a query and a key that it sees; where causal, half of all pairs.
fn speed(what: &str, problem: &AttentionProblem, timed: (Spread, f64)) -> Row {
    let all = problem.seqlen_q as f64 * problem.seqlen_kv as f64;
    let pairs = match problem.window {
        Window::FULL => all,
        // As others count it.
        Window::CAUSAL => 0.5 * all,
        _ => problem.visible_pairs() as f64,
    };
    let operations = 4.0 * (problem.batch * problem.heads_q * problem.head_dim) as f64 * pairs;
    Row { t: Some(operations / timed.0.median * 1e-9), kept: Some(pairs / all), ..row(what, problem, timed) }
}

/// Each tensor read once and written once: `bytes` for an element of Q (and, in `quantize`, of K and V).
fn traffic(what: &str, problem: &AttentionProblem, timed: (Spread, f64), bytes: usize) -> Row {
    let moved = (bytes * problem.q_shape().elements()) as f64;
    Row { tb_per_s: Some(moved / timed.0.median * 1e-9), ..row(what, problem, timed) }
}
