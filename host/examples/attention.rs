//! Causal attention of host tensors, by both schemes, on the GPU if there is one and else on the CPU: `cargo run --release --example attention`.

use int_flash_attention::{
    AttentionProblem, DType, Device, HostTensor, Options, Result, Scheme, Shape, TensorLayout, Window, attention,
    reference,
};

/// Numbers that are as good as random, between -1 and 1.
fn noise(seed: usize, dim: usize) -> f32 {
    let bits = (seed as u32).wrapping_mul(0x9e37_79b9).wrapping_add(dim as u32).wrapping_mul(0x85eb_ca6b);
    ((bits ^ bits >> 15).wrapping_mul(0xc2b2_ae35) >> 8) as f32 / (1 << 23) as f32 - 1.0
}

fn main() -> Result<()> {
    let (heads, tokens, head_dim) = (8, 1024, 64);
    let layout = TensorLayout::bhnd(Shape::new(1, heads, tokens, head_dim)?); // batch, heads, tokens, head_dim
    // One channel is louder than the others by `loud`, as in keys of real models.
    let tensor = |which: usize, loud: f32| {
        let value = |_, h: usize, n: usize, d: usize| {
            2.0 * noise((which * heads + h) * tokens + n, d) * if d == 5 { loud } else { 1.0 }
        };
        HostTensor::from_fn(DType::F16, layout, value)
    };
    let (q, k, v) = (tensor(0, 1.0)?, tensor(1, 8.0)?, tensor(2, 1.0)?);

    // What float64 makes of four rows of each head.
    let rows = [0, 100, 500, 1023];
    let problem = AttentionProblem::of(q.shape(), k.shape(), v.shape())?.with_causal(true);
    let exact = reference::exact_rows(&problem, &q, &k, &v, &rows)?.o;

    let (device, why_not_a_gpu) = Device::auto();
    if let Some(why) = why_not_a_gpu {
        eprintln!("on the CPU: {why}");
    }
    for scheme in [Scheme::Default, Scheme::Paper] {
        let options = Options { window: Window::CAUSAL, scheme, ..Options::default() };
        let o = attention(device, &q, &k, &v, &options)?.o;
        let (mut off, mut of) = (0.0, 0.0);
        for (i, &want) in exact.iter().enumerate() {
            let (head, row, dim) = (i / (rows.len() * head_dim), i / head_dim % rows.len(), i % head_dim);
            off += (f64::from(o.get(0, head, rows[row], dim)) - want).powi(2);
            of += want.powi(2);
        }
        println!("{scheme:<8} on {device}: relative error {:.2e}", (off / of).sqrt());
    }
    Ok(())
}
