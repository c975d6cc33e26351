//! `--seqlens` and `--seqlens-kv`.

use super::{Folder, encode, good, half_tensor, refused, run_on, wave};
use safetensors::tensor::Dtype;
use serde_json::Value;

#[test]
fn packed_sequences_and_key_lengths_run_on_the_cpu_and_on_the_ptx_machine() {
    // Values about one: means of waves alone are next to nothing, and a relative error of nothing says nothing.
    let tensors = |q_dims, dims| {
        let [_, k, _] = good(dims);
        [half_tensor("q", q_dims, wave), k, half_tensor("v", dims, |i| 1.0 + wave(5 * i + 2))]
    };
    let other_values = |dims: [usize; 4], head_dim_v| {
        let [b, h, n, _] = dims;
        let v = half_tensor("v", [b, h, n, head_dim_v], |i| 1.0 + wave(5 * i + 2));
        [half_tensor("q", dims, wave), half_tensor("k", dims, |i| wave(3 * i + 1)), v]
    };
    let (packed, batch) = ([1, 2, 140, 32], [2, 2, 70, 32]);
    for (tensors, more, devices) in [
        (tensors(packed, packed), &["--seqlens", "5,0,131,4", "--causal"][..], &["cpu"][..]),
        (tensors([1, 2, 9, 32], packed), &["--seqlens", "4,5", "--seqlens-kv", "130,10"], &["cpu", "sim"]),
        (tensors(batch, batch), &["--seqlens-kv", "70,3"], &["cpu"]),
        (other_values([1, 1, 140, 192], 128), &["--seqlens", "5,131,4", "--causal"], &["cpu", "sim"]),
        (other_values([1, 1, 9, 264], 264), &["--seqlens", "5,4"], &["cpu", "sim"]),
    ] {
        for &device in devices {
            let folder = Folder::new("seqlens");
            let (input, output) = (folder.file("in.safetensors"), folder.file("out.safetensors"));
            std::fs::write(&input, encode(&tensors)).expect("the input is written");
            let more = [more, &["--lse", "--check", "--json"]].concat();
            let result = run_on(device, &input, &output, &more);
            assert!(result.status.success(), "{device} {more:?}: {}", String::from_utf8_lossy(&result.stderr));
            let report: Value = serde_json::from_slice(&result.stdout).expect("one JSON object");
            assert!(report["check"]["relative_l2"].as_f64().expect("a figure") < 2e-2, "{device} {more:?} {report}");
        }
    }
}

/// With the flags that change scores.
#[test]
fn lengths_and_scores_together_run_on_the_cpu_and_on_the_ptx_machine() {
    let dims = [1, 2, 140, 32];
    let [_, k, _] = good(dims);
    let keeps = (0..3 * 131).map(|at| u8::from(at % 6 != 1)).collect();
    let mask = ("mask", Dtype::U8, vec![3, 1, 1, 131], keeps);
    let input = encode(&[half_tensor("q", dims, wave), k, half_tensor("v", dims, |i| 1.0 + wave(5 * i + 2)), mask]);
    for device in ["cpu", "sim"] {
        let folder = Folder::new("scored-seqlens");
        let (from, output) = (folder.file("in.safetensors"), folder.file("out.safetensors"));
        std::fs::write(&from, &input).expect("the input is written");
        let more =
            ["--seqlens", "5,131,4", "--causal", "--softcap", "5", "--alibi", "0.5,0.25", "--sinks", "1,-2", "--mask"];
        let result = run_on(device, &from, &output, &[&more[..], &["--lse", "--check", "--json"]].concat());
        assert!(result.status.success(), "{device}: {}", String::from_utf8_lossy(&result.stderr));
        let report: Value = serde_json::from_slice(&result.stdout).expect("one JSON object");
        assert!(report["check"]["relative_l2"].as_f64().expect("a figure") < 2e-2, "{device} {report}");
    }
    let wide = encode(&[half_tensor("q", dims, wave), half_tensor("k", dims, wave), half_tensor("v", dims, wave)]);
    refused("slopes", &wide, &["--seqlens", "5,131,4", "--alibi", "0.5,0.25,1"], "alibi_slopes has the shape [3]; [2]");
}

#[test]
fn wrong_lengths_are_refused() {
    let packed = encode(&good([1, 2, 12, 32]));
    let batch = encode(&good([2, 2, 12, 32]));
    refused("sum", &packed, &["--seqlens", "5,6"], "one batch of 11 tokens");
    refused("batch", &batch, &["--seqlens", "5,7"], "one batch of 12 tokens");
    refused(
        "count",
        &packed,
        &["--seqlens", "5,7", "--seqlens-kv", "12"],
        "cu_seqlens_kv holds 2 elements; 3 are needed",
    );
    refused(
        "keys",
        &batch,
        &["--seqlens-kv", "5,13"],
        "13 tokens for sequence 1; the problem's sequences have at most 12",
    );
    refused("too few", &batch, &["--seqlens-kv", "5"], "seqlens_kv holds 1 elements; 2 are needed");
}
