//! What is asked: one attention forward pass.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::{Shape, TensorLayout};
use int_flash_attention_kernels::config::{Family, head_dims};
use int_flash_attention_kernels::layout::HEAD_DIMS;
use int_flash_attention_kernels::params::{
    AttentionParams, BaselineParams, DequantizeParams, Global, QuantizeParams, Strided, UNLIMITED,
};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Range;

pub use int_flash_attention_kernels::config::Scheme;

/// Which keys a query sees, counted from the key beside it: query `i` stands beside key `i + seqlen_kv - seqlen_q`, so that the
/// sequences end together, and sees `left` keys before that one, that one, and `right` keys behind it, as far as there are any.
/// `None` is no limit.
///
/// A model's `sliding_window = W` (`i - j < W`) is `left = W - 1`, with `right = 0` as it is causal.
///
/// ```
/// use int_flash_attention::Window;
/// assert_eq!("4095,0".parse(), Ok(Window { left: Some(4095), right: Some(0) }));
/// assert_eq!("inf,0".parse(), Ok(Window::CAUSAL));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Window {
    /// Keys before the one beside the query.
    pub left: Option<usize>,
    /// Keys behind the one beside the query.
    pub right: Option<usize>,
}

impl Window {
    /// Every query sees every key.
    pub const FULL: Self = Self { left: None, right: None };
    /// A query sees no key behind the one beside it.
    pub const CAUSAL: Self = Self { left: None, right: Some(0) };

    /// As a query of a sequence of `seqlen_q` sees it: a side that hides no key of `seqlen_kv` from any query has no limit.
    #[must_use]
    pub const fn of_lengths(self, seqlen_q: usize, seqlen_kv: usize) -> Self {
        let left = match self.left {
            Some(left) if left < seqlen_kv.saturating_sub(1) => Some(left),
            _ => None,
        };
        let right = match self.right {
            Some(right) if right < seqlen_q.saturating_sub(1) => Some(right),
            _ => None,
        };
        Self { left, right }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |f: &mut fmt::Formatter<'_>, side: Option<usize>| match side {
            Some(keys) => write!(f, "{keys}"),
            None => f.write_str("inf"),
        };
        side(f, self.left)?;
        f.write_str(",")?;
        side(f, self.right)
    }
}

impl std::str::FromStr for Window {
    type Err = Error;

    /// `LEFT,RIGHT`: how many keys, or `inf`.
    fn from_str(s: &str) -> Result<Self> {
        let side = |side: &str| match side.trim() {
            "inf" => Ok(None),
            number => number.parse().map(Some).map_err(|_| Error::Window { given: s.into(), side: number.into() }),
        };
        let Some((left, right)) = s.split_once(',') else {
            return Err(Error::Parse { what: "window", given: s.into(), allowed: "LEFT,RIGHT" });
        };
        Ok(Self { left: side(left)?, right: side(right)? })
    }
}

/// `softmax(softmax_scale * Q K^T) V` for every sequence and head: plain data, checked by [`check`](Self::check) and by
/// every function that takes it.
///
/// ```
/// use int_flash_attention::AttentionProblem;
/// // 2 sequences, 32 query heads that share 8 key/value heads, 1 new token on 4096 cached ones
/// let problem = AttentionProblem::new(2, 32, 8, 1, 4096, 128).with_causal(true);
/// assert_eq!(problem.group(), 4);
/// assert_eq!(problem.visible_keys(0), 0..4096);
/// problem.check()?;
/// # Ok::<(), int_flash_attention::Error>(())
/// ```
///
/// Problems can be keys of a cache of plans; scales are the same there if their bits are.
#[derive(Clone, Copy, Debug)]
pub struct AttentionProblem {
    /// Sequences.
    pub batch: usize,
    /// Heads of Q and of the output.
    pub heads_q: usize,
    /// Heads of K and V; each serves `heads_q / heads_kv` query heads (grouped-query attention).
    pub heads_kv: usize,
    /// Query tokens.
    pub seqlen_q: usize,
    /// Key and value tokens.
    pub seqlen_kv: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Which keys a query sees.
    pub window: Window,
    /// Factor of the scores; `None` is `1 / sqrt(head_dim)`.
    pub softmax_scale: Option<f32>,
    /// Numeric scheme.
    pub scheme: Scheme,
}

impl AttentionProblem {
    /// All fields, comparable.
    fn key(&self) -> impl Eq + Hash {
        let Self { batch, heads_q, heads_kv, seqlen_q, seqlen_kv, head_dim, window, softmax_scale, scheme } = *self;
        let scale = softmax_scale.map(f32::to_bits);
        ([batch, heads_q, heads_kv, seqlen_q, seqlen_kv, head_dim], window, scale, scheme)
    }
}

impl PartialEq for AttentionProblem {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for AttentionProblem {}

impl Hash for AttentionProblem {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

/// The longest sequence: positions are 32-bit on the device, and a block of 128 past the end has to fit as well.
const MAX_SEQLEN: usize = (1 << 31) - 256;
/// y and z of a CUDA grid.
const MAX_GRID_YZ: usize = 65535;

impl AttentionProblem {
    /// A problem without a mask, with the usual scale, in the default scheme; not checked yet.
    #[must_use]
    pub const fn new(
        batch: usize,
        heads_q: usize,
        heads_kv: usize,
        seqlen_q: usize,
        seqlen_kv: usize,
        head_dim: usize,
    ) -> Self {
        Self {
            batch,
            heads_q,
            heads_kv,
            seqlen_q,
            seqlen_kv,
            head_dim,
            window: Window::FULL,
            softmax_scale: None,
            scheme: Scheme::Default,
        }
    }

    /// The problem that tensors of these shapes pose.
    ///
    /// # Errors
    /// K and V of different shapes; a batch or head_dim other than Q's; query heads that are not a multiple of K's.
    pub fn of(q: Shape, k: Shape, v: Shape) -> Result<Self> {
        if k != v {
            return Err(Error::ShapeMismatch { name: "v", given: v.to_string(), expected: format!("k's, {k},") });
        }
        let expected = Shape { batch: q.batch, head_dim: q.head_dim, ..k };
        if k != expected {
            return Err(Error::ShapeMismatch { name: "k", given: k.to_string(), expected: expected.to_string() });
        }
        let problem = Self::new(q.batch, q.heads, k.heads, q.seqlen, k.seqlen, q.head_dim);
        problem.check_sizes()?;
        Ok(problem)
    }

    /// With or without the causal mask: [`Window::CAUSAL`] or [`Window::FULL`].
    #[must_use]
    pub const fn with_causal(self, causal: bool) -> Self {
        Self { window: if causal { Window::CAUSAL } else { Window::FULL }, ..self }
    }

    /// With this window.
    #[must_use]
    pub const fn with_window(self, window: Window) -> Self {
        Self { window, ..self }
    }

    /// In this scheme.
    #[must_use]
    pub const fn with_scheme(self, scheme: Scheme) -> Self {
        Self { scheme, ..self }
    }

    /// With this factor of the scores.
    #[must_use]
    pub const fn with_softmax_scale(self, softmax_scale: f32) -> Self {
        Self { softmax_scale: Some(softmax_scale), ..self }
    }

    /// The factor of the scores.
    #[must_use]
    pub fn scale(&self) -> f32 {
        self.softmax_scale.unwrap_or_else(|| (1.0 / (self.head_dim as f64).sqrt()) as f32)
    }

    /// Query heads of one key/value head.
    #[must_use]
    pub const fn group(&self) -> usize {
        match self.heads_q.checked_div(self.heads_kv) {
            Some(group) => group,
            None => 0,
        }
    }

    /// Shape of Q and of the output.
    #[must_use]
    pub const fn q_shape(&self) -> Shape {
        Shape { batch: self.batch, heads: self.heads_q, seqlen: self.seqlen_q, head_dim: self.head_dim }
    }

    /// Shape of K and of V.
    #[must_use]
    pub const fn kv_shape(&self) -> Shape {
        Shape { batch: self.batch, heads: self.heads_kv, seqlen: self.seqlen_kv, head_dim: self.head_dim }
    }

    /// Keys that query `row` sees.
    #[must_use]
    pub fn visible_keys(&self, row: usize) -> Range<usize> {
        let within = |key: usize| key.saturating_sub(self.seqlen_q).min(self.seqlen_kv);
        // Counted from `seqlen_q` keys before the first, so that nothing is negative.
        let beside = row.saturating_add(self.seqlen_kv);
        let from = self.window.left.map_or(0, |left| within(beside.saturating_sub(left)));
        let to =
            self.window.right.map_or(self.seqlen_kv, |right| within(beside.saturating_add(right).saturating_add(1)));
        from..to
    }

    /// Pairs of a query and a key that it sees, of one head.
    #[must_use]
    pub fn visible_pairs(&self) -> u64 {
        (0..self.seqlen_q).map(|row| self.visible_keys(row).len() as u64).sum()
    }

    /// What the INT8 kernels are handed for an output of this layout and type, all but the addresses. For the launches of this crate
    /// and of its tests.
    #[doc(hidden)]
    #[must_use]
    pub fn params(&self, o: &TensorLayout, dtype: DType) -> AttentionParams {
        let (window_left, window_right) = self.window_params();
        AttentionParams {
            o: strided(o),
            batch: self.batch as u32,
            heads_q: self.heads_q as u32,
            heads_kv: self.heads_kv as u32,
            group: self.group() as u32,
            seqlen_q: self.seqlen_q as u32,
            seqlen_kv: self.seqlen_kv as u32,
            window_left,
            window_right,
            o_dtype: dtype.code(),
            softmax_scale: self.scale(),
            ..AttentionParams::NONE
        }
    }

    /// What the float16 kernels are handed for tensors of these layouts (Q, K, V, O), all but the addresses.
    #[doc(hidden)]
    #[must_use]
    pub fn baseline_params(&self, [q, k, v, o]: [&TensorLayout; 4]) -> BaselineParams {
        let (window_left, window_right) = self.window_params();
        BaselineParams {
            q: strided(q),
            k: strided(k),
            v: strided(v),
            o: strided(o),
            lse: Global::NULL,
            heads_q: self.heads_q as u32,
            group: self.group() as u32,
            seqlen_q: self.seqlen_q as u32,
            seqlen_kv: self.seqlen_kv as u32,
            window_left,
            window_right,
            softmax_scale: self.scale(),
            reserved: 0,
        }
    }

    /// What the quantization kernels are handed for tensors of these layouts, those that are quantized, all but the addresses.
    #[doc(hidden)]
    #[must_use]
    pub fn quantize_params(&self, q: Option<&TensorLayout>, kv: Option<[&TensorLayout; 2]>) -> QuantizeParams {
        let unused = TensorLayout::bhnd(self.q_shape());
        let [k, v] = kv.unwrap_or([&unused; 2]);
        QuantizeParams {
            q: strided(q.unwrap_or(&unused)),
            k: strided(k),
            v: strided(v),
            batch: self.batch as u32,
            heads_q: if q.is_some() { self.heads_q as u32 } else { 0 },
            heads_kv: self.heads_kv as u32,
            seqlen_q: self.seqlen_q as u32,
            seqlen_kv: self.seqlen_kv as u32,
            head_dim: self.head_dim as u32,
            quantize_kv: u32::from(kv.is_some()),
            rotate: u32::from(self.scheme.rotates()),
            ..QuantizeParams::NONE
        }
    }

    /// What the dequantization kernels are handed for an operand (`int_flash_attention_kernels::params::operand`), all but the addresses.
    #[doc(hidden)]
    #[must_use]
    pub fn dequantize_params(&self, operand: u32, out: &TensorLayout) -> DequantizeParams {
        let Shape { heads, seqlen, head_dim, .. } = out.shape();
        DequantizeParams {
            out: strided(out),
            seqlen: seqlen as u32,
            heads: heads as u32,
            head_dim: head_dim as u32,
            operand,
            rotated: u32::from(self.scheme.rotates()),
            ..DequantizeParams::NONE
        }
    }

    /// The window's sides as the kernels take them.
    fn window_params(&self) -> (u32, u32) {
        let side = |side: Option<usize>| side.map_or(UNLIMITED, |keys| keys as u32);
        // A side that hides nothing has no limit: the kernels need not look at it.
        let Window { left, right } = self.window.of_lengths(self.seqlen_q, self.seqlen_kv);
        (side(left), side(right))
    }

    /// Everything but the head dims that the INT8 kernels are limited to; what the float64 reference asks.
    ///
    /// # Errors
    /// A size of zero or past the device's limits, heads that do not divide, a scale that is not finite.
    pub fn check_sizes(&self) -> Result<()> {
        for (name, heads) in [("heads_q", self.heads_q), ("heads_kv", self.heads_kv)] {
            if heads == 0 {
                return Err(Error::ZeroSize { name });
            }
        }
        for (name, seqlen) in [("seqlen_q", self.seqlen_q), ("seqlen_kv", self.seqlen_kv)] {
            match seqlen {
                0 => return Err(Error::ZeroSize { name }),
                1..=MAX_SEQLEN => {}
                given => {
                    let way =
                        "positions are 32-bit numbers; take the queries in parts, each with the keys that it sees";
                    return Err(Error::TooLarge { name, given, max: MAX_SEQLEN, way });
                }
            }
        }
        for (name, given) in [("batch", self.batch), ("heads_q", self.heads_q)] {
            if given > MAX_GRID_YZ {
                let way =
                    "they are y and z of a CUDA grid; make a plan for a part and launch it on each part of the tensors";
                return Err(Error::TooLarge { name, given, max: MAX_GRID_YZ, way });
            }
        }
        let (q, kv) = (self.q_shape(), self.kv_shape());
        Shape::new(q.batch, q.heads, q.seqlen, q.head_dim)?;
        Shape::new(kv.batch, kv.heads, kv.seqlen, kv.head_dim)?;
        if !self.heads_q.is_multiple_of(self.heads_kv) {
            return Err(Error::HeadGroups { heads_q: self.heads_q, heads_kv: self.heads_kv });
        }
        match self.softmax_scale {
            Some(given) if !given.is_finite() => Err(Error::SoftmaxScale { given }),
            _ => Ok(()),
        }
    }

    /// [`check_sizes`](Self::check_sizes), and a head dim of the scheme's INT8 kernels. It is the same on the CPU.
    ///
    /// # Errors
    /// As there, and [`Error::HeadDim`].
    pub fn check(&self) -> Result<()> {
        self.check_sizes()?;
        let mut allowed = head_dims(&Family::ALL, self.scheme);
        if allowed.any(|head_dim| head_dim == self.head_dim) {
            return Ok(());
        }
        Err(Error::HeadDim { given: self.head_dim, allowed: head_dims(&Family::ALL, self.scheme).collect() })
    }

    /// `expected`'s shape against a tensor's.
    pub(crate) fn check_shape(name: &'static str, given: Shape, expected: Shape) -> Result<()> {
        if given == expected {
            return Ok(());
        }
        Err(Error::ShapeMismatch { name, given: given.to_string(), expected: expected.to_string() })
    }
}

/// A layout without an address.
fn strided(layout: &TensorLayout) -> Strided {
    let [stride_b, stride_h, stride_n] = layout.strides();
    Strided { stride_b, stride_h, stride_n, ..Strided::NONE }
}

/// Whether the INT8 kernels and the packed layouts have this head dim.
pub(crate) fn check_head_dim(given: usize) -> Result<()> {
    if HEAD_DIMS.contains(&given) { Ok(()) } else { Err(Error::HeadDim { given, allowed: HEAD_DIMS.to_vec() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_problems_are_errors() {
        let good = AttentionProblem::new(2, 8, 2, 5, 7, 64);
        assert!(good.check().is_ok());
        assert!(matches!(AttentionProblem { head_dim: 48, ..good }.check(), Err(Error::HeadDim { given: 48, .. })));
        assert!(AttentionProblem { head_dim: 48, ..good }.check_sizes().is_ok());
        assert!(matches!(AttentionProblem { heads_kv: 3, ..good }.check(), Err(Error::HeadGroups { .. })));
        assert!(matches!(AttentionProblem { heads_kv: 0, ..good }.check(), Err(Error::ZeroSize { name: "heads_kv" })));
        assert!(matches!(AttentionProblem { batch: 0, ..good }.check(), Err(Error::ZeroSize { name: "batch" })));
        for (name, largest, beyond) in [
            ("batch", AttentionProblem { batch: 65535, ..good }, AttentionProblem { batch: 65536, ..good }),
            ("heads_q", AttentionProblem { heads_q: 65534, ..good }, AttentionProblem { heads_q: 65536, ..good }),
        ] {
            assert!(largest.check().is_ok(), "{name}");
            let error = beyond.check().unwrap_err();
            assert!(matches!(error, Error::TooLarge { name: which, given: 65536, .. } if which == name), "{error}");
            assert!(error.to_string().contains("launch it on each part"), "{error}");
        }
        // A padded block would leave 32 bits: near 2^32, and already near 2^31.
        for seqlen in [MAX_SEQLEN + 1, 1 << 31, (1 << 32) - 512, (1 << 32) - 128, (1 << 32) - 1, 1 << 32, usize::MAX] {
            let queries = AttentionProblem { seqlen_q: seqlen, ..good };
            assert!(matches!(queries.check(), Err(Error::TooLarge { name: "seqlen_q", .. })), "{seqlen}");
            let keys = AttentionProblem { seqlen_kv: seqlen, ..good };
            assert!(matches!(keys.check(), Err(Error::TooLarge { name: "seqlen_kv", .. })), "{seqlen}");
        }
        assert!(AttentionProblem { seqlen_q: MAX_SEQLEN, seqlen_kv: MAX_SEQLEN, ..good }.check().is_ok());
        assert!(matches!(good.with_softmax_scale(f32::NAN).check(), Err(Error::SoftmaxScale { .. })));
    }

    #[test]
    fn the_schemes_have_the_head_dims_of_their_kernels() {
        use int_flash_attention_kernels::config::ATTENTION;
        for scheme in [Scheme::Default, Scheme::Paper] {
            for head_dim in (8..=512).step_by(8) {
                let kernel = ATTENTION.iter().any(|v| v.head_dim == head_dim && v.scheme == scheme);
                let problem = AttentionProblem::new(1, 1, 1, 1, 1, head_dim).with_scheme(scheme);
                assert_eq!(problem.check().is_ok(), kernel, "{scheme} {head_dim}");
            }
        }
    }

    #[test]
    fn a_refused_head_dim_says_how_to_pad() {
        let refused = |head_dim, scheme| {
            AttentionProblem::new(1, 1, 1, 1, 1, head_dim).with_scheme(scheme).check().unwrap_err().to_string()
        };
        let padded = refused(80, Scheme::Default);
        assert!(padded.contains("zeros to 96") && padded.contains("softmax_scale 0.1118034 (1/sqrt(80))"), "{padded}");
        assert!(refused(256, Scheme::Paper).contains("the default scheme has [32, 64, 96, 128, 256]"));
        assert!(refused(512, Scheme::Default).contains("no kernel is wide enough"));
    }

    #[test]
    fn problems_built_by_hand_do_not_panic() {
        let huge = AttentionProblem::new(usize::MAX, 0, 0, 1, usize::MAX, 0).with_causal(true);
        assert_eq!(huge.visible_keys(usize::MAX), 0..usize::MAX - 1);
        assert!(huge.check().is_err() && huge.q_shape().check().is_err() && huge.group() == 0);
    }

    #[test]
    fn problems_are_keys() {
        let plain = AttentionProblem::new(1, 8, 2, 5, 7, 64);
        let mut plans = std::collections::HashMap::from([(plain, 1), (plain.with_softmax_scale(0.5), 2)]);
        plans.insert(plain.with_causal(true), 3);
        plans.insert(plain.with_scheme(Scheme::Paper), 4);
        plans.insert(plain.with_window(Window { left: Some(3), right: Some(0) }), 5);
        plans.insert(plain, 6);
        assert_eq!((plans.len(), plans[&plain], plans[&plain.with_softmax_scale(0.5)]), (5, 6, 2));
        // Scores of a NaN are refused later; a key finds itself.
        assert_eq!(plain.with_softmax_scale(f32::NAN), plain.with_softmax_scale(f32::NAN));
    }

    #[test]
    fn the_mask_ends_at_the_bottom_right() {
        let problem = AttentionProblem::new(1, 1, 1, 4, 6, 32).with_causal(true);
        assert_eq!([0, 1, 3].map(|row| problem.visible_keys(row)), [0..3, 0..4, 0..6]);
        let tall = AttentionProblem::new(1, 1, 1, 6, 4, 32).with_causal(true);
        assert_eq!([0, 1, 2, 5].map(|row| tall.visible_keys(row)), [0..0, 0..0, 0..1, 0..4]);
    }

    #[test]
    fn windows_are_what_their_definition_says() {
        for (n, n_kv) in [(1, 1), (4, 6), (6, 4), (1, 9), (9, 1)] {
            for (left, right) in (0..11).flat_map(|left| (0..11).map(move |right| (left, right))) {
                let limit = |keys: usize| (keys < 10).then_some(keys);
                let window = Window { left: limit(left), right: limit(right) };
                let p = AttentionProblem::new(1, 1, 1, n, n_kv, 32).with_window(window);
                for i in 0..n {
                    let beside = i as i64 + n_kv as i64 - n as i64;
                    let sees = |&j: &usize| {
                        let distance = j as i64 - beside;
                        window.left.is_none_or(|left| -distance <= left as i64)
                            && window.right.is_none_or(|right| distance <= right as i64)
                    };
                    let seen: Vec<usize> = (0..n_kv).filter(sees).collect();
                    assert_eq!(p.visible_keys(i).collect::<Vec<_>>(), seen, "{n}x{n_kv} {window} row {i}");
                    let same = p.with_window(window.of_lengths(n, n_kv)).visible_keys(i);
                    assert_eq!(same.collect::<Vec<_>>(), seen, "{n}x{n_kv} {window} row {i}");
                }
            }
        }
        let huge = Window { left: Some(usize::MAX), right: Some(usize::MAX) };
        let longest = AttentionProblem::new(1, 1, 1, MAX_SEQLEN, MAX_SEQLEN, 32);
        assert_eq!(longest.with_window(huge).visible_keys(0), 0..MAX_SEQLEN);
        assert_eq!(huge.of_lengths(5, 5), Window::FULL);
    }

    #[test]
    fn windows_are_read_and_written() {
        for text in ["0,0", "4095,0", "inf,0", "128,inf", "inf,inf"] {
            assert_eq!(text.parse::<Window>().unwrap().to_string(), text);
        }
        for (text, part) in [("-1,0", "-1"), ("5,-10", "-10"), ("5,x", "x"), ("5", "LEFT,RIGHT"), (",0", "inf")] {
            let error = text.parse::<Window>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn shapes_pose_the_problem() {
        let shape = |heads, seqlen| Shape::new(2, heads, seqlen, 64).unwrap();
        let problem = AttentionProblem::of(shape(8, 5), shape(2, 9), shape(2, 9)).unwrap();
        assert_eq!((problem.heads_q, problem.heads_kv, problem.seqlen_q, problem.seqlen_kv), (8, 2, 5, 9));
        let wrong = AttentionProblem::of(shape(8, 5), shape(2, 9), shape(2, 8));
        assert!(matches!(wrong, Err(Error::ShapeMismatch { name: "v", .. })));
        let other = Shape::new(1, 2, 9, 64).unwrap();
        assert!(matches!(AttentionProblem::of(shape(8, 5), other, other), Err(Error::ShapeMismatch { name: "k", .. })));
    }
}
