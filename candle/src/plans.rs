//! Plans of a GPU, made once for each kind of call, and their launch on memory that is candle's.

mod cached;

use crate::call::Call;
use int_flash_attention::{
    AppendPlan, AppendProblem, AttentionOutput, Gpu, JobPlan, QuantizeLayouts, Result, TensorLayout,
};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

pub use cached::{GatheredKey, GatheredPlans, StepKey, StepPlans};

/// Kinds of calls that are remembered; a decoder that appends a token to plain tensors makes one for each length.
const MOST_PLANS: usize = 1024;

/// A GPU and the plans made on it.
pub struct Engine {
    gpu: Gpu,
    jobs: Remembered<Call, JobPlan>,
    appends: Remembered<AppendProblem, AppendPlan>,
    steps: Remembered<StepKey, StepPlans>,
    gathered: Remembered<GatheredKey, GatheredPlans>,
}

impl Engine {
    pub fn new(gpu: Gpu) -> Self {
        Self {
            gpu,
            jobs: Remembered::default(),
            appends: Remembered::default(),
            steps: Remembered::default(),
            gathered: Remembered::default(),
        }
    }

    /// That of a GPU's primary context, which is candle's, kept until the process ends.
    #[cfg(feature = "cuda")]
    pub fn of_process(ordinal: usize) -> Result<Arc<Self>> {
        static ENGINES: Mutex<Vec<(usize, Arc<Engine>)>> = Mutex::new(Vec::new());
        let mut engines = ENGINES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, engine)) = engines.iter().find(|(number, _)| *number == ordinal) {
            return Ok(engine.clone());
        }
        let engine = Arc::new(Self::new(Gpu::new(ordinal)?));
        engines.push((ordinal, engine.clone()));
        Ok(engine)
    }

    #[cfg(feature = "cuda")]
    pub const fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The plan of a call: from `q`, `k` and `v` to the output, contiguous in candle's order.
    pub fn job(&self, call: &Call) -> Result<Arc<JobPlan>> {
        self.jobs.get(call, |Call { problem, layouts: [q, k, v], dtype }| {
            let layouts = QuantizeLayouts { q: *q, k: *k, v: *v, dtype: *dtype };
            let layout = TensorLayout::bnhd(problem.o_shape());
            self.gpu.plan_job(problem, &layouts, &AttentionOutput { layout, dtype: *dtype, lse: false })
        })
    }

    /// The plan of an append of at least so many tokens.
    pub fn append(&self, problem: &AppendProblem) -> Result<Arc<AppendPlan>> {
        // One for all numbers up to a power of two: a launch is of as many as it is given.
        let problem = AppendProblem { max_tokens: problem.max_tokens.next_power_of_two(), ..*problem };
        self.appends.get(&problem, |problem| self.gpu.plan_append(problem))
    }

    /// The plans of attention on the pages of a cache.
    pub fn step(&self, key: &StepKey) -> Result<Arc<StepPlans>> {
        self.steps.get(key, |key| StepPlans::new(&self.gpu, key))
    }

    /// The plans of attention on operands that are made of pages.
    pub fn gathered(&self, key: &GatheredKey) -> Result<Arc<GatheredPlans>> {
        self.gathered.get(key, |key| GatheredPlans::new(&self.gpu, key))
    }
}

/// Plans by what they are of.
struct Remembered<K, P>(Mutex<HashMap<K, Arc<P>>>);

impl<K, P> Default for Remembered<K, P> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash, P> Remembered<K, P> {
    fn get(&self, key: &K, make: impl FnOnce(&K) -> Result<P>) -> Result<Arc<P>> {
        let mut plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = plans.get(key) {
            return Ok(found.clone());
        }
        let made = Arc::new(make(key)?);
        // Those that are still used are made again, which takes microseconds: the kernels stay loaded.
        if plans.len() >= MOST_PLANS {
            plans.clear();
        }
        plans.insert(key.clone(), made.clone());
        Ok(made)
    }
}

#[cfg(test)]
mod tests;
