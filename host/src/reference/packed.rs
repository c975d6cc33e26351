//! The problem that the kernels compute where a head is padded: that of tensors with zeros behind their dims (docs/kernel-abi.md, "Padded
//! heads"). Its scale is that of the true one; what comes out behind the true dims is left out.

use crate::problem::AttentionProblem;
use int_flash_attention_kernels::layout::packed_dim;

/// The problem with the dims of the packed operands. It has been checked.
pub(super) fn packed(p: &AttentionProblem) -> AttentionProblem {
    AttentionProblem {
        head_dim: packed_dim(p.head_dim),
        head_dim_v: Some(packed_dim(p.value_dim())),
        softmax_scale: Some(p.scale()),
        ..*p
    }
}

/// Rows of `from` elements as rows of `to`, with zeros behind what is longer, or without what is too long.
pub(super) fn resized<T: Copy + Default>(rows: Vec<T>, from: usize, to: usize) -> Vec<T> {
    if from == to {
        return rows;
    }
    let mut out = vec![T::default(); rows.len() / from * to];
    for (out, row) in out.chunks_exact_mut(to).zip(rows.chunks_exact(from)) {
        let both = from.min(to);
        out[..both].copy_from_slice(&row[..both]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_filled_and_cut() {
        assert_eq!(resized(vec![1, 2, 3, 4], 2, 3), [1, 2, 0, 3, 4, 0]);
        assert_eq!(resized(vec![1, 2, 0, 3, 4, 0], 3, 2), [1, 2, 3, 4]);
        assert_eq!(resized(vec![1, 2], 2, 2), [1, 2]);
    }
}
