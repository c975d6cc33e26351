//! The float16 kernel, launched through the driver: the library does not ship it.

use anyhow::{Context, Result};
use int_flash_attention::AttentionProblem;
use int_flash_attention::driver::{Driver, Function, FunctionAttribute, LaunchShape, Module, StreamHandle};
use int_flash_attention_kernels::config;
use std::ffi::c_void;

const PTX: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../host/ptx/baseline_f16.ptx"));

/// The module, loaded into the current context.
pub struct Baseline {
    driver: Driver,
    module: Module,
}

/// A kernel ready for one problem of dense tensors, heads before tokens.
pub struct Plan {
    driver: Driver,
    function: Function,
    shape: LaunchShape,
    strides: [[i64; 3]; 2],
    sizes: [u32; 3],
    softmax_scale: f32,
}

impl Baseline {
    /// Loads the kernels; a context must be current.
    pub fn load() -> Result<Self> {
        let driver = Driver::load()?;
        Ok(Self { driver, module: driver.load_module(PTX)?.0 })
    }

    /// The kernel for a problem, or nothing where there is none.
    pub fn plan(&self, problem: &AttentionProblem) -> Result<Option<Plan>> {
        let Some(variant) = config::baseline(problem.head_dim, problem.causal) else { return Ok(None) };
        // SAFETY: the module lives as long as the process.
        let function = unsafe { self.driver.function(self.module, variant.entry) }.context(variant.entry)?;
        let shared = i32::try_from(variant.shared_bytes)?;
        // SAFETY: as above.
        unsafe { self.driver.set_function_attribute(function, FunctionAttribute::MaxDynamicSharedSizeBytes, shared)? };
        let tiles = problem.seqlen_q.div_ceil(variant.tile_m);
        let strides = |heads: usize, seqlen: usize| {
            [heads * seqlen * problem.head_dim, seqlen * problem.head_dim, problem.head_dim].map(|n| n as i64)
        };
        Ok(Some(Plan {
            driver: self.driver,
            function,
            shape: LaunchShape {
                grid: [tiles as u32, problem.heads_q as u32, problem.batch as u32],
                block: [variant.threads as u32, 1, 1],
                shared_bytes: variant.shared_bytes as u32,
            },
            strides: [strides(problem.heads_q, problem.seqlen_q), strides(problem.heads_kv, problem.seqlen_kv)],
            sizes: [problem.seqlen_q as u32, problem.seqlen_kv as u32, problem.group() as u32],
            softmax_scale: problem.scale(),
        }))
    }
}

impl Plan {
    /// Launches on the default stream.
    ///
    /// # Safety
    /// The addresses are those of dense float16 tensors of the plan's problem, alive until the launch is done.
    pub unsafe fn launch(&self, [q, k, v, o]: [u64; 4]) -> Result<()> {
        let [q_strides, kv_strides] = self.strides;
        let as_slots = |strides: [i64; 3]| strides.map(i64::cast_unsigned);
        let mut slots: Vec<u64> = vec![q, k, v];
        for strides in [q_strides, kv_strides, kv_strides] {
            slots.extend(as_slots(strides));
        }
        slots.push(o);
        slots.extend(as_slots(q_strides));
        slots.push(0);
        slots.extend(self.sizes.map(u64::from));
        slots.push(u64::from(self.softmax_scale.to_bits()));
        let mut pointers: Vec<*mut c_void> = slots.iter_mut().map(|slot| std::ptr::from_mut(slot).cast()).collect();
        // SAFETY: parameters in the order of docs/kernel-abi.md, each in the lowest bytes of its slot; the caller's promise.
        unsafe { self.driver.launch(self.function, self.shape, StreamHandle::NULL, &mut pointers)? };
        Ok(())
    }
}
