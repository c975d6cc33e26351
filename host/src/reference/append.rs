//! New tokens to the pages of a cache (docs/kernel-abi.md, "Paged cache").

use super::codes::{Arithmetic, amax, code, round_up_to_step, token_scale, v_scale};
use super::quantize::share;
use crate::cache::{HeadPlace, HostCache};
use crate::problem::Scheme;
use crate::tensor::HostTensor;
use int_flash_attention_kernels::layout::page::PAGE_TOKENS;
use rayon::prelude::*;

/// Quantizes tokens to their slots. Shapes and slots have been checked.
pub(crate) fn append(cache: &mut HostCache, k: &HostTensor, v: &HostTensor, slots: &[i64]) {
    let (d, heads) = (cache.shape.head_dim, cache.shape.heads_kv);
    // In 4 bits each token of V has its own scale.
    let v8_slots = (cache.shape.v8_pages() * PAGE_TOKENS) as i64;
    let mut pages = whole_pages(slots);
    pages.retain(|&token| slots[token] < v8_slots);
    let offset = cache.k_offset.as_deref();
    let of_heads: Vec<_> = (0..heads)
        .into_par_iter()
        .map(|head| {
            let offset = offset.map(|offset| &offset[head * d..][..d]);
            let [of_k, of_v] = [k, v].map(|tensor| Arithmetic::of(Scheme::Default, tensor.dtype()));
            [tokens_of_k(of_k, k.read_head(0, head), offset, d), tokens_of_v(of_v, v.read_head(0, head), &pages, d)]
        })
        .collect();
    for (head, [k, v]) in of_heads.iter().enumerate() {
        for (token, &slot) in slots.iter().enumerate().filter(|&(_, &slot)| slot >= 0) {
            let (page, key) = (slot as usize / PAGE_TOKENS, slot as usize % PAGE_TOKENS);
            let place = HeadPlace::new(&cache.shape, page, head);
            let codes = [k, v].map(|of| &of.codes[token * d..][..d]);
            place.write(&mut cache.pool[place.range()], key, codes, [k.scales[token], v.scales[token]]);
        }
    }
}

/// A head's tokens.
struct Tokens {
    scales: Vec<f32>,
    codes: Vec<i8>,
}

/// The tokens at which 128 begin that have the slots of a whole page in order.
fn whole_pages(slots: &[i64]) -> Vec<usize> {
    let whole = |page: &[i64]| {
        page[0] >= 0 && page[0] % PAGE_TOKENS as i64 == 0 && page.windows(2).all(|two| two[0] + 1 == two[1])
    };
    slots.windows(PAGE_TOKENS).enumerate().filter(|(_, page)| whole(page)).map(|(token, _)| token).collect()
}

fn tokens_of_k(arithmetic: Arithmetic, mut rows: Vec<f32>, offset: Option<&[f32]>, d: usize) -> Tokens {
    let of_token = |row: &mut [f32]| {
        let unit = arithmetic.rotate(row, offset);
        (token_scale(amax(row) * unit), unit)
    };
    let (scales, units): (Vec<f32>, Vec<f32>) = rows.chunks_exact_mut(d).map(of_token).unzip();
    Tokens { codes: codes(arithmetic, &rows, scales.iter().zip(&units), d), scales }
}

fn tokens_of_v(arithmetic: Arithmetic, mut rows: Vec<f32>, pages: &[usize], d: usize) -> Tokens {
    let of_token = |row: &mut [f32]| {
        let unit = arithmetic.rotate_v(row);
        (v_scale(amax(row) * unit), unit)
    };
    let (mut scales, units): (Vec<f32>, Vec<f32>) = rows.chunks_exact_mut(d).map(of_token).unzip();
    for &page in pages {
        share(&mut scales[page..][..PAGE_TOKENS], true);
    }
    // What is rounded up already stays.
    scales.iter_mut().for_each(|scale| *scale = round_up_to_step(*scale));
    Tokens { codes: codes(arithmetic, &rows, scales.iter().zip(&units), d), scales }
}

/// Of scales, and of the unit that each token is in.
fn codes<'a>(
    arithmetic: Arithmetic,
    rows: &[f32],
    scales: impl Iterator<Item = (&'a f32, &'a f32)>,
    d: usize,
) -> Vec<i8> {
    let of_token = |(row, (scale, unit)): (&[f32], (&f32, &f32))| {
        let [factor, inverse] = arithmetic.inverse(scale / unit);
        row.iter().map(|&x| code(x * factor, inverse)).collect::<Vec<_>>()
    };
    rows.chunks_exact(d).zip(scales).flat_map(of_token).collect()
}
