//! Sequences of equal lengths.

use crate::plain::{Asked, ERROR, error, refusal, tensor, values};
use candle_core::{DType, Error, Result, Tensor};
use candle_int_flash_attention::{flash_attn, flash_attn_windowed};
use half::{bf16, f16};
use int_flash_attention::{HostTensor, Options, Shape, TensorLayout, Window, attention};

/// What the library gives for the same values.
fn expected(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32, window: Window) -> Result<Vec<f64>> {
    let host = |tensor: &Tensor| -> Result<HostTensor> {
        let (batch, seqlen, heads, head_dim) = tensor.dims4()?;
        let layout = TensorLayout::bnhd(Shape { batch, heads, seqlen, head_dim });
        let tensor = tensor.flatten_all()?;
        let host = match tensor.dtype() {
            DType::F16 => HostTensor::new(tensor.to_vec1::<f16>()?, layout),
            DType::BF16 => HostTensor::new(tensor.to_vec1::<bf16>()?, layout),
            _ => HostTensor::new(tensor.to_vec1::<f32>()?, layout),
        };
        Ok(host.expect("a tensor"))
    };
    let options = Options { window, softmax_scale: Some(scale), ..Options::default() };
    let output = attention(int_flash_attention::Device::Cpu, &host(q)?, &host(k)?, &host(v)?, &options);
    let o = output.expect("an output").o;
    let (batch, seqlen, heads, head_dim) = q.dims4()?;
    let mut values = Vec::with_capacity(q.elem_count());
    for b in 0..batch {
        for n in 0..seqlen {
            for h in 0..heads {
                values.extend((0..head_dim).map(|d| f64::from(o.get(b, h, n, d))));
            }
        }
    }
    Ok(values)
}

#[test]
fn the_library_gives_the_same_bits() -> Result<()> {
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        let (q, k, v) = (
            tensor((2, 37, 6, 64), 0.1, dtype)?,
            tensor((2, 150, 2, 64), 0.2, dtype)?,
            tensor((2, 150, 2, 64), 0.3, dtype)?,
        );
        for causal in [false, true] {
            let o = flash_attn(&q, &k, &v, 0.1, causal)?;
            assert_eq!((o.dims(), o.dtype(), o.is_contiguous()), (q.dims(), dtype, true));
            let window = if causal { Window::CAUSAL } else { Window::FULL };
            assert_eq!(values(&o)?, expected(&q, &k, &v, 0.1, window)?, "{dtype:?}, causal {causal}");
        }
        let o = flash_attn_windowed(&q, &k, &v, 0.1, Some(20), Some(3))?;
        let window = Window { left: Some(20), right: Some(3) };
        assert_eq!(values(&o)?, expected(&q, &k, &v, 0.1, window)?, "{dtype:?}, window");
    }
    Ok(())
}

/// Views of a packed projection, of heads before tokens, of a part of a cache, and of one head for all.
#[test]
fn views_are_taken_as_they_are() -> Result<()> {
    let qkv = tensor((2, 40, 3 * 4, 32), 0.5, DType::F16)?;
    let part = |at: usize| qkv.narrow(2, 4 * at, 4);
    let (q, k, v) = (part(0)?, part(1)?, part(2)?);
    let apart = |tensor: &Tensor| tensor.contiguous();
    let want = flash_attn(&apart(&q)?, &apart(&k)?, &apart(&v)?, 0.2, true)?;
    assert_eq!(values(&flash_attn(&q, &k, &v, 0.2, true)?)?, values(&want)?);

    let heads_first = |tensor: &Tensor| tensor.transpose(1, 2)?.contiguous()?.transpose(1, 2);
    let o = flash_attn(&heads_first(&q)?, &heads_first(&k)?, &heads_first(&v)?, 0.2, true)?;
    assert_eq!(values(&o)?, values(&want)?);

    let (k, v) = (k.narrow(1, 7, 20)?, v.narrow(1, 7, 20)?);
    let want = flash_attn(&apart(&q)?, &apart(&k)?, &apart(&v)?, 0.2, false)?;
    assert_eq!(values(&flash_attn(&q, &k, &v, 0.2, false)?)?, values(&want)?);

    let one = k.narrow(2, 0, 1)?;
    let all = one.broadcast_as((2, 20, 4, 32))?;
    assert_eq!(values(&flash_attn(&q, &all, &all, 0.2, false)?)?, values(&flash_attn(&q, &one, &one, 0.2, false)?)?);
    Ok(())
}

/// What the function is, mask and grouping included.
#[test]
fn it_is_the_attention_that_candle_computes() -> Result<()> {
    let (q, k, v) = (
        tensor((2, 30, 6, 64), 0.1, DType::F32)?,
        tensor((2, 70, 2, 64), 0.2, DType::F32)?,
        tensor((2, 70, 2, 64), 0.3, DType::F32)?,
    );
    for window in [(None, None), (None, Some(0)), (Some(9), Some(0)), (Some(5), Some(12))] {
        let asked = Asked { scale: 0.11, window, ..Asked::default() };
        let got = flash_attn_windowed(&q, &k, &v, 0.11, window.0, window.1)?;
        let error = error(&got, &asked.plain(&q, &k, &v)?)?;
        assert!(error < ERROR, "{window:?}: {error}");
    }
    Ok(())
}

/// Head dims between those of the kernels, and values of another head dim than keys.
#[test]
fn head_dims() -> Result<()> {
    for (dim, dim_v) in [(40, 40), (80, 80), (192, 128)] {
        let (q, k, v) = (
            tensor((1, 20, 4, dim), 0.1, DType::F32)?,
            tensor((1, 50, 2, dim), 0.2, DType::F32)?,
            tensor((1, 50, 2, dim_v), 0.3, DType::F32)?,
        );
        let asked = Asked { scale: 0.1, window: (None, Some(0)), ..Asked::default() };
        let got = flash_attn(&q, &k, &v, 0.1, true)?;
        assert_eq!(got.dims(), [1, 20, 4, dim_v]);
        let error = error(&got, &asked.plain(&q, &k, &v)?)?;
        assert!(error < ERROR, "{dim} {dim_v}: {error}");
    }
    Ok(())
}

#[test]
fn refusals_are_candles() -> Result<()> {
    let x = tensor((1, 5, 4, 64), 0.0, DType::F32)?;
    let attend = |q: &Tensor, k: &Tensor, v: &Tensor| refusal(flash_attn(q, k, v, 0.1, false));
    let rank = attend(&x.squeeze(0)?, &x, &x);
    assert!(matches!(rank, Error::UnexpectedNumberOfDims { expected: 4, got: 3, .. }), "{rank}");
    let types = attend(&x, &x.to_dtype(DType::F16)?, &x);
    assert!(matches!(types, Error::DTypeMismatchBinaryOp { lhs: DType::F32, rhs: DType::F16, .. }), "{types}");
    let double = x.to_dtype(DType::F64)?;
    let unsupported = attend(&double, &double, &double);
    assert!(matches!(unsupported, Error::UnsupportedDTypeForOp(DType::F64, "int-flash-attn")), "{unsupported}");
    let batch = attend(&x, &tensor((2, 5, 4, 64), 0.0, DType::F32)?, &x);
    assert!(matches!(batch, Error::ShapeMismatchBinaryOp { .. }), "{batch}");
    let lengths = attend(&x, &x, &x.narrow(1, 0, 4)?);
    assert!(matches!(lengths, Error::ShapeMismatchBinaryOp { .. }), "{lengths}");
    for (q, k, v, part) in [
        (&x, &x.narrow(2, 0, 3)?, &x.narrow(2, 0, 3)?, "3 heads of k and v do not divide the 4 heads of q"),
        (&x.transpose(1, 3)?.contiguous()?.transpose(1, 3)?, &x, &x, "the last dim of q must be contiguous"),
        (&x.narrow(3, 0, 44)?, &x.narrow(3, 0, 44)?, &x.narrow(3, 0, 44)?, "fill the channels"),
        (&x, &(&x / 0.0)?, &x, "have to be finite"),
    ] {
        let error = attend(q, k, v).to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    let scale = refusal(flash_attn(&x, &x, &x, f32::NAN, false)).to_string();
    assert!(scale.contains("NaN"), "{scale}");

    let variable = candle_core::Var::from_tensor(&x)?;
    let gradient = flash_attn(variable.as_tensor(), &x, &x, 0.1, false)?.sum_all()?.backward();
    assert!(gradient.is_err_and(|error| error.to_string().contains("backward is not supported")));
    Ok(())
}
