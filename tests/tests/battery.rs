//! Every shipped kernel through its battery.

use int_flash_attention_kernels::config::MODULES;
use int_flash_attention_tests::battery;
use int_flash_attention_tests::sim::Simulator;

/// The kernels whose names `chosen` accepts.
fn every(chosen: impl Fn(&str) -> bool) {
    let simulator = Simulator::new();
    let mut count = 0;
    for module in MODULES {
        let loaded = simulator.module(module.name).unwrap();
        for kernel in loaded.kernels().into_iter().filter(|kernel| chosen(kernel)) {
            let checks = battery::of(kernel).unwrap();
            for check in &checks {
                check
                    .run(module.name, std::slice::from_ref(&loaded))
                    .unwrap_or_else(|error| panic!("{kernel}: {error:#}"));
            }
            count += checks.len();
        }
    }
    assert!(count > 0, "there is no such kernel");
}

/// Of heads of more than 256 dims.
fn is_wide(kernel: &str) -> bool {
    kernel.contains("_d512_") || kernel.starts_with("quantize_wide")
}

#[test]
fn default_scheme() {
    let is = |kernel: &str| kernel.starts_with("attention_sm80") && kernel.contains("_default");
    every(|kernel| is(kernel) && !kernel.ends_with("_general") && !is_wide(kernel));
}

#[test]
fn papers_scheme() {
    every(|kernel| kernel.starts_with("attention_sm80") && kernel.ends_with("_paper"));
}

#[test]
fn general() {
    every(|kernel| kernel.ends_with("_general") && !is_wide(kernel));
}

#[test]
fn hopper() {
    every(|kernel| kernel.starts_with("attention_sm90a"));
}

#[test]
fn short() {
    every(|kernel| kernel.starts_with("attention_short"));
}

#[test]
fn float16() {
    every(|kernel| kernel.starts_with("baseline_f16"));
}

#[test]
fn quantization() {
    let is = |kernel: &str| kernel.starts_with("quantize") || kernel.starts_with("v_amax");
    every(|kernel| is(kernel) && !is_wide(kernel));
}

#[test]
fn wide_heads() {
    every(is_wide);
}

#[test]
fn append_and_gather() {
    every(|kernel| ["append", "gather", "convert", "page_scales"].iter().any(|start| kernel.starts_with(start)));
}

#[test]
fn dequantization() {
    every(|kernel| kernel.starts_with("dequantize"));
}

#[test]
fn decode() {
    every(|kernel| kernel.starts_with("decode") || kernel.starts_with("merge"));
}

/// No kernel ships that none of these tests runs.
#[test]
fn all_kernels_have_a_battery() {
    let simulator = Simulator::new();
    let tested = |kernel: &str| {
        [
            "attention_sm90a",
            "attention_short",
            "baseline_f16",
            "quantize",
            "v_amax",
            "append",
            "gather",
            "convert",
            "page_scales",
            "dequantize",
            "decode",
            "merge",
        ]
        .iter()
        .any(|start| kernel.starts_with(start))
            || is_wide(kernel)
            || kernel.starts_with("attention_sm80")
                && ["_default", "_paper", "_general"].iter().any(|part| kernel.contains(part))
    };
    for module in MODULES {
        for kernel in simulator.kernels(module.name).unwrap() {
            assert!(tested(&kernel), "{kernel} is run by none of these tests");
        }
    }
}
