//! Sequences of unlike lengths: the same bits as alone.

use crate::plain::{Asked, ERROR, error, refusal, tensor, values};
use candle_core::{DType, Device, Result, Tensor};
use candle_int_flash_attention::{
    FlashAttn, VarLen, flash_attn, flash_attn_varlen, flash_attn_varlen_alibi, flash_attn_varlen_alibi_windowed,
    flash_attn_varlen_alibi_windowed_softcap, flash_attn_varlen_windowed, flash_attn_windowed,
};

/// Where sequences begin and end: the third has no queries, the fourth no keys.
const ENDS_Q: [u32; 6] = [0, 5, 45, 45, 48, 60];
const ENDS_K: [u32; 6] = [0, 9, 49, 60, 60, 200];

fn offsets(ends: &[u32]) -> Result<Tensor> {
    Tensor::new(ends, &Device::Cpu)
}

/// Four query heads on two, packed: the parts of one projection, as engines have them.
fn packed(dtype: DType) -> Result<[Tensor; 3]> {
    let all = tensor((1, 200, 8, 32), 0.4, dtype)?.squeeze(0)?;
    Ok([all.narrow(0, 0, 60)?.narrow(1, 0, 4)?, all.narrow(1, 4, 2)?, all.narrow(1, 6, 2)?])
}

/// Calls `check` with each sequence's own tensors, `(1, tokens, heads, head_dim)`, and its rows of `o`.
fn each(
    [q, k, v]: &[Tensor; 3],
    o: &Tensor,
    mut check: impl FnMut(&Tensor, &Tensor, &Tensor, &Tensor) -> Result<()>,
) -> Result<()> {
    for (of_q, of_k) in ENDS_Q.windows(2).zip(ENDS_K.windows(2)) {
        let part = |tensor: &Tensor, ends: &[u32]| {
            tensor.narrow(0, ends[0] as usize, (ends[1] - ends[0]) as usize)?.unsqueeze(0)
        };
        let rows = part(o, of_q)?;
        if of_q[0] == of_q[1] {
            continue;
        }
        if of_k[0] == of_k[1] {
            assert!(values(&rows)?.iter().all(|&o| o == 0.0));
            continue;
        }
        check(&part(q, of_q)?, &part(k, of_k)?, &part(v, of_k)?, &rows)?;
    }
    Ok(())
}

#[test]
fn sequences_have_the_bits_that_they_have_alone() -> Result<()> {
    let (ends_q, ends_k) = (offsets(&ENDS_Q)?, offsets(&ENDS_K)?);
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        let tensors = packed(dtype)?;
        let [q, k, v] = &tensors;
        for causal in [false, true] {
            let o = flash_attn_varlen(q, k, v, &ends_q, &ends_k, 40, 140, 0.2, causal)?;
            assert_eq!((o.dims(), o.dtype(), o.is_contiguous()), (q.dims(), dtype, true));
            each(&tensors, &o, |q, k, v, o| {
                assert_eq!(values(o)?, values(&flash_attn(q, k, v, 0.2, causal)?)?);
                Ok(())
            })?;
        }
        // The longest may be said to be longer than they are.
        let o = flash_attn_varlen_windowed(q, k, v, &ends_q, &ends_k, 512, 512, 0.2, Some(20), Some(3))?;
        each(&tensors, &o, |q, k, v, o| {
            assert_eq!(values(o)?, values(&flash_attn_windowed(q, k, v, 0.2, Some(20), Some(3))?)?);
            Ok(())
        })?;
    }
    Ok(())
}

/// A padded batch: keys behind a sequence's own may be anything.
#[test]
fn padding_is_not_read() -> Result<()> {
    let (q, k, v) = (
        tensor((3, 7, 4, 32), 0.1, DType::F16)?,
        tensor((3, 40, 2, 32), 0.2, DType::F16)?,
        tensor((3, 40, 2, 32), 0.3, DType::F16)?,
    );
    let lengths = [40_u32, 11, 0];
    let poisoned = |tensor: &Tensor| -> Result<Tensor> {
        let parts: Result<Vec<Tensor>> = lengths
            .iter()
            .enumerate()
            .map(|(sequence, &len)| {
                let one = tensor.narrow(0, sequence, 1)?;
                let rest = one.narrow(1, len as usize, 40 - len as usize)?;
                Tensor::cat(&[&one.narrow(1, 0, len as usize)?, &(rest.zeros_like()? / 0.0)?], 1)
            })
            .collect();
        Tensor::cat(&parts?, 0)
    };
    let attention = FlashAttn::new(0.2).with_causal(true);
    let o = attention.forward_padded(&q, &poisoned(&k)?, &poisoned(&v)?, &offsets(&lengths)?)?;
    for (sequence, &len) in lengths.iter().enumerate() {
        let part = |tensor: &Tensor| tensor.narrow(0, sequence, 1)?.narrow(1, 0, len as usize);
        let rows = o.narrow(0, sequence, 1)?;
        if len == 0 {
            assert!(values(&rows)?.iter().all(|&o| o == 0.0));
            continue;
        }
        let alone = attention.forward(&q.narrow(0, sequence, 1)?, &part(&k)?, &part(&v)?)?;
        assert_eq!(values(&rows)?, values(&alone)?);
    }
    Ok(())
}

/// Together with what changes scores.
#[test]
fn products_with_scores() -> Result<()> {
    let (ends_q, ends_k) = (offsets(&ENDS_Q)?, offsets(&ENDS_K)?);
    let tensors = packed(DType::F32)?;
    let [q, k, v] = &tensors;
    let slopes = vec![0.5, 0.25, 0.125, 0.0625];
    let of_slopes = Tensor::new(slopes.as_slice(), &Device::Cpu)?;
    let window = (Some(20), Some(0));
    let lengths = VarLen { seqlens_q: ends_q.clone(), seqlens_k: ends_k.clone(), max_seqlen_q: 40, max_seqlen_k: 140 };
    let alibi = Asked { scale: 0.2, slopes: Some(slopes.clone()), ..Asked::default() };
    let sinks = Asked { scale: 0.2, window, sinks: Some(vec![1.0, -1.0, 2.0, 0.0]), ..Asked::default() };
    for (asked, got) in [
        (
            Asked { window: (None, Some(0)), ..alibi.clone() },
            flash_attn_varlen_alibi(q, k, v, &of_slopes, &ends_q, &ends_k, 40, 140, 0.2, true),
        ),
        (
            Asked { window, ..alibi.clone() },
            flash_attn_varlen_alibi_windowed(q, k, v, &of_slopes, &ends_q, &ends_k, 40, 140, 0.2, window.0, window.1),
        ),
        (
            Asked { window, softcap: Some(1.5), ..alibi.clone() },
            flash_attn_varlen_alibi_windowed_softcap(
                q,
                k,
                v,
                Some(&of_slopes),
                &ends_q,
                &ends_k,
                40,
                140,
                0.2,
                window.0,
                window.1,
                1.5,
            ),
        ),
        (sinks.clone(), sinks.attention()?.forward_varlen(q, k, v, &lengths)),
    ] {
        each(&tensors, &got?, |q, k, v, o| {
            let error = error(o, &asked.plain(q, k, v)?)?;
            assert!(error < ERROR, "{asked:?}: {error}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn refusals_say_what_was_given_and_the_way_out() -> Result<()> {
    let [q, k, v] = packed(DType::F32)?;
    let (ends_q, ends_k) = (offsets(&ENDS_Q)?, offsets(&ENDS_K)?);
    let attend = |ends_q: &Tensor, ends_k: &Tensor, max_q, max_k| {
        refusal(flash_attn_varlen(&q, &k, &v, ends_q, ends_k, max_q, max_k, 0.2, false)).to_string()
    };
    let wide = ends_q.to_dtype(DType::I64)?;
    let every_second = Tensor::new(&[[0_u32, 7], [60, 7]], &Device::Cpu)?.narrow(1, 0, 1)?.squeeze(1)?;
    for (error, part) in [
        (attend(&wide, &ends_k, 40, 140), "seqlens_q holds I64; [U32] is taken"),
        (attend(&ends_q, &ends_k.narrow(0, 0, 4)?, 40, 140), "seqlens_q has 6 elements, seqlens_k 4"),
        (attend(&offsets(&[0])?, &offsets(&[0])?, 40, 140), "seqlens_q has 1 elements"),
        (attend(&every_second, &every_second, 40, 140), "seqlens_q must be contiguous"),
        (attend(&ends_q, &ends_k, 39, 140), "sequence 1"),
        (attend(&ends_q, &ends_k, 40, 139), "sequence 4"),
        (attend(&ends_q, &ends_k, 0, 140), "seqlen_q is 0"),
        (attend(&offsets(&[0, 5, 3, 48, 50, 60])?, &ends_k, 60, 140), "sequence 1"),
        (attend(&offsets(&[0, 5, 45, 45, 48, 59])?, &ends_k, 40, 140), "one batch of 59 tokens"),
        (attend(&offsets(&[0, 5, 45, 45, 48, 61])?, &ends_k, 40, 140), "sequence 4"),
    ] {
        assert!(error.starts_with("int-flash-attn: ") && error.contains(part), "{part}: {error}");
    }
    let rank = flash_attn_varlen(&q.unsqueeze(0)?, &k, &v, &ends_q, &ends_k, 40, 140, 0.2, false);
    assert!(matches!(refusal(rank), candle_core::Error::UnexpectedNumberOfDims { expected: 3, got: 4, .. }));

    let x = tensor((2, 9, 4, 32), 0.1, DType::F32)?;
    let padded = |lengths: &Tensor| refusal(FlashAttn::new(0.2).forward_padded(&x, &x, &x, lengths)).to_string();
    let error = padded(&offsets(&[9])?);
    assert!(error.contains("seqlens_k has 1 elements; it has one for each of the 2 sequences"), "{error}");
    let error = padded(&offsets(&[9, 10])?);
    assert!(error.contains("sequence 1"), "{error}");
    Ok(())
}
