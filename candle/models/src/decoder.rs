//! A decoder of the Llama or the Gemma 3 architecture, with a choice of attentions.

use crate::attention::Attend;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{D, DType, Device, Module, Result, Tensor, bail};
use candle_nn::Activation;
use candle_nn::ops::{log_softmax, rms_norm};
use candle_nn::rotary_emb::{rope, rope_i};
use std::fs::File;
use std::path::Path;

/// The weights, and what differs between architectures.
#[derive(Debug)]
pub struct Decoder {
    embeddings: Tensor,
    /// What an embedding is multiplied with.
    embedding_scale: f64,
    layers: Vec<Layer>,
    norm: Tensor,
    heads_kv: usize,
    head_dim: usize,
    eps: f32,
    /// Which channels are rotated together: neighbours, or those of the two halves.
    neighbours: bool,
    activation: Activation,
}

#[derive(Debug)]
struct Layer {
    attn_norm: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// Of the heads of Q and K, in Gemma.
    head_norms: Option<[Tensor; 2]>,
    output: Tensor,
    ffn_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    /// Of what attention and the feed-forward network add, in Gemma.
    post_norms: Option<[Tensor; 2]>,
    /// The last keys that a query sees, where not all.
    window: Option<usize>,
    rope_base: f32,
}

/// The sizes of a decoder.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Layers.
    pub layers: usize,
    /// Heads of Q.
    pub heads: usize,
    /// Heads of K and V.
    pub heads_kv: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Channels of a token.
    pub width: usize,
    /// Channels of the feed-forward network.
    pub ffn: usize,
    /// Tokens that there are.
    pub vocabulary: usize,
    /// Of the Gemma 3 architecture, with windows of so many tokens in five of six layers; else of Llama's.
    pub gemma_window: Option<usize>,
}

/// Every so many layers of Gemma 3 one has no window.
const GEMMA_PERIOD: usize = 6;
/// The base of the angles in its layers with a window, which GGUF files do not tell.
const GEMMA_LOCAL_ROPE_BASE: f32 = 10_000.0;

impl Decoder {
    /// That of a GGUF file, in this type.
    ///
    /// # Errors
    /// A file of another architecture, or not whole.
    pub fn from_gguf(path: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let mut file = File::open(path)?;
        let content = Content::read(&mut file)?;
        let architecture = value(&content, "general.architecture")?.to_string()?.clone();
        let gemma = match architecture.as_str() {
            "llama" => false,
            "gemma3" => true,
            other => bail!("{}: the architecture {other} is neither llama nor gemma3", path.display()),
        };
        let of = |key: &str| value(&content, &format!("{architecture}.{key}"));
        let number = |key: &str| of(key)?.to_u32().map(|number| number as usize);
        let rope_base = of("rope.freq_base")?.to_f32()?;
        let window = if gemma { Some(number("attention.sliding_window")?) } else { None };
        let mut tensor = |name: &str| {
            content.tensor(&mut file, &format!("{name}.weight"), device)?.dequantize(device)?.to_dtype(dtype)
        };
        let mut layer = |at: usize| -> Result<Layer> {
            let mut part = |name: &str| tensor(&format!("blk.{at}.{name}"));
            let window = window.filter(|_| !(at + 1).is_multiple_of(GEMMA_PERIOD));
            Ok(Layer {
                attn_norm: part("attn_norm")?,
                q: part("attn_q")?,
                k: part("attn_k")?,
                v: part("attn_v")?,
                head_norms: if gemma { Some([part("attn_q_norm")?, part("attn_k_norm")?]) } else { None },
                output: part("attn_output")?,
                ffn_norm: part("ffn_norm")?,
                gate: part("ffn_gate")?,
                up: part("ffn_up")?,
                down: part("ffn_down")?,
                post_norms: if gemma { Some([part("post_attention_norm")?, part("post_ffw_norm")?]) } else { None },
                window,
                rope_base: if window.is_some() { GEMMA_LOCAL_ROPE_BASE } else { rope_base },
            })
        };
        let layers = (0..number("block_count")?).map(&mut layer).collect::<Result<Vec<_>>>()?;
        let embeddings = tensor("token_embd")?;
        let (width, heads) = (embeddings.dim(1)?, number("attention.head_count")?);
        let Some(first) = layers.first() else { bail!("{}: no layers", path.display()) };
        Ok(Self {
            norm: tensor("output_norm")?,
            embedding_scale: if gemma { (width as f64).sqrt() } else { 1.0 },
            heads_kv: number("attention.head_count_kv")?,
            head_dim: first.q.dim(0)? / heads,
            eps: of("attention.layer_norm_rms_epsilon")?.to_f32()?,
            neighbours: !gemma,
            activation: if gemma { Activation::GeluPytorchTanh } else { Activation::Silu },
            embeddings,
            layers,
        })
    }

    /// One of these sizes with random weights: its text means nothing, its speed is that of a trained one.
    ///
    /// # Errors
    /// Memory that the device does not give.
    pub fn random(sizes: Sizes, dtype: DType, device: &Device) -> Result<Self> {
        let Sizes { heads, heads_kv, head_dim, width, ffn, gemma_window, .. } = sizes;
        let gemma = gemma_window.is_some();
        let matrix = |to: usize, from: usize| {
            Tensor::randn(0_f32, 1.0 / (from as f32).sqrt(), (to, from), device)?.to_dtype(dtype)
        };
        let ones = |len: usize| Tensor::ones(len, dtype, device);
        let norms = |len: usize| -> Result<Option<[Tensor; 2]>> {
            if gemma { Ok(Some([ones(len)?, ones(len)?])) } else { Ok(None) }
        };
        let layer = |at: usize| -> Result<Layer> {
            let window = gemma_window.filter(|_| !(at + 1).is_multiple_of(GEMMA_PERIOD));
            Ok(Layer {
                attn_norm: ones(width)?,
                q: matrix(heads * head_dim, width)?,
                k: matrix(heads_kv * head_dim, width)?,
                v: matrix(heads_kv * head_dim, width)?,
                head_norms: norms(head_dim)?,
                output: matrix(width, heads * head_dim)?,
                ffn_norm: ones(width)?,
                gate: matrix(ffn, width)?,
                up: matrix(ffn, width)?,
                down: matrix(width, ffn)?,
                post_norms: norms(width)?,
                window,
                rope_base: if window.is_some() { GEMMA_LOCAL_ROPE_BASE } else { 500_000.0 },
            })
        };
        Ok(Self {
            embeddings: matrix(sizes.vocabulary, width)?,
            embedding_scale: if gemma { (width as f64).sqrt() } else { 1.0 },
            layers: (0..sizes.layers).map(layer).collect::<Result<_>>()?,
            norm: ones(width)?,
            heads_kv,
            head_dim,
            eps: 1e-5,
            neighbours: !gemma,
            activation: if gemma { Activation::GeluPytorchTanh } else { Activation::Silu },
        })
    }

    /// What the last layer makes of tokens that stand behind `past` others, `(tokens, width)`; `done` is called after each layer.
    ///
    /// # Errors
    /// Candle's, and what the attention refuses.
    pub fn hidden(&self, tokens: &[u32], past: usize, attend: &mut dyn Attend, done: &dyn Fn()) -> Result<Tensor> {
        let norm = |x: &Tensor, weight: &Tensor| rms_norm(x, weight, self.eps);
        let tokens = Tensor::new(tokens, self.embeddings.device())?;
        let count = tokens.dim(0)?;
        let mut x = (self.embeddings.embedding(&tokens)? * self.embedding_scale)?;
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let mut turns = Turns { decoder: self, past, tokens: count, of_base: Vec::new() };
        for (at, layer) in self.layers.iter().enumerate() {
            let normed = norm(&x, &layer.attn_norm)?;
            // (batch 1, heads, tokens, head_dim)
            let heads = |weight: &Tensor| {
                let heads = normed.matmul(&weight.t()?)?.reshape((1, count, (), self.head_dim))?;
                heads.transpose(1, 2)?.contiguous()
            };
            let (mut q, mut k, v) = (heads(&layer.q)?, heads(&layer.k)?, heads(&layer.v)?);
            if let Some([of_q, of_k]) = &layer.head_norms {
                (q, k) = (norm(&q, of_q)?, norm(&k, of_k)?);
            }
            let [q, k] = turns.rotated([q, k], layer.rope_base)?;
            let o = attend.attend(at, [&q, &k, &v], scale, layer.window)?;
            let o = o.transpose(1, 2)?.reshape((count, ()))?.matmul(&layer.output.t()?)?;
            let post = |x: Tensor, which: usize| match &layer.post_norms {
                Some(norms) => norm(&x, &norms[which]),
                None => Ok(x),
            };
            x = (x + post(o, 0)?)?;
            let normed = norm(&x, &layer.ffn_norm)?;
            let gate = self.activation.forward(&normed.matmul(&layer.gate.t()?)?)?;
            let fed = (gate * normed.matmul(&layer.up.t()?)?)?.matmul(&layer.down.t()?)?;
            x = (x + post(fed, 1)?)?;
            done();
        }
        norm(&x, &self.norm)
    }

    /// Scores of the next token, `(rows, vocabulary)`, for these rows of [`hidden`](Self::hidden).
    ///
    /// # Errors
    /// Candle's.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        hidden.matmul(&self.embeddings.t()?)?.to_dtype(DType::F32)
    }

    /// Logarithms of the next token's probabilities, for these rows of [`hidden`](Self::hidden).
    ///
    /// # Errors
    /// Candle's.
    pub fn log_probabilities(&self, hidden: &Tensor) -> Result<Tensor> {
        log_softmax(&self.logits(hidden)?, D::Minus1)
    }

    /// Layers.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Heads of K and V.
    #[must_use]
    pub const fn heads_kv(&self) -> usize {
        self.heads_kv
    }

    /// Channels of a head.
    #[must_use]
    pub const fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Where the weights are.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.embeddings.device()
    }

    /// The type of weights and results.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.embeddings.dtype()
    }
}

/// Positions of new tokens, as angles that Q and K are turned by.
struct Turns<'a> {
    decoder: &'a Decoder,
    past: usize,
    tokens: usize,
    /// Cosines and sines, made when the first layer with a base asks.
    of_base: Vec<(f32, [Tensor; 2])>,
}

impl Turns<'_> {
    /// Q and K with the angles of the positions.
    fn rotated(&mut self, [q, k]: [Tensor; 2], base: f32) -> Result<[Tensor; 2]> {
        let at = match self.of_base.iter().position(|(other, _)| *other == base) {
            Some(at) => at,
            None => {
                self.of_base.push((base, self.made(base)?));
                self.of_base.len() - 1
            }
        };
        let [cos, sin] = &self.of_base[at].1;
        let turned = if self.decoder.neighbours { rope_i } else { rope };
        Ok([turned(&q, cos, sin)?, turned(&k, cos, sin)?])
    }

    fn made(&self, base: f32) -> Result<[Tensor; 2]> {
        let half = self.decoder.head_dim / 2;
        let angle = |at: usize| (self.past + at / half) as f32 / base.powf((at % half) as f32 / half as f32);
        let angles: Vec<f32> = (0..self.tokens * half).map(angle).collect();
        let angles = Tensor::from_vec(angles, (self.tokens, half), self.decoder.device())?;
        let dtype = self.decoder.dtype();
        Ok([angles.cos()?.to_dtype(dtype)?, angles.sin()?.to_dtype(dtype)?])
    }
}

/// What a file says under a key.
pub(crate) fn value<'a>(content: &'a Content, key: &str) -> Result<&'a Value> {
    match content.metadata.get(key) {
        Some(value) => Ok(value),
        None => bail!("the file does not say {key}"),
    }
}
