//! The error on activations of models: the published one of an encoder's layers, and that of a decoder's.

use crate::device::OnGpu;
use anyhow::{Context, Result, ensure};
use int_flash_attention::reference::Exact;
use int_flash_attention::{
    AttentionOutput, AttentionProblem, DType, HostQuantized, HostTensor, Order, QuantizeLayouts, Scheme, TensorLayout,
    reference,
};
use int_flash_attention_tests::case::takes_narrow;
use int_flash_attention_tests::properties::Kernels;

/// Layers, and the error that the paper has of them.
const MINILM: [(u32, &[u8], f64); 2] = [
    (0, include_bytes!("../../data/minilm-layer0-qkv.safetensors"), 1.4e-2),
    (5, include_bytes!("../../data/minilm-layer5-qkv.safetensors"), 2.8e-2),
];

const SMOLLM2: [(u32, &[u8]); 2] = [
    (7, include_bytes!("../../data/smollm2-layer7-qkv.safetensors")),
    (17, include_bytes!("../../data/smollm2-layer17-qkv.safetensors")),
];

fn tensors(file: &[u8]) -> Result<[HostTensor; 3]> {
    let file = safetensors::SafeTensors::deserialize(file)?;
    let tensor = |name| -> Result<HostTensor> {
        let view = file.tensor(name)?;
        Ok(HostTensor::from_bytes(DType::F16, view.data(), TensorLayout::from_dims(view.shape(), Order::Bhnd)?)?)
    };
    Ok([tensor("q")?, tensor("k")?, tensor("v")?])
}

pub fn published_error(gpu: &OnGpu) -> Result<()> {
    for (layer, file, published) in MINILM {
        let [q, k, v] = tensors(file)?;
        for scheme in [Scheme::Default, Scheme::Paper] {
            let problem = AttentionProblem::of(q.shape(), k.shape(), v.shape())?.with_scheme(scheme);
            let operands = gpu.quantize(&problem, &q, &k, &v)?;
            let (o, _) = gpu.attention(&(&problem).into(), &operands, &q.layout(), DType::F16, false)?;
            let exact = reference::exact(&problem, &q, &k, &v)?;
            let error = reference::compare(&o.dense_f64(), &exact.o).relative_l2;
            println!("MiniLM layer {layer}, {scheme}: relative L2 {error:.3e}");
            match scheme {
                Scheme::Default => ensure!(error <= 1.0e-2, "layer {layer}: {error:.3e}, at most 1.0e-2"),
                Scheme::Paper => {
                    ensure!(
                        (error / published - 1.0).abs() <= 0.1,
                        "layer {layer}: {error:.3e}, the paper's {published:.1e}"
                    );
                }
            }
        }
    }
    Ok(())
}

/// What the heads of a decoder's layer may err: root mean square, the worst head, the largest of a log-sum-exp. As in `host/tests/error_levels.rs`,
/// which says what marks are missed.
struct Limits {
    rms: f64,
    worst: f64,
    lse: f64,
}

const EXACT: Limits = Limits { rms: 1.8e-2, worst: 2.6e-2, lse: 0.12 };
const NARROW: Limits = Limits { rms: 2.1e-2, worst: 2.6e-2, lse: 0.15 };

/// A decoder's layers, causal: on what the quantization kernels make of them, on the same with a scale for every token of K, and as the whole job.
pub fn decoder(on: &OnGpu) -> Result<()> {
    for (layer, file) in SMOLLM2 {
        let [q, k, v] = tensors(file)?;
        let problem = AttentionProblem::of(q.shape(), k.shape(), v.shape())?.with_causal(true);
        let exact = reference::exact(&problem, &q, &k, &v)?;
        let check = |what: &str, (o, lse): (HostTensor, Option<Vec<f32>>), narrow: bool| {
            let result = (o.dense_f64(), lse.context("no log-sum-exp")?.into_iter().map(f64::from).collect());
            let head = problem.seqlen_q * problem.head_dim;
            within(result, &exact, head, if narrow { &NARROW } else { &EXACT })
                .with_context(|| format!("SmolLM2 layer {layer}, {what}, narrow blocks: {narrow}"))
        };
        let layout = q.layout();
        let attend = |operands: &HostQuantized| on.attention(&(&problem).into(), operands, &layout, DType::F16, true);
        let narrow = on.narrow(&problem) && on.shares_k(&problem);
        check("quantized", attend(&on.quantize(&problem, &q, &k, &v)?)?, narrow)?;
        check("with a scale a token", attend(&reference::quantize(&problem, &q, &k, &v)?)?, false)?;

        let layouts = QuantizeLayouts { q: layout, k: k.layout(), v: v.layout(), dtype: DType::F16 };
        let output = AttentionOutput { layout, dtype: DType::F16, lse: true };
        let plan = on.gpu.plan_job(&problem, &layouts, &output)?;
        let result = on.job(&plan, [&q, &k, &v], &output, problem.q_shape().rows())?;
        check(&format!("as a job ({})", plan.kernel()), result, takes_narrow(plan.kernel()))?;
    }
    Ok(())
}

/// Whether heads of so many elements, and their log-sum-exps, are within limits.
fn within((o, lse): (Vec<f64>, Vec<f64>), exact: &Exact, head: usize, limits: &Limits) -> Result<()> {
    ensure!(o.len() == exact.o.len(), "{} elements for {}", o.len(), exact.o.len());
    let heads = o.chunks_exact(head).zip(exact.o.chunks_exact(head));
    let errors: Vec<f64> = heads.map(|(got, want)| reference::compare(got, want).relative_l2).collect();
    let rms = (errors.iter().map(|error| error * error).sum::<f64>() / errors.len() as f64).sqrt();
    let worst = errors.into_iter().fold(0.0, f64::max);
    let lse = reference::compare(&lse, &exact.lse).max_abs;
    let text = format!("relative L2 of heads {rms:.3e} (worst {worst:.3e}), log-sum-exp {lse:.3}");
    println!("{text}");
    let Limits { rms: most_rms, worst: most, lse: most_lse } = limits;
    ensure!(
        rms <= *most_rms && worst <= *most && lse <= *most_lse,
        "{text}, at most {most_rms:.1e} ({most:.1e}), {most_lse}"
    );
    Ok(())
}
