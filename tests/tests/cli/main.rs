//! The attention command from end to end: good files, and every way a file can be bad.

mod limits;
mod names;
mod output;
mod seqlens;

use half::f16;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// `cargo xtask`'s program: that which runs the tests, else a fresh build.
static XTASK: LazyLock<PathBuf> = LazyLock::new(|| {
    if let Some(path) = std::env::var_os("INT_FLASH_XTASK") {
        return path.into();
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let build = ["build", "--release", "--package", "xtask", "--message-format", "json"];
    let output = Command::new(cargo).args(build).current_dir(root).output().expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8_lossy(&output.stdout);
    let executable = |line: &str| serde_json::from_str::<Value>(line).ok()?["executable"].as_str().map(PathBuf::from);
    messages.lines().find_map(executable).expect("cargo names the program")
});

/// A folder that goes when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("int-flash-cli-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

type Tensor = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn half_tensor(name: &'static str, dims: [usize; 4], value: impl Fn(usize) -> f32) -> Tensor {
    let len = dims.iter().product();
    let bytes = (0..len).flat_map(|i| f16::from_f32(value(i)).to_le_bytes()).collect();
    (name, Dtype::F16, dims.to_vec(), bytes)
}

fn wave(i: usize) -> f32 {
    (i as f32 * 0.37).sin()
}

fn encode(tensors: &[Tensor]) -> Vec<u8> {
    let views = tensors
        .iter()
        .map(|(name, dtype, dims, bytes)| (*name, TensorView::new(*dtype, dims.clone(), bytes).expect("a tensor")));
    safetensors::serialize(views, None).expect("a file")
}

fn run(input: &Path, output: &Path, more: &[&str]) -> Output {
    run_on("cpu", input, output, more)
}

fn run_on(device: &str, input: &Path, output: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(&*XTASK);
    command
        .arg("attention")
        .arg("--input")
        .arg(input)
        .arg("--output")
        .arg(output)
        .args(["--device", device])
        .args(more);
    command.output().expect("the program starts")
}

/// Runs on bytes that must be refused: a non-zero exit, one sentence that holds `expected`, no file left behind.
#[track_caller]
fn refused(name: &str, bytes: &[u8], more: &[&str], expected: &str) {
    let folder = Folder::new(name);
    let (input, output) = (folder.file("in.safetensors"), folder.file("out.safetensors"));
    std::fs::write(&input, bytes).expect("the input is written");
    let result = run(&input, &output, more);
    let stderr = String::from_utf8_lossy(&result.stderr).into_owned();
    assert!(!result.status.success(), "accepted: {}", String::from_utf8_lossy(&result.stdout));
    assert!(stderr.contains(expected), "`{expected}` is not in: {stderr}");
    assert!(stderr.starts_with("error: ") && stderr.trim_end().lines().count() == 1, "not one sentence: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let left: Vec<_> =
        std::fs::read_dir(&folder.0).expect("the folder").map(|e| e.expect("an entry").file_name()).collect();
    assert_eq!(left, ["in.safetensors"], "something was left behind");
}

fn good(dims: [usize; 4]) -> [Tensor; 3] {
    [
        half_tensor("q", dims, wave),
        half_tensor("k", dims, |i| wave(3 * i + 1)),
        half_tensor("v", dims, |i| wave(5 * i + 2)),
    ]
}

#[test]
fn a_good_file_gives_o_and_lse() {
    let folder = Folder::new("good");
    let (input, output) = (folder.file("in.safetensors"), folder.file("out.safetensors"));
    // bnhd: 2 batches, 9 tokens, 3 heads, 32 dims
    std::fs::write(&input, encode(&good([2, 9, 3, 32]))).expect("the input is written");
    let result =
        run(&input, &output, &["--layout", "bnhd", "--lse", "--causal", "--check", "--json", "--softmax-scale", "0.3"]);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    let report: Value = serde_json::from_slice(&result.stdout).expect("one JSON object");
    assert_eq!(report["device"], "cpu");
    assert!(report["check"]["relative_l2"].as_f64().expect("a figure") < 2e-2, "{report}");
    let bytes = std::fs::read(&output).expect("an output");
    let file = SafeTensors::deserialize(&bytes).expect("a whole file");
    let (o, lse) = (file.tensor("o").expect("o"), file.tensor("lse").expect("lse"));
    assert_eq!((o.dtype(), o.shape()), (Dtype::F16, &[2, 9, 3, 32][..]));
    assert_eq!((lse.dtype(), lse.shape()), (Dtype::F32, &[2, 3, 9][..]));
}

/// The kernels themselves, on the PTX machine.
#[test]
fn the_job_runs_on_the_ptx_machine() {
    for scheme in ["default", "paper"] {
        let folder = Folder::new(&format!("sim-{scheme}"));
        let (input, output) = (folder.file("in.safetensors"), folder.file("out.safetensors"));
        std::fs::write(&input, encode(&good([1, 9, 2, 32]))).expect("the input is written");
        let more = ["--scheme", scheme, "--layout", "bnhd", "--lse", "--causal", "--check", "--json"];
        let result = run_on("sim", &input, &output, &more);
        assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
        let report: Value = serde_json::from_slice(&result.stdout).expect("one JSON object");
        assert_eq!(report["device"], "sim");
        assert!(report["check"]["relative_l2"].as_f64().expect("a figure") < 2e-2, "{report}");
        let bytes = std::fs::read(&output).expect("an output");
        let file = SafeTensors::deserialize(&bytes).expect("a whole file");
        assert_eq!(file.tensor("o").expect("o").shape(), [1, 9, 2, 32]);
        assert_eq!(file.tensor("lse").expect("lse").shape(), [1, 2, 9]);
    }
}

/// Windows, where CPU and kernels have the same bits but for the order of float32 sums.
#[test]
fn windows_run_on_the_cpu_and_on_the_ptx_machine() {
    for (device, window) in [("cpu", "3,0"), ("cpu", "2,1"), ("sim", "3,0"), ("sim", "inf,0"), ("sim", "2,1")] {
        let folder = Folder::new(&format!("window-{device}-{window}"));
        let (input, output) = (folder.file("in.safetensors"), folder.file("out.safetensors"));
        std::fs::write(&input, encode(&good([1, 2, 9, 32]))).expect("the input is written");
        let result = run_on(device, &input, &output, &["--window", window, "--check", "--json"]);
        assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
        let report: Value = serde_json::from_slice(&result.stdout).expect("one JSON object");
        assert_eq!((&report["window"], &report["causal"]), (&Value::from(window), &Value::from(window == "inf,0")));
        assert!(report["check"]["relative_l2"].as_f64().expect("a figure") < 2e-2, "{report}");
    }
}

/// Q, K and V as [`good`], and a mask and a bias for them.
fn with_scores(dims: [usize; 4]) -> Vec<Tensor> {
    let [batch, _, tokens, _] = dims;
    let mut tensors = Vec::from(good(dims));
    let mask = (0..batch * tokens).map(|i| u8::from(i % 5 != 0)).collect();
    tensors.push(("mask", Dtype::BOOL, vec![batch, 1, 1, tokens], mask));
    tensors.push(half_tensor("bias", [1, 1, tokens, tokens], wave));
    tensors
}

#[test]
fn scores_are_changed_on_the_cpu_and_on_the_ptx_machine() {
    let folder = Folder::new("scores");
    let (input, slopes) = (folder.file("in.safetensors"), folder.file("slopes"));
    std::fs::write(&input, encode(&with_scores([1, 2, 20, 32]))).unwrap();
    std::fs::write(&slopes, "0.5\n0.25\n").unwrap();
    let file = slopes.to_str().unwrap();
    for flags in [
        &["--softcap", "20"][..],
        &["--alibi", "0.5,0.25"],
        &["--alibi", file, "--causal"],
        &["--sinks", "-1,2.5"],
        &["--mask", "--bias"],
        &["--softcap", "20", "--alibi", file, "--sinks", "0,0", "--mask", "--bias", "--window", "9,3"],
    ] {
        for device in ["cpu", "sim"] {
            let output = folder.file(device);
            let result = run_on(device, &input, &output, &[flags, &["--check", "--json", "--lse"]].concat());
            assert!(result.status.success(), "{flags:?} {device}: {}", String::from_utf8_lossy(&result.stderr));
            let report: Value = serde_json::from_slice(&result.stdout).unwrap();
            let error = report["check"]["relative_l2"].as_f64().unwrap();
            assert!(error < 0.03, "{flags:?} {device}: {error}");
        }
    }
}

#[test]
fn wrong_scores_are_refused() {
    let bytes = encode(&with_scores([1, 2, 20, 32]));
    for (flags, expected) in [
        (&["--softcap", "-3"][..], "softcap is -3; it has to be from"),
        (&["--alibi", "0.5"], "alibi_slopes has the shape [1]; [2]"),
        (&["--alibi", "nowhere"], "--alibi is neither numbers between commas nor a file that can be read: nowhere"),
        (&["--sinks", "1,2,3"], "sinks has the shape [3]; [2]"),
        (&["--sinks", "1,inf"], "sinks holds inf at element 1"),
    ] {
        refused("scores", &bytes, flags, expected);
    }
    refused("mask", &encode(&good([1, 2, 20, 32])), &["--mask"], "there is no tensor `mask`");
    let mut tensors = Vec::from(good([1, 2, 20, 32]));
    tensors.push(half_tensor("mask", [1, 1, 20, 20], wave));
    refused("mask", &encode(&tensors), &["--mask"], "it is F16; allowed are BOOL and U8");
    // Nobody asked for it.
    let folder = Folder::new("foreign-mask");
    std::fs::write(folder.file("in"), encode(&tensors)).unwrap();
    assert!(run(&folder.file("in"), &folder.file("out"), &[]).status.success());
    tensors[3] = half_tensor("bias", [2, 1, 20, 20], wave);
    refused("bias", &encode(&tensors), &["--bias"], "bias has the shape [2, 1, 20, 20]");
}

#[test]
fn wrong_windows_are_refused() {
    let folder = Folder::new("windows");
    let (input, output) = (folder.file("in.safetensors"), folder.file("out.safetensors"));
    std::fs::write(&input, encode(&good([1, 2, 4, 32]))).expect("the input is written");
    for (more, expected) in [
        (&["--window", "-1,0"][..], "the side `-1`; a side is how many keys are seen"),
        (&["--window", "5,-10"], "the side `-10`; a side is how many keys are seen"),
        (&["--window", "all,0"], "or `inf` for all of them"),
        (&["--window", "5"], "LEFT,RIGHT"),
        (&["--window", "5,0", "--causal"], "cannot be used with '--causal'"),
    ] {
        let result = run(&input, &output, more);
        let stderr = String::from_utf8_lossy(&result.stderr);
        assert!(!result.status.success() && !output.exists(), "{more:?} was taken");
        assert!(stderr.lines().next().is_some_and(|line| line.contains(expected)), "{more:?}: {stderr}");
    }
}

#[test]
fn a_problem_without_a_kernel_is_refused_alike_on_every_device() {
    let folder = Folder::new("none");
    let (input, output) = (folder.file("in.safetensors"), folder.file("out.safetensors"));
    let has = "there are kernels for multiples of 8 up to";
    let float16 = "a score needs all channels of its head, so that a wider head cannot be taken in parts: leave its layers to a float16 attention";
    for (scheme, head_dim, expected) in [
        ("paper", 256, format!("error: head_dim is 256; {has} 128: the default scheme has them up to 512\n")),
        ("default", 520, format!("error: head_dim is 520; {has} 512: {float16}\n")),
    ] {
        std::fs::write(&input, encode(&good([1, 1, 3, head_dim]))).expect("the input is written");
        for device in ["cpu", "sim"] {
            let result = run_on(device, &input, &output, &["--scheme", scheme]);
            assert!(!result.status.success() && !output.exists());
            assert_eq!(String::from_utf8_lossy(&result.stderr), expected);
        }
    }
}

#[test]
fn schemes_and_dtypes_are_taken() {
    for (dtype, scheme) in [(Dtype::F32, "paper"), (Dtype::BF16, "default")] {
        let folder = Folder::new(scheme);
        let (input, output) = (folder.file("in.safetensors"), folder.file("out.safetensors"));
        let dims = vec![1, 2, 5, 64];
        let bytes: Vec<u8> = (0..640)
            .flat_map(|i| match dtype {
                Dtype::F32 => wave(i).to_le_bytes().to_vec(),
                _ => half::bf16::from_f32(wave(i)).to_le_bytes().to_vec(),
            })
            .collect();
        let tensors = ["q", "k", "v"].map(|name| (name, dtype, dims.clone(), bytes.clone()));
        std::fs::write(&input, encode(&tensors)).expect("the input is written");
        let result = run(&input, &output, &["--scheme", scheme]);
        assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
        let bytes = std::fs::read(&output).expect("an output");
        assert_eq!(SafeTensors::deserialize(&bytes).expect("a whole file").tensor("o").expect("o").dtype(), dtype);
    }
}

#[test]
fn a_missing_tensor_is_named() {
    let [q, k, _] = good([1, 2, 4, 32]);
    refused("missing", &encode(&[q, k]), &[], "no tensor `v`");
}

#[test]
fn truncated_and_foreign_files_are_refused() {
    let whole = encode(&good([1, 2, 4, 32]));
    refused("truncated", &whole[..whole.len() - 7], &[], "not a whole safetensors file");
    refused("header", &whole[..20], &[], "not a whole safetensors file");
    refused("empty", &[], &[], "not a whole safetensors file");
    refused("foreign", b"PK\x03\x04 this is something else altogether", &[], "not a whole safetensors file");
}

#[test]
fn mismatched_tensors_are_refused() {
    let [q, k, v] = good([1, 2, 4, 32]);
    refused("shapes", &encode(&[q.clone(), k.clone(), half_tensor("v", [1, 2, 5, 32], wave)]), &[], "v has the shape");
    refused(
        "rank",
        &encode(&[q.clone(), k.clone(), ("v", Dtype::F16, vec![2, 4, 32], v.3.clone())]),
        &[],
        "four are needed",
    );
    let wide: Vec<u8> = (0..256).flat_map(|i| wave(i).to_le_bytes()).collect();
    refused("dtypes", &encode(&[q.clone(), k, ("v", Dtype::F32, vec![1, 2, 4, 32], wide)]), &[], "one dtype");
    let integers = ("k", Dtype::I32, vec![1, 2, 4, 32], vec![0; 1024]);
    refused("integers", &encode(&[q, integers, v]), &[], "F16, BF16 and F32");
    refused("head-dim", &encode(&good([1, 2, 4, 44])), &[], "44");
    refused("zero", &encode(&good([1, 2, 0, 32])), &[], "0");
}

#[test]
fn heads_that_do_not_group_are_refused() {
    let tensors = [
        half_tensor("q", [1, 3, 4, 32], wave),
        half_tensor("k", [1, 2, 4, 32], wave),
        half_tensor("v", [1, 2, 4, 32], wave),
    ];
    refused("groups", &encode(&tensors), &[], "heads");
}

#[test]
fn values_that_are_not_finite_are_refused() {
    for (name, bad) in [("nan", f32::NAN), ("inf", f32::INFINITY), ("minus-inf", f32::NEG_INFINITY)] {
        let [q, k, _] = good([1, 2, 4, 32]);
        let v = half_tensor("v", [1, 2, 4, 32], |i| if i == 77 { bad } else { wave(i) });
        refused(name, &encode(&[q, k, v]), &[], "v");
    }
}

#[test]
fn wrong_arguments_are_refused() {
    let bytes = encode(&good([1, 2, 4, 32]));
    refused("scale", &bytes, &["--softmax-scale", "nan"], "finite");
    let folder = Folder::new("arguments");
    let (input, output) = (folder.file("in.safetensors"), folder.file("out.safetensors"));
    let absent = run(&input, &output, &[]);
    assert!(!absent.status.success() && String::from_utf8_lossy(&absent.stderr).contains("cannot read"));
    std::fs::write(&input, &bytes).expect("the input is written");
    for more in [["--scheme", "fp8"], ["--layout", "nbhd"]] {
        let result = run(&input, &output, &more);
        assert!(!result.status.success() && !output.exists(), "{more:?} was taken");
    }
    let nowhere = run(&input, &folder.file("no/such/folder/out.safetensors"), &[]);
    assert!(!nowhere.status.success() && String::from_utf8_lossy(&nowhere.stderr).contains("cannot write"));
}

#[test]
fn the_papers_tables_are_made_without_a_gpu() {
    let mut command = Command::new(&*XTASK);
    let result = command.args(["paper", "--device", "cpu", "--seqlen", "128,200"]).output().expect("it starts");
    let stdout = String::from_utf8_lossy(&result.stdout);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    assert!(stdout.contains("time: not measured, as it is about a GPU (the CPU was asked for)"), "{stdout}");
    assert_eq!(stdout.lines().filter(|line| line.starts_with("normal (0, 1)")).count(), 3, "{stdout}");
    assert_eq!(stdout.lines().filter(|line| line.starts_with("uniform 0..1")).count(), 3, "{stdout}");
    let result = Command::new(&*XTASK).args(["paper", "--device", "sim"]).output().expect("it starts");
    assert!(!result.status.success());
}

#[test]
fn the_report_says_why_there_is_no_gpu() {
    let folder = Folder::new("auto");
    let (input, output) = (folder.file("in.safetensors"), folder.file("out.safetensors"));
    std::fs::write(&input, encode(&good([1, 2, 4, 32]))).expect("the input is written");
    let result = run_on("auto", &input, &output, &["--json"]);
    let report: Value = serde_json::from_slice(&result.stdout).expect("one JSON object");
    let on_cpu = report["device"] == "cpu";
    assert_eq!(on_cpu, report["why_not_gpu"].as_str().is_some_and(|why| !why.is_empty()), "{report}");
}
