//! Quick conversions against plain ones.

use ptx_machine::numeric::{F16, add_odd, exp2, f16_to_f32, f32_to_f16};

/// All 65536 halves, and their neighbourhoods in `f32`.
#[test]
fn the_quick_conversions_are_the_plain_ones() {
    for bits in 0..=0xffff {
        let (quick, plain) = (f16_to_f32(bits), F16.decode(bits));
        assert!(f64::from(quick) == plain || quick.is_nan() && plain.is_nan(), "{bits:#x}");
        for step in [-1, 0, 1, 0xfff, 0x1000, 0x1001, 0x1800] {
            let x = f32::from_bits(quick.to_bits().wrapping_add_signed(step));
            assert_eq!(f32_to_f16(x), F16.nearest(x.into()), "{x}");
        }
    }
}

#[test]
fn sums_rounded_to_odd_round_again_as_exact_ones() {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f16_to_f32(state >> 16 & 0xbfff)
    };
    for _ in 0..200_000 {
        let (product, c) = (next() * next(), next());
        let exact = f64::from(product) + f64::from(c);
        assert_eq!(f32_to_f16(add_odd(product, c)), F16.nearest(exact), "{product} + {c}");
    }
}

#[test]
fn powers_of_two_are_as_good_as_the_library_s() {
    for i in -20_000..20_000 {
        let x = f64::from(i as f32 * 0.0077);
        let (own, libm) = (exp2(x), x.exp2());
        assert!((own - libm).abs() <= libm * 2_f64.powi(-50), "{x}");
    }
}
