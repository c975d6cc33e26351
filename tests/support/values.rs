//! Values for Q, K and V. Each element is a function of seed and coordinates, so a failure can be looked up by hand.

use anyhow::Result;
use int_flash_attention::{DType, HostTensor, TensorLayout};

/// A kind of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// Standard normal.
    Normal,
    /// Uniform in -0.5..0.5.
    Uniform,
    /// Normal, and a few channels shifted and scaled by tens, as K has them in real models.
    OutlierChannels,
    /// All channels of a token equal.
    ConstantRows,
    /// Zeros.
    Zeros,
    /// Most 128-token blocks zero, the others normal.
    ZeroBlocks,
    /// Near the largest finite float16; 1e12 in the wider types.
    Huge,
    /// Among float16's subnormals; 1e-30 in the wider types.
    Tiny,
    /// Normal, and some tokens a thousand times as loud.
    LoudTokens,
    /// The same, in the wider types with scales of 1e-30.
    TinyLoudTokens,
}

impl Values {
    /// Every kind but the last, which the batteries have, so that generated cases stay what they are.
    pub const ALL: [Self; 9] = [
        Self::Normal,
        Self::Uniform,
        Self::OutlierChannels,
        Self::ConstantRows,
        Self::Zeros,
        Self::ZeroBlocks,
        Self::Huge,
        Self::Tiny,
        Self::LoudTokens,
    ];

    /// A tensor of such values.
    ///
    /// # Errors
    ///
    /// When the library refuses the layout.
    pub fn tensor(self, dtype: DType, layout: TensorLayout, seed: u64) -> Result<HostTensor> {
        Ok(HostTensor::from_fn(dtype, layout, |b, h, n, d| self.value(dtype, seed, [b, h, n, d]))?)
    }

    fn value(self, dtype: DType, seed: u64, at: [usize; 4]) -> f32 {
        let [b, h, n, d] = at;
        let normal = || Noise::new(seed, at).normal();
        match self {
            Self::Normal => normal(),
            Self::Uniform => Noise::new(seed, at).uniform() - 0.5,
            Self::OutlierChannels => {
                let channel = Noise::new(seed, [b, h, usize::MAX, d]).uniform();
                if channel < 0.06 { 20.0 + 5.0 * normal() } else { normal() }
            }
            Self::ConstantRows => Noise::new(seed, [b, h, n, usize::MAX]).normal(),
            Self::Zeros => 0.0,
            Self::ZeroBlocks => {
                if Noise::new(seed, [b, h, n / 128, usize::MAX]).uniform() < 0.6 {
                    0.0
                } else {
                    normal()
                }
            }
            Self::Huge => (Noise::new(seed, at).uniform() - 0.5) * if dtype == DType::F16 { 1.3e5 } else { 1e12 },
            Self::Tiny => normal() * if dtype == DType::F16 { 3e-7 } else { 1e-30 },
            Self::LoudTokens => {
                let loud = Noise::new(seed, [b, h, n, usize::MAX]).uniform() < 0.05;
                normal() * if loud { 1000.0 } else { 1.0 }
            }
            Self::TinyLoudTokens => {
                Self::LoudTokens.value(dtype, seed, at) * if dtype == DType::F16 { 1.0 } else { 1e-30 }
            }
        }
    }
}

/// splitmix64 over seed and coordinates.
pub struct Noise(u64);

impl Noise {
    /// The stream of one element.
    #[must_use]
    pub fn new(seed: u64, at: [usize; 4]) -> Self {
        let mut noise = Self(seed);
        for coordinate in at {
            noise.0 = noise.bits() ^ coordinate as u64;
        }
        noise
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Any 32 bits.
    pub fn word(&mut self) -> u32 {
        (self.bits() >> 32) as u32
    }

    /// In 0..1, 24 bits.
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1_u32 << 24) as f32
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f32 {
        let (radius, angle) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * radius.ln()).sqrt() * (std::f32::consts::TAU * angle).cos()
    }
}
