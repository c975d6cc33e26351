//! The modules that the library is built with: PTX for every GPU, and machine code for some.

use int_flash_attention_kernels::config::shipping::nearest;
use std::io::Read;

/// A module as `host/build.rs` finds it.
pub(super) struct Embedded {
    pub(super) name: &'static str,
    /// What `cargo xtask build` made.
    pub(super) ptx: &'static str,
    /// What `cargo xtask machine-code` made of that; nothing where it has not been asked to.
    machine_code: &'static [Code],
}

/// A module's machine code for one architecture.
pub(super) struct Code {
    /// As ptxas calls it.
    pub(super) architecture: &'static str,
    /// The cubin, compressed.
    lzma: &'static [u8],
}

const MODULES: &[Embedded] = include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// A module of this build.
pub(super) fn find(name: &str) -> Option<&'static Embedded> {
    MODULES.iter().find(|module| module.name == name)
}

/// The PTX of a module of this build. For the tests, which run what ships.
#[doc(hidden)]
#[must_use]
pub fn embedded_ptx(name: &str) -> Option<&'static str> {
    find(name).map(|module| module.ptx)
}

impl Embedded {
    /// The machine code that a GPU of this compute capability runs.
    pub(super) fn machine_code(&self, capability: (u32, u32)) -> Option<&Code> {
        let chosen = nearest(self.machine_code.iter().map(|code| code.architecture), capability)?;
        self.machine_code.iter().find(|code| code.architecture == chosen)
    }
}

impl Code {
    /// The cubin, as ptxas wrote it.
    ///
    /// # Panics
    /// Where the embedded bytes are damaged, which a test excludes.
    pub(super) fn cubin(&self) -> Vec<u8> {
        let mut cubin = Vec::new();
        lzma_rust2::LzmaReader::new_mem_limit(self.lzma, u32::MAX, None)
            .and_then(|mut reader| reader.read_to_end(&mut cubin))
            .expect("what is embedded was compressed by xtask");
        cubin
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use int_flash_attention_kernels::config;
    use int_flash_attention_kernels::{dequantize, quantize};

    #[test]
    fn the_features_decide_which_modules_there_are() {
        for module in config::MODULES {
            let on = |feature| match feature {
                "baseline" => cfg!(feature = "baseline"),
                "paper" => cfg!(feature = "paper"),
                "sm90a" => cfg!(feature = "sm90a"),
                other => panic!("{other} is no feature"),
            };
            assert_eq!(find(module.name).is_some(), module.features().all(on), "{}", module.name);
        }
        assert!(find("none").is_none());
    }

    #[test]
    fn every_kernel_is_in_the_ptx_of_its_module() {
        let attention = config::ATTENTION.iter().map(|variant| (variant.name, variant.name));
        let baseline = config::BASELINE.iter().map(|variant| (variant.name, variant.name));
        let short = config::short::SHORT.iter().map(|variant| (variant.name, variant.name));
        let quantize = quantize::launch::bounds().map(|bounds| (bounds.module, bounds.entry));
        let dequantize = dequantize::launch::BOUNDS.iter().map(|bounds| (bounds.module, bounds.entry));
        let decode = config::decode::DECODE.iter().map(|variant| (variant.name, variant.name));
        let merge = config::decode::MERGE_BOUNDS.iter().map(|bounds| (bounds.module, bounds.entry));
        for (module, entry) in
            attention.chain(baseline).chain(short).chain(quantize).chain(dequantize).chain(decode).chain(merge)
        {
            assert!(config::MODULES.iter().any(|known| known.name == module), "{module}");
            let Some(embedded) = find(module) else { continue };
            let declared = embedded.ptx.contains(&format!(".entry {entry}("));
            assert!(declared, "host/ptx/{module}.ptx has no {entry}: run `cargo xtask build`");
        }
    }

    /// What `xtask check` compares with ptxas is what unpacks here: a whole cubin of each promised architecture, with the module's
    /// kernels in it. In a clone that has made no machine code there is nothing to look at.
    #[test]
    fn machine_code_is_there_for_each_promised_architecture_or_for_none() {
        for embedded in MODULES.iter().filter(|embedded| !embedded.machine_code.is_empty()) {
            let module = config::MODULES.iter().find(|module| module.name == embedded.name).unwrap();
            let promised = module.machine_code().map(|architecture| architecture.name);
            assert!(promised.eq(embedded.machine_code.iter().map(|code| code.architecture)), "{}", module.name);
            for code in embedded.machine_code {
                let cubin = code.cubin();
                assert_eq!(cubin[..4], *b"\x7fELF", "{} {}", module.name, code.architecture);
                let entries = embedded.ptx.split(".entry ").skip(1).filter_map(|rest| rest.split('(').next());
                for entry in entries {
                    let section = format!("\0.text.{entry}\0");
                    let there = cubin.windows(section.len()).any(|window| window == section.as_bytes());
                    assert!(there, "{} {} has no {entry}", module.name, code.architecture);
                }
            }
        }
    }

    #[test]
    fn a_gpu_gets_the_nearest_machine_code_and_another_none() {
        let code = |architecture| Code { architecture, lzma: b"" };
        let machine_code: &'static [Code] = Box::leak(Box::new([code("sm_80"), code("sm_86"), code("sm_90")]));
        let module = Embedded { name: "x", ptx: "", machine_code };
        let chosen = |capability| module.machine_code(capability).map(|code| code.architecture);
        assert_eq!(
            [(8, 0), (8, 9), (9, 0), (8, 7), (12, 0)].map(chosen),
            [Some("sm_80"), Some("sm_86"), Some("sm_90"), None, None]
        );
        assert!(Embedded { name: "x", ptx: "", machine_code: &[] }.machine_code((8, 0)).is_none());
    }
}
