//! Ring attention over all GPUs of this host, a thread each: `cargo run --release --example ranks`.
//!
//! Without two GPUs, over two simulated ranks on the CPU. With `--features nccl` and the word `nccl` behind it, over NCCL.

use half::f16;
use int_flash_attention::ranks::{Communicator, OnGpu, Peers, RingProblem, Simulated};
use int_flash_attention::{
    AttentionOutput, AttentionProblem, DType, Gpu, HostTensor, QuantizeLayouts, Result, Shape, TensorLayout,
};
use std::time::Instant;

/// Values that differ from token to token, of a rank's tokens.
fn tensor(ring: &RingProblem, rank: usize, shape: Shape) -> Result<HostTensor> {
    let tokens: Vec<usize> = ring.chunks(rank).into_iter().flatten().collect();
    let value = |_, h: usize, n: usize, d: usize| ((7 * h + 3 * tokens[n] + d * d) as f32).sin();
    HostTensor::from_fn(DType::F16, TensorLayout::bhnd(shape), value)
}

/// What a rank does: its own tokens are on its GPU before, and their output is there afterwards.
fn on_gpu(gpu: &Gpu, rank: &dyn Communicator<OnGpu>, ring: &RingProblem) -> Result<()> {
    let number = rank.rank();
    let (q, kv) = (tensor(ring, number, ring.q_shape(number))?, tensor(ring, number, ring.kv_shape(number))?);
    let layouts = QuantizeLayouts { q: q.layout(), k: kv.layout(), v: kv.layout(), dtype: DType::F16 };
    let output = AttentionOutput { layout: q.layout(), dtype: DType::F16, lse: false };
    let mut plan = gpu.plan_ring(ring, rank, &layouts, &output)?;
    let [q, k, v] = [&q, &kv, &kv].map(|x| gpu.upload(x.as_slice::<f16>().unwrap_or_default()));
    let (q, k, v, mut o) = (q?, k?, v?, gpu.alloc::<f16>(output.layout.span())?);
    let stream = gpu.stream()?;
    for _ in 0..3 {
        let start = Instant::now();
        plan.launch(&stream, rank, [(&q).into(), (&k).into(), (&v).into()], (&mut o).into())?;
        stream.synchronize()?;
        println!("rank {number}: tokens {:?} in {:.2?}", ring.chunks(number), start.elapsed());
    }
    Ok(())
}

fn main() -> Result<()> {
    let gpus: Vec<Gpu> = (0..).map_while(|number| Gpu::new(number).ok()).collect();
    let problem = |tokens| AttentionProblem::new(1, 8, 2, tokens, tokens, 128).with_causal(true);
    if gpus.len() < 2 {
        println!("fewer than two GPUs: two simulated ranks on the CPU");
        let ring = &RingProblem { attention: problem(1024), ranks: 2 };
        return std::thread::scope(|scope| {
            let ranks = Simulated::ranks(2).into_iter().map(|rank| {
                scope.spawn(move || {
                    let number = rank.rank();
                    let (q, kv) =
                        (tensor(ring, number, ring.q_shape(number))?, tensor(ring, number, ring.kv_shape(number))?);
                    let output = ring.on_cpu(&rank, &q, &kv, &kv)?;
                    println!("rank {number}: tokens {:?}, first output {:.4}", ring.chunks(number), output.o[0]);
                    Ok(())
                })
            });
            ranks.collect::<Vec<_>>().into_iter().try_for_each(|rank| rank.join().expect("no panic"))
        });
    }
    let ring = &RingProblem { attention: problem(1 << 16), ranks: gpus.len() };
    #[cfg(feature = "nccl")]
    if std::env::args().nth(1).as_deref() == Some("nccl") {
        use int_flash_attention::ranks::{Nccl, NcclId};
        let (id, count) = (NcclId::new()?, gpus.len());
        return std::thread::scope(|scope| {
            let ranks = gpus
                .iter()
                .enumerate()
                .map(|(number, gpu)| scope.spawn(move || on_gpu(gpu, &Nccl::new(gpu, id, number, count)?, ring)));
            ranks.collect::<Vec<_>>().into_iter().try_for_each(|rank| rank.join().expect("no panic"))
        });
    }
    std::thread::scope(|scope| {
        let ranks = Peers::ranks(&gpus)?.into_iter().map(|rank| scope.spawn(move || on_gpu(rank.gpu(), &rank, ring)));
        ranks.collect::<Vec<_>>().into_iter().try_for_each(|rank| rank.join().expect("no panic"))
    })
}
