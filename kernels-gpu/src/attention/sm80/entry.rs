//! The entry points, from the table `sm80_rows`.

use super::front::{Pick, Picked, Wide};
use super::{Kernel, attention};
use crate::config::sm80::takes_narrow;
use crate::params::AttentionParams;

macro_rules! softmax {
    (Default, $mt:literal) => {
        crate::attention::softmax::BlockMax<$mt, false>
    };
    (Default, $mt:literal, General) => {
        crate::attention::softmax::FloatMax<$mt>
    };
    (Paper, $mt:literal $(, General)?) => {
        crate::attention::softmax::Paper<$mt>
    };
}

macro_rules! narrow {
    (Default, $d:literal) => {
        <Pick<{ takes_narrow($d) }> as Picked>::Front
    };
    ($scheme:ident, $d:literal $(, General)?) => {
        Wide
    };
}

macro_rules! score_mod {
    () => {
        crate::attention::score_mod::Plain
    };
    (General) => {
        crate::attention::score_mod::General
    };
}

macro_rules! entries {
    ($($name:ident { head_dim: $d:literal, head_dim_v: $dv:literal, scheme: $scheme:ident, m16_tiles: $mt:literal, warps: $warps:literal,
        slots: $slots:literal,
        ctas: $ctas:expr, team: $team:literal $(, kind: $kind:ident)? })*) => {$(
        #[cfg($name)]
        #[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
        #[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
        pub unsafe extern "ptx-kernel" fn $name(params: AttentionParams) {
            struct Row;
            impl Kernel<$mt> for Row {
                type Softmax = softmax!($scheme, $mt $(, $kind)?);
                type ScoreMod = score_mod!($($kind)?);
                type Narrow = narrow!($scheme, $d $(, $kind)?);
                const HEAD_DIM: usize = $d;
                const HEAD_DIM_V: usize = $dv;
                const WARPS: usize = $warps;
                const SLOTS: usize = $slots;
                const TEAM: usize = $team;
            }
            unsafe { attention::<Row, $mt>(&params) }
        }
    )*};
}

crate::config::rows::sm80_rows!(entries);
