//! `cargo xtask attention`: the job. Q, K, V from a file, quantized, attended, written, and how far off it is.

use crate::accuracy::{self, Accuracy};
use crate::output;
use crate::progress::LateBar;
use crate::scores;
use anyhow::{Result, bail};
use int_flash_attention::{Device, Options, Order, Output, Scheme, SeqLens, Window};
use int_flash_attention_tests::sequences::{Lengths, offsets};
use int_flash_attention_tests::sim::Simulator;
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use xtask::tensors::{self, Inputs};

#[derive(clap::Args)]
pub struct Args {
    /// safetensors file with the tensors q, k and v (f16, bf16 or f32, four dimensions)
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// safetensors file to write, or - for stdout: o in the input's dtype, and lse with --lse
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// auto, cpu, cuda, cuda:N, or sim: the GPU's kernels on an interpreter
    #[arg(long, default_value = "auto")]
    device: Target,
    /// default: the more accurate on activations of models; paper: exactly arXiv 2409.16997
    #[arg(long, default_value = "default")]
    scheme: Scheme,
    /// Keep key j for query i where j <= i + seqlen_kv - seqlen_q: short for --window inf,0
    #[arg(long)]
    causal: bool,
    /// Keep key j for query i where i' - LEFT <= j <= i' + RIGHT, i' = i + seqlen_kv - seqlen_q; a side is how many keys, or inf
    #[arg(long, value_name = "LEFT,RIGHT", conflicts_with = "causal", allow_hyphen_values = true)]
    window: Option<Window>,
    /// Factor of Q.K before the softmax [default: 1/sqrt(head_dim)]
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    softmax_scale: Option<f32>,
    #[command(flatten)]
    scores: scores::ScoreArgs,
    /// Tokens of sequences that are packed one behind the other in the file's one batch, of queries and of keys
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    seqlens: Vec<u32>,
    /// Keys of each sequence: with --seqlens of the packed ones, else of a batch's, whose other keys are hidden
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    seqlens_kv: Vec<u32>,
    /// Order of the file's dimensions: bhnd or bnhd
    #[arg(long, default_value = "bhnd")]
    layout: Order,
    /// Also write the log-sum-exp of each row, float32 [batch, heads, seqlen_q]
    #[arg(long)]
    lse: bool,
    /// Compare with float64 attention
    #[arg(long)]
    check: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Where the job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A GPU if there is one, else the CPU.
    Auto,
    /// This device.
    On(Device),
    /// The PTX machine of the tests.
    Sim,
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "sim" => Ok(Self::Sim),
            other => {
                other.parse().map(Self::On).map_err(|_| format!("`{other}` is none of auto, cpu, cuda, cuda:N, sim"))
            }
        }
    }
}

impl Target {
    /// The device to use, its name, and why it is not a GPU where `auto` found none.
    pub fn resolve(self) -> (Self, Option<String>) {
        match self {
            Self::Auto => {
                let (device, why) = Device::auto();
                (Self::On(device), why.map(|error| error.to_string()))
            }
            other => (other, None),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::On(device) => device.fmt(f),
            Self::Sim => f.write_str("sim"),
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    if args.softmax_scale.is_some_and(|scale| !scale.is_finite()) {
        bail!("--softmax-scale must be a finite number");
    }
    let destination = output::Target::of(&args.output)?;
    for input in [args.input.as_path()].into_iter().chain(args.scores.files()) {
        destination.refuse_input(input)?;
    }
    let of_heads = args.scores.of_heads()?;
    let inputs = tensors::read(&args.input, args.layout, args.scores.wanted())?;
    let (target, why_not_gpu) = args.device.resolve();
    let lengths = args.lengths();
    let lengths = lengths.map(Vec::as_slice);
    let options = Options {
        window: args.window(),
        scheme: args.scheme,
        lengths,
        softmax_scale: args.softmax_scale,
        scores: of_heads.scores(&inputs),
        lse: args.lse,
        ..Options::default()
    };
    let (output, time) = job(target, &inputs, &options)?;
    let checked = if args.check {
        let problem = options.problem(&inputs.q, &inputs.k, &inputs.v)?;
        Some(accuracy::measure_with(options.scored(&problem), &lengths, &inputs, &output.o)?)
    } else {
        None
    };
    let lse: &[f32] = output.lse.as_deref().unwrap_or_default();
    let header = tensors::output_header(&output, args.layout);
    destination.write(&[&header, output.o.bytes(), bytemuck::cast_slice(lse)])?;
    let report = if args.json {
        json_report(args, target, why_not_gpu.as_deref(), &output, time, checked.as_ref())
    } else {
        let why = why_not_gpu.map(|why| format!("no GPU: {why}\n")).unwrap_or_default();
        why + &text_report(args, target, &inputs, time, checked.as_ref())
    };
    if destination.is_stdout() {
        eprintln!("{report}");
    } else {
        println!("{report}");
    }
    Ok(())
}

impl Args {
    /// The window that was asked for.
    fn window(&self) -> Window {
        let causal = if self.causal { Window::CAUSAL } else { Window::FULL };
        self.window.unwrap_or(causal)
    }

    /// The sequences' lengths that were asked for.
    fn lengths(&self) -> Lengths {
        match (self.seqlens.as_slice(), self.seqlens_kv.as_slice()) {
            ([], []) => SeqLens::Equal,
            ([], keys) => SeqLens::KeyLengths { seqlens_kv: keys.to_vec() },
            (both, []) => SeqLens::Packed { cu_seqlens_q: offsets(both), cu_seqlens_kv: offsets(both) },
            (queries, keys) => SeqLens::Packed { cu_seqlens_q: offsets(queries), cu_seqlens_kv: offsets(keys) },
        }
    }
}

/// A window as the text of a report has it.
pub fn shown(window: Window) -> String {
    match window {
        Window::FULL => String::new(),
        Window::CAUSAL => " causal".to_owned(),
        other => format!(" window {other}"),
    }
}

/// Runs the job on `target` behind a progress bar; the time includes copies to and from a device.
pub fn job(target: Target, inputs: &Inputs, options: &Options<'_>) -> Result<(Output, Duration)> {
    let bar = LateBar::new("attention");
    let progress = |p: int_flash_attention::Progress| bar.update(p.done, p.total);
    let options = Options { progress: Some(&progress), ..*options };
    let start = Instant::now();
    let output = match target {
        Target::On(device) => int_flash_attention::attention(device, &inputs.q, &inputs.k, &inputs.v, &options)?,
        Target::Sim => {
            let problem = options.problem(&inputs.q, &inputs.k, &inputs.v)?;
            let simulator = Simulator::new().with_lengths(&options.lengths.map(|array| array.to_vec()));
            let (o, lse) = simulator.job(options.scored(&problem), [&inputs.q, &inputs.k, &inputs.v], options.lse)?;
            Output { o, lse }
        }
        Target::Auto => bail!("the device was not chosen"),
    };
    Ok((output, start.elapsed()))
}

fn text_report(args: &Args, target: Target, inputs: &Inputs, time: Duration, checked: Option<&Accuracy>) -> String {
    let (q, k) = (inputs.q.shape(), inputs.k.shape());
    let mut report = format!(
        "batch {} heads {}/{} seqlen {}/{} head_dim {} {} {}{}{}: {:.1} ms on {target}\n",
        q.batch,
        q.heads,
        k.heads,
        q.seqlen,
        k.seqlen,
        q.head_dim,
        inputs.q.dtype(),
        args.scheme,
        shown(args.window()),
        args.scores.shown(),
        time.as_secs_f64() * 1e3
    );
    if let Some(Accuracy { figures, rows, rows_of }) = checked {
        report += &format!("against float64 ({rows} of {rows_of} query positions of every head):\n");
        report += &format!(
            "  relative L2  {:.3e}\n  max abs      {:.3e}\n  cosine       {:.9}\n",
            figures.relative_l2, figures.max_abs, figures.cosine
        );
    }
    report + &format!("wrote {}", args.output.display())
}

fn json_report(
    args: &Args,
    target: Target,
    why_not_gpu: Option<&str>,
    output: &Output,
    time: Duration,
    checked: Option<&Accuracy>,
) -> String {
    let shape = output.o.shape();
    let check = checked.map(|c| {
        json!({ "relative_l2": c.figures.relative_l2, "max_abs": c.figures.max_abs, "cosine": c.figures.cosine,
                "rows": c.rows, "rows_of": c.rows_of })
    });
    let report = json!({
        "device": target.to_string(), "why_not_gpu": why_not_gpu, "scheme": args.scheme.to_string(), "causal": args.window() == Window::CAUSAL, "window": args.window().to_string(), "dtype": output.o.dtype().to_string(),
        "batch": shape.batch, "heads": shape.heads, "seqlen_q": shape.seqlen, "head_dim": shape.head_dim,
        "ms": time.as_secs_f64() * 1e3, "check": check, "output": args.output.display().to_string(),
    });
    report.to_string()
}
