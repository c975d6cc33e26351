//! Loading a module, checking a launch, and running its CTAs on every core.

use crate::decode::{self, ParamPlace, Program};
use crate::error::Error;
use crate::exec::{Environment, Worker};
use crate::memory::{DevPtr, Memory};
use crate::parse;
use crate::report::{Report, Stats};
use crate::ty::Ty;
use rayon::prelude::*;
use std::collections::HashMap;
use std::mem::discriminant;
use std::ops::Range;

/// A loaded PTX file.
pub struct Module {
    ptx: String,
    kernels: HashMap<String, Program>,
    variables: Memory,
    instruction_limit: u64,
}

/// Which kernel to run, and on how many threads.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// The kernel's name.
    pub kernel: &'a str,
    /// CTAs along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a CTA along x, y and z.
    pub block: [u32; 3],
    /// Dynamic shared memory.
    pub shared_bytes: u32,
}

/// The shared memory of the largest device there is.
const MAX_SHARED: u32 = 227 * 1024;
/// Warp instructions after which a CTA is taken to be in an endless loop.
const INSTRUCTION_LIMIT: u64 = 1 << 30;

impl Module {
    /// Parses and decodes every kernel of a PTX file.
    ///
    /// # Errors
    ///
    /// When the text is not PTX, or holds an instruction, type or modifier that the machine does not know.
    pub fn load(ptx: &str) -> Result<Self, Error> {
        let attach = |failure: parse::Failure| failure.at(ptx);
        let source = parse::parse(ptx).map_err(attach)?;
        let (variables, symbols) = decode::module_variables(&source.variables).map_err(attach)?;
        let mut kernels = HashMap::new();
        for kernel in &source.kernels {
            let program = decode::kernel(kernel, &source, &symbols).map_err(attach)?;
            kernels.insert(program.name.clone(), program);
        }
        Ok(Self { ptx: ptx.to_owned(), kernels, variables, instruction_limit: INSTRUCTION_LIMIT })
    }

    /// Changes how many warp instructions a CTA may execute before it counts as an endless loop; 2^30 if not called.
    #[must_use]
    pub fn with_instruction_limit(self, instruction_limit: u64) -> Self {
        Self { instruction_limit, ..self }
    }

    /// The names of the kernels, in alphabetical order.
    pub fn kernels(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.kernels.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Whether it has a kernel of this name.
    #[must_use]
    pub fn has(&self, kernel: &str) -> bool {
        self.kernels.contains_key(kernel)
    }

    /// Runs a kernel to its end.
    ///
    /// # Errors
    ///
    /// When the launch does not fit the kernel, or the checker has findings; memory then holds what the kernel
    /// wrote all the same.
    pub fn launch(&self, launch: &Launch<'_>, args: &[Arg], memory: &Memory) -> Result<Stats, Error> {
        let ctas = launch.grid.iter().map(|n| u64::from(*n)).product::<u64>();
        self.launch_some(launch, 0..ctas, args, memory)
    }

    /// Runs some CTAs of a launch, by their numbers (x counts first): what the last of very many do can be seen without the
    /// others.
    ///
    /// # Errors
    ///
    /// As [`launch`](Self::launch).
    pub fn launch_some(
        &self,
        launch: &Launch<'_>,
        ctas: Range<u64>,
        args: &[Arg],
        memory: &Memory,
    ) -> Result<Stats, Error> {
        let program = self.kernels.get(launch.kernel).ok_or_else(|| Error::NoKernel {
            kernel: launch.kernel.to_owned(),
            known: self.kernels().into_iter().map(str::to_owned).collect(),
        })?;
        check(launch, program)?;
        let env = Environment {
            program,
            memory,
            variables: &self.variables,
            params: arguments(program, args)?,
            grid: launch.grid,
            block: launch.block,
            dynamic_shared: launch.shared_bytes,
            limit: self.instruction_limit,
            ptx: &self.ptx,
        };
        // in the order of their numbers, as on a device: a CTA may wait for one that started before it
        let mut runs: Vec<_> =
            ctas.par_bridge().map_init(|| Worker::new(&env), |worker, cta| (cta, worker.run(cta))).collect();
        runs.sort_unstable_by_key(|(cta, _)| *cta);
        let mut stats = Stats::default();
        let mut findings: Vec<crate::report::Finding> = Vec::new();
        for (_, (run, found)) in runs {
            stats = stats + run;
            for finding in found {
                let same = |f: &crate::report::Finding| {
                    f.line == finding.line && discriminant(&f.fault) == discriminant(&finding.fault)
                };
                if !findings.iter().any(same) {
                    findings.push(finding);
                }
            }
        }
        if findings.is_empty() { Ok(stats) } else { Err(Report { findings }.into()) }
    }
}

fn check(launch: &Launch<'_>, program: &Program) -> Result<(), Error> {
    let fail = |reason: String| Err(Error::Launch { kernel: program.name.clone(), reason });
    let threads = launch.block.iter().map(|n| u64::from(*n)).product::<u64>();
    if launch.grid.contains(&0) || threads == 0 {
        return fail("the grid or the block is empty".into());
    }
    if launch.grid[1] > 65_535 || launch.grid[2] > 65_535 || launch.grid[0] > i32::MAX as u32 {
        return fail(format!("the grid {:?} is too large", launch.grid));
    }
    if threads > 1024 || launch.block[2] > 64 {
        return fail(format!("the block {:?} is too large", launch.block));
    }
    if program.required_block.is_some_and(|block| block != launch.block) {
        return fail(format!("its block must be {:?}, not {:?}", program.required_block, launch.block));
    }
    if let Some(most) = program.max_threads.filter(|most| u64::from(*most) < threads) {
        return fail(format!("its block has at most {most} threads, not {threads}"));
    }
    let shared = (program.dynamic_shared - program.first_shared).saturating_add(launch.shared_bytes);
    if shared > MAX_SHARED {
        return fail(format!("it would use {shared} bytes of shared memory"));
    }
    Ok(())
}

/// A kernel argument.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    /// For 32-bit integers of either sign.
    U32(u32),
    /// For 32-bit integers of either sign.
    I32(i32),
    /// For 64-bit integers of either sign.
    U64(u64),
    /// For 64-bit integers of either sign.
    I64(i64),
    /// For single-precision numbers.
    F32(f32),
    /// For pointers to global memory.
    Ptr(DevPtr),
    /// For structures passed by value.
    Bytes(Vec<u8>),
}

macro_rules! arg_from {
    ($($variant:ident: $ty:ty;)*) => {$(
        impl From<$ty> for Arg {
            fn from(value: $ty) -> Self {
                Self::$variant(value)
            }
        }
    )*};
}

arg_from! {
    U32: u32;
    I32: i32;
    U64: u64;
    I64: i64;
    F32: f32;
    Ptr: DevPtr;
    Bytes: Vec<u8>;
}

impl Arg {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::U32(value) => value.to_le_bytes().into(),
            Self::I32(value) => value.to_le_bytes().into(),
            Self::U64(value) => value.to_le_bytes().into(),
            Self::I64(value) => value.to_le_bytes().into(),
            Self::F32(value) => value.to_le_bytes().into(),
            Self::Ptr(ptr) => ptr.0.to_le_bytes().into(),
            Self::Bytes(bytes) => bytes.clone(),
        }
    }

    /// Compilers declare most parameters as plain bits, so that only size and pointers can be told apart for sure.
    fn fits(&self, param: &ParamPlace) -> bool {
        let kind = match self {
            Self::Bytes(_) => param.array,
            _ if param.array => false,
            Self::Ptr(ptr) => ptr.0 % u64::from(param.align) == 0 && !param.ty.is_float(),
            _ if param.pointer => false,
            Self::F32(_) => matches!(param.ty, Ty::F32 | Ty::B32),
            _ => !param.ty.is_float(),
        };
        kind && self.bytes().len() == param.bytes as usize
    }
}

/// Lays the arguments out as parameter memory.
fn arguments(program: &Program, args: &[Arg]) -> Result<Vec<u8>, Error> {
    let kernel = || program.name.clone();
    if args.len() != program.params.len() {
        let (expected, got) = (program.params.len(), args.len());
        return Err(Error::ArgumentCount { kernel: kernel(), expected, got });
    }
    let mut out = vec![0; program.param_bytes as usize];
    for (index, (arg, param)) in args.iter().zip(&program.params).enumerate() {
        if !arg.fits(param) {
            let expected = match (param.array, param.pointer) {
                (true, _) => format!("a structure of {} bytes", param.bytes),
                (_, true) => format!("a pointer aligned to {} bytes", param.align),
                _ => format!("a value of type {:?}", param.ty),
            };
            return Err(Error::Argument { kernel: kernel(), index, expected, got: format!("{arg:?}") });
        }
        let bytes = arg.bytes();
        out[param.offset as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    Ok(out)
}
