//! Attention by its definition alone, which shares no code with the references: every pair of a query and a key, in float64, with no thought
//! of speed.

use int_flash_attention::{Alibi, HostSeqLens, HostTensor, MaskKind, Scored, SeqLens, Window};

/// A sequence: its number, the batch of the tensors that it is in, its first query and key there, and how many it has of each.
struct Own {
    sequence: usize,
    batch: usize,
    first: [usize; 2],
    len: [usize; 2],
}

fn sequences(scored: &Scored<'_>, lengths: &HostSeqLens<'_>) -> Vec<Own> {
    let p = scored.problem;
    let own = |sequence: usize| match lengths {
        SeqLens::Equal => Own { sequence, batch: sequence, first: [0; 2], len: [p.seqlen_q, p.seqlen_kv] },
        SeqLens::KeyLengths { seqlens_kv } => {
            Own { sequence, batch: sequence, first: [0; 2], len: [p.seqlen_q, seqlens_kv[sequence] as usize] }
        }
        SeqLens::Packed { cu_seqlens_q, cu_seqlens_kv } => {
            let ends = [cu_seqlens_q, cu_seqlens_kv].map(|cu| [cu[sequence] as usize, cu[sequence + 1] as usize]);
            Own { sequence, batch: 0, first: ends.map(|ends| ends[0]), len: ends.map(|ends| ends[1] - ends[0]) }
        }
    };
    (0..p.batch).map(own).collect()
}

/// Output and log-sum-exp of all rows, in the order of the problem's tensors; zeros and minus infinity in rows that belong to no sequence.
///
/// # Panics
///
/// On lengths or tensors that are not the problem's.
#[must_use]
pub fn definition(scored: &Scored<'_>, lengths: &HostSeqLens<'_>, [q, k, v]: [&HostTensor; 3]) -> (Vec<f64>, Vec<f64>) {
    let (p, d) = (scored.problem, v.shape().head_dim);
    let tokens = q.shape().seqlen;
    let mut o = vec![0.0; q.shape().batch * p.heads_q * tokens * d];
    let mut lse = vec![f64::NEG_INFINITY; q.shape().batch * p.heads_q * tokens];
    for own in &sequences(scored, lengths) {
        for (h, i) in (0..p.heads_q).flat_map(|h| (0..own.len[0]).map(move |i| (h, i))) {
            let g = h / (p.heads_q / p.heads_kv);
            let logits: Vec<_> = (0..own.len[1]).map(|j| logit(scored, own, [q, k], [h, g], [i, j])).collect();
            let sink = scored.tensors.sinks.map(|sinks| f64::from(sinks[h]));
            let all = || logits.iter().flatten().copied();
            let max = all().chain(sink).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = all().chain(sink).map(|z| (z - max).exp()).sum();
            let row = (own.batch * p.heads_q + h) * tokens + own.first[0] + i;
            for (j, z) in logits.iter().enumerate().filter_map(|(j, z)| Some((j, (*z)?))) {
                let weight = (z - max).exp() / sum;
                for c in 0..d {
                    o[row * d + c] += weight * f64::from(v.get(own.batch, g, own.first[1] + j, c));
                }
            }
            if all().chain(sink).next().is_some() {
                lse[row] = max + sum.ln();
            }
        }
    }
    (o, lse)
}

/// The logit of query `i` and key `j` of a sequence, if the query sees the key.
fn logit(
    Scored { problem: p, tensors: t, .. }: &Scored<'_>,
    own: &Own,
    [q, k]: [&HostTensor; 2],
    [h, g]: [usize; 2],
    [i, j]: [usize; 2],
) -> Option<f64> {
    let score = &p.score_mod;
    let at = |strides: [usize; 3]| own.sequence * strides[0] + h * strides[1] + i * strides[2];
    let distance = (i + own.len[1]) as f64 - (j + own.len[0]) as f64;
    let Window { left, right } = p.window;
    let inside = left.is_none_or(|left| distance <= left as f64) && right.is_none_or(|r| -distance <= r as f64);
    let kept = score.mask.is_none_or(|mask| {
        let (bytes, row) = (t.mask.unwrap(), at(mask.strides));
        match mask.kind {
            MaskKind::Bytes => bytes[row + j] > 0,
            MaskKind::Bits => bytes[row + j / 8] & (1 << (j % 8)) > 0,
        }
    });
    let bias = score.bias.map_or(0.0, |bias| f64::from(t.bias.unwrap().get(at(bias.strides) + j)));
    if !inside || !kept || bias < -45000.0 {
        return None;
    }
    let element = |x: &HostTensor, head, token, c| f64::from(x.get(own.batch, head, token, c));
    let product = |c| element(q, h, own.first[0] + i, c) * element(k, g, own.first[1] + j, c);
    let dot: f64 = (0..p.head_dim).map(product).sum();
    let mut z = dot * f64::from(p.softmax_scale.unwrap_or((1.0 / (p.head_dim as f64).sqrt()) as f32));
    if let Some(cap) = score.softcap {
        z = f64::from(cap) * (z / f64::from(cap)).tanh();
    }
    let slope = score.alibi.map_or(0.0, |alibi| {
        let before = if alibi == Alibi::PerSequence { own.sequence * p.heads_q } else { 0 };
        t.alibi_slopes.unwrap()[before + h].into()
    });
    Some(z - slope * distance.abs() + bias)
}

/// Whether results are those of the definition, to within 1e-9 of the largest of them.
#[must_use]
pub fn is_close(got: &[f64], want: &[f64]) -> bool {
    let largest = want.iter().filter(|x| x.is_finite()).fold(1.0, |a: f64, x| a.max(x.abs()));
    got.len() == want.len()
        && got.iter().zip(want).all(|(got, want)| got == want || (got - want).abs() <= 1e-9 * largest)
}
