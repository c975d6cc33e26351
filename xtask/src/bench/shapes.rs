//! `cargo xtask bench --shapes`: whole jobs, from float16 to float16, on shapes of real work.

use super::data;
use super::timing::{self, Spread};
use crate::workspace;
use anyhow::{Context, Result, ensure};
use half::f16;
use int_flash_attention::driver::{DeviceAttribute, Driver};
use int_flash_attention::{
    AttentionOutput, AttentionProblem, DType, DeviceBuffer, Gpu, JobPath, JobPlan, QuantizeLayouts, Scored, StreamRef,
    TensorLayout, reference,
};
use int_flash_attention_tests::case::takes_narrow;
use int_flash_attention_tests::properties;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// A shape by its name.
#[derive(Clone)]
struct Shape {
    name: Cow<'static, str>,
    batch: usize,
    /// Of Q, and of K and V.
    heads: [usize; 2],
    /// Of queries and keys.
    tokens: [usize; 2],
    head_dim: usize,
    causal: bool,
}

const fn shape(
    name: &'static str,
    batch: usize,
    heads: [usize; 2],
    tokens: [usize; 2],
    head_dim: usize,
    causal: bool,
) -> Shape {
    Shape { name: Cow::Borrowed(name), batch, heads, tokens, head_dim, causal }
}

/// The names are those that the script has which measures PyTorch on the same shapes.
#[rustfmt::skip]
const SHAPES: &[Shape] = &[
    shape("llama8b-prefill-8k", 1, [32, 8], [8192, 8192], 128, true),
    shape("llama8b-prefill-2k", 1, [32, 8], [2048, 2048], 128, true),
    shape("llama8b-chunk-512-on-32k", 1, [32, 8], [512, 32768], 128, true),
    shape("qwen0.5b-prefill-4k", 1, [14, 2], [4096, 4096], 64, true),
    shape("video-32760", 1, [12, 12], [32760, 32760], 128, false),
    shape("image-4608", 1, [24, 24], [4608, 4608], 128, false),
    shape("cross-4096x77", 2, [10, 10], [4096, 77], 64, false),
    shape("sentences-32x128", 32, [12, 12], [128, 128], 32, false),
    shape("sentences-256x32", 256, [12, 12], [32, 32], 32, false),
    shape("bert-32x512", 32, [12, 12], [512, 512], 64, false),
    shape("bert-32x256", 32, [12, 12], [256, 256], 64, false),
    shape("vit-64x257", 64, [16, 16], [257, 257], 64, false),
    shape("llama8b-prefill-8x128", 8, [32, 8], [128, 128], 128, true),
    shape("b4-h32-512-d64", 4, [32, 32], [512, 512], 64, false),
    shape("b4-h32-1k-d64", 4, [32, 32], [1024, 1024], 64, false),
    shape("b4-h32-4k-d64", 4, [32, 32], [4096, 4096], 64, false),
    shape("b4-h32-512-d128", 4, [32, 32], [512, 512], 128, false),
    shape("b4-h32-1k-d128", 4, [32, 32], [1024, 1024], 128, false),
    shape("b4-h32-4k-d128", 4, [32, 32], [4096, 4096], 128, false),
];

/// One figure.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Row {
    /// Of the shape.
    pub name: String,
    /// `job`, as the library does it by itself; `job-fused` and `job-quantized`, what it did not choose; else another program's.
    pub what: String,
    /// Median microseconds.
    pub us: f64,
    /// 1e12 operations a second: 4 * batch * heads * head_dim * pairs of a query and a key that it sees / time.
    pub t: f64,
    /// All times in short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,
    /// The largest error of the last launch's output as a share of its bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_of_bound: Option<f64>,
    /// Median microseconds that the host takes to launch the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_us: Option<f64>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Report {
    device: String,
    rows: Vec<Row>,
}

/// The rows that another program measured.
fn read(path: &Path) -> Result<Vec<Row>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let report: Report =
        serde_json::from_slice(&text).with_context(|| format!("{} has no rows of shapes", path.display()))?;
    Ok(report.rows)
}

/// Measures the shapes whose names contain one of these words, and those that words are themselves; or all that have names.
pub fn run(gpu: &Gpu, words: &[String], peers: Option<&Path>, json: Option<&Path>) -> Result<()> {
    let peers = peers.map(read).transpose()?.unwrap_or_default();
    let cache = 2 * gpu.attribute(DeviceAttribute::L2CacheSize)? as usize;
    // Other values every time, so that no run is tuned to one input.
    let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let wanted = |shape: &&Shape| words.is_empty() || words.iter().any(|word| shape.name.contains(word.as_str()));
    let own = words.iter().filter_map(|word| Shape::of_numbers(word));
    println!("{}\n{:26} {:14} {:>9} {:>8}   speed over others", gpu.name(), "", "", "us", "T");
    let mut rows = Vec::new();
    for shape in SHAPES.iter().filter(wanted).cloned().chain(own) {
        let others: Vec<&Row> = peers.iter().filter(|row| row.name == shape.name).collect();
        for row in shape.measure(gpu, cache, run)? {
            let over = others.iter().map(|other| format!("  {} {:.2}", other.what, other.us / row.us));
            println!("{:26} {:14} {:9.1} {:8.1} {}", row.name, row.what, row.us, row.t, over.collect::<String>());
            rows.push(row);
        }
        rows.extend(others.into_iter().cloned());
    }
    for row in rows.iter().filter(|row| row.what == "job") {
        println!("{:26} host {:6.2} us", row.name, row.host_us.unwrap_or_default());
    }
    if let Some(file) = json {
        let report = Report { device: gpu.name().to_owned(), rows };
        workspace::write_atomically(file, &serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}

impl Shape {
    /// `BATCHxHEADSxQUERIESxKEYSxDIM`: heads of Q and of K and V, no mask.
    fn of_numbers(word: &str) -> Option<Self> {
        let numbers: Vec<usize> = word.split('x').map(str::parse).collect::<Result<_, _>>().ok()?;
        let [batch, heads, queries, keys, head_dim] = numbers.try_into().ok()?;
        let name = Cow::Owned(word.to_owned());
        Some(Self { name, batch, heads: [heads; 2], tokens: [queries, keys], head_dim, causal: false })
    }

    fn problem(&self) -> AttentionProblem {
        let ([heads_q, heads_kv], [seqlen_q, seqlen_kv]) = (self.heads, self.tokens);
        AttentionProblem::new(self.batch, heads_q, heads_kv, seqlen_q, seqlen_kv, self.head_dim)
            .with_causal(self.causal)
    }

    /// The job by the way that the library takes, and by the other where there is one.
    fn measure(&self, gpu: &Gpu, cache: usize, run: u64) -> Result<Vec<Row>> {
        let problem = self.problem();
        let (q, kv) = (TensorLayout::bhnd(problem.q_shape()), TensorLayout::bhnd(problem.kv_shape()));
        let layouts = QuantizeLayouts { q, k: kv, v: kv, dtype: DType::F16 };
        let output = AttentionOutput { layout: q, dtype: DType::F16, lse: false };
        let chosen = gpu.plan_job(&problem, &layouts, &output)?;
        let other = match chosen.path() {
            JobPath::Fused => (JobPath::Quantized, "job-quantized"),
            JobPath::Quantized => (JobPath::Fused, "job-fused"),
        };
        // More keys than fit the one kernel: there is no other way.
        let second = gpu.plan_job_of(other.0, &problem, &layouts, &output).ok();
        let plans = [Some(("job", chosen)), second.map(|plan| (other.1, plan))];
        let mut jobs = Jobs::new(gpu, problem, cache, run)?;
        plans.into_iter().flatten().map(|(what, plan)| self.time(gpu, &mut jobs, what, &plan)).collect()
    }

    fn time(&self, gpu: &Gpu, jobs: &mut Jobs, what: &str, plan: &JobPlan) -> Result<Row> {
        jobs.prepare(gpu, plan)?;
        let (copies, mut last) = (jobs.copies.len(), 0);
        let times = timing::launch_ms(gpu, |number| {
            last = number % copies;
            jobs.launch(plan, last)
        })?;
        let error = jobs.check(last, takes_narrow(plan.kernel())).with_context(|| format!("{}, {what}", self.name))?;
        let host_us = timing::median_call_us(gpu, || jobs.launch(plan, 0))?;
        let operations =
            4.0 * (self.batch * self.heads[0] * self.head_dim) as f64 * jobs.problem.visible_pairs() as f64;
        Ok(Row {
            name: self.name.to_string(),
            what: what.into(),
            us: 1e3 * times.median,
            t: operations / times.median * 1e-9,
            spread: Some(times),
            error_of_bound: Some(error),
            host_us: Some(host_us),
        })
    }
}

/// Query positions of a head that are compared with the reference.
const CHECKED_ROWS: usize = 12;

/// Inputs and an output of their own.
struct Copy {
    seeds: [u64; 3],
    inputs: [DeviceBuffer<f16>; 3],
    o: DeviceBuffer<f16>,
}

/// Copies of one problem, so that a launch does not find its inputs in the cache.
struct Jobs {
    problem: AttentionProblem,
    copies: Vec<Copy>,
    workspace: DeviceBuffer<u8>,
}

impl Jobs {
    fn new(gpu: &Gpu, problem: AttentionProblem, cache: usize, run: u64) -> Result<Self> {
        let (q, kv) = (problem.q_shape().elements(), problem.kv_shape().elements());
        let copies = (cache / (4 * (q + kv)) + 1).min(24);
        let copy = |index: usize| -> Result<Copy> {
            let seeds = data::seeds(run, index);
            let input = |operand: usize, len| gpu.upload(&data::values(seeds[operand], 0, len));
            Ok(Copy { seeds, inputs: [input(0, q)?, input(1, kv)?, input(2, kv)?], o: gpu.alloc(q)? })
        };
        Ok(Self { problem, copies: (0..copies).map(copy).collect::<Result<_>>()?, workspace: gpu.alloc(0)? })
    }

    /// A workspace of the plan's size, and outputs that a launch which writes nothing would leave as they are.
    fn prepare(&mut self, gpu: &Gpu, plan: &JobPlan) -> Result<()> {
        self.workspace = gpu.alloc(plan.workspace_bytes())?;
        for copy in &self.copies {
            // SAFETY: the buffer has as many bytes, and nothing uses it now.
            unsafe { Driver::load()?.fill(copy.o.ptr(), 0xff, 2 * copy.o.len()) }?;
        }
        Ok(())
    }

    fn launch(&mut self, plan: &JobPlan, copy: usize) -> Result<()> {
        let Copy { inputs: [q, k, v], o, .. } = &mut self.copies[copy];
        let inputs = [(&*q).into(), (&*k).into(), (&*v).into()];
        plan.launch(StreamRef::DEFAULT, inputs, self.workspace.slice_mut(), o.into(), None)?;
        Ok(())
    }

    /// The largest error of a copy's output as a share of its bound, over sampled rows of the first, a middle and the last head.
    fn check(&self, copy: usize, narrow: bool) -> Result<f64> {
        let heads = self.problem.batch * self.problem.heads_q;
        let mut sample = vec![0, heads / 2 + usize::from(heads > 2), heads - 1];
        sample.dedup();
        let mut shares =
            sample.into_iter().filter(|&head| head < heads).map(|head| self.check_head(copy, head, narrow));
        shares.try_fold(0.0, |worst: f64, share| Ok(worst.max(share?)))
    }

    fn check_head(&self, copy: usize, head: usize, narrow: bool) -> Result<f64> {
        let Copy { seeds, o, .. } = &self.copies[copy];
        let (one, [q, k, v]) = data::one_head(&self.problem, *seeds, head)?;
        let (n, d) = (one.seqlen_q, one.head_dim);
        let mut rows: Vec<usize> = (0..CHECKED_ROWS).map(|i| (i * n / CHECKED_ROWS + i) % n).collect();
        rows.sort_unstable();
        rows.dedup();
        let o: Vec<f16> = super::case::read(o, head * n * d, n * d)?;
        let got: Vec<f64> = rows.iter().flat_map(|&row| &o[row * d..(row + 1) * d]).map(|x| x.to_f64()).collect();
        let scored = Scored::from(&one).with_narrow(narrow);
        let operands = reference::quantize(scored, &q, &k, &v)?;
        let (want, bounds) = reference::gpu_bounds_rows(scored, &operands, DType::F16, &rows)?;
        properties::within("o", &got, &want.o, &bounds.o, d)?;
        ensure!(!got.is_empty(), "no rows");
        let shares = got.iter().zip(&want.o).zip(&bounds.o).filter(|((got, want), _)| got != want);
        Ok(shares.map(|((got, want), bound)| (got - want).abs() / bound).fold(0.0, f64::max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_shapes_are_problems() {
        for (i, shape) in SHAPES.iter().enumerate() {
            assert!(SHAPES[..i].iter().all(|other| other.name != shape.name), "{}", shape.name);
            shape.problem().check().unwrap();
        }
        let own = Shape::of_numbers("32x12x128x77x64").unwrap();
        assert_eq!((own.batch, own.heads, own.tokens, own.head_dim), (32, [12, 12], [128, 77], 64));
        assert!(Shape::of_numbers("cross-4096x77").is_none() && Shape::of_numbers("1x2x3x4").is_none());
    }

    #[test]
    fn another_programs_rows_are_read() {
        let path = std::env::temp_dir().join(format!("xtask-shapes-{}.json", std::process::id()));
        let text = r#"{"device": "X", "torch": "2", "rows": [{"name": "bert-32x512", "what": "cudnn", "us": 72.0, "t": 358.0, "kv_tb_per_s": 0.7}]}"#;
        std::fs::write(&path, text).unwrap();
        let rows = read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((rows[0].name.as_str(), rows[0].what.as_str(), rows[0].us), ("bert-32x512", "cudnn", 72.0));
    }
}
