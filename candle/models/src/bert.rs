//! An encoder of the BERT architecture on sentences of unlike lengths, with a choice of attentions.

use crate::attention::plain;
use candle_core::{Device, Result, Tensor, bail};
use candle_int_flash_attention::{FlashAttn, flash_attn_varlen};
use candle_nn::ops::layer_norm;
use std::collections::HashMap;
use std::path::Path;

/// How attention is computed, and how sentences lie beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// Candle's operations.
    Plain,
    /// INT8.
    Int8,
}

/// The tokens of some sentences.
#[derive(Clone, Debug)]
pub struct Batch {
    ids: Vec<u32>,
    positions: Vec<u32>,
    /// Tokens of each sentence.
    lengths: Vec<u32>,
    /// From one sentence to the next, where all have the same room; else they are one behind the other.
    padded: Option<usize>,
}

impl Batch {
    /// One behind the other.
    #[must_use]
    pub fn packed(sentences: &[Vec<u32>]) -> Self {
        let positions = sentences.iter().flat_map(|sentence| 0..sentence.len() as u32).collect();
        let lengths = sentences.iter().map(|sentence| sentence.len() as u32).collect();
        Self { ids: sentences.concat(), positions, lengths, padded: None }
    }

    /// Each with room for the longest; what is behind a sentence is the token `padding`.
    #[must_use]
    pub fn padded(sentences: &[Vec<u32>], padding: u32) -> Self {
        let longest = sentences.iter().map(Vec::len).max().unwrap_or(0);
        let filled = sentences.iter().flat_map(|sentence| {
            sentence.iter().copied().chain(std::iter::repeat_n(padding, longest - sentence.len()))
        });
        let ids = filled.collect();
        let positions = sentences.iter().flat_map(|_| 0..longest as u32).collect();
        Self { ids, positions, padded: Some(longest), ..Self::packed(sentences) }
    }

    /// Where each sentence's tokens are.
    fn sentences(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut packed = 0;
        self.lengths.iter().enumerate().map(move |(at, &length)| {
            let start = self.padded.map_or(packed, |room| at * room);
            packed += length as usize;
            (start, length as usize)
        })
    }
}

/// The weights.
#[derive(Debug)]
pub struct Bert {
    tensors: HashMap<String, Tensor>,
    layers: usize,
    heads: usize,
    eps: f32,
    device: Device,
}

impl Bert {
    /// That of a safetensors file with so many heads.
    ///
    /// # Errors
    /// A file that is not whole.
    pub fn load(path: &Path, heads: usize, eps: f32, device: &Device) -> Result<Self> {
        let tensors = candle_core::safetensors::load(path, device)?;
        let has = |layer: usize| tensors.contains_key(&format!("encoder.layer.{layer}.output.dense.weight"));
        let layers = (0..).take_while(|&layer| has(layer)).count();
        Ok(Self { tensors, layers, heads, eps, device: device.clone() })
    }

    /// The embedding of each sentence, `(sentences, width)`, of length one: the mean of its tokens. `done` is called after each layer.
    ///
    /// # Errors
    /// Candle's, and what the attention refuses.
    pub fn embed(&self, batch: &Batch, attention: Attention, done: impl Fn()) -> Result<Tensor> {
        let part = |name: &str, ids: &[u32]| -> Result<Tensor> {
            let table = self.tensor(&format!("embeddings.{name}_embeddings.weight"))?;
            table.embedding(&Tensor::new(ids, table.device())?)
        };
        let types = part("token_type", &vec![0; batch.ids.len()])?;
        let x = ((part("word", &batch.ids)? + part("position", &batch.positions)?)? + types)?;
        let mut x = self.norm("embeddings.LayerNorm", &x)?;
        for layer in 0..self.layers {
            let of = |name: &str| format!("encoder.layer.{layer}.{name}");
            // (tokens, heads, head_dim)
            let heads = |name: &str| self.linear(&of(name), &x)?.reshape((batch.ids.len(), self.heads, ()));
            let qkv = [heads("attention.self.query")?, heads("attention.self.key")?, heads("attention.self.value")?];
            let o = attend(batch, attention, &qkv)?.reshape(x.shape())?;
            x =
                self.norm(&of("attention.output.LayerNorm"), &(x + self.linear(&of("attention.output.dense"), &o)?)?)?;
            let inner = self.linear(&of("intermediate.dense"), &x)?.gelu_erf()?;
            x = self.norm(&of("output.LayerNorm"), &(x + self.linear(&of("output.dense"), &inner)?)?)?;
            done();
        }
        let mean = |(start, length)| x.narrow(0, start, length)?.mean(0);
        let means = Tensor::stack(&batch.sentences().map(mean).collect::<Result<Vec<_>>>()?, 0)?;
        means.broadcast_div(&means.sqr()?.sum_keepdim(1)?.sqrt()?)
    }

    /// How often [`embed`](Self::embed) calls `done`.
    #[must_use]
    pub const fn layers(&self) -> usize {
        self.layers
    }

    /// Where the weights are.
    #[must_use]
    pub const fn device(&self) -> &Device {
        &self.device
    }

    fn tensor(&self, name: &str) -> Result<&Tensor> {
        match self.tensors.get(name) {
            Some(tensor) => Ok(tensor),
            None => bail!("the file has no tensor {name}"),
        }
    }

    fn linear(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let weight = self.tensor(&format!("{name}.weight"))?;
        x.matmul(&weight.t()?)?.broadcast_add(self.tensor(&format!("{name}.bias"))?)
    }

    fn norm(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, self.tensor(&format!("{name}.weight"))?, self.tensor(&format!("{name}.bias"))?, self.eps)
    }
}

/// `softmax(q k^T / sqrt(head_dim)) v` within each sentence; all are `(tokens, heads, head_dim)`.
fn attend(batch: &Batch, attention: Attention, [q, k, v]: &[Tensor; 3]) -> Result<Tensor> {
    match (attention, batch.padded) {
        (Attention::Plain, None) => {
            let of_one = |(start, length)| -> Result<Tensor> {
                let part = |x: &Tensor| x.narrow(0, start, length)?.unsqueeze(0);
                plain_attention([part(q)?, part(k)?, part(v)?], None)?.squeeze(0)
            };
            Tensor::cat(&batch.sentences().map(of_one).collect::<Result<Vec<_>>>()?, 0)
        }
        (Attention::Plain, Some(room)) => {
            let seen = |length: usize| (0..room).map(move |key| if key < length { 0.0 } else { f32::NEG_INFINITY });
            let mask: Vec<f32> = batch.lengths.iter().flat_map(|&length| seen(length as usize)).collect();
            let mask = Tensor::from_vec(mask, (batch.lengths.len(), 1, 1, room), q.device())?;
            plain_attention([rows(q, room)?, rows(k, room)?, rows(v, room)?], Some(&mask))
        }
        (Attention::Int8, None) => {
            let mut starts = vec![0];
            for length in &batch.lengths {
                starts.push(starts[starts.len() - 1] + length);
            }
            let seqlens = Tensor::new(starts, q.device())?;
            let longest = batch.lengths.iter().max().map_or(0, |length| *length as usize);
            let scale = 1.0 / (q.dim(2)? as f32).sqrt();
            flash_attn_varlen(q, k, v, &seqlens, &seqlens, longest, longest, scale, false)
        }
        (Attention::Int8, Some(room)) => {
            let (q, k, v) = (rows(q, room)?, rows(k, room)?, rows(v, room)?);
            let lengths = Tensor::new(&batch.lengths[..], q.device())?;
            FlashAttn::new(scale(&q)?).forward_padded(&q, &k, &v, &lengths)
        }
    }
}

/// `(sentences, room, heads, head_dim)`.
fn rows(x: &Tensor, room: usize) -> Result<Tensor> {
    let (_, heads, head_dim) = x.dims3()?;
    x.reshape(((), room, heads, head_dim))
}

/// On `(batch, tokens, heads, head_dim)`, with a mask that is added to the scores.
fn plain_attention(qkv: [Tensor; 3], mask: Option<&Tensor>) -> Result<Tensor> {
    let scale = scale(&qkv[0])?;
    let [q, k, v] = qkv.map(|x| x.transpose(1, 2)?.contiguous());
    plain(&q?, &k?, &v?, scale, mask)?.transpose(1, 2)
}

fn scale(q: &Tensor) -> Result<f32> {
    Ok(1.0 / (q.dim(3)? as f32).sqrt())
}
