//! Attention as an operation of candle's.

use crate::call::{Call, NAME, dtype_of};
use crate::{FlashAttn, VarLen, cpu};
use candle_core::{CpuStorage, CudaStorage, CustomOp3, Layout, Result, Shape, Tensor};

/// What is asked, of which lengths: an operation on `q`, `k` and `v`.
pub struct Attention {
    pub options: FlashAttn,
    pub lengths: Lengths,
}

/// How long the sequences are.
pub enum Lengths {
    /// As the tensors have it.
    Equal,
    /// One behind the other.
    Packed(VarLen),
    /// Each has so many keys, in tensors that have room for more.
    Keys(Tensor),
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let dtype = dtype_of([q.dtype(), k.dtype(), v.dtype()])?;
        let call = Call::new(self, dtype, [q_layout, k_layout, v_layout])?;
        let o = cpu::forward(self, &call, [(q, q_layout), (k, k_layout), (v, v_layout)])?;
        Ok((o, call.o_shape()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let dtype = dtype_of([q.dtype(), k.dtype(), v.dtype()])?;
        let call = Call::new(self, dtype, [q_layout, k_layout, v_layout])?;
        let o = crate::cuda::forward(self, &call, [(q, q_layout), (k, k_layout), (v, v_layout)])?;
        Ok((o, call.o_shape()))
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        candle_core::bail!("{NAME}: tensors on a GPU need the feature `cuda` of candle-int-flash-attention")
    }
}
