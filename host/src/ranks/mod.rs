//! Attention over several ranks: GPUs of one process, of several processes or hosts, or simulated ones on the CPU.
//!
//! * **Ring attention** ([`RingProblem`]): each rank has a part of a sequence's tokens, its queries stay, and quantized keys and values travel.
//! * **Ulysses** ([`UlyssesProblem`]): each rank has a part of the tokens before and after, and some heads of all tokens in between.
//! * **Decode** ([`RanksDecode`]): each rank has a part of a sequence's cache, and what its keys come to is gathered and merged.
//!
//! What a rank computes, and what it gives to whom when, is plain data that follows from the problem and the rank's number; a [`Communicator`]
//! carries the bytes: [`Peers`] between GPUs of one process, `Nccl` (feature `nccl`) between any, [`Simulated`] between threads on the CPU.
//! `docs/ranks.md` draws both, and says what travels when.
//!
//! ```
//! use int_flash_attention::ranks::{Communicator, RingProblem, Simulated};
//! use int_flash_attention::{AttentionProblem, DType, HostTensor, TensorLayout};
//! let ring = RingProblem { attention: AttentionProblem::new(1, 2, 1, 600, 600, 32).with_causal(true), ranks: 2 };
//! // Rank 0 of two has the first and the last quarter of the blocks of 128 tokens.
//! assert_eq!(ring.chunks(0), [0..256, 512..600]);
//! let outputs = std::thread::scope(|scope| {
//!     let ranks = Simulated::ranks(2).into_iter().map(|rank| scope.spawn(move || {
//!         let tensor = |shape| HostTensor::from_fn(DType::F32, TensorLayout::bhnd(shape), |_, h, n, d| ((h + n * d) as f32).sin());
//!         let (q, kv) = (tensor(ring.q_shape(rank.rank()))?, tensor(ring.kv_shape(rank.rank()))?);
//!         ring.on_cpu(&rank, &q, &kv, &kv)
//!     }));
//!     ranks.collect::<Vec<_>>().into_iter().map(|rank| rank.join().unwrap()).collect::<Result<Vec<_>, _>>()
//! })?;
//! assert_eq!(outputs[0].o.len(), 2 * (256 + 88) * 32);
//! # Ok::<(), int_flash_attention::Error>(())
//! ```

mod chunks;
mod communicator;
mod constants_gpu;
mod decode;
mod decode_gpu;
mod error;
#[cfg(feature = "nccl")]
mod nccl;
mod peers;
mod ring;
mod ring_cpu;
mod ring_gpu;
mod simulated;
mod ulysses;
mod ulysses_cpu;
mod ulysses_gpu;

pub use communicator::{Communicator, Host, Message, OnGpu, Place};
pub use decode::RanksDecode;
pub use decode_gpu::RanksDecodePlan;
pub use error::RanksError;
#[cfg(feature = "nccl")]
pub use nccl::{Nccl, NcclId};
pub use peers::Peers;
pub use ring::{Pair, RingProblem, Step};
pub use ring_gpu::RingPlan;
pub use simulated::Simulated;
pub use ulysses::UlyssesProblem;
pub use ulysses_gpu::UlyssesPlan;
