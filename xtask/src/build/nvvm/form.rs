//! The two forms of rust-cuda's backend: the LLVM that it is built with decides what libNVVM is asked for.

use crate::build::ptx_text;
use anyhow::Result;
use int_flash_attention_kernels::config::Module;

/// The architecture that libNVVM compiles for where it reads a recent LLVM's bitcode; for older ones it reads LLVM 7's only.
const NEWER: &str = "sm_100";

/// A form of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// LLVM 7, which has to be built; libNVVM compiles for the module's own target.
    Llvm7,
    /// LLVM 19, which distributions have; libNVVM compiles for compute_100, and the header is set back.
    Llvm19,
}

impl Form {
    /// The form of an LLVM of this version.
    pub fn of_llvm(version: &str) -> Option<Self> {
        match version.split('.').next()? {
            "7" => Some(Self::Llvm7),
            "19" => Some(Self::Llvm19),
            _ => None,
        }
    }

    /// The cargo feature of `rustc_codegen_nvvm` and `cuda_builder`.
    pub fn feature(self) -> Option<&'static str> {
        match self {
            Self::Llvm7 => None,
            Self::Llvm19 => Some("llvm19"),
        }
    }

    /// The revision of rust-cuda that `docs/codegen.md` speaks of.
    pub fn revision(self) -> &'static str {
        match self {
            Self::Llvm7 => "946c91f080770f30d42d7c706ac8185969274073",
            Self::Llvm19 => "ebfe81ba0a4e113a3bfb1e4b050dcc2cc8d26f99",
        }
    }

    /// What that revision lacks.
    pub fn patch(self) -> Option<&'static str> {
        match self {
            Self::Llvm7 => None,
            Self::Llvm19 => Some(include_str!("rust-cuda-llvm19.patch")),
        }
    }

    /// The oldest CUDA whose libNVVM reads the bitcode, as `CUDA_VERSION` writes it.
    pub fn oldest_cuda(self) -> u32 {
        match self {
            Self::Llvm7 => 12000,
            Self::Llvm19 => 13000,
        }
    }

    /// The target that libNVVM compiles a module for.
    pub fn target(self, module: &Module) -> &'static str {
        match self {
            Self::Llvm7 => module.target,
            Self::Llvm19 => NEWER,
        }
    }

    /// libNVVM's PTX with the module's own target in its header.
    pub fn finish(self, ptx: String, module: &Module) -> Result<String> {
        match self {
            Self::Llvm7 => Ok(ptx),
            Self::Llvm19 => ptx_text::retarget(&ptx, module),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: Module = Module { name: "m", part: "p", target: "sm_90a", ptx: (8, 4) };

    #[test]
    fn llvm_19_compiles_for_a_newer_target_and_sets_the_header_back() {
        let raw = ".version 9.0\n.target sm_100\n.address_size 64\n";
        assert_eq!(Form::Llvm19.target(&M), "sm_100");
        let own = ".version 8.4\n.target sm_90a\n.address_size 64\n";
        assert_eq!(Form::Llvm19.finish(raw.to_owned(), &M).unwrap(), own);
        assert!(Form::Llvm19.finish("ret;\n".to_owned(), &M).is_err());
        // LLVM 7's is for the module's target from the start, whatever version libNVVM gives it
        assert_eq!(Form::Llvm7.target(&M), "sm_90a");
        let seven = ".version 7.8\n.target sm_90a\n";
        assert_eq!(Form::Llvm7.finish(seven.to_owned(), &M).unwrap(), seven);
    }

    #[test]
    fn two_versions_of_llvm_are_known() {
        assert_eq!(["7.1.0", "19.1.7"].map(Form::of_llvm), [Some(Form::Llvm7), Some(Form::Llvm19)]);
        assert_eq!(["", "1.9", "18.1.3", "20.1.0", "190"].map(Form::of_llvm), [None; 5]);
    }
}
