//! New tokens to the pages of a cache, and their queries to the operand that attention reads, in one launch.

use super::cache::ViewMutCache;
use super::kernel::Kernel;
use super::launch::Launch;
use super::memory::Checked;
use super::modules::Wanted;
use super::operands::{Addresses, ViewMutQ, check_q};
use super::{AnySlice, DeviceSlice, Gpu, StreamRef};
use crate::cache::{AppendProblem, CacheShape};
use crate::error::{Error, Result};
use crate::problem::Scheme;
use crate::quantized::Lengths;
use crate::shape::{Shape, TensorLayout};
use int_flash_attention_kernels::params::Global;
use int_flash_attention_kernels::quantize::launch::{APPEND, APPEND_FEW, Bounds, CONVERT};

/// A tensor of new tokens, `[1, heads, tokens, head_dim]`; `TensorLayout::bnhd` is that of `(tokens, heads, head_dim)` in memory.
#[derive(Clone, Copy, Debug)]
pub struct NewTokens<'a> {
    /// The elements.
    pub data: AnySlice<'a>,
    /// Where they lie.
    pub layout: TensorLayout,
}

/// The slot of each new token: `128 * page + place in the page`. -1 (of `u32`: `u32::MAX`) is none, and so is one that the pool does not have.
///
/// Where two tokens of a launch have one slot, what the slot holds then is made of both, and means nothing.
#[derive(Clone, Copy, Debug)]
pub enum Slots<'a> {
    /// As `u32`.
    U32(DeviceSlice<'a, u32>),
    /// As `i64`, the type that inference engines keep slots in.
    I64(DeviceSlice<'a, i64>),
}

impl Slots<'_> {
    const fn bytes(&self) -> usize {
        match self {
            Self::U32(_) => size_of::<u32>(),
            Self::I64(_) => size_of::<i64>(),
        }
    }

    fn checked(&self, launch: &Launch<'_>, tokens: usize) -> Result<u64> {
        match self {
            Self::U32(slots) => slots.checked_elements(launch, "the slots", tokens),
            Self::I64(slots) => slots.checked_elements(launch, "the slots", tokens),
        }
    }
}

/// What a launch of an [`AppendPlan`] reads. All tensors are of as many tokens.
#[derive(Clone, Copy, Debug)]
pub struct Appended<'a> {
    /// Queries, where the problem has heads of them.
    pub q: Option<NewTokens<'a>>,
    /// Keys.
    pub k: NewTokens<'a>,
    /// Values.
    pub v: NewTokens<'a>,
    /// Where they go.
    pub slots: Slots<'a>,
}

/// An append, checked and ready to be launched with any number of tokens up to the problem's.
#[derive(Clone, Debug)]
pub struct AppendPlan {
    gpu: Gpu,
    problem: AppendProblem,
    /// For launches of less than a page.
    few: Kernel,
    many: Kernel,
}

impl Gpu {
    /// Appends to a cache. The plan depends on what the problem says and on the GPU alone; slots are read on the device, so that a graph that has
    /// recorded a launch serves every step of as many tokens (those that are none have slot -1).
    ///
    /// # Errors
    /// A wrong problem, or no kernel that fits this GPU.
    pub fn plan_append(&self, problem: &AppendProblem) -> Result<AppendPlan> {
        problem.check()?;
        let bounds = &APPEND[problem.dtype.code() as usize];
        let few_bounds = if self.overlaps() { &APPEND_FEW[problem.dtype.code() as usize] } else { bounds };
        let mut wanted = vec![Wanted::from(bounds), Wanted::from(few_bounds)];
        if problem.cache.v4_pages > 0 {
            // Copies of its pages have no plan to load it, and may be recorded.
            wanted.push(Wanted::from(&CONVERT));
        }
        self.load(&wanted)?;
        let kernel = |bounds: &Bounds, tokens: usize| {
            let grid = problem.grid(tokens)?;
            self.kernel(bounds.module, bounds.entry, [grid.ctas, 1, 1], grid.threads, grid.shared_bytes)
        };
        let few_tokens = problem.max_tokens.min(CacheShape::PAGE_TOKENS - 1);
        let few = kernel(few_bounds, few_tokens)?;
        let few = if self.overlaps() { few.overlapping() } else { few };
        Ok(AppendPlan { gpu: self.clone(), problem: *problem, few, many: kernel(bounds, problem.max_tokens)? })
    }
}

impl AppendPlan {
    /// Gives the kernel to the stream: no allocation, no waiting, capturable. Of the pool it writes the tokens' bytes and scales alone.
    ///
    /// `q_out` is of the shape `[batch, heads_q, tokens / batch, head_dim]`: a new token of Q is token `i % (tokens / batch)` of sequence `i / (tokens / batch)`.
    ///
    /// # Errors
    /// Another cache; tensors of other shapes or types; more tokens than the problem says; queries where it has none, or the other way round; a
    /// buffer that is too short, not aligned (16 bytes for the pool and the operand of Q) or of another context; the driver's.
    pub fn launch<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        new: &Appended<'_>,
        cache: &mut ViewMutCache<'_>,
        q_out: Option<&mut ViewMutQ<'_>>,
    ) -> Result<()> {
        let launch = &self.gpu.launching(stream.into())?;
        let (problem, tokens) = (&self.problem, new.k.layout.shape().seqlen);
        if cache.shape != problem.cache {
            let [given, expected] = [cache.shape, problem.cache].map(|shape| format!("{shape:?}"));
            return Err(Error::ShapeMismatch { name: "the cache", given, expected });
        }
        for (name, there) in [("q", new.q.is_some()), ("the quantized q", q_out.is_some())] {
            if there != (problem.heads_q > 0) {
                let (given, planned) = if there { ("given", "without") } else { ("not given", "with") };
                return Err(Error::Optional { name, given, planned });
            }
        }
        let q = new.q.as_ref().zip(q_out);
        let shape = q.as_ref().map(|(q, out)| (&q.layout, out.shape));
        let mut params = problem.params(shape, [&new.k.layout, &new.v.layout], new.slots.bytes())?;
        let grid = problem.grid(tokens)?;

        params.pool = Global::new(cache.pool.checked(launch, "the pool", cache.shape.bytes())?);
        if let Some(offset) = &cache.k_offset {
            let channels = cache.shape.heads_kv * cache.shape.head_dim;
            params.k_offset = Global::new(offset.checked(launch, "k_offset", channels)?);
        }
        params.slot = Global::new(new.slots.checked(launch, tokens)?);
        params.k.data = Global::new(self.tensor(launch, "k", &new.k)?);
        params.v.data = Global::new(self.tensor(launch, "v", &new.v)?);
        if let Some((q, out)) = q {
            check_q(Scheme::Default, out)?;
            let Shape { batch, heads, seqlen, head_dim } = out.shape;
            let lengths = Lengths::of(Shape::new(batch, heads, seqlen, head_dim)?)?;
            let [codes, scale, bias] = out.addresses(launch, out.shape, &lengths)?;
            params.q.data = Global::new(self.tensor(launch, "q", q)?);
            (params.q_out, params.q_scale) = (Global::new(codes), Global::new(scale));
            params.q_bias = Global::new(bias);
        }
        let kernel = if tokens < CacheShape::PAGE_TOKENS { &self.few } else { &self.many };
        // SAFETY: the parameter of `append_*`; what is in it has been checked, the grid is that of so many tokens, block and shared memory do not depend on
        // how many they are beyond a page.
        unsafe { launch.kernel_with(&kernel.with_ctas(grid.ctas), &params) }
    }

    fn tensor(&self, launch: &Launch<'_>, name: &'static str, tensor: &NewTokens<'_>) -> Result<u64> {
        tensor.data.checked(launch, name, self.problem.dtype, tensor.layout.span())
    }
}
