//! Threads, each with a stream of its own, on the layers of one model.

use crate::cache::{CONFIG, Two};
use crate::{host, recording, tensor};
use candle_core::{DType, Device, Result, Tensor};
use candle_int_flash_attention::{FlashAttn, KvCache};
use int_flash_attention::{DecodeProblem, TensorLayout};
use std::thread;

const ROUNDS: usize = 100;

/// Layers share what the kernels of a decode leave to each other; threads must not.
pub fn threads_do_not_mix(gpu: &Device) -> Result<()> {
    let _recording = recording();
    let mut layers = KvCache::layers(2, CONFIG, gpu)?;
    let mut sequences = Two::new(gpu);
    let [k, v, slots] = sequences.extend([500, 400], 0.3, DType::F16)?;
    for layer in &mut layers {
        layer.append(&k.to_device(gpu)?, &v.to_device(gpu)?, &slots.to_device(gpu)?)?;
    }
    gpu.synchronize()?;
    let layout = TensorLayout::bnhd(DecodeProblem::new(2, 6, CONFIG.num_kv_heads, 512, CONFIG.head_dim).q_shape());
    let attend = |layer: &KvCache, q: &Tensor| -> Result<Vec<f64>> {
        // A tensor belongs to the stream of the thread that made it.
        let o = layer.attend(&q.to_device(gpu)?, &sequences.on_gpu()?, &FlashAttn::new(0.1).with_causal(true))?;
        Ok(host(&o.to_device(&Device::Cpu)?, layout)?.dense_f64())
    };
    let queries = [0.2, 1.2].map(|seed| tensor(&[2, 1, 6, CONFIG.head_dim], seed, DType::F16));
    let [first, second] = queries.map(|q| q.and_then(|q| Ok((attend(&layers[0], &q)?, q))));
    let wanted = [first?, second?];
    assert_ne!(wanted[0].0, wanted[1].0);
    thread::scope(|scope| {
        let of_threads: Vec<_> = layers
            .iter()
            .zip(&wanted)
            .map(|(layer, (want, q))| {
                scope.spawn(|| (0..ROUNDS).all(|_| attend(layer, q).is_ok_and(|got| got == *want)))
            })
            .collect();
        for (at, one) in of_threads.into_iter().enumerate() {
            assert!(one.join().expect("a thread"), "thread {at}");
        }
    });
    Ok(())
}
