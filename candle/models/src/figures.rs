//! How far INT8 attention takes a decoder from plain attention.

use crate::attention::{Attend, Int8};
use crate::cache::{Int8Cache, PlainCache};
use crate::decoder::Decoder;
use crate::report::table;
use crate::{rounds, timed};
use candle_core::{Result, Tensor, bail};
use std::time::Duration;

/// What a decoder makes of a text.
pub struct Run<'a> {
    decoder: &'a Decoder,
    /// Of every token, what the last layer gives.
    hidden: Tensor,
    /// For all layers, without the logits.
    pub time: Duration,
}

/// What one run says of each token of a text, and what another one does.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Logarithms of the tokens' probabilities, of the one and of the other.
    log_p: [Vec<f64>; 2],
    /// The sum over positions of KL(the one || the other), in nats.
    kl: f64,
    /// Positions at which the most probable token is the same.
    same: usize,
}

/// Rows of logits that are held at once.
const ROWS: usize = 64;

/// KL(a || b) in nats, the sum over rows of logarithms of probabilities.
///
/// # Errors
/// Candle's.
pub fn divergence(a: &Tensor, b: &Tensor) -> Result<f64> {
    (a.exp()? * (a - b)?)?.sum_all()?.to_scalar::<f32>().map(f64::from)
}

/// How often [`plain`], [`int8`] and [`int8_cache`] call `done`.
#[must_use]
pub fn steps(decoder: &Decoder) -> usize {
    rounds(decoder.device()) * decoder.layers()
}

/// With plain attention; `done` is called after each layer.
///
/// # Errors
/// Candle's.
pub fn plain<'a>(decoder: &'a Decoder, tokens: &[u32], done: &dyn Fn()) -> Result<Run<'a>> {
    run(decoder, tokens, done, || Ok(PlainCache::new(decoder.layers(), tokens.len())))
}

/// With INT8 attention; `done` is called after each layer.
///
/// # Errors
/// Candle's, and what the attention refuses.
pub fn int8<'a>(decoder: &'a Decoder, tokens: &[u32], done: &dyn Fn()) -> Result<Run<'a>> {
    run(decoder, tokens, done, || Ok(Int8))
}

/// With INT8 attention on a cache that the text goes to, as a decoder has it; `done` is called after each layer.
///
/// # Errors
/// As [`int8`].
pub fn int8_cache<'a>(decoder: &'a Decoder, tokens: &[u32], done: &dyn Fn()) -> Result<Run<'a>> {
    let (heads_kv, head_dim) = (decoder.heads_kv(), decoder.head_dim());
    run(decoder, tokens, done, || Int8Cache::new(decoder.layers(), tokens.len(), heads_kv, head_dim, decoder.device()))
}

fn run<'a, A: Attend>(
    decoder: &'a Decoder,
    tokens: &[u32],
    done: &dyn Fn(),
    attend: impl Fn() -> Result<A>,
) -> Result<Run<'a>> {
    let (hidden, time) = timed(decoder.device(), || decoder.hidden(tokens, 0, &mut attend()?, done))?;
    Ok(Run { decoder, hidden, time })
}

/// Two runs of the same text.
///
/// # Errors
/// Fewer than two tokens, and candle's.
pub fn compare(tokens: &[u32], one: &Run<'_>, other: &Run<'_>) -> Result<Comparison> {
    if tokens.len() < 2 {
        bail!("a text of two tokens at least is needed")
    }
    let mut all = Comparison::default();
    let predicted = tokens.len() - 1;
    for start in (0..predicted).step_by(ROWS) {
        let rows = ROWS.min(predicted - start);
        let of = |run: &Run<'_>| run.decoder.log_probabilities(&run.hidden.narrow(0, start, rows)?);
        let both = [of(one)?, of(other)?];
        let next = Tensor::new(&tokens[start + 1..start + 1 + rows], both[0].device())?.unsqueeze(1)?;
        for (log_p, of) in all.log_p.iter_mut().zip(&both) {
            log_p.extend(of.gather(&next, 1)?.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from));
        }
        all.kl += divergence(&both[0], &both[1])?;
        let best = |tensor: &Tensor| tensor.argmax(1)?.to_vec1::<u32>();
        all.same += best(&both[0])?.iter().zip(best(&both[1])?).filter(|(a, b)| **a == *b).count();
    }
    Ok(all)
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

impl Comparison {
    /// Of two runs of another text, counted with those of this one.
    pub fn extend(&mut self, other: &Self) {
        for (all, more) in self.log_p.iter_mut().zip(&other.log_p) {
            all.extend(more);
        }
        self.kl += other.kl;
        self.same += other.same;
    }

    /// Tokens that were predicted.
    #[must_use]
    pub fn predicted(&self) -> usize {
        self.log_p[0].len()
    }

    /// `exp` of the mean negative logarithm of the tokens' probabilities, of both runs.
    #[must_use]
    pub fn perplexity(&self) -> [f64; 2] {
        self.log_p.each_ref().map(|log_p| (-mean(log_p.iter().copied())).exp())
    }

    /// How much smaller the other's logarithms of probabilities are, in nats a token, and the standard error of that: the spread of the tokens' own
    /// differences over the root of their number. It is the logarithm of the quotient of the perplexities.
    #[must_use]
    pub fn difference(&self) -> [f64; 2] {
        let differences = || self.log_p[0].iter().zip(&self.log_p[1]).map(|(one, other)| one - other);
        let (mean_of, count) = (mean(differences()), self.predicted() as f64);
        let variance = differences().map(|x| (x - mean_of).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
        [mean_of, (variance / count).sqrt()]
    }

    /// Mean over positions of KL(the one || the other), in nats.
    #[must_use]
    pub fn kl(&self) -> f64 {
        self.kl / self.predicted() as f64
    }

    /// Share of positions at which the most probable token is the same.
    #[must_use]
    pub fn top1(&self) -> f64 {
        self.same as f64 / self.predicted() as f64
    }

    fn row(&self, passage: &str, of: &str) -> [String; 7] {
        let [one, other] = self.perplexity();
        let [off, error] = self.difference().map(|x| 100.0 * x);
        [
            passage.to_owned(),
            of.to_owned(),
            format!("{one:.4}"),
            format!("{other:.4}"),
            format!("{off:+.3} +- {error:.3}"),
            format!("{:.5}", self.kl()),
            format!("{:.2}", 100.0 * self.top1()),
        ]
    }
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.row("", "").join("  "))
    }
}

/// A decoder on passages of text, with plain attention and with INT8, without a cache and with one; where it is not in float32, `float32` is the same one that is, since plain
/// attention in 16 bits is off as well. `done` is called after each layer.
///
/// # Errors
/// Fewer than two tokens, and candle's.
pub fn report(decoder: &Decoder, float32: Option<&Decoder>, passages: &[&[u32]], done: &dyn Fn()) -> Result<String> {
    let dtype = decoder.dtype().as_str();
    let own = [format!("plain {dtype}, INT8"), format!("plain {dtype}, INT8 cache")];
    let to_float32 = [format!("plain f32, plain {dtype}"), "plain f32, INT8 cache".to_owned()];
    let names = own.iter().chain(to_float32.iter().filter(|_| float32.is_some()));
    let mut sums: Vec<(&String, Comparison)> = names.map(|name| (name, Comparison::default())).collect();
    let head = ["tokens", "of", "perplexity", "and", "off, %", "KL, nats", "top-1, %"].map(str::to_owned);
    let (mut rows, mut times) = (vec![head], [Duration::ZERO; 2]);
    for (at, tokens) in passages.iter().enumerate() {
        let (plain, int8) = (self::plain(decoder, tokens, done)?, int8(decoder, tokens, done)?);
        let cache = int8_cache(decoder, tokens, done)?;
        let mut compared = vec![compare(tokens, &plain, &int8)?, compare(tokens, &plain, &cache)?];
        if let Some(float32) = float32 {
            let exact = self::plain(float32, tokens, done)?;
            compared.extend([compare(tokens, &exact, &plain)?, compare(tokens, &exact, &cache)?]);
        }
        for ((name, sum), one) in sums.iter_mut().zip(&compared) {
            rows.push(one.row(&format!("{} to {}", at * tokens.len(), (at + 1) * tokens.len()), name));
            sum.extend(one);
        }
        times[0] += plain.time;
        times[1] += int8.time;
    }
    if passages.len() > 1 {
        rows.extend(sums.iter().map(|(name, sum)| sum.row("all", name)));
    }
    let count = passages.iter().map(|tokens| tokens.len()).sum::<usize>() as f64;
    let [plain, int8] = times.map(|time| count / time.as_secs_f64());
    Ok(format!("{}tokens a second: plain {dtype} {plain:.0}, INT8 {int8:.0}", table(&rows)))
}

/// Passages of so many tokens, as many as there are whole ones, up to this number; a text that is shorter is one.
#[must_use]
pub fn passages(tokens: &[u32], length: usize, most: usize) -> Vec<&[u32]> {
    if tokens.len() < length {
        return vec![tokens];
    }
    tokens.chunks_exact(length).take(most).collect()
}
