//! Attention by candle's own operations in float32, from the formula, and what the tests share.

use candle_core::{D, DType, Device, Error, Result, Tensor};
use candle_int_flash_attention::FlashAttn;
use int_flash_attention::reference::compare;

/// The error of the scheme on such values is 1.5e-2 (docs/quickstart.md); a wrong mask, scale, slope or layout is 0.1 at least.
pub const ERROR: f64 = 0.03;

/// `(batch, tokens, heads, head_dim)` with values that differ everywhere.
pub fn tensor(dims: (usize, usize, usize, usize), seed: f32, dtype: DType) -> Result<Tensor> {
    let len = dims.0 * dims.1 * dims.2 * dims.3;
    let values: Vec<f32> =
        (0..len).map(|at| (seed + at as f32 * 0.7391).sin() * (1.0 + (at % 7) as f32 * 0.2)).collect();
    Tensor::from_vec(values, dims, &Device::Cpu)?.to_dtype(dtype)
}

/// All elements, in candle's order.
pub fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// How far a result is from what it should be.
pub fn error(got: &Tensor, want: &Tensor) -> Result<f64> {
    assert_eq!(got.dims(), want.dims());
    Ok(compare(&values(got)?, &values(want)?).relative_l2)
}

/// The error without its backtrace.
pub fn refusal(result: Result<Tensor>) -> Error {
    match result.expect_err("a refusal") {
        Error::WithBacktrace { inner, .. } => *inner,
        other => other,
    }
}

/// What is asked, as plain numbers.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    pub scale: f64,
    pub window: (Option<usize>, Option<usize>),
    pub softcap: Option<f32>,
    pub slopes: Option<Vec<f32>>,
    pub sinks: Option<Vec<f32>>,
    pub bias: Option<Tensor>,
    pub mask: Option<Tensor>,
}

impl Asked {
    /// The same as this crate takes it.
    pub fn attention(&self) -> Result<FlashAttn> {
        let of = |values: &Option<Vec<f32>>| -> Result<Option<Tensor>> {
            values.as_ref().map(|values| Tensor::new(values.as_slice(), &Device::Cpu)).transpose()
        };
        Ok(FlashAttn::new(self.scale as f32)
            .with_window(self.window.0, self.window.1)
            .with_softcap(self.softcap)
            .with_alibi_slopes(of(&self.slopes)?)
            .with_sinks(of(&self.sinks)?)
            .with_bias(self.bias.clone())
            .with_mask(self.mask.clone()))
    }

    /// Attention on `(batch, tokens, heads, head_dim)`.
    pub fn plain(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let ((batch, rows, heads, _), (_, keys, heads_kv, _)) = (q.dims4()?, k.dims4()?);
        let first = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.transpose(1, 2)?.contiguous();
        let repeated = |tensor: &Tensor| -> Result<Tensor> {
            let (_, _, _, dim) = tensor.dims4()?;
            let all = first(tensor)?.unsqueeze(2)?.broadcast_as((batch, heads_kv, heads / heads_kv, keys, dim))?;
            all.reshape((batch, heads, keys, dim))?.contiguous()
        };
        let mut scores = (first(q)?.matmul(&repeated(k)?.t()?.contiguous()?)? * self.scale)?;
        if let Some(cap) = self.softcap {
            scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        if let Some(slopes) = &self.slopes {
            let away = |at: usize| (at / keys % rows + keys).abs_diff(at % keys + rows) as f32;
            let taken = |at: usize| -slopes[at / keys / rows] * away(at);
            let taken: Vec<f32> = (0..heads * rows * keys).map(taken).collect();
            scores = scores.broadcast_add(&Tensor::from_vec(taken, (heads, rows, keys), &Device::Cpu)?)?;
        }
        if let Some(bias) = &self.bias {
            scores = scores.broadcast_add(&bias.to_dtype(DType::F32)?)?;
        }
        if let Some(mask) = &self.mask {
            let hidden = (1.0 - mask.to_dtype(DType::F32)?)?.affine(-1e30, 0.0)?;
            scores = scores.broadcast_add(&hidden)?;
        }
        let seen = |at: usize| {
            // Counted from `rows` keys before the first, so that nothing is negative.
            let (beside, key) = (at / keys + keys, at % keys + rows);
            self.window.0.is_none_or(|left| key + left >= beside)
                && self.window.1.is_none_or(|right| key <= beside + right)
        };
        let hidden: Vec<f32> = (0..rows * keys).map(|at| if seen(at) { 0.0 } else { f32::NEG_INFINITY }).collect();
        scores = scores.broadcast_add(&Tensor::from_vec(hidden, (rows, keys), &Device::Cpu)?)?;
        // A sink is a key without a value.
        if let Some(sinks) = &self.sinks {
            let sinks = Tensor::new(sinks.as_slice(), &Device::Cpu)?.reshape((1, heads, 1, 1))?;
            scores = Tensor::cat(&[&scores, &sinks.broadcast_as((batch, heads, rows, 1))?.contiguous()?], 3)?;
        }
        // A row that sees no key has the weights zero.
        let most = scores.max_keepdim(D::Minus1)?.maximum(-1e29)?;
        let weights = scores.broadcast_sub(&most)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?.maximum(1e-30)?)?;
        weights.narrow(3, 0, keys)?.contiguous()?.matmul(&repeated(v)?)?.transpose(1, 2)?.contiguous()
    }
}
