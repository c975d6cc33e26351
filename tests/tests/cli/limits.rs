//! What a file holds beside the three tensors, and what the system does not give.

use super::*;

/// A file of these entries of a header, with `q`, `k` and `v` as in [`good`]; `data` follows theirs.
fn with_entries(entries: &str, data: &[u8]) -> Vec<u8> {
    let tensor = |name: &str, at: usize| {
        format!(r#""{name}":{{"dtype":"F16","shape":[1,2,4,32],"data_offsets":[{},{}]}}"#, at * 512, (at + 1) * 512)
    };
    let header = format!("{{{}{entries}}}", [tensor("q", 0), tensor("k", 1), tensor("v", 2)].join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    for (_, _, _, tensor) in good([1, 2, 4, 32]) {
        bytes.extend(tensor);
    }
    bytes.extend(data);
    bytes
}

#[track_caller]
fn accepted(name: &str, bytes: &[u8]) {
    let folder = Folder::new(name);
    let (input, output) = (folder.file("in"), folder.file("out"));
    std::fs::write(&input, bytes).expect("the input is written");
    let result = run(&input, &output, &[]);
    assert!(result.status.success(), "{name}: {}", String::from_utf8_lossy(&result.stderr));
    let plain = folder.file("plain");
    std::fs::write(&input, encode(&good([1, 2, 4, 32]))).expect("the input is written");
    assert!(run(&input, &plain, &[]).status.success());
    assert_eq!(std::fs::read(output).expect("an output"), std::fs::read(plain).expect("an output"), "{name}");
}

#[test]
fn foreign_tensors_decide_nothing() {
    accepted("none", &with_entries("", &[]));
    let complex = r#","freqs_cis":{"dtype":"C64","shape":[8],"data_offsets":[1536,1600]}"#;
    accepted("complex", &with_entries(complex, &[0; 64]));
    let packed = r#","x":{"dtype":"F4_E2M1_X2","shape":[3,5],"data_offsets":[1536,1544],"more":[1,{"deep":[[]]}]}"#;
    accepted("packed", &with_entries(packed, &[0; 8]));
    accepted("metadata", &with_entries(r#","__metadata__":{"format":"pt","q":"not a tensor"}"#, &[]));
    // Names and shapes that only another program has to understand.
    accepted("strange", &with_entries(r#","\n\u0000":{"dtype":"F32","shape":[-1],"data_offsets":null}"#, &[]));
}

#[test]
fn three_hundred_names_are_not_one_line() {
    let zeros = vec![0; 64];
    let names: Vec<String> = (0..300).map(|i| format!("model.layers.{i:03}.self_attn.weight")).collect();
    let views = names.iter().map(|name| (name, TensorView::new(Dtype::F32, vec![16], &zeros).expect("a tensor")));
    let bytes = safetensors::serialize(views, None).expect("a file");
    refused("many", &bytes, &[], "model.layers.007.self_attn.weight and 292 more");
    let few = names.iter().take(2).map(|name| (name, TensorView::new(Dtype::F32, vec![16], &zeros).expect("a tensor")));
    let bytes = safetensors::serialize(few, None).expect("a file");
    refused("few", &bytes, &[], "the file has model.layers.000.self_attn.weight, model.layers.001.self_attn.weight\n");
    let long = format!(r#"{{"{}\n\u001b[31m":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}}}"#, "a".repeat(30));
    let mut bytes = (long.len() as u64).to_le_bytes().to_vec();
    bytes.extend(long.bytes());
    refused("escapes", &bytes, &[], r"a\n\u{1b}[31m");
}

#[test]
fn entries_of_the_three_tensors_are_checked() {
    let file = |entry: &str| {
        let bytes = with_entries("", &[]);
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
        let header = String::from_utf8(bytes[8..8 + length].to_vec()).expect("a header");
        let header = header.replace(r#"{"dtype":"F16","shape":[1,2,4,32],"data_offsets":[1024,1536]}"#, entry);
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[8 + length..]].concat()
    };
    let whole = "not a whole safetensors file";
    for (name, entry, expected) in [
        ("past", r#"{"dtype":"F16","shape":[1,2,4,32],"data_offsets":[1026,1538]}"#, whole),
        ("short", r#"{"dtype":"F16","shape":[1,2,4,32],"data_offsets":[1024,1535]}"#, whole),
        ("backwards", r#"{"dtype":"F16","shape":[1,2,4,32],"data_offsets":[1536,1024]}"#, whole),
        (
            "far",
            r#"{"dtype":"F16","shape":[1,2,4,32],"data_offsets":[18446744073709551104,18446744073709551615]}"#,
            whole,
        ),
        ("minus", r#"{"dtype":"F16","shape":[1,2,-4,32],"data_offsets":[1024,1536]}"#, whole),
        ("no-shape", r#"{"dtype":"F16","data_offsets":[1024,1536]}"#, whole),
        ("null", "null", whole),
        ("twice", r#"{"dtype":"F16","shape":[1,2,4,32],"data_offsets":[1024,1536]},"v":null"#, whole),
        ("huge", r#"{"dtype":"F16","shape":[4294967296,4294967296,1,32],"data_offsets":[1024,1536]}"#, "do not fit"),
        ("large", r#"{"dtype":"F16","shape":[1,1,1099511627776,32],"data_offsets":[1024,1536]}"#, whole),
        (
            "rank",
            r#"{"dtype":"F16","shape":[1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[1024,1536]}"#,
            "12 dimensions; four are needed",
        ),
        ("complex", r#"{"dtype":"C64","shape":[1,2,4,32],"data_offsets":[1024,1536]}"#, "F16, BF16 and F32"),
        ("word", r#"{"dtype":"F\n16","shape":[1,2,4,32],"data_offsets":[1024,1536]}"#, r"F\n16"),
    ] {
        refused(name, &file(entry), &[], expected);
    }
    refused("header-length", &[&u64::MAX.to_le_bytes()[..], b"{}"].concat(), &[], whole);
}

/// Runs the command with this much address space, in KiB, and these variables.
fn limited(kib: u64, variables: &[(&str, &str)], input: &Path, output: &Path, more: &[&str]) -> Output {
    let line = format!(r#"ulimit -c 0; ulimit -v {kib}; exec "$@""#);
    let mut command = Command::new("sh");
    command.arg("-c").arg(line).arg("sh").arg(&*XTASK).args(["attention", "--device", "cpu", "--input"]).arg(input);
    command.arg("--output").arg(output).args(more).envs(variables.iter().copied());
    command.output().expect("sh starts")
}

#[test]
fn too_little_memory_is_a_sentence() {
    let folder = Folder::new("memory");
    let (input, output) = (folder.file("in"), folder.file("out"));
    // 3 x 48 MiB of zeros, which the file system need not keep
    let (elements, bytes) = ([1, 12, 32768, 64], 2 * 12 * 32768 * 64);
    let tensor = |name: &str, at: usize| {
        format!(
            r#""{name}":{{"dtype":"F16","shape":{elements:?},"data_offsets":[{},{}]}}"#,
            at * bytes,
            (at + 1) * bytes
        )
    };
    let header = format!("{{{}}}", [tensor("q", 0), tensor("k", 1), tensor("v", 2)].join(","));
    std::fs::write(&input, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).expect("a file");
    let length = (8 + header.len() + 3 * bytes) as u64;
    std::fs::OpenOptions::new().write(true).open(&input).and_then(|file| file.set_len(length)).expect("its length");
    // Enough to start with two threads; then too little for the tensors, and too little for the work.
    for (kib, expected) in
        [(100 << 10, "there is no memory for its"), (300 << 10, "no memory for attention on the CPU")]
    {
        let result = limited(kib, &[("RAYON_NUM_THREADS", "2"), ("MALLOC_ARENA_MAX", "1")], &input, &output, &[]);
        let stderr = String::from_utf8_lossy(&result.stderr).into_owned();
        assert_eq!(result.status.code(), Some(1), "{stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(expected) && stderr.lines().count() == 1, "{stderr}");
        assert!(!output.exists());
    }
}

#[test]
fn too_many_threads_are_fewer() {
    let folder = Folder::new("threads");
    let (input, output) = (folder.file("in"), folder.file("out"));
    std::fs::write(&input, encode(&good([1, 2, 4, 32]))).expect("the input is written");
    let variables = [("RAYON_NUM_THREADS", "100000"), ("MALLOC_ARENA_MAX", "1")];
    // Under a limit that holds some of their stacks only, whether the command can say so is up to the standard library: a thread that
    // has started and finds no room for its signal stack ends the process.
    let result = limited(8 << 20, &variables, &input, &output, &[]);
    assert!(result.status.success() && output.exists(), "{}", String::from_utf8_lossy(&result.stderr));
}

#[test]
fn results_that_are_not_finite_are_refused() {
    let dims = vec![1, 1, 4, 32];
    let tensor = |name: &'static str, value: f32| -> Tensor {
        (name, Dtype::F32, dims.clone(), [value; 128].iter().flat_map(|x| x.to_le_bytes()).collect())
    };
    let file = encode(&[tensor("q", 1e19), tensor("k", 1e19), tensor("v", 1.0)]);
    for (scheme, scale) in [("default", "30"), ("paper", "1e30")] {
        let more = ["--lse", "--scheme", scheme, "--softmax-scale", scale];
        refused("range", &file, &more, "left the range of the scheme");
    }
}

/// Files of the kernel that say that they are empty, and devices that have no end.
#[test]
fn what_is_no_file_of_tensors_is_soon_refused() {
    let folder = Folder::new("kernel");
    let output = folder.file("out");
    for input in ["/proc/self/auxv", "/proc/self/stat", "/dev/zero", "/dev/null", "/dev/urandom", "/proc/self/mem"] {
        // Without a limit a program that reads all of it would end with all memory.
        let result = limited(1 << 20, &[("RAYON_NUM_THREADS", "2")], Path::new(input), &output, &[]);
        let said = String::from_utf8_lossy(&result.stderr).into_owned();
        assert_eq!(result.status.code(), Some(1), "{input}: {said}");
        assert!(said.starts_with("error: ") && said.lines().count() == 1 && said.len() < 400, "{input}: {said}");
        assert!(said.contains("not a whole safetensors file") || said.contains("cannot read"), "{input}: {said}");
    }
    assert!(!output.exists());
}
