//! The kernels on the PTX machine: arguments and memory as docs/kernel-abi.md says.
//!
//! Outputs are memory that nothing has written, so that an element which no thread wrote is an error, as is a stray access.

use crate::case::MOST_SHARED;
use crate::properties::Kernels;
use anyhow::{Context, Result};
use int_flash_attention::gpu::embedded_ptx;
use int_flash_attention::{AttentionProblem, HostTensor, Order, Scored, SeqLens, Span, TensorLayout};
use int_flash_attention_kernels::config::Family;
use int_flash_attention_kernels::params::{self, Global, Params};
use ptx_machine::{Arg, DevPtr, Launch, Memory, Module};
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

mod append;
mod decode;
mod kernels;
mod later;
mod parts;
mod prefill;
mod quantize;
mod short;
mod tensors;

pub use append::SimulatedCache;
pub use quantize::Part;
pub use tensors::Places;

/// The shipped kernels, loaded as they are asked for.
pub struct Simulator {
    /// Where modules are read from instead.
    folder: Option<PathBuf>,
    family: Family,
    multiprocessors: u32,
    shared_bytes: usize,
    places: Places,
    /// Whether appends of few tokens are by the kernels whose launches overlap.
    overlaps: bool,
    lengths: SeqLens<Vec<u32>>,
    /// Those in the place of shipped ones first.
    modules: Mutex<HashMap<String, Vec<Arc<Module>>>>,
}

impl Default for Simulator {
    fn default() -> Self {
        Self::new()
    }
}

impl Simulator {
    /// The PTX that ships, or what lies in `$INT_FLASH_PTX_DIR`; the kernels that every GPU runs.
    #[must_use]
    pub fn new() -> Self {
        Self::of(Family::Sm80, 1)
    }

    /// [`new`](Self::new) with the kernels of this family where it has one for a problem, as on a GPU of so many multiprocessors.
    #[must_use]
    pub fn of(family: Family, multiprocessors: u32) -> Self {
        let folder = std::env::var_os("INT_FLASH_PTX_DIR").map(PathBuf::from);
        Self {
            folder,
            family,
            multiprocessors,
            shared_bytes: MOST_SHARED,
            places: Places::Usual,
            overlaps: false,
            lengths: SeqLens::Equal,
            modules: Mutex::default(),
        }
    }

    /// The same as on a GPU on which a CTA may have so many bytes of shared memory.
    #[must_use]
    pub fn with_shared_bytes(self, shared_bytes: usize) -> Self {
        Self { shared_bytes, ..self }
    }

    /// The same with the caller's tensors in other places.
    #[must_use]
    pub fn with_places(self, places: Places) -> Self {
        Self { places, ..self }
    }

    /// The same with the kernels whose launches overlap for appends of few tokens.
    #[must_use]
    pub fn overlapping(self) -> Self {
        Self { overlaps: true, ..self }
    }

    /// The same for sequences of these lengths, whatever they are.
    #[must_use]
    pub fn with_lengths(self, lengths: &SeqLens<Vec<u32>>) -> Self {
        Self { lengths: lengths.clone(), ..self }
    }

    /// The lengths in the machine's memory.
    fn seqlens(&self, memory: &mut Memory, planned: params::SeqLens) -> params::SeqLens {
        match self.lengths.map(|array| global(memory.alloc_from(array))) {
            SeqLens::Equal => planned,
            SeqLens::Packed { cu_seqlens_q, cu_seqlens_kv } => {
                params::SeqLens { cu_seqlens_q, cu_seqlens_kv, ..planned }
            }
            SeqLens::KeyLengths { seqlens_kv } => params::SeqLens { seqlens_kv, ..planned },
        }
    }

    /// Where the sequences are; for lengths that are none, nowhere.
    fn spans(&self, problem: &AttentionProblem) -> Vec<Span> {
        problem.spans(&self.lengths.map(Vec::as_slice)).unwrap_or_default()
    }

    /// The same with these in a module's place: of each kernel the first that has it.
    #[must_use]
    pub fn with_modules(self, name: &str, modules: &[Arc<Module>]) -> Self {
        self.modules.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), modules.to_vec());
        self
    }

    /// A module, loaded.
    ///
    /// # Errors
    ///
    /// When there is none of that name, or it does not load.
    pub fn module(&self, name: &str) -> Result<Arc<Module>> {
        self.module_with(name, |_| true)
    }

    /// The first of a module's that is so, the shipped one where none is.
    fn module_with(&self, name: &str, chosen: impl Fn(&Module) -> bool) -> Result<Arc<Module>> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let known = modules.entry(name.to_owned()).or_default();
        if let Some(module) = known.iter().find(|module| chosen(module)) {
            return Ok(module.clone());
        }
        let ptx = self.source(name)?;
        let module = Arc::new(Module::load(&ptx).with_context(|| format!("{name}.ptx"))?);
        known.push(module.clone());
        Ok(module)
    }

    fn source(&self, name: &str) -> Result<Cow<'static, str>> {
        if let Some(folder) = &self.folder {
            let path = folder.join(format!("{name}.ptx"));
            let ptx = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            return Ok(ptx.into());
        }
        Ok(embedded_ptx(name).with_context(|| format!("there is no module {name}"))?.into())
    }

    /// The names of a module's kernels.
    ///
    /// # Errors
    ///
    /// When the module does not load.
    pub fn kernels(&self, module: &str) -> Result<Vec<String>> {
        Ok(self.module(module)?.kernels().into_iter().map(str::to_owned).collect())
    }

    fn launch(&self, module: &str, at: &Grid<'_>, args: &[Arg], memory: &Memory) -> Result<()> {
        let ctas = at.grid.iter().map(|&n| u64::from(n)).product();
        self.launch_some(module, at, 0..ctas, args, memory)
    }

    fn launch_some(&self, module: &str, at: &Grid<'_>, ctas: Range<u64>, args: &[Arg], memory: &Memory) -> Result<()> {
        let [x, y, z] = at.grid;
        let launch = Launch {
            kernel: at.kernel,
            grid: [x, y, z],
            block: [u32::try_from(at.threads)?, 1, 1],
            shared_bytes: u32::try_from(at.shared)?,
        };
        let module = self.module_with(module, |module| module.has(at.kernel))?;
        module.launch_some(&launch, ctas, args, memory).with_context(|| at.kernel.to_owned())?;
        Ok(())
    }

    /// The whole job: quantize, attend; O in Q's dtype and layout, and the log-sum-exp where it is asked for.
    ///
    /// # Errors
    ///
    /// When the library refuses the problem, or the machine finds fault with a kernel.
    pub fn job<'a>(
        &self,
        problem: impl Into<Scored<'a>>,
        [q, k, v]: [&HostTensor; 3],
        lse: bool,
    ) -> Result<(HostTensor, Option<Vec<f32>>)> {
        let scored = problem.into();
        let problem = scored.problem;
        problem.check()?;
        let operands = self.quantize(problem, q, k, v)?;
        let order = q.layout().order().unwrap_or(Order::Bhnd);
        let out = if problem.o_shape() == q.shape() { q.layout() } else { TensorLayout::new(problem.o_shape(), order) };
        self.attention(&scored, &operands, &out, q.dtype(), lse)
    }
}

struct Grid<'a> {
    kernel: &'a str,
    grid: [u32; 3],
    threads: usize,
    shared: usize,
}

/// The rows of the tensors that sequences have, by batch.
fn query_rows(spans: &[Span]) -> Vec<(usize, Range<usize>)> {
    spans.iter().map(|span| (span.batch, span.q.clone())).collect()
}

fn key_rows(spans: &[Span]) -> Vec<(usize, Range<usize>)> {
    spans.iter().map(|span| (span.batch, span.kv.clone())).collect()
}

pub(crate) fn global<T>(ptr: DevPtr) -> Global<T> {
    Global::new(ptr.0)
}

/// A kernel's parameter structure, as it is passed by value.
fn structure(params: &impl Params) -> Arg {
    Arg::Bytes(params.bytes().to_vec())
}
