//! Softcap, ALiBi, sinks, bias and mask, alone and together, against candle's own operations.

use crate::plain::{Asked, ERROR, error, refusal, tensor, values};
use candle_core::{DType, Device, Result, Tensor};
use candle_int_flash_attention::{
    FlashAttn, flash_attn_alibi, flash_attn_alibi_windowed, flash_attn_alibi_windowed_softcap, flash_attn_windowed,
};

const SCALE: f64 = 0.11;
const WINDOW: (Option<usize>, Option<usize>) = (Some(30), Some(0));

/// Six query heads on two of K and V.
fn tensors(dtype: DType) -> Result<[Tensor; 3]> {
    Ok([tensor((2, 30, 6, 64), 0.1, dtype)?, tensor((2, 70, 2, 64), 0.2, dtype)?, tensor((2, 70, 2, 64), 0.3, dtype)?])
}

fn slopes() -> Vec<f32> {
    (1..=6).map(|head| (-f64::from(head)).exp2() as f32).collect()
}

fn bias(dims: (usize, usize, usize, usize)) -> Result<Tensor> {
    tensor(dims, 0.7, DType::F32)?.affine(2.0, 0.0)
}

/// Hides each third key, of every sequence another one, and no key of some.
fn mask() -> Result<Tensor> {
    let mask: Vec<u8> = (0..2 * 70).map(|at| u8::from((at % 70 + at / 70) % 3 != 1 || at % 70 > 60)).collect();
    Tensor::from_vec(mask, (2, 1, 1, 70), &Device::Cpu)
}

#[test]
fn every_product_is_what_candle_computes() -> Result<()> {
    let [q, k, v] = tensors(DType::F32)?;
    for features in 0..32 {
        let has = |feature: u32| features >> feature & 1 == 1;
        let asked = Asked {
            scale: SCALE,
            window: if features % 3 == 0 { WINDOW } else { (None, None) },
            softcap: has(0).then_some(1.5),
            slopes: has(1).then(slopes),
            sinks: has(2).then(|| (0..6).map(|head| head as f32 - 1.0).collect()),
            bias: has(3).then(|| bias((1, 6, 30, 70))).transpose()?,
            mask: has(4).then(mask).transpose()?,
        };
        let got = asked.attention()?.forward(&q, &k, &v)?;
        let error = error(&got, &asked.plain(&q, &k, &v)?)?;
        assert!(error < ERROR, "{features:05b}: {error}");
    }
    Ok(())
}

/// Each of them changes the result by far more than the error, so that none can be left out.
#[test]
fn every_feature_counts() -> Result<()> {
    let [q, k, v] = tensors(DType::F32)?;
    let all = Asked {
        scale: SCALE,
        window: WINDOW,
        softcap: Some(1.5),
        slopes: Some(slopes()),
        sinks: Some(vec![2.0; 6]),
        bias: Some(bias((2, 1, 1, 70))?),
        mask: Some(mask()?),
    };
    let want = all.plain(&q, &k, &v)?;
    let without = [
        Asked { window: (None, None), ..all.clone() },
        Asked { softcap: None, ..all.clone() },
        Asked { slopes: None, ..all.clone() },
        Asked { sinks: None, ..all.clone() },
        Asked { bias: None, ..all.clone() },
        Asked { mask: None, ..all.clone() },
    ];
    for one in without {
        let error = error(&one.attention()?.forward(&q, &k, &v)?, &want)?;
        assert!(error > 2.0 * ERROR, "{one:?}: {error}");
    }
    Ok(())
}

#[test]
fn functions_are_faces_of_the_one_type() -> Result<()> {
    let [q, k, v] = tensors(DType::BF16)?;
    let slopes = Tensor::new(slopes(), &Device::Cpu)?;
    let alibi = FlashAttn::new(0.1).with_alibi_slopes(slopes.clone());
    let same = |got: Result<Tensor>, attention: FlashAttn| -> Result<()> {
        assert_eq!(values(&got?)?, values(&attention.forward(&q, &k, &v)?)?);
        Ok(())
    };
    same(flash_attn_alibi(&q, &k, &v, &slopes, 0.1, false), alibi.clone())?;
    same(flash_attn_alibi(&q, &k, &v, &slopes, 0.1, true), alibi.clone().with_causal(true))?;
    let windowed = alibi.clone().with_window(Some(9), Some(2));
    same(flash_attn_alibi_windowed(&q, &k, &v, &slopes, 0.1, Some(9), Some(2)), windowed.clone())?;
    let capped =
        |slopes, softcap| flash_attn_alibi_windowed_softcap(&q, &k, &v, slopes, 0.1, Some(9), Some(2), softcap);
    same(capped(Some(&slopes), 1.5), windowed.with_softcap(1.5))?;
    same(capped(None, 1.5), FlashAttn::new(0.1).with_window(Some(9), Some(2)).with_softcap(1.5))?;
    // No cap, as candle-flash-attn says it.
    assert_eq!(values(&capped(None, 0.0)?)?, values(&flash_attn_windowed(&q, &k, &v, 0.1, Some(9), Some(2))?)?);
    Ok(())
}

/// Slopes of every sequence, and tensors of the scores that are views.
#[test]
fn sequences_have_their_own() -> Result<()> {
    let [q, k, v] = tensors(DType::F16)?;
    let both: Vec<f32> = slopes().into_iter().chain(slopes().into_iter().rev()).collect();
    let both = Tensor::from_vec(both, (2, 6), &Device::Cpu)?;
    let wide = bias((2, 6, 30, 80))?;
    let attention = FlashAttn::new(0.1).with_alibi_slopes(both.clone()).with_bias(wide.narrow(3, 5, 70)?);
    let o = attention.forward(&q, &k, &v)?;
    for sequence in 0..2 {
        let one = |tensor: &Tensor| tensor.narrow(0, sequence, 1);
        let alone = FlashAttn::new(0.1)
            .with_alibi_slopes(both.get(sequence)?)
            .with_bias(one(&wide)?.narrow(3, 5, 70)?.contiguous()?)
            .forward(&one(&q)?, &one(&k)?, &one(&v)?)?;
        assert_eq!(values(&one(&o)?)?, values(&alone)?);
    }
    Ok(())
}

#[test]
fn refusals_say_what_was_given_and_the_way_out() -> Result<()> {
    let [q, k, v] = tensors(DType::F32)?;
    let zeros = |dims: &[usize], dtype| Tensor::zeros(dims, dtype, &Device::Cpu);
    let plain = FlashAttn::new(0.1);
    for (attention, parts) in [
        (plain.clone().with_alibi_slopes(zeros(&[5], DType::F32)?), ["[5]", "(6), one a query head, or (2, 6)"]),
        (plain.clone().with_alibi_slopes(zeros(&[6], DType::F16)?), ["alibi_slopes holds F16", "`to_dtype`"]),
        (plain.clone().with_alibi_slopes(zeros(&[2, 12], DType::F32)?.narrow(1, 0, 6)?), ["[12, 1]", "`contiguous`"]),
        (plain.clone().with_sinks(zeros(&[2, 6], DType::F32)?), ["sinks has the shape [2, 6]", "(6)"]),
        (plain.clone().with_sinks((zeros(&[6], DType::F32)? / 0.0)?), ["sinks holds NaN", "finite"]),
        (plain.clone().with_bias(zeros(&[30, 70], DType::F32)?), ["bias has the shape [30, 70]", "[2, 6, 30, 70]"]),
        (plain.clone().with_bias(zeros(&[2, 1, 1, 69], DType::F32)?), ["[2, 1, 1, 69]", "may be 1"]),
        (
            plain.clone().with_bias(zeros(&[1, 1, 70, 30], DType::F32)?.t()?),
            ["last dim of bias", "[2100, 2100, 1, 30]"],
        ),
        (plain.clone().with_mask(zeros(&[1, 1, 1, 70], DType::U32)?), ["mask holds U32", "[U8]"]),
        (plain.clone().with_softcap(-1.0), ["softcap is -1", "2^-14 to 2^14"]),
    ] {
        let error = refusal(attention.forward(&q, &k, &v)).to_string();
        for part in parts {
            assert!(error.starts_with("int-flash-attn: ") && error.contains(part), "{part}: {error}");
        }
    }
    Ok(())
}
