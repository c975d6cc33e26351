//! Some query positions of a result.

use int_flash_attention::{AttentionProblem, HostTensor};

/// The log-sum-exps of some query positions of every head.
pub fn lse_at(problem: &AttentionProblem, lse: &[f32], rows: &[usize]) -> Vec<f64> {
    let heads = lse.chunks_exact(problem.seqlen_q);
    heads.flat_map(|head| rows.iter().map(|&row| f64::from(head[row]))).collect()
}

/// The values of some query positions of every head.
pub fn values_at(o: &HostTensor, rows: &[usize]) -> Vec<f64> {
    let shape = o.shape();
    let mut values = Vec::with_capacity(shape.batch * shape.heads * rows.len() * shape.head_dim);
    for b in 0..shape.batch {
        for h in 0..shape.heads {
            for &n in rows {
                values.extend((0..shape.head_dim).map(|d| f64::from(o.get(b, h, n, d))));
            }
        }
    }
    values
}
