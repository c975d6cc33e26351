//! Plans of a GPU, made once for each kind of call, and their launch on memory that is candle's.

use crate::call::Call;
use int_flash_attention::{
    AnySlice, AnySliceMut, AttentionOutput, AttentionPlan, AttentionProblem, DeviceOperands, DeviceSliceMut, Gpu,
    QuantizeLayouts, QuantizePlan, Result, StreamRef, TensorLayout, ViewMutOperands,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Kinds of calls that are remembered; a decoder that appends a token makes one for each length.
const MOST_PLANS: usize = 1024;

/// A GPU and the plans made on it.
pub struct Engine {
    gpu: Gpu,
    plans: Mutex<HashMap<Call, Arc<Plans>>>,
}

impl Engine {
    pub fn new(gpu: Gpu) -> Self {
        Self { gpu, plans: Mutex::default() }
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

    /// The plans of a call.
    pub fn plans(&self, call: &Call) -> Result<Arc<Plans>> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = plans.get(call) {
            return Ok(found.clone());
        }
        let made = Arc::new(Plans::new(&self.gpu, call)?);
        // Those that are still used are made again, which takes microseconds: the kernels stay loaded.
        if plans.len() >= MOST_PLANS {
            plans.clear();
        }
        plans.insert(*call, made.clone());
        Ok(made)
    }
}

/// The two launches of a call.
pub struct Plans {
    problem: AttentionProblem,
    quantize: QuantizePlan,
    attention: AttentionPlan,
    bytes: usize,
}

impl Plans {
    fn new(gpu: &Gpu, call: &Call) -> Result<Self> {
        let Call { problem, layouts: [q, k, v], dtype } = *call;
        let o = TensorLayout::bnhd(problem.q_shape());
        Ok(Self {
            problem,
            quantize: gpu.plan_quantize(&problem, &QuantizeLayouts { q, k, v, dtype })?,
            attention: gpu.plan_attention(&problem, &AttentionOutput { layout: o, dtype, lse: false })?,
            bytes: DeviceOperands::bytes(&problem)?,
        })
    }

    /// The bytes that a launch needs beside the tensors, at a multiple of 16; nothing reads them before they are written.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives the kernels to the stream: nothing is allocated, nothing waited for.
    pub fn launch(
        &self,
        stream: StreamRef<'_>,
        [q, k, v]: [AnySlice<'_>; 3],
        memory: DeviceSliceMut<'_, u8>,
        o: AnySliceMut<'_>,
    ) -> Result<()> {
        let mut operands = ViewMutOperands::in_buffer(&self.problem, memory)?;
        // The default scheme has none.
        let workspace = DeviceSliceMut::empty();
        self.quantize.launch(stream, q, k, v, workspace, &mut operands)?;
        self.attention.launch(stream, &operands.as_view(), o, None)
    }
}

#[cfg(test)]
mod tests;
