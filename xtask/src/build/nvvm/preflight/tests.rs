//! The checks against made-up machines: a folder as file system, shell scripts as programs.

use super::*;
use std::os::unix::fs::PermissionsExt;

const TOOLCHAIN: &str = "nightly-2026-04-02";

/// A machine in a folder of its own, which goes with it.
struct MadeUp {
    root: PathBuf,
    variables: BTreeMap<OsString, OsString>,
}

impl MadeUp {
    /// Nothing on it.
    fn bare(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("xtask-preflight-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).unwrap();
        let mut made_up = Self { root, variables: BTreeMap::new() };
        made_up.set("PATH", "bin");
        made_up
    }

    /// Everything on it.
    fn complete(name: &str) -> Self {
        let mut made_up = Self::bare(name);
        made_up.write("rust/lib/rustlib/components", "rust-src\nrustc-dev-x86_64\nllvm-tools-x86_64\n");
        made_up.script("bin/rustc", &format!("echo {}", made_up.root.join("rust").display()));
        made_up.script("bin/c++", "");
        made_up.llvm("7.1.0", "all ipo bitreader bitwriter lto nvptx", "");
        made_up.write("clang/libclang.so", "");
        made_up.write("cuda/include/cuda.h", "/* */\n#define CUDA_VERSION 12090\n");
        for file in ["include/cuda_runtime_api.h", "nvvm/include/nvvm.h"] {
            made_up.write(&format!("cuda/{file}"), "");
        }
        for file in ["nvvm/lib64/libnvvm.so", "nvvm/lib64/libnvvm.so.4", "nvvm/libdevice/libdevice.10.bc"] {
            made_up.write(&format!("cuda/{file}"), "");
        }
        for file in ["Cargo.lock", "crates/cuda_builder/Cargo.toml", "crates/cuda_std/Cargo.toml"] {
            made_up.write(&format!("rust-cuda/{file}"), "");
        }
        made_up.write("rust-cuda/crates/rustc_codegen_nvvm/Cargo.toml", "");
        made_up.write("rust-cuda/rust-toolchain.toml", &format!("channel = \"{TOOLCHAIN}\"\n"));
        for (variable, path) in [("LLVM_CONFIG", "bin/llvm-config"), ("LIBCLANG_PATH", "clang"), ("CUDA_PATH", "cuda")]
        {
            made_up.set(variable, path);
        }
        made_up
    }

    fn set(&mut self, variable: &str, path: &str) {
        self.variables.insert(variable.into(), self.root.join(path).into());
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn script(&self, path: &str, body: &str) {
        self.write(path, &format!("#!/bin/sh\n{body}\n"));
        fs::set_permissions(self.root.join(path), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Of LLVM 7 as well, with LLVM 19 from packages: its `llvm-as`, the libraries that it names, and a checkout that knows it.
    fn with_llvm_19(name: &str) -> Self {
        let made_up = Self::complete(name);
        made_up.llvm("19.1.7", "all ipo bitreader bitwriter lto nvptx", "");
        made_up.write("bin/llvm-as", "");
        made_up.write("llvm/libPolly.a", "");
        made_up.script(
            "bin/c++",
            "case $1 in\n-print-file-name=libzstd.so) echo /usr/lib/libzstd.so;;\n*) echo no;;\nesac",
        );
        made_up.write("rust-cuda/crates/rustc_codegen_nvvm/Cargo.toml", "[features]\nllvm19 = []\n");
        made_up.write("cuda/include/cuda.h", "#define CUDA_VERSION 13000\n");
        made_up
    }

    /// An `llvm-config`; `absent` is what it says where a library is missing. LLVM 19's names two libraries of others.
    fn llvm(&self, version: &str, components: &str, absent: &str) {
        let others = if version.starts_with("19") { "echo -lLLVMCore -lPolly -lzstd" } else { "echo -lLLVMCore" };
        let libs = if absent.is_empty() { others.to_owned() } else { format!("echo '{absent}' >&2; exit 1") };
        let folder = self.root.join("llvm");
        let answers = format!(
            "case $1 in\n--version) echo {version};;\n--components) echo {components};;\n--libdir) echo {};;\n*) {libs};;\nesac",
            folder.display()
        );
        self.script("bin/llvm-config", &answers);
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.root.join(path)).unwrap();
    }

    fn find(&self, checkout: Option<&str>) -> Checked<Parts> {
        let machine = Machine { variables: self.variables.clone(), root: self.root.clone() };
        let checkout = checkout.map(|path| self.root.join(path));
        find(&machine, TOOLCHAIN, checkout.as_deref(), &self.root.join("work"))
    }

    /// The one thing that is missing.
    fn fault(&self) -> String {
        let missing = self.find(Some("rust-cuda")).unwrap_err();
        assert_eq!(missing.len(), 1, "{missing:?}");
        missing[0].clone()
    }
}

impl Drop for MadeUp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

#[test]
fn a_bare_machine_is_told_everything_at_once() {
    let missing = MadeUp::bare("bare").find(None).unwrap_err();
    let subjects: Vec<_> = missing.iter().map(|line| line.split(':').next().unwrap()).collect();
    let toolchain = format!("Rust {TOOLCHAIN}");
    let expected =
        [&toolchain, "LLVM 19 or 7", "rust-cuda", "libclang", "C++ compiler", "CUDA headers, libNVVM, libdevice"];
    assert_eq!(subjects, expected);
    // what to install or set
    for (line, remedy) in
        missing.iter().zip(["rustup", "LLVM_CONFIG", "--rust-cuda", "LIBCLANG_PATH", "CXX", "CUDA_PATH"])
    {
        assert!(line.contains(remedy), "{line}");
    }
}

#[test]
fn a_complete_machine_passes() {
    let made_up = MadeUp::complete("complete");
    let parts = made_up.find(Some("rust-cuda")).unwrap();
    let root = made_up.root.canonicalize().unwrap();
    assert_eq!(parts.cuda, root.join("cuda"));
    assert_eq!((parts.llvm.config, parts.llvm.form), (root.join("bin/llvm-config"), Form::Llvm7));
    assert_eq!(parts.rust_cuda, root.join("rust-cuda"));
}

#[test]
fn the_version_of_llvm_chooses_the_form() {
    let mut made_up = MadeUp::with_llvm_19("form");
    assert_eq!(made_up.find(Some("rust-cuda")).unwrap().llvm.form, Form::Llvm19);
    // without the variable, by the names in PATH; an LLVM 7 was built for this
    made_up.variables.remove::<OsString>(&"LLVM_CONFIG".into());
    let root = made_up.root.clone();
    fs::rename(root.join("bin/llvm-config"), root.join("bin/llvm-config-19")).unwrap();
    fs::rename(root.join("bin/llvm-as"), root.join("bin/llvm-as-19")).unwrap();
    assert_eq!(made_up.find(Some("rust-cuda")).unwrap().llvm.form, Form::Llvm19);
    made_up.llvm("7.1.0", "all ipo bitreader bitwriter lto nvptx", "");
    fs::rename(root.join("bin/llvm-config"), root.join("bin/llvm-config-7")).unwrap();
    assert_eq!(made_up.find(Some("rust-cuda")).unwrap().llvm.form, Form::Llvm7);
}

#[test]
fn what_llvm_19_lacks_is_named() {
    let made_up = MadeUp::with_llvm_19("llvm-as");
    made_up.remove("bin/llvm-as");
    assert!(made_up.fault().contains("has no llvm-as"));
    let made_up = MadeUp::with_llvm_19("libraries");
    made_up.remove("llvm/libPolly.a");
    made_up.script("bin/c++", "echo no");
    assert!(made_up.fault().contains("not there (Polly, zstd)"));
    let made_up = MadeUp::with_llvm_19("libnvvm");
    made_up.write("cuda/include/cuda.h", "#define CUDA_VERSION 12080\n");
    assert!(made_up.fault().contains("older than"));
    let made_up = MadeUp::with_llvm_19("feature");
    made_up.write("rust-cuda/crates/rustc_codegen_nvvm/Cargo.toml", "[features]\n");
    let fault = made_up.fault();
    assert!(fault.contains("no feature llvm19") && fault.contains(&Form::Llvm19.revision()[..7]), "{fault}");
}

#[test]
fn a_checkout_without_the_patch_is_refused() {
    let made_up = MadeUp::with_llvm_19("patch");
    made_up.script("bin/git", "cat > $0.got; [ \"$*\" = \"apply --check\" ]");
    assert!(made_up.fault().contains("lacks the lines of"));
    let got = fs::read_to_string(made_up.root.join("bin/git.got")).unwrap();
    assert_eq!(Some(got.as_str()), Form::Llvm19.patch());
    // one that it does not fit has it, or is another revision
    made_up.script("bin/git", "cat > $0.got; exit 1");
    assert!(made_up.find(Some("rust-cuda")).is_ok());
}

#[test]
fn another_llvm_is_refused() {
    let made_up = MadeUp::with_llvm_19("llvm");
    made_up.llvm("18.1.3", "all ipo bitreader bitwriter lto nvptx", "");
    assert!(made_up.fault().contains("is of version 18.1.3"));
    let made_up = MadeUp::complete("llvm-7");
    made_up.llvm("7.0.0", "all ipo bitreader bitwriter lto", "");
    assert!(made_up.fault().contains("has no nvptx;"));
    made_up.llvm("7.0.0", "ipo bitreader bitwriter lto nvptx", "llvm-config: error: missing: /a/libLLVMCore.a");
    assert!(made_up.fault().contains("(libLLVMCore.a)"));
}

#[test]
fn a_part_of_cuda_that_is_missing_is_named() {
    let made_up = MadeUp::complete("cuda");
    made_up.remove("cuda/nvvm/lib64/libnvvm.so.4");
    made_up.remove("cuda/nvvm/libdevice/libdevice.10.bc");
    let missing = made_up.find(Some("rust-cuda")).unwrap_err();
    assert_eq!(missing.len(), 2, "{missing:?}");
    assert!(missing[0].ends_with("has no nvvm/lib64/libnvvm.so.4") && missing[1].starts_with("libdevice:"));
    let made_up = MadeUp::complete("cuda-old");
    made_up.write("cuda/include/cuda.h", "#define CUDA_VERSION 11080\n");
    assert!(made_up.fault().contains("is of version 11080"));
}

#[test]
fn cuda_and_libclang_are_found_in_the_systems_folders() {
    let mut made_up = MadeUp::complete("system");
    made_up.variables.remove::<OsString>(&"CUDA_PATH".into());
    made_up.variables.remove::<OsString>(&"LIBCLANG_PATH".into());
    fs::create_dir_all(made_up.root.join("usr/local")).unwrap();
    fs::rename(made_up.root.join("cuda"), made_up.root.join("usr/local/cuda")).unwrap();
    made_up.write("usr/lib/llvm-18/lib/libclang-18.so.1", "");
    assert!(made_up.find(Some("rust-cuda")).is_ok());
}

#[test]
fn a_wrong_checkout_or_toolchain_is_refused() {
    let made_up = MadeUp::complete("checkout");
    made_up.write("rust-cuda/rust-toolchain.toml", "channel = \"nightly-2025-01-01\"\n");
    assert!(made_up.fault().contains("another toolchain"));
    assert!(made_up.find(Some("clang")).unwrap_err()[0].contains("is no checkout"));
    assert!(made_up.find(Some("nowhere")).unwrap_err()[0].contains("there is no folder"));
    let made_up = MadeUp::complete("components");
    made_up.write("rust/lib/rustlib/components", "rust-src\n");
    assert!(made_up.fault().contains("it lacks rustc-dev, llvm-tools"));
}
