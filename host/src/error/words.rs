//! Parts of the sentences that are more than a value.

use super::{Error, RefusedCode};
use int_flash_attention_kernels::layout::{HEAD_DIM_STEP, HEAD_DIMS};

/// The end of [`Error::ModuleLoad`]'s sentence.
pub(super) fn refusal(refused: Option<&RefusedCode>) -> String {
    let Some(RefusedCode { architecture, why }) = refused else { return String::new() };
    format!("; before that it refused the machine code for {architecture}: {why}")
}

/// What to do with a head dim that has no kernel.
pub(super) fn padding(given: usize, most: usize) -> String {
    let wide = given.next_multiple_of(HEAD_DIM_STEP);
    if given > 0 && wide <= most {
        let scale = (1.0 / (given as f64).sqrt()) as f32;
        return format!(
            "fill the channels of Q, K and V with zeros to {wide}, give the softmax_scale {scale} (1/sqrt({given})) where the default was meant, and leave the output's added channels out"
        );
    }
    let widest = HEAD_DIMS[HEAD_DIMS.len() - 1];
    if (1..=widest).contains(&given) {
        return format!("the default scheme has them up to {widest}");
    }
    "a score needs all channels of its head, so that a wider head cannot be taken in parts: leave its layers to a float16 attention".into()
}

/// What to do with a V of another head dim for which there is no kernel.
pub(super) fn filling(head_dim: usize, head_dim_v: usize) -> String {
    if head_dim_v < head_dim {
        return format!(
            "fill the channels of V with zeros to {head_dim}, and leave the output's channels behind {head_dim_v} out"
        );
    }
    format!(
        "fill the channels of Q and K with zeros to {head_dim_v}, and give the softmax_scale 1/sqrt({head_dim}) where the default was meant"
    )
}

/// What to do with a head dim that caches do not have.
pub(super) fn cache_padding(given: usize, allowed: &[usize]) -> String {
    if allowed.iter().any(|&head_dim| given <= head_dim) {
        return format!(
            "fill the channels of Q, K and V with zeros to the next of them (with softmax_scale 1/sqrt({given})) and leave the output's added channels out"
        );
    }
    "keep K and V of wider heads as tensors, and attend to all of them at once".into()
}

/// `cuda:0: why; cuda:1: why`.
pub(super) fn numbered(reasons: &[Error]) -> String {
    let reasons: Vec<String> = reasons.iter().enumerate().map(|(gpu, why)| format!("cuda:{gpu}: {why}")).collect();
    reasons.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use int_flash_attention_driver::DriverError;

    #[test]
    fn a_module_that_loads_in_no_form_names_both() {
        let call = |text: &str| DriverError::Load {
            call: "cuModuleLoadDataEx",
            code: 1,
            name: "NAME".to_owned(),
            text: text.to_owned(),
            log: String::new(),
        };
        let machine_code = Some(Box::new(RefusedCode { architecture: "sm_86", why: call("too new") }));
        let both = Error::ModuleLoad { module: "quantize_f16", why: call("unknown version"), machine_code }.to_string();
        for part in ["quantize", "PTX", "unknown version", "machine code for sm_86", "too new"] {
            assert!(both.contains(part), "{both}");
        }
        let ptx = Error::ModuleLoad { module: "quantize_f16", why: call("unknown version"), machine_code: None };
        assert!(!ptx.to_string().contains("machine code"), "{ptx}");
    }
}
