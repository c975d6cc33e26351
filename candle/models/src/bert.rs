//! An encoder of the BERT architecture on sentences of unlike lengths, with a choice of attentions.

use crate::attention::plain;
use candle_core::{Device, Error, Result, Tensor, bail};
use candle_nn::ops::layer_norm;
use int_flash_attention::{HostData, HostSeqLens, HostTensor, Options, Order, SeqLens, Shape, TensorLayout};
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
        Ok(Self { tensors, layers, heads, eps })
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
            let end = |sum: &mut u32, length: &u32| {
                *sum += length;
                Some(*sum)
            };
            let cu_seqlens: Vec<u32> = [0].into_iter().chain(batch.lengths.iter().scan(0, end)).collect();
            let lengths = SeqLens::Packed { cu_seqlens_q: &cu_seqlens[..], cu_seqlens_kv: &cu_seqlens[..] };
            int8_attention([q, k, v].map(|x| x.unsqueeze(0)), lengths)
        }
        (Attention::Int8, Some(room)) => {
            let lengths = SeqLens::KeyLengths { seqlens_kv: &batch.lengths[..] };
            int8_attention([q, k, v].map(|x| rows(x, room)), lengths)
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

/// On `(batch, tokens, heads, head_dim)` in the host's memory.
fn int8_attention(qkv: [Result<Tensor>; 3], lengths: HostSeqLens<'_>) -> Result<Tensor> {
    let host = |x: Result<Tensor>| -> Result<HostTensor> {
        let x = x?;
        let (batch, seqlen, heads, head_dim) = x.dims4()?;
        let layout = TensorLayout::bnhd(Shape { batch, heads, seqlen, head_dim });
        HostTensor::new(x.flatten_all()?.to_vec1::<f32>()?, layout).map_err(Error::wrap)
    };
    let [q, k, v] = qkv;
    let (q, k, v) = (host(q)?, host(k)?, host(v)?);
    let options = Options { lengths, output_order: Some(Order::Bnhd), ..Options::default() };
    let o = int_flash_attention::attention(int_flash_attention::Device::Cpu, &q, &k, &v, &options);
    let Shape { batch, heads, seqlen, head_dim } = q.shape();
    match o.map_err(Error::wrap)?.o.into_data() {
        HostData::F32(values) => Tensor::from_vec(values, (batch, seqlen, heads, head_dim), &Device::Cpu),
        _ => bail!("the output has another type than q"),
    }
}
