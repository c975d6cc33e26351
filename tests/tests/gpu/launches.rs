//! Quantization and attention by their own plans: recorded, repeated, and in parts.

use crate::device::{OnDevice, OnGpu, bits, f16_inputs};
use anyhow::{Result, ensure};
use int_flash_attention::{AttentionProblem, DType, DeviceOperands, Scheme, TensorLayout};

pub fn graph(on: &OnGpu) -> Result<()> {
    let gpu = &on.gpu;
    for head_dim in [64, 128] {
        let problem = AttentionProblem::new(2, 4, 2, 300, 500, head_dim).with_causal(true);
        let mut captured = OnDevice::new(on, problem, 1)?;
        let stream = gpu.stream()?;
        let graph = gpu.capture(&stream, || captured.launch(&stream))?;
        for seed in [2, 3] {
            for (buffer, values) in captured.inputs.iter_mut().zip(f16_inputs(&problem, seed)?) {
                buffer.copy_from(&values)?;
            }
            graph.launch(&stream)?;
            stream.synchronize()?;
            let mut direct = OnDevice::new(on, problem, seed)?;
            direct.launch(&stream)?;
            stream.synchronize()?;
            ensure!(
                bits(&captured.o)? == bits(&direct.o)?,
                "the replay differs from a launch, seed {seed}, head_dim {head_dim}"
            );
        }
    }
    Ok(())
}

/// Launch after launch on the same inputs.
pub fn repeatable(gpu: &OnGpu) -> Result<()> {
    let problem = AttentionProblem::new(2, 8, 8, 1000, 1000, 128);
    let mut device = OnDevice::new(gpu, problem, 5)?;
    let stream = gpu.gpu.stream()?;
    let mut first = None;
    for _ in 0..5 {
        device.launch(&stream)?;
        stream.synchronize()?;
        let o = bits(&device.o)?;
        ensure!(first.get_or_insert_with(|| o.clone()) == &o, "two launches on the same inputs differ");
    }
    Ok(())
}

/// K and V first, Q later (a cache), gives what all three at once give.
pub fn quantize_parts(on: &OnGpu) -> Result<()> {
    let gpu = &on.gpu;
    for (scheme, head_dim) in [(Scheme::Default, 96), (Scheme::Paper, 96), (Scheme::Default, 128)] {
        let problem = AttentionProblem::new(2, 6, 3, 77, 333, head_dim).with_scheme(scheme);
        let mut whole = OnDevice::new(on, problem, 8)?;
        let stream = gpu.stream()?;
        whole.launch(&stream)?;
        stream.synchronize()?;
        let (q_layout, kv) = (TensorLayout::bhnd(problem.q_shape()), TensorLayout::bhnd(problem.kv_shape()));
        let kv_plan = gpu.plan_quantize_kv(&problem, kv, kv, DType::F16)?;
        let q_plan = gpu.plan_quantize_q(&problem, q_layout, DType::F16)?;
        let mut parts = DeviceOperands::alloc(gpu, &problem)?;
        let mut workspace = gpu.alloc::<f32>(kv_plan.workspace_len())?;
        let [q, k, v] = &whole.inputs;
        let (k_out, v_out) = (&mut parts.k.view_mut(), &mut parts.v.view_mut());
        kv_plan.launch(&stream, k.into(), v.into(), workspace.slice_mut(), k_out, v_out)?;
        q_plan.launch(&stream, q.into(), parts.k.offset.slice(), &mut parts.q.view_mut())?;
        stream.synchronize()?;
        ensure!(parts.to_host()? == whole.operands.to_host()?, "the parts differ from the whole, {scheme} {head_dim}");
    }
    Ok(())
}
