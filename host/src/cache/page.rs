//! A head of a page in the host's memory, with V in 8 bits or in 4 (docs/kernel-abi.md, "Paged cache").

use super::CacheShape;
use int_flash_attention_kernels::layout::page::{PAGE_TOKENS, PageHead, page_head, page_v_offset};
use int_flash_attention_kernels::layout::v4::{v4_byte, v4_nibble, v4_offset, v4_range, v4_step_offset};
use int_flash_attention_kernels::layout::{V_GROUP, k_offset, v_byte, v_offset};
use std::ops::Range;

/// Which bytes of a pool are a page's head, and how they lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadPlace {
    at: PageHead,
    d: usize,
}

impl HeadPlace {
    pub(crate) const fn new(shape: &CacheShape, page: usize, head: usize) -> Self {
        Self { at: page_head(page, head, shape.heads_kv, shape.head_dim, shape.v8_pages()), d: shape.head_dim }
    }

    /// Its bytes of the pool.
    pub(crate) const fn range(&self) -> Range<usize> {
        self.at.offset..self.at.offset + self.at.scales + 2 * size_of::<f32>() * PAGE_TOKENS
    }

    pub(crate) fn k(&self, bytes: &[u8], key: usize, dim: usize) -> i8 {
        bytes[k_offset(key, dim)] as i8
    }

    /// The code of V, in 4 bits the one that its nibble stands for.
    pub(crate) fn v(&self, bytes: &[u8], key: usize, dim: usize) -> i8 {
        let bytes = &bytes[page_v_offset(self.d)..];
        if !self.at.v4 {
            return v_byte(bytes[v_offset(key, dim, self.d)] as i8);
        }
        let (byte, bit) = v4_offset(key, dim);
        let range = v4_step_offset(key, dim / V_GROUP, self.d);
        let range = (bytes[range].into(), bytes[range + 1].into());
        // What was never written may be more than a byte.
        v_byte(v4_byte(u32::from(bytes[byte] >> bit & 15), range) as i8)
    }

    pub(crate) fn k_scale(&self, bytes: &[u8], key: usize) -> f32 {
        self.scale(bytes, key)
    }

    pub(crate) fn v_scale(&self, bytes: &[u8], key: usize) -> f32 {
        self.scale(bytes, PAGE_TOKENS + key)
    }

    fn scale(&self, bytes: &[u8], key: usize) -> f32 {
        f32::from_le_bytes(std::array::from_fn(|i| bytes[self.at.scales + size_of::<f32>() * key + i]))
    }

    /// Writes a token: its codes of K and V and their scales.
    pub(crate) fn write(&self, bytes: &mut [u8], key: usize, [k, v]: [&[i8]; 2], scales: [f32; 2]) {
        for (dim, &code) in k.iter().enumerate() {
            bytes[k_offset(key, dim)] = code as u8;
        }
        for (i, scale) in scales.into_iter().enumerate() {
            let at = self.at.scales + size_of::<f32>() * (i * PAGE_TOKENS + key);
            bytes[at..][..size_of::<f32>()].copy_from_slice(&scale.to_le_bytes());
        }
        let bytes = &mut bytes[page_v_offset(self.d)..];
        if !self.at.v4 {
            for (dim, &code) in v.iter().enumerate() {
                bytes[v_offset(key, dim, self.d)] = v_byte(code) as u8;
            }
            return;
        }
        for (group, codes) in v.chunks_exact(V_GROUP).enumerate() {
            let of_v = |&code: &i8| u32::from(v_byte(code) as u8);
            let (low, high) = codes.iter().map(of_v).fold((255, 0), |(low, high), v| (v.min(low), v.max(high)));
            let range = v4_range(low, high);
            let at = v4_step_offset(key, group, self.d);
            (bytes[at], bytes[at + 1]) = (range.0 as u8, range.1 as u8);
            for (i, code) in codes.iter().enumerate() {
                let (byte, bit) = v4_offset(key, V_GROUP * group + i);
                bytes[byte] = bytes[byte] & !(15 << bit) | (v4_nibble(of_v(code), range) as u8) << bit;
            }
        }
    }
}

/// Writes what a page's head has to one of another kind: V's codes become nibbles, or the codes that nibbles stand for.
pub(crate) fn convert(shape: &CacheShape, pool: &mut [u8], [from, to]: [HeadPlace; 2]) {
    let read = pool[from.range()].to_vec();
    let write = &mut pool[to.range()];
    for key in 0..PAGE_TOKENS {
        let k: Vec<i8> = (0..shape.head_dim).map(|dim| from.k(&read, key, dim)).collect();
        let v: Vec<i8> = (0..shape.head_dim).map(|dim| from.v(&read, key, dim)).collect();
        let scales = [from.k_scale(&read, key), from.v_scale(&read, key)];
        to.write(write, key, [&k, &v], scales);
    }
}
