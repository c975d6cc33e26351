//! The entry points, from the table `baseline_rows`.

use super::{Kernel, attention};
use crate::params::BaselineParams;

macro_rules! entries {
    ($($name:ident { head_dim: $d:literal, m16_tiles: $mt:literal, warps: $warps:literal, keys: $keys:literal, stages: $stages:literal,
        q_in_registers: $resident:literal, ctas: $ctas:expr })*) => {$(
        #[cfg($name)]
        #[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
        #[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
        pub unsafe extern "ptx-kernel" fn $name(params: BaselineParams) {
            struct Row;
            impl Kernel<$mt> for Row {
                const HEAD_DIM: usize = $d;
                const WARPS: usize = $warps;
                const KEYS: usize = $keys;
                const STAGES: usize = $stages;
                const Q_IN_REGISTERS: bool = $resident;
            }
            unsafe { attention::<Row, $mt, $keys>(&params) }
        }
    )*};
}

crate::config::rows::baseline_rows!(entries);
