//! A query row: what it has of the blocks so far, and its output.

use crate::reference::head::Head;
use crate::reference::simd::dot;
use crate::reference::softmax::{BlockSums, Codes, Softmax};
use int_flash_attention_kernels::layout::{KV_BLOCK, V_OFFSET, V_ROTATION};
use std::ops::Range;

/// A query row on its way through the blocks. Sums are in units of `2^reference`.
pub(in crate::reference) struct Row<S> {
    pub(super) softmax: S,
    pub(super) q: Vec<i16>,
    index: usize,
    pub(in crate::reference) keys: Range<usize>,
    pub(in crate::reference) reference: f64,
    pub(in crate::reference) sum: f64,
    pub(in crate::reference) acc: Vec<f64>,
    pub(in crate::reference) slack: Slack,
}

/// What the bounds are made of, in the same units.
#[derive(Default)]
pub(in crate::reference) struct Slack {
    /// The least and the most that the row sum may be.
    pub(in crate::reference) low: f64,
    pub(in crate::reference) high: f64,
    /// Sum of the slack of codes whose sum is the row sum, and of all codes' products with `|v|` per channel.
    pub(in crate::reference) codes: f64,
    pub(in crate::reference) values: Vec<f64>,
    /// Sum of `p (v + 128)` per channel and of `128 p`, which float32 rounding errors are relative to.
    pub(in crate::reference) magnitude: Vec<f64>,
    pub(in crate::reference) offset: f64,
    /// The most by which the scores of a block may be off on a GPU, in powers of two.
    pub(in crate::reference) scores: f64,
    /// By how much the share of the sink in the row sum may be off.
    pub(in crate::reference) sink: f64,
}

impl<S: Softmax> Row<S> {
    pub(super) fn new(head: &Head<'_>, index: usize, keys: Range<usize>) -> Self {
        Self {
            softmax: S::new(head, index),
            q: head.q[index * head.d..][..head.d].iter().map(|&q| q.into()).collect(),
            index,
            keys,
            reference: f64::NEG_INFINITY,
            sum: 0.0,
            acc: vec![0.0; head.dv],
            slack: Slack { values: vec![0.0; head.dv], magnitude: vec![0.0; head.dv], ..Slack::default() },
        }
    }

    /// Adds a block: `products` are those of the codes with V, a sum for each dim; `magnitudes` those of V, `[dim][key]`, for bounds.
    #[inline(always)]
    pub(super) fn add<const BOUNDS: bool>(
        &mut self,
        sums: &BlockSums,
        codes: &Codes,
        products: &[i32],
        magnitudes: &[i8],
    ) {
        let reference = self.reference.max(sums.exponent);
        // No block before: the difference of two infinities.
        let old = if self.reference == f64::NEG_INFINITY { 0.0 } else { (self.reference - reference).exp2() };
        let new = (sums.exponent - reference).exp2();
        let of_values = new * sums.value;
        self.reference = reference;
        self.sum = old * self.sum + new * sums.sum;
        for (acc, &product) in self.acc.iter_mut().zip(products) {
            *acc = old * *acc + of_values * f64::from(product);
        }
        if BOUNDS {
            let slack = &mut self.slack;
            slack.scores = slack.scores.max(sums.error);
            slack.low = old * slack.low + new * sums.low;
            slack.high = old * slack.high + new * sums.high;
            let offset = f64::from(V_OFFSET) * codes.p.iter().map(|&p| f64::from(p)).sum::<f64>();
            slack.offset = old * slack.offset + of_values * offset;
            let of_codes = if sums.of_codes { new } else { 0.0 };
            slack.codes = old * slack.codes + of_codes * codes.slack.iter().map(|&s| f64::from(s)).sum::<f64>();
            let channels = slack.values.iter_mut().zip(&mut slack.magnitude);
            for (((values, magnitude), v), &product) in channels.zip(magnitudes.chunks_exact(KV_BLOCK)).zip(products) {
                *values = old * *values + of_values * f64::from(dot(&codes.slack, v));
                *magnitude = old * *magnitude + of_values * (f64::from(product) + offset);
            }
        }
    }

    /// Adds the sink of the row's head to the row sum, if the row sees a key.
    pub(super) fn join_sink(&mut self, head: &Head<'_>) {
        let bias = self.bias(head);
        let Some(sink) = head.sink(bias).filter(|_| self.sum > 0.0) else { return };
        let exponent = sink * std::f64::consts::LOG2_E;
        let reference = self.reference.max(exponent);
        let old = (self.reference - reference).exp2();
        let slack = &mut self.slack;
        let sums = [&mut self.sum, &mut slack.low, &mut slack.high, &mut slack.codes, &mut slack.offset];
        for sum in sums.into_iter().chain(&mut self.acc).chain(&mut slack.values).chain(&mut slack.magnitude) {
            *sum *= old;
        }
        let weight = S::ONE.1 * (exponent - reference).exp2();
        for sum in [&mut self.sum, &mut slack.low, &mut slack.high] {
            *sum += weight;
        }
        // Its exponent is rounded twice, and the difference from the row's once.
        let error = (-20_f64).exp2() * (1.0 + sink.abs() + bias.abs() + self.reference.abs());
        slack.sink = (S::ONE.1 * (exponent - reference + error).exp2() - weight) / self.sum;
        self.reference = reference;
    }

    /// Writes the row's output, and gives its log-sum-exp.
    #[inline(always)]
    pub(super) fn finish(&self, head: &Head<'_>, o: &mut [f64]) -> f64 {
        if self.sum <= 0.0 {
            o.fill(0.0);
            return head.sink(0.0).unwrap_or(f64::NEG_INFINITY);
        }
        let (one, sum_one) = S::ONE;
        let sum = one * self.sum;
        for (o, acc) in o.iter_mut().zip(&self.acc) {
            *o = acc / sum;
        }
        if head.rotated {
            rotate_back(o);
        }
        let lse = std::f64::consts::LN_2 * (self.reference + (self.sum / sum_one).log2());
        lse + self.bias(head)
    }

    /// The log-sum-exp's share of the offset that was taken out of K, where the scores are without it.
    pub(in crate::reference) fn bias(&self, head: &Head<'_>) -> f64 {
        if S::BIASED {
            return 0.0;
        }
        head.q_bias.map_or(0.0, |bias| f64::from(head.softmax_scale) * f64::from(bias[self.index]))
    }
}

/// Undoes the rotation of V in an output row.
#[inline(always)]
pub(in crate::reference) fn rotate_back(o: &mut [f64]) {
    for four in o.as_chunks_mut::<V_ROTATION>().0 {
        let [a, b, c, d] = *four;
        let ([even, even_difference], [odd, odd_difference]) = ([a + c, a - c], [b + d, b - d]);
        *four = [even + odd, even - odd, odd_difference + even_difference, odd_difference - even_difference]
            .map(|x| x / V_ROTATION as f64);
    }
}
