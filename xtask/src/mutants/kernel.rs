//! A kernel of a folder of PTX, alone in its module, and the checks of its battery.

use super::ptx::Source;
use anyhow::{Context, Result};
use int_flash_attention_tests::battery::{self, Check};
use ptx_machine::Module;
use std::fs;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Warp instructions of a CTA in an unchanged kernel are far fewer.
const ENDLESS: u64 = 10_000_000;

/// A module's text, and the module with all of its kernels, loaded when first needed.
struct Whole {
    name: String,
    source: Source,
    module: OnceLock<Result<Arc<Module>, String>>,
}

/// A kernel, its module with no other in it, and its checks, made when first needed.
pub(super) struct Kernel {
    pub(super) name: String,
    whole: Arc<Whole>,
    pub(super) text: String,
    pub(super) body: Range<usize>,
    checks: OnceLock<Result<Vec<Checked>, String>>,
}

/// A check, and whether the kernel passes it unchanged, which is asked when a mutant does not.
struct Checked {
    check: Check,
    sound: OnceLock<Result<(), String>>,
}

/// The kernels of every module in the folder.
pub(super) fn kernels(folder: &Path, patterns: &[String]) -> Result<Vec<Kernel>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "ptx"));
    files.sort();
    let mut out = Vec::new();
    for file in files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let source = Source::new(fs::read_to_string(&file)?);
        let whole = Arc::new(Whole { name, source, module: OnceLock::new() });
        for name in whole.source.kernels() {
            if !patterns.is_empty() && !patterns.iter().any(|pattern| name.contains(pattern.as_str())) {
                continue;
            }
            let (text, body) = whole.source.alone(name).with_context(|| format!("{name} has no body"))?;
            out.push(Kernel { name: name.to_owned(), whole: whole.clone(), text, body, checks: OnceLock::new() });
        }
    }
    Ok(out)
}

/// What keeps the reasons of failures, which [`anyhow::Error`] does not let two threads have.
fn kept<T>(result: Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{error:#}"))
}

fn given<T>(kept: &Result<T, String>) -> Result<&T> {
    kept.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
}

impl Whole {
    fn module(&self) -> Result<Arc<Module>> {
        given(self.module.get_or_init(|| kept(Kernel::load(self.source.text())))).cloned()
    }
}

impl Kernel {
    pub(super) fn load(text: &str) -> Result<Arc<Module>> {
        Ok(Arc::new(Module::load(text)?.with_instruction_limit(ENDLESS)))
    }

    /// This module in its own one's place, and beside it the others' kernels, which some checks run first.
    fn among_others(&self, module: Arc<Module>) -> Result<Vec<Arc<Module>>> {
        let others = self.whole.source.kernels().count() > 1;
        Ok(if others { vec![module, self.whole.module()?] } else { vec![module] })
    }

    fn checks(&self) -> Result<&Vec<Checked>> {
        let all = || Ok(battery::of(&self.name)?.into_iter().map(|check| Checked { check, sound: OnceLock::new() }));
        given(self.checks.get_or_init(|| kept(all().map(Iterator::collect))))
    }

    /// What the first check that this module does not pass says; that the kernel as it is passes that one.
    pub(super) fn first_failure(&self, module: Arc<Module>) -> Result<Option<String>> {
        let modules = self.among_others(module)?;
        for Checked { check, sound } in self.checks()? {
            let failure = match catch_unwind(AssertUnwindSafe(|| check.run(&self.whole.name, &modules))) {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "an assertion of the machine".into(),
            };
            let as_it_is = || check.run(&self.whole.name, &[self.whole.module()?]);
            given(sound.get_or_init(|| kept(as_it_is()))).with_context(|| format!("{} as it is", self.name))?;
            return Ok(Some(failure));
        }
        Ok(None)
    }
}
