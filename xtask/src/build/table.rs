//! What the variant tables say about each module and entry.

use super::ptx_text::LaunchBounds;
use int_flash_attention_kernels::config;
use int_flash_attention_kernels::quantize::launch::BOUNDS;

/// The launch bounds of an entry, or nothing where no table has it.
pub fn launch_bounds(entry: &str) -> Option<LaunchBounds> {
    let attention = config::ATTENTION.iter().map(|v| (v.entry, v.threads, v.min_ctas));
    let baseline = config::BASELINE.iter().map(|v| (v.entry, v.threads, v.min_ctas));
    let quantize = BOUNDS.iter().map(|b| (b.entry, b.threads, b.min_ctas));
    let (_, threads, min_ctas) = attention.chain(baseline).chain(quantize).find(|(name, ..)| *name == entry)?;
    Some(LaunchBounds { threads, min_ctas })
}

/// The entries that a module must have.
pub fn expected_entries(module: &str) -> Vec<&'static str> {
    match module {
        "quantize" => BOUNDS.iter().map(|b| b.entry).collect(),
        "baseline_f16" => config::BASELINE.iter().map(|v| v.entry).collect(),
        _ => config::ATTENTION.iter().filter(|v| v.module == module).map(|v| v.entry).collect(),
    }
}
