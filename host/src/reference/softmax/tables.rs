//! Codes of P by their exponent arguments in float16.

use super::EX2_F16_ERROR;
use crate::round::{f16_from_f64, round_ties_even};
use half::f16;
use std::sync::OnceLock;

/// P for every float16 exponent argument `x <= 0`, by the bits of `-x`.
pub(in super::super) struct Tables {
    /// The code, for every number of 15 bits: an index needs no check.
    pub(in super::super) p: Box<[u8; 1 << 15]>,
    /// The least and the most that a GPU's `ex2.approx.f16` may make of it.
    pub(in super::super) ends: Vec<[u8; 2]>,
}

impl Tables {
    /// The bits of 16: from there on P is 0.
    pub(in super::super) const LAST: u16 = 0x4c00;
}

/// The float16 in `[low, high]` that is nearest to its ends.
fn f16_range(low: f64, high: f64) -> (f64, f64) {
    let up = |x: f64| {
        let nearest = f16_from_f64(x);
        if f64::from(nearest) < x { f16::from_bits(nearest.to_bits() + 1) } else { nearest }
    };
    let down = |x: f64| {
        let nearest = f16_from_f64(x);
        if f64::from(nearest) > x { f16::from_bits(nearest.to_bits() - 1) } else { nearest }
    };
    (up(low).into(), down(high).into())
}

pub(in super::super) fn tables() -> &'static Tables {
    static TABLES: OnceLock<Tables> = OnceLock::new();
    TABLES.get_or_init(|| {
        // fma_f16(e, 255, 1024): steps of 1 above 1024, so the low byte is 255 e rounded to nearest even.
        let code = |e: f64| round_ties_even(255.0 * e) as u8;
        let of = |bits| {
            let e = (-f64::from(f16::from_bits(bits))).exp2();
            let (low, high) = f16_range(e * (1.0 - EX2_F16_ERROR), e * (1.0 + EX2_F16_ERROR));
            (code(f16_from_f64(e).into()), [code(low), code(high)])
        };
        let (mut p, mut ends) = (Box::new([0; 1 << 15]), Vec::new());
        for (bits, p) in (0..=Tables::LAST).zip(p.iter_mut()) {
            let (code, of_gpu) = of(bits);
            *p = code;
            ends.push(of_gpu);
        }
        Tables { p, ends }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_code_is_off_by_one_at_most() {
        let Tables { p, ends } = tables();
        assert_eq!((p[0], ends[0]), (255, [255; 2]));
        assert_eq!((p[usize::from(Tables::LAST)..].iter().max(), ends.last()), (Some(&0), Some(&[0; 2])));
        for (bits, (&p, &[low, high])) in p.iter().zip(ends).enumerate() {
            assert!(low <= p && p <= high && high - p <= 1 && p - low <= 1, "{bits:#x}: {low} {p} {high}");
        }
        // What the coarse rounding of tiny arguments relies on.
        assert!(p[..=0x400].iter().zip(ends).all(|(&p, &ends)| (p, ends) == (255, [255; 2])));
    }
}
