//! A decoder of the Llama architecture from a GGUF file, in float32, with a choice of attentions.

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::tokenizer::TokenizerFromGguf;
use candle_core::{D, DType, Device, Result, Tensor};
use candle_int_flash_attention::flash_attn;
use std::fs::File;
use std::path::Path;
use tokenizers::Tokenizer;

/// How `softmax(scale q k^T) v` is computed; the rest of the model is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// Candle's operations in float32.
    Plain,
    /// This package.
    Int8,
}

pub struct Model {
    pub tokenizer: Tokenizer,
    embeddings: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    heads: usize,
    heads_kv: usize,
    eps: f64,
    rope_base: f32,
}

struct Layer {
    attn_norm: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    ffn_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

impl Model {
    pub fn load(path: &Path) -> Result<Self> {
        let mut file = File::open(path)?;
        let content = Content::read(&mut file)?;
        let number =
            |key: &str| content.metadata.get(key).map(Value::to_u32).transpose().map(Option::unwrap_or_default);
        let float = |key: &str| content.metadata.get(key).map(Value::to_f32).transpose().map(Option::unwrap_or_default);
        let tokenizer = Tokenizer::from_gguf(&content)?;
        let mut tensor =
            |name: &str| content.tensor(&mut file, &format!("{name}.weight"), &Device::Cpu)?.dequantize(&Device::Cpu);
        let layer = |at: u32| -> Result<Layer> {
            let mut part = |name: &str| tensor(&format!("blk.{at}.{name}"));
            Ok(Layer {
                attn_norm: part("attn_norm")?,
                q: part("attn_q")?,
                k: part("attn_k")?,
                v: part("attn_v")?,
                output: part("attn_output")?,
                ffn_norm: part("ffn_norm")?,
                gate: part("ffn_gate")?,
                up: part("ffn_up")?,
                down: part("ffn_down")?,
            })
        };
        let layers = (0..number("llama.block_count")?).map(layer).collect::<Result<_>>()?;
        Ok(Self {
            tokenizer,
            layers,
            embeddings: tensor("token_embd")?,
            norm: tensor("output_norm")?,
            heads: number("llama.attention.head_count")? as usize,
            heads_kv: number("llama.attention.head_count_kv")? as usize,
            eps: f64::from(float("llama.attention.layer_norm_rms_epsilon")?),
            rope_base: float("llama.rope.freq_base")?,
        })
    }

    /// What the last layer makes of the tokens, `(tokens, width)`; `done` is called after each layer.
    pub fn hidden(&self, tokens: &[u32], attention: Attention, done: impl Fn()) -> Result<Tensor> {
        let mut x = self.embeddings.embedding(&Tensor::new(tokens, &Device::Cpu)?)?;
        let head_dim = self.embeddings.dim(D::Minus1)? / self.heads;
        let rope = self.rope(tokens.len(), head_dim)?;
        for layer in &self.layers {
            let normed = rms_norm(&x, &layer.attn_norm, self.eps)?;
            // (batch 1, tokens, heads, head_dim)
            let heads =
                |weight: &Tensor, heads| normed.matmul(&weight.t()?)?.reshape((1, tokens.len(), heads, head_dim));
            let q = rotate(&heads(&layer.q, self.heads)?, &rope)?;
            let k = rotate(&heads(&layer.k, self.heads_kv)?, &rope)?;
            let v = heads(&layer.v, self.heads_kv)?;
            let scale = 1.0 / (head_dim as f32).sqrt();
            let o = match attention {
                Attention::Plain => plain(&q, &k, &v, scale)?,
                Attention::Int8 => flash_attn(&q, &k, &v, scale, true)?,
            };
            x = (x + o.reshape((tokens.len(), ()))?.matmul(&layer.output.t()?)?)?;
            let normed = rms_norm(&x, &layer.ffn_norm, self.eps)?;
            let gated = (normed.matmul(&layer.gate.t()?)?.silu()? * normed.matmul(&layer.up.t()?)?)?;
            x = (x + gated.matmul(&layer.down.t()?)?)?;
            done();
        }
        rms_norm(&x, &self.norm, self.eps)
    }

    /// Logarithms of the next token's probabilities, for these rows of [`hidden`](Self::hidden).
    pub fn log_probabilities(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = hidden.matmul(&self.embeddings.t()?)?;
        let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
        shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
    }

    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Cosines and sines of the positions' angles, `(1, tokens, 1, head_dim / 2)`.
    fn rope(&self, tokens: usize, head_dim: usize) -> Result<(Tensor, Tensor)> {
        let half = head_dim / 2;
        let angles: Vec<f32> = (0..tokens * half)
            .map(|at| (at / half) as f32 / self.rope_base.powf((at % half) as f32 / half as f32))
            .collect();
        let angles = Tensor::from_vec(angles, (1, tokens, 1, half), &Device::Cpu)?;
        Ok((angles.cos()?, angles.sin()?))
    }
}

fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + eps)?.sqrt()?)?.broadcast_mul(weight)
}

/// Rotates neighbouring channels, which is how GGUF files of this architecture have them.
fn rotate(x: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Result<Tensor> {
    let (batch, tokens, heads, head_dim) = x.dims4()?;
    let pairs = x.reshape((batch, tokens, heads, head_dim / 2, 2))?;
    let (even, odd) = (pairs.narrow(4, 0, 1)?.squeeze(4)?, pairs.narrow(4, 1, 1)?.squeeze(4)?);
    let turned =
        [(even.broadcast_mul(cos)? - odd.broadcast_mul(sin)?)?, (even.broadcast_mul(sin)? + odd.broadcast_mul(cos)?)?];
    Tensor::stack(&turned, 4)?.reshape((batch, tokens, heads, head_dim))
}

/// Causal attention by candle's operations, heads of K and V repeated.
fn plain(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32) -> Result<Tensor> {
    let (batch, tokens, heads, head_dim) = q.dims4()?;
    let group = heads / k.dim(2)?;
    let repeated = |x: &Tensor| -> Result<Tensor> {
        let each = (batch, tokens, heads / group, group, head_dim);
        x.unsqueeze(3)?.broadcast_as(each)?.reshape((batch, tokens, heads, head_dim))?.transpose(1, 2)?.contiguous()
    };
    let scores = (q.transpose(1, 2)?.contiguous()?.matmul(&repeated(k)?.t()?.contiguous()?)? * f64::from(scale))?;
    let mask: Vec<f32> =
        (0..tokens * tokens).map(|at| if at % tokens <= at / tokens { 0.0 } else { f32::NEG_INFINITY }).collect();
    let scores =
        scores.broadcast_add(&Tensor::from_vec(mask, (tokens, tokens), &Device::Cpu)?.to_dtype(DType::F32)?)?;
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    weights.matmul(&repeated(v)?)?.transpose(1, 2)?.contiguous()
}
