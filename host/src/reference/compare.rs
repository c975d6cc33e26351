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
#[must_use]
pub fn compare(got: &[f64], want: &[f64]) -> Figures {
    let (mut diff2, mut got2, mut want2, mut product, mut max_abs) = (0.0, 0.0, 0.0, 0.0, 0.0_f64);
    for (&got, &want) in got.iter().zip(want) {
        let diff = got - want;
        diff2 += diff * diff;
        got2 += got * got;
        want2 += want * want;
        product += got * want;
        // `max` would drop a NaN.
        max_abs = if diff.abs() <= max_abs { max_abs } else { diff.abs() };
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
