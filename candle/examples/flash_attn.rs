//! `flash_attn` on tensors that candle made, beside products and a softmax: `cargo run --release --example flash_attn`.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_int_flash_attention::flash_attn;

fn main() -> Result<()> {
    // On a GPU with the feature `cuda`.
    let device = Device::cuda_if_available(0)?;
    let tensor = || Tensor::randn(0f32, 1., (2, 512, 8, 64), &device); // batch, tokens, heads, head_dim
    let (q, k, v) = (tensor()?, tensor()?, tensor()?);
    let o = flash_attn(&q, &k, &v, 1.0 / 8.0, false)?;

    let heads = |x: &Tensor| x.transpose(1, 2)?.contiguous();
    let scores = (heads(&q)?.matmul(&heads(&k)?.t()?)? / 8.0)?;
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    let plain = weights.matmul(&heads(&v)?)?.transpose(1, 2)?;

    let norm = |x: &Tensor| x.sqr()?.sum_all()?.to_dtype(DType::F32)?.to_scalar::<f32>();
    println!("on {device:?}: relative error {:.2e}", (norm(&(&o - &plain)?)? / norm(&plain)?).sqrt());
    Ok(())
}
