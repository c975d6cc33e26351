//! What the variant tables say about each module and entry.

use super::ptx_text::LaunchBounds;
use int_flash_attention_kernels::config::{self, decode};
use int_flash_attention_kernels::{dequantize, quantize};

/// The launch bounds of an entry, or nothing where no table has it.
pub fn launch_bounds(entry: &str) -> Option<LaunchBounds> {
    let attention = config::ATTENTION.iter().map(|v| (v.name, v.threads, most(v.ctas)));
    let baseline = config::BASELINE.iter().map(|v| (v.name, v.threads, most(v.ctas)));
    let short = config::short::SHORT.iter().map(|v| (v.name, 32 * v.most_warps, v.min_ctas));
    // Fewer fit a GPU with less shared memory, whatever the registers.
    let conversion = quantize::launch::bounds().chain(dequantize::launch::BOUNDS);
    let conversion = conversion.map(|b| (b.entry, b.threads, b.min_ctas));
    let decode = decode::DECODE.iter().map(|v| (v.name, v.threads, v.min_ctas));
    let merge = decode::MERGE_BOUNDS.iter().map(|b| (b.entry, b.threads, b.min_ctas));
    let all = attention.chain(baseline).chain(short).chain(conversion).chain(decode).chain(merge);
    let (_, threads, min_ctas) = all.into_iter().find(|(name, ..)| *name == entry)?;
    Some(LaunchBounds { threads, min_ctas, registers: quantize::launch::max_registers(entry) })
}

fn most(ctas: impl IntoIterator<Item = usize>) -> usize {
    ctas.into_iter().max().unwrap_or(0)
}

/// The entries that a module must have.
pub fn expected_entries(module: &'static str) -> Vec<&'static str> {
    match module {
        decode::OVERLAPPING_MERGE => vec![decode::MERGE_BOUNDS[1].entry],
        _ => {
            let bounds = quantize::launch::bounds().chain(dequantize::launch::BOUNDS).chain(decode::MERGE_BOUNDS);
            let entries: Vec<_> = bounds.filter(|b| b.module == module).map(|b| b.entry).collect();
            // An attention kernel's module and entry point have one name.
            if entries.is_empty() { vec![module] } else { entries }
        }
    }
}
