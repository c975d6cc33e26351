//! What the variant table says about each module and entry.

use super::ptx_text::LaunchBounds;
use int_flash_attention_kernels::config;

/// Threads of every kernel of the `quantize` module.
const QUANTIZE_THREADS: u32 = 256;
const QUANTIZE_ENTRIES: [&str; 10] = [
    "kv_stats_f16",
    "kv_stats_bf16",
    "kv_stats_f32",
    "kv_stats_finish",
    "quantize_f16",
    "quantize_bf16",
    "quantize_f32",
    "dequantize_f16",
    "dequantize_bf16",
    "dequantize_f32",
];

/// The launch bounds of an entry, or nothing where no table has it.
pub fn launch_bounds(entry: &str) -> Option<LaunchBounds> {
    if QUANTIZE_ENTRIES.contains(&entry) {
        return Some(LaunchBounds { threads: QUANTIZE_THREADS, min_ctas: 0 });
    }
    let variant = config::ATTENTION.iter().find(|v| v.entry == entry)?;
    Some(LaunchBounds {
        threads: u32::try_from(variant.threads).ok()?,
        min_ctas: u32::try_from(variant.min_ctas).ok()?,
    })
}

/// The entries that a module must have.
pub fn expected_entries(module: &str) -> Vec<&'static str> {
    if module == "quantize" {
        return QUANTIZE_ENTRIES.to_vec();
    }
    config::ATTENTION.iter().filter(|v| format!("attention_d{}", v.head_dim) == module).map(|v| v.entry).collect()
}
