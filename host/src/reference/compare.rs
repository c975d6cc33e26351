//! Measures of how far one result is from another.

/// How far a result is from another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// `|got - want| / |want|` in the 2-norm over all elements.
    pub relative_l2: f64,
    /// The largest `|got - want|`.
    pub max_abs: f64,
    /// `got . want / (|got| |want|)`.
    pub cosine: f64,
}

/// Measures `got` against `want`, element by element. Two results without any difference have `relative_l2` 0 and `cosine`
/// 1 even where they are all zeros.
///
/// ```
/// let figures = int_flash_attention::reference::compare(&[3.0, 4.0], &[3.0, 4.5]);
/// assert_eq!(figures.max_abs, 0.5);
/// ```
///
/// # Panics
/// On slices of different lengths.
#[must_use]
pub fn compare(got: &[f64], want: &[f64]) -> Figures {
    assert_eq!(got.len(), want.len(), "slices of different lengths are compared");
    let (mut diff2, mut got2, mut want2, mut product, mut max_abs) = (0.0, 0.0, 0.0, 0.0, 0.0_f64);
    for (&got, &want) in got.iter().zip(want) {
        let diff = got - want;
        diff2 += diff * diff;
        got2 += got * got;
        want2 += want * want;
        product += got * want;
        // `max` would drop a NaN, and so would a later element.
        max_abs = if diff.abs() <= max_abs || max_abs.is_nan() { max_abs } else { diff.abs() };
    }
    if diff2 == 0.0 {
        return Figures { relative_l2: 0.0, max_abs, cosine: 1.0 };
    }
    Figures { relative_l2: (diff2 / want2).sqrt(), max_abs, cosine: product / (got2 * want2).sqrt() }
}

/// An element that is further from the reference than allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Excess {
    /// Its index.
    pub index: usize,
    /// The value.
    pub got: f64,
    /// The reference's.
    pub want: f64,
    /// The distance allowed.
    pub bound: f64,
}

/// The first element of `got` that is not within `bound` of `want`; equal infinities are, a NaN never is.
///
/// # Panics
/// On slices of different lengths.
#[must_use]
pub fn first_excess(got: &[f64], want: &[f64], bound: &[f64]) -> Option<Excess> {
    assert!(got.len() == want.len() && want.len() == bound.len(), "slices of different lengths are compared");
    let within = |got: f64, want: f64, bound: f64| got == want || (got - want).abs() <= bound;
    (0..got.len()).find(|&i| !within(got[i], want[i], bound[i])).map(|index| Excess {
        index,
        got: got[index],
        want: want[index],
        bound: bound[index],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAN: f64 = f64::NAN;
    const INFINITY: f64 = f64::INFINITY;

    fn excess(got: f64, want: f64, bound: f64) -> bool {
        let found = first_excess(&[1.0, got, got], &[1.0, want, want], &[0.0, bound, bound]);
        // the first of them, with what was compared
        assert!(found.is_none_or(|found| found.index == 1 && found.got.to_bits() == got.to_bits()));
        found.is_some()
    }

    #[test]
    fn what_is_no_number_is_never_within_a_bound() {
        assert!(excess(NAN, 1.0, 1e9) && excess(NAN, 1.0, INFINITY) && excess(NAN, NAN, INFINITY));
        assert!(excess(1.0, NAN, INFINITY) && excess(1.0, 2.0, NAN));
        assert!(excess(INFINITY, 1.0, 1e9) && excess(INFINITY, -INFINITY, 1e9) && !excess(INFINITY, INFINITY, 0.0));
    }

    #[test]
    fn a_bound_is_the_last_distance_allowed() {
        assert!(!excess(1.0, 1.0, 0.0) && !excess(0.75, 1.0, 0.25) && !excess(1.25, 1.0, 0.25));
        assert!(excess(1.25 + f64::EPSILON, 1.0, 0.25) && excess(0.75 - f64::EPSILON, 1.0, 0.25));
        assert!(excess(1.0, 1.0 + f64::EPSILON, 0.0));
    }

    #[test]
    fn every_element_is_compared() {
        for (got, want, bound) in [(3, 2, 2), (2, 3, 2), (2, 2, 3), (3, 3, 2), (0, 1, 1)] {
            let [got, want, bound] = [got, want, bound].map(|len| vec![0.0; len]);
            std::panic::catch_unwind(|| first_excess(&got, &want, &bound)).expect_err("lengths differ");
        }
        std::panic::catch_unwind(|| compare(&[0.0], &[0.0, 0.0])).expect_err("lengths differ");
        std::panic::catch_unwind(|| compare(&[0.0, 0.0], &[0.0])).expect_err("lengths differ");
        assert_eq!(first_excess(&[0.0, 0.0, 1.0], &[0.0; 3], &[0.0; 3]).map(|excess| excess.index), Some(2));
    }

    #[test]
    fn figures_do_not_lose_what_is_no_number() {
        let figures = compare(&[3.0, 0.0], &[0.0, 4.0]);
        assert_eq!(figures, Figures { relative_l2: 1.25, max_abs: 4.0, cosine: 0.0 });
        assert_eq!(compare(&[-3.0, 4.0], &[3.0, -4.0]).cosine, -1.0);
        assert_eq!(compare(&[0.0], &[0.0]), Figures { relative_l2: 0.0, max_abs: 0.0, cosine: 1.0 });
        for got in [[NAN, 1.0], [1.0, NAN]] {
            let figures = compare(&got, &[1.0, 2.0]);
            assert!(figures.relative_l2.is_nan() && figures.max_abs.is_nan() && figures.cosine.is_nan(), "{figures:?}");
        }
    }
}
