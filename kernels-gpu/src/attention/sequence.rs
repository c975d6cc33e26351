//! Where the rows and blocks of a sequence lie: the only code that turns (batch, head, row, block) into addresses.

use super::window::Window;
use crate::division::div_rem;
use crate::element::Element;
use crate::layout::KV_BLOCK;
use crate::params::{AttentionParams, Global, Strided};
use crate::ptx::global::ld_global_nc_u32;
use crate::ptx::opaque::opaque;

/// A query head of a sequence, and the head of K and V that serves it: the only thing that knows how long the sequence is and where its
/// rows and blocks begin. Another source of blocks is another `first_block` or another [`block`](Self::block).
#[derive(Clone, Copy)]
pub(crate) struct Sequence {
    pub batch: u32,
    pub head_q: u32,
    /// Its lengths.
    pub seqlen_q: u32,
    pub seqlen_kv: u32,
    /// The first of its query tokens: 0, or where they begin among packed ones.
    pub first_q: u32,
    /// The head of K and V among those of all sequences.
    pub index_kv: u32,
    /// The first block among those of all heads: the host's plan has no more than 32 bits count.
    pub first_block: u32,
}

impl Sequence {
    /// Number `batch`.
    ///
    /// # Safety
    /// It is one of the launch's.
    #[inline(always)]
    pub(crate) unsafe fn new(params: &AttentionParams, batch: u32, head_q: u32) -> Self {
        let seqlens = &params.seqlens;
        // SAFETY: the caller's promise; the host's plan rejects a group of zero.
        let (q, kv, (head_kv, _)) = unsafe {
            (seqlens.q(batch, params.seqlen_q), seqlens.kv(batch, params.seqlen_kv), div_rem(head_q, params.group))
        };
        Self {
            batch,
            head_q,
            seqlen_q: q.len,
            seqlen_kv: kv.len,
            first_q: q.first,
            index_kv: batch * params.heads_kv + head_kv,
            first_block: (kv.batch * params.heads_kv + head_kv) * seqlens.kv_blocks(params.batch)
                + seqlens.first_block(batch, &kv),
        }
    }

    /// The window on the sequence's own lengths.
    #[inline(always)]
    pub(crate) fn window(&self, params: &AttentionParams) -> Window<KV_BLOCK> {
        Window::of_lengths(params, [self.seqlen_q, self.seqlen_kv])
    }

    /// The batch of Q's and the output's tensors that has the sequence's rows.
    #[inline(always)]
    pub(crate) fn batch_q(&self, params: &AttentionParams) -> u32 {
        if params.seqlens.packed_q == 0 { self.batch } else { 0 }
    }

    /// The place of a query among all rows.
    #[inline(always)]
    fn row(&self, params: &AttentionParams, row: u32) -> u64 {
        let head = u64::from(self.batch_q(params)) * u64::from(params.heads_q) + u64::from(self.head_q);
        head * u64::from(params.seqlens.total_q) + u64::from(self.first_q + row)
    }

    /// The codes of a query.
    #[inline(always)]
    pub(crate) fn q(&self, params: &AttentionParams, head_dim: usize, row: u32) -> *const u8 {
        params.q.ptr().wrapping_add((self.row(params, row) * head_dim as u64) as usize)
    }

    /// The scale of a query.
    #[inline(always)]
    pub(crate) fn q_scale(&self, params: &AttentionParams, row: u32) -> *const f32 {
        params.q_scale.ptr().wrapping_add(self.row(params, row) as usize)
    }

    /// The product of a query with K's offset, where K has one.
    #[inline(always)]
    pub(crate) fn q_bias(&self, params: &AttentionParams, row: u32) -> *const f32 {
        params.q_bias.ptr().wrapping_add(self.row(params, row) as usize)
    }

    /// The log-sum-exp of a query, where it is wanted.
    #[inline(always)]
    pub(crate) fn lse(&self, params: &AttentionParams, row: u32) -> *mut f32 {
        params.lse.ptr().cast_mut().wrapping_add(self.row(params, row) as usize)
    }

    /// The largest scale of a block's keys, and behind it those of the blocks after it.
    #[inline(always)]
    pub(crate) fn k_block_scale(&self, params: &AttentionParams, block: u32) -> *const f32 {
        params.k_block_scale.ptr().wrapping_add((self.first_block + block) as usize)
    }

    /// The scale that a block's values share, or NaN, and behind it those of the blocks after it.
    #[inline(always)]
    pub(crate) fn v_block_scale(&self, params: &AttentionParams, block: u32) -> *const f32 {
        params.v_block_scale.ptr().wrapping_add((self.first_block + block) as usize)
    }

    /// What the block table of a paged cache says of a block: a page, or anything.
    ///
    /// # Safety
    /// One of the sequence's.
    #[inline(always)]
    unsafe fn page(&self, params: &AttentionParams, block: u32) -> u32 {
        let entry = u64::from(self.batch) * u64::from(params.blocks.table_stride) + u64::from(block);
        unsafe { ld_global_nc_u32(params.blocks.block_table.ptr().wrapping_add(entry as usize).cast()) }
    }

    /// The unit in which the head's values are added up.
    #[inline(always)]
    pub(crate) fn v_unit(&self, params: &AttentionParams) -> *const f32 {
        params.v_unit.ptr().wrapping_add(self.index_kv as usize)
    }

    /// Dim `dim` of the output of a query.
    #[inline(always)]
    pub(crate) fn o<E: Element>(&self, params: &AttentionParams, row: u32, dim: usize) -> *mut u8 {
        token(&params.o, E::BYTES, [self.batch_q(params), self.head_q, self.first_q + row], dim).cast_mut()
    }
}

/// The next of a sequence's blocks to be read: its number, or of a paged cache what the block table says. The number of a page's head is made when
/// that is read: the table was looked at a block earlier, and nobody waits for that.
#[derive(Clone, Copy)]
pub(crate) struct Cursor {
    next: u32,
}

impl Cursor {
    /// In front of block `block`, if there is such a block.
    ///
    /// # Safety
    /// Then it is one of the sequence's.
    #[inline(always)]
    pub(crate) unsafe fn new(params: &AttentionParams, sequence: &Sequence, block: u32, is: bool) -> Self {
        let mut next = sequence.first_block + block;
        if is_paged(params) {
            next = 0;
            if is {
                next = unsafe { sequence.page(params, block) };
            }
        }
        Self { next }
    }

    /// The number of the block among those of all heads, or among the heads of all pages: of the first page for what is no page.
    #[inline(always)]
    pub(crate) fn number(&self, params: &AttentionParams, sequence: impl Fn() -> Sequence) -> u32 {
        let mut number = self.next;
        if is_paged(params) {
            let Sequence { index_kv, batch, .. } = sequence();
            let page = if number < params.blocks.pages { number } else { 0 };
            number = page * params.heads_kv + (index_kv - batch * params.heads_kv);
        }
        number
    }

    /// On to the next block, which is `next` of the sequence, if there is `more`.
    ///
    /// # Safety
    /// Then it is one of the sequence's.
    #[inline(always)]
    pub(crate) unsafe fn advance(&mut self, params: &AttentionParams, of: impl Fn() -> (Sequence, u32), more: bool) {
        if is_paged(params) {
            if more {
                let (sequence, next) = of();
                self.next = unsafe { sequence.page(params, next) };
            }
        } else {
            self.next += u32::from(more);
        }
    }
}

/// Block `number` of what begins at `first`, `bytes` from one to the next.
#[inline(always)]
pub(crate) fn at<T>(first: Global<T>, number: u32, bytes: u32) -> *const T {
    first.ptr().wrapping_byte_add((u64::from(number) * u64::from(bytes)) as usize)
}

/// Whether blocks of K and V are pages.
#[inline(always)]
pub(crate) fn is_paged(params: &AttentionParams) -> bool {
    // Opaque: from one of these branches to the next the compiler would have all code twice, once for pages.
    opaque(params.blocks.pages) != 0
}

/// Dim `dim` of a token, given by batch, head and position, of a tensor of elements of `bytes` bytes.
#[inline(always)]
pub(crate) fn token(tensor: &Strided, bytes: usize, [batch, head, row]: [u32; 3], dim: usize) -> *const u8 {
    let element = i64::from(batch) * tensor.stride_b
        + i64::from(head) * tensor.stride_h
        + i64::from(row) * tensor.stride_n
        + dim as i64;
    tensor.data.ptr().wrapping_offset((element * bytes as i64) as isize)
}
