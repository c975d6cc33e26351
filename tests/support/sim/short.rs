//! The kernels for short K and V.

use super::parts::Parts;
use super::{Grid, Simulator, global, query_rows, structure};
use anyhow::{Context, Result};
use int_flash_attention::{AttentionProblem, DType, HostTensor, TensorLayout};
use int_flash_attention_kernels::config::short::{ShortLaunch, ShortVariant, short, short_grid};
use int_flash_attention_kernels::params::{AttentionParams, ShortParams, Strided};
use ptx_machine::{DevPtr, Memory};

impl Simulator {
    /// The whole job in one launch, on a GPU of so many multiprocessors, each of which has this much shared memory: O and the log-sum-exp where it is asked for.
    ///
    /// # Errors
    ///
    /// When there is no kernel for the head dim, or the machine finds fault with it.
    pub fn short(
        &self,
        problem: &AttentionProblem,
        [q, k, v]: [&HostTensor; 3],
        (out, dtype): (&TensorLayout, DType),
        lse: bool,
        (multiprocessors, shared_bytes): (usize, usize),
    ) -> Result<(HostTensor, Option<Vec<f32>>)> {
        let variant: &ShortVariant = short(problem.head_dim).with_context(|| format!("no kernel for {problem:?}"))?;
        let mut memory = Memory::new();
        let [q_in, k_in, v_in] = [q, k, v].map(|tensor| self.places.upload(&mut memory, tensor));
        let (q_in, k_in, v_in) = (q_in?, k_in?, v_in?);
        let o = self.places.output(&mut memory, out, dtype)?;
        let rows = problem.q_shape().rows();
        let lse_out = if lse { memory.alloc(4 * rows as u64, 256) } else { DevPtr::NULL };
        let heads = problem.batch * problem.heads_kv;
        let (of, lengths) = ((heads, problem.group()), (problem.seqlen_q, problem.seqlen_kv));
        let ShortLaunch { warps, shared_bytes, parts } = variant.launch(of, lengths, multiprocessors, shared_bytes);
        let layouts = [q_in.layout(), k_in.layout(), v_in.layout()];
        let params = problem.short_params(layouts, q.dtype(), (o.layout(), dtype), u32::try_from(parts)?);
        let params = ShortParams {
            q: Strided { data: global(q_in.data), ..params.q },
            k: Strided { data: global(k_in.data), ..params.k },
            v: Strided { data: global(v_in.data), ..params.v },
            attention: AttentionParams {
                o: Strided { data: global(o.data), ..params.attention.o },
                lse: global(lse_out),
                seqlens: self.seqlens(&mut memory, params.attention.seqlens),
                ..params.attention
            },
            ..params
        };
        let at = Grid {
            kernel: variant.name,
            grid: short_grid(problem.heads_kv, problem.batch, parts, params.sequences_first != 0)
                .context("the grid overflows")?,
            threads: 32 * warps,
            shared: shared_bytes,
        };
        self.launch(variant.name, &at, &[structure(&params)], &memory)?;
        let spans = self.spans(problem);
        let of_q = Parts::new(&spans, problem.heads_q, 1, |span, head| span.rows(problem, head));
        let read = || of_q.read(&memory, lse_out, rows, f32::NEG_INFINITY).context("lse");
        Ok((o.read_rows(&memory, &query_rows(&spans)).context("o")?, lse.then(read).transpose()?))
    }
}
