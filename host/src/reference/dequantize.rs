//! INT8 and scales back to floats: `code * scale` in float32, the rotation undone and K's offset added back.

use super::codes::{rotate_back, rotate_token_of_v_back};
use super::packed::resized;
use crate::error::{Error, Result};
use crate::quantized::{HostK, HostQ, HostV};
use int_flash_attention_kernels::layout::{KV_BLOCK, block_bytes, k_offset, kv_blocks, packed_dim, v_byte, v_offset};
use rayon::prelude::*;

/// Q, `[batch][heads_q][seqlen_q][head_dim]`.
///
/// # Errors
/// Arrays of wrong lengths.
pub fn dequantize_q(q: &HostQ) -> Result<Vec<f32>> {
    Ok(resized(packed_q(q)?, packed_dim(q.shape.head_dim), q.shape.head_dim))
}

/// Q with all dims that its codes have.
pub(super) fn packed_q(q: &HostQ) -> Result<Vec<f32>> {
    q.check()?;
    let mut out = vec![0.0; q.data.len()];
    let d = packed_dim(q.shape.head_dim);
    out.par_chunks_mut(d).zip(q.data.par_chunks(d)).zip(&q.scale).for_each(|((out, codes), &scale)| {
        for (x, &code) in out.iter_mut().zip(codes) {
            *x = f32::from(code) * scale;
        }
        if q.scheme.rotates() {
            rotate_back(out);
        }
    });
    Ok(out)
}

/// Sequences that are packed have lengths, and are taken one at a time ([`sequences::part`](super::sequences::part)).
fn not_packed(packed: Option<usize>) -> Result<()> {
    match packed {
        Some(_) => Err(Error::Optional { name: "cu_seqlens_kv", given: "not given", planned: "with" }),
        None => Ok(()),
    }
}

/// K with its offset added back, `[batch][heads_kv][seqlen_kv][head_dim]`.
///
/// # Errors
/// Arrays of wrong lengths.
pub fn dequantize_k(k: &HostK) -> Result<Vec<f32>> {
    Ok(resized(packed_k(k)?, packed_dim(k.shape.head_dim), k.shape.head_dim))
}

/// K with all dims that its codes have.
pub(super) fn packed_k(k: &HostK) -> Result<Vec<f32>> {
    k.check()?;
    not_packed(k.packed)?;
    let (d, n, blocks) = (packed_dim(k.shape.head_dim), k.shape.seqlen, kv_blocks(k.shape.seqlen));
    let mut out = vec![0.0; k.shape.rows() * d];
    out.par_chunks_mut(d).enumerate().for_each(|(row, out)| {
        let (head, key) = (row / n, row % n);
        let block = &k.data[(head * blocks + key / KV_BLOCK) * block_bytes(d)..];
        let scale = k.scale[head * blocks * KV_BLOCK + key];
        for (dim, x) in out.iter_mut().enumerate() {
            *x = f32::from(block[k_offset(key % KV_BLOCK, dim)]) * scale;
        }
        if k.scheme.rotates() {
            rotate_back(out);
            for (x, offset) in out.iter_mut().zip(&k.offset[head * k.shape.head_dim..][..k.shape.head_dim]) {
                *x += offset;
            }
        }
    });
    Ok(out)
}

/// V, `[batch][heads_kv][seqlen_kv][head_dim]`.
///
/// # Errors
/// Arrays of wrong lengths.
pub fn dequantize_v(v: &HostV) -> Result<Vec<f32>> {
    Ok(resized(packed_v(v)?, packed_dim(v.shape.head_dim), v.shape.head_dim))
}

/// V with all dims that its codes have.
pub(super) fn packed_v(v: &HostV) -> Result<Vec<f32>> {
    v.check()?;
    not_packed(v.packed)?;
    let (d, n, blocks) = (packed_dim(v.shape.head_dim), v.shape.seqlen, kv_blocks(v.shape.seqlen));
    let mut out = vec![0.0; v.shape.rows() * d];
    out.par_chunks_mut(d).enumerate().for_each(|(row, out)| {
        let (head, key) = (row / n, row % n);
        let block = &v.data[(head * blocks + key / KV_BLOCK) * block_bytes(d)..];
        let scale = v.scale[head * blocks * KV_BLOCK + key];
        for (dim, x) in out.iter_mut().enumerate() {
            *x = f32::from(v_byte(block[v_offset(key % KV_BLOCK, dim, d)])) * scale;
        }
        if v.scheme.rotates() {
            rotate_token_of_v_back(out);
        }
    });
    Ok(out)
}
