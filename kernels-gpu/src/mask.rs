//! Which keys a row sees: the end of the sequence, and the causal diagonal aligned to the bottom right.

/// The mask of one CTA, for blocks of `KEYS` keys.
#[derive(Clone, Copy)]
pub(crate) struct Mask<const CAUSAL: bool, const KEYS: usize> {
    /// Blocks of keys that any row of the CTA sees.
    pub blocks: u32,
    /// Blocks that every row sees whole: they run without a mask.
    pub full_blocks: u32,
    seqlen_q: u32,
    seqlen_kv: u32,
}

impl<const CAUSAL: bool, const KEYS: usize> Mask<CAUSAL, KEYS> {
    /// Of the `tile_m` rows from `cta_row`.
    #[inline(always)]
    pub(crate) fn of_rows(seqlen_q: u32, seqlen_kv: u32, cta_row: u32, tile_m: u32) -> Self {
        let keys = i64::from(seqlen_kv);
        let (first, last) = if CAUSAL {
            let first = i64::from(cta_row) + keys - i64::from(seqlen_q) + 1;
            let rows = if seqlen_q - cta_row < tile_m { seqlen_q - cta_row } else { tile_m };
            (clamp(first, keys), clamp(first + i64::from(rows) - 1, keys))
        } else {
            (seqlen_kv, seqlen_kv)
        };
        let block = KEYS as u32;
        // Not `div_ceil`: lengths near 2^32 must not wrap.
        let blocks = last / block + u32::from(!last.is_multiple_of(block));
        Self { blocks, full_blocks: first / block, seqlen_q, seqlen_kv }
    }

    /// Keys of block `block` that row `row` sees, counted from the block's first.
    #[inline(always)]
    pub(crate) fn keys(&self, row: u32, block: u32) -> i32 {
        let keys = if CAUSAL {
            let seqlen_kv = i64::from(self.seqlen_kv);
            clamp(i64::from(row) + seqlen_kv - i64::from(self.seqlen_q) + 1, seqlen_kv)
        } else {
            self.seqlen_kv
        };
        // In 32 bits: a block that any row sees begins before the end of the keys.
        let rest = keys.saturating_sub(block * KEYS as u32);
        if rest > KEYS as u32 { KEYS as i32 } else { rest as i32 }
    }
}

#[inline(always)]
fn clamp(keys: i64, seqlen_kv: i64) -> u32 {
    let keys = if keys < 0 { 0 } else { keys };
    (if keys < seqlen_kv { keys } else { seqlen_kv }) as u32
}
