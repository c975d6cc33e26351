//! On a GPU: candle's CUDA tensors against its CPU tensors. None of candle's own kernels is used.
#![cfg(feature = "cuda")]

use candle_core::{DType, Device, Result, Tensor};
use candle_int_flash_attention::flash_attn_windowed;
use half::{bf16, f16};
use int_flash_attention::reference::{compare, first_excess, gpu_bounds, quantize};
use int_flash_attention::{AttentionProblem, HostTensor, TensorLayout, Window};

/// The GPU, or why there is none.
fn gpu() -> Option<Device> {
    match Device::new_cuda(0) {
        Ok(device) => Some(device),
        Err(error) => {
            println!("skipped, no GPU: {error}");
            None
        }
    }
}

/// `[batch][token][head][dim]`.
fn values(dims: [usize; 4], seed: f32) -> Vec<f32> {
    let len = dims.iter().product::<usize>();
    (0..len).map(|at| (seed + at as f32 * 0.7391).sin() * (1.0 + (at % 7) as f32 * 0.2)).collect()
}

/// On the CPU, in this type: candle's conversions on the GPU are kernels.
fn tensor(dims: [usize; 4], seed: f32, dtype: DType) -> Result<Tensor> {
    Tensor::from_vec(values(dims, seed), &dims[..], &Device::Cpu)?.to_dtype(dtype)
}

/// How far the kernels may be from the reference, and the reference: `[batch][head][token][dim]`.
fn check(problem: &AttentionProblem, [q, k, v]: [&Tensor; 3], o: &Tensor) -> Result<()> {
    let layouts = [problem.q_shape(), problem.kv_shape(), problem.kv_shape()].map(TensorLayout::bnhd);
    let host = |tensor: &Tensor, layout| -> Result<HostTensor> {
        let tensor = tensor.flatten_all()?;
        Ok(match tensor.dtype() {
            DType::F16 => HostTensor::new(tensor.to_vec1::<f16>()?, layout),
            DType::BF16 => HostTensor::new(tensor.to_vec1::<bf16>()?, layout),
            _ => HostTensor::new(tensor.to_vec1::<f32>()?, layout),
        }
        .expect("a tensor"))
    };
    let (q, k, v) = (host(q, layouts[0])?, host(k, layouts[1])?, host(v, layouts[2])?);
    let o = host(&o.to_device(&Device::Cpu)?, layouts[0])?;
    let operands = quantize(problem, &q, &k, &v).expect("operands");
    let (want, bounds) = gpu_bounds(problem, &operands, o.dtype()).expect("a reference");
    let got = o.dense_f64();
    println!("{problem:?}: {:?}", compare(&got, &want.o));
    assert_eq!(first_excess(&got, &want.o, &bounds.o), None, "{problem:?}");
    Ok(())
}

#[test]
fn gpu_tensors_give_what_cpu_tensors_give() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        for (head_dim, seqlen_q, seqlen_kv, window) in [
            (64, 100, 100, Window::CAUSAL),
            (128, 1, 500, Window::FULL),
            (32, 200, 300, Window { left: Some(40), right: Some(7) }),
            (256, 70, 140, Window::CAUSAL),
        ] {
            let problem = AttentionProblem::new(2, 6, 2, seqlen_q, seqlen_kv, head_dim)
                .with_window(window)
                .with_softmax_scale(0.1);
            let q = tensor([2, seqlen_q, 6, head_dim], 0.1, dtype)?;
            let (k, v) =
                (tensor([2, seqlen_kv, 2, head_dim], 0.2, dtype)?, tensor([2, seqlen_kv, 2, head_dim], 0.3, dtype)?);
            let there = |tensor: &Tensor| tensor.to_device(&gpu);
            let o = flash_attn_windowed(&there(&q)?, &there(&k)?, &there(&v)?, 0.1, window.left, window.right)?;
            assert_eq!((o.dims(), o.dtype()), (q.dims(), dtype));
            check(&problem, [&q, &k, &v], &o)?;
        }
    }
    Ok(())
}

/// Views with offsets and strides, and memory that candle's allocator gives out again at once.
#[test]
fn views_and_used_memory() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let problem = AttentionProblem::new(2, 4, 4, 50, 50, 64).with_causal(true).with_softmax_scale(0.1);
    for seed in 0..20 {
        let qkv = tensor([2, 50, 12, 64], seed as f32, DType::F16)?;
        let there = qkv.to_device(&gpu)?;
        let part = |tensor: &Tensor, at: usize| tensor.narrow(2, 4 * at, 4);
        let o = flash_attn_windowed(&part(&there, 0)?, &part(&there, 1)?, &part(&there, 2)?, 0.1, None, Some(0))?;
        let [q, k, v] = [part(&qkv, 0)?, part(&qkv, 1)?, part(&qkv, 2)?];
        check(&problem, [&q, &k, &v], &o)?;
    }
    Ok(())
}
