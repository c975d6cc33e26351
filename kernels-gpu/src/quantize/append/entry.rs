//! The entry points: parameters to CTAs' work (docs/kernel-abi.md, "Entry points").

use super::pages::{self, slot};
use super::rows::{self, KEYS, QUERIES, STAGED_VALUES, VALUES};
use super::work::{Operand, Windows, has_no_page};
use crate::element::{Bf16, F16, F32, Rows};
use crate::layout::page::{PAGE_TOKENS, page_head_offset, page_v_offset, page_v_scale_offset};
use crate::params::AppendParams;
use crate::ptx::barrier::bar_sync;
use crate::ptx::grid_dependency::{launch_dependents, wait};
use crate::ptx::opaque::opaque;
use crate::ptx::special::{ctaid_x, ntid_x};
use crate::quantize::arithmetic::Rotated;
use crate::quantize::tile::Tile;
use crate::quantize::values;
use crate::rotation::{DIMS, MANY_LANES_DIMS};
use core::ptr::null_mut;

/// `FEW`: the launch has less than a page's tokens, and begins beside the one in front.
#[inline(always)]
unsafe fn append<E: Rotated, const FEW: bool>(p: &AppendParams) {
    if FEW {
        unsafe {
            wait();
            // Not before: CTAs of the launch behind, which only wait, take time from those of the one in front.
            launch_dependents();
        }
    }
    let windows = Windows::new(p.tokens, p.heads_q, p.heads_kv, p.head_dim.next_power_of_two(), ntid_x());
    let share = windows.share(ctaid_x());
    if share.first >= p.tokens {
        return;
    }
    let (end, few) = (share.end.min(p.tokens), FEW || has_no_page(p.tokens));
    unsafe {
        match share.operand {
            Operand::Keys if few => rows::quantize::<E, KEYS, MANY_LANES_DIMS>(p, share.head, share.first, end),
            Operand::Queries if few => rows::quantize::<E, QUERIES, MANY_LANES_DIMS>(p, share.head, share.first, end),
            Operand::Values if few => rows::quantize::<E, VALUES, MANY_LANES_DIMS>(p, share.head, share.first, end),
            Operand::Keys => rows::quantize::<E, KEYS, DIMS>(p, share.head, share.first, end),
            Operand::Queries => rows::quantize::<E, QUERIES, DIMS>(p, share.head, share.first, end),
            Operand::Values => {
                let window = pages::window(p, share.first);
                if window.page < window.end {
                    whole_page::<E>(p, share.head, window.page);
                    // All have read what is in shared memory.
                    bar_sync();
                }
                let mut first = window.rest;
                while first < window.page {
                    let end = window.page.min(first + windows.row_tokens);
                    rows::quantize::<E, STAGED_VALUES, DIMS>(p, share.head, first, end);
                    bar_sync();
                    rows::store_staged(p, share.head, first, end);
                    bar_sync();
                    first = opaque(end);
                }
            }
        }
    }
}

/// V of the 128 tokens from `first` on, which are a page.
#[inline(always)]
unsafe fn whole_page<E: Rotated>(p: &AppendParams, head: u32, first: u32) {
    unsafe {
        let d = p.head_dim as usize;
        let slot_of_first = slot(p, first);
        // Floats leave no register for it.
        let again = E::BYTES == 4;
        let out = |_| {
            let slot = if again { slot(p, opaque(first)) } else { opaque(slot_of_first) };
            let of_page = page_head_offset(slot as usize / PAGE_TOKENS, head as usize, p.heads_kv as usize, d);
            let page = p.pool.ptr().cast_mut().wrapping_add(of_page);
            values::Output {
                bytes: page.wrapping_add(page_v_offset(d)),
                scale: page.wrapping_add(page_v_scale_offset(d)).cast(),
                block_scale: null_mut(),
                unit: null_mut(),
            }
        };
        let rows = || Rows::new::<E>(&p.v, 0, head).skip(opaque(first));
        let tile = Tile { index: 0, seqlen: PAGE_TOKENS as u32 };
        let scales = values::Scaling { rotates: true, steps: true, head_amax: 0.0, first_block: 0 };
        values::quantize::<E>(p.head_dim, p.head_dim, scales, rows, tile, 1, out);
    }
}

macro_rules! entries {
    ($($element:ty => $append:ident, $append_few:ident;)*) => {$(
        /// New tokens to the pages of a cache, and their queries.
        ///
        /// # Safety
        /// As docs/kernel-abi.md says of `append_*`.
        #[cfg($append)]
        #[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
        #[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
        pub unsafe extern "ptx-kernel" fn $append(params: AppendParams) {
            unsafe { append::<$element, false>(&params) }
        }

        /// The same of less than 128 tokens.
        ///
        /// # Safety
        /// As docs/kernel-abi.md says of `append_few_*`.
        #[cfg($append_few)]
        #[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
        #[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
        pub unsafe extern "ptx-kernel" fn $append_few(params: AppendParams) {
            unsafe { append::<$element, true>(&params) }
        }
    )*};
}

entries! {
    F16 => append_f16, append_few_f16;
    Bf16 => append_bf16, append_few_bf16;
    F32 => append_f32, append_few_f32;
}
