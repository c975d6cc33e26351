#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod cache;
mod call;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod functions;
mod host;
mod op;
mod options;
// The tests run it on a pretended driver.
#[cfg(any(feature = "cuda", test))]
mod plans;

pub use cache::{CacheConfig, KvCache, PackedQueries, PagedTables};
pub use functions::{
    flash_attn, flash_attn_alibi, flash_attn_alibi_windowed, flash_attn_alibi_windowed_softcap, flash_attn_varlen,
    flash_attn_varlen_alibi, flash_attn_varlen_alibi_windowed, flash_attn_varlen_alibi_windowed_softcap,
    flash_attn_varlen_windowed, flash_attn_windowed,
};
pub use options::{FlashAttn, VarLen};
