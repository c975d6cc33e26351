//! Greedy generation: the prompt at once, then a token after the other.

use crate::attention::Attend;
use crate::cache::{Int8Cache, PlainCache};
use crate::decoder::Decoder;
use crate::report::table;
use crate::{rounds, timed};
use candle_core::{Result, Tensor, bail};
use std::time::{Duration, Instant};

/// What came of a prompt.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// Until the first of them.
    pub prefill: Duration,
    /// From the first to the last.
    pub decode: Duration,
    /// Of the cache, for the prompt and the new tokens.
    pub cache_bytes: usize,
}

/// The most probable token, so many times, after a prompt in chunks of so many tokens; `done` is called after each new token.
fn greedy(
    decoder: &Decoder,
    (prompt, chunk): (&[u32], usize),
    count: usize,
    attend: &mut dyn Attend,
    done: &dyn Fn(),
) -> Result<Generated> {
    if prompt.is_empty() || chunk == 0 || count == 0 {
        bail!("a prompt and chunks of a token at least are needed, and a token to generate")
    }
    let mut hidden = |new: &[u32], past: usize| decoder.hidden(new, past, attend, &|| ());
    let next = |hidden: Tensor| -> Result<u32> {
        let last = hidden.narrow(0, hidden.dim(0)? - 1, 1)?;
        let token = decoder.logits(&last)?.argmax(1)?.to_vec1()?[0];
        done();
        Ok(token)
    };
    let start = Instant::now();
    let last = (prompt.len() - 1) / chunk * chunk;
    for past in (0..last).step_by(chunk) {
        hidden(&prompt[past..past + chunk], past)?;
    }
    let mut tokens = vec![next(hidden(&prompt[last..], last)?)?];
    let prefill = start.elapsed();
    let start = Instant::now();
    while tokens.len() < count {
        let last = tokens.len() - 1;
        tokens.push(next(hidden(&tokens[last..], prompt.len() + last)?)?);
    }
    Ok(Generated { tokens, prefill, decode: start.elapsed(), cache_bytes: 0 })
}

/// How often [`both`] calls `done` for so many new tokens.
#[must_use]
pub fn steps(decoder: &Decoder, count: usize) -> usize {
    2 * rounds(decoder.device()) * count
}

/// Through candle's attention and cache, and through INT8, the prompt at once or in chunks of so many tokens. On a GPU each runs twice and the second time counts: the first one compiles and loads
/// kernels.
///
/// # Errors
/// An empty prompt, nothing to generate, and candle's.
pub fn both(
    decoder: &Decoder,
    prompt: &[u32],
    chunk: Option<usize>,
    count: usize,
    done: &dyn Fn(),
) -> Result<[Generated; 2]> {
    let most = prompt.len() + count;
    let prompt = (prompt, chunk.unwrap_or(prompt.len()));
    let plain = || {
        let mut cache = PlainCache::new(decoder.layers(), most);
        let plain = greedy(decoder, prompt, count, &mut cache, done)?;
        Ok(Generated { cache_bytes: cache.bytes(), ..plain })
    };
    let int8 = || {
        let (heads_kv, head_dim) = (decoder.heads_kv(), decoder.head_dim());
        let mut cache = Int8Cache::new(decoder.layers(), most, heads_kv, head_dim, decoder.device())?;
        let int8 = greedy(decoder, prompt, count, &mut cache, done)?;
        Ok(Generated { cache_bytes: cache.bytes(), ..int8 })
    };
    Ok([timed(decoder.device(), plain)?.0, timed(decoder.device(), int8)?.0])
}

/// The speeds and sizes of [`both`].
#[must_use]
pub fn speeds(decoder: &Decoder, prompt: usize, [plain, int8]: &[Generated; 2]) -> String {
    let head = ["attention", "prefill, tokens/s", "decode, tokens/s", "cache, MB"].map(str::to_owned);
    let row = |name: String, of: &Generated| {
        let decode = (of.tokens.len() - 1) as f64 / of.decode.as_secs_f64();
        [
            name,
            format!("{:.1}", prompt as f64 / of.prefill.as_secs_f64()),
            if of.tokens.len() > 1 { format!("{decode:.2}") } else { "-".to_owned() },
            format!("{:.2}", of.cache_bytes as f64 / 1e6),
        ]
    };
    table(&[head, row(format!("plain, {}", decoder.dtype().as_str()), plain), row("INT8".to_owned(), int8)])
}

/// How many tokens are the same, from the first on.
#[must_use]
pub fn same(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
