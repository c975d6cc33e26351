//! What is asked: one attention forward pass.

use crate::error::{Error, Result};
use crate::shape::Shape;
use int_flash_attention_kernels::layout::HEAD_DIMS;
use std::fmt;
use std::hash::{Hash, Hasher};

/// The numeric scheme (docs/kernel-abi.md).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// The most accurate: u8 P scaled by the block's row maximum, integer row sums, V scaled per channel, K and V less
    /// their token means.
    #[default]
    Default,
    /// arXiv 2409.16997 to the letter: int8 P scaled by the running maximum, V scaled per head.
    Paper,
}

impl Scheme {
    pub(crate) const fn kernels(self) -> int_flash_attention_kernels::config::Scheme {
        match self {
            Self::Default => int_flash_attention_kernels::config::Scheme::Default,
            Self::Paper => int_flash_attention_kernels::config::Scheme::Paper,
        }
    }

    /// The head dims of the scheme's kernels.
    pub(crate) const fn head_dims(self) -> &'static [usize] {
        match self {
            Self::Default => &HEAD_DIMS,
            // The paper's float32 scores leave no registers for a wider head.
            Self::Paper => &[32, 64, 96, 128],
        }
    }

    /// Whether the token means of K and V are taken out ("smoothing"), V is scaled per channel and Q's scales are
    /// rounded up to 10 bits.
    #[must_use]
    pub const fn smooths(self) -> bool {
        matches!(self, Self::Default)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::Paper => "paper",
        })
    }
}

impl std::str::FromStr for Scheme {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s.to_ascii_lowercase().as_str() {
            "default" => Ok(Self::Default),
            "paper" => Ok(Self::Paper),
            _ => Err(Error::Parse { what: "scheme", given: s.into(), allowed: "default, paper" }),
        }
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
/// assert_eq!(problem.visible_keys(0), 4096);
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
    /// Key `j` is hidden from query `i` where `j > i + seqlen_kv - seqlen_q`: the diagonal ends at the bottom right.
    pub causal: bool,
    /// Factor of the scores; `None` is `1 / sqrt(head_dim)`.
    pub softmax_scale: Option<f32>,
    /// Numeric scheme.
    pub scheme: Scheme,
}

impl AttentionProblem {
    /// All fields, comparable.
    fn key(&self) -> impl Eq + Hash {
        let Self { batch, heads_q, heads_kv, seqlen_q, seqlen_kv, head_dim, causal, softmax_scale, scheme } = *self;
        let scale = softmax_scale.map(f32::to_bits);
        ([batch, heads_q, heads_kv, seqlen_q, seqlen_kv, head_dim], causal, scale, scheme)
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
            causal: false,
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

    /// With or without the causal mask.
    #[must_use]
    pub const fn with_causal(self, causal: bool) -> Self {
        Self { causal, ..self }
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

    /// Keys that query `row` sees: the first so many.
    #[must_use]
    pub const fn visible_keys(&self, row: usize) -> usize {
        if !self.causal {
            return self.seqlen_kv;
        }
        let end = row.saturating_add(1).saturating_add(self.seqlen_kv).saturating_sub(self.seqlen_q);
        if end < self.seqlen_kv { end } else { self.seqlen_kv }
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
        let allowed = self.scheme.head_dims();
        if allowed.contains(&self.head_dim) { Ok(()) } else { Err(Error::HeadDim { given: self.head_dim, allowed }) }
    }

    /// `expected`'s shape against a tensor's.
    pub(crate) fn check_shape(name: &'static str, given: Shape, expected: Shape) -> Result<()> {
        if given == expected {
            return Ok(());
        }
        Err(Error::ShapeMismatch { name, given: given.to_string(), expected: expected.to_string() })
    }
}

/// Whether the packed layouts have this head dim.
pub(crate) fn check_head_dim(given: usize) -> Result<()> {
    if HEAD_DIMS.contains(&given) { Ok(()) } else { Err(Error::HeadDim { given, allowed: &HEAD_DIMS }) }
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
        // A padded block, or a chunk of the statistics, would leave 32 bits: near 2^32, and already near 2^31.
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
                let kernel = ATTENTION.iter().any(|v| v.head_dim == head_dim && v.scheme == scheme.kernels());
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
        assert_eq!(huge.visible_keys(usize::MAX), usize::MAX - 1);
        assert!(huge.check().is_err() && huge.q_shape().check().is_err() && huge.group() == 0);
    }

    #[test]
    fn problems_are_keys() {
        let plain = AttentionProblem::new(1, 8, 2, 5, 7, 64);
        let mut plans = std::collections::HashMap::from([(plain, 1), (plain.with_softmax_scale(0.5), 2)]);
        plans.insert(plain.with_causal(true), 3);
        plans.insert(plain.with_scheme(Scheme::Paper), 4);
        plans.insert(plain, 5);
        assert_eq!((plans.len(), plans[&plain], plans[&plain.with_softmax_scale(0.5)]), (4, 5, 2));
        // Scores of a NaN are refused later; a key finds itself.
        assert_eq!(plain.with_softmax_scale(f32::NAN), plain.with_softmax_scale(f32::NAN));
    }

    #[test]
    fn the_mask_ends_at_the_bottom_right() {
        let problem = AttentionProblem::new(1, 1, 1, 4, 6, 32).with_causal(true);
        assert_eq!([0, 1, 3].map(|row| problem.visible_keys(row)), [3, 4, 6]);
        let tall = AttentionProblem::new(1, 1, 1, 6, 4, 32).with_causal(true);
        assert_eq!([0, 1, 2, 5].map(|row| tall.visible_keys(row)), [0, 0, 1, 4]);
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
