//! How far INT8 attention takes a decoder from plain attention.

use crate::attention::Int8;
use crate::cache::PlainCache;
use crate::decoder::Decoder;
use crate::{rounds, timed};
use candle_core::{Result, Tensor, bail};
use std::time::Duration;

/// INT8 attention beside plain attention on the same tokens.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// How many.
    pub tokens: usize,
    /// `exp` of the mean negative logarithm of the tokens' probabilities.
    pub perplexity_plain: f64,
    /// The same with INT8 attention.
    pub perplexity_int8: f64,
    /// Mean over positions of KL(plain || INT8), in nats.
    pub kl: f64,
    /// Share of positions at which the most probable token is the same.
    pub top1: f64,
    /// For all layers with plain attention, without the logits.
    pub time_plain: Duration,
    /// The same with INT8 attention.
    pub time_int8: Duration,
}

/// Rows of logits that are held at once.
const ROWS: usize = 64;

fn total(tensor: &Tensor) -> Result<f64> {
    tensor.sum_all()?.to_scalar::<f32>().map(f64::from)
}

/// KL(a || b) in nats, the sum over rows of logarithms of probabilities.
///
/// # Errors
/// Candle's.
pub fn divergence(a: &Tensor, b: &Tensor) -> Result<f64> {
    total(&(a.exp()? * (a - b)?)?)
}

/// How often [`measure`] calls `done`.
#[must_use]
pub fn steps(decoder: &Decoder) -> usize {
    2 * rounds(decoder.device()) * decoder.layers()
}

/// Measures on these tokens; `done` is called after each layer.
///
/// # Errors
/// Fewer than two tokens, and candle's.
pub fn measure(decoder: &Decoder, tokens: &[u32], done: impl Fn()) -> Result<Figures> {
    if tokens.len() < 2 {
        bail!("a text of two tokens at least is needed")
    }
    let (plain, time_plain) = timed(decoder.device(), || {
        decoder.hidden(tokens, 0, &mut PlainCache::new(decoder.layers(), tokens.len()), &done)
    })?;
    let (int8, time_int8) = timed(decoder.device(), || decoder.hidden(tokens, 0, &mut Int8, &done))?;
    let predicted = tokens.len() - 1;
    let [mut nll_plain, mut nll_int8, mut kl, mut same] = [0.0; 4];
    for start in (0..predicted).step_by(ROWS) {
        let rows = ROWS.min(predicted - start);
        let of = |hidden: &Tensor| decoder.log_probabilities(&hidden.narrow(0, start, rows)?);
        let (plain, int8) = (of(&plain)?, of(&int8)?);
        let next = Tensor::new(&tokens[start + 1..start + 1 + rows], plain.device())?.unsqueeze(1)?;
        nll_plain -= total(&plain.gather(&next, 1)?)?;
        nll_int8 -= total(&int8.gather(&next, 1)?)?;
        kl += divergence(&plain, &int8)?;
        let best = |tensor: &Tensor| tensor.argmax(1)?.to_vec1::<u32>();
        same += best(&plain)?.iter().zip(best(&int8)?).filter(|(a, b)| **a == *b).count() as f64;
    }
    let mean = |sum: f64| sum / predicted as f64;
    Ok(Figures {
        tokens: tokens.len(),
        perplexity_plain: mean(nll_plain).exp(),
        perplexity_int8: mean(nll_int8).exp(),
        kl: mean(kl),
        top1: mean(same),
        time_plain,
        time_int8,
    })
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { tokens, perplexity_plain, perplexity_int8, kl, top1, time_plain, time_int8 } = self;
        let speed = |time: &Duration| *tokens as f64 / time.as_secs_f64();
        let off = 100.0 * (perplexity_int8 / perplexity_plain - 1.0);
        writeln!(f, "perplexity       plain {perplexity_plain:.4}   INT8 {perplexity_int8:.4}   {off:+.3} %")?;
        writeln!(f, "KL(plain||INT8)  {kl:.5} nats a token")?;
        writeln!(f, "top-1 agreement  {:.2} %", 100.0 * top1)?;
        write!(f, "tokens a second  plain {:.0}   INT8 {:.0}", speed(time_plain), speed(time_int8))
    }
}
