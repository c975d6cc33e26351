//! On a GPU: candle's CUDA tensors against the reference on the same values. None of candle's own kernels is used. Without a GPU all tests count
//! as ignored, and say why.

mod cache;
mod dense;
mod graph;
mod threads;
mod varlen;

use candle_core::{DType, Device, Result, Tensor};
use half::{bf16, f16};
use int_flash_attention::reference::{Bounds, compare, first_excess};
use int_flash_attention::{Gpu, HostTensor, Scored, TensorLayout};
use libtest_mimic::{Arguments, Completion, Trial};
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};

type Test = fn(&Device) -> Result<()>;

const TESTS: [(&str, Test); 12] = [
    ("cache::steps_of_an_engine", cache::steps_of_an_engine),
    ("cache::chunks_and_single_tokens_in_one_call", cache::chunks_and_single_tokens_in_one_call),
    ("cache::pages_are_copied_and_swapped", cache::pages_are_copied_and_swapped),
    ("dense::gpu_tensors_give_what_cpu_tensors_give", dense::gpu_tensors_give_what_cpu_tensors_give),
    ("dense::views_and_used_memory", dense::views_and_used_memory),
    ("dense::scores", dense::scores),
    ("dense::a_bias", dense::a_bias),
    ("dense::what_is_elsewhere_is_refused", dense::what_is_elsewhere_is_refused),
    ("graph::one_graph_serves_every_step", graph::one_graph_serves_every_step),
    ("threads::threads_do_not_mix", threads::threads_do_not_mix),
    ("varlen::packed_sequences", varlen::packed_sequences),
    ("varlen::padded_sequences", varlen::padded_sequences),
];

fn main() -> ExitCode {
    let trial = |(name, test): (&str, Test)| {
        // Each has a device, and with it a stream, of its own.
        Trial::ignorable_test(name, move || match Device::new_cuda(0) {
            Ok(gpu) => {
                test(&gpu)?;
                Ok(Completion::Completed)
            }
            Err(why) => Ok(Completion::ignored_with(why)),
        })
    };
    libtest_mimic::run(&Arguments::from_args(), TESTS.map(trial).into()).exit_code()
}

/// Held by a test that records a graph, and by one whose threads take turns with a cache: they wait for the whole GPU (`KvCache::layers`), which ends
/// every recording with an error.
static RECORDING: Mutex<()> = Mutex::new(());

fn recording() -> MutexGuard<'static, ()> {
    RECORDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// On the CPU, in this type: candle's conversions on the GPU are kernels. `[batch][token][head][dim]`.
fn tensor(dims: &[usize], seed: f32, dtype: DType) -> Result<Tensor> {
    let len = dims.iter().product::<usize>();
    let values: Vec<f32> =
        (0..len).map(|at| (seed + at as f32 * 0.7391).sin() * (1.0 + (at % 7) as f32 * 0.2)).collect();
    Tensor::from_vec(values, dims, &Device::Cpu)?.to_dtype(dtype)
}

/// A tensor as the library takes it, whose elements lie as candle has them.
fn host(tensor: &Tensor, layout: TensorLayout) -> Result<HostTensor> {
    let tensor = tensor.to_device(&Device::Cpu)?.flatten_all()?;
    Ok(match tensor.dtype() {
        DType::F16 => HostTensor::new(tensor.to_vec1::<f16>()?, layout),
        DType::BF16 => HostTensor::new(tensor.to_vec1::<bf16>()?, layout),
        _ => HostTensor::new(tensor.to_vec1::<f32>()?, layout),
    }
    .expect("a tensor"))
}

/// For the reference of what this GPU's kernels and quantizer make of it.
fn on_gpu(scored: Scored<'_>) -> Scored<'_> {
    scored.with_narrow(Gpu::new(0).expect("a GPU").takes_narrow(scored.problem))
}

/// Whether a GPU's output is as near to the reference as it has to be.
fn check(what: &str, o: &HostTensor, want: &[f64], bounds: &Bounds) {
    let got = o.dense_f64();
    println!("{what}: {:?}", compare(&got, want));
    assert_eq!(first_excess(&got, want, &bounds.o), None, "{what}");
}
