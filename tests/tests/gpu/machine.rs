//! The same inputs through the GPU and through the PTX machine, which is so tested itself.

use crate::device::OnGpu;
use anyhow::{Context, Result};
use int_flash_attention_kernels::config;
use int_flash_attention_tests::agreement::{self, Agreement};
use int_flash_attention_tests::case::{Case, WINDOWS, any_case, long_keys};
use int_flash_attention_tests::sim::Simulator;
use int_flash_attention_tests::{cases, check_cases};
use std::cell::RefCell;

/// Each kernel of the family under each kind of window, then generated cases.
pub fn kernels(gpu: &OnGpu) -> Result<()> {
    // Few multiprocessors, so that CTAs which stay have several tiles on the machine as well.
    let (machine, agreement) = (Simulator::of(gpu.family, 2), RefCell::new(Agreement::default()));
    let compare = |case: &Case| agreement::all(&mut agreement.borrow_mut(), gpu, &machine, case);
    for (seed, variant) in config::ATTENTION.iter().filter(|variant| variant.family == gpu.family).enumerate() {
        for window in 0..WINDOWS.len() {
            compare(&Case::of_variant(variant, window + 5 * seed)).context(variant.name)?;
        }
    }
    check_cases(cases(150), &any_case(200), compare).map_err(anyhow::Error::msg)?;
    check_cases(cases(100), &long_keys(), compare).map_err(anyhow::Error::msg)?;
    print!("{}", agreement.borrow());
    Ok(())
}
