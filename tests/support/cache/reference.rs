//! What a cache does is what the reference does, every byte and every bit.

use super::{Cache, New, in_sequences};
use crate::properties::bias_within_rounding;
use anyhow::{Context, Result, ensure};
use int_flash_attention::{AttentionProblem, HostCache, HostK, HostTables, HostV, Shape};

/// Appends to `cache`, and holds it and the queries to the reference: every byte of the pool is what it should be, those of no new token included.
///
/// # Errors
///
/// Names the byte.
pub fn append_as_reference(cache: &mut impl Cache, new: &New<'_>) -> Result<()> {
    let mut want = cache.host()?;
    let q = cache.append(new)?;
    let want_q = Cache::append(&mut want, new)?;
    same_pool(&cache.host()?, &want)?;
    ensure!(q.is_some() == want_q.is_some(), "queries that were not asked for, or the other way round");
    if let (Some(got), Some(want_q), Some((flat, seqlen))) = (q, want_q, new.q) {
        ensure!(got.shape == want_q.shape && got.data == want_q.data, "the codes of Q");
        let bits = |scale: &[f32]| scale.iter().map(|scale| scale.to_bits()).collect::<Vec<_>>();
        ensure!(bits(&got.scale) == bits(&want_q.scale), "the scales of Q");
        let q = in_sequences(flat, seqlen)?;
        let Shape { batch, heads, seqlen, head_dim } = q.shape();
        let problem = AttentionProblem::new(batch, heads, want.shape.heads_kv, seqlen, 1, head_dim);
        let offset = want.k_offset.unwrap_or_else(|| vec![0.0; want.shape.heads_kv * head_dim]).repeat(batch);
        bias_within_rounding(&problem, got.bias.as_deref().context("no q_bias")?, &offset, &q)?;
    }
    Ok(())
}

fn same_pool(got: &HostCache, want: &HostCache) -> Result<()> {
    let differs = got.pool.iter().zip(&want.pool).position(|(got, want)| got != want);
    let Some(byte) = differs else { return Ok(()) };
    let range = (0..want.shape.pages as u32).map(|page| want.shape.page_range(page)).enumerate();
    let (page, range) = range.into_iter().find(|(_, range)| range.contains(&byte)).context("a byte of no page")?;
    let (of_head, at) = (range.len() / want.shape.heads_kv, byte - range.start);
    let (head, at) = (at / of_head, at % of_head);
    anyhow::bail!("byte {at} of head {head} of page {page} is {}, should be {}", got.pool[byte], want.pool[byte])
}

/// Gathers, and holds the operands to the reference, bit for bit.
///
/// # Errors
///
/// Names the array.
pub fn gather_as_reference(cache: &impl Cache, tables: &HostTables, seqlen_kv: usize) -> Result<(HostK, HostV)> {
    let (k, v) = cache.gather(tables, seqlen_kv)?;
    let (want_k, want_v) = cache.host()?.gather(tables, seqlen_kv)?;
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    ensure!(k.data == want_k.data && v.data == want_v.data, "the codes");
    for (name, got, want) in [
        ("k_scale", &k.scale, &want_k.scale),
        ("k_block_scale", &k.block_scale, &want_k.block_scale),
        ("k_offset", &k.offset, &want_k.offset),
        ("v_scale", &v.scale, &want_v.scale),
        ("v_block_scale", &v.block_scale, &want_v.block_scale),
        ("v_unit", &v.unit, &want_v.unit),
    ] {
        ensure!(bits(got) == bits(want), "{name}");
    }
    Ok((k, v))
}

/// Copies pages, and holds the pool to the reference, every byte.
///
/// # Errors
///
/// Names the byte.
pub fn copy_as_reference(cache: &mut impl Cache, pairs: &[(u32, u32)]) -> Result<()> {
    let mut want = cache.host()?;
    want.copy_pages(pairs)?;
    cache.copy_pages(pairs)?;
    same_pool(&cache.host()?, &want)
}
